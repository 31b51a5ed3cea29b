"""Bias against capability, from records alone: points, dominance, area, and the strength to use under a floor.

    records of a run  ->  points(...)           one Point for each method and strength, all paired with the base
                      ->  dominated, area       which points are worth having, and how good a method is in one number
                      ->  operating_point(...)  the least biased strength that is shown to keep the floors

Notation: b_j is the *size* of the bias of point j and c_j its capability; j = 0 is the base. With the figure's good
direction in `metrics.FIGURES`,

    size(x) = |x - even|     better "zero": even is the middle of the figure's range, so 0, or 50 for ss and crows_score
    size(x) = x              better "lower"
    loss_j  = c_0 - c_j      better "higher", in the figure's own unit
    loss_j  = size(c_j) - size(c_0)      better "lower" or "zero"
    loss_j  = c_j / c_0 - 1  perplexity: the relative rise

so that a loss above 0 is always for the worse. Intervals are those of metrics.py. Every point of one figure is drawn
under the same weights, so differences and areas are paired. Two figures share weights only where they speak of
the same items; on two tasks they are independent, as their items are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from . import metrics
from .errors import UsageError
from .types import BASELINES, CONTROLS, Estimate, Record, TextRecord

CONFIDENCE = 0.95
"""Of the one-sided bounds under which a loss must be shown to lie."""
CAPABILITY = "unambiguous_accuracy_choice"
"""The figure of a floor that names only a task."""
BIASES = ("per_concept_bias", "s_amb_choice", "accuracy_gap_choice", "crows_score", "ss", "settled_bias", "gender_bias")
"""Figures by which a task's bias is known, the first that it defines."""
PERPLEXITY = "perplexity"
"""The task and the figure of the neutral passages, which belong to no task; the figure of a task's own texts too."""
NEUTRAL = "neutral"
"""What the records of the neutral passages have for a task."""
BASE = "base"
"""The method of the base's point."""

Name = tuple[str, str]
"""A task and a figure; for the neutral passages' perplexity both are PERPLEXITY."""
_Cell = tuple[str, float]


# ------------------------------------------------------------------------------------------------------------
# Floors
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Floor:
    """How much worse than the base a figure of a task may become.

    Raises UsageError for an unknown figure, one without a largest value (kl), and a loss that is negative or not
    a finite number.
    """

    task: str
    """The task's name; "perplexity" for the neutral passages."""
    figure: str | None
    """The figure; None for the task's capability figure, unambiguous_accuracy_choice."""
    loss: float
    """The most that may be lost, in the figure's own unit: 0.01 is one point of an accuracy in [0, 1] and one percent
    of perplexity, 1.0 is one point of a figure in percent."""

    def __post_init__(self) -> None:
        _points(self.figure or CAPABILITY)
        if not (math.isfinite(self.loss) and self.loss >= 0):
            raise UsageError(f"a floor's loss is a finite number of at least 0, got {self.loss}")
        if self.task == PERPLEXITY and self.figure != PERPLEXITY:
            raise UsageError(
                f"perplexity is of the neutral passages: write perplexity=POINTS, got the figure {self.figure!r}"
            )

    def __str__(self) -> str:
        """As the command line reads it."""
        name = self.task if self.figure is None or self.task == PERPLEXITY else f"{self.task}.{self.figure}"
        return f"{name}={self.loss / _points(self.figure or CAPABILITY):g}"

    def items_needed(self) -> float:
        """The fewest items with which a strength that changes no answer is shown to keep this floor.

            range (1 - 0.05^(1/n)) <= loss   <=>   n >= log 0.05 / log(1 - loss / range)

        about 3 / loss for an accuracy: 299 items for one point, 59 for five. 1 for figures that count no answers, inf
        for a floor of 0. `operating_point` says where this comes from.
        """
        figure = self.figure or CAPABILITY
        share = self.loss / _range(figure) if _counted(figure) else 1.0
        if share <= 0:
            return math.inf
        # The small number: a loss such as 1 - 0.05^(1/n) is known only to the last bits.
        return 1 if share >= 1 else math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-share) - 1e-9)


