"""ARC scored as published: a pair is asked under augmentations, answers are turned back and voted for, few are tried.

Predictions come from a function of tokens and puzzle ids, and all else is arithmetic on what it returns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from loopgrad.experiments.tasks.arc import Arc
from loopgrad.gradients.checks import is_int

Predict = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps tokens (batch, seq_len) and puzzle ids (batch,) to predicted tokens, as many, and q_halt logits (batch,)."""

GridKey = tuple[tuple[int, ...], bytes]
"""Shape and cells of a grid: equal for equal grids."""


class Vote(NamedTuple):
    """One answer to a question, its augmentation undone, and the probability that the model gave of its being right."""

    answer: GridKey
    trust: float


class Asked(NamedTuple):
    """A held-out pair: the number of its task, and its grids."""

    task: int
    question: GridKey
    answer: GridKey


@dataclass(frozen=True)
class ArcScore:
    """Shares of ARC's held-out pairs that are solved.

    Attributes:
        untransformed: Without votes: the answer to the pair as it is, counted as `pass_at` is.
        pass_at: By number of answers tried: of each task the share of its pairs of which one of the answers with most
            votes is right, in the mean over tasks; at 2 what TRM's code reports.
        whole_at: The same: the share of tasks of which all pairs are solved so; at 2 what HRM's code reports.
    """

    untransformed: float
    pass_at: dict[int, float]
    whole_at: dict[int, float]


def arc_score(
    task: Arc, predict: Predict, num_augmentations: int, ks: Sequence[int] = (1, 2), batch_size: int = 512
) -> ArcScore:
    """Ask for every held-out pair as it is and under its first augmentations, and count what the votes solve.

    Of the answers to a question, their augmentations undone, the one given most often comes first; of as many votes the
    one of the greater mean of sigmoid(q_halt); of those the one given first. A prediction without a grid is an answer
    too, an empty one, and takes an attempt where it wins one. Pairs of a task with the same question share their votes.
    That is the rule of the published code: arc_eval.ipynb of HRM, and evaluators/arc.py of TRM, which goes on adding up
    votes over all evaluations of a run, see `cast_votes`.

    Cost:
        Predictions: the number of held-out pairs (419 of ARC-AGI-1), times 1 + num_augmentations.

    Args:
        task: Gives the pairs; its augmentations are those that the model knows by their puzzle ids.
        predict: Maps tokens and puzzle ids, on the CPU, to predicted tokens and q_halt logits.
        num_augmentations: 0..task.num_augmentations; published: all 1000.
        ks: Numbers of answers tried; published: 2.
        batch_size: Samples handed to `predict` at once.

    Raises:
        ValueError: A number is out of range, or `predict` returns other shapes or types.

    Reference:
        Wang et al. 2025, arXiv 2506.21734; Jolicoeur-Martineau 2025, arXiv 2510.04871.

    Example:
        >>> from loopgrad.experiments.tasks.arc_votes import Asked, Vote, solved_at
        >>> one, two = ((1, 1), b"1"), ((1, 1), b"2")
        >>> votes = [[Vote(one, 0.9), Vote(two, 0.1), Vote(two, 0.2)]]
        >>> [solved_at([Asked(0, one, one)], votes, k) for k in (1, 2)]
        [[False], [True]]
    """
    check_ks(ks)
    pairs = asked_pairs(task)
    return scored(pairs, cast_votes(task, predict, num_augmentations, batch_size), ks)


