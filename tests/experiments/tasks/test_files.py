"""Puzzles from files: both layouts, and every way a file can be wrong."""

import gzip

import numpy as np
import pytest

from loopgrad.experiments.tasks import Sudoku, files
from loopgrad.experiments.tasks.files import read_puzzles
from loopgrad.experiments.tasks.sudoku_generator import make_puzzle
from loopgrad.experiments.tasks.symmetry import class_keys, random_symmetries

QUESTION = "1....3...4....2."
GRID = "1234341221434321"


def text_of(board):
    return "".join(map(str, board))


def made(size, count, low, high, seed=0):
    rng = np.random.default_rng(seed)
    return [make_puzzle(size, low, high, rng) for _ in range(count)]


def write(tmp_path, content, name="puzzles.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_lines_of_81_characters_are_read_and_solved(tmp_path):
    puzzles = made(9, 6, 28, 40)
    lines = [text_of(p.question) if i % 2 else text_of(p.question).replace("0", ".") for i, p in enumerate(puzzles)]
    content = "\ufeff# a comment\r\n" + "\r\n".join(lines) + "\r\n\r\n  \r\n"
    read = read_puzzles(write(tmp_path, content), 9)
    assert read.questions.tolist() == [list(p.question) for p in puzzles]
    assert read.answers.tolist() == [list(p.answer) for p in puzzles]


def test_the_published_csv_is_read_with_its_columns_in_any_order(tmp_path):
    puzzles = made(9, 4, 30, 40)
    header = "rating,answer,source,question\n"
    rows = [f'{7 * i},{text_of(p.answer)},"a, ""b""",{text_of(p.question)}' for i, p in enumerate(puzzles)]
    read = read_puzzles(write(tmp_path, header + "\n".join(rows)), 9)
    assert read.questions.tolist() == [list(p.question) for p in puzzles]
    assert read.answers.tolist() == [list(p.answer) for p in puzzles]
    assert read.ratings.tolist() == [0, 7, 14, 21]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no puzzle"),
        ("# only a comment\n\n", "holds no puzzle"),
        (f"{QUESTION}\n{QUESTION}.\n", "line 2: the puzzle has 17 characters, 16 needed for size 4"),
        ("." * 81, "line 1: the puzzle has 81 characters, 16 needed for size 4: set size=9"),
        (f"# c\n\n{QUESTION[:-1]}x", "line 3: the puzzle has 'x' at character 16; allowed are 1..4"),
        (f"{QUESTION[:-1]}5", "line 1: the puzzle has '5' at character 16"),
        (f"{QUESTION[:-1]}²", "line 1: the puzzle has '²' at character 16"),
        ("11..............", "line 1: givens conflict: 1 twice in row 1 .characters 1 and 2."),
        ("1...1...........", "line 1: givens conflict: 1 twice in column 1"),
        ("1....1..........", "line 1: givens conflict: 1 twice in box 1"),
        ("123...4.........", "line 1: the puzzle has no solution"),
        (f"{GRID}\n................", r"line 2: the puzzle has more than one solution \(0 givens\)"),
        (f"{GRID}\n".encode() + b"\xff\xfe1", "line 2: not UTF-8 text"),
        (f"{GRID}\n".encode("utf-16"), "line 1: not UTF-8 text"),
        ("source,question,rating\n", "line 1: .*must name the column 'answer' once"),
        ("question,question,answer,rating\n", "line 1: .*must name the column 'question' once"),
        ("question\n", "line 1: .*must name the column 'answer'"),
        ("source,question,answer,rating\n", "a header and no puzzle"),
        (f"source,question,answer,rating\na,{QUESTION},{GRID}\n", "line 2: 3 fields where the header names 4"),
        (f"source,question,answer,rating\na,{QUESTION},{GRID},x\n", "line 2: rating must be an integer, got 'x'"),
        (f"source,question,answer,rating\na,{QUESTION},{GRID[:-1]}.,0\n", "line 2: answer has '.' at character 16"),
        (f"source,question,answer,rating\na,{QUESTION},{GRID}1,0\n", "line 2: answer has 17 characters"),
        (f'source,question,answer,rating\n"a,{QUESTION},{GRID},0\n', "line 2: not a CSV row"),
        (
            f"source,question,answer,rating\na,{GRID},{GRID},0\n\n# c\na,2...............,{GRID},0\n",
            "line 5: the answer does not match the question: character 1 is 1, given as 2",
        ),
        (
            "source,question,answer,rating\na,1...............,1234341221434312,0\n",
            "line 2: the answer breaks the rules: 1 twice in column 3",
        ),
        (f"source,question,answer,rating\na,11..............,{GRID},0\n", "line 2: givens conflict: 1 twice in row 1"),
        (f"question,answer,rating\n{QUESTION},{GRID},{10**19}\n", "line 2: rating has 20 digits, at most 18"),
        (f"question,answer,rating\n{QUESTION},{GRID},{'9' * 5000}\n", "line 2: rating has 5000 digits"),
        (f"question,answer,rating\n{QUESTION},{GRID},1_0\n", "line 2: rating must be an integer, got '1_0'"),
        (f"question,answer,rating\r{QUESTION},{GRID},x\r", "line 2: rating must be an integer"),
        (f"{QUESTION}\r{QUESTION}.\r", "line 2: the puzzle has 17 characters"),
        (f'question,answer,"rating\n{QUESTION},{GRID},0\n', "line 1: not a CSV row"),
        ("a," * 4000 + "\n", r"line 1: .* it names \['a', 'a', .* \.\.\.\], 4001 in all"),
        ("." * 10_001, "line 1: longer than 10000 characters"),
        (f"question,answer,rating\n{QUESTION}\0,{GRID},0\n", "line 2: question has 17 characters"),
        (gzip.compress(QUESTION.encode(), mtime=0), "line 1: not UTF-8 text but gzip data, to be unpacked first"),
    ],
)
def test_a_malformed_file_is_refused_by_name_line_and_reason(tmp_path, content, message):
    path = write(tmp_path, content, "bad.txt")
    with pytest.raises(ValueError, match=message) as refusal:
        Sudoku(size=4, path=path).test_set()
    assert str(refusal.value).startswith(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(ValueError, match="cannot be read") as refusal:
            read_puzzles(path, 9)
        assert str(path) in str(refusal.value)


def test_a_puzzle_that_takes_too_long_and_too_many_to_be_solved_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, f"{GRID}\n{QUESTION[:5]}{'.' * 11}\n")
    monkeypatch.setattr(files, "MOST_GUESSES", 0)
    with pytest.raises(ValueError, match="line 2: the puzzle is too hard: .*not known after 0 guesses"):
        read_puzzles(path, 4)
    monkeypatch.setattr(files, "MOST_SOLVED", 1)
    with pytest.raises(ValueError, match="line 2: at most 1 puzzles are solved"):
        read_puzzles(path, 4)


