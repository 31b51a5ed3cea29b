"""What a person sees in a terminal: a progress line, tables of figures, completions side by side, a steering's card."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.types import BASELINES

if TYPE_CHECKING:
    from trimtab.evaluate import Evaluation
    from trimtab.frontier import OperatingPoint, Point
    from trimtab.steering import Steering
    from trimtab.types import Estimate, Progress


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[Progress], None]]:
    """A progress line on standard error: redrawn on a terminal, now and then elsewhere."""
    live = sys.stderr.isatty()
    last: tuple[float, str] = (0.0, "")

    def draw(p: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        whole = p.done >= p.total
        if not whole and p.stage == last[1] and now - last[0] < (0.1 if live else 10.0):
            return
        last = now, p.stage
        figures = "  ".join(f"{k} {v:.3g}" for k, v in p.figures if not k.startswith("validation_") or whole)
        left = f"  {p.seconds_left:.0f} s left" if p.seconds_left is not None and not whole else ""
        filled = int(24 * p.done / max(1, p.total))
        line = f"{p.stage:16} [{'#' * filled}{'.' * (24 - filled)}] {p.done}/{p.total}{left}  {figures}"
        if live:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + line[:width], end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        if live and last[1]:
            print(file=sys.stderr)


SHOWN = (
    "per_concept_bias", "stereotype_gap", "neither_rate", "unambiguous_accuracy", "unambiguous_accuracy_choice",
    "ambiguous_accuracy_choice", "s_amb_choice", "s_dis_choice", "accuracy_pro_choice", "accuracy_anti_choice",
    "accuracy_gap_choice", "settled_bias", "gender_bias", "skin_bias", "group_bias", "gender_gap", "skin_gap",
    "crows_score", "lms", "ss", "icat", "position_effect", "position_spread", "option_mass", "unparsed_rate",
    "perplexity", "kl",
)  # fmt: skip


PERCENT = ("crows_score", "lms", "ss", "icat")
"""Figures from 0 to 100."""


def table(found: Evaluation, sink: Any) -> None:
    """Print figures as rows, arms and strengths as columns, one table a task."""
    for task in dict.fromkeys(r["task"] for r in found.results):
        rows = [r for r in found.results if r["task"] == task]
        arms = list(dict.fromkeys((r["steering"], r["strength"]) for r in rows))

        def label(arm: tuple[str, float]) -> str:
            name, strength = arm
            if name in ("instruction", *BASELINES):
                return name
            if strength == 0:
                return "base"
            return f"random {strength:g}" if name == "random" else f"w={strength:g}"

        own = [r for r in rows if r["metric"].removesuffix("_difference") not in ("perplexity", "kl")]
        items = max(own, key=lambda r: r["n"], default=rows[0])
        print(f"\n{task}, split {rows[0]['split']}: {items['n']} items in {items['clusters']} clusters", file=sink)
        cells = {(r["metric"], r["steering"], r["strength"]): r for r in rows}
        for start in range(0, len(arms), 5):
            some = arms[start : start + 5]
            print(f"{'':28}" + "".join(f"{label(a):>24}" for a in some), file=sink)
            for metric in SHOWN:
                if any((metric, *a) in cells for a in some):
                    line = "".join(f"{_cell(cells.get((metric, *a))):>24}" for a in some)
                    print(f"{metric:28}{line}", file=sink)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or math.isnan(row["value"]):
        return "-"
    large = max(abs(row["value"]), abs(row["high"])) >= 1000
    digits = 0 if large else 2 if row["metric"] in ("perplexity", *PERCENT) else 4 if row["metric"] == "kl" else 3
    value = f"{row['value']:.{digits}f}"
    return value if math.isnan(row["low"]) else f"{value} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def frontier(
    found: Sequence[Point], bias: tuple[str, str], capability: tuple[str, str], worst: float, sink: Any
) -> None:
    """Print bias against capability, method by method, and the area under each method's frontier."""
    from trimtab.frontier import BASE, area, dominated

    print(f"bias: {bias[1]} of {bias[0]} (its size); capability: {capability[1]} of {capability[0]}", file=sink)
    print(f"{'method':28}{'strength':>9}{'bias':>24}{'capability':>24}{'lost':>26}", file=sink)
    for point, beaten in zip(found, dominated(found), strict=True):
        cells = [_estimate(e) for e in (point.bias, point.capability, point.loss)]
        mark = "  dominated" if beaten else ""
        print(f"{point.method:28}{point.strength:>9g}{cells[0]:>24}{cells[1]:>24}{cells[2]:>26}{mark}", file=sink)
    scale = 1.0 if capability[1] in PERCENT else 0.01
    for method in dict.fromkeys(p.method for p in found if p.method != BASE):
        share = area([p for p in found if p.method in (BASE, method)], worst=worst * scale)
        print(f"area, loss up to {worst:g} points: {method} {_estimate(share)}", file=sink)


