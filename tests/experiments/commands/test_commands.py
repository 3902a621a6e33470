"""The commands as a user types them: what they leave, what they refuse, and that they touch nothing of others."""

import json
import shlex
import shutil
import sys

import pytest
import torch

from loopgrad.experiments import provenance, records
from loopgrad.experiments.commands import bench, compare
from loopgrad.experiments.processes import at_once

FIELDS = (
    "estimator task model seed train_steps loss exact_accuracy match_accuracy token_accuracy seconds_per_step "
    "time_ratio_to_bptt saved_bytes peak_bytes cell_evaluations vjps flops gradient_cosine gradient_relative_error "
    "residuals commit versions device command"
).split()


@pytest.fixture(scope="module")
def found(compared):
    return records.read(compared / "records.jsonl")


def test_a_comparison_records_every_estimator_and_seed_with_all_fields(found):
    assert [(r["estimator"], r["seed"]) for r in found] == [
        (name, seed) for seed in (0, 1) for name in ("bptt", "checkpointed", "last_cycle", "one_step")
    ]
    for record in found:
        assert set(FIELDS) <= record.keys()
        assert (record["task"], record["model"], record["train_steps"]) == ("sudoku4", "trm", 4)
        assert {"torch", "python", "loopgrad", "numpy"} <= record["versions"].keys()
        assert record["versions"]["torch"] == torch.__version__
        assert {"z_L", "z_H", "joint"} <= record["residuals"].keys()
        assert record["overrides"] == shlex.split(record["command"])[2:]


def test_the_costs_in_the_records_are_those_of_the_methods(found):
    rows = {r["estimator"]: r for r in found if r["seed"] == 0}
    counts = {name: (row["cell_evaluations"], row["vjps"]) for name, row in rows.items()}
    # 2 cycles of 2 + 1 updates; the checkpointed recursion computes each update twice
    assert counts == {"bptt": (6, 6), "checkpointed": (12, 6), "last_cycle": (6, 3), "one_step": (6, 2)}
    saved = {name: row["saved_bytes"] for name, row in rows.items()}
    assert saved["checkpointed"] < saved["one_step"] < saved["last_cycle"] < saved["bptt"]
    for name in ("bptt", "checkpointed"):
        assert rows[name]["gradient_cosine"] == pytest.approx(1, abs=1e-5)
        assert rows[name]["gradient_relative_error"] < 1e-4
    assert rows["one_step"]["gradient_relative_error"] > rows["last_cycle"]["gradient_relative_error"] > 1e-3
    assert rows["bptt"]["time_ratio_to_bptt"] == 1
    assert rows["one_step"]["flops"] < rows["bptt"]["flops"] < rows["checkpointed"]["flops"]


def test_exact_estimators_have_the_same_curve_on_each_seed_and_seeds_differ(found):
    curves = {(r["estimator"], r["seed"]): r["curve"] for r in found}
    for seed in (0, 1):
        assert curves["bptt", seed] == curves["checkpointed", seed]
        # the same weights and data: the first loss is that of all
        assert len({curves[name, seed]["train_loss"][0] for name in ("bptt", "last_cycle", "one_step")}) == 1
    assert curves["bptt", 0]["train_loss"][0] != curves["bptt", 1]["train_loss"][0]


def test_the_records_are_strict_json(compared):
    def refuse(name):
        raise AssertionError(name)

    lines = (compared / "records.jsonl").read_text().splitlines()
    assert len(lines) == 8 and all(json.loads(line, parse_constant=refuse) for line in lines)


def test_a_report_is_rendered_again_from_the_records_alone(loopgrad, compared, tmp_path):
    files = ["report.md", "report.html", "comparison.png", "comparison.svg", "residuals.png", "residuals.svg"]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(compared / "records.jsonl", alone)
    result = loopgrad("report", "output_dir=alone")
    assert result.code == 0 and "one_step" in result.out
    for name in files:
        assert (alone / name).read_bytes() == (compared / name).read_bytes(), name


