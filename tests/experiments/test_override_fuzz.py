"""Three hundred lists of overrides, most of them nonsense: each is refused in one line, or training would begin."""

import importlib
import itertools
import resource
import signal
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from rich.console import Console
from trials import TINY, Commands

from loopgrad.experiments import commands
from loopgrad.experiments.commands import bench, compare, train
from loopgrad.experiments.conf.overrides import composed, keys_of
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.endings import SIGNALS, in_one_line

IN_PROCESS, WHOLE = 270, 30
SECONDS, GIBIBYTES = 20, 2
COMMANDS = ("train", "compare", "bench", "analyse", "report", "cite")
QUICK = (*TINY, "estimator=[one_step]", "timing_repeats=1", "workers=1")
BASE = {
    "train": TINY,
    "compare": QUICK,
    "cite": TINY,
    "bench": ("bench=validity", "bench.lengths=[4]", "bench.width=8"),
}
NUMBERS = "0 -1 1 2 0.5 -0.0 nan inf -inf 1e20 1e400 1e-400 100000000 99999999999999999999 1_000 0x10".split()
WORDS = [
    "null",
    "true",
    "''",
    "abc",
    "ü",
    "😀",
    "'a b'",
    r"'a\nb'",
    "'\x1b[31m'",
    "../..",
    "/dev/null",
    "~",
    "a=b",
    "???",
]
NESTED = "[] {} [1,2] [nan] {a:1} [[1]] {_target_:os.getcwd} {_target_:builtins.eval} {1:2} [a,{b:[c]}]".split()
REFERENCES = [
    "${foo}",
    "${oc.env:NOPE}",
    "${.}",
    "${..x}",
    "${trainer}",
    "${seed}",
    "${",
    "${${seed}}",
    "${hydra:job.num}",
]
SWEEPS = ["1,2", "range(1,4)", "choice(1,2)", "interval(0,1)", "glob(*)", "a,b", "int(2.5)", "sort(3,1)", "str(1)"]
LONG = ["9" * 5000, "x" * 300, "[" * 300, "a." * 200, "${" * 100]
GROUPS = {
    "task": ["sudoku4", "sudoku6", "maze", "sorting", "null", "sudoku5", "[sudoku4,maze]"],
    "model": ["trm", "hrm", "feed_forward", "null", "[trm]", "TRM"],
    "estimator": [
        "bptt",
        "implicit",
        "torchdeq",
        "[bptt,phantom]",
        "forward_state",
        "[]",
        "null",
        "[[bptt]]",
        "bptt,phantom",
    ],
    "trainer": ["small", "published", "null", "smal"],
    "experiment": ["smoke", "sudoku4", "null", "[smoke]", "../smoke"],
    "analysis": ["standard", "verdicts", "none"],
    "bench": ["fits", "validity", "implicit", "null"],
    "hydra/launcher": ["basic", "joblib"],
}
OPTIONS = [
    *(
        "--cfg job",
        "--cfg all",
        "--cfg",
        "--info",
        "--info plugins",
        "--resolve",
        "--help",
        "--hydra-help",
        "-m",
        "--run",
    ),
    *(
        "--config-name x",
        "--config-dir .",
        "--config-dir /nowhere",
        "--config-path /nowhere",
        "--package trainer",
        "-x",
    ),
    *("--experimental-rerun x", "--shell-completion", "--cfg job --package trainer", "--multirun --run"),
]


class Begun(Exception):
    """Training, or measuring, would begin."""


@pytest.fixture(scope="module")
def keys() -> dict[str, list[str]]:
    """The keys of each command."""
    return {command: keys_of(composed(command, [])) for command in COMMANDS}


