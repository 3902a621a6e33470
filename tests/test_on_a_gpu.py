"""What a GPU must show: the CPU's gradients, BPTT's on the device, memory that follows its law, and no waiting."""

import os

import pytest
import torch
from cases import ESTIMATORS
from problems import Problem
from small_runs import TASK, model, trainer

from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.experiments.benches.gpu.exactness import exactness
from loopgrad.experiments.benches.gpu.sizes import TINY
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT, CheckpointedBPTT, ImplicitGradient, ReversibleBPTT, TruncatedBPTT, tree
from loopgrad.models import Leapfrog

# another device runs the same code where there is no GPU; what it shows is then less
DEVICE = os.environ.get("LOOPGRAD_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="of a GPU's allocator and stream")
CELLS = ["affine", "two_streams", "recurrent", "dataclass_state", "attention", "twice"]


def moved(problem):
    """A problem on the device, its sources leaves of their own."""

    def leaf(tensor):
        return tensor.detach().to(DEVICE, copy=True).requires_grad_(tensor.requires_grad)

    return Problem(
        problem.cell.to(DEVICE), tree.map_tensors(leaf, problem.state), tree.map_tensors(leaf, problem.inputs)
    )


def gradients(problem, estimator):
    state = estimator(problem.cell, problem.state, problem.inputs, 6).state
    loss = sum(leaf.square().sum() for leaf in tree.tensors(state) if leaf.is_floating_point())
    sources = problem.sources()
    found = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    return {name: None if grad is None else grad.cpu() for name, grad in zip(sources, found, strict=True)}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("case", ESTIMATORS, ids=lambda case: case.name)
def test_gradients_are_those_of_the_cpu(case, name):
    if name in case.refused:
        pytest.skip("refused")
    wanted, found = gradients(case.build(name), case.estimator), gradients(moved(case.build(name)), case.estimator)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-11)


def test_exact_estimators_are_bptt_in_float32_and_bf16():
    rows = list(exactness(Stopwatch(torch.device(DEVICE), 60), TINY))
    assert len(rows) == 25
    for row in rows:
        assert row["note"] is None, row
        assert row["error"] <= (1e-5 if row["precision"] == "float32" else 0.02), row


def step_of(estimator, couple=lambda cell: cell, steps=32):
    generator = torch.Generator().manual_seed(0)
    cell = couple(ResidualCell(128, 2, generator).to(DEVICE))
    x = torch.randn(8, 32, 128, generator=generator).to(DEVICE).requires_grad_()

    def step():
        estimator(cell, torch.zeros_like(x), x, steps).state.square().mean().backward()
        cell.zero_grad(set_to_none=True)

    return step


@on_a_gpu
def test_peaks_of_the_allocator_follow_the_laws():
    watch = Stopwatch(torch.device(DEVICE), 60)

    def peak(estimator, steps, **more):
        return watch.timed(step_of(estimator, steps=steps, **more), 1)[1]

    whole = peak(BPTT(), 128)
    assert whole > 3 * peak(BPTT(), 32)
    assert peak(CheckpointedBPTT(), 128) < 0.4 * whole and peak(CheckpointedBPTT(1), 128) < 0.4 * whole
    one, four = (peak(ReversibleBPTT(), steps, couple=Leapfrog) for steps in (32, 128))
    assert four < 1.2 * one
    kept, offloaded = peak(CheckpointedBPTT(1), 128), peak(CheckpointedBPTT(1, offload="cpu"), 128)
    assert offloaded < kept


@on_a_gpu
@pytest.mark.parametrize(
    "estimator",
    [BPTT(), CheckpointedBPTT(verify="off"), TruncatedBPTT(num_steps=4), CheckpointedBPTT(1, verify="off")],
    ids=lambda it: type(it).__name__,
)
def test_a_step_never_waits_for_the_device(estimator):
    step = step_of(estimator)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("autocast", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("estimator", [CheckpointedBPTT(), ImplicitGradient()], ids=lambda it: type(it).__name__)
def test_it_trains(estimator, autocast):
    it = trainer(device=DEVICE, autocast=autocast, train_steps=4)
    losses = [entry["loss"] for entry in train(begin(it, TASK, model(), 0), it, TASK, estimator, 0)]
    assert len(losses) == 4 and all(map(torch.isfinite, torch.tensor(losses)))


def test_weights_and_rows_come_back_from_the_device_as_they_were(tmp_path):
    from loopgrad.experiments.training import checkpoint

    it = trainer(device=DEVICE, train_steps=4)
    whole = list(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
    cut = begin(trainer(device=DEVICE, train_steps=2), TASK, model(), 0)
    list(train(cut, trainer(device=DEVICE, train_steps=2), TASK, BPTT(), 0))
    checkpoint.save(tmp_path / "checkpoint.pt", cut, BPTT(), {})
    again = begin(it, TASK, model(), 0)
    checkpoint.load(tmp_path / "checkpoint.pt", again, BPTT(), {})
    rest = list(train(again, it, TASK, BPTT(), 0))
    for found, wanted in zip(rest, whole[2:], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
