"""The house: what is shipped, how long files are, and what public names must say."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from repository import FOLDERS, PYPROJECT, ROOT, sources

PACKAGES = [
    "loopgrad.gradients",
    "loopgrad.models",
    "loopgrad.analysis",
    "loopgrad.analysis.plots",
    "loopgrad.experiments.tasks",
]
LONGEST = 300
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def packages_in(root: Path) -> set[str]:
    """Every folder with Python files below the top folders, as a package; a folder without __init__.py has a `?`."""
    folders = {path.parent for top in FOLDERS for path in (root / top).rglob("*.py") if "__pycache__" not in path.parts}
    names = set()
    for folder in folders:
        parts = folder.relative_to(root).parts
        name = ".".join(parts if parts[0] == "loopgrad" else ("loopgrad", *parts))
        names.add(name if (folder / "__init__.py").exists() else f"{name}?")
    return names


def test_the_listed_packages_are_the_folders():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_in(ROOT)
    assert len(listed) == len(set(listed))


def test_an_unlisted_subpackage_and_a_missing_init_are_found(tmp_path):
    for name in ("loopgrad/__init__.py", "models/__init__.py", "models/new/__init__.py", "models/loose/cell.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert packages_in(tmp_path) == {"loopgrad", "loopgrad.models", "loopgrad.models.new", "loopgrad.models.loose?"}


def test_no_other_folder_at_the_top_is_a_package():
    mapped = set(PYPROJECT["tool"]["setuptools"]["package-dir"].values())
    assert mapped == set(FOLDERS)
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == mapped


@pytest.mark.parametrize("path", [p for top in [*FOLDERS, "tests"] for p in sources(top)], ids=lambda p: str(p.name))
def test_a_file_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), f"{path} opens without a docstring"


def eager(face: list[ast.stmt]) -> list[ast.stmt]:
    """What the face does beside naming, to whoever asks, what stands above it: the names twice, and their lookup."""
    (lazy,) = (node for node in face if isinstance(node, ast.If))
    assert ast.unparse(lazy.test) == "TYPE_CHECKING" and {type(node) for node in lazy.body} == {ast.ImportFrom}
    table, listed, *functions = lazy.orelse
    assert [ast.unparse(node.targets[0]) for node in (table, listed)] == ["_PACKAGES", "__all__"]
    assert ast.literal_eval(table.value)
    assert [node.name for node in functions] == ["__getattr__", "__dir__", "_nearest"]
    return [node for node in face if node is not lazy]


@pytest.mark.parametrize("top", FOLDERS)
def test_an_init_lists_names_and_computes_nothing(top):
    for path in sources(top):
        if path.name != "__init__.py":
            continue
        body = ast.parse(path.read_text()).body[1:]
        if path.parent.parent == ROOT and top != "loopgrad":
            assert isinstance(body[0], ast.If) and "__name__.startswith" in ast.unparse(body[0].test), path
        for node in body if top != "loopgrad" else eager(body):
            names = [ast.unparse(target) for target in getattr(node, "targets", [])]
            guard = isinstance(node, ast.If) and [type(part) for part in node.body] == [ast.Raise]
            assert isinstance(node, ast.ImportFrom) or names in (["__all__"], ["__version__"]) or guard, (
                f"{path}, line {node.lineno}"
            )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_has_the_name_of_its_module(package):
    """Else `import loopgrad.analysis.x` and `from loopgrad.analysis import x` give two things of one name."""
    module = importlib.import_module(package)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert modules & set(module.__all__) == set()


def undocumented(module) -> list[str]:
    """Public names without a docstring of their own, and public methods of such classes."""
    found = []
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, type):
            own = {f"{name}.{m}": f for m, f in vars(thing).items() if inspect.isfunction(f) and m[0] != "_"}
            own[name] = thing
            # dataclass writes the signature where a docstring is missing
            found += [n for n, f in own.items() if not f.__doc__ or f.__doc__.startswith(f"{name}(")]
        elif callable(thing) and not thing.__doc__:
            found.append(name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__)) > 0
    assert undocumented(module) == []


def test_a_missing_docstring_is_found():
    class Planted:
        __all__ = ["Bare", "Documented", "f"]

        @dataclasses.dataclass
        class Bare:
            x: int = 0

        class Documented:
            """Says what it is."""

            def method(self):
                return 0

        def f(self):
            return 0

    assert undocumented(Planted) == ["Bare", "Documented.method", "f"]


def test_every_estimator_says_what_it_costs_and_where_it_fails():
    gradients = importlib.import_module("loopgrad.gradients")
    named = [getattr(gradients, name) for name in gradients.__all__]
    estimators = [e for e in named if isinstance(e, type) and issubclass(e, gradients.Estimator)]
    estimators.remove(gradients.Estimator)
    assert len(estimators) >= 3
    for estimator in estimators:
        for heading in ("Cost:", "Not recommended when:", "Reference:", "Example:"):
            assert f"\n    {heading}\n" in (estimator.__doc__ or ""), f"{estimator.__name__} lacks {heading}"


HEADINGS = re.compile(r"^ *(Cost|Not recommended when|References?|Example): \S.*$", re.MULTILINE)


@pytest.mark.parametrize("path", [p for top in FOLDERS for p in sources(top)], ids=lambda p: str(p.name))
def test_a_heading_of_a_docstring_has_a_line_of_its_own(path):
    """Only then is it rendered as a section."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    assert [found[0] for node in nodes for found in HEADINGS.finditer(ast.get_docstring(node) or "")] == []
