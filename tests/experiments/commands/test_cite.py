"""Every choice of a configuration yields the papers behind it, as BibTeX that parses; references.bib is in order."""

import ast
import importlib
import inspect
import re
import unicodedata
from importlib.resources import files

import pytest
from repository import FOLDERS, module_name, sources

from loopgrad.experiments.reports.references import entries

CONF = files("loopgrad.experiments.conf")

TRM, HRM, TURING, MEMORY = "2510.04871", "2506.21734", "1410.5401", "1503.08895"
PAPERS = {  # what the published papers are, from arXiv, not from the classes
    "estimator=bptt": ["werbos1990"],
    "estimator=checkpointed": ["1604.06174"],
    "estimator=auto": ["1604.06174", "1707.04585"],
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
    "estimator=compressed": ["2604.17224", "0909.4061"],
    "estimator=low_rank": ["2511.16652", "2305.17333"],
    "estimator=rtrl": ["williams1989"],
    "estimator=snap": ["2006.07232"],
    "estimator=diagonal_rtrl": ["bellec2020", "2305.15947"],
    "estimator=uoro": ["1702.05043"],
    "estimator=parallel_newton": ["2309.12252", "2407.19115"],
    "estimator=kf_rtrl": ["1805.10842"],
    "estimator=zeroth_order": ["2305.17333"],
    "estimator=random_truncation": ["1705.08209"],
    "estimator=hrm_text": ["2605.20613"],
    "halting=act": ["1603.08983"],
    "model=trm": [TRM],
    "model=trm_attention": [TRM],
    "model=trm_published": [TRM],
    "model=hrm": [HRM],
    "model=hrm_published": [HRM],
    "model=feed_forward": [TRM],
    "model=feed_forward_deep": [TRM],
    "model=gru": ["1406.1078"],
    "model=lstm": ["hochreiter1997"],
    "model=ntm": [TURING, "1807.08518"],
    "model=latent_loop": ["1807.03819", "2502.17416"],
    "model=latent_stack": ["1706.03762"],
    "model=latent_stack_equal": ["1706.03762"],
    "model=latent_layer": ["1706.03762"],
    "model=latent_trm": [TRM],
    "model=latent_mlp": ["2002.05202"],
    "model=latent_linear": ["1610.01644"],
    "model=looped_lm": ["1807.03819", "2502.17416", "2502.05171"],
    "optimizer=adamw": ["1711.05101"],
    "optimizer=adam_atan2": ["2407.05872"],
    "optimizer=muon": ["jordan2024muon", "2502.16982", "1711.05101"],
    "puzzle_optimizer=sign_sgd": [HRM, "1802.04434"],
    "schedule=cosine": ["1608.03983"],
    "synthetic=linear": ["1608.05343"],
    "synthetic=hidden": ["1608.05343"],
    "trainer=published": [TRM],
    "task=maze": ["2402.14083", HRM],
    "task=arc1": ["1911.01547"],
    "task=arc2": ["2505.11831"],
    "task=sudoku9": [TRM],
    "task=copy": [TURING],
    **{f"task=digits{size}": ["1905.12149"] for size in (4, 6)},
    "task=clutrr": ["1908.06177", MEMORY],
    **{f"task=babi{number}": ["1502.05698", MEMORY] for number in (2, 15, 16, 17, 18, 19)},
    "task=repeat_copy": [TURING],
    **{f"task={name}": ["2505.24760", MEMORY] for name in ("family_relationships", "knights_knaves", "zebra_puzzles")},
}


def parsed(text: str) -> dict[str, dict[str, str]]:
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


BIBLIOGRAPHY = parsed("\n".join(entries().values()))


FEW = ("estimator=truncated", "halting=act", "model=looped_lm", "trainer=published", "task=copy")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "choice", [choice if choice in FEW else pytest.param(choice, marks=pytest.mark.slow) for choice in PAPERS]
)
def test_a_choice_yields_its_paper(loopgrad, choice):
    group = choice.split("=")[0]
    others = {"estimator": "bptt", "model": "feed_forward", "trainer": "small", "task": "sorting"}
    rest = [f"{name}={value}" for name, value in others.items() if name != group]
    result = loopgrad("cite", *rest, choice)
    found = parsed(result.out)
    assert result.code == 0 and found["loopgrad"]["kind"] == "software"
    for paper in PAPERS[choice]:
        assert any(paper in key or paper == entry.get("eprint") for key, entry in found.items())


def test_no_choice_of_estimator_or_model_is_left_out_above():
    names = {
        f"{group}={path.name.removesuffix('.yaml')}"
        for group in ("estimator", "model", "optimizer", "puzzle_optimizer", "synthetic")
        for path in CONF.joinpath(group).iterdir()
    }
    assert names <= PAPERS.keys()


