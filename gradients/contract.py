"""The contract every estimator keeps: estimator(cell, state, inputs, num_steps) -> Rollout.

The recursion is z_{t+1} = cell(z_t, inputs, t) for t = 0..num_steps-1; the estimator decides how the gradient of a
loss of z_T is obtained. Before and after the recursion everything is ordinary autograd.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch._C._functorch import maybe_current_level as in_transform

from loopgrad.gradients import tree
from loopgrad.gradients.around import Around
from loopgrad.gradients.batch_dims import is_first
from loopgrad.gradients.batch_first import batch_first, given_back
from loopgrad.gradients.carried_answers import CarriedAnswers
from loopgrad.gradients.cell_call import check_cell
from loopgrad.gradients.checks import check_call, is_int, said
from loopgrad.gradients.compiled import apart, is_compiling
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.invertible import undoing
from loopgrad.gradients.options import Options
from loopgrad.gradients.outputs import Answers, room_for
from loopgrad.gradients.pytrees import register_result
from loopgrad.gradients.recompute import keep_derived_weights
from loopgrad.gradients.stationary import closed_over
from loopgrad.gradients.stats import Stats
from loopgrad.gradients.stepwise import cut
from loopgrad.gradients.untouched import Untouched
from loopgrad.gradients.wrappers import unwrapped


@dataclass(frozen=True)
class Rollout:
    """The last state z_T and the outputs, whose autograd graph is the gradient estimate, and what it cost.

    Attributes:
        state: z_T.
        stats: What it cost.
        outputs: What was kept of the readout's answers; None if none was asked for.
    """

    state: Any
    stats: Stats
    outputs: Any = None


register_result(Rollout, whole=("stats",))


class Estimator(ABC):
    """A way to obtain d loss(z_T); a frozen dataclass of hyperparameters with no state of its own.

    Subclasses implement `rollout` and state their claims, which the tests hold them to.

    Attributes:
        kind: "exact", "exact at a fixed point", "unbiased" or "biased".
        memory: Growth of what is saved for backward with num_steps T, such as "O(T)" or "O(sqrt T)".
        not_differentiated: Which of "parameters", "inputs", "state" get no gradient (None).
        references: Keys of `loopgrad/references.bib`: the papers that it implements.
        outputs: What becomes of a readout that is asked at other updates than the last: "emitted", backward takes the
            gradients of its answers where it comes by; "carried", they are made part of the state; or "refused".
        by_sample: Whether it looks at samples one by one, in the gradient or in `stats`. If so, `rollout` is given
            states with the batch in dimension 0, wherever the caller has it.
        lengths: Whether samples may end before the last update; otherwise `lengths` and `until` are refused.
        compiles: Whether updates are compiled where a model that calls it is; otherwise they run as they are there.
    """

    kind: ClassVar[Literal["exact", "exact at a fixed point", "unbiased", "biased"]]
    memory: ClassVar[str]
    not_differentiated: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[Literal["emitted", "carried", "refused"]] = "refused"
    by_sample: ClassVar[bool] = True
    lengths: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def __call__(
        self,
        cell: nn.Module,
        state: Any,
        inputs: Any,
        num_steps: int,
        *,
        xs: Any = None,
        readout: Callable[[Any, Any, Any, int], Any] | None = None,
        save: Any = "last",
        start: int = 0,
        lengths: Any = None,
        until: Any = None,
        batch_dim: Any = 0,
    ) -> Rollout:
        """Run the recursion and return its last state, and what a readout gave on the way.

        Args:
            cell: Module called as cell(state, inputs, step) -> state: one latent update. Its attribute `period`
                (default 1) is the number of updates in a cycle.
            state: z_0, any tree of tensors, each (batch, ...); floating ones are differentiated, others (flags,
                counters, None) carried along as the cell gives them. An `Invertible` cell takes its own coupled state,
                or a plain one, and then the last state is a plain one as well.
            inputs: Any tree, or None; what each update reads beside the state.
            num_steps: Number of updates T, at least 0.
            xs: Tree of tensors (T, batch, ...): update t is called with x_t = xs[t] as its inputs, or with
                (inputs, x_t) if `inputs` is not None. Its gradient is that of an encoder in front.
            readout: Called as readout(state, inputs, x_t, step) after an update, on the (plain) state that it led to;
                gives a tree of tensors: a loss per sample, logits, anything differentiable; may own parameters. None
                for the state itself.
            save: What is kept of its answers in `Rollout.outputs`: "last", that of the last update; "sum", their sum;
                "all", stacked along a new first dimension; k, those after every k-th update (step + 1 is a multiple of
                k); or a list of the numbers of updates. Zeros for updates that no sample comes to; None if none is
                kept.
            start: Number of the first update, which the cell and the readout are told: a recursion may be cut into
                several rollouts, each going on from the last state of the one before.
            lengths: (batch,) ints, updates per sample, T at most: rows that are done keep their state. A readout gives
                a row per sample; for save="last" it is asked once for each number of updates, with its last step.
            until: `Until(event, every=n)`: a row is done too when the event is true of it. `Rollout.stats.steps` says
                how many updates each had; the batch runs as many as its longest sample, rounded up to n.
            batch_dim: Which dimension of the state's leaves is the batch: an int, a tree of ints such as (1, 0), or
                `BatchDims`, which says it of inputs too. For leaves with another first dimension, such as (layers,
                batch, size), every estimator that takes samples apart must be told.

        Returns:
            The last state, the outputs, and the cost of obtaining them and their gradient.

        Raises:
            TypeError: The cell is not a module or cannot be called so, the state has no floating tensor, num_steps is
                not an int; an optional argument is of the wrong type.
            ValueError: num_steps is negative, batch_dim, xs, save, lengths or until does not fit, the cell returned a
                state of another structure, or this estimator has the gradient of the last state alone, and `save` asks
                for more, or samples may end before that.
        """
        if is_compiling():
            asked: Any = {"xs": xs, "readout": readout, "save": save, "start": start, "lengths": lengths}
            return apart(self, cell, state, inputs, num_steps, until=until, batch_dim=batch_dim, **asked)
        check_cell(cell)
        check_call(state, num_steps)
        plain = same_leaves(state)  # a cell may fill the containers that it is given: the caller's stay as they are
        options = Options(xs, readout, save, start, lengths, until, batch_dim, num_steps)
        num_steps = num_steps if options.none else options.checked(plain)
        undone = undoing(cell) if num_steps else None
        first = plain if undone is None else undone.couple(plain)
        if torch.compiler.is_compiling():
            rollout = self.asked(cell, plain, first, inputs, num_steps, options)
        else:
            with Untouched(), Around(cell, () if options.of_last else (readout,)) as around:
                keep_derived_weights(around.cell)
                rollout = self.asked(around.cell, plain, first, normal(inputs), num_steps, options)
                check_structure(first, rollout.state)
                rollout = around.ended(rollout)
        check_structure(first, rollout.state)
        if first is not plain and undone is not None:
            rollout = replace(rollout, state=undone.read(rollout.state))
        if options.of_last and readout is not None:
            rollout = replace(rollout, outputs=options.last(rollout.state, inputs, num_steps, rollout.stats.steps))
        return rollout

    def asked(self, cell: nn.Module, plain: Any, first: Any, inputs: Any, num_steps: int, options: Options) -> Rollout:
        """Return the rollout of a cell with what is asked for put around it; arguments are checked already."""
        if options.none:
            return self._rolled_out(cell, plain, first, inputs, num_steps, options.batch_dim)
        saving = options.saving()
        if saving is not None and self.outputs == "refused":
            raise ValueError(
                f"{type(self).__name__} has the gradient of the last state alone, and save={options.save!r} asks for "
                'more: read the output from the last state (save="last"), or use BPTT() or CheckpointedBPTT()'
            )
        if not self.lengths and (options.lengths is not None or options.until is not None):
            name, more = ("lengths", "") if options.until is None else ("until", " (a forward solver stops by itself)")
            raise ValueError(
                f"{type(self).__name__} takes the last cycle of the whole batch for that of a fixed point, in which a "
                f"sample that {name}=... has ended before does not move: leave {name} out{more}, or use BPTT(), "
                "CheckpointedBPTT() or TruncatedBPTT"
            )
        if options.until is not None:
            return options.until.rollout(self, cell, plain, first, inputs, num_steps, options)
        answers = None if saving is None else Answers(saving)
        asked, steps = options.around(cell, plain, first), options.steps(inputs, answers, self.by_sample)
        if saving is None or self.outputs == "emitted":
            rollout = self._rolled_out(asked, plain, first, steps, num_steps, options.dims(steps, plain))
            outputs = None if answers is None else answers.tree()
            if outputs is None and saving is not None and saving.count:  # no sample has come to an update that is kept
                outputs = room_for(saving, asked.once(plain, steps))
            return replace(rollout, outputs=outputs)
        if self.by_sample and not is_first(options.batch_dim):
            raise ValueError(
                f"{type(self).__name__} carries answers in its state: with save={options.save!r} the batch must be "
                "dimension 0 of the state, so give it so and leave batch_dim out"
            )
        carried = CarriedAnswers(asked, saving)
        rollout = self._rolled_out(carried, plain, carried.begin(first, plain, steps), steps, num_steps, 0)
        last, outputs = carried.end(rollout.state)
        return replace(rollout, state=last, outputs=outputs)

    def _rolled_out(
        self, cell: nn.Module, plain: Any, start: Any, inputs: Any, num_steps: int, batch_dim: Any
    ) -> Rollout:
        if is_first(batch_dim):
            return self.rollout(cell, start, inputs, num_steps)
        placed, first, moved = batch_first(cell, start, inputs, batch_dim, plain)
        if not self.by_sample:  # a batch_dim that does not fit is refused all the same
            return self.rollout(cell, start, inputs, num_steps)
        rollout = self.rollout(placed, first, moved, num_steps)
        return replace(rollout, state=given_back(placed, rollout.state))

    @abstractmethod
    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion; arguments are checked already, and the batch is dimension 0 of the state's leaves."""


