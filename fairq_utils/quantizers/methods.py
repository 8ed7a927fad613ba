"""Methods by name: the one registry of what a params file, a call or a table can quantize by.

A method stands beside its implementation as one statement, ``method("adaround", ...)``. It is given
a :class:`Task` and returns a module and its report; who calibrates, which images there are and how
a network is trained is the caller's, a study or a user's own script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.registry import Registry, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fairq_utils.quantizers.calibrate import Observed
    from fairq_utils.quantizers.report import QuantReport

    Result = tuple[nn.Module, QuantReport | None]
else:
    Result = tuple

MSE = {"weight_range": "mse", "activation_range": "mse"}
CONTROL = "fp32_finetuning"  # the FP32 fine-tuning control of every method that trains
NEEDS = ("images", "kept", "groups", "validation", "labels", "everybody")
TUNING = {"epochs": 1, "rate": 0.1, "images": None}  # settings of every method that trains
FAMILIES = (
    "static",
    "dynamic",
    "learnt rounding",
    "mixed precision",
    "fine-tuning",
    "calibration",
    "group-aware ranges",
    "preservation",
    "group-aware mixed precision",
    "accuracy control",
    "group-aware fine-tuning",
)  # in the order of tables


@dataclass(frozen=True)
class Task:
    """Model, spec and images that a method works on.

    Attributes
    ----------
    model : the float model; it is not changed
    spec : QuantSpec
    example : a batch of images, or None where there is none
    observed : gives the statistics of calibration, images kept where the method asks for it
    calibration, validation : give images with labels and groups, for methods that look at them
        (:class:`fairq_utils.mitigation.sample.Sample`)
    train : trains a network in place, under a constraint of
        :data:`fairq_utils.mitigation.constraints.CONSTRAINTS` or None, and returns notes for the
        report
    settings : of the method, by name
    least : images that a group must have where something is chosen by it
    seed : int
    """

    model: nn.Module
    spec: QuantSpec
    example: Tensor | None
    observed: Callable[[], Observed]
    calibration: Callable[[], Any]
    validation: Callable[[], Any]
    train: Callable[[nn.Module, str | None], Mapping[str, Any]]
    settings: Mapping[str, Any]
    least: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Size:
    """Size of a task, for :attr:`Method.images`.

    Attributes
    ----------
    layers : that can be quantized
    calibration, validation : images
    settings : of the method, by name
    """

    layers: int
    calibration: int
    validation: int
    settings: Mapping[str, Any]


Fit = Callable[[Task], Result]


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    Attributes
    ----------
    name, label : by which it is asked for; how figures and tables call it
    family : of :data:`FAMILIES`, or another one, which comes last in tables
    fit : from a :class:`Task` to a module and its report; None for a report of what stays in float
    options : attributes of the :class:`~fairq_utils.quantizers.QuantSpec`, but its bits
        Another range rule that is asked for takes the place of those here.
    needs : of :data:`NEEDS`: ``images`` (calibration), ``kept`` (these again, after calibration),
        ``groups``, ``validation``, ``labels``, ``everybody`` (every group among the calibration
        images)
    trains : whether labels and further epochs are needed
    constraint : of its groups, that a training keeps to
    settings : names and defaults of what decides its result beyond the spec
    images : how many it looks at beyond calibration, for the costs of a study
    source : the paper
    """

    name: str
    label: str
    family: str
    fit: Fit
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset({"images"})
    trains: bool = False
    constraint: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: Callable[[Size], int] = lambda size: 0
    source: str = ""

    @property
    def group_aware(self) -> bool:
        """True if it looks at the groups of the images."""
        return "groups" in self.needs

    @property
    def calibrates(self) -> bool:
        """True if ranges of inputs come from calibration images."""
        return "images" in self.needs

    @property
    def range_rule(self) -> str:
        """The range rule of its inputs, where no other is asked for."""
        return self.spec("W8A8").activation_range

    @property
    def place(self) -> tuple[int, int]:
        """Place in tables: by its family, methods that are not group-aware first."""
        families = (*FAMILIES, self.family)
        return int(self.group_aware), families.index(self.family)

    def spec(self, bits: str, **options: Any) -> QuantSpec:
        """The spec at some bits, such as ``W4A8``; what is asked for takes precedence."""
        return QuantSpec.parse(bits, **{**self.options, **options})


METHODS: Registry[Method] = Registry("method", "fairq_utils.quantizers", "fairq_utils.mitigation")


def method(
    name: str,
    *,
    label: str,
    family: str,
    fit: Fit,
    options: Mapping[str, Any] | None = None,
    needs: str = "images",
    trains: bool = False,
    constraint: str | None = None,
    settings: Mapping[str, Any] | None = None,
    images: Callable[[Size], int] = lambda size: 0,
    source: str = "",
) -> Method:
    """Register a method; its attributes are those of :class:`Method`, ``needs`` in one string.

    Raises
    ------
    BadInput
        Options that no spec has, or needs that no task serves; a name that is taken.

    Examples
    --------
    >>> METHODS["adaround"].label, METHODS["adaround"].spec("W4A8").rounding
    ('AdaRound', 'adaround')
    """
    for option in options or {}:
        if option not in (known := [entry.name for entry in fields(QuantSpec)]):
            raise BadInput(f"method {name}: options: {unknown(option, known)}")
    for need in needs.split():
        if need not in NEEDS:
            raise BadInput(f"method {name}: needs: {unknown(need, NEEDS)}")
    entry = Method(
        name,
        label,
        family,
        fit,
        dict(options or {}),
        frozenset(needs.split()),
        trains,
        constraint,
        {**(TUNING if trains else {}), **(settings or {})},
        images,
        source,
    )
    METHODS.add(name, entry)
    return entry
