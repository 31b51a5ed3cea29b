"""Questions about photographs in the format of VQA (Goyal et al., CVPR 2017), read from a folder.

**A closed version, not the VQA accuracy.** The published figure lets a model write anything and counts what ten people
wrote; we compare answers that are given. Read are questions that have such answers: those that list choices
(`multiple_choices`, as VQA v1 does, or `choices`), and those whose answer is yes or no. With `vqa:four` the others as
well: the right answer against three that are most often right elsewhere, to questions that begin with the same two
words ("what color", "how many"). What has no choices, because too few questions begin so, is left out and counted. The
right answer is `multiple_choice_answer`, or else what most of the annotators wrote, the earlier where several are as
many.

It is there to show what a steering costs: the same items before and after. A concept is the kind of question (its first
two words, or yes/no), a template the photograph, about which there are several questions. Every item is a test item.

Files, in the folder: *questions*.json ({"questions": [{question_id, image_id, question}]}) and *annotations*.json
({"annotations": [{question_id, multiple_choice_answer, answers: [{answer}]}], "data_subtype"}), as in VQA v2; or one
JSON file of TextVQA's form ({"data": [{question_id, image_id, question, answers: [text]}]}). The photograph is
COCO_SUBTYPE_000000000042.jpg, 000000000042.jpg or IMAGE_ID.jpg (.png), in the folder or one folder below it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab import pictures
from trimtab.errors import BadItem, TaskError
from trimtab.tasks import rows
from trimtab.tasks.source import locate
from trimtab.types import IMAGE, Item, Message, Option, Picture, Task

FIGURES = ("unambiguous_accuracy_choice", "unambiguous_accuracy")
YES_NO = ("yes", "no")
ENDINGS = (".jpg", ".jpeg", ".png")
OTHERS = 3
"""Wrong answers beside the right one, in `vqa:four`."""


@dataclass(frozen=True, slots=True)
class _Asked:
    id: str
    image: str
    question: str
    answer: str
    choices: tuple[str, ...]


def from_argument(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `vqa[:four][:chat]`, given what follows the name."""
    del seed
    words = [w for w in argument.split(":") if w]
    if set(words) - {"four", "chat"} or len(words) != len(set(words)):
        raise TaskError(f"Cannot read the task 'vqa:{argument}'; expected vqa[:four][:chat]")
    return load(data, four="four" in words, chat="chat" in words)


def load(data: str | Path | None = None, *, four: bool = False, chat: bool = False) -> Task:
    """The questions that have choices, in the order of the file.

    Raises NotFound for a missing folder, BadItem naming the entry of a defect or a photograph that is not there.
    """
    folder, asked = _read(data)
    offered = _offered(asked) if four else {}
    photographs = _photographs(folder)
    items: list[Item] = []
    album: dict[str, Picture] = {}
    for where, one, subtype in asked:
        choices = one.choices or (YES_NO if one.answer in YES_NO else offered.get(one.id, ()))
        if choices:
            if one.image not in album:
                album[one.image] = pictures.of_file(_photograph(where, folder, photographs, one.image, subtype))
            items.append(_item(one, choices, album[one.image], chat))
    if not items:
        raise TaskError(f"{str(folder)!r} has no question with choices or a yes or no; vqa:four makes choices")
    how = f"all items are for testing; {len(items)} questions about {len(album)} photographs"
    if left := len(asked) - len(items):
        how += f"; {left} without choices left out"
    name = ":".join(["vqa", *(["four"] if four else []), *(["chat"] if chat else [])])
    return Task(name, tuple(items), how, figures=FIGURES)


def _read(data: str | Path | None) -> tuple[Path, list[tuple[str, _Asked, str]]]:
    def find(root: Path) -> Path | None:
        return next((f for f in (root / "vqa", root / "textvqa", root) if f.is_dir() and _files(f)), None)

    folder = locate(
        "vqa", data, find,
        lambda root: f"Looked for VQA in {str(root)!r} and its folder vqa: no *questions*.json with "
        "*annotations*.json, and no TextVQA*.json",
    )  # fmt: skip
    files = _files(folder)
    if len(files) == 1:
        path = files[0]
        asked = [(f"{path.name} entry {n}", row, row, "") for n, row in enumerate(_list(path, "data"), start=1)]
    else:
        questions, annotations = files
        known = {str(row.get("question_id")): row for row in _list(annotations, "annotations")}
        subtype = str(_json(annotations).get("data_subtype") or "")
        asked = []
        for n, row in enumerate(_list(questions, "questions"), start=1):
            where = f"{questions.name} entry {n}"
            if str(row.get("question_id")) not in known:
                raise BadItem(f"{where}: question {row.get('question_id')!r} has no annotation in {annotations.name}")
            asked.append((where, row, known[str(row["question_id"])], subtype))
    return folder, [(where, _asked(where, row, answers), subtype) for where, row, answers, subtype in asked]


