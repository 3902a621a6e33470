"""Asking an event after the updates of a recursion, and what becomes of a readout's answers meanwhile."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level as in_transform
from torch.nn.utils import parametrize

from loopgrad.gradients import tree
from loopgrad.gradients.batch_first import state_first
from loopgrad.gradients.checks import versions_of
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.events import CycleEvent
from loopgrad.gradients.outputs import Answers, Saving, Taken
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.stepwise import Steps, Stepwise


class Asking:
    """Asks an event after each update, and has the rows of which it is true done.

    Args:
        how: The event and how often the host looks, an `Until`.
        cell: The cell, whose `lengths` are the most updates of each row; they become what they have.
        steps: What its updates read.
        batch_dim: Where the batch is.
        conditions: Knows the generators of the call's devices.
    """

    def __init__(self, how: Any, cell: Stepwise, steps: Steps, batch_dim: Any, conditions: Conditions):
        self.event, self.every, self.cell, self.steps = how.event, how.every, cell, steps
        self.batch_dim, self.conditions = batch_dim, conditions
        self.period = period_of(cell) if isinstance(how.event, CycleEvent) else 0
        self._inputs = tree.map_tensors(Tensor.detach, steps.inputs)
        self._before: Any = None

    def begin(self, state: Any, step: int) -> None:
        """Take the state before an update."""
        self._tensors = tree.tensors(state)
        self._versions = versions_of(self._tensors)
        if self.period and (self.cell.start + step) % self.period == 0:
            self._before = self._plain(state)

    def after(self, state: Any, step: int, last: bool) -> tuple[int, ...]:
        """Ask after an update; where the host looks, return the numbers of updates as far as they are known."""
        if versions_of(self._tensors) != self._versions:
            raise RuntimeError(
                "the cell changes its state in place, so rows that are done cannot keep theirs: write z + f(z) instead "
                "of z.add_(f(z))"
            )
        lengths = self.cell.lengths
        assert lengths is not None
        done = self._asked(state, step)
        if done is not None:
            self.cell.lengths = torch.where(done & (lengths > step), step + 1, lengths)
        return self._looked() if last or (step + 1) % self.every == 0 else ()

    def _looked(self) -> tuple[int, ...]:
        assert self.cell.lengths is not None
        try:
            return tuple(self.cell.lengths.tolist())
        except RuntimeError as error:
            if in_transform() is None:
                raise
            raise RuntimeError(
                "until=... cannot run within torch.func.vmap, which hides from the host what each sample has come to: "
                "give the samples as one batch"
            ) from error

    def _asked(self, state: Any, step: int) -> Tensor | None:
        if self.period and (self._before is None or (self.cell.start + step + 1) % self.period):
            return None
        generators = self.conditions.generator_states()
        # casts and derived weights made here have no graph: nobody else is to meet them
        cached, derived = torch.is_autocast_cache_enabled(), set(parametrize._cache)
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.no_grad():
                if self.period:
                    done = self.event(self._before, self._plain(state))
                else:
                    x = tree.map_tensors(Tensor.detach, self.steps.at(step))
                    done = self.event(self._plain(state), tree.own_containers(self._inputs), x, self.cell.start + step)
        finally:
            torch.set_autocast_cache_enabled(cached)
            for key in set(parametrize._cache) - derived:
                del parametrize._cache[key]
        self._check(done)
        if not all(map(torch.equal, generators, self.conditions.generator_states())):
            raise RuntimeError(
                "until: the event draws from torch's global generators, which would change the random numbers of the "
                "cell: put its modules in eval mode, or draw from a torch.Generator of its own"
            )
        return done

    def _plain(self, state: Any) -> Any:
        plain = tree.map_tensors(Tensor.detach, self.cell.plain(state))
        return state_first(plain, self.batch_dim) if self.period else plain

    def _check(self, done: Any) -> None:
        lengths = self.cell.lengths
        assert lengths is not None
        rule = f"an event must return ({len(lengths)},) bool, one per sample, on the device of the state"
        if not isinstance(done, Tensor) or done.dtype != torch.bool:
            what = f"{done.dtype} of shape {tuple(done.shape)}" if isinstance(done, Tensor) else type(done).__name__
            raise TypeError(f"until: {rule}, got {what}: compare it, as in logit > 0")
        if done.shape != lengths.shape:
            raise ValueError(f"until: {rule}, got shape {tuple(done.shape)}: reduce it, as in done.flatten(1).all(1)")
        if done.device != lengths.device:
            raise ValueError(f"until: {rule}, {lengths.device}, got one on {done.device}: move what it reads there")


class HeldBack(Answers):
    """Holds answers back until it is known whether a sample comes to their update at all.

    Args:
        answers: Takes them; None if nobody is asked.
    """

    def __init__(self, answers: Answers | None):
        self.answers, self._held = answers, []

    @property
    def shown(self) -> bool:
        """No: what keeps graphs is watched by nobody."""
        return False

    def wants(self, step: int) -> bool:
        """Whether the readout is to be asked after an update."""
        return self.answers is not None and self.answers.wants(step)

    def put(self, step: int, answer: Any) -> None:
        """Hold the answer of an update."""
        self._held.append((step, answer))

    def hand_on(self, longest: int) -> None:
        """Hand on those of updates before number `longest`, and drop the rest."""
        for step, answer in self._held:
            if step < longest and self.answers is not None:
                self.answers.put(step, answer)
        self._held = []


class Rehearsal(Taken):
    """Has a readout asked that draws random numbers, for the cell to draw what it will draw in the run.

    One whose first answer draws none is asked no more.

    Args:
        saving: Of the recursion.
        conditions: Knows the generators of the call's devices.
    """

    def __init__(self, saving: Saving, conditions: Conditions):
        super().__init__(saving)
        self.conditions, self.draws = conditions, True

    def wants(self, step: int) -> bool:
        """Whether the readout is to be asked after an update."""
        self._before = self.conditions.generator_states() if self.draws else []
        return self.draws and super().wants(step)

    def put(self, step: int, answer: Any) -> None:
        """Drop the answer."""
        self.draws = not all(map(torch.equal, self._before, self.conditions.generator_states()))
