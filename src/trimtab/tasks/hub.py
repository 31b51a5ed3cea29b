"""Benchmarks fetched by pinned commit, checked by SHA-256 and kept in a cache: `trimtab fetch`.

A fetched folder has a lock file, trimtab-fetch.json: where its files came from (pins.py), their hashes as they came and
as they lie there, and when. The folder is compared with it whenever a task is read from it, so a file that was changed,
or a fetch that was cut off, is refused and never measured on.

**Conversion is done once, here**: parquet is turned into the layout that the task reads anyway, so loaders know one
layout less and reading needs no pyarrow. The lock file has both hashes.

A file without a pinned hash is fixed by its commit and by the hash that its first fetch recorded. A repository of your
own (`mirror`) is held to the same: a commit, never a branch.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, getproxies, urlopen

from trimtab.errors import MissingExtra, NotFound, RunError, TaskError, UsageError
from trimtab.runs import disk, owned, write_whole
from trimtab.tasks.pins import ALIASES, PINS, Pin, Rows
from trimtab.types import Progress, ProgressCallback

LOCK = "trimtab-fetch.json"
CACHE = "TRIMTAB_CACHE"
GITHUB = "TRIMTAB_GITHUB_RAW"
"""Where GitHub's files are served instead of raw.githubusercontent.com: a mirror behind a wall, or a test."""
FORMAT = 1
TIMEOUT, ATTEMPTS, PAUSE = 30.0, 2, 1.0
"""Seconds without a byte, tries, and seconds between them."""
COMMIT, HASH = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def folder_name(name: str) -> str:
    """The folder of a benchmark or a task. Raises UsageError with the nearest name."""
    plain = name.strip().partition(":")[0].lower().replace("-", "_")
    found = ALIASES.get(plain, plain)
    if found not in PINS:
        close = difflib.get_close_matches(plain, [*PINS, *ALIASES], n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"There is nothing to fetch for {name!r}.{guess} There is for {', '.join(PINS)}.")
    return found


def cache() -> Path:
    """Where fetched benchmarks are: `data` in $TRIMTAB_CACHE, or in `trimtab` in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).expanduser() / "data"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimtab" / "data"


def command(name: str, to: str | Path | None = None, *, force: bool = False, mirror: str | None = None) -> str:
    """The command that fetches a benchmark, to copy."""
    more = [*(["--to", str(to)] if to is not None else []), *(["--from", mirror] if mirror else [])]
    return shlex.join(["trimtab", "fetch", name, *more, *(["--force"] if force else [])])


# -- what was fetched


@dataclass(frozen=True, slots=True)
class Lock:
    """What a folder's lock file says."""

    name: str
    host: str
    repo: str
    revision: str
    files: Mapping[str, Mapping[str, str]]
    """Name here -> sha256, from (its path there), from_sha256."""

    def is_of(self, pin: Pin) -> bool:
        """Whether it is of this pin's commit."""
        return (self.host, self.repo, self.revision) == (pin.host, pin.repo, pin.revision)


