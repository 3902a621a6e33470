"""Records are strict JSON, written whole or not at all; what is malformed is refused with file and line."""

import json
import math
import os
from typing import TypedDict

import pytest

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import lines


class OfOne(TypedDict):
    a: int


RECORD = {"name": "a b", "value": 1.5, "none": None, "list": [1, {"x": True}], "text": "\u2028 \n ü"}


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_at_any_depth():
    line = records.line({"a": math.nan, "b": [math.inf, (1.0, -math.inf)], "c": {"d": math.nan}, 5: 1})
    assert strict(line) == {"a": None, "b": [None, [1.0, None]], "c": {"d": None}, "5": 1}


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    records.write(path, [RECORD, {"b": 2}])
    assert records.read(path) == [RECORD, {"b": 2}]
    assert path.read_bytes().count(b"\n") == 2
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert records.read(path) == [RECORD, {"b": 2}]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "records.jsonl"
    records.write(path, [{"old": 1}])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        records.write(path, [{"new": 2}])
    assert records.read(path) == [{"old": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    records.write(path, [{"old": 1}])
    with pytest.raises(TypeError):
        records.write(path, [{"new": 2}, {"bad": object()}])
    assert records.read(path) == [{"old": 1}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', "line 3: a record must be a JSON object"),
        (b'{"a": NaN}\n', "line 1: not JSON: NaN"),
        (b'{"a": 1}\n{"a": "x"}\n', 'line 2: a cannot be "x"'),
        (b'{"a": 1}\n{"b": 1}\n', "line 2: the record lacks a"),
        (b'{"a": true}\n', "line 1: a cannot be true"),
        (b"\n\n", "holds no records"),
        (b'{"a": 1}\n' + b"[" * 100_000, "line 2: not JSON: nested too deeply"),
        (b'{"a": 1, "b": 1e999}', "line 1: the number 1e999 is beyond what a float holds"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: the integer 99999999999999999999... has 5000 digits"),
        (b'{"b": {"c": 1, "a": 1, "c": 2}, "a": 1}', "line 1: says c twice"),
        (b'{"a": 1}\r\r{"a": null}', "line 3: a cannot be null: must be an integer"),
        (b"\xff\xfe\n", "line 1: not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_malformed_is_refused_with_file_line_and_reason(tmp_path, content, reason):
    path = tmp_path / "records.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        records.read(path, OfOne)
    assert str(caught.value).startswith(str(path)) and reason in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 1, "b": "' + "x" * 1000 + '"}', "1017 bytes long, and at most 1000 are read"),
        ('{"a": 1}\n{"a": 1, "b": [' + "1," * 60 + "1]}", "line 2: of more than 50 values no report is made"),
        (
            '{"a": 1}\n{"a": 1, "b": [' + "[]," * 20 + "1]}",
            "line 2: of more than 20 lists and objects no report is made",
        ),
        ('{"a": 1}\n' * 4, "line 4: of more than 3 records no report"),
    ],
)
def test_more_than_a_report_is_made_of_is_refused(tmp_path, monkeypatch, content, reason):
    for name, most in {"MOST_BYTES": 1000, "MOST_RECORDS": 3, "MOST_PARTS": 20, "MOST_VALUES": 50}.items():
        monkeypatch.setattr(lines, name, most)
    path = tmp_path / "records.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        records.read(path, OfOne)
    if "bytes" not in reason:
        assert records.read(path)[0]["a"] == records.first(path)["a"] == 1


def test_a_log_is_read_up_to_a_step_or_to_the_line_that_was_cut_short(tmp_path):
    path = tmp_path / "train.jsonl"
    assert records.read_log(path, 3) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert records.read_log(path, 2) == [{"step": 1}, {"step": 2}]
    assert records.read_log(path, 9) == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "7",
        '{"loss": 1}',
        '{"step": "2"}',
        '{"step": 2.0}',
        '{"step": 3}',
        '{"step": 1}',
        "[" * 5000,
        "\x00" * 64,
    ],
)
def test_a_log_is_read_to_the_first_line_that_is_not_that_of_the_next_step(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    assert records.read_log(path, 3) == [{"step": 1}]
    assert records.read_log(path, 3, frozenset({"loss"})) == []


def test_a_pipe_is_not_read_as_a_log(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(ConfigError, match="train.jsonl: is no file: remove it"):
        records.read_log(tmp_path / "train.jsonl", 3)


@pytest.mark.parametrize("value", ['"evil"', "[1]", '{"a": 1}', "true", "[" * 600 + "]" * 600])
def test_what_is_no_number_ends_a_log(tmp_path, value):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"step": 1, "loss": 0.5}}\n{{"step": 2, "loss": 0.5, "other": {value}}}\n')
    assert records.read_log(path, 2, frozenset({"loss"})) == [{"step": 1, "loss": 0.5}]
    path.write_text(f'{{"step": 1, "loss": {value}}}\n')
    assert records.read_log(path, 1, frozenset({"loss"})) == []
