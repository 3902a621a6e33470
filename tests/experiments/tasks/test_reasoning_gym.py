"""Puzzles of reasoning-gym as stories: what is cut where, what is held out, the checker; a stub, and the package."""

import importlib
import random
import sys

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, ReasoningGym
from loopgrad.experiments.tasks.generated_stories import KINDS, family, generated, knights, zebra

NAMES = tuple(KINDS)
FAMILY = "Ann is married to Bob. They have a child called Cleo.\n\nWhat is Cleo to Ann? Answer with a single word."
ISLAND = (
    "An island of sages and fools. Sages tell the truth, and fools lie. You meet 2: Ann, and Bob. Ann said, "
    '"Bob is a sage". "Ann is a fool or Bob is a sage," Bob mentioned. So who is a sage and who is a fool? (Format: x)'
)
HOUSES = "There are 2 houses.\n - Names: ann, bob\n\n1. Ann is a Dane.\n2. Bob is left of Ann.\n\nWho is it?? A name."


def task(name: str, folder, **more) -> ReasoningGym:
    sizes = {"least": 2, "most": 3, "test_most": 4} if name != "family_relationships" else {"least": 3, "most": 4}
    values = {**sizes, "num_train": 9, "num_test": 7, "encoder": "random", "features": str(folder / name), **more}
    return ReasoningGym(name=name, **values)


def test_texts_are_cut_into_statements_and_a_question():
    assert family({"question": FAMILY, "answer": "child"}) == (
        ("Ann is married to Bob.", "They have a child called Cleo."), "What is Cleo to Ann?", ("child",),
    )  # fmt: skip
    statements, question, answer = knights(
        {"question": ISLAND, "metadata": {"solution": (True, False), "names": ["Ann", "Bob"]}}
    )
    assert statements == (
        "An island of sages and fools.", "Sages tell the truth, and fools lie.", "You meet 2: Ann, and Bob.",
        'Ann said, "Bob is a sage".', '"Ann is a fool or Bob is a sage," Bob mentioned.',
    )  # fmt: skip
    assert question == "Who of Ann, Bob tells the truth?" and answer == ("knight", "knave")
    assert zebra({"question": HOUSES, "answer": "bob"}) == (
        ("There are 2 houses.", "Names: ann, bob", "Ann is a Dane.", "Bob is left of Ann."), "Who is it??",
        ("bob",),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_out_is_not_trained_on_and_counted_by_size(gym, name):
    it = task(name, gym)
    train, test = it.read()
    assert len(train) == 9 and len(test) == 7
    assert {story[:2] for story in train}.isdisjoint({story[:2] for story in test})
    counted = KINDS[name].counted
    assert {story.hops for story in train} == {f"{size} {counted}" for size in range(it.least, it.most + 1)}
    sizes = [f"{size} {counted}" for size in range(it.least, (it.test_most or it.most) + 1)]
    assert list(it.test_groups()) == sizes
    counts = [len(rows) for rows in it.test_groups().values()]
    assert sum(counts) == 7 and max(counts) - min(counts) <= 1
    assert (train, test) == task(name, gym).read() != task(name, gym, data_seed=1).read()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_whole_answer_counts(gym, name):
    it = task(name, gym)
    batch = it.test_set()
    right = batch.labels.clamp(min=0)
    assert it.is_solved(batch.inputs, right).all()
    wrong = right.clone()
    wrong[:, 0] = (wrong[:, 0] + 1) % it.layout.answers
    assert not it.is_solved(batch.inputs, wrong).any()
    slots = (batch.labels != IGNORE).sum(1)
    for inputs, answer, count in zip(batch.inputs, right, slots, strict=True):
        words = it.render(inputs, answer).splitlines()[-1].partition("?  ")[2].split()
        assert words == [it.spec.symbols[token] for token in answer[:count]]
    if name == "knights_knaves":
        assert torch.equal(slots, torch.tensor([int(story.hops[0]) for story in it.read()[1]]))
        last = right.clone()
        last[torch.arange(len(last)), slots - 1] ^= 1
        assert not it.is_solved(batch.inputs, last).any()
    else:
        assert (slots == 1).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "zebra"}, r"name=...\) must be one of family_relationships, knights_knaves, zebra_puzzles"),
        ({"least": 2}, r"least=...\) must be in 3..12"),
        ({"most": 2}, r"most=2\) must be between least=3 and 12"),
        ({"test_most": 13}, r"test_most=13\) must be between most=5 and 12"),
        ({"num_train": 0}, r"num_train=...\)"),
        ({"data_seed": -1}, r"data_seed=...\)"),
        ({"path": "x"}, r"path=...\) must be None"),
    ],
)
def test_what_is_out_of_range_is_named(values, told):
    with pytest.raises(ValueError, match=rf"ReasoningGym\({told}"):
        ReasoningGym(**values)


def test_a_missing_package_and_puzzles_that_run_out_are_told(gym, monkeypatch):
    with pytest.raises(ValueError, match="different puzzles of 2 people, and .* lower num_train or num_test"):
        task("knights_knaves", gym, num_train=10**6).read()
    (gym / "reasoning_gym" / "__init__.py").write_text("def create_dataset(name, **more): return [{}] * 9")
    sys.modules.pop("reasoning_gym")
    with pytest.raises(ValueError, match="is of another version than 0.1.25"):
        task("zebra_puzzles", gym).read()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'loopgrad\[reasoning\]'"):
        next(generated("zebra_puzzles", 3, 0))


@pytest.mark.parametrize("name", NAMES)
def test_puzzles_of_the_package_itself_are_read(tmp_path, name):
    pytest.importorskip("reasoning_gym")
    it = task(name, tmp_path, num_train=4, num_test=4)
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3), np.random.seed(3)
    train, test = it.read()
    assert (random.random(), np.random.rand()) == expected, "it draws from the generators of the process"
    assert (train, test) == task(name, tmp_path, num_train=4, num_test=4).read()
    for story in [*train, *test]:
        assert len(story.statements) >= 2 and story.question.endswith((".", "?"))
        assert all(text.strip() == text and "\n" not in text for text in story.statements)
        if name == "knights_knaves":
            assert len(story.statements) == 3 + len(story.answer)
    assert it.is_solved(it.test_set().inputs, it.test_set().labels.clamp(min=0)).all()
