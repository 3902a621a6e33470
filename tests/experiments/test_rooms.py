"""The rooms of experiments: imports go down from floor to floor, and what a command needs is all that it loads."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from repository import ROOT, imports, module_name, sources

HOUSE = "loopgrad.experiments"
FLOORS = (
    {"cli"},
    {"commands"},
    {"reports", "deltas", "benches", "claims"},
    {"training"},
    {"conf", "folders"},
    {"tasks", "records", "provenance", "processes", "trainer"},
    {"endings"},
    {"errors"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# reports are rendered from records and stored arrays alone
SHUT = {"reports": {"conf", "training", "tasks", "trainer", "processes", "provenance"}}


def read_by(code: str, modules: dict) -> set[str]:
    """The modules that a file reads; what is taken from a package may be one of its modules."""
    read = set()
    for found in imports(code):
        inner = {f"{found.module}.{name}" for name in found.names}
        read |= inner if inner and inner <= modules.keys() else {found.module, *inner}
    return read & modules.keys()


MODULES = {module_name(path): path for path in sources("experiments")}


def rooms_of(code: str) -> set[str]:
    return {name.split(".")[2] for name in read_by(code, MODULES) if name.startswith(f"{HOUSE}.")}


def wrong_ways(room: str, code: str) -> set[str]:
    """The rooms that a file of a room reads against the order."""
    others = rooms_of(code) - {room}
    return {other for other in others if FLOOR[other] <= FLOOR[room] or other in SHUT.get(room, ())}


def test_every_room_has_its_floor():
    folder = ROOT / "experiments"
    rooms = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOOR)
    assert len(FLOOR) <= 16 and len(FLOORS) <= 8


def test_imports_go_down():
    wrong = []
    for path in sources("experiments"):
        name = path.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")
        if name != "__init__":
            wrong += [f"{path.relative_to(ROOT)} reads {room}" for room in wrong_ways(name, path.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "code", "read"),
    [
        ("reports", f"from {HOUSE}.training.runs import history", {"training"}),
        ("reports", f"from {HOUSE} import deltas", {"deltas"}),
        ("training", f"def f():\n    from {HOUSE}.commands import compare", {"commands"}),
        ("deltas", f"import {HOUSE}.benches.trm", {"benches"}),
        ("tasks", f"from {HOUSE}.records import write", {"records"}),
        ("training", f"from {HOUSE} import records\nfrom {HOUSE}.conf.parts import parts", set()),
    ],
)
def test_a_planted_import_up_or_across_is_found(room, code, read):
    assert wrong_ways(room, code) == read


def test_no_module_reads_itself_through_others():
    graph = {name: read_by(path.read_text(), MODULES) - {name} for name, path in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(graph | {f"{HOUSE}.errors": {f"{HOUSE}.cli"}}).static_order())


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (f"{HOUSE}.errors", ["torch", "numpy", "hydra"]),
        (f"{HOUSE}.cli", ["torch", "numpy"]),
        (f"{HOUSE}.commands.report", [f"{HOUSE}.{room}" for room in ("training", "deltas", "benches", "tasks")]),
        (f"{HOUSE}.commands.cite", [f"{HOUSE}.{room}" for room in ("training", "deltas", "benches")]),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; sys.exit(str([name for name in {absent!r} if name in sys.modules]))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "[]"
