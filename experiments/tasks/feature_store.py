"""Vectors of texts, encoded once and kept: shards of safetensors, each with a hash of what made it and of itself.

A shard is written whole or not at all, so that encoding goes on after a kill from the first one that is missing.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from loopgrad.analysis.files import replace_bytes
from loopgrad.analysis.regular_files import open_regular
from loopgrad.experiments.tasks.text_encoder import Encoder

VERSION = "features 1"
AT_ONCE = 512  # texts of a shard
MOST_TEXTS, MOST_BYTES = 2**20, 2**33  # of all vectors


@dataclass(frozen=True, eq=False)
class Features:
    """The vectors of some texts.

    Attributes:
        rows: Vectors of all texts, one after the other, (rows, size) float32.
        counts: How many each text has, (texts,) int64.
        digest: Hash of the vectors.
    """

    rows: np.ndarray
    counts: np.ndarray
    digest: str

    @property
    def starts(self) -> np.ndarray:
        """First row of each text."""
        return self.counts.cumsum() - self.counts


class _Damaged(ValueError):
    """A shard that is not whole."""


def features_of(texts: Sequence[str], unit: str, encoder: Encoder, folder: str | Path | None = None) -> Features:
    """Return the vectors of texts, those that are kept and newly encoded ones, which are kept.

    Args:
        texts: Each once.
        unit: "sentence" or "token".
        encoder: What encodes; not asked for anything that is kept.
        folder: Where shards are; None for a folder named by the hash of what makes them, below $XDG_CACHE_HOME/loopgrad
            or ~/.cache/loopgrad.

    Raises:
        ValueError: The folder holds vectors of other texts, of another encoder or unit, or damaged ones; the encoder
            is missing and not all are kept; a text is too long. What was encoded before stays.
    """
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{len(texts)} texts, and at most {MOST_TEXTS} are encoded")
    made = {
        "version": VERSION,
        "encoder": encoder.name,
        "weights": encoder.digest(),
        "unit": unit,
        "texts": _digest_of(texts),
    }
    own = folder is None
    place = _cache(made) if folder is None else Path(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place}: features are kept in a folder, and this is none")
    starts = range(0, len(texts), AT_ONCE)
    shards = {start: place / f"{start // AT_ONCE:05d}.safetensors" for start in starts}
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for start, path in shards.items():
        if path.exists():
            try:
                found[start] = _read(path, {**made, "shard": start}, len(texts[start : start + AT_ONCE]))
            except _Damaged:
                if not own:
                    raise  # it may be all that somebody has
    if missing := [start for start in starts if start not in found]:
        if made["weights"] is None:
            kept = f"; {place} holds {len(found)} of {len(shards)} shards" if folder else ""
            raise ValueError(f"features of {encoder.name} need it: pip install 'loopgrad[text]'{kept}")
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
            job = bar.add_task(f"Encoding {len(texts)} texts by {encoder.name}", total=len(starts))
            bar.advance(job, len(found))
            for start in missing:
                part = texts[start : start + AT_ONCE]
                found[start] = _encoded(part, unit, encoder)
                _write(shards[start], *found[start], {**made, "shard": start})
                bar.advance(job)
    return _joined([found[start] for start in starts], place)


def _cache(made: dict[str, str | None]) -> Path:
    told = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(told) if Path(told).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise ValueError("features: there is no home to keep them in: give a folder by task.features=") from None
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]
    return root / "loopgrad" / "features" / name


def _digest_of(texts: Sequence[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        coded = text.encode()
        found.update(len(coded).to_bytes(8, "little") + coded)
    return found.hexdigest()


def _encoded(texts: Sequence[str], unit: str, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    vectors = encoder.encode(texts, unit)
    for text, own in zip(texts, vectors, strict=True):
        if own.ndim != 2 or not len(own) or own.shape[1] != vectors[0].shape[1] or not np.isfinite(own).all():
            raise ValueError(f"{encoder.name} gives no vectors, or none that are finite, for {text[:60]!r}")
    rows = np.concatenate(vectors).astype(np.float32)
    return rows, np.array([len(own) for own in vectors], dtype=np.int64)


def _write(path: Path, rows: np.ndarray, counts: np.ndarray, made: dict[str, str | int | None]) -> None:
    told = {"made": json.dumps(made, sort_keys=True), "sha256": _digest(rows, counts)}
    content = save({"rows": np.ascontiguousarray(rows), "counts": counts}, metadata=told)
    try:
        replace_bytes(path, content)
    except OSError as error:
        raise ValueError(f"{path}: features cannot be kept: {error.strerror}: give task.features=") from error


def _read(path: Path, made: dict[str, str | int | None], texts: int) -> tuple[np.ndarray, np.ndarray]:
    open_regular(path, MOST_BYTES).close()  # no pipe, no device
    try:
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            _check_made(path, told.get("made", ""), made)
            if set(file.keys()) != {"rows", "counts"}:
                raise _Damaged(f"{path}: holds other tensors than rows and counts: remove it")
            shapes = [file.get_slice(name).get_shape() for name in ("rows", "counts")]
            if len(shapes[0]) != 2 or shapes[1] != [texts]:
                raise _Damaged(f"{path}: its shapes {shapes} are not those of vectors of {texts} texts: remove it")
            rows, counts = file.get_tensor("rows"), file.get_tensor("counts")
    except (SafetensorError, TypeError, AttributeError, KeyError, OSError) as error:
        raise _Damaged(f"{path}: is cut off or damaged: remove it, and it is encoded anew") from error
    fits = rows.dtype == np.float32 and counts.dtype == np.int64
    if not fits or told.get("sha256") != _digest(rows, counts) or (counts < 1).any() or counts.sum() != len(rows):
        raise _Damaged(f"{path}: its hash does not fit its vectors: remove it, and it is encoded anew")
    if not np.isfinite(rows).all():
        raise _Damaged(f"{path}: holds vectors that are not finite: remove it, and it is encoded anew")
    return rows, counts


def _check_made(path: Path, told: str, made: dict[str, str | int | None]) -> None:
    try:
        stated = json.loads(told)
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise _Damaged(f"{path}: does not say what made its vectors: remove it")
    for key, value in made.items():
        if stated.get(key) != value and not (key == "weights" and value is None):
            what = {"encoder": "another encoder", "weights": "other weights of the encoder", "unit": "another unit"}
            of = what.get(key, "other texts" if key == "texts" else f"another {key}")
            raise ValueError(f"{path}: holds vectors of {of}: give another folder by task.features=, or remove it")


def _digest(rows: np.ndarray, counts: np.ndarray) -> str:
    found = hashlib.sha256(f"{rows.dtype} {rows.shape} {counts.dtype} {counts.shape}\n".encode())
    for array in (rows, counts):
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]], place: Path) -> Features:
    sizes = {rows.shape[1] for rows, _ in parts}
    if len(sizes) != 1:
        raise ValueError(f"{place}: holds vectors of {sorted(sizes)} numbers: remove it")
    rows, counts = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return Features(rows, counts, _digest(rows, counts))
