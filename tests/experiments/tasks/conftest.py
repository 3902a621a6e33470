"""Hands the Sudoku witnesses to the tests: this folder is no package, so they cannot be imported by name."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def witness():
    spec = importlib.util.spec_from_file_location("sudoku_witness", Path(__file__).with_name("sudoku_witness.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
