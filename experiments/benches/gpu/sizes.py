"""What is measured on an accelerator, as published and large, or tiny, to try the command anywhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Attributes:
        hidden_size: Features of the published models.
        num_heads: Their attention heads.
        hrm_layers: Blocks of each of HRM's nets.
        tokens: Tokens of the published tasks: 81 of Sudoku, 916 of mazes with puzzle positions.
        batch: Samples of a published step.
        exact_size: Features of the cell on which estimators are compared.
        exact_steps: Its updates.
        deep_size: Features of the large cell.
        deep_layers: Its blocks.
        deep_tokens: Tokens that it reads.
        deep_steps: Its updates.
        rate_size: Side of the matrices whose product gives the rate.
        train_puzzles: Puzzles that are trained on.
        train_batch: Of the training.
        train_size: Features of the model that is trained.
    """

    hidden_size: int = 512
    num_heads: int = 8
    hrm_layers: int = 4
    tokens: tuple[int, ...] = (81, 916)
    batch: int = 768
    exact_size: int = 256
    exact_steps: int = 64
    deep_size: int = 2048
    deep_layers: int = 22
    deep_tokens: int = 512
    deep_steps: int = 256
    rate_size: int = 8192
    train_puzzles: int = 500
    train_batch: int = 768
    train_size: int = 512


FULL = Sizes()
TINY = Sizes(
    hidden_size=32,
    num_heads=2,
    hrm_layers=1,
    tokens=(16,),
    batch=4,
    exact_size=32,
    exact_steps=6,
    deep_size=32,
    deep_layers=2,
    deep_tokens=16,
    deep_steps=8,
    rate_size=256,
    train_puzzles=30,
    train_batch=8,
    train_size=32,
)
