"""``fairq``: the command line, a thin front on the same functions that the notebooks call."""

from __future__ import annotations

import io
import os
import sys
import warnings
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fairq_utils.errors import in_one_sentence, needs, printable, stops_quietly

if __name__ == "__main__" or Path(sys.argv[0]).name == "fairq":
    stops_quietly()

import typer

from fairq_utils import data_cli
from fairq_utils.bench.registry import BENCHMARKS
from fairq_utils.deploy.engines.registry import ENGINES
from fairq_utils.study.work_folder import WORK, work_folder

if TYPE_CHECKING:
    from fairq_utils.study.params.study import Params
    from fairq_utils.study.study import Study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_cli.app, name="data")


@app.callback(help="Does compressing a neural network make it less fair, and for whom?")
def _prepare() -> None:
    # OpenMP's threads wait spinning otherwise, and beside busy processes for each other; it is read
    # when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal cannot show stops nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


ParamsFile = Annotated[Path, typer.Option("--params", help="A file of params/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="In place of what the file says; may repeat."),
]


def _below(work: Path | None) -> Path | None:
    """Let everything be written below a folder, by chapters and workers too."""
    if work is not None:
        os.environ[WORK] = str(work.expanduser().resolve())
    return work


Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        envvar=WORK,
        callback=_below,
        is_eager=True,
        help="Where everything is written, in the place of the tree.",
    ),
]

DEFAULT = Path("params/default.yaml")


class Phase(StrEnum):
    """The four phases of the study."""

    baseline = "baseline"
    quantization = "quantization"
    mitigation = "mitigation"
    analysis = "analysis"
    all = "all"


def _read(path: Path, overrides: list[str] | None = None) -> Params:
    """Read a params file; first of all, as what it refuses is said at once then."""
    from fairq_utils.study.params.file import load_params, parse_overrides

    return load_params(path, parse_overrides(overrides or []))


def _opened(path: Path, overrides: list[str] | None = None) -> Study:
    """Open the study of a params file, which is read first."""
    params = _read(path, overrides)

    from fairq_utils.study.study import Study

    return Study(params)


@app.command()
@in_one_sentence()
@needs("`fairq run`", "study")
def run(
    params: ParamsFile = DEFAULT,
    phase: Annotated[Phase, typer.Option(help="Which phase to run.")] = Phase.all,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A Dask scheduler that runs already, such as tcp://host:8786, or its scheduler "
            "file; in place of the params file's section cluster.",
        ),
    ] = None,
    overrides: Overrides = None,
    work: Work = None,
) -> None:
    """Compute what is missing in the ledger; the analysis writes its tables."""
    settings = _read(params, overrides)
    if cluster is not None:
        settings = settings.model_copy(update={"cluster": settings.cluster.elsewhere(cluster)})

    from fairq_utils.study import execution
    from fairq_utils.study.planning import PHASES
    from fairq_utils.study.study import Study

    study = Study(settings)
    if phase is not Phase.analysis:
        execution.execute(study, PHASES if phase is Phase.all else (phase.value,))
    if phase in (Phase.all, Phase.analysis):
        _analyse(study)


def _analyse(study: Study) -> None:
    from fairq_utils.report import effects
    from fairq_utils.report.results import write_results
    from fairq_utils.study import statistics

    runs = statistics.records(study)
    if not runs:
        raise ValueError(
            f"{study.params.execution.ledger}: the ledger holds no run of this study; "
            "run the other phases first"
        )
    frame = effects.by_configuration(runs, study.params)
    for path in write_results(frame, effects.sizes(runs), study):
        typer.echo(str(path))


