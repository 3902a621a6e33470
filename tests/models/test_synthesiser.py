"""The synthesiser beside a TD(0) step written by hand: masks, factors, bits, bytes, and what is refused."""

import copy

import pytest
import torch
from drawn_batches import draw

from loopgrad.analysis.counters import SavedBytes
from loopgrad.gradients import BPTT, CheckpointedBPTT, ImplicitGradient, PhantomGradient, TruncatedBPTT
from loopgrad.models import (
    GRU,
    HRM,
    TRM,
    FixedSegments,
    Synthesiser,
    initial_carry,
    run_segment,
    stablemax_cross_entropy,
)
from loopgrad.models.supervision import Carry


def small(cls=TRM, **kwargs):
    layers = {"H_layers": 1, "L_layers": 1} if cls is HRM else {"num_layers": 1}
    return cls(6, 5, hidden_size=8, num_heads=2, H_cycles=2, L_cycles=1, **layers, **kwargs)


def random_synthesiser(model, hidden_size=0):
    synthesiser = Synthesiser.of(model, 3, hidden_size)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in synthesiser.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return synthesiser


def between(model, rows=4):
    """A carry in which row 0 goes on to its last segment, row 1 to the one before it, and the others begin."""
    carry = initial_carry(model, draw(0, rows))
    state = {
        name: z + torch.randn(z.shape, generator=torch.Generator().manual_seed(1)) for name, z in carry.state.items()
    }
    halted = torch.arange(rows) > 1
    return Carry(state, torch.tensor([2, 1, 3, 3]), halted, carry.batch)


@pytest.mark.parametrize("hidden_size", [0, 7])
@pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT()], ids=["bptt", "checkpointed"])
def test_gradients_equal_a_step_by_hand(hidden_size, estimator):
    model = small(num_puzzles=14, puzzle_tokens=2).double()
    synthesiser = random_synthesiser(model, hidden_size).double()
    carry, new, halting = between(model), draw(1), FixedSegments(3)
    segment = run_segment(model, carry, new, estimator, halting, synthesiser=synthesiser)
    factor = 0.25  # of a micro-batch, or of a scaled loss
    (factor * segment.loss).backward()
    assert segment.loss.item() == segment.metrics["loss"].item()

    own = copy.deepcopy(model)
    own.zero_grad()
    begun, batch = segment.carry.segment - 1, segment.carry.batch
    assert begun.tolist() == [2, 1, 0, 0] and segment.carry.halted.tolist() == [True, False, False, False]
    first = own.initial_state(4)
    start = {
        name: torch.cat([carry.state[name][:2], first[name][2:]]).detach().requires_grad_() for name in carry.state
    }
    output, lost, *_ = own.scored(start, batch.inputs, batch.puzzle_ids, batch.labels, BPTT(), stablemax_cross_entropy)
    said_after = {name: s.detach() for name, s in synthesiser(output.state, begun + 1, batch).items()}
    later = sum((said_after[name][1:] * z[1:]).sum() for name, z in output.state.items()) / 4
    wanted = torch.autograd.grad(
        lost + later, [*own.parameters(), *start.values()], allow_unused=True, materialize_grads=True
    )
    for parameter, gradient in zip(model.parameters(), wanted, strict=False):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got, factor * gradient, rtol=1e-9, atol=1e-13)
    targets = dict(zip(start, wanted[-len(start) :], strict=True))
    said = synthesiser({name: z.detach() for name, z in start.items()}, begun, batch)
    td = sum((said[name][:2] - 4 * targets[name][:2]).square().sum() for name in said) / 8
    for parameter, gradient in zip(
        synthesiser.parameters(), torch.autograd.grad(td, list(synthesiser.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-9, atol=1e-13)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("cls", [TRM, HRM])
def test_one_that_says_zero_changes_no_bit_of_loss_carry_and_gradients(cls):
    found = []
    for with_one in (False, True):
        model = small(cls)
        carry, given = initial_carry(model, draw(0)), {"synthesiser": Synthesiser.of(model, 3)} if with_one else {}
        for step in range(5):
            segment = run_segment(model, carry, draw(step), BPTT(), FixedSegments(3, halt_loss=True), **given)
            segment.loss.backward()
            carry = segment.carry
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([segment.loss, *carry.tensors().values(), *gradients])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_graphs_are_as_long_in_the_last_segment_as_in_the_second():
    model, synthesiser = small(), Synthesiser.of(small(), 6)
    carry, held = initial_carry(model, draw(0)), []
    for _ in range(5):
        counter = SavedBytes([*model.parameters(), *synthesiser.parameters(), *model.buffers()])
        with counter:
            carry, loss, *_ = run_segment(model, carry, draw(0), BPTT(), FixedSegments(6), synthesiser=synthesiser)
        held.append(counter.held())
        loss.backward()
        del loss
    assert held[1] == held[2] == held[4]


@pytest.mark.parametrize(
    "estimator", [TruncatedBPTT(num_cycles=1), ImplicitGradient(), PhantomGradient(1)], ids=lambda it: type(it).__name__
)
def test_an_estimator_without_a_gradient_of_the_start_is_refused(estimator):
    model = small()
    with pytest.raises(ValueError, match=f"synthesiser: .*{type(estimator).__name__} has none: use CheckpointedBPTT"):
        run_segment(
            model,
            initial_carry(model, draw(0)),
            draw(0),
            estimator,
            FixedSegments(3),
            synthesiser=Synthesiser.of(model, 3),
        )


def test_a_label_is_told_at_its_own_position_and_an_unscored_one_as_such():
    model = small(num_puzzles=4, puzzle_tokens=2)
    synthesiser, state, batch = random_synthesiser(model), model.initial_state(1), draw(0, 1)
    before = synthesiser(state, torch.ones(1, dtype=torch.int64), batch)["z_H"]
    other = copy.deepcopy(batch)
    other.labels[0, 3] = -100
    after = synthesiser(state, torch.ones(1, dtype=torch.int64), other)["z_H"]
    assert (before != after).any(-1)[0].tolist() == [False] * 5 + [True, False]


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="max_segments must be at least 1, got 0"):
        Synthesiser({"z": 3}, 6, 0)
    with pytest.raises(ValueError, match="hidden_size=-1 must be at least 0"):
        Synthesiser({"z": 3}, 6, 1, hidden_size=-1)
    with pytest.raises(ValueError, match=r"GRU does not have: write a module s\(state, segment, batch\)"):
        Synthesiser.of(GRU(6, 5, hidden_size=4), 1)
