"""Deep supervision: a training step refines each sample by one segment, and a carry holds what goes on.

Samples of a batch are at different segments: where one halts, its row takes a new sample and the initial state.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loopgrad.gradients import BPTT, Estimator, tree
from loopgrad.gradients.around import sharded
from loopgrad.gradients.reaching import reaching
from loopgrad.gradients.stopped import Before
from loopgrad.gradients.wrappers import unwrapped
from loopgrad.models.cells import State
from loopgrad.models.halting import Halting, continue_target
from loopgrad.models.losses import CrossEntropy, right_tokens, stablemax_cross_entropy, token_loss
from loopgrad.models.model import Model, Output, Scored, told
from loopgrad.models.synthetic_gradients import Synthesis, check_start, taught, wanted_later


@dataclass(frozen=True)
class Carry:
    """What goes from one training step to the next: tensors only, without a graph.

    Attributes:
        state: Latent states, each (batch, ...).
        segment: (batch,) int64, segments done with the present sample.
        halted: (batch,) bool, rows that take a new sample at the next step.
        batch: The present samples; any tree with attributes inputs, labels and puzzle_ids.
    """

    state: State
    segment: Tensor
    halted: Tensor
    batch: Any

    def tensors(self) -> dict[str, Tensor]:
        """Return the carry as a flat dict of names and tensors, for a checkpoint."""
        return dict(tree.leaves_with_names(self, "carry"))

    def with_tensors(self, saved: dict[str, Tensor]) -> "Carry":
        """Return a carry of this structure with the tensors of a checkpoint.

        Raises:
            ValueError: The names, or the shapes beyond the batch size, are not those of this carry.
        """
        own = self.tensors()
        if own.keys() != saved.keys():
            raise ValueError(f"saved carry has {sorted(saved)}, this one has {sorted(own)}: another model or task?")
        for name, tensor in own.items():
            if saved[name].shape[1:] != tensor.shape[1:]:
                raise ValueError(
                    f"saved {name} has shape {tuple(saved[name].shape)}, here {tuple(tensor.shape)}: another model?"
                )
        _, unflatten = tree.flatten(self)
        return unflatten([saved[name].to(tensor.device) for name, tensor in own.items()])


class Segment(NamedTuple):
    """What one step of deep supervision returns.

    Attributes:
        carry: For the next step.
        loss: Scalar with a graph.
        metrics: Scalars without one, on the device of the model (reading them synchronises): loss, token_loss, q_loss;
            token_accuracy and exact_accuracy over all rows; finished, the number of rows that halted,
            finished_exact, how many of those are right, and finished_segments, the sum of their segments; with `ACT`
            ponder and cycles, means over samples.
        output: Output of the model.
    """

    carry: Carry
    loss: Tensor
    metrics: dict[str, Tensor]
    output: Output


def initial_carry(model: Model, batch: Any) -> Carry:
    """Return a carry in which every row has halted, so that the first step fills it.

    Args:
        model: Gives the states.
        batch: Gives sizes and device: inputs (batch, seq_len), labels and puzzle_ids.
    """
    size, seq_len = batch.inputs.shape
    return Carry(
        state=_own(model).initial_state(size, seq_len),
        segment=torch.zeros(size, dtype=torch.int64, device=batch.inputs.device),
        halted=torch.ones(size, dtype=torch.bool, device=batch.inputs.device),
        batch=batch,
    )


def refill_carry(model: Model, carry: Carry, batch: Any) -> Carry:
    """Give rows that halted the initial state, segment 0 and the sample of their row in `batch`; keep the others.

    Args:
        model: Gives the initial states.
        carry: The carry.
        batch: New samples, as many as the carry has rows; those of rows that go on are not used.

    Raises:
        ValueError: The batch is not of the size of the carry.
    """
    if batch.inputs.shape != carry.batch.inputs.shape:
        raise ValueError(
            f"batch.inputs has shape {tuple(batch.inputs.shape)}, the carry holds {tuple(carry.batch.inputs.shape)}: "
            "every step needs as many new samples as there are rows, also in the last batch of an epoch"
        )

    def mix(new: Any, old: Any) -> Any:
        old_leaves, unflatten = tree.flatten(old)
        new_leaves = tree.flatten(new)[0]
        rows = zip(new_leaves, old_leaves, strict=True)
        return unflatten([torch.where(carry.halted.view(-1, *[1] * (n.dim() - 1)), n, o) for n, o in rows])

    return Carry(
        state=mix(_own(model).initial_state(*batch.inputs.shape), carry.state),
        segment=carry.segment.masked_fill(carry.halted, 0),
        halted=torch.zeros_like(carry.halted),
        batch=mix(batch, carry.batch),
    )


def run_segment(
    model: Model,
    carry: Carry,
    batch: Any,
    estimator: Estimator,
    halting: Halting,
    generator: torch.Generator | None = None,
    cross_entropy: CrossEntropy = stablemax_cross_entropy,
    depth: int | Tensor | None = None,
    least: Tensor | None = None,
    synthesiser: Synthesis | None = None,
) -> Segment:
    """Run one step of deep supervision: refill, one segment, loss, halting.

    loss = mean over samples of [mean cross entropy of scored tokens] + halting.q_loss, of this segment alone; with
    `ACT` + ponder_weight * ponder.

    Args:
        model: In training mode it halts by the rule; in evaluation mode every row runs max_segments. It may be wrapped
            (DistributedDataParallel, fully_shard, torch.compile, accelerate): the loss is then that of the logits of
            its `forward`; under DistributedDataParallel, which waits for every gradient, a q head that the halting
            rule does not learn gets zeros.
        carry: From `initial_carry` or from the step before.
        batch: New samples for the rows that have halted: inputs, labels (-100 where not scored), puzzle_ids.
        estimator: How the gradient of the recursion is obtained.
        halting: The halting rule.
        generator: Source of exploration, needed in training where halting.exploration > 0.
        cross_entropy: Loss per token, `stablemax_cross_entropy` or `softmax_cross_entropy`.
        depth: Cycles of the segment, see `RecursiveModel.forward`; None for the model's own.
        least: What `halting.explored` drew for these rows, with those of others; None to draw here.
        synthesiser: Tells the segment what later ones want of the state it ends in, and learns from `loss.backward()`,
            see `Synthesiser`; None for no gradient from segment to segment, as published.

    Raises:
        ValueError: There is a synthesiser, and the estimator has no gradient of the state at the start.

    Not recommended when:
        Samples must be seen in epochs: a sample leaves when it halts, not at the end of a batch.
    Reference:
        Wang et al. 2025, arXiv 2506.21734 (deep supervision), one optimiser step per segment as in the official code;
        ARC Prize Foundation 2025 (that this loop brings most of what HRM gains).
    """
    carry = refill_carry(model, carry, batch)
    inputs, labels, puzzle_ids = carry.batch.inputs, carry.batch.labels, carry.batch.puzzle_ids
    start, lesson = carry.state, None
    if synthesiser is not None:
        check_start(estimator)
        start, lesson = taught(synthesiser, carry.state, carry.segment, carry.batch)
    given, told_depth = (start, inputs, puzzle_ids), told(halting.depth(depth))
    if _acts_when_called(model):
        scored = _scored(model, given, labels, estimator, cross_entropy, told_depth)
    else:
        scored = model.scored(*given, labels, estimator, cross_entropy, *told_depth)
    output, of_tokens, accuracy, solved = scored
    state = {name: z.detach() for name, z in output.state.items()}
    done = carry.segment + 1
    with torch.no_grad():
        target, halted = None, done >= halting.max_segments
        if model.training:
            known = {"change": relative_change(carry.state, state)} if halting.needs_change else {}
            known |= {} if least is None else {"least": least}
            halted = halting.halts(done, output.q_halt, output.q_continue, generator, **known)
            if halting.needs_next_segment and halting.max_segments > 1:
                following = model(state, inputs, puzzle_ids, BPTT())
                target = continue_target(done, halting.max_segments, following.q_halt, following.q_continue)
    of_q = halting.q_loss(output.q_halt, output.q_continue, solved, target)
    loss = of_tokens + of_q
    if not of_q.requires_grad and _waits_for_all(model):
        loss = reaching([loss], [output.q_halt, output.q_continue])[0]
    metrics = {
        "loss": loss.detach(),
        "token_loss": of_tokens.detach(),
        "q_loss": of_q.detach(),
        "token_accuracy": accuracy.mean(),
        "exact_accuracy": solved.float().mean(),
        "finished": halted.sum(),
        "finished_exact": (halted & solved).sum(),
        "finished_segments": done.where(halted, 0).sum(),
    }
    if (pondered := output.pondered) is not None:
        loss = loss + halting.ponder_weight * pondered.ponder.mean()
        own = {"ponder": pondered.ponder.detach().mean(), "cycles": pondered.cycles.float().mean()}
        metrics = {**metrics, "loss": loss.detach(), **own}
    if synthesiser is not None and lesson is not None:
        loss = loss + lesson + wanted_later(synthesiser, output.state, done, carry.batch, ~halted)
    return Segment(Carry(state, done, halted, carry.batch), loss, metrics, output)


def _own(model: Any) -> Model:
    """Return the model in what data-parallel training or a compiler has put around it."""
    return unwrapped(model, "initial_state")  # pyright: ignore[reportReturnType]


def _acts_when_called(model: nn.Module) -> bool:
    """Whether something around the model acts where it is called, and so does nothing for its other methods."""
    return _own(model) is not model or any(True for _ in sharded([model]))


def _waits_for_all(model: nn.Module) -> bool:
    """Whether a wrapper waits for the gradients of all parameters, of those that a loss has no part in too."""
    kind = nn.parallel.DistributedDataParallel
    found = [m for m in model.modules() if isinstance(m, kind)] if _own(model) is not model else []
    return any(not (m.find_unused_parameters or m.static_graph) for m in found)


def _scored(
    model: Model, given: Any, labels: Tensor, estimator: Estimator, cross_entropy: CrossEntropy, depth: Any
) -> Scored:
    """Return `Model.scored` by way of a call of the model, logits of all scored tokens kept."""
    own = _own(model)
    if own.scored_on_the_way and not own.input_per_update:
        raise TypeError(
            f"{type(own).__name__} has its loss after every loop, which a call of a wrapped model does not give: take "
            "the loss of the last one, or hand run_segment the model itself and exchange gradients by hooks"
        )
    output = model(*given, estimator, *depth)
    return Scored(output, token_loss(output.logits, labels, cross_entropy), *right_tokens(output.logits, labels))


def relative_change(before: State, after: State) -> Tensor:
    """Return |z' - z| / |z'| over all streams of each sample, (batch,), as rules take it that go by the change."""
    names = list(after)
    moved = Before([before[name] for name in names]).moved([after[name] for name in names])
    assert moved is not None, "a carry keeps its shapes"
    return moved


@torch.no_grad()
def predict(model: Model, inputs: Tensor, puzzle_ids: Tensor | None, num_segments: int, depth: Any = None) -> Output:
    """Run num_segments segments from the initial state, without a graph, and return the last output.

    Args:
        model: The model; its mode is left as it is.
        inputs: (batch, seq_len) tokens.
        puzzle_ids: (batch,) ids, or None.
        num_segments: Segments, at least 1; halting.max_segments is what training prepares for.
        depth: Of each segment, see `RecursiveModel.forward`: an `ACT` rule for a model that was trained with it.

    Raises:
        ValueError: num_segments is below 1.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    output = model(None, inputs, puzzle_ids, BPTT(), *told(depth))
    for _ in range(num_segments - 1):
        output = model(output.state, inputs, puzzle_ids, BPTT(), *told(depth))
    return output
