"""The published study's comparison: several quantizations of one model, measured side by side."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from fairq_utils.apply import (
    ALIASES,
    CONTROLLED,
    FIELDS,
    PUBLISHED,
    QAT_CONTROL,
    apply_quantization,
    parsed,
)
from fairq_utils.data.batches import Batch, divided, gather, joined, read
from fairq_utils.data.whole_files import written_whole
from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics.counts import Counts, count
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.gaps import LeftOutWarning, left_out
from fairq_utils.metrics.model_metrics import paired_predictions
from fairq_utils.metrics.rates import overall
from fairq_utils.mitigation.task import attributes_of, balanced_size
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.sizes import size_mebibytes
from fairq_utils.stats.floors import exchange_floors
from fairq_utils.stats.paired import paired_bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAPS = ("demographic_parity_difference", "equalized_odds_difference")
CROSSED = " x "  # joins attributes in the name of a scope
Statistic = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes
    ----------
    table : DataFrame, a row per method, FP32 first
        ``method``; ``accuracy`` and, for each attribute and for all of them crossed,
        ``demographic_parity_difference.gender``, ``equalized_odds_difference.gender x age`` and so
        on, all fractions; of each of these ``.change``, from FP32 on the same images, ``.low`` and
        ``.high``, the paired bootstrap's interval of the change, and ``.floor``, the change that
        the same flips would make by chance alone (95th percentile).

        ``flips`` : images whose prediction changed

        ``size_mib`` : MiB; ``ratio``, of the FP32 model's size to it; ``ideal_ratio``, what the
        bits of the quantized weights alone would give

        ``left_float`` : how many layers stayed in float; ``reports`` says which, and why

        ``calibration_images``, ``images`` : how many were calibrated on, and measured
    counts : method -> counts of its predictions over all attributes, beside those of FP32
    reports : method -> its :class:`~fairq_utils.quantizers.QuantReport`; FP32 has none
    models : method -> the quantized module
    """

    table: pd.DataFrame
    counts: dict[str, Counts] = field(repr=False)
    reports: dict[str, QuantReport] = field(repr=False)
    models: dict[str, nn.Module] = field(repr=False)

    def plot_comparison(self, width: float = 11.0) -> Figure:
        """Draw accuracy over size and the changes of the gaps; see :func:`comparison_figure`."""
        from fairq_utils.report.comparison import comparison_figure

        scopes = [CROSSED.join(scope) for scope in _scopes(next(iter(self.counts.values())))]
        return comparison_figure(self.table, GAPS, scopes, width)

    def save_to_csv(self, path: str | Path) -> Path:
        """Write the table, floats in full; the folders on the way are made.

        Raises
        ------
        NotWritten
            The file cannot be written there.
        """
        with written_whole(path, way_out="name another file in save_to_csv") as place:
            self.table.to_csv(place, index=False)
        return Path(path)


