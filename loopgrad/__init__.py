"""Memory-efficient alternatives to backprop-through-time for networks that apply the same weights many times.

The names here are those of `loopgrad.gradients`, `loopgrad.models` and `loopgrad.analysis` that one starts with; each
of these packages is loaded when one of its names is asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loopgrad import analysis as analysis
    from loopgrad import experiments as experiments
    from loopgrad import gradients as gradients
    from loopgrad import models as models
    from loopgrad.analysis import Recorder as Recorder
    from loopgrad.analysis import StateMap as StateMap
    from loopgrad.analysis import classify as classify
    from loopgrad.analysis import record as record
    from loopgrad.analysis import spectral_radius as spectral_radius
    from loopgrad.gradients import BPTT as BPTT
    from loopgrad.gradients import KFRTRL as KFRTRL
    from loopgrad.gradients import RTRL as RTRL
    from loopgrad.gradients import UORO as UORO
    from loopgrad.gradients import CheapestExact as CheapestExact
    from loopgrad.gradients import CheckpointedBPTT as CheckpointedBPTT
    from loopgrad.gradients import CompressedBPTT as CompressedBPTT
    from loopgrad.gradients import DiagonalRTRL as DiagonalRTRL
    from loopgrad.gradients import ForwardGradient as ForwardGradient
    from loopgrad.gradients import ForwardMode as ForwardMode
    from loopgrad.gradients import ImplicitGradient as ImplicitGradient
    from loopgrad.gradients import LowRankES as LowRankES
    from loopgrad.gradients import ParallelNewton as ParallelNewton
    from loopgrad.gradients import PhantomGradient as PhantomGradient
    from loopgrad.gradients import Ramp as Ramp
    from loopgrad.gradients import RandomTruncation as RandomTruncation
    from loopgrad.gradients import ReversibleBPTT as ReversibleBPTT
    from loopgrad.gradients import Rollout as Rollout
    from loopgrad.gradients import SnAp as SnAp
    from loopgrad.gradients import Stationary as Stationary
    from loopgrad.gradients import TorchDEQ as TorchDEQ
    from loopgrad.gradients import TruncatedBPTT as TruncatedBPTT
    from loopgrad.models import HRM as HRM
    from loopgrad.models import TRM as TRM
    from loopgrad.models import Damped as Damped
    from loopgrad.models import FeedForward as FeedForward
    from loopgrad.models import Leapfrog as Leapfrog
    from loopgrad.models import Momentum as Momentum
else:
    # what a type checker reads above, as it is found while running
    _PACKAGES = {
        "analysis": ("Recorder", "StateMap", "classify", "record", "spectral_radius"),
        "experiments": (),
        "gradients": (
            "BPTT",
            "CheapestExact",
            "CheckpointedBPTT",
            "CompressedBPTT",
            "DiagonalRTRL",
            "ForwardGradient",
            "ForwardMode",
            "ImplicitGradient",
            "KFRTRL",
            "LowRankES",
            "ParallelNewton",
            "PhantomGradient",
            "RTRL",
            "Ramp",
            "RandomTruncation",
            "ReversibleBPTT",
            "Rollout",
            "SnAp",
            "Stationary",
            "TorchDEQ",
            "TruncatedBPTT",
            "UORO",
        ),
        "models": ("HRM", "TRM", "Damped", "FeedForward", "Leapfrog", "Momentum"),
    }
    __all__ = [name for names in _PACKAGES.values() for name in names]

    def __getattr__(name):
        from importlib import import_module

        if name in _PACKAGES:
            return import_module(f"loopgrad.{name}")
        for package, names in _PACKAGES.items():
            if name in names:
                return getattr(import_module(f"loopgrad.{package}"), name)
        raise AttributeError(f"loopgrad has no {name}{_nearest(name)}")

    def __dir__():
        return sorted({*globals(), *_PACKAGES, *__all__})

    def _nearest(name):
        from difflib import get_close_matches

        known = {known.lower(): known for known in (*_PACKAGES, *__all__)}
        near = [known[match] for match in get_close_matches(name.lower(), known, cutoff=0.5)]
        return f"; the nearest names are {', '.join(near)}" if near else ""
