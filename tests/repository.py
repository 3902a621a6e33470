"""The files of the repository as the tests of its layout see them."""

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


def sources(folder: str) -> list[Path]:
    """The Python files below a top folder."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "loopgrad" else ("loopgrad", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
