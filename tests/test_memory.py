"""Memory: what one step frees is there for the next. (How many tokens a pass may hold is tested where passes are.)"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from typing import Any

import pytest

from trimtab import memory

FAULTS = """
import resource, torch
from trimtab import memory

def faults():
    for _ in range(12):  # until the odd bytes of aligned blocks lie no longer between them
        torch.zeros(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

bare = faults()
with memory.kept():
    print(bare, faults())
"""
"""Page faults of five steps that each take 64 MB, write to it and free it. A process of its own: what an earlier test
left in the heap would be taken first."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_memory_that_a_step_frees_is_not_asked_for_again() -> None:
    said = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout
    bare, kept = map(int, said.split())
    assert bare >= 5 and kept < bare / 4, (bare, kept)


class _Glibc:
    """A C library that refuses thresholds above a limit, as glibc did before 2.35, and keeps what it was told."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.told: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> int:
        if option == memory._MMAP and value > self.limit:
            return 0
        self.told[option] = value
        return 1


@pytest.mark.parametrize("limit", [2**25, 2**31])
def test_thresholds_are_set_as_high_as_they_may_be_and_put_back(limit: int, monkeypatch: Any) -> None:
    library = _Glibc(limit)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with memory.kept():
        assert library.told == {memory._TRIM: 2**31 - 1, memory._MMAP: min(limit, 2**30)}
    assert library.told == {memory._TRIM: 2**26, memory._MMAP: 2**25}


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(error: type[Exception], monkeypatch: Any) -> None:
    def missing(name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with memory.kept():
        pass
