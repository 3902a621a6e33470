"""One command for an accelerator: exactness, time and memory of published steps, depth, peers, a training."""

from loopgrad.experiments.benches.gpu.bench import Accelerator as Accelerator
