"""Reasoners over frozen vectors beside loops by hand in float64; the encoder is in no graph, copy or file."""

import copy

import pytest
import torch
from torch.nn import functional as F

from loopgrad.gradients import BPTT, CheckpointedBPTT, ImplicitGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import (
    FeatureTable,
    FrozenModule,
    LatentLinear,
    LatentLoop,
    LatentMLP,
    LatentReasoner,
    LatentStack,
    LatentTRM,
    PooledEmbedding,
    SlotEmbedding,
    SlotLayout,
    predict,
    softmax_cross_entropy,
    token_loss,
)

LAYOUT = SlotLayout(answers=3, answer_slots=2, questions=2)  # 3 fills up, 4 and 5 ask, 6 and 7 are questions
SIZE, HIDDEN, SLOTS = 10, 8, 7
SMALL = {"hidden_size": HIDDEN, "num_heads": 2, "seed": 3}
SLOTTED = {
    "loop": lambda frozen, **more: LatentLoop(frozen, SLOTS, num_layers=2, num_loops=3, **SMALL, **more),
    "stack": lambda frozen: LatentStack(frozen, SLOTS, depth=3, **SMALL),
    "trm": lambda frozen, **more: LatentTRM(frozen, SLOTS, H_cycles=2, L_cycles=2, **SMALL, **more),
    "no_positions": lambda frozen: LatentLoop(frozen, None, num_loops=3, positions="none", **SMALL),
}
POOLED = {
    "mlp": lambda frozen: LatentMLP(frozen, SLOTS, hidden_size=5, seed=3),
    "linear": lambda frozen: LatentLinear(frozen, SLOTS, seed=3),
}
MODELS = SLOTTED | POOLED
every_model = pytest.mark.parametrize("name", MODELS)