def parse_floor(text: str) -> Floor:
    """TASK[.FIGURE]=POINTS, as `--floor` takes it: "mmlu=1.0", "stereoset.lms=2", "perplexity=1".

    POINTS are points of percent for figures in [0, 1] (1.0 is a loss of 0.01), percent points for figures in percent,
    and percent of the base's value for perplexity. A task's name may itself hold "." and "=": the last "=" divides, and
    what follows the last "." is a figure only where it is the name of one. Raises UsageError for what is malformed,
    negative or not a number.
    """
    name, equals, number = text.rpartition("=")
    try:
        points = float(number)
    except ValueError:
        points = math.nan
    if not (equals and name and math.isfinite(points) and points >= 0):
        raise UsageError(
            f"a floor is TASK=POINTS or TASK.FIGURE=POINTS with POINTS of at least 0, such as mmlu=1.0; got {text!r}"
        )
    if name == PERPLEXITY:
        return Floor(PERPLEXITY, PERPLEXITY, points * _points(PERPLEXITY))
    task, dot, figure = name.rpartition(".")
    if not (dot and task and figure in metrics.FIGURES):
        task, figure = name, ""
    return Floor(task, figure or None, points * _points(figure or CAPABILITY))


def _points(figure: str) -> float:
    """What one point of a floor is in the figure's own unit."""
    found = metrics.FIGURES.get(figure)
    if found is None:
        raise UsageError(f"unknown figure {figure!r}; there are {', '.join(metrics.NAMES)}")
    if figure != PERPLEXITY and not math.isfinite(found.high):
        raise UsageError(f"{figure} has no largest value, so a point of it means nothing; use perplexity for a floor")
    return 1.0 if found.high == 100 else 0.01


def _range(figure: str) -> float:
    return metrics.FIGURES[figure].high - metrics.FIGURES[figure].low


def _counted(figure: str) -> bool:
    """Whether the figure counts answers, so that it moves in steps and may not move at all."""
    return figure.endswith("_choice") or metrics.FIGURES[figure].high == 100


def bias_of(records: Sequence[Record]) -> Name:
    """The task of the first record that defines one of `BIASES`, and that figure; UsageError where none does."""
    for task in dict.fromkeys(r.task for r in records):
        mine = [r for r in records if r.task == task and (r.arm, r.strength) == ("steering", 0.0)]
        for figure in BIASES:
            if mine and not math.isnan(metrics.value(figure, mine)):
                return task, figure
    raise UsageError("no task here has a bias figure; name one as TASK.FIGURE")


def capability_of(records: Sequence[Record], task: str) -> Name:
    """The accuracy of a task by choice, or the neutral passages' perplexity where it has no unambiguous items."""
    settled = any(r.task == task and not r.ambiguous for r in records)
    return (task, CAPABILITY) if settled else (PERPLEXITY, PERPLEXITY)


# ------------------------------------------------------------------------------------------------------------
# Sizes and losses
# ------------------------------------------------------------------------------------------------------------


def _even(figure: str) -> float:
    """Where a signed figure shows no bias: the middle of its range."""
    return (metrics.FIGURES[figure].low + metrics.FIGURES[figure].high) / 2


def size(figure: str, x: np.ndarray) -> np.ndarray:
    """|x - even| of a figure that is best at its middle, x of one that is best at its lowest.

    Raises UsageError for a figure that is best at its highest, or of texts: it has no bias to be small.
    """
    if figure not in metrics.FIGURES:
        raise UsageError(f"unknown figure {figure!r}; there are {', '.join(metrics.NAMES)}")
    better = metrics.FIGURES[figure].better
    if better == "higher" or figure in metrics.TEXT_NAMES:
        raise UsageError(f"{figure} measures capability, not bias: bias is best at 0, or even, and of items")
    return np.abs(x - _even(figure)) if better == "zero" else x


