"""``fairq data``: fetch a collection of photographs, vouch for it, say who is in it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.whole_files import written_whole
from fairq_utils.errors import BadInput, in_one_sentence, needs, printable

app = typer.Typer(
    no_args_is_help=True, help="Photographs: fetch a collection, vouch for it, describe it."
)

EVERY = 5.0  # seconds between two lines of progress
SHOWN = 20  # findings that are printed
ANY = sys.maxsize  # findings that a reader may make: how many are too many is not for it to say


Name = Annotated[str, typer.Argument(help=f"The collection: {', '.join(COLLECTIONS)}.")]
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="The folder that holds it.")]
Target = Annotated[
    str | None, typer.Option(help="The attribute that is predicted; the collection's usual one.")
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Sensitive attributes, as gender,age; another one as hat=Wearing_Hat.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="An option of the collection's own, as margin=1.25."
    ),
]


@app.command()
@in_one_sentence("what came is kept")
@needs("`fairq data get`", "study")
def get(
    name: Name,
    root: Root,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read the terms and keep to them.")
    ] = False,
    options: Options = None,
) -> None:
    """State a collection's terms, and fetch it once they are accepted.

    What was begun is gone on with; files are checked before they get their names.
    """
    from fairq_utils.data.download import get as fetch_all

    entry = COLLECTIONS.find(name, "collection")
    wanted = entry.source(**entry.checked(_own(options)))
    if not wanted.files:
        raise BadInput(f"{name}: this is {entry.title}, of which there is nothing to fetch")
    typer.echo(wanted.terms())
    if not accept_licence:
        raise BadInput(
            "nothing was fetched: read the terms, and give --accept-licence if you keep to them"
        )
    lines: dict[str, Callable[[int, int], None]] = {}

    def tick(file: str, done: int, total: int) -> None:
        line = lines.setdefault(file, _ticker(file, "MB", 1e6))
        line(done, total)

    for path in fetch_all(wanted, root, tick):
        typer.echo(str(path))
    typer.echo(f"Look at it:  fairq data check {name} --root {root}")


@app.command()
@in_one_sentence("nothing was changed")
@needs("`fairq data check`", "study")
def check(
    name: Name,
    root: Root,
    target: Target = None,
    groups: Groups = None,
    options: Options = None,
    max_bad: Annotated[
        int, typer.Option(min=0, help="Images that may be unusable, or missing from a count.")
    ] = 0,
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Decode every image.")
    ] = True,
    part: Annotated[
        bool, typer.Option("--part", help="The folder holds a part: compare no published counts.")
    ] = False,
    findings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all findings to this CSV file.")
    ] = None,
) -> None:
    """Vouch for a folder: counts against the published ones, damage, duplicates, sizes.

    Ends with 0 if all is well and with 1 if not.
    """
    from fairq_utils.data.vouch import vouch

    _refuse_missing_folder("--findings", findings)
    listing = _listing(name, root, target, groups, options)
    published = None if part else COLLECTIONS[name].published
    report = vouch(
        listing,
        pixels=pixels,
        max_bad=max_bad,
        published=published,
        progress=_ticker(name, "images"),
    )
    typer.echo(
        report.table.assign(ok=report.table.ok.map({True: "", False: "NO"})).to_string(index=False)
    )
    for finding in report.findings[:SHOWN]:
        typer.echo(printable(f"{finding.place}: {finding.problem}"))
    if len(report.findings) > SHOWN:
        more = len(report.findings) - SHOWN
        typer.echo(f"and {more} more; --findings FILE writes all of them")
    if findings is not None:
        with written_whole(findings, way_out="name another file in --findings") as place:
            report.findings_table().to_csv(place, index=False)
        typer.echo(str(findings))
    if published is not None:
        typer.echo(f"Published counts: {published.source}")
    typer.echo("sound" if report.ok else "not sound: see NO above")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
@in_one_sentence("nothing was changed")
@needs("`fairq data describe`", "study")
def describe(
    name: Name,
    root: Root,
    target: Target = None,
    groups: Groups = None,
    options: Options = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all groups, crossed in every split, as CSV."),
    ] = None,
) -> None:
    """Describe who is in a collection: groups, base rates, a perfect classifier's parity gap."""
    from fairq_utils.metrics.prevalence import CROSSED, WHOLE, base_rates, decides

    _refuse_missing_folder("--table", table)
    listing = _listing(name, root, target, groups, options)
    asked = listing.meta["target"]
    same = [name for name in listing.groups if decides(listing.groups[name], listing.target)]
    if len(same) == len(listing.groups.columns):
        raise BadInput(
            f"groups: {same[0]} is what the target, {asked}, is made of; name another attribute"
        )
    others = listing.groups.drop(columns=same)
    found = base_rates(listing.target, others, listing.split)
    crossed = found.cells.attribute.str.count(CROSSED)
    shown = found.cells[(crossed == 0) | ((crossed == 1) & (found.cells.split == WHOLE))]
    typer.echo(f"{name}: {asked}, base rates in percent")
    for ours in same:
        typer.echo(f"without {ours}, which the target is made of")
    typer.echo()
    typer.echo(_printed(shown, "base_rate"))
    typer.echo("\nDemographic parity difference of a perfect classifier, in points\n")
    typer.echo(_printed(found.gaps, "gap"))
    lost = sum(finding.counts for finding in listing.findings)
    if lost:
        typer.echo(f"\n{lost} images or labels are left out of this; `fairq data check` lists them")
    if table is not None:
        with written_whole(table, way_out="name another file in --table") as place:
            found.cells.to_csv(place, index=False)
        typer.echo(str(table))


