"""The families of gradients that are compared, each as a user calls it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loopgrad.experiments.benches.family_cells import Couple, Problem
from loopgrad.gradients import (
    BPTT,
    KFRTRL,
    RTRL,
    UORO,
    CheckpointedBPTT,
    CompressedBPTT,
    DiagonalRTRL,
    Estimator,
    ForwardGradient,
    ImplicitGradient,
    LowRankES,
    ParallelNewton,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    SnAp,
    TruncatedBPTT,
)
from loopgrad.models import Leapfrog

POPULATION = 8
SMALL = "gru", "equilibrium"  # states of one vector per sample
# all Jacobians of 512 updates of a block are 256 MiB, several times that at the peak, and take ten minutes of a core
LONGEST = {"block": 128}


@dataclass(frozen=True)
class Contender:
    """A family.

    Attributes:
        estimator: Makes it from the seed of its noise.
        random: Whether it draws.
        side_by_side: Runs of the recursion that do not wait for each other.
        couple: Makes a cell what it runs on.
        only: The cells that it is for; () for all.
        longest: Most updates, of cells that it is not measured on beyond.
        chain: Tells from what a rollout counted how much runs one after the other, where updates are side by side.
    """

    estimator: Callable[[int], Estimator]
    random: bool = False
    side_by_side: int = 1
    couple: Couple | None = None
    only: tuple[str, ...] = ()
    longest: Mapping[str, int] = field(default_factory=dict)
    chain: Callable[[Any], int] | None = None

    def fits(self, problem: Problem) -> bool:
        """Return whether it is measured on a problem."""
        return problem.length <= self.longest.get(problem.name, problem.length) and (
            not self.only or problem.name in self.only
        )

    def depth(self, evaluations: int, vjps: int, stats: Any) -> int:
        """Return how many updates run one after the other, forward and back."""
        if self.chain is not None:
            return self.chain(stats)
        return -(-evaluations // self.side_by_side) + vjps


def _always(estimator: Estimator) -> Callable[[int], Estimator]:
    return lambda seed: estimator


def _leapfrog(cell: nn.Module, length: int) -> nn.Module:
    return Leapfrog(cell, scale=1 / length, arithmetic="float64")


def _newton(diagonal: bool) -> Contender:
    def chain(stats: Any) -> int:
        """Count two updates at the start, an evaluation and a scan per step, and the way back.

        Products that make up Jacobians are side by side with the evaluation, as are the updates run alone to compare.
        """
        forward = 3 + stats.iterations * (stats.levels + 1)
        return forward + 1 + (stats.backward_iterations + 1) * (stats.levels + 1) + diagonal

    estimator = ParallelNewton(jacobian="diagonal" if diagonal else "full")
    return Contender(_always(estimator), longest=LONGEST, chain=chain)


CONTENDERS: dict[str, Contender] = {
    "BPTT": Contender(_always(BPTT())),
    "CheckpointedBPTT": Contender(_always(CheckpointedBPTT())),
    "CheckpointedBPTT(1)": Contender(_always(CheckpointedBPTT(1))),
    "CheckpointedBPTT(binomial, 4)": Contender(_always(CheckpointedBPTT("binomial", num_snapshots=4))),
    "CheckpointedBPTT(int8)": Contender(_always(CheckpointedBPTT(kept="int8"))),
    "ReversibleBPTT of a leapfrog": Contender(_always(ReversibleBPTT()), couple=_leapfrog),
    "CompressedBPTT(bfloat16)": Contender(_always(CompressedBPTT("bfloat16"))),
    "CompressedBPTT(int8)": Contender(_always(CompressedBPTT("int8"))),
    "CompressedBPTT(rank=4)": Contender(_always(CompressedBPTT(rank=4))),
    "CompressedBPTT(tolerance=0.01)": Contender(_always(CompressedBPTT(tolerance=0.01))),
    "TruncatedBPTT(1)": Contender(_always(TruncatedBPTT(num_steps=1))),
    "TruncatedBPTT(8)": Contender(_always(TruncatedBPTT(num_steps=8))),
    "RandomTruncation(8)": Contender(lambda seed: RandomTruncation(mean_steps=8, seed=seed), random=True),
    "ImplicitGradient": Contender(_always(ImplicitGradient()), only=("block", "equilibrium")),
    "PhantomGradient(4)": Contender(_always(PhantomGradient(4)), only=("block", "equilibrium")),
    "ForwardGradient": Contender(lambda seed: ForwardGradient(seed=seed), random=True),
    "ForwardGradient(weights)": Contender(
        lambda seed: ForwardGradient(perturb="weights", window=0, seed=seed), random=True
    ),
    "RTRL": Contender(_always(RTRL()), only=SMALL),
    "SnAp(1)": Contender(_always(SnAp(1)), only=SMALL),
    "DiagonalRTRL": Contender(_always(DiagonalRTRL()), only=SMALL),
    "UORO": Contender(lambda seed: UORO(seed=seed), random=True, only=SMALL),
    "KFRTRL": Contender(lambda seed: KFRTRL(seed=seed), random=True, only=("gru",)),
    "ParallelNewton": _newton(diagonal=False),
    "ParallelNewton(diagonal)": _newton(diagonal=True),
    "LowRankES": Contender(
        lambda seed: LowRankES(population=POPULATION, seed=seed), random=True, side_by_side=2 * POPULATION + 1
    ),
}
