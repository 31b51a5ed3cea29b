"""A folder that one run owns: a lock, whole-file writes, and a log of lines that survives a kill at any byte."""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trimtab.errors import AnotherRun, RunError


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """Hold the folder against a second run; the lock dies with the process. Raises RunError where it is held.

    Folders that it made and that are empty when it is left, as after a refusal, are taken away again.
    """
    from filelock import FileLock, Timeout

    with disk(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(f"another run is writing to {folder}; wait for it, or give another --out") from None
    try:
        yield folder
    finally:
        # While it is still held: after the release it may be another run's.
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the disk is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "there is a file of that name",
            errno.EISDIR: "there is a folder of that name",
            errno.EFBIG: "the file would be larger than allowed",
            errno.EPERM: "it is not permitted",
            errno.EIO: "the disk reports an error",
        }
        if error.errno not in reasons:
            raise
        raise RunError(
            f"cannot write to {path}: {reasons[error.errno]}. What was written before is whole; mend it and run again, "
            "or give another --out"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            # A device or a pipe, such as /dev/stdout: putting a file into its place would break it for everyone.
            with path.open("wb", buffering=0) as sink:
                sink.write(content)
            return
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as sink:
                sink.write(content)
                sink.flush()
                os.fsync(sink.fileno())
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


class Lines:
    """An append-only JSONL file: a first line that identifies the run, then records, each flushed to the disk.

    Opening an existing file cuts off a partial last line and refuses a file whose first line differs from `identity`,
    or whose middle is damaged. Memory holds no line; iterating gives (place, object) of each but the first, and `at`
    the object at a place.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        with disk(path.parent):
            self._recover(identity)
            # Unbuffered: what a full disk refused must not be tried again when the file is closed.
            self._sink = path.open("ab", buffering=0)
            self._source = path.open("rb")
            if self._sink.tell() == 0:
                self.append([identity])

    def _recover(self, identity: Mapping[str, Any]) -> None:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("r+b") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if number == 1 and not _line(identity).startswith(line):
                        raise self._foreign()
                    file.truncate(whole)
                    break
                whole += len(line)
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise RunError(
                        f"{self.path}, line {number} is damaged; move the folder away and run again"
                    ) from error
                if number == 1:
                    if not isinstance(value, dict):
                        raise self._foreign()
                    differing = sorted(k for k in {*identity, *value} if identity.get(k) != value.get(k))
                    if differing:
                        raise AnotherRun(
                            f"{self.path.parent} holds another run: its {', '.join(differing)} differ; "
                            "give another --out"
                        )

    def _foreign(self) -> RunError:
        return RunError(f"{self.path} was not written by this command, and is left as it is; give another --out")

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            place = 0
            for number, line in enumerate(file):
                if number:
                    yield place, json.loads(line)
                place += len(line)

    def at(self, place: int) -> dict[str, Any]:
        """The object whose line begins at a place."""
        self._source.seek(place)
        found: dict[str, Any] = json.loads(self._source.readline())
        return found

    def append(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write records, wait until the disk has them, and give their places."""
        lines = list(map(_line, records))
        ends = list(itertools.accumulate(map(len, lines), initial=self._sink.tell()))
        content = memoryview(b"".join(lines))
        with disk(self.path.parent):
            while content:
                content = content[self._sink.write(content) :]
            os.fsync(self._sink.fileno())
        return ends[:-1]

    def close(self) -> None:
        """Write no more; what is there can still be read."""
        self._sink.close()
