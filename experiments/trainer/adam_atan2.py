"""Adam-atan2: Adam with an arctangent in place of the division, so that no epsilon is needed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdamATan2(torch.optim.Optimizer):
    """Adam with decoupled weight decay whose step is atan2(m, sqrt(v)) instead of m / (sqrt(v) + epsilon).

    With the gradient g, rate r, decay d and t counted from 1, in this order, as the code behind HRM and TRM has it:

        w <- (1 - r d) w
        m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
        w <- w - r / (1 - beta1^t) atan2(m, sqrt(v / (1 - beta2^t)))

    The step does not depend on the scale of the loss, and is at most (pi / 2) r / (1 - beta1^t). The first correction
    stands outside of the arctangent; the paper has both inside, and two constants that are 1 here. The
    package adam-atan2 0.0.3 is what HRM and TRM run, and needs CUDA.

    Args:
        params: Parameters, or groups of them.
        lr: r, at least 0.
        betas: beta1 and beta2, each in [0, 1).
        weight_decay: d, at least 0.

    Cost:
        Two moments per weight and a few element-wise kernels per tensor, on any device.
    Not recommended when:
        The rate was tuned for AdamW: where m is about sqrt(v), atan2 makes a step pi / 4 as long.

    Raises:
        ValueError: A value is out of range.

    Reference:
        Everett et al. 2024, arXiv 2407.05872, section 4.3.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.trainer import AdamATan2
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamATan2([w], lr=0.1, betas=(0.0, 0.0), weight_decay=0.0)
        >>> (w * torch.tensor([1e-9, -1e9])).sum().backward()
        >>> optimizer.step()
        >>> [round(x, 4) for x in w.tolist()]  # 1 -+ 0.1 pi / 4, whatever the scale
        [0.9215, 1.0785]
    """

    references = ("everett2024scaling",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
    ):
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one step; a closure is called first, with gradients, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["betas"], group["weight_decay"])
        return loss

    def _update(self, w: Tensor, rate: float, betas: tuple[float, float], decay: float) -> None:
        state, (beta1, beta2) = self.state[w], betas
        assert w.grad is not None
        if not state:
            # on the host, as torch's own: its value is read at each step
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(w, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(w, memory_format=torch.preserve_format)
        state["step"] += 1
        t, m, v = state["step"].item(), state["exp_avg"], state["exp_avg_sq"]
        w.mul_(1 - rate * decay)
        m.lerp_(w.grad, 1 - beta1)
        v.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
        scale = v.sqrt().div_((1 - beta2**t) ** 0.5)
        w.add_(torch.atan2(m, scale), alpha=-rate / (1 - beta1**t))
