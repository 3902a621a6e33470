"""The language model beside torch's own GRU, trainings that differ in the gradient alone, and what their rows say."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopgrad.experiments import records
from loopgrad.experiments.benches.ledger import NOTHING_KEPT
from loopgrad.experiments.benches.text import LanguageModels, training
from loopgrad.experiments.benches.text.model import LanguageModel
from loopgrad.experiments.benches.text.sizes import BANDS
from loopgrad.experiments.benches.text.training import Training, cost, train
from loopgrad.experiments.benches.text.words import among_best, losses, words
from loopgrad.gradients import BPTT, ReversibleBPTT

SIZES = {"tokens": 64, "updates": 4, "hidden_size": 6, "windows": (4, 16), "mean": 4, "num_tangents": 2}
SIZES |= {"learning_rates": (0.01,), "num_chars": 3000, "seeds": (0, 1), "workers": 1, "forward_lengths": (16,)}
TINY = LanguageModels(lengths=(16, 32), **SIZES)


def model(gamma=None, size=6):
    return LanguageModel(9, size, 100, gamma, torch.Generator().manual_seed(0))


def windows(rows=3, characters=12):
    return torch.randint(9, (rows, characters), generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_torchs_own_gru():
    ours, text = model(), windows()
    gru = nn.GRU(6, 6, batch_first=True)
    gru.load_state_dict({f"{name}_l0": value for name, value in ours.gru.state_dict().items()})
    logits = ours.head(gru(ours.encoder(text[:, :-1]))[0])
    each = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none")
    torch.testing.assert_close(ours.losses(text), each.detach())
    torch.testing.assert_close(ours.loss(text, BPTT())[0], each.mean())


def test_the_coupled_recursion_is_a_gru_with_momentum():
    ours, text = model("1/4"), windows()
    h = velocity = torch.zeros(3, 6)
    each = []
    for t in range(11):
        velocity = velocity / 4 + 3 / 4 * (ours.gru(ours.encoder(text[:, t]), h) - h)
        h = h + velocity
        each.append(F.cross_entropy(ours.head(h), text[:, t + 1]))
    torch.testing.assert_close(ours.loss(text, ReversibleBPTT())[0], torch.stack(each).mean())


def test_weights_do_not_depend_on_the_coupling_and_times_are_spread_evenly_over_magnitudes():
    plain, coupled = model(size=2000), model("1/2", size=2000)
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), coupled.parameters(), strict=True))
    gate = plain.gru.bias_ih.detach()[2000:4000] / math.log(100)
    assert 0 <= gate.min() < 0.01 and 0.99 < gate.max() <= 1 and 0.48 < gate.mean() < 0.52


def test_losses_of_recalls_are_those_of_the_first_letters_that_are_said_again():
    job = Training(LanguageModels((128, 512), 512, num_chars=20_000), 128, "BPTT", 0.01, 0)
    held_out, symbols = job.held_out(), job.task.spec.symbols
    assert held_out.text.shape == (3, 513)  # 2000 characters held out, windows of the greatest length at any length
    total = 0
    for band, (rows, columns) in enumerate(held_out.recalls):
        for row, column in zip(rows, columns, strict=True):
            text = "".join(symbols[token] for token in held_out.text[row].tolist())
            at = column + 1  # the character whose loss stands in this column
            end = next(i for i in range(at, len(text) + 1) if i == len(text) or not text[i].isalnum())
            low, high = (0, *BANDS)[band], (*BANDS, 10**9)[band]
            assert text.rfind(text[at:end], max(0, at - high + 1), at - low + (end - at)) >= 0
            assert not text[at - 1].isalnum() and text[at].isalpha()
            total += 1
    assert total > 80 and all(rows for rows, _ in held_out.recalls[:3])


def test_training_never_shows_what_is_held_out():
    job = Training(TINY, 16, "BPTT", 0.01, 0)
    held_out = {tuple(row) for row in job.held_out().text[:, :17].tolist()}
    batch = job.batch(3)
    assert batch.shape == (4, 17) and job.task.held_out == Training(TINY, 32, "BPTT", 0.01, 0).task.held_out
    assert held_out.isdisjoint(map(tuple, batch.tolist()))


def test_every_estimator_starts_alike_and_reads_the_same_windows():
    jobs = [Training(TINY, 16, name, 0.01, 1) for name in TINY.names(16)]
    assert len({tuple(job.batch(2).flatten().tolist()) for job in jobs}) == 1
    assert len({tuple(job.model(1).gru.weight_hh.flatten().tolist()) for job in jobs}) == 1
    assert jobs[0].batch(2).numel() == 4 * 17 and Training(TINY, 32, "BPTT", 0.01, 1).batch(2).numel() == 2 * 33


def test_windows_over_the_whole_length_are_left_out():
    assert "TBPTT(4)" in TINY.names(16) and "TBPTT(16)" not in TINY.names(16) and "TBPTT(16)" in TINY.names(32)


@pytest.mark.slow
def test_the_cost_of_a_row_is_that_of_its_estimator():
    costs = {name: cost(Training(TINY, 32, name, 0.01, 0)) for name in TINY.names(32)}
    assert costs["BPTT"].cell_evaluations == costs["BPTT"].vjps == 32
    assert costs["TBPTT(4)"].cell_evaluations == costs["coupled reversible"].cell_evaluations == 64
    assert costs["checkpointed"].peak_bytes < costs["BPTT"].peak_bytes
    assert costs["coupled reversible"].saved_bytes < costs["coupled BPTT"].saved_bytes / 4


# what is said


def row(estimator, losses, length=128, gflop=1.0, peak=10.0, far=(1.0, 1.0)):
    return {
        "length": length,
        "estimator": estimator,
        "loss": sum(losses) / len(losses) if losses else math.nan,
        "GFLOP": gflop,
        "peak MiB": peak,
        "losses": [[3.0, loss] for loss in losses],
        "recalled": [[0.0, it] for it in far[: len(losses)]],
    }


def test_the_estimators_that_seeds_do_not_tell_apart_are_those_whose_ranges_meet():
    rows = [row("A", [0.2, 0.3]), row("B", [0.3, 0.5]), row("C", [0.31, 0.4]), row("D", [0.1, 0.6])]
    assert [it["estimator"] for it in among_best(rows, losses)] == ["A", "B", "D"]


def test_one_that_is_alone_the_best_is_to_be_used():
    rows = [row("BPTT", [0.4, 0.5], far=(0.5, 0.7)), row("TBPTT(16)", [0.2, 0.3], gflop=1.25, peak=1.0, far=(0.8, 1.4))]
    assert words(rows).splitlines() == [
        "Held-out loss, 128 characters: least TBPTT(16) 0.25 (0.2-0.3); no other range meets it; above BPTT 0.45 "
        "(0.4-0.5).",
        "What to use: TBPTT(16) (0.1 of BPTT's peak bytes and 1.25 of its FLOPs at 128), alone among the best at every "
        "length.",
        "Farthest recalls, 128 characters: least BPTT 0.6 (0.5-0.7); no other range meets it; above TBPTT(16) 1.1 "
        "(0.8-1.4).",
        "What to use where these matter: BPTT, alone among the best at every length.",
    ]


def test_of_those_that_are_among_the_best_everywhere_the_cheapest_are_named():
    rows = [row("BPTT", [0.2, 0.3], 128), row("checkpointed", [0.2, 0.3], 128), row("TBPTT(16)", [0.3, 0.4], 128)]
    rows += [row("BPTT", [0.2, 0.3], 512, 3, 40.0), row("checkpointed", [0.2, 0.3], 512, 4, 2.0)]
    rows += [row("TBPTT(16)", [0.5, 0.6], 512, 3.5, 1.0), row("forward state", [], 512)]
    assert "ranges overlap with checkpointed and TBPTT(16)." in words(rows).splitlines()[0]
    assert words(rows).splitlines()[2] == (
        "What to use: checkpointed where memory is short (0.05 of BPTT's peak bytes and 1.33 of its FLOPs at 512), "
        "BPTT where arithmetic is; of BPTT and checkpointed, which seeds do not tell from the best at any length."
    )
    # what is left out at a length, for being BPTT there, may still be the one
    rows += [row("TBPTT(256)", [0.25, 0.35], 512, 2.9, 1.5)]
    assert (
        "What to use: TBPTT(256) (0.037 of BPTT's peak bytes and 0.967 of its FLOPs at 512), of BPTT, checkp"
        in words(rows)
    )


def test_nothing_is_recommended_for_what_nobody_has_learnt():
    rows = [row("BPTT", [0.2, 0.2], 128, far=(0.5, 1.4)), row("TBPTT(16)", [0.3, 0.3], 128, far=(1.3, 1.5))]
    assert words(rows).splitlines()[3:] == [
        "Farthest recalls, 128 characters: no estimator has learnt them from every seed."
    ]
    rows += [row("BPTT", [0.2, 0.2], 512, far=(0.5, 0.6)), row("TBPTT(16)", [0.3, 0.3], 512, far=(1.3, 1.5))]
    assert words(rows).splitlines()[-1] == (
        "What to use where these matter, 512 characters: BPTT, alone among the best at every length."
    )


def test_a_few_percent_of_flops_or_bytes_decide_nothing():
    rows = [row("A", [0.2, 0.3], gflop=1.0, peak=9.0), row("B", [0.2, 0.3], gflop=1.04, peak=1.02)]
    rows += [row("C", [0.2, 0.3], gflop=2.0, peak=1.0)]
    assert (
        words(rows).splitlines()[1].startswith("What to use: B, of A, B and C, which seeds do not tell from the best")
    )


def test_no_single_best_and_no_finite_loss_are_said_so():
    rows = [row("A", [0.1, 0.1], 128), row("B", [0.2, 0.2], 128), row("A", [0.4, 0.4], 512), row("B", [0.2, 0.2], 512)]
    assert words(rows).splitlines()[2] == (
        "What to use: it depends on the length, for none is among the best at each; of fewest bytes are A at 128 "
        "and B at 512."
    )
    nothing = words([row("A", [math.nan, 0.1], far=(math.nan, 1.0)), row("B", [])])
    assert nothing == "Held-out loss: not finite of A at 128.\nFarthest recalls: not finite of A at 128."


# whole trainings


@pytest.mark.slow
def test_twins_share_a_training_where_they_share_bits_and_have_their_own_where_not(monkeypatch):
    short = LanguageModels(lengths=(16,), **SIZES | {"seeds": (0,)})
    rows = {it["estimator"]: it for it in short.rows()}
    own = train(Training(short, 16, "checkpointed", 0.01, 0))
    assert rows["checkpointed"]["losses"] == rows["BPTT"]["losses"] == [own.losses]
    assert rows["checkpointed"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert rows["TBPTT(4)"]["cosine"] < 0.9999
    assert rows["TBPTT(4)"]["losses"] != rows["BPTT"]["losses"] != rows["coupled BPTT"]["losses"]
    monkeypatch.setitem(training.TWINS, "TBPTT(4)", "BPTT")  # which has not its bits
    again = {it["estimator"]: it for it in short.rows()}
    assert again["TBPTT(4)"]["losses"] == rows["TBPTT(4)"]["losses"]


@pytest.mark.slow
def test_the_rate_of_each_is_the_one_that_did_best_at_the_first_length(monkeypatch):
    def pretended(job):
        assert job.seed == 2 and job.data_seed == 1 and job.length == 16  # used by nothing else
        best = 0.1 if job.name == "BPTT" else 0.2
        losses = [math.nan if job.learning_rate == 0.3 else 0.5 if job.learning_rate == best else 1.0]
        return training.Curve(losses, [], {}, [])

    monkeypatch.setattr("loopgrad.experiments.benches.text.study.train", pretended)
    bench = LanguageModels(lengths=(16, 32), **SIZES | {"learning_rates": (0.3, 0.2, 0.1)})
    assert bench._learning_rates(1, NOTHING_KEPT) == {
        name: 0.1 if name in ("BPTT", "checkpointed", "TBPTT(16)") else 0.2 for name in TINY.names(32)
    }


@pytest.mark.slow
def test_the_command_is_the_same_with_two_workers(loopgrad, tmp_path):
    sizes = ["bench.lengths=[16]", "bench.forward_lengths=[]", "bench.learning_rates=[0.01]", "bench.tokens=64"]
    sizes += ["bench.hidden_size=5", "bench.updates=2", "bench.windows=[4]", "bench.mean=4", "bench.num_tangents=1"]
    sizes += ["bench.seeds=[0,1]", "bench.num_chars=3000"]
    for workers in (1, 2):
        result = loopgrad("bench", "text", *sizes, f"bench.workers={workers}", f"output_dir=out{workers}")
        assert result.code == 0 and "not trained" in result.out and "What to use:" in " ".join(result.out.split())
    names = {path.name for path in (tmp_path / "out2").iterdir()}
    assert names == {f"text-figure.{kind}" for kind in ("svg", "png", "json")} | {"text.json", "text.html"}
    one, two = (records.read(tmp_path / f"out{i}" / "text.json")[0] for i in (1, 2))
    assert str(one["rows"]) == str(two["rows"]) and len(one["rows"]) == 7  # nan is not itself


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench.lengths=[]", "lengths=[] must hold at least one"),
        ("bench.tokens=100", "tokens=100 must be at least the greatest length, 2048"),
        ("bench.windows=[0]", "windows=(0,) must be at least 1"),
        ("bench.learning_rates=[0.0]", "learning_rates=(0.0,) must be finite and above 0"),
        ("bench.forward_lengths=[64]", "forward_lengths=[64] must be of lengths, 64 is not"),
        ("bench.num_chars=20000", "num_chars=20000: a tenth of the tales is held out"),
        ("bench.seeds=[]", "seeds=[] must hold at least one"),
        ("bench.gamma=3/2", "gamma"),
    ],
)
def test_wrong_sizes_are_named(refused, override, message):
    assert message in refused("bench", "bench=text", override)