def _files(folder: Path) -> list[Path]:
    """[questions, annotations] or [the one file]; [] where there is neither. Raises BadItem where several fit."""
    found = sorted(p for p in folder.glob("*.json") if p.is_file())
    kinds = {kind: [p for p in found if kind in p.name.lower()] for kind in ("questions", "annotations", "textvqa")}
    for paths in kinds.values():
        if len(paths) > 1:
            raise BadItem(f"{str(paths[0])!r} and {str(paths[1])!r}: keep the one that is meant")
    if kinds["questions"] and kinds["annotations"]:
        return [*kinds["questions"], *kinds["annotations"]]
    return kinds["textvqa"]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        held = json.loads(rows.text_of(path))
    except (ValueError, RecursionError) as error:
        raise BadItem(f"{path.name} is no JSON ({error}); fetch the file again") from error
    if not isinstance(held, dict):
        raise BadItem(f"{path.name} holds {type(held).__name__}, expected an object")
    return held


def _list(path: Path, field: str) -> list[Mapping[str, Any]]:
    held = _json(path).get(field)
    if not isinstance(held, list) or not all(isinstance(row, dict) for row in held):
        raise BadItem(f"{path.name}: expected {field!r}, a list of objects; is this the file that is meant?")
    return held


def _asked(where: str, row: Mapping[str, Any], annotation: Mapping[str, Any]) -> _Asked:
    if lacks := [name for name in ("question_id", "image_id", "question") if row.get(name) in (None, "")]:
        raise BadItem(f"{where} lacks {', '.join(lacks)}")
    answer = annotation.get("multiple_choice_answer")
    if answer is None:
        said = annotation.get("answers")
        if not isinstance(said, list) or not said:
            raise BadItem(f"{where} has no answers (a test split, whose answers are not published?)")
        texts = [str(a["answer"] if isinstance(a, dict) else a) for a in said]
        answer = Counter(texts).most_common(1)[0][0]
    choices = row.get("multiple_choices") or row.get("choices") or ()
    texts = list(dict.fromkeys(str(c).strip() for c in choices))
    answer = str(answer).strip()
    if texts and (answer not in texts or len(texts) < 2):
        raise BadItem(f"{where}: its choices {texts!r:.80} do not have the answer {answer!r} and another")
    return _Asked(str(row["question_id"]), str(row["image_id"]), str(row["question"]).strip(), answer, tuple(texts))


def _kind(question: str) -> str:
    return " ".join(re.findall(r"[\w']+", question.lower())[:2])


def _offered(asked: list[tuple[str, _Asked, str]]) -> dict[str, tuple[str, ...]]:
    """Of each question with another answer than yes or no: its answer and those most often right beside it, by name."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, one, _ in asked:
        if one.answer not in YES_NO:
            answers[_kind(one.question)][one.answer] += 1
    found = {}
    for _, one, _ in asked:
        ranked = sorted(answers[_kind(one.question)].items(), key=lambda pair: (-pair[1], pair[0]))
        others = [text for text, _ in ranked if text.casefold() != one.answer.casefold()][:OTHERS]
        if len(others) == OTHERS and one.answer not in YES_NO:
            found[one.id] = tuple(sorted((one.answer, *others)))
    return found


def _photographs(folder: Path) -> dict[str, Path]:
    """A file's name without its ending -> the file."""
    below = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return {p.stem: p for f in below for p in sorted(f.iterdir()) if p.suffix.lower() in ENDINGS}


def _photograph(where: str, folder: Path, photographs: Mapping[str, Path], image: str, subtype: str) -> Path:
    padded = image.zfill(12)
    names = [f"COCO_{subtype}_{padded}", padded, image]
    for name in names:
        if name in photographs:
            return photographs[name]
    if pictures.are_for_later():
        return folder / f"{names[0] if subtype else image}.jpg"
    raise BadItem(
        f"{where}: no photograph {names[0] if subtype else image}.jpg in {str(folder)!r} or a folder below it"
    )


def _item(one: _Asked, choices: tuple[str, ...], picture: Picture, chat: bool) -> Item:
    yes_no = set(choices) == set(YES_NO)
    listed = "" if yes_no else f"\nPossible answers: {'; '.join(choices)}."
    prompt: str | None = f"{IMAGE}\nQuestion: {one.question}{listed}\nAnswer:"
    messages: tuple[Message, ...] | None = None
    if chat:
        end = "Answer yes or no." if yes_no else "Answer with one of them and nothing else."
        prompt, messages = None, (Message("user", f"{IMAGE}\n{one.question}{listed} {end}"),)
    return Item(
        id=f"vqa/{one.id}",
        options=tuple(Option(text, "correct" if text == one.answer else "wrong") for text in choices),
        concept="yes/no" if yes_no else _kind(one.question),
        template=one.image,
        ambiguous=False,
        prompt=prompt,
        messages=messages,
        split="test",
        images=(picture,),
    )
