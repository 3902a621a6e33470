"""Training on two and three processes, and in micro-batches, beside one process on the whole batch, in float64."""

import pytest
import torch
from ranks_witness import (
    ALONE,
    SETTINGS,
    assert_same,
    in_processes,
    poisoned,
    settings,
    tolerance_of,
    trained,
    work,
)

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.processes import Ranks, cut, started
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training.parallel import check_rows
from loopgrad.models import FixedSegments


@pytest.fixture(scope="module")
def one():
    known = {}

    def of(name: str) -> dict:
        if name not in known:
            known[name] = trained(settings(name), ALONE)
        return known[name]

    return of


FAST = ("depth_of_samples", "penalty")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS])
def test_micro_batches_are_the_batch(one, name):
    assert_same(trained(settings(name, micro_batches=3), ALONE), one(name), tolerance_of(name))  # of 3, 3 and 2 rows


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {size: in_processes(size, work, folder) for size in (2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])  # of 4 and 4 rows; of 2, 3 and 3
@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_are_one_process(one, many, size, name):
    for found in many[size]:
        assert_same(found[name], one(name), tolerance_of(name))


@pytest.mark.slow
def test_micro_batches_of_ranks_are_one_batch(one, many):
    for found in many[2]:
        assert_same(found["micro"], one("explored"), tolerance_of("explored"))


@pytest.mark.slow
def test_a_run_goes_on_on_any_number_of_processes(one, many):
    for found in many[3]:  # two steps on two processes, one on three, two on one
        assert_same({**found["resumed"], "log": one("explored")["log"]}, one("explored"), tolerance_of("explored"))


@pytest.mark.slow
def test_a_gradient_that_some_ranks_lack_hangs_none(many):
    for size, ranks in many.items():
        for found in ranks:
            assert found["gradients"]["everywhere"].tolist() == [sum(range(1, size + 1))] * 3
            assert found["gradients"]["of the last"].tolist() == [5.0, 5.0]
            assert found["gradients"]["nowhere"] is None
            rows = torch.zeros(4, 2)
            for rank in {*range(size)} - {1}:
                rows[0] += 2 * (rank + 1)
                rows[rank + 1] += rank + 1
            assert found["gradients"]["rows"].is_sparse and torch.equal(found["gradients"]["rows"].to_dense(), rows)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_told_alike_by_all(many):
    expected = poisoned(ALONE)
    assert expected.startswith("step 2: carried state") and expected.endswith("the weights of step 1 are kept")
    assert {found["poisoned"] for ranks in many.values() for found in ranks} == {expected}


@pytest.mark.slow
def test_what_ranks_draw_is_their_own_and_what_they_share_is_not(many):
    for ranks in many.values():
        assert len({found["dropout"] for found in ranks}) == len(ranks)
        assert len({found["exploration"] for found in ranks}) == 1


@pytest.mark.parametrize(("count", "size"), [(8, 3), (7, 2), (3, 3), (2, 3), (0, 2)])
def test_rows_are_cut_into_parts_that_differ_by_one(count, size):
    parts = [range(*part.indices(100)) for part in cut(slice(5, 5 + count), size)]
    assert [row for part in parts for row in part] == list(range(5, 5 + count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [Ranks(rank, size).rows(count) for rank in range(size)] == cut(slice(0, count), size)


STARTED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_what_torchrun_says_is_read():
    assert started({}) == started({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    assert started(STARTED) == Ranks(1, 2, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a number, as torchrun sets it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a number"),
        ({"RANK": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1: must be a number"),
        ({"RANK": ""}, "WORLD_SIZE=2 is set and RANK not: start the processes by torchrun, or unset it"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT not"),
    ],
)
def test_what_torchrun_does_not_say_is_refused_by_name(changed, said):
    with pytest.raises(ConfigError, match=said):
        started(STARTED | changed)


def test_too_few_rows_are_refused():
    it = Trainer(FixedSegments(1), batch_size=5, micro_batches=3)
    check_rows(it, ALONE)
    with pytest.raises(ConfigError, match="trainer.batch_size=5: 2 processes times trainer.micro_batches=3 need a row"):
        check_rows(it, Ranks(1, 2))
    with pytest.raises(ValueError, match="micro_batches=6 must be at most batch_size=5"):
        Trainer(FixedSegments(1), batch_size=5, micro_batches=6)
    with pytest.raises(ValueError, match="micro_batches=0 must be at least 1"):
        Trainer(FixedSegments(1), micro_batches=0)