def read_lock(folder: Path) -> Lock | None:
    """What the folder's lock file says; None where there is none. Raises TaskError for a damaged one."""
    path = folder / LOCK
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        name, host, repo, revision = (str(held[field]) for field in ("name", "host", "repo", "revision"))
        lock = Lock(name, host, repo, revision, held["files"])
        hashes = [entry[field] for entry in lock.files.values() for field in ("sha256", "from_sha256")]
        if not lock.files or not all(_inside(name) for name in lock.files):
            raise ValueError("its files")
        if not COMMIT.fullmatch(lock.revision) or not all(HASH.fullmatch(h) for h in hashes):
            raise ValueError("a hash")
        assert all(isinstance(entry["from"], str) for entry in lock.files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise TaskError(
            f"{str(path)!r} is damaged or was edited ({type(error).__name__}: {error}); fetch the data anew with "
            f"`{_again(folder, folder.name, force=True)}`"
        ) from error
    return lock


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def verify(folder: Path) -> None:
    """Compare a fetched folder with its lock file, and this with the pin; nothing where it was not fetched.

    Raises TaskError naming the first file that is missing or was changed, with the command that mends it.
    """
    lock = read_lock(folder)
    if lock is None:
        return
    missing, changed = _differences(folder, lock)
    if changed:
        raise TaskError(f"{changed[0]}; `{_again(folder, lock.name, force=True, lock=lock)}` fetches it anew")
    if missing:
        raise TaskError(
            f"{str(folder)!r} lacks {missing[0]}, which {LOCK} lists: the fetch was cut off, or the file removed; "
            f"`{_again(folder, lock.name, lock=lock)}` completes it"
        )


def _differences(folder: Path, lock: Lock) -> tuple[list[str], list[str]]:
    """The files that are missing, and a sentence on each one that was changed."""
    pin = PINS.get(lock.name)
    pinned = {path: sha256 for path, (_, sha256) in pin.files.items()} if pin is not None and lock.is_of(pin) else {}
    missing, changed = [], []
    for name, entry in lock.files.items():
        stated = pinned.get(entry["from"])
        if stated is not None and stated != entry["from_sha256"]:
            changed.append(
                f"{str(folder / LOCK)!r} was edited: it gives {entry['from']} the SHA-256 {entry['from_sha256']}, "
                f"{lock.repo} has {stated}"
            )
        elif not (folder / name).is_file():
            missing.append(name)
        elif (found := _digest(folder / name)) != entry["sha256"]:
            changed.append(
                f"{str(folder / name)!r} was changed after it was fetched: its SHA-256 is {found}, {LOCK} has "
                f"{entry['sha256']}"
            )
    return missing, changed


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise TaskError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _again(folder: Path, name: str, *, force: bool = False, lock: Lock | None = None) -> str:
    """The command that fetches this folder once more."""
    foreign = lock is not None and not (lock.name in PINS and lock.is_of(PINS[lock.name]))
    mirror = f"{lock.repo}@{lock.revision}" if lock is not None and foreign else None
    return command(name, None if folder.parent == cache() else folder.parent, force=force, mirror=mirror)


# -- fetching


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where a benchmark is now."""

    folder: Path
    origin: str
    licence: str
    files: int
    fresh: bool
    """Whether anything had to be downloaded."""
    unpinned: tuple[str, ...]
    """Files that no pin states a hash of: recorded at the first fetch, compared ever after."""


def fetch(
    name: str,
    *,
    to: str | Path | None = None,
    mirror: str | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Fetched:
    """Put a benchmark into `to`/NAME, or into the cache; what is there and whole is not fetched again.

    `mirror` is OWNER/REPO@REVISION, a data set on the hub with files as the task reads them, in its root or in a folder
    NAME. Nothing is written before every hash was checked; then the lock file, then each file whole. `force` replaces
    what was fetched before, from wherever.

    Raises UsageError (an unknown name, a branch for a commit), NotFound (no network, no such file), TaskError (a hash
    that differs), RunError (a folder that is not ours, is being written to, or a disk), MissingExtra (pyarrow).
    """
    known = folder_name(name)
    pin = PINS[known] if mirror is None else _mirrored(known, mirror)
    folder = (cache() if to is None else Path(to).expanduser()) / known
    if not force and (lock := _held(folder, known, pin)) and _whole(folder, lock, pin):
        return _fetched(folder, pin, lock, fresh=False)  # before the folder is locked: it may be read-only
    if pin.unpack is not None:
        _parquet()
    with _in_our_words(), owned(folder):
        lock = _replaced(folder) if force else _held(folder, known, pin)
        old = list(lock.files) if lock is not None else []
        contents, files = _download(folder, known, pin, None if force else lock, force, progress)
        said = {"format": FORMAT, "name": known, "host": pin.host, "repo": pin.repo, "revision": pin.revision}
        said |= {"licence": pin.licence, "fetched": datetime.now(UTC).isoformat(timespec="seconds"), "files": files}
        write_whole(folder / LOCK, (json.dumps(said, indent=1) + "\n").encode())
        for here, content in contents.items():
            write_whole(folder / here, content)
        for here in set(old) - set(files):
            (folder / here).unlink(missing_ok=True)
        lock = read_lock(folder)
    assert lock is not None
    return _fetched(folder, pin, lock, fresh=bool(contents))


def _fetched(folder: Path, pin: Pin, lock: Lock, *, fresh: bool) -> Fetched:
    stated = {path for path, (_, sha256) in pin.files.items() if sha256 is not None}
    loose = tuple(here for here, entry in lock.files.items() if entry["from"] not in stated)
    return Fetched(folder, pin.origin, pin.licence, len(lock.files), fresh, loose)


def _whole(folder: Path, lock: Lock, pin: Pin) -> bool:
    """Whether every file is there that the lock file and the pin name."""
    came = {entry["from"] for entry in lock.files.values()}
    return came >= set(pin.files) and all((folder / here).is_file() for here in lock.files)


def _require_ours(folder: Path) -> None:
    if folder.is_dir() and not (folder / LOCK).is_file() and any(p.name != ".lock" for p in folder.iterdir()):
        raise RunError(
            f"{folder} holds files that trimtab did not fetch; move them away, or give another folder with --to"
        )


def _replaced(folder: Path) -> Lock | None:
    """The lock of what is to be replaced by force, if it can be read."""
    _require_ours(folder)
    try:
        return read_lock(folder)
    except TaskError:
        return None


def _held(folder: Path, name: str, pin: Pin) -> Lock | None:
    """The lock of what is in the folder. Raises where that is another's, of another commit, or was changed."""
    _require_ours(folder)
    lock = read_lock(folder)
    if lock is None:
        return None
    if lock.name != name or not lock.is_of(pin):
        raise RunError(
            f"{folder} holds {lock.name} of {lock.repo}@{lock.revision}; --force replaces it with {pin.origin}, --to "
            "gives another folder"
        )
    if changed := _differences(folder, lock)[1]:
        raise TaskError(f"{changed[0]}; --force fetches it anew")
    return lock


def _download(
    folder: Path, name: str, pin: Pin, lock: Lock | None, force: bool, progress: ProgressCallback | None
) -> tuple[dict[str, bytes], dict[str, Mapping[str, str]]]:
    """The contents that are needed, and every file's entry in the lock file."""
    held = lock.files if lock is not None else {}
    try:
        wanted = pin.files or _listed(name, pin)
        files = dict(held)
        contents: dict[str, bytes] = {}
        for done, (path, (here, stated)) in enumerate(wanted.items()):
            if progress is not None:
                progress(Progress(f"fetch {name}", done, len(wanted)))
            made = [n for n, entry in held.items() if entry["from"] == path]
            if made and all((folder / n).is_file() for n in made):
                continue
            content = _from_hub(pin, path, force) if pin.host == "hub" else _from_github(pin, path)
            found = hashlib.sha256(content).hexdigest()
            expected = stated or next((held[n]["from_sha256"] for n in made), None)
            if expected not in (None, found):
                raise TaskError(
                    f"{path} of {pin.origin} has SHA-256 {found}, expected {expected}; nothing was written. Run it "
                    "again with --force; if it stays so, what is served there is not what was pinned"
                )
            made_of_it = {here: content} if pin.unpack is None else {
                n: c.encode() if isinstance(c, str) else c for n, c in pin.unpack(here, _rows_of(content))
            }  # fmt: skip
            for n, raw in made_of_it.items():
                contents[n] = raw
                files[n] = {"sha256": hashlib.sha256(raw).hexdigest(), "from": path, "from_sha256": found}
    except _Away as away:
        mirror = None if pin is PINS[name] else f"{pin.repo}@{pin.revision}"
        raise NotFound(
            f"{name} could not be fetched ({away}); run `{command(name, '.', mirror=mirror)}` where there is a network "
            f"and copy the folder {name} into {str(folder.parent)!r}"
        ) from away
    if progress is not None:
        progress(Progress(f"fetch {name}", len(wanted), len(wanted)))
    return contents, files


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Refusals of a folder or a disk name --out, which is --to here."""
    try:
        yield
    except RunError as error:
        raise RunError(str(error).replace("--out", "--to")) from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "the hub has it as parquet, which needs 'pyarrow'; run: pip install 'trimtab[hub]'"
        ) from error
    return pyarrow.parquet


def _rows_of(content: bytes) -> Rows:
    rows: Rows = _parquet().read_table(io.BytesIO(content)).to_pylist()
    return rows


# -- a mirror


def _mirrored(name: str, mirror: str) -> Pin:
    """The pin of a user's own repository, its files not yet listed."""
    repo, at, revision = mirror.rpartition("@")
    if not at or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"--from {mirror}: expected OWNER/REPO@REVISION, a data set on the Hugging Face hub")
    if not COMMIT.fullmatch(revision):
        raise UsageError(f"--from {mirror}: a branch or tag moves; give the commit, 40 digits of 0-9 and a-f")
    pin = PINS[name]
    return Pin("hub", repo, revision, pin.licence, pin.by_hand, pin.reads, {})


