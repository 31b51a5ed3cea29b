"""MMMU: questions in our own words, from parquet rows to items; places of pictures, letters, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trimtab import metrics, pictures
from trimtab.errors import BadItem, NotFound, TaskError
from trimtab.tasks import load_task, mmmu
from trimtab.tasks.pins import _with_pictures

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def png(colour: str) -> dict[str, Any]:
    sink = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(sink, "PNG")
    return {"bytes": sink.getvalue(), "path": f"{colour}.png"}


def row(
    name: str, question: str, options: Any = "['bread', 'stone']", answer: str = "A", **more: Any
) -> dict[str, Any]:
    """A row as the data set's parquet has it."""
    kind = {"question_type": "multiple-choice", "subfield": "Baking", **{f"image_{n}": None for n in range(1, 8)}}
    return {"id": name, "question": question, "options": options, "answer": answer, **kind, **more}


ROWS = [
    row("validation_Baking_1", "What is <image 1>?", image_1=png("red")),
    row(
        "validation_Baking_2", "Which is like <image 2>, and why is <image 1> not?",
        "['<image 2>', 'neither', \"it's both\"]", "C", image_1=png("red"), image_2=png("blue"),
    ),
    row("validation_Baking_3", "Name it.", image_1=png("blue")),
    row("validation_Baking_4", "What is <image 1>?", "[]", "bread", question_type="open", image_1=png("red")),
]  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]] = ROWS, subject: str = "Baking") -> Path:
    """What a fetch writes."""
    for name, content in _with_pictures(subject, rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def seen(picture: Any) -> tuple[int, ...]:
    return pictures.opened(picture).getpixel((0, 0))


def test_pictures_stand_where_they_are_mentioned(tmp_path):
    task = load_task("mmmu", data=write(tmp_path / "mmmu").parent, seed=None)
    one, two, three = task.items
    assert one.prompt == "What is <image>?\n(A) bread\n(B) stone\nAnswer:"
    assert [(o.text, o.role) for o in one.options] == [("A", "correct"), ("B", "wrong")]
    assert two.prompt == (
        "Which is like <image>, and why is <image> not?\n(A) <image>\n(B) neither\n(C) it's both\nAnswer:"
    )
    assert [seen(p) for p in two.images] == [COLOURS["blue"], COLOURS["red"], COLOURS["blue"]]
    assert [o.text for o in two.options if o.role == "correct"] == ["C"]
    assert three.prompt == "<image>\nName it.\n(A) bread\n(B) stone\nAnswer:" and len(three.images) == 1
    assert (one.concept, one.template, one.split) == ("Baking", "Baking/validation_Baking_1", "test")
    assert task.division == "all items are for testing; 1 subjects, 3 questions; 1 open questions left out"
    assert task.parted and set(task.figures) <= set(metrics.NAMES)


def test_the_bytes_are_those_of_the_data_set(tmp_path):
    write(tmp_path)
    assert (tmp_path / "Baking" / "validation_Baking_1_1.png").read_bytes() == png("red")["bytes"]
    line = json.loads((tmp_path / "Baking" / "validation.jsonl").read_text().splitlines()[1])
    assert line["images"] == ["validation_Baking_2_1.png", "validation_Baking_2_2.png", *[None] * 5]


def test_subjects_and_chat(tmp_path):
    write(write(tmp_path), [row("v_1", "<image 1>?", image_1=png("red"))], "Art_Theory")
    assert len(mmmu.load(tmp_path).items) == 4
    task = mmmu.from_argument("chat:art_theory", tmp_path, None)
    assert task.name == "mmmu:chat:Art_Theory" and len(task.items) == 1
    (message,) = task.items[0].messages or ()
    assert message.content.endswith("Answer with the letter of the right choice alone.")
    with pytest.raises(TaskError, match=r"no subject 'Cooking'. It has Art_Theory, Baking"):
        mmmu.from_argument("Cooking", tmp_path, None)
    with pytest.raises(TaskError, match=r"expected mmmu\[:chat\]"):
        mmmu.from_argument("Art:Baking", tmp_path, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "C"}, "answer is 'C', expected one of 'A', 'B'"),
        ({"options": "no list"}, "options are no list"),
        ({"options": "__import__('os')"}, "options are no list"),
        ({"options": "['one']"}, "expected a list of 2 to 26 options"),
        ({"question": "What is <image 2>?"}, "<image 2> is mentioned, and there is no image 2"),
        ({"question": "What is <image 9>?"}, "<image 9> is mentioned"),
        ({"question": "What?", "image_1": None}, "a question without any image"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, words):
    with pytest.raises(BadItem, match=f"validation.jsonl line 2: {words}"):
        mmmu.load(write(tmp_path, [ROWS[0], ROWS[2] | change]))


def test_bad_folders(tmp_path):
    with pytest.raises(NotFound, match=r"no SUBJECT/validation.jsonl.*trimtab fetch mmmu"):
        mmmu.load(tmp_path)
    folder = write(tmp_path / "a")
    (folder / "Baking" / "validation_Baking_1_1.png").unlink()
    with pytest.raises(BadItem, match=r"line 1: image .*validation_Baking_1_1.png' does not exist"):
        mmmu.load(folder)
    with pytest.raises(BadItem, match="is there twice"):
        mmmu.load(write(tmp_path / "b", [ROWS[0], ROWS[0]]))
    with pytest.raises(TaskError, match="no question with choices"):
        mmmu.load(write(tmp_path / "c", ROWS[3:]))