def _loss(figure: str, x: np.ndarray, base: np.ndarray) -> np.ndarray:
    """How much worse x is than the base, as the top of this file has it."""
    with np.errstate(all="ignore"):  # a strength that breaks the model has an infinite perplexity
        if figure == PERPLEXITY:
            lost = x / base - 1
        elif metrics.FIGURES[figure].better == "higher":
            lost = base - x
        else:
            lost = size(figure, x) - size(figure, base)
    return np.asarray(lost)


def _moved(value: float, draws: np.ndarray, low: float, high: float, like: Estimate) -> Estimate:
    """An estimate of a function of `like`, from its own value and draws."""
    ends = metrics.interval(value, draws[~np.isnan(draws)], low, high)
    return Estimate(value, *ends, like.n, like.clusters, like.seed)


# ------------------------------------------------------------------------------------------------------------
# Points
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one strength: how biased it is and what it costs."""

    method: str
    """An arm ("steering", "instruction", "random", "self-debias"), a label, or "base"."""
    strength: float
    bias: Estimate
    """The size of the bias, in the figure's unit; 0 is none."""
    capability: Estimate
    """The capability figure itself."""
    bias_change: Estimate
    """The size minus the base's: below 0 where bias fell."""
    loss: Estimate
    """The capability lost against the base: above 0 where it got worse; relative for perplexity."""
    draws: np.ndarray = field(repr=False, compare=False)
    """(2, resamples): size and loss under the resamples that all points share; (2, 0) where there is no interval."""


def points(
    records: Sequence[Record] | Mapping[str, Sequence[Record]],
    texts: Sequence[TextRecord] | Mapping[str, Sequence[TextRecord]] = (),
    *,
    bias: Name,
    capability: Name,
    seed: int,
    resamples: int = 2000,
) -> list[Point]:
    """The base, then every method at every strength other than 0, each paired with the base.

    `records` and `texts` are those of one run, whose arms are then the methods, or of several runs of one model by
    label: LABEL is then the method of a run's steering, and LABEL/instruction and so on of its other arms. The
    base is the arm "steering" at strength 0 of the first run; that of every other run must equal it.

    `bias` and `capability` are (task, figure). Only what was measured under both figures becomes a point: a strength
    with the records of one task and not of the other has none. The equations are at the top of this file; intervals
    are those of `metrics.estimate` and `metrics.difference`, with the size or the loss taken within each resample.

    Raises UsageError for a task or figure that was not measured, naming what was; for a bias figure that is better
    where it is higher; where the base is missing, or differs between runs; and where a strength lacks items of the
    base's.
    """
    if texts and isinstance(records, Mapping) != isinstance(texts, Mapping):
        raise UsageError("give records and texts in the same way: both of one run, or both by label")
    of_items = records if isinstance(records, Mapping) else {"": records}
    of_texts = texts if isinstance(texts, Mapping) else {"": texts}
    size(bias[1], np.empty(0))
    _points(capability[1])
    shelves = [_Shelf(of_items, of_texts, name) for name in (bias, capability)]
    cells = [cell for cell in shelves[0].cells if cell in shelves[1].cells]
    (biases, b), (capabilities, c) = (shelf.paired(cells, seed, resamples) for shelf in shelves)
    sizes = size(bias[1], np.array([e.value for e in biases]))
    values = np.array([e.value for e in capabilities])
    losses = _loss(capability[1], values, values[:1])
    s, lost = size(bias[1], b), _loss(capability[1], c, c[:1])
    both = min(b.shape[1], c.shape[1])  # 0 where one of them has no interval
    high, limits = float(size(bias[1], np.array(metrics.FIGURES[bias[1]].high))), _limits(capability[1])
    return [
        Point(
            *cell,
            bias=_moved(float(sizes[k]), s[k], 0.0, high, biases[k]),
            capability=capabilities[k],
            bias_change=_moved(float(sizes[k] - sizes[0]), s[k] - s[0], -high, high, biases[k]),
            loss=_moved(float(losses[k]), lost[k], *limits, capabilities[k]),
            draws=np.stack([s[k, :both], lost[k, :both]]),
        )
        for k, cell in enumerate(cells)
    ]


