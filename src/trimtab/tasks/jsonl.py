r"""Bring your own items: one JSON object a line, `--task jsonl:PATH`.

    {"id": "nurse/1", "prompt": "The nurse said that", "concept": "nurse", "template": "said that",
     "ambiguous": true, "split": "train",
     "options": [{"text": "she", "role": "pro", "group": "women"},
                 {"text": "he", "role": "anti", "group": "men"}]}
    {"id": "nurse/2", "messages": [{"role": "user", "content": "Tom is the nurse. Is the nurse he or she?"}],
     "concept": "nurse", "template": "is the", "ambiguous": false, "split": "train",
     "options": [{"text": "he", "role": "correct"}, {"text": "she", "role": "wrong"}]}

(each on one line of the file). The fields, all required except `group`, `split` and `images`, and no others:

- `id`: text, once in the file.
- `prompt`, text to continue, or `messages`, a chat to answer: roles system, user, assistant, the last from
  user.
- `options`: two or more `{"text", "role", "group"?}`. Ambiguous items have roles pro (follows the
  stereotype), anti, neither; others correct and wrong, at least one of each.
- `concept`: what the bias is about. Over its ambiguous items there must be both pro and anti options, or two
  groups: otherwise there is nothing to compare.
- `template`: the wording that the item shares with others.
- `ambiguous`: true where the prompt does not settle the answer.
- `split`: train, validation or test, on every line or on none. On none, it is drawn from the seed
  (division.py).
- `images`: paths of image files, as seen from the folder of the JSONL file. Where the prompt or the messages have
  `<image>`, there is one for each image, in order; where they have none, the images stand before all words.

**Where images may lie.** A relative path stays in the file's folder: `../` that leads out of it is refused, because a
task that came from elsewhere should not reach what lies beside it unnoticed. An absolute path says openly where it
leads and is taken as it is. Links inside the folder are followed.

Blank lines, a byte order mark and Windows line ends are fine. Where the prompt, or the last message, mentions
every option, their order becomes `Option.position`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import pictures
from trimtab.errors import BadItem, NotFound, TaskError
from trimtab.tasks.division import divide, overlap
from trimtab.tasks.positions import listed_positions
from trimtab.types import IMAGE, ROLES, SPLITS, Item, Message, Option, Picture, Task

SHOWN = 20
"""How many defects a message spells out; the rest are counted."""

FIELDS = ("id", "prompt", "messages", "options", "concept", "template", "ambiguous", "split", "images")
OPTION_FIELDS = ("text", "role", "group")
MESSAGE_FIELDS = ("role", "content")
SPEAKERS = ("system", "user", "assistant")
AMBIGUOUS_ROLES = ("pro", "anti", "neither")
SETTLED_ROLES = ("correct", "wrong")


def from_argument(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `jsonl:PATH`; the data folder plays no part, PATH is seen from the working folder."""
    del data
    if not argument:
        raise TaskError("The task 'jsonl' needs a file after its name: `--task jsonl:items.jsonl`.")
    return load(argument, seed)


def load(path: str | Path, seed: int | None) -> Task:
    """The items of a JSONL file, or of the only one in a folder, divided as the file says or else by `seed`.

    Raises NotFound for a missing file, TaskError for an empty one or one that cannot be divided, BadItem with
    every defect of every line, one a line. Within `pictures.later` an image that cannot be read is no defect.
    """
    file = Path(path).expanduser()
    inside = sorted(file.glob("*.jsonl")) if file.is_dir() else []
    if len(inside) == 1:
        (file,) = inside
    if not file.is_file():
        why = f"is a folder with {len(inside)} JSONL files" if file.is_dir() else "does not exist"
        raise NotFound(f"The task file {str(path)!r} {why} (seen from {Path.cwd()}); give the path of a JSONL file.")
    defects = _Defects()
    rows = _rows(file.read_bytes(), defects)
    album = Album(file.absolute().parent)
    parsed = [(line, _Reader(line, row, defects, album)) for line, row in rows]
    _check_ids(parsed, defects)
    _check_splits(parsed, defects)
    _check_concepts(parsed, defects)
    defects.raise_if_any(path)
    if not parsed:
        raise TaskError(f"Empty task: {str(path)!r} has no items; expected one JSON object a line.")
    items = [reader.item() for _, reader in parsed]
    items, division, drawn = _divided(items, seed)
    return Task(name=f"jsonl:{path}", items=tuple(items), division=division, seed=drawn)


