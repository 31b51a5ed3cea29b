"""The command line: parse, call, print. Torch is imported by the command that needs it, never by --help."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trimtab import __version__, learners, terminal
from trimtab.errors import NoChatTemplate, RunError, TrimtabError, UsageError
from trimtab.types import BASELINES, MODES, PER, POSITIONS

if TYPE_CHECKING:
    from trimtab.ensemble import Member
    from trimtab.evaluate import Evaluation
    from trimtab.model import SteerableModel
    from trimtab.steering import Steering
    from trimtab.types import Picture, Task

EXIT_CODES = """\
exit codes: 0 done, 1 unexpected, 2 a value that cannot be used, 3 not found, 4 model or site, 5 steering refused,
6 task, 7 run folder or disk, 8 an extra is missing, 130 interrupted (run the same command again to go on)"""
WHERE = "which tokens are steered: all, those of words, those at which an image is, or those of words behind one"
STOPS = "0,0.25,0.5,0.75,1"
OBJECTIVES = ("bias", "accuracy", "bias+capability")
SAMPLERS = ("tpe", "nsga2", "random")
"""Of a search; named here as well, because --help may not load what knows them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # Learners of other packages are looked up only where one may be meant: that takes longer than all else here.
    parser = _parser(plugins=(sys.argv[1:] if argv is None else argv)[:1] == ["learn"])
    args, rest = parser.parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    args.words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(args, "rest"):
        args.rest = rest  # another program's arguments
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
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


def _joined(words: Sequence[str]) -> list[str]:
    """`--strength -2:2:0.2` as one word: argparse takes several numbers that begin with a minus for an option."""
    found: list[str] = []
    for word in words:
        ranges = re.fullmatch(r"-[\d.][\d.eE:,+-]*", word) and ("," in word or ":" in word)
        if ranges and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


# -- the commands


@dataclass(frozen=True)
class Show:
    """What a demo learns and measures, and in what words it says so."""

    model: str
    out: str
    """The folder where none is named."""
    tasks: tuple[str, ...]
    """The first is learned on; all are measured."""
    about: str
    unseen: str
    prompts: tuple[str, ...] = ()
    few: Mapping[str, int] = field(default_factory=dict)
    """Of these tasks less is measured: so many templates a concept, and of those the open questions, if it has any."""
    keep: tuple[str, ...] = ()
    """Tasks whose settled questions are kept right meanwhile."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of DSO, where they are not its defaults."""


WORDS = Show(
    "demo:smollm2",
    "demo-out",
    ("pronoun",),
    "which pronoun follows an occupation",
    "occupations and wordings",
    ("The nurse walked into the room and said that", "The mechanic was late, because"),
)
PICTURES = Show(
    "demo:roomworld",
    "demo-vision-out",
    ("who-is", "occupation", "roomworld"),
    "which person in the picture is the doctor, the builder, ...",
    "occupations, rooms and wordings",
    few={"occupation": 2, "roomworld": 2},
    # Few occupations to learn from: what is settled about others is lost soonest, above all where somebody else has one
    # of the two cues. So the guard weighs more, and sees clear scenes of three people as well.
    keep=("roomworld", "roomworld:side+person", "who-is:groups"),
    # A small model: its affine maps have to go further, and its passages are short enough to be read whole. What these
    # were chosen on, and what they give: README, recipes/vision_table.py.
    settings={
        "learning_rate": 0.006,
        "steps": 300,
        "kl_tokens": 64,
        "l1": 0.0002,
        "positions": "behind",
        "unambiguous_guard": 12.0,
        "unambiguous_per_step": 60,
    },
)


def _demo(args: argparse.Namespace) -> None:
    from trimtab import artifact, report
    from trimtab.evaluate import certify, evaluate
    from trimtab.learners.dso import DSO
    from trimtab.runs import owned
    from trimtab.tasks import load_task

    begun = time.monotonic()
    show = PICTURES if args.vision else WORDS
    out = Path(args.out or show.out)
    args.model = args.model or show.model
    model = _load(args)
    if args.vision and not model.sees:
        raise UsageError(f"demo --vision: {model.name} is shown no images; give a vision-language model")
    tasks = [_few(load_task(name, seed=args.seed), show.few.get(name)) for name in show.tasks]
    with owned(out):
        folder = out / "steering"
        if (folder / artifact.CARD).exists():
            _say(f"{folder} holds a finished steering; using it (choose another --out, or remove it, to learn anew)")
            steering = artifact.read(folder)
        else:
            _say(f"learning a steering on {model.name}: {show.about}")
            with terminal.progress_line() as progress:
                steering = DSO(**show.settings).fit(
                    model, tasks[0], seed=args.seed, checkpoint=out / "checkpoint.safetensors", progress=progress,
                    keep=[load_task(name, seed=args.seed) for name in show.keep],
                )  # fmt: skip
                steering = certify(model, tasks[0], steering, seed=args.seed, progress=progress)
            artifact.save(steering, folder)
            (out / "checkpoint.safetensors").unlink(missing_ok=True)
        _say(f"measuring it on {show.unseen} that it never saw, beside an instruction and a random direction")
        with terminal.progress_line() as progress:
            evaluation = evaluate(
                model, tasks, steering, _numbers(STOPS), seed=args.seed, out=out / "eval", name=str(folder),
                controls=[1.0], command="trimtab " + " ".join(args.words), progress=progress,
            )  # fmt: skip
    terminal.table(evaluation, sys.stdout)
    print()
    if show.prompts:
        _compare(model, steering, list(show.prompts), 1.0, 20)
    page = report.write(out / "eval", out / "report.html")
    print(f"\nthe steering, with its dial: {folder}   (trimtab show {folder})")
    print(f"the report to send to someone: {page}")
    if show.prompts:
        print(f"try it: trimtab chat --steering {folder} --strength 0.7")
    _say(f"done in {time.monotonic() - begun:.0f} s")