@pytest.mark.parametrize(
    ("coupling", "paper"), [("damped", "2509.12917"), ("leapfrog", "1709.03698"), ("momentum", "2102.07870")]
)
def test_a_coupling_yields_its_paper(loopgrad, coupling, paper):
    found = parsed(loopgrad("cite", f"model.coupling={coupling}", "estimator=reversible").out)
    assert any(paper == entry.get("eprint") for entry in found.values())


def test_what_several_classes_name_comes_once(loopgrad):
    out = loopgrad("cite", "estimator=[one_step,last_cycle]", "model=hrm", "trainer=published").out
    assert parsed(out).keys() == {
        "loopgrad",
        "jolicoeurmartineau2025less",
        "wang2025hierarchical",
        "williams1990efficient",
    }


@pytest.mark.parametrize("key", BIBLIOGRAPHY)
def test_an_entry_is_complete(key):
    entry = BIBLIOGRAPHY[key]
    assert entry.keys() >= {"author", "title", "year"} and ("doi" in entry or "url" in entry)
    if entry["kind"] == "misc" and "eprint" in entry:
        assert entry["doi"] == f"10.48550/arXiv.{entry['eprint']}"
    authors = entry["author"].split(" and ")
    proper = r"[^,]+, [^,]+|\{.+\}"
    assert all(re.fullmatch(proper, name) for name in authors), "family name, given names; an institution in braces"
    assert not {"others", "et al."} & set(authors)
    plain = unicodedata.normalize("NFKD", surname(key)).encode("ascii", "ignore").decode()
    assert key.startswith(re.sub(r"\W", "", plain).lower() + entry["year"])


def test_the_file_holds_nothing_but_entries_in_order():
    text = files("loopgrad").joinpath("references.bib").read_text(encoding="utf-8")
    assert text.count("\n@") == len(BIBLIOGRAPHY) and list(BIBLIOGRAPHY) == sorted(BIBLIOGRAPHY)


SOURCES = {module_name(path): path for folder in FOLDERS for path in sources(folder)}


def classes() -> list[type]:
    """Every class of the package that names papers."""
    modules = map(importlib.import_module, SOURCES)
    found = [it for module in modules for it in vars(module).values() if isinstance(it, type)]
    return sorted({it for it in found if vars(it).get("references")}, key=lambda it: it.__qualname__)


def mentions(key: str, text: str) -> bool:
    """Whether a text speaks of the work: by its arXiv number, or, without one, by its first author and its year."""
    entry = BIBLIOGRAPHY[key]
    return entry["eprint"] in text if "eprint" in entry else surname(key) in text and entry["year"] in text


def surname(key: str) -> str:
    """The first author's, without LaTeX's accents."""
    return re.sub(r"\\\W|[{}]", "", BIBLIOGRAPHY[key]["author"].split(",")[0].replace(r"\c{C}", "Ç"))


def named_in(docstring: str) -> list[list[str]]:
    """For each work that the Reference section of a docstring names, the entries of its author, year and number."""
    sections = re.findall(r"^References?:\n(.*?)(?:\n\n|^\w|\Z)", docstring, re.MULTILINE | re.DOTALL)
    works = [" ".join(work.split()) for section in sections for work in section.split(";")]
    return [[key for key in BIBLIOGRAPHY if names(key, work)] for work in works]


def names(key: str, work: str) -> bool:
    """Whether a work begins with the first author of an entry, is of its year, and has its arXiv number or none."""
    entry = BIBLIOGRAPHY[key]
    numbers = re.findall(r"arXiv (\S+\d)", work)
    years = re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv \S+", "", work))
    begins = re.match(rf"(?:[A-Z]\. )*{surname(key)}\b", work) is not None
    return begins and years == [entry["year"]] and numbers == ([entry["eprint"]] if "eprint" in entry else [])


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_a_class_names_the_papers_of_its_docstring(cls):
    assert len(cls.references) == len(set(cls.references))
    assert sorted(named_in(inspect.getdoc(cls) or "")) == sorted([key] for key in cls.references)


def test_every_reference_of_a_docstring_is_an_entry():
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found = named_in(ast.get_docstring(node) or "")
                assert [len(keys) for keys in found] == [1] * len(found), (
                    f"{name}, {getattr(node, 'name', '')}: {found}"
                )


def test_every_entry_is_spoken_of_and_every_arxiv_number_is_that_of_an_entry():
    texts = [path.read_text() for path in SOURCES.values()]
    assert [key for key in BIBLIOGRAPHY if not any(mentions(key, text) for text in texts)] == []
    spoken = {number for text in texts for number in re.findall(r"arXiv (\d{4}\.\d{4,5})", text)}
    assert spoken <= {entry.get("eprint") for entry in BIBLIOGRAPHY.values()}
