"""The study as Optuna keeps it: who works on which trial, what was found, and what need not be done again.

Plain Optuna storage, a journal file or a database, so that several processes and machines share a study and
optuna-dashboard opens it. Of each trial there is, beside the parameters and values:

    setting      what its parameters came to (repeated settings have the same key), and who works on it
    measured     items, seconds, figures; "parts" holds the values on each part of the items
    repeat of    the trial whose values it was given; "base" for strength 0
    reason       why the setting cannot be used

A trial whose worker died is failed without a reason, and does not count. Its place goes to the next trial, which is
drawn by the same random numbers: each trial is drawn from the seed and its turn, not from what a process has drawn
before, so a study of one worker that was killed and goes on is the study that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import MissingExtra, RunError
from trimtab.runs import disk

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingExtra(f"optuna is not installed ({error.name} is missing): pip install 'trimtab[search]'") from error

SAMPLERS = ("tpe", "nsga2", "random")
SETTING, MEASURED, REPEAT, REASON = "setting", "measured", "repeat of", "reason"
IDENTITY = "trimtab search"
HEARTBEAT, GRACE = 30, 120
"""Seconds between signs of life in a database, and without one after which a worker is dead."""
UNSIGNED = 10.0
"""Seconds after which a trial that nobody has put a name to is dead."""
OPENING = b'{"op_code":'
"""What each line of a journal begins with."""
REPEATS = 50
"""Repeated settings in a row after which there is taken to be nothing new."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it Optuna says nothing but errors of its own: what it says of a trial is ours to say."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


# -- where it is kept


class _Lock:
    """Of a journal file, and released by the death of its holder: Optuna's own would be waited for half a minute."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Presence:
    """Which workers on a journal file are alive: each holds a file locked, and a lock dies with its process."""

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._folder = folder
        self._own: Any = None

    def __enter__(self) -> Presence:
        with disk(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._own = self._lock(self.name)
        self._own.acquire()
        return self

    def __exit__(self, *left: object) -> None:
        (self._folder / self.name).unlink(missing_ok=True)
        self._own.release()
        with contextlib.suppress(OSError):  # others are at work
            self._folder.rmdir()

    def _lock(self, name: str) -> Any:
        from filelock import FileLock

        return FileLock(str(self._folder / name), timeout=0)

    def alive(self, name: str) -> bool:
        """Whether the worker of that name still runs."""
        from filelock import Timeout

        if not (self._folder / name).exists():
            return False
        lock = self._lock(name)
        try:
            lock.acquire()
        except Timeout:
            return True
        (self._folder / name).unlink(missing_ok=True)
        lock.release()
        return False

    def alone(self) -> bool:
        """Whether no other worker runs."""
        return not any(self.alive(path.name) for path in self._folder.iterdir() if path.name != self.name)


def opened(where: str | Path) -> tuple[Any, Path | None]:
    """The storage at an URL (a database) or a path (a journal file), and the journal's path.

    A last line that a kill or a full disk cut short is taken away, of a journal and of nothing else. Raises RunError
    for what cannot be opened.
    """
    text = str(where)
    if "://" in text:
        try:
            return optuna.storages.RDBStorage(text, heartbeat_interval=HEARTBEAT, grace_period=GRACE), None
        except Exception as error:  # sqlalchemy and the database's driver raise what they like
            shown = text.partition("://")[0] + "://..."  # a URL may hold a password
            raise RunError(f"the storage {shown} cannot be opened: {_line(error)}") from error
    path = Path(text).expanduser()
    lock = _Lock(path)
    with disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        return optuna.storages.JournalStorage(backend), path
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(
            f"{path} is no journal of Optuna, or a damaged one ({_line(error)}); give another --out"
        ) from error


def _mend(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if not _journal(content):
            hint = f"sqlite:///{path} names a database" if content.startswith(b"SQLite format 3") else "it is as it was"
            raise RunError(f"{path} is no journal of Optuna ({hint}); give another --storage or --out")
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _journal(content: bytes) -> bool:
    """Whether each line of a file is an operation, the last perhaps cut short."""
    *lines, last = content.split(b"\n")
    return all(line.startswith(OPENING) for line in lines) and last[: len(OPENING)] == OPENING[: len(last)]


# -- how settings are drawn


class _Sampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """A sampler made anew for each trial, from the seed and the trial's turn."""

    def __init__(self, make: Callable[[int], Any], seed: int) -> None:
        self._make, self._seed = make, seed
        self._inner: Any = None

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        turn = turn_of(study.get_trials(deepcopy=False), trial.number)
        drawn = hashlib.sha256(f"{self._seed}:{turn}".encode()).digest()
        self._inner = self._make(int.from_bytes(drawn[:4], "big"))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> Any:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> Any:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)