def test_a_report_without_good_records_is_refused_with_file_and_line(refused, tmp_path):
    assert "nowhere" in refused("report", "output_dir=nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "records.jsonl").write_text('{"estimator": "bptt"}\n')
    assert "bad/records.jsonl, line 1: the record lacks" in refused("report", "output_dir=bad")


def test_a_finished_comparison_is_not_run_again(loopgrad, compared, tiny, monkeypatch, tmp_path):
    shutil.copytree(compared, tmp_path / "out")
    monkeypatch.setattr(compare, "execute_all", lambda *_: pytest.fail("trained again"))
    result = loopgrad("compare", *tiny, "seeds=[0,1]", "workers=1", "output_dir=out")
    assert result.code == 0 and "restart=true" in result.out
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == (compared / "records.jsonl").read_bytes()


def test_another_configuration_in_the_same_folder_is_refused_naming_the_key(refused, compared, tiny, tmp_path):
    shutil.copytree(compared, tmp_path / "out")
    message = refused("compare", *tiny, "seeds=[0,1]", "trainer.learning_rate=0.5", "output_dir=out")
    assert "trainer.learning_rate" in message and "-> 0.5" in message and "restart=true" in message
    assert "seeds" in refused("compare", *tiny, "seeds=[0]", "output_dir=out")
    assert "another configuration" in refused("train", *tiny, "estimator=bptt", "output_dir=out")


@pytest.mark.slow
def test_restart_replaces_results_and_leaves_what_is_not_ours(loopgrad, compared, tiny, tmp_path):
    shutil.copytree(compared, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["compare", *tiny, "estimator=[bptt]", "seeds=[2]", "output_dir=out"]
    assert loopgrad(*arguments, "restart=true").code == 0
    assert [r["seed"] for r in records.read(tmp_path / "out" / "records.jsonl")] == [2]
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["bptt-seed2"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("restart", ["false", "true"])
@pytest.mark.parametrize(
    "content", [{"thesis.tex": "x"}, {"config.json": '{"hidden_size": 3}'}, {"config.json": "{\n}"}]
)
@pytest.mark.parametrize("command", ["compare", pytest.param("train", marks=pytest.mark.slow)])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(refused, tiny, tmp_path, command, content, restart):
    (tmp_path / "theirs").mkdir()
    for name, text in content.items():
        (tmp_path / "theirs" / name).write_text(text)
    extra = ["estimator=bptt"] if command == "train" else []
    assert "theirs exists" in refused(command, *tiny, *extra, f"restart={restart}", "output_dir=theirs")
    assert {path.name: path.read_text() for path in (tmp_path / "theirs").iterdir()} == content


@pytest.mark.one_in(3)
@pytest.mark.parametrize("command", [pytest.param("compare", marks=pytest.mark.slow), "train", "bench", "report"])
@pytest.mark.parametrize("place", ["file.txt/below", "/proc/none/such"])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(refused, tmp_path, command, place):
    (tmp_path / "file.txt").write_text("a file")
    assert place.split("/")[-1] in refused(command, f"output_dir={place}")


def test_training_leaves_weights_and_a_record_and_is_not_repeated(loopgrad, tiny, tmp_path):
    arguments = ["train", *tiny, "seed=3", "estimator=one_step", "output_dir=out"]
    first = loopgrad(*arguments)
    assert first.code == 0 and "weights.safetensors" in first.out
    (record,) = records.read(tmp_path / "out" / "records.jsonl")
    assert record["seed"] == 3 and record["estimator"] == "one_step" and set(FIELDS) <= record.keys()
    before = (tmp_path / "out" / "records.jsonl").stat().st_mtime_ns
    again = loopgrad(*arguments)
    assert again.code == 0 and "already" in again.out
    assert (tmp_path / "out" / "records.jsonl").stat().st_mtime_ns == before
    assert loopgrad("report", "output_dir=out").code == 0


@pytest.mark.slow
def test_training_and_comparing_agree(loopgrad, compared, tiny, tmp_path):
    assert loopgrad("train", *tiny, "seed=1", "estimator=one_step", "output_dir=out").code == 0
    (alone,) = records.read(tmp_path / "out" / "records.jsonl")
    (among,) = (r for r in records.read(compared / "records.jsonl") if (r["estimator"], r["seed"]) == ("one_step", 1))
    for name in ("loss", "exact_accuracy", "curve", "saved_bytes", "gradient_cosine", "residuals"):
        assert alone[name] == among[name]


def test_a_loss_that_is_not_finite_ends_in_one_line_with_run_step_and_tensor(loopgrad, tiny):
    result = loopgrad("train", *tiny, "estimator=bptt", "trainer.learning_rate=1e30", "trainer.warmup_steps=0")
    assert result.code == 1 and result.err.count("\n") == 1 and "Traceback" not in result.err
    assert "bptt-seed0, step" in result.err and "is not finite" in result.err


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_in_one_line_with_its_path(loopgrad, tiny, tmp_path, monkeypatch):
    arguments = ["train", *tiny, "estimator=bptt", "output_dir=out"]
    assert loopgrad(*arguments).code == 0
    (tmp_path / "out" / "records.jsonl").unlink()
    (tmp_path / "out" / "runs" / "bptt-seed0" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    result = loopgrad(*arguments)
    assert result.code == 2 and result.err.count("\n") == 1 and "checkpoint.pt" in result.err


def test_a_full_disk_ends_in_one_line(loopgrad, tiny, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("loopgrad.experiments.training.checkpoint.save", full)
    result = loopgrad("train", *tiny, "estimator=bptt", "output_dir=out")
    assert result.code == 3 and result.err.count("\n") == 1
    assert "checkpoint.pt: No space left on device" in result.err


@pytest.mark.slow
def test_a_recurrence_free_model_can_be_compared_too(loopgrad, tiny, tmp_path):
    arguments = [argument for argument in tiny if argument != "experiment=smoke"]
    arguments += ["model=feed_forward", "estimator=[bptt,one_step]", "seeds=[0]", "timing_repeats=1", "workers=1"]
    result = loopgrad("compare", *arguments, "output_dir=out")
    assert result.code == 0, result.err
    assert [r["vjps"] for r in records.read(tmp_path / "out" / "records.jsonl")] == [1, 1]


@pytest.mark.slow
def test_the_recursion_bench_writes_its_record(loopgrad, tmp_path):
    result = loopgrad("bench", "bench.lengths=[4]", "bench.hidden_size=32", "bench.repeats=1", "output_dir=out")
    assert result.code == 0, result.err
    (record,) = records.read(tmp_path / "out" / "recursion.json")
    rows = {row["method"]: row for row in record["rows"]}
    assert rows["BPTT"]["evals"] == 4 and rows["CheckpointedBPTT"]["evals"] == 8
    assert rows["CheckpointedBPTT"]["saved MiB"] < rows["BPTT"]["saved MiB"]
    exact = [row["bits"] for name, row in rows.items() if "Truncated" not in name]
    assert set(exact) == {"equal"} and record["command"].startswith("loopgrad bench 'bench.lengths=[4]' ")
    assert {"commit", "versions", "device", "date"} <= record.keys()


@pytest.mark.slow
def test_the_trm_bench_runs_without_the_official_code(loopgrad, tmp_path):
    sizes = ["bench.hidden_size=16", "bench.num_heads=2", "bench.seq_len=4", "bench.batch_size=2", "bench.repeats=1"]
    result = loopgrad("bench", "trm", *sizes, "output_dir=out")
    assert result.code == 0, result.err
    (record,) = records.read(tmp_path / "out" / "trm.json")
    assert [row["step"] for row in record["rows"]][:2] == ["last cycle", "BPTT"]


def test_a_bench_that_cannot_be_measured_is_refused_in_one_line(loopgrad, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "broken" / "models" / "recursive_reasoning").mkdir(parents=True)
    (tmp_path / "broken" / "models" / "__init__.py").touch()
    (tmp_path / "broken" / "models" / "recursive_reasoning" / "trm.py").write_text("import no_such_library")
    for arguments, word in [
        (["trm", "bench.official_path=nowhere"], "nowhere"),
        (["trm", "bench.official_path=broken"], "no_such_library"),
        (["bench.repeats=0"], "repeats"),
        (["bench.num_threads=0"], "num_threads"),
        (["bench.lengths=[]"], "lengths=[] must hold at least one"),
    ]:
        result = loopgrad("bench", *arguments, "bench.batch_size=2")
        assert result.code == 2 and result.err.count("\n") == 1 and word in result.err, result
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        del sys.modules[name]


@pytest.mark.parametrize("content", ["", "precious", '{"rows": []}'])
def test_a_bench_replaces_its_own_record_alone(loopgrad, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fits.json").write_text(content)
    result = loopgrad("bench", "fits", "output_dir=out")
    assert result.code == 2 and "out/fits.json is no record of a bench" in result.err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == [content]


def test_the_command_of_a_bench_is_not_lost(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/loopgrad", "bench", "a b=1"])
    assert provenance.command() == "loopgrad bench 'a b=1'"
    assert bench.__doc__ and "loopgrad bench" in bench.__doc__


@pytest.mark.parametrize(("asked", "plans", "workers"), [(5, 2, 2), (1, 4, 1), (3, 4, 3)])
def test_no_more_workers_than_runs(asked, plans, workers):
    assert at_once(plans, asked, torch.device("cpu"), num_threads=1) == workers
    assert at_once(plans, None, torch.device("meta"), num_threads=1) == 1


def test_differences_in_16_bits_end_in_one_line_with_the_way_out(loopgrad, tiny):
    result = loopgrad("train", *tiny, "estimator=zeroth_order", "trainer.autocast=bf16")
    assert result.code == 2 and "mode='jvp'" in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_budget_that_is_too_small_ends_in_one_line_with_the_one_that_fits(loopgrad, tiny, command):
    result = loopgrad(
        command,
        *tiny,
        "estimator=checkpointed",
        "estimator.checkpointed.memory_budget=1kB",
        *(["workers=1"] if command == "compare" else []),
    )
    assert result.code == 2 and "Traceback" not in result.err and result.err.count("\n") == 1
    assert 'memory_budget="' in result.err


def test_an_implicit_gradient_that_was_to_raise_ends_in_one_line_with_its_residuals(loopgrad, tiny):
    result = loopgrad("train", *tiny, "estimator=implicit", "estimator.implicit.on_unconverged=raise")
    assert result.code == 2 and "Traceback" not in result.err and result.err.count("\n") == 1
    assert "100% of 8 samples" in result.err and "step 1:" in result.err and "none was solved" in result.err
