"""Frozen encoders: vectors of tokens, looked up or computed, that no graph, optimiser, average or checkpoint holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.models.layers import OneLine


@dataclass(frozen=True)
class SlotLayout:
    """What the numbers of tokens mean where a sample is a row of slots.

    Answers come first, so that an answer's token is its place among the logits; then one token that fills up a row; one
    for each slot that an answer is read from, which stand at the beginning of a row in this order; then questions,
    and statements.

    Attributes:
        answers: How many different answers there are.
        answer_slots: Slots of a sample that an answer is read from.
        questions: Tokens that stand for a question, or for parts of one; all behind them are statements.

    Raises:
        ValueError: A number is below 1, or there are fewer than two answers.
    """

    answers: int
    answer_slots: int = 1
    questions: int = 1

    def __post_init__(self) -> None:
        for name, least in (("answers", 2), ("answer_slots", 1), ("questions", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def pad(self) -> int:
        """The token that fills up a row."""
        return self.answers

    @property
    def first_slot(self) -> int:
        """The token of the first answer slot."""
        return self.answers + 1

    @property
    def first_question(self) -> int:
        """The first token with a vector of the encoder's."""
        return self.first_slot + self.answer_slots

    @property
    def first_statement(self) -> int:
        """The first token that stands for a statement, or for a part of one."""
        return self.first_question + self.questions


class FrozenEncoder(OneLine, ABC):
    """Maps tokens (batch, slots) to vectors (batch, slots, size), without a graph, and is the same for ever.

    It has no parameters of its own as far as a model is concerned: copies of a model share it, and casting a model
    leaves its dtype. Base of `FeatureTable` and `FrozenModule`.

    Args:
        size: Numbers of a vector.
        layout: What tokens mean.
        num_parameters: Weights of the encoder, 0 where that is not known.
    """

    def __init__(self, size: int, layout: SlotLayout, num_parameters: int = 0):
        super().__init__()
        self.size, self.layout, self.num_parameters = size, layout, num_parameters

    def extra_repr(self) -> str:
        """Return the size."""
        return f"size={self.size}, {self.layout}"

    def __deepcopy__(self, memo: Any) -> "FrozenEncoder":
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenEncoder":
        self.move(fn(torch.zeros(1)).device)
        return self

    @abstractmethod
    def move(self, device: torch.device) -> None:
        """Bring the encoder to a device."""

    @abstractmethod
    def vectors(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, (batch, slots, size), anything where the layout has none."""

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, zero where the layout has none."""
        found = self.vectors(tokens).detach()
        return torch.where((tokens >= self.layout.first_question).unsqueeze(-1), found, 0)


class FeatureTable(FrozenEncoder):
    """Vectors that were made beforehand, a row for each token from the first question on.

    Args:
        rows: (questions + statements, size), floating.
        layout: What tokens mean.
        num_parameters: Weights of what made them, 0 where that is not known.

    Cost:
        The rows, once for all copies of a model; a look-up per slot.
    Not recommended when:
        Inputs are not known beforehand: use `FrozenModule`.
    Reference:
        Reimers and Gurevych 2019, arXiv 1908.10084.

    Raises:
        ValueError: The rows are no matrix of finite floating numbers, or fewer than the layout has questions.

    Example:
        >>> import torch
        >>> from loopgrad.models import FeatureTable, SlotLayout
        >>> layout = SlotLayout(answers=2, questions=1)  # tokens 0 and 1 are answers, 2 fills up, 3 is the answer slot
        >>> table = FeatureTable(torch.eye(3), layout)
        >>> table(torch.tensor([[3, 4, 6, 2]])).tolist()
        [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]
    """

    references = ("reimers2019sentence",)
    rows: Tensor

    def __init__(self, rows: Tensor, layout: SlotLayout, num_parameters: int = 0):
        if rows.dim() != 2 or not rows.is_floating_point() or len(rows) < layout.questions:
            raise ValueError(
                f"rows must be floating, (questions + statements, size) with {layout.questions} questions, got "
                f"{tuple(rows.shape)} {rows.dtype}"
            )
        if rows.device.type != "meta" and not rows.isfinite().all():
            raise ValueError("rows must be finite, got NaN or infinite numbers: encode these texts anew")
        super().__init__(rows.shape[1], layout, num_parameters)
        object.__setattr__(self, "rows", rows.detach())

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.layout.first_question + len(self.rows)

    def move(self, device: torch.device) -> None:
        """Bring the rows to a device."""
        object.__setattr__(self, "rows", self.rows.to(device))

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens."""
        return self.rows[(tokens - self.layout.first_question).clamp(min=0)]


class FrozenModule(FrozenEncoder):
    """Any module of torch that maps tokens (batch, slots) to vectors (batch, slots, size), as an encoder.

    Args:
        module: The module, in evaluation mode; it is called without a graph, and its weights are not changed.
        size: Numbers of a vector.
        layout: What tokens mean; those that the module is given may be any of them.

    Cost:
        A forward pass of the module at every step: of inputs that come again, make a `FeatureTable`.
    Not recommended when:
        Every input is seen many times.

    Raises:
        ValueError: The module, or a module in it, is in training mode.

    Example:
        >>> import torch
        >>> from loopgrad.models import FrozenModule, SlotLayout
        >>> encoder = FrozenModule(torch.nn.Embedding(9, 4).eval(), size=4, layout=SlotLayout(answers=2))
        >>> vectors = encoder(torch.tensor([[3, 4, 6, 2]]))
        >>> tuple(vectors.shape), vectors.requires_grad, len(list(encoder.parameters()))
        ((1, 4, 4), False, 0)
    """

    module: nn.Module

    def __init__(self, module: nn.Module, size: int, layout: SlotLayout):
        _check_evaluates(module)
        super().__init__(size, layout, sum(parameter.numel() for parameter in module.parameters()))
        object.__setattr__(self, "module", module)

    def move(self, device: torch.device) -> None:
        """Bring the module to a device."""
        self.module.to(device)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return what the module gives.

        Raises:
            ValueError: It is not (batch, slots, size), or the module has gone into training mode.
        """
        _check_evaluates(self.module)
        found = self.module(tokens)
        if found.shape != (*tokens.shape, self.size):
            raise ValueError(f"the module gave {tuple(found.shape)}, and {(*tokens.shape, self.size)} was said")
        return found


def _check_evaluates(module: nn.Module) -> None:
    """Raise ValueError where a module, or one in it, draws masks and moves statistics as in training."""
    for name, part in module.named_modules():
        if part.training:
            of = f"{name} of module" if name else "module"
            raise ValueError(f"{of} is in training mode, in which dropout makes it another encoder: call module.eval()")
