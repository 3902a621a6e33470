"""Faults that a stranger's cells have found, each as it should be; a fault that is mended turns its test red."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.gradients.observed import Watched
from loopgrad.models import Damped, Leapfrog

SIZE = 4
SQRT, REVERSIBLE = CheckpointedBPTT(), ReversibleBPTT()


def fault(reason: str):
    return pytest.mark.xfail(strict=True, reason=reason)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(SIZE, SIZE).double(), nn.Linear(SIZE, SIZE).double()
        self.scale = nn.Parameter(torch.rand(SIZE, dtype=torch.float64))
        self.kept = {}
        self.hidden = [torch.rand(SIZE, dtype=torch.float64).requires_grad_() for _ in range(9)]

    def forward(self, z, x, step):
        return torch.tanh(self.linear(z) + x)


class ListByStep(Base):
    def forward(self, z, x, step):
        z = super().forward(z, x, step)
        return z * self.hidden[4] if step == 4 else z


class LaggedByStep(Base):
    def forward(self, z, x, step):
        self.kept[step], z = z, super().forward(z, x, step)
        return z + 0.5 * self.kept[step - 2] if step >= 2 else z


class SkipFromStart(Base):
    def forward(self, z, x, step):
        if step == 0:
            self.kept["first"] = z
        z = super().forward(z, x, step)
        return z + 0.5 * self.kept["first"] if step == 4 else z


class DerivedLate(Base):
    def forward(self, z, x, step):
        if step == 3:
            self.kept["scale"] = self.scale.exp()
        z = super().forward(z, x, step)
        return z * self.kept["scale"] if step > 3 else z


class KeepsInInputs(Base):
    def forward(self, z, x, step):
        if "keys" not in x:
            x["keys"] = self.other(x["x"])
        return torch.tanh(0.3 * self.linear(z) + x["keys"])


class InnerGradient(Base):
    def forward(self, z, x, step):
        return z - 0.1 * grad(lambda a: (torch.tanh(self.linear(a)) * x).sum())(z)


class WithLoss(Base):
    def forward(self, z, x, step):
        z = super().forward(z, x, step)
        self.extra = z.square().sum()
        return z


class InferenceBuffer(Base):
    def __init__(self):
        super().__init__()
        with torch.inference_mode():
            self.register_buffer("position", torch.ones(SIZE, dtype=torch.float64))

    def forward(self, z, x, step):
        return super().forward(z, x + self.position, step)


def values(cell, estimator, steps=9, wrap=lambda x: x):
    """Gradients of a loss of the last state by x, the parameters and the hidden tensors."""
    torch.manual_seed(0)
    cell = cell()
    outer = Damped(cell, beta="1/2") if isinstance(estimator, tuple) else cell
    run = estimator[0] if isinstance(estimator, tuple) else estimator
    z, x = torch.randn(3, SIZE, dtype=torch.float64), torch.randn(3, SIZE, dtype=torch.float64).requires_grad_()
    loss = run(outer, z, wrap(x), steps).state.sin().sum() + getattr(cell, "extra", 0.0)
    sources = [x, *cell.parameters(), *cell.hidden]
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


def same(cell, estimator, coupled=False, **how):
    expected = values(cell, (BPTT(),) if coupled else BPTT(), **how)
    torch.testing.assert_close(values(cell, (estimator,) if coupled else estimator, **how), expected)


BOTH = pytest.mark.parametrize(
    ("estimator", "coupled"), [(SQRT, False), (REVERSIBLE, True)], ids=["sqrt", "reversible"]
)


@pytest.mark.parametrize("cell", [ListByStep, LaggedByStep, DerivedLate])
@BOTH
@fault("only the first updates are watched and only the last ones are searched: what others read is lost silently")
def test_what_only_updates_in_the_middle_read_gets_its_gradient_or_is_refused(cell, estimator, coupled):
    same(cell, estimator, coupled)


@fault("the same, of the first state")
def test_a_skip_from_the_first_state_to_an_update_in_the_middle():
    found = []
    for estimator in (SQRT, BPTT()):
        torch.manual_seed(0)
        cell, z = SkipFromStart(), torch.ones(3, SIZE, dtype=torch.float64, requires_grad=True)
        state = estimator(cell, z, torch.zeros_like(z), 9).state
        found += torch.autograd.grad(state.sin().sum(), z)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("moved", [0.0, 0.1])
@pytest.mark.parametrize("estimator", [SQRT, ImplicitGradient(), ForwardGradient(window=0, perturb="state")])
@fault("backward runs the module's own parameters, found as `frozen`, and those of functional_call get None")
def test_parameters_of_functional_call_get_gradients(estimator, moved):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Base()

        def forward(self, z, x):
            return estimator(self.cell, z, x, 9).state

    model, x = Model(), torch.ones(3, SIZE, dtype=torch.float64)
    given = {name: (p.detach() + moved).requires_grad_() for name, p in model.named_parameters()}
    functional_call(model, given, (torch.zeros_like(x), x)).sum().backward()
    assert given["cell.linear.weight"].grad is not None


@pytest.mark.parametrize("steps", [1, 2, 9])
@fault("a tensor that the last update leaves in an attribute has a graph of aliases, or none")
def test_a_loss_that_the_cell_leaves_in_an_attribute_has_its_gradient_or_is_refused(steps):
    found = []
    for estimator in (SQRT, BPTT()):
        torch.manual_seed(0)
        cell, z = WithLoss(), torch.ones(1, SIZE, dtype=torch.float64, requires_grad=True)
        state = estimator(cell, z, torch.zeros_like(z), steps).state
        found += torch.autograd.grad(state.sum() + cell.extra, z)
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@fault("the mode does not see scripted code, whose parameters then have no tangents: the gradient is zero")
def test_forward_mode_of_a_scripted_cell():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(SIZE, SIZE)

        def forward(self, z: torch.Tensor, x: torch.Tensor, step: int):
            return torch.tanh(self.linear(z) + x)

    cell, x = torch.jit.script(Scripted()), torch.randn(3, SIZE)
    for _ in range(3):
        found, expected = (
            torch.autograd.grad(how(cell, torch.zeros(3, SIZE), x, 6).state.sum(), list(cell.parameters()))
            for how in (ForwardMode(), BPTT())
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "estimator", [TruncatedBPTT(num_steps=20), PhantomGradient(num_steps=20)], ids=["truncated", "phantom"]
)
@fault("the first updates see a copy of the dict, and a later one without a graph fills the caller's")
def test_what_the_cell_keeps_in_its_inputs_has_its_graph(estimator):
    found, expected = (values(KeepsInInputs, how, 60, lambda x: {"x": x}) for how in (estimator, BPTT()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@fault("one dict serves the whole sweep back: raw error about a second backward")
def test_reversible_with_a_cell_that_keeps_in_its_inputs():
    same(KeepsInInputs, REVERSIBLE, True, wrap=lambda x: {"x": x})


@pytest.mark.parametrize("estimator", [SQRT, ImplicitGradient(), TruncatedBPTT(num_steps=2)])
@fault("torch.func.grad refuses the saved-tensor hooks of a watched update")
def test_torch_func_grad_inside_the_cell(estimator):
    values(InnerGradient, estimator)


@pytest.mark.parametrize("estimator", [SQRT, ForwardMode()])
@fault("_version of an inference tensor: raw error, where BPTT works")
def test_a_buffer_made_in_inference_mode(estimator):
    values(InferenceBuffer, estimator)


@fault("the first update materialises the parameters: refused as a change in place")
def test_a_lazy_cell():
    cell = Base()
    cell.linear = nn.LazyLinear(SIZE, dtype=torch.float64)
    SQRT(cell, x := torch.ones(3, SIZE, dtype=torch.float64), x, 5).state.sum().backward()


@fault("nothing compares the state that backward linearises at")
def test_implicit_notices_python_state_that_changed_before_backward():
    class Gain(Base):
        gain = 1.0

        def forward(self, z, x, step):
            return self.gain * torch.tanh(0.3 * self.linear(z) + x)

    cell, x = Gain(), torch.ones(3, SIZE, dtype=torch.float64)
    state = ImplicitGradient()(cell, torch.zeros_like(x), x, 60).state
    cell.gain = 1.5
    with pytest.raises(RuntimeError, match="again"):
        state.sum().backward()


@pytest.mark.parametrize("reversible", [False, True])
@fault("the pass holds its Watched, and that the states of a whole cycle")
def test_no_more_states_are_held_than_named(reversible):
    class Long(Base):
        period = 21

    x = torch.ones(3, SIZE, dtype=torch.float64)
    cell = Leapfrog(Long(), per="update") if reversible else Long()
    state = (REVERSIBLE if reversible else ImplicitGradient())(cell, torch.zeros_like(x), x, 42).state
    held = [len(it._entries) for it in gc.get_objects() if type(it) is Watched]
    del state
    assert sum(held) <= 2


@fault("the node holds the pass, and that the inputs, for as long as the output is held; BPTT lets go of them")
def test_inputs_are_let_go_of_after_backward():
    leaf = torch.ones(3, SIZE, dtype=torch.float64, requires_grad=True)
    x = leaf * 1
    alive, state = weakref.ref(x), SQRT(Base(), torch.zeros_like(leaf), x, 9).state
    state.sum().backward()
    del x
    assert alive() is None


@fault("without autograd.grad's cut, a cell that turns autograd on chains its graph through all updates")
def test_truncated_keeps_no_graph_of_a_cell_that_turns_autograd_on():
    x, early = torch.ones(3, SIZE, dtype=torch.float64), []

    class Energy(Base):
        def forward(self, z, x, step):
            early.append(z.requires_grad)
            with torch.enable_grad():
                return super().forward(z, x, step)

    TruncatedBPTT(num_steps=1)(Energy(), torch.zeros_like(x), x, 40)
    assert not any(early[2:])


DEEP = """
import torch
from torch import nn
from loopgrad.gradients import CheckpointedBPTT
class Cell(nn.Module):
    def __init__(self):
        super().__init__(); self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, z, x, step):
        if step == 0: self.kept = self.b(x)
        return torch.tanh(self.a(z) + self.kept)
x = leaf = torch.ones(1, 4, requires_grad=True)
for _ in range(100_000): x = x.sin()
cell = Cell()
CheckpointedBPTT()(cell, torch.zeros(1, 4), x, 9).state.sum().backward()
del x, cell
"""


@fault("`reaches` walks into the encoder, whose nodes are then freed recursively: segmentation fault")
def test_a_deep_encoder_in_front_of_a_cell_that_keeps_a_projection():
    assert subprocess.run([sys.executable, "-c", DEEP], capture_output=True).returncode == 0