@app.command()
@in_one_sentence("nothing was changed")
@needs("`fairq results`", "study")
def results(
    ledgers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LEDGER", help="What execution.ledger names; build/ledger if none is named."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there, not to the terminal.")
    ] = None,
) -> None:
    """Print every run of any number of studies as one CSV table, its parameters as columns.

    A row is a run and the attributes that its gaps are taken over, which may be crossed. A ledger
    that is named twice is listed once.
    """
    from fairq_utils.data.whole_files import written_whole
    from fairq_utils.report.results import by_run
    from fairq_utils.study.ledger import Ledger
    from fairq_utils.study.params.study import Execution

    named = {each.root: each for each in map(Ledger, ledgers or [Execution().ledger])}
    text = by_run(named.values()).to_csv(index=False)
    if out is None:
        typer.echo(text, nl=False)
        return
    with written_whole(out, way_out="free some space or name another --out") as place:
        place.write_text(text, encoding="utf-8")
    typer.echo(str(out))


@app.command()
@in_one_sentence()
@needs("`fairq record`", "book")
def record(params: ParamsFile = DEFAULT, overrides: Overrides = None, work: Work = None) -> None:
    """Keep a study's tables in book/results/, where chapters read what takes hours."""
    study = _opened(params, overrides)

    from fairq_utils.report import record as recorded

    below = work_folder()
    folder = recorded.FOLDER if below is None else below / "book" / "results"
    for path in recorded.record(study, folder):
        typer.echo(str(path))


@app.command()
@in_one_sentence()
@needs("`fairq book`", "book")
def book(params: ParamsFile = DEFAULT, overrides: Overrides = None, work: Work = None) -> None:
    """Execute the chapters at a params file and build the book."""
    _read(params, overrides)

    from fairq_utils.report.book import build_book
    from fairq_utils.study.params.file import parse_overrides

    given = parse_overrides(overrides or [])
    index = build_book(
        params,
        progress=lambda line: typer.echo(line),
        parameters={"overrides": given} if given else {},
    )
    typer.echo(f"The book: {index}")
    typer.echo(f"Open it:  xdg-open {index}   (or {index.as_uri()} in a browser)")


@app.command()
@in_one_sentence()
@needs("`fairq notebooks`", "book")
def notebooks(
    chapters: Annotated[
        list[Path] | None, typer.Argument(help="Chapters' scripts; all if none is named.")
    ] = None,
    work: Work = None,
) -> None:
    """Rewrite the .ipynb beside each chapter's script, executed at params/smoke.yaml."""
    from fairq_utils.report.notebooks import write_pairs

    write_pairs(lambda line: typer.echo(line), chapters or None)


@app.command()
@in_one_sentence()
@needs("`fairq plan`", "study")
def plan(
    params: ParamsFile = DEFAULT,
    overrides: Overrides = None,
    each: Annotated[
        bool, typer.Option("--runs", help="Every run with its key, and whether it is there.")
    ] = False,
    most: Annotated[int, typer.Option(min=0, help="Runs that --runs lists at most.")] = 1000,
    work: Work = None,
) -> None:
    """Print the grid with its runs, those in the ledger, and about how long the others take."""
    study = _opened(params, overrides)

    from fairq_utils.study import dials, overview, planning
    from fairq_utils.study.feasibility import check, check_decoded

    check(study)
    check_decoded(study)
    for sentence in study.short_of_room():
        typer.echo(sentence)
    if not each:
        typer.echo(overview.text(overview.overview(study)))
        typer.echo(
            "Times are those of two cores, or go by this study's own runs once some are done."
        )
        return
    runs = planning.with_dials(study)
    turned = {
        world.params: [f"{dials.LABELS[world.dial]} {world.level:g}" if world.dial else "even"]
        for world in dials.worlds(study.params)
    }
    done = {entry for entry in runs if study.ledger.contains(entry.key)}
    for entry in islice(runs, most):
        what = [
            *turned.get(runs[entry].params, []),
            entry.architecture,
            f"seed {entry.training['seed']}",
            str(entry),
        ]
        state = "done   " if entry in done else "missing"
        typer.echo(f"{state}  {entry.key}  {' '.join(what)}")
    if len(runs) > most:
        typer.echo(f"and {len(runs) - most} more; --most {len(runs)} lists all")
    typer.echo(f"{len(done)} of {len(runs)} runs are in {study.params.execution.ledger}")


