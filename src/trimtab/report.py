"""A finished run as one HTML file: what changed, what it cost, and what to distrust.

    run folder: summary.json + records.jsonl  ->  Run  ->  verdict, figures, tables  ->  HTML

Nothing here computes a headline figure: those, with their intervals, come from summary.json. Records give what a
figure hides, the concepts, the answers and the texts. The page loads nothing (a content security policy says so to
the browser), runs no script, and is the same bytes for the same run: it carries no date and no path.

**The verdict is a function of the numbers.** "Falls" is said only where the interval of the paired difference lies
below 0. A fall that comes with more refusals, with answers by position, with less probability on the allowed
answers, or that a random change of the same size brings about too, is announced as such in a box beside it.
"""

# ruff: noqa: RUF001  (a minus sign is meant where one stands: figures are set, not typed)
from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

from . import figures
from .errors import NotFound, RunError, UsageError
from .figures import Axis, Dot, Span, Track
from .types import RECORD_SCHEMA, Estimate, Record, SampleRecord, TextRecord

NAN = math.nan
CONTROLS = ("random", "instruction")
NEUTRAL = "neutral"

SHORTCUT = 0.02
"""A rise of the neither rate or position effect by this much, beyond its interval, is a warning. Two points are less
than the smallest fall of bias that anyone would report."""
MASS = 0.1
"""A relative fall of the probability on the allowed answers that is a warning."""
ACCURACY = 0.01
"""A loss of accuracy, in probability, below which it is not announced as a cost even where it is measurable."""
PERPLEXITY = 0.01
"""A relative rise of perplexity that is announced as a cost."""
EVEN = 0.05
"""A base whose bias lies below this with its whole interval has little to repair."""
FEW = 8
"""Fewer clusters than this make a bootstrap interval too narrow to lean on."""
CONCEPTS, WORST = 60, 40
"""Up to so many concepts are all shown; of more, the worst so many."""
SAMPLES, CHANGED, BROKEN = 6, 6, 2


@dataclass(frozen=True, slots=True)
class Figure:
    """How a metric is named, written and explained."""

    key: str
    name: str
    unit: Literal["share", "percent", "plain", "nats"]
    """share: three decimals. percent: times 100, differences in points. plain: perplexity. nats: four decimals."""
    better: str
    words: str
    formula: str


