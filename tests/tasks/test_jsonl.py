"""Bring-your-own items: what is read, and every defect, by line and field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trimtab import pictures
from trimtab.errors import BadItem, NotFound, TaskError
from trimtab.pictures import of_file
from trimtab.tasks import jsonl
from trimtab.types import Message, Option, Picture

PRO_ANTI = [{"text": "she", "role": "pro"}, {"text": "he", "role": "anti"}]
RIGHT_WRONG = [{"text": "he", "role": "correct"}, {"text": "she", "role": "wrong"}]
MISSING = object()


def row(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A sound ambiguous line; a change to MISSING takes the field away."""
    fields: dict[str, Any] = {
        "id": name,
        "prompt": "The nurse said that",
        "options": PRO_ANTI,
        "concept": "nurse",
        "template": "said that",
        "ambiguous": True,
        **changes,
    }
    return {k: v for k, v in fields.items() if v is not MISSING}


def write(tmp_path: Path, *rows: Any, name: str = "items.jsonl") -> Path:
    """A file with one line for each row; text and bytes stay as they are."""
    lines = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows]
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def defects(tmp_path: Path, *rows: Any) -> list[str]:
    """The lines of the refusal, without its head."""
    with pytest.raises(BadItem) as raised:
        jsonl.load(write(tmp_path, *rows), seed=None)
    head, *found = str(raised.value).splitlines()
    assert "items.jsonl" in head
    if not found[-1].startswith("... and"):
        assert f"has {len(found)} defect" in head
    return found


def grid_rows() -> list[dict[str, Any]]:
    return [row(f"{c}/{t}", concept=f"c{c}", template=f"t{t}") for c in range(4) for t in range(4)]


# what is read


def test_a_sound_file(tmp_path: Path) -> None:
    options = [
        {"text": "she", "role": "pro", "group": "women"},
        {"text": "he", "role": "anti", "group": None},
    ]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is Tom she or he?"}]
    path = write(
        tmp_path,
        row("a", options=options),
        row("b", prompt=MISSING, messages=chat, options=RIGHT_WRONG, ambiguous=False),
    )
    task = jsonl.load(path, seed=None)
    first, second = task.items
    assert task.name == f"jsonl:{path}"
    assert (task.division, task.seed) == ("not divided (no seed)", None)
    assert (first.id, first.prompt, first.messages, first.split) == ("a", "The nurse said that", None, None)
    assert first.options == (Option("she", "pro", "women"), Option("he", "anti"))
    assert second.prompt is None and second.ambiguous is False
    assert second.messages == (Message("system", "Be brief."), Message("user", "Is Tom she or he?"))
    assert second.options == (Option("he", "correct", position=1), Option("she", "wrong", position=0))


def test_the_example_in_the_documentation_is_sound(tmp_path: Path) -> None:
    text = (jsonl.__doc__ or "").split("`--task jsonl:PATH`.")[1].split("(each on one line")[0]
    decoder, rows = json.JSONDecoder(), []
    while text.strip():
        value, end = decoder.raw_decode(text.strip())
        rows.append(value)
        text = text.strip()[end:]
    task = jsonl.load(write(tmp_path, *rows), seed=None)
    assert [i.ambiguous for i in task.items] == [True, False]


def test_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    one, two = json.dumps(row("a")), json.dumps(row("b", prompt="Ä\u2028ö"), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf\r\n" + one.encode() + b"\r\n  \r\n" + two.encode())
    task = jsonl.load(path, seed=None)
    assert [i.id for i in task.items] == ["a", "b"]
    assert task.items[1].prompt == "Ä\u2028ö"  # a line separator inside text does not end the line


def test_no_split_is_drawn_from_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, *grid_rows())
    task = jsonl.load(path, seed=7)
    assert task.seed == 7 and task.division.startswith("drawn with seed 7")
    assert {i.split for i in task.items} == {"train", "validation", "test"}
    assert jsonl.load(path, seed=7) == task
    assert jsonl.load(path, seed=None).split("all") == jsonl.load(path, seed=None).items


def test_what_cannot_be_divided_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r'1 concept and 1 template .*"split" on each line.*--split all'):
        jsonl.load(write(tmp_path, row("a")), seed=1)


def test_a_given_split_is_kept_whatever_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, row("a", split="test"), row("b", split="train", concept="cook", template="did"))
    task = jsonl.load(path, seed=3)
    assert [i.split for i in task.items] == ["test", "train"]
    assert (task.division, task.seed) == ("given in the file", None)


def test_a_given_split_that_is_not_disjoint_is_kept_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, row("a", split="test"), row("b", split="train", template="did"))
    division = jsonl.load(path, seed=None).division
    assert division == "given in the file; NOT disjoint: 1 concept and 0 templates occur in more than one split" or (
        "NOT disjoint: 1 concept and 0 templates occurs" in division
    )


