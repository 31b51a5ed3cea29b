"""A finished run as one HTML file: what changed, what it cost, and what to distrust.

    run folder  ->  verdict.Run and its Verdict  ->  figures, tables  ->  HTML

What the run holds and what its numbers say is verdict.py's business; this room sets it on a page. The page loads
nothing (a content security policy says so to the browser), runs no script, and is the same bytes for the same run:
it carries no date and no path.
"""

# ruff: noqa: RUF001  (a minus sign is meant where one stands: figures are set, not typed)
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from trimtab import figures, gallery, metrics
from trimtab.errors import NotFound, UsageError
from trimtab.figures import Axis, Dot, Span, Track
from trimtab.runs import write_whole
from trimtab.types import BASELINES, CONTROLS, Estimate, Record
from trimtab.verdict import (
    BY_KEY,
    CAPABILITY,
    CHOICE,
    DIFFERENCE,
    FIGURES,
    NAN,
    NEUTRAL,
    Figure,
    Run,
    as_strength,
    as_text,
    judge,
    mapping,
    read,
    read_summary,
    summarised,
    with_interval,
)

CONCEPTS, WORST = 60, 40
"""Up to so many concepts are all shown; of more, the worst so many."""
SAMPLES, CHANGED, BROKEN = 6, 6, 2


# ---------------------------------------------------------------------------------------------------------------
# What callers use
# ---------------------------------------------------------------------------------------------------------------


def render(run: Path) -> str:
    """The report of a finished run as HTML.

    Raises NotFound where the folder or one of its files is missing, RunError (naming the line) where one is damaged.
    A partial last line of records.jsonl, as an interrupted run leaves it, is ignored.
    """
    return _page(read(Path(run)))


def write(run: Path, out: Path) -> Path:
    """Write the report of a run; `out` is replaced whole or not at all.

    Raises as `render`, NotFound where the folder to write into does not exist, and RunError where the disk is full.
    """
    page, out = render(run), Path(out)
    if not out.parent.is_dir():
        raise NotFound(f"no folder {out.parent} to write {out.name} into; create it or choose another --out")
    write_whole(out, page.encode())
    return out


def headline_svg(summary_or_run: Mapping[str, Any] | Path, *, width: float = 860, dark: bool = False) -> str:
    """One picture of a run, for a README: the bias over strength, beside accuracy and perplexity.

    Takes the content of summary.json or a run folder (its records are not read). Shows the first task. The file
    needs nothing else; ask for it twice, light and dark, to follow a reader's theme. Raises as `render`.
    """
    if isinstance(summary_or_run, Mapping):
        run = summarised(summary_or_run, "summary")
    else:
        run = summarised(read_summary(Path(summary_or_run)), "summary.json")
    if not run.tasks:
        raise UsageError("the summary has no task, so there is nothing to draw; run `trimtab eval` with a --task")
    return _headline(run, run.tasks[0], width, dark)


# ---------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------

_SECTIONS = (
    ("verdict", "Verdict"),
    ("frontier", "Bias against capability"),
    ("dial", "The dial"),
    ("pictures", "Pictures"),
    ("concepts", "By concept"),
    ("reliability", "How far to trust it"),
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
        "pictures": _each(run, gallery.html) if gallery.shows_pictures(run) else "",
        "concepts": _each(run, _concepts_html),
        "reliability": _each(run, _reliability_html),
        "table": _each(run, _table_html),
        "samples": _samples_html(run),
        "items": _each(run, _items_html),
        "method": _method_html(run),
    }
    shown = [(key, name) for key, name in _SECTIONS if bodies[key]]
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, name in shown)
    sections = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{name}</h2>{bodies[key]}</section>'
        for key, name in shown
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
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}: trimtab report</title>'
        f'<style>{_css()}</style></head><body><header><p class="kicker">{kicker}</p>'
        f'<h1>{escape(title)}</h1><p class="sub">Model {escape(str(model))}'
        + (f", steering {escape(str(steering))}" if steering else "")
        + (f". Measured on {tasks}." if tasks else ". No task was measured.")
        + f'</p></header><nav aria-label="Contents">{nav}</nav><main>{sections}</main>'
        f"<footer><p>Made by trimtab {escape(str(run.summary.get('trimtab') or ''))} from the records of one run. This "
        "file loads nothing from the network and runs no script.</p></footer></body></html>\n"
    )


