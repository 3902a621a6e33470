"""Two hundred tampered checkpoints, weights and configurations: each is used as it was, or refused in one line."""

import copy
import json
import random
import shutil
import signal
from collections import Counter

import pytest
import torch
from hostile import calls, nodes, pickled, placed, yamls
from small_runs import TASK, model, trainer
from trials import TINY, Commands

from loopgrad.experiments.deltas.examination import Examination, meet
from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.errors import ConfigError, NonFinite
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT

ODD = [
    -1, 0, 1, 7, 2**31, 2**63, -(2**70), 10**20, 0.5, 1e308, float("nan"), float("inf"), True, None, "", "x",
    "9" * 5000, "../../x", "${oc.env:HOME}", "\x1b[31m\n", "<script>", [], [1], {}, {"a": 1},
    {"_target_": "loopgrad.models.TRM"},
]  # fmt: skip
TENSORS = [
    lambda t: t.double(), lambda t: t.reshape(-1)[:0].clone(), lambda t: t.reshape(-1),
    lambda t: torch.zeros(()).expand(t.shape),
    lambda t: t.to(torch.int64), lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else -t.int() - 1,
    lambda t: torch.full_like(t, 2**30 if t.dtype == torch.int64 else 1), lambda t: t.to_sparse() if t.dim() else t,
    lambda t: torch.full_like(t, 1e38) if t.is_floating_point() else t.bool() & False,
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file with some zeroed, flipped, cut off, doubled or put in."""
    at, length = rng.randrange(len(content)), rng.choice([1, 8, 64, 4096])
    part = content[at : at + length]
    return {
        "zeroed": content[:at] + bytes(len(part)) + content[at + length :],
        "flipped": content[:at] + bytes(b ^ 0xFF for b in part) + content[at + length :],
        "cut": content[:at],
        "beheaded": content[at:],
        "put in": content[:at] + rng.randbytes(length) + content[at:],
        "doubled": content + content,
    }[rng.choice(["zeroed", "flipped", "cut", "beheaded", "put in", "doubled"])]


def altered(content, rng: random.Random, odd=ODD):
    """Nested values with one of them, at any depth, taken away or made another."""
    changed = copy.deepcopy(content)
    place, key = None, None
    inner = changed
    while isinstance(inner, dict | list) and len(inner) and (place is None or rng.random() < 0.85):
        place, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = inner[key]
    what = rng.random()
    if what < 0.2:
        del place[key]
    elif isinstance(inner, torch.Tensor) and what < 0.8:
        place[key] = rng.choice(TENSORS)(inner)
    elif isinstance(inner, dict) and what < 0.4:
        inner[rng.choice(["more", 99, "_target_", "\n"])] = rng.choice(odd)
    else:
        place[key] = rng.choice(odd)
    return changed


def deep(levels: int):
    return '{"task": ' * levels + "1" + "}" * levels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that can be analysed, and one that can be gone on with: their folders."""
    place = tmp_path_factory.mktemp("made")
    with Commands() as commands:
        outcome = commands.run(place, "train", *TINY, "output_dir=run")
    assert outcome.code == 0, outcome.err
    run, path = begin(trainer(), TASK, model(), 0), place / "small.pt"
    steps = train(run, trainer(), TASK, BPTT(), 0)
    next(steps), next(steps)
    checkpoint.save(path, run, BPTT(), {"seed": 0})
    return place


@pytest.fixture
def bounded():
    """Nothing may take longer than this."""

    def late(*_):
        raise AssertionError("it took more than 20 seconds")

    before = signal.signal(signal.SIGALRM, late)
    yield lambda seconds=20: signal.alarm(seconds)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def told(error: ConfigError) -> None:
    line = str(error)
    assert line.isprintable() and "weights_only" not in line and len(line) < 2000, line


def tampered(kind: str, path, rng: random.Random, canary) -> None:
    """Tamper with a file of a run."""
    if kind == "bytes":
        path.write_bytes(damaged(path.read_bytes(), rng))
        return
    content = torch.load(path, weights_only=True)
    if kind == "content":
        torch.save(altered(content, rng), path)
        return
    if kind == "pickle":
        path.write_bytes(
            pickled({**content, "model": rng.choice(list(calls(canary).values()))}, rng.choice(["archive", "legacy"]))
        )
        return
    configuration = json.loads(content["fingerprint"])
    if kind == "node":
        place = rng.choice(["task", "model", "trainer", "halting", "in a list"])
        text = json.dumps(placed(configuration, rng.choice(list(nodes(canary).values())), place))
    else:
        part = rng.choice(["task", "model", "trainer", None])
        changed = altered(configuration, rng) if part is None else {
            **configuration, part: altered(configuration[part], rng)
        }  # fmt: skip
        text = rng.choice([deep(100_000), "[" * 50_000, "", "null"]) if rng.random() < 0.1 else json.dumps(changed)
    torch.save({**content, "fingerprint": text}, path)


@pytest.mark.slow
def test_tampered_checkpoints_are_gone_on_with_or_refused(made, tmp_path, bounded):
    rng, ends, path = random.Random(15), Counter(), tmp_path / "c.pt"
    (tmp_path / "trap").mkdir()
    for index in range(100):
        shutil.copy(made / "small.pt", path)
        kind = ["bytes", "content", "content", "pickle"][index % 4]
        tampered(kind, path, rng, tmp_path / "trap" / "canary")
        it = begin(trainer(train_steps=3), TASK, model(), 0)
        bounded()
        try:
            checkpoint.load(path, it, BPTT(), {"seed": 0})
            list(train(it, trainer(train_steps=3), TASK, BPTT(), 0))
            ends[kind, "went on"] += 1
        except ConfigError as error:
            told(error)
            ends[kind, "refused"] += 1
        except NonFinite:
            ends[kind, "not finite"] += 1
    print("\ngone on with:", dict(ends))
    assert not (tmp_path / "trap" / "canary").exists()
    assert ends["pickle", "refused"] == 25 and ends["content", "refused"] > 25


@pytest.mark.slow
def test_tampered_runs_are_analysed_or_refused(made, tmp_path, bounded):
    rng, ends = random.Random(16), Counter()
    (tmp_path / "trap").mkdir()
    whole = made / "run" / "runs" / "last_cycle-seed0"
    for index in range(140):
        run = shutil.copytree(whole, tmp_path / "run", dirs_exist_ok=True)
        kind = ["bytes", "values", "node", "values", "pickle", "weights", "yaml"][index % 7]
        place, given = run, {}
        if kind == "weights":
            path = run / "weights.safetensors"
            path.write_bytes(damaged(path.read_bytes(), rng))
        elif kind == "yaml":
            (run / "checkpoint.pt").unlink()
            place = run / "step_1"
            torch.save({"L_level.layers.0.x": torch.zeros(2, 2)}, place)
            texts = list(yamls(tmp_path / "trap" / "canary").values())
            (run / "all_config.yaml").write_text(rng.choice(texts))
            given = {"task": {"_target_": "loopgrad.experiments.tasks.RollingSum", "length": 6}}
        else:
            tampered(kind, run / "checkpoint.pt", rng, tmp_path / "trap" / "canary")
        bounded()
        try:
            for weights in find(place, given, {}, None):
                meet(weights, Examination(samples=1))
            ends[kind, "analysed"] += 1
        except ConfigError as error:
            told(error)
            ends[kind, "refused"] += 1
        shutil.rmtree(run)
    print("\nanalysed:", dict(ends))
    assert not (tmp_path / "trap" / "canary").exists()
    assert ends["node", "refused"] == 20 and ends["pickle", "refused"] == 20 and ends["yaml", "refused"] == 20


@pytest.mark.slow
def test_whole_commands_on_tampered_files_end_in_one_line_and_leave_nothing_half(made, tmp_path):
    rng, ends = random.Random(17), Counter()
    (tmp_path / "trap").mkdir()
    (tmp_path / "place").mkdir()
    with Commands() as commands:
        for index in range(18):
            folder = shutil.copytree(made / "run", tmp_path / "place" / "run")
            (folder / "records.jsonl").unlink()
            kind = ["bytes", "content", "values", "node", "pickle", "config"][index % 6]
            path = folder / "runs" / "last_cycle-seed0" / "checkpoint.pt"
            if kind == "config":
                path = folder / "config.json"
                content = path.read_bytes()
                changed = json.dumps(altered(json.loads(content), rng)).encode()
                path.write_bytes(rng.choice([damaged(content, rng), changed]))
            else:
                tampered(kind, path, rng, tmp_path / "trap" / "canary")
            before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            if index % 2:
                command = ("train", *TINY, "output_dir=run")
            else:
                quick = (f"analysis.{n}_samples=0" for n in ("spectrum", "exponent", "gradient", "search"))
                command = ("analyse", "checkpoint=run", "output_dir=out", "analysis.samples=2", "figures=0", *quick)
            outcome = commands.run(tmp_path / "place", *command)
            assert outcome.in_one_line(), (kind, command[0], outcome)
            assert outcome.most_bytes < 2 * 2**30 and "weights_only" not in outcome.err
            if outcome.code:
                assert outcome.code == 2 or command[0] == "train", outcome
                after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
                assert command[0] == "train" or after == before, "an analysis changed the run"
                assert not (tmp_path / "place" / "out").exists()
            ends[command[0], kind, outcome.code] += 1
            shutil.rmtree(folder)
            shutil.rmtree(tmp_path / "place" / "out", ignore_errors=True)
    print("\ncommands:", dict(ends))
    assert not (tmp_path / "trap" / "canary").exists()