def _listed(name: str, pin: Pin) -> dict[str, tuple[str, str | None]]:
    """The files of a mirror that the task reads."""
    from huggingface_hub import HfApi

    with _asking(pin, "its list of files"):
        paths = HfApi(library_name="trimtab").list_repo_files(pin.repo, repo_type="dataset", revision=pin.revision)
    for folder in (f"{name}/", ""):
        inside = [p.removeprefix(folder) for p in paths if p.startswith(folder)]
        fit = sorted(p for p in inside if _inside(p) and any(fnmatch(p, pattern) for pattern in pin.reads))
        if fit:
            return {folder + p: (p, None) for p in fit}
    raise NotFound(
        f"{pin.origin} has none of {', '.join(pin.reads)}, in its root or in a folder {name!r}; a mirror has the files "
        "as the task reads them"
    )


# -- the network


class _Away(Exception):
    """The host was not reached; says why."""


def _offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _Away("HF_HUB_OFFLINE is set")


def _from_github(pin: Pin, path: str) -> bytes:
    _offline()
    base = os.environ.get(GITHUB) or "https://raw.githubusercontent.com"
    url = f"{base.rstrip('/')}/{pin.repo}/{pin.revision}/{quote(path)}"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        try:
            with urlopen(Request(url, headers={"User-Agent": "trimtab"}), timeout=TIMEOUT) as answer:
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            if error.code in (404, 410, 451):
                raise NotFound(f"{url} is not there ({error.code}): the repository was moved or closed") from error
            why = f"{urlsplit(url).hostname} answered {error.code}"
        except (OSError, HTTPException) as error:
            # urllib packs what went wrong, such as a refused connection, into a URLError.
            reason = getattr(error, "reason", error)
            why = f"{urlsplit(url).hostname}: {getattr(reason, 'strerror', None) or reason}"
    raise _Away(why)


