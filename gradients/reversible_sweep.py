"""Going through an invertible recursion without keeping its states, and back by undoing update after update."""

from dataclasses import replace
from typing import Any

import torch

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import check_structure, period_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.gradient_sums import GradientSums
from loopgrad.gradients.graphs import alias, is_floating, next_number, requires_grad, spread
from loopgrad.gradients.invertible import Note, Undone, invertible
from loopgrad.gradients.met_again import MetAgain
from loopgrad.gradients.observed import Watched
from loopgrad.gradients.outputs import Saving, Taken
from loopgrad.gradients.recompute import Conditions, GraphFree
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.stepwise import StepwiseInvertible, callers
from loopgrad.gradients.untouched import Untouched
from loopgrad.gradients.wrappers import unwrapped


class ReversiblePass:
    """A forward pass that keeps its last state, and what undoing its updates needs beside that state.

    Args:
        cell: The cell, an `Invertible`.
        how: The estimator.
        num_steps: Number of updates.
        saving: At which of them a readout is asked, None for none.
    """

    def __init__(self, cell: FunctionalCell, how: Any, num_steps: int, saving: Saving | None = None):
        self.cell, self.how, self.num_steps, self.saving = cell, how, num_steps, saving

    def run(self, inputs: Any) -> tuple[list[Any], list[torch.Tensor]]:
        """Run the recursion; return the leaves of its last state, and the tensors that are kept for backward."""
        cell, how, watched, own = self.cell, self.how, Watched(self.cell), invertible(self.cell.cell)
        tensors = [*tree.apart(cell.state)[0], *cell.others]
        versions, conditions = versions_of(tensors), Conditions(cell.cell, tensors)
        notes, draws, anchors = [], [conditions.generators], []
        state = cell.unflatten_state(cell.state)
        with GraphFree(cell.cell) as prepared:
            for step in range(self.num_steps):
                if how.anchors and step and step % how.anchors == 0:
                    anchors.append(tree.flatten(state)[0])
                state, after = watched.update(state, inputs, step)
                if step == 0:
                    check_structure(state, after)
                with torch.no_grad():
                    notes.append(own.note(state, after, step))
                state = prepared(tree.map_tensors(torch.Tensor.detach, after) if watched.watching else after)
                # the generators before each update; all the same object where nothing is drawn
                now = conditions.generator_states()
                draws.append(draws[-1] if all(map(torch.equal, now, draws[-1])) else now)
                if (name := conditions.changed_buffer(cell.cell)) is not None:
                    raise RuntimeError(
                        f"the cell's update rewrites its buffer {name}, so it cannot be undone: put that module in "
                        "eval mode, or use CheckpointedBPTT(), which keeps buffers with its states"
                    )
        check_unchanged(tensors, versions, "its updates cannot be undone")
        conditions.buffers = {}  # no update changed them
        if draws[-1] is draws[0]:
            conditions.generators = []
        self.conditions, self.draws, self.frozen = conditions, draws, watched.frozen()
        # all tensors in one flat list
        leaves, self.touched = tree.flatten(state)[0], [note.touched for note in notes]
        kept, self.rest_last = tree.apart(leaves)
        self.lengths = [len(note.dropped) for note in notes]
        kept += [word for note in notes for word in note.dropped]
        self.rest_anchors = []
        for anchor in anchors:
            found, rest = tree.apart(anchor)
            kept += found
            self.rest_anchors.append(rest)
        return leaves, [*kept, *cell.sources]


