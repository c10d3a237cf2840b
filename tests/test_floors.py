"""Imports go down. A change of floors is to be seen and discussed; editing this table in the same change is fine."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "anban"

#: What the slice of a task may import; never another task.
SLICE = {
    "official",
    "recipe",
    "data",
    "formulas",
    "losses",
    "metrics",
    "ssm",
    "testing",
    "tasks/contract",
    "tasks/scenes",
    "tasks/supervision",
}

#: folder -> what it may import of anban (`errors` and `_version` are free to all).
FLOORS: dict[str, set[str]] = {
    "recipe": set(),
    "record": set(),
    "ssm": {"official", "testing"},
    "data": {"recipe"},
    "losses": set(),
    "metrics": set(),
    "testing": {"official", "recipe"},
    "official": set(),
    "formulas": set(),
    "tasks/contract": {"recipe"},
    "tasks/scenes": {"recipe", "data", "tasks/contract"},
    "tasks/supervision": {"recipe"},
    "tasks/change": SLICE,
    "tasks/segment": SLICE,
    "tasks/detect": SLICE,
    "tasks/denoise": SLICE,
    "tasks": {"recipe"},
    "engine": {"recipe", "record", "data", "ssm", "official", "testing", "tasks/contract", "tasks"},
    "study": {"recipe", "record", "metrics"},
    "report": {"record", "data", "metrics", "study"},
    "audit": {"recipe", "record", "report"},
    "launch": {"recipe", "record", "engine", "study", "report"},
    "cli": {
        "formulas",
        "official",
        "recipe",
        "record",
        "ssm",
        "engine",
        "study",
        "report",
        "launch",
        "audit",
        "tasks",
    },
}


def room(parts: list[str]) -> str:
    """The floor a module path stands on: the longest entry of FLOORS that begins it."""
    for length in (2, 1):
        name = "/".join(parts[:length])
        if name in FLOORS:
            return name
    return parts[0] if parts else ""


def climbs() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
        here = room(parts)
        if here not in FLOORS or "tests" in parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules = [node.module]
                if node.module in ("anban", "anban.tasks"):
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                names = module.split(".")
                if (
                    names[0] != "anban"
                    or len(names) == 1
                    or names[1] in ("errors", "_version", "__version__")
                ):
                    continue
                there = room(names[1:])
                if there != here and there not in FLOORS[here]:
                    found.append(f"{file.relative_to(PACKAGE.parent)}:{node.lineno} imports {module}")
    return found


def test_imports_only_go_down() -> None:
    found = climbs()
    print("\n".join(found))
    assert not found


def test_every_folder_has_a_floor() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders <= set(FLOORS), f"without a floor: {folders - set(FLOORS)}"
