"""The bench of fallbacks: its gradients beside a loop by hand, its counts, and a row for every candidate."""

import pytest
import torch

from loopgrad.experiments.benches.fallback import Fallback, _compared, _Learner, candidates
from loopgrad.experiments.benches.fallback_cells import CELLS

SMALL = Fallback(size=8, positions=2, batch_size=3, stages=(0, 1), lengths=(4, 9), seeds=(0, 1))


@pytest.mark.parametrize("cell", CELLS)
def test_error_and_cosine_are_those_of_a_loop_that_is_cut(cell):
    generator = torch.Generator().manual_seed(0)
    learner = _Learner(cell, SMALL, generator)
    z, x, y = batch = learner.batch(3, generator)
    found = {row["fallback"]: row for row in _compared(learner, batch, 0, 9)}

    def gradient(last):
        state = z
        for step in range(9):
            state = learner.cell(state.detach() if step == 9 - last else state, x, step)
        loss = (learner.readout(state) - y).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.cell.parameters()))])

    exact = gradient(9)
    for k in (1, 4):
        row, own = found[f"last {k}"], gradient(k)
        assert row["trusted"] == 0, "a cell that settles says nothing of fallbacks"
        assert row["error"] == pytest.approx(float((own - exact).norm() / exact.norm()), rel=1e-9)
        assert row["cosine"] == pytest.approx(float(own @ exact / own.norm() / exact.norm()), rel=1e-9)
        # the updates, the linearised cycle, its first update once more, the fallback's
        assert (row["evaluations"], row["vjps"]) == (9 + 1 + 1 + k, k)
    assert found["last sqrt T"]["error"] == pytest.approx(float((gradient(3) - exact).norm() / exact.norm()), rel=1e-9)
    assert found["checkpointed"]["error"] < 1e-12


@pytest.mark.slow
def test_every_candidate_has_a_row_in_every_setting_and_a_line_in_the_text():
    rows = SMALL.rows()
    assert [row["fallback"] for row in rows[:9]] == list(candidates(4))
    assert len(rows) == len(CELLS) * 2 * 2 * 9
    assert [line.split(":")[0] for line in SMALL.text(rows).splitlines()] == list(candidates(4))