def sampler(name: str, seed: int, *, aims: int, trials: int) -> Any:
    """The sampler of that name, one of SAMPLERS."""
    samplers = optuna.samplers
    if name == "random":
        return _Sampler(lambda drawn: samplers.RandomSampler(seed=drawn), seed)
    if name == "nsga2":
        size = max(4, min(50, trials // 5))
        return _Sampler(lambda drawn: samplers.NSGAIISampler(population_size=size, seed=drawn), seed)
    # What is asked for depends on what was chosen, and strength goes with the number of layers.
    joint: dict[str, Any] = {"multivariate": True, "group": True} if aims == 1 else {"multivariate": False}
    return _Sampler(lambda drawn: samplers.TPESampler(seed=drawn, constant_liar=True, **joint), seed)


# -- reading trials


def killed(trial: FrozenTrial) -> bool:
    """Whether its worker died: it failed, and there is no reason."""
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def turn_of(trials: Sequence[FrozenTrial], number: int) -> int:
    """How many trials stand before one of that number, killed ones left out."""
    return sum(1 for t in trials if t.number < number and not killed(t))


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of the settings that were tried: over, and neither killed nor a repeat."""
    return bool(trial.state.is_finished() and not killed(trial) and REPEAT not in trial.user_attrs)


def whole(trial: FrozenTrial) -> bool:
    """Whether it is a setting that was measured on all items."""
    return counts(trial) and trial.state == TrialState.COMPLETE and not trial.user_attrs[MEASURED].get("stopped")


class Notebook:
    """One study, and this process's part in it."""

    def __init__(self, storage: Any, name: str, presence: Presence | None) -> None:
        self._storage, self.name, self._presence = storage, name, presence
        self._unsigned: dict[int, float] = {}
        self.study: Any = None

    @property
    def worker(self) -> str:
        """This process's name in the study."""
        return self._presence.name if self._presence is not None else "database"

    def begin(
        self, identity: Mapping[str, Any], aims: Sequence[tuple[str, bool]], drawn: Any, base: Mapping[str, Any]
    ) -> None:
        """Open the study, or make it. Raises RunError where it is of another search, saying what differs."""
        held = json.loads(json.dumps(identity))
        directions = ["maximize" if higher else "minimize" for _, higher in aims]
        self.study = optuna.create_study(
            storage=self._storage, study_name=self.name, directions=directions, sampler=drawn,
            pruner=optuna.pruners.NopPruner(), load_if_exists=True,
        )  # fmt: skip
        there = self.study.user_attrs.get(IDENTITY)
        if there is None and not self.study.get_trials(deepcopy=False):
            self.study.set_user_attr("base", dict(base))
            self.study.set_user_attr(IDENTITY, held)
            self.study.set_metric_names([word for word, _ in aims])
        elif there is None:
            raise RunError(f"the study '{self.name}' is none of trimtab search; give another --study, or another --out")
        elif there != held:
            raise RunError(
                f"the study '{self.name}' is of another search: {'; '.join(_differing(there, held))}; give another "
                "--out or --study, or the options that it was begun with"
            )

    def watch(self) -> bool:
        """Open the study to look at it alone; False where there is none yet."""
        if self.study is None:
            with contextlib.suppress(KeyError):
                self.study = optuna.load_study(storage=self._storage, study_name=self.name)
        return self.study is not None

    def trials(self) -> list[FrozenTrial]:
        """All trials in order, not to be changed."""
        found: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found

    def bury(self) -> None:
        """Fail the trials whose workers are dead."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._dead(trial):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        with quiet():
            optuna.storages.fail_stale_trials(self.study)

    def _dead(self, trial: FrozenTrial) -> bool:
        signed = trial.user_attrs.get(SETTING)
        if signed is None:
            if self._presence is not None and self._presence.alone():
                return True
            # By our own clock: another machine's may be wrong.
            return time.monotonic() - self._unsigned.setdefault(trial.number, time.monotonic()) > UNSIGNED
        return self._presence is not None and not self._presence.alive(signed["worker"])

    def sign(self, trial: Any, setting: Mapping[str, Any]) -> None:
        """Say which setting a trial came to, and who works on it."""
        trial.set_user_attr(SETTING, {**setting, "worker": self.worker})

    def twin(self, trial: Any, key: str) -> FrozenTrial | None:
        """The earlier trial of the same setting, once it is over; None where there is none.

        Where another process is at work on it, it is waited for. Of two that begin at once the earlier number works.
        """
        while True:
            before = [t for t in self.trials() if t.number < trial.number and not killed(t)]
            same = [t for t in before if t.user_attrs.get(SETTING, {}).get("key") == key]
            if over := [t for t in same if t.state.is_finished()]:
                return over[0]
            unsigned = any(t.state == TrialState.RUNNING and SETTING not in t.user_attrs for t in before)
            if not same and not unsigned:
                return None
            time.sleep(0.05)
            self.bury()

    def done(self) -> int:
        """Settings tried."""
        return sum(map(counts, self.trials()))

    def running(self) -> int:
        """Trials that somebody is at work on."""
        return sum(t.state == TrialState.RUNNING for t in self.trials())

    def exhausted(self) -> bool:
        """Whether nothing but repeats came lately."""
        last = [t for t in self.trials() if t.state.is_finished() and not killed(t)][-REPEATS:]
        return len(last) == REPEATS and all(REPEAT in t.user_attrs for t in last)

    def reasons(self) -> list[str]:
        """Why settings could not be used, where none could; else nothing."""
        tried = [t for t in self.trials() if counts(t)]
        return [t.user_attrs[REASON] for t in tried] if all(REASON in t.user_attrs for t in tried) else []

    def front(self) -> list[FrozenTrial]:
        """Of the settings that were measured on all items and kept the floor, those that no other is better than."""
        kept = [t for t in self.trials() if whole(t) and t.user_attrs[MEASURED]["within"]]
        return front(kept, [d == optuna.study.StudyDirection.MAXIMIZE for d in self.study.directions])


def front(trials: Sequence[FrozenTrial], higher: Sequence[bool]) -> list[FrozenTrial]:
    """The trials that no other is better than in every aim, of equal ones the first."""
    signs = [-1.0 if h else 1.0 for h in higher]
    costs: list[tuple[FrozenTrial, tuple[float, ...]]] = []
    for t in trials:
        cost = tuple(s * v for s, v in zip(signs, t.values, strict=True))
        if cost not in (c for _, c in costs):
            costs.append((t, cost))

    def worse(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(b <= a for a, b in zip(one, other, strict=True))

    return [t for t, cost in costs if not any(worse(cost, other) for _, other in costs)]


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key in dict.fromkeys([*there, *here]):
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differing(one, other, f"{path}{key} ")
        elif one != other:
            shown = [_shortened(json.dumps(v)) if v is not None else "nothing" for v in (one, other)]
            found.append(f"{path}{key} {shown[0]} there, {shown[1]} here")
    return found[:6]


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
