"""What a model prints: its sizes, within a screen."""

import pytest
import torch

from loopgrad.gradients import Stationary
from loopgrad.models import HRM, TRM, Damped, Embedding, FeedForward, Leapfrog, Linear, Momentum, SwiGLU

TRM_SAYS = """\
TRM(
  132,610 parameters, num_steps=21, forward_dtype=None
  (embedding): InputEmbedding(seq_len=81, puzzle_tokens=0, tokens=(11, 64))
  (cell): TwoStreamCell(
    L_cycles=6, period=7
    (L_net): Net(2 x AttentionBlock(hidden_size=64, num_heads=4, inner_size=256), Rotary(head_dim=16, base=10000))
  )
  (lm_head): Linear(in_features=64, out_features=11, bias=False)
  (q_head): Linear(in_features=64, out_features=2, bias=True)
)"""


def test_a_model_prints_its_sizes():
    assert repr(TRM(vocab_size=11, seq_len=81, hidden_size=64, num_heads=4)) == TRM_SAYS


@pytest.mark.parametrize("coupling", [None, "damped", "leapfrog", "momentum"])
@pytest.mark.parametrize("mixer", ["attention", "mlp"])
@pytest.mark.parametrize("puzzles", [0, 3])
def test_every_model_fits_a_screen(coupling, mixer, puzzles):
    sizes = dict(vocab_size=11, seq_len=9, hidden_size=16, num_heads=2, mixer=mixer, num_puzzles=puzzles)
    models = [TRM(**sizes, coupling=coupling), TRM(**sizes, streams=1), HRM(**sizes, coupling=coupling)]
    for model in [*models, FeedForward(**sizes, positions="learned")]:
        lines = repr(model).splitlines()
        assert len(lines) <= 16 and max(map(len, lines)) <= 130
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in lines[1]
        assert (f"puzzles=({puzzles}, 16)" in lines[2]) == bool(puzzles)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda g: Linear(3, 4, g, bias=True), "Linear(in_features=3, out_features=4, bias=True)"),
        (lambda g: Embedding(3, 4, 1.0, g), "Embedding(num_embeddings=3, size=4)"),
        (lambda g: SwiGLU(64, 4, g), "SwiGLU(size=64, inner_size=256)"),
        (lambda g: Stationary(torch.sin, parameters=Linear(3, 4, g)), "Stationary(sin, 12 parameters)"),
    ],
)
def test_a_layer_prints_on_one_line(make, said):
    assert repr(make(torch.Generator().manual_seed(0))) == said


@pytest.mark.parametrize(("couple", "rate"), [(Damped, "beta=1/4"), (Leapfrog, "scale=0.25"), (Momentum, "gamma=1/4")])
def test_a_coupling_prints_its_rate(couple, rate):
    said = repr(couple(Stationary(lambda z, x: z), 0.25)).splitlines()
    assert (
        said[1].startswith(f"  {rate}, arithmetic='exact', per=")
        and said[2] == "  (cell): Stationary(<lambda>, 0 parameters)"
    )
