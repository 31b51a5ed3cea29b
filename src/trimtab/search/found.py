"""What a search found: the best setting and the front, as steerings with cards, and their figures on test items."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from trimtab import __version__, artifact
from trimtab.errors import AnotherRun, TaskError
from trimtab.evaluate import SAMPLE_PROMPTS, Evaluation, evaluate
from trimtab.model import SteerableModel
from trimtab.runs import write_whole
from trimtab.search import notebook
from trimtab.search.measure import Aim
from trimtab.search.notebook import MEASURED, REASON, REPEAT, Notebook
from trimtab.search.space import Setting, Space
from trimtab.steering import Steering
from trimtab.types import ProgressCallback, Task


@dataclass(frozen=True, eq=False)
class Point:
    """One setting of the front."""

    number: int
    """Of the trial."""
    setting: Setting
    values: Mapping[str, float]
    """Of each objective, on validation items."""
    lost: float
    """What it lost there of right answers, or of answers at all, whichever is more."""
    figures: Mapping[str, Mapping[str, float]]
    folder: Path
    """Where the steering lies."""
    test: Evaluation
    """Its figures on test items."""

    @property
    def strength(self) -> float:
        """The steering's own: it is saved the way round in which this is positive."""
        return abs(self.setting.strength)


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search."""

    study: str
    aims: tuple[Aim, ...]
    base: Mapping[str, Any]
    """The untouched model on the same validation items: `values`, `figures`."""
    items: int
    floor: float | None
    best: Point
    front: tuple[Point, ...]
    """From the least biased on; with one objective, the best alone."""
    counts: Mapping[str, int]
    """Of trials: tried, stopped early, refused, repeated, lost."""


def counts(notes: Notebook) -> dict[str, int]:
    """How many trials went which way."""
    trials = notes.trials()
    tried = [t for t in trials if notebook.counts(t)]
    return {
        "tried": len(tried),
        "stopped early": sum(bool(t.user_attrs.get(MEASURED, {}).get("stopped")) for t in tried),
        "refused": sum(REASON in t.user_attrs for t in tried),
        "repeated": sum(REPEAT in t.user_attrs for t in trials),
        "lost": sum(map(notebook.killed, trials)),
    }


def chosen(notes: Notebook, aims: Sequence[Aim], floor: float | None) -> tuple[Any, list[Any]]:
    """The best trial and the front, the best included. Raises TaskError where nothing was measured on all items.

    Of a front with a bias the best is the least biased that loses no more than the floor allows, or where none does,
    the one that loses least.
    """
    best = notes.front()
    if not best:
        beyond = f", or loses more than the floor allows ({100 * floor:g} points)" if floor is not None else ""
        why = "; ".join(dict.fromkeys(notes.reasons())) or (
            f"each setting is surely worse than the untouched model{beyond}; give other pairs, layers or strengths, "
            f"more trials{', or a higher --floor' if floor is not None else ''}"
        )
        raise TaskError(f"the search has no result: {why[:400]}")
    best.sort(key=lambda t: (-t.values[0] if aims[0].higher else t.values[0], t.number))
    if len(aims) == 1 or floor is None:
        return best[0], best
    lost = {t.number: t.user_attrs[MEASURED]["lost"] for t in best}
    within = [t for t in best if lost[t.number] <= floor + 1e-9]
    return (within[0] if within else min(best, key=lambda t: lost[t.number])), best


def setting_of(space: Space, trial: Any) -> Setting:
    """The setting that a trial's parameters come to."""
    return space.choose(optuna.trial.FixedTrial(trial.params))


def learned(model: SteerableModel, space: Space, setting: Setting, seed: int) -> Steering:
    """The steering of a setting, learned as `trimtab learn` would, the way round in which its strength is positive."""
    steering = space.fitted(model, setting, space.contrast(setting.recipe), seed)
    low, high = steering.trained_range
    steering = steering if setting.strength >= 0 else turned(steering)
    own = [low, high] if setting.strength >= 0 else [-high, -low]
    strength = {"trained": own, "default": abs(setting.strength)}
    return Steering(steering.interventions, {**steering.card, "strength": strength})


