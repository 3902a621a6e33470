"""Small models for sequences, a batch for them, and their losses written out by hand."""

import torch
from torch.nn import functional as F

from loopgrad.models import GRU, LSTM, LoopedTransformer, NeuralTuringMachine, softmax_cross_entropy

VOCAB, LENGTH, HIDDEN = 5, 7, 6
MODELS = {
    "gru": lambda **kw: GRU(VOCAB, LENGTH, HIDDEN, num_layers=2, **kw),
    "lstm": lambda **kw: LSTM(VOCAB, LENGTH, HIDDEN, num_layers=2, **kw),
    "ntm": lambda **kw: NeuralTuringMachine(VOCAB, LENGTH, HIDDEN, slots=4, width=3, **kw),
    "looped": lambda **kw: LoopedTransformer(VOCAB, LENGTH, HIDDEN, num_layers=1, num_heads=1, num_loops=4, **kw),
}
MODELS["looped, start"] = lambda **kw: MODELS["looped"](start_token=True, **kw)


def batch(size=3, length=LENGTH, seed=0):
    """Inputs, and labels of which the first two, and one sample's last ones, are not scored."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = (torch.randint(VOCAB, (size, length), generator=generator) for _ in range(2))
    labels[:, :2] = labels[0, 4:] = -100
    return inputs, labels


def scored(model, estimator, inputs, labels):
    """The model's own loss."""
    return model.scored(None, inputs, None, labels, estimator, softmax_cross_entropy)


def hand_logits(name, model, inputs, window=None):
    """A list of the logits that are scored, (batch, seq_len, vocab): one, or one of each loop."""
    x = model.embedding.tokens.weight[inputs] * HIDDEN**0.5
    if name.startswith("looped"):
        if model.start is not None:
            x = torch.stack([torch.cat((model.start[None], row)) for row in x])
        z, net = torch.zeros_like(x), model.cell.net
        loops = []
        for _ in range(4):
            z = net.blocks[0](z + x, net.rotary(x.shape[1]))
            loops.append(z[:, -inputs.shape[1] :] @ model.lm_head.weight.T)
        return loops
    return [torch.stack([_answer(model, f) for f in FEATURES[name](model, x, window)], 1)]


def hand_loss(logits, labels):
    """The mean over samples of the mean over scored tokens, the mean over what is a list."""
    rows = [
        F.cross_entropy(one[row][labels[row] >= 0], labels[row][labels[row] >= 0])
        for one in logits
        for row in range(len(labels))
    ]
    return sum(rows) / len(rows)


def gradients(loss, model):
    """Gradients of all parameters that the loss depends on, by name."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def _answer(model, features):
    return features @ model.lm_head.weight.T + model.lm_head.bias


def _recurrent(model, x, window, layer_of):
    states = [[torch.zeros(len(x), HIDDEN).to(x) for _ in model.streams] for _ in model.cell.layers]
    for t in range(x.shape[1]):
        if window and t % window == 0:
            states = [[z.detach() for z in state] for state in states]
        below = x[:, t]
        for i, layer in enumerate(model.cell.layers):
            states[i] = layer_of(layer, below, *states[i])
            below = states[i][0]
        yield below


def _gru_layer(layer, x, h):
    a, b = x @ layer.weight_ih.T + layer.bias_ih, h @ layer.weight_hh.T + layer.bias_hh
    (r, u, n), (r_h, u_h, n_h) = a.chunk(3, -1), b.chunk(3, -1)
    gate = (u + u_h).sigmoid()
    return [(1 - gate) * (n + (r + r_h).sigmoid() * n_h).tanh() + gate * h]


def _lstm_layer(layer, x, h, c):
    i, f, g, o = (x @ layer.weight_ih.T + layer.bias_ih + h @ layer.weight_hh.T + layer.bias_hh).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def _turing(model, x, window):
    """Sample by sample and slot by slot, weights by powers."""
    cell, (slots, width) = model.cell, model.shape
    rows = []
    for row in range(len(x)):
        h, c, read = x.new_zeros(1, HIDDEN), x.new_zeros(1, HIDDEN), x.new_zeros(width)
        memory = [x.new_full((width,), 1e-6) for _ in range(slots)]
        at = {"write": [x.new_tensor(float(i == 0)) for i in range(slots)]}
        at["read"], found = list(at["write"]), []
        for t in range(x.shape[1]):
            if window and t % window == 0:
                h, c, read = h.detach(), c.detach(), read.detach()
                memory = [slot.detach() for slot in memory]
                at = {head: [w.detach() for w in weights] for head, weights in at.items()}
            h, c = _lstm_layer(cell.controller, torch.cat((x[row, t], read))[None], h, c)
            said = (h @ cell.heads.weight.T + cell.heads.bias)[0]
            head = width + 6
            erase, add = said[2 * head : 2 * head + width].sigmoid(), said[2 * head + width :]
            at["write"] = _addressed(memory, at["write"], said[:head], width)
            memory = [slot * (1 - w * erase) + w * add for slot, w in zip(memory, at["write"], strict=True)]
            at["read"] = _addressed(memory, at["read"], said[head : 2 * head], width)
            read = sum(w * slot for w, slot in zip(at["read"], memory, strict=True))
            found.append(torch.cat((h[0], read)))
        rows.append(found)
    return [torch.stack(step) for step in zip(*rows, strict=True)]


def _addressed(memory, before, said, width):
    key, strength, gate, power = said[:width], F.softplus(said[width]), said[width + 1].sigmoid(), said[width + 2]
    back, stay, on = said[width + 3 :].softmax(0)
    alike = [slot @ key / (slot.norm() * key.norm()) for slot in memory]
    total = sum((strength * a).exp() for a in alike)
    mixed = [gate * (strength * a).exp() / total + (1 - gate) * w for a, w in zip(alike, before, strict=True)]
    n = len(mixed)
    moved = [back * mixed[(i + 1) % n] + stay * mixed[i] + on * mixed[(i - 1) % n] for i in range(n)]
    powers = [w ** (1 + F.softplus(power)) for w in moved]
    return [w / sum(powers) for w in powers]


FEATURES = {
    "gru": lambda model, x, window: _recurrent(model, x, window, _gru_layer),
    "lstm": lambda model, x, window: _recurrent(model, x, window, _lstm_layer),
    "ntm": _turing,
}
