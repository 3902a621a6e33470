"""Gradient gaps of a linear recursion whose gradients (one-step, implicit and full), residuals and radii are known."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import cast, compare_gradients, gradients_of, reference_gradients
from loopgrad.analysis.gaps import gradient_gaps, sign_agreement
from loopgrad.analysis.gradient_points import evenly, residual_and_radius, taken_at
from loopgrad.gradients import BPTT, ImplicitGradient, TruncatedBPTT
from loopgrad.models import Damped

A = torch.tensor([0.2, 0.5, 0.5, 0.9, -0.8])
X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0], [2.0, 0.1], [-1.0, 1.0]])
T = 8
ONE_STEP, LAST_3 = TruncatedBPTT(num_steps=1), TruncatedBPTT(num_steps=3)
SOLVED = ImplicitGradient("gmres", rtol=1e-12, max_vjps=8, on_unconverged="ignore")
EACH = {str(i): [i] for i in range(5)}


class Linear(nn.Module):
    """z <- a z + w x + b, elementwise, with an a for each sample: z_T = (w x + b) (1 - a^T) / (1 - a)."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([0.5, 3.0]))

    def forward(self, state, inputs, step):
        return inputs["a"][:, None] * state + self.w * inputs["x"] + self.b


def inputs(a=A):
    return {"a": a, "x": X}


def loss(cell, estimator, rows):
    values = cast({"a": A[rows], "x": X[rows]}, cell.w.dtype)
    return estimator(cell, torch.zeros_like(values["x"]), values, T).state.sum()


def found(estimators, num_steps=T, **options):
    return gradient_gaps(estimators, loss, Linear(), Linear(), torch.zeros_like(X), inputs(), num_steps, **options)


def sums(factor, rows):
    """The gradient of w and b in closed form: sums over samples of x, and of 1, each times the sample's factor."""
    a, x = A[rows].double(), X[rows].double()
    return {"w": (x * factor(a)[:, None]).sum(0), "b": factor(a).sum() * torch.ones(2).double()}


def full(a):
    return (1 - a**T) / (1 - a)


def test_each_sample_has_the_gap_of_its_own_a():
    for gap, a in zip(found({"one": ONE_STEP}, samples=EACH), A.double().tolist(), strict=True):
        ratio = (1 - a) / (1 - a**T)
        assert gap.cosine == pytest.approx(1, abs=1e-6)
        assert gap.norm_ratio == pytest.approx(ratio, rel=1e-6)
        assert gap.best_scale == pytest.approx(1 / ratio, rel=1e-6)
        assert gap.relative_error == pytest.approx(abs(1 - ratio), rel=1e-5)
        assert gap.radius.tolist() == pytest.approx([abs(a)], rel=1e-7)  # a is a float32
        assert gap.sign_agreement == 1.0


@pytest.mark.parametrize(
    ("estimator", "factor"),
    [
        (ONE_STEP, torch.ones_like),
        (LAST_3, lambda a: 1 + a + a**2),
        (SOLVED, lambda a: 1 / (1 - a)),
        (BPTT(), full),
    ],
)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 4], [1, 4]])
def test_a_group_has_the_gradient_of_its_samples_alone(estimator, factor, rows):
    (gap,) = found({"it": estimator}, samples={"some": rows})
    expected = compare_gradients(sums(factor, rows), sums(full, rows))
    for name, got in [(None, gap), *gap.parameters.items()]:
        witness = expected if name is None else expected.groups[name]
        for figure in ("cosine", "relative_error", "norm_ratio"):
            assert getattr(got, figure) == pytest.approx(getattr(witness, figure), rel=2e-6, abs=2e-6)
    assert gap.count == len(rows)


@pytest.mark.parametrize(("estimator", "at"), [(ONE_STEP, 7), (LAST_3, 5), (BPTT(), 8), (TruncatedBPTT(99), 0)])
def test_the_residual_is_that_of_the_joint_map_where_the_gradient_is_taken(estimator, at):
    (gap,) = found({"it": estimator})
    drive = (torch.tensor([1.0, -2.0]) * X + torch.tensor([0.5, 3.0])).double().norm(dim=1).numpy()
    a = A.double().numpy()
    norms = drive * np.abs([(1 - a**t) / (1 - a) for t in range(T + 1)])
    assert gap.at == at
    expected = drive * np.abs(a) ** at / np.quantile(norms, 0.9, axis=0)  # z_{t+1} - z_t = a^t (w x + b)
    np.testing.assert_allclose(gap.residual, expected, rtol=1e-5, atol=1e-7)  # the states are float32


