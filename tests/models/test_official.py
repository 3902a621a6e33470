"""Loading official checkpoints, against what the official code computed from them (see fixtures/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from loopgrad.gradients import TruncatedBPTT
from loopgrad.models import HRM, TRM, stablemax_cross_entropy
from loopgrad.models.official import load_official

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    "trm_attention": (TRM, {}, TruncatedBPTT(num_cycles=1)),
    "trm_mlp": (TRM, {}, TruncatedBPTT(num_cycles=1)),
    "trm_singlez": (TRM, {"puzzle_tokens": 2}, TruncatedBPTT(num_cycles=1)),
    "hrm": (HRM, {}, TruncatedBPTT(num_steps=2)),
}


def read(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = {key: int(value) for key, value in file.metadata().items() if key != "commit"}
    weights = {key[7:]: t for key, t in tensors.items() if key.startswith("weight.")}
    return tensors, weights, settings


def load(name, rename=lambda key: key):
    tensors, weights, settings = read(name)
    cls, extra, estimator = CASES[name]
    model = cls.from_official({rename(key): t for key, t in weights.items()}, **settings, **extra)
    return model, tensors, estimator


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_equal_those_of_the_official_code(name):
    model, data, estimator = load(name)
    state, ids = None, data["puzzle_ids"]
    # float32 through two segments: 2e-5 of other rounding were seen on another processor
    float32 = {"rtol": 1e-4, "atol": 1e-4}
    for segment in range(2):
        output = model(state, data["inputs"], ids, estimator)
        state = {key: z.detach() for key, z in output.state.items()}
        for field in ("logits", "q_halt", "q_continue"):
            torch.testing.assert_close(getattr(output, field), data[f"{field}.{segment}"], **float32)
    loss = stablemax_cross_entropy(output.logits, data["labels"]).sum()
    (loss + output.q_halt.sum() + 2 * output.q_continue.sum()).backward()
    expected = {key[9:]: t for key, t in data.items() if key.startswith("gradient.")}
    gradients = official_layout(model, {key: p.grad for key, p in model.named_parameters()})
    assert gradients.keys() == {key.removeprefix("inner.") for key in expected}
    for key, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[key.removeprefix("inner.")], gradient, rtol=1e-4, atol=1e-4 * scale)


def official_layout(model, tensors):
    from loopgrad.models import official

    return {official._official_name(key): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "model.", "_orig_mod.model.", "model._orig_mod.", "module."])
def test_prefixes_are_dropped_in_any_combination(prefix):
    plain, _, _ = load("trm_mlp", lambda key: key.removeprefix("inner."))
    model, _, _ = load("trm_mlp", lambda key: prefix + key)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_sizes_are_read_off_the_tensors():
    model, _, _ = load("hrm")
    assert (len(model.cell.H_net.blocks), len(model.cell.L_net.blocks)) == (2, 1)
    assert (model.embedding.hidden_size, model.embedding.puzzle_tokens, model.embedding.seq_len) == (8, 1, None)
    mlp, _, _ = load("trm_mlp")
    assert (mlp.embedding.seq_len, mlp.embedding.puzzle_tokens, mlp.cell.period) == (6, 0, 3)
    single, _, _ = load("trm_singlez")
    assert single.streams == ("L",) and single.embedding.seq_len == 6 and single.embedding.positions is not None
    assert single.embedding.puzzles is not None and single.embedding.puzzles.weight.shape == (3, 12)


def test_puzzle_tokens_are_what_the_lengths_leave_room_for():
    model = TRM(11, 9, hidden_size=64, num_heads=1, mixer="mlp", num_puzzles=3, puzzle_tokens=2, puzzle_dim=100)
    for seq_len in (None, 9):  # the published 16 cannot be: there are 11 positions
        back = TRM.from_official(as_official(model), seq_len=seq_len)
        assert (back.embedding.seq_len, back.embedding.puzzle_tokens) == (9, 2)
    model = TRM(11, 30, hidden_size=64, num_heads=1, positions="learned", num_puzzles=3, puzzle_tokens=5)
    assert TRM.from_official(as_official(model), seq_len=30).embedding.puzzle_tokens == 5
    assert TRM.from_official(as_official(model), puzzle_tokens=5).embedding.seq_len == 30


def as_official(model):
    return {"inner." + key: t.clone() for key, t in official_layout(model, model.state_dict()).items()}


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(expansion=4),
        dict(expansion=7.5),
        dict(expansion=16, mixer="mlp", num_puzzles=2),
        dict(hidden_size=192, num_heads=3, positions="learned", num_puzzles=3, puzzle_dim=192),
        dict(streams=1, positions="learned"),
        dict(streams=1, mixer="mlp", positions="learned", num_puzzles=5),
    ],
)
def test_what_goes_out_in_the_official_layout_comes_back(kwargs):
    kwargs = {"hidden_size": 64, "num_heads": 1, "num_layers": 2, **kwargs}
    model = TRM(11, 40, **kwargs, seed=3)
    back = TRM.from_official(as_official(model))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in back.state_dict().items())
    heads = {block.attention.num_heads for block in back.cell.modules() if hasattr(block, "attention")}
    assert heads in (set(), {kwargs["hidden_size"] // 64})


def test_scratch_buffers_of_the_puzzle_optimiser_are_left_out():
    _, weights, settings = read("trm_attention")
    weights["inner.puzzle_emb.local_weights"] = torch.zeros(3, 8)
    weights["inner.puzzle_emb.local_ids"] = torch.zeros(3, dtype=torch.int32)
    assert TRM.from_official(weights, **settings).lm_head.weight.dtype == torch.float32


def test_every_missing_name_is_named():
    _, weights, settings = read("trm_mlp")
    for key in weights:
        name = key.removeprefix("inner.")
        if name == "H_init":
            continue  # without it the checkpoint is one of a single stream
        rest = {k: t for k, t in weights.items() if k != key}
        with pytest.raises(ValueError, match="nearest names|its names begin with|has no place for") as error:
            TRM.from_official(rest, **settings)
        layer = name.rsplit(".", 2)[0]
        assert name in str(error.value) or layer in str(error.value)
    rest = {k: t for k, t in weights.items() if not k.endswith("H_init")}
    assert TRM.from_official(rest, **settings).streams == ("L",)
    with pytest.raises(ValueError, match="no 'H_init'"):
        TRM.from_official(rest, streams=2, **settings)


def test_unknown_and_misshapen_names_are_named():
    _, weights, settings = read("trm_attention")
    with pytest.raises(ValueError, match="'L_level.layers.0.mlp.gate_proj.weight'.*nearest names: L_level.layers.0"):
        TRM.from_official({**weights, "inner.L_level.layers.0.mlp.gate_proj.weight": torch.zeros(2, 2)}, **settings)
    with pytest.raises(ValueError, match="'lm_head.weight' has shape \\(5, 9\\).*needs \\(5, 8\\)"):
        TRM.from_official({**weights, "inner.lm_head.weight": torch.zeros(5, 9)}, **settings)
    with pytest.raises(ValueError, match="'H_level.layers"):
        TRM.from_official(read("hrm")[1], **settings)
    with pytest.raises(ValueError, match="no 'H_level.layers.0"):
        HRM.from_official(weights, **settings)
    with pytest.raises(TypeError, match="not a tensor"):
        TRM.from_official({"model": weights}, **settings)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="twice"):
        TRM.from_official({**weights, "lm_head.weight": torch.zeros(5, 8)}, **settings)


def test_lengths_that_contradict_the_weights_are_refused():
    _, weights, settings = read("trm_mlp")
    with pytest.raises(ValueError, match="6 positions, which cannot be seq_len=7"):
        TRM.from_official(weights, seq_len=7, **settings)
    with pytest.raises(ValueError, match="learned positions"):
        TRM.from_official(read("trm_singlez")[1], positions="rope", puzzle_tokens=2, **settings)


def test_a_refused_checkpoint_leaves_the_model_as_it_was():
    from loopgrad.models.official import OfficialWeights

    model, _, _ = load("trm_mlp")
    before = {key: t.clone() for key, t in model.state_dict().items()}
    _, weights, _ = read("trm_mlp")
    weights = {key: torch.zeros_like(t) for key, t in weights.items()}
    weights["inner.lm_head.weight"] = torch.zeros(5, 9)
    with pytest.raises(ValueError, match="lm_head"):
        load_official(model, OfficialWeights(weights))
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
