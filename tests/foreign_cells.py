"""The thirteen models as problems: what an iteration of training does before the recursion, and the loss after it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import foreign_adapters as adapters
import torch
from foreign_recurrences import DNC, NTM, RAFT, Automaton, CorrBlock, LanguageModel, LiquidCell, SpikingNet
from foreign_transformers import (
    Carry,
    DEQBlock,
    MixerTRM,
    OfficialHRM,
    OfficialTRM,
    RecurrentDepth,
    UniversalTransformer,
    mixer,
)
from problems import Problem, leaves_of
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TOKENS = 3, 4


def floating_loss(state: Any) -> Tensor:
    """A loss of all floating leaves, each weighted otherwise."""
    leaves = [leaf for leaf in leaves_of(state) if leaf.is_floating_point()]
    return sum(((leaf - 0.3 * i) ** 2).mean() + leaf.sin().mean() for i, leaf in enumerate(leaves))  # pyright: ignore


@dataclass(frozen=True)
class Foreign:
    """A model that trains; `begin` makes cell, state and inputs of an iteration, from the same data each time."""

    module: nn.Module
    begin: Callable[[], Problem]
    num_steps: int
    loss: Callable[[Any], Tensor] = floating_loss


def _tokens() -> Tensor:
    return torch.randint(0, 5, (BATCH, TOKENS))


def _carry(model: OfficialTRM, cell: nn.Module) -> Foreign:
    tokens, z = _tokens(), torch.randn(2, BATCH, TOKENS, 8)
    halted = torch.tensor([True, False, True])

    def begin() -> Problem:
        carry = Carry(z[0], z[1], torch.tensor([3, 1, 2], dtype=torch.int32), halted)
        carry = model.reset(carry)
        carry.halted = torch.zeros_like(halted)
        return Problem(cell, carry, model.embed(tokens))

    return Foreign(model, begin, 9)


def _trm() -> Foreign:
    model = OfficialTRM()
    return _carry(model, adapters.TRMCell(model))


def _hrm() -> Foreign:
    model = OfficialHRM()
    return _carry(model, adapters.HRMCell(model))


def _mixer_trm() -> Foreign:
    model, tokens = MixerTRM(mixer()), _tokens()
    cell = adapters.MixerTRMCell(model)

    def begin() -> Problem:
        x = model.embed(tokens)
        return Problem(cell, (model.output_init.expand_as(x), model.latent_init.expand_as(x)), x)

    return Foreign(model, begin, 9)


def _recurrent_depth() -> Foreign:
    model, tokens = RecurrentDepth(), _tokens()
    cell = adapters.RecurrentDepthCell(model)

    def begin() -> Problem:
        embedded = model.transformer["wte"](tokens)
        return Problem(cell, (model.initialize_state(embedded), torch.tensor(-1), None), embedded)

    return Foreign(model, begin, 6)


def _universal() -> Foreign:
    model, tokens = UniversalTransformer(), _tokens()
    cell = adapters.UniversalCell(model)

    def begin() -> Problem:
        h = model.embed(tokens)
        nothing, running = torch.zeros(BATCH, TOKENS), torch.ones(BATCH, TOKENS, dtype=torch.bool)
        counts = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
        state = {"h": h, "mixed": torch.zeros_like(h), "p": nothing, "n_updates": counts, "running": running}
        return Problem(cell, state, None)

    return Foreign(model, begin, 6)


def _deq() -> Foreign:
    model, image = DEQBlock(), torch.randn(BATCH, 2, 8)
    cell = adapters.DEQCell(model)

    def begin() -> Problem:
        model.reset(BATCH)
        features = model.stem(image)
        injected = tuple(inject(features) for inject in model.inject)
        return Problem(cell, tuple(map(torch.zeros_like, injected)), injected)

    return Foreign(model, begin, 6)


def _ntm() -> Foreign:
    model, x = NTM(), torch.randn(BATCH, 6, 3)
    cell = adapters.NTMCell(model)

    def begin() -> Problem:
        model.memory.reset(BATCH)
        return Problem(cell, (model.memory.memory, model.create_new_state(BATCH)), x)

    return Foreign(model, begin, 6)


def _dnc() -> Foreign:
    model, x = DNC(), torch.randn(BATCH, 6, 3)
    cell = adapters.DNCCell(model)
    return Foreign(model, lambda: Problem(cell, model.new(BATCH), x), 6)


def _language_model() -> Foreign:
    model, tokens = LanguageModel(), torch.randint(0, 7, (7, BATCH))
    cell, h = adapters.LanguageModelCell(model), torch.zeros(2, BATCH, 5)

    def loss(state: Any) -> Tensor:
        return F.cross_entropy(model.decoder(state[0][-1]), tokens[-1])

    return Foreign(model, lambda: Problem(cell, (h, h), tokens), 6, loss)


def _automaton() -> Foreign:
    model, seed = Automaton(), torch.zeros(BATCH, 5, 5, 5)
    seed[:, 3:, 2, 2] = 1.0
    cell = adapters.AutomatonCell(model)
    return Foreign(model, lambda: Problem(cell, seed, None), 6)


def _raft() -> Foreign:
    model, images = RAFT(), torch.randn(2, BATCH, 3, 4, 4)
    grid = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="xy")).expand(BATCH, 2, 4, 4)

    def begin() -> Problem:
        corr = CorrBlock(*model.fnet(images.flatten(0, 1)).unflatten(0, (2, BATCH)))
        net, context = model.cnet(images[0]).chunk(2, 1)
        return Problem(adapters.RAFTCell(model, corr), (net.tanh(), grid.clone()), (context.relu(), grid))

    return Foreign(model, begin, 6)


def _spiking() -> Foreign:
    model, x = SpikingNet(), 2 * torch.randn(6, BATCH, 4)
    cell = adapters.SpikingCell(model)

    def begin() -> Problem:
        return Problem(cell, {"mem1": torch.zeros(BATCH, 6), "mem2": (z := torch.zeros(BATCH, 3)), "count": z}, x)

    return Foreign(model, begin, 6)


def _liquid() -> Foreign:
    model, x = LiquidCell(), torch.randn(BATCH, 6, 3)
    cell = adapters.LiquidStep(model)

    def begin() -> Problem:
        model.apply_weight_constraints()
        return Problem(cell, torch.zeros(BATCH, 4), x)

    return Foreign(model, begin, 6)


FOREIGN: dict[str, Callable[[], Foreign]] = {
    "trm": _trm,
    "hrm": _hrm,
    "mixer_trm": _mixer_trm,
    "recurrent_depth": _recurrent_depth,
    "universal": _universal,
    "deq": _deq,
    "ntm": _ntm,
    "dnc": _dnc,
    "language_model": _language_model,
    "automaton": _automaton,
    "raft": _raft,
    "spiking": _spiking,
    "liquid": _liquid,
}


def build(name: str) -> Foreign:
    torch.manual_seed(0)
    return FOREIGN[name]()
