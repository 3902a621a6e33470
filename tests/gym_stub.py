"""A package in the layout of reasoning-gym, with small puzzles of our own, for tests where that is not installed."""

from pathlib import Path

CODE = """
import random


class Made:
    def __init__(self, name, size, seed, **settings):
        self.name, self.seed, self.settings = name, seed, settings

    def __getitem__(self, number):
        draw = random.Random(f"{self.seed} {number} {sorted(self.settings.items())}")
        names = draw.sample(["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"], 8)
        if self.name == "family_relationships":
            size = self.settings["min_family_size"]
            told = " ".join(f"{names[i]} is married to {names[i + 1]}." for i in range(size - 1))
            word = draw.choice(["wife", "husband"])
            question = f"{told}\\n\\nWhat is {names[0]} to {names[1]}? Answer with one word."
            return {"question": question, "answer": word, "metadata": {}}
        if self.name == "knights_knaves":
            honest = [draw.random() < 0.5 for _ in range(self.settings["n_people"])]
            own = names[: len(honest)]
            said = " ".join(f'{name} said, "{names[0]} is a sage".' for name in own)
            question = f"An island of sages and fools. You meet {len(honest)}. {said} So who is a sage? (Format)"
            return {"question": question, "answer": "x", "metadata": {"solution": honest, "names": own}}
        lines = "\\n".join(f"{i + 1}. {names[i]} is in house {i + 1}." for i in range(self.settings["num_people"]))
        question = f"A puzzle.\\n - A name each: {', '.join(names)}\\n\\n{lines}\\n\\nWho lives in House 1?? A name."
        return {"question": question, "answer": names[0].lower(), "metadata": {}}


def create_dataset(name, **settings):
    return Made(name, **settings)
"""


def write(folder: Path) -> None:
    """Write the package."""
    (folder / "reasoning_gym").mkdir()
    (folder / "reasoning_gym" / "__init__.py").write_text(CODE)
