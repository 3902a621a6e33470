"""Random numbers come from a generator or a seed that is passed in, never from a global generator."""

import ast
import re

import pytest
from repository import FOLDERS, sources

DRAWS = re.compile(r"(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson|(rand|randn|randint)_like)")
IN_PLACE = re.compile(r"(normal|uniform|random|bernoulli|exponential|log_normal|cauchy|geometric|trunc_normal)_")
LEGACY = re.compile(r"(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|PCG64|Philox)\w+|random\.(?!Random)\w+")
# a checkpoint stores and restores the global generators; a run seeds torch's, which dropout draws from
ALLOWED = {
    "random_states.py": {
        "random.getstate",
        "random.setstate",
        "np.random.get_state",
        "np.random.set_state",
        "np.random.RandomState",
    },
    "loop.py": {"torch.manual_seed"},
    "parallel.py": {"torch.manual_seed"},  # of every rank but the first
    # a plan puts the global generator back: cells that draw from it are seen to, and are tried the same way each time
    "foreseen.py": {"torch.rand"},
    "plans.py": {"torch.manual_seed"},
}


def global_draws(code: str) -> list[str]:
    """Calls that draw random numbers from a global generator, or set one."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        drawing = (owner == "torch" and DRAWS.fullmatch(name)) or IN_PLACE.fullmatch(name)
        unnamed = drawing and not any(keyword.arg == "generator" for keyword in node.keywords)
        seeding = owner in ("torch", "torch.cuda") and name in ("manual_seed", "manual_seed_all", "seed")
        if unnamed or seeding or LEGACY.fullmatch(f"{owner}.{name}"):
            found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize("top", FOLDERS)
def test_no_code_draws_from_a_global_generator(top):
    for path in sources(top):
        assert set(global_draws(path.read_text())) <= ALLOWED.get(path.name, set()), path


@pytest.mark.parametrize(
    "line",
    ["torch.randn(3)", "x.uniform_(-1, 1)", "np.random.rand(3)", "random.shuffle(a)", "torch.manual_seed(0)"],
)
def test_a_planted_draw_is_found(line):
    assert global_draws(line) == [line.split("(")[0]]
    assert global_draws("torch.randn(3, generator=g); np.random.default_rng(0); g.manual_seed(0); rng.random()") == []
