"""Model cards: what is counted, measured or looked up about a deployable folder, and its limits.

Nothing that can be counted is typed; the limits depend on whose images the model was trained on.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.data.faces import FaceData
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.questions import YOUNG_BELOW
from fairq_utils.deploy.card_terms import sections
from fairq_utils.deploy.engines.loaded_model import LoadedModel
from fairq_utils.deploy.engines.registry import ENGINES, files
from fairq_utils.quantizers.report import float_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import run_models, runs, statistics
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of
from fairq_utils.study.run_record import Run, RunRecord
from fairq_utils.study.study import Study
from fairq_utils.training import architectures
from fairq_utils.training.zoo import display_name

# Packages whose versions a card holds, beside the engine's own.
PACKAGES = ("fairq-utils", "torch", "torchao", "onnx", "onnxruntime", "openvino", "numpy")
GAPS = ("demographic_parity_difference", "equalized_odds_difference", "worst_group_accuracy")

RENDERED = (
    "The people in its training, calibration and test images are rendered. Gender, age and "
    "ancestry are settings of a human model, not identities.",
    "Mechanisms carry over from them to photographs; magnitudes need not.",
)
EVERYBODY = (
    "No figure here clears a system for use on people, and none may be held against a group."
)
PRETRAINED = (
    "Its training began from weights learnt on ImageNet, whose images are for non-commercial "
    "research and education only."
)
PAGES = {
    "rendered": "notebooks/01_population: What rendered people can and cannot tell",
    "photographs": "notebooks/03_photographs: Your own photographs",
}


@dataclass(frozen=True)
class Margins:
    """Logit of the target less that of its absence, of every test image, by three models.

    Attributes
    ----------
    fp32, simulated, deployed : float32 (N,)
        The trained model, its quantized counterpart computed in float, and the engine.
    """

    fp32: NDArray[np.float32]
    simulated: NDArray[np.float32]
    deployed: NDArray[np.float32]


def card(
    study: Study,
    run: Run,
    rebuilt: run_models.Rebuilt,
    loaded: LoadedModel,
    folder: Path,
    data: FaceData,
    margins: Margins,
) -> dict[str, Any]:
    """Make the card, ready for JSON; what is not defined, such as a rate of no images, is None.

    Parameters
    ----------
    study, run : the study, and which of its runs this is
    rebuilt : that run's models
    loaded : the file, as its engine has loaded it
    folder : where the engine's files are
    data : all splits
    margins : on the test split
    """
    params, listed = study.params, files(loaded.engine, folder)
    test = data.subset("test")
    return {
        **sections(
            loaded,
            listed,
            size=params.data.size,
            mean=architectures.MEAN,
            std=architectures.STD,
            classes=test.meta["classes"],  # in the order of the logits
            target=1,
        ),
        "name": f"{display_name(run.architecture)} {run.bits or 'FP32'}",
        "architecture": run.architecture,
        "run": {
            "key": run.key,
            "study": params.name,
            "method": run.method,
            "training_seed": run.training["seed"],
        },
        "packages": _versions(ENGINES[loaded.engine].package),
        "size": _size(rebuilt, run, sum(path.stat().st_size for path in listed)),
        "quantization": _quantization(rebuilt, run, loaded),
        "calibration": _calibration(run),
        "data": {
            "source": test.meta["source"],
            "licence": test.meta["licence"],
            "images": {split: int((data.split == split).sum()) for split in ("train", "test")},
            "share_positive": float(test.target.mean()),
        },
        "measured": measured(params, run, data, margins),
        "limits": limits(study),
        "licence": licence(params, metadata("fairq-utils")["License-Expression"]),
    }


def measured(params: Params, run: Run, data: FaceData, margins: Margins) -> dict[str, Any]:
    """Measure the deployed file on the test images, beside FP32 and the simulation.

    Parameters
    ----------
    data : all splits
    margins : on the test split

    Returns
    -------
    mapping
        ``accuracy``; ``answered``, how often the target is predicted by the file and by FP32, and
        the accuracy of predicting the same for everybody; ``gaps`` and ``groups`` by scope
        (:func:`fairq_utils.study.statistics.scopes`); ``simulation``, the share of predictions
        that differ from it. Fractions; every statistic with its value at FP32, the paired change,
        and intervals.
    """
    reference = _record(baseline_of(run), data, margins.fp32, margins.fp32)
    deployed = _record(run, data, margins.fp32, margins.deployed)
    scopes = statistics.scopes(params)
    bootstrap = partial(_bootstrap, params, (reference, deployed))
    crossed = list(scopes.values())[-1]
    gaps = {name: statistics.STATISTICS[name] for name in GAPS}
    return {
        "split": "test",
        "images": len(margins.deployed),
        "confidence": params.analysis.confidence,
        "replicates": params.analysis.replicates,
        "accuracy": bootstrap(crossed, {"": statistics.STATISTICS["accuracy"]})[""],
        "answered": _answered(data.subset("test"), margins),
        "gaps": {scope: bootstrap(names, gaps) for scope, names in scopes.items()},
        "groups": {scope: _by_group(deployed, names, bootstrap) for scope, names in scopes.items()},
        "simulation": _against_simulation(
            _record(run, data, margins.simulated, margins.deployed), crossed
        ),
    }


def limits(study: Study) -> list[str]:
    """Limits as sentences, the most particular first; the last names the page of the book."""
    data = study.params.data
    own = RENDERED if isinstance(data, Data) else _of_photographs(study, data)
    page = PAGES["rendered" if isinstance(data, Data) else "photographs"]
    begun = (PRETRAINED,) * study.params.training.pretrained
    return [*own, *begun, EVERYBODY, f"See the book, {page}."]


def licence(params: Params, code: str) -> str:
    """Terms under which a model may be used.

    Parameters
    ----------
    params : the study
    code : the licence of fairq-utils, which a model of rendered people is under
    """
    if isinstance(params.data, Data):
        return code
    return (
        f"that of its training images ({COLLECTIONS[params.data.name].title}), which are "
        f"{_terms(params.data.name)}"
    )


def _versions(engine: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([*PACKAGES, engine]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"commit": runs.provenance()["commit"]}


def _size(rebuilt: run_models.Rebuilt, run: Run, on_disk: int) -> dict[str, Any]:
    full = rebuilt.report.get("float_bytes", float_bytes(rebuilt.fp32))
    bits = QuantSpec.parse(run.bits).weight_bits if run.bits else 32
    return {
        "on_disk": on_disk,
        "packed": rebuilt.report.get("size_bytes", full),
        "fp32": full,
        "ratio_of_bits": 32 / bits,
        "ratio_on_disk": full / on_disk,
    }


def _quantization(
    rebuilt: run_models.Rebuilt, run: Run, loaded: LoadedModel
) -> dict[str, Any] | None:
    if not rebuilt.report:
        return None
    kept = ("spec", "layers", "operations", "left_float", "folded")
    kernels = None if loaded.kernels is None else asdict(loaded.kernels)
    return {"bits": run.bits, **{k: rebuilt.report[k] for k in kept}, "kernels": kernels}


def _calibration(run: Run) -> dict[str, Any] | None:
    if run.sampler is None:
        return None
    return {
        "split": "calibration",
        "images": run.calibration_images,
        "sampler": run.sampler,
        "seed": run.calibration_seed,
    }


def _answered(test: FaceData, margins: Margins) -> dict[str, float]:
    share = float(test.target.mean())
    return {
        "target": float((runs.kept(margins.deployed) > 0).mean()),
        "target_fp32": float((runs.kept(margins.fp32) > 0).mean()),
        "accuracy_of_one_answer": max(share, 1 - share),
    }


def _record(
    run: Run, data: FaceData, reference: NDArray[np.float32], scores: NDArray[np.float32]
) -> RunRecord:
    return runs.record(run, data, runs.kept(reference), {"test": runs.kept(scores)}, 0, 0.0, {}, {})


def _bootstrap(
    params: Params,
    pair: statistics.Pair,
    attributes: Sequence[str],
    wanted: Mapping[str, stats.Statistic],
) -> dict[str, dict[str, float | None]]:
    """Each statistic: of the deployed file, of FP32, and the change, with intervals."""
    table = stats.paired_bootstrap(
        statistics.shared([pair], attributes),
        wanted,
        replicates=params.analysis.replicates,
        confidence=params.analysis.confidence,
        seed=params.data.seed,
    )
    columns = {
        "value": "compared",
        "low": "compared_low",
        "high": "compared_high",
        "fp32": "reference",
        "change": "change",
        "change_low": "low",
        "change_high": "high",
    }
    return {
        row["statistic"]: {name: _number(row[column]) for name, column in columns.items()}
        for row in table.to_dict("records")
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _by_group(
    deployed: RunRecord, attributes: Sequence[str], bootstrap: Any
) -> dict[str, dict[str, Any]]:
    counts = statistics.counts(deployed, attributes)
    accuracies = {name: partial(_accuracy_of, i) for i, name in enumerate(counts.groups)}
    found = bootstrap(attributes, accuracies)
    positive = counts.table[:, 1].sum(axis=(1, 2))
    return {
        name.replace("|", " "): {
            "images": int(counts.sizes[i]),
            "positive": int(positive[i]),
            "accuracy": found[name],
        }
        for i, name in enumerate(counts.groups)
    }


def _accuracy_of(group: int, table: NDArray[Any]) -> NDArray[Any]:
    return metrics.rate(table, "accuracy")[..., group]


def _against_simulation(pair: RunRecord, attributes: Sequence[str]) -> dict[str, Any]:
    counts = statistics.counts(pair, attributes)
    shares = counts.flips / np.maximum(counts.sizes, 1)
    worst = int(shares.argmax())
    return {
        "differs": float(counts.flips.sum() / counts.sizes.sum()),
        "images": int(counts.flips.sum()),
        "worst_group": counts.groups[worst].replace("|", " ") if counts.flips.any() else None,
        "differs_in_worst_group": float(shares[worst]),
    }


def _of_photographs(study: Study, data: Photographs) -> tuple[str, ...]:
    entry = COLLECTIONS[data.name]
    cited = entry.source().citation
    terms = (
        f"The photographs in its training, calibration and test splits are those of {entry.title}, "
        f"{_terms(data.name)}: {entry.passing_on}." + f" Cite {cited}." * bool(cited)
    )
    labels = (
        f"Labels and groups are how people looked to others, not identities: {entry.labelled}"
        ". What is measured here is agreement with that, by groups of that."
    )
    words = {*study.classes, *(value for names in study.values.values() for value in names)}
    young = f"Young is below {YOUNG_BELOW} years, old is everybody else."
    framed = (
        f"It knows faces framed as {entry.title} frames them; `fairq predict` takes the middle of "
        "an image and looks for no face."
    )
    aged = (young,) * (entry.ages and "young" in words)
    return (terms, labels, *aged, framed)


def _terms(name: str) -> str:
    """A collection's licence, to follow ``are``."""
    found = COLLECTIONS[name].source().licence
    return found if found.startswith("for ") else f"under {found}"
