"""The bench of implicit gradients: its reference, its counts, and that every row holds what it says."""

import math

import pytest
import torch

from loopgrad.experiments.benches.implicit import OURS, THEIRS, Implicit, Problem
from loopgrad.gradients import BPTT, ImplicitGradient

pytest.importorskip("torchdeq")


def test_the_reference_is_the_gradient_of_a_long_recursion():
    problem = Problem.of(12, 4, 0.5, 4.0)
    cell, x = problem.cell.double(), problem.x.detach().double().requires_grad_()
    loss = (BPTT()(cell, torch.zeros_like(x), x, 400).state * problem.cotangent).sum()
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*cell.parameters(), x])])
    torch.testing.assert_close(found, problem.exact, rtol=1e-6, atol=1e-8)


def test_rows_hold_what_they_say():
    rows = Implicit(hidden_size=12, batch_size=4, targets=(1e-2,), per_decade=1, repeats=1).rows()
    assert [row["solver"] for row in rows[: len(rows) // 2]] == [
        *(f"ours, {name}" for name in OURS),
        *(f"torchdeq, {name}" for name in THEIRS),
    ]
    known = [row for row in rows if not math.isnan(row["error"])]
    assert {row["solver"] for row in known} >= {"ours, gcr", "ours, gmres", "torchdeq, broyden"}
    assert all(row["error"] <= 1e-2 and row["time"] > 0 and row["peak MiB"] > 0 for row in known)
    ours = [row for row in known if row["solver"] == "ours, gcr"]
    assert all(row["evaluations"] == 3 for row in ours)  # one forward, one recomputation, one more
    problem = Problem.of(12, 4, 0.5, 4.0)
    estimator = ImplicitGradient(rtol=1e-2, on_unconverged="ignore")
    rollout = estimator(problem.cell, problem.fixed, problem.x, 1)
    (rollout.state * problem.cotangent).sum().backward()
    assert rollout.stats.vjps == rollout.stats.verdict.vjps + 1