def test_groups_can_stand_in_for_pro_and_anti(tmp_path: Path) -> None:
    options = [{"text": t, "role": "neither", "group": g} for t, g in (("a", "x"), ("b", "y"), ("c", "z"))]
    assert jsonl.load(write(tmp_path, row(options=options)), seed=None).items


def test_pro_and_anti_may_come_from_different_items_of_a_concept(tmp_path: Path) -> None:
    pro = [{"text": "a", "role": "pro"}, {"text": "b", "role": "neither"}]
    anti = [{"text": "a", "role": "anti"}, {"text": "b", "role": "neither"}]
    assert len(jsonl.load(write(tmp_path, row("a", options=pro), row("b", options=anti)), seed=None).items) == 2


# what is refused


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.jsonl' does not exist"):
        jsonl.load(tmp_path / "nowhere.jsonl", seed=None)
    with pytest.raises(NotFound, match="is a folder with 0 JSONL files"):
        jsonl.load(tmp_path, seed=None)
    file = write(tmp_path, row("a"))
    assert jsonl.load(tmp_path, seed=None).items == jsonl.load(file, seed=None).items
    (tmp_path / "more.jsonl").write_text("")
    with pytest.raises(NotFound, match="is a folder with 2 JSONL files"):
        jsonl.load(tmp_path, seed=None)
    (tmp_path / "more.jsonl").unlink()
    for content in ("", "\n \n"):
        with pytest.raises(TaskError, match="Empty task"):
            jsonl.load(write(tmp_path, content), seed=None)