FIGURES: tuple[Figure, ...] = (
    Figure(
        "per_concept_bias",
        "Per-concept bias",
        "share",
        "0 to 1, lower is better",
        "How differently the model treats the groups where the text does not settle the answer: for each concept (an "
        "occupation, a topic) the size of the difference between the stereotyped and the opposite answer, averaged "
        "over concepts. Opposite biases do not cancel. A perfectly fair model measured on few items still scores "
        "above 0, so compare with the base.",
        "mean over concepts o of | P(pro | o) − P(anti | o) |;  more than two groups in an item: maxₖ P(k | o) − "
        "minₖ P(k | o)",
    ),
    Figure(
        "stereotype_gap",
        "Stereotype gap",
        "share",
        "−1 to 1, best at 0",
        "The same difference with its sign, over all items at once. Opposite biases cancel, so it can be 0 for an "
        "unfair model.",
        "P(pro) − P(anti), ambiguous items",
    ),
    Figure(
        "neither_rate",
        "Neither rate",
        "percent",
        "lower is better",
        "How often the model takes neither side: “unknown”, a refusal. A model that stops answering has no bias left "
        "to measure, which is not fairness.",
        "P(neither), ambiguous items",
    ),
    Figure(
        "unambiguous_accuracy",
        "Accuracy where the text settles it",
        "percent",
        "higher is better",
        "The probability given to the right answer where the text decides it.",
        "mean P(correct), unambiguous items",
    ),
    Figure(
        "position_effect",
        "Position effect",
        "share",
        "−1 to 1, best at 0",
        "How much the place of an answer in the prompt decides. A model that answers by position alone has a bias of "
        "exactly 0 when both orders are asked.",
        "mean P(first listed) − P(last listed), items that list their options",
    ),
    Figure(
        "option_mass",
        "Probability on the options",
        "percent",
        "higher is better",
        "How likely the model is to say any of the allowed answers at all. Near 0, it would have said something else, "
        "and the other figures speak of answers that it would not give.",
        "Σ over options of P(option | prompt), unnormalised, ambiguous items",
    ),
    Figure(
        "tv_from_uniform",
        "Distance from equal shares",
        "share",
        "0 to 1, lower is better",
        "For more than two groups: how much probability would have to move to make them equal.",
        "mean over concepts o of ½ Σₖ | P(k | o) − meanₖ P(k | o) |",
    ),
    Figure(
        "perplexity",
        "Perplexity on neutral text",
        "plain",
        "lower is better",
        "How surprised the model is by ordinary text that has nothing to do with the groups. A rise means that the "
        "change damaged the language.",
        "exp( Σ −log p(token) / number of tokens )",
    ),
    Figure(
        "kl",
        "Divergence from the base",
        "nats",
        "nats a token, 0 is the base",
        "How far the next-word probabilities moved on neutral text.",
        "mean over tokens of KL(steered ‖ base)",
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
CHOICE = "_choice"
DIFFERENCE = "_difference"


@dataclass(frozen=True)
class Run:
    """A run folder as read: the summary, its figures by name, and (for a page) the records."""

    summary: Mapping[str, Any]
    rows: Mapping[tuple[str, str | None, str, float, str], Estimate]
    """(task, split, arm, strength, metric) to the figure."""
    items: tuple[Record, ...] = ()
    texts: tuple[TextRecord, ...] = ()
    samples: tuple[SampleRecord, ...] = ()

    @property
    def card(self) -> Mapping[str, Any]:
        """The steering's card, or an empty one."""
        card = self.summary.get("card")
        return card if isinstance(card, Mapping) else {}

    @property
    def tasks(self) -> list[Mapping[str, Any]]:
        """The evaluated tasks; where the summary does not list them, as its results name them."""
        listed = [t for t in self.summary.get("tasks") or () if isinstance(t, Mapping) and t.get("name")]
        if listed:
            return listed
        return [{"name": t, "split": s} for t, s in dict.fromkeys((k[0], k[1]) for k in self.rows) if t != NEUTRAL]

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths of the steering that have a figure, ascending; 0 is the base."""
        return sorted({strength for _, _, arm, strength, _ in self.rows if arm == "steering"})

    @cached_property
    def top(self) -> float | None:
        """The strength that the page speaks of: the card's default where it was run, else the highest within the
        safe range, else the highest; None for a run of the base alone."""
        steered = [s for s in self.strengths if s > 0]
        asked = _mapping(self.card.get("strength"))
        if asked.get("default") in steered:
            return float(asked["default"])
        safe = asked.get("safe")
        within = [s for s in steered if s <= safe[-1]] if isinstance(safe, Sequence) and safe else []
        return max(within or steered, default=None)

    def arm_strengths(self, arm: str) -> list[float]:
        """The strengths at which an arm has a figure."""
        return sorted({s for _, _, a, s, _ in self.rows if a == arm})

    def control(self, arm: str) -> float | None:
        """The strength at which a control is compared: the steering's own where it was run, else its highest."""
        found = self.arm_strengths(arm)
        return self.top if self.top in found else max(found, default=None)

    def get(self, task: Mapping[str, Any], arm: str, strength: float | None, metric: str) -> Estimate | None:
        """A figure, or None where the run has none.

        Perplexity and KL speak of neutral text, whatever the task: they are looked for there, then under the task.
        """
        if strength is None:
            return None
        name, split = str(task["name"]), task.get("split")
        texts = metric.removesuffix(DIFFERENCE) in ("perplexity", "kl")
        for where in (NEUTRAL, name) if texts else (name,):
            for part in (split, None):
                if (where, part, arm, strength, metric) in self.rows:
                    return self.rows[where, part, arm, strength, metric]
            if where == NEUTRAL or split is None:  # whichever split the rows name
                for (row_task, _, *rest), estimate in self.rows.items():
                    if row_task == where and rest == [arm, strength, metric]:
                        return estimate
        return None

    def change(self, task: Mapping[str, Any], arm: str, strength: float | None, metric: str) -> Estimate | None:
        """The paired difference from the base; without its row, the plain difference and no interval."""
        row = self.get(task, arm, strength, metric + DIFFERENCE)
        if row is not None:
            return row
        after, before = self.get(task, arm, strength, metric), self.get(task, "steering", 0.0, metric)
        if after is None or before is None:
            return None
        return replace(after, value=after.value - before.value, low=NAN, high=NAN)

    def relative(self, task: Mapping[str, Any], arm: str, strength: float | None, metric: str) -> Estimate | None:
        """The change divided by the base's figure, whose own error is left out of the interval."""
        change, before = self.change(task, arm, strength, metric), self.get(task, "steering", 0.0, metric)
        if change is None or before is None or not before.value:
            return None
        by = before.value
        return replace(change, value=change.value / by, low=change.low / by, high=change.high / by)

    def of(self, task: Mapping[str, Any], arm: str, strength: float | None) -> list[Record]:
        """The item records of a task under one arm at one strength, in the order written."""
        split = task.get("split")
        return [
            r
            for r in self.items
            if r.task == task["name"]
            and r.arm == arm
            and r.strength == strength
            and (split in (None, "all") or r.split in (None, split))
        ]


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know before believing the verdict."""

    kind: Literal["warning", "note"]
    code: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers of one task say, in words."""

    badge: str
    tone: Literal["good", "mixed", "bad", "plain"]
    sentences: tuple[str, ...]
    notes: tuple[Note, ...]


# ---------------------------------------------------------------------------------------------------------------
# What callers use
# ---------------------------------------------------------------------------------------------------------------


def render(run: Path) -> str:
    """The report of a finished run as HTML.

    Raises NotFound where the folder or one of its files is missing, RunError (naming the line) where one is damaged.
    A partial last line of records.jsonl, as an interrupted run leaves it, is ignored.
    """
    return _page(_read(Path(run)))


def write(run: Path, out: Path) -> Path:
    """Write the report of a run; `out` is replaced whole or not at all.

    Raises as `render`, and NotFound where the folder to write into does not exist.
    """
    page, out = render(run), Path(out)
    if not out.parent.is_dir():
        raise NotFound(f"no folder {out.parent} to write {out.name} into; create it or choose another --out")
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        os.chmod(name, 0o644)  # mkstemp makes it private; a report is made to be handed on
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return out


def headline_svg(summary_or_run: Mapping[str, Any] | Path, *, width: float = 860, dark: bool = False) -> str:
    """One picture of a run, for a README: the bias over strength, beside accuracy and perplexity.

    Takes the content of summary.json or a run folder (its records are not read). Shows the first task. The file
    needs nothing else; ask for it twice, light and dark, to follow a reader's theme. Raises as `render`.
    """
    if isinstance(summary_or_run, Mapping):
        run = _summarised(summary_or_run, "summary")
    else:
        run = _summarised(_read_summary(Path(summary_or_run)), "summary.json")
    if not run.tasks:
        raise UsageError("the summary has no task, so there is nothing to draw; run `trimtab eval` with a --task")
    return _headline(run, run.tasks[0], width, dark)


# ---------------------------------------------------------------------------------------------------------------
# Reading a run folder
# ---------------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> Run:
    run = _summarised(_read_summary(folder), "summary.json")
    path = folder / "records.jsonl"
    if not path.is_file():
        raise NotFound(f"{folder} has a summary but no records.jsonl; run `trimtab eval` again into a new folder")
    items: dict[tuple[str, str, float, str], Record] = {}
    texts: dict[tuple[str, float, str], TextRecord] = {}
    samples: dict[tuple[str, float, str], SampleRecord] = {}
    for where, raw in _lines(path):
        kind = raw.get("kind")
        if kind == "item":
            item = _build(Record, raw, where)
            if len({len(item.options), len(item.roles), len(item.groups), len(item.positions), len(item.p)}) > 1:
                raise RunError(f"{where}: options, roles, groups, positions and p of item {item.id!r} differ in length")
            items[item.task, item.arm, item.strength, item.id] = item
        elif kind == "text":
            text = _build(TextRecord, raw, where)
            texts[text.arm, text.strength, text.id] = text
        elif kind == "sample":
            sample = _build(SampleRecord, raw, where)
            samples[sample.arm, sample.strength, sample.prompt] = sample
    return replace(run, items=tuple(items.values()), texts=tuple(texts.values()), samples=tuple(samples.values()))


def _read_summary(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise NotFound(f"no run folder {folder}; give the folder that `trimtab eval --out` wrote")
    path = folder / "summary.json"
    if not path.is_file():
        state = (
            "the run did not finish: repeat its command to resume it"
            if (folder / "records.jsonl").is_file()
            else ("this is not a folder that `trimtab eval --out` wrote")
        )
        raise NotFound(f"{folder} has no summary.json; {state}")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); repeat the run's command to write it again") from error
    if not isinstance(summary, Mapping):
        raise RunError(f"{path} holds a {type(summary).__name__}, expected an object; repeat the run's command")
    return summary


def _summarised(summary: Mapping[str, Any], name: str) -> Run:
    """The summary with its figures by name; refuses a later schema and a result without a value."""
    schema = summary.get("schema", RECORD_SCHEMA)
    if schema != RECORD_SCHEMA:
        raise RunError(
            f"{name} has schema {schema!r}, this trimtab reads {RECORD_SCHEMA}; use the version that wrote it"
        )
    rows: dict[tuple[str, str | None, str, float, str], Estimate] = {}
    results = summary.get("results") or ()
    for place, row in enumerate(results):
        try:
            arm = row.get("steering") if row.get("steering") in CONTROLS else "steering"
            value, low, high = (_number(row[name]) for name in ("value", "low", "high"))
            n, clusters, seed = (int(row.get(name) or 0) for name in ("n", "clusters", "seed"))
            estimate = Estimate(value, low, high, n, clusters, seed)
            key = (
                str(row["task"]),
                row.get("split"),
                str(arm),
                float(row["strength"] or 0),
                str(row["metric"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{name}: results[{place}] is damaged ({type(error).__name__}: {error}); it needs task, metric, "
                "strength, value, low and high; repeat the run's command to write it again"
            ) from error
        rows[key] = estimate
    return Run(summary=summary, rows=rows)


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record with the words that name its line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return  # the write that was cut off; everything before it is whole
                raise RunError(f"{where} is damaged ({error}); delete the line and repeat the run's command") from error
            if not isinstance(raw, Mapping):
                raise RunError(
                    f"{where} holds a {type(raw).__name__}, expected an object; delete it and repeat the run"
                )
            if raw.get("schema", RECORD_SCHEMA) != RECORD_SCHEMA:
                raise RunError(
                    f"{where} has schema {raw['schema']!r}, this trimtab reads {RECORD_SCHEMA}; use the version that "
                    "wrote it"
                )
            yield where, raw


def _build(kind: type, raw: Mapping[str, Any], where: str) -> Any:
    """A record from its line, numbers made numbers; unknown fields are left out, so that later ones may be added."""
    missing = [f.name for f in fields(kind) if f.name not in raw]
    if missing:
        raise RunError(
            f"{where} ({raw.get('kind')}) lacks {', '.join(missing)}; delete it and repeat the run's command"
        )
    values = {f.name: raw[f.name] for f in fields(kind)}
    try:
        for name, value in values.items():
            if name == "p":
                values[name] = tuple(_number(p) for p in value)
            elif name in ("strength", "mass", "nll", "kl"):
                values[name] = _number(value)
            elif isinstance(value, list):
                values[name] = tuple(value)
            elif name in ("prompt", "completion", "concept", "id"):
                values[name] = str(value)
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RunError(f"{where} ({raw.get('kind')}) is damaged ({error}); delete it and repeat the run") from error


def _number(value: Any) -> float:
    return NAN if value is None else float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# ---------------------------------------------------------------------------------------------------------------
# Numbers as text
# ---------------------------------------------------------------------------------------------------------------


def _text(value: float, unit: str, *, signed: bool = False) -> str:
    """A number as it is written everywhere on the page; a minus is a minus sign, NaN is a dash."""
    if not math.isfinite(value):
        return "–"
    scale, places = {
        "share": (1, 3),
        "percent": (100, 1),
        "relative": (100, 1),
        "plain": (1, 3),
        "nats": (1, 4),
    }[unit]
    if unit == "plain" and abs(value) >= 10:
        places = 2
    written = f"{value * scale:{'+' if signed else ''}.{places}f}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", "−")


def _interval(e: Estimate, unit: str, *, signed: bool = False) -> str:
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return "[no interval]"
    return f"[{_text(e.low, unit, signed=signed)}, {_text(e.high, unit, signed=signed)}]"


def _both(e: Estimate, unit: str, *, signed: bool = False, suffix: str = "") -> str:
    """Value and interval, kept on one line."""
    tail = f"\u00a0{suffix}" if suffix else ""
    return f"{_text(e.value, unit, signed=signed)}{tail} {_interval(e, unit, signed=signed)}".replace(", ", ",\u00a0")


def _strength(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _span(e: Estimate, scale: float = 1) -> Span:
    return (e.value * scale, e.low * scale, e.high * scale)


def _way(change: Estimate | None) -> Literal["fell", "rose", "unclear", "unknown"]:
    """What an interval of a difference allows to be said."""
    if change is None or not math.isfinite(change.value):
        return "unknown"
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return "unknown"
    return "fell" if change.high < 0 else "rose" if change.low > 0 else "unclear"


def _arm_name(run: Run, arm: str, strength: float | None, *, long: bool = False) -> str:
    if arm == "instruction":
        return "Instruction to be fair" if long else "instruction"
    if arm == "random":
        return f"Random change, strength {_strength(strength)}" if long else f"random, {_strength(strength)}"
    if strength == 0:
        return "Base, strength 0" if long else "base"
    return f"Strength {_strength(strength)}"


# ---------------------------------------------------------------------------------------------------------------
# The verdict
# ---------------------------------------------------------------------------------------------------------------


def _verdict(run: Run, task: Mapping[str, Any]) -> Verdict:
    bias, top = "per_concept_bias", run.top
    before, after = run.get(task, "steering", 0.0, bias), run.get(task, "steering", top, bias)
    if before is None and after is None:
        text = f"The run holds no per-concept bias for {task['name']}, so there is nothing to judge."
        return Verdict("Nothing to judge", "plain", (text,), ())
    if after is None or before is None:
        only = before or after
        assert only is not None
        which = "The base model" if after is None else f"At strength {_strength(top)} the model"
        text = (
            f"{which} has a per-concept bias of {_both(only, 'share')} on {task['name']}. "
            f"There is no {'steered' if after is None else 'base'} run beside it, so no change can be stated."
        )
        return Verdict("One side only", "plain", (text,), tuple(_cautions(run, task)))
    change = run.change(task, "steering", top, bias)
    way = _way(change)
    notes = [*_shortcuts(run, task, way), *_costs(run, task), *_cautions(run, task)]
    codes = {note.code for note in notes if note.kind == "warning"}
    badge, tone = _badge(way, codes, before)
    sentences = (_first_sentence(run, task, before, after, change, way), _control_sentence(run, task))
    return Verdict(badge, tone, sentences, tuple(notes))


def _badge(way: str, codes: set[str], before: Estimate) -> tuple[str, Literal["good", "mixed", "bad", "plain"]]:
    """The verdict in a few words; the strongest objection wins."""
    if "chance" in codes:
        return "Cannot be judged: the base model is at chance", "plain"
    if way == "rose":
        return "Bias rose", "bad"
    if way == "unknown":
        return "Cannot be judged: no interval", "plain"
    if way == "unclear":
        even = math.isfinite(before.high) and before.high < EVEN
        return ("Little to repair, and no clear change", "plain") if even else ("No clear change in bias", "bad")
    if codes & {"mute", "position", "mass", "random", "seen"}:
        return "Bias fell, but read the warnings", "bad"
    if codes & {"accuracy", "perplexity"}:
        return "Bias fell, at a cost", "mixed"
    return "Bias fell; no cost detected", "good"


def _first_sentence(
    run: Run, task: Mapping[str, Any], before: Estimate, after: Estimate, change: Estimate | None, way: str
) -> str:
    verb = {
        "fell": "falls from {a} to {b}",
        "rose": "rises from {a} to {b}",
        "unclear": "does not clearly change: {a} before, {b} after, a difference of {d} that includes 0",
        "unknown": "goes from {a} to {b}, without an interval of the difference to judge it by",
    }[way].format(
        a=_both(before, "share"),
        b=_both(after, "share"),
        d=_both(change, "share", signed=True) if change else "",
    )
    costs = []
    accuracy = run.change(task, "steering", run.top, "unambiguous_accuracy")
    if accuracy is not None and math.isfinite(accuracy.value):
        costs.append(
            "accuracy where the text settles the answer changes by "
            + _both(accuracy, "percent", signed=True, suffix="points")
        )
    perplexity = run.relative(task, "steering", run.top, "perplexity")
    if perplexity is not None and math.isfinite(perplexity.value):
        costs.append(
            "perplexity on neutral text "
            + ("" if costs else "changes ")
            + "by "
            + _both(perplexity, "relative", signed=True, suffix="%")
        )
    rest = f"; {' and '.join(costs)}." if costs else "; what it costs in accuracy or fluency was not measured."
    return f"At strength {_strength(run.top)} the per-concept bias {_where(run, task)} {verb}{rest}"


def _where(run: Run, task: Mapping[str, Any]) -> str:
    """What the figures were measured on, and whether training saw it."""
    data, split = _mapping(run.card.get("data")), task.get("split")
    on = f"on {task['name']}" + (f" ({split} split)" if split else "")
    if not data.get("task"):
        return on
    if data["task"] != task["name"]:
        return f"{on}, a task it was not trained on,"
    if data.get("split") and split and split not in ("all", data["split"]) and data["split"] != "all":
        return f"{on}, which training did not see,"
    return on


def _control_sentence(run: Run, task: Mapping[str, Any]) -> str:
    names = {"random": "a random change of the same size", "instruction": "an instruction to be fair"}
    said = []
    for arm, name in names.items():
        strength = run.control(arm)
        figure = run.get(task, arm, strength, "per_concept_bias")
        if figure is None:
            continue
        change = run.change(task, arm, strength, "per_concept_bias")
        verb = {
            "fell": "lowers it to {}",
            "rose": "raises it to {}",
            "unclear": "does not clearly change it: {}",
            "unknown": "gives {}",
        }[_way(change)]
        words = f"{name} {verb.format(_both(figure, 'share'))}"
        accuracy = run.change(task, arm, strength, "unambiguous_accuracy") if arm == "instruction" else None
        if accuracy is not None and math.isfinite(accuracy.value):
            words += f" with accuracy changed by {_both(accuracy, 'percent', signed=True, suffix='points')}"
        said.append(words)
    if not said:
        return "No control was run, so this change cannot be set against a random one or against asking nicely."
    missing = [f"{name} was not tried" for arm, name in names.items() if run.control(arm) is None]
    text = "; ".join([*said, *missing])
    return f"For comparison, {text}."


def _shortcuts(run: Run, task: Mapping[str, Any], way: str) -> Iterator[Note]:
    """Ways in which a bias figure falls without the model becoming fairer."""
    top = run.top
    fell = way == "fell"

    def pair(metric: str) -> tuple[Estimate, Estimate, Estimate] | None:
        a, b = run.get(task, "steering", 0.0, metric), run.get(task, "steering", top, metric)
        d = run.change(task, "steering", top, metric)
        return (a, b, d) if a and b and d and math.isfinite(d.value) else None

    # A comparison with NaN is false, so "not low <= 0" keeps the warning where a figure has no interval.
    neither = pair("neither_rate")
    if neither and neither[2].value >= SHORTCUT and not neither[2].low <= 0:
        yield Note(
            "warning",
            "mute",
            "The model takes a side less often",
            f"The neither rate rises from {_both(neither[0], 'percent', suffix='%')} to "
            f"{_both(neither[1], 'percent', suffix='%')}. A model that does not answer has no bias to measure"
            + (": part or all of the fall may be the model having gone mute, not having become fair." if fell else "."),
        )
    position = pair("position_effect")
    if position:
        a, b, d = position
        known = math.isfinite(d.low) and math.isfinite(d.high)
        if abs(b.value) - abs(a.value) >= SHORTCUT and not (known and d.low <= 0 <= d.high):
            yield Note(
                "warning",
                "position",
                "The model answers more by position",
                f"The position effect goes from {_both(a, 'share', signed=True)} to {_both(b, 'share', signed=True)}. "
                "A model that picks an answer by its place in the prompt has a bias of 0 when both orders are asked"
                + (": part or all of the fall may be that shortcut." if fell else "."),
            )
    mass = pair("option_mass")
    if mass and mass[0].value > 0 and mass[2].value / mass[0].value <= -MASS and not mass[2].high >= 0:
        yield Note(
            "warning",
            "mass",
            "The model would rather say something else",
            f"The probability on the allowed answers falls from {_both(mass[0], 'percent', suffix='%')} to "
            f"{_both(mass[1], 'percent', suffix='%')}, so the figures speak of fewer of "
            "the answers it would really give.",
        )
    steered = run.get(task, "steering", top, "per_concept_bias")
    strength = run.control("random")
    chance = run.get(task, "random", strength, "per_concept_bias")
    if fell and steered and chance and _way(run.change(task, "random", strength, "per_concept_bias")) == "fell":
        ours = run.change(task, "steering", top, "per_concept_bias")
        theirs = run.change(task, "random", strength, "per_concept_bias")
        if ours and theirs and theirs.value <= 0.5 * ours.value:
            yield Note(
                "warning",
                "random",
                "A random change does much of the same",
                f"A random change of the same size brings the bias to {_both(chance, 'share')}: at least half of the "
                "fall needs no learning, and may be plain damage.",
            )


def _costs(run: Run, task: Mapping[str, Any]) -> Iterator[Note]:
    """What the change cost, where it is measurable and large enough to say."""
    accuracy = run.change(task, "steering", run.top, "unambiguous_accuracy")
    if accuracy and accuracy.value <= -ACCURACY and _way(accuracy) == "fell":
        lost = replace(accuracy, value=-accuracy.value, low=-accuracy.high, high=-accuracy.low)
        yield Note(
            "warning",
            "accuracy",
            "Right answers were lost",
            "Where the text settles the answer, accuracy falls by "
            f"{_both(lost, 'percent', suffix='points')}"
            ". A lower strength may keep more of it: see the dial below.",
        )
    perplexity = run.relative(task, "steering", run.top, "perplexity")
    if perplexity and perplexity.value >= PERPLEXITY and _way(perplexity) == "rose":
        yield Note(
            "warning",
            "perplexity",
            "Ordinary language got worse",
            f"Perplexity on neutral text changes by {_both(perplexity, 'relative', signed=True, suffix='%')}.",
        )


def _cautions(run: Run, task: Mapping[str, Any]) -> Iterator[Note]:
    """What a careful reader would ask about the measurement itself."""
    bias, top = "per_concept_bias", run.top
    before, after = run.get(task, "steering", 0.0, bias), run.get(task, "steering", top, bias)
    accuracy = run.get(task, "steering", 0.0, "unambiguous_accuracy")
    settled = [r for r in run.of(task, "steering", 0.0) if not r.ambiguous and r.options]
    if accuracy and settled and math.isfinite(accuracy.low):
        chance = sum(1 / len(r.options) for r in settled) / len(settled)
        if accuracy.low <= chance:
            yield Note(
                "warning",
                "chance",
                "The base model is at chance on this task",
                f"Its accuracy where the text settles the answer, {_both(accuracy, 'percent', suffix='%')}, cannot be "
                f"told from guessing ({_text(chance, 'percent')}\u00a0%). Such a model can show neither bias nor "
                "repair.",
            )
    if before and before.high < EVEN:
        yield Note(
            "note",
            "even",
            "The base model is already close to even",
            f"Its per-concept bias is {_both(before, 'share')}; few items or a fair model look alike at that level.",
        )
    data = _mapping(run.card.get("data"))
    if data.get("task") == task["name"] and (
        task.get("split") == "all" or data.get("split") in (task.get("split"), "all")
    ):
        yield Note(
            "warning",
            "seen",
            "Measured on what it was trained on",
            f"Training used the {data.get('split') or 'same'} split of {task['name']}, and the figures are from the "
            f"{task.get('split') or 'same'} split. They say how well it fits, not how well it generalises.",
        )
    greedy = run.change(task, "steering", top, bias + CHOICE)
    if _way(run.change(task, "steering", top, bias)) == "fell" and _way(greedy) in ("unclear", "rose"):
        choice = run.get(task, "steering", top, bias + CHOICE)
        assert greedy is not None
        yield Note(
            "note",
            "choice",
            "The single likeliest answer has not clearly become fairer",
            f"The probabilities moved, but the bias of the likeliest answer changes by "
            f"{_both(greedy, 'share', signed=True)}" + (f" to {_both(choice, 'share')}" if choice else "") + ".",
        )
    points = [(s, e) for s in run.strengths if s > 0 and (e := run.get(task, "steering", s, bias))]
    if after and points:
        lowest, least = min(points, key=lambda p: p[1].value if math.isfinite(p[1].value) else math.inf)
        if top is not None and lowest < top and least.value < after.value - 0.01:
            yield Note(
                "note",
                "overshoot",
                f"The bias is lowest at strength {_strength(lowest)}",
                f"There it is {_both(least, 'share')}; beyond, the dial overshoots.",
            )
    safe = _mapping(run.card.get("strength")).get("safe")
    beyond = [s for s in run.strengths if isinstance(safe, Sequence) and safe and s > safe[-1]]
    if beyond:
        yield Note(
            "note",
            "beyond",
            "Some strengths lie beyond the safe range",
            f"The card calls {_strength(safe[0])} to {_strength(safe[-1])} safe; "  # type: ignore[index]
            f"{', '.join(map(_strength, beyond))} show what happens further out.",
        )
    family, learned = run.summary.get("model_family"), _mapping(run.card.get("model")).get("family")
    if family and learned and family != learned:
        yield Note(
            "warning",
            "family",
            "Learned on another kind of model",
            f"The card says {learned}, the run used {family}.",
        )
    listed = any(p is not None for r in run.of(task, "steering", 0.0) for p in r.positions)
    if listed and run.get(task, "steering", top, "position_effect") is None and top is not None:
        yield Note(
            "note",
            "unmeasured",
            "Position effect not measured",
            "The prompts list their options, but the run has no position effect, so answers by position cannot be "
            "ruled out.",
        )
    thin = after or before
    if thin and 0 < thin.clusters < FEW:
        yield Note(
            "note",
            "few",
            "Few independent wordings",
            f"The intervals rest on {thin.clusters} clusters; with so few, they are likely too narrow.",
        )
    if run.control("random") is None and top is not None:
        yield Note(
            "note",
            "norandom",
            "No random control",
            "Without one, damage cannot be told from repair by these figures alone.",
        )


# ---------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------

_SECTIONS = (
    ("verdict", "Verdict"),
    ("frontier", "Bias against capability"),
    ("dial", "The dial"),
    ("concepts", "By concept"),
    ("table", "All figures"),
    ("samples", "Completions"),
    ("items", "Changed answers"),
    ("method", "How it was made"),
)


def _page(run: Run) -> str:
    steering, model = run.summary.get("steering"), run.summary.get("model") or "an unnamed model"
    title = f"{_last(steering)} on {_last(model)}" if steering else f"{_last(model)}, base only"
    bodies = {
        "verdict": _each(run, _verdict_html),
        "frontier": _each(run, _frontier_html),
        "dial": _each(run, _dial_html),
        "concepts": _each(run, _concepts_html),
        "table": _each(run, _table_html),
        "samples": _samples_html(run),
        "items": _each(run, _items_html),
        "method": _method_html(run),
    }
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, name in _SECTIONS)
    sections = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{name}</h2>{bodies[key]}</section>'
        for key, name in _SECTIONS
    )
    tasks = "; ".join(
        f"{escape(str(t['name']))}" + (f" ({escape(str(t['split']))} split)" if t.get("split") else "")
        for t in run.tasks
    )
    kicker = f"trimtab {escape(str(run.summary.get('trimtab') or ''))}".strip() + " · evaluation report"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # The page must not phone anyone, whatever text a model or a data set put into it.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}: trimtab report</title>'
        f'<style>{_css()}</style></head><body><header><p class="kicker">{kicker}</p>'
        f'<h1>{escape(title)}</h1><p class="sub">Model {escape(str(model))}'
        + (f", steering {escape(str(steering))}" if steering else "")
        + (f". Measured on {tasks}." if tasks else ". No task was measured.")
        + f'</p></header><nav aria-label="Contents">{nav}</nav><main>{sections}</main>'
        f"<footer><p>Made by trimtab {escape(str(run.summary.get('trimtab') or ''))} from the records of one run. This "
        "file loads nothing from the network and runs no script.</p></footer></body></html>\n"
    )


def _last(name: Any) -> str:
    """The last part of a path or model id: what people call it."""
    return str(name).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or str(name)


def _each(run: Run, part: Callable[[Run, Mapping[str, Any]], str]) -> str:
    if not run.tasks:
        return _absent("The run holds no task.")
    if len(run.tasks) == 1:
        return part(run, run.tasks[0])
    return "".join(f"<h3>{escape(str(t['name']))}</h3>{part(run, t)}" for t in run.tasks)


def _absent(text: str) -> str:
    return f'<p class="absent">{escape(text)}</p>'


def _verdict_html(run: Run, task: Mapping[str, Any]) -> str:
    verdict = _verdict(run, task)
    sign = {"good": "✓", "mixed": "±", "bad": "!", "plain": "·"}[verdict.tone]
    out = [
        f'<div class="verdict {verdict.tone}"><p class="badge">',
        f'<span aria-hidden="true">{sign}</span>{escape(verdict.badge)}</p>',
        "".join(f'<p class="lead">{escape(s)}</p>' for s in verdict.sentences),
        "</div>",
        _tiles(run, task),
    ]
    for note in sorted(verdict.notes, key=lambda n: n.kind != "warning"):
        word = "Warning" if note.kind == "warning" else "Note"
        out.append(
            f'<aside class="note {note.kind}" data-code="{note.code}"><p>'
            f"<strong>{word}: {escape(note.title)}.</strong> "
            f"{_code(note.text)}</p></aside>"
        )
    out.append(
        '<p class="fine">Square brackets hold 95 % intervals. “Falls” and “rises” are said only where the interval of '
        "the paired difference leaves out 0."
    )
    concepts = list(dict.fromkeys(r.concept for r in run.of(task, "steering", 0.0) if r.ambiguous))
    if concepts:
        some = ", ".join(concepts[:3]) + (" and so on" if len(concepts) > 3 else "")
        out.append(f" A concept is what an item is about; here there are {len(concepts)}: {escape(some)}.")
    out.append("</p>")
    return "".join(out)


def _code(text: str) -> str:
    """Escaped text, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def _tiles(run: Run, task: Mapping[str, Any]) -> str:
    """The four figures that belong together, base beside steered."""
    out = []
    for metric, name, unit, suffix in (
        ("per_concept_bias", "Per-concept bias", "share", ""),
        ("unambiguous_accuracy", "Accuracy, settled items", "percent", "%"),
        ("perplexity", "Perplexity", "plain", ""),
        ("neither_rate", "Neither rate", "percent", "%"),
    ):
        a, b = run.get(task, "steering", 0.0, metric), run.get(task, "steering", run.top, metric)
        tail = f"<small>\u202f{suffix}</small>" if suffix else ""
        was = _text(a.value, unit) if a else "–"
        now = _text(b.value, unit) if b else "–"
        change = run.change(task, "steering", run.top, metric)
        if change is None or not math.isfinite(change.value):
            line = "no difference to state"
        elif metric == "perplexity" and (share := run.relative(task, "steering", run.top, metric)):
            line = _both(share, "relative", signed=True, suffix="%")
        else:
            line = _both(change, unit, signed=True, suffix="points" if unit == "percent" else "")
        out.append(
            f'<div class="tile"><p class="name">{name}</p><p class="num"><span class="was">{was}{tail}</span>'
            f'<span class="to" aria-label="to"> → </span>{now}{tail}</p><p class="fine">{escape(line)}</p></div>'
        )
    return f'<div class="tiles">{"".join(out)}</div>'


def _tracks(
    run: Run,
    task: Mapping[str, Any],
    metric: str,
    *,
    across: str | None = None,
    labels: bool = False,
    scale: float = 1,
) -> list[Track]:
    """The arms of a drawing: `metric` upwards, and along the x axis the strength, or another metric.

    `perplexity` stands for its change from the base in per cent: only that compares across models.
    """

    def figure(arm: str, strength: float, key: str) -> Estimate | None:
        if key != "perplexity":
            return run.get(task, arm, strength, key)
        if arm == "steering" and strength == 0:
            base = run.get(task, arm, strength, key)
            return replace(base, value=0.0, low=0.0, high=0.0) if base else None
        return run.relative(task, arm, strength, key)

    def factor(key: str) -> float:
        return 100 if key == "perplexity" or BY_KEY[key].unit == "percent" else scale

    tracks = []
    for arm in figures.ARMS:
        dots = []
        for strength in run.arm_strengths(arm):
            up = figure(arm, strength, metric)
            if up is None or not math.isfinite(up.value):
                continue
            name = _arm_name(run, arm, strength)
            if across is None:
                x: Span = (NAN, NAN, NAN) if arm == "instruction" else (strength, strength, strength)
            else:
                side = figure(arm, strength, across)
                if side is None or not math.isfinite(side.value):
                    continue
                x = _span(side, factor(across))
            unit = "relative" if metric == "perplexity" else BY_KEY[metric].unit
            tip = f"{name}: {_both(up, unit, signed=metric == 'perplexity')}"
            # Of a control only the point that the verdict compares has a label: the others crowd around the base.
            named = labels and (arm == "steering" or strength == run.control(arm))
            label = (name if arm != "steering" or strength == 0 else _strength(strength)) if named else ""
            base = arm == "steering" and strength == 0
            dots.append(Dot(x, _span(up, factor(metric)), label, tip, base))
        if dots:
            tracks.append(Track(arm, tuple(dots)))
    return tracks


def _legend(run: Run, *, band: bool = False) -> str:
    bars = "band" if band else "bars"
    out = [f"<span>{figures.key('steering', base=True)}base (strength 0)</span>"] if 0.0 in run.strengths else []
    if run.top is not None:
        out.append(f"<span>{figures.key('steering')}steering, by strength</span>")
    if run.arm_strengths("random"):
        out.append(f"<span>{figures.key('random')}random change of the same size</span>")
    if run.arm_strengths("instruction"):
        out.append(f"<span>{figures.key('instruction')}instruction to be fair</span>")
    return f'<p class="legend">{"".join(out)}<span class="fine">{bars}: 95 % intervals</span></p>'


def _in_words(run: Run, tracks: Sequence[Track], name: str) -> str:
    """What a drawing shows, for a reader who cannot see it."""
    tips = [dot.tip for track in tracks for dot in track.dots]
    return f"{name}. " + ("; ".join(tips) if tips else "No figure available.")


def _bias_axis(scale: float = 1) -> Axis:
    return Axis(include=(0.0,), least=0.1 * scale, floor=0.0, ceiling=1.0 * scale)


def _frontier_html(run: Run, task: Mapping[str, Any]) -> str:
    width, height = 450.0, 370.0
    panels = (
        (
            "unambiguous_accuracy",
            "Bias against accuracy",
            "per-concept bias (up), lower right is better",
            Axis("accuracy where the text settles the answer, %", least=10, floor=0, ceiling=100),
        ),
        (
            "perplexity",
            "Bias against fluency",
            "per-concept bias (up), lower left is better",
            Axis("change of perplexity on neutral text, %", include=(0.0,), least=4, signed=True),
        ),
    )
    out = []
    for metric, title, subtitle, axis in panels:
        tracks = _tracks(run, task, "per_concept_bias", across=metric, labels=True)
        drawing = figures.panel(
            tracks, x=axis, y=_bias_axis(), width=width, height=height, title=title, subtitle=subtitle
        )
        out.append(figures.svg(drawing, width, height, _in_words(run, tracks, title)))
    return (
        "<p>Each point is one setting of the dial. A good change goes straight down: less bias, the same accuracy and "
        "fluency. Numbers at the points are strengths.</p>"
        f'<figure><div class="pair">{"".join(out)}</div><figcaption>{_legend(run)}</figcaption></figure>'
    )


def _dial_html(run: Run, task: Mapping[str, Any]) -> str:
    percent = Axis(least=10, floor=0, ceiling=100)
    panels: tuple[tuple[str, str, str, Axis], ...] = (
        ("per_concept_bias", "Per-concept bias", "0 to 1, lower is better", _bias_axis()),
        (
            "stereotype_gap",
            "Stereotype gap",
            "−1 to 1, best at 0",
            Axis(include=(0.0,), least=0.1, signed=True),
        ),
        ("unambiguous_accuracy", "Accuracy, settled items", "%, higher is better", percent),
        (
            "neither_rate",
            "Neither rate",
            "%, lower is better",
            Axis(include=(0.0,), least=5, floor=0, ceiling=100),
        ),
        (
            "position_effect",
            "Position effect",
            "−1 to 1, best at 0",
            Axis(include=(0.0,), least=0.1, signed=True),
        ),
        ("option_mass", "Probability on the options", "%, higher is better", percent),
        (
            "perplexity",
            "Perplexity, change",
            "% of the base, lower is better",
            Axis(include=(0.0,), least=4, signed=True),
        ),
        (
            "kl",
            "Divergence from the base",
            "nats a token on neutral text",
            Axis(include=(0.0,), least=0.002, floor=0),
        ),
    )
    width, height = 316.0, 236.0
    gutter = "instr." if run.arm_strengths("instruction") else ""
    along = tuple(run.strengths)
    out = []
    left_out = []
    for metric, title, subtitle, axis in panels:
        tracks = _tracks(run, task, metric)
        if not tracks:
            left_out.append(title)
            continue
        x = Axis("strength", ticks=along, include=(0.0,))
        drawing = figures.panel(
            tracks,
            x=x,
            y=axis,
            width=width,
            height=height,
            title=title,
            subtitle=subtitle,
            band=True,
            gutter=gutter,
            nudge=8,
        )
        out.append(figures.svg(drawing, width, height, _in_words(run, tracks, title)))
    text = "<p>Every figure against the strength. Bias and gap should come to 0 and the rest stay put.</p>"
    if left_out:
        text += _absent(f"Not in this run, or not defined for this task: {', '.join(left_out)}.")
    legend = _legend(run, band=True)
    return f'{text}<figure><div class="many">{"".join(out)}</div><figcaption>{legend}</figcaption></figure>'


# ---------------------------------------------------------------------------------------------------------------
# Concepts
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lean:
    """Which difference a task's concepts are drawn by."""

    kind: Literal["women", "roles", "range"]
    low: str
    high: str
    words: str


def _lean(records: Iterable[Record]) -> _Lean | None:
    """Women against men where these are the groups, else max - min where an item has more, else pro against anti."""
    ambiguous = [r for r in records if r.ambiguous]
    offered = [{g for g in r.groups if g is not None} for r in ambiguous]
    if set().union(*offered) == {"women", "men"}:
        return _Lean("women", "men", "women", "P(women) − P(men), where the text does not settle the answer")
    if any(len(groups) > 2 for groups in offered):
        return _Lean("range", "even", "uneven", "most favoured minus least favoured group, maxₖ P(k) − minₖ P(k)")
    if any({"pro", "anti"} & set(r.roles) for r in ambiguous):
        return _Lean("roles", "against stereotype", "with stereotype", "P(pro) − P(anti), signed")
    return None


def _share(record: Record, labels: Sequence[str | None], label: str) -> float:
    return sum(p for p, own in zip(record.p, labels, strict=True) if own == label)


def _by_concept(records: Iterable[Record], lean: _Lean) -> dict[str, float]:
    """The lean of each concept: means over its ambiguous items."""
    concepts: dict[str, list[Record]] = {}
    for record in records:
        if record.ambiguous:
            concepts.setdefault(record.concept, []).append(record)
    return {concept: _lean_of(items, lean) for concept, items in concepts.items()}


def _lean_of(items: Sequence[Record], lean: _Lean) -> float:
    if lean.kind == "range":
        sums: dict[str, list[float]] = {}
        for record in items:
            for group in dict.fromkeys(g for g in record.groups if g is not None):
                sums.setdefault(group, []).append(_share(record, record.groups, group))
        means = [sum(v) / len(v) for v in sums.values()]
        return max(means) - min(means) if means else NAN
    if lean.kind == "women":
        each = [_share(r, r.groups, "women") - _share(r, r.groups, "men") for r in items]
    else:
        each = [_share(r, r.roles, "pro") - _share(r, r.roles, "anti") for r in items if {"pro", "anti"} & set(r.roles)]
    return sum(each) / len(each) if each else NAN


def _concepts_html(run: Run, task: Mapping[str, Any]) -> str:
    before_records, after_records = run.of(task, "steering", 0.0), run.of(task, "steering", run.top)
    lean = _lean(before_records or after_records)
    if lean is None:
        return _absent("No ambiguous item with groups or roles, so there is no lean to draw.")
    before, after = _by_concept(before_records, lean), _by_concept(after_records, lean)
    rows = [(c, before.get(c, NAN), after.get(c, NAN)) for c in dict.fromkeys([*before, *after])]
    total = len(rows)

    def size(row: tuple[str, float, float]) -> float:
        return max((abs(v) for v in row[1:] if math.isfinite(v)), default=-1.0)

    if total > CONCEPTS:
        rows = sorted(rows, key=lambda r: (-size(r), r[0]))[:WORST]
    rows.sort(key=lambda r: (-(r[1] if math.isfinite(r[1]) else r[2] if math.isfinite(r[2]) else -9.0), r[0]))
    reach = max([*(size(r) for r in rows), 0.1])
    reach = min(math.ceil(reach * 10 + 0.2) / 10, 1.0)
    low, high = (0.0, reach) if lean.kind == "range" else (-reach, reach)
    ticks = figures.even_ticks(low, high, 4)
    signed = lean.kind != "range"
    shrunk = sum(1 for _, a, b in rows if math.isfinite(a) and math.isfinite(b) and abs(b) < abs(a))
    paired = sum(1 for _, a, b in rows if math.isfinite(a) and math.isfinite(b))
    ends = f"<span>{'← ' if signed else ''}{lean.low}</span><span>{lean.high} →</span>"
    body = "".join(
        f'<tr><th scope="row">{escape(c)}</th><td class="draw">{figures.dumbbell(a, b, low, high, ticks)}</td>'
        f"<td>{_text(a, 'share', signed=signed)}</td><td>{_text(b, 'share', signed=signed)}</td></tr>"
        for c, a, b in rows
    )
    head = (
        f'<tr><th scope="col">concept</th><th scope="col" class="draw"><div class="ends">{ends}</div>'
        f'{figures.ruler(low, high, ticks, signed)}</th><th scope="col">base</th>'
        f'<th scope="col">at {_strength(run.top)}</th></tr>'
    )
    text = f"<p>{escape(lean.words[0].upper() + lean.words[1:])}: the ring is the base, the disc strength "
    text += f"{_strength(run.top)}. "
    if paired:
        text += f"{shrunk} of {paired} concepts moved closer to even; they are sorted by the base. "
    items = len([r for r in before_records or after_records if r.ambiguous])
    text += f"Means over {items} items, {items / max(total, 1):.3g} a concept; single concepts have no interval.</p>"
    if run.top is None:
        text = f"<p>{escape(lean.words)}: the ring is the base. Nothing was steered.</p>"
    if total > CONCEPTS:
        text += f'<p class="fine">{WORST} of {total} concepts: those with the largest lean before or after.</p>'
    legend = (
        f'<p class="legend"><span>{figures.key("steering", base=True)}base</span>'
        f"<span>{figures.key('steering')}strength {_strength(run.top)}</span></p>"
    )
    return (
        f'{text}<figure>{legend}<div class="scroll"><table class="dumbbell"><caption class="hidden">Lean by concept, '
        f"base and steered</caption><thead>{head}</thead><tbody>{body}</tbody></table></div></figure>"
    )


# ---------------------------------------------------------------------------------------------------------------
# Tables and texts
# ---------------------------------------------------------------------------------------------------------------


def _table_html(run: Run, task: Mapping[str, Any]) -> str:
    arms = [("steering", s) for s in run.strengths]
    arms += [(arm, s) for arm in CONTROLS for s in run.arm_strengths(arm)]
    known = [(f.key, f.name, f.unit, f.better) for f in FIGURES]
    known += [(f.key + CHOICE, f"{f.name}, likeliest answer only", f.unit, f.better) for f in FIGURES[:5]]
    names = {key for key, *_ in known}
    other = dict.fromkeys(
        m for t, _, _, _, m in run.rows if t == task["name"] and m not in names and not m.endswith(DIFFERENCE)
    )
    known += [(m, m.replace("_", " "), "share", "") for m in other]
    groups = []
    for key, name, unit, better in known:
        rows = []
        for arm, strength in arms:
            e = run.get(task, arm, strength, key)
            if e is None:
                continue
            d = None if arm == "steering" and strength == 0 else run.change(task, arm, strength, key)
            who = _arm_name(run, arm, strength, long=True)
            rows.append(
                f'<tr><th scope="row">{figures.key(arm, base=arm == "steering" and strength == 0)}{who}</th>'
                f"<td>{_text(e.value, unit)}</td><td>{_cell(e, unit)}</td>"
                + (
                    f"<td>{_text(d.value, unit, signed=True)}</td><td>{_cell(d, unit, signed=True)}</td>"
                    if d
                    else "<td></td><td></td>"
                )
                + f"<td>{e.n or '–'}</td><td>{e.clusters or '–'}</td></tr>"
            )
        if rows:
            label = f"{name}{', %' if unit == 'percent' else ''}"
            side = f" <span>{better}</span>" if better else ""
            groups.append(f'<tbody><tr class="group"><th colspan="7" scope="rowgroup">{escape(label)}{side}</th></tr>')
            groups.append("".join(rows) + "</tbody>")
    if not groups:
        return _absent("The run holds no figure for this task.")
    seeds = sorted({e.seed for (t, *_), e in run.rows.items() if t in (task["name"], NEUTRAL)})
    foot = (
        "Differences are paired: the same resamples of wordings and concepts for both sides. Percentages differ in "
        f"points. n counts items or passages, clusters the wordings or passages that are resampled; bootstrap seed "
        f"{', '.join(map(str, seeds))}. A dash: undefined, or too few clusters for an interval."
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All figures"><table class="figures">'
        '<caption class="hidden">All figures with intervals</caption><thead><tr><th scope="col">arm</th>'
        '<th scope="col">value</th><th scope="col">95 % interval</th><th scope="col">difference from base</th>'
        '<th scope="col">95 % interval</th><th scope="col">n</th><th scope="col">clusters</th></tr></thead>'
        f'{"".join(groups)}</table></div><p class="fine">{foot}</p>'
    )


def _cell(e: Estimate, unit: str, *, signed: bool = False) -> str:
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return "–"
    return f"{_text(e.low, unit, signed=signed)} to {_text(e.high, unit, signed=signed)}"


def _samples_html(run: Run) -> str:
    if not run.samples:
        return _absent("The run holds no sample completions.")
    prompts = list(dict.fromkeys(s.prompt for s in run.samples))
    told = {(s.prompt, s.arm, s.strength): s.completion for s in run.samples}
    arms = sorted(
        {(s.arm, s.strength) for s in run.samples},
        key=lambda a: (figures.ARMS.index(a[0]), a[1]) if (a[0] in figures.ARMS) else (len(figures.ARMS), a[1]),
    )
    out = []
    for prompt in prompts[:SAMPLES]:
        base = told.get((prompt, "steering", 0.0))
        cells = []
        for arm, strength in arms:
            text = told.get((prompt, arm, strength))
            if text is None:
                continue
            is_base = arm == "steering" and strength == 0
            same = not is_base and text == base
            body = (
                '<p class="same">same as the base</p>'
                if same
                else f'<p class="said">{escape(text.strip()) or "(nothing)"}</p>'
            )
            mark = figures.key(arm, base=is_base)
            cells.append(
                f'<div class="cell"><p class="who">{mark}{escape(_arm_name(run, arm, strength, long=True))}</p>'
                f"{body}</div>"
            )
        out.append(
            f'<article class="sample"><p class="prompt">{escape(prompt)}</p><div class="cells">{"".join(cells)}</div>'
            "</article>"
        )
    left = len(prompts) - SAMPLES
    more = f'<p class="fine">{left} more in records.jsonl.</p>' if left > 0 else ""
    return "<p>Greedy completions, for people to read. They illustrate; they prove nothing.</p>" + "".join(out) + more


def _items_html(run: Run, task: Mapping[str, Any]) -> str:
    before = {r.id: r for r in run.of(task, "steering", 0.0)}
    pairs = [(before[r.id], r) for r in run.of(task, "steering", run.top) if r.id in before]
    pairs = [(a, b) for a, b in pairs if len(a.p) == len(b.p) and all(map(math.isfinite, a.p + b.p))]
    if not pairs or run.top is None:
        return _absent("No item was measured both at the base and steered.")

    def moved(pair: tuple[Record, Record]) -> float:
        return sum(abs(p - q) for p, q in zip(pair[0].p, pair[1].p, strict=True)) / 2

    chosen: dict[str, tuple[Record, Record]] = {}
    for pair in sorted((p for p in pairs if p[0].ambiguous), key=lambda p: (-moved(p), p[0].id)):
        chosen.setdefault(pair[0].concept, pair)  # one a concept: six wordings of one occupation teach nothing
    open_items = list(chosen.values())[:CHANGED]
    lost = [
        (a, b)
        for a, b in pairs
        if not a.ambiguous and a.roles[_likeliest(a)] == "correct" and b.roles[_likeliest(b)] != "correct"
    ]
    lost.sort(key=lambda p: (-moved(p), p[0].id))
    won = sum(
        1
        for a, b in pairs
        if not a.ambiguous and a.roles[_likeliest(a)] != "correct" and b.roles[_likeliest(b)] == "correct"
    )
    settled = sum(1 for a, _ in pairs if not a.ambiguous)
    out = []
    if open_items:
        out.append("<p>Where the text does not settle the answer, the largest moves, one for each concept.</p>")
        out.append('<div class="items">' + "".join(_item(run, a, b) for a, b in open_items) + "</div>")
    if settled:
        text = f"Where the text settles the answer ({settled} items), the likeliest answer went from right to wrong on "
        text += f"{len(lost)} and from wrong to right on {won}."
        out.append(f"<p>{text}{' The largest losses:' if lost else ''}</p>")
        if lost:
            out.append('<div class="items">' + "".join(_item(run, a, b) for a, b in lost[:BROKEN]) + "</div>")
    return "".join(out)


def _likeliest(record: Record) -> int:
    return max(range(len(record.p)), key=record.p.__getitem__)


def _item(run: Run, a: Record, b: Record) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(text).strip())} <span class="role">{escape(role)}</span></th>'
        f'<td class="draw">{figures.bar(p, "base")}</td><td>{_text(p, "percent")}</td>'
        f'<td class="draw">{figures.bar(q, "steering")}</td><td>{_text(q, "percent")}</td></tr>'
        for text, role, p, q in zip(a.options, a.roles, a.p, b.p, strict=True)
    )
    kind = "not settled" if a.ambiguous else "settled"
    return (
        f'<article class="item"><p class="who">{escape(a.concept)} · {kind} · {escape(a.id)}</p>'
        f'<p class="prompt">{escape(a.prompt)}</p><table>'
        '<caption class="hidden">Probability of each answer, %</caption>'
        '<thead><tr><th scope="col">answer</th><th scope="col" colspan="2">base, %</th>'
        f'<th scope="col" colspan="2">at {_strength(run.top)}, %</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></article>"
    )


