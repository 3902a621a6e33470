"""Trained weights scored on ARC by votes over augmentations."""

import copy
from collections.abc import Sequence

import torch

from loopgrad.experiments.records.kinds import VotesRecord
from loopgrad.experiments.tasks import Arc, Task
from loopgrad.experiments.tasks.arc_votes import ArcScore, Predict, arc_score
from loopgrad.experiments.trainer import Trainer
from loopgrad.models import supervision
from loopgrad.models.model import Model


def predictor(model: Model, trainer: Trainer, device: torch.device | str | None = None) -> Predict:
    """Return what maps tokens and puzzle ids to a model's answer after all segments, and to its last q_halt logits.

    Args:
        model: In any mode, in which it is left; answers are those of evaluation mode.
        trainer: Gives the number of segments, their depth and the precision, as for evaluations in training.
        device: Where it is computed, on a copy of a model that is elsewhere; None for where the model is.
    """
    home = next(model.parameters()).device
    place = home if device is None else torch.device(device)
    own = model if place == home else copy.deepcopy(model).to(place)

    def predict(inputs: torch.Tensor, puzzle_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        segments, depth, training = trainer.halting.max_segments, trainer.halting.depth(None), own.training
        own.eval()
        try:
            with trainer.precision(place):
                output = supervision.predict(own, inputs.to(place), puzzle_ids.to(place), segments, depth)
        finally:
            own.train(training)
        return output.logits.argmax(-1).cpu(), output.q_halt.cpu()

    return predict


def score_votes(
    model: Model,
    trainer: Trainer,
    task: Arc,
    num_augmentations: int,
    ks: Sequence[int] = (1, 2),
    batch_size: int | None = None,
    device: torch.device | str | None = None,
) -> ArcScore:
    """Score a trained model on the held-out pairs of ARC by votes over augmentations, see `arc_score`.

    Args:
        model: With the weights to be scored.
        trainer: As it was trained.
        task: As it was trained on: puzzle ids depend on num_augmentations, max_size, max_tasks and data_seed.
        num_augmentations: How many are asked beside each pair as it is.
        ks: Numbers of answers tried.
        batch_size: Samples predicted at once; None for trainer.eval_batch_size.
        device: Where it is computed; None for where the model is.

    Raises:
        ValueError: A number is out of range.
    """
    size = trainer.eval_batch_size if batch_size is None else batch_size
    return arc_score(task, predictor(model, trainer, device), num_augmentations, ks, size)


def votes_record(model: Model, trainer: Trainer, task: Task) -> dict[str, VotesRecord]:
    """Return what a record holds beside the rest where its task asks for votes: `votes`, else nothing."""
    if not isinstance(task, Arc) or not task.votes:
        return {}
    score = score_votes(model, trainer, task, task.votes)
    return {
        "votes": {
            "augmentations": task.votes,
            "untransformed": score.untransformed,
            "pass_at": {str(k): share for k, share in score.pass_at.items()},
            "whole_at": {str(k): share for k, share in score.whole_at.items()},
        }
    }
