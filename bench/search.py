"""A search against the way of the paper's code, and extraction against packages, as ratios measured in one run.

    python bench/search.py --data ../shared/data [--dtype float32] [--turns 3] [--theirs 6] [--study 50]
    pip install repeng steering-vectors dialz      for --extraction, in an environment of their own where pins forbid it

The paper's way (Siddique et al., arXiv 2503.05371; ours in the writing): each trial loads the model from disk, learns
the vector by a forward pass a prompt, one prompt at a time, adds alpha v at the outputs of blocks -5 to -17, generates
up to 20 tokens greedily for one item at a time, and reads the letter from the text. It is linear in the items and in
the pairs, so few of each are timed; ours is timed on whole trials, model and items already there, each with texts that
were not read before. Both are given the same items of BBQ (letters, one category), the same pairs, layers and dtype.

Chosen options: the same steering on the same prompts, which end where the letter comes next; the letter that the
paper's way reads from its text against our likeliest option, where it reads one. Before each question stands one with
its answer, in our own words: without it this small model often ends its answer before it begins.

Turns alternate. Seconds are of the wall clock and of the processor (all threads); on a machine that others use
the second are the ones to look at, with --threads 1. Records are appended to bench/records/search.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trimtab
from trimtab import contrasts
from trimtab.learners.contrast import CAA, PCA
from trimtab.model import SteerableModel
from trimtab.search import Job, notebook, space
from trimtab.search.measure import Scorer
from trimtab.search.recall import Recalling
from trimtab.types import Contrast, Item
from trimtab.weights import resolve

TASK = "bbq:letters:Gender_identity:divided"
SHOT = "Question: What colour is the sky on a clear day?\n(A) Green\n(B) Blue\n(C) Red\nAnswer: B\n\n"
LETTER = re.compile(r"\(?\b([A-C])\b\)?")
KNOWN = "ours, texts read before"
Seconds = tuple[float, float]
"""Of the wall clock, and of the processor."""


@contextlib.contextmanager
def timed() -> Iterator[list[Seconds]]:
    found: list[Seconds] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found.append((time.perf_counter() - wall, time.process_time() - cpu))


def median(times: list[Seconds], share: float = 1.0) -> Seconds:
    wall, cpu = zip(*times, strict=True)
    return statistics.median(wall) * share, statistics.median(cpu) * share


# -- the paper's way


def loaded(source: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    hf = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True)
    return hf.eval(), AutoTokenizer.from_pretrained(source, local_files_only=True)


@torch.no_grad()
def their_differences(hf: Any, tokenizer: Any, pairs: list[tuple[str, str]], layers: range) -> dict[int, Tensor]:
    """h+ - h- of the last token, a forward pass a prompt."""
    found: dict[int, list[Tensor]] = {n: [] for n in layers}
    for pair in pairs:
        states = []
        for text in pair:
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            states.append(hf(**ids, output_hidden_states=True).hidden_states)
        for n in layers:
            found[n].append((states[0][n + 1][0, -1] - states[1][n + 1][0, -1]).float())
    return {n: torch.stack(d) for n, d in found.items()}


def their_directions(differences: dict[int, Tensor]) -> dict[int, Tensor]:
    """The first principal component of the centred differences, its sign by majority."""
    found = {}
    for n, d in differences.items():
        u = torch.linalg.svd(d - d.mean(0), full_matrices=False).Vh[0]
        found[n] = u if float((d @ u > 0).float().mean()) >= 0.5 else -u
    return found


@torch.no_grad()
def their_answer(hf: Any, tokenizer: Any, prompt: str, vectors: dict[int, Tensor], alpha: float, tokens: int) -> str:
    """Up to so many tokens, greedily, for one prompt."""

    def adding(v: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (out[0] + (alpha * v).to(out[0].dtype), *out[1:])
            return out + (alpha * v).to(out.dtype)

        return hook

    handles = [hf.model.layers[n].register_forward_hook(adding(v)) for n, v in vectors.items()]
    ids = tokenizer(prompt, return_tensors="pt")
    out = hf.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    for handle in handles:
        handle.remove()
    return str(tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))


# -- trials


def asked(data: str) -> trimtab.Task:
    """The task, each question behind one that is answered."""
    task = trimtab.task(TASK, data=data, seed=0)
    return replace(task, items=tuple(replace(i, prompt=f"{SHOT}{i.prompt}") for i in task.items))


def recipes(pairs: int) -> Iterator[Contrast]:
    """One after another, none with a text of an earlier one."""
    for described in contrasts.axes().values():
        for pair in described:
            yield contrasts.from_descriptions([pair], seed=0, n=pairs)


def trials(args: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """A trial of both ways, part by part, and what both choose."""
    kind = getattr(torch, dtype)
    source, _ = resolve(args.model, kind, lambda text: None)
    model = trimtab.load(args.model, dtype=dtype)
    blocks = len(model.hf.model.layers)  # type: ignore[union-attr, arg-type]
    layers = range(blocks - 17, blocks - 4)
    task = asked(args.data)
    pattern = f"layers.{layers[0]}-{layers[-1]}.out"
    own = Recalling(model, [pattern])
    with timed() as begin:
        scorer = Scorer(
            own, task, "accuracy", seed=0, layers=(layers[0], layers[-1]), limit=args.items, prune=False
        )  # fmt: skip
    made = recipes(args.pairs)
    times: dict[str, list[Seconds]] = {k: [] for k in ("load", "prompt", "item", "fit", "score", "again")}
    steering = None
    for turn in range(args.turns):
        with timed() as t:
            hf, tokenizer = loaded(source, kind)
        times["load"] += t
        contrast = next(made)
        texts = [(model.render(p.prompt), model.render(n.prompt)) for p, n in zip(*_sides(contrast), strict=True)]
        with timed() as t:
            their_directions(their_differences(hf, tokenizer, texts[: args.theirs], layers))
        times["prompt"].append((t[0][0] / args.theirs / 2, t[0][1] / args.theirs / 2))
        with timed() as t:
            steering = PCA(sites=pattern, scale="unit", share=False).fit(own, contrast, seed=0)
        times["fit"] += t
        vectors = {int(s.split(".")[1]): i[0].c for s, i in steering.interventions.items()}
        some = scorer.items[turn * args.theirs : (turn + 1) * args.theirs]
        with timed() as t:
            for item in some:
                their_answer(hf, tokenizer, str(item.prompt), vectors, 1.0, 20)
        times["item"].append((t[0][0] / len(some), t[0][1] / len(some)))
        with timed() as t:
            list(scorer.measured(steering, 1.0))
        times["score"] += t
        with timed() as t:  # the same texts, other layers
            PCA(sites=f"layers.{layers[2]}-{layers[-1]}.out").fit(own, contrast, seed=0)
        times["again"] += t
        del hf
        gc.collect()
    same, read, first = agreement(args, model, scorer, steering, source, kind)
    load, prompt, item, fit, score, again = (median(times[k]) for k in times)
    theirs = tuple(load[k] + 2 * args.pairs * prompt[k] + args.items * item[k] for k in (0, 1))
    ours = tuple(fit[k] + score[k] for k in (0, 1))
    known = tuple(again[k] + score[k] for k in (0, 1))
    found = {
        "bench": "search", "part": "trial", "dtype": dtype, "items": args.items, "pairs": args.pairs,
        "layers": [layers[0], layers[-1]], "theirs, parts": {k: times[k] for k in ("load", "prompt", "item")},
        "ours, parts": {k: times[k] for k in ("fit", "score", "again")}, "ours, begin": begin[0],
        "theirs": theirs, "ours": ours, KNOWN: known,
        "ratio": [a / b for a, b in zip(theirs, ours, strict=True)],
        "ratio, texts read before": [a / b for a, b in zip(theirs, known, strict=True)],
        "same option": same, "letters read": read, "letters first": first,
    }  # fmt: skip
    wall, cpu = found["ratio"]
    print(
        f"trial, {dtype}, {args.items} items, {args.pairs} pairs: paper's way over ours {wall:.1f} (wall), {cpu:.1f} "
        f"(processor); with texts read before {found['ratio, texts read before'][0]:.1f}, "
        f"{found['ratio, texts read before'][1]:.1f}; same option on {same} of {read} items with a letter "
        f"({first} of {args.agree} begin with it)",
        flush=True,
    )
    return [found]


def _sides(contrast: Contrast) -> tuple[Any, Any]:
    return contrast.positive, contrast.negative


def agreement(
    args: argparse.Namespace, model: SteerableModel, scorer: Scorer, steering: Any, source: str, kind: torch.dtype
) -> tuple[int, int, int]:
    """On how many items both choose the same option, of how many with a letter, and how many answers begin with it."""
    if not args.agree:
        return 0, 0, 0
    hf, tokenizer = loaded(source, kind)
    vectors = {int(s.split(".")[1]): i[0].c for s, i in steering.interventions.items()}
    some: list[Item] = scorer.items[: args.agree]
    with model.steer(steering, 1.0):
        ours = [max(range(3), key=o.p.__getitem__) for o in model.score(some)]
    same = read = first = 0
    for item, mine in zip(some, ours, strict=True):
        said = their_answer(hf, tokenizer, str(item.prompt), vectors, 1.0, 4)
        match = LETTER.search(said)
        if match is None:
            continue
        read += 1
        first += said.strip().startswith(match[1])
        same += [o.text for o in item.options].index(match[1]) == mine
    return same, read, first


# -- a whole study


def study(args: argparse.Namespace, dtype: str, trial: dict[str, Any], theirs: Seconds) -> list[dict[str, Any]]:
    """A pruned study with everything that belongs to it, against as many trials of the paper's way, in float32."""
    model = trimtab.load(args.model, dtype=dtype)
    task = asked(args.data)
    sources = (space.source("descriptions:gender", numbers=(args.pairs,), seed=0),)
    low, high = trial["layers"]
    job = Job(
        task, space.Space(sources, ("pca",), layers=(low, high)), "accuracy", args.study, limit=args.items, seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "study.log"
        with timed() as t:
            job.work(model, where, "bench")
        with job.reading(where, "bench") as notes:
            notes.watch()
            tried = [x for x in notes.trials() if notebook.counts(x)]
            spent = [x.user_attrs[notebook.MEASURED]["items"] for x in tried]
            repeats = sum(notebook.REPEAT in x.user_attrs for x in notes.trials())
    ratio = [args.study * a / b for a, b in zip(theirs, t[0], strict=True)]
    share = sum(spent) / (len(spent) * args.items)
    print(
        f"study of {len(tried)} settings, {dtype}: paper's way over ours {ratio[0]:.0f} (wall), {ratio[1]:.0f} "
        f"(processor); {100 * share:.0f} % of the items scored, {repeats} repeats",
        flush=True,
    )
    return [{
        "bench": "search", "part": "study", "dtype": dtype, "trials": len(tried), "items": args.items,
        "seconds": t[0], "ratio": ratio, "share of items": share, "repeats": repeats,
    }]  # fmt: skip


# -- extraction


def extraction(args: argparse.Namespace) -> list[dict[str, Any]]:
    """64 pairs to vectors at all blocks, float32: ours, and the packages that are installed."""
    import numpy as np

    np.float_ = np.float64  # type: ignore[attr-defined] # repeng 0.4.0 names it in an annotation
    model = trimtab.load(args.model, dtype="float32")
    pairs = 64
    made = contrasts.from_descriptions("gender", n=pairs, seed=0)
    texts = [(model.render(p.prompt), model.render(n.prompt)) for p, n in zip(*_sides(made), strict=True)]
    layers = list(range(1, len(model.hf.model.layers)))  # type: ignore[union-attr, arg-type]

    def repeng() -> None:
        entry = importlib.import_module("repeng").DatasetEntry
        made = importlib.import_module("repeng.extract")
        made.read_representations(model.hf, model.tokenizer, [entry(p, n) for p, n in texts], layers)

    def steering_vectors() -> None:
        made = importlib.import_module("steering_vectors")
        made.train_steering_vector(model.hf, model.tokenizer, texts, layers=layers, batch_size=32)

    def dialz() -> None:
        held = importlib.import_module("dialz.dataset").Dataset()
        for positive, negative in texts:
            held.add_entry(positive, negative)
        made = importlib.import_module("dialz.vector")
        made.read_representations(model.hf, model.tokenizer, held, layers)

    ways: dict[str, Callable[[], Any]] = {
        "trimtab, CAA": lambda: CAA().fit(model, made, seed=0), "trimtab, PCA": lambda: PCA().fit(model, made, seed=0),
        "repeng": repeng, "steering-vectors": steering_vectors, "dialz": dialz,
    }  # fmt: skip
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(args.turns):
        for name, way in ways.items():
            try:
                with contextlib.redirect_stderr(io.StringIO()), timed() as t:
                    way()
            except Exception as error:  # pins of years apart: what does not run is said
                print(f"{name} does not run here: {type(error).__name__}: {str(error)[:200]}")
                continue
            times[name] += t
    found = []
    base = median(times["trimtab, PCA"])
    for name, some in times.items():
        if some:
            ratio = [a / b for a, b in zip(median(some), base, strict=True)]
            print(f"extraction, {pairs} pairs: {name} takes {ratio[0]:.2f} (wall), {ratio[1]:.2f} (processor) of ours")
            found.append({"bench": "search", "part": "extraction", "who": name, "seconds": some, "ratio": ratio})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--items", type=int, default=400, help="of a trial")
    parser.add_argument("--pairs", type=int, default=40, help="of a recipe; the paper has a tenth of its items")
    parser.add_argument("--theirs", type=int, default=6, help="items and pairs timed in the paper's way, each turn")
    parser.add_argument("--agree", type=int, default=100, help="items whose chosen options are compared, in float32")
    parser.add_argument("--study", type=int, default=0, help="settings of a whole pruned study; 0 for none")
    parser.add_argument("--extraction", action="store_true", help="extraction against packages, and nothing else")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--note", default="", help="about the machine: idle, or used by others")
    parser.add_argument("--out", default="bench/records")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    records: list[dict[str, Any]] = []
    if args.extraction:
        records += extraction(args)
    else:
        agree, plain = args.agree, None
        for dtype in args.dtype.split(","):
            args.agree = agree if dtype == "float32" else 0
            found = trials(args, dtype)
            plain = found[0]["theirs"] if dtype == "float32" or plain is None else plain
            ratios = [[a / b for a, b in zip(plain, found[0][k], strict=True)] for k in ("ours", KNOWN)]
            found[0] |= {"ratio, first dtype over ours": ratios}
            print(
                f"  the paper's way in {args.dtype.split(',')[0]} over ours in {dtype}: {ratios[0][0]:.1f} (wall), "
                f"{ratios[0][1]:.1f} (processor); with texts read before {ratios[1][0]:.1f}, {ratios[1][1]:.1f}",
                flush=True,
            )
            records += found
            if args.study:
                records += study(args, dtype, found[0], plain)
    where = {
        "model": args.model, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.machine(), "note": args.note,
    }  # fmt: skip
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "search.jsonl").open("a") as sink:
        for record in records:
            sink.write(json.dumps({**record, **where}) + "\n")


if __name__ == "__main__":
    main()
