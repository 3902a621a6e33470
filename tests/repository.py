"""The files of the repository as the tests of its layout see them."""

import re
import sys
from pathlib import Path
from typing import Any

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
