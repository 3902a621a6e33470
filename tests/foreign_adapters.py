"""What it takes to call each of the thirteen models as a cell: docs/your_model.md counts these lines and shows some."""

from dataclasses import replace

from torch import nn


class TRMCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.period = model, model.L_cycles + 1

    def forward(self, carry, x, step):
        level, rotary = self.model.L_level, self.model.rotary()
        if step % self.period < self.model.L_cycles:
            return replace(carry, z_L=level(carry.z_L, carry.z_H + x, rotary))
        return replace(carry, z_H=level(carry.z_H, carry.z_L, rotary))


class HRMCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.period = model, model.L_cycles + 1

    def forward(self, carry, x, step):
        model, rotary = self.model, self.model.rotary()
        if step % self.period < model.L_cycles:
            return replace(carry, z_L=model.L_level(carry.z_L, carry.z_H + x, rotary))
        return model.advance(carry, model.H_level(carry.z_H, carry.z_L, rotary))


class MixerTRMCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.period = model, model.latent_refinements + 1

    def forward(self, state, inputs, step):
        outputs, latents = state
        if step % self.period < self.model.latent_refinements:
            return outputs, self.model.network(outputs + latents + inputs)
        return self.model.network(outputs + latents), latents


class RecurrentDepthCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, state, embedded, step):
        x, block_idx, past = state
        x, block_idx = self.model.core_block_forward(x, embedded, self.model.freqs(), past, block_idx)
        return x, block_idx, past


class UniversalCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, state, inputs, step):
        return self.model.step(state, step)


class DEQCell(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, state, injected, step):
        return self.block(state, injected)


class NTMCell(nn.Module):
    def __init__(self, ntm):
        super().__init__()
        self.ntm = ntm

    def forward(self, state, inputs, step):
        memory, rest = state
        self.ntm.memory.memory = memory  # the model keeps it outside its own state
        _, rest = self.ntm(inputs[:, step], rest)
        return self.ntm.memory.memory, rest


class DNCCell(nn.Module):
    def __init__(self, dnc):
        super().__init__()
        self.dnc = dnc

    def forward(self, hidden, inputs, step):
        return self.dnc(inputs[:, step], hidden)[1]


class LanguageModelCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, state, tokens, step):
        read = self.model.encoder(tokens[step]).unsqueeze(0)
        return self.model.rnn(read, state)[1]


class AutomatonCell(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, state, inputs, step):
        return self.model(state)


class RAFTCell(nn.Module):
    def __init__(self, model, corr):
        super().__init__()
        self.model, self.corr = model, corr  # made anew per pair of images: it holds their features

    def forward(self, state, inputs, step):
        net, coords = state
        context, start = inputs
        coords = coords.detach()
        net, moved = self.model.update(net, context, self.corr(coords), coords - start)
        return net, coords + moved


class SpikingCell(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, state, inputs, step):
        spikes, mem1, mem2 = self.net(inputs[step], state["mem1"], state["mem2"])
        return {"mem1": mem1, "mem2": mem2, "count": state["count"] + spikes}


class LiquidStep(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, state, inputs, step):
        return self.cell(inputs[:, step], state)
