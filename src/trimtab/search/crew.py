"""Several workers on this machine: processes that run the same command, and one that watches the study meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

WORKER = "--one-of-several"
"""The word, hidden from --help, by which a command knows that it is one of several workers."""


def launch(workers: int, words: Sequence[str], look: Callable[[], None]) -> int:
    """Run `python -m trimtab WORDS --worker` so many times, and `look` meanwhile; gives the exit code.

    The processor's cores are shared out. A worker that dies loses its trial, and the others go on: the code is 0 where
    one of them saw the study finished, else the first worker's, whose words are passed on.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    members: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        heard = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        try:
            for sink in heard:
                command = [sys.executable, "-m", "trimtab", *words, WORKER]
                members.append(subprocess.Popen(command, env=environment, stdout=sink, stderr=sink))
            while any(member.poll() is None for member in members):
                look()
                time.sleep(0.2)
        finally:
            for member in members:
                member.terminate()
                member.wait()
        if all(member.returncode for member in members):
            heard[0].seek(0)
            sys.stderr.buffer.write(heard[0].read())
            sys.stderr.flush()
            return abs(int(members[0].returncode))
    return 0


def orphaned() -> Callable[[], bool]:
    """Tells whether the process that started this one is gone."""
    parent = os.getppid()
    return lambda: os.getppid() != parent
