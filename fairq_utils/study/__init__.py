"""A study: params, plan, runs and the ledger, on this machine or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.study.execution import execute
    from fairq_utils.study.ledger import Ledger, LedgerError
    from fairq_utils.study.params.file import load_params, parse_overrides
    from fairq_utils.study.params.study import Params, ParamsError
    from fairq_utils.study.planning import plan, with_dials
    from fairq_utils.study.run_models import Rebuilt, rebuild
    from fairq_utils.study.run_record import Run, RunRecord
    from fairq_utils.study.statistics import counts, records, scopes
    from fairq_utils.study.study import Study

__all__ = [
    "Ledger",
    "LedgerError",
    "Params",
    "ParamsError",
    "Rebuilt",
    "Run",
    "RunRecord",
    "Study",
    "counts",
    "execute",
    "load_params",
    "parse_overrides",
    "plan",
    "rebuild",
    "records",
    "scopes",
    "with_dials",
]

__getattr__, __dir__ = passed_on(__name__, extra="study")
