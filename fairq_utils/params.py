"""What a params file may say: typed, and refused where it cannot mean anything."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from fairq_utils.faults import BadInput

# Those of calibration.SAMPLERS that need no more than a study can give: no group by name.
Sampler = Literal[
    "label_balanced",
    "group_balanced",
    "intersection_balanced",
    "worst_group",
    "matched",
    "core_set",
]
Attribute = Literal["gender", "age", "race"]
Architecture = Literal["resnet50", "mobilenet_v2", "efficientnet_b0", "vit_small", "squeezenet1_1"]
Rule = Literal["minmax", "moving_average", "percentile", "mse", "entropy"]
Further = Literal[
    "naive",
    "equalized",
    "adaround",
    "block",
    "mixed",
    "float_classifier",
    "operations",
    "qat",
]
# Of fairq_utils.mitigation.methods.METHODS, and a sampler that stands for one run per group.
Minding = Literal[
    "one_group",
    "ranges_mean",
    "ranges_worst",
    "layers_random",
    "layers_overall",
    "layers_worst",
    "channels_random",
    "channels_overall",
    "channels_worst",
    "mixed_overall",
    "mixed_worst",
    "mixed_cvar",
    "control_overall",
    "control_worst",
    "qat_parity",
    "qat_odds",
    "qat_group_dro",
    "qat_balancing_act",
]
ARCHITECTURES = get_args(Architecture)
WIDTHS = (2, 3, 4, 6, 8)
CELLS = tuple(f"{g}|{a}|{y}" for g, a, y in product(("female", "male"), ("old", "young"), "01"))


class ParamsError(BadInput):
    """A params file that cannot be used; one sentence with the file, the key and the way out."""


def _bits(value: str) -> str:
    allowed = [f"W{w}A{a}" for w in WIDTHS for a in WIDTHS]
    if value not in allowed:
        raise ValueError(
            f"{value!r} is not W<bits>A<bits> with bits of weights and activations among "
            f"{', '.join(map(str, WIDTHS))}, such as W8A8 or W4A8"
        )
    return value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice; name it once")
    return values


def _known(models: dict[str, ModelRecipe]) -> dict[str, ModelRecipe]:
    unknown = [name for name in models if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(ARCHITECTURES)}")
    return models


Bits = Annotated[str, AfterValidator(_bits)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


Joint = Literal["celeba"] | dict[str, Weight]
Value = Literal["female", "male", "old", "young", "african", "asian", "caucasian"]
Split = Literal["train", "calibration", "validation", "test"]


class OfGroup(_Section):
    """What is different in the pictures of one group; see ``GroupDials`` of the population."""

    difficulty: Annotated[float, Field(ge=0, le=3)] | None = None
    light: Annotated[float, Field(gt=0, le=2)] = 1.0
    reflectance: Annotated[float, Field(gt=0, le=2)] = 1.0


class Data(_Section):
    """Who is in the pictures, and how many of them.

    ``joint_of`` gives single splits a distribution of their own; ``of_group`` says what is
    different in the pictures of a group.
    """

    name: Literal["population"] = "population"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2026
    size: Annotated[int, Field(ge=32, le=512)] = 64
    train: Annotated[int, Field(ge=64)] = 16000
    calibration: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 500
    test: Annotated[int, Field(ge=50)] = 2000
    difficulty: Annotated[float, Field(ge=0, le=3)] = 1.0
    joint: Joint = "celeba"
    joint_of: dict[Split, Joint] = {}
    race: dict[str, Weight] = {"african": 0.2, "asian": 0.2, "caucasian": 0.6}
    of_group: dict[Value, OfGroup] = {}

    @model_validator(mode="after")
    def _shares(self) -> Data:
        places = {"joint": self.joint} | {f"joint_of.{k}": v for k, v in self.joint_of.items()}
        for place, joint in places.items():
            if isinstance(joint, dict):
                _check_joint(place, joint)
        known = {"african", "asian", "caucasian"}
        if set(self.race) != known:
            odd = sorted(set(self.race) ^ known)
            raise ValueError(
                f"race: {odd[0]!r} is unknown or missing; name {', '.join(sorted(known))}"
            )
        if sum(self.race.values()) <= 0:
            raise ValueError("race: all weights are zero; give one ancestry a positive weight")
        return self


def _check_joint(place: str, joint: Mapping[str, float]) -> None:
    if set(joint) != set(CELLS):
        odd = sorted(set(joint) ^ set(CELLS))
        raise ValueError(
            f"{place}: {odd[0]!r} is unknown or missing; the cells are {', '.join(CELLS)}"
        )
    for gender, age in product(("female", "male"), ("old", "young")):
        if joint[f"{gender}|{age}|0"] + joint[f"{gender}|{age}|1"] <= 0:
            raise ValueError(
                f"{place}: the group {gender}|{age} has no weight, so it would have no image; give "
                "one of its cells a positive weight"
            )


class ModelRecipe(_Section):
    """How one architecture is trained."""

    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]
    batch_size: Annotated[int, Field(ge=2)] = 64
    weight_decay: Weight = 0.05
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Training(_Section):
    """Which models are trained, from which seeds.

    A training that takes longer than ``checkpoint_minutes`` keeps where it is so often, and goes
    on from there if it is stopped; 0 is never.
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)] = (0,)
    pretrained: bool = False
    auxiliary: Weight = 2.0
    checkpoint_minutes: Weight = 10.0
    models: Annotated[dict[str, ModelRecipe], Field(min_length=1), AfterValidator(_known)]


