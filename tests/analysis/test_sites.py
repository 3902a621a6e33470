"""Sites of a recorder: the official classes' layout, cells and modules by name, and what cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from loopgrad.analysis import record
from loopgrad.analysis.official_site import OfficialSite
from loopgrad.analysis.recorder import Recorder
from loopgrad.analysis.sites import CellSite, ModuleSite
from loopgrad.gradients import BPTT, Stationary
from loopgrad.models import HRM, TRM, Damped

FIXTURES = Path(__file__).parents[1] / "models" / "fixtures"
OFFICIAL = {"trm_attention": TRM, "trm_mlp": TRM, "trm_singlez": TRM, "hrm": HRM}


@pytest.mark.parametrize("name", OFFICIAL)
def test_residuals_are_those_of_the_official_code_with_the_same_weights(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        weights = {key[7:]: file.get_tensor(key) for key in file.keys() if key.startswith("weight.")}  # noqa: SIM118
        inputs, ids = file.get_tensor("inputs"), file.get_tensor("puzzle_ids")
        settings = {key: int(value) for key, value in file.metadata().items() if key != "commit"}
    extra = {"puzzle_tokens": 2} if name == "trm_singlez" else {}
    model = OFFICIAL[name].from_official(weights, **settings, **extra)
    x = model.encode(inputs, ids if model.embedding.puzzles is not None else None)
    num_steps, period = 2 * model.num_steps, model.cell.period
    trace = record(model.cell, model.initial_state(*inputs.shape), x, num_steps, at=num_steps - period)
    expected = load_file(FIXTURES / f"{name}_trajectory.safetensors")
    assert {key.split(".")[1] for key in expected} == set(trace.streams)
    # differences of float32 states, whose rounding is the processor's own: 3e-5 of it, and 2e-6, were seen
    float32 = {"rtol": 1e-4, "atol": 1e-5}
    for key, values in expected.items():
        kind, stream = key.split(".")
        np.testing.assert_allclose(getattr(trace, kind)[stream], values.numpy(), **float32, err_msg=key)
    for stream in trace.streams:
        np.testing.assert_allclose(trace.map[stream], expected[f"cycle.{stream}"][-1].numpy(), **float32)


class Level(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), seen

    def forward(self, z, injection):
        z = torch.tanh(self.linear(z) + injection)
        self.seen.append(z.detach().clone())
        return z


@dataclass
class Carry:
    z_H: torch.Tensor
    z_L: torch.Tensor


class Inner(nn.Module):
    """The official classes' loop: H_cycles times (L_cycles times z_L, once z_H)."""

    def __init__(self, two_levels, seen, extra=0):
        super().__init__()
        self.config, self.extra = SimpleNamespace(H_cycles=2, L_cycles=2), extra
        self.L_level = Level(seen)
        if two_levels:
            self.H_level = Level(seen)

    def forward(self, carry, batch):
        z_H, z_L = carry.z_H, carry.z_L
        for _ in range(2):
            for _ in range(2 + self.extra):
                z_L = self.L_level(z_L, z_H + batch)
            z_H = getattr(self, "H_level", self.L_level)(z_H, z_L)
        return Carry(z_H=z_H.detach(), z_L=z_L.detach()), z_H


class Outer(nn.Module):
    """The official classes' step: rows that have halted start again; with Q-learning, a look-ahead that is dropped."""

    def __init__(self, two_levels, look_ahead=False, extra=0):
        super().__init__()
        self.seen, self.look_ahead = [], look_ahead
        self.inner = Inner(two_levels, self.seen, extra)

    def forward(self, carry, halted, batch):
        again = halted[:, None]
        carry = Carry(z_H=torch.where(again, 1.0, carry.z_H), z_L=torch.where(again, -1.0, carry.z_L))
        after, z_H = self.inner(carry, batch)
        if self.look_ahead:
            kept = len(self.seen)
            with torch.no_grad():
                self.inner(after, batch)
            del self.seen[kept:]
        z_H.sum().backward()
        return after


@pytest.mark.parametrize(("two_levels", "look_ahead"), [(False, False), (True, False), (True, True)])
def test_the_official_layout_is_read_by_the_order_of_calls(two_levels, look_ahead):
    torch.manual_seed(0)
    model, recorder = Outer(two_levels, look_ahead), Recorder(lags=2)
    carry = Carry(z_H=torch.empty(3, 4), z_L=torch.empty(3, 4))
    with recorder.attach(model, OfficialSite()):
        for segment in range(4):
            halted = torch.tensor([segment == 0, segment in (0, 3), segment == 0])
            carry = model(carry, halted, torch.ones(3, 4))
    traces = {(int(t.row[i]), int(t.begin[i])): (t, i) for t in recorder.traces() for i in range(t.row.size)}
    assert {key: t.num_steps for key, (t, _) in traces.items()} == {(0, 0): 24, (1, 0): 18, (1, 18): 6, (2, 0): 24}
    for (row, begin), (trace, i) in traces.items():
        state = {"z_L": -torch.ones(4), "z_H": torch.ones(4)}
        for t in range(trace.num_steps):
            stream, new = "z_H" if t % 3 == 2 else "z_L", model.seen[begin + t][row]
            moved = (new - state[stream]).norm().item()
            assert trace.update[stream][t, i] == pytest.approx(moved, rel=1e-5)
            assert trace.norm[stream][t + 1, i] == pytest.approx(new.norm().item(), rel=1e-5)
            state[stream] = new


