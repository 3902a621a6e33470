"""Cross entropies against hand-worked values, torch's own and finite differences."""

import math

import torch
from torch.nn import functional as F

from loopgrad.models import softmax_cross_entropy, stablemax_cross_entropy, token_loss
from loopgrad.models.losses import right_tokens


def test_stablemax_of_hand_worked_logits():
    logits = torch.tensor([[[3.0, 0.0, -1.0, -3.0]]])  # s = 4, 1, 1/2, 1/4: sum 23/4
    for label, s in enumerate((4, 1, 0.5, 0.25)):
        loss = stablemax_cross_entropy(logits, torch.tensor([[label]]))
        assert loss.dtype == torch.float64
        assert math.isclose(loss.item(), math.log(23 / 4 / s), rel_tol=1e-12)


def test_stablemax_gradient_agrees_with_finite_differences_on_both_sides_of_zero():
    logits = torch.tensor([[[1.0, -0.3, 2.5, -4.0], [0.7, -1.0, 1e-3, -1e-3]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stablemax_cross_entropy(x, torch.tensor([[0, 3]])), logits)
    large = torch.tensor([[[1e6, -1e6, 0.0]]], requires_grad=True)
    stablemax_cross_entropy(large, torch.tensor([[1]])).sum().backward()
    assert large.grad is not None and large.grad.isfinite().all()


def test_softmax_equals_torch_cross_entropy():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, -100, 4], [1, 2, -100]])
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(logits, labels), expected)
    assert softmax_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


def test_token_loss_is_the_mean_over_samples_of_means_over_scored_tokens():
    labels = torch.tensor([[1, 1, 1, -100], [1, -100, -100, -100], [-100] * 4])
    per_token = torch.tensor([[3.0, 6.0, 9.0, 50.0], [4.0, 50.0, 50.0, 50.0], [50.0] * 4])

    def cross_entropy(logits, labels):
        return per_token.where(labels != -100, 0)

    assert math.isclose(token_loss(torch.zeros(3, 4, 2), labels, cross_entropy).item(), (6 + 4 + 0) / 3, rel_tol=1e-6)


def test_unscored_tokens_get_no_gradient():
    logits = torch.ones(1, 2, 3, requires_grad=True)
    for cross_entropy in (stablemax_cross_entropy, softmax_cross_entropy):
        (grad,) = torch.autograd.grad(token_loss(logits, torch.tensor([[2, -100]]), cross_entropy), logits)
        assert grad[0, 0].any() and not grad[0, 1].any()


def test_right_tokens_counts_scored_tokens_alone():
    labels = torch.tensor([[0, 1, -100], [0, 1, 1], [-100, -100, -100]])
    logits = F.one_hot(torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]), 2).float()
    share, solved = right_tokens(logits, labels)
    torch.testing.assert_close(share, torch.tensor([1.0, 2 / 3, 0.0]))
    assert solved.tolist() == [True, False, True]