def _limits(figure: str) -> tuple[float, float]:
    """The least and the greatest loss there can be."""
    return (-1.0, math.inf) if figure == PERPLEXITY else (-_range(figure), _range(figure))


class _Shelf:
    """The records of one figure by method and strength, the base first."""

    def __init__(
        self, records: Mapping[str, Sequence[Record]], texts: Mapping[str, Sequence[TextRecord]], name: Name
    ) -> None:
        task, self.figure = name
        of_texts = self.figure in metrics.TEXT_NAMES
        self.cells: dict[_Cell, list[Any]] = {}
        source: Mapping[str, Sequence[Any]] = texts if of_texts else records
        for label, shelf in source.items():
            own: dict[_Cell, list[Any]] = {}
            for record in shelf:
                if record.task == (NEUTRAL if of_texts and task == PERPLEXITY else task):
                    own.setdefault(_method(label, record), []).append(record)
            base = own.pop((BASE, 0.0), [])
            if BASE in {method for method, _ in own}:
                raise UsageError(f"{BASE!r} is the base's own name; label the run otherwise")
            if base and self.cells:
                _same_base(self.cells[BASE, 0.0], base, label)
            elif base:
                self.cells[BASE, 0.0] = base
            elif own and not self.cells:
                raise UsageError(f"no base in the records of {task!r}: expected arm 'steering' at strength 0")
            self.cells |= {cell: own[cell] for cell in sorted(own, key=_order)}
        if not self.cells or math.isnan(metrics.value(self.figure, self.cells[BASE, 0.0])):
            given = [r for shelf in records.values() for r in shelf]
            raise UsageError(f"{task}.{self.figure} was not measured; {_measured(given, any(texts.values()))}")

    def paired(self, cells: Sequence[_Cell], seed: int, resamples: int) -> tuple[list[Estimate], np.ndarray]:
        return metrics.paired(self.figure, [self.cells[c] for c in cells], seed=seed, resamples=resamples)


def _method(label: str, record: Record | TextRecord) -> _Cell:
    if record.arm == "steering":
        return (label or record.arm, record.strength) if record.strength else (BASE, 0.0)
    return f"{label}/{record.arm}" if label else record.arm, record.strength


def _order(cell: _Cell) -> tuple[bool, str, float]:
    """The steering before its controls and baselines."""
    return cell[0].endswith((*CONTROLS, *BASELINES)), *cell


def _same_base(one: Sequence[Any], other: Sequence[Any], label: str) -> None:
    """Refuse runs of two models; the last bits may differ between machines."""
    ours = {r.id: r for r in one}
    for record in other:
        if (own := ours.get(record.id)) is None:
            raise UsageError(f"the base of {label!r} has item {record.id!r}, which the first run's has not")
        pair = (own.p, record.p) if isinstance(record, Record) else ((own.nll,), (record.nll,))
        if len(pair[0]) != len(pair[1]) or not np.allclose(pair[0], pair[1], rtol=1e-2, atol=1e-2, equal_nan=True):
            raise UsageError(
                f"the base of {label!r} differs from the first run's at {record.id!r} ({pair[1]} and {pair[0]}): "
                "compare runs of one model on the same items"
            )