class ReversibleRecursion(RecursionNode):
    """The node of a `ReversiblePass`; it keeps the tensors of the last state, of notes and anchors, and the sources.

    Backward does by hand what autograd would have done: it goes through the updates from the last to the first, and
    sums.
    """

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        """Undo the updates one after the other, each with its vector-Jacobian product."""
        refuse_second_derivative("ReversibleBPTT")
        run = ctx.run
        run.frozen.check()
        with Untouched(run.cell.cell, run.conditions):
            sweep = _Sweep(run, ctx.saved_tensors, ctx.needs_input_grad[3:], cotangents)
            try:
                with run.conditions.restored(run.cell.cell):
                    grads = run.cell.call(sweep.run, sweep.sums.entries, {})
            finally:
                sweep.sums.close()
        return None, None, None, *grads, *sweep.result()


class _Sweep:
    """One backward pass, from the last update to the first."""

    def __init__(self, run: ReversiblePass, kept: Any, wanted: Any, cotangents: Any):
        cell, queue, gradients = run.cell, iter(kept), iter(cotangents)
        self.forward, self.cell, self.period = run, cell, period_of(cell.cell)
        self.last = tree.together(queue, run.rest_last)
        self.words = [tuple(next(queue) for _ in range(length)) for length in run.lengths]
        self.anchors = [tree.together(queue, rest) for rest in run.rest_anchors]
        self.grads = spread(gradients, self.last)
        self.of_answers, self.learnt = list(gradients), False
        others, caches = cell.stand_ins(wanted[len(wanted) - len(cell.others) :]), run.conditions.autocast.caches()
        # each of their parts is read by one update: nothing is summed
        self.scanned = {i: torch.zeros_like(others[i]) for i in cell.scanned if others[i].requires_grad}
        for i in self.scanned:
            others[i] = others[i].detach()
        # inputs as views, save those that autocast would cache: modules that count gradients through hooks want views
        leaves = [tensor.is_leaf and tensor.requires_grad for tensor in cell.others]
        bare = [i >= cell.num_inputs or (caches and leaf) for i, leaf in enumerate(leaves)]
        self.sums = GradientSums(others, bare, caches)

    def run(self, module: Any, inputs: Any) -> list[torch.Tensor | None]:
        """Return the gradients of the floating leaves of the first state; those of the rest are added up in `sums`."""
        # invariant: `state` is the one after update `step`, and `grads` that of the loss by each of its leaves
        run, cell, last, sums = self.forward, self.cell, self.last, self.sums
        state, met, anchors = cell.unflatten_state(last), MetAgain(cell, run.how.verify, last), run.how.anchors
        for step in reversed(range(run.num_steps)):
            if not any(grad is not None for grad in (*self.grads, *self.of_answers)):
                break
            if run.conditions.generators:
                run.conditions.set_generators(run.draws[step])  # the masks that this update drew
            # the one evaluation of the cell: it undoes the update, and leaves the graph from `reads` to the images
            since, (given, parts) = next_number(), self.of_update(inputs, step)
            undone = module(state, tree.own_containers(given), step, Note(run.touched[step], self.words[step]))
            if not isinstance(undone, Undone):
                raise TypeError(f"{_name(cell)}.forward with undo must return Undone, got {type(undone).__name__}")
            # the readout drew after the update, and in BPTT's order of sums it comes before it
            self.add_answer(module, state, given, parts, step)
            state, reads = undone.before, [*undone.reads, *parts]
            before = tree.flatten(state)[0]  # a leaf that is not coupled may change its dtype, or be absent at first
            if step >= run.num_steps - self.period:  # graphs repeat from cycle to cycle: one cycle tells all
                images = [image for image in undone.images if image is not None]
                sums.learn(images, [*reads, *cell.frozen], since)
            # what goes around the cell (sums, damping) is linear and known: the coupling says it without a graph
            pulled = pull_at(module, step, undone.images, self.grads)
            if not (isinstance(pulled, tuple) and len(pulled) == 2 and len(pulled[0]) == len(undone.images)):
                raise TypeError(f"{_name(cell)}.pull must return gradients of the images, and of the leaves before")
            seeds, self.grads = pulled
            pairs = zip(undone.images, seeds, strict=True)
            pairs = [(i, seed) for i, seed in pairs if seed is not None and requires_grad(i)]
            for i, (read, grad) in enumerate(zip(undone.reads, self.grads, strict=False)):
                if grad is not None and grad.dtype == read.dtype:
                    # floating sums depend on their order. BPTT adds what came around the cell first, so it is
                    # handed to autograd as a root at the leaf; not so where BPTT has a cast between the two
                    pairs.append((read, grad))
                    self.grads[i] = None
            # what goes through the cell: shared tensors keep their part in `sums`, and the state's comes back
            found = sums.add(pairs, reads) if pairs else []
            self.place(found[len(undone.reads) :], step)
            for i, read in enumerate(found[: len(undone.reads)]):
                if read is not None:
                    old = self.grads[i]
                    self.grads[i] = read.to(before[i].dtype) if old is None else torch.add(old, read)
            if anchors and step and step % anchors == 0:
                anchor = self.anchors[step // anchors - 1]
                met.judge(state, anchor, f"the state before update {step}")
                state = cell.unflatten_state(anchor)
            elif step:
                met.undone(state)
        else:  # only a sweep that has come to the beginning can compare it with the first state
            met.judge(state, cell.state, "the first state")
        self.grads += [None] * (len(last) - len(self.grads))
        return [grad for grad, leaf in zip(self.grads, cell.state, strict=True) if is_floating(leaf)]

    def of_update(self, inputs: Any, step: int) -> tuple[Any, list[torch.Tensor]]:
        """Return the inputs for an update, and leaves for what it alone reads of them."""
        if not self.scanned:
            return inputs, []
        own = {i: self.cell.of_updates(self.sums.entries[i], step, step + 1) for i in self.cell.scanned}
        parts = {i: alias(part, i in self.scanned) for i, part in own.items()}
        queue = iter(parts.values())
        given = replace(inputs, xs=tree.map_tensors(lambda _: next(queue), inputs.xs), first=step)
        return given, [parts[i] for i in self.scanned]

    def add_answer(self, module: Any, state: Any, given: Any, parts: list[torch.Tensor], step: int) -> None:
        """Add the gradients that come from the answer to the state after an update."""
        saving = self.forward.saving
        if saving is None or saving.places[step] is None or all(grad is None for grad in self.of_answers):
            return
        leaves, unflatten = tree.flatten(state)
        leaves, taken, since = [alias(leaf, True) for leaf in leaves], Taken(saving), next_number()
        taken.put(step, module.asked(unflatten(list(leaves)), given, given.at(step), step))
        if not self.learnt:
            self.sums.learn(taken.tensors, [*leaves, *parts, *self.cell.frozen], since)
            self.learnt = True
        pairs = taken.pairs(self.of_answers)
        found = self.sums.add(pairs, [*leaves, *parts]) if pairs else []
        self.place(found[len(leaves) :], step)
        for i, grad in enumerate(found[: len(leaves)]):
            if grad is not None:
                old = self.grads[i]
                self.grads[i] = grad if old is None else old + grad

    def place(self, found: list[torch.Tensor | None], step: int) -> None:
        """Add the gradients of what one update alone has read."""
        for whole, grad in zip(self.scanned.values(), found, strict=False):
            if grad is not None:
                self.cell.of_updates(whole, step, step + 1).add_(grad)

    def result(self) -> list[torch.Tensor | None]:
        """Return the gradients of the cell's other tensors."""
        return [self.scanned.get(i, total) for i, total in enumerate(self.sums.result())]


def pull_at(module: Any, step: int, images: list, gradients: list) -> Any:
    """Return what the `pull` of an invertible module gives for update number `step`."""
    own = invertible(module)
    by_row = isinstance(own, StepwiseInvertible)
    return own.pull_at(step, images, gradients) if by_row else own.pull(images, gradients)


def _name(cell: FunctionalCell) -> str:
    return type(unwrapped(callers(cell.cell))).__name__