# ---------------------------------------------------------------------------------------------------------------
# How it was made
# ---------------------------------------------------------------------------------------------------------------


def _method_html(run: Run) -> str:
    card, summary = run.card, run.summary
    model, data, strength = (_mapping(card.get(k)) for k in ("model", "data", "strength"))
    missing: list[str] = []

    def known(name: str, value: Any, *, code: bool = False) -> str:
        if value in (None, "", (), [], {}):
            missing.append(name)
            shown = '<span class="absent">not recorded</span>'
        else:
            shown = f"<code>{escape(_plain(value))}</code>" if code else escape(_plain(value))
        return f"<dt>{escape(name)}</dt><dd>{shown}</dd>"

    out = ["<h3>The run</h3><dl>"]
    out.append(known("model", summary.get("model")) + known("family", summary.get("model_family")))
    out.append(known("seed", summary.get("seed")) + known("strengths", [_strength(s) for s in run.strengths]))
    for task in run.tasks:
        split = f"{task['split']} split. " if task.get("split") else ""
        out.append(known(f"task {task['name']}", f"{split}{task['division']}" if task.get("division") else None))
    if run.arm_strengths("instruction"):
        out.append(known("instruction", summary.get("instruction")))
    out.append(known("command", summary.get("command"), code=True) + known("trimtab", summary.get("trimtab")))
    out.append("</dl><h3>The steering</h3>")
    if not card:
        why = "The run has no card, so how the steering was learned, on what data and which weights, cannot be said."
        out.append(_absent(why if summary.get("steering") else "The base model alone was run; there is no steering."))
    else:
        sites = card.get("sites") or []
        out.append("<dl>")
        out.append(known("learner", card.get("learner")) + known("operation", card.get("operation"), code=True))
        out.append(known("learned on", model.get("id")) + known("fingerprint", model.get("fingerprint"), code=True))
        out.append(known("sites", f"{len(sites)}: {_some(sites)}" if sites else None))
        ranges = [
            f"{name} {' to '.join(map(_plain, v)) if isinstance(v, list) else _plain(v)}"
            for name, v in strength.items()
        ]
        out.append(known("strength", "; ".join(ranges)))
        used = [
            f"{data['task']}" if data.get("task") else "",
            f"{data['split']} split" if data.get("split") else "",
        ]
        used.append(f"{data['items']} items" if data.get("items") is not None else "")
        out.append(known("training data", ", ".join(u for u in used if u)))
        out.append(known("data digest", data.get("digest"), code=True) + known("training seed", card.get("seed")))
        out.append(known("licence", card.get("licence")) + known("limits", card.get("limits")))
        out.append("</dl>" + _settings(_mapping(card.get("settings"))))
        if missing:
            out.append(f'<p class="absent" data-missing="1">Not recorded: {escape(", ".join(missing))}.</p>')
        out.append(_history(card.get("history")))
    words = "".join(
        f"<dt>{escape(f.name)}</dt><dd>{escape(f.words)}<br><code>{escape(f.formula)}</code></dd>" for f in FIGURES
    )
    out.append(
        f'<h3>What the figures mean</h3><dl class="defs">{words}<dt>likeliest answer only</dt><dd>The same figure with '
        "the whole probability put on the likeliest answer: what a user sees who takes one answer.</dd>"
        "<dt>95 % interval</dt><dd>Bootstrap over wordings and concepts, both drawn anew: items that share either are "
        "not independent. Differences use the same draws for both sides.</dd>"
        "<dt>Random change of the same size</dt><dd>The control against plain damage: the same sites and the same "
        "size, without learning.</dd><dt>Instruction to be fair</dt><dd>The control against asking: the untouched "
        "model, told to be fair.</dd></dl>"
    )
    return "".join(out)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _some(names: Sequence[Any], most: int = 6) -> str:
    shown = [_plain(n) for n in names[:most]]
    return ", ".join(shown) + (f", … {_plain(names[-1])}" if len(names) > most else "")


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row"><code>{escape(str(name))}</code></th><td><code>{escape(_plain(value))}</code></td>'
        f"<td>{how}</td></tr>"
        for how, part in (("given", "given"), ("default", "defaulted"))
        for name, value in _mapping(settings.get(part)).items()
    ]
    if not rows:
        return _absent("The card keeps no settings.")
    return (
        '<div class="scroll"><table class="settings"><caption class="hidden">The learner’s settings</caption>'
        "<thead><tr>"
        '<th scope="col">setting</th><th scope="col">value</th><th scope="col">given or default</th>'
        "</tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div>"
    )


