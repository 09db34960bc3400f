"""README and docs: their commands are understood, their settings and recipes are read, their imports are there, their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from longtake.cache import Recipe
from longtake.jobs.cli.app import app
from longtake.jobs.settings.config import load_job
from typer.main import get_command

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each command, without its comment and the environment before it."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    words = [shlex.split(line[2:], comments=True) for line in text.splitlines() if line.startswith("$ ")]
    return [line[next(i for i, word in enumerate(line) if not re.match(r"[A-Z_]+=", word)) :] for line in words]


def understand(command: Any, arguments: list[str]) -> None:
    """As the command line reads them. Raises KeyError for a verb, and click's own errors for an option, that there is not."""
    while arguments and hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, arguments)


def test_commands_are_understood(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *arguments in commands(page):
        if program == "longtake":
            understand(get_command(app), arguments)
        elif program == "make":
            assert {word for word in arguments if "=" not in word} <= set(targets)
        else:
            assert program in ("ray", "pip", "source", "python"), program


def test_settings_and_recipes_are_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if block.startswith("---"):
            continue  # a model card's front matter
        values: dict[str, Any] = yaml.safe_load(block)
        if "trigger" in values:
            Recipe.from_mapping(values)
        else:
            load_job(values)


def test_imports_are_there(page: Path) -> None:
    for block in blocks(page, "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), page.name, "exec"), {"__package__": "longtake.cache.triggers"})  # where a file of one would lie


def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_readme_is_short(page: Path) -> None:
    if page.name == "README.md":
        assert len(page.read_text().splitlines()) <= 120
