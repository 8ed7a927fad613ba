"""From the ledger to frames: every statistic, its paired change, interval and noise floor.

A configuration is what a reader would choose between (architecture, method, bits, ranges, sampler);
training seeds and calibration draws are its replicates. All of them are evaluated on the same test
images, so several replicates are resampled together, image by image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.rates import rate
from fairq_utils.quantizers.methods import CONTROL, METHODS, MSE
from fairq_utils.stats import floors
from fairq_utils.stats.crossed import crossed_changes
from fairq_utils.stats.paired import paired_bootstrap
from fairq_utils.stats.significance import flips_by_group
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of, beside_random
from fairq_utils.study.run_record import Run, RunRecord
from fairq_utils.study.statistics import (
    CONFIGURATION,
    Pair,
    Statistic,
    configuration,
    counts,
    group_blind,
    measured,
    measured_of,
    over,
    scopes,
    shared,
)

BLIND = 200  # draws of flips that do not know the group
# Columns that are over seeds where there are two.
OVER_SEEDS = ["change", "low", "high", "error", "degrees", "p_value"]
RANGES = MSE["activation_range"]  # of plain quantization, and of what is compared with it


def by_configuration(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Every statistic of every configuration beside its FP32 model, with paired intervals.

    Returns
    -------
    DataFrame
        Columns of :data:`CONFIGURATION`, ``scope`` (whose gaps), ``statistic``, ``seeds``, and
        from :func:`fairq_utils.stats.paired_bootstrap` ``reference``, ``compared``, ``change``,
        ``low``, ``high`` and the intervals of the first two; ``flips``, the share of predictions
        that differ from FP32; ``floor`` and ``p_value`` of the change from
        :func:`fairq_utils.stats.exchange_floors`: what it would be if the same predictions had
        flipped either way by chance. Fractions, not points.
    """
    return _compared(_against_baseline(runs), params)


