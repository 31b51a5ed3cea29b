"""Steering vectors by search for any model: nine axes, their best vectors, ensembles of them, and merged data.

    recipes/sve_table.sh --model demo:smollm2 [--trials 20] [--items 200] [--style cloze]

The shape of tables 2 to 4 of Siddique et al., "Shifting Perspectives: Steering Vectors for Robust Bias Mitigation in
LLMs", arXiv 2503.05371. For each axis a search (pairs of descriptions, PCA, strength from -2 to 2) for the vector with
the highest accuracy on the axis' BBQ items: its ISV. Blocks are among the paper's, -17 to -5 (scaled to the depth of a
model that has fewer than 32), and are searched. The SVE is the mean of the nine; for a test on an unseen axis it is the
mean of the other eight. "Merged" is one vector of all nine contrasts together.

    nine axes         accuracy on an axis' test items: base, the axis' own ISV, the SVE, and the SVE of the eight others
    all BBQ, MMLU     accuracy of the base, the ISVs (mean of the nine), merged, and the SVE: plain, weighted by
                      strength, and renormalised

Vectors are chosen on validation questions and measured on test questions (bbq:divided); an axis of which the data has
no test questions is left out of everything, and the table says so. MMLU is cloze, which small models can do. The bias
score s_AMB of ambiguous items stands beside each accuracy: accuracy alone says nothing of bias.
Each part is written when it is done; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import trimtab
from trimtab import artifact, contrasts, ensemble
from trimtab.evaluate import Evaluation, evaluate
from trimtab.learners.contrast import PCA
from trimtab.model import SteerableModel
from trimtab.runs import write_whole
from trimtab.search import search
from trimtab.search.space import Space, source
from trimtab.steering import Steering

AXES = {
    "age": "Age", "appearance": "Physical_appearance", "disability": "Disability_status", "gender": "Gender_identity",
    "nationality": "Nationality", "race": "Race_ethnicity", "religion": "Religion", "sexuality": "Sexual_orientation",
    "socioeconomic": "SES",
}  # fmt: skip
"""Axis -> its category of BBQ."""
PAIRS = (100,)
"""Of a recipe: the paper draws 100 to 500."""
RIGHT = ("ambiguous_accuracy_choice", "unambiguous_accuracy_choice")
"""BBQ's accuracy is the mean of both: as many items are ambiguous as not."""
NEUTRAL = "neutral.txt"
"""A few short passages: perplexity is not among the figures here, and our own take as long as all items."""
Figure = dict[str, float]


def layers(model: SteerableModel) -> tuple[int, int]:
    """The paper's blocks, -17 to -5, of models with 32; as large a part of others."""
    blocks = int(model.hf.config.get_text_config().num_hidden_layers)  # type: ignore[operator, union-attr]
    return blocks - round(17 / 32 * blocks), blocks - round(5 / 32 * blocks)


def described(model: SteerableModel, axis: str) -> str:
    """Name of an axis' pairs: chats, or prompts for a model that was never taught to chat."""
    return f"descriptions:{axis}" if model.chats else f"descriptions:{axis}:text"


def on(axis: str, args: argparse.Namespace) -> str:
    """Name of an axis' task."""
    return f"bbq:{args.style}:{AXES[axis]}:divided"


def tested(args: argparse.Namespace) -> list[str]:
    """The axes with questions to choose on and others to measure on: of a category in part there may be none."""
    splits = {axis: trimtab.task(on(axis, args), data=args.data, seed=args.seed).split for axis in AXES}
    return [axis for axis, split in splits.items() if split("validation") and split("test")]


def found(model: SteerableModel, axis: str, args: argparse.Namespace) -> ensemble.Member:
    """The ISV of an axis: the steering with the highest accuracy on validation items, at its strength."""
    folder = args.out / axis
    if not (folder / "eval" / "summary.json").exists():
        space = Space(
            (source(described(model, axis), numbers=PAIRS, seed=args.seed),), ("pca",), layers=layers(model)
        )  # fmt: skip
        task = trimtab.task(on(axis, args), data=args.data, seed=args.seed)
        search(
            model, task, space, seed=args.seed, out=folder, objective="accuracy", trials=args.trials, limit=args.items,
            test_limit=args.items, floor=None, neutral=args.out / NEUTRAL,
        )  # fmt: skip
    steering = artifact.read(folder / "steering")
    return ensemble.Member(axis, steering, ensemble.default_strength(steering))


