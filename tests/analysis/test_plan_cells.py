"""Cells that a plan follows in a way of their own, or cannot follow."""

import re
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor

from loopgrad.analysis import plan
from loopgrad.analysis.counters import PeakBytes
from loopgrad.analysis.foreseen import BATCH, foreseen_by_batch
from loopgrad.gradients import BPTT, RTRL, ForwardGradient, ParallelNewton, SnAp


class Squashed(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + inputs)


@pytest.mark.parametrize("convert", ["bfloat16", "half", "double"])
def test_a_factory_that_converts_is_as_the_module_that_it_makes(convert):
    def make():
        return getattr(Squashed(8, 8), convert)()

    dtype = make().weight.dtype
    shapes = torch.zeros(8, dtype=dtype), torch.zeros(8, dtype=dtype), 9, "1GiB"
    assert plan(make, *shapes, batch_size=4) == plan(make(), *shapes, batch_size=4)


class Gated(nn.Linear):
    def forward(self, state, inputs, step):
        return nn.functional.glu(super().forward(state), -1)


def test_an_operator_without_a_rule_for_its_shapes_is_named_and_asks_for_no_memory(monkeypatch):
    monkeypatch.setattr(fake_tensor, "run_fallback_kernel", None)  # runs an operator on zeros of a huge batch
    estimators = {"BPTT": BPTT(), "forward": ForwardGradient(seed=0)}
    rows = plan(lambda: Gated(8, 16), (8,), None, 4, "1GiB", batch_size=2, estimators=estimators)
    assert rows[0].name == "BPTT" and rows[0].fits
    assert re.match("torch has no rule for the shapes that aten.glu_jvp.default makes.*measure it", rows[1].remark)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_state_of_another_dtype_than_the_weights_is_refused_as_a_real_step_is(dtype):
    with pytest.raises(ValueError, match="fails on these shapes: .*takes matrices of one dtype.*: check state"):
        plan(lambda: Squashed(8, 8).to(dtype), (8,), (8,), 4, "1GiB")
    with pytest.raises(RuntimeError):
        BPTT()(Squashed(8, 8).to(dtype), torch.zeros(2, 8), torch.zeros(2, 8), 4)


class Scaled(nn.Linear):
    """Asks for values where it is made."""

    def __init__(self):
        super().__init__(8, 8)
        self.rates = [rate.item() for rate in torch.linspace(0.1, 1, 4)]

    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state)) * self.rates[step % 4]


@pytest.mark.parametrize("convert", [False, True])
def test_a_factory_that_asks_for_values_is_as_the_module_that_it_makes(convert):
    def make():
        return Scaled().double() if convert else Scaled()

    shape = torch.zeros(8, dtype=torch.float64 if convert else torch.float32)
    made, drawn = make(), torch.get_rng_state()
    assert plan(make, shape, None, 9, "1GiB") == plan(made, shape, None, 9, "1GiB")
    assert plan(make, shape, None, 9, "1GiB", estimators={"RTRL": RTRL()})[0].bytes
    assert torch.equal(torch.get_rng_state(), drawn)


Pair = namedtuple("Pair", "hidden cell")


class Paired(nn.LSTMCell):
    def forward(self, state, inputs, step):
        return Pair(*super().forward(inputs, tuple(state)))


def test_a_named_tuple_is_a_state():
    rows = plan(lambda: Paired(4, 8), Pair((8,), (8,)), (4,), 5, "1GiB", batch_size=2, copies=0)
    cell, inputs = Paired(4, 8), torch.zeros(2, 4, requires_grad=True)
    state = Pair(*(torch.zeros(2, 8, requires_grad=True) for _ in range(2)))
    with PeakBytes() as live:
        last = BPTT()(cell, state, inputs, 5).state
        sum(leaf.square().mean() for leaf in last).backward()
    assert next(row.bytes for row in rows if row.name == "BPTT") == pytest.approx(live.peak, rel=0.03)


class Meeting(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + inputs - inputs.mean(0))


def test_inputs_that_all_rows_share_are_the_reason():
    rows = plan(lambda: Meeting(8, 8), (8,), (8,), 6, "1GiB", estimators={"RTRL": RTRL(), "SnAp": SnAp(1)})
    assert all(re.search("columns of all rows here.*the square of the batch: measure it", row.remark) for row in rows)


def test_where_nothing_requires_grad_it_is_said():
    rows = plan(Squashed(8, 8).requires_grad_(False), torch.zeros(8), torch.zeros(8), 6, "1GiB")
    assert all(re.match("neither the weights .* require grad", row.remark) for row in rows)


def test_a_cell_without_data_is_not_tried():
    with torch.device("meta"):
        cell = Squashed(8, 8)
    rows = plan(cell, (8,), (8,), 6, "1GiB", estimators={"RTRL": RTRL(), "BPTT": BPTT()})
    assert rows[0].name == "BPTT" and "is on the meta device" in rows[1].remark


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_parallel_newton_of_one_sample(jacobian):
    torch.manual_seed(0)
    estimator, cell = ParallelNewton(jacobian=jacobian), Squashed(16, 16)
    cell.weight.detach().mul_(0.5)
    (row,) = plan(lambda: Squashed(16, 16), (16,), (16,), 20, "1GiB", estimators={"own": estimator}, copies=0)
    state, inputs = torch.zeros(1, 16, requires_grad=True), torch.randn(1, 16, requires_grad=True)
    with PeakBytes() as live:
        estimator(cell, state, inputs, 20).state.square().mean().backward()
    assert row.bytes == pytest.approx(live.peak, rel=0.02)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
        ({"num_steps": 2.5}, ValueError, "num_steps must be an int of at least 1, got 2.5"),
        ({"copies": float("nan")}, ValueError, "copies must be a number of at least 0, got nan"),
        ({"autocast": torch.float64}, ValueError, "autocast must be None, torch.bfloat16 or torch.float16"),
        ({"estimators": {"a": BPTT}}, TypeError, r"estimators\['a'\] must be an estimator"),
        ({"estimators": BPTT()}, TypeError, "estimators must be a mapping of names"),
        ({"state": [8]}, TypeError, r"state=\[8\] must be the shape of one sample, a tuple of ints"),
        ({"state": {"z": (8.0,)}}, TypeError, r"state\['z'\]=\(8.0,\) must be the shape of one sample"),
        ({"inputs": (-8,)}, ValueError, r"inputs has the shape \(-8,\): sizes are those of one sample"),
        ({"inputs": torch.zeros(8).to_sparse()}, ValueError, "inputs has a tensor of layout torch.sparse_coo"),
    ],
    ids=str,
)
def test_wrong_input_is_named(changed, error, words):
    given = {"cell": lambda: Squashed(8, 8), "state": (8,), "inputs": (8,), "num_steps": 4, "memory_budget": "1GiB"}
    with pytest.raises(error, match=words):
        plan(**given | changed)


def test_a_slice_with_an_open_end_of_what_is_known_is_known():
    known = torch.arange(5)

    def step(made):
        return known[1:].tolist(), (made + known[1:].sum()).shape

    assert foreseen_by_batch(torch.zeros, step)[1] == ([1, 2, 3, 4], (BATCH,))