def test_masks_and_indices_say_the_same_and_groups_may_overlap():
    mask = A > 0.3
    asked = {"mask": mask, "indices": [3, 1, 2], "array": mask.numpy(), "all": torch.arange(5)}
    by_mask, by_indices, by_array, everything = (gap.table() for gap in found({"it": ONE_STEP}, samples=asked))
    for row in (*by_mask, *by_indices, *by_array):
        row.pop("samples")
    assert by_mask == by_indices == by_array
    assert everything[0]["count"] == 5 and everything[0]["cosine"] != by_mask[0]["cosine"]


def test_radii_are_those_of_a_few_samples_evenly_chosen_of_each_group():
    wrong, right = found({"it": BPTT()}, samples={"wrong": [1, 2, 3, 4], "right": [0]}, radius_samples=2)
    np.testing.assert_allclose(wrong.radius, [0.5, math.nan, math.nan, 0.8], rtol=1e-6)
    np.testing.assert_allclose(right.radius, [0.2], rtol=1e-6)
    outer, inner = found({"it": BPTT()}, samples={"outer": [0, 1, 3], "inner": [1]}, radius_samples=2)
    np.testing.assert_allclose(outer.radius, [0.2, math.nan, 0.9], rtol=1e-6)  # not what another group asked for
    np.testing.assert_allclose(inner.radius, [0.5], rtol=1e-6)
    (none,) = found({"it": BPTT()}, radius_samples=0)
    assert np.isnan(none.radius).all() and none.table()[0]["radius_q50"] is None
    assert evenly(torch.arange(100), 5).tolist() == [0, 25, 50, 74, 99]


def test_an_input_with_as_many_entries_as_chosen_samples_is_not_sliced():
    class Gained(Linear):
        def forward(self, state, inputs, step):
            return inputs["gain"] * super().forward(state, inputs, step)

    values = {**inputs(), "gain": torch.tensor([0.5, 0.25])}
    radius = residual_and_radius(Gained(), torch.zeros_like(X), values, T, 3, torch.tensor([0, 4]))[1]
    np.testing.assert_allclose(radius[[0, 4]], [0.1, 0.4], rtol=1e-6)


def test_a_diverged_sample_has_an_infinite_radius():
    state = torch.zeros_like(X)
    state[1] = math.inf
    residual, radius, _ = residual_and_radius(Linear(), state, inputs(), T, T, torch.arange(5))
    assert radius[1] == math.inf and radius[0] == pytest.approx(0.2) and not np.isfinite(residual[1])


def test_parameter_groups_are_those_of_compare():
    (gap,) = found({"it": LAST_3}, groups=lambda name: f"group of {name}")
    everything = torch.arange(5)
    gradient = gradients_of(lambda own: loss(own, LAST_3, everything), Linear())
    exact = reference_gradients(lambda own: loss(own, BPTT(), everything), Linear())
    expected = compare_gradients(gradient, exact, lambda name: f"group of {name}")
    assert gap.parameters == expected.groups and list(gap.signs) == ["group of w", "group of b"]
    assert dataclasses.replace(expected, groups={}) == type(expected)(gap.cosine, gap.relative_error, gap.norm_ratio)


def test_sign_agreement_counts_entries_of_the_reference_that_are_not_zero():
    g = {"a": torch.tensor([1.0, -1.0, 0.0, 5.0]), "b": None, "c": torch.ones(3)}
    exact = {"a": torch.tensor([2.0, 3.0, 1.0, 0.0]), "b": torch.ones(1), "c": None}
    assert sign_agreement(g, exact) == 1 / 4
    assert sign_agreement(g, exact, ["a"]) == 1 / 3
    assert math.isnan(sign_agreement(g, exact, ["c"]))


