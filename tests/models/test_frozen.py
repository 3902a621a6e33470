"""A frozen encoder is the same for ever: what trains in it is refused, and nothing that it holds moves."""

import pytest
import torch

from loopgrad.gradients import BPTT
from loopgrad.models import FrozenModule, LatentLoop, SlotLayout

LAYOUT, SIZE = SlotLayout(answers=3), 6


class Trained(torch.nn.Module):
    """Draws a mask and moves statistics where it is in training mode, or the part that does is."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Embedding(15, SIZE)
        self.drop, self.norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(SIZE)

    def forward(self, tokens):
        return self.norm(self.drop(self.vectors(tokens)).flatten(0, 1)).view(*tokens.shape, SIZE)


@pytest.mark.parametrize("part", ["", "drop", "norm"])
def test_a_module_of_which_a_part_trains_is_refused_whenever_it_does(part):
    module, tokens = Trained().eval(), torch.tensor([[4, 5, 6, 7]])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = LatentLoop(FrozenModule(module, SIZE, LAYOUT), seq_len=4, hidden_size=8, num_heads=2).train()
    assert torch.equal(model(None, tokens, None, BPTT()).logits, model(None, tokens, None, BPTT()).logits)
    module.get_submodule(part).train()
    with pytest.raises(ValueError, match=f"{part or 'module'}.* is in training mode.*call module.eval"):
        model(None, tokens, None, BPTT())
    with pytest.raises(ValueError, match="is in training mode"):
        FrozenModule(module, SIZE, LAYOUT)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