def against_random(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Samplers that the grid names beside ``random``, against its draw of equal size.

    Returns
    -------
    DataFrame
        As :func:`by_configuration`, but ``reference`` is the model calibrated at random and
        ``compared`` the one calibrated by ``sampler``; both are quantized. ``random_from_fp32`` and
        ``from_fp32`` are their changes from FP32.
    """
    twins = {
        key: pairs
        for key, pairs in _twins(runs).items()
        if pairs[0][1].run.sampler in beside_random(params)
    }
    frame = _compared(twins, params)
    if frame.empty:
        return frame
    key = [*CONFIGURATION, "scope", "statistic"]
    changes = by_configuration(runs, params).set_index(key).change
    mine = pd.MultiIndex.from_frame(frame[key])
    random = pd.MultiIndex.from_frame(frame.assign(sampler="random")[key])
    return frame.assign(
        random_from_fp32=changes.loc[random].to_numpy(), from_fp32=changes.loc[mine].to_numpy()
    )


def against_plain(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Every group-aware method against plain quantization at the same bits, on the same images.

    Plain is static quantization with MSE ranges from a random draw. Methods that fine-tune are
    there with what they are to be compared with: fine-tuning without a constraint, quantized (QAT)
    and in FP32 (the fine-tuning control).

    Returns
    -------
    DataFrame
        As :func:`by_configuration`, ``reference`` being the plainly quantized model; ``bits`` of
        the FP32 control are those of its reference. ``plain_from_fp32`` and ``from_fp32`` are the
        changes of both from FP32, ``seconds`` what the method costs, ``bytes`` what its model
        takes, and ``seconds_plain`` and ``bytes_plain`` the same of plain quantization.
    """
    pairs = _beside_plain(runs)
    frame = _compared(pairs, params)
    if frame.empty:
        return frame
    by_key = {record.run.key: record for record in runs}
    from_fp32: list[list[float]] = [[], []]
    for found in pairs.values():
        bases = [by_key[baseline_of(pair[0].run).key] for pair in found]
        for attributes in scopes(params).values():
            for place, changes in enumerate(from_fp32):
                behind = [(base, pair[place]) for base, pair in zip(bases, found, strict=True)]
                tables = shared(behind, attributes).tables
                before, after = tables.sum(axis=-1), tables.sum(axis=-2)
                asked = measured_of(params, found[0][0], attributes)
                changes += [float(np.mean(s(after) - s(before))) for s in asked.values()]
    costs = {
        key: [
            float(np.mean([cost(pair[place]) for pair in found]))
            for cost in (
                lambda r: r.measures.get("quantize_seconds", np.nan),
                lambda r: r.size_bytes,
            )
            for place in (0, 1)
        ]
        for key, found in pairs.items()
    }
    names = ["seconds_plain", "seconds", "bytes_plain", "bytes"]
    keys = list(map(tuple, frame[CONFIGURATION].to_numpy()))
    table = pd.DataFrame([costs[key] for key in keys], columns=names, index=frame.index)
    return frame.assign(plain_from_fp32=from_fp32[0], from_fp32=from_fp32[1]).join(table)


def paired_changes(
    pairs: Sequence[Pair],
    attributes: Sequence[str],
    measured: Mapping[str, Statistic],
    params: Params,
) -> pd.DataFrame:
    """Statistics of replicates of one comparison: intervals, noise floors and p-values.

    Returns
    -------
    DataFrame
        :func:`fairq_utils.stats.paired_bootstrap` with ``floor`` and ``network_p`` of
        :func:`fairq_utils.stats.exchange_floors`, which are about these networks. ``change`` with
        ``low``, ``high`` and ``p_value`` is over seeds, calibration draws and images
        (:func:`fairq_utils.stats.crossed_changes`) where there are two seeds or more, else over the
        images of this network; ``error`` and ``degrees`` are its standard error and degrees of
        freedom. ``seeds`` and ``draws``; ``bound``: how far from 0 the change can
        be, a gap's by all pairs of groups; ``expected``: the change if flips did not know the
        group, ``excess`` beyond it and its ``excess_p``.
    """
    confidence, options = params.analysis.confidence, _resampling(params)
    images = shared(pairs, attributes)
    blind = group_blind(pairs, attributes, BLIND)
    seeds, draws = images.cells.shape[:2]
    pieces = {
        f"{name} {i}": part
        for name in measured
        if name in FAIRNESS
        for i, part in enumerate(FAIRNESS[name].parts(images.groups))
    }
    asked = {**measured, **pieces}
    table = paired_bootstrap(images, asked, confidence=confidence, **options)
    chance = floors.exchange_floors(images, asked, **options)
    table = table.assign(
        floor=chance.floor,
        network_p=chance.p_value,
        p_value=chance.p_value,
        error=(table.high - table.low) / 2 / norm.ppf((1 + confidence) / 2),
        degrees=np.inf,
    )
    expected = {name: blind(statistic) for name, statistic in measured.items()}
    if seeds > 1:
        across = crossed_changes(images, asked, confidence=confidence, expected=expected, **options)
        table[OVER_SEEDS] = across[OVER_SEEDS]
        table["excess_p"] = across.excess_p
    else:
        table["excess_p"] = np.nan
    table = table.set_index("statistic")
    ends = table[["low", "high"]].abs().max(axis=1)
    for name in measured:
        own = [piece for piece in pieces if piece.rpartition(" ")[0] == name]
        table.loc[name, "bound"] = ends[own].max(skipna=False) if own else ends[name]
        table.loc[name, "expected"] = float(expected[name].mean())
    kept = table.loc[list(measured)].assign(seeds=seeds, draws=draws)
    kept["excess"] = kept.change - kept.expected
    return kept.reset_index()


def between_seeds(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Differences of every statistic between training seeds, by architecture and scope.

    Returns
    -------
    DataFrame
        ``architecture``, ``scope``, and the columns of :func:`fairq_utils.stats.seed_floors`; empty
        where no architecture was trained from two seeds.
    """
    trained: dict[str, dict[int, RunRecord]] = {}
    for record in runs:
        if record.run.method == "fp32":
            seed = int(record.run.training["seed"])
            trained.setdefault(record.run.architecture, {})[seed] = record
    parts = [
        floors.seed_floors(
            {seed: counts(record, attributes).reference for seed, record in seeds.items()},
            measured_of(params, next(iter(seeds.values())), attributes),
        ).assign(architecture=architecture, scope=scope)
        for architecture, seeds in trained.items()
        if len(seeds) > 1
        for scope, attributes in scopes(params).items()
    ]
    names = ["architecture", "scope", "statistic", "seeds", "sd", "floor"]
    names += ["floor_low", "floor_high", "largest"]
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)


def by_group(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Accuracy of every intersectional group, its change under quantization, and who flips.

    Returns
    -------
    DataFrame
        One row per configuration and group: ``images``, ``reference``, ``compared``, ``change``,
        ``low``, ``high``, ``compared_low``, ``compared_high`` (fractions), ``lost`` (predictions
        right before, wrong now) and ``won`` (the reverse) summed over replicates, and ``p_value``:
        the mid-p value of McNemar's test, or, over several replicates, its exchange test on the
        images they share.
    """
    options = _resampling(params)
    rows = []
    for key, members in _against_baseline(runs).items():
        images = shared(members, params.analysis.attributes)
        collapsed = [counts(record, params.analysis.attributes) for _, record in members]
        names = collapsed[0].groups
        accuracy = {name: _group_accuracy(i) for i, name in enumerate(names)}
        table = paired_bootstrap(
            images, accuracy, confidence=params.analysis.confidence, **options
        ).set_index("statistic")
        pooled = flips_by_group(np.sum([c.seen for c in collapsed], axis=0), names)
        pooled = pooled.set_index("group")
        p_values = (
            pooled.mcnemar_mid_p
            if len(members) == 1
            else floors.exchange_floors(images, accuracy, **options).set_index("statistic").p_value
        )
        rows += [
            {
                **dict(zip(CONFIGURATION, key, strict=True)),
                "group": name.replace("|", " "),
                "images": int(pooled.images[name]) // len(members),
                **table.loc[name].to_dict(),
                "lost": int(pooled.lost[name]),
                "won": int(pooled.won[name]),
                "p_value": float(p_values[name]),
            }
            for name in names
        ]
    return pd.DataFrame(rows)


def equal_errors(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """:func:`fairq_utils.stats.equal_errors` of every FP32 run and partition, averaged over runs.

    Returns
    -------
    DataFrame
        ``scope``, ``statistic``, ``median``, ``low``, ``high``; fractions.
    """
    parts = [
        floors.equal_errors(
            record.counts.sum(axis=-1),
            {
                name: over(record, attributes, statistic)
                for name, statistic in measured(params).items()
            },
            **_resampling(params),
        ).assign(scope=scope)
        for record in runs
        if record.run.method == "fp32"
        for scope, attributes in scopes(params).items()
    ]
    whole = pd.concat(parts, ignore_index=True)
    return whole.groupby(["scope", "statistic"], sort=False).mean().reset_index()


def sizes(runs: list[RunRecord]) -> pd.DataFrame:
    """Size of every configuration in MiB, and how many times smaller than FP32 it is."""
    frame = pd.DataFrame(
        [{**configuration(r.run), "mebibytes": r.size_bytes / 2**20} for r in runs]
    ).drop_duplicates(CONFIGURATION)
    full = frame[frame.method == "fp32"].set_index("architecture").mebibytes
    return frame.assign(ratio=frame.architecture.map(full) / frame.mebibytes)


def pareto(frame: pd.DataFrame, costs: Mapping[str, int]) -> pd.Series:
    """Rows that no other row beats: better or equal in every column, better in one.

    Parameters
    ----------
    costs : mapping of column to +1 (more is better) or -1 (less is better)
    """
    values = frame[list(costs)].to_numpy(float) * np.array(list(costs.values()))
    at_least = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    return pd.Series(~(at_least & better).any(axis=0), index=frame.index)


def frontier(frame: pd.DataFrame, size: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Accuracy, demographic parity gap and size of every configuration, and who is on the front."""
    rows = frame[frame["scope"] == scope]
    wide = rows.pivot_table(index=CONFIGURATION, columns="statistic", values="compared", sort=False)
    found = wide.reset_index().merge(size, on=CONFIGURATION)
    for name in ("accuracy", "demographic_parity_difference"):
        kept = {"compared_low": f"{name}_low", "compared_high": f"{name}_high"}
        kept |= {"floor": f"{name}_floor"}
        ends = rows[rows.statistic == name][[*CONFIGURATION, *kept]].rename(columns=kept)
        found = found.merge(ends, on=CONFIGURATION)
    front = pareto(found, {"accuracy": 1, "demographic_parity_difference": -1, "mebibytes": -1})
    return found.assign(pareto=front)


def _compared(pairs: Mapping[tuple[Any, ...], Sequence[Pair]], params: Params) -> pd.DataFrame:
    parts = [
        paired_changes(
            members, attributes, measured_of(params, members[0][0], attributes), params
        ).assign(
            **dict(zip(CONFIGURATION, key, strict=True)),
            scope=scope,
            flips=np.mean([((a.scores > 0) != (b.scores > 0)).mean() for a, b in members]),
        )
        for key, members in pairs.items()
        for scope, attributes in scopes(params).items()
    ]
    first = [*CONFIGURATION, "scope", "statistic", "seeds", "draws"]
    if not parts:
        return pd.DataFrame(columns=first)
    frame = pd.concat(parts, ignore_index=True)
    last = ["flips", "floor", "p_value", "network_p", "bound", "expected", "excess", "excess_p"]
    last += ["error", "degrees"]
    return frame[[*first, *(c for c in frame if c not in (*first, *last)), *last]]


def _resampling(params: Params) -> dict[str, Any]:
    return {"replicates": params.analysis.replicates, "seed": params.data.seed}


def _against_baseline(runs: list[RunRecord]) -> dict[tuple[Any, ...], list[Pair]]:
    """By configuration: each run behind its FP32 model (an FP32 run behind itself)."""
    by_key = {record.run.key: record for record in runs}
    found: dict[tuple[Any, ...], list[Pair]] = {}
    for record in runs:
        base = by_key.get(baseline_of(record.run).key)
        if base is not None:
            key = tuple(configuration(record.run).values())
            found.setdefault(key, []).append((base, record))
    return found


def _twins(runs: list[RunRecord]) -> dict[tuple[Any, ...], list[Pair]]:
    """By configuration: pairs that differ in the sampler alone, the random draw first."""

    def twin(record: RunRecord) -> tuple[Any, ...]:
        run = record.run
        seeds = (run.calibration_seed, json.dumps(run.training, sort_keys=True))
        return (run.architecture, run.bits, run.ranges, run.calibration_images, *seeds)

    static = [record for record in runs if record.run.method == "ptq"]
    at_random = {twin(r): r for r in static if r.run.sampler == "random"}
    found: dict[tuple[Any, ...], list[Pair]] = {}
    for record in static:
        if record.run.sampler != "random" and twin(record) in at_random:
            key = tuple(configuration(record.run).values())
            found.setdefault(key, []).append((at_random[twin(record)], record))
    return found


def _beside_plain(runs: list[RunRecord]) -> dict[tuple[Any, ...], list[Pair]]:
    """By configuration: the plainly quantized run, and a group-aware one."""

    def place(run: Run, bits: str | None) -> tuple[Any, ...]:
        return (run.architecture, bits, json.dumps(run.training, sort_keys=True))

    def as_many(run: Run, reference: Run) -> bool:
        """Whether both are calibrated on the same number of images; the control is on none."""
        return run.calibration_images in (None, reference.calibration_images)

    def plain(run: Run) -> bool:
        return run.method == "ptq" and run.sampler == "random" and run.ranges == RANGES

    references: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in runs:
        if plain(record.run):
            references.setdefault(place(record.run, record.run.bits), []).append(record)
    bits = list(dict.fromkeys(key[1] for key in references))
    found: dict[tuple[Any, ...], list[Pair]] = {}
    for record in runs:
        run = record.run
        if run.method == "fp32":
            continue
        sampled = run.method == "ptq" and run.ranges == RANGES and not plain(run)
        if not (sampled or METHODS[run.method].group_aware or run.method in ("qat", CONTROL)):
            continue
        for at in [run.bits] if run.bits else bits:
            for reference in references.get(place(run, at), []):
                drawn = run.calibration_seed in (None, reference.run.calibration_seed)
                if drawn and as_many(run, reference.run):
                    key = tuple({**configuration(run), "bits": at}.values())
                    found.setdefault(key, []).append((reference, record))
    return found


def _group_accuracy(index: int) -> Statistic:
    return lambda table: rate(table, "accuracy")[..., index]