def turned(steering: Steering) -> Steering:
    """The steering that at strength w does what this one does at -w."""

    group = {site: tuple(i.scaled(-1.0) for i in some) for site, some in steering.interventions.items()}
    return Steering(group, {**steering.card, "turned": "negated after learning: it does at w what was learned for -w"})


def finish(
    model: SteerableModel,
    task: Task,
    space: Space,
    notes: Notebook,
    out: Path,
    *,
    floor: float | None,
    seed: int,
    limit: int | None = None,
    neutral: str | Path | None = None,
    command: str = "",
    progress: ProgressCallback | None = None,
) -> Found:
    """Save the best steering and the front, and measure them on test items, which nothing before has seen.

    `out` gets steering/ and eval/ of the best, with controls; front/N/ of each trial of the front, with eval/ in it;
    trials.jsonl. A run that was cut off goes on; one of other test items or another neutral text is moved aside. Raises
    TaskError for a study without a result.
    """
    held = notes.study.user_attrs
    aims = tuple(Aim(a["name"], tuple(a["figures"]), a["higher"]) for a in held[notebook.IDENTITY]["aims"])
    base = held["base"]
    write_whole(out / "trials.jsonl", "".join(json.dumps(row(t)) + "\n" for t in notes.trials()).encode())
    best, all_ = chosen(notes, aims, floor)
    _forget(out, best.number, [t.number for t in all_])
    points = []
    for trial in all_:
        setting = setting_of(space, trial)
        steering = learned(model, space, setting, seed)
        steering = Steering(steering.interventions, {**steering.card, "search": _card(notes, aims, trial, floor, seed)})
        first = trial is best
        folder = artifact.save(steering, out / "steering" if first else out / "front" / str(trial.number))
        if first and len(all_) > 1:
            artifact.save(steering, out / "front" / str(trial.number))
        measure = partial(
            evaluate, model, task, steering, [abs(setting.strength)], seed=seed, split="test", limit=limit,
            neutral=neutral, out=(into := out / "eval" if first else folder / "eval"), name=str(folder),
            controls=first, samples=SAMPLE_PROMPTS if first else (), command=command, progress=progress,
        )  # fmt: skip
        try:
            measured = measure()
        except AnotherRun:  # it was asked for other test items, or another neutral text, before
            _aside(into)
            measured = measure()
        values = dict(zip([a.name for a in aims], trial.values, strict=True))
        told = trial.user_attrs[MEASURED]
        points.append(Point(trial.number, setting, values, told["lost"], told["figures"], folder, measured))
    found = next(p for p in points if p.number == best.number)
    items = int(best.user_attrs[MEASURED]["items"])
    return Found(notes.name, aims, base, items, floor, found, tuple(points), counts(notes))


def _aside(folder: Path) -> None:
    """Rename a folder to the first free name of NAME-1, NAME-2 and so on."""
    names = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    folder.rename(next(name for name in names if not name.exists()))


def _forget(out: Path, best: int, numbers: Sequence[int]) -> None:
    """Move away what an earlier, shorter search left: records of another best, steerings that left the front."""
    card = out / "steering" / artifact.CARD
    if card.is_file():
        before = json.loads(card.read_bytes()).get("search", {}).get("trial")
        if before != best and (out / "eval").is_dir():
            aside = out / f"eval-of-trial-{before}"
            shutil.rmtree(aside, ignore_errors=True)
            (out / "eval").rename(aside)
    for folder in (out / "front").glob("*"):
        if folder.name.isdigit() and int(folder.name) not in numbers and (folder / artifact.CARD).is_file():
            shutil.rmtree(folder)


