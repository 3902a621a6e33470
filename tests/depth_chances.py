"""The probability of each number of steps, from mass functions written by hand."""

import math

import numpy as np


def poisson(n, rates):
    return np.exp(n * np.log(rates) - rates - math.lgamma(n + 1))


def chance(mean, distribution, k, sigma=0.5):
    """P(k), from probability mass functions written here."""
    if distribution == "geometric":
        return (1 / mean) * (1 - 1 / mean) ** (k - 1)
    if distribution == "poisson":
        return float(poisson(k - 1, mean - 1))
    x = np.linspace(-11, 11, 3_001)
    density = np.exp(-(x**2) / 2)
    rates = np.exp(math.log(mean - 1) - sigma**2 / 2 + sigma * x)
    return float((density * poisson(k - 1, rates)).sum() / density.sum())
