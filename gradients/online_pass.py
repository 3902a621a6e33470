"""A recursion with the influence of all that requires grad carried beside it, forward in time, as one autograd node."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.agreement import is_split
from loopgrad.gradients.answer_influence import AnswerInfluence
from loopgrad.gradients.carried_answers import CarriedAnswers
from loopgrad.gradients.checks import check_unchanged, refuse_complex, refuse_second_derivative, versions_of
from loopgrad.gradients.columns import Columns
from loopgrad.gradients.contract import check_shapes, check_structure, run
from loopgrad.gradients.forward_recursion import ForwardStats
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.influence import Carried, precisely
from loopgrad.gradients.observed import seeing_all
from loopgrad.gradients.online_update import ROUNDINGS, Pushing
from loopgrad.gradients.outputs import countable
from loopgrad.gradients.patterns import Patterns, dense, probed
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.stepwise import Steps
from loopgrad.gradients.tangents import CannotCarry

Find = Callable[[Any, Columns], Patterns]


@dataclass
class Known:
    """What a pass ends with."""

    last: list[Any]
    columns: Columns
    patterns: Patterns
    carried: Carried
    of_answers: list[Tensor | None]
    off: Tensor


class OnlinePass:
    """The updates, run with what `how` carries of dz_t/dp beside them.

    Args:
        cell: The cell.
        num_steps: Number of updates.
        how: The estimator: `how.carried(columns, patterns, like)` is what it carries from the initial state on.
        stats: Take the cost.
    """

    def __init__(self, cell: FunctionalCell, num_steps: int, how: Any, stats: ForwardStats):
        self.cell, self.num_steps, self.how, self.stats = cell, num_steps, how, stats
        self.conditions = Conditions(cell.cell, [*cell.state, *cell.others])
        whole = cell.unflatten_state(list(cell.state))
        self.saving = cell.cell.saving if isinstance(cell.cell, CarriedAnswers) else None
        self.start, self.unflatten = tree.flatten(whole[0] if self.saving is not None else whole)
        self.kept = whole[1] if self.saving is not None else None
        self.per_sample = how.scope == "sample"
        self.rows = RowLayout(self.start, self.per_sample)
        self.of_answer: RowLayout | None = None

    def run(self) -> tuple[list[Any], list[Tensor]]:
        """Run the updates; return the leaves of their last state, and the tensors kept for backward."""
        if any(map(is_split, self.cell.others)):
            name = type(self.how).__name__
            raise CannotCarry(
                f"the cell's weights are split by tensor parallelism, and {name} carries tangents, for which torch has "
                "no rule there: use CheckpointedBPTT()"
            )
        self.known = seeing_all(self.cell, self.conditions, self._run, self.stats, self.num_steps)
        known, self.answered = self.known, [found is not None for found in self.known.of_answers]
        carried, self.count = known.carried.tensors, len(known.carried.tensors)
        answers = [found for found in known.of_answers if found is not None]
        # autograd keeps these alone, and frees them in time
        empty = known.carried.holding([tensor.new_zeros(0) for tensor in carried])
        self.known = replace(known, last=[], carried=empty, of_answers=[])
        return known.last, [*carried, *answers]

    def _run(self) -> Known:
        """Try the zeros that a probe finds; where an update has others, run again, at last without any."""
        refuse_complex(type(self.how).__name__, self.cell.sources)
        versions = versions_of(self.cell.sources)
        dtypes = [self.rows.dtype, *(tensor.dtype for tensor in filter(is_floating, self.cell.sources))]
        dtypes += [dtype for _, enabled, dtype in self.conditions.autocast.devices if enabled]
        bound, off = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5, torch.zeros(())
        for attempt, (find, shared) in enumerate(self.attempts()):
            columns = Columns(self.cell, self.rows, sum(map(is_floating, self.start)), shared)
            self.how.check_size(columns, None, self.rows.batch or 1)
            patterns = find(self, columns)
            self.how.check_size(columns, patterns, self.rows.batch or 1)
            for careful in (True,) if attempt else (False, True):  # what was off may have been rounding alone
                with self.conditions.restored(self.cell.cell) if careful else nullcontext({}) as buffers:
                    known = self._attempt(buffers, columns, patterns, careful)
                check_unchanged(self.cell.sources, versions, "its updates cannot be run again")
                if not float(known.off) > bound:
                    rounding = ROUNDINGS * float(off) if careful and not attempt else 0.0
                    known.carried.check(type(self.how).__name__, max(bound, rounding))
                    return known
                off = known.off
                del known  # what was carried, before it is carried once more
        name = type(self.how).__name__
        reasons, ways = [], ["CheckpointedBPTT()"]
        if self.per_sample:
            reasons.append("samples see each other, as in batch normalisation")
            ways.insert(0, f"{name}(scope='batch')")
        if self.how.needs_pattern:
            reasons.append("the features on which a number acts change from update to update")
            ways[-1:] = ["RTRL() or CheckpointedBPTT(), or give what each update reads as xs"]
        raise RuntimeError(
            f"{name}(scope={self.how.scope!r}) takes the zeros of an update's derivatives, and each row's update for "
            f"one of that row alone, from what a probe has seen, and here {' or '.join(reasons) or 'they are others'} "
            f"(off by {float(off):.1e}, allowed {bound:.1e}): use {', '.join(ways)}"
        )

    def attempts(self) -> Iterator[tuple[Find, bool]]:
        """Give what finds the patterns, and whether all rows are taken to share inputs, until one of them holds."""
        yield probed, False
        yield probed, True
        if not self.how.needs_pattern:
            yield dense, True

    def updates(self) -> Sequence[int]:
        """Return the numbers of the updates: all of them."""
        return range(self.num_steps)

    def asked(self, features: int) -> range:
        """Return the features of which a probe takes a product: all of them."""
        return range(features)

    def _attempt(self, buffers: dict[str, Tensor], columns: Columns, patterns: Patterns, careful: bool) -> Known:
        cell, generator = self.cell, torch.Generator().manual_seed(1)
        updating = Pushing(columns, patterns.update, patterns.colours, generator, careful)
        asking = None
        leaves, kept = list(self.start), self.kept
        like = self.rows.join(leaves).detach()
        carried = self.how.carried(columns, patterns, like)
        influence, offs = AnswerInfluence(self.saving), []
        with torch.no_grad():
            for step in self.updates():
                others = cell.narrowed(cell.others, step, step + 1)
                given = leaves

                def update(state: list, read: list, step: int = step) -> list:
                    return self.update(state, read, buffers, step)

                def answer(state: list, read: list, step: int = step) -> list:
                    return self.answer(state, read, buffers, step)

                made = updating(update, given, others, lambda _: self.rows, step)
                self.stats.cell_evaluations += 1
                self.stats.tangents += len(updating.state)
                offs.append(updating.off(made))
                leaves = made.leaves
                with precisely(like):
                    carried.push(made.through, made.immediate)
                if self.saving is None or (place := self.saving.places[step]) is None:
                    continue
                assert patterns.answer is not None
                asking = asking or Pushing(columns, patterns.answer, patterns.of_answer, generator, careful)
                told = asking(answer, leaves, others, lambda _: self.of_answer, step)
                offs.append(asking.off(told))
                kept = self._taken(kept, told.leaves, place)
                if told.through.shape[1]:
                    influence.take(told, columns.spread(patterns.answer), carried, place)
        last = leaves if self.saving is None else tree.flatten((self.unflatten(leaves), kept))[0]
        off = torch.stack(offs).max() if offs else like.new_zeros(())
        return Known(last, columns, patterns, carried, influence.found, off)

    def update(self, leaves: list, others: list, buffers: dict[str, Tensor], step: int) -> list[Any]:
        """Return the leaves of the state after update `step`; the readout is not asked."""

        def updated(module: Any, inputs: Any) -> Any:
            given = replace(inputs, answers=None) if isinstance(inputs, Steps) else inputs
            inner = module if self.saving is None else module.cell
            return run(inner, self.unflatten(list(leaves)), given, range(step, step + 1))

        after = self.cell.call(updated, others, buffers, step)
        before = self.unflatten(list(leaves))
        check_structure(before, after)
        check_shapes(type(self.how).__name__, before, after)
        return tree.flatten(after)[0]

    def answer(self, leaves: list, others: list, buffers: dict[str, Tensor], step: int) -> list[Any]:
        """Return the leaves of the answer of the readout to the state after update `step`."""

        def asked(module: Any, steps: Any) -> Any:
            return module.cell.asked(self.unflatten(list(leaves)), steps, steps.at(step), step)

        answer = tree.flatten(self.cell.call(asked, others, buffers, step))[0]
        if self.of_answer is None and any(map(is_floating, answer)):
            self.of_answer = RowLayout([_plain(leaf) for leaf in answer], self.per_sample)
        return answer

    def _taken(self, kept: Any, leaves: list[Any], place: int) -> Any:
        """Return what is kept of the answers with one more, as `CarriedAnswers` does."""
        assert self.saving is not None
        if self.saving.summed:
            old, unflatten = tree.flatten(kept)
            return unflatten(
                [a + countable(b) if isinstance(b, Tensor) else b for a, b in zip(old, leaves, strict=True)]
            )
        unflatten = tree.flatten(kept[place])[1]
        return [*kept[:place], unflatten(leaves), *kept[place + 1 :]]


def _plain(leaf: Any) -> Any:
    """Return zeros like a leaf, which may belong to a transform of torch.func."""
    return torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device) if is_floating(leaf) else leaf


class OnlineRecursion(RecursionNode):
    """The node of an `OnlinePass`; it keeps what was carried, and the derivatives of the answers."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Return the products of the cotangents with what was carried."""
        pass_, saved = ctx.run, list(ctx.saved_tensors)
        refuse_second_derivative(type(pass_.how).__name__)
        known: Known = pass_.known
        width = sum(map(is_floating, pass_.start))
        with precisely(saved[0]):
            carried = known.carried.holding(saved[: pass_.count])
            g = pass_.rows.join(cotangents[:width])
            found = _products(g, lambda adjoint: carried.read(adjoint.unsqueeze(1)).squeeze(1))
            queue, rest = iter(saved[pass_.count :]), cotangents[width:]
            for place, answered in enumerate(pass_.answered):
                if not answered:
                    continue
                matrix, per = next(queue), len(rest) // len(pass_.answered)
                g = pass_.of_answer.join(rest[place * per : (place + 1) * per])
                found = found + _products(g, lambda adjoint, m=matrix: torch.einsum("rm,rmk->rk", adjoint, m))
        every = known.columns.gradients(found, known.patterns.reached)
        return (
            None,
            None,
            None,
            *(g if wanted else None for g, wanted in zip(every, ctx.needs_input_grad[3:], strict=True)),
        )


def _products(g: Tensor, product: Any) -> Tensor:
    """Return product(g), with zeros for rows that have no part in the loss, even where it is not finite."""
    return torch.where((g == 0).all(dim=1, keepdim=True), 0.0, product(g))
