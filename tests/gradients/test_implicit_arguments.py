"""What an implicit gradient refuses, each with the choice that there is."""

import pytest

from loopgrad.gradients import BPTT, ImplicitGradient
from loopgrad.gradients.solvers import Anderson


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "cg"}, "bicgstab"),
        ({"scope": "row"}, "'sample' or 'batch'"),
        ({"on_unconverged": "ift"}, "fallback"),
        ({"forward": "anderson"}, "Anderson"),
        ({"rtol": -1}, "at least 0"),
        ({"max_vjps": 0}, "at least 1"),
        ({"max_vjps": 1, "solver": "bicgstab"}, "at least 2"),
        ({"check_every": 0}, "at least 1"),
        ({"fallback": "bptt"}, "must be an estimator"),
        ({"fallback": ImplicitGradient()}, "not implicit"),
        ({"forward": Anderson(), "fallback": BPTT()}, "TruncatedBPTT"),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImplicitGradient(**arguments)