def _from_hub(pin: Pin, path: str, anew: bool) -> bytes:
    """A file of the hub, through its client, whose own cache, tokens and endpoint are honoured."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"repo_type": "dataset", "revision": pin.revision, "library_name": "trimtab"}
    if not anew:
        try:
            return Path(hf_hub_download(pin.repo, path, local_files_only=True, **where)).read_bytes()
        except LocalEntryNotFoundError:
            pass
    with _asking(pin, path):
        return Path(hf_hub_download(pin.repo, path, force_download=anew, **where)).read_bytes()


@contextmanager
def _asking(pin: Pin, what: str) -> Iterator[None]:
    """Ask the hub, its progress bars off; what goes wrong becomes _Away or a sentence."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    _offline()
    _reach(constants.ENDPOINT)
    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with disk(Path(constants.HF_HUB_CACHE)):
            yield
    except RunError:
        raise
    except errors.GatedRepoError as error:
        raise NotFound(
            f"{pin.origin} is gated: accept its terms on {constants.ENDPOINT}/datasets/{pin.repo}, sign in with "
            "`hf auth login`, and fetch again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _Away(f"{constants.ENDPOINT}: {_one_line(error.__cause__ or error)}") from error
        raise NotFound(
            f"{pin.origin} does not have {what}, or is private (sign in with `hf auth login`): {_one_line(error)}"
        ) from error
    except Exception as error:  # its client raises the types of the HTTP package below it
        raise _Away(f"{constants.ENDPOINT}: {_one_line(error)}") from error
    finally:
        if not quiet:
            enable_progress_bars()


def _reach(endpoint: str) -> None:
    """Refuse at once where the hub cannot be reached: its client tries for 24 s."""
    if getproxies():
        return
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), 5).close()
    except OSError as error:
        raise _Away(f"{url.hostname}: {error.strerror or error}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
