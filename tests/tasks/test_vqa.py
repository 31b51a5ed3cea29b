"""VQA: questions in our own words in both forms of file; which have choices, which photograph, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trimtab import metrics, pictures
from trimtab.errors import BadItem, NotFound, TaskError
from trimtab.tasks import load_task, vqa

ASKED = [
    (1, 42, "Is the bread warm?", "yes"),
    (2, 42, "What color is the bread?", "brown"),
    (3, 7, "What color is the bowl?", "blue"),
    (4, 7, "What color is the cloth?", "red"),
    (5, 7, "What color is the spoon?", "red"),
    (6, 7, "What color is the wall?", "white"),
    (7, 7, "Who baked it?", "grandfather"),
]


def photograph(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (colour, 0, 0)).save(path)


def write(folder: Path, asked: Any = ASKED, change: Any = None, annotated: bool = True) -> Path:
    """As VQA v2 has it."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in asked]
    questions[0] |= change or {}
    answers = [{"question_id": q, "multiple_choice_answer": a, "answers": [{"answer": a}]} for q, _, _, a in asked]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    if annotated:
        held = {"annotations": answers, "data_subtype": "val2014"}
        (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(held))
    for image in (7, 42):
        photograph(folder / "val2014" / f"COCO_val2014_{image:012}.jpg", image)
    return folder


def test_yes_and_no(tmp_path):
    task = load_task("vqa", data=write(tmp_path / "vqa").parent, seed=None)
    (item,) = task.items
    assert item.prompt == "<image>\nQuestion: Is the bread warm?\nAnswer:"
    assert [(o.text, o.role) for o in item.options] == [("yes", "correct"), ("no", "wrong")]
    assert item.images == (pictures.of_file(tmp_path / "vqa/val2014/COCO_val2014_000000000042.jpg"),)
    assert (item.id, item.concept, item.template, item.split) == ("vqa/1", "yes/no", "42", "test")
    assert task.division == "all items are for testing; 1 questions about 1 photographs; 6 without choices left out"
    assert set(task.figures) <= set(metrics.NAMES)


def test_listed_choices_are_taken(tmp_path):
    task = vqa.load(write(tmp_path, change={"multiple_choices": ["yes", "no", "maybe", "yes"]}), chat=True)
    assert [o.text for o in task.items[0].options] == ["yes", "no", "maybe"]
    (message,) = task.items[0].messages or ()
    assert message.content == (
        "<image>\nIs the bread warm?\nPossible answers: yes; no; maybe. Answer with one of them and nothing else."
    )


def test_four_against_what_is_most_often_right(tmp_path):
    task = vqa.from_argument("four", write(tmp_path), None)
    assert [i.id for i in task.items] == [f"vqa/{n}" for n in range(1, 7)]
    brown = task.items[1]
    assert [(o.text, o.role) for o in brown.options] == [
        ("blue", "wrong"), ("brown", "correct"), ("red", "wrong"), ("white", "wrong"),
    ]  # fmt: skip
    assert brown.concept == "what color" and task.name == "vqa:four"
    assert brown.prompt == (
        "<image>\nQuestion: What color is the bread?\nPossible answers: blue; brown; red; white.\nAnswer:"
    )


def test_the_form_of_textvqa(tmp_path):
    held = [
        {"question_id": 5, "image_id": "0a1b", "question": "Is it open?", "answers": ["no", "no", "yes"]},
        {"question_id": 6, "image_id": "0a1b", "question": "What does it say?", "answers": ["bread"] * 10},
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": held}))
    photograph(tmp_path / "train_images" / "0a1b.jpg", 3)
    (item,) = vqa.load(tmp_path).items
    assert [o.text for o in item.options if o.role == "correct"] == ["no"] and item.template == "0a1b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": ""}, "entry 1 lacks question"),
        ({"question_id": 99}, "question 99 has no annotation"),
        ({"image_id": 8}, r"no photograph COCO_val2014_000000000008\.jpg"),
        ({"multiple_choices": ["no", "maybe"]}, "do not have the answer 'yes'"),
    ],
)
def test_bad_entries_are_named(tmp_path, change, words):
    with pytest.raises(BadItem, match=f"questions.json entry 1.*{words}|{words}"):
        vqa.load(write(tmp_path, change=change))


def test_a_missing_photograph_may_be_left_for_later(tmp_path):
    folder = write(tmp_path)
    (folder / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(BadItem, match=r"no photograph COCO_val2014_000000000042.jpg"):
        load_task("vqa", data=folder, seed=None)
    (item,) = load_task("vqa", data=folder, seed=None, skip_bad=True).items
    assert item.images == (pictures.Picture(str(folder / "COCO_val2014_000000000042.jpg"), ""),)


def test_bad_folders(tmp_path):
    with pytest.raises(NotFound, match=r"no \*questions\*.json with \*annotations\*.json"):
        vqa.load(write(tmp_path / "a", annotated=False))
    (tmp_path / "b").mkdir()
    path = tmp_path / "b" / "TextVQA_val.json"
    for content, words in (("{", "is no JSON"), ("[]", "expected an object"), ("{}", "expected 'data', a list")):
        path.write_text(content)
        with pytest.raises(BadItem, match=words):
            vqa.load(tmp_path / "b")
    path.write_text(json.dumps({"data": [{"question_id": 1, "image_id": "x", "question": "Is it?"}]}))
    with pytest.raises(BadItem, match="has no answers"):
        vqa.load(tmp_path / "b")
    (tmp_path / "b" / "TextVQA_test.json").write_text("{}")
    with pytest.raises(BadItem, match="keep the one that is meant"):
        vqa.load(tmp_path / "b")
    with pytest.raises(TaskError, match="vqa:four makes choices"):
        vqa.load(write(tmp_path / "c", ASKED[6:]))
    with pytest.raises(TaskError, match=r"expected vqa\[:four\]\[:chat\]"):
        vqa.from_argument("five", tmp_path, None)
