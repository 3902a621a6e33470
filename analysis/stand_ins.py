"""What stands for an estimator where there are no values to ask: it goes the way that takes the most.

Online gradients take what follows from the zeros of an update's derivatives. Where these are is learnt from a trial of
the first updates with data, on a few samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loopgrad.analysis.foreseen import BATCH
from loopgrad.gradients import BPTT, Estimator, ImplicitGradient, LowRankES, ParallelNewton, RandomTruncation
from loopgrad.gradients.columns import Columns, colours_of
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.low_rank_pass import LowRankPass
from loopgrad.gradients.newton import Blocks
from loopgrad.gradients.noise import own_generator
from loopgrad.gradients.observed import watch
from loopgrad.gradients.online import Online
from loopgrad.gradients.online_pass import Find, OnlinePass
from loopgrad.gradients.patterns import Patterns, dense, probed, rounds

TRIED = 4  # samples of a trial, or one of few rounds
MOST_PRODUCTS = 1024  # of a probe, in a trial
MOST_NUMBERS = 2**19  # of an update's tangents in a trial; beyond these its updates are left out


def unquestioned(estimator: Estimator) -> Any:
    """Return an estimator that takes the most that this one may: asks no tensor whether to stop, and draws nothing."""
    if isinstance(estimator, RandomTruncation):
        return BPTT()
    if isinstance(estimator, ImplicitGradient):
        return replace(estimator, check_every=None, fallback=unquestioned(estimator.fallback))
    if isinstance(estimator, LowRankES):
        return _with(_TwoChunks, estimator, generator=own_generator(0))
    if isinstance(estimator, ParallelNewton):
        return _with(_TwoSteps, estimator, counts=[], sizes=[])
    return estimator


def tried(estimator: Online, probes: dict[tuple[bool, bool, int], Patterns]) -> Any:
    """Return an estimator whose first updates with data tell its zeros; it ends in `Enough`.

    Args:
        estimator: The estimator.
        probes: What trials of others on the same step have found; takes what this one finds.
    """
    if estimator.scope == "batch":
        raise ValueError(
            f"{type(estimator).__name__}(scope='batch') carries one matrix for all samples, which grows with the "
            "square of the batch: measure it with loopgrad.analysis.measure"
        )
    own = {"generator": own_generator(0)} if hasattr(estimator, "generator") else {}
    return _with(_Tried, estimator, found=[], probes=probes, **own)


def followed(estimator: Online, trial: Any) -> Any:
    """Return an estimator for tensors without data that knows its zeros from a trial."""
    return _with(_Followed, estimator, found=trial.found, sizes=[], each=[0, 0])


def _with(ways: type, estimator: Estimator, **more: Any) -> Any:
    """Return an estimator of the same name and settings, with some ways of its own."""
    kind = type(type(estimator).__name__, (ways, type(estimator)), {})
    made = object.__new__(kind)
    made.__dict__.update(vars(estimator) | more)
    return made


class _TwoChunksPass(LowRankPass):
    def chunks(self) -> list[range]:
        return super().chunks()[:2]

    def tangents(self, members: range, chosen: Sequence[bool], middle: Tensor) -> Tensor:
        """Run the perturbations of a chunk; behind the last one, count those that are left out."""
        before = self.stats.cell_evaluations
        found = super().tangents(members, chosen, middle)
        if members == self.chunks()[-1]:
            each = (self.stats.cell_evaluations - before) // len(members)
            self.stats.cell_evaluations += each * (self.how.population - members.stop)
        return found


class _TwoChunks(LowRankES):
    """Runs two chunks of its perturbations: what is allocated from the second on, beside gradients, all allocate."""

    passes = _TwoChunksPass


class _TwoProducts(Blocks):
    """Takes the products of two features: those of others allocate the same."""

    def asked(self, features: int) -> range:
        return range(min(2, features))


class _TwoSteps(ParallelNewton):
    """Ends its search after two steps, which hold what any number of steps does, and counts the most that it may take.

    Attributes:
        counts: Evaluations and vjps before each step.
        sizes: What was checked: updates and features.
    """

    counts: list[tuple[int, int]]
    sizes: list[tuple[int, int]]

    def blocks(self) -> Blocks:
        return _TwoProducts(self.jacobian == "full")

    def is_met(self, residual: float, dtype: torch.dtype, stats: Any) -> bool:
        self.counts.append((stats.cell_evaluations, stats.vjps))
        if stats.iterations < min(2, self.max_iterations):
            return False
        (evaluations, vjps), more = self.counts[-2], self.max_iterations - stats.iterations
        stats.cell_evaluations += more * (stats.cell_evaluations - evaluations)
        stats.vjps += more * (stats.vjps - vjps)
        return True

    def check_size(self, num_steps: int, batch: int, features: int) -> None:
        self.sizes[:] = [(num_steps, features)]

    def beside(self, batch: int) -> tuple[int, int]:
        """Return no evaluations and vjps beside those counted; raise ValueError where the estimator refuses a batch."""
        for num_steps, features in self.sizes:
            super().check_size(num_steps, batch, features)
        return 0, 0


class Enough(Exception):
    """Ends a trial."""


class _TriedPass(OnlinePass):
    def run(self) -> Any:
        watch(self.cell, self.conditions, self.stats, self.num_steps)  # what a readout reads has columns too
        super().run()
        raise Enough

    def updates(self) -> Sequence[int]:
        return range(min(self.num_steps, 2 * period_of(self.cell.cell)))

    def attempts(self) -> Iterator[tuple[Find, bool]]:
        for find, shared in super().attempts():
            yield partial(self._noted, find, shared), shared

    def _noted(self, find: Find, shared: bool, run: Any, columns: Columns) -> Patterns:
        products = columns.features * min(period_of(self.cell.cell), self.num_steps)
        if products > MOST_PRODUCTS:
            raise ValueError(
                f"{type(self.how).__name__} probes the first cycle with {products} vector-Jacobian products, of which "
                f"{MOST_PRODUCTS} are tried here at most: measure it with loopgrad.analysis.measure"
            )
        key = find is dense, shared, columns.width
        if key not in self.how.probes:
            self.how.probes[key] = find(run, columns)
        patterns = self.how.probes[key]
        self.how.found[:] = [(patterns, *key[:2])]
        return patterns


class _Tried(Online):
    """Notes the zeros of the attempt that held.

    Attributes:
        found: These, whether they are none at all, and whether all rows were taken to share inputs.
        probes: What earlier trials have found.
    """

    passes = _TriedPass
    found: list[tuple[Patterns, bool, bool]]
    probes: dict[tuple[bool, bool, int], Patterns]

    def check_size(self, columns: Columns, patterns: Patterns | None, rows: int) -> None:
        if patterns is None:
            super().check_size(columns, None, 1)
        else:
            tangents = columns.features + 1 + patterns.colours[1]
            if tangents * (columns.width + rows * columns.features) > MOST_NUMBERS:
                raise Enough


class _FollowedPass(OnlinePass):
    def attempts(self) -> Iterator[tuple[Find, bool]]:
        patterns, is_dense, shared = self.how.found[0]

        def known(run: Any, columns: Columns) -> Patterns:
            if columns.width >= BATCH:
                raise ValueError(
                    f"{type(self.how).__name__} takes the inputs of each row for columns of all rows here, as where "
                    "samples see each other or zeros of derivatives change, and these grow with the square of the "
                    "batch: measure it with loopgrad.analysis.measure"
                )
            if is_dense:
                return dense(run, columns)
            before = run.stats.vjps
            reached = probed(run, columns).reached
            self.how.each[0] += min(period_of(self.cell.cell), self.num_steps)
            self.how.each[1] += (run.stats.vjps - before) // rounds(BATCH)
            update = patterns.update[:, : columns.width].clone()  # of the columns that are known of by now
            answer = None if patterns.answer is None else patterns.answer[:, : columns.width].clone()
            of_answer = None if answer is None else colours_of(answer)
            return Patterns(update, colours_of(update), patterns.state.clone(), answer, of_answer, reached)

        yield known, shared

    def run(self) -> Any:
        """Run the updates, and count those that are left out."""
        found = super().run()
        self.stats.cell_evaluations += self.num_steps - len(self.updates())
        return found

    def updates(self) -> Sequence[int]:
        """Return the first two cycles and the last one, which allocate what all do, unless more answers are kept."""
        period = period_of(self.cell.cell)
        if self.num_steps <= 3 * period or (self.saving is not None and self.saving.rows > 1):
            return range(self.num_steps)
        return [*range(2 * period), *range(self.num_steps - period, self.num_steps)]

    def asked(self, features: int) -> range:
        """Return two of the features: products of others allocate the same."""
        return range(min(2, features))


class _Followed(Online):
    """Has its zeros from a trial; sizes are checked at the batch that is asked for, and not on the way.

    Attributes:
        found: The zeros.
        sizes: What was checked.
        each: Evaluations and vjps of a round of the probe.
    """

    passes = _FollowedPass
    found: list[tuple[Patterns, bool, bool]]
    sizes: list[tuple[Columns, Patterns]]
    each: list[int]

    def check_size(self, columns: Columns, patterns: Patterns | None, rows: int) -> None:
        if patterns is not None:
            self.sizes[:] = [(columns, patterns)]

    def beside(self, batch: int) -> tuple[int, int]:
        """Return the evaluations and vjps that the probe of a small batch takes beside those counted.

        Raises:
            ValueError: The estimator refuses the batch.
        """
        for columns, patterns in self.sizes:
            super().check_size(columns, patterns, batch)
        more = rounds(batch) - rounds(BATCH)
        return more * self.each[0], more * self.each[1]
