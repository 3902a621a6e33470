"""The commands of README and docs: every one is taken as typed, and what takes seconds is run.

Pages are found, not listed. A command that trains is run for one step. One that reads a file of the reader's, or takes
minutes however small it is made, is composed as the command line does it, which refuses a wrong key or choice.
"""

import re
import shlex

import pytest
from repository import PYPROJECT, ROOT, blocks, pages

from loopgrad.experiments.cli import COMMANDS, spelt
from loopgrad.experiments.conf.overrides import composed, keys_of

RUN = ("compare", "train", "cite")
SMALLER = {  # set where the configuration has the key
    "task.num_train": 20,
    "task.num_test": 8,
    "model.hidden_size": 16,
    "trainer.train_steps": 1,
    "trainer.batch_size": 4,
    "trainer.eval_every": 1,
    "trainer.checkpoint_every": 1,
    "seeds": [0],
    "workers": 1,
    "timing_repeats": 1,
}
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in pages()}
# dated: what was run on a day, with the keys of that day
DATED = re.compile(r"docs/log\.md|docs/results/.*/report\.md|CHANGELOG\.md")


def typed(text: str) -> list[list[str]]:
    """The commands of the bash blocks of a page, as the shell splits them."""
    lines = "\n".join(code for _, code in blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mentioned(text: str) -> list[list[str]]:
    """The commands of loopgrad in the prose of a page, but for those with a word to be filled in."""
    found = re.findall(r"`(loopgrad [a-z][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [shlex.split(line) for line in found if "..." not in line and " NAME" not in line]


BLOCKS = sorted({tuple(words) for text in PAGES.values() for words in typed(text)})
PROSE = sorted({tuple(words) for name, text in PAGES.items() if not DATED.match(name) for words in mentioned(text)})
LOOPGRAD = sorted({words for words in [*BLOCKS, *PROSE] if words[0] == "loopgrad"})


def split(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """The command's name and its overrides; `bench NAME` is an override too."""
    command, *overrides = (word for word in words[1:] if word != "-m")
    return command, spelt(command, overrides)


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/guides/own_cell.md"} <= PAGES.keys()
    assert len(LOOPGRAD) >= 20 and {split(words)[0] for words in LOOPGRAD} == set(COMMANDS)


# each composes a configuration
SOME = [words if i % 3 == 0 else pytest.param(words, marks=pytest.mark.slow) for i, words in enumerate(LOOPGRAD)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("words", SOME, ids=" ".join)
def test_a_command_can_be_composed(words):
    composed(*split(words), sweep="-m" in words)


def runs(words: tuple[str, ...]) -> bool:
    """Whether a command is run: it trains or cites once, in seconds, and needs no file or package of its reader's."""
    return (
        words[0] == "loopgrad"
        and words[1] in RUN
        and "-m" not in words
        and not any("path=" in override or "population=" in override for override in words)
        and not any("experiment=latent/" in override and "digits" not in override for override in words)
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", [*filter(runs, BLOCKS)], ids=" ".join)
def test_a_command_runs(words, loopgrad):
    known = keys_of(composed(*split(words)))
    result = loopgrad(*words[1:], *(f"{key}={value}" for key, value in SMALLER.items() if key in known))
    assert result.code == 0 and result.out, result.err


@pytest.mark.parametrize("words", [words for words in BLOCKS if words[0] != "loopgrad"], ids=" ".join)
def test_another_command_is_one_that_the_repository_has(words):
    makefile = (ROOT / "Makefile").read_text()
    pinned = (ROOT / "constraints.txt").read_text().split()
    match words:
        case ("torchrun", _, "-m", *rest):
            composed(*split(tuple(rest)))
        case ("make", target, *variables):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
            assert all(re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE) for variable in variables)
        case ("pip", "install", "-e", place):
            extras = re.fullmatch(r"\.\[([\w,]+)\]", place)[1].split(",")
            assert set(extras) <= PYPROJECT["project"]["optional-dependencies"].keys()
        case ("pip", "install", requirement):
            assert requirement in pinned
        case ("pytest", *arguments):
            files = {word for word in arguments if "/" in word}
            assert all((ROOT / file).is_file() for file in files) and {*arguments} - files <= {"-m", "slow", "gpu", ""}
        case _:
            pytest.fail(f"{' '.join(words)}: no test knows such a command")


@pytest.mark.parametrize(
    "page", ["```bash\nloopgrad compare modle=trm\n```\n", "as `loopgrad train task=sudoko4` does"]
)
def test_a_wrong_command_is_found(page):
    (words,) = typed(page) or mentioned(page)
    with pytest.raises(ValueError, match="modle|sudoko4"):
        composed(*split(tuple(words)))
