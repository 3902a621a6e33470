"""The schedules of TRM, HRM and the baseline against hand-written loops, and how models are built, saved and run."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from loopgrad.gradients import BPTT, CheckpointedBPTT, TruncatedBPTT
from loopgrad.models import HRM, TRM, FeedForward, OneStreamCell, TwoStreamCell, stablemax_cross_entropy

SMALL = dict(vocab_size=7, seq_len=5, hidden_size=8, num_heads=2)
MODELS = {
    "trm": lambda **kw: TRM(**SMALL, num_layers=1, H_cycles=2, L_cycles=3, **kw),
    "trm_mlp": lambda **kw: TRM(**SMALL, num_layers=2, H_cycles=2, L_cycles=1, mixer="mlp", **kw),
    "trm_one_stream": lambda **kw: TRM(**SMALL, num_layers=1, H_cycles=2, L_cycles=2, streams=1, **kw),
    "hrm": lambda **kw: HRM(**SMALL, H_layers=1, L_layers=2, **kw),
    "feed_forward": lambda **kw: FeedForward(**SMALL, num_layers=2, **kw),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def tokens(batch=3, seq_len=5, vocab=7, seed=0):
    return torch.randint(0, vocab, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


class Recorder(torch.nn.Module):
    """Stands for a net and writes down what it is called with; its blocks are counted only."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log, self.blocks = name, log, [None, None]

    def forward(self, h, injected=None):
        self.log.append((self.name, h.item(), None if injected is None else injected.item()))
        return h * 10 + (0 if injected is None else injected)


def test_two_stream_cell_follows_the_published_schedule():
    log = []
    cell = TwoStreamCell(Recorder("L", log), Recorder("H", log), L_cycles=2)
    state = {"z_L": torch.tensor(1.0), "z_H": torch.tensor(2.0)}
    for step in range(6):
        state = cell(state, torch.tensor(3.0), step)
    # z_L: 1 -> 10 + (2 + 3) = 15 -> 155; z_H: 20 + 155 = 175; z_L: 1550 + 178 = 1728 -> 17458; z_H: 1750 + 17458
    assert log == [("L", 1, 5), ("L", 15, 5), ("H", 2, 155), ("L", 155, 178), ("L", 1728, 178), ("H", 175, 17458)]
    assert {k: v.item() for k, v in state.items()} == {"z_L": 17458, "z_H": 19208}
    assert (cell.period, cell.depth) == (3, 6)


def test_one_stream_cell_leaves_the_input_out_of_the_last_update_of_a_cycle():
    log = []
    cell = OneStreamCell(Recorder("net", log), L_cycles=2)
    state = {"z_L": torch.tensor(1.0)}
    for step in range(4):
        state = cell(state, torch.tensor(3.0), step)
    assert log == [("net", 1, 3), ("net", 13, 3), ("net", 133, None), ("net", 1330, 3)]
    assert (cell.period, cell.depth) == (3, 6)


def test_cells_need_an_update_that_sees_the_input():
    with pytest.raises(ValueError, match="L_cycles must be at least 1, got 0"):
        TRM(**SMALL, L_cycles=0)


def hand_written_trm(model, inputs, cycles, updates):
    net, x = model.cell.L_net, model.embedding.tokens(inputs) * 8**0.5
    z_L, z_H = model.L_init.expand(*inputs.shape, 8), model.H_init.expand(*inputs.shape, 8)
    for _ in range(cycles):
        for _ in range(updates):
            z_L = net(z_L + z_H + x)
        z_H = net(z_H + z_L)
    q = z_H[:, 0] @ model.q_head.weight.T + model.q_head.bias
    return z_H @ model.lm_head.weight.T, q[:, 0], q[:, 1]


def test_trm_equals_a_hand_written_loop_in_values_and_gradients():
    model = MODELS["trm"]().double()
    output = model(None, tokens(), None, BPTT())
    logits, q_halt, q_continue = hand_written_trm(model, tokens(), 2, 3)
    torch.testing.assert_close(output.logits, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.q_halt, q_halt.float())
    torch.testing.assert_close(output.q_continue, q_continue.float())
    parameters = [p for name, p in model.named_parameters() if "q_head" not in name]
    ours = torch.autograd.grad(output.logits.square().sum(), parameters)
    theirs = torch.autograd.grad(logits.square().sum(), parameters)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_last_cycle_gradient_is_that_of_a_loop_whose_first_cycles_are_detached():
    model = MODELS["trm"]().double()
    output = model(None, tokens(), None, TruncatedBPTT(num_cycles=1))
    x = model.encode(tokens())
    state = model.initial_state(3)
    for step in range(8):
        state = model.cell(state, x, step)
        if step < 4:
            state = {name: z.detach() for name, z in state.items()}
    names, parameters = zip(*model.cell.named_parameters(), strict=True)
    ours = torch.autograd.grad(output.logits.sum(), parameters)
    theirs = torch.autograd.grad(model.readout(state)[0].sum(), parameters)
    for name, one, two in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12, msg=name)