@app.command()
@in_one_sentence()
@needs("`fairq check --params`", "study")
def check(
    params: Annotated[Path | None, typer.Option(help="Also check this params file.")] = None,
    work: Work = None,
) -> None:
    """Verify the set-up; ends in "ready" or in what is missing."""
    from fairq_utils.study.environment import inspect

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
@in_one_sentence()
@needs("`fairq bench`", "study,engines")
def bench(
    name: Annotated[
        str | None,
        typer.Argument(help=f"What to measure: {', '.join(BENCHMARKS)}. All with a title if none."),
    ] = None,
    params: ParamsFile = DEFAULT,
    overrides: Overrides = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images that `data` measures; rendered faces if none."),
    ] = None,
    work: Work = None,
) -> None:
    """Measure one thing on this machine; the figures are kept under build/bench.

    The params file names the study whose models are measured, where a benchmark needs a study.
    """
    from fairq_utils.bench.registry import run as run_benchmark

    if name is None:
        for one in BENCHMARKS.values():
            of = f" (of a {one.needs})" if one.needs else ""
            typer.echo(f"{one.name:<12} {one.title}{of}")
        return
    studied = BENCHMARKS.find(name, "bench").needs == "study"
    study = _opened(params, overrides) if studied else None
    folder = (work_folder() or Path()) / "build" / "bench"
    _, path = run_benchmark(name, folder, study=study, root=root)
    typer.echo(path.with_suffix(".txt").read_text(), nl=False)
    typer.echo(str(path))


class Kind(StrEnum):
    """Registries of what can be named in a params file or a call."""

    methods = "methods"
    samplers = "samplers"
    models = "models"
    metrics = "metrics"
    engines = "engines"
    data = "data"


@app.command("list")
@in_one_sentence()
@needs("`fairq list`", "study")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", help="A module with entries of its own, or its .py file."),
    ] = None,
) -> None:
    """List what can be named: each name with its label, its source, and what it needs."""
    from fairq_utils.registry import load_plugins
    from fairq_utils.report import names

    load_plugins(plugins or [])
    typer.echo(names.text(kind.value))


@app.command()
@in_one_sentence()
@needs("`fairq export`", "study,engines")
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A run's key as `fairq plan` lists it, its first digits, or an architecture."
        ),
    ],
    engine: Annotated[str, typer.Option(help=f"What will run it: {', '.join(ENGINES)}.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    params: ParamsFile = DEFAULT,
    overrides: Overrides = None,
    batch: Annotated[
        int | None, typer.Option(help="Images at a time, of inductor's file (8).")
    ] = None,
    work: Work = None,
) -> None:
    """Write a model of the study as a folder to deploy: its file, a card, a README."""
    study = _opened(params, overrides)

    from fairq_utils.deploy.engines import KernelsWarning
    from fairq_utils.deploy.export import export_run

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", KernelsWarning)
        typer.echo(str(export_run(study, model, engine, out, batch=batch)))
    for one in heard:
        if issubclass(one.category, KernelsWarning):
            typer.echo(str(one.message), err=True)


@app.command()
@in_one_sentence()
@needs("`fairq predict`", "engines")
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `fairq export` wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Images of faces.")],
    threads: Annotated[
        int, typer.Option(min=1, max=os.cpu_count() or 1, help="Of the engine.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Run a file that is machine code (inductor's) with your rights: you know who "
            "wrote it. A checksum in the same folder does not say.",
        ),
    ] = False,
) -> None:
    """Let an exported model predict for image files."""
    from fairq_utils.deploy import predict as predicting

    deployed = predicting.open_deployable(folder, threads, trust=trust)
    unread = 0
    for found in predicting.classify(deployed, images):
        if isinstance(found, predicting.NoImage):
            unread += 1
            typer.echo(printable(str(found)), err=True)
        else:
            typer.echo(found.as_json() if as_json else found.line())
    if unread:
        raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    sys.exit(app())


if __name__ == "__main__":
    app()
