"""The scale axis: every estimator in every way in which two processes share a model, against one process alone.

Exact where it is not refused by name, and never a hang: the processes are killed when their time is up.
"""

import re

import pytest
import torch
from shared_models import ESTIMATORS, of_one_process
from sharing import WAYS, all_gradients
from two_processes import in_two

FAST = [
    ("ddp static", "checkpointed"),
    ("ddp cell", "reversible damped"),
    ("fsdp cell", "random truncation"),
    ("fsdp blocks+cell+model", "implicit fallback"),
    ("bf16 cell+model", "checkpointed"),
    ("tensor", "reversible leapfrog"),
]
CAST = "fully_shard.mp_policy=.* would cast its coupled state .* the cell inside"
REFUSED = {
    ("bf16 cell+model", "reversible damped"): CAST,
    ("bf16 cell+model", "reversible leapfrog"): CAST,
    # by torch, as of any loss that an encoder has no part in
    ("ddp", "forward mode"): "parameters that were not used in producing loss",
    **{(way, "forward central"): r"mode='central'\) on torch.bfloat16" for way in WAYS if way.startswith("bf16")},
    ("tensor", "forward mode"): "split by tensor parallelism.*mode='central'",
    ("tensor", "forward state"): "split by tensor parallelism.*mode='central'",
    ("tensor", "forward weights"): "split by tensor parallelism.*mode='central'",
}
# once forward and once backward for each module that was sharded, the outermost but once: it stays between the two
GATHERED = {"fsdp cell": 1, "fsdp cell+model": 3, "fsdp blocks": 2, "fsdp blocks+cell+model": 7}


def check(pairs):
    for pair, *ranks in zip(pairs, *in_two(all_gradients, pairs, seconds=60 + 3 * len(pairs)), strict=True):
        if pair in REFUSED:
            assert all(isinstance(it, str) and re.search(REFUSED[pair], it, re.DOTALL) for it in ranks), (pair, ranks)
            continue
        assert not any(isinstance(it, str) for it in ranks), (pair, ranks)
        (first, collectives), (second, _) = ranks
        tolerance = {"rtol": 1e-6, "atol": 1e-8} if pair[0].startswith("bf16") else {"rtol": 1e-12, "atol": 1e-14}
        for ours, theirs, expected in zip(first, second, of_one_process(*pair), strict=True):
            assert (ours is None) == (theirs is None) == (expected is None), pair
            if expected is not None:
                assert torch.equal(ours, theirs), pair
                torch.testing.assert_close(ours, expected, msg=str(pair), **tolerance)
        if pair[0] in GATHERED:
            assert collectives["allgather"] == GATHERED[pair[0]], (pair, collectives)


def test_a_few_estimators_are_exact_in_a_few_ways_of_sharing():
    check(FAST)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_estimator_is_exact_or_refused_by_name(way):
    # of an encoder without a gradient torch tells at the call after the one that exchanges, which no_sync does not make
    left_out = {("ddp no_sync", "forward mode")}
    check([(way, name) for name in ESTIMATORS if (way, name) not in left_out])