def _arm_name(run: Run, arm: str, strength: float | None, *, long: bool = False) -> str:
    if arm == "instruction":
        return "Instruction to be fair" if long else "instruction"
    if arm == "self-debias":
        return "Self-Debias" if long else "self-debias"
    if arm == "random":
        return f"Random change, strength {as_strength(strength)}" if long else f"random, {as_strength(strength)}"
    if strength == 0:
        return "Base, strength 0" if long else "base"
    return f"Strength {as_strength(strength)}"


def _span(e: Estimate, scale: float = 1) -> Span:
    return (e.value * scale, e.low * scale, e.high * scale)


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
    verdict = judge(run, task)
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
    """The four figures that belong together, base beside steered; those that the task has."""
    out: list[str] = []
    headline = run.headline(task) or BY_KEY["per_concept_bias"]
    for metric, name, unit, suffix in (
        (headline.key, headline.name, headline.unit, ""),
        (CAPABILITY, "Accuracy, settled items", "percent", "%"),
        ("perplexity", "Perplexity", "plain", ""),
        ("neither_rate", "Neither rate", "percent", "%"),
    ):
        a, b = run.get(task, "steering", 0.0, metric), run.get(task, "steering", run.top, metric)
        nothing = a is None and b is None
        if nothing and (out or run.get(task, "steering", 0.0, CAPABILITY) is not None):
            continue
        tail = f"<small>\u202f{suffix}</small>" if suffix else ""
        was = as_text(a.value, unit) if a else "–"
        now = as_text(b.value, unit) if b else "–"
        change = run.change(task, "steering", run.top, metric)
        if change is None or not math.isfinite(change.value):
            line = "no difference to state"
        elif metric == "perplexity" and (share := run.relative(task, "steering", run.top, metric)):
            line = with_interval(share, "relative", signed=True, suffix="%")
        else:
            line = with_interval(change, unit, signed=True, suffix="points" if unit == "percent" else "")
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
                on_dial = arm in ("steering", "random")
                x: Span = (strength, strength, strength) if on_dial else (NAN, NAN, NAN)
            else:
                side = figure(arm, strength, across)
                if side is None or not math.isfinite(side.value):
                    continue
                x = _span(side, factor(across))
            unit = "relative" if metric == "perplexity" else BY_KEY[metric].unit
            tip = f"{name}: {with_interval(up, unit, signed=metric == 'perplexity')}"
            # Of a control only the point that the verdict compares has a label: the others crowd around the base.
            named = labels and (arm == "steering" or strength == run.control(arm))
            label = (name if arm != "steering" or strength == 0 else as_strength(strength)) if named else ""
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
    if run.arm_strengths("self-debias"):
        out.append(f"<span>{figures.key('self-debias')}Self-Debias</span>")
    return f'<p class="legend">{"".join(out)}<span class="fine">{bars}: 95 % intervals</span></p>'


def _gutter(run: Run) -> str:
    """What the strip beside a dial is called: arms without a strength stand there."""
    return "asked" if run.arm_strengths("self-debias") else "instr." if run.arm_strengths("instruction") else ""


def _in_words(run: Run, tracks: Sequence[Track], name: str) -> str:
    """What a drawing shows, for a reader who cannot see it."""
    tips = [dot.tip for track in tracks for dot in track.dots]
    return f"{name}. " + ("; ".join(tips) if tips else "No figure available.")


def _bias_axis(scale: float = 1, figure: Figure = BY_KEY["per_concept_bias"]) -> Axis:
    if figure.unit == "points":
        return Axis(include=(figure.even or 0.0,), least=10, floor=0, ceiling=100)
    if figure.key == "per_concept_bias":
        return Axis(include=(0.0,), least=0.1 * scale, floor=0.0, ceiling=1.0 * scale)
    return Axis(include=(0.0,), least=0.1, signed=True)


