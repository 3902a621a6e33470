"""Hypergradients: the recursion is training itself, and its state the weights of an inner network.

One update is one step of SGD with weight decay, w <- w - lr (d loss / dw + decay w). The parameters are log lr and
log decay, and the loss of the last weights on validation data is differentiated. Every estimator applies as it is.

Reference:
    L. Franceschi et al., "Forward and reverse gradient-based hyperparameter optimization", 2017, arXiv 1703.01785;
    D. Maclaurin et al., "Gradient-based hyperparameter optimization through reversible learning", 2015,
    arXiv 1502.03492; E. Grefenstette et al., "Generalized inner loop meta-learning", 2019, arXiv 1910.01727 (higher).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from loopgrad.gradients import Estimator

Weights = dict[str, Tensor]
Data = tuple[Tensor, Tensor]  # (x, y)
HYPERPARAMETERS: tuple[str, ...] = ("log_lr", "log_weight_decay")


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error: sum over outputs, mean over samples."""
    return (output - target).square().sum(dim=1).mean() / 2


class InnerSGD(nn.Module):
    """A cell that does one step of SGD: w <- w - exp(log_lr) (d loss(network(x), y) / dw + exp(log_weight_decay) w).

    Called as cell(weights, (x, y), step) with weights a dict of name -> tensor; `ImplicitGradient` needs scope="batch".

    Args:
        network: The inner network; a copy is kept for its structure, and its own weights are not used.
        loss: Callable loss(output, target) -> scalar.
        log_lr: Logarithm of the learning rate.
        log_weight_decay: Logarithm of the weight decay.
        num_batches: Mini-batches that the data are split into, in order; each step takes the next. A cycle is an epoch.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.benches.inner_training import InnerSGD, half_squared_error
        >>> from loopgrad.gradients import BPTT
        >>> cell = InnerSGD(torch.nn.Linear(1, 1, bias=False), half_squared_error, log_lr=-1.0, log_weight_decay=-3.0)
        >>> weights = BPTT()(cell, {"weight": torch.zeros(1, 1)}, (torch.ones(4, 1), torch.ones(4, 1)), 10).state
        >>> (weights["weight"] - 1).square().sum().backward()
        >>> bool(cell.log_weight_decay.grad > 0)  # more decay, farther from the target
        True
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        log_lr: float,
        log_weight_decay: float,
        num_batches: int = 1,
    ):
        super().__init__()
        self.network, self.loss, self.period = copy.deepcopy(network).requires_grad_(False), loss, num_batches
        like = next(self.network.parameters())
        self.log_lr = nn.Parameter(like.new_tensor(log_lr))
        self.log_weight_decay = nn.Parameter(like.new_tensor(log_weight_decay))

    def forward(self, state: Weights, inputs: Data, step: int) -> Weights:
        """Return the weights after one more step."""
        x, y = batch = self.batch(inputs, step)
        lr, decay = self.log_lr.exp(), self.log_weight_decay.exp()
        slopes = _gradient(lambda weights: self.loss(functional_call(self.network, weights, (x,)), y), state, batch)
        return {name: w - lr * (slopes[name] + decay * w) for name, w in state.items()}

    def batch(self, inputs: Data, step: int) -> Data:
        """Return the samples of step number `step`."""
        return tuple(data.tensor_split(self.period)[step % self.period] for data in inputs)  # pyright: ignore


def _gradient(loss: Callable[[Weights], Tensor], weights: Weights, data: Sequence[Tensor]) -> Weights:
    """Return d loss / d weights, differentiable in its turn."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (*weights.values(), *data))
    connected = all(w.requires_grad for w in weights.values())
    if torch._C._are_functorch_transforms_active() or (wanted and not connected):  # pyright: ignore
        with _hooks_lifted():
            return grad(loss)(weights)
    with torch.enable_grad():
        views = {name: w.view_as(w) for name, w in weights.items()}
        leaves = [view if view.requires_grad else view.requires_grad_() for view in views.values()]
        return dict(zip(views, torch.autograd.grad(loss(views), leaves, create_graph=wanted), strict=True))