def merged(model: SteerableModel, members: Sequence[ensemble.Member], args: argparse.Namespace) -> ensemble.Member:
    """One vector of the axes' contrasts together, at the layers and the strength that the ISVs have on average."""
    parts = [contrasts.load(f"{described(model, m.name)}:{PAIRS[0]}", seed=args.seed) for m in members]
    low, high = layers(model)
    steering = PCA(sites=f"layers.{low}-{high}.out").fit(model, contrasts.merged(parts), seed=args.seed)
    return ensemble.Member("merged", steering, statistics.mean(abs(m.strength) for m in members))


def measured(
    model: SteerableModel, task: str, who: ensemble.Member | None, args: argparse.Namespace, base: Evaluation | None
) -> Evaluation:
    """The model under one steering at its strength, or as it is; a base that was measured is not measured again."""
    return evaluate(
        model, trimtab.task(task, data=args.data, seed=args.seed), who.steering if who else None,
        [who.strength] if who else [], seed=args.seed, limit=args.test, controls=False, samples=(), resamples=1000,
        kl=False, base=base, beyond_range=True, neutral=args.out / NEUTRAL,
    )  # fmt: skip


def figure(seen: Evaluation, strength: float) -> Figure:
    """Accuracy, its half width, s_AMB where the task has it, and n, of the whole task at a strength."""
    (whole,) = seen.identity["tasks"]
    rows = {r["metric"]: r for r in seen.results if r["strength"] == strength and r["task"] == whole}
    right = [rows[name] for name in RIGHT if name in rows]
    half = [(r["high"] - r["low"]) / 2 for r in right]
    told: Figure = {
        "accuracy": statistics.mean(r["value"] for r in right),
        # Ambiguous and unambiguous items share templates: the half widths are averaged, as if they moved together.
        "half": statistics.mean(half),
        "n": sum(r["n"] for r in right),
    }
    if "s_amb_choice" in rows:
        told["s_amb"] = rows["s_amb_choice"]["value"]
    return told


def table(units: dict[str, Figure], args: argparse.Namespace) -> str:
    """Markdown: the nine axes, then all of BBQ and MMLU."""

    def cell(key: str) -> str:
        if (unit := units.get(key)) is None:
            return "-"
        bias = f", s_AMB {unit['s_amb']:+.2f}" if "s_amb" in unit else ""
        return f"{100 * unit['accuracy']:.1f} ±{100 * unit['half']:.1f}{bias}"

    lines = [
        f"`{args.model}`, bbq:{args.style}, seed {args.seed}, {args.trials} trials an axis; accuracy in percent, half "
        "width of its 95 % interval; s_AMB of ambiguous items",
        "",
        "| axis | base | its ISV | SVE | SVE without the axis |",
        "|---|---|---|---|---|",
    ]
    there = [a for a in AXES if f"{a}.base" in units]
    lines += [f"| {a} | {' | '.join(cell(f'{a}.{w}') for w in ('base', 'isv', 'sve', 'unseen'))} |" for a in there]
    wide = ("base", "isv", "merged", "sve", "sve-weighted", "sve-renormalised")
    lines += ["", "| | base | ISVs, mean | merged | SVE | SVE, weighted | SVE, renormalised |", "|---" * 7 + "|"]
    lines += [f"| {name} | {' | '.join(cell(f'{key}.{w}') for w in wide)} |" for key, name in WIDE.items()]
    if units and (missing := [a for a in AXES if a not in there]):
        lines += ["", f"Left out, as the data has no test questions of them: {', '.join(missing)}."]
    return "\n".join(lines)


WIDE = {"bbq": "all BBQ", "mmlu": "MMLU"}


def chance(units: dict[str, Figure]) -> str:
    """What is to be said of a base that answers no better than by chance."""
    where = {"bbq": 1 / 3, "mmlu": 1 / 4}
    low = [k for k, p in where.items() if f"{k}.base" in units and _low(units[f"{k}.base"]) <= p]
    axes = [a for a in AXES if f"{a}.base" in units and _low(units[f"{a}.base"]) <= where["bbq"]]
    said = (
        [f"Not shown to be above chance, so neither loss nor repair can be shown: {', '.join([*low, *axes])}."]
        if low or axes
        else []
    )
    return "\n".join(["", *said])