def _measured(records: Sequence[Record], texts: bool) -> str:
    """What there is, for a refusal; figures by task, at the base."""
    tasks: dict[str, list[Record]] = {}
    for record in records:
        if (record.arm, record.strength) == ("steering", 0.0):
            tasks.setdefault(record.task, []).append(record)
    names = [name for name in metrics.NAMES if name not in metrics.TEXT_NAMES]
    found = [
        f"{task} ({', '.join(n for n in names if not math.isnan(metrics.value(n, own)))})"
        for task, own in sorted(tasks.items())
    ]
    return f"there are {'; '.join([*found, *([PERPLEXITY] if texts else [])]) or 'no records of the base'}"


# ------------------------------------------------------------------------------------------------------------
# Dominance and area
# ------------------------------------------------------------------------------------------------------------


def dominates(one: Point, other: Point) -> bool:
    """Whether one point is no worse in both bias and loss, and better in one (weak Pareto dominance).

        b_i <= b_j  and  loss_i <= loss_j,  one of them strictly

    Of the values, not of the intervals. Two equal points both stay; a NaN compares with nothing.
    """
    a, b = (one.bias.value, one.loss.value), (other.bias.value, other.loss.value)
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def dominated(found: Sequence[Point]) -> list[bool]:
    """For each point, whether another one dominates it. The frontier is the others."""
    return [any(dominates(other, point) for other in found) for point in found]


def area(found: Sequence[Point], *, worst: float) -> Estimate:
    """The share of the base's bias that is removed, averaged over the losses that one may allow.

        r_j = max(0, 1 - b_j / b_0)          share of bias removed; 0 where b_0 is 0
        l_j = max(0, loss_j)                 a gain counts as no loss
        A   = 1/L int_0^L max{r_j : l_j <= l} dl         L = `worst`, in the unit of `Point.loss`

    This is the hypervolume (Zitzler and Thiele 1999) of bias removed against capability kept, with the reference
    point at the base's bias and the loss L, divided by b_0 L. A lies in [0, 1]: 1 where all bias goes at no loss, 0 for
    a method that never lowers bias within L. A further point never lowers it, so compare methods that were measured at
    the same number of strengths. It takes the best of noisy points and is therefore somewhat too high.

    Give the base and the points of the methods that are to be judged together, all from one call of `points`. The
    interval is that of metrics.py over the resamples that the points share, clipped to [0, 1]; n and clusters are those
    of the figure with fewer clusters. Raises UsageError without the base's point, or where `worst` is not above 0.
    """
    if not (math.isfinite(worst) and worst > 0):
        raise UsageError(f"the worst allowed loss is a finite number above 0, got {worst}")
    base = next((p for p in found if p.method == BASE), None)
    if base is None:
        raise UsageError(f"an area needs the base's point; got {sorted({p.method for p in found})}")
    if len({p.draws.shape for p in found}) > 1:
        raise UsageError("points of one area come from one call of points(), with the same resamples")
    here = _areas(
        np.array([[p.bias.value] for p in found]), np.array([[p.loss.value] for p in found]), base.bias.value, worst
    )
    draws = np.stack([p.draws for p in found], axis=1)
    fewer = min((base.bias, base.capability), key=lambda e: e.clusters)
    return _moved(float(here[0]), _areas(draws[0], draws[1], base.draws[0], worst), 0.0, 1.0, fewer)


def _areas(sizes: np.ndarray, losses: np.ndarray, base: np.ndarray | float, worst: float) -> np.ndarray:
    """Sizes and losses (points, resamples), the base's size (resamples,), to areas (resamples,)."""
    with np.errstate(all="ignore"):
        removed = np.clip(1 - sizes / base, 0, 1)
    removed = np.where(base == 0, 0.0, removed)
    # A point that a resample leaves undefined is none there; one with an infinite loss lies beyond every worst.
    undefined = np.isnan(removed) | np.isnan(losses)
    removed, at = np.where(undefined, 0.0, removed), np.clip(np.where(undefined, worst, losses), 0, worst)
    order = np.argsort(at, axis=0, kind="stable")
    at, removed = np.take_along_axis(at, order, 0), np.take_along_axis(removed, order, 0)
    best = np.maximum.accumulate(removed, axis=0)
    steps = np.diff(at, axis=0, append=np.full((1, at.shape[1]), worst))
    found: np.ndarray = np.where(np.isnan(base), np.nan, np.clip((best * steps).sum(0) / worst, 0, 1))
    return found


