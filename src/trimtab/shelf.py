"""The records of a run, on disk: added as they are measured, and read again by task, arm and strength.

Memory holds where each record begins, eight bytes a record, so that a run of many items needs no more of it than one of
few; a figure reads the records that it is about.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from trimtab.runs import Lines
from trimtab.types import Record, SampleRecord, TextRecord

Cell = tuple[str, float]
"""An arm and a strength."""
AnyRecord = Record | TextRecord | SampleRecord
_NAMES: dict[type, str] = {Record: "item", TextRecord: "text", SampleRecord: "sample"}
_UNUSED = {"prompt": "", "logp": (), "tokens": (), "options": (), "images": ()}
"""Fields of an item's record that no figure reads, and what stands for them."""
_R = TypeVar("_R", bound=AnyRecord)


class Stored(Sequence[_R], Generic[_R]):
    """Records on disk as a sequence, each read when it is asked for."""

    def __init__(self, log: Lines, places: array[int], kind: type[_R], keep_alive: object) -> None:
        self._log, self._places, self._kind, self._keep_alive = log, places, kind, keep_alive

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> _R: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_R, ...]: ...
    def __getitem__(self, index: int | slice) -> _R | tuple[_R, ...]:
        if isinstance(index, slice):
            return tuple(_record(self._kind, self._log.at(place)) for place in self._places[index])
        return _record(self._kind, self._log.at(self._places[index]))

    def __iter__(self) -> Iterator[_R]:
        for place in self._places:
            yield _record(self._kind, self._log.at(place))


class Shelf:
    """All records of one run; in `path`, or without one in a file that dies with it.

    Raises what runs.Lines raises for a file of another run or with a damaged line.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        # It goes when nothing refers to it any more: neither this shelf nor a sequence read from it.
        self._scratch = tempfile.TemporaryDirectory(prefix="trimtab-") if path is None else None
        self._log = Lines(path or Path(self._scratch.name) / "records.jsonl", identity)  # type: ignore[union-attr]
        self._all: dict[str, array[int]] = {kind: array("Q") for kind in _NAMES.values()}
        self._cells: dict[tuple[str, str, Cell], array[int]] = defaultdict(lambda: array("Q"))
        for place, line in self._log:
            self._note(line["kind"], line, place)

    def _note(self, kind: str, line: Mapping[str, Any], place: int) -> None:
        self._all[kind].append(place)
        task = line.get("task", "neutral" if kind == "text" else "")
        self._cells[kind, task, (line["arm"], line["strength"])].append(place)

    def add(self, records: Sequence[AnyRecord]) -> None:
        """Write records, and wait until the disk has them."""
        lines = [{"kind": _NAMES[type(r)], **asdict(r)} for r in records]
        for line, place in zip(lines, self._log.append(lines), strict=True):
            self._note(line["kind"], line, place)

    def ids(self, kind: type[AnyRecord], task: str, cell: Cell) -> set[str]:
        """What is there of a task under an arm at a strength; samples by their prompts."""
        name = _NAMES[kind]
        key = "prompt" if name == "sample" else "id"
        return {self._log.at(place)[key] for place in self._cells.get((name, task, cell), ())}

    def of(self, kind: type[_R], task: str, cell: Cell) -> list[_R]:
        """The records of a task under an arm at a strength, without the fields that no figure reads."""
        same: dict[Any, Any] = {}  # most values are those of many records
        found = (self._log.at(place) for place in self._cells.get((_NAMES[kind], task, cell), ()))
        return [_record(kind, line | _UNUSED if kind is Record else line, same) for line in found]

    def all(self, kind: type[_R]) -> Stored[_R]:
        """Every record of a kind, in the order of writing."""
        return Stored(self._log, self._all[_NAMES[kind]], kind, self._scratch)

    def close(self) -> None:
        """Write no more; what is there can still be read."""
        self._log.close()


def _record(kind: type[_R], line: Mapping[str, Any], same: dict[Any, Any] | None = None) -> _R:
    given: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in line:
            value = line[field.name]
            value = tuple(value) if isinstance(value, list) else value
            given[field.name] = value if same is None else same.setdefault((type(value), value), value)
    return kind(**given)
