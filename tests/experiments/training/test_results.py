"""What a record says of the command line."""

import pytest

from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.training import results


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ((), {"overrides": []}),
        (("a=1", "+b.c=2"), {"overrides": ["a=1", "+b.c=2"]}),
        (("a=" + "x" * 998,), {"overrides": ["a=" + "x" * 998]}),
        (("a=" + "x" * 999,), {}),
        (("a=1",) * 1001, {}),
        (None, {}),
    ],
)
def test_overrides_are_told_unless_they_are_longer_than_a_record_may_hold(typed, told):
    assert results._overrides(Names("task", "model", typed)) == told