def _few(task: Task, templates: int | None) -> Task:
    """The open test items of the first so many templates of each concept, or all of those where none is open; the task
    itself where no number is named. The division says that there are more."""
    if templates is None:
        return task
    items = [i for i in task.split("test") if i.ambiguous] or task.split("test")
    held: dict[str, dict[str, None]] = {}
    for item in items:
        held.setdefault(item.concept, {})[item.template] = None
    kept = {(c, t) for c, found in held.items() for t in list(found)[:templates]}
    few = tuple(i for i in items if (i.concept, i.template) in kept)
    return replace(task, items=few, division=f"{task.division}; {len(few)} of the test items are measured here")


def _learn(args: argparse.Namespace) -> None:
    from trimtab import artifact, contrasts
    from trimtab.evaluate import certify
    from trimtab.learners import learner
    from trimtab.runs import owned

    kind = learner(args.method)
    settings = kind(**_settings(args, kind))
    positions = getattr(args, "positions", None)  # lora changes weights, which act at all of them
    out = Path(args.out)
    with owned(out):
        if (out / artifact.CARD).exists() and not args.force:
            raise RunError(f"{out} holds a finished steering; give another --out, or --force to replace it")
        task = _one_task(args) if args.task else None
        pairs = [contrasts.load(p, data=args.data, seed=args.seed) for p in getattr(args, "pairs", None) or ()]
        learned_from = contrasts.merged(pairs) if pairs else task
        if learned_from is None:
            raise UsageError(f"{args.method} learns from --pairs or --task; give one of them")
        more: dict[str, Any] = {}
        if args.method in learners.FROM_TASKS:
            more = {"neutral": args.neutral, "keep": [_divided_as_for_learning(s.strip(), args, ()) for s in args.keep]}
        checkpoint = out / "checkpoint.safetensors"
        if args.method == "dso":
            reward = _reward(args.reward) if args.reward else None
            more |= {"reward": reward, "checkpoint": checkpoint}
        model = _load(args)
        if positions in ("image", "behind") and not model.sees:
            raise UsageError(f"--positions {positions}: {model.name} is shown no images; use --positions all")
        with terminal.progress_line() as progress:
            steering = settings.fit(model, learned_from, seed=args.seed, **more, progress=progress)
            if positions is not None:
                steering = steering.at(positions)
            if task is not None and task.split("validation"):
                try:
                    steering = certify(model, task, steering, seed=args.seed, neutral=args.neutral, progress=progress)
                except TrimtabError:
                    artifact.save(steering, out)  # without figures, and not lost
                    raise
        artifact.save(steering, out)
        checkpoint.unlink(missing_ok=True)
    terminal.card(artifact.read(out), out)


def _one_task(args: argparse.Namespace) -> Task:
    tasks = _tasks(args, None)
    if len(tasks) > 1:
        raise UsageError(f"a steering is learned on one task, got {len(tasks)}: {args.task}; run learn once for each")
    return tasks[0]


def _eval(args: argparse.Namespace) -> None:
    from trimtab.evaluate import evaluate, remarks
    from trimtab.team import launch

    if args.processes is not None and "WORLD_SIZE" not in os.environ:
        sys.exit(launch(args.processes, args.words))
    members, model = _members_and_model(args)
    strengths = _numbers(args.strength)
    for strength in strengths if members else ():
        _one_dial(_turned(members, strength), args)  # refuses what is outside a member's range, by its name
    steering = _as_one(members, args)
    tasks = _tasks(args, steering)
    _check_floors(args, [t.name for t in tasks])
    with terminal.progress_line() as progress:
        found = evaluate(
            model, tasks, steering, strengths, seed=args.seed, split=args.split, out=args.out,
            name=" + ".join(args.steering) or "base", controls=not args.no_controls, baselines=args.baseline,
            neutral=args.neutral,
            limit=args.limit, per=args.per, mode=args.mode, beyond_range=args.beyond_range,
            other_weights=args.other_weights, skip_bad=args.skip_bad, command="trimtab " + " ".join(args.words),
            progress=progress,
        )  # fmt: skip
    if not found.results:
        return  # one of several processes, and not the first
    if found.skipped:
        count = "1 item" if len(found.skipped) == 1 else f"{len(found.skipped)} items"
        _say(f"left out {count}, everywhere, which cannot be shown to the model:")
    for skipped in found.skipped:
        _say(f"  {skipped.task}: {skipped.id}: {skipped.reason}")
    for remark in remarks(found, seed=args.seed):
        _say(remark)
    if args.json == "-":
        terminal.table(found, sys.stderr)
        print(_rows(found))
    else:
        terminal.table(found, sys.stdout)
        if args.json:
            from trimtab.runs import write_whole

            write_whole(Path(args.json), (_rows(found) + "\n").encode())
    if args.out:
        _say(f"records and figures are in {args.out}; a page to send: trimtab report {args.out}")
    if args.floor:  # last: what it may refuse must not cost the figures
        _set_strength(args, found, steering)


