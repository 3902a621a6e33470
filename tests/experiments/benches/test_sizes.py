"""A bench refuses every size of which nothing can be measured before it measures anything."""

import math
from dataclasses import fields

import pytest
import yaml
from repository import ROOT

from loopgrad.experiments.conf.targets import target_of

CASES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("experiments/conf/bench/*.yaml"))}


def numbers(case):
    return {key: value for key, value in case.items() if type(value) in (int, float) or isinstance(value, list)}


@pytest.mark.parametrize("name", CASES)
def test_sizes_of_nothing_are_refused_by_name(name):
    case = CASES[name]
    bench, values = target_of(case["_target_"]), {key: it for key, it in case.items() if key != "_target_"}
    assert {field.name for field in fields(bench)} >= values.keys() and bench(**values)
    for key, value in numbers(values).items():
        first = next(iter(value), 1) if isinstance(value, list) else value  # a list that may be empty takes ints
        wrong = [-1] if isinstance(first, int) else [-1.0, 0.0, math.nan, math.inf] if isinstance(first, float) else []
        wrong += [0] if key not in ("seed", "seeds", "stages") and isinstance(first, int) else []
        several = (
            [*([[]] if key not in bench.may_be_empty else []), *([it, *value] for it in wrong)]
            if isinstance(value, list)
            else wrong
        )
        for it in several:
            with pytest.raises(ValueError, match=f"^{key}="):
                bench(**{**values, key: it})