def table(dtype=torch.float64):
    rows = torch.randn(9, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FeatureTable(rows.to(dtype), LAYOUT, num_parameters=1234)


def inputs():
    return torch.tensor([[4, 5, 6, 8, 9, 10, 11], [4, 5, 7, 14, 3, 3, 3], [4, 5, 6, 7, 12, 13, 3]])


def labels():
    found = torch.full((3, SLOTS), -100)
    found[:, :2] = torch.tensor([[0, 2], [1, 1], [2, 0]])
    return found


def unit(v):
    return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def block(p, prefix, h, keep, rotary):
    """A block of attention and SwiGLU of one sample without its empty slots, (slots, hidden), from its weights."""
    n, heads = len(h), 2
    q, k, v = (h @ w.T for w in p[f"{prefix}.attention.qkv.weight"].split(HIDDEN))
    d = HIDDEN // heads
    mixed = []
    for i in range(heads):
        own = [it[:, i * d : (i + 1) * d] for it in (q, k, v)]
        if rotary:
            angle = torch.outer(torch.arange(n).float(), 1.0 / 10000.0 ** (torch.arange(0, d, 2).float() / d))
            cos, sin = angle.cos().double(), angle.sin().double()  # in float32 first, as published weights have it
            turned = []
            for it in own[:2]:
                a, b = it.chunk(2, -1)
                turned.append(torch.cat((a * cos - b * sin, b * cos + a * sin), -1))
            own[:2] = turned
        scores = (own[0] @ own[1].T / d**0.5)[:, keep]
        mixed.append(scores.softmax(-1) @ own[2][keep])
    h = unit(h + torch.cat(mixed, -1) @ p[f"{prefix}.attention.out.weight"].T)
    gate, up = (h @ w.T for w in p[f"{prefix}.mlp.gate_up.weight"].chunk(2))
    return unit(h + (F.silu(gate) * up) @ p[f"{prefix}.mlp.down.weight"].T)


def by_hand(name, p, rows, tokens):
    """Logits of the two answer slots of one sample, from the weights alone."""
    vectors = torch.stack([rows[t - 6] if t >= 6 else torch.zeros(SIZE, dtype=torch.float64) for t in tokens.tolist()])
    if name in POOLED:
        question = unit(vectors[(tokens == 6) | (tokens == 7)]).mean(0)
        v = torch.cat((question, unit(vectors[tokens >= 8]).mean(0)))
        if name == "linear":
            return (p["cell.net.weight"] @ v + p["cell.net.bias"]).view(2, 3)
        gate, up = (w @ v for w in p["cell.net.gate_up.weight"].chunk(2))
        return (p["cell.net.out.weight"] @ (F.silu(gate) * up) + p["cell.net.out.bias"]).view(2, 3)
    role = [{4: 0, 5: 1, 6: 2, 7: 2}.get(t, 3) for t in tokens.tolist()]
    keep = tokens != 3
    x = unit(vectors) @ p["embedding.project.weight"].T + p["embedding.learnt.weight"][role]
    x = x * keep.unsqueeze(1)

    def net(prefix, h, layers, rotary=True):
        for i in range(layers):
            h = block(p, f"{prefix}.blocks.{i}", h, keep, rotary)
        return h * keep.unsqueeze(1)

    z = torch.zeros(SLOTS, HIDDEN, dtype=torch.float64)
    if name == "trm":
        low, z = z, z.clone()
        for _ in range(2):
            for _ in range(2):
                low = net("cell.net", low + z + x, 1)
            z = net("cell.net", z + low, 1)
    for t in range(3 if name != "trm" else 0):
        if name == "stack":
            z = net(f"cell.nets.{t}", z + x, 1)
        else:
            z = net("cell.net", z + x, 2 if name == "loop" else 1, rotary=name == "loop")
    return z[:2] @ p["answer.weight"].T + p["answer.bias"]


@every_model
def test_values_and_gradients_are_those_of_a_loop_by_hand(name):
    model = MODELS[name](table()).double()
    weights = {key: p.detach().clone().requires_grad_() for key, p in model.named_parameters()}
    rows = model.encoder.rows
    logits = torch.stack([by_hand(name, weights, rows, tokens) for tokens in inputs()])
    wanted = F.cross_entropy(logits.flatten(0, 1), labels()[:, :2].flatten())
    expected = torch.autograd.grad(wanted, list(weights.values()))
    for estimator in (BPTT(), CheckpointedBPTT()):
        output = model(None, inputs(), None, estimator)
        torch.testing.assert_close(output.logits[:, :2], logits, atol=1e-12, rtol=1e-12)
        loss = token_loss(output.logits, labels(), softmax_cross_entropy)
        found = torch.autograd.grad(loss, list(model.parameters()))
        for key, mine, theirs in zip(weights, found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10, msg=key)


@every_model
def test_the_encoder_is_in_no_graph_no_copy_and_no_file(name):
    frozen = table(torch.float32)
    model = MODELS[name](frozen)
    before = frozen.rows.clone()
    loss = token_loss(model(None, inputs(), None, BPTT()).logits, labels())
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [inner for inner, _ in node.next_functions]
    held = {node.variable.data_ptr() for node in seen if hasattr(node, "variable")}
    assert held == {p.data_ptr() for p in model.parameters()} and not frozen.rows.requires_grad
    torch.optim.SGD(model.parameters(), lr=0.1).step(lambda: loss.backward())
    assert torch.equal(frozen.rows, before)
    assert not any("encoder" in key for key in [*model.state_dict(), *dict(model.named_buffers())])
    copied = copy.deepcopy(model).double()
    assert copied.encoder is frozen and frozen.rows.dtype == torch.float32
    assert copied(None, inputs(), None, BPTT()).logits.dtype == torch.float64
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters, 1,234 frozen" in model.extra_repr()


@every_model
def test_what_fills_up_a_row_changes_nothing(name):
    model = MODELS[name](table()).double()
    short = model(None, inputs()[1:2], None, BPTT()).logits[:, :2]
    if name in SLOTTED:
        cut = model(None, inputs()[1:2, :4], None, BPTT()).logits[:, :2]
        torch.testing.assert_close(cut, short, atol=1e-12, rtol=1e-12)
    with_others = model(None, inputs(), None, BPTT()).logits[1:2, :2]
    torch.testing.assert_close(with_others, short, atol=1e-12, rtol=1e-12)
    state = model(None, inputs(), None, BPTT()).state
    if name in SLOTTED:
        assert all((z[1, 4:] == 0).all() for z in state.values())


def test_logits_are_zero_beyond_the_answer_slots_and_have_the_shape_of_labels():
    for build in MODELS.values():
        logits = build(table(torch.float32))(None, inputs(), None, BPTT()).logits
        assert logits.shape == (3, SLOTS, 3) and (logits[:, 2:] == 0).all()


@pytest.mark.parametrize("name", ["loop", "trm"])
def test_a_recursion_takes_other_depths(name):
    model = SLOTTED[name](table()).double()
    cycles = model.num_steps // model.cell.period if name == "trm" else model.num_steps
    own = model(None, inputs(), None, BPTT())
    same = model(None, inputs(), None, BPTT(), cycles)
    assert torch.equal(own.logits, same.logits)
    per_sample = model(None, inputs(), None, BPTT(), torch.tensor([1, cycles, 2])).logits
    for row, depth in enumerate([1, cycles, 2]):
        alone = model(None, inputs()[row : row + 1], None, BPTT(), depth).logits
        torch.testing.assert_close(per_sample[row : row + 1], alone, atol=1e-12, rtol=1e-12)
    with pytest.raises(TypeError, match="depth=0.5"):
        model(None, inputs(), None, BPTT(), 0.5)


@pytest.mark.parametrize("name", ["stack", "mlp", "linear"])
def test_what_has_weights_for_each_update_takes_no_depth(name):
    with pytest.raises(TypeError):
        MODELS[name](table())(None, inputs(), None, BPTT(), 2)


@every_model
def test_every_kind_of_estimator_gives_the_same_values(name):
    model = MODELS[name](table()).double()
    wanted = model(None, inputs(), None, BPTT()).logits
    for estimator in (TruncatedBPTT(num_steps=1), TruncatedBPTT(num_cycles=1), ImplicitGradient(max_vjps=3)):
        output = model(None, inputs(), None, estimator)
        assert torch.equal(output.logits, wanted)
        token_loss(output.logits, labels()).backward()


def test_one_step_of_untied_layers_reaches_the_last_one_alone():
    model = SLOTTED["stack"](table()).double()
    token_loss(model(None, inputs(), None, TruncatedBPTT(num_steps=1)).logits, labels()).backward()
    *before, last = [net.blocks[0].mlp.down.weight.grad for net in model.cell.nets]
    assert last.any() and all(grad is None or not grad.any() for grad in before)


@pytest.mark.parametrize("name", ["loop", "trm"])
def test_a_coupling_makes_the_recursion_reversible(name):
    """z_{t+1} = (1 - beta) z_{t-1} + beta f(z_t) by hand, f one cycle."""
    plain, coupled = (SLOTTED[name](table(), **more).double() for more in ({}, {"coupling": "damped"}))
    coupled.load_state_dict({k.replace("cell.", "cell.cell.", 1): v for k, v in plain.state_dict().items()})
    z, x = plain.initial_state(*inputs().shape), plain.encode(inputs())
    before, beta, period = z, float(coupled.cell.beta), getattr(plain.cell, "period", 1)
    for _ in range(plain.num_steps // period):
        after = z
        for t in range(period):
            after = plain.cell(after, x, t)
        before, z = z, {k: (1 - beta) * before[k] + beta * after[k] for k in z}
    wanted = plain.readout(z)[0]
    token_loss(wanted, labels()).backward()
    output = coupled(None, inputs(), None, ReversibleBPTT())
    token_loss(output.logits, labels()).backward()
    torch.testing.assert_close(output.logits, wanted, atol=1e-7, rtol=0)
    for a, b in zip(plain.parameters(), coupled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=0)
    assert coupled.depth == plain.depth


def test_a_module_of_ones_own_is_an_encoder():
    inner = torch.nn.Embedding(15, SIZE).double().eval()
    frozen = FrozenModule(inner, SIZE, LAYOUT)
    generator = torch.Generator().manual_seed(0)
    looped = SLOTTED["loop"](frozen).double()
    assert looped.encoder.num_parameters == 150
    token_loss(looped(None, inputs(), None, BPTT()).logits, labels()).backward()
    assert inner.weight.grad is None and inner.weight.requires_grad
    same = SLOTTED["loop"](FeatureTable(inner.weight[6:], LAYOUT)).double()
    assert torch.equal(looped(None, inputs(), None, BPTT()).logits, same(None, inputs(), None, BPTT()).logits)
    with pytest.raises(ValueError, match="call module.eval"):
        FrozenModule(torch.nn.Embedding(15, SIZE), SIZE, LAYOUT)
    with pytest.raises(ValueError, match="the module gave"):
        FrozenModule(inner, 3, LAYOUT)(inputs())
    own = LatentReasoner(SlotEmbedding(frozen, 4, generator), Half(), torch.nn.Linear(4, 3), num_steps=2, features=4)
    assert predict(own, inputs(), None, 1).logits.shape == (3, SLOTS, 3)


class Half(torch.nn.Module):
    period = depth = 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, state, inputs, step):
        return {"z": self.weight * state["z"] / 2 + inputs.x}


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: SlotLayout(answers=1), "answers must be at least 2"),
        (lambda: SlotLayout(answers=2, answer_slots=0), "answer_slots must be at least 1"),
        (lambda: FeatureTable(torch.zeros(1, 3), SlotLayout(answers=2, questions=2)), "with 2 questions"),
        (lambda: FeatureTable(torch.zeros(3), SlotLayout(answers=2)), "rows must be floating"),
        (lambda: FeatureTable(torch.full((3, 3), torch.nan), SlotLayout(answers=2)), "rows must be finite"),
        (lambda: FeatureTable(torch.zeros(3, 3, dtype=torch.int64), SlotLayout(answers=2)), "rows must be floating"),
        (lambda: LatentLoop(table(), SLOTS, num_loops=0), "num_loops must be at least 1"),
        (lambda: LatentLoop(table(), SLOTS, coupling="dampd"), "coupling must be 'damped'"),
        (lambda: LatentTRM(table(), SLOTS, coupling_rate="1/4"), "has no effect without coupling="),
        (lambda: LatentStack(table(), SLOTS, depth=0), "depth must be at least 1"),
        (lambda: LatentMLP(table(), SLOTS, hidden_size=0), "hidden_size must be at least 1"),
        (lambda: LatentLoop(table(), SLOTS, positions="learned"), "positions must be 'rope', 'none' or None"),
        (lambda: LatentLoop(table(), SLOTS, hidden_size=10, num_heads=4), "num_heads must divide"),
        (lambda: SLOTTED["loop"](table())(None, inputs()[0], None, BPTT()), "initial_state|inputs must be tokens"),
        (lambda: SLOTTED["no_positions"](table()).initial_state(2), "seq_len is not known"),
        (lambda: LatentReasoner(PooledEmbedding(table(), 4), Half(), None, 0, 3), "num_steps must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(build, said):
    with pytest.raises((ValueError, TypeError), match=said):
        build()