def _check_floors(args: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Refuse before long work what would be refused after it."""
    from trimtab import frontier

    if args.floor and not args.steering:
        raise UsageError("--floor chooses a steering's strength; give --steering")
    if args.floor and (len(args.steering) > 1 or not Path(args.steering[0]).is_dir()):
        raise UsageError(
            f"--floor writes into one steering's card: give --steering DIR alone, without a strength; got "
            f"{', '.join(args.steering)} (trimtab combine makes one of several)"
        )
    if args.bias:
        _named_figure(args.bias)
    for floor in map(frontier.parse_floor, args.floor):
        if floor.task not in (*tasks, frontier.PERPLEXITY):
            raise UsageError(f"--floor {floor}: {floor.task!r} is not measured here; --task names {', '.join(tasks)}")


def _set_strength(args: argparse.Namespace, found: Evaluation, steering: Steering | None) -> None:
    """The operating point under the floors, told and written into the steering's card."""
    from trimtab import artifact, frontier
    from trimtab.steering import Steering

    assert steering is not None
    bias = _named_figure(args.bias) if args.bias else frontier.bias_of(found.records)
    floors = [frontier.parse_floor(text) for text in args.floor]
    best = frontier.operating_point(found.records, found.texts, floors=floors, bias=bias, seed=args.seed)
    terminal.operating_point(best, sys.stderr)
    strength = {**steering.card.get("strength", {}), "safe": list(best.safe), "default": best.strength}
    chosen = {**best.card(), "split": args.split, "seed": args.seed}
    artifact.save(
        Steering(steering.interventions, {**steering.card, "strength": strength, "operating_point": chosen}),
        args.steering[0],
    )
    low, high = best.safe
    _say(f"{args.steering[0]}: its card now has strength {best.strength:g} as default, {low:g} to {high:g} as safe")


def _frontier(args: argparse.Namespace) -> None:
    from trimtab import frontier, verdict

    folders = [Path(folder) for folder in dict.fromkeys(args.run_folders)]
    plain = len({folder.name for folder in folders}) == len(folders)
    runs = {folder.name if plain else str(folder): verdict.read(folder) for folder in folders}
    first = next(iter(runs.values()))
    single = len(runs) == 1
    records: Any = first.items if single else {label: run.items for label, run in runs.items()}
    texts: Any = first.texts if single else {label: run.texts for label, run in runs.items()}
    bias = _named_figure(args.bias) if args.bias else frontier.bias_of(first.items)
    capability = _named_figure(args.capability) if args.capability else frontier.capability_of(first.items, bias[0])
    found = frontier.points(records, texts, bias=bias, capability=capability, seed=args.seed)
    terminal.frontier(found, bias, capability, args.worst, sys.stdout)
    for label, run in runs.items() if args.floor else ():
        floors = [frontier.parse_floor(text) for text in args.floor]
        best = frontier.operating_point(run.items, run.texts, floors=floors, bias=bias, seed=args.seed)
        print("" if single else f"\n{label}")
        terminal.operating_point(best, sys.stdout)


def _named_figure(text: str) -> tuple[str, str]:
    task, dot, figure = text.rpartition(".")
    if not (dot and task and figure):
        raise UsageError(f"a figure of a task is written TASK.FIGURE, such as pronoun.per_concept_bias; got {text!r}")
    return task, figure


def _search(args: argparse.Namespace) -> None:
    from trimtab import search as searching
    from trimtab.runs import owned
    from trimtab.search import crew, found, space

    if args.workers < 1:
        raise UsageError(f"a search has at least one worker, got {args.workers}")
    task = _one_task(args)
    numbers = space.numbers(args.number) if args.number else space.NUMBERS
    learner_names = tuple(name.strip() for name in args.learner.split(",") if name.strip())
    sources = [
        space.source(spec, numbers=numbers, data=args.data, seed=args.seed) for spec in dict.fromkeys(args.pairs)
    ]
    wanted = space.Space(
        tuple(sources), learner_names, space.strengths(args.strength),
        space.layers(args.layers) if args.layers else None,
        tuple(kind.strip() for kind in args.site.split(",")) if args.site else (), _choices(args.set or ()),
    )  # fmt: skip
    floor = None if args.floor == "none" else _one_number(args.floor) / 100
    job = searching.Job(
        task, wanted, args.objective, args.trials, args.sampler, args.limit, not args.no_prune, floor, seed=args.seed
    )
    searching.reportable(args.test_limit, args.neutral)
    out = Path(args.out)
    where, name = args.storage or out / "study.log", args.study or searching.named(args.model, task, args.objective)
    if args.one_of_several:
        gone = crew.orphaned()
        job.work(_load(args), where, name, wanted=lambda: not gone())
        return
    with owned(out):
        model = _load(args) if args.workers == 1 else None
        with terminal.progress_line() as progress:
            if model is not None:
                job.work(model, where, name, progress=progress)
            else:
                with job.reading(where, name) as notes:
                    code = crew.launch(args.workers, args.words, job.look(notes, progress))
                if code:
                    sys.exit(code)
                model = _load(args)
            best = searching.closed(
                job, model, where, name, out, test_limit=args.test_limit, neutral=args.neutral,
                command="trimtab " + " ".join(args.words), progress=progress,
            )  # fmt: skip
    for line in found.lines(best):
        print(line)
    terminal.table(best.best.test, sys.stdout)
    _say(f"trials are in {out / 'trials.jsonl'}; a page to send: trimtab report {out / 'eval'}")


def _choices(given: Sequence[str]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """LEARNER.NAME=VALUE[,VALUE] as values by learner and name, in the types that the learner's fields state."""
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        learner, dot, setting = name.partition(".")
        if not (equals and dot and setting and values):
            raise UsageError(f"--set {text}: expected LEARNER.NAME=VALUE[,VALUE], such as pca.centred=true,false")
        kinds = {
            f.name: f.type if isinstance(f.type, str) else f.type.__name__ for f in fields(learners.learner(learner))
        }
        if setting not in kinds:
            raise UsageError(f"--set {text}: {learner} has {', '.join(kinds)}")
        typed = [_typed(name, kinds[setting], value) for value in values.split(",")]
        found.setdefault(learner, {})[setting] = tuple(dict.fromkeys(typed))
    return found


def _lm_eval(args: argparse.Namespace) -> None:
    from trimtab.harness import lm_eval

    lm_eval.run(
        args.rest, model=args.model, steering=args.steering,
        strengths=_numbers(args.strength) if args.strength else [_default_strength(args)],
        output=Path(args.output_path) if args.output_path else None, dtype=args.dtype, device=args.device,
        revision=args.revision, beyond_range=args.beyond_range or None, other_weights=args.other_weights or None,
    )  # fmt: skip


def _default_strength(args: argparse.Namespace) -> float:
    from trimtab import artifact, ensemble

    return ensemble.default_strength(artifact.read(args.steering)) if args.steering else 0.0


def _generate(args: argparse.Namespace) -> None:
    members, model = _members_and_model(args)
    prompts = args.prompt or [sys.stdin.read().strip()]
    if any(not p.strip() for p in prompts):
        raise UsageError("an empty prompt: give it as an argument or on standard input")
    if any(not _in_utf8(p) for p in prompts):
        raise UsageError("a prompt is not UTF-8: give it in that encoding")
    turned = _checked(model, _turned(members, _strength(args, members)), args)
    shown = _pictures(args)
    if args.compare:
        steering, strength = _one_dial(turned, args)
        if steering is None:
            raise UsageError("--compare needs --steering, and a strength that is not 0")
        _compare(model, steering, prompts, strength, args.max_new_tokens, args, _told(turned), shown)
        return
    with _steered(model, turned, args):
        texts = model.generate(prompts, max_new_tokens=args.max_new_tokens, images=[shown] * len(prompts))
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt}{text}")


def _in_utf8(text: str) -> bool:
    """Whether it holds no byte that was no UTF-8 where it came from."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _pictures(args: argparse.Namespace) -> list[Picture]:
    """What --image names."""
    from trimtab import pictures

    return [pictures.of_file(path) for path in args.image]


def _chat(args: argparse.Namespace) -> None:
    from trimtab.types import Message

    members, model = _members_and_model(args)
    if not model.chats:
        raise NoChatTemplate(
            f"{model.name} has no chat template (a base model?); use trimtab generate, or an instruction-tuned model"
        )
    turned = _checked(model, _turned(members, _strength(args, members)), args)
    shown = _pictures(args)
    one = "; /strength NAME 0.3 one steering's" if len(members) > 1 else ""
    _say(f"{model.name}, {_told(turned)}. /strength 0.3 turns the dial{one}, /reset begins anew, /quit leaves")
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
                turned = _checked(model, _turned_to(members, turned, rest), args)
                print(_told(turned))
            except TrimtabError as error:
                print(f"trimtab: {error}")
        elif word.startswith("/"):
            print("commands: /strength NUMBER, /reset, /quit")
        elif line:
            asked = [*turns, Message("user", line)]
            try:
                with _steered(model, turned, args):
                    answer = model.generate(asked, max_new_tokens=args.max_new_tokens, images=shown).strip()
            except TrimtabError as error:
                print(f"trimtab: {error}; /reset begins anew")
                continue
            print(f"model> {answer}")
            turns = [*asked, Message("assistant", answer)]


def _combine(args: argparse.Namespace) -> None:
    from trimtab import artifact, ensemble
    from trimtab.runs import owned

    out = Path(args.out)
    with owned(out):
        if (out / artifact.CARD).exists() and not args.force:
            raise RunError(f"{out} holds a finished steering; give another --out, or --force to replace it")
        made = ensemble.combine(_members(args.members), args.how, leave_out=args.leave_out)
        artifact.save(made, out)
    terminal.card(artifact.read(out), out)


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
        terminal.card(steering, Path(args.steering))


def _list_tasks(args: argparse.Namespace) -> None:
    from trimtab.tasks import describe

    for name, line, source in describe():
        print(f"{name:22} {line}\n{'':22} {source}")


def _fetch(args: argparse.Namespace) -> None:
    from trimtab.tasks import hub
    from trimtab.tasks.pins import PINS

    if args.mirror and len(args.names) != 1:
        raise UsageError(f"--from gives one benchmark, got {len(args.names)}; run it once for each")
    for name in args.names:
        hub.folder_name(name)  # an unknown one is refused before the others are fetched
    for name in args.names:
        with terminal.progress_line() as progress:
            found = hub.fetch(name, to=args.to, mirror=args.mirror, force=args.force, progress=progress)
        print(f"{found.folder}: {found.files} file{'s' if found.files > 1 else ''} of {found.origin}, {found.licence}")
        if found.unpinned:
            _say(f"{len(found.unpinned)} of them have no pinned SHA-256: {hub.LOCK} keeps the one that was seen")
        if not found.fresh:
            _say("nothing was fetched: they were there already, and their hashes agree")
    if not args.names:
        for name, pin in PINS.items():
            here = "fetched" if (hub.cache() / name / hub.LOCK).is_file() else "not fetched"
            print(f"{name:14} {here}; {pin.origin}, {pin.licence}")


# -- what commands share


def _load(args: argparse.Namespace, name: str | None = None) -> SteerableModel:
    from trimtab.model import load

    return load(name or args.model, dtype=args.dtype, device=args.device, revision=args.revision, notice=_say)


def _members_and_model(args: argparse.Namespace) -> tuple[list[Member], SteerableModel]:
    """The steerings, each with its own strength, and the model to put them on."""
    members = _members(args.steering, alone_as_it_is=args.strength is not None)
    if args.positions is not None:
        members = [replace(m, steering=m.steering.at(args.positions)) for m in members]
    stated = (m.steering.card.get("model", {}).get("id") for m in members)
    name = args.model or next((i for i in stated if i is not None), None)
    if name is None:
        raise UsageError("give --model (or --steering, whose card names its model)")
    return members, _load(args, name)


def _members(specs: Sequence[str], *, alone_as_it_is: bool = False) -> list[Member]:
    """Steerings as `NAME=DIR@S` names them. S is the card's default where it is not given; of one `alone_as_it_is` 1,
    so that the strength it is turned to is its own."""
    from trimtab import artifact, ensemble

    found = []
    for name, folder, strength in map(ensemble.parse, specs):
        steering = artifact.read(folder)
        if strength is None:
            alone = alone_as_it_is and len(specs) == 1
            strength = 1.0 if alone else ensemble.default_strength(steering)
        found.append(ensemble.Member(name, steering, strength))
    return found


def _as_one(members: Sequence[Member], args: argparse.Namespace) -> Steering | None:
    """One steering for all, each at its own strength where the dial is at 1; one alone is what it was."""
    from trimtab import ensemble

    if len(members) == 1 and members[0].strength == 1:
        return members[0].steering
    return ensemble.together(members, other_weights=args.other_weights) if members else None


def _tasks(args: argparse.Namespace, steering: Steering | None) -> list[Task]:
    from trimtab.tasks import load_task
    from trimtab.verdict import learned_from

    learned = learned_from(steering.card) if steering is not None else []
    tasks = []
    for spec in [s for s in args.task.split(",") if s.strip()]:
        if getattr(args, "split", "") == "all":
            skip = getattr(args, "skip_bad", False)
            tasks.append(load_task(spec.strip(), data=args.data, seed=None, skip_bad=skip))
            continue
        tasks.append(_divided_as_for_learning(spec.strip(), args, learned))
    if not tasks:
        raise UsageError("--task names no task; see trimtab tasks")
    return tasks


def _divided_as_for_learning(spec: str, args: argparse.Namespace, learned: Sequence[Mapping[str, Any]]) -> Task:
    """A task, divided by the seed with which a steering's training items were drawn, where it was learned on it.

    A division drawn from another seed would put training items into the test split.
    """
    from trimtab.tasks import load_task

    skip = getattr(args, "skip_bad", False)
    task = load_task(spec, data=args.data, seed=args.seed, skip_bad=skip)
    if task.seed is None:
        return task
    found = {}
    for data in learned:
        drawn = data.get("division_seed")
        if drawn is not None and drawn not in found:
            trained = task
            if drawn != args.seed:
                trained = load_task(spec, data=args.data, seed=drawn, skip_bad=skip)
            if data.get("task") == trained.name or data.get("digest") == trained.digest():
                found[drawn] = trained
    if len(found) > 1:
        raise UsageError(
            f"the steerings were learned on {task.name} divided with seeds {', '.join(map(str, found))}: no split is "
            "unseen by all of them; learn them with one seed, or measure each alone"
        )
    for drawn, trained in found.items():
        if drawn != args.seed:
            _say(f"{task.name} is divided as for learning, with seed {drawn}, not {args.seed}")
        return trained
    return task


def _strength(args: argparse.Namespace, members: Sequence[Member]) -> float:
    """What multiplies the steerings' own strengths."""
    return _one_number(args.strength) if args.strength is not None else 1.0 if members else 0.0


def _turned(members: Sequence[Member], by: float) -> list[Member]:
    """The steerings at the strengths that a dial at `by` gives them."""
    if by and not members:
        raise UsageError("there is no steering to give a strength to; add --steering DIR")
    return [replace(m, strength=by * m.strength) for m in members]


def _turned_to(members: Sequence[Member], turned: Sequence[Member], words: str) -> list[Member]:
    """The strengths that `/strength` asks for: one number for all, as --strength, or a name and its strength."""
    name, _, number = words.strip().rpartition(" ")
    if not name:
        return _turned(members, _one_number(words))
    if name.strip() not in [m.name for m in members]:
        raise UsageError(f"no steering is called '{name}'; there are {', '.join(m.name for m in members) or 'none'}")
    return [replace(m, strength=_one_number(number)) if m.name == name.strip() else m for m in turned]


def _told(turned: Sequence[Member]) -> str:
    if len(turned) < 2:
        return f"strength {turned[0].strength if turned else 0:g}"
    return "strength " + ", ".join(f"{m.name} {m.strength:g}" for m in turned)


def _one_dial(turned: Sequence[Member], args: argparse.Namespace) -> tuple[Steering | None, float]:
    """One steering and the strength of its dial, for steerings that were turned; none where several are all at 0."""
    from trimtab import ensemble

    if len(turned) == 1:
        return turned[0].steering, turned[0].strength
    if not args.beyond_range:
        ensemble.require(turned)
    if not any(m.strength for m in turned):
        return None, 0.0
    return ensemble.together(turned, other_weights=args.other_weights), 1.0


@contextlib.contextmanager
def _steered(model: SteerableModel, turned: Sequence[Member], args: argparse.Namespace) -> Iterator[None]:
    steering, strength = _one_dial(turned, args)
    if steering is None:
        yield
        return
    with model.steer(steering, strength, beyond_range=args.beyond_range, other_weights=args.other_weights):
        yield


def _checked(model: SteerableModel, turned: list[Member], args: argparse.Namespace) -> list[Member]:
    """The steerings, if they may be turned so on this model."""
    steering, strength = _one_dial(turned, args)
    if steering is not None:
        model.require(steering, strength, beyond_range=args.beyond_range, other_weights=args.other_weights)
    return turned


def _settings(args: argparse.Namespace, learner: Any) -> dict[str, Any]:
    """The settings given, as options of their own or with --set, in the types that the learner's fields state."""
    kinds = {f.name: f.type if isinstance(f.type, str) else f.type.__name__ for f in fields(learner)}
    given = {k: str(v) for k in kinds if (v := getattr(args, k, None)) is not None}
    if getattr(args, "sites", None) is not None and "sites" not in kinds:
        raise UsageError(f"{args.method} has no sites to choose")
    for pair in args.set or ():
        name, equals, value = pair.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"--set {pair}: expected NAME=VALUE with NAME one of {', '.join(kinds)}")
        given[name] = value
    return {name: _typed(name, kinds[name], value) for name, value in given.items()}