@every_model
def test_checkpointing_gives_the_gradient_of_bptt(build):
    model = build()
    grads = []
    for estimator in (BPTT(), CheckpointedBPTT()):
        model.zero_grad()
        stablemax_cross_entropy(model(None, tokens(), None, estimator).logits, tokens(seed=1)).sum().backward()
        grads.append([p.grad.clone() for name, p in model.named_parameters() if "q_head" not in name])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile's own look at z
@every_model
def test_compiled_cell_is_one_graph_and_has_the_same_values_and_gradients(build):
    torch.compiler.reset()  # the models share the code of their cells, and with it a limited cache
    model = build()
    compiled = torch.compile(model.cell, backend="aot_eager", fullgraph=True)
    found = []
    for cell in (model.cell, compiled):
        x = model.encode(tokens())
        z = BPTT()(cell, model.initial_state(3), x, model.num_steps).state
        loss = stablemax_cross_entropy(model.readout(z)[0], tokens(seed=1)).sum()
        found.append([loss.float(), *torch.autograd.grad(loss, list(model.cell.parameters()))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@every_model
def test_initialisation_is_the_published_one(build):
    model = build()
    assert not model.q_head.weight.any() and torch.equal(model.q_head.bias, torch.full((2,), -5.0))
    output = model(None, tokens(), None, BPTT())
    assert torch.equal(output.q_halt, torch.full((3,), -5.0))
    trained = {name for name, _ in model.named_parameters()}
    for stream, z in model.initial_state(2).items():
        buffer = stream.replace("z_", "") + "_init"
        assert buffer not in trained and buffer in model.state_dict()
        assert torch.equal(z, model.state_dict()[buffer].expand(2, 5, 8))


def test_token_vectors_have_unit_variance_after_scaling_with_and_without_learned_positions():
    for positions in ("none", "learned"):
        model = TRM(400, 300, hidden_size=64, num_heads=1, num_layers=1, positions=positions)
        x = model.encode(tokens(8, 300, 400))
        assert abs(x.std().item() - 1) < 0.02
        assert abs(model.embedding.tokens.weight.std().item() * 8 - 1) < 0.02


def test_published_sizes_count_as_many_parameters_as_published():
    # counted from the official code; the published run of HRM reports 27,275,266
    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert round(count(TRM(11, 81)) / 1e6, 2) == 6.83
    assert round(count(TRM(11, 81, mixer="mlp", num_puzzles=1)) / 1e6, 2) == 5.03
    assert count(HRM(11, 81)) == 27_275_266


def test_shared_net_is_registered_once_and_every_model_goes_through_safetensors(tmp_path):
    for name, build in MODELS.items():
        model, other = build(seed=1), build(seed=2)
        save_file(model.state_dict(), tmp_path / name)
        assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
        other.load_state_dict(load_file(tmp_path / name))
        outputs = [m(None, tokens(), None, BPTT()).logits for m in (model, other)]
        assert torch.equal(*outputs)


@every_model
def test_bfloat16_runs_by_autocast_and_by_forward_dtype(build):
    exact = build()(None, tokens(), None, BPTT()).logits
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(None, tokens(), None, BPTT()).logits
        loss = stablemax_cross_entropy(logits, tokens(seed=1)).mean()
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).norm() < 0.2 * exact.norm()  # 8 bits, amplified by the recursion
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.cell.parameters())
    model = build(forward_dtype=torch.bfloat16)
    output = model(None, tokens(), None, BPTT())
    assert {z.dtype for z in output.state.values()} == {torch.bfloat16}
    assert output.q_halt.dtype == torch.float32
    assert (output.logits - exact).norm() < 0.2 * exact.norm()


