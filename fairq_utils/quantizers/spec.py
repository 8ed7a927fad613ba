"""Specification of a quantization: bits, grids, range rules, corrections."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from fairq_utils.errors import BadInput

WIDTHS = (2, 3, 4, 6, 8)
RANGE_RULES = ("minmax", "moving_average", "percentile", "mse", "entropy")
CHOICES = {
    "weight_granularity": ("channel", "tensor", "group"),
    "weight_scheme": ("symmetric", "affine"),
    "activation_scheme": ("affine", "symmetric"),
    "weight_range": tuple(rule for rule in RANGE_RULES if rule != "moving_average"),
    "activation_range": RANGE_RULES,
    "activation": ("static", "dynamic", "float"),
    "rounding": ("nearest", "adaround", "block"),
}

# What an option belongs to: it says nothing unless one of these attributes has one of these values.
BELONGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "percentile": (("weight_range", "activation_range"), ("percentile",)),
    "group_size": (("weight_granularity",), ("group",)),
    "iterations": (("rounding",), ("adaround", "block")),
}


@dataclass(frozen=True)
class QuantSpec:
    """The one vocabulary between a user and the quantizers.

    Attributes
    ----------
    weight_bits, activation_bits : int
        2, 3, 4, 6 or 8.
    weight_granularity : str
        ``channel`` (one scale per output channel), ``tensor``, or ``group`` (one scale per output
        channel and group of ``group_size`` input channels).
    group_size : int
        Input channels per group; a last group may be smaller.
    weight_scheme, activation_scheme : str
        ``symmetric`` or ``affine`` (with a zero-point).
    weight_range, activation_range : str
        ``minmax``, ``percentile``, ``mse`` (smallest mean squared error), ``entropy`` (smallest
        Kullback-Leibler divergence); for inputs also ``moving_average`` (of the minimum and maximum
        of batches).
    percentile : float
        Share of values kept inside by ``percentile``, 50 to 100.
    activation : str
        ``static``: ranges from a calibration set; ``dynamic``: from each sample at run time;
        ``float``: inputs stay in float, only weights are quantized.
    first_last_bits : int or None
        Bits of the first and the last quantized layer, for weights and inputs; None treats them as
        all others.
    residuals, attention_products : bool
        Quantize the operands of additions of two feature maps, and the four operands of attention
        (queries, keys, scores, values), as integer engines do, to ``activation_bits``.
    gates : bool
        Quantize the factors of products of two feature maps (squeeze-and-excitation), and both
        factors and the result of SiLU, for engines that cannot fuse them behind a convolution.
    equalization : bool
        Cross-layer equalization before anything is observed (Nagel et al. 2019).
    bias_correction : bool
        Correct each layer's bias by its mean error on the calibration set (Nagel et al. 2019).
    rounding : str
        ``nearest``; ``adaround``: learnt up or down, layer by layer (Nagel et al. 2020); ``block``:
        learnt block by block together with the inputs' step sizes, quantized inputs dropped at
        random (Li et al. 2021, BRECQ; Wei et al. 2022, QDrop).
    iterations : int
        Steps per layer or block of a learnt rounding.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_granularity: str = "channel"
    group_size: int = 32
    weight_scheme: str = "symmetric"
    activation_scheme: str = "affine"
    weight_range: str = "minmax"
    activation_range: str = "minmax"
    percentile: float = 99.9
    activation: str = "static"
    first_last_bits: int | None = 8
    residuals: bool = False
    attention_products: bool = False
    gates: bool = False
    equalization: bool = False
    bias_correction: bool = False
    rounding: str = "nearest"
    iterations: int = 500

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "first_last_bits"):
            value = getattr(self, name)
            if value not in WIDTHS and not (name == "first_last_bits" and value is None):
                raise BadInput(
                    f"QuantSpec.{name}: {value!r} is not one of {', '.join(map(str, WIDTHS))}"
                )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise BadInput(f"QuantSpec.{name}: {value!r} is not one of {', '.join(allowed)}")
        if not isinstance(self.percentile, int | float) or not 50 < self.percentile <= 100:
            raise BadInput(f"QuantSpec.percentile: {self.percentile!r} is not in (50, 100]")
        for name in ("group_size", "iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadInput(f"QuantSpec.{name}: {value!r} is not a whole number above 0")
        if self.activation == "dynamic" and self.activation_bits != 8:
            raise BadInput(
                f"QuantSpec.activation_bits: dynamic quantization is defined at 8 bits, not "
                f"{self.activation_bits}; use static ranges, or 8"
            )
        switches = ("residuals", "attention_products", "gates", "bias_correction", "equalization")
        for name in switches:
            if not isinstance(getattr(self, name), bool):
                raise BadInput(
                    f"QuantSpec.{name}: {getattr(self, name)!r} is neither True nor False"
                )
        asked = [name for name in switches if getattr(self, name)]
        operations = ", ".join(name for name in asked if name in switches[:3])
        asked += ["rounding"] if self.rounding != "nearest" else []
        if self.activation == "dynamic" and asked:
            raise BadInput(
                f"QuantSpec.{asked[0]}: needs a calibration set, which dynamic inputs do without; "
                "leave it out, or take static inputs (method 'ptq')"
            )
        if self.activation == "float" and operations:
            raise BadInput(
                f"QuantSpec.activation: weights only leave all inputs in float, so that "
                f"{operations} cannot be quantized; set them to False, or take static inputs "
                "(activation='static')"
            )

    @classmethod
    def parse(cls, text: str, **options: Any) -> QuantSpec:
        """A spec from ``W<bits>A<bits>``, or ``W<bits>`` for weights only, and further attributes.

        Examples
        --------
        >>> QuantSpec.parse("W4A8").weight_bits
        4
        >>> QuantSpec.parse("W4").activation
        'float'
        """
        found = re.fullmatch(r"W(\d+)(?:A(\d+))?", text) if isinstance(text, str) else None
        if found is None:
            raise BadInput(f"bits: {text!r} is not of the form W8A8, or W8 for weights only")
        if found[2] is None:
            return cls(weight_bits=int(found[1]), **{"activation": "float", **options})
        return cls(weight_bits=int(found[1]), activation_bits=int(found[2]), **options)

    @property
    def label(self) -> str:
        """The bits in short: ``W4A8``, or ``W4`` where only weights are quantized."""
        inputs = "" if self.activation == "float" else f"A{self.activation_bits}"
        return f"W{self.weight_bits}{inputs}"

    def idle(self, given: Collection[str]) -> list[str]:
        """Options that were given and say nothing beside the others.

        Examples
        --------
        >>> QuantSpec(percentile=99.0).idle(["percentile"])
        ['percentile']
        """
        return [
            option
            for option, (others, values) in BELONGS.items()
            if option in given and not any(getattr(self, other) in values for other in others)
        ]

    def refuse_idle(self, given: Collection[str]) -> None:
        """Refuse options that were given and say nothing beside the others.

        Raises
        ------
        BadInput
            Names what the option belongs to.
        """
        for option in self.idle(given):
            others, values = BELONGS[option]
            raise BadInput(
                f"QuantSpec.{option}: is of {' or '.join(others)}="
                f"{' or '.join(map(repr, values))}, which is not asked for; give that too, or "
                f"leave {option} out"
            )

    def at_edge(self) -> QuantSpec:
        """The spec of the first and the last layer."""
        if self.first_last_bits is None:
            return self
        return replace(
            self,
            weight_bits=max(self.weight_bits, self.first_last_bits),
            activation_bits=max(self.activation_bits, self.first_last_bits),
        )