@full_precision()
def compare_quantization_methods(
    model: nn.Module,
    methods: Sequence[str] = ("PTQ_INT8", "PTQ_INT4", "QAT_INT8", "bias_aware"),
    test_loader: Iterable[Any] | None = None,
    sensitive_attrs: Sequence[str] = ("gender", "age"),
    calibration_data: Iterable[Any] | None = None,
    train_loader: Iterable[Any] | None = None,
    *,
    calibration_images: int = 512,
    pool_images: int = 4096,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    outputs: str | None = None,
    **options: Any,
) -> Comparison:
    """Quantize one binary classifier in several ways and measure each beside FP32.

    All methods calibrate on the same number of images, and all models predict in one pass over the
    test images, so that predictions stay paired even where the loader shuffles.

    Parameters
    ----------
    model : module with logits (N, 2), (N, 1) or (N,)
        It is not changed.
    methods : names
        A method of :func:`~fairq_utils.apply_quantization` and its bits: ``PTQ_INT8``,
        ``QAT_INT4``, ``bias_aware`` (8 bits), ``RECONSTRUCTION_W4A8``. ``QAT_FP32`` is the control
        of QAT: trained alike, not quantized. Without it, a change of QAT is the training's too.
    test_loader : iterable of (images, labels, groups)
        Labels 0 or 1; groups a mapping or DataFrame of attribute to values, or (N, K) values of
        ``sensitive_attrs`` in this order.
    sensitive_attrs : names of the attributes
    calibration_data : iterable
        As for :func:`~fairq_utils.apply_quantization`; other images than the test's.
    train_loader : iterable of (images, labels), optional
        For QAT.
    calibration_images, pool_images, seed, outputs
        As for :func:`~fairq_utils.apply_quantization`.
    replicates, confidence
        Of the bootstrap; see :func:`~fairq_utils.stats.paired_bootstrap`.
    **options
        As for :func:`~fairq_utils.apply_quantization`; each reaches the methods that have it.

    Returns
    -------
    Comparison

    Warns
    -----
    UserWarning
        Without ``calibration_data``: the first images of the test loader are calibrated on, and
        left out of the measurement. Without ``train_loader``: QAT trains on the calibration images.
    LeftOutWarning
        Lists groups that take no part in a gap.

    Raises
    ------
    BadInput
        An unknown method (the known ones are listed), an attribute that the loader does not have,
        or one with a single value.
    """
    wanted = dict.fromkeys(each_name(methods))
    asked = {name: _parsed(name) for name in wanted if name.upper() != "FP32"}
    if test_loader is None:
        raise BadInput(
            "compare_quantization_methods: test_loader is missing; give a loader of (images, "
            "labels, groups)"
        )
    taken = {name: _taken(method, options) for name, (method, _) in asked.items()}
    nobodys = set(options).difference(*taken.values())  # which is refused by the first method
    taken = {name: own | nobodys for name, own in taken.items()}
    attributes = _names(sensitive_attrs)
    rest: Iterable[Any] = test_loader
    if calibration_data is not None:
        pool = gather(calibration_data, pool_images, "calibration_data", attributes)
    else:
        pool, rest = _first_taken(test_loader, calibration_images, attributes)
    size = min(calibration_images, len(pool.images))
    if any(method == PUBLISHED for method, _ in asked.values()):
        size = min(size, balanced_size(attributes_of(pool, attributes)))
    if train_loader is None and any(name == "qat" for name, _ in asked.values()):
        warnings.warn(
            f"compare_quantization_methods: without train_loader, QAT trains on the "
            f"{len(pool.images)} calibration images, which is few; give train_loader, a loader of "
            "the training images and labels",
            UserWarning,
            stacklevel=3,
        )
    given = [tuple(p for p in (pool.images, pool.labels, pool.groups) if p is not None)]
    model = copied(model, "compare_quantization_methods")
    models: dict[str, nn.Module] = {"FP32": model}
    reports: dict[str, QuantReport] = {}
    for name, (method, bits) in asked.items():
        settings: dict[str, Any] = {
            "calibration_data": given,
            "train_data": train_loader,
            "pool_images": len(pool.images),
            "seed": seed,
            "outputs": outputs,
            **{option: value for option, value in options.items() if option in taken[name]},
        }
        models[name] = apply_quantization(
            model,
            method,
            bits,
            sensitive_attrs=attributes,
            calibration_images=size,
            **settings,
        )
        report = getattr(models[name], "report", None)
        if report is not None:  # the FP32 fine-tuning control has none
            reports[name] = report
    found = paired_predictions(
        models, rest, attributes, argument="sensitive_attrs", outputs=outputs
    )
    counts = {
        name: count(
            found.truth,
            predictions,
            sensitive_features=found.groups[attributes],
            reference=found.predictions["FP32"],
        )
        for name, predictions in found.predictions.items()
    }
    _check_groups(counts["FP32"])
    bootstrap = {"replicates": replicates, "confidence": confidence, "seed": seed}
    rows = []
    for name, counted in counts.items():
        row: dict[str, Any] = {"method": name}
        row |= _effects({"accuracy": _accuracy}, counted, "", bootstrap)
        for scope in _scopes(counted):
            gaps: dict[str, Statistic] = {gap: FAIRNESS[gap] for gap in GAPS}
            part = counted.by(*scope)
            row |= _effects(gaps, part, CROSSED.join(scope), bootstrap)
        report = reports.get(name)
        row["flips"] = int(counted.flips.sum())
        row["size_mib"] = size_mebibytes(models[name])
        row["ratio"] = size_mebibytes(model) / row["size_mib"]
        row["ideal_ratio"] = ideal_ratio(models[name])
        row["left_float"] = len(report.left_float) if report else 0
        row["calibration_images"] = report.calibration_images if report else 0
        row["images"] = int(counted.sizes.sum())
        rows.append(row)
    del models["FP32"]
    return Comparison(pd.DataFrame(rows), counts, reports, models)


def ideal_ratio(model: nn.Module) -> float:
    """32 bits over the mean bits of the weights in quantized layers; 1 where there are none.

    Channels that such a layer keeps at more bits count with these.

    Examples
    --------
    >>> ideal_ratio(nn.Linear(2, 2))
    1.0
    """
    layers = [module for module in model.modules() if isinstance(module, Quantized)]
    weights = sum(layer.weight_integers.numel() for layer in layers)
    bits = sum(layer.packed_bits() for layer in layers)
    return 32 * weights / bits if bits else 1.0