def cast_votes(task: Arc, predict: Predict, num_augmentations: int, batch_size: int = 512) -> list[list[Vote]]:
    """Return the votes for each held-out pair: that of the pair as it is, then those under augmentations 1, 2, ...

    To vote over several weights, as TRM's evaluator does over all evaluations of a run, join each pair's lists before
    `scored`; `untransformed` is then that of the first.

    Raises:
        ValueError: As `arc_score`.
    """
    for name, value, least in (("num_augmentations", num_augmentations, 0), ("batch_size", batch_size, 1)):
        if not is_int(value) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    if num_augmentations > task.num_augmentations:
        raise ValueError(
            f"num_augmentations={num_augmentations} asks for more than Arc(num_augmentations={task.num_augmentations}) "
            "has: the model knows no others"
        )
    votes: list[list[Vote]] = [[] for _ in task.held_out]
    known: dict[GridKey, GridKey] = {}  # an answer given a thousand times is kept once
    places = [(row, k) for k in range(num_augmentations + 1) for row in range(len(votes))]
    for start in range(0, len(places), batch_size):
        rows, augmentations = zip(*places[start : start + batch_size], strict=True)
        batch = task.asked(rows, augmentations)
        tokens, q_halt = predict(batch.inputs, batch.puzzle_ids)
        task.check_tokens(batch.inputs, tokens)
        if q_halt.shape != (len(rows),):
            raise ValueError(f"q_halt must be ({len(rows)},), a logit per sample, got {tuple(q_halt.shape)}")
        # what is no number is trusted least
        trust = q_halt.detach().cpu().double().sigmoid().nan_to_num(nan=0.0).tolist()
        for row, k, predicted, its in zip(rows, augmentations, tokens.detach().cpu().numpy(), trust, strict=True):
            key = grid_key(task.answered(predicted, row, k))
            votes[row].append(Vote(known.setdefault(key, key), its))
    return votes


def scored(pairs: Sequence[Asked], votes: Sequence[Sequence[Vote]], ks: Sequence[int] = (1, 2)) -> ArcScore:
    """Count what votes solve.

    Args:
        pairs: The held-out pairs.
        votes: As many lists, as `cast_votes` returns them; none is empty.
        ks: Numbers of answers tried.

    Raises:
        ValueError: As `check_ks`.
    """
    check_ks(ks)
    first = [own[0].answer == pair.answer for pair, own in zip(pairs, votes, strict=True)]
    tried = {k: _by_task(pairs, solved_at(pairs, votes, k)) for k in ks}
    return ArcScore(
        untransformed=_mean(map(_mean, _by_task(pairs, first))),
        pass_at={k: _mean(map(_mean, solved)) for k, solved in tried.items()},
        whole_at={k: _mean(map(all, solved)) for k, solved in tried.items()},
    )


def solved_at(pairs: Sequence[Asked], votes: Sequence[Sequence[Vote]], k: int) -> list[bool]:
    """Return of each pair whether its answer is among the first k that the votes for its question rank."""
    pooled: dict[tuple[int, GridKey], list[Sequence[Vote]]] = {}
    for pair, own in zip(pairs, votes, strict=True):
        pooled.setdefault((pair.task, pair.question), []).append(own)
    # in the order in which they were given, which decides between equals
    best = {it: ranked(vote for given in zip(*lists, strict=True) for vote in given) for it, lists in pooled.items()}
    return [pair.answer in best[pair.task, pair.question][:k] for pair in pairs]


def ranked(votes: Iterable[Vote]) -> list[GridKey]:
    """Return the different answers: most votes first, then greatest mean trust, then first given."""
    found: dict[GridKey, tuple[int, float]] = {}
    for answer, trust in votes:
        count, total = found.get(answer, (0, 0.0))
        found[answer] = count + 1, total + trust
    # sorted keeps the order of equals, also in reverse
    return sorted(found, key=lambda answer: (found[answer][0], found[answer][1] / found[answer][0]), reverse=True)


def grid_key(grid: np.ndarray) -> GridKey:
    """Return a key that equal grids of colours share."""
    return grid.shape, grid.astype(np.uint8).tobytes()


def asked_pairs(task: Arc) -> list[Asked]:
    """Return the held-out pairs of a task, in the order of its test set."""
    return [Asked(pair.task, grid_key(pair.question), grid_key(pair.answer)) for pair in task.held_out]


def check_ks(ks: Sequence[int]) -> None:
    """Check numbers of answers tried.

    Raises:
        ValueError: There are none, or one is no int of at least 1.
    """
    if not ks or not all(is_int(k) and k >= 1 for k in ks):
        raise ValueError(f"ks must be ints of at least 1, one at least, got {ks!r}")


def _by_task(pairs: Sequence[Asked], solved: Sequence[bool]) -> list[list[bool]]:
    found: dict[int, list[bool]] = {}
    for pair, it in zip(pairs, solved, strict=True):
        found.setdefault(pair.task, []).append(it)
    return list(found.values())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