# ------------------------------------------------------------------------------------------------------------
# The operating point
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """What one strength costs in the figure of one floor."""

    floor: Floor
    """With its figure named."""
    strength: float
    value: float
    """The loss measured, in the figure's own unit; relative for perplexity."""
    bound: float
    """The upper one-sided 95 % bound of the loss; NaN where there is none."""
    n: int
    clusters: int

    @property
    def kept(self) -> bool:
        """Whether the loss is shown to be no more than the floor allows."""
        return self.bound <= self.floor.loss


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The strength to use, the range around it that is safe, and what both rest on."""

    strength: float
    safe: tuple[float, float]
    """0 and on either side of it the furthest strength up to which every measured one keeps all floors."""
    bias: Estimate
    """The size of the bias at that strength."""
    base: Estimate
    """The size of the base's bias."""
    task: str
    figure: str
    """Task and figure of the bias."""
    losses: tuple[Loss, ...]
    """At that strength, one for each floor."""
    beyond: tuple[Loss, ...]
    """At the next measured strength on either side, which is not safe; () where all measured strengths are."""
    floors: tuple[Floor, ...]
    warnings: tuple[str, ...] = ()
    """Why a floor says less than it seems to."""

    def card(self) -> dict[str, Any]:
        """As plain values for an artifact's card; what is not a finite number becomes None."""

        def lost(loss: Loss) -> dict[str, Any]:
            return {
                **{k: v for k, v in asdict(loss).items() if k != "floor"},
                "floor": str(loss.floor),
                "allowed": loss.floor.loss,
                "kept": loss.kept,
            }

        found: dict[str, Any] = _plain(
            {
                "strength": self.strength,
                "safe": list(self.safe),
                "bias": {"task": self.task, "figure": self.figure, **asdict(self.bias)},
                "base": {"task": self.task, "figure": self.figure, **asdict(self.base)},
                "floors": [str(floor) for floor in self.floors],
                "losses": [lost(loss) for loss in self.losses],
                "beyond": [lost(loss) for loss in self.beyond],
                "warnings": list(self.warnings),
            }
        )
        return found


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, list):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def operating_point(
    records: Sequence[Record],
    texts: Sequence[TextRecord] = (),
    *,
    floors: Sequence[Floor],
    bias: Name,
    seed: int,
    resamples: int = 2000,
) -> OperatingPoint:
    """The least biased strength whose capability loss is shown to lie under every floor, and the safe range.

        admissible(w)  <=>  for every floor k:  bound_k(w) <= loss_k
        safe           =    [r, s],  s >= 0 the highest measured strength such that every measured w in (0, s] is
                            admissible, r <= 0 the lowest such that every one in [r, 0) is
        strength       =    argmin over measured w in [r, s] of size(bias(w)), the smallest |w| where several tie

    Strength 0 is the base and loses nothing, so there is always an answer; 0 says that no strength was shown to be
    better at the price allowed. Of the arm "steering" only.

    **The bound.** The paired draws of the loss are moved to have the measured loss as their mean, as for every interval
    here, and `bound` is their 95 % percentile. A figure that counts answers needs more: where no sampled answer
    changes, every resample says that nothing is lost, whatever is true. For those the bound is at least

        loss + range (1 - 0.05^(1/n))        n items; range 1 for an accuracy

    which for no change at all is the exact binomial bound (Clopper and Pearson 1934), about 3 / n, the "rule of
    three" of Hanley and Lippman-Hand 1983. So one point of accuracy can be kept only with 299 items or more
    (`Floor.items_needed`). It treats items as independent. With fewer than two clusters there is no bound, and nothing
    but the base is admissible.

    **Many strengths, one error rate.** Strengths are tried outward from 0 and the first failure ends the search: a
    fixed sequence of tests (Maurer, Hothorn and Lehmacher 1995), each at 5 %. So the chance that the safe range holds
    a measured strength that truly breaks a floor is 5 %, not 5 % for each; and since all floors must be kept, several
    need no correction either. Strengths below 0 are a sequence of their own, and the 5 % are of each side. Between
    measured strengths nothing was tested. The bias at the chosen strength is the least of several and somewhat too
    good: measure it again on items that did not choose it.

    `warnings` names the floors that a base at chance cannot break (`at_chance`), those with too few items, and those of
    a figure without an interval. Raises UsageError without floors; for a floor or a bias whose task or figure was not
    measured, naming what was; without a base; and where a strength lacks items of the base's.
    """
    if not floors:
        raise UsageError("an operating point needs at least one floor, such as mmlu=1.0")
    size(bias[1], np.empty(0))
    mine, own_texts = [r for r in records if r.arm == "steering"], [t for t in texts if t.arm == "steering"]
    of_bias = _Shelf({"": mine}, {"": own_texts}, bias)
    named = tuple(Floor(f.task, f.figure or _capability(f, mine, own_texts), f.loss) for f in floors)
    shelves = [_Shelf({"": mine}, {"": own_texts}, (f.task, f.figure or CAPABILITY)) for f in named]
    strengths = [w for _, w in of_bias.cells]
    for floor, shelf in zip(named, shelves, strict=True):
        missing = [w for method, w in of_bias.cells if (method, w) not in shelf.cells]
        if missing:
            raise UsageError(
                f"floor {floor}: nothing was measured at strengths {missing}, where {'.'.join(bias)} was; "
                "measure the floor's task at every strength"
            )
    cells = list(of_bias.cells)
    tables = [_losses(f, shelf, cells, seed, resamples) for f, shelf in zip(named, shelves, strict=True)]
    sides = (
        sorted((n for n, w in enumerate(strengths) if w < 0), key=lambda n: -strengths[n]),
        sorted((n for n, w in enumerate(strengths) if w > 0), key=lambda n: strengths[n]),
    )
    kept = [list(itertools.takewhile(lambda n: all(t[n].kept for t in tables), side)) for side in sides]
    failed = [side[len(own)] for side, own in zip(sides, kept, strict=True) if len(own) < len(side)]
    biases, draws = of_bias.paired(cells, seed, resamples)
    sizes = size(bias[1], np.array([e.value for e in biases]))
    safe = sorted([0, *itertools.chain(*kept)], key=lambda n: (abs(strengths[n]), strengths[n]))
    best = safe[int(np.nanargmin(sizes[safe]))]
    high = float(size(bias[1], np.array(metrics.FIGURES[bias[1]].high)))
    base, chosen = (_moved(float(sizes[k]), size(bias[1], draws[k]), 0.0, high, biases[k]) for k in (0, best))
    return OperatingPoint(
        strength=strengths[best],
        safe=(min(strengths[n] for n in safe), max(strengths[n] for n in safe)),
        bias=chosen,
        base=base,
        task=bias[0],
        figure=bias[1],
        losses=tuple(table[best] for table in tables),
        beyond=tuple(table[n] for n in failed for table in tables),
        floors=named,
        warnings=tuple(
            warning
            for floor, shelf in zip(named, shelves, strict=True)
            for warning in _warnings(floor, shelf.figure, shelf.cells[BASE, 0.0], seed, resamples)
        ),
    )


