"""``fairq``: the command line, a thin front on the same functions that the notebooks call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fairq_utils.params import Params, ParamsError, load_params

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does compressing a neural network make it less fair, and for whom?",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="A file of params/.")]


class Phase(StrEnum):
    """The four phases of the study."""

    baseline = "baseline"
    quantization = "quantization"
    mitigation = "mitigation"
    analysis = "analysis"
    all = "all"


def _read(path: Path) -> Params:
    try:
        return load_params(path)
    except ParamsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def _say_and_stop(action: Callable[[], None]) -> None:
    """Run an action; what a user can mend is one sentence and exit code 1, not a traceback."""
    from fairq_utils.ledger import LedgerError
    from fairq_utils.models import PretrainedUnavailable

    try:
        action()
    except (LedgerError, PretrainedUnavailable, FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"fairq: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def run(
    params: ParamsFile = Path("params/default.yaml"),
    phase: Annotated[Phase, typer.Option(help="Which phase to run.")] = Phase.all,
) -> None:
    """Compute what is missing in the ledger; the analysis writes its tables."""
    settings = _read(params)

    def action() -> None:
        from fairq_utils import study

        phases = study.PHASES if phase in (Phase.all, Phase.analysis) else (phase.value,)
        if phase is not Phase.analysis:
            study.execute(settings, phases)
        if phase in (Phase.all, Phase.analysis):
            _analyse(settings)

    _say_and_stop(action)


def _analyse(settings: Params) -> None:
    from fairq_utils import study, tables

    runs = tables.records(study.ledger(settings), settings)
    if not runs:
        raise ValueError(
            f"{settings.execution.ledger}: the ledger holds no run of this study; "
            "run the other phases first"
        )
    folder = Path("build") / "results" / settings.name
    effects = tables.effects(runs, settings)
    for path in tables.write_results(effects, tables.sizes(runs), folder):
        typer.echo(str(path))


@app.command()
def plan(params: ParamsFile = Path("params/default.yaml")) -> None:
    """List the study's runs, and which of them are in the ledger."""
    settings = _read(params)

    def action() -> None:
        from fairq_utils import study

        store = study.ledger(settings)
        runs = study.plan(settings)
        for entry in runs:
            state = "done   " if store.contains(entry.key) else "missing"
            what = [entry.architecture, f"seed {entry.training['seed']}", entry.method]
            what += [str(v) for v in (entry.bits, entry.ranges, entry.sampler) if v]
            typer.echo(f"{state}  {entry.key}  {' '.join(what)}")
        done = sum(store.contains(entry.key) for entry in runs)
        typer.echo(f"{done} of {len(runs)} runs are in {settings.execution.ledger}")

    _say_and_stop(action)


@app.command()
def check(
    params: Annotated[Path | None, typer.Option(help="Also check this params file.")] = None,
) -> None:
    """Verify the set-up; ends in "ready" or in what is missing."""
    from fairq_utils.checkup import inspect

    settings = None if params is None else _read(params)
    missing = 0
    for item in inspect(settings):
        missing += not item.ok
        typer.echo(f"{'ok     ' if item.ok else 'MISSING'}  {item.name}: {item.detail}")
    if missing:
        typer.echo(f"not ready: {missing} thing{'s are' if missing > 1 else ' is'} missing")
        raise typer.Exit(1)
    typer.echo("ready")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="What to measure: render, stats or coverage.")],
) -> None:
    """Measure one thing on this machine; the figures are kept under build/bench."""

    def action() -> None:
        from fairq_utils import bench as benchmarks

        figures, path = benchmarks.run(name)
        for key, value in figures.items():
            typer.echo(f"{key:<18} {value}")
        typer.echo(str(path))

    _say_and_stop(action)


def main() -> None:
    """Entry point."""
    sys.exit(app())
