"""A short training of 9x9 Sudoku under several gradients: held-out accuracy against seconds."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from loopgrad.experiments.benches.gpu.row import row
from loopgrad.experiments.benches.gpu.sizes import Sizes
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.tasks import Sudoku
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import CheckpointedBPTT, Estimator, TruncatedBPTT
from loopgrad.models import TRM, QHalt

ESTIMATORS: dict[str, Estimator] = {
    "TruncatedBPTT, last cycle": TruncatedBPTT(num_cycles=1),
    "CheckpointedBPTT(1)": CheckpointedBPTT(1),
    "TruncatedBPTT, last two updates": TruncatedBPTT(num_steps=2),
}


def learning(watch: Stopwatch, sizes: Sizes, tiny: bool) -> Iterator[dict[str, Any]]:
    """Train a third of the time that is left under each estimator, from the same weights on the same samples."""
    count, held_out = sizes.train_puzzles, sizes.train_puzzles // 4
    task = Sudoku(9, 30, 40, num_train=count, num_test=held_out)  # of medium hardness, to learn some in minutes
    if tiny:
        task = Sudoku(4, num_train=count, num_test=held_out)
    task.test_set()
    task.train_batch(0, 0, 1)  # makes the puzzles, before any clock runs
    share = watch.left / len(ESTIMATORS)
    for name, estimator in ESTIMATORS.items():
        yield _trained(watch, sizes, task, name, estimator, share, 2 if tiny else 10**6)
        watch.forget()


def _trained(
    watch: Stopwatch, sizes: Sizes, task: Sudoku, name: str, estimator: Estimator, seconds: float, most: int
) -> dict[str, Any]:
    what = f"{task.size}x{task.size} Sudoku, {sizes.train_puzzles} puzzles, batch {sizes.train_batch}"
    told: dict[str, Any] = {"precision": "bf16 autocast", "curve": []}
    try:
        trainer = Trainer(
            QHalt(16, 0.1),
            train_steps=most,
            batch_size=sizes.train_batch,
            learning_rate=1e-3,
            warmup_steps=50,
            ema_decay=0.98,
            autocast="bf16",
            eval_every=1 if most < 10 else 50,
            device=watch.device.type,
        )
        model = TRM(
            task.spec.vocab_size,
            task.spec.seq_len,
            hidden_size=sizes.train_size,
            num_heads=sizes.num_heads,
            mixer="mlp",
        )
        run, began = begin(trainer, task, model, 0), time.monotonic()
        for entry in train(run, trainer, task, estimator, 0):
            now = time.monotonic() - began
            if "test_exact_accuracy" in entry:
                point = [round(now, 2), entry["step"], entry["test_exact_accuracy"], entry["test_token_accuracy"]]
                told["curve"].append(point)
            if now > seconds:
                break
        told |= {"seconds": (time.monotonic() - began) / run.step, "accuracy": told["curve"][-1][2]}
        told["note"] = f"{run.step} steps in {time.monotonic() - began:.0f} s; curve: seconds, step, exact, tokens"
    except torch.OutOfMemoryError:
        told["note"] = "out of memory"
    return row("training", what, name, **told)
