"""The whole trajectory of a recursion by Newton's method, and the exact gradient at it, as one node of autograd."""

from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.beside import furthest, others
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import check_shapes
from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import check_nothing_hidden, is_floating, next_number, pull_back, spread
from loopgrad.gradients.influence import precisely
from loopgrad.gradients.newton import Found, going_back, searched
from loopgrad.gradients.observed import Watched
from loopgrad.gradients.recompute import Conditions, drop_untouched
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.side_by_side import SideBySide
from loopgrad.gradients.stepwise import Steps, callers
from loopgrad.gradients.untouched import Untouched
from loopgrad.gradients.watched_step import WatchedCell


class TrajectoryPass:
    """A forward pass to all states at once, and what going back through them needs.

    Args:
        cell: The cell; what its first updates are seen to read is added to `others`.
        watch: What in it watches how it reads the numbers of its updates.
        num_steps: T, at least 1.
        how: The estimator.
        stats: Take the cost.
    """

    def __init__(self, cell: FunctionalCell, watch: WatchedCell, num_steps: int, how: Any, stats: Any):
        self.cell, self.watch, self.num_steps, self.how, self.stats = cell, watch, num_steps, how, stats
        self.owner = type(how).__name__
        self.updates = SideBySide(cell, num_steps, self.owner)
        how.check_size(num_steps, self.updates.batch, self.updates.rows.width)
        self.blocks, self.met = how.blocks(), Fingerprints()

    def run(self, inputs: Any) -> Found:
        """Return what Newton's method ends with: the states (T, batch, features) and how far they are off."""
        cell, updates = self.cell, self.updates
        tensors = [tensor for tensor in (*cell.state, *cell.others) if isinstance(tensor, Tensor)]
        versions, self.conditions = versions_of(tensors), Conditions(cell.cell, tensors)
        quiet = Steps(inputs.inputs, inputs.xs, axis=inputs.axis) if isinstance(inputs, Steps) else inputs
        begun, graph = self._begun(quiet), torch.is_grad_enabled()
        self.check_steps()
        check_unchanged(tensors, versions, "its updates cannot be run at once")
        first = updates.rows.join([leaf if leaf is None else leaf.detach() for leaf in cell.state])
        states = torch.stack([*begun, *[begun[-1]] * (self.num_steps - len(begun))])

        def images(states: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                starts = updates.starts(first, states).requires_grad_()
                found = updates.images(starts, cell.others, {})
            self.stats.cell_evaluations += updates.period
            return starts, found

        with torch.no_grad(), precisely(states):
            try:
                starts, found = images(states)
            except (RuntimeError, ValueError, IndexError) as error:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RuntimeError(self._others(f"do not run: {said}")) from error
            self._check_untouched()
            self.check_steps()
            self._check_side_by_side(quiet, (starts, found), products=False)
            result = searched(self.how, self.blocks, images, states, (starts, found), self.stats)
            if result.met:  # at a guess all samples may be alike, and what one sees of another not show
                self._check_side_by_side(quiet, result.images, products=graph)
                self.met.note(self.num_steps, [result.images[1].detach().flatten(0, 1)])
            self.check_steps()
        torch.clear_autocast_cache()
        drop_untouched([self.conditions], end=self.conditions)
        return result

    def _begun(self, inputs: Any) -> list[Tensor]:
        """Return the states after the first updates, which are run one by one and watched."""
        cell, watched, found = self.cell, Watched(self.cell), []
        state = cell.unflatten_state(list(cell.state))
        for step in range(min(max(self.updates.period, 2), self.num_steps)):
            after = watched.run(state, inputs, range(step, step + 1))
            check_shapes(self.owner, state, after)
            self._check_dtypes(state, after)
            state = after
            found.append(self.updates.rows.join(tree.flatten(state)[0]))
        self.stats.cell_evaluations += len(found)
        self.frozen = watched.frozen()
        return found

    def _check_dtypes(self, before: Any, after: Any) -> None:
        for (name, old), new in zip(tree.leaves_with_names(before, "state"), tree.tensors(after), strict=False):
            if isinstance(old, Tensor) and old.dtype != new.dtype:
                raise ValueError(
                    f"{self.owner} needs a state of one dtype, and the cell takes {name} from {old.dtype} to "
                    f"{new.dtype}: give it that dtype in z_0, or use BPTT()"
                )

    def _check_untouched(self) -> None:
        """Raise if an update draws random numbers or rewrites a buffer, and put them back."""
        now = self.conditions.generator_states()
        drawn = not all(map(torch.equal, self.conditions.generators, now))
        buffer = self.conditions.changed_buffer(self.cell.cell)
        if drawn or buffer is not None:
            self.conditions.put_back(self.cell.cell)
            inside = "" if buffer is None else _inside(self.cell.cell, buffer)
            what = "draws random numbers" if buffer is None else f"rewrites its buffer {inside}"
            raise RuntimeError(
                f"{self.owner} runs all updates at once, and an update of this cell {what}, which has an order: use "
                "eval() if that is for training alone, or BPTT() or CheckpointedBPTT()"
            )

    def _check_side_by_side(self, inputs: Any, images: tuple[Tensor, Tensor], products: bool) -> None:
        """Raise unless some updates, each run alone, are as their images, and their products too if those are asked."""
        allowed = max(torch.finfo(dtype).eps for dtype in self.dtypes()) ** (2 / 3)
        off = furthest(self.updates, inputs, *images, products, self.stats)
        if not max(off) <= allowed or not min(off) <= allowed:  # one of them may be no number
            self.conditions.put_back(self.cell.cell)
            what, worst = ("", off[0]) if not off[0] <= allowed else (" in their derivative", off[1])
            raise RuntimeError(self._others(f"are others{what} (off by {worst:.1e}, allowed {allowed:.1e})"))

    def check_steps(self) -> None:
        """Raise if an update has read more of its number than its place in a cycle, and there is more than one."""
        if self.watch.otherwise and self.num_steps > self.updates.period:
            self.conditions.put_back(self.cell.cell)
            raise RuntimeError(self._others("would all be told the number of the first"))

    def _others(self, what: str) -> str:
        return others(self.owner, self.cell, what)

    def dtypes(self) -> list[torch.dtype]:
        """Return those of the state."""
        return [leaf.dtype for leaf in self.cell.state if is_floating(leaf)]


def _inside(cell: nn.Module, name: str) -> str:
    """Return the name that a member has in the caller's own cell."""
    own = callers(cell)
    while cell is not own:
        name, cell = name.removeprefix("cell."), cell.cell  # pyright: ignore[reportAssignmentType]
    return name


class TrajectoryRecursion(RecursionNode):
    """The node of a `TrajectoryPass`: sources -> (T, batch, features); it keeps these states and the sources."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Solve lambda_t = J_t^T lambda_{t+1} + c_t, and take all updates' products with it at once."""
        run, states = ctx.run, ctx.saved_tensors[0]
        refuse_second_derivative(run.owner)
        run.frozen.check()
        cell, updates, stats, needs = run.cell, run.updates, run.stats, iter(ctx.needs_input_grad[3:])
        wanted, since = spread(needs, cell.state), next_number()
        read = cell.stand_ins(list(needs))
        first = updates.rows.join([leaf if leaf is None else leaf.detach() for leaf in cell.state])
        with Untouched(cell.cell, run.conditions), run.conditions.restored(cell.cell) as buffers:
            starts = updates.starts(first, states).detach().requires_grad_()
            found = updates.images(starts, cell.leaf_views(read), buffers)
            stats.cell_evaluations += updates.period
            check_nothing_hidden([found], [starts, *read, *cell.frozen], since)
            run.check_steps()
            run.met.compare(run.num_steps, [found.detach().flatten(0, 1)])
            run.met.judge(run.owner, "raise")
            with torch.no_grad(), precisely(states):
                adjoints = going_back(run.how, run.blocks, starts, found, cotangents[0], stats)  # pyright: ignore
                of_starts, *gradients = pull_back([found], [adjoints], [starts, *read])
            stats.vjps += 1
        of_first = None if of_starts is None else updates.rows.split(of_starts[0], cell.state)
        of_state = [
            None if of_first is None or not need else g
            for g, leaf, need in zip(of_first or wanted, cell.state, wanted, strict=True)
            if is_floating(leaf)
        ]
        return None, None, None, *of_state, *gradients