@contextmanager
def _hooks_lifted() -> Iterator[None]:
    """Set aside hooks on saved tensors, which count bytes or move them to the host: torch.func.grad refuses them."""
    lifted, autograd = [], torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    top = getattr(autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # from torch 2.8 on
    while (hooks := top(False)) is not None:
        lifted.append(hooks)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for hooks in reversed(lifted):
            autograd._push_saved_tensors_default_hooks(*hooks)


@dataclass(frozen=True)
class Problem:
    """An inner update, the weights to start from, data for training, and data for the outer loss."""

    cell: InnerSGD
    state: Weights
    train: Data
    validation: Data

    @property
    def hyperparameters(self) -> list[nn.Parameter]:
        """Log learning rate and log weight decay."""
        return [self.cell.log_lr, self.cell.log_weight_decay]

    def outer_loss(self, weights: Weights) -> Tensor:
        """Return the loss of weights on the validation data."""
        x, y = self.validation
        return self.cell.loss(functional_call(self.cell.network, weights, (x,)), y)

    def loss(self, estimator: Estimator, num_steps: int, cell: nn.Module | None = None) -> Tensor:
        """Return the validation loss after training; `cell` replaces the inner update, to wrap it."""
        return self.outer_loss(estimator(cell or self.cell, self.state, self.train, num_steps).state)

    def hypergradient(self, loss: Tensor) -> Tensor:
        """Return d loss / d (log lr, log weight decay)."""
        return torch.stack(torch.autograd.grad(loss, self.hyperparameters))


def ridge(features: int = 16, samples: int = 64, seed: int = 0, **options: Any) -> Problem:
    """Return linear regression with weight decay: convex, solved by (X'X / n + decay)^-1 X'y / n; float64.

    Args:
        features: Inputs of the linear map.
        samples: Samples of training, and as many of validation.
        seed: Seed of data and first weights.
        options: log_lr, log_weight_decay and num_batches of `InnerSGD`.
    """
    network, options = nn.Linear(features, 1, bias=False), {"log_lr": -0.7, "log_weight_decay": -2.5, **options}
    return _problem(network, lambda x: x, 0.5, features, samples, seed, options)


def mlp(features: int = 8, hidden: int = 32, samples: int = 64, seed: int = 0, **options: Any) -> Problem:
    """Return a tanh network of one hidden layer, fitted to the noisy sine of a projection: not convex; float64.

    Args:
        features: Inputs of the network.
        hidden: Hidden features.
        samples: Samples of training, and as many of validation.
        seed: Seed of data and first weights.
        options: log_lr, log_weight_decay and num_batches of `InnerSGD`.
    """
    network = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    options = {"log_lr": -1.5, "log_weight_decay": -4.0, **options}
    return _problem(network, torch.sin, 0.2, features, samples, seed, options)


def _problem(
    network: nn.Module, link: Any, noise: float, features: int, samples: int, seed: int, options: dict[str, Any]
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = {name: normal(*p.shape) * p.shape[-1] ** -0.5 for name, p in network.named_parameters()}
    true, x = normal(features, 1) * features**-0.5, normal(2 * samples, features)
    y = link(x @ true) + noise * normal(2 * samples, 1)
    cell = InnerSGD(network.double(), half_squared_error, **options)
    return Problem(cell, state, (x[:samples], y[:samples]), (x[samples:], y[samples:]))


def reference(problem: Problem, num_steps: int) -> Weights:
    """Return the last weights as `higher` unrolls the inner loop, with a graph back to the two hyperparameters.

    Raises:
        ImportError: higher is not installed.
    """
    try:
        import higher  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("the reference unroll needs higher: pip install 'loopgrad[peers]'") from error
    cell, network = problem.cell, copy.deepcopy(problem.cell.network).requires_grad_()
    network.load_state_dict(problem.state)
    optimizer, override = torch.optim.SGD(network.parameters(), lr=1.0), {"lr": [cell.log_lr.exp()]}
    with higher.innerloop_ctx(network, optimizer, override=override) as (unrolled, steps):
        for step in range(num_steps):
            x, y = cell.batch(problem.train, step)
            penalty = cell.log_weight_decay.exp() / 2 * sum(w.square().sum() for w in unrolled.parameters())
            steps.step(cell.loss(unrolled(x), y) + penalty)
        return dict(zip(problem.state, unrolled.parameters(), strict=True))
