"""Peak memory of a rollout as the operating system sees it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# a 512 kB state: 1024 updates of BPTT would keep gigabytes
SCRIPT = """
import sys, torch
from loopgrad.gradients import CheckpointedBPTT, ReversibleBPTT
from loopgrad.models import Damped, Leapfrog
torch.set_num_threads(1)
way, num_steps = sys.argv[1], int(sys.argv[2])
linear = torch.nn.Linear(256, 256)

class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear
    def forward(self, z, x, step):
        return torch.tanh(self.linear(z + x))

couplings = {"damped": Damped, "leapfrog": lambda cell: Leapfrog(cell, 1 / 64)}
cell = couplings[way](Cell()) if way in couplings else Cell()
estimator = ReversibleBPTT() if way in couplings else CheckpointedBPTT(memory_budget=int(way))
z, x = torch.randn(512, 256), torch.randn(512, 256)

def run(num_steps):
    estimator(cell, z, x, num_steps).state.square().mean().backward()

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

run(64)  # all that is run later, so that torch has its code in memory
open("/proc/self/clear_refs", "w").write("5")
before = resident()
run(num_steps)
print(peak() - before)
"""


def process_peak(way: str, num_steps: int) -> int:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors leave the process at once
    command = [sys.executable, "-c", SCRIPT, way, str(num_steps)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("coupling", "bits"), [("leapfrog", 0), ("damped", 1)])
def test_peak_of_the_process_does_not_grow_but_for_the_lost_digits(coupling, bits):
    short, long = process_peak(coupling, 16), process_peak(coupling, 1024)
    elements = 512 * 256
    assert long <= 1.1 * short + 1.25 * bits * 1024 * elements / 8 + 2**20  # pages and Python's own objects
    assert long < 1024 * elements * 4 / 4  # a quarter of what the states alone would take


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("mebibytes", [6, 12, 40])
@pytest.mark.parametrize("num_steps", [64, 256])
def test_a_budget_holds_for_the_process(mebibytes, num_steps):
    """Its states alone would take 32 and 128 MiB."""
    assert process_peak(str(mebibytes * 2**20), num_steps) <= mebibytes * 2**20 + 2**20  # Python's own objects
