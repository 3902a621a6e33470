"""Files of bAbI and CLUTRR beside parsers by hand and published counts; what is malformed is refused by line."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest
import story_files

from loopgrad.experiments.tasks.babi_files import babi_file, read_babi
from loopgrad.experiments.tasks.clutrr_files import clutrr_file, read_clutrr

PUBLISHED = Path(os.environ.get("LOOPGRAD_STORIES", "nowhere"))  # a folder with babi/ and clutrr/ in it
BABI = [2, 15, 16, 17, 18, 19]

TWO = """1 Mary got the milk there.
2 John moved to the bedroom.
3 Where is the milk? \tbedroom\t1 2
4 John left.
5 Where is John?\thall,way\t4
1 Ann sat.
2 Who sat?\tAnn\t1
"""


def test_a_story_goes_on_through_its_questions(tmp_path):
    path = tmp_path / "qa2_two_test.txt"
    path.write_text(TWO)
    first, second, third = read_babi(path, 2)
    assert first.statements == ("Mary got the milk there.", "John moved to the bedroom.")
    assert (first.question, first.answer, first.hops) == ("Where is the milk?", ("bedroom",), "2 facts, 2 back")
    assert second.statements == (*first.statements, "John left.")
    assert (second.answer, second.hops) == (("hall", "way"), "1 facts, 1 back")
    assert (third.statements, third.question) == (("Ann sat.",), "Who sat?")
    assert babi_file(tmp_path, 2, "test") == path


@pytest.mark.parametrize(
    "back, named", [(1, "1"), (2, "2"), (3, "3-4"), (4, "3-4"), (5, "5-8"), (8, "5-8"), (9, "9-16")]
)
def test_how_far_back_the_first_fact_lies_is_a_range_that_doubles(tmp_path, back, named):
    path = tmp_path / "qa2.txt"
    lines = [f"{i + 1} Line {i}." for i in range(back + 1)]
    path.write_text("\n".join([*lines, f"{back + 2} What?\tyes\t2"]))
    assert read_babi(path, 2)[0].hops == f"1 facts, {named} back"


def test_files_of_our_own_make_are_read_as_by_hand(tmp_path):
    path = babi_file(story_files.babi_19(tmp_path), 19, "train")
    found, wanted = read_babi(path, 19), story_files.by_hand(path)
    assert [(list(s.statements), s.question, ",".join(s.answer)) for s in found] == [it[:3] for it in wanted]
    assert {story.hops for story in found} == {"2 moves"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "the file holds no question"),
        ("1 Mary sat.\n", "the file holds no question"),
        ("Mary sat.\n", "line 1: begins with no number"),
        ("1 Mary sat.\n3 Who?\tMary\t1\n", "line 2: number 3 follows 1"),
        ("2 Mary sat.\n", "line 1: number 2 follows 0"),
        ("1 Who?\tMary\t1\n", "line 1: a question without any statement before it"),
        ("1 Mary sat.\n2 Who?\t\t1\n", "line 2: an empty answer"),
        ("1 Mary sat.\n2 Who?\tMary\n", "line 2: expected question<TAB>answer"),
        ("1 Mary sat.\n2 Who?\tMary\t2\n", "line 2: expected question<TAB>answer"),
        ("1 Mary sat.\n2 Who?\tMary\tone\n", "line 2: expected question<TAB>answer"),
        ("1 Mary sat.\n2 Who?\tMary\t1\t1\n", "line 2: expected question<TAB>answer"),
        (f"1 {'a' * 5000}\n2 Who?\tMary\t1\n", "line 2: a text of more than 4000 characters"),
        (f"1 {'a' * 200_000}\n", "line 1: longer than 100000 characters"),
        ("1 Mary\x00 sat.\n2 Who?\tMary\t\u0661\n", "line 2: expected"),
    ],
)
def test_a_malformed_file_of_babi_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "qa2.txt"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_babi(path, 2)
    assert str(caught.value).startswith(str(path)) and said in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_the_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        babi_file(tmp_path / "none", 2, "train")
    with pytest.raises(ValueError, match="holds 0 files qa2_"):
        babi_file(tmp_path, 2, "train")
    for name in ("a", "b"):
        (tmp_path / f"qa2_{name}_train.txt").touch()
    with pytest.raises(ValueError, match="holds 2 files qa2_"):
        babi_file(tmp_path, 2, "train")
    (tmp_path / "gen_x_validation.csv").touch()
    with pytest.raises(ValueError, match="holds no gen_x_train.csv: of this name it holds validation"):
        clutrr_file(tmp_path, "gen_x", "train")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "qa2_pipe_train.txt")
    with pytest.raises(ValueError, match="a pipe, not a file"):
        read_babi(tmp_path / "qa2_pipe_train.txt", 2)
    with pytest.raises(ValueError, match="a pipe, not a file"):
        read_clutrr(tmp_path / "qa2_pipe_train.txt")


HEADER = "id,story,query,target_text,task_name"
ROW = "1,[Ann] has a son [Bob]. He is  nice!  \"So\" [Bob] said.,\"('Ann', 'Bob')\",son,task_1.2"


def test_a_story_of_clutrr_is_its_sentences_without_brackets(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text(f"{HEADER}\n{ROW}\n")
    (story,) = read_clutrr(path)
    assert story.statements == ("Ann has a son Bob.", "He is nice!", '"So" Bob said.')
    assert (story.question, story.answer, story.hops) == ("How is Bob related to Ann?", ("son",), "k=2")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "line 1: the header must name the column 'story' once"),
        ("id,story,query,target_text\n", "the header must name the column 'task_name' once"),
        (f"{HEADER}\n", "a header and no story"),
        (f"{HEADER}\n1,2,3\n", "line 2: 3 fields where the header names 5"),
        (f"{HEADER}\n1,Ann.,__import__('os'),son,task_1.2\n", "line 2: query must be two names"),
        (f"{HEADER}\n1,Ann.,\"('Ann', 'Bob')\",son,two\n", "line 2: task_name must be such as task_1.3"),
        (f"{HEADER}\n1, ,\"('Ann', 'Bob')\",son,task_1.2\n", "line 2: a question without any statement"),
        (f"{HEADER}\n1,Ann.,\"('Ann', 'Bob')\",,task_1.2\n", "line 2: an empty answer"),
        (f'{HEADER}\n1,"Ann.', "line 2: not a CSV row"),
    ],
)
def test_a_malformed_file_of_clutrr_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_clutrr(path)
    assert str(caught.value).startswith(str(path)) and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="LOOPGRAD_STORIES names no folder")
@pytest.mark.parametrize("number", BABI)
@pytest.mark.parametrize("part, count", [("train", 10_000), ("test", 1_000)])
def test_the_published_files_of_babi_are_read_whole(number, part, count):
    path = babi_file(PUBLISHED / "babi", number, part)
    found, wanted = read_babi(path, number), story_files.by_hand(path)
    assert len(found) == count
    assert [(list(s.statements), s.question, ",".join(s.answer)) for s in found] == [it[:3] for it in wanted]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="LOOPGRAD_STORIES names no folder")
def test_the_published_files_of_clutrr_are_read_whole():
    # of the released file, counted by its column task_name
    hops = {2: 38, 3: 107, 4: 77, 5: 185, 6: 105, 7: 155, 8: 135, 9: 124, 10: 122}
    path = clutrr_file(PUBLISHED / "clutrr", "gen_train234_test2to10", "test")
    found = read_clutrr(path)
    assert Counter(story.hops for story in found) == {f"k={k}": count for k, count in hops.items()}
    with open(path, newline="") as file:
        for story, row in zip(found, csv.DictReader(file), strict=True):
            assert " ".join(story.statements).split() == row["story"].replace("[", "").replace("]", "").split()
            assert story.answer == (row["target_text"],)
    assert len({story.answer for story in found}) == 18
