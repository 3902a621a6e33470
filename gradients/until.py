"""Stop on data: samples end when an event is true of them, and a batch with its longest sample.

An event has no derivative, so the numbers of updates are found first, by running the recursion without a graph; then
the estimator is called with these for `lengths`, which every estimator takes. `BPTT`, an ordinary loop, does both at
once, and so does whoever needs no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.asking import Asking, HeldBack, Rehearsal
from loopgrad.gradients.bptt import BPTT
from loopgrad.gradients.checks import check_int
from loopgrad.gradients.contract import Estimator, Rollout, Stats, check_structure, may_differentiate, needs_gradient
from loopgrad.gradients.events import CycleEvent
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.observed import Watched
from loopgrad.gradients.options import Ending, Options
from loopgrad.gradients.reading import kept
from loopgrad.gradients.recompute import Conditions, GraphFree
from loopgrad.gradients.rows_going import tried
from loopgrad.gradients.stepwise import Steps, Stepwise, cut


@dataclass(frozen=True)
class Until(Ending):
    """Ends each sample where an event is true of it, for `until=` of an estimator call.

    The event is asked after each update, on the state that it led to. A row of which it is true is done: it keeps that
    state to the last bit, as with `lengths`, and `Rollout.stats.steps` says how many updates it had. Values and
    gradients are those of the same call with these numbers for `lengths`; the event has no part in the gradient.

    Args:
        event: Called as event(state, inputs, x_t, step) with the arguments of a readout, all without a graph; returns
            (batch,) bool, on the device of the state. Or a `CycleEvent`, such as `ResidualBelow`.
        every: Updates between two looks of the host at whether all rows are done, each of which waits for the device
            once.

    Cost:
        As many updates as the longest sample has, rounded up to a multiple of `every`, of which no more than
        every - 1 are for nothing; num_steps at most. `BPTT`, and every estimator where no gradient is asked for, holds
        the states since the last look and needs no more than that. For the others the numbers of updates are found by
        a pass of its own, without a graph: one more evaluation for each of these updates, and afterwards the cost of
        the estimator for the longest sample. Both are counted in `stats.cell_evaluations`.
    Not recommended when:
        Samples see each other, as in batch normalisation: rows that are done are still seen. The cell gives other
        values when it is run again, from a generator of its own or a counter in Python: the numbers found are then
        those of another run, except under `BPTT`.

    Raises:
        TypeError: event cannot be called, or is a class; at a call: it returns something other than bools.
        ValueError: every is below 1; at a call: the event does not return one bool per sample, on the state's device;
            the estimator has the gradient of a fixed point alone (`ImplicitGradient`, `PhantomGradient`, `TorchDEQ`),
            of which the last cycle of a sample that was done before says nothing.
        RuntimeError: At a call: the event draws from torch's global generators, the cell changes its state in place, or
            the call is traced by torch.compile.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT, Stationary, Until
        >>> cell = Stationary(lambda z, x: z * x)
        >>> x, large = torch.tensor([[2.0], [3.0]], requires_grad=True), Until(lambda z, *_: z[:, 0] > 20, every=2)
        >>> rollout = CheckpointedBPTT()(cell, torch.ones(2, 1), x, 100, until=large)
        >>> rollout.state.sum().backward()
        >>> rollout.stats.steps, x.grad[:, 0].tolist()  # x^5 and x^3
        ((5, 3), [80.0, 27.0])
    """

    event: Callable[..., Tensor] | CycleEvent
    every: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.event, type) or not callable(self.event):
            raise TypeError(
                f"Until(event={self.event!r}) must be called as event(state, inputs, x_t, step), or be a CycleEvent "
                "such as ResidualBelow(1e-3)"
            )
        check_int("Until", "every", self.every, 1)

    def rollout(
        self, estimator: Estimator, cell: nn.Module, plain: Any, first: Any, inputs: Any, num_steps: int, how: Options
    ) -> Rollout:
        """Return the rollout of an estimator whose samples end by the event, with `stats.steps`."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "until=... cannot be traced by torch.compile, for the host looks at data: compile the cell"
            )
        how = replace(how, until=None, lengths=how.limits(plain, num_steps))
        if not num_steps or not len(how.lengths):
            rollout = estimator.asked(cell, plain, first, inputs, 0, how)
            return _with(rollout, (0,) * len(how.lengths), 0)
        asked, steps = how.around(cell, plain, first), how.steps(inputs, None, by_sample=False)
        loop = type(estimator).rollout is BPTT.rollout
        if loop or not _needs_gradient(asked, first, steps):
            begun = Conditions(asked, tree.flatten((first, steps))[0])
            rollout = _AtOnce(self, how.batch_dim, begun).asked(cell, plain, first, inputs, num_steps, how)
            if loop or not any(map(requires_grad, tree.flatten(rollout.state)[0])):
                return rollout
            begun.put_back(asked)  # something that requires grad is hidden in the cell: it is the estimator's to find
            taken, evaluations = rollout.stats.steps or (), rollout.stats.cell_evaluations
            how = replace(how, lengths=torch.tensor(taken))
        else:
            taken, evaluations = self._beforehand(asked, first, steps, num_steps, how)
            how = replace(how, lengths=asked.lengths)
        return _with(estimator.asked(cell, plain, first, inputs, max(taken), how), taken, evaluations)

    def _beforehand(
        self, cell: Stepwise, first: Any, steps: Steps, num_steps: int, how: Options
    ) -> tuple[tuple[int, ...], int]:
        """Return the numbers of updates of samples, and how many were run to find them; it leaves no trace."""
        functional = FunctionalCell(cell, first, steps)
        conditions = Conditions(cell, [*functional.state, *functional.others])
        asking, saving = Asking(self, cell, steps, how.batch_dim, conditions), how.saving()

        def updates(module: nn.Module, inputs: Any) -> tuple[tuple[int, ...], int]:
            state, watched = first, Watched(functional, strict=False)  # what the cell derives and keeps has its graph
            with GraphFree(cell) as prepared:
                for step in range(num_steps):
                    asking.begin(state, step)
                    state, after = watched.update(state, inputs, step)
                    if step == 0:
                        check_structure(first, after)
                    state = prepared(tree.map_tensors(Tensor.detach, after) if watched.watching else after)
                    taken = asking.after(state, step, step + 1 == num_steps)
                    if taken and max(taken) <= step + 1:
                        return taken, step + 1
            raise AssertionError("no row has more updates than there are")

        with tried(), conditions.restored(cell) as buffers:
            answers = None if saving is None else Rehearsal(saving, conditions)
            return functional.call(updates, functional.others, buffers, answers=answers)


