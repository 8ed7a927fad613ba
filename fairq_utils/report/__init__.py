"""The report: from the ledger to frames, tables, figures, chapters and the book."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.report.book import BookError, build_book
    from fairq_utils.report.chapter import Chapter, open_chapter
    from fairq_utils.report.comparison import comparison_figure
    from fairq_utils.report.effects import (
        against_plain,
        against_random,
        by_configuration,
        by_group,
        frontier,
        sizes,
    )
    from fairq_utils.report.notebooks import ExecutionError, execute_notebooks
    from fairq_utils.report.results import write_results

__all__ = [
    "BookError",
    "Chapter",
    "ExecutionError",
    "against_plain",
    "against_random",
    "build_book",
    "by_configuration",
    "by_group",
    "comparison_figure",
    "execute_notebooks",
    "frontier",
    "open_chapter",
    "sizes",
    "write_results",
]

__getattr__, __dir__ = passed_on(__name__, extra="book")
