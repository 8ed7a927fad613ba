"""Model cards for people: README.md of a deployable folder, from its ``card.json`` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def page(card: dict[str, Any]) -> str:
    """Markdown of a card.

    Parameters
    ----------
    card : as :func:`fairq_utils.deploy.model_card.card` makes it
    """
    parts = [
        *_head(card),
        *_use(card),
        *_size(card),
        *_quantization(card),
        *_measured(card),
        *_limits(card),
    ]
    return "\n".join(parts) + "\n"


def _head(card: dict[str, Any]) -> list[str]:
    task, engine, images, run = card["task"], card["engine"], card["input"], card["run"]
    opset = f", ONNX opset {engine['onnx_opset']}" if engine["onnx_opset"] else ""
    processor = engine["processor"]
    compiled = (
        f"Compiled for {processor['name']} ({processor['machine']}, {processor['capability']}) and "
        f"batches of {engine['batch']}."
        if processor["instructions"]
        else "Any batch size."
    )
    return [
        f"# {card['name']} for {engine['label']}",
        "",
        f"Predicts of a face which it is, *{'* or *'.join(task['classes'])}*: two logits, in this "
        f"order. Run `{run['key']}` of the study `{run['study']}`: method "
        f"{run['method']}, training seed {run['training_seed']}.",
        "",
        f"- Engine: {engine['label']} {engine['version']}{opset}. {compiled}",
        f"- Input: float32 (N, {len(images['channels'])}, {images['size']}, {images['size']}), "
        f"{''.join(images['channels'])}, `(x / {1 / images['scale']:.0f} - mean) / std` with mean "
        f"{_list(images['mean'])} and std {_list(images['std'])}.",
        f"- Data: {card['data']['source']}, {card['data']['licence']}; "
        f"{card['data']['images']['train']:,} training and {card['data']['images']['test']:,} test "
        f"images, {_percent(card['data']['share_positive'])} of the latter {task['target']}.",
        f"- Licence: {card['licence']}.",
        "",
    ]


def _use(card: dict[str, Any]) -> list[str]:
    files = [f"| `{n}` | {of['bytes']:,} | `{of['sha256']}` |" for n, of in card["files"].items()]
    compiled = bool(card["engine"]["processor"]["instructions"])
    warning = (
        "Its file is machine code, which `fairq predict` runs with your rights. The checksum below "
        "lies in the same folder and shows damage alone: give `--trust` if you know who wrote it."
    )
    return [
        "## Use",
        "",
        f"    fairq predict FOLDER IMAGE ...{' --trust' * compiled}",
        "",
        *([warning, ""] if compiled else []),
        "| File | Bytes | SHA-256 |",
        "| --- | ---: | --- |",
        *files,
        "",
        "Made with " + ", ".join(f"{n} {v}" for n, v in card["packages"].items()) + ".",
        "",
    ]


def _size(card: dict[str, Any]) -> list[str]:
    size = card["size"]
    return [
        "## Size",
        "",
        f"{size['on_disk']:,} bytes on disk. FP32 has {size['fp32']:,}, "
        f"{size['ratio_on_disk']:.2f} times as many; counting bits of weights alone, it would be "
        f"{size['ratio_of_bits']:.2f} times. "
        f"Integers packed at their bits, with scales and what stays in float, are "
        f"{size['packed']:,} bytes.",
        "",
    ]


def _quantization(card: dict[str, Any]) -> list[str]:
    found = card["quantization"]
    if found is None:
        return ["## Quantization", "", "None: weights and activations are float32.", ""]
    layers = Counter(found["layers"].values())
    kinds = ", ".join(f"{count} at {bits}" for bits, count in layers.most_common())
    spec = ", ".join(f"{name} {value}" for name, value in _used(found["spec"]).items())
    lines = [
        "## Quantization",
        "",
        f"- Layers: {kinds}; {len(found['operations'])} operations between layers; "
        f"{len(found['folded'])} batch norms folded.",
        f"- Spec: {spec}.",
    ]
    if found["kernels"] is not None:
        kernels = found["kernels"]
        lines.append(
            f"- The engine computes {kernels['integer']} convolutions, linear layers and products "
            f"on integers and {kernels['floating']} in float."
        )
    if card["calibration"] is not None:
        drawn = card["calibration"]
        lines.append(
            f"- Calibrated on {drawn['images']} images of the {drawn['split']} split, drawn "
            f"{drawn['sampler'].replace('_', ' ')}, seed {drawn['seed']}."
        )
    reasons = Counter(found["left_float"].values())
    lines += [
        "- In float stay " + _list(f"{n} x {why}" for why, n in reasons.items()) + "."
    ] * bool(reasons)
    return [*lines, ""]


def _used(spec: dict[str, Any]) -> dict[str, Any]:
    """Drop the options that nothing in this spec asks for."""
    ranges = (spec["weight_range"], spec["activation_range"])
    idle = {
        "group_size": spec["weight_granularity"] != "group",
        "iterations": spec["rounding"] == "nearest",
        "percentile": "percentile" not in ranges,
    }
    return {name: value for name, value in spec.items() if not idle.get(name)}


def _measured(card: dict[str, Any]) -> list[str]:
    found = card["measured"]
    simulation = found["simulation"]
    worst = (
        f", {_percent(simulation['differs_in_worst_group'])} in the group "
        f"{simulation['worst_group']}, where it is most"
        if simulation["worst_group"]
        else ""
    )
    rows = [("accuracy", "everybody", found["accuracy"])]
    for scope, gaps in found["gaps"].items():
        rows += [(name.replace("_", " "), scope, value) for name, value in gaps.items()]
    groups = [
        f"| {name} | {of['images']:,} | {of['positive']:,} | {_cells(of['accuracy'])} |"
        for scope in found["groups"].values()
        for name, of in scope.items()
    ]
    answered, target = found["answered"], card["task"]["target"]
    same = answered["target"] in (0.0, 1.0)
    warning = (
        "**It predicts the same for every image.** Gaps are then zero whatever it does to anyone: "
        "they say nothing about fairness."
    )
    heads = "This file | FP32 | Change |"
    return [
        "## Measured",
        "",
        f"On {found['images']:,} {found['split']} images, predicted by the engine; in brackets "
        f"{found['confidence']:.0%} bootstrap intervals ({found['replicates']:,} replicates), the "
        "change paired image by image. "
        f"{_percent(simulation['differs'])} of the predictions ({simulation['images']}) differ "
        f"from the simulation in float{worst}.",
        "",
        f"It predicts *{target}* for {_percent(answered['target'])} of the images, FP32 for "
        f"{_percent(answered['target_fp32'])}; the same prediction for everybody would be right of "
        f"{_percent(answered['accuracy_of_one_answer'])}.",
        "",
        *([warning, ""] if same else []),
        f"| | By | {heads}",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {scope} | {_cells(value)} |" for name, scope, value in rows),
        "",
        f"| Group | Images | {card['task']['target'].capitalize()} | {heads}",
        "| --- | ---: | ---: | --- | --- | --- |",
        *groups,
        "",
    ]


def _limits(card: dict[str, Any]) -> list[str]:
    return ["## Limits", "", *(f"- {sentence}" for sentence in card["limits"])]


def _cells(of: dict[str, float | None]) -> str:
    value = _interval(of, "value", "low", "high", "")
    change = _interval(of, "change", "change_low", "change_high", "+")
    return f"{value} | {_percent(of['fp32'])} | {change}"


def _interval(of: dict[str, float | None], at: str, low: str, high: str, sign: str) -> str:
    ends = f"{_percent(of[low], sign)} to {_percent(of[high], sign)}"
    return f"{_percent(of[at], sign)} ({ends})"


def _percent(value: float | None, sign: str = "") -> str:
    return "not defined" if value is None else f"{100 * value:{sign}.2f} %"


def _list(values: Iterable[Any] | Sequence[Any]) -> str:
    return ", ".join(map(str, values))
