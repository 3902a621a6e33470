"""Several optimisers as one: the divided weights, the rates, the state of all of them in one checkpoint."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from small_runs import model, trainer

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import RollingSum
from loopgrad.experiments.trainer import AdamATan2Rule, AdamWRule, Cosine, Joined, Keys, MuonRule, Part, SignSGDRule
from loopgrad.experiments.trainer.building import optimizer_of
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT
from loopgrad.models import FixedSegments

PUZZLES = 7


@dataclass(frozen=True)
class Identified(RollingSum):
    """Rolling sums whose samples have identities."""

    @property
    def spec(self):
        return replace(super().spec, num_puzzles=PUZZLES)

    def train_batch(self, seed, step, batch_size):
        batch = super().train_batch(seed, step, batch_size)
        return replace(batch, puzzle_ids=batch.inputs[:, 0] + 3 * (step % 2))


TASK = Identified(length=6, modulus=3, num_test=12)
RULES = {
    "none": {},
    "adamw": {"optimizer": AdamWRule()},
    "adam_atan2": {"optimizer": AdamATan2Rule()},
    "muon": {"optimizer": MuonRule()},
    "muon of its own": {"optimizer": MuonRule(0.02, 0.0, scale="spectral"), "puzzle_optimizer": SignSGDRule(0.01, 0.5)},
    "published": {"optimizer": AdamATan2Rule(), "puzzle_optimizer": SignSGDRule(0.01, 0.5)},
    "sign": {"puzzle_optimizer": SignSGDRule(), "schedule": Cosine(0.1), "grad_clip": 0.01},
}


def run_of(it):
    return begin(it, TASK, model(task=TASK, num_puzzles=PUZZLES, puzzle_tokens=1), 0)


def timeless(entries):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("values", RULES.values(), ids=RULES)
def test_going_on_is_bit_identical_under_every_rule(tmp_path, values):
    it = trainer(**values)
    whole_run, cut_run = run_of(it), run_of(it)
    whole = timeless(train(whole_run, it, TASK, BPTT(), 0))
    steps = train(cut_run, it, TASK, BPTT(), 0)
    begun = timeless(next(steps) for _ in range(3))
    checkpoint.save(tmp_path / "c.pt", cut_run, BPTT(), {})
    second = run_of(it)
    checkpoint.load(tmp_path / "c.pt", second, BPTT(), {})
    assert begun + timeless(train(second, it, TASK, BPTT(), 0)) == whole
    for one, other in ((whole_run.model, second.model), (whole_run.average, second.average)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert whole[0]["loss"] > whole[-1]["loss"] or values.get("grad_clip")


@pytest.mark.parametrize("name", ["muon of its own", "published"])
def test_each_thing_that_an_optimiser_keeps_is_checked(tmp_path, name):
    it, path = trainer(**RULES[name]), tmp_path / "c.pt"
    run = run_of(it)
    next(train(run, it, TASK, BPTT(), 0))
    checkpoint.save(path, run, BPTT(), {})
    content, table = torch.load(path, weights_only=True), len(run.optimizer.kept()) - 1
    assert table not in content["optimizer"]["state"], "nothing is kept of the table"
    for number, tensors in content["optimizer"]["state"].items():
        for key in (*tensors, "more"):
            wrong = copy.deepcopy(content)
            wrong["optimizer"]["state"][number][key] = torch.zeros(2, 9)
            torch.save(wrong, path)
            with pytest.raises(ConfigError, match=rf"optimizer\.state\.{number}\.{key}"):
                checkpoint.load(path, run_of(it), BPTT(), {})
    content["optimizer"]["state"][table] = {"exp_avg": torch.zeros(PUZZLES, 16)}
    torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"state\.{table}\.exp_avg is nothing that belongs"):
        checkpoint.load(path, run_of(it), BPTT(), {})


def test_what_one_optimiser_stores_is_what_torch_s_own_stores():
    """So that checkpoints of versions that had AdamW alone are read."""
    it, own = trainer(weight_decay=0.3), model()
    peer = copy.deepcopy(own)
    joined = it.optimizer_of(own)
    torchs = torch.optim.AdamW(peer.parameters(), it.learning_rate, (it.beta1, it.beta2), weight_decay=0.3)
    for optimizer, net in ((joined, own), (torchs, peer)):
        for p in net.parameters():
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    stored, wanted = joined.state_dict(), torchs.state_dict()
    assert stored["param_groups"] == wanted["param_groups"] and stored["state"].keys() == wanted["state"].keys()
    for number, tensors in wanted["state"].items():
        assert stored["state"][number].keys() == tensors.keys()
        assert all(map(torch.equal, stored["state"][number].values(), tensors.values()))
    assert all(map(torch.equal, own.parameters(), peer.parameters()))


def test_muon_has_the_matrices_of_the_recursion_and_adamw_all_else():
    net = model(task=TASK, num_puzzles=PUZZLES, puzzle_tokens=1)
    muon, adamw = optimizer_of(net, MuonRule(), None, Keys(1e-3, (0.9, 0.95), 0.0)).parts
    names = {id(p): name for name, p in net.named_parameters()}

    def held(part):
        return {names[id(p)] for group in part.optimizer.param_groups for p in group["params"]}

    assert held(muon) == {name for name in names.values() if name.startswith("cell.")}
    assert held(adamw) == {
        "embedding.tokens.weight",
        "embedding.puzzles.weight",
        "lm_head.weight",
        "q_head.weight",
        "q_head.bias",
    }


def test_the_table_alone_has_sparse_gradients_and_is_left_out_of_the_average():
    it = trainer(puzzle_optimizer=SignSGDRule(0.01, 0.0), ema_decay=0.9, warmup_steps=0, halting=FixedSegments(1))
    run = run_of(it)
    steps = train(run, it, TASK, BPTT(), 0)
    for read in (slice(0, 3), slice(3, 6)):
        before = run.model.embedding.puzzles.weight.detach().clone()
        next(steps)
        sparse = [name for name, p in run.model.named_parameters() if p.grad is not None and p.grad.is_sparse]
        assert sparse == ["embedding.puzzles.weight"]
        moved = (run.model.embedding.puzzles.weight - before).abs()
        assert (moved[read] > 0).any() and torch.allclose(moved[moved > 0], torch.tensor(0.01))
        moved[read] = 0
        assert moved.max() == 0
    assert torch.equal(run.evaluated.embedding.puzzles.weight, run.model.embedding.puzzles.weight)
    assert not torch.equal(run.evaluated.lm_head.weight, run.model.lm_head.weight)
    assert not begin(trainer(), TASK, model(), 0).model.embedding.tokens.sparse


def test_the_schedule_scales_every_rate_from_its_own_base():
    it = trainer(**RULES["published"], learning_rate=0.5, warmup_steps=4, train_steps=8, schedule=Cosine(0.1))
    run = run_of(it)
    rates = []
    for entry in train(run, it, TASK, BPTT(), 0):
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        assert entry["learning_rate"] == rates[-1][0]
    factors = [it.rate_factor(step) for step in range(1, 9)]
    assert rates == [[0.5 * f, 0.01 * f] for f in factors] and factors[-1] == pytest.approx(0.1)


def test_a_closure_is_refused_and_a_rule_for_what_is_not_there():
    w = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="closure"):
        Joined([Part(torch.optim.SGD([w], 0.1))]).step(lambda: None)
    with pytest.raises(ValueError, match="TRM has no puzzle vectors here: leave it out"):
        trainer(puzzle_optimizer=SignSGDRule()).optimizer_of(model())
