"""Docstrings of the functions of labelled rows, from what a criterion or a rate says of itself."""

from __future__ import annotations

import inspect
import textwrap

from fairq_utils.metrics.criteria import Criterion
from fairq_utils.metrics.rates import MeanRate, Rate


def criterion_docstring(criterion: Criterion) -> str:
    """Docstring of a criterion's function of labelled rows."""
    compared = (inspect.getdoc(criterion.compare) or "Value of the criterion.").split("\n\n")[0]
    text = _DOC.format(
        title=criterion.title,
        about=_wrapped(criterion.formula, criterion.notes),
        options="".join(_OPTIONS[name] for name in criterion.options),
        returned=f"float\n{textwrap.indent(compared, '    ')}",
    )
    if criterion.source:
        text += f"\n\nReferences\n----------\n{_wrapped(criterion.source)}"
    if criterion.example:
        predictions, value = criterion.example
        call = f">>> {criterion.name}("
        text += (
            f"\n\nExamples\n--------\n{call}[1, 1, 0, 0, 1, 1, 0, 0], {list(predictions)},\n"
            f"...{' ' * (len(call) - 3)}"
            f'sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])\n{value}'
        )
    return text


def rate_docstring(chosen: Rate | MeanRate) -> str:
    """Docstring of a rate's function of labelled rows."""
    return _DOC.format(
        title=f"{chosen.name.capitalize().replace('_', ' ')} among {chosen.among}",
        about=_wrapped(
            f"It is {chosen.formula}: of all rows, or of each group of ``sensitive_features``",
            "Where the denominator is 0, fairlearn and scikit-learn return 0, or the rate that is "
            "left (balanced accuracy); here that is an error, and NaN for one group of several",
        ),
        options="",
        returned="float, or Series\n    A ratio of counts; NaN for groups that take no part.",
    )


def _wrapped(*paragraphs: str) -> str:
    sentences = [f"{text.removesuffix('.')}." for text in paragraphs if text]
    return "\n\n".join(textwrap.fill(text, 95) for text in sentences)


_OPTIONS = {
    "method": """\
method : ``between_groups`` or ``to_overall``, default ``between_groups``
    Groups compared with each other, or each with all rows together.
""",
    "agg": """\
agg : ``worst_case`` or ``mean``, default ``worst_case``
    How the comparisons of several rates become one number.
""",
}

_DOC = """\
{title}.

{about}

Parameters
----------
y_true, y_pred : 0 or 1, (N,)
    Any labels if ``pos_label`` is given.
sensitive_features : DataFrame, mapping of name to values, Series, or array (N,) or (N, K)
    Several attributes are crossed. Groups are the values that occur, or all categories of a
    categorical column.
{options}min_cell : int, default 1
    Groups whose denominator rests on fewer images take no part.
pos_label : optional
    The label that counts as 1, against all others.
sample_weight : (N,), optional
    Weight of each row, 0 or more, as fairlearn's; not beside ``min_cell``.

Returns
-------
{returned}

Warns
-----
LeftOutWarning
    Lists the groups that took no part, with their counts.

Raises
------
BadInput
    Bad rows (see :func:`~fairq_utils.metrics.count`), or too few groups for which it is defined."""