def _card(notes: Notebook, aims: Sequence[Aim], trial: Any, floor: float | None, seed: int) -> dict[str, Any]:
    measured = trial.user_attrs[MEASURED]
    return {
        "trimtab": __version__,
        "study": notes.name,
        "trial": trial.number,
        "parameters": trial.params,
        "objectives": {
            a.name: {"figures": list(a.figures), "value": v} for a, v in zip(aims, trial.values, strict=True)
        },
        "split": "validation",
        "items": measured["items"],
        "figures": measured["figures"],
        "base": notes.study.user_attrs["base"],
        "floor": floor,
        "seed": seed,
        "trials": counts(notes),
        "space": notes.study.user_attrs[notebook.IDENTITY]["space"],
    }


def row(trial: Any) -> dict[str, Any]:
    """A trial as a line of trials.jsonl."""
    began, ended = trial.datetime_start, trial.datetime_complete
    return {
        "trial": trial.number,
        "state": "lost" if notebook.killed(trial) else trial.state.name.lower(),
        "values": trial.values,
        "parameters": trial.params,
        "seconds": (ended - began).total_seconds() if began and ended else None,
        **{k: v for k, v in trial.user_attrs.items() if k in (notebook.SETTING, REPEAT, REASON)},
        MEASURED: {k: v for k, v in trial.user_attrs.get(MEASURED, {}).items() if k != "shares"},
    }


def lines(found: Found) -> Iterator[str]:
    """The result for a person."""
    n = found.counts
    yield (
        f"study '{found.study}': {n['tried']} settings tried, {n['stopped early']} of them stopped early, "
        f"{n['refused']} could not be used; {n['repeated']} repeats answered from memory, {n['lost']} trials lost"
    )
    names = [a.name for a in found.aims]
    yield (
        f"{'':12}{'':10}" + "".join(f"{name:>12}" for name in names) + f"{'lost, points':>14}"
        + "".join(f"{f'{name}, test':>24}" for name in names)
    )  # fmt: skip
    yield _line("base", "", found.base["values"], 0.0, [_tested(found.best, a, 0.0) for a in found.aims], "")
    for point in found.front:
        tested = [_tested(point, aim, point.strength) for aim in found.aims]
        mark = "* " if point is found.best else "  "
        values = list(point.values.values())
        words = f"{point.setting}" + (" (saved turned round)" if point.setting.strength < 0 else "")
        yield _line(f"{mark}trial {point.number}", f"w={point.strength:g}", values, point.lost, tested, words)
    yield f"settings were compared on {found.items} validation items; lost: right answers, or answers at all"
    for name, before in found.base["figures"].items():
        now = found.best.figures.get(name)
        if now is not None and not any(name in a.figures for a in found.aims):
            yield f"  {name}: base {before['value']:.3f}, best {now['value']:.3f}"
    pairs = zip(found.aims, found.best.values.values(), found.base["values"], strict=True)
    if all(now <= before if aim.higher else now >= before for aim, now, before in pairs):
        yield "no setting is better than the untouched model on the validation items"
    if found.floor is not None and found.aims[0].name == "bias" and found.best.lost > found.floor:
        yield f"none keeps the floor of {100 * found.floor:g} points; the best is the one that loses least"
    yield f"* the best: {found.best.folder}, strength {found.best.strength:g}"


def _line(name: str, strength: str, values: Sequence[float], lost: float, tested: Sequence[str], words: str) -> str:
    shown = "".join(f"{v:>12.3f}" for v in values)
    return f"{name:12}{strength:>10}{shown}{100 * lost:>14.1f}{''.join(f'{t:>24}' for t in tested)}  {words}".rstrip()


def _tested(point: Point, aim: Aim, strength: float) -> str:
    own = [r for r in point.test.records if (r.arm, r.strength) == ("steering", strength)]
    found = aim.estimate(own, seed=point.test.results[0]["seed"])
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if math.isfinite(found.value) else "-"
