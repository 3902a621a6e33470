"""Real-time recurrent learning against a plain loop, with a loss at every update."""

import weakref

import pytest
import torch
from online_cases import CELLS, by_hand, problem, sources_of, weighed
from torch import nn

from loopgrad.gradients import BPTT, KFRTRL, RTRL, UORO, SnAp, Stationary
from loopgrad.gradients.columns import kinds_of


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-10 * (1 + b.norm())


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_equals_bptt_with_a_loss_at_every_update(name, scope):
    cell, readout, state, xs = problem(name)
    rollout = RTRL(scope=scope)(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    last, losses = by_hand(cell, readout, state, xs)
    assert torch.equal(rollout.outputs, losses)
    sources = sources_of(cell, readout, state, xs)
    close(
        *(torch.autograd.grad(weighed(*pair), sources) for pair in ((rollout.state, rollout.outputs), (last, losses)))
    )


@pytest.mark.parametrize("save", ["all", [1, 4], "last"])
def test_equals_bptt_for_answers_that_are_kept_one_by_one(save):
    cell, readout, state, xs = problem("gru")
    given = {"xs": xs, "readout": readout, "save": save}
    found = [
        torch.autograd.grad(
            estimator(cell, state, None, len(xs), **given).outputs.square().sum(), sources_of(cell, readout, state, xs)
        )
        for estimator in (RTRL(), BPTT())
    ]
    close(*found)


def test_of_samples_that_end_early_and_of_one_sample():
    for batch, lengths in ((3, [2, 7, 4]), (1, None)):
        cell, readout, state, xs = problem("gru", batch=batch)
        given = {"xs": xs, "readout": readout, "save": "sum", "lengths": lengths}
        rollouts = [estimator(cell, state, None, len(xs), **given) for estimator in (RTRL(), BPTT())]
        sources = sources_of(cell, readout, state, xs)
        close(*(torch.autograd.grad(weighed(r.state, r.outputs), sources) for r in rollouts))


def test_a_stream_may_be_cut_into_rollouts():
    cell, readout, state, xs = problem("lstm", num_steps=9)
    sources, last, losses = sources_of(cell, readout, state, xs), state, 0
    for start, stop in ((0, 4), (4, 9)):
        given = {"xs": xs[start:stop], "readout": readout, "save": "sum", "start": start}
        rollout = RTRL()(cell, last, None, stop - start, **given)
        last, losses = rollout.state, losses + rollout.outputs
    expected = weighed(*by_hand(cell, readout, state, xs))
    close(torch.autograd.grad(weighed(last, losses), sources), torch.autograd.grad(expected, sources))


@pytest.mark.parametrize("name", ["gru", "trm_like"])
def test_under_autocast_it_is_as_near_as_bfloat16_allows(name):
    cell, readout, state, xs = problem(name, dtype=torch.float32)
    given, found = {"xs": xs, "readout": readout, "save": "sum"}, []
    for estimator in (RTRL(), BPTT()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rollout = estimator(cell, state, None, len(xs), **given)
            loss = weighed(rollout.state, rollout.outputs)
            gradients = torch.autograd.grad(loss, sources_of(cell, readout, state, xs))
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert (found[0] - found[1]).norm() < 0.03 * found[1].norm()


class Squashed(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + inputs)


@pytest.mark.parametrize("estimator", [RTRL, SnAp, KFRTRL, UORO])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_cost_no_other_attempt_than_wide_ones(estimator, dtype):
    found = []
    for each in (torch.float32, dtype):
        torch.manual_seed(0)
        cell, state, inputs = Squashed(8, 8).to(each), torch.zeros(4, 8, dtype=each), torch.randn(4, 8).to(each)
        how = {} if estimator in (RTRL, SnAp) else {"seed": 0}
        rollout = estimator(**how)(cell, state, inputs, 6)
        rollout.state.float().square().mean().backward()
        found.append((rollout.stats, cell.weight.grad.float()))
    (one, expected), (other, gradient) = found
    assert one == other and (gradient - expected).norm() < 0.05 * expected.norm()


class Casting(nn.Linear):
    def forward(self, state, inputs, step):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.tanh(super().forward(state) + inputs).float()


@pytest.mark.parametrize("estimator", [RTRL(), SnAp(9), UORO(seed=0), KFRTRL(seed=0)], ids=lambda it: type(it).__name__)
def test_an_update_that_casts_is_probed_once_and_keeps_columns_of_each_sample(estimator):
    torch.manual_seed(0)
    state, inputs = torch.zeros(4, 8), torch.randn(4, 8, requires_grad=True)
    stats = estimator(Casting(8, 8), state, inputs, 6).stats
    plain = estimator(Squashed(8, 8), state, inputs, 6).stats
    assert stats.vjps == plain.vjps and stats.cell_evaluations == plain.cell_evaluations + 6
    assert stats.tangents == 2 * plain.tangents + 6  # and one more in each update of the second run


class Growing(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.cat([state, super().forward(state[:, -4:])], -1)


@pytest.mark.parametrize("estimator", [RTRL(), SnAp(1), UORO(seed=0)], ids=lambda it: type(it).__name__)
def test_a_state_that_grows_is_refused_by_name(estimator):
    with pytest.raises(ValueError, match=r"needs a state of one shape, .* from \(2, 4\) to \(2, 8\)"):
        estimator(Growing(4, 4), torch.zeros(2, 4), None, 3)


def test_nothing_to_differentiate_by_is_no_matter():
    def squashed(state, inputs):
        return torch.tanh(state)

    assert not RTRL()(Stationary(squashed), torch.zeros(2, 4), None, 3).state.requires_grad


def test_different_columns_are_those_that_torch_finds():
    generator = torch.Generator().manual_seed(0)
    for features, width in ((1, 1), (3, 40), (8, 30), (9, 200), (62, 50), (130, 40)):
        pattern = torch.rand(features, width, generator=generator) < 0.3
        pattern[:, ::3] = pattern[:, :1].clone()
        kinds, places = kinds_of(pattern)
        expected, of_column = torch.unique(pattern.T, dim=0, return_inverse=True)
        assert torch.equal(kinds, expected)
        assert [own.tolist() for own in places] == [
            (of_column == i).nonzero().flatten().tolist() for i in range(len(kinds))
        ]
    for shape, count in (((0, 3), 1), ((3, 0), 0), ((0, 0), 0)):
        kinds, places = kinds_of(torch.zeros(shape, dtype=torch.bool))
        assert len(kinds) == len(places) == count and sum(map(len, places)) == shape[1]


def test_what_is_carried_is_freed_after_backward():
    cell, readout, state, xs = problem("gru")
    rollout = RTRL()(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    node = rollout.outputs.grad_fn
    alive = [weakref.ref(tensor) for tensor in node.saved_tensors]
    pass_ = node.run
    rollout.outputs.sum().backward()
    assert max(t.numel() for t in pass_.known.carried.tensors) == 0
    assert all(ref() is None for ref in alive)


class Meeting(nn.Module):
    """Samples see each other's mean."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4).double()

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state - state.mean(0)) + inputs)


def test_samples_that_see_each_other_are_refused_and_exact_as_one_batch():
    torch.manual_seed(0)
    cell, state, inputs = Meeting(), torch.randn(3, 4).double(), torch.randn(3, 4).double().requires_grad_()
    with pytest.raises(RuntimeError, match=r"samples see each other.*RTRL\(scope='batch'\)"):
        RTRL()(cell, state, inputs, 6)
    sources = [*cell.parameters(), inputs]
    close(
        *(
            torch.autograd.grad(estimator(cell, state, inputs, 6).state.sin().sum(), sources)
            for estimator in (RTRL(scope="batch"), BPTT())
        )
    )


def test_an_input_that_all_samples_share_is_found_out():
    """Its first dimension is that of the batch, and it is a matrix all the same."""
    torch.manual_seed(0)
    matrix, state = torch.randn(4, 4).double().requires_grad_(), torch.randn(4, 4).double()
    cell = Stationary(lambda z, x: torch.tanh(z @ x), parameters=[])
    close(
        *(
            torch.autograd.grad(estimator(cell, state, matrix, 6).state.square().sum(), [matrix])
            for estimator in (RTRL(), BPTT())
        )
    )


def test_what_is_saved_does_not_grow_with_the_updates():
    def saved(num_steps):
        cell, readout, state, xs = problem("gru", num_steps)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            RTRL()(cell, state.detach(), None, num_steps, xs=xs.detach(), readout=readout, save="sum")
        return sum(kept), sum(p.numel() for p in cell.parameters()), sum(p.numel() for p in readout.parameters())

    (few, cell, readout), (many, _, _) = saved(3), saved(40)
    # J of three samples with five features, and a row for each sample's loss; the rest are the graphs of the probe
    influence = 8 * 3 * (5 * cell + cell + readout)
    assert few == many
    assert influence <= few < 2 * influence


def test_a_sample_without_a_part_in_the_loss_may_be_infinite():
    state = torch.tensor([[1.0], [3e38]]).requires_grad_()
    w = torch.tensor(1.5, requires_grad=True)
    cell = Stationary(lambda z, x: w * z * z, parameters=[w])
    rollout = RTRL()(cell, state, None, 3)
    assert not rollout.state[1].isfinite().any()
    (found,) = torch.autograd.grad(rollout.state[0].sum(), w)
    torch.testing.assert_close(found, torch.tensor(7 * 1.5**6))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="scope='row'"):
        RTRL(scope="row")
    with pytest.raises(ValueError, match="max_numbers=0"):
        RTRL(max_numbers=0)
    cell, _, state, xs = problem("gru")
    with pytest.raises(ValueError, match=r"RTRL would carry at least \d+ tangents.*max_numbers=1000.*CheckpointedBPTT"):
        RTRL(max_numbers=1000)(cell, state, None, len(xs), xs=xs)


def test_a_loss_in_float64_of_a_float32_state_is_carried():
    linear, found = nn.Linear(4, 4), []
    cell = Stationary(lambda z, _: torch.tanh(linear(z)), parameters=linear)
    for estimator in (BPTT(), RTRL()):
        rollout = estimator(
            cell, torch.ones(3, 4), None, 5, readout=lambda z, *_: z.double().square().sum(1), save="sum"
        )
        found.append(torch.autograd.grad(rollout.outputs.sum(), linear.weight)[0])
    assert torch.dist(*found) < 1e-6 * found[0].norm()
