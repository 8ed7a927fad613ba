"""Training in a run: FP32 models, and how any model of a study is trained."""

from __future__ import annotations

import torch

from fairq_utils.data.faces import FaceData
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, loop, objectives

INITIAL_IMAGES = 2000  # training images that a data-dependent initialisation looks at


def built(study: Study, run: Run) -> torch.nn.Module:
    """The network of a run, untrained."""
    pretrained = study.params.training.pretrained
    return architectures.build(
        run.architecture, image_size=study.params.data.size, pretrained=pretrained
    )


def train_fp32(
    study: Study, run: Run, progress: loop.Progress | None = None
) -> tuple[torch.nn.Module, loop.History]:
    """A trained FP32 model, and its losses."""
    training = study.params.training
    seed = int(run.training["seed"])
    torch.manual_seed(seed)
    model = built(study, run)
    recipe = loop.Recipe(**training.models[run.architecture].model_dump())
    train = study.faces.subset("train")
    if not training.pretrained:
        architectures.initialise(model, train.images[:INITIAL_IMAGES])
    weight = training.auxiliary
    if weight and train.factors is not None:
        objective: objectives.Classification = objectives.WithFactors(
            train, model, weight, recipe.label_smoothing
        )
    else:
        objective = objectives.Classification(train, recipe.label_smoothing)
    history = fit(study, run, model, train, recipe, objective, seed, progress)
    if isinstance(objective, objectives.WithFactors):
        objective.close()
    return model, history


def fit(
    study: Study,
    run: Run,
    model: torch.nn.Module,
    train: FaceData,
    recipe: loop.Recipe,
    objective: loop.Objective,
    seed: int,
    progress: loop.Progress | None,
) -> loop.History:
    """Train a run's model in place, on the study's device, from where it was stopped."""
    return loop.fit(
        model,
        train,
        recipe,
        objective,
        seed=seed,
        device=study.device,
        progress=progress,
        checkpoints=study.unfinished(run),
    )
