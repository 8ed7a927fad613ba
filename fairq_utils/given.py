"""What a caller gives, in any usual form: values as arrays of NumPy's, and names."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.errors import BadInput


def array(values: Any, name: str) -> NDArray[Any]:
    """Values as an array.

    Those of a tensor are read on any device, with or without gradients, and what is masked is NaN.
    Halves of NumPy and PyTorch are float32, which pandas knows. Of a list that holds texts and
    other things each stays what it is.

    Parameters
    ----------
    values : tensor, array, Series, or nested sequence
    name : str
        The argument's name, for the error.

    Raises
    ------
    BadInput
        They are no array, such as rows of unequal length.

    Examples
    --------
    >>> array(np.ma.masked_array([1, 0], mask=[False, True]), "y_pred").tolist()
    [1, nan]
    >>> array(["a", 1, None], "groups").tolist()
    ['a', 1, None]
    """
    # There are tensors only where torch was imported, which takes seconds.
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            small = values.is_floating_point() and values.itemsize < 4
            return (values.float() if small else values).numpy()
        if np.ma.is_masked(values):
            return values.astype(object).filled(np.nan)
        found = np.asarray(values)
        if found.dtype.kind in "US" and isinstance(values, list | tuple):
            found = np.asarray(values, dtype=object)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"{name}: {type(values).__name__} is read as no array ({error}); give numbers or "
            "names, as many in each row"
        ) from None
    return found.astype(np.float32) if found.dtype == np.float16 else found


def numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Values as float64; NaN for what is masked or missing.

    Raises
    ------
    BadInput
        As in :func:`array`, or a value that is no number.

    Examples
    --------
    >>> numbers([1, None], "capacity")
    array([ 1., nan])
    """
    found = array(values, name)
    try:
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: some values are no numbers ({error}); give numbers") from None


def each_name(given: str | Iterable[Any]) -> tuple[Any, ...]:
    """Names that a caller lists; a single text is one of them, not its letters.

    Examples
    --------
    >>> each_name("gender"), each_name(["gender", "age"])
    (('gender',), ('gender', 'age'))
    """
    return (given,) if isinstance(given, str) else tuple(given)
