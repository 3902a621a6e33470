"""The bench of validity: radii as asked for, gradients as closed forms have them, a figure beside the record."""

import pytest
import torch

from loopgrad.experiments import records
from loopgrad.experiments.benches.validity import Validity, _compared


def test_the_radii_are_those_asked_for_and_only_the_implicit_gradient_becomes_exact():
    rows = Validity(radii=(0.47, 1.1), lengths=(4, 64)).rows()
    assert [(row["gradient"], row["updates"]) for row in rows] == [
        (name, length) for _ in range(2) for length in (4, 64) for name in ("one step", "implicit")
    ]
    assert rows[2]["radius"] == pytest.approx(0.47, abs=1e-6) and rows[6]["radius"] == pytest.approx(1.1, abs=0.02)
    assert rows[3]["rel. error"] < 1e-12 < 0.3 < rows[2]["rel. error"]
    assert rows[7]["cosine"] < 0.5  # no fixed point: the implicit gradient is lost


def test_the_gradients_of_one_feature_are_those_of_the_geometric_series():
    # tanh is linear near zero: z_T = x (1 - w^T) / (1 - w), dz/dw at the limit is z / (1 - w), one step gives z
    w, x, c = torch.tensor([[0.5]]).double(), torch.full((1, 1), 1e-6).double(), torch.ones(1, 1).double()
    one_step, implicit = _compared(w, x, c, 60)
    assert one_step["rel. error"] == pytest.approx(0.5, rel=1e-6) and implicit["rel. error"] < 1e-9
    assert one_step["radius"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.slow
def test_the_command_draws_its_figure(loopgrad, tmp_path):
    sizes = ("bench.width=8", "bench.lengths=[4,16]", "bench.radii=[0.5]")
    result = loopgrad("bench", "validity", *sizes, "output_dir=out")
    assert result.code == 0 and "implicit" in result.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "validity-figure.json",
        "validity-figure.png",
        "validity-figure.svg",
        "validity.html",
        "validity.json",
    ]
    (record,) = records.read(tmp_path / "out" / "validity.json")
    assert len(record["rows"]) == 4 and record["command"].startswith("loopgrad bench validity")
    assert loopgrad("bench", "validity", "bench.radii=[5]", "output_dir=other").code == 2