def _history(history: Any) -> str:
    """The training curve, where the card kept one: bias, loss and KL by step."""
    steps = [_mapping(h) for h in history or () if isinstance(h, Mapping)] if isinstance(history, Sequence) else []
    out = []
    for name in ("bias", "loss", "kl"):
        points = [
            (float(h["step"]), float(h[name]))
            for h in steps
            if isinstance(h.get("step"), (int, float))
            and isinstance(h.get(name), (int, float))
            and math.isfinite(h[name])
        ]
        if len(points) < 2:
            continue
        thin = points[:: max(1, math.ceil(len(points) / 300))]
        track = Track("steering", tuple(Dot((s, s, s), (v, NAN, NAN)) for s, v in thin))
        from_zero = name != "loss" and min(v for _, v in thin) >= 0
        drawing = figures.panel(
            [track],
            x=Axis("training step"),
            y=Axis(include=(0.0,), floor=0.0) if from_zero else Axis(),
            width=316,
            height=200,
            title={"bias": "Bias in training", "loss": "Loss", "kl": "KL to the base, nats a token"}[name],
            marks=False,
        )
        (first, start), (last, end) = thin[0], thin[-1]
        said = f"{name} over training: from {start:.3g} at step {first:g} to {end:.3g} at step {last:g}"
        out.append(figures.svg(drawing, 316, 200, said))
    return f'<h3>Training</h3><figure><div class="many">{"".join(out)}</div></figure>' if out else ""


