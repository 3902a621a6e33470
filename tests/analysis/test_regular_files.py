"""Files are opened only if they are regular, and small enough; nothing is waited for."""

import os

import pytest

from loopgrad.analysis.regular_files import open_regular


def test_a_file_is_opened_and_so_is_one_that_a_link_leads_to(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name, 5) as file:
            assert file.read() == b"12345"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "cannot be read: a folder, not a file"),
        (os.mkfifo, "cannot be read: a pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: a device, not a file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
        (lambda path: path.write_bytes(b"123456"), "6 bytes long, and at most 5 are read"),
    ],
)
def test_anything_else_is_refused_by_its_path(tmp_path, make, reason):
    make(path := tmp_path / "it")
    with pytest.raises(ValueError) as caught:
        open_regular(path, 5)
    assert str(caught.value).startswith(f"{path}: {reason}")
