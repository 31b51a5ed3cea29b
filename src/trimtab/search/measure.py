"""What a setting is worth: its figures on validation items, taken part by part, and when to leave off.

    parts       a ninth of the items, a third, all: each contains the one before
    hopeless    on the items measured so far a rival, or the base, is nowhere behind and somewhere surely ahead
    outdone     it is not in the best third of all settings that were measured on the same items so far

Surely: the 95 % interval of the difference, both drawn under the same resamples, leaves 0 out. Rivals are the settings
of the front, so that a setting is left only for one that is in every respect as good or better.

Outdone is successive halving as settings come (ASHA: Li et al., "A System for Massively Parallel Hyperparameter
Tuning", MLSys 2020) with a factor of 3, which is what the parts grow by. With several aims the better setting is the
one that fewer others dominate (are better than in every aim), so what nothing dominates is never outdone. Of equal
settings the one measured first stays: a second one can show nothing that the first has not.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from trimtab import frontier, metrics
from trimtab.errors import TaskError, UsageError
from trimtab.model import SteerableModel
from trimtab.search import recall
from trimtab.steering import Steering
from trimtab.types import Estimate, Item, Outcome, Record, Task

OBJECTIVES = ("bias", "accuracy", "bias+capability")
SPLIT = "validation"
KEPT = 3
"""Of so many settings on a part one goes on to the next, which has so many times the items."""
SHARES = (KEPT**2, KEPT, 1)
LEAST = 32
"""Items of the smallest part: figures of fewer are noise."""
BLOCK = 6
"""Items of a concept that stand together in the order in which items are taken."""
RESAMPLES = 200
FEWEST = 4
"""Settings on a part before any of them is outdone."""
RIVALS = 3
"""Rivals that a setting is compared with after a part, at most: those furthest ahead."""
BESIDE = ("neither_rate", "option_mass", "unambiguous_accuracy_choice", "position_effect", "position_spread")
"""Figures that are kept beside the objectives: a bias that fell because the model broke shows in them."""


@dataclass(frozen=True, slots=True)
class Aim:
    """One objective, or what may not get worse."""

    name: str
    figures: tuple[str, ...]
    """Of metrics.FIGURES, biases by their size; of several, the mean weighted by the items that each speaks of."""
    higher: bool
    """Whether more is better."""

    def of(self, records: Sequence[Record]) -> float:
        """The value; NaN where undefined."""
        found = [metrics.estimate(f, records, seed=0, resamples=1) for f in self.figures]
        items = sum(e.n for e in found)
        costs = [
            e.n / items * float(self._cost(f, np.array(e.value)))
            for f, e in zip(self.figures, found, strict=True)
            if e.n
        ]
        return round(-sum(costs) if self.higher else sum(costs), 6) if items else math.nan

    def estimate(self, records: Sequence[Record], *, seed: int, resamples: int = 2000) -> Estimate:
        """The value with its 95 % interval; of one figure the very interval of a run."""
        found = [metrics.paired(f, [records], seed=seed, resamples=resamples) for f in self.figures]
        items, value = sum(estimates[0].n for estimates, _ in found), self.of(records)
        spread = np.zeros(resamples)
        for figure, ((one,), draws) in zip(self.figures, found, strict=True):
            if one.n:
                cost = self._cost(figure, draws[0]) if draws.size else np.full(resamples, math.nan)
                spread += one.n / items * (-cost if self.higher else cost)
        ends = metrics.interval(value, spread[~np.isnan(spread)], 0.0, metrics.FIGURES[self.figures[0]].high)
        return Estimate(value, *ends, items, max(one.clusters for (one,), _ in found), seed)

    def behind(self, mine: Sequence[Record], rival: Sequence[Record]) -> tuple[float, float]:
        """By how much mine is behind a rival on the same items, and the lower end of the 95 % interval of that."""
        gap, spread = 0.0, np.zeros(RESAMPLES)
        found = [metrics.paired(f, [mine, rival], seed=0, resamples=RESAMPLES) for f in self.figures]
        items = sum(estimates[0].n for estimates, _ in found)
        for figure, (estimates, draws) in zip(self.figures, found, strict=True):
            if not estimates[0].n:
                continue
            share = estimates[0].n / items
            one, other = (self._cost(figure, np.array(e.value)) for e in estimates)
            gap += share * float(one - other)
            drawn = self._cost(figure, draws[0]) - self._cost(figure, draws[1])
            spread = spread + share * drawn if len(drawn) else spread * math.nan
        if not items:
            return math.nan, math.nan
        return gap, metrics.interval(gap, spread[~np.isnan(spread)], -math.inf, math.inf)[0]

    def _cost(self, figure: str, x: np.ndarray) -> np.ndarray:
        return -x if self.higher else frontier.size(figure, x)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a setting on some items."""

    items: int
    values: tuple[float, ...]
    """Of each aim."""
    lost: tuple[float, float] = (0.0, 0.0)
    """What the worst of the guards lost against the base on the same items, and the least that it surely lost."""
    records: tuple[Record, ...] = field(repr=False, default=())
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of the last part: figure -> value, low, high, n."""

    @property
    def sound(self) -> bool:
        """Whether every aim is defined."""
        return all(map(math.isfinite, self.values))


@dataclass(frozen=True, slots=True)
class Rival:
    """A setting that was measured on all items."""

    values: tuple[float, ...]
    """On the items that it is compared on."""
    shares: str
    """Its options' probabilities on all items, as `packed` writes them."""


