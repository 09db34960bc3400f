"""What ruff cannot count: files of at most 500 lines, functions of at most 60, at most nine files in a folder; imports that point down only
and in no circle.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("parallel", "cache", "pipeline", "jobs", "bench")
ONE_FILE_EACH = ("cache/predictors", "cache/triggers", "jobs/cli")  # techniques and verbs: there are as many as there are
FILES = sorted([*ROOT.glob("*.py"), *(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py"))])


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


FOLDERS = sorted({str(path.parent.relative_to(ROOT)) for path in FILES if path.relative_to(ROOT).parts[0] in ROOMS})


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_s_listing_is_short(folder: str) -> None:
    names = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(names) <= 9 or folder in ONE_FILE_EACH, names


def test_the_wheel_holds_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [file.parent.relative_to(ROOT) for room in (*ROOMS, "configs") for file in (ROOT / room).rglob("__init__.py")]
    assert sorted(listed) == sorted(["longtake", *(".".join(("longtake", *folder.parts)) for folder in found)])


def _file_of(module: Path) -> Path | None:
    """The file of a module or of a package, by its path without a suffix."""
    return next((path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()), None)


def _imported(path: Path) -> Iterator[tuple[Path, str, str]]:
    """Of each import of the package's own, wherever it stands: the module, the name and the name that it gets here."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("longtake") for alias in node.names), "inside the package imports are relative"
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module.split(".") if node.module else ()))
            yield from ((base, alias.name, alias.asname or alias.name) for alias in node.names)


def _defining(module: Path, name: str) -> Path | None:
    """The file that an import of a name comes from: a package's own file counts only for what it does not hand on."""
    if submodule := _file_of(module / name):
        return submodule
    file = _file_of(module)
    if file is not None and file.name == "__init__.py":
        handed_on = (_defining(base, inner) for base, inner, here in _imported(file) if here == name)
        return next(handed_on, file)
    return file


def test_no_two_files_import_each_other() -> None:
    """Nor three or more in a circle; imports inside functions and for type checking count as well."""
    imports: dict[str, set[str]] = {}
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "tests":
            found = (_defining(base, name) for base, name, _ in _imported(path))
            imports[str(path.relative_to(ROOT))] = {str(other.relative_to(ROOT)) for other in found if other}
    TopologicalSorter(imports).prepare()  # raises CycleError, with the files of the circle
