"""Deep supervision against hand-written steps: which rows are refilled, what is carried, what the loss is."""

import pytest
import torch
from drawn_batches import Batch, draw
from safetensors.torch import load_file, save_file

from loopgrad.gradients import BPTT, TruncatedBPTT
from loopgrad.models import (
    HRM,
    TRM,
    FeedForward,
    FixedSegments,
    QHalt,
    QLearning,
    initial_carry,
    predict,
    refill_carry,
    run_segment,
    softmax_cross_entropy,
    stablemax_cross_entropy,
    token_loss,
)


def small(cls=TRM, **kwargs):
    layers = {} if cls is HRM else {"num_layers": 1}
    if cls is HRM:
        layers = {"H_layers": 1, "L_layers": 1}
    if cls is not FeedForward:
        layers |= {"H_cycles": 2, "L_cycles": 1}
    return cls(6, 5, hidden_size=8, num_heads=2, **layers, **kwargs)


def test_refill_changes_exactly_the_rows_that_halted():
    model, old, new = small(), draw(0), draw(1)
    carry = initial_carry(model, old)
    state = {name: torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(2)) for name in carry.state}
    halted = torch.tensor([False, True, False, True])
    carry = type(carry)(state, torch.tensor([1, 2, 3, 4]), halted, old)
    filled = refill_carry(model, carry, new)
    assert filled.segment.tolist() == [1, 0, 3, 0] and not filled.halted.any()
    assert filled.batch.puzzle_ids.tolist() == [0, 11, 2, 13] and isinstance(filled.batch, Batch)
    for row in range(4):
        source = new if halted[row] else old
        assert torch.equal(filled.batch.inputs[row], source.inputs[row])
        assert torch.equal(filled.batch.labels[row], source.labels[row])
        for name, z in filled.state.items():
            assert torch.equal(z[row], model.initial_state(1)[name][0] if halted[row] else state[name][row])


def test_first_step_takes_the_whole_batch_and_later_ones_keep_it_until_it_halts():
    model, halting = small(), FixedSegments(3)
    carry = initial_carry(model, draw(99))
    taken = []
    for step in range(7):
        carry, *_ = run_segment(model, carry, draw(step), BPTT(), halting)
        taken.append((carry.batch.puzzle_ids[0].item() // 10, carry.segment.tolist(), carry.halted.all().item()))
    expected = [(0, 1), (0, 2), (0, 3), (3, 1), (3, 2), (3, 3), (6, 1)]
    assert taken == [(batch, [count] * 4, count == 3) for batch, count in expected]


def test_segments_equal_a_hand_written_loop_and_gradients_stay_within_one():
    model, batch = small().double(), draw(0)
    carry = initial_carry(model, batch)
    state = model.initial_state(4)
    for _ in range(3):
        carry, loss, metrics, output = run_segment(model, carry, batch, BPTT(), FixedSegments(3))
        state = {name: z.detach() for name, z in state.items()}
        x = model.encode(batch.inputs)
        for step in range(4):
            state = model.cell(state, x, step)
        expected = token_loss(model.readout(state)[0], batch.labels)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        ours = torch.autograd.grad(loss, list(model.cell.parameters()))
        theirs = torch.autograd.grad(expected, list(model.cell.parameters()))
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
        assert not any(t.requires_grad for t in carry.tensors().values())
        assert output.state["z_H"].requires_grad
        assert metrics["loss"].item() == loss.item() and not metrics["loss"].requires_grad


def test_q_halting_stops_rows_in_training_and_none_in_evaluation():
    model = small()
    with torch.no_grad():
        model.q_head.bias.fill_(5.0)  # always wants to stop
    halting, generator = QHalt(max_segments=3, exploration=0), torch.Generator()
    carry, *_ = run_segment(model.train(), initial_carry(model, draw(0)), draw(0), BPTT(), halting, generator)
    assert carry.halted.all()
    carry = initial_carry(model.eval(), draw(0))
    for step in range(3):
        carry, *_ = run_segment(model, carry, draw(step), BPTT(), halting)
        assert carry.halted.tolist() == [step == 2] * 4


def test_q_learning_loss_uses_one_more_segment_for_its_target():
    model, batch = small(HRM), draw(0)
    with torch.no_grad():
        model.q_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.q_head.bias.copy_(torch.tensor([-5.0, 5.0]))  # goes on, so that the second segment is the last one
    halting, carry = QLearning(max_segments=2, exploration=0), initial_carry(model, batch)
    for number in (1, 2):
        carry, loss, metrics, output = run_segment(model, carry, batch, TruncatedBPTT(num_steps=2), halting)
        assert carry.segment.tolist() == [number] * 4
        with torch.no_grad():
            following = model(carry.state, batch.inputs, None, BPTT())
        best = torch.maximum(following.q_halt, following.q_continue) if number == 1 else following.q_halt
        solved = (output.logits.argmax(-1) == batch.labels).all(-1).double()
        bce = torch.nn.functional.binary_cross_entropy
        halt, goes_on, best = (q.double().sigmoid() for q in (output.q_halt, output.q_continue, best))
        q_loss = 0.5 * (bce(halt, solved) + bce(goes_on, best))
        torch.testing.assert_close(metrics["q_loss"].double(), q_loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss, token_loss(output.logits, batch.labels) + q_loss, rtol=1e-5, atol=1e-6)


def test_metrics_count_right_answers_and_finished_rows():
    model, batch = small(), draw(0)
    prediction = predict(model, batch.inputs, None, 1).logits.argmax(-1)
    labels = prediction.clone()
    labels[1, 0] = (labels[1, 0] + 1) % 6  # one wrong token
    labels[2, 1:] = -100
    batch = Batch(batch.inputs, labels, batch.puzzle_ids)
    carry, _, metrics, _ = run_segment(model, initial_carry(model, batch), batch, BPTT(), FixedSegments(1))
    assert metrics["token_accuracy"].item() == pytest.approx((1 + 0.8 + 1 + 1) / 4)
    assert metrics["exact_accuracy"].item() == 0.75
    assert [metrics[key].item() for key in ("finished", "finished_exact", "finished_segments")] == [4, 3, 4]
    assert carry.halted.all()


def test_cross_entropy_is_the_one_passed():
    model, batch = small(), draw(0)
    for cross_entropy in (stablemax_cross_entropy, softmax_cross_entropy):
        _, loss, _, output = run_segment(
            model, initial_carry(model, batch), batch, BPTT(), FixedSegments(1), cross_entropy=cross_entropy
        )
        torch.testing.assert_close(loss, cross_entropy(output.logits, batch.labels).mean(), check_dtype=False)


def test_carry_goes_through_a_file_and_training_goes_on_bit_for_bit(tmp_path):
    model, halting = small(), QHalt(max_segments=3, exploration=0.5)
    generator = torch.Generator().manual_seed(0)
    carry = initial_carry(model, draw(0))
    for step in range(2):
        carry, *_ = run_segment(model, carry, draw(step), BPTT(), halting, generator)
    save_file(carry.tensors(), tmp_path / "carry")
    state = generator.get_state()
    straight, loss, *_ = run_segment(model, carry, draw(2), BPTT(), halting, generator)
    generator.set_state(state)
    resumed = initial_carry(model, draw(5)).with_tensors(load_file(tmp_path / "carry"))
    again, loss_again, *_ = run_segment(model, resumed, draw(2), BPTT(), halting, generator)
    assert torch.equal(loss, loss_again)
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])


