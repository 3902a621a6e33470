"""Reading and writing files of tensors: by their content whatever their name, whole or not at all, and never by code.

What torch.save writes is a zip archive; its checksums, which torch.load passes over, are checked before it is read.
A file of safetensors has no checksum of its own, so ours carry one in their metadata.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from loopgrad.experiments.endings import lacks_memory

CHECKSUM = "sha256"
_ZIP, _PICKLE, _LFS = b"PK\x03\x04", b"\x80", b"version https://git-lfs"


class Unreadable(ValueError):
    """A file that is not tensors, or not whole; the message says what it is, without its name."""


def read(path: Path) -> Any:
    """Return what a file of safetensors or of torch.save holds, on the CPU.

    Raises:
        Unreadable: It is neither, or damaged, or holds objects that only running their code could read.
    """
    try:
        if not path.is_file():  # a device or a pipe would be read for ever
            raise Unreadable("it is no regular file")
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise Unreadable(f"it cannot be opened: {error.strerror}") from error
    if head.startswith(_ZIP):
        _check_archive(path, size)
        return _unpickled(path)
    if head[4:9] == b"\0\0\0\0{":  # the length of a header, whose first byte may be that of a pickle
        return _safetensors(path)
    if head.startswith(_PICKLE):  # as torch.save wrote before there were archives
        return _unpickled(path)
    if head[8:9] == b"{" and not head.startswith(b"{"):
        return _safetensors(path)
    raise Unreadable(_guess(head))


def weight_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Return weights as the bytes of a file of safetensors with its checksum; the same for the same weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return safetensors_bytes(tensors, metadata={CHECKSUM: _digest(tensors)})


def check_dense(tensors: Any, name: str) -> dict[str, Tensor]:
    """Return tensors if they are a dict of names and ordinary tensors, each of which holds every number it shows.

    Raises:
        Unreadable: They are something else.
    """
    if not isinstance(tensors, dict) or not tensors:
        raise Unreadable(f"{name} is no dict of tensors")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise Unreadable(f"{name}[{str(key)[:80]!r}] is a {type(tensor).__name__}, not a tensor under its name")
        if reason := odd(tensor):
            raise Unreadable(f"{name}[{key[:80]!r}] {reason}")
    return tensors


def odd(tensor: Tensor) -> str:
    """Say why a tensor is none that a training run writes; "" where it is one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"is no dense tensor but {tensor.layout} on {tensor.device.type}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)} shows more numbers than it holds"
    return ""


def _check_archive(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("constants.pkl") for name in names):
                raise Unreadable("it is a program of TorchScript, not weights: save model.state_dict() alone")
            if not any(name.endswith("data.pkl") for name in names):
                numpy = any(name.endswith(".npy") for name in names)
                raise Unreadable(
                    "it is a file of numpy arrays (.npz)" if numpy else "it is a zip archive of other files"
                )
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > size or len(set(names)) < len(names):
                raise Unreadable("its archive is not as torch.save writes one")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, Unreadable) or lacks_memory(error):
            raise
        whole = "is damaged" if zipfile.is_zipfile(path) else "is cut off: not all of it was written or downloaded"
        raise Unreadable(f"it {whole}") from error
    if damaged is not None:
        raise Unreadable(f"it is damaged: the checksum of {damaged[:80]!r} does not fit its content")


def _unpickled(path: Path) -> Any:
    try:
        with open(path, "rb") as file:  # a name would make torch.load choose by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch advises to switch its guard off, which would run whatever the file says
        named = re.search(r"(?:GLOBAL|class|type|function) '?\"?([A-Za-z_][\w.]*\.[\w.]+)", str(error))
        what = f" ({named[1][:80]})" if named else ""
        raise Unreadable(
            f"it holds objects other than tensors{what}, which only running their code could read: save "
            "model.state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        if lacks_memory(error):
            raise
        raise Unreadable("it is damaged, or no file of torch.save") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        length = any(word in str(error) for word in ("covered", "length", "Buffer"))
        raise Unreadable("it is cut off, or longer than it says" if length else "its header is damaged") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:  # a dtype that torch does not have
        if lacks_memory(error):
            raise
        raise Unreadable("its header is damaged") from error
    if told is not None and told != _digest(tensors):
        raise Unreadable("it is damaged: its checksum does not fit its tensors")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _guess(head: bytes) -> str:
    """Say what a file is that is neither kind."""
    if not head:
        return "it is empty"
    if head.startswith(_LFS):
        return "it is a pointer of Git LFS and not the file that it stands for: fetch that with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page: the download did not give the file"
    if not head.strip(b"\0"):
        return "it is nothing but zeros"
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not a character that the first bytes cut in two
            return "it is neither of safetensors nor of torch.save"
    return "it is a text file"