def operating_point(best: OperatingPoint, sink: Any) -> None:
    """Say which strength to use, up to where it is safe, and why not further."""
    low, high = best.safe
    print(
        f"strength to use: {best.strength:g} (safe: {low:g} to {high:g}); {best.figure} of {best.task} in size "
        f"{_estimate(best.base)} at 0, {_estimate(best.bias)} there",
        file=sink,
    )
    for words, losses in (("lost there", best.losses), ("beyond", best.beyond)):
        for loss in losses:
            kept = "kept" if loss.kept else "not shown to be kept"
            lost = f"{loss.value:.4f}, with 95 % confidence at most {loss.bound:.4f}"
            print(f"  {words}, at {loss.strength:g}: {lost}; floor {loss.floor} {kept}", file=sink)
    for warning in best.warnings:
        print(f"  note: {warning}", file=sink)


def _estimate(e: Estimate) -> str:
    digits = 2 if abs(e.value) >= 10 else 3
    return f"{e.value:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def side_by_side(prompts: Sequence[str], base: Sequence[str], steered: Sequence[str], label: str) -> None:
    """Print completions of the base left and steered ones right, under a label."""
    width = max(24, (min(shutil.get_terminal_size((100, 24)).columns, 120) - 3) // 2)
    for prompt, left, right in zip(prompts, base, steered, strict=True):
        print(f"{prompt} ...")
        columns = [textwrap.wrap(" ".join(t.split()), width) or [""] for t in (left, right)]
        print(f"  {'base':{width}} | {label}")
        for n in range(max(map(len, columns))):
            a, b = (c[n] if n < len(c) else "" for c in columns)
            print(f"  {a:{width}} | {b}")


def card(steering: Steering, folder: Path) -> None:
    """Print what a steering is, for a person."""
    said = steering.card
    strength, made = said.get("strength", {}), said.get("model", {})
    low, high = steering.trained_range
    print(f"{folder}: a steering of {len(steering.interventions)} sites, {steering.numbers():,} numbers")
    print(f"  operation    {said.get('operation', 'not stated')}")
    members = said.get("members", ())
    if members:
        how = said.get("settings", {}).get("given", {})
        print(f"  made by      {said.get('learner')}, {', '.join(f'{k}={v}' for k, v in how.items())}")
    else:
        print(f"  learner      {said.get('learner')}, seed {said.get('seed')}")
    print(f"  model        {made.get('id')} ({made.get('family')}), weights {str(made.get('fingerprint'))[:12]}")
    safe = strength.get("safe")
    shown = f"{safe[0]:g} to {safe[1]:g}" if safe else "not measured"
    print(f"  strength     trained {low:g} to {high:g}, safe {shown}, default {strength.get('default', 1.0):g}")
    for member in members:
        told = f"strength {member['strength']:g}, {member.get('learner')}, digest {member['digest'][:12]}"
        print(f"  member       {member['name']}: {told}")
    if not members:
        _learned(said)
    neurons = said.get("neurons", {})
    if neurons:
        print(f"  neurons      {neurons['steered']:,} steered, {100 * neurons['surviving_share']:.0f} % of them not 0")
    results = [r for r in said.get("results", ()) if r["metric"] in SHOWN]
    if results:
        print(f"  results on the {results[0]['split']} split of {results[0]['task']}:")
        for metric in SHOWN:
            line = [f"{r['strength']:g}: {_cell(r)}" for r in results if r["metric"] == metric]
            if line:
                print(f"    {metric:28} {'   '.join(line)}")
    print(
        textwrap.fill(f"limits: {said.get('limits', 'not stated')}", 110, initial_indent="  ", subsequent_indent="  ")
    )
    print(f"  licence: {said.get('licence', 'not stated')}")


def _learned(said: Mapping[str, Any]) -> None:
    """The lines about data and settings of a learner's card."""
    data = said.get("data", {})
    made_of, count = data.get("task", "(own items)"), f"{data.get('items')} items"
    if "contrast" in data:
        made_of, both = data["contrast"], (data["positive"], data["negative"])
        count = f"{both[0]} pairs" if data.get("paired") else f"{both[0]} positive and {both[1]} negative texts"
    print(f"  data         {made_of}, {count}, digest {str(data.get('digest'))[:12]}")
    given = said.get("settings", {}).get("given", {})
    print(f"  settings     {', '.join(f'{k}={v}' for k, v in given.items()) or 'all by default'}")
