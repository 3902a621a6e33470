"""Configuration files of the user's own that mean more than they hold: refused before Hydra reads them."""

import pytest

from loopgrad.experiments.conf.own_files import check_folder
from loopgrad.experiments.errors import ConfigError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "its aliases stand for 1e+12 values"),
        ("a: &a [*a]", "refers to itself"),
        ("[" * 1500, "is nested too deeply"),
        ("a: [", "cannot be read"),
        ("a: \x00", "cannot be read"),
        ("# " + "x" * 2**20, "is larger than 1 MiB"),
    ],
    ids=["bomb", "in itself", "deep", "cut short", "control character", "large"],
)
def test_a_file_that_cannot_be_read_within_bounds_is_refused_by_its_name(tmp_path, refused_as_typed, text, reason):
    folder = tmp_path / "own" / "trainer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml: ") as caught:
        check_folder(tmp_path / "own")
    assert reason in str(caught.value)
    for place in (
        ()
        if reason == "is nested too deeply"
        else (["--config-dir", "own"], [f"hydra.searchpath=[file://{tmp_path}/own]"])
    ):
        assert reason in refused_as_typed("train", *place)


def test_ordinary_files_with_aliases_are_left_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "data.bin").write_bytes(b"\xff" * 100)
    check_folder(tmp_path)
    check_folder(tmp_path / "mine.yaml")
    check_folder(tmp_path / "missing")