def _refuse_missing_folder(option: str, path: Path | None) -> None:
    """Refuse a file to write whose folder is not there, before an hour goes into its rows."""
    if path is not None and not path.resolve().parent.is_dir():
        raise BadInput(f"{option} {path}: its folder is not there; make it first, or name another")


def _printed(rows: Any, fraction: str) -> str:
    """A table whose column ``fraction`` is in percent, empty where there is none."""
    percent = ["" if value != value else f"{value * 100:.2f}" for value in rows[fraction]]
    return str(rows.assign(**{fraction: percent}).to_string(index=False))


def _listing(
    name: str,
    root: Path,
    target: str | None,
    groups: str | None,
    options: list[str] | None,
) -> Any:
    from fairq_utils.data.photographs.reading import listing

    own = _own(options)
    try:
        return listing(
            name,
            root,
            target=target,
            groups=None if groups is None else _groups(name, groups),
            max_bad=ANY,
            **own,
        )
    except BadInput as error:
        key = re.split("[.:]", str(error))[0]
        option = {"target": "--", "groups": "--", **dict.fromkeys(own, "--set ")}.get(key, "")
        raise BadInput(f"{option}{error}") from None


def _own(options: list[str] | None) -> dict[str, Any]:
    """Options of a collection's own, of ``KEY=VALUE``."""
    from fairq_utils.study.params.file import parse_overrides

    return parse_overrides(options or ())


def _groups(name: str, text: str) -> dict[str, str]:
    """Our name -> the collection's, of ``gender,hat=Wearing_Hat``."""
    usual = COLLECTIONS.find(name, "collection").groups
    pairs = [part.strip().partition("=") for part in text.split(",")]
    return {ours: theirs or usual.get(ours, ours) for ours, _, theirs in pairs}


def _ticker(what: str, unit: str, scale: float = 1.0) -> Callable[[int, int], None]:
    """A line on stderr every few seconds: how much is done, how long still."""
    began = said = time.perf_counter()
    first: int | None = None  # what was there before: it took no time

    def tick(done: int, total: int) -> None:
        nonlocal said, first
        first = done if first is None else first
        now = time.perf_counter()
        if os.environ.get("FAIRQ_QUIET") == "1" or (now - said < EVERY and done != total):
            return
        said = now
        whole = f" of {total / scale:.0f}" if total else ""
        left = (total - done) * (now - began) / max(done - first, 1)
        rest = f", {left:.0f} s left" if total else ""
        typer.echo(f"  {what} · {done / scale:.0f}{whole} {unit}{rest}", err=True)

    return tick