CASES: dict[str, tuple[Any, str]] = {
    "invalid JSON": ('{"id": ', "line 2: invalid JSON (Expecting value at character 8)"),
    "not UTF-8": (b'{"id": "\xe9"}', "line 2: not UTF-8 (byte 0xe9 at position 9); save the file as UTF-8"),
    "not an object": ([1], "line 2: expected an object {...}, got a list"),
    "null line": ("null", "line 2: expected an object {...}, got null"),
    "unknown field, near": (row("b", promt="x"), "line 2, promt: unknown field; did you mean 'prompt'?"),
    "unknown field, far": (
        row("b", zzz=1),
        "line 2, zzz: unknown field; known fields: id, prompt, messages, ",
    ),
    "field twice": (json.dumps(row("b"))[:-1] + ', "concept": "x"}', "line 2, concept: given more than once"),
    "no id": (row("b", id=MISSING), "line 2, id: missing"),
    "no options": (row("b", options=MISSING), "line 2, options: missing"),
    "no concept": (row("b", concept=MISSING), "line 2, concept: missing"),
    "no template": (row("b", template=MISSING), "line 2, template: missing"),
    "no ambiguous": (row("b", ambiguous=MISSING), "line 2, ambiguous: missing"),
    "id a number": (row("b", id=3), "line 2, id: expected text, got the number 3"),
    "empty id": (row("b", id=" "), "line 2, id: empty"),
    "concept a list": (row("b", concept=["x"]), "line 2, concept: expected text, got a list"),
    "empty template": (row("b", template=""), "line 2, template: empty"),
    "ambiguous a text": (row("b", ambiguous="yes"), "line 2, ambiguous: expected true or false, got text"),
    "ambiguous a number": (
        row("b", ambiguous=1),
        "line 2, ambiguous: expected true or false, got the number 1",
    ),
    "same id": (row("a"), "line 2, id: 'a' is already the id of line 1"),
    "neither prompt nor messages": (
        row("b", prompt=MISSING),
        "line 2, prompt: expected either prompt or messages, got neither",
    ),
    "both prompt and messages": (
        row("b", messages=[{"role": "user", "content": "x"}]),
        "line 2, prompt: expected either prompt or messages, got both",
    ),
    "empty prompt": (row("b", prompt="  "), "line 2, prompt: empty"),
    "prompt a number": (row("b", prompt=1.5), "line 2, prompt: expected text, got the number 1.5"),
    "half a character": (
        row("b", prompt="\ud800"),
        "line 2, prompt: half of a surrogate pair, which is no text",
    ),
    "messages a text": (
        row("b", prompt=MISSING, messages="x"),
        "line 2, messages: expected a list, got text",
    ),
    "messages empty": (row("b", prompt=MISSING, messages=[]), "line 2, messages: empty"),
    "message a text": (
        row("b", prompt=MISSING, messages=["x"]),
        "line 2, messages[0]: expected an object with role and content, got text",
    ),
    "message role": (
        row("b", prompt=MISSING, messages=[{"role": "human", "content": "x"}]),
        "line 2, messages[0].role: unknown role 'human', expected system, user or assistant",
    ),
    "message without content": (
        row("b", prompt=MISSING, messages=[{"role": "user"}]),
        "line 2, messages[0].content: missing",
    ),
    "message field": (
        row("b", prompt=MISSING, messages=[{"role": "user", "content": "x", "contents": "y"}]),
        "line 2, messages[0].contents: unknown field; did you mean 'content'?",
    ),
    "last message": (
        row("b", prompt=MISSING, messages=[{"role": "assistant", "content": "x"}]),
        "line 2, messages: the last message must be from user, got assistant",
    ),
    "options an object": (row("b", options={}), "line 2, options: expected a list, got an object"),
    "one option": (row("b", options=PRO_ANTI[:1]), "line 2, options: expected at least 2 options, got 1"),
    "option a text": (
        row("b", options=["she", *PRO_ANTI[1:]]),
        "line 2, options[0]: expected an object with text and role, got text",
    ),
    "option text empty": (
        row("b", options=[{"text": " ", "role": "pro"}, PRO_ANTI[1]]),
        "line 2, options[0].text: empty",
    ),
    "option text twice": (
        row("b", options=[*PRO_ANTI, {"text": " she", "role": "neither"}]),
        "line 2, options[2].text: ' she' is already the text of options[0]",
    ),
    "option without role": (
        row("b", options=[{"text": "x"}, PRO_ANTI[1]]),
        "line 2, options[0].role: missing",
    ),
    "unknown role": (
        row("b", options=[{"text": "x", "role": "antii"}, PRO_ANTI[0]]),
        "line 2, options[0].role: unknown role 'antii', expected pro, anti, neither, correct or wrong; "
        "did you mean 'anti'?",
    ),
    "option field": (
        row("b", options=[{"text": "x", "role": "anti", "grop": "men"}, PRO_ANTI[0]]),
        "line 2, options[0].grop: unknown field; did you mean 'group'?",
    ),
    "group a number": (
        row("b", options=[{"text": "x", "role": "anti", "group": 1}, PRO_ANTI[0]]),
        "line 2, options[0].group: expected text, got the number 1",
    ),
    "settled role on an ambiguous item": (
        row("b", options=[{"text": "x", "role": "correct"}, PRO_ANTI[0]]),
        "line 2, options[0].role: 'correct' on an ambiguous item; expected pro, anti or neither",
    ),
    "stereotype role on an unambiguous item": (
        row("b", ambiguous=False, options=[{"text": "x", "role": "pro"}, *RIGHT_WRONG]),
        "line 2, options[0].role: 'pro' on an unambiguous item; expected correct or wrong",
    ),
    "no correct option": (
        row("b", ambiguous=False, options=[{"text": t, "role": "wrong"} for t in "xy"]),
        "line 2, options: an unambiguous item needs at least one 'correct' option",
    ),
    "no wrong option": (
        row("b", ambiguous=False, options=[{"text": t, "role": "correct"} for t in "xy"]),
        "line 2, options: an unambiguous item needs at least one 'wrong' option",
    ),
    "one class of outcome": (
        row("b", concept="cook", options=[{"text": "x", "role": "pro"}, {"text": "y", "role": "neither"}]),
        "line 2, concept: concept 'cook' has one class of outcome ('pro' and 'neither' only) over its 1 "
        "ambiguous item; expected both 'pro' and 'anti', or more than two groups in an item",
    ),
    "only pro": (
        row("b", concept="cook", options=[{"text": t, "role": "pro"} for t in "xy"]),
        "line 2, concept: concept 'cook' has one class of outcome ('pro' only)",
    ),
}


@pytest.mark.parametrize(("bad", "expected"), CASES.values(), ids=CASES)
def test_one_defect(tmp_path: Path, bad: Any, expected: str) -> None:
    found = defects(tmp_path, row("a"), bad)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


@pytest.mark.parametrize("value", ["dev", "Train", ""])
def test_unknown_split(tmp_path: Path, value: str) -> None:
    found = defects(tmp_path, row("a", split="train"), row("b", split=value))
    assert found[0].startswith(f"line 2, split: unknown split {value!r}, expected train, validation or test")
    assert ("did you mean 'train'" in found[0]) == (value == "Train")


def test_a_split_of_null(tmp_path: Path) -> None:
    assert defects(tmp_path, row("a", split=None)) == ["line 1, split: expected text, got null"]


def test_a_split_on_some_lines_only(tmp_path: Path) -> None:
    rows = [row("a", split="train"), "", row("b"), row("c", split="test"), row("d")]
    assert defects(tmp_path, *rows) == [
        "line 3, split: missing here and on 1 other line, but given on line 1 and on 1 other line; "
        "give it on every line or on none"
    ]


