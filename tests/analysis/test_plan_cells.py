"""Cells that a plan follows in a way of their own, or cannot follow."""

import re

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor

from loopgrad.analysis import plan
from loopgrad.gradients import BPTT, ForwardGradient


class Squashed(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + inputs)


@pytest.mark.parametrize("convert", ["bfloat16", "half", "double"])
def test_a_factory_that_converts_is_as_the_module_that_it_makes(convert):
    def make():
        return getattr(Squashed(8, 8), convert)()

    dtype = make().weight.dtype
    shapes = torch.zeros(8, dtype=dtype), torch.zeros(8, dtype=dtype), 9, "1GiB"
    assert plan(make, *shapes, batch_size=4) == plan(make(), *shapes, batch_size=4)


class Gated(nn.Linear):
    def forward(self, state, inputs, step):
        return nn.functional.glu(super().forward(state), -1)


def test_an_operator_without_a_rule_for_its_shapes_is_named_and_asks_for_no_memory(monkeypatch):
    monkeypatch.setattr(fake_tensor, "run_fallback_kernel", None)  # runs an operator on zeros of a huge batch
    estimators = {"BPTT": BPTT(), "forward": ForwardGradient(seed=0)}
    rows = plan(lambda: Gated(8, 16), (8,), None, 4, "1GiB", batch_size=2, estimators=estimators)
    assert rows[0].name == "BPTT" and rows[0].fits
    assert re.match("torch has no rule for the shapes that aten.glu_jvp.default makes.*measure it", rows[1].remark)
