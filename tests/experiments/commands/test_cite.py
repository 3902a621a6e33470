"""Every choice of a configuration yields the papers behind it, as BibTeX that parses."""

import re
from importlib.resources import files

import pytest

from loopgrad.experiments.commands.cite import references

CONF = files("loopgrad.experiments.conf")

TRM, HRM = "2510.04871", "2506.21734"
PAPERS = {  # what the published papers are, from arXiv, not from the docstrings
    "estimator=bptt": ["werbos1990"],
    "estimator=checkpointed": ["1604.06174"],
    "estimator=reversible": ["1707.04585", "1502.03492"],
    "estimator=truncated": ["williams1990"],
    "estimator=last_cycle": [TRM],
    "estimator=one_step": [HRM],
    "estimator=implicit": ["1909.01377", "2105.15183"],
    "estimator=implicit_ungated": ["1909.01377"],
    "estimator=phantom": ["2111.05177"],
    "estimator=torchdeq": ["2310.18605"],
    "estimator=forward_state": ["2202.08587"],
    "estimator=forward_weights": ["2202.08587"],
    "estimator=zeroth_order": ["2305.17333"],
    "estimator=random_truncation": ["1705.08209"],
    "model=trm": [TRM],
    "model=trm_attention": [TRM],
    "model=trm_published": [TRM],
    "model=hrm": [HRM],
    "model=hrm_published": [HRM],
    "model=feed_forward": [TRM],
    "model=feed_forward_deep": [TRM],
    "trainer=published": [TRM],
}


def entries(text: str) -> dict[str, dict[str, str]]:
    """Parse BibTeX by matching braces."""
    found = {}
    while text := text.strip():
        kind, key = re.match(r"@(\w+)\{([\w.-]+),", text).groups()
        depth, end = 0, 0
        for position, letter in enumerate(text):
            depth += (letter == "{") - (letter == "}")
            if letter == "}" and depth == 0:
                end = position
                break
        assert end and key not in found, text
        body, text = text[text.index(",") + 1 : end], text[end + 1 :]
        found[key] = dict(re.findall(r"^\s*(\w+) = \{(.*)\},?$", body, re.MULTILINE)) | {"kind": kind}
        assert len(found[key]) == len(body.strip().splitlines()) + 1, body
    return found


@pytest.mark.parametrize("choice", PAPERS)
def test_a_choice_yields_its_paper(loopgrad, choice):
    group = choice.split("=")[0]
    others = {"estimator": "bptt", "model": "feed_forward", "trainer": "small", "task": "sorting"}
    rest = [f"{name}={value}" for name, value in others.items() if name != group]
    result = loopgrad("cite", *rest, choice)
    found = entries(result.out)
    assert result.code == 0 and found["loopgrad"]["kind"] == "software"
    for paper in PAPERS[choice]:
        assert any(paper in key or paper == entry.get("eprint") for key, entry in found.items())
    assert all({"title", "year", "author"} <= entry.keys() for entry in found.values())


def test_no_choice_of_estimator_or_model_is_left_out_above():
    names = {
        f"{group}={path.name.removesuffix('.yaml')}"
        for group in ("estimator", "model")
        for path in CONF.joinpath(group).iterdir()
    }
    assert names <= PAPERS.keys()


@pytest.mark.parametrize(
    ("coupling", "paper"), [("damped", "2509.12917"), ("leapfrog", "1709.03698"), ("momentum", "2102.07870")]
)
def test_a_coupling_yields_its_paper(loopgrad, coupling, paper):
    found = entries(loopgrad("cite", f"model.coupling={coupling}", "estimator=reversible").out)
    assert any(paper == entry.get("eprint") for entry in found.values())


def test_each_work_comes_once_with_its_longest_title(loopgrad):
    found = entries(loopgrad("cite", "estimator=[one_step,last_cycle]", "model=hrm", "trainer=published").out)
    prints = [entry["eprint"] for entry in found.values() if "eprint" in entry]
    assert len(prints) == len(set(prints)) and {TRM, HRM} <= set(prints)
    title = next(entry["title"] for entry in found.values() if entry.get("eprint") == TRM)
    assert title.lower() == "{less is more: recursive reasoning with tiny networks}"


def test_references_are_read_from_a_docstring():
    (first, second, third) = references(
        'What it does.\n\nReference: A. Author, B. C. Writer and D. Else, "A title: long, one", Journal 3(1),\n'
        '    1999; E. Fellow et al., "Other", 2020, arXiv 2001.00001, section 3; F. Short, 2021, arXiv 2101.12345.\n\n'
        'Raises:\n    ValueError: "not", 1990.\n'
    )
    assert (first.authors, first.title, first.venue, first.year) == (
        "A. Author, B. C. Writer and D. Else", "A title: long, one", "Journal 3(1)", "1999"
    )  # fmt: skip
    assert (second.arxiv, third.arxiv, third.title) == ("2001.00001", "2101.12345", None)
    assert "author = {A. Author and B. C. Writer and D. Else}" in first.bibtex()
    assert "author = {E. Fellow and others}" in second.bibtex() and "@misc{fellow2020other," in second.bibtex()
    assert references("No paragraph of that name, 1999.") == []
