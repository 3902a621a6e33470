"""Text of others: lines with their numbers, and every kind of file that is not read."""

import os
import socket

import pytest

from loopgrad.analysis.text_lines import lines_of


def read(path, most_bytes=1000, most_in_line=100):
    return list(lines_of(path, most_bytes, most_in_line))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_come_with_their_numbers_whatever_ends_them(tmp_path, end):
    path = tmp_path / "a"
    path.write_bytes(("\ufeffone" + 2 * end + "zwei ü\u2028\ufeff" + end).encode())
    assert read(path) == [(1, "one"), (2, ""), (3, "zwei ü\u2028\ufeff")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\n\xff\n", "line 2: not UTF-8 text (invalid start byte at byte 0)"),
        (b"a\xed\xa0\x80", "line 1: not UTF-8 text"),
        ("a".encode("utf-16"), "line 1: not UTF-8 text but UTF-16"),
        (b"PK\x03\x04", "line 1: not UTF-8 text but a zip archive"),
        (b"x" * 101, "line 1: longer than 100 characters"),
        (b"x\r" * 501, "1002 bytes long, and at most 1000 are read"),
    ],
)
def test_what_is_no_text_or_too_long_is_refused(tmp_path, content, reason):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        read(path)
    assert str(refusal.value).startswith(str(path)) and reason in str(refusal.value)


def test_a_line_of_the_greatest_length_is_read(tmp_path):
    path = tmp_path / "a"
    for end in (b"", b"\n", b"\r\n"):
        path.write_bytes(b"x" * 100 + end)
        assert read(path) == [(1, "x" * 100)]


def test_a_file_that_grows_while_it_is_read_is_given_up(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x\n")
    with pytest.raises(ValueError, match="line 501: at most 1000 bytes are read"), open(path, "ab") as more:
        for _ in lines_of(path, 1000, 100):
            more.write(b"x\n")
            more.flush()


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "socket"))
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "link").symlink_to("/dev/zero")
        kinds = {"pipe": "a pipe, not a file", "socket": "a socket", "link": "a device", "loop": "symbolic links"}
        for name, reason in {**kinds, ".": "a folder", "missing": "No such file"}.items():
            with pytest.raises(ValueError, match=f"cannot be read: .*{reason}"):
                read(tmp_path / name)