def test_a_carry_of_another_model_is_refused():
    one, two = initial_carry(small(), draw(0)), initial_carry(small(streams=1), draw(0))
    with pytest.raises(ValueError, match="z_H"):
        two.with_tensors(one.tensors())
    with pytest.raises(ValueError, match="has shape"):
        one.with_tensors({name: t.reshape(2, -1) for name, t in one.tensors().items()})
    with pytest.raises(ValueError, match="as many new samples as there are rows"):
        refill_carry(small(), one, draw(1, size=3))


def test_answer_is_the_last_of_a_chain_of_segments():
    model, batch = small(), draw(0)
    carry = initial_carry(model.eval(), batch)
    for _ in range(3):
        carry, _, _, output = run_segment(model, carry, batch, BPTT(), FixedSegments(3))
    final = predict(model, batch.inputs, None, 3)
    assert torch.equal(final.logits, output.logits) and not final.logits.requires_grad
    with pytest.raises(ValueError, match="num_segments must be at least 1"):
        predict(model, batch.inputs, None, 0)


@pytest.mark.slow
def test_small_trm_learns_to_reverse_its_input():
    """A task that no position-wise map solves: the answer at i is the token at the mirrored position."""
    model = TRM(8, 6, hidden_size=32, num_layers=1, num_heads=2, H_cycles=2, L_cycles=2, mixer="mlp")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    halting, carry = FixedSegments(2), None
    for step in range(240):
        inputs = torch.randint(0, 8, (32, 6), generator=torch.Generator().manual_seed(step))
        batch = Batch(inputs, inputs.flip(1), torch.zeros(32, dtype=torch.int64))
        carry = initial_carry(model, batch) if carry is None else carry
        carry, loss, *_ = run_segment(model, carry, batch, TruncatedBPTT(num_cycles=1), halting)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inputs = torch.randint(0, 8, (200, 6), generator=torch.Generator().manual_seed(10_000))
    exact = (predict(model, inputs, None, 2).logits.argmax(-1) == inputs.flip(1)).all(-1).float().mean()
    assert exact > 0.9  # chance is 8^-6


def test_feed_forward_runs_under_the_same_supervision():
    model, batch = small(FeedForward), draw(0)
    carry = initial_carry(model, batch)
    losses = []
    for _ in range(2):
        carry, loss, *_ = run_segment(model, carry, batch, TruncatedBPTT(num_cycles=1), FixedSegments(2))
        losses.append(loss.item())
    assert losses[0] == losses[1]  # nothing is carried