# ---------------------------------------------------------------------------------------------------------------
# The README's picture
# ---------------------------------------------------------------------------------------------------------------


def _headline(run: Run, task: Mapping[str, Any], width: float, dark: bool) -> str:
    before = run.get(task, "steering", 0.0, "per_concept_bias")
    after = run.get(task, "steering", run.top, "per_concept_bias")
    if before and after:
        title = f"Per-concept bias: {_text(before.value, 'share')} → {_text(after.value, 'share')}"
        title += f" at strength {_strength(run.top)}"
    else:
        title = "Per-concept bias by strength"
    bias = _tracks(run, task, "per_concept_bias")
    big = ("Per-concept bias", "0 to 1, lower is better", bias, _bias_axis())
    small = [
        (name, note, tracks, axis)
        for metric, name, note, axis in (
            (
                "unambiguous_accuracy",
                "Accuracy on settled answers",
                "%, higher is better",
                Axis(least=20, floor=0, ceiling=100),
            ),
            (
                "perplexity",
                "Perplexity, change",
                "% of the base on neutral text, lower is better",
                Axis(include=(0.0,), least=10, signed=True),
            ),
        )
        if (tracks := _tracks(run, task, metric))
    ]
    split = f", {task['split']} split" if task.get("split") else ""
    n = f", {before.n} items in {before.clusters} wordings" if before and before.n and before.clusters else ""
    subtitle = f"{_last(run.summary.get('model') or 'model')} on {task['name']}{split}{n}"
    arms = [("base", "base")] if 0.0 in run.strengths else []
    if run.top is not None:
        arms.append(("steering", "steering"))
    arms += [("random", "random change, same size")] if run.arm_strengths("random") else []
    arms += [("instruction", "instruction to be fair")] if run.arm_strengths("instruction") else []
    return figures.headline(
        big,
        small,
        title=title,
        subtitle=subtitle,
        footer="Bars and bands: 95 % intervals from a bootstrap over wordings and concepts.",
        strengths=tuple(run.strengths),
        instruction=bool(run.arm_strengths("instruction")),
        arms=arms,
        width=width,
        dark=dark,
        label=_in_words(run, bias, f"{title}, {subtitle}"),
    )


