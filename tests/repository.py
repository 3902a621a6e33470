"""The files of the repository as the tests of its layout see them."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ["loopgrad", "gradients", "models", "analysis", "experiments"]


def pages() -> list[Path]:
    """The pages that somebody has written, in the root and in docs; those that building the site writes are not."""
    written = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    return [*sorted(ROOT.glob("*.md")), *sorted(p for p in written if not p.read_text().startswith("% made by"))]


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page in a language, each with the number of the line before its first."""
    found = re.finditer(rf"^( *)```{language}[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(2)), block[2]) for block in found]


def sources(folder: str) -> list[Path]:
    """The Python files below a top folder."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "loopgrad" else ("loopgrad", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Import(NamedTuple):
    """A module imported at a line: "" for a relative import; at_load is False inside a function."""

    module: str
    line: int
    at_load: bool
    names: tuple[str, ...] = ()  # that are taken from it


def imports(code: str) -> list[Import]:
    return list(_imports(ast.parse(code), at_load=True))


def _imports(node: ast.AST, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = at_load and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (found for part in child.body for found in _imports(ast.Module([part], []), at_load=False))
            yield from (found for part in child.orelse for found in _imports(ast.Module([part], []), at_load))
            continue
        for module in _modules(child):
            names = tuple(alias.name for alias in child.names) if isinstance(child, ast.ImportFrom) else ()
            yield Import(module, child.lineno, inside, names)
        yield from _imports(child, inside)


def _modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(level=level) if level:
            return [""]
        case ast.ImportFrom(module="loopgrad", names=names):
            return [f"loopgrad.{alias.name}" for alias in names]
        case ast.ImportFrom(module=module):
            return [module or ""]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            # other names are other people's modules, such as the `models` of an official repository
            return [
                a.value for a in node.args[:1] if isinstance(a, ast.Constant) and str(a.value).startswith("loopgrad")
            ]
        case ast.Attribute(value=ast.Name(id="loopgrad"), attr=attr):
            return [f"loopgrad.{attr}"]
    return []