def _divided(items: list[Item], seed: int | None) -> tuple[list[Item], str, int | None]:
    if items[0].split is not None:
        concepts, templates = overlap(items)
        if not (concepts or templates):
            return items, "given in the file", None
        both = f"{_count(concepts, 'concept')} and {_count(templates, 'template')}"
        return items, f"given in the file; NOT disjoint: {both} occur in more than one split", None
    if seed is None:
        return items, "not divided (no seed)", None
    divided, division = divide(items, seed)
    return divided, division, seed


class _Defects:
    """What is wrong with a file, in the order of its lines."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def add(self, line: int, field: str, what: str) -> None:
        self.found.append((line, f"line {line}, {field}: {what}" if field else f"line {line}: {what}"))

    def raise_if_any(self, path: str | Path) -> None:
        if not self.found:
            return
        lines = [text for _, text in sorted(self.found, key=lambda found: found[0])]  # stable within a line
        rest = len(lines) - SHOWN
        tail = [f"... and {rest} more"] if rest > 0 else []
        head = f"{str(path)!r} has {_count(len(lines), 'defect')}; correct the file:"
        raise BadItem("\n".join([head, *lines[:SHOWN], *tail]))


class Album:
    """The pictures of a file's items, each file's bytes read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Picture] = {}

    def picture(self, name: str) -> Picture:
        """The picture of a path as an item has it. Raises BadItem where it leads outside or cannot be read."""
        if name not in self._known:
            path = Path(name)
            # By the text alone: what links point to is the folder's owner's business.
            if not path.is_absolute() and os.path.normpath(path).split(os.sep)[0] == "..":
                raise BadItem(
                    f"{name!r} leads out of {str(self.folder)!r}; move the image there, or give an absolute path"
                )
            self._known[name] = pictures.of_file(self.folder / path)
        return self._known[name]


