"""Sections of a params file: typed, and refused where they cannot mean anything."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from fairq_utils.errors import BadInput
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.registry import unknown
from fairq_utils.study.params.cluster import Cluster
from fairq_utils.study.params.data import RENDERED, Data, Photographs, data_kind
from fairq_utils.study.params.grid import Entry
from fairq_utils.study.params.section import Section, Seed, Weight, unique
from fairq_utils.training import zoo
from fairq_utils.training.image_sizes import check_size

Attribute = Annotated[str, Field(min_length=1)]
Architecture = Annotated[str, Field(min_length=1)]  # of training.models


class ParamsError(BadInput):
    """A params file that cannot be used; one sentence with the file, the key and the way out."""


def _known(models: dict[str, ModelRecipe]) -> dict[str, ModelRecipe]:
    for name in models:
        if name not in zoo.ARCHITECTURES:  # to look among all others takes seconds
            zoo.find(name)
    return models


class ModelRecipe(Section):
    """Recipe by which one architecture is trained."""

    epochs: Annotated[int, Field(ge=1)] = 3
    learning_rate: Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)] = 5e-4
    batch_size: Annotated[int, Field(ge=2)] = 64
    weight_decay: Weight = 0.05
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Training(Section):
    """Models that are trained, and from which seeds.

    A training that takes longer than ``checkpoint_minutes`` keeps where it is so often, and goes
    on from there if it is stopped; 0 is never.
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(unique)] = (0,)
    pretrained: bool = False
    auxiliary: Weight = 2.0
    checkpoint_minutes: Weight = 10.0
    models: Annotated[dict[str, ModelRecipe], Field(min_length=1), AfterValidator(_known)]


class Tuning(Section):
    """Fine-tuning that goes on from the calibrated model.

    ``images`` are the first so many of the training pictures; all, if it is not given.
    """

    epochs: Annotated[int, Field(ge=1, le=3)] = 1
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    images: Annotated[int, Field(ge=64)] | None = None


class Quantization(Section):
    """Settings of all entries of the grid, but those that name their own.

    ``percentile`` is that of the range rule of this name. ``iterations`` is per layer or block of a
    learnt rounding; ``tuning.rate`` multiplies the learning rate that the FP32 model was trained
    with. Every sampler draws ``calibration_images``, once for each of ``calibration_seeds``.
    """

    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.9
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 300
    tuning: Tuning = Tuning()
    calibration_images: Annotated[int, Field(ge=1)] = 256
    calibration_seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(unique)] = (
        0,
    )


Share = Annotated[float, Field(gt=0, le=0.5)]


class Dials(Section):
    """Properties of a group, varied one at a time in a population that is else the same for all.

    Without any of it half of the people are of ``group``, half of them smile, and all are lit
    alike. ``training_share`` and ``calibration_share`` are those of the group, ``base_rate`` is by
    how much more of the group smile, ``light`` and ``reflectance`` are factors on its pictures,
    ``ambiguity`` is the difficulty of its smiles. Each level is trained on ``train`` pictures with
    the recipes of ``training.models``, for ``epochs`` of them where that is given.
    """

    models: Annotated[tuple[Architecture, ...], AfterValidator(unique)] = ()
    group: Literal["female", "male", "old", "young"] = "female"
    size: Annotated[int, Field(ge=32, le=512)] = 64
    train: Annotated[int, Field(ge=64)] = 4000
    calibration: Annotated[int, Field(ge=16)] = 2000
    validation: Annotated[int, Field(ge=16)] = 1000
    test: Annotated[int, Field(ge=50)] = 2000
    epochs: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(unique)] = (0,)
    calibration_images: Annotated[int, Field(ge=2)] = 64
    grid: Annotated[tuple[Entry, ...], Field(min_length=1)] = (
        Entry(method=("ptq",), bits=("W8A8", "W4A4"), range=("mse",), sampler=("group_balanced",)),
    )
    training_share: Annotated[tuple[Share, ...], AfterValidator(unique)] = ()
    calibration_share: Annotated[tuple[Share, ...], AfterValidator(unique)] = ()
    base_rate: Annotated[
        tuple[Annotated[float, Field(gt=-1, lt=1)], ...], AfterValidator(unique)
    ] = ()
    light: Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], AfterValidator(unique)] = ()
    reflectance: Annotated[
        tuple[Annotated[float, Field(gt=0, le=2)], ...], AfterValidator(unique)
    ] = ()
    ambiguity: Annotated[
        tuple[Annotated[float, Field(ge=0, le=3)], ...], AfterValidator(unique)
    ] = ()


def _criterion(value: str) -> str:
    if value not in FAIRNESS:
        raise ValueError(unknown(value, FAIRNESS))
    return value


class Analysis(Section):
    """Confidence, replicates and margins of the analysis.

    ``attributes`` are gender and age unless named, or those of photographs whose ``groups`` are.
    ``unprivileged`` is the group that is set against all others, by its value of each attribute;
    old women unless named, where there are such.
    ``metrics`` are criteria of :data:`fairq_utils.metrics.criteria.FAIRNESS` that are measured
    beside those that always are (:data:`fairq_utils.study.statistics.STATISTICS`).
    """

    replicates: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    attributes: Annotated[tuple[Attribute, ...], Field(min_length=2), AfterValidator(unique)] = (
        "gender",
        "age",
    )
    metrics: Annotated[
        tuple[Annotated[str, AfterValidator(_criterion)], ...], AfterValidator(unique)
    ] = ()
    unprivileged: dict[Attribute, Attribute] = Field(default={})

    @model_validator(mode="after")
    def _of_the_attributes(self) -> Analysis:
        odd = [name for name in self.unprivileged if name not in self.attributes]
        if odd:
            raise ValueError(f"unprivileged.{odd[0]}: {unknown(odd[0], self.attributes)}")
        return self