class Tuning(_Section):
    """How quantization-aware training goes on from the calibrated model.

    ``images`` are the first so many of the training pictures; all, if it is not given.
    """

    epochs: Annotated[int, Field(ge=1, le=3)] = 1
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    images: Annotated[int, Field(ge=64)] | None = None


class Quantization(_Section):
    """Which quantizers are tried.

    ``bits`` are those of the method ptq; dynamic has the first of them with A8. ``further`` names
    other methods of :data:`fairq_utils.quantizers.methods.METHODS`, each with its own bits; those
    of mixed are the ones whose uniform size is its budget. ``further_models`` are those of the
    models that these are tried on, all if none is named. ``iterations`` is per layer or block of a
    learnt rounding; ``tuning.rate`` multiplies the learning rate that the FP32 model was trained
    with.
    """

    bits: Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_unique)]
    methods: Annotated[
        tuple[Literal["ptq", "dynamic"], ...], Field(min_length=1), AfterValidator(_unique)
    ] = ("ptq", "dynamic")
    ranges: Annotated[tuple[Rule, ...], Field(min_length=1), AfterValidator(_unique)] = ("minmax",)
    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.9
    further: dict[
        Further, Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_unique)]
    ] = {}
    further_models: Annotated[tuple[Architecture, ...], AfterValidator(_unique)] = ()
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 300
    tuning: Tuning = Tuning()
    calibration_images: Annotated[int, Field(ge=1)] = 256
    calibration_seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)] = (
        0,
    )

    @model_validator(mode="after")
    def _possible(self) -> Quantization:
        if "ptq" not in self.methods:
            raise ValueError(
                "methods: ptq is missing; calibration, which the mitigation phase is about, exists "
                "only there. Add it"
            )
        if "dynamic" in self.methods and not any(b.endswith("A8") for b in self.bits):
            raise ValueError(
                "methods: dynamic quantizes activations to 8 bits, but no entry of "
                "quantization.bits has A8; add W8A8, or take dynamic out"
            )
        return self


class Mitigation(_Section):
    """What is compared with plain quantization.

    ``samplers`` draw the calibration set in every configuration of the method ptq. ``methods`` are
    all compared with it at ``bits`` and least-error ranges, on ``models`` (all if none is named):
    other samplers (``one_group`` once for each group), and those of
    :data:`fairq_utils.mitigation.methods.METHODS`. Those that train on do so by
    ``quantization.tuning``, beside their two controls. ``kept`` is the budget of preservation, a
    share of the quantized model's bytes; ``max_drop`` the tolerance of accuracy control, which puts
    no more than ``max_reverted`` layers back to float.
    """

    samplers: Annotated[tuple[Sampler, ...], Field(min_length=1), AfterValidator(_unique)] = (
        "group_balanced",
    )
    methods: Annotated[tuple[Sampler | Minding, ...], AfterValidator(_unique)] = ()
    bits: Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_unique)] = (
        "W8A8",
        "W4A4",
    )
    models: Annotated[tuple[Architecture, ...], AfterValidator(_unique)] = ()
    kept: Annotated[float, Field(gt=0, le=1)] = 0.05
    max_drop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    max_reverted: Annotated[int, Field(ge=1)] = 10


Share = Annotated[float, Field(gt=0, le=0.5)]


