"""A claim of one's own whose trainings take a fraction of a second, as a user writes it."""

from pathlib import Path

EVERY = (
    "task=rolling_sum, task.length=4, task.num_test=2, trainer.batch_size=2, trainer.checkpoint_every=1, "
    "model.hidden_size=8, model.num_heads=2, model.num_layers=1, model.H_cycles=2, model.L_cycles=1, "
    "trainer.halting.num_segments=2, trainer.device=cpu"
)


def written(folder: Path, name: str = "mine", steps: int = 2, every: str = EVERY) -> str:
    """Write a claim into a folder of the user's; return the override that makes it known."""
    size = f"""
    every: [{every}, trainer.train_steps={steps}, trainer.eval_every=1]
    conditions:
      one_step: [estimator=one_step]
      bptt: [estimator=bptt]
    readings: {{segments: [1, 3]}}"""
    (folder / "own" / "claim").mkdir(parents=True, exist_ok=True)
    (folder / "own" / "claim" / f"{name}.yaml").write_text(
        f"""
_target_: loopgrad.experiments.claims.Claim
title: One of my own
statement: BPTT solves more than one step does.
sources: []
published: nothing.
change: a task that can be learnt.
equal: both have the same samples
contrasts:
  more:
    says: BPTT solves more
    more: bptt
    less: one_step
  deeper:
    says: three segments solve as much as one
    more: bptt
    at: segments@3
    less: bptt
    less_at: segments@1
    by: -0.02
sizes:
  tiny: &size{size}
  cpu: *size
  gpu: *size
"""
    )
    return f"hydra.searchpath=[file://{folder / 'own'}]"
