"""Small files of stories in the published layouts, and a parser of bAbI of another make."""

import csv
from pathlib import Path

RELATIONS = {"father": "grandfather", "mother": "grandmother", "sister": "aunt", "brother": "uncle"}
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
COLUMNS = ["", "id", "story", "query", "target", "target_text", "clean_story", "task_name", "task_split"]


def babi_19(folder: Path, train: int = 12, test: int = 5) -> Path:
    """Straight corridors of three rooms, each pair of parts apart by the names of its rooms."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, room in (("train", train, "hall"), ("test", test, "yard")):
        lines = []
        for i in range(count):
            word, letter, back = [("north", "n", "s"), ("east", "e", "w"), ("west", "w", "e")][i % 3]
            a, b, c = (f"{room}{i}{x}" for x in "abc")
            lines += [f"1 The {b} is {word} of the {a}.", f"2 The {c} is {word} of the {b}."]
            if i % 2:
                lines += [f"3 How do you go from the {a} to the {c}?\t{letter},{letter}\t1 2"]
            else:
                lines += [f"3 How do you go from the {c} to the {a}?\t{back},{back}\t2 1"]
        (folder / f"qa19_path-finding_{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def clutrr(folder: Path, train: int = 12, test: int = 8) -> Path:
    """Stories of two to four sentences, in the columns of CLUTRR."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, verb in (("train", train, "met"), ("validation", train, "saw"), ("test", test, "called")):
        with open(folder / f"gen_train234_test2to10_{part}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for i in range(count):
                names, word = [NAMES[(i + j) % len(NAMES)] for j in range(4)], list(RELATIONS)[i % 4]
                k = 2 + i % 3
                story = " ".join(
                    f"[{names[j % 4]}] {verb} the {word} of [{names[(j + 1) % 4]}], {i}." for j in range(k)
                )
                query = f"('{names[0]}', '{names[1]}')"
                rows.writerow([i, f"x{i}", story, query, i % 4, RELATIONS[word], story, f"task_1.{k}", part])
    return folder


def by_hand(path: Path) -> list[tuple[list[str], str, str, list[int]]]:
    """Statements, question, answer, supports of each question, by splitting alone."""
    found, story = [], []
    for line in path.read_text().splitlines():
        number, text = line.split(" ", 1)
        if number == "1":
            story = []
        if "\t" in text:
            question, answer, support = text.split("\t")
            found.append(([t for _, t in story], question.strip(), answer, [int(n) for n in support.split()]))
        else:
            story.append((int(number), text.strip()))
    return found