class _Repeated(dict[str, Any]):
    """A JSON object that remembers which fields it was given more than once; a plain dict keeps the last."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = sorted({name for name in names if names.count(name) > 1})


def _rows(content: bytes, defects: _Defects) -> list[tuple[int, Any]]:
    """(line number, JSON value) of every line that is not blank and can be read."""
    rows: list[tuple[int, Any]] = []
    # Split at \n alone: JSON text may hold U+2028 and others at which str.splitlines would cut.
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            defects.add(line, "", f"not UTF-8 ({byte}); save the file as UTF-8")
            continue
        if not text.strip():
            continue
        try:
            rows.append((line, json.loads(text, object_pairs_hook=_Repeated)))
        except json.JSONDecodeError as error:
            defects.add(line, "", f"invalid JSON ({error.msg} at character {error.pos + 1})")
        except (RecursionError, ValueError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
            defects.add(line, "", f"invalid JSON ({why})")
    return rows


class _Reader:
    """One line: checked on construction, made into an Item only once the whole file is sound."""

    def __init__(self, line: int, row: Any, defects: _Defects, album: Album) -> None:
        self.line = line
        self.row: Mapping[str, Any] = row if isinstance(row, dict) else {}
        self._defects, self._album = defects, album
        before = len(defects.found)
        if not isinstance(row, dict):
            self._defect("", f"expected an object {{...}}, got {_kind(row)}")
        else:
            self._names("", self.row, FIELDS)
            self.id = self._text("id")
            self._shown()
            self._images()
            self.ambiguous = self._required("ambiguous", bool)
            self._options()
            self.concept = self._text("concept")
            self._text("template")
            self._split()
        self.sound = len(defects.found) == before

    def item(self) -> Item:
        """The item of a sound line."""
        row = self.row
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"]) if "messages" in row else None
        shown = messages[-1].content if messages else row["prompt"]
        positions = listed_positions(shown, [o["text"] for o in row["options"]])
        options = tuple(
            Option(o["text"], o["role"], o.get("group"), position)
            for o, position in zip(row["options"], positions, strict=True)
        )
        return Item(
            id=row["id"],
            options=options,
            concept=row["concept"],
            template=row["template"],
            ambiguous=row["ambiguous"],
            prompt=row.get("prompt"),
            messages=messages,
            split=row.get("split"),
            images=tuple(self._album.picture(name) for name in row.get("images", ())),
        )

    def _defect(self, field: str, what: str) -> None:
        self._defects.add(self.line, field, what)

    def _names(self, where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name.lower(), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"
                self._defect(where + name, f"unknown field; {hint}")
        for name in getattr(given, "repeated", ()):
            self._defect(where + name, "given more than once")

    def _required(self, name: str, kind: type, *, where: str = "", of: Mapping[str, Any] | None = None) -> Any:
        """The value of a field if it is there and of that type; otherwise None and a defect."""
        given = self.row if of is None else of
        if name not in given:
            self._defect(where + name, "missing")
        elif not isinstance(given[name], kind):
            self._defect(where + name, f"expected {_KINDS[kind]}, got {_kind(given[name])}")
        else:
            return given[name]
        return None

    def _text(self, name: str, *, where: str = "", of: Mapping[str, Any] | None = None) -> str | None:
        value = self._required(name, str, where=where, of=of)
        if value is None:
            return None
        if not value.strip():
            self._defect(where + name, "empty")
            return None
        try:
            value.encode()
        except UnicodeEncodeError:  # "\ud800" alone is valid JSON, but no tokenizer and no file takes it
            self._defect(where + name, "half of a surrogate pair, which is no text")
            return None
        return str(value)

    def _shown(self) -> None:
        both = [name for name in ("prompt", "messages") if name in self.row]
        if len(both) != 1:
            self._defect("prompt", f"expected either prompt or messages, got {'both' if both else 'neither'}")
        if "prompt" in self.row:
            self._text("prompt")
        if "messages" in self.row:
            self._messages()

    def _messages(self) -> None:
        messages = self._required("messages", list)
        if messages is None:
            return
        if not messages:
            self._defect("messages", "empty")
            return
        for k, message in enumerate(messages):
            where = f"messages[{k}]"
            if not isinstance(message, dict):
                self._defect(where, f"expected an object with role and content, got {_kind(message)}")
                continue
            self._names(where + ".", message, MESSAGE_FIELDS)
            self._choice("role", SPEAKERS, where=where + ".", of=message)
            self._text("content", where=where + ".", of=message)
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") in SPEAKERS and last["role"] != "user":
            self._defect("messages", f"the last message must be from user, got {last['role']}")

    def _images(self) -> None:
        """Each image is there, and each mention of one has its image."""
        texts = [self.row.get("prompt"), *(m.get("content") for m in self._turns())]
        mentions = sum(text.count(IMAGE) for text in texts if isinstance(text, str))
        if "images" not in self.row:
            if mentions:
                self._defect("images", f"missing, but {IMAGE} stands in the text {_times(mentions)}")
            return
        names = self._required("images", list)
        if names is None:
            return
        if not names:
            self._defect("images", "empty; an item without images has no such field")
        if mentions not in (0, len(names)):
            count = _count(len(names), "image")
            self._defect("images", f"{count}, but {IMAGE} stands in the text {_times(mentions)}")
        for k, name in enumerate(names):
            where = f"images[{k}]"
            if not isinstance(name, str) or not name.strip() or "\0" in name:
                self._defect(where, f"expected the path of a file, got {_kind(name) if name != '' else 'empty text'}")
                continue
            try:
                self._album.picture(name)
            except BadItem as error:
                self._defect(where, f"of item {self.id!r}: {error}")

    def _turns(self) -> list[Mapping[str, Any]]:
        messages = self.row.get("messages")
        return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []

    def _options(self) -> None:
        self.offers: list[tuple[str, str | None]] = []
        """(role, group) of each option that could be read."""
        options = self._required("options", list)
        if options is None:
            return
        if len(options) < 2:
            self._defect("options", f"expected at least 2 options, got {len(options)}")
        first: dict[str, int] = {}
        for k, option in enumerate(options):
            where = f"options[{k}]"
            if not isinstance(option, dict):
                self._defect(where, f"expected an object with text and role, got {_kind(option)}")
                continue
            self._names(where + ".", option, OPTION_FIELDS)
            text = self._text("text", where=where + ".", of=option)
            if text is not None:
                # Compared without outer spaces: "he" and " he" become the same answer after a prompt.
                original = first.setdefault(text.strip(), k)
                if original != k:
                    self._defect(f"{where}.text", f"{text!r} is already the text of options[{original}]")
            role = self._choice("role", ROLES, where=where + ".", of=option)
            group = option.get("group")  # null is as good as absent
            if group is not None:
                group = self._text("group", where=where + ".", of=option)
            if role is not None:
                self._check_role(f"{where}.role", role)
                self.offers.append((role, group))
        if self.ambiguous is False and len(self.offers) == len(options) >= 2:
            for role in SETTLED_ROLES:
                if role not in (r for r, _ in self.offers):
                    self._defect("options", f"an unambiguous item needs at least one {role!r} option")

    def _check_role(self, field: str, role: str) -> None:
        if self.ambiguous is None:
            return
        allowed = AMBIGUOUS_ROLES if self.ambiguous else SETTLED_ROLES
        if role not in allowed:
            kind = "an ambiguous" if self.ambiguous else "an unambiguous"
            self._defect(field, f"{role!r} on {kind} item; expected {_either(allowed)}")

    def _split(self) -> None:
        self.split = self._choice("split", SPLITS) if "split" in self.row else None

    def _choice(
        self, name: str, allowed: Sequence[str], *, where: str = "", of: Mapping[str, Any] | None = None
    ) -> str | None:
        value: str | None = self._required(name, str, where=where, of=of)
        if value is None or value in allowed:
            return value
        close = difflib.get_close_matches(value.lower(), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        self._defect(where + name, f"unknown {name} {value!r}, expected {_either(allowed)}{hint}")
        return None


def _check_ids(parsed: list[tuple[int, _Reader]], defects: _Defects) -> None:
    first: dict[str, int] = {}
    for line, reader in parsed:
        name = reader.row.get("id")
        if isinstance(name, str) and first.setdefault(name, line) != line:
            defects.add(line, "id", f"{name!r} is already the id of line {first[name]}")


def _check_splits(parsed: list[tuple[int, _Reader]], defects: _Defects) -> None:
    objects = [(line, reader) for line, reader in parsed if reader.row]
    having = [line for line, reader in objects if "split" in reader.row]
    lacking = [line for line, reader in objects if "split" not in reader.row]
    if having and lacking:
        defects.add(
            lacking[0],
            "split",
            f"missing here{_others(lacking)}, but given on line {having[0]}{_others(having)}; "
            "give it on every line or on none",
        )


def _check_concepts(parsed: list[tuple[int, _Reader]], defects: _Defects) -> None:
    """A concept's ambiguous items offer pro and anti, or more than two groups each: otherwise its bias says nothing."""
    lines: dict[str, list[_Reader]] = {}
    for _, reader in parsed:
        concept = reader.row.get("concept")
        if isinstance(concept, str):
            lines.setdefault(concept, []).append(reader)
    for concept, readers in lines.items():
        # A line with a defect of its own may hold what seems to be missing: that one is corrected first.
        if not all(reader.sound for reader in readers):
            continue
        ambiguous = [reader for reader in readers if reader.ambiguous]
        offers = [offer for reader in ambiguous for offer in reader.offers]
        roles = {role for role, _ in offers}
        groups = max((len({group for _, group in reader.offers} - {None}) for reader in ambiguous), default=0)
        if ambiguous and not {"pro", "anti"} <= roles and groups < 3:
            only = [role for role in AMBIGUOUS_ROLES if role in roles]
            defects.add(
                ambiguous[0].line,
                "concept",
                f"concept {concept!r} has one class of outcome ({' and '.join(map(repr, only))} only) over "
                f"its {_count(len(ambiguous), 'ambiguous item')}; "
                "expected both 'pro' and 'anti', or more than two groups in an item",
            )


_KINDS: dict[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {value}"
    return next(name for kind, name in _KINDS.items() if isinstance(value, kind))


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _others(lines: Sequence[int]) -> str:
    return f" and on {_count(len(lines) - 1, 'other line')}" if len(lines) > 1 else ""


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
