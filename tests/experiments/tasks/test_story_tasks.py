"""bAbI and CLUTRR as rows of slots: vectors, answers, hops and checkers beside the files read by hand."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import story_files
import torch

from loopgrad.experiments.tasks import IGNORE, Babi, Clutrr
from loopgrad.experiments.tasks.babi import walks
from loopgrad.experiments.tasks.babi_files import babi_file
from loopgrad.experiments.tasks.word_vectors import RandomWords


@pytest.fixture(scope="module", params=["sentence", "token"])
def babi(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("babi")
    path = story_files.babi_19(place / "files")
    return Babi(path=str(path), unit=request.param, encoder="random", features=str(place / "kept"))


@pytest.fixture(scope="module")
def clutrr(tmp_path_factory):
    place = tmp_path_factory.mktemp("clutrr")
    return Clutrr(path=str(story_files.clutrr(place / "files")), encoder="random", features=str(place / "kept"))


def test_a_row_is_the_answer_slots_the_question_and_the_statements_last_one_first(babi):
    layout, table, batch = babi.layout, babi.frozen(), babi.test_set()
    encoder = RandomWords()
    for row, label, (statements, question, answer, _) in zip(
        batch.inputs, batch.labels, story_files.by_hand(babi_file(babi.path, 19, "test")), strict=True
    ):
        texts = [question, *reversed(statements)]
        vectors = np.concatenate(encoder.encode(texts, babi.unit))
        count = layout.answer_slots + len(vectors)
        assert row[: layout.answer_slots].tolist() == [layout.first_slot, layout.first_slot + 1]
        assert np.array_equal(table(row[None])[0, layout.answer_slots : count].numpy(), vectors)
        assert (row[count:] == layout.pad).all()
        asked = len(encoder.encode([question], babi.unit)[0])
        assert (row[layout.answer_slots :][:asked] < layout.first_statement).all()
        assert (row[layout.answer_slots + asked : count] >= layout.first_statement).all()
        assert [babi.spec.symbols[token] for token in label[:2].tolist()] == answer.split(",")
        assert (label[2:] == IGNORE).all()
        assert babi.texts_of(row) == (statements, question)
        assert babi.render(row, label).splitlines()[-1] == f"{question}  {answer.replace(',', ' ')}"
    assert babi.spec.vocab_size == table.vocab_size and babi.spec.seq_len == batch.inputs.shape[1]


def test_a_path_is_right_that_leads_there_whatever_the_file_says():
    story = [
        "The b is east of the a.",
        "The c is south of the b.",
        "The d is south of the a.",
        "The c is east of the d.",
    ]
    right = {("e", "s"), ("s", "e")}
    for moves in itertools.product("nsew", repeat=2):
        assert walks(story, "How do you go from the a to the c?", moves) == (moves in right)
        back = {("n", "w"), ("w", "n")}
        assert walks(story, "How do you go from the c to the a?", moves) == (moves in back)
    assert not walks(story, "Where is a?", ("e", "s")) and not walks(
        ["Mary sat."], "How do you go from the a to the c?", ()
    )


def test_answers_of_paths_are_judged_by_walking(babi):
    batch = babi.test_set()
    answers = torch.where(batch.labels == IGNORE, 0, batch.labels)
    assert babi.is_solved(batch.inputs, answers).all()
    for change in range(1, babi.layout.answers):
        wrong = answers.clone()
        wrong[:, 0] = (wrong[:, 0] + change) % babi.layout.answers
        assert not babi.is_solved(batch.inputs, wrong).any()
    wrong = answers.clone()
    wrong[:, 1] = babi.spec.vocab_size
    assert not babi.is_solved(batch.inputs, wrong).any()
    assert list(babi.test_groups()) == ["2 moves"] and len(babi.test_groups()["2 moves"]) == len(batch)


def test_a_path_that_leads_elsewhere_is_refused_when_the_file_is_read(tmp_path):
    path = story_files.babi_19(tmp_path)
    file = babi_file(path, 19, "test")
    file.write_text(file.read_text().replace("n,n", "n,s").replace("s,s", "s,n"))
    with pytest.raises(ValueError, match="question 1 is not answered by a path through its story"):
        Babi(path=str(path), encoder="random", features=str(tmp_path / "kept")).test_set()
    assert not (tmp_path / "kept").exists()


def test_relations_are_judged_by_the_file_and_counted_by_k(clutrr):
    batch, groups = clutrr.test_set(), clutrr.test_groups()
    assert list(groups) == ["k=2", "k=3", "k=4"]
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        f"k={2 + i}": list(range(i, len(batch), 3)) for i in range(3)
    }
    answers = torch.where(batch.labels == IGNORE, 0, batch.labels)
    assert clutrr.is_solved(batch.inputs, answers).all()
    assert not clutrr.is_solved(batch.inputs, answers + 1).any()
    stranger = batch.inputs.clone()
    stranger[:, 1] = stranger[:, 1] + 1  # another question about the story
    assert not clutrr.is_solved(stranger, answers).any()
    assert clutrr.layout.answer_slots == 1 and clutrr.layout.answers == 4


def test_validation_files_train_where_there_are_no_others(tmp_path):
    path = story_files.clutrr(tmp_path)
    (path / "gen_train234_test2to10_train.csv").unlink()
    with pytest.raises(ValueError, match="holds no gen_train234_test2to10_train.csv: of this name it holds validation"):
        Clutrr(path=str(path), encoder="random", features=str(tmp_path / "f")).spec  # noqa: B018
    task = Clutrr(path=str(path), training="validation", encoder="random", features=str(tmp_path / "f"))
    assert " saw the " in task.render(*(task.train_batch(0, 0, 1).inputs[0], task.train_batch(0, 0, 1).labels[0]))


def test_an_epoch_shows_every_story_once(clutrr):
    rows = [tuple(row) for step in range(6) for row in clutrr.train_batch(0, step, 4).inputs.tolist()]
    assert len(set(rows[:12])) == 12 and set(rows[:12]) == set(rows[12:]) and rows[:12] != rows[12:]


def test_another_process_reads_the_files_and_encodes_nothing(clutrr, monkeypatch):
    clutrr.test_set()
    pickled = pickle.dumps(clutrr)
    assert len(pickled) < 1000
    monkeypatch.setattr(RandomWords, "encode", None)  # would be called in vain
    again = pickle.loads(pickled)
    assert again == clutrr and torch.equal(again.frozen().rows, clutrr.frozen().rows)


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: Babi(number=1), r"Babi\(number=...\) must be one of 2, 15"),
        (lambda: Babi(number=True), r"Babi\(number=...\) must be one of 2, 15"),
        (lambda: Babi(unit="word"), r"Babi\(unit=...\) must be one of sentence, token, got 'word'"),
        (lambda: Clutrr(training="test"), r"Clutrr\(training=...\) must be 'train' or 'validation'"),
        (lambda: Clutrr(name="../x"), r"Clutrr\(name=...\) must be the beginning of the files' names"),
        (lambda: Babi(most_statements=0), r"Babi\(most_statements=...\) must be at least 1, got 0"),
        (lambda: Clutrr(most_statements="9"), r"Clutrr\(most_statements=...\) must be an int at least 1, got '9'"),
        (lambda: Babi(whiten=0), r"Babi\(whiten=...\) must be at least 1, got 0"),
        (lambda: Babi().spec, "Babi reads published files: give their folder, task.path=FOLDER"),
        (lambda: Babi(path="/nowhere").test_set(), "/nowhere: no folder"),
    ],
)
def test_what_cannot_be_read_is_said(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_the_number_decides_the_files(tmp_path):
    (tmp_path / "qa16_basic_train.txt").write_text("1 Lily is a swan.\n2 Lily is gray.\n3 What color?\tgray\t1 2\n")
    (tmp_path / "qa16_basic_test.txt").write_text("1 Greg is a lion.\n2 Greg is white.\n3 What color?\twhite\t2\n")
    task = Babi(number=16, path=str(tmp_path), encoder="random", features=str(tmp_path / "kept"))
    assert task.spec.symbols[: task.layout.first_question] == ("gray", "white", "-", "answer 1")
    assert list(task.test_groups()) == ["1 facts, 1 back"]
    assert dataclasses.replace(task, features=None) != task


def test_longer_stories_are_left_out_of_both_parts(tmp_path):
    lines = {1: "1 Lily is a swan.\n2 What color?\tgray\t1\n", 3: "1 A.\n2 B.\n3 C.\n4 What color?\tred\t1\n"}
    lines[2] = "1 A.\n2 B.\n3 What color?\tblue\t2\n"
    for part, sizes in (("train", (1, 3, 2, 1)), ("test", (3, 2, 2))):
        (tmp_path / f"qa16_basic_{part}.txt").write_text("".join(lines[size] for size in sizes))

    def read(most):
        place = {"path": str(tmp_path), "features": str(tmp_path / f"kept {most}")}
        task = Babi(number=16, encoder="random", most_statements=most, **place)
        parts = task.train_batch(0, 0, 4).inputs, task.test_set().inputs
        return task, [sorted(len(task.texts_of(row)[0]) for row in part.unique(dim=0)) for part in parts]

    whole, told = read(None)
    assert told == [[1, 2, 3], [2, 3]] and whole.spec.seq_len == 1 + 1 + 3
    short, told = read(2)
    assert told == [[1, 2], [2]] and short.spec.seq_len == 1 + 1 + 2
    assert len(short.test_set().inputs) == 2 and short.spec.symbols[:2] == ("blue", "gray")
    with pytest.raises(ValueError, match=r"Babi\(most_statements=1\) leaves no story to try .*: raise it"):
        read(1)


def test_whitened_vectors_have_unit_covariance_over_the_stories_to_train_on(babi):
    plain, kept = babi.frozen().rows.double(), 5
    task = dataclasses.replace(babi, whiten=kept)
    rows = task.frozen().rows.double()
    told = {token for row in task.train_batch(0, 0, 64).inputs for token in row.tolist()}
    fit = [i for i in range(len(rows)) if i + task.layout.first_question in told]
    assert rows.shape == (len(plain), kept) and 2 * kept < len(fit) < len(rows)
    assert torch.allclose(rows[fit].mean(0), torch.zeros(kept).double(), atol=1e-5)
    assert torch.allclose(rows[fit].T @ rows[fit] / len(fit), torch.eye(kept).double(), atol=1e-4)
    centred = plain - plain[fit].mean(0)
    _, scale, axes = torch.linalg.svd(centred[fit], full_matrices=False)  # an independent way to the same space
    expected = centred @ axes[:kept].T / scale[:kept] * len(fit) ** 0.5
    assert torch.allclose((rows * expected).sum(0).abs(), (expected * expected).sum(0), rtol=1e-3)
    assert torch.equal(task.test_set().inputs, babi.test_set().inputs) and task != babi


def test_more_directions_than_differ_are_refused(babi):
    task = dataclasses.replace(babi, whiten=300)
    with pytest.raises(ValueError, match=r"Babi\(whiten=300\) is more than the \d+ directions .*: lower it"):
        task.frozen()
