"""A portion of a run at every strength: how it is cut, what of it is missing, and how a cell is put on the model.

What no strength changes is computed once a portion: tokens, layouts, the base's view of texts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from trimtab import selfdebias
from trimtab.model import SteerableModel
from trimtab.scoring import Prepared
from trimtab.shelf import AnyRecord, Cell, Shelf
from trimtab.steering import Steering
from trimtab.types import (
    Item,
    Message,
    Mode,
    Outcome,
    Per,
    Progress,
    ProgressCallback,
    Record,
    SampleRecord,
    Text,
    TextRecord,
)

CHUNK = 128
"""Items of a portion; one cut off is scored anew as a whole, so a resumed run equals an unbroken one."""
TEXTS, CHARACTERS = 16, 2**16
"""Texts of a portion, and what they may have together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an arm at a strength is put on the model."""

    model: SteerableModel
    steering: Steering | None
    seed: int
    instruction: str
    per: Per
    mode: Mode
    kl: bool
    beyond_range: bool
    other_weights: bool

    def applied(self, cell: Cell) -> AbstractContextManager[Any]:
        """The model steered as a cell has it."""
        arm, strength = cell
        if self.steering is None or strength == 0.0 or arm not in ("steering", "random"):
            return nullcontext()
        steering = self.steering if arm == "steering" else self.steering.random(self.seed)
        return self.model.steer(steering, strength, beyond_range=self.beyond_range, other_weights=self.other_weights)

    def told(self, cell: Cell) -> str | None:
        """The instruction that a cell gives, or None."""
        return self.instruction if cell[0] == "instruction" else None

    def measuring(self, portion: Portion) -> Callable[[Cell], Sequence[AnyRecord]]:
        """What measures a portion in one cell after another; what no strength changes is kept between them."""
        ways = {Record: self._items, TextRecord: self._texts, SampleRecord: self._samples}
        measured = ways[portion.kind](portion)

        def timed(cell: Cell) -> Sequence[AnyRecord]:
            begun = time.perf_counter()
            with self.applied(cell):
                found = measured(cell)
            share = round((time.perf_counter() - begun) / len(found), 6)
            return [r if isinstance(r, SampleRecord) else replace(r, seconds=share) for r in found]

        return timed

    def _items(self, portion: Portion) -> Callable[[Cell], Sequence[AnyRecord]]:
        ready: dict[str | None, Prepared] = {}

        def outcomes(told: str | None) -> list[Outcome]:
            if self.mode == "generated":
                return self.model.answer(portion.parts, instruction=told)
            if told not in ready:
                ready[told] = self.model.prepared(portion.parts, instruction=told)
            return self.model.score(portion.parts, instruction=told, per=self.per, prepared=ready[told])

        def measured(cell: Cell) -> list[Record]:
            found, shown = outcomes(self.told(cell)), list(portion.parts)
            if cell[0] == selfdebias.ARM:
                found, shown = self._revised(shown, found)
            return [
                _record(portion.task, cell, item, outcome, prompt)
                for item, outcome, prompt in zip(portion.parts, found, map(_shown, shown), strict=True)
            ]

        return measured

    def _revised(self, items: Sequence[Item], first: Sequence[Outcome]) -> tuple[list[Outcome], list[Item]]:
        """What the model makes of items on a second look, and how they were shown; the first where it said nothing."""
        said = [selfdebias.first_answer(i, o) for i, o in zip(items, first, strict=True)]
        shown = [selfdebias.second_look(i, a) if a else i for i, a in zip(items, said, strict=True)]
        asked = [n for n, answer in enumerate(said) if answer]
        again = [shown[n] for n in asked]
        found = self.model.answer(again) if self.mode == "generated" else self.model.score(again, per=self.per)
        outcomes = dict(enumerate(first)) | dict(zip(asked, found, strict=True))
        return list(outcomes.values()), shown

    def _texts(self, portion: Portion) -> Callable[[Cell], Sequence[AnyRecord]]:
        texts = [t.text for t in portion.parts]
        base: list[Tensor] = []

        def before() -> list[Tensor]:
            if not base:
                with self.model.unsteered():
                    base.extend(self.model.hidden(texts))
            return base

        def measured(cell: Cell) -> list[TextRecord]:
            # A running text has no answer to look at again: there Self-Debias is the base.
            same = cell[0] == selfdebias.ARM
            states = before() if same else self.model.hidden(texts, instruction=self.told(cell))
            found = self.model.nll_and_kl(texts, states, before() if self.kl else None)
            return [
                TextRecord(*cell, text.id, tokens, nll, kl, portion.task, text.words)
                for text, (tokens, nll, kl) in zip(portion.parts, found, strict=True)
            ]

        return measured

    def _samples(self, portion: Portion) -> Callable[[Cell], Sequence[AnyRecord]]:
        def measured(cell: Cell) -> list[SampleRecord]:
            said = self.model.generate(list(portion.parts), max_new_tokens=24)
            return [SampleRecord(*cell, p, a) for p, a in zip(portion.parts, said, strict=True)]

        return measured


def _record(task: str, cell: Cell, item: Item, outcome: Outcome, prompt: str) -> Record:
    return Record(
        task, *cell, item.id, item.split, item.concept, item.template, item.ambiguous, prompt,
        tuple(o.text for o in item.options), tuple(o.role for o in item.options),
        tuple(o.group for o in item.options), tuple(o.position for o in item.options),
        outcome.p, outcome.mass, item.digest(),
        tuple(o.leans for o in item.options) if any(o.leans for o in item.options) else (),
        outcome.logp, outcome.tokens, outcome.answer, images=tuple(i.source for i in item.images),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Portion:
    """What is measured together at every strength: items, or texts, or prompts to complete."""

    kind: type[AnyRecord]
    task: str
    parts: tuple[Any, ...]

    def names(self) -> list[str]:
        """What its records will be called."""
        return [p if isinstance(p, str) else p.id for p in self.parts]


def name_of(record: AnyRecord) -> str:
    """What a record is called within its task and cell."""
    return record.prompt if isinstance(record, SampleRecord) else record.id


def dealt(
    chosen: Mapping[str, Sequence[Item]], texts: Mapping[str, Sequence[Text]], samples: Sequence[str]
) -> Iterator[Portion]:
    """Items and texts of all tasks, and prompts to complete, in portions."""
    for task, items in chosen.items():
        for start in range(0, len(items), CHUNK):
            yield Portion(Record, task, tuple(items[start : start + CHUNK]))
    for task, passages_ in texts.items():
        held: list[Text] = []
        for text in passages_:
            if held and (len(held) == TEXTS or sum(len(t.text) for t in held) + len(text.text) > CHARACTERS):
                yield Portion(TextRecord, task, tuple(held))
                held = []
            held.append(text)
        yield Portion(TextRecord, task, tuple(held))
    if samples:
        yield Portion(SampleRecord, "", tuple(samples))


Missing = dict[int, dict[Cell, frozenset[str]]]
"""By a portion's number, the cells whose records are not there, and which."""