@dataclass(frozen=True)
class _AtOnce(Estimator):
    """The recursion as a loop, under autograd as it is set, that ends when the host sees that all rows are done."""

    how: Until
    batch_dim: Any
    begun: Conditions  # before the first update

    kind = "exact"
    memory = "O(T)"
    outputs = "emitted"
    by_sample = False

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run it; afterwards generators and buffers are as the longest sample has left them."""
        assert isinstance(cell, Stepwise)
        begun, held, tensors = self.begun, HeldBack(inputs.answers), tree.flatten((state, inputs))[0]
        asking = Asking(self.how, cell, inputs, self.batch_dim, begun)
        inputs = cut(replace(inputs, answers=held if inputs.answers is not None else None), range(num_steps))
        # since the last look: what each update has led to
        points, now, taken, step = [], begun, (), 0
        try:
            for step in range(num_steps):
                asking.begin(state, step)
                after = cell(state, inputs, step)
                if step == 0:
                    check_structure(state, after)
                state, taken = after, asking.after(after, step, step + 1 == num_steps)
                now = _noted(now, cell, tensors) if self.how.every > 1 else now
                points.append((state, now))
                if taken:
                    held.hand_on(max(taken))
                    if max(taken) <= step + 1:
                        break
                    points = []
            over = step + 1 - max(taken)  # updates that no sample needed; their graph goes with them
            if over:
                state, now = points[-1 - over]
                now.put_back(cell)
        except BaseException:
            begun.put_back(cell)
            raise
        vjps = max(taken) if any(map(requires_grad, tree.flatten(state)[0])) else 0
        return _with(Rollout(state, Stats(step + 1, vjps)), taken, 0)


def _noted(before: Conditions, cell: nn.Module, tensors: list[Any]) -> Conditions:
    """Return the conditions of now; those before, where an update has neither drawn nor rewritten anything."""
    same = all(map(torch.equal, before.generators, before.generator_states()))
    return before if same and before.changed_buffer(cell) is None else Conditions(cell, tensors, before)


def _needs_gradient(cell: Stepwise, state: Any, steps: Steps) -> bool:
    """Return whether autograd is on and anything that can be seen without running the cell requires grad."""
    if not may_differentiate(cell, state, steps):
        return False
    return needs_gradient(cell, state, steps) or any(tensor.requires_grad for _, tensor in kept(cell).values())


def _with(rollout: Rollout, taken: tuple[int, ...], evaluations: int) -> Rollout:
    """Return a rollout that says how many updates each sample had, and how many were run to find this."""
    rollout.stats.steps = taken
    rollout.stats.cell_evaluations += evaluations
    return rollout
