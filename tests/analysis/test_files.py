"""A file is written whole or not at all, in its own folder and no other."""

import os

import pytest

from loopgrad.analysis import files
from loopgrad.analysis.files import replace_all, replace_bytes, whole_name


def test_what_is_written_goes_through_no_link_and_leaves_nothing_else(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    place = tmp_path / "results"
    place.mkdir()
    for name in ("report.md", f".report.md.{os.getpid()}.part"):
        (place / name).symlink_to(precious)
    replace_bytes(place / "report.md", b"new")
    assert precious.read_text() == "precious" and [path.name for path in place.iterdir()] == ["report.md"]
    assert (place / "report.md").read_bytes() == b"new" and not (place / "report.md").is_symlink()


def test_content_is_on_the_disk_before_its_name_and_names_before_the_call_returns(tmp_path, monkeypatch):
    done = []

    def noted(name):
        call = getattr(os, name)

        def note(first, *args):
            done.append((name, os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(args[0])))
            return call(first, *args)

        return note

    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, noted(name))
    paths = [tmp_path / "new" / "deep" / name for name in ("a", "b")]
    replace_all(dict.fromkeys(paths, b""))
    parts = [str(path.with_name(f".{path.name}.{os.getpid()}.part")) for path in paths]
    assert done == [
        *[("fsync", str(folder)) for folder in (tmp_path, tmp_path / "new")],
        *[("fsync", part) for part in parts],
        *[("replace", str(path)) for path in paths],
        ("fsync", str(tmp_path / "new" / "deep")),
    ]


def test_of_files_that_belong_together_none_changes_where_one_cannot_be_written(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError) as caught:
        replace_all({tmp_path / "a": b"new", tmp_path / ("b" * 250): b"new"})  # too long with what a part adds
    assert caught.value.filename == str(tmp_path / ("b" * 250))
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["b", "file/b"])
def test_of_files_that_belong_together_none_changes_where_something_else_lies_there(tmp_path, name):
    (tmp_path / "a").write_text("old")
    (tmp_path / "file").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises((IsADirectoryError, FileExistsError, NotADirectoryError)) as caught:
        replace_all({tmp_path / "a": b"new", tmp_path / name: b"new"})
    assert caught.value.filename in (str(tmp_path / "b"), str(tmp_path / "file"))
    assert (tmp_path / "a").read_text() == "old" and {path.name for path in tmp_path.iterdir()} == {"a", "b", "file"}


def test_a_part_tells_of_which_file_it_is():
    assert whole_name(".checkpoint.pt.7") == whole_name(".checkpoint.pt.7.part") == "checkpoint.pt"
    assert [whole_name(name) for name in ("checkpoint.pt.7", ".a", "a.part", ".a.b.part")] == [None] * 4