def _frontier_html(run: Run, task: Mapping[str, Any]) -> str:
    bias = run.headline(task)
    if bias is None:
        return _absent("The task has no figure of bias to draw; what it measures is under All figures.")
    width, height = 450.0, 370.0
    even = f"{bias.even or 0:g}"
    best = "lower" if bias.key == "per_concept_bias" else f"nearer to {even}"
    answers = "lms" if run.get(task, "steering", 0.0, "lms") else "unambiguous_accuracy"
    said = {
        "lms": "language modelling score",
        "unambiguous_accuracy": "accuracy where the text settles the answer, %",
    }[answers]
    panels = (
        (
            answers,
            f"Bias against {'sense' if answers == 'lms' else 'accuracy'}",
            f"{bias.name} (up), {best} and right is better",
            Axis(said, least=10, floor=0, ceiling=100),
        ),
        (
            "perplexity",
            "Bias against fluency",
            f"{bias.name} (up), {best} and left is better",
            Axis("change of perplexity on neutral text, %", include=(0.0,), least=4, signed=True),
        ),
    )
    out = []
    for metric, title, subtitle, axis in panels:
        tracks = _tracks(run, task, bias.key, across=metric, labels=True)
        if not tracks:
            continue
        drawing = figures.panel(
            tracks, x=axis, y=_bias_axis(figure=bias), width=width, height=height, title=title, subtitle=subtitle
        )
        out.append(figures.svg(drawing, width, height, _in_words(run, tracks, title)))
    return (
        "<p>Each point is one setting of the dial. A good change goes straight towards "
        f"{even}: less bias, the same accuracy and "
        "fluency. Numbers at the points are strengths.</p>"
        f'<figure><div class="pair">{"".join(out)}</div><figcaption>{_legend(run)}</figcaption></figure>'
    )


def _panel(run: Run, task: Mapping[str, Any], figure: Figure) -> tuple[str, str, str, Axis]:
    """How a figure that only some tasks have is drawn; by the likeliest answer where it was taken so."""
    chosen = figure.key + CHOICE
    key = chosen if run.get(task, "steering", 0.0, chosen) else figure.key
    if figure.even is not None:
        axis = _bias_axis(figure=figure)
    elif figure.unit == "plain":
        axis = Axis()
    elif figure.unit == "share":
        axis = Axis(include=(0.0,), least=0.1, floor=0, ceiling=1)
    else:
        axis = Axis(least=10, floor=0, ceiling=100)
    percent = "%, " if figure.unit == "percent" else ""
    return key, figure.name, percent + figure.better, axis


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
        (
            "position_spread",
            "Position spread",
            "0 to 1, lower is better",
            Axis(include=(0.0,), least=0.1, floor=0, ceiling=1),
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
    drawn = {metric for metric, *_ in panels}
    panels += tuple(_panel(run, task, f) for f in FIGURES if f.key not in drawn)
    width, height = 316.0, 236.0
    gutter = _gutter(run)
    along = tuple(run.strengths)
    out = []
    left_out = []
    for metric, title, subtitle, axis in panels:
        tracks = _tracks(run, task, metric)
        if not tracks:
            left_out += [title] if metric in drawn else []
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
    text = "<p>Every figure against the strength. Bias should come to even and the rest stay put.</p>"
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
    parts = _parts_html(run, task)
    if lean is None:
        return parts + _absent("No ambiguous item with groups or roles, so there is no lean to draw.")
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
        f"<td>{as_text(a, 'share', signed=signed)}</td><td>{as_text(b, 'share', signed=signed)}</td></tr>"
        for c, a, b in rows
    )
    head = (
        f'<tr><th scope="col">concept</th><th scope="col" class="draw"><div class="ends">{ends}</div>'
        f'{figures.ruler(low, high, ticks, signed)}</th><th scope="col">base</th>'
        f'<th scope="col">at {as_strength(run.top)}</th></tr>'
    )
    text = f"<p>{escape(lean.words[0].upper() + lean.words[1:])}: the ring is the base, the disc strength "
    text += f"{as_strength(run.top)}. "
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
        f"<span>{figures.key('steering')}strength {as_strength(run.top)}</span></p>"
    )
    return (
        f'{parts}{text}<figure>{legend}<div class="scroll"><table class="dumbbell"><caption class="hidden">Lean by '
        f"concept, base and steered</caption><thead>{head}</thead><tbody>{body}</tbody></table></div></figure>"
    )


# ---------------------------------------------------------------------------------------------------------------
# Tables and texts
# ---------------------------------------------------------------------------------------------------------------