class Scorer:
    """Measures steerings on the validation items of a task, in parts whose order the seed fixes."""

    def __init__(
        self,
        model: SteerableModel,
        task: Task,
        objective: str,
        *,
        seed: int,
        layers: tuple[int, int],
        limit: int | None = None,
        prune: bool = True,
        floor: float | None = None,
    ) -> None:
        """Measures the base as well, and keeps what no setting changes of it. Raises TaskError, UsageError."""
        self.model, self.task, self.floor = model, task, floor
        self.items = chosen(task, seed=seed, limit=limit)
        ends = _ends(len(self.items)) if prune else [len(self.items)]
        self.parts = [tuple(self.items[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        encoded = [model.encode(part) for part in self.parts]
        kept = recall.levels(model, layers, [e for part in encoded for e in part])
        every = recall.blocks(model)
        self._tapes = [recall.Tape(part, blocks=every, levels=kept) for part in encoded]
        self._base: list[Record] = []
        with model.unsteered():
            for part, tape in zip(self.parts, self._tapes, strict=True):
                tape.recording = True
                self._base += self._records(part, model.score(part, prepared=tape), 0.0)
                tape.recording = False
        self.aims = _aims(objective, task, self._base)
        self._bound = objective == "bias" and floor is not None
        self._guards = _guards(task, self._base)
        self.base = [self._measured(self._base[:end]) for end in ends]

    @property
    def digest(self) -> str:
        """SHA-256 over the items in their order."""
        return hashlib.sha256("".join(f"{i.id} {i.digest()}" for i in self.items).encode()).hexdigest()[:16]

    def measured(
        self, steering: Steering, strength: float, stop: Callable[[Measured], bool] = lambda part: False
    ) -> Iterator[Measured]:
        """What is found, part after part, until `stop` says so or there is no more."""
        held: list[Record] = []
        for part, tape in zip(self.parts, self._tapes, strict=True):
            with self.model.steer(steering, strength):
                outcomes = self.model.score(part, prepared=tape)
            held += self._records(part, outcomes, strength)
            found = self._measured(held)
            yield found
            if len(held) < len(self.items) and stop(found):
                return

    def hopeless(self, part: Measured, rivals: Iterable[Rival]) -> bool:
        """Whether to leave off: a rival leaves no hope, or surely more is lost than the floor allows."""
        if not part.sound:
            return False
        if self._bound and part.lost[1] > (self.floor or 0.0):
            return True
        signs = [-1.0 if a.higher else 1.0 for a in self.aims]
        ahead = []
        for rival in rivals:
            leads = [s * (m - r) for s, m, r in zip(signs, part.values, rival.values, strict=True)]
            if min(leads) >= 0 and max(leads) > 0:
                ahead.append((sum(leads), rival.shares))
        best = [self._of(shares, part.items) for _, shares in sorted(ahead, key=lambda p: -p[0])[:RIVALS]]
        return any(self._surely_behind(part.records, rival) for rival in best) or self._behind_base(part, signs)

    def outdone(self, part: Measured, others: Sequence[tuple[float, ...]]) -> bool:
        """Whether it is not in the best third of itself and of what others were `told` on the same items before."""
        if not part.sound or len(others) + 1 < FEWEST:
            return False
        signs = [-1.0 if a.higher else 1.0 for a in self.aims]
        costs = np.array([self.told(part), *others]) * signs
        no_worse = (costs[:, None] <= costs[None]).all(-1)
        dominated = (no_worse & (costs[:, None] < costs[None]).any(-1)).sum(0)
        before = (dominated[1:] < dominated[0]) | (costs[1:] == costs[0]).all(-1)
        return int(before.sum()) >= len(costs) / KEPT

    def _behind_base(self, part: Measured, signs: Sequence[float]) -> bool:
        base = next(b for b in self.base if b.items == part.items)
        leads = [s * (m - r) for s, m, r in zip(signs, part.values, base.values, strict=True)]
        return min(leads) >= 0 and self._surely_behind(part.records, base.records)

    def _surely_behind(self, mine: Sequence[Record], rival: Sequence[Record]) -> bool:
        return any(aim.behind(mine, rival)[1] > 0 for aim in self.aims)

    def _of(self, shares: str, items: int) -> list[Record]:
        """The records of a setting on the first items, from what a trial keeps of it."""
        flat = np.frombuffer(base64.b64decode(shares), np.float16).astype(float)
        found, start = [], 0
        for record in self._base[:items]:
            p = flat[start : start + len(record.p)]
            start += len(p)
            found.append(replace(record, p=tuple((p / p.sum()).tolist())))
        return found

    def within(self, part: Measured) -> bool:
        """Whether no more was lost than the floor allows; True where it does not bind the trials."""
        return not self._bound or part.lost[0] <= (self.floor or 0.0)

    def told(self, part: Measured) -> tuple[float, ...]:
        """The values as the sampler is told them.

        A setting that loses more than the floor allows is worse than any that does not, and by what it loses beyond
        (Deb 2000, "An efficient constraint handling method for genetic algorithms").
        """
        if self.within(part):
            return part.values
        top = metrics.FIGURES[self.aims[0].figures[0]].high
        return (round(top + part.lost[0] - (self.floor or 0.0), 6),)

    def _measured(self, records: Sequence[Record]) -> Measured:
        last = len(records) == len(self.items)
        lost = [guard.behind(records, self._base[: len(records)]) for guard in self._guards]
        worst = max(((round(gap, 6), low) for gap, low in lost if math.isfinite(gap)), default=(0.0, 0.0))
        figures = {}
        if last:
            names = dict.fromkeys([*(f for aim in self.aims for f in aim.figures), *BESIDE])
            for name, e in metrics.estimates(records, seed=0, resamples=RESAMPLES, names=tuple(names)).items():
                figures[name] = {k: v for k, v in asdict(e).items() if k in ("value", "low", "high", "n")}
        return Measured(len(records), tuple(a.of(records) for a in self.aims), worst, tuple(records), figures)

    def _records(self, items: Sequence[Item], outcomes: Sequence[Outcome], strength: float) -> list[Record]:
        return [_record(self.task.name, strength, i, o) for i, o in zip(items, outcomes, strict=True)]


def packed(records: Sequence[Record]) -> str:
    """The options' probabilities of all items, two bytes each, as text: what a later setting is compared with."""
    return base64.b64encode(np.concatenate([np.array(r.p, np.float16) for r in records]).tobytes()).decode()


def chosen(task: Task, *, seed: int, limit: int | None = None) -> list[Item]:
    """Validation items in the order in which they are taken, or the first of them.

    Concepts go round in an order drawn from the seed, some items of each at a time; ambiguous and unambiguous ones are
    mixed in proportion. So every beginning holds many concepts, and more than one item of each.
    """
    items = [i for i in task.split(SPLIT) if i.split == SPLIT]
    if not items:
        there = ", ".join(sorted({i.split or "none" for i in task.items})) or "no items at all"
        raise TaskError(
            f"task '{task.name}' has no items in the split '{SPLIT}', where settings are compared ({there})"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    kinds = [_in_turns([i for i in items if i.ambiguous is kind], seed) for kind in (True, False)]
    placed = [((n + 1) / len(kind), k, item) for k, kind in enumerate(kinds) for n, item in enumerate(kind)]
    return [item for _, _, item in sorted(placed, key=lambda p: p[:2])][:limit]


def _in_turns(items: Sequence[Item], seed: int) -> list[Item]:
    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    by: dict[str, list[Item]] = defaultdict(list)
    # Those of one wording together: they begin alike, and what they begin with is run once.
    for item in sorted(items, key=lambda i: (drawn(i.template), i.prompt or drawn(i.id).hex())):
        by[item.concept].append(item)
    names = sorted(by)
    random.Random(f"{seed}:concepts").shuffle(names)
    rounds = range(0, max(map(len, by.values()), default=0), BLOCK)
    return [item for start in rounds for name in names for item in by[name][start : start + BLOCK]]


def _ends(size: int) -> list[int]:
    """Where each part ends."""
    ends = [math.ceil(size / share) for share in SHARES]
    return [n for n in ends if n >= LEAST and n < size] + [size]


def _aims(objective: str, task: Task, base: Sequence[Record]) -> tuple[Aim, ...]:
    """The objectives by name, as far as the task can show them."""
    aims = []
    for word in objective.split("+"):
        if word == "bias":
            aims.append(Aim("bias", (frontier.bias_of(base)[1],), higher=False))
            continue
        unknown = [f for f in ("ambiguous_accuracy_choice",) if word == "accuracy" and f in task.figures]
        aim = Aim(word, (*unknown, frontier.CAPABILITY), higher=True)
        if not math.isfinite(aim.of(base)):
            raise UsageError(f"task '{task.name}' has no items with a right answer in the split '{SPLIT}': no {word}")
        aims.append(aim)
    return tuple(aims)


def _guards(task: Task, base: Sequence[Record]) -> list[Aim]:
    """What a lower bias may not be paid with: right answers, and answers at all where "neither" is not a right one."""
    guards = [Aim("capability", (frontier.CAPABILITY,), higher=True)]
    if not any(f.startswith("ambiguous_accuracy") for f in task.figures):
        guards.append(Aim("neither", ("neither_rate",), higher=False))
    return [g for g in guards if math.isfinite(g.of(base))]


def _record(task: str, strength: float, item: Item, outcome: Outcome) -> Record:
    options = item.options
    return Record(
        task, "steering", strength, item.id, item.split, item.concept, item.template, item.ambiguous, "",
        (), tuple(o.role for o in options), tuple(o.group for o in options), tuple(o.position for o in options),
        outcome.p, outcome.mass, "", tuple(o.leans for o in options) if any(o.leans for o in options) else (),
    )  # fmt: skip
