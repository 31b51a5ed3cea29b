"""Records on disk: what was added is what is read, in memory that does not grow with it."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace

import pytest

from trimtab.errors import RunError
from trimtab.shelf import Shelf
from trimtab.types import Record, SampleRecord, TextRecord

HEAD = {"kind": "run", "seed": 0}


def record(n: int, strength: float = 0.0, task: str = "t") -> Record:
    return Record(
        task, "steering", strength, f"i{n}", "test", f"c{n % 3}", "w", True, f"prompt {n} " + "x" * 400, ("a", "b"),
        ("pro", "anti"), (None, None), (None, 1), (0.25, 0.75), 0.5, f"d{n}", (), (-1.5, -0.5), (1, 2), None, 0.125,
    )  # fmt: skip


def test_what_was_added_is_read_back_by_cell_and_in_order(tmp_path):
    """Items, texts and samples, from the shelf that wrote them and from the next; figures' fields are unchanged."""
    path = tmp_path / "records.jsonl"
    items = [record(n, w) for w in (0.0, 1.0) for n in range(5)] + [record(9, task="u")]
    text, sample = TextRecord("random", 1.0, "neutral/0", 3, 1.5, 0.5), SampleRecord("steering", 0.0, "p", "said")
    shelf = Shelf(path, HEAD)
    shelf.add(items[:6])
    shelf.add([text, sample, *items[6:]])
    shelf.close()
    for held in (shelf, Shelf(path, HEAD)):
        assert list(held.all(Record)) == items
        assert held.all(Record)[-1] == items[-1]
        assert held.all(Record)[1:3] == tuple(items[1:3])
        assert list(held.all(TextRecord)) == [text]
        assert list(held.all(SampleRecord)) == [sample]
        light = held.of(Record, "t", ("steering", 1.0))
        assert light == [replace(r, prompt="", options=(), logp=(), tokens=()) for r in items[5:10]]
        assert held.of(TextRecord, "neutral", ("random", 1.0)) == [text]
        assert held.of(Record, "t", ("random", 1.0)) == []
        assert held.ids(Record, "t", ("steering", 0.0)) == {f"i{n}" for n in range(5)}
        assert held.ids(SampleRecord, "", ("steering", 0.0)) == {"p"}


def test_another_run_is_refused(tmp_path):
    Shelf(tmp_path / "r.jsonl", HEAD).add([record(0)])
    with pytest.raises(RunError, match="holds another run: its seed differ"):
        Shelf(tmp_path / "r.jsonl", {**HEAD, "seed": 1})


@pytest.mark.parametrize("held", [b'{"my": "own data, one line"}', b"[1, 2]\n", b"words", b'"a"\n{}'])
def test_a_file_of_someone_elses_is_left_as_it_is(tmp_path, held):
    path = tmp_path / "records.jsonl"
    path.write_bytes(held)
    with pytest.raises(RunError):
        Shelf(path, HEAD)
    assert path.read_bytes() == held
    path.write_bytes(json.dumps(HEAD).encode()[:9])  # what a kill leaves of our own first line
    Shelf(path, HEAD).close()
    assert json.loads(path.read_text()) == HEAD


def test_without_a_path_the_file_goes_with_its_last_reader():
    shelf = Shelf(None, HEAD)
    shelf.add([record(n) for n in range(3)])
    stored, scratch = shelf.all(Record), shelf._scratch
    folder = scratch.name
    shelf.close()
    del shelf, scratch
    gc.collect()
    assert [r.id for r in stored] == ["i0", "i1", "i2"]
    del stored
    gc.collect()
    import os

    assert not os.path.exists(folder)


def test_memory_does_not_grow_with_the_records(tmp_path):
    """Ten times as many records take eight bytes each more, not their text."""
    shelf = Shelf(tmp_path / "r.jsonl", HEAD)

    def held(n: int) -> int:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, n, 100):
            shelf.add([record(start + k) for k in range(100)])
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        held(500)
        more = held(5000)
    finally:
        tracemalloc.stop()
    assert more < 5000 * 24
    assert len(shelf.all(Record)) == 5500
    assert len(json.dumps(record(0).prompt)) > 400