# ---------------------------------------------------------------------------------------------------------------
# Style
# ---------------------------------------------------------------------------------------------------------------


def _css() -> str:
    """Both themes, wide and narrow, screen and paper."""

    def theme(colours: Mapping[str, str]) -> str:
        return "".join(f"--{name}:{value};" for name, value in colours.items())

    return (
        f":root{{color-scheme:light dark;{theme(figures.LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{theme(figures.DARK)}}}}}"
        + figures.style(figures.VARIABLES)
        + f"body,td,th{{font-family:{figures.FONT}}}"
        + _CSS
    )


_CSS = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1060px; padding: 36px 28px 48px; background: var(--paper); color: var(--ink);
  font-size: 15px; line-height: 1.55; -webkit-text-size-adjust: 100% }
h1, h2, h3, .lead, .badge { text-wrap: pretty;
  font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, "DejaVu Serif", serif }
h1 { font-size: 32px; line-height: 1.15; margin: 4px 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere }
h2 { font-size: 22px; line-height: 1.2; margin: 0 0 10px }
h3 { font-size: 17px; margin: 24px 0 8px }
section { padding: 34px 0 6px }
section + section { border-top: 1px solid var(--rule); margin-top: 28px }
p { margin: 0 0 12px; max-width: 76ch }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere }
.kicker { color: var(--soft); font-size: 13px; letter-spacing: .02em; margin: 0 }
.sub { color: var(--soft); margin: 0; overflow-wrap: anywhere }
.fine { color: var(--soft); font-size: 13px }
.absent { color: var(--soft); font-style: italic }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 18px 0 0; padding: 10px 0; font-size: 13.5px;
  border: solid var(--rule); border-width: 1px 0 }
