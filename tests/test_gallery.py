"""The gallery: what is shown follows from the base alone, pictures are in the page, and twins differ in one thing."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest

from trimtab import gallery, task
from trimtab.tasks.rooms import planted
from trimtab.types import IMAGE, Estimate, Item, Record
from trimtab.verdict import Run

pytest.importorskip("PIL")


def record(item: Item, strength: float, p: tuple[float, ...]) -> Record:
    return Record(
        "t", "steering", strength, item.id, item.split, item.concept, item.template, item.ambiguous, item.prompt or "",
        tuple(o.text for o in item.options), tuple(o.role for o in item.options),
        tuple(o.group for o in item.options), tuple(o.position for o in item.options), p, 1.0, item.digest(),
        images=tuple(i.source for i in item.images),
    )  # fmt: skip


def a_run(name: str, steered: float = 0.0) -> Run:
    """A model that follows the world's law, and at strength 1 as much of it as `steered` says."""
    records = []
    for item in task(name, seed=0).split("test"):
        law = planted(item)
        fair = tuple(0.0 if o.role == "wrong" else 1.0 for o in item.options) if item.ambiguous else law
        even = tuple(x / sum(fair) for x in fair)
        records.append(record(item, 0.0, law))
        mixed = tuple(steered * a + (1 - steered) * b for a, b in zip(law, even, strict=True))
        records.append(record(item, 1.0, mixed))
    rows = {("t", "test", "steering", w, "per_concept_bias"): Estimate(0, 0, 0, 1, 1, 0) for w in (0.0, 1.0)}
    return Run({"tasks": [{"name": "t", "split": "test"}], "model": "m", "results": []}, rows, tuple(records))


def shown(page: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_scenes_are_one_a_concept_and_the_pictures_are_in_the_page():
    run = a_run("who-is")
    page = gallery.html(run, run.tasks[0])
    pictures = shown(page)
    assert len(pictures) == gallery.SCENES + gallery.SETTLED
    assert all(p.startswith(b"\x89PNG") for p in pictures)
    concepts = re.findall(r'class="who">([^<·]+) · the picture does not tell', page)
    assert len(set(concepts)) == gallery.SCENES
    assert IMAGE not in page and 'src="http' not in page
    assert page == gallery.html(run, run.tasks[0])


def test_what_is_shown_does_not_depend_on_how_well_the_steering_did():
    good, bad = (shown(gallery.html(a_run("who-is", s), a_run("who-is").tasks[0])) for s in (0.0, 1.0))
    assert good[: gallery.SCENES] == bad[: gallery.SCENES]


def test_twins_ask_the_same_about_pictures_that_differ_in_one_thing():
    run = a_run("occupation")
    base = [r for r in run.of(run.tasks[0], "steering", 0.0) if r.ambiguous]
    twins = gallery._twins(base)
    assert len(twins) == gallery.TWINS
    for a, b in twins:
        assert (a.prompt, a.options, a.concept) == (b.prompt, b.options, b.concept)
        one, other = (r.images[0].split(":")[1] for r in (a, b))
        assert one != other
        assert sum(x != y for x, y in zip(one.split(","), other.split(","), strict=True)) <= 2
    page = gallery.html(run, run.tasks[0])
    assert "differ in one thing" in page


def test_a_picture_that_is_gone_is_named_and_the_page_stands(tmp_path):
    run = a_run("who-is")
    gone = str(tmp_path / "gone.png")
    items = tuple(replace(r, images=(gone,)) for r in run.items)
    page = gallery.html(replace(run, items=items), run.tasks[0])
    assert "does not exist" in page and not shown(page)


def test_a_run_without_pictures_has_no_gallery():
    run = a_run("who-is")
    plain = replace(run, items=tuple(replace(r, images=()) for r in run.items))
    assert gallery.shows_pictures(run) and not gallery.shows_pictures(plain)
    assert "no pictures" in gallery.html(plain, run.tasks[0])
