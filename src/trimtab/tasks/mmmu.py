"""MMMU, questions from college exams about figures, plots, scores and scans (Yue et al., CVPR 2024), from a folder.

Thirty subjects of thirty validation questions each. A question names its pictures in its text and in its choices
(`<image 1>`), up to seven of them; each mention becomes a picture at that place, and the same picture twice where it is
mentioned twice. Where nothing is mentioned the pictures stand first. The choices are listed by letter, and the letter
is the answer:

    ... question ...            (A) ...  (B) ...            Answer:

Open questions (some fifty of the 900) have no choices to compare and are left out; the authors' own accuracy counts
them, so a number here is not the leaderboard's. A concept is the subject, a template the question: every question is a
cluster of its own. Every item is a test item, of the split that the authors call validation: the answers of their test
split are not published.

Files: SUBJECT/validation.jsonl with the fields id, question, options (a list, or a list written as Python does, as in
the data set), answer, question_type and images, where images lists the files of image_1, image_2, ... from the folder
of the JSONL, null where there is none. `trimtab fetch mmmu` writes them from the data set's parquet (pins.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import pictures
from trimtab.errors import BadItem, TaskError
from trimtab.tasks import rows
from trimtab.tasks.source import locate
from trimtab.types import IMAGE, Item, Message, Option, Picture, Task

FILE = "validation.jsonl"
FIELDS = ("id", "question", "options", "answer", "question_type", "images")
FIGURES = ("unambiguous_accuracy_choice", "unambiguous_accuracy")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MENTION = re.compile(r"<image (\d+)>")
CHOICE = "multiple-choice"


def from_argument(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `mmmu[:chat][:SUBJECT[+SUBJECT]]`, given what follows the name."""
    del seed
    words = [w for w in argument.split(":") if w]
    named = [w for w in words if w != "chat"]
    if len(named) > 1 or words.count("chat") > 1:
        raise TaskError(f"Cannot read the task 'mmmu:{argument}'; expected mmmu[:chat][:SUBJECT+SUBJECT]")
    return load(data, subjects=named[0].split("+") if named else (), chat="chat" in words)


def load(data: str | Path | None = None, *, subjects: Sequence[str] = (), chat: bool = False) -> Task:
    """The questions with choices of the subjects given, or of all that are there.

    Raises NotFound for a missing folder, TaskError for an unknown subject, BadItem naming the line of a defect or an
    image that is not there.
    """
    folder = _folder(data)
    found = {p.parent.name: p for p in sorted(folder.glob(f"*/{FILE}"))}
    lower = {name.casefold(): name for name in found}
    if unknown := [s for s in subjects if s.casefold() not in lower]:
        raise TaskError(f"{str(folder)!r} has no subject {unknown[0]!r}. It has {', '.join(found)}.")
    wanted = list(dict.fromkeys(lower[s.casefold()] for s in subjects)) or list(found)
    items: list[Item] = []
    seen: set[str] = set()
    left = 0
    for subject in wanted:
        for where, row in rows.jsonl(found[subject], FIELDS):
            if str(row["id"]) in seen:
                raise BadItem(f"{where}: {row['id']} is there twice; remove one of them")
            seen.add(str(row["id"]))
            if row["question_type"] == CHOICE:
                items.append(_item(where, row, subject, found[subject].parent, chat))
            else:
                left += 1
    if not items:
        raise TaskError(f"{str(folder)!r} has no question with choices")
    how = f"all items are for testing; {len(wanted)} subjects, {len(items)} questions"
    if left:
        how += f"; {left} open questions left out"
    words = ["mmmu", *(["chat"] if chat else []), *(["+".join(wanted)] if subjects else [])]
    return Task(":".join(words), tuple(items), how, figures=FIGURES, parted=True)


def _folder(data: str | Path | None) -> Path:
    def find(root: Path) -> Path | None:
        folders = (root / "mmmu", root / "MMMU", root)
        return next((f for f in folders if f.is_dir() and any(f.glob(f"*/{FILE}"))), None)

    return locate(
        "mmmu", data, find,
        lambda root: f"Looked for MMMU in {str(root)!r} and its folder mmmu: no SUBJECT/{FILE}",
    )  # fmt: skip


def _item(where: str, row: Mapping[str, Any], subject: str, folder: Path, chat: bool) -> Item:
    choices = _choices(where, row["options"])
    letters = LETTERS[: len(choices)]
    answer = rows.choice(where, row, "answer", tuple(letters))
    listing = "\n".join(f"({letter}) {text}" for letter, text in zip(letters, choices, strict=True))
    text = f"{str(row['question']).strip()}\n{listing}"
    text, shown = _illustrated(where, row, text, folder)
    prompt: str | None = f"{text}\nAnswer:"
    messages: tuple[Message, ...] | None = None
    if chat:
        prompt, messages = None, (Message("user", f"{text}\n\nAnswer with the letter of the right choice alone."),)
    return Item(
        id=f"mmmu/{subject}/{row['id']}",
        options=tuple(Option(letter, "correct" if letter == answer else "wrong") for letter in letters),
        concept=subject,
        template=f"{subject}/{row['id']}",
        ambiguous=False,
        prompt=prompt,
        messages=messages,
        split="test",
        images=shown,
    )


def _choices(where: str, given: Any) -> list[str]:
    try:
        held = ast.literal_eval(given) if isinstance(given, str) else given
        texts = [str(text).strip() for text in held]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadItem(f"{where}: options are no list ({given!r:.80}); fetch the file again") from error
    if isinstance(held, str) or not 2 <= len(texts) <= len(LETTERS):
        raise BadItem(f"{where}: expected a list of 2 to {len(LETTERS)} options, got {given!r:.80}")
    return texts


def _illustrated(where: str, row: Mapping[str, Any], text: str, folder: Path) -> tuple[str, tuple[Picture, ...]]:
    """The text with IMAGE at every mention, and the pictures in that order."""
    names = row["images"]
    if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
        raise BadItem(f"{where}: images are {names!r:.80}, expected a list of files, null where there is none")
    mentions = [int(n) for n in MENTION.findall(text)]
    for n in mentions:
        if not (0 < n <= len(names) and names[n - 1]):
            raise BadItem(f"{where}: <image {n}> is mentioned, and there is no image {n}")
    order = mentions or [n for n, name in enumerate(names, start=1) if name]
    if not order:
        raise BadItem(f"{where}: a question without any image")
    try:
        shown = tuple(pictures.of_file(folder / names[n - 1]) for n in order)
    except BadItem as error:
        raise BadItem(f"{where}: {error}") from error
    lead = "" if mentions else "\n".join(IMAGE for _ in order) + "\n"
    return lead + MENTION.sub(IMAGE, text), shown
