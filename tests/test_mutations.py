"""The list of mutations fits the code: what it changes is there, once, and tests exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutants import ROOT, Mutation, mutated, mutations

LIST = mutations()


def test_the_list_is_long_and_its_names_are_different() -> None:
    assert len(LIST) >= 20
    assert len({mutation.name for mutation in LIST}) == len(LIST)


@pytest.mark.parametrize("mutation", LIST, ids=lambda mutation: mutation.name)
def test_a_mutation_is_a_change_of_code(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    before, after = ast.parse(text), ast.parse(mutated(mutation, text))
    assert ast.dump(before) != ast.dump(after)
    assert mutation.tests
    for name in mutation.tests:
        assert (Path(__file__).parent / name).is_file()
    for number in mutation.chapters:
        assert len(list(ROOT.glob(f"notebooks/{number}_*.ipynb"))) == 1


def test_a_mutation_that_no_longer_fits_is_named() -> None:
    stale = Mutation("stale", "x.py", "a", "b", ("test_x.py",), ())
    with pytest.raises(ValueError, match=r"stale: 'a' occurs 2 times in x\.py"):
        mutated(stale, "a a")