def test_all_defects_are_collected_in_the_order_of_the_lines(tmp_path: Path) -> None:
    rows = [row("a"), "{", row("a", prompt="", options=PRO_ANTI[:1]), "", row("c", template=7)]
    assert [d.split(":")[0] for d in defects(tmp_path, *rows)] == [
        "line 2",
        "line 3, prompt",
        "line 3, options",
        "line 3, id",
        "line 5, template",
    ]


def test_twenty_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    found = defects(tmp_path, *(row(str(k), prompt="") for k in range(33)))
    assert len(found) == 21
    assert found[19].startswith("line 20,") and found[20] == "... and 13 more"


def test_a_line_with_a_defect_does_not_bring_on_another_for_its_concept(tmp_path: Path) -> None:
    only_pro = [{"text": "x", "role": "pro"}, {"text": "y", "role": "neither"}]
    broken_anti = [{"text": "x", "role": "ant"}, {"text": "y", "role": "neither"}]
    found = defects(tmp_path, row("a", options=only_pro), row("b", options=broken_anti))
    assert [d.split(":")[0] for d in found] == ["line 2, options[0].role"]


# images


def picture(folder: Path, name: str, colour: str = "red") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), colour).save(path)
    return path


def test_images_beside_the_file(tmp_path: Path) -> None:
    red, blue = picture(tmp_path, "red.png"), picture(tmp_path, "more/blue.png", "blue")
    chat = [{"role": "user", "content": "First <image>, then <image>."}]
    path = write(
        tmp_path,
        row("a", images=["red.png"]),
        row("b", prompt=MISSING, messages=chat, images=["more/../more/blue.png", "./red.png"]),
        row("c"),
    )
    a, b, c = jsonl.load(path, seed=None).items
    assert a.images == (of_file(red),) and c.images == ()
    assert [i.digest for i in b.images] == [of_file(blue).digest, of_file(red).digest]
    assert len({a.digest(), c.digest(), replace(a, images=b.images[:1]).digest()}) == 3


def test_the_working_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path, "red.png")
    write(tmp_path, row("a", images=["red.png"]))
    monkeypatch.chdir(tmp_path)
    near = jsonl.load("items.jsonl", seed=None).items
    monkeypatch.chdir("/")
    assert jsonl.load(tmp_path / "items.jsonl", seed=None).items == near


def test_a_relative_path_stays_inside_and_an_absolute_one_is_taken_as_it_is(tmp_path: Path) -> None:
    outside = picture(tmp_path, "outside.png")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "linked.png").symlink_to(outside)
    found = defects(
        tmp_path / "task", row("a", images=["../outside.png"]), row("b", images=["x/../../task/linked.png"])
    )
    assert "line 1, images[0]: of item 'a': '../outside.png' leads out of" in found[0]
    assert "leads out of" in found[1] and len(found) == 2
    kept = write(tmp_path / "task", row("a", images=[str(outside)]), row("b", images=["linked.png"]))
    assert [i.images[0].digest for i in jsonl.load(kept, seed=None).items] == [of_file(outside).digest] * 2


def test_a_missing_image_names_the_item_and_the_line(tmp_path: Path) -> None:
    picture(tmp_path, "red.png")
    found = defects(tmp_path, row("a", images=["red.png"]), row("b/7", images=["red.png", "blue.png"]))
    gone = str(tmp_path / "blue.png")
    assert found == [f"line 2, images[1]: of item 'b/7': image {gone!r} does not exist"]


def test_a_missing_image_may_be_left_for_later(tmp_path: Path) -> None:
    path = write(tmp_path, row("a", images=["blue.png"]))
    with pictures.later():
        (item,) = jsonl.load(path, seed=None).items
    assert item.images == (Picture(str(tmp_path / "blue.png"), ""),)
    with pytest.raises(BadItem):
        jsonl.load(path, seed=None)


def test_images_and_their_places_in_the_text_are_counted(tmp_path: Path) -> None:
    picture(tmp_path, "red.png")
    found = defects(
        tmp_path,
        row("a", prompt="<image> <image> said that", images=["red.png"]),
        row("b", prompt="<image> said that"),
        row("c", images=[]),
        row("d", images="red.png"),
        row("e", images=[7, ""]),
        row("f", image=["red.png"]),
    )
    assert found == [
        "line 1, images: 1 image, but <image> stands in the text 2 times",
        "line 2, images: missing, but <image> stands in the text once",
        "line 3, images: empty; an item without images has no such field",
        "line 4, images: expected a list, got text",
        "line 5, images[0]: expected the path of a file, got the number 7",
        "line 5, images[1]: expected the path of a file, got empty text",
        "line 6, image: unknown field; did you mean 'images'?",
    ]