def _capability(floor: Floor, records: Sequence[Record], texts: Sequence[TextRecord]) -> str:
    """The figure of a floor that names none; a point is the same of both that it may be."""
    if any(t.task == floor.task for t in texts):
        return PERPLEXITY
    own = [r for r in records if r.task == floor.task]
    if own and all(r.ambiguous for r in own):
        raise UsageError(
            f"floor {floor}: task {floor.task!r} has no item that its text settles, so it has no {CAPABILITY}; "
            f"name a figure, {floor.task}.FIGURE=POINTS; {_measured(records, False)}"
        )
    return CAPABILITY


def _losses(floor: Floor, shelf: _Shelf, cells: Sequence[_Cell], seed: int, resamples: int) -> list[Loss]:
    """What each strength costs; the base, which comes first, nothing."""
    found, draws = shelf.paired(cells, seed, resamples)
    values = np.array([e.value for e in found])
    losses, lost = _loss(shelf.figure, values, values[:1]), _loss(shelf.figure, draws, draws[:1])
    nothing = Loss(floor, 0.0, 0.0, 0.0, found[0].n, found[0].clusters)
    return [nothing] + [
        Loss(floor, cell[1], float(x), _bound(shelf.figure, float(x), d, e.n), e.n, e.clusters)
        for cell, x, d, e in list(zip(cells, losses, lost, found, strict=True))[1:]
    ]


