"""Gradients through chosen updates, against a loop by hand that detaches what the others change."""

import pytest
import torch
from problems import detached
from torch import nn

from loopgrad.gradients import BPTT, EveryCycle, LastOf, RandomUpdates, TruncatedBPTT
from loopgrad.models import TRM

L_CYCLES, H_CYCLES, CYCLES = 3, 2, 4


class TwoStreams(nn.Module):
    """Three updates of z_L and one of z_H make a cycle; each hands the other stream through."""

    period = L_CYCLES + 1

    def __init__(self):
        super().__init__()
        self.low, self.high, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, state, inputs, step):
        self.count += 1
        if step % self.period < L_CYCLES:
            return state | {"z_L": torch.tanh(self.drop(self.low(state["z_L"] + state["z_H"])) + inputs)}
        return state | {"z_H": torch.tanh(self.high(state["z_H"] + state["z_L"]))}


def problem():
    torch.manual_seed(0)
    cell = TwoStreams().double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    state = {name: torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for name in ("z_H", "z_L")}
    return cell, state, x, [*cell.parameters(), x, *state.values()]


def gradient(state, sources):
    loss = (state["z_H"] * torch.linspace(1, 2, 4)).sum() + state["z_L"].square().sum()
    return torch.autograd.grad(loss, sources, allow_unused=True)


def by_hand(chosen, num_steps):
    cell, state, x, sources = problem()
    torch.manual_seed(1)
    for step in range(num_steps):
        if step in chosen:
            state = cell(state, x, step)
        else:
            name = "z_L" if step % cell.period < L_CYCLES else "z_H"
            with torch.no_grad():
                after = cell(detached(state), x, step)
            state = state | {name: after[name].detach()}
    return state, gradient(state, sources)


def of_estimator(estimator, num_steps):
    cell, state, x, sources = problem()
    torch.manual_seed(1)
    rollout = estimator(cell, state, x, num_steps)
    assert cell.count == num_steps, "the cycle that is run to know the streams leaves a trace"
    return rollout.state, gradient(rollout.state, sources), rollout.stats


def equal(found, expected):
    return all(a is b or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_backward_steps_counted_per_stream_are_those_of_hrm_text(steps):
    """b backward steps: h = min(H_cycles, b - 1) of z_H and b - h of z_L, the last ones."""
    num_steps = CYCLES * (L_CYCLES + 1)
    h = min(H_CYCLES, steps - 1)
    of_H = [t for t in range(num_steps) if t % 4 == 3][-h:]
    of_L = [t for t in range(num_steps) if t % 4 < 3][h - steps :]
    state, found, stats = of_estimator(TruncatedBPTT(scope=LastOf({"z_H": h, "z_L": steps - h})), num_steps)
    last, expected = by_hand({*of_H, *of_L}, num_steps)
    assert equal(found, expected) and equal(state.values(), last.values())
    assert stats.vjps == steps and stats.cell_evaluations == num_steps + 4
    whole = of_estimator(BPTT(), num_steps)
    assert equal(whole[0].values(), last.values()) and not equal(whole[1], expected)


@pytest.mark.parametrize(("k", "num_steps"), [(1, 16), (2, 16), (3, 16), (2, 14)])
def test_every_so_many_th_cycle_counted_from_the_last(k, num_steps):
    last = (num_steps - 1) // 4
    chosen = {t for t in range(num_steps) if (last - t // 4) % k == 0}
    _, found, stats = of_estimator(TruncatedBPTT(scope=EveryCycle(k)), num_steps)
    assert equal(found, by_hand(chosen, num_steps)[1]) and stats.vjps == len(chosen)


def test_random_updates_are_drawn_at_each_call_from_their_own_generator():
    scope = RandomUpdates(0.3, seed=0)
    drawn = [scope.updates(400, [frozenset()] * 4) for _ in range(3)]
    assert len({*drawn}) == 3 and all({396, 397, 398, 399} <= updates for updates in drawn)
    assert all(80 < len(updates) < 160 for updates in drawn)
    assert RandomUpdates(0.3, seed=0).updates(400, [frozenset()] * 4) == drawn[0]
    chosen = RandomUpdates(0.5, seed=3).updates(16, [frozenset()] * 4)
    assert equal(of_estimator(TruncatedBPTT(scope=RandomUpdates(0.5, seed=3)), 16)[1], by_hand(chosen, 16)[1])
    assert equal(of_estimator(TruncatedBPTT(scope=RandomUpdates(1.0)), 16)[1], of_estimator(BPTT(), 16)[1])


def test_more_updates_than_there_are_is_all_of_them():
    changed = [frozenset({"z_L"})] * 3 + [frozenset({"z_H"})]
    assert LastOf({"z_L": 4, "z_H": 9}).updates(4, changed) == {0, 1, 2, 3}
    assert LastOf({"z_L": 2, "z_H": 0}).updates(4, changed) == {1, 2}


def test_streams_of_a_model_have_their_names():
    model = TRM(11, 9, hidden_size=16, num_heads=2, num_layers=1, H_cycles=3, L_cycles=2, mixer="mlp")
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    found = {}
    for name, estimator in (("scope", TruncatedBPTT(scope=LastOf({"z_H": 1, "z_L": 2}))), ("last", TruncatedBPTT(3))):
        model.zero_grad()
        model(None, tokens, None, estimator).logits.sum().backward()
        found[name] = [p.grad for p in model.parameters() if p.grad is not None]
    assert equal(found["scope"], found["last"]), "one update of z_H and two of z_L are TRM's last cycle"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LastOf({"z_H": -1}), r"LastOf\(counts\['z_H'\]=-1\)"),
        (lambda: LastOf({"z_H": 0}), "names no update"),
        (lambda: EveryCycle(0), r"EveryCycle\(k=0\)"),
        (lambda: RandomUpdates(0), r"RandomUpdates\(chance=0\)"),
        (lambda: TruncatedBPTT(scope=[1, 2]), "takes a Scope"),
        (lambda: TruncatedBPTT(2, scope=EveryCycle(1)), "takes one of"),
        (lambda: TruncatedBPTT(scope=EveryCycle(1), every=2), "no every"),
        (lambda: of_estimator(TruncatedBPTT(scope=LastOf({"z_X": 1})), 8), "no update changes a leaf named 'z_X'.*z_H"),
        (lambda: TruncatedBPTT(scope=EveryCycle(1))(*problem()[:3], 8, save="all"), "the last state alone"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make()
