"""The learning rate of each training."""

import math

from loopgrad.experiments.benches.rates import best_rates


def test_each_has_the_rate_of_its_least_loss_and_the_lower_of_two_alike():
    trials = [
        ("a", 0.1, 2.0),
        ("a", 0.01, 1.0),
        ("b", 0.1, math.nan),
        ("b", 0.01, 9.0),
        ("c", 0.1, 1.0),
        ("c", 0.01, 1),
    ]
    trials += [("d", 0.1, math.inf), ("d", 0.03, math.nan)]
    assert best_rates(trials) == {"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.03}