def lacking(shelf: Shelf, portions: Sequence[Portion], cells: Sequence[Cell]) -> Missing:
    """What of these portions is not on the shelf yet."""
    found: Missing = defaultdict(dict)
    there: dict[Any, set[str]] = {}
    for n, portion in enumerate(portions):
        names = frozenset(portion.names())
        for cell in cells:
            if portion.kind is SampleRecord and cell[0] != "steering":
                continue
            key = (portion.kind, portion.task, cell)
            if key not in there:
                there[key] = shelf.ids(*key)
            if lacks := names - there[key]:
                found[n][cell] = names if len(lacks) == len(names) else lacks  # one set for all cells of a new run
    return dict(found)


class Meter:
    """Counts items over all cells and reports them."""

    def __init__(self, progress: ProgressCallback | None, total: int, missing: int) -> None:
        self._progress = progress
        self.total = total
        self.done = self._first = total - missing
        self._begun = time.monotonic()

    def add(self, n: int, cell: Cell) -> None:
        """So many items more, of a cell."""
        self.done += n
        if self._progress is not None:
            rate = (self.done - self._first) / max(1e-9, time.monotonic() - self._begun)
            left = (self.total - self.done) / rate if rate > 0 else None
            self._progress(Progress(f"{cell[0]} {cell[1]:g}", self.done, self.total, (), left))


def _shown(item: Item) -> str:
    def turn(m: Message) -> str:
        return f"[{m.role}] {m.content}"

    return item.prompt if item.prompt is not None else "\n".join(map(turn, item.messages or ()))
