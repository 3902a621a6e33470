"""Reversible backpropagation through time: the exact gradient from the last state, by undoing update after update."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.cell_call import takes
from loopgrad.gradients.checks import check_choice, check_unchanged, is_int, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import Estimator, Rollout, Stats, check_structure, needs_gradient, period_of, run
from loopgrad.gradients.functional_cell import FunctionalCell, alias
from loopgrad.gradients.gradient_sums import GradientSums
from loopgrad.gradients.invertible import Note, Undone, is_invertible
from loopgrad.gradients.recompute import Conditions, graph_free

# relative difference of a first state reconstructed in floating point that is put down to rounding
TOLERANCE = 0.1


@dataclass(frozen=True)
class ReversibleBPTT(Estimator):
    """Backpropagation through time in memory that does not grow with the number of updates.

    Forward keeps the last state only. Backward undoes one update after the other: one evaluation of the cell serves to
    reconstruct z_t from z_{t+1} and to take the vector-Jacobian product at z_t. Needs an `Invertible` cell, such as
    `Damped(cell)`, `Leapfrog(cell)` or `Momentum(cell)` of `loopgrad.models`, whose default arithmetic makes the
    reconstruction exact to the last bit, and the gradient bit for bit that of `BPTT` through the same coupled cell.
    The whole recursion is one autograd.Function: each parameter receives one gradient.

    Args:
        verify: What to do if the first state, or an anchor, is not met again in backward, which is when something in
            the cell differed between its two runs (a kernel that is not deterministic, a hidden generator) and the
            gradient is wrong: "raise", "warn" or "off". Costs one comparison of two states, for each anchor too. In
            floating-point arithmetic a difference below 0.1 of the largest value in it and in the last state is taken
            for rounding.
        anchors: Keep a state every so many updates and go on from it in backward; for arithmetic that rounds.

    Cost:
        2T cell evaluations and T vjps, 4/3 of BPTT's FLOPs. Saves the last state, and the digits that damping loses
        (about log2(d/n) bits per element and update for a factor n/d; none for `Leapfrog`); T / anchors states with
        anchors. During backward the graph of one update lives beside them. A cell that draws random numbers adds a
        generator state per update (5 kB on CPU, 16 B on CUDA).
    Not recommended when:
        The recursion itself is given and must not change, for a coupled recursion is another model:
        use `CheckpointedBPTT`; its states would fit anyway; second derivatives are needed.
    Reference:
        Gomez et al. 2017, arXiv 1707.04585; Maclaurin et al. 2015, arXiv 1502.03492.

    Raises:
        TypeError: The cell is not invertible.
        ValueError: verify or anchors is not one of the above; or num_steps is more than the cell's arithmetic can undo.
        RuntimeError: The first state was not met again; the cell changes its state, inputs or buffers in place, or uses
            a tensor that requires grad and is not one of its parameters; or backward got create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ReversibleBPTT, Stationary
        >>> from loopgrad.models import Damped
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Damped(Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear))
        >>> rollout = ReversibleBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=1024)
        >>> rollout.state.sum().backward()  # the first state was met again, bit for bit, or this would raise
    """

    verify: Literal["raise", "warn", "off"] = "raise"
    anchors: int | None = None

    kind = "exact"
    memory = "O(1)"
    references = ("gomez2017reversible", "maclaurin2015gradient")
    by_sample = False

    def __post_init__(self) -> None:
        check_choice("ReversibleBPTT", "verify", self.verify, ("raise", "warn", "off"))
        if self.anchors is not None and not is_int(self.anchors, 1):
            raise ValueError(
                f"ReversibleBPTT(anchors={self.anchors!r}) must be the number of updates between two kept states, "
                "an int of at least 1, or None"
            )

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion, keeping nothing but its last state."""
        if not is_invertible(cell):
            name = type(cell).__name__
            raise TypeError(
                f"ReversibleBPTT needs a cell that can be undone, and {name} cannot: wrap it as Damped({name}(...)), "
                "Leapfrog or Momentum (loopgrad.models), make it Invertible, or use CheckpointedBPTT()"
            )
        if not takes(cell.forward, 4):
            raise TypeError(f"{type(cell).__name__}.forward must take (state, inputs, step, undo=None): see Invertible")
        if num_steps == 0 or not needs_gradient(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(cell_evaluations=num_steps, vjps=0))
        safe, length = cell.safe_length, min(num_steps, self.anchors or num_steps)
        if safe is not None and length > safe:
            raise ValueError(
                f"the arithmetic of this {type(cell).__name__} can undo {safe} updates, not num_steps={num_steps}: "
                f"each multiplies the rounding error. Use arithmetic='exact', ReversibleBPTT(anchors={safe}) or fewer, "
                "or CheckpointedBPTT()"
            )
        functional = FunctionalCell(cell, state, inputs)
        leaves = _Recursion.apply(functional, inputs, num_steps, self, *functional.state, *functional.others)
        return Rollout(functional.unflatten_state(leaves), Stats(cell_evaluations=2 * num_steps, vjps=num_steps))