def _low(unit: Figure) -> float:
    return unit["accuracy"] - unit["half"]


def main() -> None:
    """Compute what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument(
        "--style", default="cloze", help="of BBQ: cloze, listed, letters or chat (default: %(default)s)"
    )
    parser.add_argument("--trials", type=int, default=20, help="of each axis' search; the paper has 50")
    parser.add_argument("--items", type=int, default=160, help="validation items of a search")
    parser.add_argument("--test", type=int, default=400, help="test items of a figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/sve-MODEL")
    parser.add_argument("--table", action="store_true", help="print the tables and compute nothing")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"sve-{args.model.replace(':', '-').replace('/', '-')}"
    notes = args.out / "figures.json"
    units: dict[str, Figure] = json.loads(notes.read_text()) if notes.exists() else {}
    settle(args)
    if not args.table:
        compute(units, notes, args)
    print(table(units, args))
    print(chance(units))


def settle(args: argparse.Namespace) -> None:
    """Refuse a folder with figures of other settings; a table is shown under those that its figures have."""
    asked = {name: getattr(args, name) for name in ("model", "style", "trials", "items", "test", "seed")}
    notes = args.out / "settings.json"
    held = json.loads(notes.read_text()) if notes.exists() else asked
    if args.table:
        vars(args).update(held)
    elif differing := [f"{name} {held[name]}, not {value}" for name, value in asked.items() if held[name] != value]:
        raise SystemExit(f"{args.out} holds figures of other settings ({'; '.join(differing)}): give another --out")
    elif not notes.exists():
        write_whole(notes, (json.dumps(asked, indent=1) + "\n").encode())


def compute(units: dict[str, Figure], notes: Path, args: argparse.Namespace) -> None:
    """Fill in the figures that are missing, one after another."""
    begun = time.monotonic()
    model = trimtab.load(args.model)
    passages = (f"The road follows the river for {n} miles, and then it climbs into the hills." for n in range(20))
    write_whole(args.out / NEUTRAL, "\n\n".join(passages).encode())

    bases: dict[str, Evaluation] = {}

    def add(key: str, task: str, who: ensemble.Member | None) -> None:
        if key in units:
            return
        if task not in bases:
            bases[task] = measured(model, task, None, args, None)
        seen = measured(model, task, who, args, bases[task]) if who else bases[task]
        units[key] = figure(seen, who.strength if who else 0.0)
        write_whole(notes, (json.dumps(units, indent=1) + "\n").encode())
        print(f"{(time.monotonic() - begun) / 60:5.1f} min  {key}: {units[key]['accuracy']:.3f}", flush=True)

    members = [found(model, axis, args) for axis in tested(args)]
    made = {
        "sve": ensemble.combine(members), "sve-weighted": ensemble.combine(members, "weighted"),
        "sve-renormalised": ensemble.combine(members, "renormalised"),
    }  # fmt: skip
    ensembles = {name: _member(name, s) for name, s in made.items()}
    for member in members:
        others = _member("unseen", ensemble.combine(members, leave_out=member.name))
        for label, who in (("base", None), ("isv", member), ("sve", ensembles["sve"]), ("unseen", others)):
            add(f"{member.name}.{label}", on(member.name, args), who)
    whole = merged(model, members, args)
    for key, task in (("bbq", f"bbq:{args.style}:divided"), ("mmlu", "mmlu:cloze")):
        for label, who in (("base", None), ("merged", whole), *ensembles.items()):
            add(f"{key}.{label}", task, who)
        for member in members:
            add(f"{key}.isv-{member.name}", task, member)
        each = [units[f"{key}.isv-{member.name}"] for member in members]
        units[f"{key}.isv"] = {name: statistics.mean(u[name] for u in each) for name in each[0]}
        write_whole(notes, (json.dumps(units, indent=1) + "\n").encode())


def _member(name: str, steering: Steering) -> ensemble.Member:
    return ensemble.Member(name, steering, ensemble.default_strength(steering))


if __name__ == "__main__":
    main()
