"""The grid language: what is quantized how, as a list of entries that are cross products.

An entry such as ``{method: ptq, bits: [W8A8, W4A4], range: [minmax, mse], sampler: [random,
group_balanced]}`` stands for every combination of its lists; a single value is a list of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.spec import RANGE_RULES, WIDTHS
from fairq_utils.registry import unknown
from fairq_utils.study.params.section import Section, Seed, unique

WITHOUT_BITS = ("fp32_finetuning",)


def _listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def bits(value: str) -> str:
    """Bits of weights and activations; raises ValueError with what there is."""
    allowed = [f"W{w}A{a}" for w in WIDTHS for a in WIDTHS]
    if value not in allowed:
        raise ValueError(
            f"{value!r} is not W<bits>A<bits> with bits of weights and activations among "
            f"{', '.join(map(str, WIDTHS))}, such as W8A8 or W4A8"
        )
    return value


def _method(value: str) -> str:
    if value not in METHODS:
        raise ValueError(unknown(value, METHODS))
    return value


def _sampler(value: str) -> str:
    if value not in SAMPLERS:
        raise ValueError(unknown(value, SAMPLERS))
    return value


def _range(value: str) -> str:
    if value not in RANGE_RULES:
        raise ValueError(unknown(value, RANGE_RULES))
    return value


def _check_setting(name: str, default: Any, value: Any) -> None:
    """Refuse a text or truth in the place of a number, and a number in that of a text."""
    number = default is None or (isinstance(default, int | float) and not isinstance(default, bool))
    kind = (int, float) if number else type(default)
    if (value is None and default is None) or (
        isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
    ):
        return
    wanted = "a number" if number else type(default).__name__
    raise ValueError(
        f"{name}: {value!r} is {type(value).__name__}; give {wanted}, such as {default!r}"
    )


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(unique)]
Bits = Annotated[str, AfterValidator(bits)]
Some = Field(min_length=1)


class Entry(Section):
    """Configurations to run: every combination of the lists, on every trained model.

    Attributes
    ----------
    method : names in :data:`fairq_utils.quantizers.methods.METHODS`
    bits : such as ``W4A8``
    range : rules of inputs' and weights' ranges; the method's own if none is named
    sampler : names in :data:`fairq_utils.calibration.SAMPLERS`; ``one_group`` is a draw of each
        group
    models, seeds : on which of ``training.models`` and ``training.seeds``; all if none is named
    calibration_images, calibration_seeds : in the place of those of ``quantization``

    Any setting of the methods may stand beside these, such as ``iterations``, ``budget``,
    ``max_drop`` or ``epochs``, in the place of that of ``quantization``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=False)

    method: Annotated[
        tuple[Annotated[str, AfterValidator(_method)], ...],
        Some,
        BeforeValidator(_listed),
        AfterValidator(unique),
    ]
    bits: Annotated[tuple[Bits, ...], BeforeValidator(_listed), AfterValidator(unique)] = ()
    range: Annotated[
        tuple[Annotated[str, AfterValidator(_range)], ...],
        BeforeValidator(_listed),
        AfterValidator(unique),
    ] = ()
    sampler: Annotated[
        tuple[Annotated[str, AfterValidator(_sampler)], ...],
        Some,
        BeforeValidator(_listed),
        AfterValidator(unique),
    ] = ("random",)
    models: Names = ()
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), AfterValidator(unique)] = ()
    calibration_images: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed), AfterValidator(unique)
    ] = ()
    calibration_seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(_listed), AfterValidator(unique)
    ] = ()

    @model_validator(mode="after")
    def _possible(self) -> Entry:
        allowed = {name for method in self.method for name in METHODS[method].settings}
        for name in self.model_extra or {}:
            if name not in allowed:
                raise ValueError(f"{name}: {unknown(name, [*type(self).model_fields, *allowed])}")
        for method in self.method:
            for name, value in self._named(method):
                _check_setting(name, METHODS[method].settings[name], value)
        for method in self.method:
            if not self.bits and method not in WITHOUT_BITS:
                raise ValueError(f"bits: {method} needs them; add such as bits: [W8A8, W4A4]")
            options = METHODS[method].options
            if options.get("activation") == "dynamic":
                odd = next((b for b in self.bits if not b.endswith("A8")), None)
                if odd is not None:
                    raise ValueError(
                        f"bits: {method} quantizes activations to 8 bits, and {odd} has others; "
                        "name such as W8A8 or W4A8"
                    )
            if not METHODS[method].calibrates:
                for key in ("range", "calibration_images", "calibration_seeds"):
                    if getattr(self, key):
                        raise ValueError(
                            f"{key}: {method} looks at no calibration images; take it out, or give "
                            "the method an entry of its own"
                        )
        return self

    def settings(self, method: str) -> Iterator[dict[str, Any]]:
        """Every combination of the settings of one method that the entry names."""
        named: dict[str, list[Any]] = {}
        for name, value in self._named(method):
            named.setdefault(name, []).append(value)
        for values in product(*named.values()):
            yield dict(zip(named, values, strict=True))

    def _named(self, method: str) -> Iterator[tuple[str, Any]]:
        """Names and single values of the settings of one method that the entry names."""
        for name, values in (self.model_extra or {}).items():
            if name in METHODS[method].settings:
                yield from ((name, value) for value in _listed(values))


@dataclass(frozen=True)
class Configuration:
    """One combination of an entry's lists, for every model that it is run on.

    Attributes
    ----------
    method, bits, range, sampler : None where the method has none
    calibration_images, calibration_seed : None where those of ``quantization`` hold, or none do
    settings : that the entry names
    models, seeds : see :class:`Entry`
    """

    method: str
    bits: str | None
    range: str | None
    sampler: str | None
    calibration_images: int | None
    calibration_seed: int | None
    settings: tuple[tuple[str, Any], ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]


def expanded(entries: Sequence[Entry], draws: Sequence[int]) -> Iterator[Configuration]:
    """All configurations of a grid, in its order.

    Parameters
    ----------
    draws : seeds of calibration draws where an entry names none

    Examples
    --------
    >>> entry = Entry(method="ptq", bits=["W8A8", "W4A4"], range=["minmax", "mse"])
    >>> [(found.bits, found.range) for found in expanded([entry], [0])]
    [('W8A8', 'minmax'), ('W8A8', 'mse'), ('W4A4', 'minmax'), ('W4A4', 'mse')]
    """
    for entry in entries:
        for method in entry.method:
            known = METHODS[method]
            calibrates = known.calibrates
            for width, rule, images, draw, sampler in product(
                entry.bits if known.name not in WITHOUT_BITS else (None,),
                (entry.range or (known.range_rule,)) if calibrates else (None,),
                entry.calibration_images or (None,),
                (entry.calibration_seeds or draws) if calibrates else (None,),
                entry.sampler if calibrates else (None,),
            ):
                for settings in entry.settings(method):
                    yield Configuration(
                        method,
                        width,
                        rule,
                        sampler,
                        images,
                        draw,
                        tuple(settings.items()),
                        entry.models,
                        entry.seeds,
                    )
