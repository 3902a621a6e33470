"""Cosine, relative error and norm ratio of gradients, over all and by group, beside known vectors."""

import math

import numpy as np
import pytest
import torch

from loopgrad.analysis import compare_gradients


def test_vectors_sixty_degrees_apart():
    g = {"w": torch.tensor([1.0, 0.0])}
    exact = {"w": torch.tensor([0.5, math.sqrt(3) / 2], dtype=torch.float64)}
    result = compare_gradients(g, exact)
    assert result.cosine == pytest.approx(0.5, abs=1e-15)
    assert result.relative_error == pytest.approx(1.0, abs=1e-15)  # an equilateral triangle
    assert result.norm_ratio == pytest.approx(1.0, abs=1e-15)


def test_opposite_and_scaled_vectors():
    exact = {"w": torch.tensor([3.0, 4.0])}
    result = compare_gradients({"w": torch.tensor([-6.0, -8.0])}, exact)
    assert (result.cosine, result.relative_error, result.norm_ratio) == (-1.0, 3.0, 2.0)


def test_groups_are_the_first_component_by_default_and_add_up():
    rng = np.random.default_rng(0)
    names = ["embed.w", "block.0.w", "block.1.w", "head"]
    g = {name: rng.normal(size=(3, 2)) for name in names}
    exact = {name: rng.normal(size=(3, 2)) for name in names}

    def witness(chosen):
        a = np.concatenate([g[name].ravel() for name in chosen])
        b = np.concatenate([exact[name].ravel() for name in chosen])
        return [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b),
            np.linalg.norm(a - b) / np.linalg.norm(b),
            np.linalg.norm(a) / np.linalg.norm(b),
        ]

    def figures(one):
        return [one.cosine, one.relative_error, one.norm_ratio]

    tensors = [{name: torch.from_numpy(value) for name, value in tree.items()} for tree in (g, exact)]
    result = compare_gradients(*tensors)
    assert list(result.groups) == ["embed", "block", "head"]
    np.testing.assert_allclose(figures(result), witness(names), rtol=1e-13)
    np.testing.assert_allclose(figures(result.groups["block"]), witness(names[1:3]), rtol=1e-13)
    by_layer = compare_gradients(*tensors, groups=lambda name: name[-1])
    assert list(by_layer.groups) == ["w", "d"]
    np.testing.assert_allclose(figures(by_layer.groups["w"]), witness(names[:3]), rtol=1e-13)


def test_none_counts_as_zero():
    result = compare_gradients(
        {"a": None, "b": torch.tensor([4.0])}, {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    )
    assert result.cosine == pytest.approx(4 / 5)
    assert result.relative_error == pytest.approx(3 / 5)
    assert result.groups["a"].relative_error == 1.0
    assert math.isnan(result.groups["a"].cosine)
    assert result.groups["a"].norm_ratio == 0.0


def test_zero_gradients_give_nan_or_inf_and_no_exception():
    zero, one = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    both = compare_gradients(zero, {"a": None})
    assert math.isnan(both.cosine) and both.relative_error == 0.0 and math.isnan(both.norm_ratio)
    stray = compare_gradients(one, zero)
    assert math.isnan(stray.cosine) and stray.relative_error == math.inf and stray.norm_ratio == math.inf
    lost = compare_gradients(zero, one)
    assert math.isnan(lost.cosine) and lost.relative_error == 1.0 and lost.norm_ratio == 0.0


def test_a_gradient_with_nan_is_not_called_good():
    result = compare_gradients({"a": torch.tensor([math.nan, 1.0])}, {"a": torch.ones(2)})
    assert math.isnan(result.cosine) and math.isnan(result.relative_error)


def test_sums_are_float64_even_for_bfloat16():
    # 1 + 2^-7 is a bfloat16, its square is not
    g = {"a": torch.full((1000,), 1 + 2**-7, dtype=torch.bfloat16)}
    result = compare_gradients(g, {"a": torch.ones(1000, dtype=torch.float64)})
    assert result.relative_error == pytest.approx(2**-7, rel=1e-14)
    assert result.norm_ratio == pytest.approx(1 + 2**-7, rel=1e-14)


def test_tiny_and_nearly_parallel_vectors_keep_a_cosine_within_one():
    g = {"a": torch.full((3,), 1e-140, dtype=torch.float64)}
    assert compare_gradients(g, {"a": g["a"] * 3}).cosine == pytest.approx(1.0, abs=1e-15)
    assert compare_gradients(g, {"a": g["a"] * 3}).cosine <= 1.0


def test_sparse_and_complex_gradients():
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert compare_gradients({"a": dense.to_sparse()}, {"a": dense}).relative_error == 0.0
    turned = compare_gradients({"a": torch.tensor([1j])}, {"a": torch.tensor([1 + 0j])})
    assert turned.cosine == 0.0 and turned.relative_error == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("gradient", "text"),
    [
        ({"a": torch.ones(2)}, r"gradient lacks \['b'\]"),
        ({"a": torch.ones(2), "b": None, "c": None}, r"reference lacks \['c'\]"),
        ({"a": torch.ones(3), "b": None}, "differ in shape"),
    ],
)
def test_gradients_of_other_modules_are_refused(gradient, text):
    with pytest.raises(ValueError, match=text):
        compare_gradients(gradient, {"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_gradients({}, {})
