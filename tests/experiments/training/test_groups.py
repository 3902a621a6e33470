"""Accuracy by group in evaluations, logs and records beside answers counted by hand."""

import story_files
import torch

from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.training.loop import evaluate
from loopgrad.experiments.training.results import _groups, _sizes
from loopgrad.experiments.training.runs import execute, history, plans, trained_model
from loopgrad.models import predict


def test_a_run_logs_and_records_each_group_as_counted_by_hand(tmp_path):
    path = story_files.clutrr(tmp_path / "files")
    small = [
        "train_steps=3",
        "batch_size=4",
        "eval_every=3",
        "checkpoint_every=3",
        "warmup_steps=1",
        "eval_batch_size=3",
    ]
    given = ["experiment=latent/clutrr", f"task.path={path}", "task.encoder=random", f"task.features={tmp_path}/kept"]
    given += ["model.hidden_size=8", "model.num_heads=2", *(f"trainer.{it}" for it in small)]
    built = parts(composed("train", given))
    (plan,) = plans(built, [0], tmp_path / "run")
    execute(plan, lambda *_: None)
    last, task, model = history(plan)[-1], built.task, trained_model(plan)
    test = task.test_set()
    right = predict(model, test.inputs, None, 1).logits.argmax(-1)[:, 0] == test.labels[:, 0]
    for name, rows in task.test_groups().items():
        assert last[f"test_exact_accuracy@{name}"] == right[rows].double().mean().item()
    assert _groups(last, task)["groups"] == {
        name: {"samples": len(rows), "exact_accuracy": right[rows].double().mean().item()}
        for name, rows in task.test_groups().items()
    }
    assert _sizes(model, task) == {"parameters": sum(p.numel() for p in model.parameters()), "frozen_parameters": 0}
    assert not any("@" in name for name in evaluate(model, built.trainer, task, test))
    kept = set(torch.load(plan.folder / "checkpoint.pt", weights_only=True)["model"])
    assert kept == set(dict(model.named_parameters()))  # no vector of the encoder
