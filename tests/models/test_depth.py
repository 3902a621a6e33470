"""Segments of any number of cycles: one for the batch, one for each sample; each sample is as it would be alone."""

import pytest
import torch

from loopgrad.analysis.counters import SavedBytes
from loopgrad.gradients import BPTT, CheckpointedBPTT, LastOf, PhantomGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import HRM, TRM, FeedForward

CYCLES, TOKENS = [2, 5, 1, 3], 6
ESTIMATORS = {
    "bptt": BPTT(),
    "checkpointed": CheckpointedBPTT(),
    "last update": TruncatedBPTT(1),
    "last two cycles": TruncatedBPTT(num_cycles=2),
    "phantom": PhantomGradient(num_steps=2, damping=0.5),
    "last of each stream": TruncatedBPTT(scope=LastOf({"z_H": 1, "z_L": 3})),
}
MODELS = {
    "trm": lambda **given: TRM(5, TOKENS, hidden_size=8, num_heads=2, num_layers=1, H_cycles=3, L_cycles=2, **given),
    "hrm": lambda **given: HRM(5, TOKENS, hidden_size=8, num_heads=2, H_layers=1, L_layers=1, L_cycles=2, **given),
}


def made(name="trm", **given):
    model = MODELS[name](**given).double()
    torch.manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("_init"):  # else the answer is the same at every position
            buffer.copy_(torch.randn_like(buffer))
    return model, torch.randint(0, 5, (len(CYCLES), TOKENS))


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def loss(output):
    return output.logits.square().sum() + output.state["z_H"].sin().sum()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", MODELS)
def test_the_last_updates_of_each_sample_carry_its_gradient_as_if_it_were_alone(name, estimator):
    model, tokens = made(name)
    how = ESTIMATORS[estimator]
    together = loss(model(None, tokens, None, how, torch.tensor(CYCLES)))
    alone = sum(loss(model(None, tokens[i : i + 1], None, how, n)) for i, n in enumerate(CYCLES))
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(model, together), gradients(model, alone), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("coupling", ["damped", "leapfrog"])
def test_couplings_run_samples_of_different_depth(coupling):
    model, tokens = made(coupling=coupling)
    found = [loss(model(None, tokens, None, how, torch.tensor(CYCLES))) for how in (BPTT(), ReversibleBPTT())]
    alone = sum(loss(model(None, tokens[i : i + 1], None, BPTT(), n)) for i, n in enumerate(CYCLES))
    for mine in found:
        torch.testing.assert_close(mine, alone, rtol=1e-10, atol=1e-10)
        for a, b in zip(gradients(model, mine), gradients(model, alone), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        alone = sum(loss(model(None, tokens[i : i + 1], None, BPTT(), n)) for i, n in enumerate(CYCLES))


@pytest.mark.parametrize("depth", [[9, 9, 9, 9], [2, 9, 5, 7]], ids=str)
def test_what_the_last_cycle_keeps_does_not_depend_on_the_depths_of_the_samples(depth):
    model, tokens = made()
    counters = [SavedBytes([*model.parameters(), *model.buffers()]) for _ in range(2)]
    with counters[0]:
        drawn = model(None, tokens, None, TruncatedBPTT(num_cycles=1), torch.tensor(depth))
    with counters[1]:
        fixed = model(None, tokens, None, TruncatedBPTT(num_cycles=1))
    close = counters[1].held() * 0.05 + 64  # the states that the last samples to begin are held in
    assert abs(counters[0].held() - counters[1].held()) <= close
    assert drawn.stats.vjps == fixed.stats.vjps == 3 and drawn.stats.cell_evaluations == 27


def test_a_number_of_cycles_is_that_of_a_model_built_with_it():
    model, tokens = made()
    other = TRM(5, TOKENS, hidden_size=8, num_heads=2, num_layers=1, H_cycles=7, L_cycles=2).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(None, tokens, None, BPTT(), 7).logits, other(None, tokens, None, BPTT()).logits)
    assert torch.equal(model(None, tokens, None, BPTT(), 3).logits, model(None, tokens, None, BPTT()).logits)


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (0, "depth=0 must be an int of at least 1"),
        (True, "depth=True must be an int"),
        (2.0, "depth=2.0 must be an int"),
        (torch.tensor([1, 0, 2, 2]), r"depth holds \[1, 0, 2, 2\]"),
        (torch.tensor([1, 2]), r"depth has shape \(2,\) and the batch 4"),
        (torch.tensor([1.0, 2.0, 2.0, 2.0]), "must be ints"),
    ],
)
def test_what_is_no_depth_is_refused(depth, said):
    model, tokens = made()
    with pytest.raises((ValueError, TypeError), match=said):
        model(None, tokens, None, BPTT(), depth)


def test_a_feed_forward_network_takes_no_depth():
    with pytest.raises(TypeError):
        FeedForward(5, TOKENS, hidden_size=8, num_heads=2)(None, made()[1], None, BPTT(), 2)