@st.composite
def typed(draw, keys: dict[str, list[str]]) -> tuple[str, ...]:
    """A command with overrides, as typed."""
    command = draw(st.sampled_from([*COMMANDS[:2] * 3, *COMMANDS]))
    values = st.sampled_from([*NUMBERS * 3, *WORDS, *NESTED, *REFERENCES, *SWEEPS, *LONG])
    known = st.sampled_from(keys[command])
    key = st.one_of(
        known, known, known, known.map(lambda k: k + "x"), known.map(lambda k: k.split(".")[-1]), st.just("hydra.x")
    )
    group = st.sampled_from(sorted(GROUPS)).flatmap(lambda name: st.sampled_from([f"{name}={c}" for c in GROUPS[name]]))
    override = st.one_of(
        st.builds("{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++", "~"]), key, values),
        group,
        st.builds("~{}".format, key),
        st.builds(
            "+estimator.{}._target_={}".format,
            st.sampled_from(["new", "bptt", "ü"]),
            st.sampled_from(["loopgrad.gradients.BPTT", "os.system", "loopgrad", "x.y", "1"]),
        ),
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12),
    )
    return (command, *BASE.get(command, ()), *draw(st.lists(override, min_size=1, max_size=3)))


def problems(strategy, count: int, check) -> list[str]:
    """Check as many examples, the same ones each time; return what was wrong, with each example."""
    found = []

    def checked(example):
        try:
            check(example)
        except Exception as error:
            found.append(f"{example}: {type(error).__name__}: {error}")

    quiet = list(HealthCheck)
    once = settings(
        derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=quiet
    )
    given(strategy)(settings(once, max_examples=count)(checked))()
    return found


@pytest.fixture
def begins_nothing(monkeypatch):
    def begun(*_):
        raise Begun

    for command in (compare, train):
        monkeypatch.setattr(command, "execute_all", begun)
    built = bench.build

    def build(*arguments):
        found = built(*arguments)
        object.__setattr__(found, "rows", begun)
        return found

    monkeypatch.setattr(bench, "build", build)


@pytest.mark.slow
def test_overrides_end_in_one_line_or_begin(keys, begins_nothing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    counts: Counter[str] = Counter()
    numbers = itertools.count()

    def check(line: tuple[str, ...]) -> None:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        monkeypatch.chdir(folder)
        signal.alarm(SECONDS)
        try:
            with in_one_line():
                config = composed(line[0], list(line[1:]))
                importlib.import_module(f"{commands.__name__}.{line[0]}").main(
                    config, Names("task", "model"), Console()
                )
            kind = "done"
        except Begun:
            kind = "would begin"
        except SystemExit as ended:
            kind, err = "refused", capsys.readouterr().err
            assert ended.code == 2, (line, err)
            assert err.startswith("loopgrad: ") and err.count("\n") == 1 and len(err) < 3000, (line, err)
            assert not list(folder.iterdir()), (line, err)
        finally:
            signal.alarm(0)
        capsys.readouterr()
        counts[kind] += 1

    def hang(*_):
        raise TimeoutError(f"not done in {SECONDS} seconds")

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGALRM, hang)
    try:
        wrong = problems(typed(keys), IN_PROCESS, check)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{sum(counts.values())} lists of overrides: {dict(counts)}; at most {most:.1f} GiB")
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == IN_PROCESS and counts["refused"] > IN_PROCESS / 2 and counts["would begin"] > 10
    assert most < GIBIBYTES


@pytest.mark.slow
def test_whole_commands_end_in_one_line(keys, tmp_path, capsys):
    counts: Counter[int | None] = Counter()
    numbers = itertools.count()
    options = st.sampled_from(OPTIONS).map(str.split)

    with Commands() as run:

        def check(pair: tuple[tuple[str, ...], list[str]]) -> None:
            line, option = pair
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            ended = run.run(folder, *line, *option, timeout=SECONDS, limits={"RLIMIT_AS": 12 * 2**30})
            assert ended.in_one_line(), (line, option, ended)
            assert ended.code in (0, 2) and ended.most_bytes < GIBIBYTES * 2**30, (line, option, ended)
            assert ended.code == 0 or not list(folder.iterdir()), (line, option, ended)
            counts[ended.code] += 1

        wrong = problems(st.tuples(typed(keys), st.one_of(st.just([]), options)), WHOLE, check)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} whole commands: exit codes {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == WHOLE
