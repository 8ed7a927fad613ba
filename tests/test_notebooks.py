"""The chapters, their committed notebooks, and the book they become."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import papermill
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

from fairq_utils import fingerprint
from fairq_utils.cli import app
from fairq_utils.errors import Fault
from fairq_utils.report import book, notebooks
from fairq_utils.report.book import BOOKS, build_book, outside_references
from fairq_utils.report.figures import Interactive

CHAPTERS = notebooks.chapters()
SCRIPT = """# %% [markdown]
# # A chapter

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
draws: int = 3

# %%
print(params_file, draws)
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def script(text: str = SCRIPT) -> Path:
        path = tmp_path / "01_trial.py"
        path.write_text(text, encoding="utf-8")
        return path

    return script


@pytest.mark.parametrize("script", CHAPTERS, ids=lambda path: path.stem)
def test_script_and_notebook_are_in_step(script: Path) -> None:
    assert notebooks.differences(script) == []


def test_every_notebook_has_its_script() -> None:
    executed = {path.stem for path in notebooks.NOTEBOOKS.glob("*.ipynb")}
    assert executed == {path.stem for path in CHAPTERS}


@pytest.mark.parametrize("script", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_at_smoke_by_default_and_hides_its_parameters(script: Path) -> None:
    notebook = notebooks.read_chapter(script)
    assert notebooks.parameters_of(notebook)["params_file"] == repr("../params/smoke.yaml")
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert "remove-cell" in tagged[0].metadata.tags


@pytest.mark.parametrize("script", CHAPTERS, ids=lambda path: path.stem)
def test_committed_notebook_says_nothing_of_time_and_machine(script: Path) -> None:
    pair = script.with_suffix(".ipynb")
    notebook = nbformat.read(pair, as_version=4)
    assert notebook.metadata == notebooks.METADATA
    text = pair.read_text(encoding="utf-8")
    assert str(notebooks.ROOT) not in text
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert all(output.get("name") != "stderr" for output in cell.get("outputs", []))
    assert notebooks.normalise(nbformat.reads(text, as_version=4)) == notebook


class _Pictures(HTMLParser):
    """Collects what screen readers say of each picture in an HTML output."""

    def __init__(self) -> None:
        super().__init__()
        self.label = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if values.get("role") == "figure":
            self.label = values.get("aria-label", "")
        if tag == "img":
            self.found.append(values.get("alt", ""))
        if "plotly-graph-div" in values.get("class", ""):
            self.found.append(self.label)
            self.label = ""


def texts_of_pictures(cell: nbformat.NotebookNode) -> list[str]:
    """What screen readers say of a cell's pictures, one text each."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if any(mime.startswith("image/") for mime in data):
            found.append(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
        reader = _Pictures()
        reader.feed(data.get("text/html", ""))
        found += reader.found
    return found


def says_what_is_shown(text: str) -> bool:
    """A sentence, and no number: a chapter is executed at any params file."""
    return len(text.split()) > 4 and not re.search(r"\d", text)


@pytest.mark.parametrize("script", CHAPTERS, ids=lambda path: path.stem)
def test_every_picture_has_a_text_for_screen_readers(script: Path) -> None:
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    texts = [(cell.source, text) for cell in notebook.cells for text in texts_of_pictures(cell)]
    wrong = [f"{text!r} after:\n{source}" for source, text in texts if not says_what_is_shown(text)]
    drawn = [cell for cell in notebook.cells if "_figure(" in cell.source]
    assert len(texts) >= len(drawn)
    assert not wrong, f'mystnb={{"image": {{"alt": ...}}}} on the cell line: {wrong}'


PLOTLY = '<div id="pareto" class="plotly-graph-div"></div>'


@pytest.mark.parametrize(
    ("data", "metadata", "good"),
    [
        ({"image/png": "AA"}, {}, False),
        ({"image/png": "AA"}, {"tags": ["wide"]}, False),
        ({"image/png": "AA"}, {"mystnb": {"image": {"alt": "A figure"}}}, False),
        ({"image/png": "AA"}, {"mystnb": {"image": {"alt": "Points of the gap at W8A8"}}}, False),
        ({"image/png": "AA"}, {"mystnb": {"image": {"alt": "Points of the gap by bits"}}}, True),
        ({"text/html": '<p><img src="a.png"></p>'}, {}, False),
        ({"text/html": '<img src="a.png" alt="Points of the gap by bits">'}, {}, True),
        ({"text/html": PLOTLY}, {}, False),
        ({"text/html": f'<div role="figure">{PLOTLY}</div>'}, {}, False),
        (Interactive(go.Figure(), "a", "Gap")._repr_mimebundle_(), {}, False),
        (Interactive(go.Figure(), "a", "Points of gap by size")._repr_mimebundle_(), {}, True),
    ],
)
def test_a_picture_without_a_text_is_found(
    data: dict[str, str], metadata: dict[str, object], good: bool
) -> None:
    output = nbformat.v4.new_output("display_data", data=data)
    cell = nbformat.v4.new_code_cell("figure", outputs=[output], metadata=metadata)
    [text] = texts_of_pictures(cell)
    assert says_what_is_shown(text) is good


def test_a_pair_out_of_step_is_found(write: Write) -> None:
    script = write()
    assert "is missing" in notebooks.differences(script)[0]
    nbformat.write(notebooks.read_chapter(script), script.with_suffix(".ipynb"))
    assert notebooks.differences(script) == []
    script.write_text(SCRIPT.replace("draws)", "draws + 1)"), encoding="utf-8")
    [line] = notebooks.differences(script)
    assert "cell 2: source differs" in line
    script.write_text(SCRIPT + "\n# %%\n1 + 1\n", encoding="utf-8")
    assert any(
        "4 cells in the script, 3 in the notebook" in d for d in notebooks.differences(script)
    )


def test_unknown_parameter_is_refused_before_anything_is_written(
    write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(notebooks.UnknownParameterError) as caught:
        notebooks.execute_notebooks(
            notebooks.SMOKE, out, parameters={"drows": 4}, scripts=[write()]
        )
    message = str(caught.value)
    assert "01_trial.py" in message
    assert "'drows' is not one of its parameters (draws, params_file)" in message
    assert "\n" not in message
    assert not out.exists()


def test_unreadable_params_file_ends_the_command_with_2(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["book", "--params", str(tmp_path / "missing.yaml")])
    assert answer.exit_code == 2
    assert "missing.yaml" in answer.stderr


def test_an_override_that_cannot_be_ends_the_command_with_2() -> None:
    smoke = ["book", "--params", str(notebooks.SMOKE)]
    answer = CliRunner().invoke(app, [*smoke, "--set", "quantization.iteration=5"])
    assert answer.exit_code == 2
    assert "quantization.iteration: unknown key; did you mean 'iterations'?" in answer.stderr


def test_papermill_alone_cannot_give_an_unknown_parameter(tmp_path: Path) -> None:
    """papermill itself only prints a notice; the chapter's first cell refuses."""
    path = tmp_path / "chapter.ipynb"
    nbformat.write(notebooks.read_chapter(CHAPTERS[0]), path)
    with pytest.raises(papermill.PapermillExecutionError, match="'seeds' is not one of its"):
        papermill.execute_notebook(
            path, None, parameters={"seeds": [1]}, cwd=notebooks.NOTEBOOKS, progress_bar=False
        )


def test_what_papermill_injects_is_checked_against_the_cells_before() -> None:
    before = ["", "params_file = 'a.yaml'\noverrides = {}"]
    notebooks.refuse_unknown_in([*before, "# Parameters\noverrides = {'a': 1}\n", "x = 1"])
    with pytest.raises(notebooks.UnknownParameterError, match="did you mean 'params_file'"):
        notebooks.refuse_unknown_in([*before, "# Parameters\nparam_file = 'b.yaml'\n"])


def test_executing_twice_writes_the_same_notebook(write: Write, tmp_path: Path) -> None:
    script = write()
    params = tmp_path / "other.yaml"
    texts, lines = [], []
    for name in ("a", "b"):
        [path] = notebooks.execute_notebooks(
            params, tmp_path / name, lines.append, parameters={"draws": 5}, scripts=[script]
        )
        texts.append(path.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    notebook = nbformat.reads(texts[0], as_version=4)
    assert notebook.cells[-1].outputs[0].text == "other.yaml 5\n"
    injected = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert injected[0].metadata.tags == ["injected-parameters", "remove-cell"]
    assert lines[0].startswith("chapter 1/1 01_trial: executing, 0 s so far")
    assert "done in" in lines[1]


def test_a_failing_cell_is_named(write: Write, tmp_path: Path) -> None:
    script = write(SCRIPT + "\n# %%\nraise ValueError('no such group')\n")
    with pytest.raises(notebooks.ExecutionError, match=r"01_trial\.py: cell \d+: ValueError: no"):
        notebooks.execute_notebooks("x.yaml", tmp_path / "out", lambda _: None, scripts=[script])


def test_normalise_takes_out_what_is_random() -> None:
    def table(number: str) -> nbformat.NotebookNode:
        html = f'<style>#T_{number} td {{}}</style><table id="T_{number}">'
        address = f"<object at 0x7f{number}00>"
        outputs = [
            nbformat.v4.new_output("stream", name="stdout", text="one "),
            nbformat.v4.new_output("stream", name="stdout", text=f"two {address}\n"),
            nbformat.v4.new_output("display_data", data={"text/html": html}),
        ]
        cell = nbformat.v4.new_code_cell("table", outputs=outputs)
        cell.metadata["execution"] = {"iopub.execute_input": number}
        cell.metadata["papermill"] = {"duration": number}
        return notebooks.normalise(nbformat.v4.new_notebook(cells=[cell]))

    assert table("ab123") == table("cd456")
    assert table("ab123").cells[0].outputs[0].text == "one two <object>\n"


def test_an_interactive_figure_is_the_same_every_time_and_stays_here() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))
    html = Interactive(figure, "gap-by-size", 'Gap by "size"').html()
    assert html == Interactive(figure, "gap-by-size", 'Gap by "size"').html()
    assert html.startswith('<div role="figure" aria-label="Gap by &quot;size&quot;">')
    assert 'id="gap-by-size"' in html
    assert '"modeBarButtonsToRemove": ["sendChartToCloud"]' in html
    assert "http" not in html
    assert "<script src" not in html
    with pytest.raises(ValueError, match="'Gap by size'"):
        Interactive(figure, "Gap by size", "Points of gap by size")


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<script async src="//cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img alt="" src="http://pictures.example/a.png">',
        '<img srcset="a.png 1x, https://pictures.example/a.png 2x">',
        '<div style="background: url(https://pictures.example/a.png)"></div>',
        "<style>@import 'https://fonts.example/a.css';</style>",
        '<script>const THEBE = "https://cdn.example/thebe/index.js"</script>',
        '<iframe src="https://www.example/"/>',
    ],
)
def test_outside_references_are_found(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert len(outside_references(tmp_path)) == 1


def test_links_and_own_files_are_no_outside_references(tmp_path: Path) -> None:
    page = (
        '<a href="https://arxiv.org/abs/1911.05248">a paper</a><script src="_static/a.js"></script>'
        '<link rel="canonical" href="https://book.example/"><img src="data:image/png;base64,AA">'
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "style.css").write_text("a { background: url(a.png) }", encoding="utf-8")
    assert outside_references(tmp_path) == []
    (tmp_path / "style.css").write_text("@import url('https://fonts.example/a')", encoding="utf-8")
    assert outside_references(tmp_path) == ["style.css: https://fonts.example/a"]


@pytest.mark.parametrize(
    "html", sorted((notebooks.ROOT / BOOKS).glob("*/html")), ids=lambda path: path.parent.name
)
def test_a_built_book_loads_nothing_from_outside(html: Path) -> None:
    assert outside_references(html) == []


def test_table_of_contents_reads_the_chapters_in_their_order() -> None:
    contents = (notebooks.ROOT / "_toc.yml").read_text(encoding="utf-8")
    found = re.findall(r"file: notebooks/(\w+)", contents)
    assert found == [script.stem for script in CHAPTERS]


def test_seconds_of_the_last_execution_make_the_estimate(write: Write, tmp_path: Path) -> None:
    record = tmp_path / "out_seconds.json"
    record.write_text(json.dumps({"01_trial": 7.0}), encoding="utf-8")
    lines: list[str] = []
    notebooks.execute_notebooks("x.yaml", tmp_path / "out", lines.append, scripts=[write()])
    assert lines[0].endswith("about 7 s left")
    assert json.loads(record.read_text(encoding="utf-8"))["01_trial"] < 7.0


def test_chapters_run_in_the_interpreter_that_executes_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    script = write(SCRIPT.replace("draws)", "draws)\nimport sys\nprint(sys.executable)"))
    [path] = notebooks.execute_notebooks("x.yaml", tmp_path / "out", print, scripts=[script])
    said = nbformat.read(path, as_version=4).cells[-1].outputs[0].text.splitlines()
    found = said[-1].replace("<environment>", sys.prefix)
    assert os.path.abspath(found) == os.path.abspath(sys.executable)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chapters that are executed, by a stand-in that starts no kernel."""
    names: list[str] = []

    def execute(script: Path, notebook: nbformat.NotebookNode, given: object) -> object:
        names.append(script.stem)
        return notebook

    monkeypatch.setattr(notebooks, "_execute", execute)
    monkeypatch.setattr(notebooks, "code_version", lambda *entries: "as it is")
    return names


def test_a_chapter_is_executed_again_where_it_could_come_out_otherwise(
    tmp_path: Path, executed: list[str]
) -> None:
    scripts = [tmp_path / f"0{i}_trial.py" for i in (1, 2)]
    for script in scripts:
        script.write_text(SCRIPT)
    state = ["runs"]

    def once(expected: list[str], **options: object) -> None:
        executed.clear()
        written = notebooks.execute_notebooks(
            "x.yaml", tmp_path / "out", print, scripts=scripts, state=lambda: state, **options
        )
        assert [path.stem for path in written] == [script.stem for script in scripts]
        assert executed == expected

    both = ["01_trial", "02_trial"]
    once(both)
    once([])
    scripts[1].write_text(SCRIPT + "\n# %%\n1\n")
    once(["02_trial"])
    once([], parameters={})
    once(both, parameters={"draws": 4})
    once(both)
    state.append("another run")
    once(both)
    (tmp_path / "out" / "01_trial.ipynb").unlink()
    once(["01_trial"])
    once([])


def test_changed_code_executes_the_chapters_that_import_it(
    tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [tmp_path / f"0{i}_trial.py" for i in (1, 2)]
    for script, module in zip(scripts, ("tables", "figures"), strict=True):
        script.write_text(SCRIPT + f"\n# %%\nfrom fairq_utils.report import {module}\n")
    versions = {"tables": "1", "figures": "1"}
    monkeypatch.setattr(notebooks, "digest_of", lambda *places: str(versions))

    def version(*entries: str) -> list[str]:
        return [of for name, of in versions.items() if f"fairq_utils.report.{name}" in entries]

    monkeypatch.setattr(notebooks, "code_version", version)
    for change, expected in (({}, 2), ({}, 0), ({"tables": "2"}, 1), ({"figures": "2"}, 1)):
        versions |= change
        executed.clear()
        notebooks.execute_notebooks(
            "x.yaml", tmp_path / "out", print, scripts=scripts, state=lambda: None
        )
        assert len(executed) == expected


def test_a_chapter_that_fails_leaves_the_others_to_be_kept(
    tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "01_trial.py"
    script.write_text(SCRIPT)
    execute = {"scripts": [script], "state": lambda: None}
    [path] = notebooks.execute_notebooks("x.yaml", tmp_path / "out", print, **execute)
    before = path.read_text()
    script.write_text(SCRIPT + "\n# %%\n1\n")

    def fail(*asked: object) -> None:
        raise notebooks.ExecutionError("01_trial.py: cell 3")

    monkeypatch.setattr(notebooks, "_execute", fail)
    for _ in range(2):
        with pytest.raises(notebooks.ExecutionError):
            notebooks.execute_notebooks("x.yaml", tmp_path / "out", print, **execute)
    assert path.read_text() == before


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch, executed: list[str]) -> Iterator[list[str]]:
    """One entry for every rendering, by a stand-in of Jupyter Book."""
    times: list[str] = []

    def render(source: Path, work: Path, log: Path) -> Path:
        times.append("rendered")
        html = work / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").write_text("<p>a book</p>")
        return html

    monkeypatch.setattr(book, "_render", render)
    yield times


def test_a_second_book_computes_nothing(
    tmp_path: Path, executed: list[str], rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tmp_path / "small.yaml"
    text = notebooks.SMOKE.read_text(encoding="utf-8")
    params.write_text(text, encoding="utf-8")
    lines: list[str] = []

    def build(**options: object) -> tuple[int, int]:
        executed.clear(), rendered.clear(), lines.clear()
        build_book(params, books=tmp_path / "books", progress=lines.append, **options)
        return len(executed), len(rendered)

    chapters = len(CHAPTERS)
    assert build() == (chapters, 1)
    assert build() == (0, 0)
    assert lines[-1] == "rendering the book: unchanged"
    params.write_text(text.replace("replicates:", "replicates: "), encoding="utf-8")
    assert build() == (0, 0)  # says the same
    assert build(parameters={"overrides": {"analysis.confidence": 0.8}})[0] == chapters
    assert build()[0] == chapters
    runs = tmp_path / "build" / "smoke" / "ledger" / "runs"
    runs.mkdir(parents=True)
    (runs / "a.parquet").write_bytes(b"a run")
    assert build() == (chapters, 0)  # and came out as before
    (tmp_path / "books" / "small" / "html" / "index.html").unlink()
    assert build() == (0, 1)
    plugin = tmp_path / "elsewhere" / "plugin_of_a_book.py"  # named as a module, not as a file
    plugin.parent.mkdir()
    monkeypatch.syspath_prepend(str(plugin.parent))
    plugin.write_text("LIMIT = 1\n")
    params.write_text(f"{text}plugins: [plugin_of_a_book]\n", encoding="utf-8")
    assert build()[0] == chapters
    assert build() == (0, 0)
    plugin.write_text("LIMIT = 2\n")
    for kept in (fingerprint._version, fingerprint._tree):  # another process keeps nothing
        kept.cache_clear()
    assert build()[0] == chapters


def test_a_book_is_written_below_the_work_folder(
    tmp_path: Path, rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRQ_WORK", str(tmp_path / "before"))
    work = tmp_path / "work"
    answer = CliRunner().invoke(
        app, ["book", "--params", str(notebooks.SMOKE), "--work", str(work)]
    )
    assert answer.exit_code == 0, answer.output
    assert (work / "build" / "book" / "smoke" / "html" / "index.html").exists()
    assert not (tmp_path / "before").exists()
    answer = CliRunner().invoke(app, ["notebooks", str(CHAPTERS[0]), "--work", str(work)])
    assert answer.exit_code == 0, answer.output
    assert (work / "notebooks" / f"{CHAPTERS[0].stem}.ipynb").exists()


def test_a_place_that_cannot_be_written_is_one_sentence_and_no_chapter_runs(
    tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *asked: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(Fault, match=r"notebooks: cannot be written; name a place with --work DIR"):
        notebooks.write_pairs(print, CHAPTERS[:1])
    with pytest.raises(Fault, match=r"could not be written \(Read-only file .*\); .* --work DIR"):
        build_book(notebooks.SMOKE, books=tmp_path / "books", progress=print)
    assert not executed
