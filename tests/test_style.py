"""What ruff cannot count: files of at most 500 lines, functions of at most 60, imports that point down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("parallel", "cache", "pipeline", "jobs", "bench")
FILES = sorted(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in ROOMS], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    room = ROOMS.index(parts[0])
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            if node.level == 0:
                names = [node.module or ""]
            else:
                base = ("longtake", *parts[: len(parts) - node.level])
                names = [".".join((*base, node.module or ""))]
        for name in names:
            steps = name.split(".")
            if steps[0] == "longtake" and len(steps) > 1 and steps[1] in ROOMS:
                assert ROOMS.index(steps[1]) <= room, f"{parts[0]} imports {name}"
            if steps[0] == "ray":
                assert parts[0] == "jobs", f"{parts[0]} imports Ray"
