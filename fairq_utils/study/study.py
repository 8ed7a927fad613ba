"""Study that is open: its params, and what they name, opened when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fairq_utils.data.faces import FaceData
from fairq_utils.data.listing import Listing
from fairq_utils.data.loading import CLASSES, short_of_room
from fairq_utils.data.population import SPLITS, Population, demographics
from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.data.whole_files import in_the_way
from fairq_utils.errors import BadInput, Fault
from fairq_utils.fingerprint import fingerprint
from fairq_utils.study import people
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.run_record import Run
from fairq_utils.training.resume import Checkpoints


class Study:
    """A study: its params, its ledger, its subjects and their images, its device.

    What the params name is opened when it is first asked for, so that opening a study takes no time
    and refuses nothing.

    Parameters
    ----------
    params : Params
    origin : Study, optional
        Another one, whose ledger this one has; see :meth:`of`.
    """

    def __init__(self, params: Params, origin: Study | None = None) -> None:
        self.params = params
        self._origin = origin
        self._others: dict[Params, Study] = {}

    def __repr__(self) -> str:
        return f"Study({self.params.name!r})"

    def of(self, params: Params) -> Study:
        """Study of other params in the same ledger, such as a world of the dials; opened once."""
        return self._others.setdefault(params, Study(params, self))

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger that the params name.

        Raises
        ------
        LedgerError
            It is of a kind that fsspec does not know, or whose package is not installed.
        """
        execution = self.params.execution
        return self._origin.ledger if self._origin else Ledger(execution.ledger, execution.cache)

    @cached_property
    def device(self) -> str:
        """``cuda`` or ``cpu``.

        Raises
        ------
        Fault
            A GPU was asked for, and there is none.
        """
        asked, there = self.params.execution.device, torch.cuda.is_available()
        if asked == "cuda" and not there:
            raise Fault(
                "execution.device: cuda was asked for but PyTorch finds no GPU; use auto or cpu"
            )
        return asked if asked != "auto" else "cuda" if there else "cpu"

    @property
    def title(self) -> str:
        """The study's name, and a hash of what its params ask for, wherever that is computed."""
        return f"{self.params.name}-{fingerprint(self.asked, 8)}"

    @property
    def asked(self) -> dict[str, Any]:
        """The params without those that decide no result, as JSON."""
        return self.params.model_dump(mode="json", exclude={"execution", "tracking", "cluster"})

    @property
    def results(self) -> Path:
        """Folder of the study's tables as files; a study of other params has another."""
        return Path(self.params.execution.results) / self.title

    @property
    def faces(self) -> FaceData:
        """Images of all four splits; rendered or decoded at the first call, then cached."""
        return people.images(self.params.data, self.params.execution.cache)

    @property
    def listing(self) -> Listing:
        """The photographs of a study.

        Raises
        ------
        TypeError
            The study's subjects are rendered.
        BadInput
            See :func:`fairq_utils.study.people.listing`.
        """
        if not isinstance(self.params.data, Photographs):
            raise TypeError(f"{self.params.name}: the people of this study are rendered")
        return people.listing(self.params.data)

    def population(self, split: str = "train") -> Population:
        """The population that a split is drawn from.

        Raises
        ------
        TypeError
            The study's subjects are in photographs.
        """
        if not isinstance(self.params.data, Data):
            raise TypeError(f"{self.params.name}: the people of this study are in photographs")
        return people.population(self.params.data, split)

    def people(self, split: str, most: int | None = None) -> tuple[NDArray[np.int8], pd.DataFrame]:
        """Target (N,) and groups (N rows, a categorical column per attribute) of one split.

        Nothing is rendered and no image is read, so that a study can be refused in moments.

        Parameters
        ----------
        most : int, optional
            Of rendered people the first so many, whatever the params ask for.
        """
        if isinstance(self.params.data, Data):
            count = int(getattr(self.params.data, split))
            count = count if most is None else min(count, most)
            return demographics(self.population(split), split, np.arange(count))
        rows = self.listing.split == split
        return self.listing.target[rows], self.listing.groups[rows].reset_index(drop=True)

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> its values, in their order."""
        if isinstance(self.params.data, Data):
            return dict(ATTRIBUTES)
        groups = self.listing.groups
        return {str(name): tuple(map(str, groups[name].cat.categories)) for name in groups}

    @property
    def classes(self) -> tuple[str, str]:
        """Meanings of a target of 0 and of 1, in words."""
        if isinstance(self.params.data, Data):
            return CLASSES
        absent, present = self.listing.meta["classes"]
        return str(absent), str(present)

    def described(self, splits: Sequence[str]) -> dict[str, Any]:
        """Description of the subjects and images of these splits, as JSON.

        A run depends on the people that it is trained, calibrated, validated and tested on, and on
        no others. Photographs are decoded for it, if they are not yet: their contents decide.
        """
        if isinstance(self.params.data, Photographs):
            return self._photographed(self.params.data, splits)
        data = self.params.data.model_dump(mode="json")
        common = ("name", "seed", "size", "difficulty", "race", "of_group")
        found: dict[str, Any] = {key: data[key] for key in common}
        for split in splits:
            who = self.population(split)
            found[split] = {"images": data[split], "joint": dict(who.joint)}
            if who.even:
                found[split]["even"] = list(who.even)
        return found

    def _photographed(self, data: Photographs, splits: Sequence[str]) -> dict[str, Any]:
        there = self.faces
        for split in splits:
            if split not in there.split:
                raise ParamsError(
                    f"data.root: no picture of {data.name} in the split {split} can be "
                    "used; mend them, see `fairq data check`"
                )
        return {
            "name": data.name,
            "size": data.size,
            "target": there.meta["target"],
            "people": {split: there.meta["contents"][split] for split in splits},
            "images": {split: int((there.split == split).sum()) for split in splits},
        }

    def shares(self, attributes: Sequence[str], train: pd.DataFrame) -> dict[str, float]:
        """Share of each crossed group among the people a study is about, by its name.

        Of rendered people it is known. Of photographs it is that of ``train``, the groups of the
        training split: nothing is learnt from the test split.
        """
        if isinstance(self.params.data, Photographs):
            cells = train[list(attributes)].astype(str).agg(" ".join, axis=1)
            counted = cells.value_counts(normalize=True)
            return {str(name): float(part) for name, part in counted.items()}
        found: dict[str, float] = {}
        who = self.population("test")
        races = sum(who.race.values())
        for cell, weight in who.joint.items():
            gender, age, _ = cell.split("|")
            for name, part in who.race.items():
                each = {"gender": gender, "age": age, "race": name}
                group = " ".join(each[attribute] for attribute in attributes)
                found[group] = found.get(group, 0.0) + weight * part / races
        return found

    @property
    def _folders(self) -> dict[str, str]:
        execution = self.params.execution
        return {f"execution.{name}": getattr(execution, name) for name in ("cache", "results")}

    def check_places(self) -> None:
        """Refuse places that cannot be what they are to be; nothing is made.

        Raises
        ------
        BadInput
            One that has to be a folder is a URL.
        Fault
            A file or a link to nothing stands in the place of a folder.
        """
        self.ledger.check()
        for name, given in self._folders.items():
            if "://" in given:
                raise BadInput(
                    f"{name}: {given} is a URL, which only execution.ledger may be; name a folder"
                )
            found = in_the_way(given)
            if found:
                raise Fault(f"{name}: {given} cannot be made ({found}); name another folder")

    def short_of_room(self) -> list[str]:
        """What rendered images take that this machine has no room for, a sentence per split."""
        if not isinstance(self.params.data, Data):
            return []
        data, cache = self.params.data, Path(self.params.execution.cache)
        found = (short_of_room(s, getattr(data, s), data.size, cache) for s in SPLITS)
        return [sentence for sentence in found if sentence]

    def prepare(self) -> None:
        """Make the folders that the study will write to, before hours go into what to write there.

        Raises
        ------
        BadInput
            One that has to be a folder is a URL, or a cluster's ledger lives in one process.
        Fault
            One of them cannot be made or written; a GPU was asked for and there is none; or the
            devices cannot train what is to be trained. A cluster's devices are those that the
            params name: this machine's say nothing about its workers'.
        """
        params, store = self.params, self.ledger
        if params.cluster.kind == "none":
            gpu, here = self.device == "cuda", "this study runs on the CPU"
        elif store.alone:
            raise BadInput(
                f"execution.ledger: {store.url} lives in one process and workers would not see it; "
                "name a folder or a store that every machine of the cluster reaches"
            )
        else:  # whether a worker has the GPU that it is to have, it finds itself
            gpu = params.cluster.gpus > 0 and params.execution.device != "cpu"
            here = "the workers have none by execution.device and cluster.gpus"
        for name, recipe in params.training.models.items():
            if recipe.precision == "fp16" and not gpu:
                raise Fault(
                    f"training.models.{name}.precision: fp16 needs a GPU, and {here}; take bf16 or "
                    "fp32"
                )
        self.check_places()
        store.prepare()
        for name, folder in self._folders.items():
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Fault(
                    f"{name}: {folder} cannot be made ({error.strerror}); name another folder, "
                    "or one for all with --work DIR"
                ) from error
            if not os.access(folder, os.W_OK):
                raise Fault(
                    f"{name}: {folder} cannot be written; name another folder, or one for all with "
                    "--work DIR"
                )

    def unfinished(self, run: Run) -> Checkpoints | None:
        """Checkpoints of a run's training, or None where none are kept."""
        minutes = self.params.training.checkpoint_minutes
        return Checkpoints(self._unfinished(run), minutes, _trained_as(run)) if minutes else None

    def remove_abandoned(self, finished: Iterable[Run]) -> None:
        """Remove what is kept here of stopped trainings that were finished elsewhere or otherwise.

        Parameters
        ----------
        finished : runs that are in the ledger
            An FP32 model whose weights are gone is trained again, and its file stays.
        """
        store = self.ledger
        for run in finished:
            path = self._unfinished(run)
            if path.exists() and (
                run.method != "fp32" or store.fs.exists(store.kept_checkpoint(run.weights))
            ):
                path.unlink(missing_ok=True)

    def _unfinished(self, run: Run) -> Path:
        return self.ledger.checkpoint_path(_trained_as(run)).with_suffix(".unfinished")


def _trained_as(run: Run) -> str:
    """Name of what a run trains: FP32 weights, which other evaluations share, or its own."""
    return run.weights if run.method == "fp32" else run.key
