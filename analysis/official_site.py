"""Where the streams of the official TRM and HRM classes are read: at their levels, by the order of the calls.

Repositories SamsungSAILMontreal/TinyRecursiveModels (trm, trm_singlez) and sapientinc/HRM (hrm_act_v1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.analysis.hooks import argument, is_forward, never_called, removed
from loopgrad.analysis.sites import Listener


@dataclass(frozen=True)
class OfficialSite:
    """Reads the official TRM (trm, trm_singlez) and HRM classes, by the order in which they call their levels.

    A call of `inner` makes H_cycles times L_cycles updates of z_L and one of z_H, from the carry that it is given; in
    TRM one L_level makes both kinds. A row that has taken a new sample starts from another state than it was left in.
    The look-ahead of HRM's Q-learning, a second call of `inner` in a call of the model, is not read.

    Not recommended when:
        The model is another one of those repositories, such as trm_hier6 with its six low streams.
    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871; Wang et al. 2025, arXiv 2506.21734.
    """

    def cycle(self, model: nn.Module) -> int:
        """Return L_cycles + 1."""
        return int(self._inner(model).config.L_cycles) + 1  # pyright: ignore

    @contextmanager
    def reading(self, model: nn.Module, listener: Listener) -> Iterator[None]:
        """Tell of the starts and updates of the model's `inner` inside the block."""
        inner, period = self._inner(model), self.cycle(model)
        due = int(inner.config.H_cycles) * period  # pyright: ignore
        low, high = inner.get_submodule("L_level"), inner._modules.get("H_level") or inner.get_submodule("L_level")
        last, done, called, looked_ahead, ever, alone = "z_H", 0, False, False, False, False

        def model_ends(*_: Any) -> None:
            nonlocal looked_ahead
            looked_ahead = False

        def starts(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal last, done, called, looked_ahead, ever
            called = is_forward() and not looked_ahead
            if called:
                carry = argument(args, kwargs, 0, "carry")
                streams = {name: getattr(carry, name) for name in ("z_L", "z_H") if hasattr(carry, name)}
                if "z_L" not in streams:
                    raise TypeError(
                        f"OfficialSite reads a carry with z_L, and z_H if there are two streams, a "
                        f"{type(carry).__name__} has neither: read other models by ModuleSite"
                    )
                last, done, ever, looked_ahead = list(streams)[-1], 0, True, bool(outer)
                listener.start(**streams)

        def updates(level: nn.Module, _: Any, output: torch.Tensor) -> None:
            nonlocal done, alone
            alone = alone or not ever and is_forward()
            if called and is_forward():
                ends_cycle = done % period == period - 1
                if level is not (high if ends_cycle else low):
                    raise RuntimeError(_out_of_order(done, due))
                done += 1
                listener.push(**{last if ends_cycle else "z_L": output})

        def ends(*_: Any) -> None:
            nonlocal called
            if called and done != due:
                raise RuntimeError(_out_of_order(done, due) if done else never_called("L_level"))
            called = False

        outer = [module for module in model.modules() if module._modules.get("inner") is inner]
        handles = [module.register_forward_hook(model_ends, always_call=True) for module in outer]
        handles += [inner.register_forward_pre_hook(starts, with_kwargs=True), inner.register_forward_hook(ends)]
        handles += [level.register_forward_hook(updates) for level in dict.fromkeys((low, high))]
        with removed(handles):
            yield
        if not ever and alone:
            raise RuntimeError(
                f"nothing was recorded: L_level was called, but not by inner, a {type(inner).__name__}, as in the "
                f"official TRM and HRM code: give sites=CellSite('...') with the name of the cell(state, inputs, step)"
            )
        if not ever:
            raise RuntimeError(never_called(f"inner, a {type(inner).__name__}"))

    def _inner(self, model: nn.Module) -> nn.Module:
        inner = official_inner(model)
        if inner is not None:
            return inner
        raise ValueError(
            f"OfficialSite needs a module with L_level and config.H_cycles, as in the official TRM and HRM code, the "
            f"{type(model).__name__} has none: use CellSite() for a model of this package"
        )


def official_inner(model: nn.Module) -> nn.Module | None:
    """Return the module that has the layout of the official classes, or None."""
    for module in model.modules():
        if "L_level" in module._modules and hasattr(getattr(module, "config", None), "H_cycles"):
            return module
    return None


def _out_of_order(done: int, due: int) -> str:
    return (
        f"OfficialSite expected {due} calls of the levels, each cycle ending with that of z_H, and met another order "
        f"after {done}: this model is not the official trm, trm_singlez or hrm; read it by ModuleSite"
    )
