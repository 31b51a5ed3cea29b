"""Items whose image cannot be opened: refused together before anything is scored, or left out everywhere and named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import row, write_rows
from trimtab import pictures
from trimtab.errors import BadItem, NoChatTemplate, RunError, TaskError
from trimtab.evaluate import Skipped, _with_bad_images, evaluate
from trimtab.tasks import load_task
from trimtab.testing import random_steering, tiny, tiny_task
from trimtab.types import Item, Message, Task


@pytest.fixture
def gone(tmp_path: Path) -> pictures.Picture:
    with pictures.later():
        return pictures.of_file(tmp_path / "gone.png")


def showing(task: Task, picture: pictures.Picture, n: int) -> Task:
    """The task, the first n of its test items with an image."""
    left = n
    items: list[Item] = []
    for item in task.items:
        if item.split == "test" and left:
            left -= 1
            item = replace(item, images=(picture,))
        items.append(item)
    return replace(task, items=tuple(items))


def run(model: Any, task: Task, neutral: Path, **more: Any) -> Any:
    steering = random_steering(model, scale=0.05)
    return evaluate(model, task, steering, (0.0, 1.0), seed=0, neutral=neutral, resamples=20, samples=(), **more)


def test_all_bad_items_are_refused_together_before_anything_is_scored(llama, neutral_file, gone, monkeypatch):
    monkeypatch.setattr(type(llama), "score", lambda *a, **k: pytest.fail("scored"))
    task = showing(tiny_task(12, 12), gone, 2)
    first = next(i for i in task.items if i.images)
    with pytest.raises(BadItem) as caught:
        run(llama, task, neutral_file)
    head, *rest = str(caught.value).splitlines()
    assert head == "2 items show images that cannot be opened; mend them, or leave them out with --skip-bad:"
    assert rest[0] == f"task {task.name!r}, item {first.id!r}: image {gone.source!r} does not exist"
    assert len(rest) == 2


def test_a_skipped_item_is_skipped_in_every_cell_and_named(llama, neutral_file, gone, tmp_path):
    task = showing(tiny_task(12, 12), gone, 3)
    found = run(llama, task, neutral_file, skip_bad=True, out=tmp_path / "run")
    bad = [i.id for i in task.items if i.images]
    assert [s.id for s in found.skipped] == bad and all("does not exist" in s.reason for s in found.skipped)
    cells: dict[Any, set[str]] = {}
    for record in found.records:
        cells.setdefault((record.arm, record.strength), set()).add(record.id)
    kept = {i.id for i in task.items if i.split == "test"} - set(bad)
    assert len(cells) == 4 and all(ids == kept for ids in cells.values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped"] == [{"task": task.name, "id": s.id, "reason": s.reason} for s in found.skipped]


def test_what_is_left_is_measured_as_if_the_others_had_never_been(llama, neutral_file, gone):
    task = showing(tiny_task(12, 12), gone, 3)
    without = replace(task, items=tuple(i for i in task.items if not i.images))
    rows = [run(llama, t, neutral_file, skip_bad=True).results for t in (task, without)]
    assert rows[0] == rows[1]


def test_nothing_bad_changes_nothing(llama, neutral_file, tmp_path):
    found = run(llama, tiny_task(12, 12), neutral_file, skip_bad=True, out=tmp_path / "run")
    assert found.skipped == () and json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == []
    run(llama, tiny_task(12, 12), neutral_file, out=tmp_path / "run")  # the same run, resumed without the option


def test_a_run_does_not_go_on_with_other_items(llama, neutral_file, gone, tmp_path):
    task = tiny_task(12, 12)
    run(llama, task, neutral_file, out=tmp_path / "run")
    with pytest.raises(RunError):
        run(llama, showing(task, gone, 1), neutral_file, skip_bad=True, out=tmp_path / "run")


def test_nothing_left_is_an_error(llama, neutral_file, gone):
    with pytest.raises(TaskError, match=r"none of its .* items can be used: image .* does not exist"):
        run(llama, showing(tiny_task(12, 12), gone, 1000), neutral_file, skip_bad=True)


def test_items_that_the_model_cannot_be_shown_are_left_out_as_well(llama, neutral_file, monkeypatch):
    """Too long for the context, an image for a model without eyes, a chat for one without a template."""
    task = tiny_task(12, 12)
    test = [i for i in task.items if i.split == "test"]
    bad = {
        test[0].id: (replace(test[0], prompt="word " * 400), r"needs \d+ tokens"),
        test[3].id: (replace(test[3], images=(pictures.Picture("roomworld:", "1"),)), "reads words alone"),
        test[5].id: (replace(test[5], prompt=None, messages=(Message("user", "who?"),)), "no chat template"),
    }
    monkeypatch.setattr(pictures, "opened", lambda picture: None)
    monkeypatch.setattr(type(llama), "chats", property(lambda model: False))
    shown = replace(task, items=tuple(bad[i.id][0] if i.id in bad else i for i in task.items))
    found = run(llama, shown, neutral_file, skip_bad=True)
    assert [s.id for s in found.skipped] == [i.id for i in test if i.id in bad]
    assert all(re.search(bad[s.id][1], s.reason) and f"'{s.id}'" in s.reason for s in found.skipped)
    without = run(llama, replace(task, items=tuple(i for i in task.items if i.id not in bad)), neutral_file)
    assert found.results == without.results
    for item, why in bad.values():
        one = replace(task, items=tuple(item if i.id == item.id else i for i in task.items))
        with pytest.raises((BadItem, NoChatTemplate), match=why):
            run(llama, one, neutral_file)


def test_an_item_too_long_to_be_looked_at_twice_is_left_out_where_it_would_be(neutral_file):
    """Self-Debias shows an item again behind the answer; read once it is short enough."""
    roomy = tiny("llama", max_position_embeddings=1024)
    task = tiny_task(12, 12)
    first = next(i for i in task.items if i.split == "test")
    shown = replace(task, items=tuple(replace(i, prompt="word " * 120) if i is first else i for i in task.items))
    assert run(roomy, shown, neutral_file, skip_bad=True).skipped == ()
    with pytest.raises(BadItem, match=r"needs \d+ tokens"):
        run(roomy, shown, neutral_file, baselines=["self-debias"])
    found = run(roomy, shown, neutral_file, baselines=["self-debias"], skip_bad=True)
    assert [s.id for s in found.skipped] == [first.id]
    without = replace(task, items=tuple(i for i in task.items if i is not first))
    assert found.results == run(roomy, without, neutral_file, baselines=["self-debias"]).results


def test_each_file_is_opened_once_and_what_is_drawn_never(tmp_path, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    good, bad = pictures.of_file(tmp_path / "a.png"), pictures.of_file(tmp_path / "b.png")
    drawn = pictures.Picture("roomworld:anything", "")
    items = [replace(i, images=(good, drawn, bad) if n % 2 else (good,)) for n, i in enumerate(tiny_task().items[:6])]
    opened, plain = [], pictures.opened
    monkeypatch.setattr(pictures, "opened", lambda p, **k: opened.append(p) or plain(p, **k))
    found = _with_bad_images({"t": items})
    assert opened == [good, bad]
    assert [s.id for s in found] == [i.id for i in items[1::2]]
    assert all(isinstance(s, Skipped) and "is no image" in s.reason for s in found)


def test_the_command_line_names_them_and_goes_on(trimtab_cli, chat_folder, neutral_file, tmp_path):
    rows = [row(i) for i in tiny_task(12, 12).items]
    bad = next(r for r in rows if r["split"] == "test")
    bad["images"] = ["gone.png"]
    task = f"jsonl:{write_rows(tmp_path / 'items.jsonl', rows)}"
    line = rows.index(bad) + 1
    words = ("eval", "--model", chat_folder, "--task", task, "--seed", 0, "--neutral", neutral_file, "--no-controls")
    ran = trimtab_cli(*words, "--out", tmp_path / "run")
    assert ran.code == 6 and f"line {line}, images[0]: of item {bad['id']!r}" in ran.error
    ran = trimtab_cli(*words, "--out", tmp_path / "run", "--skip-bad")
    assert ran.code == 0
    assert "left out 1 item, everywhere" in ran.err and f": {bad['id']}: image" in ran.err
    assert "does not exist" in ran.err
    assert len(load_task(task, seed=0, skip_bad=True).items) == len(rows)
