"""Reading checkpoints of the official TRM and HRM code: what their tensors tell, and under which names they go here.

Repositories SamsungSAILMontreal/TinyRecursiveModels and sapientinc/HRM; only their parameter names are used.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.models.layers import swiglu_inner_size

_PREFIXES = ("_orig_mod.", "module.", "model.", "inner.")
# scratch of the official optimiser for puzzle vectors, and tables that follow from the sizes
_NOT_WEIGHTS = {"puzzle_emb.local_weights", "puzzle_emb.local_ids", "rotary_emb.cos_cached", "rotary_emb.sin_cached"}
_PARTS = {
    "lm_head.weight": "lm_head.weight",
    "q_head.weight": "q_head.weight",
    "q_head.bias": "q_head.bias",
    "embedding.tokens.weight": "embed_tokens.embedding_weight",
    "embedding.positions.weight": "embed_pos.embedding_weight",
    "embedding.puzzles.weight": "puzzle_emb.weights",
    "H_init": "H_init",
    "L_init": "L_init",
}
_NETS = {"cell.net": "L_level", "cell.L_net": "L_level", "cell.H_net": "H_level"}
_BLOCK_PARTS = {
    "attention.qkv": "self_attn.qkv_proj",
    "attention.out": "self_attn.o_proj",
    "token_mlp.gate_up": "mlp_t.gate_up_proj",
    "token_mlp.down": "mlp_t.down_proj",
    "mlp.gate_up": "mlp.gate_up_proj",
    "mlp.down": "mlp.down_proj",
}


class OfficialWeights:
    """The tensors of an official checkpoint without prefixes, and the sizes that can be read off them.

    Args:
        state_dict: Names and tensors as saved.

    Raises:
        TypeError: A value is not a tensor.
        ValueError: Two names are the same without their prefixes.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]):
        self.tensors: dict[str, Tensor] = {}
        for full_name, tensor in state_dict.items():
            name = _strip(full_name)
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"state_dict[{full_name!r}] is a {type(tensor).__name__}, not a tensor: pass the model's "
                    "state_dict itself, not a checkpoint that holds it beside other things"
                )
            if name in _NOT_WEIGHTS:
                continue
            if name in self.tensors:
                raise ValueError(f"state_dict holds {name!r} twice, under different prefixes: pass one model only")
            self.tensors[name] = tensor

    def architecture(
        self, num_heads: int | None, positions: str | None, seq_len: int | None, puzzle_tokens: int | None, default: int
    ) -> dict[str, Any]:
        """Return the arguments of a model that do not count layers or cycles; see `TRM.from_official`."""
        if puzzle_tokens is None:
            puzzle_tokens = self.puzzle_tokens(seq_len, published=default)
        num_puzzles, puzzle_dim = self.puzzle_table()
        return {
            "vocab_size": self.vocab_size,
            "seq_len": self.seq_len(seq_len, puzzle_tokens),
            "hidden_size": self.hidden_size,
            "num_heads": max(1, self.hidden_size // 64) if num_heads is None else num_heads,
            "expansion": self.expansion(),
            "mixer": self.mixer,
            "positions": self.positions(positions),
            "num_puzzles": num_puzzles,
            "puzzle_tokens": puzzle_tokens,
            "puzzle_dim": puzzle_dim,
        }

    @property
    def vocab_size(self) -> int:
        """Rows of the token table."""
        return self._matrix("embed_tokens.embedding_weight")[0]

    @property
    def hidden_size(self) -> int:
        """Columns of the token table."""
        return self._matrix("embed_tokens.embedding_weight")[1]

    @property
    def mixer(self) -> str:
        """Return "mlp" where a block has weights over positions, "attention" otherwise."""
        return "mlp" if "L_level.layers.0.mlp_t.gate_up_proj.weight" in self.tensors else "attention"

    def num_layers(self, level: str) -> int:
        """Return the number of blocks of `level`."""
        matches = (re.match(rf"{level}\.layers\.([0-9]{{1,9}})\.", name) for name in self.tensors)
        numbers = {int(match.group(1)) for match in matches if match}
        if not numbers:
            raise ValueError(self._missing(f"{level}.layers.0.mlp.gate_up_proj.weight"))
        if max(numbers) >= len(numbers):  # a name may hold any number, and a model of so many layers would be built
            raise ValueError(f"the checkpoint has {len(numbers)} layers of {level}, numbered up to {max(numbers)}")
        return len(numbers)

    def positions(self, given: str | None) -> str:
        """Return how positions enter: "learned" if there is a table, else what is given or usual with the mixer."""
        if "embed_pos.embedding_weight" in self.tensors:
            if given not in (None, "learned"):
                raise ValueError(f"positions={given!r}, but the checkpoint has learned positions: leave positions out")
            return "learned"
        if given == "learned":
            raise ValueError(self._missing("embed_pos.embedding_weight"))
        return given or ("rope" if self.mixer == "attention" else "none")

    def puzzle_table(self) -> tuple[int, int | None]:
        """Return the number of puzzle vectors and their length; (0, None) without a table."""
        if "puzzle_emb.weights" not in self.tensors:
            return 0, None
        return self._matrix("puzzle_emb.weights")

    def puzzle_tokens(self, seq_len: int | None, published: int) -> int:
        """Return the number of positions before the sequence.

        Args:
            seq_len: Length of the sequence, if known.
            published: What the published configuration says, 0 for as many as a puzzle's vector fills.
        """
        num_puzzles, size = self.puzzle_table()
        if not num_puzzles or size is None:
            return 0
        filled = -(-size // self.hidden_size)
        total = self._num_positions()
        if total is not None and seq_len is not None:
            return total - seq_len
        tokens = max(published, filled)
        return tokens if total is None or total > tokens else filled

    def seq_len(self, given: int | None, puzzle_tokens: int) -> int | None:
        """Return the number of tokens, None where no weight depends on it and none is given."""
        total = self._num_positions()
        if total is None:
            return given
        if total <= puzzle_tokens or given not in (None, total - puzzle_tokens):
            raise ValueError(
                f"the checkpoint has weights for {total} positions, which cannot be seq_len={given} tokens and "
                f"{puzzle_tokens} puzzle tokens: pass the seq_len and puzzle_tokens it was trained with"
            )
        return total - puzzle_tokens

    def expansion(self) -> float:
        """Return an expansion that gives the inner widths of all SwiGLUs.

        Many do, as widths are rounded up; 4 if it is among them, else the largest.
        """
        widths = []  # (size, inner) of each SwiGLU
        for name in ("L_level.layers.0.mlp", "L_level.layers.0.mlp_t"):
            full_name = f"{name}.gate_up_proj.weight"
            if full_name in self.tensors or name.endswith(".mlp"):
                double, size = self._matrix(full_name)
                widths.append((size, double // 2))
        for candidate in (4.0, min(1.5 * inner / size for size, inner in widths)):
            if all(swiglu_inner_size(size, candidate) == inner for size, inner in widths):
                return candidate
        raise ValueError(
            f"no expansion gives SwiGLUs of (size, inner width) {widths}: the official code makes the inner width "
            "round(2/3 expansion size), rounded up to a multiple of 256"
        )

    def _num_positions(self) -> int | None:
        if "embed_pos.embedding_weight" in self.tensors:
            return self._matrix("embed_pos.embedding_weight")[0]
        if self.mixer == "mlp":
            return self._matrix("L_level.layers.0.mlp_t.gate_up_proj.weight")[1]
        return None

    def _matrix(self, name: str) -> tuple[int, int]:
        if name not in self.tensors:
            raise ValueError(self._missing(name))
        shape = tuple(self.tensors[name].shape)
        if len(shape) != 2:
            raise ValueError(f"{name} must be a matrix, its shape is {shape}")
        return shape

    def _missing(self, name: str) -> str:
        return f"the checkpoint has no {name!r}; {_nearest(name, self.tensors)}"


def load_official(model: nn.Module, weights: OfficialWeights) -> None:
    """Copy the weights into a model of this package, every one of them, and nothing else.

    Args:
        model: Built with the sizes that `weights` tells.
        weights: The checkpoint.

    Raises:
        ValueError: A name is missing, unknown or of the wrong shape.
    """
    own = model.state_dict()
    names = {name: _official_name(name) for name in own}
    unknown = sorted(set(weights.tensors) - set(names.values()))
    missing = sorted(set(names.values()) - set(weights.tensors))
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"the checkpoint has no {missing[0]!r}{others}; {_nearest(missing[0], weights.tensors)}")
    if unknown:
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ValueError(
            f"the checkpoint has {unknown[0]!r}{others}, which a {type(model).__name__} of its sizes has no place for; "
            f"{_nearest(unknown[0], names.values())}"
        )
    for name, tensor in own.items():
        source = weights.tensors[names[name]]
        if source.shape != tensor.shape:
            raise ValueError(
                f"{names[name]!r} has shape {tuple(source.shape)}, a {type(model).__name__} of the checkpoint's other "
                f"sizes needs {tuple(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights.tensors[names[name]])


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _official_name(name: str) -> str:
    if name in _PARTS:
        return _PARTS[name]
    match = re.fullmatch(r"(.+)\.blocks\.(\d+)\.(.+)\.weight", name)
    assert match is not None, name
    net, number, part = match.groups()
    return f"{_NETS[net]}.layers.{number}.{_BLOCK_PARTS[part]}.weight"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"nearest names: {', '.join(close)}" if close else f"its names begin with {sorted(names)[:3]}"
