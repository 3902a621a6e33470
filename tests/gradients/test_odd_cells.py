"""Cells that keep, derive, nest and transform in ways that recursions seldom do: their gradient, or a true refusal."""

import gc
import subprocess
import sys

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
from tests.odd_cells import (
    SIZE,
    Base,
    DerivedLate,
    InferenceBuffer,
    InnerGradient,
    KeepsInInputs,
    LaggedByStep,
    ListByStep,
    SkipFromStart,
    WithLoss,
)

SQRT, REVERSIBLE = CheckpointedBPTT(), ReversibleBPTT()


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


KEEPS = "in its attribute '[a-z]+' that one update has made and that another reads.*carry it in the state"


BOTH = pytest.mark.parametrize(
    ("estimator", "coupled"), [(SQRT, False), (REVERSIBLE, True)], ids=["sqrt", "reversible"]
)


@BOTH
def test_what_only_an_update_in_the_middle_reads_gets_its_gradient(estimator, coupled):
    same(ListByStep, estimator, coupled)


@pytest.mark.parametrize("cell", [LaggedByStep, DerivedLate, SkipFromStart])
@BOTH
def test_what_updates_keep_for_later_ones_is_refused(cell, estimator, coupled):
    with pytest.raises(RuntimeError, match=KEEPS):
        values(cell, (estimator,) if coupled else estimator)


@pytest.mark.parametrize("moved", [0.0, 0.1])
@pytest.mark.parametrize("estimator", [SQRT, ImplicitGradient(), ForwardGradient(window=0, perturb="state")])
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


@pytest.mark.parametrize("steps", [1, 2])
@BOTH
def test_it_is_said_that_what_the_cell_leaves_in_an_attribute_has_no_gradient(steps, estimator, coupled):
    with pytest.warns(UserWarning, match="attribute 'extra', and no gradient will go through it"):
        values(WithLoss, (estimator,) if coupled else estimator, steps)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_of_a_scripted_cell():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(SIZE, SIZE)

        def forward(self, z: torch.Tensor, x: torch.Tensor, step: int):
            return torch.tanh(self.linear(z) + x)

    cell, x = torch.jit.script(Scripted()), torch.randn(3, SIZE)
    with pytest.raises(RuntimeError, match="scripted or traced modules, whose weights cannot be given tangents"):
        ForwardMode()(cell, torch.zeros(3, SIZE), x, 6)
    for _ in range(3):
        state = ForwardGradient(window=0)(cell, torch.zeros(3, SIZE), x, 6).state
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(state.sum(), list(cell.parameters())))


@pytest.mark.parametrize(
    "estimator", [TruncatedBPTT(num_steps=20), PhantomGradient(num_steps=20)], ids=["truncated", "phantom"]
)
def test_what_the_cell_keeps_in_its_inputs_has_its_graph(estimator):
    found, expected = (values(KeepsInInputs, how, 60, lambda x: {"x": x}) for how in (estimator, BPTT()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_reversible_with_a_cell_that_keeps_in_its_inputs():
    same(KeepsInInputs, REVERSIBLE, True, wrap=lambda x: {"x": x})


@pytest.mark.parametrize("estimator", [SQRT, ImplicitGradient(), TruncatedBPTT(num_steps=2)])
def test_torch_func_grad_inside_the_cell(estimator):
    values(InnerGradient, estimator)


@pytest.mark.parametrize("estimator", [SQRT, ForwardMode()])
def test_a_buffer_made_in_inference_mode(estimator):
    values(InferenceBuffer, estimator)


def test_a_lazy_cell():
    cell = Base()
    cell.linear = nn.LazyLinear(SIZE, dtype=torch.float64)
    x = torch.ones(3, SIZE, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="lazy parameters.*call cell"):
        SQRT(cell, x, x, 5)
    with torch.no_grad():
        cell(x, x, 0)
    SQRT(cell, x, x, 5).state.sum().backward()


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
def test_no_more_states_are_held_than_named(reversible):
    class Long(Base):
        period = 21

    x = torch.ones(3, SIZE, dtype=torch.float64)
    cell = Leapfrog(Long(), per="update") if reversible else Long()
    state = (REVERSIBLE if reversible else ImplicitGradient())(cell, torch.zeros_like(x), x, 42).state
    held = [len(it._entries) for it in gc.get_objects() if type(it) is Watched]
    del state
    assert sum(held) <= 2


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


@pytest.mark.slow
def test_a_deep_encoder_in_front_of_a_cell_that_keeps_a_projection():
    assert subprocess.run([sys.executable, "-c", DEEP], capture_output=True).returncode == 0


@pytest.mark.parametrize("estimator", [SQRT, ImplicitGradient(), PhantomGradient(), ForwardMode(), ForwardGradient()])
def test_transforms_around_an_estimator_are_refused_with_the_remedy(estimator):
    cell, x = Base(), torch.ones(3, SIZE, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cannot run within torch.func.grad.*use BPTT"):
        grad(lambda x: estimator(cell, torch.zeros_like(x), x, 9).state.sum())(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_wrong_sample_of_many_is_noticed_in_sixteen_bits(dtype):
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(64, dtype=dtype))

        def forward(self, z, x, step):
            self.calls += 1
            z = torch.tanh(z * self.scale)
            return torch.cat([-z[:1], z[1:]]) if self.calls > 9 else z

    z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = SQRT(Counting(), z, None, 9).state
    with pytest.raises(RuntimeError, match="did not meet the state"):
        state.float().sum().backward()


def test_hooks_that_a_cell_sets_on_its_state_stay_off_the_first_state():
    class Hooked(Base):
        def forward(self, z, x, step):
            if z.requires_grad:
                z.register_hook(lambda gradient: gradient * 0.5)
            return super().forward(z, x, step)

    found = []
    for estimator in (CheckpointedBPTT("binomial", num_snapshots=0), BPTT()):
        torch.manual_seed(0)
        cell, z = Hooked(), torch.zeros(3, SIZE, dtype=torch.float64, requires_grad=True)
        found += torch.autograd.grad(estimator(cell, z, torch.ones_like(z), 4).state.sum(), z)
    torch.testing.assert_close(*found)