class Dials(_Section):
    """What is turned, one at a time, in a population that is otherwise the same for everybody.

    Without any of it half of the people are of ``group``, half of them smile, and all are lit
    alike. ``training_share`` and ``calibration_share`` are those of the group, ``base_rate`` is by
    how much more of the group smile, ``light`` and ``reflectance`` are factors on its pictures,
    ``ambiguity`` is the difficulty of its smiles. Each level is trained on ``train`` pictures with
    the recipes of ``training.models``, for ``epochs`` of them where that is given.
    """

    models: Annotated[tuple[Architecture, ...], AfterValidator(_unique)] = ()
    group: Literal["female", "male", "old", "young"] = "female"
    size: Annotated[int, Field(ge=32, le=512)] = 64
    train: Annotated[int, Field(ge=64)] = 4000
    calibration: Annotated[int, Field(ge=16)] = 2000
    validation: Annotated[int, Field(ge=16)] = 1000
    test: Annotated[int, Field(ge=50)] = 2000
    epochs: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)] = (0,)
    calibration_images: Annotated[int, Field(ge=2)] = 64
    bits: Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_unique)] = (
        "W8A8",
        "W4A4",
    )
    methods: Annotated[tuple[Sampler | Minding, ...], AfterValidator(_unique)] = ("group_balanced",)
    training_share: Annotated[tuple[Share, ...], AfterValidator(_unique)] = ()
    calibration_share: Annotated[tuple[Share, ...], AfterValidator(_unique)] = ()
    base_rate: Annotated[
        tuple[Annotated[float, Field(gt=-1, lt=1)], ...], AfterValidator(_unique)
    ] = ()
    light: Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], AfterValidator(_unique)] = ()
    reflectance: Annotated[
        tuple[Annotated[float, Field(gt=0, le=2)], ...], AfterValidator(_unique)
    ] = ()
    ambiguity: Annotated[
        tuple[Annotated[float, Field(ge=0, le=3)], ...], AfterValidator(_unique)
    ] = ()


class Analysis(_Section):
    """How sure to be."""

    replicates: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    attributes: Annotated[tuple[Attribute, ...], Field(min_length=2), AfterValidator(_unique)] = (
        "gender",
        "age",
    )


class Execution(_Section):
    """Where it runs, and where results are kept.

    ``devices`` train an FP32 model together, each on its part of every batch; ``auto`` is all GPUs
    that there are. Everything else is on one of them.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    ledger: str = "build/ledger"
    cache: str = "build/cache"
    results: str = "build/results"


class Tracking(_Section):
    """Where runs are shown besides the ledger: a folder of TensorBoard's, a server of MLflow's."""

    tensorboard: Annotated[str, Field(min_length=1)] | None = None
    mlflow: Annotated[str, Field(min_length=1)] | None = None


class Params(_Section):
    """A whole study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    data: Data = Data()
    training: Training
    quantization: Quantization
    mitigation: Mitigation = Mitigation()
    dials: Dials = Dials()
    analysis: Analysis = Analysis()
    execution: Execution = Execution()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _together(self) -> Params:
        wanted, pool = self.quantization.calibration_images, self.data.calibration
        if wanted > pool:
            raise ValueError(
                f"quantization.calibration_images: {wanted} images are asked for, but "
                f"data.calibration holds {pool}; ask for fewer, or make the pool larger"
            )
        if "vit_small" in self.training.models and self.data.size % 16:
            raise ValueError(
                f"data.size: {self.data.size} pixels do not divide into vit_small's patches of 16; "
                "take a multiple of 16, or leave vit_small out"
            )
        tuned = self.quantization.tuning.images
        if tuned is not None and tuned > self.data.train:
            raise ValueError(
                f"quantization.tuning.images: {tuned} is more than the {self.data.train} images of "
                "data.train; ask for fewer"
            )
        if "vit_small" in self.dials.models and self.dials.size % 16:
            raise ValueError(
                f"dials.size: {self.dials.size} pixels do not divide into vit_small's patches of "
                "16; take a multiple of 16"
            )
        for dialled in self.dials.models:
            if dialled not in self.training.models:
                raise ValueError(
                    f"dials.models: {dialled!r} has no recipe; add it to training.models, or take "
                    "it out"
                )
            if self.training.models[dialled].batch_size > self.dials.train:
                raise ValueError(
                    f"dials.train: {self.dials.train} images are fewer than a batch of {dialled} "
                    f"({self.training.models[dialled].batch_size}); ask for more"
                )
        for name, recipe in self.training.models.items():
            if recipe.batch_size > self.data.train:
                raise ValueError(
                    f"training.models.{name}.batch_size: {recipe.batch_size} is more than the "
                    f"{self.data.train} images of data.train; make it smaller"
                )
        return self
