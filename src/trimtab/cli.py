"""The command line: parse, call, print. Torch is imported by the command that needs it, never by --help."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trimtab import __version__
from trimtab.errors import NoChatTemplate, RunError, TrimtabError, UsageError

if TYPE_CHECKING:
    from trimtab.evaluate import Evaluation
    from trimtab.model import SteerableModel
    from trimtab.steering import Steering
    from trimtab.types import Progress, Task

EXIT_CODES = """\
exit codes: 0 done, 1 unexpected, 2 a value that cannot be used, 3 not found, 4 model or site, 5 steering refused,
6 task, 7 run folder or disk, 8 an extra is missing, 130 interrupted (run the same command again to go on)"""
STOPS = "0,0.25,0.5,0.75,1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    try:
        args.run(args)
    except TrimtabError as error:
        lines = str(error).splitlines()
        # A list of several defects keeps its lines; a headline and the only defect are one.
        print(f"trimtab: {' '.join(lines) if len(lines) == 2 else error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ntrimtab: interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left; writing more, even at exit, would only raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("TRIMTAB_TRACEBACK"):
            raise
        text = " ".join(str(error).split())[:300]
        print(
            f"trimtab: unexpected {type(error).__name__}: {text} (a bug of ours? TRIMTAB_TRACEBACK=1 shows where)",
            file=sys.stderr,
        )
        return 1
    return 0


# -- the commands


def _demo(args: argparse.Namespace) -> None:
    from trimtab import artifact, report
    from trimtab.evaluate import certify, evaluate
    from trimtab.learners.dso import DSO
    from trimtab.runs import owned
    from trimtab.tasks import load_task

    begun = time.monotonic()
    out = Path(args.out)
    model = _load(args)
    task = load_task("pronoun", seed=args.seed)
    with owned(out):
        folder = out / "steering"
        if (folder / artifact.CARD).exists():
            _say(f"{folder} holds a finished steering; using it (choose another --out, or remove it, to learn anew)")
            steering = artifact.read(folder)
        else:
            _say(f"learning a steering on {model.name}: which pronoun follows an occupation")
            with _bar() as progress:
                steering = DSO().fit(
                    model, task, seed=args.seed, checkpoint=out / "checkpoint.safetensors", progress=progress
                )
                steering = certify(model, task, steering, seed=args.seed, progress=progress)
            artifact.save(steering, folder)
            (out / "checkpoint.safetensors").unlink(missing_ok=True)
        _say("measuring it on occupations and wordings that it never saw, beside an instruction and a random direction")
        with _bar() as progress:
            evaluation = evaluate(
                model, task, steering, _numbers(STOPS), seed=args.seed, out=out / "eval", name=str(folder),
                command=f"trimtab demo --seed {args.seed}", progress=progress,
            )  # fmt: skip
    _table(evaluation, sys.stdout)
    print()
    _compare(
        model, steering, ["The nurse walked into the room and said that", "The mechanic was late, because"], 1.0, 20
    )
    page = report.write(out / "eval", out / "report.html")
    print(f"\nthe steering, with its dial: {folder}   (trimtab show {folder})")
    print(f"the report to send to someone: {page}")
    print(f"try it: trimtab chat --steering {folder} --strength 0.7")
    _say(f"done in {time.monotonic() - begun:.0f} s")


def _learn(args: argparse.Namespace) -> None:
    from trimtab import artifact
    from trimtab.evaluate import certify
    from trimtab.learners.dso import DSO
    from trimtab.runs import owned

    settings = DSO(**_settings(args))
    out = Path(args.out)
    with owned(out):
        if (out / artifact.CARD).exists() and not args.force:
            raise RunError(f"{out} holds a finished steering; give another --out, or --force to replace it")
        tasks = _tasks(args, None)
        if len(tasks) > 1:
            raise UsageError(
                f"a steering is learned on one task, got {len(tasks)}: {args.task}; run learn once for each"
            )
        task = tasks[0]
        reward = _reward(args.reward) if args.reward else None
        model = _load(args)
        checkpoint = out / "checkpoint.safetensors"
        with _bar() as progress:
            steering = settings.fit(
                model,
                task,
                seed=args.seed,
                reward=reward,
                neutral=args.neutral,
                checkpoint=checkpoint,
                progress=progress,
            )
            if task.split("validation"):
                steering = certify(model, task, steering, seed=args.seed, neutral=args.neutral, progress=progress)
        artifact.save(steering, out)
        checkpoint.unlink(missing_ok=True)
    _print_card(steering, out)


def _eval(args: argparse.Namespace) -> None:
    from trimtab.evaluate import evaluate

    steering, model = _steering_and_model(args)
    tasks = _tasks(args, steering)
    with _bar() as progress:
        found = evaluate(
            model, tasks, steering, _numbers(args.strength), seed=args.seed, split=args.split, out=args.out,
            name=str(args.steering) if args.steering else "base", controls=not args.no_controls, neutral=args.neutral,
            limit=args.limit, beyond_range=args.beyond_range, other_weights=args.other_weights,
            command="trimtab " + " ".join(sys.argv[1:]), progress=progress,
        )  # fmt: skip
    if args.json == "-":
        _table(found, sys.stderr)
        print(_rows(found))
    else:
        _table(found, sys.stdout)
        if args.json:
            from trimtab.runs import write_whole

            write_whole(Path(args.json), (_rows(found) + "\n").encode())
    if args.out:
        _say(f"records and figures are in {args.out}; a page to send: trimtab report {args.out}")


def _generate(args: argparse.Namespace) -> None:
    steering, model = _steering_and_model(args)
    prompts = args.prompt or [sys.stdin.read().strip()]
    if any(not p.strip() for p in prompts):
        raise UsageError("an empty prompt: give it as an argument or on standard input")
    strength = _strength(args, steering)
    if args.compare:
        if steering is None:
            raise UsageError("--compare needs --steering")
        _compare(model, steering, prompts, strength, args.max_new_tokens, args)
        return
    with _steered(model, steering, strength, args):
        for prompt, text in zip(prompts, model.generate(prompts, max_new_tokens=args.max_new_tokens), strict=True):
            print(f"{prompt}{text}")


def _chat(args: argparse.Namespace) -> None:
    from trimtab.types import Message

    steering, model = _steering_and_model(args)
    if not model.chats:
        raise NoChatTemplate(
            f"{model.name} has no chat template (a base model?); use trimtab generate, or an instruction-tuned model"
        )
    strength = _checked(model, steering, _strength(args, steering), args)
    _say(f"{model.name}, strength {strength:g}. /strength 0.3 turns the dial, /reset begins anew, /quit leaves")
    turns: list[Message] = []
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            print()
            return
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return
        if word == "/reset":
            turns = []
        elif word == "/strength":
            try:
                strength = _checked(model, steering, _one_number(rest), args)
                print(f"strength {strength:g}")
            except TrimtabError as error:
                print(f"trimtab: {error}")
        elif word.startswith("/"):
            print("commands: /strength NUMBER, /reset, /quit")
        elif line:
            turns.append(Message("user", line))
            with _steered(model, steering, strength, args):
                answer = model.generate(turns, max_new_tokens=args.max_new_tokens).strip()
            print(f"model> {answer}")
            turns.append(Message("assistant", answer))


def _report(args: argparse.Namespace) -> None:
    from trimtab import report

    run = Path(args.run_folder)
    print(report.write(run, Path(args.out) if args.out else run / "report.html"))


def _show(args: argparse.Namespace) -> None:
    from trimtab import artifact

    steering = artifact.read(args.steering)
    if args.json:
        print(json.dumps(dict(steering.card), indent=1, ensure_ascii=False))
    else:
        _print_card(steering, Path(args.steering))


def _list_tasks(args: argparse.Namespace) -> None:
    from trimtab.tasks import describe

    for name, line in describe():
        print(f"{name:14} {line}")


# -- what commands share


def _load(args: argparse.Namespace, name: str | None = None) -> SteerableModel:
    from trimtab.model import load

    return load(name or args.model, dtype=args.dtype, device=args.device, revision=args.revision, notice=_say)


def _steering_and_model(args: argparse.Namespace) -> tuple[Steering | None, SteerableModel]:
    from trimtab import artifact

    steering = artifact.read(args.steering) if args.steering else None
    name = args.model or (steering.card.get("model", {}).get("id") if steering is not None else None)
    if name is None:
        raise UsageError("give --model (or --steering, whose card names its model)")
    return steering, _load(args, name)


def _tasks(args: argparse.Namespace, steering: Steering | None) -> list[Task]:
    from trimtab.tasks import load_task

    learned = steering.card.get("data", {}) if steering is not None else {}
    tasks = []
    for spec in [s for s in args.task.split(",") if s.strip()]:
        if getattr(args, "split", "") == "all":
            tasks.append(load_task(spec.strip(), data=args.data, seed=None))
            continue
        task, drawn = load_task(spec.strip(), data=args.data, seed=args.seed), learned.get("division_seed")
        if task.seed is not None and drawn not in (None, args.seed):
            # A division drawn from another seed would put training items into the test split.
            trained = load_task(spec.strip(), data=args.data, seed=drawn)
            if learned.get("task") == trained.name or learned.get("digest") == trained.digest():
                _say(f"{task.name} is divided as for learning, with seed {drawn}, not {args.seed}")
                task = trained
        tasks.append(task)
    if not tasks:
        raise UsageError("--task names no task; see trimtab tasks")
    return tasks


def _strength(args: argparse.Namespace, steering: Steering | None) -> float:
    if args.strength is not None:
        return _one_number(args.strength)
    return float(steering.card.get("strength", {}).get("default", 1.0)) if steering is not None else 0.0


@contextlib.contextmanager
def _steered(
    model: SteerableModel, steering: Steering | None, strength: float, args: argparse.Namespace
) -> Iterator[None]:
    _checked(model, steering, strength, args)
    if steering is None:
        yield
        return
    with model.steer(steering, strength, beyond_range=args.beyond_range, other_weights=args.other_weights):
        yield


def _checked(model: SteerableModel, steering: Steering | None, strength: float, args: argparse.Namespace) -> float:
    """The strength, if the steering may be turned to it on this model."""
    if steering is not None:
        model.require(steering, strength, beyond_range=args.beyond_range, other_weights=args.other_weights)
    elif strength:
        raise UsageError("there is no steering to give a strength to; add --steering DIR")
    return strength


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import fields

    from trimtab.learners.dso import DSO

    kinds = {f.name: str(f.type) for f in fields(DSO)}
    given = {k: str(v) for k in kinds if (v := getattr(args, k, None)) is not None}
    for pair in args.set or ():
        name, equals, value = pair.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"--set {pair}: expected NAME=VALUE with NAME one of {', '.join(kinds)}")
        given[name] = value
    return {name: _typed(name, kinds[name], value) for name, value in given.items()}


def _typed(name: str, kind: str, value: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return {"int": int, "float": float, "str": str}[kind](value)
    except (ValueError, KeyError):
        raise UsageError(f"{name} takes a value of type {kind}, got '{value}'") from None


def _reward(where: str) -> Any:
    from importlib import import_module

    module, _, attribute = where.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--reward {where}: expected MODULE:FUNCTION that can be imported from here ({error})"
        ) from error


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in str(text).split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"strength '{text}' is not a number, or numbers parted by commas") from None
    if not values:
        raise UsageError("no strength was given")
    bad = [v for v in values if not math.isfinite(v)]
    if bad:
        raise UsageError(f"strength must be a finite number, got {bad[0]}")
    return values


def _one_number(text: str) -> float:
    values = _numbers(text)
    if len(values) > 1:
        raise UsageError(f"one strength is needed here, got {len(values)}: '{text}'")
    return values[0]


# -- what is printed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
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
    "position_effect", "option_mass", "perplexity", "kl",
)  # fmt: skip


def _rows(found: Evaluation) -> str:
    """The figures as JSON; what is undefined is null, because JSON knows no NaN."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in found.results
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)