def same_leaves(state: Any) -> Any:
    """Return the leaves of a state in containers of their own."""
    return normal(tree.own_containers(state))


def normal(values: Any) -> Any:
    """Return a tree with a copy of each tensor made in inference mode, of which autograd would record nothing."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return values
    if not any(leaf.is_inference() for leaf in tree.tensors(values)):
        return values
    return tree.map_tensors(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, values)


def period_of(cell: nn.Module) -> int:
    """Return the number of updates in a cycle of `cell`: its attribute `period`, 1 if it has none.

    Of a wrapper that has none, such as DistributedDataParallel(cell), that of the cell inside.

    Raises:
        ValueError: It is not an int of at least 1.
    """
    period = getattr(unwrapped(cell), "period", 1)
    if not is_int(period, 1):
        raise ValueError(f"cell.period={period!r} must be an int of at least 1, the number of updates in a cycle")
    return period


def run(cell: nn.Module, state: Any, inputs: Any, steps: range) -> Any:
    """Run updates one after the other, as autograd is set, and return the state after them."""
    inputs = cut(inputs, steps)
    for step in steps:
        state = cell(state, tree.own_containers(inputs), step)
    return state


def sources(cell: nn.Module, state: Any, inputs: Any) -> list[torch.Tensor]:
    """Return the tensors that a rollout depends on and that require grad."""
    every = (*cell.parameters(), *closed_over(cell), *tree.tensors(state), *tree.tensors(inputs))
    return [tensor for tensor in every if tensor.requires_grad]


def needs_gradient(cell: nn.Module, state: Any, inputs: Any) -> bool:
    """Return whether autograd is on and anything that the rollout depends on requires grad."""
    return torch.is_grad_enabled() and bool(sources(cell, state, inputs))


def check_shapes(owner: str, before: Any, after: Any) -> None:
    """Raise ValueError if leaves of a state changed their shape, for an estimator that needs states of one shape."""
    for (name, old), (_, new) in zip(
        tree.leaves_with_names(before, "state"), tree.leaves_with_names(after, "state"), strict=True
    ):
        if is_floating(old) and (not is_floating(new) or new.shape != old.shape):
            now = tuple(new.shape) if is_floating(new) else said(new)
            raise ValueError(
                f"{owner} needs a state of one shape, and the cell takes {name} from {tuple(old.shape)} to {now}: give "
                "it its full size in z_0 (expand a batch of one), or use BPTT() or CheckpointedBPTT()"
            )


def may_differentiate(cell: nn.Module, state: Any, inputs: Any) -> bool:
    """Return whether autograd is on, and within a transform of torch.func also whether anything known requires grad.

    What a cell reads beside its parameters is found by watching it, which transforms do not allow.
    """
    if in_transform() is not None and needs_gradient(cell, state, inputs):
        raise RuntimeError(
            "this estimator cannot run within torch.func.grad, vjp, jvp or vmap, for it runs updates again by itself: "
            "use BPTT() or TruncatedBPTT there, or torch.autograd.grad"
        )
    return torch.is_grad_enabled() and in_transform() is None


def check_structure(before: Any, after: Any) -> None:
    """Raise ValueError if a cell returned a state of another structure than it was given."""
    names = [name for name, _ in tree.leaves_with_names(before, "state")]
    got = [name for name, _ in tree.leaves_with_names(after, "state")]
    if names != got:
        raise ValueError(f"the cell must return a state of the structure it was given: {names}, it returned {got}")
