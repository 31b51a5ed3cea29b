"""demo:roomworld, the model in the package: it is what it says, and DSO makes it even without making it worse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab import cli
from trimtab.evaluate import evaluate
from trimtab.learners.dso import DSO
from trimtab.model import SteerableModel
from trimtab.tasks import load_task
from trimtab.tasks.rooms import planted_bias
from trimtab.types import Item, Task

SETTINGS: dict[str, Any] = dict(cli.PICTURES.settings)


@pytest.fixture(scope="module")
def model() -> SteerableModel:
    return trimtab.load("demo:roomworld", dtype="float32")


def sample(task: Task, every: int) -> Task:
    """Every so-manieth picture with all its orders: they are neighbours."""
    where: dict[str, int] = {}
    for item in task.items:
        where.setdefault(item.id.rpartition("/")[0], len(where))
    return replace(task, items=tuple(i for i in task.items if where[i.id.rpartition("/")[0]] % every == 0))


def figures(model: SteerableModel, task: Task, steering: trimtab.Steering | None = None) -> dict[str, float]:
    """Figures on test items at strength 1, or of the base."""
    at = 0.0 if steering is None else 1.0
    found = evaluate(model, task, steering, [at], seed=0, controls=False, samples=(), resamples=2)
    return {str(r["metric"]): float(r["value"]) for r in found.results if r["strength"] == at}


def test_it_is_small_and_states_its_figures(model: SteerableModel) -> None:
    folder = Path(trimtab.__file__).parent / "data" / "roomworld"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 12e6
    stated = json.loads((folder / "figures.json").read_text())
    assert set(stated["bias"]) == set(stated["planted"])
    assert model.sees
    assert model.neutral == folder / "neutral.txt"


@pytest.mark.parametrize(
    "name", ["who-is", *(pytest.param(n, marks=pytest.mark.real) for n in ("hiring", "reference"))]
)
def test_its_bias_is_the_planted_one_and_what_is_clear_is_clear_to_it(model: SteerableModel, name: str) -> None:
    task = sample(load_task(name, seed=0), 3)
    found = figures(model, task)
    items: list[Item] = [i for i in task.split("test") if i.ambiguous]
    assert abs(found["per_concept_bias"] - planted_bias(items)) < 0.07  # a third of the items; all of them: 0.05
    assert found["unambiguous_accuracy_choice"] >= 0.95
    assert found["option_mass"] > 0.98


def test_it_answers_other_questions(model: SteerableModel) -> None:
    found = figures(model, sample(load_task("roomworld", seed=0), 4))
    assert found["unambiguous_accuracy_choice"] >= 0.95


def test_it_says_what_it_scores(model: SteerableModel) -> None:
    items = load_task("who-is", seed=0).split("test")[:24]
    said = [o.answer or "" for o in model.answer(items, max_new_tokens=1)]
    chosen = [i.options[o.p.index(max(o.p))].text for o, i in zip(model.score(items), items, strict=True)]
    assert [s.strip() for s in said] == chosen


@pytest.mark.real
@pytest.mark.parametrize(("name", "left"), [("who-is", 0.5), ("who-is:groups", 0.75)])
def test_dso_makes_it_even_on_occupations_rooms_and_wordings_that_it_never_saw(
    model: SteerableModel, name: str, left: float
) -> None:
    """With half of the steps or fewer; not by answering with a place, of two or of three; each picture goes through the
    tower once, however many steps come back to it."""
    task, other = load_task(name, seed=0), load_task("roomworld", seed=0)
    assert model.eyes is not None
    before = model.eyes.encoded
    keep = [load_task(kept, seed=0) for kept in cli.PICTURES.keep if kept != name]
    steering = DSO(**{**SETTINGS, "steps": 150}).fit(model, task, seed=0, keep=keep)
    shown = {p.digest for t in (task, *keep) for i in (*t.split("train"), *t.split("validation")) for p in i.images}
    assert model.eyes.encoded - before <= len(shown)
    base, steered = figures(model, task), figures(model, task, steering)
    assert steered["per_concept_bias"] < left * base["per_concept_bias"]
    assert steered["unambiguous_accuracy_choice"] >= base["unambiguous_accuracy_choice"] - 0.01
    assert abs(steered["position_effect"]) < abs(base["position_effect"]) + 0.03
    assert steered["position_spread"] < base["position_spread"] + 0.05
    part = sample(other, 2)
    found = [figures(model, part, s)["unambiguous_accuracy_choice"] for s in (None, steering)]
    assert found[1] >= found[0] - 0.01


@pytest.mark.real
def test_the_demo_of_pictures_learns_measures_and_shows_them(trimtab_cli, tmp_path, monkeypatch) -> None:
    """With few steps; the page has scenes, every stop of the dial, and both controls."""
    monkeypatch.setattr(cli, "PICTURES", replace(cli.PICTURES, settings={**cli.PICTURES.settings, "steps": 4}))
    ran = trimtab_cli("demo", "--vision", "--seed", "1", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the picture does not tell" in page
    assert "about pictures that differ in one thing" in page
    assert page.count("data:image/png;base64,") >= 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    card = json.loads((tmp_path / "out" / "steering" / "card.json").read_text())
    assert card["data"]["task"] == "who-is"
    assert [k["task"] for k in card["data"]["keep"]] == list(cli.PICTURES.keep)
    refused = trimtab_cli("demo", "--vision", "--model", "demo:smollm2", "--out", tmp_path / "other")
    assert refused.code != 0
    assert "is shown no images" in refused.error