nav a { color: var(--steering); text-decoration: none }
nav a:hover, nav a:focus { text-decoration: underline }
footer { border-top: 1px solid var(--rule); margin-top: 34px; padding-top: 12px; color: var(--soft);
  font-size: 13px }

.verdict { border-left: 5px solid var(--soft); padding: 2px 0 2px 18px; margin: 0 0 20px }
.verdict.good { border-color: var(--good) }
.verdict.mixed { border-color: var(--warn) }
.verdict.bad { border-color: var(--bad) }
.badge { font-size: 21px; font-weight: 700; line-height: 1.25; margin: 0 0 8px }
.badge span { display: inline-block; width: 1.1em }
.good .badge { color: var(--good) }
.mixed .badge { color: var(--warn) }
.bad .badge { color: var(--bad) }
.lead { font-size: 17.5px; line-height: 1.55; margin: 0 0 8px; font-variant-numeric: tabular-nums }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 0 0 18px }
.tile { background: var(--panel); border-radius: 8px; padding: 12px 14px }
.tile p { margin: 0 }
.tile .name { font-size: 13px; color: var(--soft) }
.tile .num { font-size: 22px; font-weight: 650; line-height: 1.4; white-space: nowrap }
.tile .num small { font-size: 13px; font-weight: 400 }
.tile .was, .tile .to { color: var(--soft); font-weight: 400 }
.tile .num, .tile .fine { font-variant-numeric: tabular-nums }
.note { border: 1px solid var(--rule); border-left: 5px solid var(--soft); border-radius: 4px;
  padding: 9px 14px; margin: 0 0 10px }
