"""Cross entropies of the answer: stablemax, which HRM and TRM train with, and softmax."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from loopgrad.gradients.wide import widened

IGNORE = -100  # label of a token that is not scored

CrossEntropy = Callable[[Tensor, Tensor], Tensor]


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log(s(x_label) / sum_k s(x_k)) per token, with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below.

    s grows linearly where exp grows exponentially, so that raising all logits cannot drive the loss to zero quickly.
    Computed in float64; in float32 where the device has none.

    Args:
        logits: (batch, seq_len, vocab_size), any floating dtype.
        labels: (batch, seq_len) int64, IGNORE (-100) where not scored.

    Returns:
        (batch, seq_len) float64 (or float32), zero where not scored.

    Not recommended when:
        The device has no float64.
    Reference:
        Prieto et al. 2025, arXiv 2501.04697.

    Example:
        >>> import torch
        >>> from loopgrad.models import stablemax_cross_entropy
        >>> logits = torch.tensor([[[2.0, 0.0, -1.0]]])  # s = 3, 1, 1/2
        >>> round(stablemax_cross_entropy(logits, torch.tensor([[0]])).exp().item(), 6)
        1.5
    """
    x = widened(logits)
    log_s = torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p(-x.clamp(max=0)))
    scored = labels != IGNORE
    picked = log_s.gather(-1, labels.where(scored, 0).unsqueeze(-1)).squeeze(-1)
    return (log_s.logsumexp(-1) - picked).where(scored, 0.0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(x)_label per token, in float32 or wider; shapes are those of `stablemax_cross_entropy`."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(x.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="none").view(labels.shape)


def token_loss(logits: Tensor, labels: Tensor, cross_entropy: CrossEntropy = stablemax_cross_entropy) -> Tensor:
    """Return the mean over samples of the mean over scored tokens of the cross entropy; a sample without any counts 0.

    Args:
        logits: (batch, seq_len, vocab_size).
        labels: (batch, seq_len) int64, IGNORE (-100) where not scored.
        cross_entropy: Loss per token, `stablemax_cross_entropy` or `softmax_cross_entropy`.
    """
    scored = (labels != IGNORE).sum(-1).clamp(min=1)
    return (cross_entropy(logits, labels).sum(-1) / scored).mean()


def right_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per sample, the share of scored tokens that are right and whether all of them are.

    A sample without scored tokens has share 0 and counts as all right.
    """
    scored = labels != IGNORE
    right = (scored & (logits.argmax(-1) == labels)).sum(-1)
    count = scored.sum(-1)
    return right / count.clamp(min=1), right == count