def _accuracy(table: NDArray[Any]) -> NDArray[Any]:
    return overall(table, "accuracy")


def _parsed(name: str) -> tuple[str, int | str]:
    """The method and the bits of a name such as ``PTQ_INT8``."""
    found = parsed(name)
    if found is None:
        names = {*map(str.upper, METHODS), *ALIASES, PUBLISHED} - {QAT_CONTROL.lower()}
        every = ", ".join(sorted(names, key=str.lower))
        raise BadInput(
            f"methods: {name!r} is not known; a name is one of {every}, and its bits: PTQ_INT8, "
            f"bias_aware_INT4, BLOCK_W4A8; or {QAT_CONTROL}, the FP32 fine-tuning control of QAT"
        )
    method, bits = found
    return method, 8 if bits is None else bits


def _taken(method: str, options: Mapping[str, Any]) -> set[str]:
    """Those options that say something to a method."""
    chosen = METHODS["ptq" if method == PUBLISHED else method]
    own = {option for option in options if option in chosen.settings}
    if method == CONTROL:
        return own | set(options).intersection(CONTROLLED)
    of_specs = {option: value for option, value in options.items() if option in FIELDS}
    return own | set(of_specs).difference(chosen.spec("W8A8", **of_specs).idle(of_specs))


def _names(sensitive_attrs: Sequence[str]) -> list[str]:
    names = list(each_name(sensitive_attrs))
    if not names or len(set(names)) < len(names):
        raise BadInput(
            f"sensitive_attrs: {names} must be names of one or more attributes, each once"
        )
    return names


def _first_taken(
    loader: Iterable[Any], images: int, attributes: Sequence[str]
) -> tuple[Batch, Iterator[Any]]:
    """The first images of a test loader, and the others; one pass, in whatever order it comes."""
    parts, rest = divided(read(loader, "test_loader", attributes), images)
    ahead = next(rest, None)
    if ahead is None:
        found = sum(len(part.images) for part in parts)
        raise BadInput(
            f"compare_quantization_methods: without calibration_data the first {images} images of "
            f"test_loader are calibrated on, and it has only {found}, so that none are "
            "left to measure; give calibration_data, or lower calibration_images"
        )
    warnings.warn(
        f"compare_quantization_methods: without calibration_data, the first {images} images of "
        "test_loader are calibrated on and left out of the measurement; give calibration_data, a "
        "loader of other images, to measure on all of the test",
        UserWarning,
        stacklevel=4,
    )
    others = (
        (batch.images, batch.labels, batch.groups) for batch in itertools.chain([ahead], rest)
    )
    return joined(parts, "test_loader"), others


def _scopes(counts: Counts) -> list[tuple[str, ...]]:
    """Each attribute alone, and all of them crossed."""
    alone: list[tuple[str, ...]] = [(name,) for name in counts.attributes]
    return [*alone, counts.attributes] if len(alone) > 1 else alone


def _check_groups(counts: Counts) -> None:
    """Refuse an attribute with a single value; say which groups take no part."""
    for scope in _scopes(counts):
        part = counts.by(*scope)
        if len(part.groups) < 2:
            raise BadInput(
                f"sensitive_attrs: every image has {scope[0]} = {part.groups[0]}; there is nothing "
                "to compare"
            )
        for gap in GAPS:
            cells = left_out(part.compared, FAIRNESS[gap].rates, groups=part.groups)
            if len(cells):
                name = f"{gap} by {CROSSED.join(scope)}"
                warnings.warn(LeftOutWarning(name, cells), stacklevel=4)


def _effects(
    statistics: Mapping[str, Statistic],
    counts: Counts,
    scope: str,
    bootstrap: Mapping[str, Any],
) -> dict[str, float]:
    """Value, change from FP32, interval and floor of each statistic, as columns."""
    tables = [counts.table]
    changes = paired_bootstrap(tables, statistics, **bootstrap)
    drawn = {key: bootstrap[key] for key in ("replicates", "seed")}
    floors = exchange_floors(tables, statistics, **drawn)
    out: dict[str, float] = {}
    for change, floor in zip(changes.itertuples(), floors.itertuples(), strict=True):
        name = f"{change.statistic}.{scope}" if scope else str(change.statistic)
        out[name] = float(change.compared)
        values = np.array([change.change, change.low, change.high, floor.floor], float)
        for column, value in zip(("change", "low", "high", "floor"), values, strict=True):
            out[f"{name}.{column}"] = float(value)
    return out
