"""Examples run as they are printed: the doctests of every module, and the Python blocks of README and docs."""

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch
from repository import FOLDERS, blocks, module_name, pages, sources

PACKAGES = [f"loopgrad.{name}" for name in FOLDERS if name != "loopgrad"]
MODULES = [module_name(path) for folder in FOLDERS for path in sources(folder)]
PAGES = [page for page in pages() if blocks(page.read_text(), "python")]
LONGEST = 8


def examples(name: str) -> list[doctest.DocTest]:
    """The docstrings with examples of a module."""
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name), name) if test.examples]


def failures(test: doctest.DocTest) -> str:
    """Run the examples of a docstring; return what went wrong."""
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    with torch.random.fork_rng(devices=[]):
        runner.run(test, out=said.append)
    assert runner.tries == len(test.examples)
    return "".join(said)


def test_the_modules_are_those_that_the_packages_list():
    tops = ["loopgrad", *PACKAGES]
    walked = {found.name for p in tops for found in pkgutil.walk_packages(importlib.import_module(p).__path__, f"{p}.")}
    assert walked | set(tops) == set(MODULES)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    for test in examples(name):
        assert failures(test) == ""


def test_every_prompt_in_the_sources_is_an_example_that_runs():
    """A docstring that doctest does not look into, such as one below a constant, would go stale unseen."""
    prompts = {
        module_name(path): len(re.findall(r"^\s*>>> ", path.read_text(), re.MULTILINE))
        for folder in FOLDERS
        for path in sources(folder)
    }
    run = {name: sum(len(test.examples) for test in examples(name)) for name in MODULES}
    assert run == prompts
    assert sum(run.values()) >= 80


@pytest.mark.parametrize("name", MODULES)
def test_an_example_is_short(name):
    for test in examples(name):
        lines = sum(len((example.source + example.want).splitlines()) for example in test.examples)
        assert lines <= LONGEST, f"{test.name}: {lines} lines"


def test_a_wrong_example_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "planted", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in failures(test)


def run_block(before: int, code: str, page: str, folder: Path) -> None:
    """Run a block as a program of its own; traceback lines are those of the page."""
    lines = "\n".join(line.removeprefix(re.match(" *", code)[0]) for line in code.split("\n"))
    if ">>> " in lines:
        assert failures(doctest.DocTestParser().get_doctest(lines, {}, page, page, before)) == ""
        return
    ast.parse(lines)
    program = folder / f"{page}_{before}.py"
    program.write_text("\n" * before + lines)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(program), run_name="__main__")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for before, code in blocks(page.read_text(), "python"):
        run_block(before, code, page.stem, tmp_path)


@pytest.mark.parametrize("code", ["x = 1\nassert x == 2\n", ">>> 1 + 1\n3\n", "  import loopgrad.nothing\n"])
def test_a_wrong_block_is_found(code, tmp_path):
    indent = re.match(" *", code)[0]
    page = f"# Page\n\n{indent}```python\n{code}{indent}```\n\n```bash\nfalse\n```\n"
    ((before, found),) = blocks(page, "python")
    assert (before, found) == (3, code)
    with pytest.raises((AssertionError, ImportError)):
        run_block(before, found, "page", tmp_path)
