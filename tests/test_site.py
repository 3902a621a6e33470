"""The site leaves nothing out: every public name has a page. Building it, with warnings as errors, is `make docs`."""

import importlib

import pytest
from repository import ROOT

API = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))


@pytest.mark.parametrize("package", ["loopgrad.gradients", "loopgrad.gradients.solvers"])
def test_every_public_name_is_on_a_page(package):
    """Estimators, and the names of the other packages, get theirs while the site is built."""
    module = importlib.import_module(package)
    estimator = importlib.import_module("loopgrad.gradients").Estimator
    named = {name: getattr(module, name) for name in module.__all__ if name.isidentifier() and name != "LINEAR"}
    written = {n for n, it in named.items() if not (isinstance(it, type) and issubclass(it, estimator))} | {"Estimator"}
    assert [name for name in sorted(written & named.keys()) if f":: {package}.{name}\n" not in API] == []
