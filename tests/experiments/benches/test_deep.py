"""The widest cell that fits: bytes that are foreseen are those of real steps, and one head more does not fit."""

import pytest
import torch

from loopgrad.experiments.benches.deep import COPIES, METHODS, Deep

SMALL = {"num_steps": 12, "tokens": 8, "layers": 1, "memory": (1,), "measured_steps": 12}


@pytest.fixture(scope="module")
def rows():
    return list(Deep(**SMALL, model_size=256, model_layers=2, sizes=(128, 256, 384)).rows())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_real_steps_take_what_was_foreseen(rows, name):
    measured = [row for row in rows if row["part"] == "measured" and row["method"] == name]
    assert [row["width"] for row in measured] == [128, 256, 384]
    for row in measured:
        assert row["measured GB"] / row["foreseen GB"] == pytest.approx(row["measured / foreseen"])
        assert row["measured / foreseen"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_widest_cell_fits_and_one_of_a_head_more_does_not(rows, name):
    (row,) = [row for row in rows if row["part"] == "widest" and row["method"] == name]
    bench = Deep(**SMALL)
    at, wider = (bench._training(name, row["width"] + more, 1) for more in (0, 128))
    assert row["foreseen GB"] == at / 1e9 <= 1 < wider / 1e9


@pytest.mark.slow
def test_weights_and_what_lies_beside_them_are_counted(rows):
    for row in rows:
        cell_bytes = 2 * row["M weights"] * 1e6
        beside = COPIES if row["part"] != "measured" else 0
        assert row["foreseen GB"] * 1e9 > (beside + 1) * cell_bytes  # gradients too


def test_widths_that_are_no_whole_heads_are_refused():
    with pytest.raises(ValueError, match=r"sizes=\(100,\) must be multiples of 128"):
        Deep(sizes=(100,))
    with pytest.raises(ValueError, match="model_size=2000 must be multiples of 128"):
        Deep(model_size=2000)
    assert Deep().place() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
