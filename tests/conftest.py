"""What several files need: tiny models on disk, a task file, and a way to run one command in process."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from jaxtyping import install_import_hook

# Under test only, in the rooms that state shapes. Not in interventions: it refuses wrong shapes itself, and tests hand
# it some. Not in rooms without shapes: plain types are mypy's, wrong values of them are there to be refused, and a
# compiled graph would have the checks in it.
SHAPES_ENFORCED = (
    "capture", "learners.dso.sampled", "learners.erase", "learners.transport", "model", "packing",
    "scoring", "search.recall", "stems",
)  # fmt: skip
install_import_hook([f"trimtab.{room}" for room in SHAPES_ENFORCED], "beartype.beartype")

from trimtab.types import SPLITS, Item  # noqa: E402

if TYPE_CHECKING:
    from trimtab.model import SteerableModel


def script(path: str) -> ModuleType:
    """A script of the repository that is in no package, as a module: "recipes/compare.py"."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Ran:
    """One command: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The refusal, which is one line of standard error."""
        lines = [line for line in self.err.splitlines() if line.startswith("trimtab:")]
        assert len(lines) == 1, f"expected one line that begins with 'trimtab:', got {self.err!r}"
        assert self.err.rstrip().splitlines()[-1] == lines[0], f"something follows the refusal: {self.err!r}"
        assert "Traceback" not in self.err
        assert "bug of ours" not in self.err, lines[0]
        return lines[0]


@pytest.fixture
def trimtab_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `trimtab ARGS` in this process."""
    from trimtab.cli import main

    def run(*args: Any) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(a) for a in args])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and tracebacks only where a test asks."""
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("a test reached for the network")

    monkeypatch.delenv("TRIMTAB_TRACEBACK", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session", autouse=True)
def one_thread(request: pytest.FixtureRequest) -> None:
    """One thread for the whole session, fixtures included: sums are rounded otherwise with another number.

    Besides, threads cost more than they bring in models this small.
    """
    real = {"real", "gemma"}
    if not any(real & {mark.name for mark in item.iter_markers()} for item in request.session.items):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models() -> dict[str, SteerableModel]:
    """A tiny model of every family, shared by all tests: who changes a weight or a setting makes a model of its own."""
    from trimtab.testing import TINY_FAMILIES, tiny

    return {family: tiny(family) for family in TINY_FAMILIES}


@pytest.fixture(scope="session")
def llama(models: dict[str, SteerableModel]) -> SteerableModel:
    """The tiny Llama."""
    return models["llama"]


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template, as save_pretrained writes it."""
    from trimtab.testing import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tiny Llama without a chat template."""
    from trimtab.testing import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("models") / "base", chat=False)


@pytest.fixture(scope="session")
def neutral_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short neutral passages: the package's own would take a tiny model seconds."""
    path = tmp_path_factory.mktemp("neutral") / "neutral.txt"
    path.write_text("\n\n".join(f"Rain fell on hill number {n} today." for n in range(40)))
    return path


def row(item: Item, *, split: bool = True) -> dict[str, Any]:
    """An item as a line of a task file."""
    options = [{k: v for k, v in (("text", o.text), ("role", o.role), ("group", o.group)) if v} for o in item.options]
    made = {"id": item.id, "prompt": item.prompt, "options": options, "concept": item.concept}
    made |= {"template": item.template, "ambiguous": item.ambiguous}
    return made | ({"split": item.split or SPLITS[0]} if split else {})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A task file."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve concepts in twelve wordings, a third of the pairs in each split, ambiguous and not."""
    from trimtab.testing import tiny_task

    rows = [row(i) for i in tiny_task(12, 12).items]
    return write_rows(tmp_path_factory.mktemp("task") / "items.jsonl", rows)


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory, chat_folder: Path, task_file: Path, neutral_file: Path) -> Path:
    """A steering that `trimtab learn dso` made for the tiny chat model."""
    from trimtab.cli import main

    out = tmp_path_factory.mktemp("learned") / "steering"
    code = main([
        "learn", "dso", "--model", str(chat_folder), "--task", f"jsonl:{task_file}", "--seed", "0", "--out", str(out),
        "--neutral", str(neutral_file), "--steps", "30", "--learning-rate", "5e-3", "--set", "validate_every=10",
    ])  # fmt: skip
    assert code == 0
    return out
