"""What the rules look at: the Python files of the repository, parsed once."""

from __future__ import annotations

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("shoestring", "recipes")
MADE = {"runs", "build", "dist", "__pycache__", "shared"}
EVERYTHING = (*PRODUCT, "benchmarks", "tests")


@dataclass(frozen=True)
class Source:
    """One Python file: its path below the repository, and its contents."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    @property
    def parts(self) -> tuple[str, ...]:
        """The path's folders and, last, the file."""
        return Path(self.path).parts

    def place(self, node: ast.AST) -> str:
        """`path:line` of a node."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@functools.cache
def python_files(folders: tuple[str, ...]) -> tuple[Source, ...]:
    """Every Python file in these top folders."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(Source(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths)


def tracked_files() -> list[Path]:
    """Every file that git tracks; in an unpacked archive, every file that no tool made."""
    if not (ROOT / ".git").exists():
        return [path for path in ROOT.rglob("*") if path.is_file() and not _is_made(path.relative_to(ROOT))]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def _is_made(path: Path) -> bool:
    return any(part.startswith(".") or part in MADE or part.endswith(".egg-info") for part in path.parts)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, as far as it is one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(node: ast.AST) -> list[str]:
    """The modules (and names in them) that an import statement, or an import by name, brings."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def imports_of(source: Source) -> list[tuple[ast.AST, str]]:
    """Every import of a file, those inside functions too."""
    return [(node, name) for node in ast.walk(source.tree) for name in imported(node)]
