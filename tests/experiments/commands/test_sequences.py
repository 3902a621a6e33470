"""Whole comparisons of models for sequences run under what applies, and their reports say what is true of them."""

import json

import pytest

SMALL = (
    "task.length=2",
    "trainer=sequences",
    "task.num_values=3",
    "task.num_test=4",
    "model.hidden_size=8",
    "trainer.train_steps=4",
    "trainer.batch_size=4",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "seeds=[0]",
    "timing_repeats=1",
    "workers=1",
)
APPLY = "bptt,checkpointed,truncated,random_truncation,forward_state"
FEW = "bptt,checkpointed,truncated"
RUNS = {
    "gru": ("task=copy", "model=gru", "model.num_layers=2", f"estimator=[{APPLY}]"),
    "ntm": ("task=repeat_copy", "task.repeats=2", "model=ntm", "model.slots=4", "model.width=3", f"estimator=[{FEW}]"),
    "damped": ("task=copy", "model=lstm", "model.coupling=damped", "estimator=[bptt,reversible,one_step]"),
    "looped": ("task=copy", "model=looped_lm", "model.num_heads=2", "model.num_loops=3", f"estimator=[{FEW}]"),
    "last": (
        *("task=copy", "model=looped_lm", "model.num_heads=2", "model.num_loops=3", "model.loss=last_loop"),
        "estimator=[bptt,last_cycle,implicit]",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_comparison_of_a_model_for_sequences(loopgrad, tmp_path, name):
    result = loopgrad("compare", *SMALL, *RUNS[name], "output_dir=out")
    assert result.code == 0, result.err
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    found = {record["estimator"]: record for record in records}
    per_token = not name.startswith("l")
    for record in records:
        assert record["probe"] == {
            "samples": 4,
            "segment": 1,
            "timing_repeats": 1,
            "input_per_update": per_token,
        }
        streams = record["residuals"].keys() - {"joint", "at", "levels", "dtype"}
        assert streams == record["residual_curve"].keys()
        if record["kind"] == "exact":
            assert record["gradient_relative_error"] < 1e-5
            assert record["curve"]["train_loss"] == found["bptt"]["curve"]["train_loss"]
            assert record["saved_bytes"] <= found["bptt"]["saved_bytes"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert ("Each update reads a token of its own" in page) == per_token
    assert "segment 1" in page and "uzzle" not in page
    again = loopgrad("compare", *SMALL, *RUNS[name], "output_dir=out")
    assert again.code == 0 and "holds this comparison already" in again.out


@pytest.mark.slow
def test_trained_loops_are_analysed_and_trained_recurrent_weights_are_refused(loopgrad):
    small = [value for value in SMALL if value.split("=")[0] not in ("seeds", "timing_repeats", "workers")]
    loops = ("task=copy", "model=looped_lm", "model.num_heads=2", "model.num_loops=3")
    assert loopgrad("train", *small, *loops, "estimator=bptt", "output_dir=loops").code == 0
    few = [f"analysis.{key}_samples={count}" for key, count in {"spectrum": 1, "exponent": 0, "search": 0}.items()]
    few += ["analysis.samples=4", "analysis.gradient_samples=4", "figures=0", "checkpoint=loops"]
    refused = loopgrad("analyse", *few)
    assert refused.code == 2 and "estimator.implicit_ungated: ImplicitGradient has" in refused.err
    result = loopgrad("analyse", *few, "estimator=[one_step,last_cycle]")
    assert result.code == 0, result.err
    assert loopgrad("train", *small, "task=copy", "model=gru", "estimator=bptt", "output_dir=gru").code == 0
    refused = loopgrad("analyse", "checkpoint=gru", "output_dir=other")
    assert refused.code == 2 and "each update of GRU reads another token" in refused.err


@pytest.mark.slow
def test_a_recurrent_model_trains_with_all_updates_at_once_and_logs_its_steps(loopgrad, tmp_path):
    small = [value for value in SMALL if value.split("=")[0] not in ("seeds", "timing_repeats", "workers")]
    given = ("task=copy", "model=gru", "estimator=parallel_newton", "output_dir=newton")
    result = loopgrad("train", *small, *given)
    assert result.code == 0, result.err
    assert "implicit_" not in (tmp_path / "newton" / "records.jsonl").read_text()