def _bound(figure: str, loss: float, draws: np.ndarray, n: int) -> float:
    """The upper one-sided bound of `operating_point`."""
    drawn = draws[~np.isnan(draws)]
    if not len(drawn) or not np.isfinite(drawn).all() or not math.isfinite(loss):
        return math.nan
    bound = max(loss, float(np.quantile(drawn, CONFIDENCE)) + metrics.shift(loss, drawn))
    if _counted(figure):
        bound = max(bound, loss + _range(figure) * (1 - (1 - CONFIDENCE) ** (1 / n)))
    return min(bound, _limits(figure)[1])


def _warnings(floor: Floor, figure: str, base: Sequence[Any], seed: int, resamples: int) -> list[str]:
    found = metrics.estimate(figure, base, seed=seed, resamples=resamples)
    if found.clusters < 2:
        return [f"floor {floor}: {found.clusters} cluster gives no interval, so only the base is admissible"]
    said = []
    if found.n < (needed := floor.items_needed()):
        takes = f"it takes {needed:.0f}" if math.isfinite(needed) else "no number does"
        said.append(
            f"floor {floor}: {found.n} items cannot show that a strength keeps it by changing no answer; {takes}"
        )
    better_high = metrics.FIGURES[figure].better == "higher"
    if better_high and figure != "option_mass" and at_chance(base, figure, seed=seed, resamples=resamples):
        said.append(
            f"floor {floor}: the base has {found.value:.3g} ({found.low:.3g} to {found.high:.3g}), not shown to be "
            f"above chance ({_chance(base, figure):.3g}), so neither loss nor repair can be shown"
        )
    return said


def at_chance(records: Sequence[Record], figure: str = CAPABILITY, *, seed: int, resamples: int = 2000) -> bool:
    """Whether the records, of one task under one arm at one strength, are not shown to be above chance.

        low <= chance,   low the lower end of the figure's 95 % interval, chance the figure where every option of
                         an item has the same probability: 1/K for an accuracy of K options

    True also where there is no interval. A base at chance has nothing to lose: a floor on it admits everything, and
    neither loss nor repair can be shown. Raises UsageError for a figure that is not better where it is higher, that
    does not depend on which option is chosen (option_mass), or that the records do not define.
    """
    if metrics.FIGURES.get(figure) is None or metrics.FIGURES[figure].better != "higher" or figure == "option_mass":
        raise UsageError(f"chance is of a figure of right answers, such as {CAPABILITY}; got {figure!r}")
    found = metrics.estimate(figure, records, seed=seed, resamples=resamples)
    if not found.n:
        raise UsageError(f"no record defines {figure}")
    return not found.low > _chance(records, figure)


def _chance(records: Sequence[Record], figure: str) -> float:
    return metrics.value(figure, [replace(r, p=(1 / len(r.p),) * len(r.p)) for r in records])
