"""Labelled rows as a caller passes them: labels, scores and sensitive attributes.

Everything that is wrong here is a :class:`~fairq_utils.errors.BadInput` that names the argument and
the first bad row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.given import array

MOST = 4096  # groups that are crossed whether or not they occur
# One column per attribute, or a single attribute's values.
Features: TypeAlias = pd.DataFrame | pd.Series | Mapping[str, Any] | Sequence[Any] | NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """Group of each row, all attributes crossed.

    Attributes
    ----------
    attributes : names of the sensitive attributes
    names : G group names, values joined by ``|`` in the order of ``attributes``
    codes : int64 (N,)
        Position of each row's group in ``names``.
    """

    attributes: tuple[str, ...]
    names: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def index(self) -> pd.Index:
        """The groups as an index; see :func:`group_index`."""
        return group_index(self.attributes, self.names)


def written_otherwise(values: ArrayLike, label: Any) -> Any:
    """A value that is a label in another form, such as the text "1" for 1; None if there is none.

    Examples
    --------
    >>> written_otherwise(["0", "1"], 1), written_otherwise(["no", "Yes"], "yes")
    ('1', 'Yes')
    >>> written_otherwise([0, 0], 1)
    """
    return next((v for v in _distinct(values) if _plain(v) == _plain(label)), None)


def listed(values: ArrayLike) -> str:
    """Some of the values that occur, for a sentence."""
    found = _distinct(values)
    return ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")


def _distinct(values: ArrayLike) -> list[Any]:
    return list(dict.fromkeys(column(values, "labels").tolist()))


def _shown(label: Any) -> str:
    """A label in a sentence; a text that looks like a number, such as "1", with its quotes."""
    text = isinstance(label, str | bytes) and isinstance(_plain(label), float)
    return repr(str(label)) if text else str(label)


def _plain(label: Any) -> str | float:
    """A label as a number if it can be one, else as text without case or space at its ends."""
    text = (label.decode() if isinstance(label, bytes) else str(label)).strip().casefold()
    try:
        return float({"true": "1", "false": "0"}.get(text, text))
    except ValueError:
        return text


def group_index(attributes: Sequence[str], names: Sequence[str]) -> pd.Index:
    """Group names as a pandas index, one level per attribute."""
    if len(attributes) == 1:
        return pd.Index(names, name=attributes[0])
    return pd.MultiIndex.from_tuples([tuple(n.split("|")) for n in names], names=attributes)


def labels(
    values: ArrayLike,
    name: str,
    *,
    rows: int | None = None,
    pos_label: Any = None,
    otherwise: str = "",
) -> NDArray[np.int64]:
    """Labels as 0 and 1, int64 (N,).

    Parameters
    ----------
    values : (N,)
        0 or 1; any labels if ``pos_label`` is given.
    name : str
        The argument's name, for the error.
    rows : int, optional
        How many rows there must be.
    pos_label : optional
        The label that counts as 1; every other label is 0 (one against the rest).
    otherwise : str, optional
        What to do about other labels, where the call has no ``pos_label``.

    Raises
    ------
    BadInput
        More or fewer than one dimension, no rows, another number of rows, a missing label, or,
        without ``pos_label``, a label that is neither 0 nor 1.

    Examples
    --------
    >>> labels(["cat", "dog", "cow"], "y_true", pos_label="dog")
    array([0, 1, 0])
    >>> labels([0, 1, 2], "y_true")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fairq_utils.errors.BadInput: y_true: row 2 is 2, neither 0 nor 1; for other labels ...
    """
    found = column(values, name, rows)
    missing = pd.isna(found)
    if pos_label is not None:
        if pd.isna(pos_label):
            raise BadInput(f"pos_label: {pos_label} is no label; name one of {name}")
        wrong, reason = missing, "which is no label"
    else:
        wrong, reason = missing.copy(), "neither 0 nor 1"
        wrong[~missing] = ~np.isin(found[~missing], (0, 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        if missing[row]:
            way = "leave the row out, or name its label"
        else:
            way = otherwise or "for other labels name one as pos_label"
        raise BadInput(f"{name}: row {row} is {_shown(found[row])}, {reason}; {way}")
    # Objects, because NumPy compares an array of strings with a number as a whole.
    positive = found.astype(object) == pos_label if pos_label is not None else found
    return np.asarray(positive).astype(np.int64)


def scores(
    values: ArrayLike, name: str, *, rows: int | None = None, probability: bool = False
) -> NDArray[np.float64]:
    """Scores as float64 (N,).

    Parameters
    ----------
    values : (N,)
        Larger means more likely of label 1.
    name, rows
        As in :func:`labels`.
    probability : bool
        Whether every score must be between 0 and 1.

    Raises
    ------
    BadInput
        As in :func:`labels`; a score that is no finite number, or, with ``probability``, is
        outside 0 to 1.

    Examples
    --------
    >>> scores([0.2, float("nan")], "y_score")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fairq_utils.errors.BadInput: y_score: row 1 is nan, which is no finite number; leave ...
    """
    found = column(values, name, rows)
    numbers = pd.to_numeric(pd.Series(found), errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadInput(
            f"{name}: row {row} is {found[row]}, which is no finite number; leave the row out, "
            "or give its score"
        )
    outside = (numbers < 0) | (numbers > 1)
    if probability and outside.any():
        row = int(np.argmax(outside))
        raise BadInput(
            f"{name}: row {row} is {found[row]}, not a probability from 0 to 1; "
            "pass logits through a sigmoid or softmax first"
        )
    return numbers


def weights(values: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Weights of rows as float64 (N,).

    Raises
    ------
    BadInput
        As in :func:`scores`; a weight below 0, or none above.

    Examples
    --------
    >>> weights([2, 0.5], 2)
    array([2. , 0.5])
    """
    found = scores(values, "sample_weight", rows=rows)
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        raise BadInput(f"sample_weight: row {row} is {found[row]:g}; give weights of 0 or more")
    if not found.any():
        raise BadInput("sample_weight: every row weighs 0; give at least one row a weight")
    return found


