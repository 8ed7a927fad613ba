"""The published study's ``apply_quantization``: a model, the name of a method, a loader."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn

from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.batches import gather
from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.mitigation.task import UserData, task_of
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.registry import unknown
from fairq_utils.training.loop import Recipe

PUBLISHED = "bias_aware_calibration"  # the published study's name of balanced calibration
QAT_CONTROL = "QAT_FP32"
ALIASES = {
    "bias_aware": PUBLISHED,
    "mixed_precision": "mixed",
    QAT_CONTROL.lower(): CONTROL,
}
CONTROLLED = ("equalization",)  # options of specs that say something of a model in float too
FIELDS = tuple(entry.name for entry in dataclasses.fields(QuantSpec))


@full_precision()
def apply_quantization(
    model: nn.Module,
    method: str = "bias_aware_calibration",
    bit_width: int | str | None = None,
    calibration_data: Iterable[Any] | None = None,
    *,
    sampler: str | None = None,
    sensitive_attrs: Sequence[str] = (),
    calibration_images: int = 512,
    pool_images: int = 4096,
    train_data: Iterable[Any] | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    outputs: str | None = None,
    **options: Any,
) -> nn.Module:
    """Quantize a classifier by the name of a method.

    Parameters
    ----------
    model : module of one tensor argument that returns logits
        It is not changed, traced or moved; batches are moved to it.
    method : str
        Of :data:`fairq_utils.quantizers.methods.METHODS` (``fairq list methods`` prints them with
        what they need), or ``bias_aware_calibration``, the published study's name of ``ptq`` with
        ``sampler="group_balanced"``: static ranges from as many images of each group, all
        attributes crossed. Methods that are group-aware look at labels and groups. In any case,
        and with its bits too, as in a comparison: ``PTQ_INT8``, ``BLOCK_W4A8``.
    bit_width : int or str, optional
        8 is W8A8, 4 is W4A4 (weights alone for ``weight_only``, W4A8 for ``dynamic``); or as
        ``"W4A8"``. If not given, what the method's name says, or 8. The first and the last layer
        have at least 8 bits unless ``first_last_bits=None`` is given.
    calibration_data : iterable
        Of (images, labels, groups), (images, labels), (images,), or tensors of images. Groups are a
        mapping or DataFrame of attribute to values, or values without names: (N,) codes or words of
        one attribute, (N, K) of several.
    sampler : str, optional
        Of :data:`fairq_utils.calibration.SAMPLERS`: how images are drawn for calibration; at random
        if not given. Labels and groups are those of the loader, losses and features those of
        ``model``.
    sensitive_attrs : names of attributes
        To balance over; all if none is given. They also name values that come without names.
    calibration_images : int
        Drawn for calibration; fewer where there are fewer, or where the smallest group allows only
        fewer of each.
    pool_images : int
        At most so many images of ``calibration_data`` are held in memory, to draw from.
    train_data : iterable of (images, labels), optional
        For methods that train: one pass per epoch, batches as they come. Under a constraint on
        groups with these too, and held in memory. Without it, the pool is trained on.
    epochs, learning_rate, batch_size : for methods that train
        AdamW with a one-cycle schedule. ``batch_size`` is that of the pool.
    seed : int
        Of the draw and of the training's order.
    outputs : ``logits``, optional
        Said of a model whose one output lies between 0 and 1, as a probability would: methods that
        look at labels need logits. The others take ``probabilities`` too.
    **options
        Settings of the method, such as ``budget`` (for mixed precision bytes, or a fraction of the
        float model's, the size at uniform ``bit_width`` if not given, 6 bits instead of 8, which
        would leave no choice; for ``channels_worst`` and its kind a share of the quantized size) or
        ``max_drop``; and further attributes of :class:`~fairq_utils.quantizers.QuantSpec`.

    Returns
    -------
    module
        With the signature of ``model``, in float simulation (see
        :func:`~fairq_utils.quantizers.use_integers`). Its attribute ``report`` is the
        :class:`~fairq_utils.quantizers.QuantReport`: bits of every layer, what stayed in float and
        why, size.

    Raises
    ------
    BadInput
        An unknown method or option; data that the method needs and is not there; nothing in the
        model could be quantized. Other ``ValueError`` are those of
        :mod:`fairq_utils.quantizers`.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> loader = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), {"gender": [0, 0, 1, 1]})]
    >>> apply_quantization(network, bit_width=8, calibration_data=loader).report.layers
    {'0': 'W8A8', '2': 'W8A8'}
    """
    name, bits = _named(method, bit_width)
    name, drawn_by = _drawn_by(name, sampler)
    sensitive_attrs = each_name(sensitive_attrs)
    chosen = METHODS[name]
    _check_options(name, options)
    settings = {**chosen.settings, **{k: v for k, v in options.items() if k in chosen.settings}}
    spec = _spec(name, bits, {k: v for k, v in options.items() if k in FIELDS})
    recipe = Recipe(epochs, learning_rate, batch_size)
    pool = None
    if calibration_data is not None:
        pool = gather(calibration_data, pool_images, "calibration_data", sensitive_attrs)
    elif chosen.calibrates or chosen.trains:
        raise BadInput(
            f"apply_quantization: method {name!r} looks at images; give calibration_data, a loader "
            "of (images, labels, groups), (images, labels) or images"
        )
    drawn = drawn_by, calibration_images
    data = UserData(pool, train_data, sensitive_attrs, *drawn, recipe, seed, outputs)
    module, report = chosen.fit(task_of(model, chosen, spec, data, settings))
    if report is None:  # the FP32 fine-tuning control
        return module.eval().requires_grad_(False)
    if not report.layers:
        reasons = [f"{layer or 'the model'}: {why}" for layer, why in report.left_float.items()]
        raise BadInput(
            f"apply_quantization: nothing in this {type(model).__name__} could be quantized "
            f"({'; '.join(reasons[:3]) or 'it has no layers'}); convolutions (nn.Conv2d) and "
            "linear layers (nn.Linear) that are called as modules can be"
        )
    module.report = report  # type: ignore[assignment]
    return module.eval()


def parsed(name: str) -> tuple[str, int | str | None] | None:
    """The method and the bits of a name such as ``PTQ_INT8``; None where there is no such method.

    Examples
    --------
    >>> parsed("ptq"), parsed("QAT_INT4"), parsed("BLOCK_W4A8"), parsed("GPTQ_INT8")
    (('ptq', None), ('qat', 4), ('block', 'W4A8'), None)
    """
    if name in METHODS:  # somebody's own may end in bits, or have capitals
        return name, None
    found = re.fullmatch(r"(.+?)(?:_(?:INT(\d+)|(W\d+(?:A\d+)?)))?", name, re.IGNORECASE)
    method = found[1].lower() if found else ""
    method = ALIASES.get(name.lower(), ALIASES.get(method, method))
    if found is None or method not in {*METHODS, PUBLISHED}:
        return None
    return method, int(found[2]) if found[2] else found[3].upper() if found[3] else None


def _named(method: str, bit_width: int | str | None) -> tuple[str, int | str]:
    """Method and bits; those of the name hold where no others are given."""
    found = parsed(str(method))
    if found is None:
        raise BadInput(f"apply_quantization: method {unknown(method, [*METHODS, PUBLISHED])}")
    name, bits = found
    if None not in (bits, bit_width) and str(bits) != str(bit_width):
        raise BadInput(
            f"apply_quantization: method {method!r} and bit_width={bit_width!r} say different "
            "bits; leave bit_width out"
        )
    return name, next((b for b in (bits, bit_width) if b is not None), 8)


def _drawn_by(name: str, sampler: str | None) -> tuple[str, str]:
    """Method and sampler as the registries have them."""
    if name == PUBLISHED:
        if sampler not in (None, "group_balanced"):
            raise BadInput(
                f"apply_quantization: {PUBLISHED} is ptq with sampler='group_balanced'; use "
                f"method='ptq' with sampler={sampler!r}"
            )
        name, sampler = "ptq", "group_balanced"
    drawn_by = sampler or "random"
    chosen = SAMPLERS.find(drawn_by, "apply_quantization: sampler")
    if chosen.needs in ("group", "population"):
        raise BadInput(
            f"apply_quantization: sampler {drawn_by!r} needs {chosen.needs} ({chosen.meaning}); "
            "draw rows with fairq_utils.calibration.draw and give a loader of these"
        )
    return name, drawn_by


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what is neither a setting of the method nor an attribute of specs."""
    own = METHODS[name].settings
    for option in options:
        if name == CONTROL and option in FIELDS and option not in CONTROLLED:
            raise BadInput(
                f"apply_quantization: {option}: {name} is a control, which quantizes nothing; "
                f"leave {option} out"
            )
        if option in own or option in FIELDS:
            continue
        having = [found for found, method in METHODS.items() if option in method.settings]
        if having:
            raise BadInput(
                f"apply_quantization: {name} has no {option}; leave it out, or use one of "
                f"{', '.join(having)}"
            )
        parameters = [n for n in signature(apply_quantization).parameters if n != "options"]
        known = [*parameters, *own, *FIELDS]
        raise BadInput(f"apply_quantization: option {unknown(option, known)}")
    budget = options.get("budget")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float)):
        raise BadInput(
            f"apply_quantization: budget: {budget!r} is no number; give bytes, or a fraction such "
            "as 0.05"
        )


def _spec(name: str, bit_width: int | str, options: Mapping[str, Any]) -> QuantSpec:
    if isinstance(bit_width, str):
        bits = bit_width
    elif isinstance(bit_width, bool) or bit_width not in WIDTHS:
        raise BadInput(
            f"apply_quantization: bit_width {bit_width!r} is not one of "
            f"{', '.join(map(str, WIDTHS))}, and no text such as 'W4A8'"
        )
    else:
        bits = f"W{bit_width}A{8 if name == 'dynamic' else bit_width}"
    asked = options.get("activation", METHODS[name].options.get("activation", "static"))
    if asked == "dynamic" and name != "dynamic":
        raise BadInput(
            f"apply_quantization: activation='dynamic' is a method of its own; use "
            f"method='dynamic' instead of {name!r}"
        )
    if name == "dynamic" and asked != "dynamic":
        raise BadInput(
            f"apply_quantization: activation={asked!r} is none of method 'dynamic'; leave it out, "
            f"or use method={'weight_only' if asked == 'float' else 'ptq'!r}"
        )
    spec = METHODS[name].spec(bits, **options)
    spec.refuse_idle(options)
    return spec
