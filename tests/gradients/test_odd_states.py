"""States and inputs out of the ordinary under every estimator: they work as in a plain loop, or one line says why."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
    solvers,
)
from loopgrad.models import Damped

SIZE = 4
ESTIMATORS = {
    "bptt": BPTT(),
    "sqrt": CheckpointedBPTT(),
    "binomial": CheckpointedBPTT("binomial", num_snapshots=1),
    "truncated": TruncatedBPTT(num_steps=30),
    "random": RandomTruncation(mean_steps=2, seed=0),
    "phantom": PhantomGradient(num_steps=30),
    "implicit": ImplicitGradient(rtol=1e-10, max_vjps=40),
    "anderson": ImplicitGradient(rtol=1e-10, max_vjps=40, forward=solvers.Anderson(), forward_rtol=1e-9),
    "forward_gradient": ForwardGradient(4, seed=0),
    "central": ForwardGradient(4, seed=0, mode="central"),
    "forward_mode": ForwardMode(),
    "damped": ReversibleBPTT(),
}
EXACT = ("bptt", "sqrt", "binomial", "truncated", "phantom", "implicit", "anderson", "forward_mode", "damped")
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(SIZE, SIZE, dtype=torch.float64)

    def image(self, z, x):
        return torch.tanh(0.4 * self.linear(z) + x)

    def forward(self, z, x, step):
        return self.image(z, x)


class Carrying(Base):
    """Flags, token ids, a counter of Python's and an absent part beside the state proper."""

    def forward(self, state, x, step):
        z = self.image(state["z"], x)
        return {
            "z": z,
            "count": state["count"] + 1,
            "ids": (state["ids"] + 1) % 7,
            "moved": state["moved"] | (z[:, 0] != 0),
            "absent": None,
        }


class Growing(Base):
    def forward(self, state, x, step):
        return torch.cat([state, self.image(state[:, -1:], x.unsqueeze(1))], dim=1)


def run(name, cell, state, x, steps=60):
    return ESTIMATORS[name](Damped(cell, dtype=torch.float64) if name == "damped" else cell, state, x, steps).state


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every_estimator
def test_flags_ids_and_counters_are_carried(name):
    cell, x = Carrying(), drawn(3, SIZE)
    start = {
        "z": torch.zeros(3, SIZE, dtype=torch.float64),
        "count": 0,
        "ids": torch.arange(3),
        "moved": torch.zeros(3, dtype=torch.bool),
        "absent": None,
    }
    last = run(name, cell, start, x)
    steps = last["count"]  # a solver stops where it likes
    assert steps == 60 or name == "anderson"
    assert last["moved"].all() and last["absent"] is None
    assert name == "anderson" or last["ids"].tolist() == [(i + 60) % 7 for i in range(3)]
    found = torch.autograd.grad(last["z"].square().sum(), list(cell.parameters()))
    z = torch.zeros(3, SIZE, dtype=torch.float64)
    for _ in range(60):
        z = cell.image(z, x)
    if name == "damped":  # another recursion, with the same fixed point
        z = BPTT()(Damped(Base(), dtype=torch.float64), torch.zeros_like(z), x, 60).state
        assert torch.equal(z, last["z"])
        return
    exact = torch.autograd.grad(z.square().sum(), list(cell.parameters()))
    if name in EXACT:
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.one_in(3)
@every_estimator
@pytest.mark.parametrize("start", ["expanded", "transposed", "empty", "inference", "0-dim inputs"])
def test_first_states_and_inputs_of_every_make(name, start):
    cell, x = Base(), drawn(3, SIZE)
    z = torch.zeros(3, SIZE, dtype=torch.float64)
    if start == "expanded":
        z = torch.zeros(1, SIZE, dtype=torch.float64).expand(3, SIZE)
    elif start == "transposed":
        z = torch.zeros(SIZE, 3, dtype=torch.float64).T
    elif start == "empty":
        z, x = z[:0], x[:0]
    elif start == "inference":
        with torch.inference_mode():
            z, x = z.clone(), x.clone()
    else:
        x = torch.tensor(0.3, dtype=torch.float64)
    last = run(name, cell, z, x)
    found = torch.autograd.grad(last.square().sum(), list(cell.parameters()))
    plain = Damped(cell, dtype=torch.float64) if name == "damped" else cell
    exact = torch.autograd.grad(BPTT()(plain, z, x, 60).state.square().sum(), list(cell.parameters()))
    if name in EXACT:
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)
    assert torch.isfinite(last).all() and all(g.shape == p.shape for g, p in zip(found, cell.parameters(), strict=True))


