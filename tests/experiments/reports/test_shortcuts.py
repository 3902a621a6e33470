"""What is said of several comparisons: each sentence by hand, and which words go with which scores of the seeds."""

import pytest

from loopgrad.experiments.reports.shortcuts import sentence


def run(estimator, seed, score, **values):
    return {
        "estimator": estimator, "seed": seed, "exact_accuracy": score, "token_accuracy": 0.5, "train_steps": 50,
        "model": "trm", "task": "maze", "kind": "exact" if estimator in ("bptt", "checkpointed") else "biased",
        "gradient_cosine": 1.0, "residuals": {"joint": {"map_relative": [0, 0.04, 1]}},
        "time_ratio_to_bptt": 1.0, "saved_bytes": 1.0,
    } | values  # fmt: skip


def runs(**scores):
    return [run(name, seed, score) for name, values in scores.items() for seed, score in enumerate(values)]


def test_a_sentence_says_what_each_gave_and_at_which_cosine_and_residual():
    found = runs(
        bptt=(0.9, 1.0), checkpointed=(0.9, 1.0), last_cycle=(0.7, 0.7), one_step=(0.1, 0.2), phantom=(0.96, 1.0)
    )
    for record in found[4:]:
        record["gradient_cosine"] = 0.2 + 0.2 * record["seed"]
    assert sentence(found, "experiment=a") == (
        "experiment=a: after 50 steps of trm on maze (2 seeds), BPTT solves 95.0 % of the held-out samples exactly "
        "(residual 0.04); checkpointed 95.0 % with the same gradient; last_cycle 70.0 % (cosine 0.30, "
        "residual 0.04) and one_step 15.0 % (cosine 0.30, residual 0.04) cost more accuracy than seeds differ by; "
        "phantom 98.0 % (cosine 0.30, residual 0.04) costs no accuracy that these seeds show."
    )


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ((0.19, 0.39), "costs more accuracy than seeds differ by"),
        ((0.2, 0.41), "costs no more accuracy than seeds differ by"),
        ((0.0, 0.3), "costs no more accuracy than seeds differ by"),  # a gap as wide as BPTT's seeds lie apart
        ((0.0, 1.0), "costs no more accuracy than seeds differ by"),
        ((0.59, 0.61), "costs no accuracy that these seeds show"),
        ((0.5, 0.95), "costs no accuracy that these seeds show"),
        ((0.81, 0.9), "costs no accuracy that these seeds show"),
        ((1.01, 1.02), "gains more accuracy than seeds differ by"),
        ((None, 0.1), "residual 0.04)"),
        ((0.1,), "residual 0.04)"),
    ],
)
def test_words_follow_from_the_seeds(scores, words):
    """BPTT reaches 60 and 80 %; a single seed is not judged."""
    assert sentence(runs(bptt=(0.6, 0.8), other=scores)).endswith(f"{words}.")


def test_what_is_not_known_is_not_said():
    found = runs(bptt=(0.6, 0.8), other=(0.1, 0.2))
    for record in found:
        record |= {"gradient_cosine": None, "residuals": {}}
    assert sentence(found) == (
        "After 50 steps of trm on maze (2 seeds), BPTT solves 70.0 % of the held-out samples exactly; other 15.0 % "
        "costs more accuracy than seeds differ by."
    )
    assert "one seed, so without a spread" in sentence(runs(bptt=(0.6,), other=(0.1,)))
    assert sentence(runs(other=(0.1, 0.2), more=(0.1, 0.2)), "a=1").startswith("a=1: After 50 steps")