.note p { margin: 0; max-width: none }
.note.warning { border-color: var(--warn); background: var(--warnback) }
.note.warning strong { color: var(--warn) }

figure { margin: 14px 0 6px }
figcaption { margin-top: 6px }
svg { display: block; max-width: 100% }
svg[role=img] { height: auto }
svg.wide { max-width: none; overflow: visible }
.f-track { fill: var(--rule) }
.f-before { fill: var(--soft) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 18px 24px }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); gap: 20px 22px }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; margin: 4px 0 6px; max-width: none;
  align-items: center }
.legend span { display: inline-flex; align-items: center; gap: 6px }

table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; width: 100% }
th { text-align: left; font-weight: 400 }
td { text-align: right; white-space: nowrap }
thead th { color: var(--soft); font-size: 12.5px; vertical-align: bottom }
.scroll { overflow-x: auto }
.figures th, .figures td { padding: 3px 0 3px 14px; white-space: nowrap }
.figures th:first-child { padding-left: 0 }
.figures thead th:not(:first-child) { text-align: right; white-space: normal }
.figures tbody th svg { display: inline-block; vertical-align: -3px; margin-right: 8px; max-width: none }
.figures th[scope=row] { position: sticky; left: 0; background: var(--paper) }
.figures tr:not(.group) > * { border-top: 1px solid var(--rule) }
.figures thead tr > * { border: 0 }
.figures .group th { padding-top: 18px; font-weight: 650 }
.figures .group span { font-weight: 400; color: var(--soft); margin-left: 8px }
.dumbbell th, .dumbbell td { padding: 0 }
.dumbbell td:not(.draw), .dumbbell thead th:nth-child(n+3) { width: 66px; text-align: right }
.dumbbell th:first-child { width: 1%; white-space: nowrap; padding-right: 22px }
.dumbbell .draw { padding-right: 10px }
.dumbbell tbody { line-height: 19px }
.ends { display: flex; justify-content: space-between }
.settings { width: auto }
.settings th, .settings td { text-align: left; padding: 3px 28px 3px 0; border-top: 1px solid var(--rule);
  white-space: normal; overflow-wrap: anywhere }
.settings thead th { border-top: 0 }

.prompt { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 8px; max-width: none; font-weight: 550 }
.who { font-size: 12.5px; color: var(--soft); margin: 0 0 3px; display: flex; align-items: center; gap: 6px }
.sample { border-top: 1px solid var(--rule); padding: 14px 0 8px }
.cells { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(210px, 100%), 1fr)); gap: 12px 22px }
.said, .same { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px }
.same { color: var(--soft); font-style: italic }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 14px;
  margin: 0 0 18px }
.item { background: var(--panel); border-radius: 8px; padding: 12px 14px; min-width: 0 }
.item .prompt { font-size: 14px }
.item td, .item th { padding: 2px 0 }
.item .draw { width: 26%; padding-left: 12px }
.item td:not(.draw) { width: 46px }
.item thead th[colspan] { padding-left: 12px }
.item tbody th { overflow-wrap: anywhere; line-height: 1.3 }
.role { color: var(--soft); font-size: 12px }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 5px 22px; margin: 0 0 12px;
  font-size: 14px }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere; max-width: 80ch }
.defs { gap: 12px 22px; grid-template-columns: 200px 1fr }
.defs dt { color: var(--ink); font-weight: 600 }

@media (max-width: 720px) {
  body { padding: 22px 16px 36px }
  h1 { font-size: 26px }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px }
  .tile { padding: 10px }
  .tile .num { font-size: 18px }
  .lead { font-size: 16.5px }
  dl, .defs { display: block }
  dd { margin: 0 0 9px }
  .dumbbell td:not(.draw), .dumbbell thead th:nth-child(n+3) { width: 54px; padding-left: 8px }
  .dumbbell th:first-child { padding-right: 10px }
  .figures { font-size: 12.5px }
}
@media print {
  nav { display: none }
  body { max-width: none; padding: 0; font-size: 12px }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  p, figure, .item, .sample, .note, .tile, .figures tbody { break-inside: avoid }
  h2, h3, section > p:not(.fine) { break-after: avoid }
  .pair, .items { grid-template-columns: 1fr 1fr }
  .many { grid-template-columns: repeat(3, 1fr) }
  .scroll { overflow: visible }
  .lead { font-size: 14px }
}
"""