def test_feed_forward_forgets_the_carry_and_is_one_net_application():
    model = MODELS["feed_forward"]()
    first = model(None, tokens(), None, BPTT())
    again = model({"z_H": first.state["z_H"] * 100}, tokens(), None, BPTT())
    assert torch.equal(first.logits, again.logits)
    z = model.cell.net(model.initial_state(3)["z_H"] + model.encode(tokens()))
    torch.testing.assert_close(first.logits, z @ model.lm_head.weight.T)
    assert (model.num_steps, model.depth) == (1, 2)


def test_feed_forward_stacks_to_the_depth_of_a_recursive_model():
    trm = MODELS["trm"]()
    stacked = FeedForward(**SMALL, depth=trm.depth)
    assert trm.depth == 2 * (3 + 1) * 1 == len(stacked.cell.net.blocks)
    blocks = [id(p) for block in stacked.cell.net.blocks for p in block.parameters()]
    assert len(set(blocks)) == len(blocks) == 8 * 4
    assert MODELS["hrm"]().depth == 2 * (2 * 2 + 1)


def test_puzzle_vector_fills_the_first_positions_and_is_looked_up_by_id():
    model = TRM(**SMALL, num_layers=1, num_puzzles=4, puzzle_tokens=3, puzzle_dim=12)
    assert model.embedding.puzzles is not None and not model.embedding.puzzles.weight.any()
    with torch.no_grad():
        model.embedding.puzzles.weight.copy_(torch.arange(48.0).view(4, 12))
    x = model.encode(tokens(), torch.tensor([2, 0, 3]))
    assert x.shape == (3, 8, 8)
    expected = torch.cat((torch.arange(24.0, 36.0), torch.zeros(12))) * 8**0.5
    torch.testing.assert_close(x[0, :3].flatten(), expected)
    torch.testing.assert_close(x[:, 3:], model.embedding.tokens(tokens()) * 8**0.5)
    output = model(None, tokens(), torch.tensor([2, 0, 3]), BPTT())
    assert output.logits.shape == (3, 5, 7) and output.state["z_H"].shape == (3, 8, 8)


def test_default_puzzle_tokens_are_sixteen_for_trm_and_what_the_vector_needs_for_hrm():
    assert TRM(**SMALL, num_puzzles=2).embedding.puzzle_tokens == 16
    assert HRM(**SMALL, num_puzzles=2, puzzle_dim=17).embedding.puzzle_tokens == 3
    assert TRM(**SMALL).embedding.puzzle_tokens == 0


def test_attention_without_learned_positions_runs_at_any_length():
    model = TRM(7, None, hidden_size=8, num_heads=2, num_layers=1)
    known = TRM(7, 5, hidden_size=8, num_heads=2, num_layers=1)
    for length in (5, 9):
        a, b = (m(None, tokens(2, length), None, BPTT()).logits for m in (model, known))
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="initial_state\\(batch_size, seq_len\\)"):
        model.initial_state(2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(mixer="conv"), "mixer must be 'attention' or 'mlp', got 'conv'"),
        (dict(positions="alibi"), "positions must be 'rope', 'learned', 'none' or None"),
        (dict(mixer="mlp", positions="rope"), "mixer='mlp' has none"),
        (dict(streams=3), "streams must be 1"),
        (dict(H_cycles=0), "H_cycles must be at least 1"),
        (dict(num_layers=0), "at least one layer"),
        (dict(puzzle_tokens=2), "num_puzzles=0"),
        (dict(num_puzzles=2, puzzle_tokens=1, puzzle_dim=9), "does not fit"),
        (dict(seq_len=None, mixer="mlp"), "needs seq_len"),
        (dict(seq_len=None, positions="learned"), "needs seq_len"),
        (dict(num_heads=3), "num_heads must divide"),
    ],
)
def test_wrong_choices_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TRM(**{**SMALL, **kwargs})


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="seq_len=5 and 0 puzzle tokens, inputs have 6"):
        MODELS["trm_mlp"]().encode(tokens(2, 6))
    with pytest.raises(ValueError, match="learned positions for seq_len=5"):
        TRM(**SMALL, positions="learned").encode(tokens(2, 6))
    with pytest.raises(ValueError, match="puzzle_ids is None"):
        TRM(**SMALL, num_puzzles=2).encode(tokens())
    with pytest.raises(ValueError, match="shape \\(batch, seq_len\\)"):
        MODELS["trm"]().encode(tokens()[0])


def test_output_keeps_the_graph_of_the_state():
    output = MODELS["trm"]()(None, tokens(), None, BPTT())
    assert output.state["z_H"].requires_grad and dataclasses.is_dataclass(output)
    assert output.stats.cell_evaluations == 8
