"""The house rules: which room may import which, read from the imports themselves, lazy ones included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import trimtab
from conftest import SHAPES_ENFORCED

ROOT = Path(trimtab.__file__).parent

LEVELS = (
    ("errors", "types"),
    ("statistic", "reading", "roomworld"),
    ("published",),
    ("interventions", "sites", "metrics", "runs", "neutral", "memory", "team", "selfdebias", "pictures", "caches"),
    ("steering", "capture", "tasks", "weights", "shelf"),
    ("model", "vision", "scoring", "packing", "stems", "artifact", "frontier", "contrasts", "ensemble"),
    ("learners", "evaluate", "portions", "export", "verdict"),
    ("serve", "harness", "search", "report", "gallery", "figures", "terminal"),
    ("cli",),
)
"""Rooms by level; a room imports rooms of lower levels. `frontier` and `weights` stand where their importers allow."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
WITHIN = {
    ("model", "scoring"),
    ("model", "packing"),
    ("model", "stems"),
    ("stems", "packing"),
    ("model", "vision"),
    ("scoring", "packing"),
    ("evaluate", "portions"),
    ("report", "figures"),
    ("report", "gallery"),
    ("gallery", "figures"),
    ("steering", "capture"),
    ("capture", "steering"),
}
"""Imports allowed between rooms of one level."""
ANYTHING_BUT_CLI = ("testing", "__init__")
NEVER = {
    "transformers": (
        "interventions",
        "sites",
        "steering",
        "capture",
        "scoring",
        "packing",
        "stems",
        "artifact",
        "learners",
        "evaluate",
        "portions",
        "metrics",
    ),
    "torch": (
        "errors",
        "types",
        "metrics",
        "statistic",
        "published",
        "tasks",
        "contrasts",
        "frontier",
        "verdict",
        "report",
        "gallery",
        "figures",
        "terminal",
        "runs",
        "neutral",
        "pictures",
        "roomworld",
    ),
    "learners": ("tasks", "contrasts", "artifact", "serve", "evaluate", "model", "vision"),
    "tasks": ("learners", "model", "vision", "scoring", "metrics", "evaluate"),
    "contrasts": ("learners", "tasks", "model"),
    "model": ("verdict", "report", "figures", "contrasts"),
}
"""Thing -> rooms that never import it, however lazily."""
OUTSIDE = {"tests", "bench", "recipes"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(text: str, *, package: tuple[str, ...] = ("trimtab",)) -> list[tuple[str, bool]]:
    """(dotted name, only for type checkers) of everything a source imports, at whatever depth, in whatever way."""
    tree = ast.parse(text)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Lazy tables and import_module("trimtab.learners.dso") name modules by string.
            parts = node.value.replace(":", ".").split(".")
            if parts[0] == "trimtab" and len(parts) > 1 and all(p.isidentifier() for p in parts):
                names = [".".join(parts)] if parts[1] in LEVEL else []
        found.extend((name, id(node) in for_types) for name in names)
    return found


def rooms_imported(path: Path) -> set[str]:
    package = ("trimtab", *path.relative_to(ROOT).parts[:-1])
    names = [name.split(".") for name, _ in imports(path.read_text(), package=package)]
    return {parts[1] for parts in names if parts[0] == "trimtab" and len(parts) > 1 and parts[1] in LEVEL}


def test_every_room_has_a_level():
    """A new file at the top is placed in the table, by whoever adds it."""
    rooms = {room_of(p) for p in sources()} - set(ANYTHING_BUT_CLI) - {"__main__"}
    assert rooms <= set(LEVEL), f"say in LEVELS where {sorted(rooms - set(LEVEL))} belong"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    """A file imports only rooms of lower levels, itself, and the few neighbours that are allowed."""
    room, found = room_of(path), rooms_imported(path)
    if room == "__main__":
        assert found <= {"cli"}
    elif room in ANYTHING_BUT_CLI:
        assert "cli" not in found
    else:
        upward = {o for o in found - {room} if LEVEL[o] >= LEVEL[room] and (room, o) not in WITHIN}
        assert not upward, f"{room} may not import {sorted(upward)}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_must_never_be_imported_is_not(path):
    """The "Never" list; a name that only a type checker sees loads nothing and may be torch's."""
    room = room_of(path)
    for name, for_types in imports(path.read_text()):
        parts = name.split(".")
        assert parts[0] not in OUTSIDE, f"src imports {name}"
        for thing, rooms in NEVER.items():
            if room in rooms and room != thing:
                inside = parts[0] == "trimtab" and len(parts) > 1 and parts[1] == thing
                outside = parts[0] == thing and not for_types
                forbidden = inside or outside
                assert not forbidden, f"{room} imports {name}"


SHARED_BY_LEARNERS = ("card", "sides", "in_turn", "fairness")
"""What is no learner and any learner may import: the card, the two sides of a contrast, fitting site after site, and
the objective on a task's items."""


def test_one_learner_never_imports_another():
    for path in (ROOT / "learners").rglob("*.py"):
        own = path.relative_to(ROOT / "learners").parts[0].removesuffix(".py")
        allowed = (own,) if own in SHARED_BY_LEARNERS else (own, *SHARED_BY_LEARNERS)
        for name, _ in imports(path.read_text()):
            parts = name.split(".")
            if own != "__init__" and parts[:2] == ["trimtab", "learners"] and len(parts) > 2:
                assert parts[2] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_unpickles():
    """No pickle, and no torch.load, which is one."""
    for path in sources():
        text = path.read_text()
        assert not any(
            name.split(".")[0] in ("pickle", "joblib", "dill", "cloudpickle") for name, _ in imports(text)
        ), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "torch.load", path


def test_shapes_are_enforced_where_they_are_stated(llama):
    """In every room with jaxtyping in it but the one that refuses wrong shapes itself; and the check does check."""
    stating = {room_of(p) for p in sources() if "jaxtyping" in {n.split(".")[0] for n, _ in imports(p.read_text())}}
    assert stating - {"interventions"} == {name.split(".")[0] for name in SHAPES_ENFORCED}
    with pytest.raises(TypeCheckError):
        llama.readout(torch.zeros(32))


def loaded_by(statement: str, *modules: str) -> set[str]:
    code = f"import sys; {statement}; print(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "rooms",
    [
        "trimtab",
        "trimtab.errors, trimtab.types, trimtab.metrics, trimtab.tasks, trimtab.report",
        "trimtab.cli",
    ],
)
def test_rooms_without_torch_load_none(rooms):
    """A fresh interpreter that imports them has neither torch nor transformers loaded."""
    assert loaded_by(f"import {rooms}", "torch", "transformers") == set()


def test_the_dial_loads_no_transformers():
    """Steering and capture see modules and tensors only, so a serving engine can use them alone."""
    assert loaded_by("import trimtab.steering, trimtab.capture", "torch", "transformers") == {"torch"}


def test_the_testing_room_needs_no_pytest_until_a_contract_runs():
    assert loaded_by("import trimtab.testing; trimtab.testing.tiny('llama')", "pytest", "torch") == {"torch"}


def test_the_walker_sees_every_way_to_import():
    """Itself tested: plain, from, relative, lazy, and by string are all seen, type-checker imports told apart."""
    text = """
from __future__ import annotations
import trimtab.cli as c
from trimtab import model, errors
if TYPE_CHECKING:
    import torch
def f():
    from trimtab.learners.dso import DSO
    from . import report
    import_module("trimtab.serve.plugin")
LAZY = {"x": "trimtab.export:fold"}
"""
    found = dict(imports(text))
    assert {
        "trimtab.cli",
        "trimtab.model",
        "trimtab.errors",
        "trimtab.learners.dso.DSO",
        "trimtab.report",
    } <= set(found)
    assert {"trimtab.serve.plugin", "trimtab.export.fold"} <= set(found)
    assert found["torch"] is True
    assert found["trimtab.cli"] is False
