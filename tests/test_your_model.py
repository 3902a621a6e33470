"""The page for people who bring a model: its numbers of lines are counted, its adapters are those that are tested."""

import inspect
import re

import foreign_adapters
import pytest
from foreign_cells import FOREIGN
from repository import ROOT, blocks

PAGE = (ROOT / "docs" / "your_model.md").read_text()
ADAPTERS = {
    name: it for name, it in vars(foreign_adapters).items() if getattr(it, "__module__", "") == "foreign_adapters"
}


def lines(adapter):
    """The source of a class without blank lines."""
    return [line for line in inspect.getsource(adapter).splitlines() if line.strip()]


def test_the_table_counts_the_lines_of_every_adapter():
    rows = re.findall(r"^\| .* \| `(\w+)` \| (\d+) \|$", PAGE, re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {name: len(lines(it)) for name, it in ADAPTERS.items()}
    assert len(rows) == len(FOREIGN) == 13


@pytest.mark.parametrize("name", [name for name in ADAPTERS if f"class {name}(" in PAGE])
def test_an_adapter_that_is_shown_is_the_one_that_is_tested(name):
    shown = "\n".join(code for _, code in blocks(PAGE, "python"))
    assert inspect.getsource(ADAPTERS[name]) in shown


def test_the_longest_adapters_are_shown():
    """The page says that these are the ones in full."""
    assert sum(f"class {name}(" in PAGE for name in ADAPTERS) == 3
