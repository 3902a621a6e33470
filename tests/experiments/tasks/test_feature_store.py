"""Vectors are made once, kept by what made them, gone on with after a kill, and refused where that differs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loopgrad.experiments.tasks import feature_store
from loopgrad.experiments.tasks.feature_store import features_of
from loopgrad.experiments.tasks.text_encoder import FolderEncoder
from loopgrad.experiments.tasks.word_vectors import RandomWords

TEXTS = [f"text {'more ' * (i % 3)}{i}" for i in range(10)]


class Counting:
    """An encoder that counts what it encodes, and may be killed on the way, or not be there."""

    name = "counting"

    def __init__(self, weights="w1", stop_at=None):
        self.weights, self.stop_at, self.seen = weights, stop_at, []

    def digest(self):
        return self.weights

    def encode(self, texts, unit):
        for text in texts:
            if text == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(text)
        return [np.full((1 if unit == "sentence" else 1 + len(t) % 3, 4), len(t), dtype=np.float32) for t in texts]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(feature_store, "AT_ONCE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("unit", ["sentence", "token"])
@pytest.mark.parametrize("own", [None, "kept"])
def test_every_text_is_encoded_once_and_never_again(tmp_path, unit, own):
    folder = None if own is None else tmp_path / own
    encoder = Counting()
    first = features_of(TEXTS, unit, encoder, folder)
    assert encoder.seen == TEXTS
    again = features_of(TEXTS, unit, encoder, folder)
    assert encoder.seen == TEXTS  # by count
    wanted = encoder.encode(TEXTS, unit)
    for found in (first, again):
        assert found.counts.tolist() == [len(rows) for rows in wanted]
        assert np.array_equal(found.rows, np.concatenate(wanted))
        assert [found.rows[a : a + n].tolist() for a, n in zip(found.starts, found.counts, strict=True)] == [
            rows.tolist() for rows in wanted
        ]
    assert first.digest == again.digest


def test_what_a_kill_has_left_is_gone_on_with(tmp_path):
    killed = Counting(stop_at=TEXTS[6])
    with pytest.raises(KeyboardInterrupt):
        features_of(TEXTS, "sentence", killed, tmp_path / "kept")
    assert [path.name for path in sorted((tmp_path / "kept").iterdir())] == ["00000.safetensors"]
    encoder = Counting()
    found = features_of(TEXTS, "sentence", encoder, tmp_path / "kept")
    assert encoder.seen == TEXTS[4:]
    assert found.digest == features_of(TEXTS, "sentence", Counting(), tmp_path / "other").digest


def test_other_texts_weights_and_units_have_another_place_in_the_cache(tmp_path):
    encoder = Counting()
    features_of(TEXTS, "sentence", encoder)
    for texts, unit, weights in ((TEXTS[::-1], "sentence", "w1"), (TEXTS, "token", "w1"), (TEXTS, "sentence", "w2")):
        other = Counting(weights)
        features_of(texts, unit, other)
        assert other.seen == list(texts)
    assert len(list((tmp_path / "cache" / "loopgrad" / "features").iterdir())) == 4


@pytest.mark.parametrize(
    "texts, unit, encoder, said",
    [
        (TEXTS[::-1], "sentence", Counting(), "other texts"),
        (TEXTS[:9], "sentence", Counting(), "other texts"),
        (TEXTS, "token", Counting(), "another unit"),
        (TEXTS, "sentence", Counting("w2"), "other weights of the encoder"),
        (TEXTS, "sentence", RandomWords(4), "another encoder"),
    ],
)
def test_vectors_that_something_else_made_are_refused_and_stay(tmp_path, texts, unit, encoder, said):
    features_of(TEXTS, "sentence", Counting(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError) as caught:
        features_of(texts, unit, encoder, tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_an_encoder_that_is_not_there_is_not_needed_where_all_is_kept(tmp_path):
    made = features_of(TEXTS, "sentence", Counting(), tmp_path)
    assert features_of(TEXTS, "sentence", Counting(weights=None), tmp_path).digest == made.digest
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pip install 'loopgrad\[text\]'; .* holds 2 of 3 shards"):
        features_of(TEXTS, "sentence", Counting(weights=None), tmp_path)


def rewritten(path: Path, change) -> None:
    with safe_open(path, "numpy") as file:
        told = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, told)
    save_file(tensors, path, metadata=told)


def not_finite(tensors, told):
    tensors["rows"][0, 0] = np.nan
    told["sha256"] = feature_store._digest(tensors["rows"], tensors["counts"])


def of_shape(tensors, told):
    tensors["rows"] = tensors["rows"].reshape(-1)


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no tensors\n" * 100),
    "another number": lambda path: rewritten(path, lambda t, m: t["rows"].__setitem__((0, 0), 7.5)),
    "not finite": lambda path: rewritten(path, lambda t, m: t["rows"].__setitem__((0, 0), np.nan)),
    "not finite, with its hash": lambda path: rewritten(path, not_finite),
    "shape": lambda path: rewritten(path, of_shape),
    "fewer texts": lambda path: rewritten(path, lambda t, m: t.update(counts=t["counts"][:2].copy())),
    "counts": lambda path: rewritten(path, lambda t, m: t["counts"].__setitem__(0, 3)),
    "dtype": lambda path: rewritten(path, lambda t, m: t.update(rows=t["rows"].astype(np.float64))),
    "names": lambda path: rewritten(path, lambda t, m: t.update(more=t["rows"].copy())),
    "no hash": lambda path: rewritten(path, lambda t, m: m.pop("sha256")),
    "says nothing": lambda path: rewritten(path, lambda t, m: m.pop("made")),
    "says no json": lambda path: rewritten(path, lambda t, m: m.update(made="[" * 100_000)),
    "says a list": lambda path: rewritten(path, lambda t, m: m.update(made=json.dumps([1]))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_refused_where_the_user_keeps_it_and_made_anew_in_the_cache(tmp_path, kind):
    features_of(TEXTS, "sentence", Counting(), tmp_path)
    DAMAGE[kind](tmp_path / "00001.safetensors")
    with pytest.raises(ValueError, match="00001.safetensors: .*remove it") as caught:
        features_of(TEXTS, "sentence", Counting(), tmp_path)
    assert "\n" not in str(caught.value)
    made = features_of(TEXTS, "sentence", Counting())
    (folder,) = (tmp_path / "cache" / "loopgrad" / "features").iterdir()
    DAMAGE[kind](folder / "00001.safetensors")
    encoder = Counting()
    assert features_of(TEXTS, "sentence", encoder).digest == made.digest
    assert encoder.seen == TEXTS[4:8]


def test_pipes_and_files_in_place_of_the_folder_are_refused(tmp_path):
    os.mkfifo(tmp_path / "00000.safetensors")
    with pytest.raises(ValueError, match="a pipe, not a file"):
        features_of(TEXTS, "sentence", Counting(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="kept in a folder, and this is none"):
        features_of(TEXTS, "sentence", Counting(), tmp_path / "file")


def test_vectors_of_no_use_are_refused_before_anything_is_written(tmp_path):
    class Broken(Counting):
        def encode(self, texts, unit):
            return [np.full((1, 4), np.nan, dtype=np.float32) for _ in texts]

    with pytest.raises(ValueError, match="gives no vectors, or none that are finite, for 'text 0'"):
        features_of(TEXTS, "sentence", Broken(), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_random_words_are_a_function_of_the_word_alone():
    encoder = RandomWords(16)
    (ab,), (ba,) = (np.concatenate(encoder.encode([text], "sentence")) for text in ("Ann met Bob.", "bob met ann ."))
    assert np.allclose(ab, ba) and np.isclose(np.linalg.norm(ab), 1)
    words = encoder.encode(["Ann met Bob."], "token")[0]
    mean = words.mean(0) / np.linalg.norm(words.mean(0))
    assert words.shape == (4, 16) and np.allclose(mean, ab, atol=1e-6)
    assert encoder.digest() != RandomWords(8).digest()
    with pytest.raises(ValueError, match="a text without words"):
        encoder.encode([" "], "sentence")


def test_a_folder_that_is_no_encoder_and_a_missing_package_are_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no encoder of text: it lacks config.json, model.safetensors, tokenizer.json"):
        FolderEncoder(str(tmp_path)).digest()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="is no file of safetensors"):
        _ = FolderEncoder(str(tmp_path)).num_parameters
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = FolderEncoder()
    assert missing.digest() is None and missing.num_parameters == 0
    for encoder in (missing, FolderEncoder(str(tmp_path))):
        with pytest.raises(ValueError, match=r"pip install 'loopgrad\[text\]'"):
            encoder.encode(["a"], "sentence")
    with pytest.raises(ValueError, match=r"features of all-MiniLM-L6-v2 need it: pip install 'loopgrad\[text\]'"):
        features_of(TEXTS, "sentence", missing, tmp_path / "none")
    assert not (tmp_path / "none").exists()
