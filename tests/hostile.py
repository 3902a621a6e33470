"""Files that would run code, or do harm otherwise, if they were read without care; each would make a canary."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

KINDS_OF_NAME = ("task", "model", "trainer", "halting", "in a list")


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(canary: Path) -> dict[str, Runs]:
    """Objects whose pickles would make the canary, by what they call."""
    make = f"open({str(canary)!r}, 'w').close()"
    return {
        "exec": Runs(exec, make),
        "eval": Runs(eval, make),
        "open": Runs(open, str(canary), "w"),
        "system": Runs(__import__("os").system, f"touch {canary}"),
        "popen": Runs(__import__("subprocess").Popen, ["touch", str(canary)]),
        "save": Runs(torch.save, 1, str(canary)),
    }


def pickled(content: Any, way: str) -> bytes:
    """The bytes of content in one of the ways in which pickles are stored."""
    if way == "plain":
        return pickle.dumps(content, 2)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=way == "archive")
    return buffer.getvalue()


def nodes(canary: Path) -> dict[str, dict[str, Any]]:
    """Nodes that would make the canary if what they name were called, or imported, with what they give."""
    folder, evil = canary.parent, canary.parent / "evil.pt"
    make = f"open({str(canary)!r}, 'w').close()\n"
    (folder / "hubconf.py").write_text(make)
    (folder / "module_of_evil.py").write_text(make + "class Task: pass\n")
    evil.write_bytes(pickled(calls(canary)["exec"], "plain"))
    inner = {"_target_": "builtins.open", "file": str(canary), "mode": "w"}
    return {
        "torch.load": {"_target_": "torch.load", "f": str(evil), "weights_only": False},
        "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": str(folder), "model": "x", "source": "local"},
        "torch.save": {"_target_": "torch.save", "obj": 1, "f": str(canary)},
        "numpy.save": {"_target_": "numpy.save", "file": str(canary), "arr": [1]},
        "copyfile": {"_target_": "shutil.copyfile", "src": str(evil), "dst": str(canary)},
        "makedirs": {"_target_": "os.makedirs", "name": str(canary)},
        "open": inner,
        "system": {"_target_": "os.system", "command": f"touch {canary}"},
        "run": {"_target_": "subprocess.run", "args": ["touch", str(canary)]},
        "exec": {"_target_": "builtins.exec", "_args_": [make]},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": inner},
        "import": {"_target_": "module_of_evil.Task"},
        "inner": {"_target_": "loopgrad.models.FixedSegments", "num_segments": inner},
        "arguments": {"_target_": "loopgrad.models.FixedSegments", "_args_": [inner]},
        "partial": {"_target_": "loopgrad.models.FixedSegments", "_partial_": True},
        "no name": {"_target_": inner},
        "resolver": {"_target_": "loopgrad.models.FixedSegments", "num_segments": "${oc.env:HOME}"},
    }


def placed(fingerprint: dict[str, Any], node: dict[str, Any], place: str) -> dict[str, Any]:
    """The configuration of a run with a node in one place of it."""
    changed = copy.deepcopy(fingerprint)
    if place == "halting":
        changed["trainer"]["halting"] = node
    elif place == "in a list":
        changed["task"]["size"] = [node]
    else:
        changed[place] = node
    return changed


def yamls(canary: Path) -> dict[str, str]:
    """Texts of all_config.yaml that would make the canary, read the environment, or take all memory."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    return {
        "apply": f"arch: !!python/object/apply:os.system ['touch {canary}']\n",
        "new": f"arch:\n  num_heads: !!python/object/new:os.mkdir ['{canary}']\n",
        "name": "arch:\n  num_heads: !!python/name:os.system\n",
        "interpolated": "arch:\n  num_heads: ${oc.env:HOME}\n",
        "bomb": bomb + "arch:\n  num_heads: *a11\n",
        "deep": "arch: " + "[" * 20_000 + "]" * 20_000,
        "itself": "arch: &a\n  num_heads: *a\n",
        "long": "arch:\n  num_heads: " + "9" * 2_000_000,
        "digits": "arch:\n  num_heads: " + "9" * 10_000,
        "number": "arch:\n  H_cycles: 1000000000\n",
        "float": "arch:\n  H_cycles: .nan\n",
        "flag": "arch:\n  H_cycles: true\n",
        "list": "[arch]\n",
        "text": "arch\n",
        "key": "arch: {? [a, {}] : 1}\n",
        "date": "arch: 2020-99-99\n",
        "binary": "\x00\x01",
        "empty": "",
    }


def rewritten(path: Path, **changes: Any) -> None:
    """Write a checkpoint anew with some of its parts changed: its checksums are right."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def fingerprint(path: Path) -> dict[str, Any]:
    """The configuration in a checkpoint."""
    return json.loads(torch.load(path, weights_only=True)["fingerprint"])


def repacked(content: bytes, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The bytes of an archive with some of its entries changed, by the ends of their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            ends = [end for end in change if name.endswith(end)]
            new.writestr(name, change[ends[0]] if ends else old.read(name))
    return buffer.getvalue()
