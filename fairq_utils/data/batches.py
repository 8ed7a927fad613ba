"""Batches of a loader: images, labels and sensitive attributes, in any of the usual forms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairq_utils.errors import BadInput
from fairq_utils.given import array


@dataclass(frozen=True)
class Batch:
    """One batch of a loader.

    Attributes
    ----------
    images : Tensor (N, ...)
        As the model takes them.
    labels : int64 (N,), or None where the loader yields none
    groups : attribute -> N values, or None where the loader yields none
    """

    images: Tensor
    labels: Tensor | None
    groups: dict[str, list[Any]] | None


def read(
    loader: Iterable[Any], what: str = "loader", attributes: Sequence[str] = ()
) -> Iterator[Batch]:
    """The batches of a loader, checked one by one.

    Parameters
    ----------
    loader : iterable
        Of (images, labels, groups), (images, labels), (images,) or tensors of images.
    what : str
        The loader's name, for errors.
    attributes : names of the attributes, where ``groups`` come without; see :func:`by_attribute`

    Raises
    ------
    BadInput
        Names the batch and what is wrong with it.

    Examples
    --------
    >>> [batch] = read([(torch.zeros(2, 3), [0, 1], {"gender": ["f", "m"]})])
    >>> batch.labels, batch.groups
    (tensor([0, 1]), {'gender': ['f', 'm']})
    """
    for at, batch in enumerate(_batches(loader, what)):
        place = f"{what}: batch {at}"
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if parts and isinstance(parts[0], np.ndarray):
            raise BadInput(f"{place} has images of NumPy; give tensors, torch.from_numpy(images)")
        if not 1 <= len(parts) <= 3 or not isinstance(parts[0], Tensor) or parts[0].ndim == 0:
            raise BadInput(
                f"{place} is {described(batch)}; it must be (images, labels, groups), (images, "
                "labels), (images,) or images alone, with images a tensor (N, ...)"
            )
        images, rows = _usable(parts[0]), len(parts[0])
        labels = None if len(parts) < 2 else whole_labels(parts[1], rows, place)
        groups = None if len(parts) < 3 else by_attribute(parts[2], attributes, rows, what)
        yield Batch(images, labels, groups)


def _batches(loader: Iterable[Any], what: str) -> Iterator[Any]:
    try:
        return iter(loader)
    except TypeError as error:
        raise BadInput(
            f"{what} is {type(loader).__name__}, which gives no batches; give a loader, or a list "
            "of batches"
        ) from error


def described(batch: Any) -> str:
    """The form of a batch, for errors.

    Examples
    --------
    >>> described((1, 2)), described({})
    ('tuple of 2', 'dict')
    """
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    return f"{type(batch).__name__}{size}"


def whole_labels(values: Any, rows: int, place: str) -> Tensor:
    """Labels of a batch as whole numbers, int64 (N,).

    Parameters
    ----------
    values : numbers in any usual form
    rows : int
        N.
    place : the batch, for errors

    Raises
    ------
    BadInput
        Another number of labels, or one that is no whole number.

    Examples
    --------
    >>> whole_labels(pd.Series([True, False]), 2, "batch 0")
    tensor([1, 0])
    """
    try:
        labels = values if isinstance(values, Tensor) else torch.tensor(array(values, place))
    except TypeError:  # objects
        given = array(values, place).reshape(-1).tolist()
        wrong = [at for at, x in enumerate(given) if not isinstance(x, Number) or pd.isna(x)]
        if wrong:
            raise BadInput(
                f"{place} has labels that are no numbers (row {wrong[0]} is {given[wrong[0]]!r}); "
                "number the classes 0, 1, ..., and leave out rows without a label"
            ) from None
        labels = torch.tensor(given)
    if labels.numel() != rows:
        raise BadInput(
            f"{place} has {labels.numel()} labels for {rows} images; each image needs one"
        )
    labels = labels.reshape(-1)
    if labels.is_floating_point() and bool((odd := labels.frac() != 0).any()):
        row = int(odd.nonzero()[0])
        raise BadInput(
            f"{place} has labels between whole numbers (row {row} is {float(labels[row]):g}); "
            "number the classes 0, 1, ..., and leave out rows without a label"
        )
    return _usable(labels.to(torch.int64))


def _usable(x: Tensor) -> Tensor:
    """A tensor that can be trained on; one that was made in inference mode cannot."""
    return x.clone() if x.is_inference() else x


def by_attribute(
    groups: Any, attributes: Sequence[str], rows: int, what: str = "loader"
) -> dict[str, list[Any]]:
    """One list of values per attribute.

    Parameters
    ----------
    groups : mapping or DataFrame of attribute to N values; or values without names
        (N,) values are those of one attribute, (N, K), or K sequences of N, those of K in order.
    attributes : names for values without names
        Where there are none, such attributes are called ``group`` or ``group_0``, ``group_1`` ...
    rows : int
        N.
    what : str
        The loader's name, for errors.

    Raises
    ------
    BadInput
        Another form, another number of values, two attributes of one name, a value that is
        missing.

    Examples
    --------
    >>> by_attribute(torch.tensor([[0, 1], [1, 1]]), ["gender", "age"], 2)
    {'gender': [0, 1], 'age': [1, 1]}
    """
    if isinstance(groups, pd.DataFrame):
        pairs = [(str(name), column.to_numpy()) for name, column in groups.items()]
    elif isinstance(groups, Mapping):
        pairs = [(str(name), values) for name, values in groups.items()]
    else:
        pairs = list(_in_order(groups, attributes, what).items())
    named = dict(pairs)
    for at, (name, _) in enumerate(pairs):
        if name in (before for before, _ in pairs[:at]):
            raise BadInput(
                f"{what}: two attributes of its groups are called {name!r}; give each a name of "
                "its own"
            )
    out = {name: array(values, f"{what}: groups[{name!r}]") for name, values in named.items()}
    for name, values in out.items():
        if values.shape != (rows,):
            raise BadInput(
                f"{what}: groups[{name!r}] has shape {values.shape} in a batch of {rows} images; "
                "give one value per image"
            )
        missing = np.flatnonzero(pd.isna(values))
        if len(missing):
            raise BadInput(
                f"{what}: row {missing[0]} of a batch has no value for {name!r}; leave the row "
                "out, or give a value of its own to what is unknown"
            )
    return {name: values.tolist() for name, values in out.items()}


def _in_order(groups: Any, attributes: Sequence[str], what: str) -> dict[str, Any]:
    """Values without names, by the names they were given."""
    columns: list[Any] = []
    one = False
    if isinstance(groups, pd.Series):
        columns, one = [groups.to_numpy()], True
    elif isinstance(groups, Tensor | np.ndarray):
        one = groups.ndim == 1
        columns = [groups] if one else list(groups.T) if groups.ndim == 2 else []
    elif isinstance(groups, list | tuple) and groups:
        one = all(isinstance(v, str | int | np.generic) for v in groups)
        parts = all(isinstance(v, list | tuple | Tensor | np.ndarray) for v in groups)
        columns = [groups] if one else list(groups) if parts else []
    names = list(attributes[:1] if one else attributes)
    if not names:
        names = ["group"] if one else [f"group_{i}" for i in range(len(columns))]
    if not columns or len(columns) != len(names):
        shape = f" of shape {tuple(groups.shape)}" if hasattr(groups, "shape") else ""
        raise BadInput(
            f"{what}: the third element of a batch must be a mapping or DataFrame of attribute to "
            f"values, or one value per image for each of {', '.join(map(repr, names)) or 'them'}; "
            f"it is {type(groups).__name__}{shape}"
        )
    return dict(zip(names, columns, strict=True))


def gather(
    loader: Iterable[Any],
    most: int,
    what: str = "loader",
    attributes: Sequence[str] = (),
) -> Batch:
    """The first images of a loader as one batch, ``most`` of them or all there are.

    Parameters and errors as in :func:`read`; labels and groups are there if every batch has them.

    Raises
    ------
    BadInput
        No image, or images or attributes that differ from batch to batch.

    Examples
    --------
    >>> len(gather([torch.zeros(4, 3), torch.zeros(4, 3)], 6).images)
    6
    """
    parts: list[Batch] = []
    count = 0
    for batch in read(loader, what, attributes):
        parts.append(first(batch, most - count))
        count += len(parts[-1].images)
        if count >= most:
            break
    if not count:
        raise BadInput(f"{what} gave no images; give at least one batch")
    return joined(parts, what)


def first(batch: Batch, count: int) -> Batch:
    """The first images of a batch."""
    return rows_of(batch, range(min(count, len(batch.images))))


def divided(stream: Iterator[Batch], count: int) -> tuple[list[Batch], Iterator[Batch]]:
    """The first ``count`` images of a stream, and batches of the others, which are not read yet.

    Examples
    --------
    >>> parts, others = divided(read([torch.zeros(4, 3), torch.zeros(4, 3)]), 3)
    >>> [len(batch.images) for batch in parts], [len(batch.images) for batch in others]
    ([3], [1, 4])
    """
    parts: list[Batch] = []
    left: list[Batch] = []
    missing = count
    for batch in stream:
        parts.append(first(batch, missing))
        size = len(batch.images)
        if size > missing:
            left = [rows_of(batch, range(missing, size))]
        missing -= len(parts[-1].images)
        if missing == 0:
            break
    return parts, itertools.chain(left, stream)


def rows_of(batch: Batch, rows: Sequence[int] | range) -> Batch:
    """Some images of a batch, with their labels and groups."""
    if isinstance(rows, range) and rows == range(len(batch.images)):
        return batch
    at = torch.as_tensor(list(rows), dtype=torch.int64)
    labels = None if batch.labels is None else batch.labels[at.to(batch.labels.device)]
    groups = None
    if batch.groups is not None:
        groups = {name: [values[i] for i in rows] for name, values in batch.groups.items()}
    return Batch(batch.images[at.to(batch.images.device)], labels, groups)


def joined(parts: Sequence[Batch], what: str = "loader") -> Batch:
    """Batches as one."""
    if len(parts) == 1:
        return parts[0]
    shapes = {tuple(part.images.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise BadInput(
            f"{what}: images have the shapes {', '.join(map(str, sorted(shapes)))}; bring them to "
            "one size first"
        )
    labels = [part.labels for part in parts if part.labels is not None]
    groups = [part.groups for part in parts if part.groups is not None]
    if any(set(one) != set(groups[0]) for one in groups):
        raise BadInput(
            f"{what}: not every batch has the attributes {', '.join(groups[0])}; let "
            "all have the same"
        )
    together = {name: [v for one in groups for v in one[name]] for name in (groups or [{}])[0]}
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        together if len(groups) == len(parts) else None,
    )