def _table_html(run: Run, task: Mapping[str, Any]) -> str:
    arms = [("steering", s) for s in run.strengths]
    arms += [(arm, s) for arm in (*CONTROLS, *BASELINES) for s in run.arm_strengths(arm)]
    known = [(f.key, f.name, f.unit, f.better) for f in BY_KEY.values()]
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
                f"<td>{as_text(e.value, unit)}</td><td>{_cell(e, unit)}</td>"
                + (
                    f"<td>{as_text(d.value, unit, signed=True)}</td><td>{_cell(d, unit, signed=True)}</td>"
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


def _reliability_html(run: Run, task: Mapping[str, Any]) -> str:
    """Of each figure at the base: on how much it rests, how sure it is, and what change this run could have shown."""
    records = run.of(task, "steering", 0.0)
    clusters = sorted({r.template for r in records})
    halves = [
        [r for r in records if r.template in set(some)] for some in (clusters[::2], clusters[1::2]) if len(clusters) > 1
    ]
    rows = []
    for figure in BY_KEY.values():
        e = run.get(task, "steering", 0.0, figure.key)
        if e is None:
            continue
        change = run.change(task, "steering", run.top, figure.key)
        reach = (change.high - change.low) / 2 if change is not None else NAN
        ours = figure.key in metrics.FIGURES and metrics.FIGURES[figure.key].of == "items"
        split = [as_text(metrics.value(figure.key, half), figure.unit) for half in halves] if ours and e.n else []
        rows.append(
            f'<tr><th scope="row">{escape(figure.name)}{", %" if figure.unit == "percent" else ""}</th>'
            f"<td>{e.n or '–'}</td><td>{e.clusters or '–'}</td>"
            f"<td>{as_text(e.n / e.clusters, 'points') if e.clusters else '–'}</td>"
            f"<td>± {as_text((e.high - e.low) / 2, figure.unit)}</td><td>{as_text(reach, figure.unit)}</td>"
            f"<td>{' | '.join(split) or '–'}</td></tr>"
        )
    if not rows:
        return _absent("The run holds no figure for this task.")
    return (
        "<p>What the base's figures rest on. Items that share a wording are not independent, so wordings are what "
        "counts. A change smaller than the smallest that would show is not ruled out by a difference that includes 0. "
        "The halves are the same figure from every other wording: where they disagree by more than the interval, "
        "wordings matter more than their number can say.</p>"
        '<div class="scroll"><table class="figures"><caption class="hidden">Reliability of each figure</caption>'
        '<thead><tr><th scope="col">figure</th><th scope="col">items</th><th scope="col">clusters</th>'
        '<th scope="col">items a cluster</th><th scope="col">95 % interval</th>'
        '<th scope="col">smallest change that would show</th><th scope="col">halves</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _parts_html(run: Run, task: Mapping[str, Any]) -> str:
    """The task's figure of bias on each of its parts, the largest at the base first."""
    bias = run.headline(task)
    parts = run.parts(task) if bias is not None else []
    if bias is None or not parts:
        return ""
    even = bias.even or 0.0
    found = [(p, run.get(p, "steering", 0.0, bias.key), run.get(p, "steering", run.top, bias.key)) for p in parts]
    known = [(p, a, b) for p, a, b in found if a is not None]
    known.sort(key=lambda row: -abs(row[1].value - even))
    rows = "".join(
        f'<tr><th scope="row">{escape(str(p["name"]).partition(":")[2])}</th><td>{with_interval(a, bias.unit)}</td>'
        f"<td>{with_interval(b, bias.unit) if b and run.top is not None else '–'}</td>"
        f"<td>{a.n}</td><td>{a.clusters}</td></tr>"
        for p, a, b in known
    )
    return (
        f'<h4>{escape(bias.name)} by part</h4><div class="scroll"><table class="figures"><caption class="hidden">By '
        'part</caption><thead><tr><th scope="col">part</th><th scope="col">base</th>'
        f'<th scope="col">at {as_strength(run.top)}</th><th scope="col">n</th><th scope="col">clusters</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(e: Estimate, unit: str, *, signed: bool = False) -> str:
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return "–"
    return f"{as_text(e.low, unit, signed=signed)} to {as_text(e.high, unit, signed=signed)}"


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
        f'<td class="draw">{figures.bar(p, "base")}</td><td>{as_text(p, "percent")}</td>'
        f'<td class="draw">{figures.bar(q, "steering")}</td><td>{as_text(q, "percent")}</td></tr>'
        for text, role, p, q in zip(a.options, a.roles, a.p, b.p, strict=True)
    )
    kind = "not settled" if a.ambiguous else "settled"
    return (
        f'<article class="item"><p class="who">{escape(a.concept)} · {kind} · {escape(a.id)}</p>'
        f'<p class="prompt">{escape(a.prompt)}</p><table>'
        '<caption class="hidden">Probability of each answer, %</caption>'
        '<thead><tr><th scope="col">answer</th><th scope="col" colspan="2">base, %</th>'
        f'<th scope="col" colspan="2">at {as_strength(run.top)}, %</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></article>"
    )


# ---------------------------------------------------------------------------------------------------------------
# How it was made
# ---------------------------------------------------------------------------------------------------------------


def _method_html(run: Run) -> str:
    card, summary = run.card, run.summary
    model, data, strength = (mapping(card.get(k)) for k in ("model", "data", "strength"))
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
    out.append(known("seed", summary.get("seed")) + known("strengths", [as_strength(s) for s in run.strengths]))
    for task in run.tasks:
        split = f"{task['split']} split. " if task.get("split") else ""
        out.append(known(f"task {task['name']}", f"{split}{task['division']}" if task.get("division") else None))
    if run.arm_strengths("instruction"):
        out.append(known("instruction", summary.get("instruction")))
    if run.arm_strengths("self-debias"):
        out.append(known("self-debias", summary.get("self_debias")))
    out.append(known("command", summary.get("command"), code=True) + known("trimtab", summary.get("trimtab")))
    out.append("</dl><h3>The steering</h3>")
    if not card:
        why = "The run has no card, so how the steering was learned, on what data and which weights, cannot be said."
        out.append(_absent(why if summary.get("steering") else "The base model alone was run; there is no steering."))
    else:
        sites = list(card.get("sites") or [])  # a saved card keeps an object, site by site
        out.append("<dl>")
        out.append(known("learner", card.get("learner")) + known("operation", card.get("operation"), code=True))
        out.append(known("learned on", model.get("id")) + known("fingerprint", model.get("fingerprint"), code=True))
        out.append(known("sites", f"{len(sites)}: {_some(sites)}" if sites else None))
        ranges = [
            f"{name} {' to '.join(map(_plain, v)) if isinstance(v, list) else _plain(v)}"
            for name, v in strength.items()
        ]
        out.append(known("strength", "; ".join(ranges)))
        members = [mapping(m) for m in card.get("members") or ()]
        if members:
            out.append(known("members", [_member(m) for m in members]))
        else:
            out.append(known("training data", _used(data)))
            out.append(known("data digest", data.get("digest"), code=True) + known("training seed", card.get("seed")))
        out.append(known("licence", card.get("licence")) + known("limits", card.get("limits")))
        out.append("</dl>" + _settings(mapping(card.get("settings"))))
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
        "model, told to be fair.</dd>"
        + (
            "<dt>Self-Debias</dt><dd>The untouched model is shown its own likeliest answer, asked to check it for "
            "stereotypes, and answers again.</dd></dl>"
            if run.arm_strengths("self-debias")
            else "</dl>"
        )
    )
    return "".join(out)


def _used(data: Mapping[str, Any]) -> str:
    """What a steering was learned from, in a few words."""
    used = [
        f"{data['task']}" if data.get("task") else "",
        f"{data['split']} split" if data.get("split") else "",
        f"{data['items']} items" if data.get("items") is not None else "",
        f"contrast {data['contrast']}" if data.get("contrast") else "",
        f"{data['positive']} and {data['negative']} texts" if "positive" in data and "negative" in data else "",
    ]
    return ", ".join(u for u in used if u)


def _member(member: Mapping[str, Any]) -> str:
    """One of several steerings: its name, what made it, its own strength and its digest."""
    made = f"{member.get('name')} ({member.get('learner')}) at {_plain(member.get('strength'))}"
    return f"{made}, digest {str(member.get('digest'))[:12]}"


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
        for name, value in mapping(settings.get(part)).items()
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
    steps = [mapping(h) for h in history or () if isinstance(h, Mapping)] if isinstance(history, Sequence) else []
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
        title = f"Per-concept bias: {as_text(before.value, 'share')} → {as_text(after.value, 'share')}"
        title += f" at strength {as_strength(run.top)}"
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
    arms += [("self-debias", "Self-Debias")] if run.arm_strengths("self-debias") else []
    return figures.headline(
        big,
        small,
        title=title,
        subtitle=subtitle,
        footer="Bars and bands: 95 % intervals from a bootstrap over wordings and concepts.",
        strengths=tuple(run.strengths),
        gutter=_gutter(run),
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

    sheet = "\n" + files("trimtab").joinpath("data/report.css").read_text("utf-8")
    return (
        f":root{{color-scheme:light dark;{theme(figures.LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{theme(figures.DARK)}}}}}"
        + figures.style(figures.VARIABLES)
        + f"body,td,th{{font-family:{figures.FONT}}}"
        + sheet
    )
