"""Sizes that nothing could be computed from are refused by key, within a moment and before anything is allocated."""

import pytest

from loopgrad.experiments.conf.bounds import check_bounds
from loopgrad.experiments.errors import ConfigError
from loopgrad.gradients.host_memory import check_fits, total

HUGE = 10**20
REFUSED = {
    "train model.num_layers=100000000000000000000": "model.num_layers=100000000000000000000: must be at most 1000",
    "train model.num_heads=0": "num_heads must be at least 1, got 0",
    "train model.H_cycles=1000000000": "model.H_cycles=1000000000: must be at most",
    "train model.expansion=.nan": "model.expansion=.nan: must be float, got str",
    "train model.expansion=nan": "model.expansion=nan: must be a finite number",
    "train model.hidden_size=65536": "hidden_size=65536, expansion=4 would need 256 GiB, and there are",
    "train trainer.num_threads=100000000": "trainer.num_threads=100000000: must be at most 1024",
    "train trainer.learning_rate=inf": "trainer.learning_rate=inf: must be a finite number",
    "train trainer.halting.num_segments=100000000": "trainer.halting.num_segments=100000000: must be at most",
    "train trainer.device=nowhere": "trainer.device=nowhere: ",
    "train task.num_train=100000000": "task.num_train=100000000: must be at most 10000000",
    "train task=maze task.wall_fraction=nan": "task.wall_fraction=nan: must be a finite number",
    "train task=[sudoku4,sudoku6]": "task=[sudoku4,sudoku6]: takes one task",
    "train experiment=[smoke]": "experiment=[smoke]: takes one experiment",
    "train seed=100000000000000000000": "seed=100000000000000000000: must be at most",
    "train output_dir=true": "output_dir=True: must be the path of a folder",
    "train output_dir=1.5": "output_dir=1.5: must be the path of a folder",
    "train output_dir=" + "x" * 300: "File name too long",
    "train task.num_test=${nothing}": "task.num_test: Interpolation key 'nothing' not found",
    "train task.num_test=${oc.env:NOT_SET_AT_ALL}": "task.num_test: ",
    "train task.num_test=${task.num_train} task.num_train=${task.num_test}": "task.num_train: Recursive interpolation",
    "train estimator=implicit estimator.implicit.forward=anderson": "forward=anderson: no such choice",
    "train estimator=torchdeq estimator.torchdeq.f_solver=foo": "TorchDEQ(f_solver='foo') must be",
    "train estimator=torchdeq estimator.torchdeq.f_tol=nan": "estimator.torchdeq.f_tol=nan: must be a finite number",
    "compare workers=100000000": "workers=100000000: must be at most 1024",
    "compare timing_repeats=1000000000": "timing_repeats=1000000000: must be at most",
    "bench bench=validity bench.radii=[0.5,nan]": "bench.radii=nan: must be a finite number",
    "bench bench.lengths=[64,1000000000]": "bench.lengths=1000000000: must be at most",
}


# each composes a configuration
LINES = [line if i % 3 == 0 else pytest.param(line, marks=pytest.mark.slow) for i, line in enumerate(REFUSED)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_nonsense_is_refused_by_its_key(refused, line):
    assert REFUSED[line] in refused(*line.split())


def test_numbers_of_any_size_are_shown_short():
    with pytest.raises(ConfigError, match=r"^trainer.train_steps=1e300 and more: must be at most 2147483647$"):
        check_bounds("trainer.train_steps", 10**5000)
    check_bounds("task.data_seed", 2**63 - 1)
    check_bounds("estimator.checkpointed.memory_budget", 2**40)
    check_bounds("trainer.autocast", "bf16")


def test_what_exceeds_the_memory_is_told_with_both_sizes():
    assert 2**28 < total() < 2**60
    check_fits(total(), "all of it")
    with pytest.raises(ValueError, match=r"^a table would need 1,073,741,824 GiB, and there are [\d,]+ GiB of memory$"):
        check_fits(2**60, "a table")


@pytest.mark.slow
def test_without_momentum_a_run_trains(loopgrad, tiny):
    assert loopgrad("train", *tiny, "estimator=one_step", "trainer.beta1=0", "trainer.beta2=0").code == 0
