"""What a quantizer should do: bits, granularity, range rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

WIDTHS = (2, 3, 4, 6, 8)
RANGE_RULES = ("minmax", "percentile")


@dataclass(frozen=True)
class QuantSpec:
    """The one vocabulary between a user and the quantizers.

    Attributes
    ----------
    weight_bits, activation_bits : int
        2, 3, 4, 6 or 8.
    weight_granularity : str
        ``channel`` (one scale per output channel) or ``tensor``.
    weight_range, activation_range : str
        ``minmax`` or ``percentile``.
    percentile : float
        Share of values kept inside by ``percentile``, 50 to 100.
    activation : str
        ``static``: ranges from a calibration set; ``dynamic``: from each sample at run time.
    first_last_bits : int or None
        Bits of the first and the last quantized layer, for weights and inputs; None treats them as
        all others.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_granularity: str = "channel"
    weight_range: str = "minmax"
    activation_range: str = "minmax"
    percentile: float = 99.9
    activation: str = "static"
    first_last_bits: int | None = 8

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "first_last_bits"):
            value = getattr(self, name)
            if value not in WIDTHS and not (name == "first_last_bits" and value is None):
                raise ValueError(
                    f"QuantSpec.{name}: {value!r} is not one of {', '.join(map(str, WIDTHS))}"
                )
        choices = {
            "weight_granularity": ("channel", "tensor"),
            "weight_range": RANGE_RULES,
            "activation_range": RANGE_RULES,
            "activation": ("static", "dynamic"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"QuantSpec.{name}: {value!r} is not one of {', '.join(allowed)}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"QuantSpec.percentile: {self.percentile} is not in (50, 100]")
        if self.activation == "dynamic" and self.activation_bits != 8:
            raise ValueError(
                f"QuantSpec.activation_bits: dynamic quantization is defined at 8 bits, not "
                f"{self.activation_bits}; use static ranges, or 8"
            )

    @classmethod
    def parse(cls, text: str, **options: Any) -> QuantSpec:
        """A spec from ``W<bits>A<bits>`` and further attributes.

        Examples
        --------
        >>> QuantSpec.parse("W4A8").weight_bits
        4
        """
        found = re.fullmatch(r"W(\d+)A(\d+)", text)
        if found is None:
            raise ValueError(f"bits: {text!r} is not of the form W8A8")
        return cls(weight_bits=int(found[1]), activation_bits=int(found[2]), **options)

    def at_edge(self) -> QuantSpec:
        """The spec of the first and the last layer."""
        if self.first_last_bits is None:
            return self
        return replace(
            self,
            weight_bits=max(self.weight_bits, self.first_last_bits),
            activation_bits=max(self.activation_bits, self.first_last_bits),
        )
