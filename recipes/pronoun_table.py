"""The README's table: DSO on the built-in task, several seeds, unseen occupations and wordings, with both controls.

    python recipes/pronoun_table.py [--model demo:smollm2] [--seeds 0,1,2] [--runs runs] [--readme]

Learns and measures what is not there yet (a run cut off goes on), then prints the table; --readme writes it between the
markers of README.md and draws the picture from the first seed's records.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from trimtab.report import headline_svg

ROOT = Path(__file__).resolve().parents[1]
STOPS = (0.25, 0.5, 0.75, 1.0)
ROWS = {
    "per_concept_bias": "per-concept bias",
    "stereotype_gap": "stereotype gap",
    "neither_rate": "neither rate",
    "unambiguous_accuracy": "unambiguous accuracy, P(correct)",
    "unambiguous_accuracy_choice": "unambiguous accuracy, by choice",
    "perplexity": "perplexity, neutral text",
    "kl": "KL, nats a token",
}


def trimtab(*words: str) -> None:
    """Run one command of the command line; what it says goes to standard error."""
    print("+ trimtab", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "trimtab.cli", *words], check=True, stdout=sys.stderr)


def measured(model: str, seed: int, runs: Path) -> dict[str, Any]:
    """The summary of one seed's evaluation, learned and measured where it is not there yet."""
    folder = runs / f"{model.replace(':', '-')}-seed{seed}"
    steering = folder / "steering"
    if not (steering / "card.json").exists():
        trimtab("learn", "dso", "--model", model, "--task", "pronoun", "--seed", str(seed), "--out", str(steering))
    if not (folder / "eval" / "summary.json").exists():
        out = ("--seed", str(seed), "--out", str(folder / "eval"))
        trimtab("eval", "--steering", str(steering), "--task", "pronoun", *out)
    summary: dict[str, Any] = json.loads((folder / "eval" / "summary.json").read_text())
    return summary


def table(summaries: dict[int, dict[str, Any]], model: str) -> str:
    """Markdown: a block of rows a seed, base, dial stops and controls as columns, value and 95 % interval."""
    columns = [("base", 0.0), *((f"{s:g}", s) for s in STOPS), ("random, 1", 1.0), ("instruction", 1.0)]
    lines = [
        f"`{model}`, test split: occupations and wordings that training never saw; value [95 % interval].",
        "",
        "| seed | figure | " + " | ".join(name for name, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for seed, summary in summaries.items():
        cells = {(r["metric"], arm(r["steering"]), r["strength"]): r for r in summary["results"]}
        for metric, label in ROWS.items():
            row = [shown(cells.get((metric, arm(name), strength)), metric) for name, strength in columns]
            lines.append(f"| {seed} | {label} | " + " | ".join(row) + " |")
        base = cells["per_concept_bias", "steering", 0.0]["value"]
        left = [f"{cells['per_concept_bias', 'steering', s]['value'] / base:.0%}" for s in STOPS]
        lines.append(f"| {seed} | **bias left, share of base** | 100% | " + " | ".join(left) + " | | |")
    return "\n".join(lines)


def arm(name: str) -> str:
    """Which arm a column or a result's steering belongs to."""
    return name.split(",")[0] if name.split(",")[0] in ("random", "instruction") else "steering"


def shown(row: dict[str, Any] | None, metric: str) -> str:
    """A table cell."""
    if row is None:
        return ""
    digits = {"perplexity": 1, "kl": 3}.get(metric, 3)
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--readme", action="store_true", help="write the table and the picture into the README")
    args = parser.parse_args()
    summaries = {seed: measured(args.model, seed, args.runs) for seed in map(int, args.seeds.split(","))}
    text = table(summaries, args.model)
    print(text)
    if args.readme:
        page = ROOT / "README.md"
        before, _, rest = page.read_text().partition("<!-- results:begin -->")
        after = rest.partition("<!-- results:end -->")[2]
        page.write_text(f"{before}<!-- results:begin -->\n{text}\n<!-- results:end -->{after}")
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        first = next(iter(summaries.values()))
        for name, dark in (("headline.svg", False), ("headline-dark.svg", True)):
            (images / name).write_text(headline_svg(first, dark=dark))


if __name__ == "__main__":
    main()