def _typed(name: str, kind: str, value: str) -> Any:
    plain, _, other = kind.partition(" | ")
    if other == "None" and value.lower() == "none":
        return None
    try:
        if plain == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return {"int": int, "float": float}.get(plain, str)(value)
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


def _seed(text: str) -> int:
    """A seed, as argparse takes it."""
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"a seed is 0 or more, got {seed}")
    return seed


_seed.__name__ = "seed"  # argparse: invalid seed value


def _one_number(text: str) -> float:
    values = _numbers(text)
    if len(values) > 1:
        raise UsageError(f"one strength is needed here, got {len(values)}: '{text}'")
    return values[0]


# -- what is printed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rows(found: Evaluation) -> str:
    """The figures as JSON; what is undefined is null, because JSON knows no NaN."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in found.results
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)


def _compare(
    model: SteerableModel,
    steering: Steering,
    prompts: Sequence[str],
    strength: float,
    tokens: int,
    args: argparse.Namespace | None = None,
    told: str = "",
    shown: Sequence[Picture] = (),
) -> None:
    """Base and steered completions side by side."""
    images = [shown] * len(prompts)
    base = model.generate(list(prompts), max_new_tokens=tokens, images=images)
    options = {"beyond_range": args.beyond_range, "other_weights": args.other_weights} if args is not None else {}
    with model.steer(steering, strength, **options):
        steered = model.generate(list(prompts), max_new_tokens=tokens, images=images)
    terminal.side_by_side(prompts, base, steered, told or f"strength {strength:g}")


# -- the grammar


def _dso_options(dso: argparse.ArgumentParser) -> None:
    dso.add_argument("--steps", type=int)
    dso.add_argument("--learning-rate", type=float)
    dso.add_argument("--kl-budget", type=float, help="KL(steered || base) on neutral text, nats a token")
    dso.add_argument("--l1", type=float, help="weight of the sparsity penalty")
    dso.add_argument(
        "--mode", choices=("exact", "sampled"), help="exact expectation over options, or generated answers"
    )
    dso.add_argument("--reward", metavar="MODULE:FUNCTION", help="your own reward for generated answers (mode sampled)")
    dso.add_argument("--accumulate", type=int, help="split each step into so many parts: less memory")
    dso.add_argument("--checkpointing", action="store_true", default=None, help="recompute activations: less memory")


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"trimtab: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser(*, plugins: bool = False) -> argparse.ArgumentParser:
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
    data.add_argument("--seed", type=_seed, required=True, help="seed of every draw; there is no default")

    demo = commands.add_parser("demo", parents=[weights], help="learn, measure and report on a bundled model")
    demo.add_argument("--vision", action="store_true", help="which person in a picture is meant, on a model that sees")
    demo.add_argument("--model", help="demo:smollm2, or demo:roomworld with --vision, where none is named")
    demo.add_argument("--out", help="demo-out, or demo-vision-out with --vision, where none is named")
    demo.add_argument("--seed", type=_seed, default=0)
    demo.set_defaults(run=_demo)

    learn = commands.add_parser("learn", help="learn a steering")
    methods = learn.add_subparsers(title="methods", metavar="METHOD", required=True)
    pairs = _Parser(add_help=False)
    pairs.add_argument("--task", help="a task on whose validation items the safe strengths are looked for")
    pairs.add_argument("--data", help="folder of benchmark data (or TRIMTAB_DATA)")
    pairs.add_argument("--neutral", help="text file for perplexity and KL, passages parted by blank lines")
    pairs.add_argument("--seed", type=_seed, required=True, help="seed of every draw; there is no default")
    lines = {name: line for name, (_, line) in learners.BUILT_IN.items()}
    others = {name: f"{point.value} (another package)" for name, point in learners.plugins().items()} if plugins else {}
    for name, line in {**lines, **others}.items():
        method = methods.add_parser(name, parents=[weights, data if name in learners.FROM_TASKS else pairs], help=line)
        method.add_argument(
            "--model", required=True, help="Hugging Face id, folder, .gguf file, demo:smollm2 or demo:gemma3-270m"
        )
        method.add_argument(
            "--out", required=True, help="folder for the steering; a killed run goes on from its checkpoint there"
            if name == "dso" else "folder for the steering",
        )  # fmt: skip
        method.add_argument("--force", action="store_true", help="replace a finished steering in --out")
        if name == "lora":
            method.add_argument("--targets", help="modules to adapt: attention, all-linear, or names parted by commas")
        else:
            method.add_argument("--sites", help="site pattern; default: the learner's own")
            method.add_argument("--positions", choices=POSITIONS, help=WHERE + " (default all)")
        if name == "dso":
            _dso_options(method)
        if name in learners.FROM_TASKS:
            method.add_argument(
                "--keep", metavar="TASK", action="append", default=[], help="a task whose settled questions stay right"
            )
        else:
            method.add_argument(
                "--pairs", metavar="SPEC", action="append", required=name in lines,
                help="items:TASK[@SPLIT][:N], descriptions:AXIS[:STEM][:LIST][:text][:N] or jsonl:PATH; "
                "several are merged",
            )  # fmt: skip
        method.add_argument(
            "--set", action="append", metavar="NAME=VALUE", help="any other setting; see docs/settings.md"
        )
        method.set_defaults(run=_learn, method=name)

    steered = _Parser(add_help=False, parents=[dial])
    steered.add_argument("--positions", choices=POSITIONS, help=WHERE + "; default: what the steering's card says")
    steered.add_argument("--model", help="default: the one that the steering's card names")
    steered.add_argument(
        "--steering", action="append", default=[], metavar="[NAME=]DIR[@S]",
        help="steering folder; several add up, each times its own strength S (default: its card's) times --strength",
    )  # fmt: skip

    evaluate = commands.add_parser(
        "eval", parents=[weights, data, steered], help="bias and capability at each strength"
    )
    evaluate.add_argument("--strength", default=STOPS, help=f"strengths parted by commas (default {STOPS})")
    evaluate.add_argument("--split", default="test", choices=("test", "validation", "train", "all"))
    evaluate.add_argument("--limit", type=int, help="measure so many items of each task, spread evenly")
    evaluate.add_argument(
        "--per", choices=PER, default="option", help="divide an option's log probability by its tokens or bytes"
    )
    evaluate.add_argument(
        "--no-controls", action="store_true", help="leave out the instruction and the random direction"
    )
    evaluate.add_argument(
        "--baseline", action="append", default=[], choices=("instruction", *BASELINES),
        help="measure this as well, at strength 1: Self-Debias lets the model check and revise its own answer",
    )  # fmt: skip
    evaluate.add_argument(
        "--skip-bad", action="store_true",
        help="leave out items whose image cannot be opened, or that the model cannot be shown, and name them, "
        "instead of refusing the run",
    )  # fmt: skip
    evaluate.add_argument("--out", help="folder for records; a run that was cut off goes on there")
    evaluate.add_argument("--json", metavar="FILE", help="write the figures as a JSON list; - for standard output")
    evaluate.add_argument(
        "--mode", choices=MODES, default="likelihood", help="score the options, or generate an answer and read it"
    )
    evaluate.add_argument(
        "--floor", action="append", default=[], metavar="TASK[.FIGURE]=POINTS",
        help="choose the least biased strength that is shown to lose no more than this, and write it into the card",
    )  # fmt: skip
    evaluate.add_argument("--bias", metavar="TASK.FIGURE", help="what --floor makes small; default: of the first task")
    evaluate.add_argument("--processes", type=int, help="share the work among so many processes or GPUs (accelerate)")
    evaluate.set_defaults(run=_eval)

    search = commands.add_parser(
        "search", parents=[weights, data], help="find the recipe, learner, layers and strength with the best figures"
    )
    search.add_argument(
        "--model", required=True, help="Hugging Face id, folder, .gguf file, demo:smollm2 or demo:gemma3-270m"
    )
    search.add_argument(
        "--pairs", metavar="SPEC", action="append", required=True,
        help="items:TASK[:N], descriptions:AXIS[:STEM][:LIST][:text][:N] or jsonl:PATH; what is left out is "
        "searched; repeat",
    )  # fmt: skip
    search.add_argument("--learner", default="caa,pca", help="learners parted by commas (default caa,pca)")
    search.add_argument("--layers", metavar="FIRST-LAST", help="blocks that may be steered, from 0 (default: all)")
    search.add_argument("--site", help="out, norm.mlp_in, ..., parted by commas; default: each learner's own")
    search.add_argument("--strength", default="-2:2:0.2", help="LOW:HIGH:STEP, or one strength (default -2:2:0.2)")
    search.add_argument("--number", metavar="N,N", help="numbers of pairs to choose from (default 32,64,128,256)")
    search.add_argument(
        "--set",
        action="append",
        metavar="LEARNER.NAME=V,V",
        help="a learner's setting; of several values one is chosen",
    )
    search.add_argument("--objective", choices=OBJECTIVES, default="bias+capability")
    search.add_argument(
        "--floor", default="3", metavar="POINTS",
        help="capability that the best may lose, in points; none for no floor (default 3)",
    )  # fmt: skip
    search.add_argument("--trials", type=int, default=50, help="settings to try (default 50)")
    search.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    search.add_argument("--no-prune", action="store_true", help="measure every setting on all items")
    search.add_argument("--limit", type=int, help="validation items, at most")
    search.add_argument("--test-limit", type=int, help="test items of the report, at most")
    search.add_argument("--workers", type=int, default=1, help="processes on this machine")
    search.add_argument(
        "--storage", metavar="URL", help="a database or journal that several machines share (default: OUT/study.log)"
    )
    search.add_argument("--study", metavar="NAME", help="the study's name there (default: model, task and objective)")
    search.add_argument(
        "--out", required=True, help="folder for study, steerings and figures; a search that was cut off goes on there"
    )
    search.add_argument("--one-of-several", action="store_true", help=argparse.SUPPRESS)
    search.set_defaults(run=_search)

    generate = commands.add_parser("generate", parents=[weights, steered], help="continue prompts, steered")
    generate.add_argument("prompt", nargs="*", help="prompts; standard input where there is none")
    generate.add_argument("--compare", action="store_true", help="base and steered side by side")
    generate.set_defaults(run=_generate)
    chat = commands.add_parser("chat", parents=[weights, steered], help="chat with the dial at hand")
    chat.set_defaults(run=_chat)
    for command in (generate, chat):
        command.add_argument("--strength", help="default: the card's; of several steerings 1, each at its own")
        command.add_argument("--max-new-tokens", type=int, default=60)
        command.add_argument(
            "--image", action="append", default=[], metavar="FILE",
            help="a picture to show, at <image> or before all words; several with several --image",
        )  # fmt: skip

    combine = commands.add_parser("combine", help="one steering made of several: their mean or sum")
    combine.add_argument(
        "members", metavar="[NAME=]DIR[@S]", nargs="+",
        help="steering folders; S is the strength it was chosen at (default: its card's)",
    )  # fmt: skip
    combine.add_argument(
        "--how", choices=("mean", "sum", "weighted", "renormalised"), default="mean",
        help="plain mean (default), sum at each one's own strength, mean weighted by strength, or mean with the "
        "members' mean norm",
    )  # fmt: skip
    combine.add_argument("--leave-out", metavar="NAME", help="leave one out, to test on what it was learned from")
    combine.add_argument("--out", required=True, help="folder for the steering")
    combine.add_argument("--force", action="store_true", help="replace a finished steering in --out")
    combine.set_defaults(run=_combine)

    lm_eval = commands.add_parser(
        "lm-eval", parents=[weights, dial], allow_abbrev=False,
        help="any task of lm-evaluation-harness, steered; what is not listed here goes to lm-eval run",
    )  # fmt: skip
    lm_eval.add_argument("--model", help="default: the one that the steering's card names")
    lm_eval.add_argument("--steering", help="steering folder")
    lm_eval.add_argument("--strength", help="strengths parted by commas; default: the card's")
    lm_eval.add_argument("--output_path", help="lm-eval's results; several strengths go to folders strength-S in it")
    lm_eval.set_defaults(run=_lm_eval, rest=[])

    report = commands.add_parser("report", help="one self-contained HTML page from an eval folder")
    report.add_argument("run_folder", metavar="RUN", help="folder that trimtab eval --out wrote")
    report.add_argument("--out", help="HTML file (default: RUN/report.html)")
    report.set_defaults(run=_report)

    frontier = commands.add_parser("frontier", help="bias against capability, from the records of eval folders")
    frontier.add_argument("run_folders", metavar="RUN", nargs="+", help="folders that trimtab eval --out wrote")
    frontier.add_argument("--bias", metavar="TASK.FIGURE", help="default: the bias figure of the first task")
    frontier.add_argument("--capability", metavar="TASK.FIGURE", help="default: the accuracy of that task, by choice")
    frontier.add_argument("--floor", action="append", default=[], metavar="TASK[.FIGURE]=POINTS", help="as for eval")
    frontier.add_argument(
        "--worst", type=float, default=3.0, help="largest loss, in points, under the area (default 3)"
    )
    frontier.add_argument("--seed", type=_seed, required=True, help="seed of the resamples; there is no default")
    frontier.set_defaults(run=_frontier)

    show = commands.add_parser("show", help="what a steering is, for a person")
    show.add_argument("steering", metavar="DIR")
    show.add_argument("--json", action="store_true", help="the card as it is")
    show.set_defaults(run=_show)

    tasks = commands.add_parser("tasks", help="the tasks there are")
    tasks.set_defaults(run=_list_tasks)

    fetch = commands.add_parser("fetch", help="get benchmarks, by pinned commit and SHA-256")
    fetch.add_argument("names", metavar="NAME", nargs="*", help="benchmarks; without one they are listed")
    fetch.add_argument("--to", metavar="FOLDER", help="put them into FOLDER/NAME instead of the cache")
    fetch.add_argument(
        "--from", dest="mirror", metavar="OWNER/REPO@COMMIT", help="your own data set on the Hugging Face hub"
    )
    fetch.add_argument("--force", action="store_true", help="replace what was fetched before")
    fetch.set_defaults(run=_fetch)
    return parser


if __name__ == "__main__":
    sys.exit(main())