def test_signs_are_apart_for_each_group_of_parameters():
    (gap,) = found({"it": ONE_STEP}, samples={"opposed": [2, 4]})
    assert gap.signs == {"w": 0.5, "b": 1.0} and gap.sign_agreement == 0.75  # 0.5 - 1, and 0.5 * 2 - 0.46


def test_the_point_of_a_truncated_gradient_counts_cycles_of_the_cell():
    cell = Linear()
    cell.period = 3
    assert taken_at(TruncatedBPTT(num_cycles=1), cell, 8) == 5
    assert taken_at(TruncatedBPTT(num_cycles=9), cell, 8) == 0
    assert taken_at(SOLVED, cell, 8) == 8


def test_a_table_is_ready_for_json():
    (gap,) = found({"it": ONE_STEP}, samples={"right": [0, 3]})
    rows = json.loads(json.dumps(gap.table(levels=(0, 0.5, 1))))
    assert [row["parameters"] for row in rows] == ["all", "w", "b"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert rows[1]["radius_q0"] == pytest.approx(0.2) and rows[1]["radius_q100"] == pytest.approx(0.9)
    assert rows[2]["norm_ratio"] == pytest.approx(2 / full(A[[0, 3]].double()).sum().item(), rel=1e-6)
    assert rows[2]["best_scale"] == pytest.approx(1 / rows[2]["norm_ratio"], rel=1e-6)


class Noisy(Linear):
    """Draws from the global generator, counts its updates in a buffer, and keeps batch statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, state, inputs, step):
        self.count += 1
        return self.norm(nn.functional.dropout(super().forward(state, inputs, step), 0.5, self.training)) + self.count


def test_module_gradients_buffers_and_generator_are_left_as_they_were():
    torch.manual_seed(0)
    cell = Noisy()
    cell.w.grad = torch.ones(2)
    tensors = dict(cell.named_parameters()) | dict(cell.named_buffers())
    values = {name: (tensor.clone(), tensor._version) for name, tensor in tensors.items()}
    rng, modes = torch.get_rng_state(), [module.training for module in cell.modules()]
    exact, again = gradient_gaps({"a": BPTT(), "b": BPTT()}, loss, cell, cell, torch.zeros_like(X), inputs(), T)
    assert exact.relative_error == again.relative_error < 1e-4  # same masks, same count, in float64 and float32
    for name, tensor in (dict(cell.named_parameters()) | dict(cell.named_buffers())).items():
        assert tensor is tensors[name] and torch.equal(tensor, values[name][0]) and tensor._version == values[name][1]
    assert torch.equal(cell.w.grad, torch.ones(2)) and cell.b.grad is None
    assert torch.equal(rng, torch.get_rng_state()) and modes == [module.training for module in cell.modules()]


@pytest.mark.parametrize(
    ("samples", "error", "text"),
    [
        ({"few": A > 2}, ValueError, r"samples\['few'\] holds no sample"),
        ({"few": torch.ones(4, dtype=torch.bool)}, ValueError, r"samples\['few'\] is a mask of 4 .* has 5"),
        ({"few": [0, 5]}, ValueError, r"samples\['few'\] must be different indices in 0 .. 4"),
        ({"few": [-1]}, ValueError, r"samples\['few'\] must be different indices"),
        ({"few": [1, 1]}, ValueError, r"samples\['few'\] must be different indices"),
        ({"few": [0.5]}, TypeError, r"samples\['few'\] has .* a mask \(5,\) of bools, or indices"),
        ({"few": [[1]]}, TypeError, r"samples\['few'\] has shape \(1, 1\)"),
        ({}, ValueError, "samples is empty"),
    ],
)
def test_wrong_groups_are_refused(samples, error, text):
    with pytest.raises(error, match=text):
        found({"it": BPTT()}, samples=samples)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="estimators is empty"):
        found({})
    with pytest.raises(ValueError, match="radius_samples must be"):
        found({"it": BPTT()}, radius_samples=-1)
    coupled = Damped(Linear())
    with pytest.raises(ValueError, match="radius_samples must be 0 for a coupled cell"):
        gradient_gaps({"it": BPTT()}, loss, coupled, coupled, torch.zeros_like(X), inputs(), T)
