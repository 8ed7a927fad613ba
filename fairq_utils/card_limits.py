"""What the card of a model warns of: that depends on whose pictures it was trained on."""

from __future__ import annotations

from fairq_utils.data.photographs import TITLES
from fairq_utils.data.questions import YOUNG_BELOW
from fairq_utils.data.sources import source
from fairq_utils.data_params import Data, Photographs
from fairq_utils.params import Params
from fairq_utils.people import answers, values

RENDERED = (
    "The people in its training, calibration and test pictures are rendered. Gender, age and "
    "ancestry are settings of a human model, not identities.",
    "Mechanisms carry over from them to photographs; magnitudes need not.",
)
# Who says what is in a photograph, as the collections' papers and pages tell it.
LABELLED = {
    "celeba": "a labelling company looked at each picture and said which of forty attributes it "
    "shows",
    "utkface": "a network estimated age, gender and race, and a person checked them",
    "fairface": "three crowd workers guessed age, gender and race, and a network trained on their "
    "answers revised them",
}
RESEARCH = "take a model trained on them to be for that alone, and ship it in no product"
SHIPPED = {
    "celeba": RESEARCH,
    "utkface": RESEARCH,
    "fairface": "whoever passes on a model trained on them names them and that licence",
}
EVERYBODY = (
    "No figure here clears a system for use on people, and none may be held against a group."
)
PRETRAINED = (
    "Its training began from weights learnt on ImageNet, whose pictures are for non-commercial "
    "research and education only."
)
PAGES = {
    "rendered": "notebooks/01_population: What rendered people can and cannot tell",
    "photographs": "notebooks/09_photographs: Your own photographs",
}


def limits(params: Params) -> list[str]:
    """Sentences, the most particular first; the last names the page of the book.

    Parameters
    ----------
    params : the study
    """
    data = params.data
    own = RENDERED if isinstance(data, Data) else _of_photographs(params, data)
    page = PAGES["rendered" if isinstance(data, Data) else "photographs"]
    begun = (PRETRAINED,) * params.training.pretrained
    return [*own, *begun, EVERYBODY, f"See the book, {page}."]


def licence(params: Params, code: str) -> str:
    """Under which terms a model may be used.

    Parameters
    ----------
    params : the study
    code : the licence of fairq-utils, which a model of rendered people is under
    """
    if isinstance(params.data, Data):
        return code
    return (
        f"that of its training pictures ({TITLES[params.data.name]}), which are "
        f"{_terms(params.data.name)}"
    )


def _of_photographs(params: Params, data: Photographs) -> tuple[str, ...]:
    title, found = TITLES[data.name], source(data.name)
    terms = (
        f"The photographs in its training, calibration and test splits are those of {title}, "
        f"{_terms(data.name)}: {SHIPPED[data.name]}. Cite {found.citation}."
    )
    labels = (
        f"Labels and groups are how people looked to others, not identities: {LABELLED[data.name]}"
        ". What is measured here is agreement with that, by groups of that."
    )
    words = {*answers(params), *(value for names in values(params).values() for value in names)}
    young = f"Young is below {YOUNG_BELOW} years, old is everybody else."
    framed = (
        f"It knows faces framed as {title} frames them; `fairq predict` takes the middle of a "
        "picture and looks for no face."
    )
    # CelebA's annotators said who is young without naming an age.
    aged = (young,) * (data.name != "celeba" and "young" in words)
    return (terms, labels, *aged, framed)


def _terms(name: str) -> str:
    """A collection's licence, to follow ``are``."""
    found = source(name).licence
    return found if found.startswith("for ") else f"under {found}"
