"""Scans of linear recursions against a plain loop and against dense systems; how many batches wait for one another."""

import math

import pytest
import torch

from loopgrad.gradients import prefix_scan
from loopgrad.gradients.damped_recursion import damped, levels_damped
from loopgrad.gradients.prefix_scan import levels, one_by_one_back, scan, scan_back

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33]


def problem(length, d, rows=2):
    torch.manual_seed(length)
    A = torch.randn(length, rows, d, d, dtype=torch.float64) / d**0.5
    return A, torch.randn(length, rows, d, dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_scans_equal_plain_loops(length, d):
    A, b = problem(length, d)
    x, forth = torch.zeros_like(b[0]), []
    for t in range(length):
        x = torch.einsum("rij,rj->ri", A[t], x) + b[t]
        forth.append(x)
    torch.testing.assert_close(scan(A, b), torch.stack(forth), rtol=1e-12, atol=1e-12)
    x, back = b[-1], [b[-1]]
    for t in reversed(range(length - 1)):
        x = torch.einsum("rji,rj->ri", A[t + 1], x) + b[t]
        back.append(x)
    torch.testing.assert_close(scan_back(A, b), torch.stack(back[::-1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_by_one_back(A, b), torch.stack(back[::-1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_damped_step_is_that_of_dense_normal_equations(length, d):
    A, s = problem(length, d)
    weight = torch.tensor([0.03, 2.0], dtype=torch.float64)
    found = damped(A, s, weight)
    for row in range(2):
        L = torch.eye(length * d, dtype=torch.float64)
        for t in range(1, length):
            L[t * d : (t + 1) * d, (t - 1) * d : t * d] = -A[t, row]
        whole = L.T @ L + weight[row] * torch.eye(length * d, dtype=torch.float64)
        expected = torch.linalg.solve(whole, L.T @ s[:, row].flatten()).view(length, d)
        torch.testing.assert_close(found[:, row], expected, rtol=1e-10, atol=1e-10)


def test_batches_that_wait_for_one_another_grow_with_the_logarithm(monkeypatch):
    for exponent in range(1, 12):
        assert levels(2**exponent) == 2 * exponent - 1
        assert levels_damped(2**exponent) == 2 * exponent + 1
    assert all(levels(n) <= 2 * math.log2(n) for n in range(2, 3000))
    calls = []
    act = prefix_scan.act
    monkeypatch.setattr(prefix_scan, "act", lambda *given: calls.append(1) or act(*given))
    for length in LENGTHS:
        calls.clear()
        scan(*problem(length, 2))
        assert len(calls) == levels(length)  # products with vectors; those of matrices are beside the first half