@pytest.mark.parametrize("two_levels", [False, True])
def test_the_official_layout_is_found_and_a_mapping_names_modules(two_levels):
    torch.manual_seed(0)
    model, own, by_name = Outer(two_levels), Recorder(), Recorder()
    carry = Carry(z_H=torch.ones(2, 4), z_L=-torch.ones(2, 4))
    with own.attach(model), by_name.attach(model, sites={"inner.L_level": "z"}):
        model(carry, torch.tensor([True, True]), torch.ones(2, 4))
    assert own.trace().streams == ("z_L", "z_H") and own.trace().num_steps == 6
    assert by_name.trace().num_steps == (3 if two_levels else 5)  # z_L alone, or both, the first call being the start


def test_a_loop_that_is_not_the_official_one_is_refused():
    model = Outer(False, extra=1)
    carry = Carry(z_H=torch.ones(1, 4), z_L=torch.ones(1, 4))
    with pytest.raises(RuntimeError, match="expected 6 calls .*ModuleSite"), Recorder().attach(model, OfficialSite()):
        model(carry, torch.tensor([True]), torch.ones(1, 4))
    with pytest.raises(ValueError, match="CellSite"), Recorder().attach(nn.Linear(1, 1), OfficialSite()):
        pass
    with pytest.raises(TypeError, match="carry with z_L"), Recorder().attach(model, OfficialSite()):
        model.inner(SimpleNamespace(z_H=carry.z_H), torch.ones(1, 4))


def test_modules_are_read_by_name_from_when_all_were_seen():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.low.weight, 2.0)
            nn.init.constant_(self.high.weight, 3.0)

        def forward(self, z, y):
            for _ in range(3):
                z = self.low(self.low(z))
                y = self.high(y)
            return z, y

    model, recorder = Loop(), Recorder()
    with recorder.attach(model, ModuleSite({"low": "z", "high": "y"}, period=3)):
        model(torch.ones(2, 1), torch.ones(2, 1))
    trace = recorder.trace()  # z = 4, y = 3 at first
    np.testing.assert_allclose(trace.update["z"][:, 0], [4, 8, np.nan, 16, 32, np.nan])
    np.testing.assert_allclose(trace.update["y"][:, 0], [np.nan, np.nan, 6, np.nan, np.nan, 18])
    assert (trace.period, trace.map["z"].tolist(), trace.map["y"].tolist()) == (3, [48, 48], [18, 18])


def test_a_picked_output_is_read():
    rnn, recorder = nn.LSTM(2, 3), Recorder()
    with recorder.attach(rnn, ModuleSite({"": "c"}, pick=lambda output: output[1][1][0])):
        _, hidden = rnn(torch.ones(1, 4, 2))
        _, (_, c) = rnn(torch.ones(1, 4, 2), hidden)
    expected = torch.linalg.vector_norm(c[0] - hidden[1][0], dim=1)
    np.testing.assert_allclose(recorder.trace().update["c"][0], expected.detach().numpy(), rtol=1e-6)


def test_of_a_coupled_cell_the_state_that_is_read_next_is_recorded():
    cell = Damped(Stationary(lambda z, x: torch.tanh(z + x)), beta="1/4")
    z, x = torch.randn(2, 3), torch.randn(2, 3)
    recorder = Recorder()
    with recorder.attach(nn.ModuleDict({"cell": cell})):
        BPTT()(cell, z, x, 6)
    expected = record(cell, z, x, 6, at=6 - cell.period) if hasattr(cell, "period") else record(cell, z, x, 6, at=5)
    np.testing.assert_array_equal(recorder.trace().update["state"], expected.update["state"])


def test_a_cell_is_found_or_named():
    cells = nn.ModuleDict({"a": Stationary(lambda z, x: z / 2), "b": Stationary(lambda z, x: z / 4)})
    with pytest.raises(ValueError, match=r"found \['a', 'b'\].*give its name"), Recorder().attach(cells):
        pass
    with pytest.raises(ValueError, match="found none.*ModuleSite"), Recorder().attach(nn.Linear(1, 1)):
        pass
    with pytest.raises(ValueError, match="no module 'c'; nearest"), Recorder().attach(cells, CellSite("c")):
        pass
    recorder = Recorder()
    with recorder.attach(cells, CellSite("b")):
        for name in ("a", "b"):
            BPTT()(cells[name], torch.ones(1, 1), None, 2)
    assert recorder.trace().norm["state"][:, 0].tolist() == [1.0, 0.25, 0.0625]


def test_what_was_never_called_is_named_and_compiled_models_are_warned_of():
    model = nn.ModuleDict({"cell": Stationary(lambda z, x: z), "other": nn.Linear(1, 1)})
    with pytest.raises(RuntimeError, match="never reached.*analyse the eager one"), Recorder().attach(model):
        pass
    with pytest.raises(RuntimeError, match="other"), Recorder().attach(model, ModuleSite({"other": "z"})):
        pass
    with pytest.raises(RuntimeError, match="inner"), Recorder().attach(Outer(True), OfficialSite()):
        pass


def test_a_compiled_model_is_refused_and_a_compiled_cell_is_read():
    class Model(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, z):
            for step in range(3):
                z = self.cell(z, None, step)
            return z

    class Half(nn.Module):
        def forward(self, state, inputs, step):
            return state / 2

    model = torch.compile(Model(Half()), backend="eager")
    with pytest.raises(RuntimeError, match="analyse the eager one"), Recorder().attach(model):
        model(torch.ones(1, 1))
    model, recorder = Model(torch.compile(Half(), backend="eager")), Recorder()
    with recorder.attach(model):
        model(torch.ones(1, 1))
    assert recorder.trace().update["state"][:, 0].tolist() == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("given", [{}, {"a": "z", "b": "z"}])
def test_modules_must_be_named(given):
    with pytest.raises(ValueError, match="a stream of its own"):
        ModuleSite(given)
    with pytest.raises(ValueError, match="period must be"):
        ModuleSite({"a": "z"}, period=0)
