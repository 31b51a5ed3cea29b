"""One worker: draws settings, measures them and writes down what it found, until as many are done as were asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from trimtab.errors import RunError, TrimtabError, UsageError
from trimtab.search import notebook
from trimtab.search.measure import Measured, Rival, Scorer, packed
from trimtab.search.notebook import MEASURED, REASON, REPEAT, Notebook
from trimtab.search.recall import Recalling
from trimtab.search.space import Setting, Space
from trimtab.steering import Steering
from trimtab.types import Contrast, Progress, ProgressCallback

BASE = "base"
"""The key of every setting of strength 0, and what it is a repeat of."""
STEERINGS = 64
"""Learned steerings that are kept for other strengths."""
HOPELESS = 10
"""Settings after which a space is given up in which none could be used."""


class _Refused(Exception):
    """A setting that cannot be used."""


@dataclass(eq=False)
class Worker:
    """What one process needs to try settings."""

    model: Recalling
    space: Space
    scorer: Scorer
    notes: Notebook
    trials: int
    seed: int
    progress: ProgressCallback | None = None
    wanted: Callable[[], bool] = lambda: True
    """Whether anybody still waits for the result."""

    def __post_init__(self) -> None:
        self._steerings: OrderedDict[str, Steering] = OrderedDict()
        self._pace = Pace(self.notes, self.trials, [(a.name, a.higher) for a in self.scorer.aims])

    def run(self) -> None:
        """Work until the study is done. Raises UsageError where no setting of the space can be used."""
        with notebook.quiet():
            while self.wanted():
                self.notes.bury()
                done, running = self.notes.done(), self.notes.running()
                if self.progress is not None:
                    self.progress(self._pace.now())
                reasons = self.notes.reasons()
                if len(reasons) >= min(self.trials, HOPELESS):
                    raise UsageError(none_runs(reasons))
                if (done >= self.trials and not running) or (self.notes.exhausted() and not running):
                    return
                if done + running >= self.trials or self.notes.exhausted():
                    time.sleep(0.2)  # others are at the last ones; one that dies leaves its place
                    continue
                self._one()

    def _one(self) -> None:
        # Where another process took this one for dead, its trial is failed by now: one trial is lost, no more.
        try:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self.notes.study.optimize(self._tried, n_trials=1, catch=(_Refused,))
        except ValueError as error:
            if "Cannot tell" not in str(error):
                raise

    def _tried(self, trial: Any) -> Any:
        tried = [t for t in self.notes.trials() if REPEAT not in t.user_attrs]
        if notebook.turn_of(tried, trial.number) >= self.trials:
            raise _Refused  # another process began at the same moment: one more trial than was asked for
        begun = time.monotonic()
        setting = self.space.choose(trial)
        contrast = self.space.contrast(setting.recipe)
        key = key_of(setting, contrast)
        self.notes.sign(trial, {"key": key, "is": str(setting)})
        if key == BASE:
            trial.set_user_attr(REPEAT, BASE)
            return self._answer(trial, self.scorer.base, begun)
        twin = self.notes.twin(trial, key)
        if twin is not None:
            return self._repeated(trial, twin)
        try:
            found = []
            for part in self.scorer.measured(self._steering(setting, contrast), setting.strength, self._stop):
                found.append(part)
            if not found[-1].sound:
                raise UsageError(f"{self.scorer.aims[0].name} is undefined on its answers")
        except RunError:
            raise
        except TrimtabError as error:
            trial.set_user_attr(REASON, f"{type(error).__name__}: {error}")
            raise _Refused(str(error)) from error
        return self._answer(trial, found, begun)

    def _stop(self, part: Measured) -> bool:
        rivals = []
        for trial in self.notes.front():
            held = trial.user_attrs[MEASURED]
            rivals += [Rival(tuple(values), held["shares"]) for n, values in held["parts"] if n == part.items]
        told = [
            tuple(values)
            for trial in self.notes.trials()
            if REPEAT not in trial.user_attrs and MEASURED in trial.user_attrs
            for n, values in trial.user_attrs[MEASURED]["told"]
            if n == part.items
        ]
        return self.scorer.outdone(part, told) or self.scorer.hopeless(part, rivals)

    def _steering(self, setting: Setting, contrast: Contrast) -> Steering:
        key = key_of(setting, contrast, strength=False)
        if key not in self._steerings:
            self._steerings[key] = self.space.fitted(self.model, setting, contrast, self.seed)
            if len(self._steerings) > STEERINGS:
                self._steerings.popitem(last=False)
        self._steerings.move_to_end(key)
        return self._steerings[key]

    def _answer(self, trial: Any, parts: list[Measured], begun: float) -> Any:
        last = parts[-1]
        stopped = len(parts) < len(self.scorer.parts)
        told = [self.scorer.told(p) for p in parts]
        trial.set_user_attr(
            MEASURED,
            {
                "items": last.items,
                "seconds": round(time.monotonic() - begun, 3),
                "stopped": stopped,
                "within": self.scorer.within(last),
                "lost": last.lost[0],
                "figures": last.figures,
                "parts": [[p.items, list(p.values)] for p in parts],
                "told": [[p.items, list(values)] for p, values in zip(parts, told, strict=True)],
                "shares": "" if stopped or len(self.scorer.parts) == 1 else packed(last.records),
            },
        )
        if len(self.scorer.aims) > 1:
            return told[-1]
        for part, values in zip(parts, told, strict=True):
            trial.report(values[0], part.items)
        if stopped:
            raise optuna.TrialPruned
        return told[-1][0]

    def _repeated(self, trial: Any, twin: Any) -> Any:
        """What the first trial of this setting was answered."""
        trial.set_user_attr(REPEAT, twin.number)
        if REASON in twin.user_attrs:
            trial.set_user_attr(REASON, twin.user_attrs[REASON])
            raise _Refused
        trial.set_user_attr(MEASURED, twin.user_attrs[MEASURED])
        for step, value in twin.intermediate_values.items():
            trial.report(value, step)
        if twin.state == optuna.trial.TrialState.PRUNED:
            raise optuna.TrialPruned
        return twin.values


def key_of(setting: Setting, contrast: Contrast, *, strength: bool = True) -> str:
    """What makes a setting the same as another: the texts, not how they were asked for."""
    if strength and setting.strength == 0:
        return BASE
    parts = [contrast.digest(), setting.learner, list(setting.options), setting.sites]
    return hashlib.sha256(json.dumps([*parts, setting.strength if strength else None]).encode()).hexdigest()[:16]


def none_runs(reasons: list[str]) -> str:
    """One sentence about a space in which nothing works."""
    kinds: dict[str, int] = {}
    for reason in reasons:
        kinds[reason] = kinds.get(reason, 0) + 1
    most = sorted(kinds.items(), key=lambda pair: -pair[1])[:3]
    told = "; ".join(f"{n} x {' '.join(reason.split())[:200]}" for reason, n in most)
    return f"no setting of this search space can be used: all {len(reasons)} that were tried failed ({told})"


class Pace:
    """How far a study is, for a progress line."""

    def __init__(self, notes: Notebook, trials: int, aims: Sequence[tuple[str, bool]]) -> None:
        self._notes, self._trials, self._aims = notes, trials, aims
        self._begun = time.monotonic()
        self._first: int | None = None

    def now(self) -> Progress:
        """Trials done, best so far, size of the front, trials an hour, time left."""
        done = self._notes.done()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._begun)
        best = self._notes.front()
        figures: list[tuple[str, float]] = []
        for k, (name, higher) in enumerate(self._aims):
            values = [t.values[k] for t in best]
            figures += [(f"best {name}", (max if higher else min)(values))] if values else []
        if len(self._aims) > 1:
            figures.append(("on the front", float(len(best))))
        if rate:
            figures.append(("trials an hour", round(3600 * rate)))
        left = (self._trials - done) / rate if rate else None
        return Progress("searching", min(done, self._trials), self._trials, tuple(figures), left)
