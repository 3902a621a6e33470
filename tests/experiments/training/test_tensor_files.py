"""Files of tensors: what is none is named in our words, what is damaged is refused or loaded as it was."""

import io
import random
import re
import zipfile

import numpy as np
import pytest
import torch
from hostile import Runs, calls, pickled, repacked
from safetensors.torch import save as plain_safetensors

from loopgrad.experiments.training import tensor_files
from loopgrad.experiments.training.tensor_files import Unreadable, check_dense, read, weight_bytes

WEIGHTS = {
    "a": torch.arange(600.0).reshape(20, 30),
    "b": torch.randn(40, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "n": torch.tensor(7),
}


class Foreign(torch.nn.Module):
    pass


def archive(content=WEIGHTS) -> bytes:
    return pickled(content, "archive")


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    return buffer.getvalue()


def zipped(**entries: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in entries.items():
            file.writestr(name, text)
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "it is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "a web page: the download"),
    "text": ("Gewichte: \u00e4\n".encode(), "it is a text file"),
    "json": (b'{"weights": 3}', "it is a text file"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "noise": (bytes(range(255, 0, -1)) * 3, "neither of safetensors nor of torch.save"),
    "npz": (npz(), "numpy arrays"),
    "zip": (zipped(a="b"), "zip archive of other files"),
    "script": (zipped(**{"m/data.pkl": "", "m/constants.pkl": ""}), "TorchScript"),
    "cut": (archive()[:2000], "it is cut off"),
    "cut safetensors": (weight_bytes(WEIGHTS)[:2000], "it is cut off"),
    "module": (archive(torch.nn.Linear(2, 2)), r"objects other than tensors.*: save model\.state_dict\(\) alone"),
    "own module": (archive(Foreign()), r"objects other than tensors.*: save model\.state_dict\(\) alone"),
    "compressed": (repacked(archive(), {}, zipfile.ZIP_DEFLATED), "not as torch.save writes"),
}


@pytest.mark.parametrize(("content", "words"), KINDS.values(), ids=KINDS)
def test_what_is_no_file_of_tensors_is_named(tmp_path, content, words):
    path = tmp_path / "w"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=words) as caught:
        read(path)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    (tmp_path / "device").symlink_to("/dev/zero")
    __import__("os").mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "device", tmp_path / "pipe", tmp_path, tmp_path / "nothing"):
        with pytest.raises(Unreadable, match="no regular file"):
            read(path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "step_12"])
@pytest.mark.parametrize(
    "content", [archive(), pickled(WEIGHTS, "legacy"), weight_bytes(WEIGHTS)], ids="zip old safe".split()
)
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = check_dense(read(tmp_path / name), "it")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], WEIGHTS[key]) and found[key].dtype == WEIGHTS[key].dtype for key in found)


@pytest.mark.parametrize("way", ["plain", "archive", "legacy"])
@pytest.mark.parametrize("kind", ["exec", "eval", "open", "system", "popen", "save"])
def test_no_pickle_runs(tmp_path, way, kind):
    canary = tmp_path / "canary"
    (tmp_path / "w").write_bytes(pickled({"a": calls(canary)[kind]}, way))
    with pytest.raises(Unreadable, match="objects other than tensors|damaged") as caught:
        read(tmp_path / "w")
    assert not canary.exists() and "weights_only" not in str(caught.value)
    assert isinstance(calls(canary)[kind], Runs)


def altered(content: bytes, count: int, seed: int):
    """The content with a few bytes zeroed or flipped, at offsets spread over it and at both ends."""
    rng = random.Random(seed)
    for i in range(count):
        at = [0, len(content) - 64, rng.randrange(len(content))][min(i, 2)]
        length = rng.choice([1, 64]) if i > 2 else 64
        changed = bytearray(content)
        flip = rng.randrange(2)
        for j in range(at, min(at + length, len(content))):
            changed[j] = changed[j] ^ 0xFF if flip else 0
        if bytes(changed) != content:
            yield bytes(changed)


@pytest.mark.parametrize("write", [archive, lambda: weight_bytes(WEIGHTS)], ids=["torch", "safetensors"])
def test_bytes_that_were_changed_are_refused_or_change_nothing(tmp_path, write):
    path, outcomes = tmp_path / "w", {"refused": 0, "as it was": 0}
    for changed in altered(write(), 150, seed=0):
        path.write_bytes(changed)
        try:
            found = check_dense(read(path), "it")
        except Unreadable:
            outcomes["refused"] += 1
            continue
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[key], WEIGHTS[key]) and found[key].dtype == WEIGHTS[key].dtype for key in found)
        outcomes["as it was"] += 1
    print(outcomes)
    assert outcomes["refused"] > 100


def test_the_same_weights_are_the_same_bytes_and_carry_their_checksum(tmp_path):
    other = dict(reversed([(name, tensor.clone()) for name, tensor in WEIGHTS.items()]))
    assert weight_bytes(WEIGHTS) == weight_bytes(other)
    assert re.search(rb'"__metadata__":\{"sha256":"[0-9a-f]{64}"\}', weight_bytes(WEIGHTS)[:200])
    (tmp_path / "w").write_bytes(plain_safetensors(WEIGHTS))  # of another library or time: without a checksum
    assert read(tmp_path / "w").keys() == WEIGHTS.keys()


def test_a_tensor_that_shows_more_than_it_holds_is_refused(tmp_path):
    stretched = {"a": torch.zeros(1).expand(10**12)}
    (tmp_path / "w").write_bytes(archive(stretched))
    with pytest.raises(Unreadable, match="shows more numbers than it holds"):
        check_dense(read(tmp_path / "w"), "it")
    sparse = {"a": torch.eye(3).to_sparse()}
    with pytest.raises(Unreadable, match="no dense tensor"):
        check_dense(sparse, "it")
    for wrong in ({}, [torch.zeros(1)], {"a": 3}, {3: torch.zeros(1)}, None):
        with pytest.raises(Unreadable):
            check_dense(wrong, "it")


def test_a_checksum_is_over_names_shapes_and_types_too():
    one, digest = torch.arange(4, dtype=torch.int32), tensor_files._digest
    of = {"a": one}
    others = [{"b": one}, {"a": one.reshape(2, 2)}, {"a": one.view(torch.float32)}, {"a": one, "b": one}]
    assert len({digest(it) for it in [of, *others]}) == 5


def test_weights_are_read_whatever_the_length_of_their_header(tmp_path):
    """One length in 32 begins with the byte that a pickle begins with."""
    path, first = tmp_path / "weights.safetensors", set()
    for length in range(1, 280):
        stored = weight_bytes({"w" * length: torch.ones(2)})
        path.write_bytes(stored)
        assert torch.equal(read(path)["w" * length], torch.ones(2))
        first.add(stored[0])
    assert 0x80 in first and len(first) > 30


@pytest.mark.parametrize("kind", ["archive", "safetensors"])
def test_a_lack_of_memory_is_no_damage_of_the_file(tmp_path, monkeypatch, kind):
    path = tmp_path / "weights"
    path.write_bytes(archive() if kind == "archive" else plain_safetensors(WEIGHTS))

    def short(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(torch, "load", short)
    monkeypatch.setattr(tensor_files, "safe_open", short)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read(path)