@every_estimator
def test_a_state_that_grows_works_or_is_refused_in_one_line(name):
    cell, x = Growing(), drawn(2, SIZE)
    state = torch.zeros(2, 1, SIZE, dtype=torch.float64)
    if name in ("bptt", "sqrt", "binomial", "truncated", "random"):
        last = run(name, cell, state, x, 9)
        found = torch.autograd.grad(last.square().sum(), list(cell.parameters()))
        exact = torch.autograd.grad(BPTT()(cell, state, x, 9).state.square().sum(), list(cell.parameters()))
        assert last.shape == (2, 10, SIZE) and (name == "random" or all(map(torch.equal, found, exact)))
        return
    with pytest.raises(ValueError, match=r"\(2, \d+, 4\)") as caught:
        run(name, cell, state, x, 9)
    assert "\n" not in str(caught.value)


def test_a_budget_for_a_state_that_grows_is_refused():
    with pytest.raises(ValueError, match=r"memory_budget=...\) cannot foresee a state that grows.*schedule"):
        CheckpointedBPTT(memory_budget="1MiB")(Growing(), torch.zeros(2, 1, SIZE).double(), drawn(2, SIZE), 9)


@pytest.mark.parametrize("name", ["sqrt", "binomial", "truncated", "phantom", "implicit", "damped"])
def test_sparse_gradients_of_an_embedding(name):
    class Reading(Base):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, SIZE, sparse=True, dtype=torch.float64)

        def forward(self, z, tokens, step):
            return self.image(z, self.table(tokens[:, step % 6]) + self.table(tokens[:, 0]))

    tokens = torch.randint(0, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    found = []
    for chosen in (name, "bptt"):
        cell = Reading()
        wrapped = Damped(cell, dtype=torch.float64) if name == "damped" else cell
        ESTIMATORS[chosen](wrapped, torch.zeros(3, SIZE).double(), tokens, 12).state.square().sum().backward()
        assert cell.table.weight.grad.is_sparse
        found.append(cell.table.weight.grad.to_dense())
    if name in ("sqrt", "binomial", "truncated", "damped"):
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


class Numpy(Base):
    def forward(self, z, x, step):
        return torch.from_numpy((0.5 * z.detach() @ self.linear.weight.detach() + x).tanh().numpy())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mode": "central"}, "window=1.*differentiates the last updates by autograd"),
        ({"mode": "central", "window": 0}, "perturb='state'.*records no graph"),
    ],
)
def test_a_cell_that_leaves_torch_is_told_the_zeroth_order_that_works(how, said):
    cell, x = Numpy(), drawn(2, SIZE)
    with pytest.raises(RuntimeError, match="cannot carry tangents.*mode='central'"):
        ForwardGradient(seed=0)(cell, torch.zeros_like(x), x, 5)
    with pytest.raises(RuntimeError, match=f"{said}.*perturb='weights', window=0"):
        ForwardGradient(seed=0, **how)(cell, torch.zeros_like(x), x, 5).state.sum().backward()
    state = ForwardGradient(seed=0, perturb="weights", window=0, mode="central")(cell, torch.zeros_like(x), x, 5).state
    assert torch.autograd.grad(state.sum(), cell.linear.weight)[0].abs().max() > 0


class AtTimes(Base):
    def forward(self, z, x, step):
        return 0.5 * z if step == 1 else super().forward(z, x, step)


def test_an_update_may_read_no_weights():
    x, found = drawn(2, SIZE), []
    cell = AtTimes()
    for estimator in (BPTT(), *(ForwardGradient(4000, perturb=p, seed=0, window=3) for p in ("state", "weights"))):
        state = estimator(cell, torch.zeros_like(x), x, 5).state
        (gradient,) = torch.autograd.grad(state.sum(), cell.linear.weight)
        found.append(gradient)
    assert all((gradient - found[0]).norm() < 0.1 * found[0].norm() for gradient in found[1:])


@pytest.mark.parametrize("forward", [solvers.Anderson(), solvers.Broyden(), solvers.Iteration()])
def test_backward_of_a_solver_draws_what_the_last_image_drew_and_moves_no_generator(forward):
    cell = Base()
    drop = nn.Dropout(0.5)
    cell.image = lambda z, x: torch.tanh(0.4 * cell.linear(drop(z)) + x)
    state = ImplicitGradient(forward=forward, on_unconverged="ignore")(
        cell, torch.zeros(3, SIZE).double(), drawn(3, SIZE), 9
    )
    before = torch.get_rng_state()
    state.state.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