class _Recursion(torch.autograd.Function):
    """The whole recursion as one node: (state leaves, other tensors) -> last state leaves.

    One node, so that autograd keeps nothing of the updates and hands each parameter one gradient. Backward must then do
    by hand what autograd would have done: go through the updates from the last to the first, and sum.
    """

    @staticmethod
    def forward(
        ctx: Any, cell: FunctionalCell, inputs: Any, num_steps: int, how: ReversibleBPTT, *tensors: torch.Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.num_steps, ctx.how = cell, num_steps, how
        ctx.are_leaves = [tensor.is_leaf and tensor.requires_grad for tensor in cell.others]
        versions = versions_of(tensors)
        conditions = Conditions(cell.cell, tensors)
        notes, draws, anchors = [], [conditions.generators], []
        state = cell.unflatten_state(cell.state)
        with graph_free(cell.cell) as prepared:
            for step in range(num_steps):
                if how.anchors and step and step % how.anchors == 0:
                    anchors.append(tree.flatten(state)[0])
                after = cell.cell(state, inputs, step)
                if step == 0:
                    check_structure(state, after)
                notes.append(cell.cell.note(state, after, step))  # pyright: ignore[reportCallIssue]
                state = prepared(after)
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
        leaves = tree.flatten(state)[0]
        ctx.conditions, ctx.draws = conditions, draws
        # tensors go through save_for_backward, which frees them in time and notices if they are written to: those of
        # the notes in one flat list, of which the lengths are kept here
        ctx.touched, ctx.lengths = [note.touched for note in notes], [len(note.dropped) for note in notes]
        dropped = [word for note in notes for word in note.dropped]
        ctx.save_for_backward(*tensors, *leaves, *dropped, *(leaf for anchor in anchors for leaf in anchor))
        return tuple(leaf.detach() for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        refuse_second_derivative("ReversibleBPTT")
        cell, width = ctx.cell, len(ctx.cell.state)
        saved = iter(ctx.saved_tensors)
        first = [next(saved) for _ in range(width)]
        # the updates read aliases, or every parameter's hook (as of DDP) would fire once per update
        aliases = [
            alias(next(saved), needed) for _, needed in zip(cell.others, ctx.needs_input_grad[4 + width :], strict=True)
        ]
        last = [next(saved) for _ in range(width)]
        words = [tuple(next(saved) for _ in range(length)) for length in ctx.lengths]
        rest = list(saved)
        anchors = [rest[i : i + width] for i in range(0, len(rest), width)]
        caches = ctx.conditions.autocast_caches()
        # inputs as views, save those that autocast would cache: modules that count gradients through hooks want views
        bare = [i >= cell.num_inputs or (caches and leaf) for i, leaf in enumerate(ctx.are_leaves)]
        sums = GradientSums(aliases, bare, caches)
        period = period_of(cell.cell)

        def sweep(module: Any, inputs: Any) -> list[torch.Tensor | None]:
            # invariant: `state` is the one after update `step`, and `grads` that of the loss by each of its leaves
            state, grads = cell.unflatten_state(last), list(cotangents)
            for step in reversed(range(ctx.num_steps)):
                if not any(grad is not None for grad in grads):
                    break
                if ctx.conditions.generators:
                    ctx.conditions.set_generators(ctx.draws[step])  # the masks that this update drew
                # the one evaluation of the cell: it undoes the update, and leaves the graph from `reads` to the images
                undone = module(state, inputs, step, Note(ctx.touched[step], words[step]))
                if not isinstance(undone, Undone):
                    raise TypeError(f"{_name(cell)}.forward with undo must return Undone, got {type(undone).__name__}")
                state, reads = undone.before, undone.reads
                if step >= ctx.num_steps - period:  # graphs repeat from cycle to cycle: one cycle tells all
                    sums.learn([image for image in undone.images if image is not None], reads)
                # what goes around the cell (sums, damping) is linear and known: the coupling says it without a graph
                pulled = module.pull(undone.images, grads)
                if not (isinstance(pulled, tuple) and len(pulled) == 2 and len(pulled[0]) == len(undone.images)):
                    raise TypeError(f"{_name(cell)}.pull must return gradients of the images, and of the leaves before")
                seeds, grads = pulled
                pairs = zip(undone.images, seeds, strict=True)
                pairs = [(i, seed) for i, seed in pairs if i is not None and seed is not None and i.requires_grad]
                for i, (read, grad) in enumerate(zip(reads, grads, strict=False)):
                    if grad is not None and grad.dtype == read.dtype:
                        # floating sums depend on their order. BPTT adds what came around the cell first, so it is
                        # handed to autograd as a root at the leaf; not so where BPTT has a cast between the two
                        pairs.append((read, grad))
                        grads[i] = None
                # what goes through the cell: shared tensors keep their part in `sums`, and the state's comes back
                for i, read in enumerate(sums.add(pairs, reads) if pairs else ()):
                    if read is not None:
                        grads[i] = read.to(last[i].dtype) if grads[i] is None else torch.add(grads[i], read)
                if anchors and step and step % ctx.how.anchors == 0:
                    anchor = anchors[step // ctx.how.anchors - 1]
                    _verify(cell, ctx.how.verify, state, anchor, last, f"the state before update {step}")
                    state = cell.unflatten_state(anchor)
            else:  # only a sweep that has come to the beginning can compare it with the first state
                _verify(cell, ctx.how.verify, state, first, last, "the first state")
            return grads + [None] * (width - len(grads))

        with ctx.conditions.restored(cell.cell):
            grads = cell.call(sweep, sums.entries, {})
        return None, None, None, None, *grads, *sums.result()


def _name(cell: FunctionalCell) -> str:
    return type(getattr(cell.cell, "_orig_mod", cell.cell)).__name__


@torch.no_grad()
def _verify(cell: FunctionalCell, verify: str, got: Any, kept: Any, last: list[Any], what: str) -> None:
    """Compare a state as reconstructed with what it was."""
    if verify == "off":
        return
    states = (got, cell.unflatten_state(kept), cell.unflatten_state(last))
    met, given, end = (cell.cell.verified(state) for state in states)  # pyright: ignore[reportCallIssue]
    finite = all(bool(leaf.isfinite().all()) for leaf in last)
    worst = 0.0
    for mine, true in zip(met, given, strict=True):
        if not finite:  # where the recursion itself has left the numbers, nothing can be met again
            known = mine.isfinite() & true.isfinite()
            mine, true = torch.where(known, mine, 0), torch.where(known, true, 0)
        if not torch.equal(mine, true):
            worst = max(worst, float((mine - true).abs().nan_to_num(math.inf).max()))
    # rounding is that of the values on the way, of which a first state of zeros says nothing
    sizes = [float(leaf.abs().nan_to_num(0.0, posinf=0.0).max()) for leaf in (*given, *end) if leaf.numel()]
    worst /= max([1e-30, *sizes])
    if worst <= (0.0 if cell.cell.exact else TOLERANCE):
        return
    message = (
        f"ReversibleBPTT did not meet {what} again (largest difference {worst:.2g} of the largest value), so "
        "the gradient is wrong: the cell gave other values when it was run again, or its forward does not undo what it "
        "does. Look for a generator of its own, a kernel that is not deterministic "
        "(torch.use_deterministic_algorithms(True) finds it), Python state that changes from call to call, a state "
        "beyond 2^20, where exact arithmetic ends, or a cell of your own whose arithmetic rounds: that one says "
        "exact = False; or use CheckpointedBPTT()"
    )
    if verify == "raise":
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
