"""Adaptive computation time against a loop by hand over the equations of Graves 2016, gradients included."""

import math
from dataclasses import dataclass

import pytest
import torch

from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import ACT, TRM, run_segment, stablemax_cross_entropy, token_loss
from loopgrad.models.supervision import initial_carry, predict


def by_hand(logits, q_halt, epsilon):
    """Graves 2016, equations 5 to 13, sample by sample: h_n, N, R, p_n, the mean answer, the ponder cost."""
    answers, ponder, cycles = [], [], []
    for sample in range(q_halt.shape[1]):
        h = [torch.sigmoid(q) for q in q_halt[:, sample]]
        most = len(h)
        N = next((n for n in range(1, most + 1) if sum(h[:n]).item() >= 1 - epsilon), most)
        R = 1 - sum(h[: N - 1], torch.zeros_like(h[0]))
        p = [*h[: N - 1], R]
        answers.append(sum(p_n * y for p_n, y in zip(p, logits[:N, sample], strict=True)))
        ponder.append(N + R)
        cycles.append(N)
    return torch.stack(answers), torch.stack(ponder), cycles


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
@pytest.mark.parametrize("shift", [-4.0, -1.0, 0.0, 2.0, 6.0])
def test_the_answer_and_the_ponder_cost_are_those_of_graves(epsilon, shift):
    torch.manual_seed(0)
    logits = torch.randn(5, 7, 3, 4, dtype=torch.float64, requires_grad=True)
    q_halt = (torch.randn(5, 7, dtype=torch.float64) + shift).requires_grad_()
    weights = torch.randn(7, 3, 4, dtype=torch.float64)
    found = ACT(epsilon=epsilon).answer(logits, q_halt)
    answer, ponder, cycles = by_hand(logits, q_halt, epsilon)

    def gradients(y, cost):
        loss = (y * weights).sin().sum() + cost.sin().sum() + 0 * q_halt.sum()  # whether or not it reads any h
        return torch.autograd.grad(loss, (logits, q_halt))

    assert found.cycles.tolist() == cycles
    for mine, theirs in ((found.logits, answer), (found.ponder, ponder)):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    for a, b in zip(*(gradients(*it) for it in ((found.logits, found.ponder), (answer, ponder))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_worked_example():
    h = torch.tensor([[0.3, 0.999], [0.5, 0.1], [0.4, 0.1], [0.9, 0.1]], dtype=torch.float64)
    logits = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)[:, None, None, None].expand(4, 2, 1, 1)
    found = ACT(epsilon=0.01).answer(logits, torch.logit(h))
    assert found.cycles.tolist() == [3, 1]
    assert found.logits.flatten().tolist() == pytest.approx([0.3 + 5 + 20, 1.0])  # R = 1 - 0.8, and all of the first
    assert found.ponder.tolist() == pytest.approx([3 + 0.2, 1 + 1])


def test_a_halting_unit_that_is_not_finite_is_not_hidden():
    found = ACT().answer(torch.ones(3, 1, 1, 1), torch.tensor([[math.nan], [0.0], [0.0]]))
    assert found.logits.isnan().all() and found.ponder.isnan().all()


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_ids: torch.Tensor


def flat(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def made(**given):
    model = TRM(5, 6, hidden_size=8, num_heads=2, num_layers=1, H_cycles=4, L_cycles=2, mixer="mlp", **given)
    torch.manual_seed(0)
    with torch.no_grad():  # halting units that differ by sample and cycle
        model.q_head.weight.normal_(0, 0.4)
        model.q_head.bias.fill_(-1.0)
    return model, torch.randint(0, 5, (4, 6))


ESTIMATORS = [BPTT(), CheckpointedBPTT(), ReversibleBPTT(), TruncatedBPTT(num_cycles=4)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_the_loss_of_a_segment_and_its_gradient(estimator):
    coupling = {"coupling": "damped"} if isinstance(estimator, ReversibleBPTT) else {}
    model, tokens = made(**coupling)
    halting = ACT(ponder_weight=0.3, epsilon=0.05)
    batch = Batch(tokens, tokens.flip(1), tokens[:, 0] * 0)
    segment = run_segment(model, initial_carry(model, batch), batch, estimator, halting)
    found = flat(segment.loss, model)
    state, x = model.initial_state(4), model.encode(tokens)
    if coupling:
        state = model.cell.couple(state)
    logits, q_halt = [], []
    period = model.cell.period
    for step in range(4 * period):
        state = model.cell(state, x, step)
        if (step + 1) % period == 0:
            plain = model.cell.read(state) if coupling else state
            y, q, _ = model.readout(plain)
            logits.append(y)
            q_halt.append(q)
    answer, ponder, cycles = by_hand(torch.stack(logits), torch.stack(q_halt), 0.05)
    expected = token_loss(answer, tokens.flip(1), stablemax_cross_entropy) + 0.3 * ponder.mean()
    grads = flat(expected, model)
    assert len(set(cycles)) > 1, "samples must differ for this to say much"
    torch.testing.assert_close(segment.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, grads, rtol=1e-3, atol=1e-5)
    assert segment.metrics["cycles"] == pytest.approx(sum(cycles) / 4)
    assert segment.metrics["ponder"].item() == pytest.approx(ponder.mean().item(), rel=1e-5)
    assert segment.metrics["q_loss"] == 0


def test_evaluation_answers_as_training_does():
    model, tokens = made()
    output = model(None, tokens, None, BPTT(), ACT())
    found = predict(model, tokens, None, 1, ACT())
    assert torch.equal(found.logits, output.logits)
    assert not torch.equal(found.logits, predict(model, tokens, None, 1).logits)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epsilon": 0.0}, r"epsilon=0.0 must be in \(0, 1\)"),
        ({"epsilon": 1.0}, r"epsilon=1.0 must be in \(0, 1\)"),
        ({"ponder_weight": -1.0}, "ponder_weight=-1.0 must be a finite number of at least 0"),
        ({"ponder_weight": math.inf}, "ponder_weight=inf"),
        ({"num_segments": 0}, "num_segments must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ACT(**given)
    with pytest.raises(ValueError, match="depth"):
        ACT().depth(3)