Place = Annotated[str, Field(min_length=1)]  # a path, or of the ledger a URL


class Execution(Section):
    """Device, threads, and folders of results."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    ledger: Place = "build/ledger"
    cache: Place = "build/cache"
    results: Place = "build/results"

    @model_validator(mode="before")
    @classmethod
    def _one_device(cls, values: object) -> object:
        if isinstance(values, dict) and "devices" in values:
            raise ValueError(
                "devices: a model is trained on one device; to train several side by side, each "
                "on a GPU of its own, write cluster: {kind: local, workers: N, gpus: 1}"
            )
        return values


class Tracking(Section):
    """Trackers of runs besides the ledger: a folder of TensorBoard's, a server of MLflow's."""

    tensorboard: Annotated[str, Field(min_length=1)] | None = None
    mlflow: Annotated[str, Field(min_length=1)] | None = None


AnyData = Annotated[
    Annotated[Data, Tag("population")] | Annotated[Photographs, Tag("photographs")],
    Discriminator(data_kind),
]


class Params(Section):
    """A whole study.

    ``plugins`` are modules that add entries to the registries: methods, samplers, architectures,
    metrics, engines, collections.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    plugins: Annotated[tuple[str, ...], AfterValidator(unique)] = ()
    data: AnyData = Data()
    training: Training
    grid: Annotated[tuple[Entry, ...], Field(min_length=1)]
    quantization: Quantization = Quantization()
    dials: Dials = Dials()
    analysis: Analysis = Analysis()
    execution: Execution = Execution()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _together(self) -> Params:
        for name in self.training.models:
            check_size(name, self.data.size, "data.size")
        for at, entry in enumerate(self.grid):
            for model in entry.models:
                if model not in self.training.models:
                    raise ValueError(
                        f"grid[{at}].models: {model!r} is not trained in this study; "
                        f"training.models has {', '.join(self.training.models)}"
                    )
            for seed in entry.seeds:
                if seed not in self.training.seeds:
                    raise ValueError(
                        f"grid[{at}].seeds: {seed} is not trained in this study; training.seeds "
                        f"has {', '.join(map(str, self.training.seeds))}"
                    )
        if isinstance(self.data, Photographs):
            if self.dials.models:
                raise ValueError(
                    "dials.models: dials are turned in rendered people, and data.name is "
                    f"{self.data.name}; leave dials out, or set data.name: population"
                )
            return self._with_attributes_of(self.data)
        _check_rendered(self, self.data)
        _check_dials(self)
        return self

    def _with_attributes_of(self, data: Photographs) -> Params:
        """The groups that are named of photographs are what is analysed, unless others are."""
        groups = tuple(data.groups or ())
        if not groups or "attributes" in self.analysis.model_fields_set:
            return self
        if len(groups) < 2:
            raise ValueError(
                f"data.groups: names {groups[0]} alone, and an analysis crosses two attributes; "
                "name another"
            )
        analysis = self.analysis.model_copy(update={"attributes": groups})
        return self.model_copy(update={"analysis": analysis})


def _check_rendered(params: Params, data: Data) -> None:
    """Refuse what rendered people cannot serve, by their numbers alone."""
    unknown = [name for name in params.analysis.attributes if name not in RENDERED]
    if unknown:
        raise ValueError(
            f"analysis.attributes: {unknown[0]!r} is no attribute of rendered people; they have "
            f"{', '.join(RENDERED)}"
        )
    asked = {"quantization.calibration_images": params.quantization.calibration_images}
    for at, entry in enumerate(params.grid):
        asked |= {f"grid[{at}].calibration_images": n for n in entry.calibration_images}
    for key, wanted in asked.items():
        if wanted > data.calibration:
            raise ValueError(
                f"{key}: {wanted} images are asked for, but data.calibration holds "
                f"{data.calibration}; ask for fewer, or make the pool larger"
            )
    tuned = params.quantization.tuning.images
    if tuned is not None and tuned > data.train:
        raise ValueError(
            f"quantization.tuning.images: {tuned} is more than the {data.train} images of "
            "data.train; ask for fewer"
        )
    for name, recipe in params.training.models.items():
        if recipe.batch_size > data.train:
            raise ValueError(
                f"training.models.{name}.batch_size: {recipe.batch_size} is more than the "
                f"{data.train} images of data.train; make it smaller"
            )


def _check_dials(params: Params) -> None:
    dials = params.dials
    if dials.models and dials.calibration_images > dials.calibration:
        raise ValueError(
            f"dials.calibration_images: {dials.calibration_images} images are asked for, but "
            f"dials.calibration holds {dials.calibration}; ask for fewer, or make the pool larger"
        )
    for dialled in dials.models:
        if dialled not in params.training.models:
            raise ValueError(
                f"dials.models: {dialled!r} has no recipe; add it to training.models, or take it "
                "out"
            )
        if params.training.models[dialled].batch_size > dials.train:
            raise ValueError(
                f"dials.train: {dials.train} images are fewer than a batch of {dialled} "
                f"({params.training.models[dialled].batch_size}); ask for more"
            )
        check_size(dialled, dials.size, "dials.size")
