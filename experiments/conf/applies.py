"""What goes with which model: refused by name before anything is written, with what to do."""

import importlib.util
from collections.abc import Mapping

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.trainer.compiling import to_compile
from loopgrad.gradients import (
    Estimator,
    ForwardGradient,
    ForwardMode,
    LowRankES,
    ReversibleBPTT,
    TorchDEQ,
    TruncatedBPTT,
)
from loopgrad.gradients.online import Online
from loopgrad.gradients.ramp import estimator_at
from loopgrad.models import Coupling, FixedSegments
from loopgrad.models.model import Model


def check_estimators(
    estimators: Mapping[str, Estimator], model: Model, couples: bool = True, trained: bool = False
) -> None:
    """Check that estimators can take the gradient of a model's loss.

    Args:
        estimators: By name.
        model: The model.
        couples: Whether it could be made reversible.
        trained: Whether the model has been trained, so that none of it can be changed.

    Raises:
        ConfigError: One cannot, or needs a package that is missing.
    """
    owner = type(model).__name__
    for name, estimator in estimators.items():
        estimator = estimator_at(estimator, 0)
        kind = type(estimator).__name__
        if isinstance(estimator, ReversibleBPTT) and not isinstance(model.cell, Coupling):
            remedy = "add model.coupling=damped, leapfrog or momentum"
            if not couples:
                remedy = f"{owner} has no coupling, so use estimator=checkpointed, which is exact too"
            raise ConfigError(f"estimator.{name}: the recursion must be reversible: {remedy}")
        if isinstance(estimator, TorchDEQ) and importlib.util.find_spec("torchdeq") is None:
            raise ConfigError(f"estimator.{name} needs torchdeq: pip install 'loopgrad[peers]'")
        of_last = estimator.outputs == "refused"
        if isinstance(estimator, TruncatedBPTT) and estimator.scope is not None:
            of_last, kind = True, "TruncatedBPTT(scope=...)"
        if of_last and model.scored_on_the_way:
            where = "token" if model.input_per_update else "loop"
            others = "leave it out, or use checkpointed, truncated or random_truncation"
            if trained:
                others = "name others, such as estimator=[one_step,last_cycle]"
            elif where == "loop":
                others = f"set model.loss=last_loop, {others}"
            raise ConfigError(
                f"estimator.{name}: {kind} has the gradient of the last state alone, and the loss of {owner} is that "
                f"of every {where}: {others}"
            )


def check_compiled(trainer: Trainer, estimators: Mapping[str, Estimator], model: Model) -> None:
    """Check that what a trainer compiles can be compiled, and that estimators can take its gradient.

    Raises:
        ConfigError: It cannot, or one cannot.
    """
    if trainer.compile == "none":
        return
    try:
        to_compile(model, trainer.compile)
    except ValueError as error:
        raise ConfigError(f"trainer.{error}") from error
    for name, estimator in estimators.items():
        if isinstance(estimator, ForwardGradient | ForwardMode | LowRankES | Online):
            raise ConfigError(
                f"estimator.{name}: {type(estimator).__name__} carries tangents through an update, or other weights "
                "into it, and compiled code takes neither: leave it out, or set trainer.compile=none"
            )


def check_synthetic(trainer: Trainer, estimators: Mapping[str, Estimator], model: Model) -> None:
    """Check that a segment can be told what later ones want, and that the synthesiser can learn it.

    Raises:
        ConfigError: It cannot.
    """
    if trainer.synthetic is None:
        return
    if trainer.halting.max_segments == 1:
        raise ConfigError(
            "trainer.synthetic: every sample has one segment, and no later one could want anything of its last state: "
            "leave it out, or set trainer.halting to several segments"
        )
    for name, estimator in estimators.items():
        kind = type(estimator_at(estimator, 0))
        if "state" in kind.not_differentiated:
            raise ConfigError(
                f"estimator.{name}: trainer.synthetic learns from the gradient of the state that segments start from, "
                f"which {kind.__name__} does not give: use estimator=checkpointed, which is exact, or leave it out"
            )
    try:
        trainer.synthetic.of(model, trainer.halting.max_segments, 0)
    except ValueError as error:
        raise ConfigError(f"trainer.synthetic: {error}") from error


def check_sharded(trainer: Trainer, model: Model) -> None:
    """Check that processes can share the weights of a model.

    Raises:
        ConfigError: They cannot.
    """
    if trainer.shard == "none":
        return
    whole = "set trainer.shard=none, with which each process holds all weights"
    if importlib.util.find_spec("torch.distributed.fsdp") is None or not hasattr(
        importlib.import_module("torch.distributed.fsdp"), "fully_shard"
    ):
        raise ConfigError(
            f"trainer.shard={trainer.shard}: this build of torch has no torch.distributed.fsdp.fully_shard: {whole}"
        )
    if trainer.synthetic is not None:
        raise ConfigError(
            f"trainer.synthetic: its weights are not the model's, which fully_shard cuts: leave it out, or {whole}"
        )
    if trainer.puzzle_optimizer is not None:
        raise ConfigError(
            "trainer.puzzle_optimizer: it learns from the rows that a batch has read, and fully_shard exchanges "
            f"gradients of whole tables alone: leave it out, or {whole}"
        )
    if trainer.compile == "model":
        raise ConfigError(
            "trainer.compile=model: weights are gathered in the midst of what would be compiled: use trainer.compile="
            f"net or cell, or {whole}"
        )
    named, of_cell = list(model.named_parameters(remove_duplicate=False)), {*map(id, model.cell.parameters())}
    tied = [name for name, p in named if id(p) in of_cell and not name.startswith("cell.")]
    scalars = [name for name, p in named if p.dim() == 0]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in named})
    for reason in (
        f"{tied[0]} is a weight of the cell, too, and fully_shard would make two of it" if tied else "",
        f"{scalars[0]} has no dimension to cut: make it a vector of one number" if scalars else "",
        f"fully_shard takes weights of one dtype, these are {' and '.join(dtypes)}" if len(dtypes) > 1 else "",
    ):
        if reason:
            raise ConfigError(f"trainer.shard={trainer.shard}: {type(model).__name__}: {reason}, or {whole}")


def check_training(trainer: Trainer, task: Task, model: Model) -> None:
    """Check that a model can be trained so, on this task.

    Raises:
        ConfigError: It cannot.
    """
    owner, halting = type(model).__name__, trainer.halting
    if model.one_segment and halting != FixedSegments(1):
        raise ConfigError(
            f"trainer.halting={halting}: {owner} has no halting head and answers in one segment: use "
            "trainer=sequences, or FixedSegments with num_segments=1"
        )
    if model.input_per_update and trainer.jacobian_weight:
        raise ConfigError(
            f"trainer.jacobian_weight={trainer.jacobian_weight}: each update of {owner} reads another token, so there "
            "is no map whose Jacobian the penalty could be of: set it to 0"
        )
    if trainer.puzzle_optimizer is not None and model.embedding.puzzles is None:
        raise ConfigError(
            f"trainer.puzzle_optimizer: {type(task).__name__} has no puzzle identities, so that {owner} holds no "
            "vectors for them: leave it out"
        )
    if task.asks_ahead and not model.causal:
        raise ConfigError(
            f"model: {owner} reads the whole input at once, and the answers of {type(task).__name__} are later inputs, "
            "which it would copy: use model=gru, lstm, ntm or looped_lm"
        )
