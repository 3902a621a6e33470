"""A task, a model and a trainer that take milliseconds a step."""

from loopgrad.experiments.tasks import RollingSum, Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.models import TRM, FixedSegments

TASK = RollingSum(length=6, modulus=3, num_test=12)


def model(seed: int = 0, task: Task = TASK, **sizes) -> TRM:
    sizes = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "H_cycles": 2, "L_cycles": 2} | sizes
    return TRM(task.spec.vocab_size, task.spec.seq_len, seed=seed, **sizes)


def trainer(**values) -> Trainer:
    defaults = {"halting": FixedSegments(2), "train_steps": 6, "batch_size": 4, "warmup_steps": 3, "eval_every": 3}
    return Trainer(**{**defaults, "checkpoint_every": 2, "device": "cpu", **values})