def scored(
    y_true: ArrayLike,
    y_score: ArrayLike,
    sample_weight: ArrayLike | None,
    *,
    pos_label: Any = None,
    probability: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels as 0 and 1, scores and weights, each (N,); every row weighs 1 if none are given.

    Raises
    ------
    BadInput
        As in :func:`labels`, :func:`scores` and :func:`weights`.
    """
    truth = labels(y_true, "y_true", pos_label=pos_label)
    found = scores(y_score, "y_score", rows=len(truth), probability=probability)
    if sample_weight is None:
        return truth, found, np.ones(len(truth))
    return truth, found, weights(sample_weight, len(truth))


def groups(sensitive_features: Features, *, rows: int | None = None) -> Groups:
    """Cross all attributes.

    Parameters
    ----------
    sensitive_features : DataFrame, mapping of name to values, Series, or array (N,) or (N, K)
        A column's groups are its categories, in their order, if it is categorical, else the
        values that occur, sorted. All are crossed with all, but where that gives more than
        :data:`MOST` groups, of which only those that occur are kept.
    rows : int, optional
        How many rows there must be.

    Raises
    ------
    BadInput
        Another number of rows, no attribute, two of one name, a row without a value, or values
        whose names cannot be told apart once crossed.

    Examples
    --------
    >>> found = groups({"gender": ["f", "m", "f"], "age": ["old", "old", "young"]})
    >>> found.names, found.codes.tolist()
    (('f|old', 'f|young', 'm|old', 'm|young'), [0, 2, 1])
    """
    frame = _frame(sensitive_features)
    if not len(frame.columns):
        raise BadInput("sensitive_features has no columns; give at least one attribute")
    if rows is not None and len(frame) != rows:
        raise BadInput(
            f"sensitive_features has {len(frame)} rows but y_true has {rows}; give a value per row"
        )
    attributes = [str(column) for column in frame.columns]
    twice = [name for at, name in enumerate(attributes) if name in attributes[:at]]
    if twice:
        raise BadInput(
            f"sensitive_features: two columns are called {twice[0]!r}; give each a name of its own"
        )
    names, code, many = [""], np.zeros(len(frame), np.int64), False
    for at, attribute in enumerate(attributes):
        values = _categories(frame.iloc[:, at], attribute)
        missing = np.flatnonzero(values.isna())
        if len(missing):
            raise BadInput(
                f"sensitive_features: row {missing[0]} has no value for {attribute!r}; leave the "
                "row out, or give a value of its own to what is unknown"
            )
        levels = [str(level) for level in values.cat.categories]
        if len(set(levels)) < len(levels) or any("|" in level for level in levels):
            raise BadInput(
                f"sensitive_features: the values of {attribute!r} must differ as text and hold "
                f"no '|', which joins crossed groups; they are {', '.join(levels)}; "
                "name them otherwise"
            )
        code = code * len(levels) + values.cat.codes.to_numpy()
        cells: Sequence[int] = range(len(names) * len(levels))
        many = many or len(cells) > MOST
        if many:
            there, code = np.unique(code, return_inverse=True)
            cells = there.tolist()
        before = [f"{name}|" if at else "" for name in names]
        names = [before[cell // len(levels)] + levels[cell % len(levels)] for cell in cells]
    return Groups(tuple(attributes), tuple(names), code)


def column(values: ArrayLike, name: str, rows: int | None = None) -> NDArray[Any]:
    """One value per row, as many rows as ``y_true``.

    Raises
    ------
    BadInput
        More or fewer than one dimension, no rows, another number of rows, or a value that is a
        collection.

    Examples
    --------
    >>> column(["cat", "dog"], "y_true").tolist()
    ['cat', 'dog']
    """
    found = array(values, name)
    if found.ndim != 1:
        raise BadInput(f"{name} must have one dimension, not {found.ndim}; give (N,)")
    if rows is not None and len(found) != rows:
        raise BadInput(f"{name} has {len(found)} rows but y_true has {rows}; give one per row")
    if not len(found):
        raise BadInput(f"{name} is empty; give at least one row")
    if found.dtype == object:
        _refuse_unhashable(found, name)
    return found


def _frame(sensitive_features: Features) -> pd.DataFrame:
    """One column per attribute; the attribute of a bare list is called ``group``."""
    if isinstance(sensitive_features, pd.DataFrame):
        return sensitive_features
    if isinstance(sensitive_features, pd.Series):
        name = sensitive_features.name
        return sensitive_features.to_frame("group" if name is None else str(name))
    if isinstance(sensitive_features, Mapping):
        each = {k: _series(v, f"sensitive_features[{k!r}]") for k, v in sensitive_features.items()}
        return pd.DataFrame(each)
    found = array(sensitive_features, "sensitive_features")
    if found.ndim == 2:
        return pd.DataFrame(found, columns=[f"group_{i}" for i in range(found.shape[1])])
    if found.ndim != 1:
        raise BadInput(
            f"sensitive_features must have one or two dimensions, not {found.ndim}; give (N,), or "
            "(N, K) of K attributes"
        )
    return _series(sensitive_features, "sensitive_features").to_frame("group")


def _series(values: Any, name: str) -> pd.Series:
    """Values of one attribute, with their categories where they have some."""
    if isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        return pd.Series(values).reset_index(drop=True)
    return pd.Series(column(values, name))


def _categories(values: pd.Series, attribute: str) -> pd.Series:
    """Values of one attribute as categories."""
    if values.dtype == object:
        _refuse_unhashable(values, f"sensitive_features: {attribute!r}")
    # pandas has no index of float16.
    kept = values.astype(np.float32) if values.dtype == np.float16 else values
    return kept.astype("category")


def _refuse_unhashable(values: Iterable[Any], name: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, Hashable):
            raise BadInput(
                f"{name}: row {row} is a {type(value).__name__}; give one name or number per row"
            )