def test_a_file_with_cr_line_ends_is_read(tmp_path):
    path = write(tmp_path, f"question,answer,rating\r{GRID},{GRID}, 7 \r")
    assert read_puzzles(path, 4).ratings.tolist() == [7]


def test_a_file_is_split_by_equivalence_class(tmp_path):
    # 30 puzzles, each with four images
    boards = np.array([p.question for p in made(6, 30, 10, 16)])
    rng = np.random.default_rng(5)
    images = np.concatenate([boards] + [random_symmetries(6, 30, rng).apply(boards) for _ in range(3)])
    assert len(set(class_keys(boards, 6).tolist())) == 30
    path = write(tmp_path, "\n".join(map(text_of, images.tolist())))
    task = Sudoku(size=6, path=path, num_test=7, augment=False)
    test = task.test_set()
    train = task.train_batch(0, 0, 4 * 23)
    kept, held = (set(class_keys(batch.inputs.numpy() - 1, 6).tolist()) for batch in (train, test))
    assert len(test) == len(held) == 7 and len(kept) == 23 and not kept & held
    assert len({tuple(b) for b in train.inputs.tolist()}) == 4 * 23
    assert task.is_solved(test.inputs, test.labels).all()
    assert len(Sudoku(size=6, path=path).test_set()) == 6  # a fifth of the classes
    assert [len(r) for r in Sudoku(size=6, path=path, num_train=9, num_test=3).ratings] == [9, 3]
    with pytest.raises(ValueError, match="num_test=30 held-out classes"):
        Sudoku(size=6, path=path, num_test=30).test_set()
    with pytest.raises(ValueError, match="92 puzzles are left where num_train=93"):
        Sudoku(size=6, path=path, num_test=7, num_train=93).test_set()


def test_training_puzzles_equivalent_to_a_test_file_are_left_out(tmp_path):
    boards = np.array([p.question for p in made(4, 12, 6, 8, seed=3)])
    _, first = np.unique(class_keys(boards, 4), return_index=True)
    boards = boards[first]
    test = random_symmetries(4, 4, np.random.default_rng(6)).apply(boards[:4])
    path = write(tmp_path, "\n".join(map(text_of, boards.tolist())), "train.txt")
    test_path = write(tmp_path, "\n".join(map(text_of, test.tolist())), "test.txt")
    task = Sudoku(size=4, path=path, test_path=test_path, augment=False)
    assert (task.test_set().inputs.numpy() - 1 == test).all()
    train = task.train_batch(0, 0, len(boards) - 4)
    assert {text_of(b) for b in (train.inputs - 1).tolist()} == set(map(text_of, boards[4:].tolist()))
    with pytest.raises(ValueError, match="none is left to train on"):
        Sudoku(size=4, path=test_path, test_path=test_path).test_set()