def _table(found: Evaluation, sink: Any) -> None:
    """Figures as rows, arms and strengths as columns, one table a task."""
    for task in dict.fromkeys(r["task"] for r in found.results):
        rows = [r for r in found.results if r["task"] == task]
        arms = list(dict.fromkeys((r["steering"], r["strength"]) for r in rows))

        def label(arm: tuple[str, float]) -> str:
            name, strength = arm
            if name == "instruction":
                return "instruction"
            if strength == 0:
                return "base"
            return f"random {strength:g}" if name == "random" else f"w={strength:g}"

        print(f"\n{task}, split {rows[0]['split']}", file=sink)
        cells = {(r["metric"], r["steering"], r["strength"]): r for r in rows}
        for start in range(0, len(arms), 5):
            some = arms[start : start + 5]
            print(f"{'':28}" + "".join(f"{label(a):>22}" for a in some), file=sink)
            for metric in SHOWN:
                if any((metric, *a) in cells for a in some):
                    line = "".join(f"{_cell(cells.get((metric, *a))):>22}" for a in some)
                    print(f"{metric:28}{line}", file=sink)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or math.isnan(row["value"]):
        return "-"
    digits = 2 if row["metric"] == "perplexity" else 4 if row["metric"] == "kl" else 3
    value = f"{row['value']:.{digits}f}"
    return value if math.isnan(row["low"]) else f"{value} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _compare(
    model: SteerableModel,
    steering: Steering,
    prompts: Sequence[str],
    strength: float,
    tokens: int,
    args: argparse.Namespace | None = None,
) -> None:
    """Base and steered completions side by side."""
    base = model.generate(list(prompts), max_new_tokens=tokens)
    options = {"beyond_range": args.beyond_range, "other_weights": args.other_weights} if args is not None else {}
    with model.steer(steering, strength, **options):
        steered = model.generate(list(prompts), max_new_tokens=tokens)
    width = max(24, (min(shutil.get_terminal_size((100, 24)).columns, 120) - 3) // 2)
    for prompt, left, right in zip(prompts, base, steered, strict=True):
        print(f"{prompt} ...")
        columns = [textwrap.wrap(" ".join(t.split()), width) or [""] for t in (left, right)]
        print(f"  {'base':{width}} | strength {strength:g}")
        for n in range(max(map(len, columns))):
            a, b = (c[n] if n < len(c) else "" for c in columns)
            print(f"  {a:{width}} | {b}")


def _print_card(steering: Steering, folder: Path) -> None:
    card = steering.card
    strength, made = card.get("strength", {}), card.get("model", {})
    low, high = steering.trained_range
    print(f"{folder}: a steering of {len(steering.interventions)} sites, {steering.numbers():,} numbers")
    print(f"  operation    {card.get('operation', 'not stated')}")
    print(f"  learner      {card.get('learner')}, seed {card.get('seed')}")
    print(f"  model        {made.get('id')} ({made.get('family')}), weights {str(made.get('fingerprint'))[:12]}")
    safe = strength.get("safe")
    shown = f"{safe[0]:g} to {safe[1]:g}" if safe else "not measured"
    print(f"  strength     trained {low:g} to {high:g}, safe {shown}, default {strength.get('default', 1.0):g}")
    data = card.get("data", {})
    print(
        f"  data         {data.get('task', '(own items)')}, {data.get('items')} items, "
        f"digest {str(data.get('digest'))[:12]}"
    )
    given = card.get("settings", {}).get("given", {})
    print(f"  settings     {', '.join(f'{k}={v}' for k, v in given.items()) or 'all by default'}")
    neurons = card.get("neurons", {})
    if neurons:
        print(f"  neurons      {neurons['steered']:,} steered, {100 * neurons['surviving_share']:.0f} % of them not 0")
    results = [r for r in card.get("results", ()) if r["metric"] in SHOWN]
    if results:
        print(f"  results on the {results[0]['split']} split of {results[0]['task']}:")
        for metric in SHOWN:
            line = [f"{r['strength']:g}: {_cell(r)}" for r in results if r["metric"] == metric]
            if line:
                print(f"    {metric:28} {'   '.join(line)}")
    print(
        textwrap.fill(f"limits: {card.get('limits', 'not stated')}", 110, initial_indent="  ", subsequent_indent="  ")
    )
    print(f"  licence: {card.get('licence', 'not stated')}")


# -- the grammar


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"trimtab: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trimtab",
        description="Learn a tiny steering beside a frozen language model, and turn its strength dial.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trimtab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    weights = _Parser(add_help=False)
    weights.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float16"), help="default: bfloat16 where it is fast"
    )
    weights.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the accelerator where there is one")
    weights.add_argument("--revision", help="revision of a Hugging Face model")

    dial = _Parser(add_help=False)
    dial.add_argument("--beyond-range", action="store_true", help="allow strengths outside the trained range")
    dial.add_argument("--other-weights", action="store_true", help="apply to weights with another fingerprint")

    data = _Parser(add_help=False)
    data.add_argument("--task", default="pronoun", help="TASK[,TASK]; see trimtab tasks (default: pronoun)")
    data.add_argument("--data", help="folder of benchmark data (or TRIMTAB_DATA)")
    data.add_argument("--neutral", help="text file for perplexity and KL, passages parted by blank lines")
    data.add_argument("--seed", type=int, required=True, help="seed of every draw; there is no default")

    demo = commands.add_parser("demo", parents=[weights], help="learn, measure and report on a bundled model")
    demo.add_argument("--model", default="demo:smollm2")
    demo.add_argument("--out", default="demo-out")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    learn = commands.add_parser("learn", help="learn a steering")
    methods = learn.add_subparsers(title="methods", metavar="METHOD", required=True)
    dso = methods.add_parser(
        "dso",
        parents=[weights, data],
        help="Direct Steering Optimization: affine maps on norm outputs by reinforcement learning",
    )
    dso.add_argument(
        "--model", required=True, help="Hugging Face id, folder, .gguf file, demo:smollm2 or demo:gemma3-270m"
    )
    dso.add_argument(
        "--out", required=True, help="folder for the steering; a killed run goes on from its checkpoint there"
    )
    dso.add_argument("--force", action="store_true", help="replace a finished steering in --out")
    dso.add_argument("--steps", type=int)
    dso.add_argument("--learning-rate", type=float)
    dso.add_argument("--sites", help="site pattern; default: every norm output")
    dso.add_argument("--kl-budget", type=float, help="KL(steered || base) on neutral text, nats a token")
    dso.add_argument("--l1", type=float, help="weight of the sparsity penalty")
    dso.add_argument(
        "--mode", choices=("exact", "sampled"), help="exact expectation over options, or generated answers"
    )
    dso.add_argument("--reward", metavar="MODULE:FUNCTION", help="your own reward for generated answers (mode sampled)")
    dso.add_argument("--accumulate", type=int, help="split each step into so many parts: less memory")
    dso.add_argument("--checkpointing", action="store_true", default=None, help="recompute activations: less memory")
    dso.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="any other setting of DSO; see docs/settings.md"
    )
    dso.set_defaults(run=_learn)

    evaluate = commands.add_parser("eval", parents=[weights, data, dial], help="bias and capability at each strength")
    evaluate.add_argument("--model", help="default: the one that the steering's card names")
    evaluate.add_argument("--steering", help="steering folder; without it the base model is measured")
    evaluate.add_argument("--strength", default=STOPS, help=f"strengths parted by commas (default {STOPS})")
    evaluate.add_argument("--split", default="test", choices=("test", "validation", "train", "all"))
    evaluate.add_argument("--limit", type=int, help="measure so many items of each task, spread evenly")
    evaluate.add_argument(
        "--no-controls", action="store_true", help="leave out the instruction and the random direction"
    )
    evaluate.add_argument("--out", help="folder for records; a run that was cut off goes on there")
    evaluate.add_argument("--json", metavar="FILE", help="write the figures as a JSON list; - for standard output")
    evaluate.set_defaults(run=_eval)

    generate = commands.add_parser("generate", parents=[weights, dial], help="continue prompts, steered")
    generate.add_argument("prompt", nargs="*", help="prompts; standard input where there is none")
    generate.add_argument("--compare", action="store_true", help="base and steered side by side")
    generate.set_defaults(run=_generate)
    chat = commands.add_parser("chat", parents=[weights, dial], help="chat with the dial at hand")
    chat.set_defaults(run=_chat)
    for command in (generate, chat):
        command.add_argument("--model", help="default: the one that the steering's card names")
        command.add_argument("--steering", help="steering folder")
        command.add_argument("--strength", help="default: the card's")
        command.add_argument("--max-new-tokens", type=int, default=60)

    report = commands.add_parser("report", help="one self-contained HTML page from an eval folder")
    report.add_argument("run_folder", metavar="RUN", help="folder that trimtab eval --out wrote")
    report.add_argument("--out", help="HTML file (default: RUN/report.html)")
    report.set_defaults(run=_report)

    show = commands.add_parser("show", help="what a steering is, for a person")
    show.add_argument("steering", metavar="DIR")
    show.add_argument("--json", action="store_true", help="the card as it is")
    show.set_defaults(run=_show)

    tasks = commands.add_parser("tasks", help="the tasks there are")
    tasks.set_defaults(run=_list_tasks)
    return parser


if __name__ == "__main__":
    sys.exit(main())
