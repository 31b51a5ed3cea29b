"""Speed, as ratios measured in one run: learning against the plain loop, generation with and without a dial, --help.

    python bench/speed.py [--model demo:smollm2] [--out bench/records]

Each pair alternates, so that noise of a shared machine falls on both; figures are medians. One JSON record a figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trimtab
from trimtab import sites
from trimtab.interventions import Diagonal
from trimtab.model import SteerableModel
from trimtab.neutral import passages
from trimtab.steering import Steering
from trimtab.types import Item, Progress, by_concept

STEPS = 6
"""Steps timed in each turn of learning, after two that are not."""


def ours(model: SteerableModel, task: trimtab.Task, seed: int) -> float:
    """Median seconds a step of DSO.fit, from its progress callback."""
    marks: list[float] = []

    def mark(p: Progress) -> None:
        if p.stage == "learning":
            marks.append(time.perf_counter())

    trimtab.DSO(steps=STEPS + 2, validate_every=10_000).fit(model, list(task.split("train")), seed=seed, progress=mark)
    # The last step ends with the closing look at the validation items: left out.
    return statistics.median(b - a for a, b in itertools.pairwise(marks[1:-1]))


def plain(model: SteerableModel, task: trimtab.Task, seed: int) -> float:
    """Median seconds a step of the plain loop: as many items, the same loss, `model(**batch).logits` for all.

    Rows are padded to the longest of the batch and masked; logits are computed at every position; the base model's
    view, which the guards compare with, takes a second pass; so does the KL. Attention is the library's default.
    """
    settings = trimtab.DSO()
    hf, tokenizer = model.hf, model.tokenizer
    rng = random.Random(seed)
    train = task.split("train")
    concepts = dict(by_concept([i for i in train if i.ambiguous]))
    clear = [i for i in train if not i.ambiguous]
    texts = passages("train")
    found = sites.find(hf, settings.sites)
    width = found[0].width or 0
    theta = torch.zeros(len(found), 2, width, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=settings.learning_rate)

    def hooks() -> list[Any]:
        def hook(n: int) -> Callable[..., Tensor]:
            return lambda module, args, h: h + theta[n, 0].to(h.dtype) * h + theta[n, 1].to(h.dtype)

        return [s.module.register_forward_hook(hook(n)) for n, s in enumerate(found)]

    def last_logp(prompts: list[str]) -> Tensor:
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        return hf(**batch).logits[:, -1].float().log_softmax(-1)  # padded on the left

    def token_logp(rows: list[str]) -> Tensor:
        batch = tokenizer(rows, return_tensors="pt", padding=True)
        return hf(**batch).logits.float().log_softmax(-1)[batch["attention_mask"].bool()]

    def option_logp(logp: Tensor, items: list[Item]) -> Tensor:
        ids = [[tokenizer(" " + o.text, add_special_tokens=False).input_ids[0] for o in i.options] for i in items]
        width = max(map(len, ids))
        index = torch.tensor([row + row[-1:] * (width - len(row)) for row in ids])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
        return logp.gather(1, index).masked_fill(~mask, -torch.inf)

    times = []
    for step in range(STEPS + 2):
        begun = time.perf_counter()
        chosen = rng.sample(sorted(concepts), settings.concepts_per_step)
        ambiguous = [i for o in chosen for i in rng.sample(concepts[o], settings.templates_per_step)]
        items = ambiguous + rng.sample(clear, settings.unambiguous_per_step)
        windows = [
            tokenizer.decode(tokenizer(t).input_ids[: settings.kl_tokens])
            for t in rng.sample(texts, settings.kl_windows)
        ]
        with torch.no_grad():
            base, base_text = last_logp([str(i.prompt) for i in items]), token_logp(windows)
        handles = hooks()
        now, text = last_logp([str(i.prompt) for i in items]), token_logp(windows)
        for handle in handles:
            handle.remove()
        logp, before = option_logp(now, items), option_logp(base, items)
        sign = {"pro": 1.0, "correct": 1.0, "anti": -1.0, "wrong": -1.0, "neither": 0.0}
        signs = torch.tensor([([sign[o.role] for o in i.options] + [0.0])[:3] for i in items])
        shift = (logp.softmax(-1) * signs).sum(-1)
        n = len(ambiguous)
        bias = shift[:n].view(len(chosen), -1).mean(1).abs().mean()
        guard = torch.relu((before.softmax(-1) * signs).sum(-1)[n:] - shift[n:]).mean()
        mass = torch.relu(before[:n].logsumexp(-1) - logp[:n].logsumexp(-1)).mean()
        kl = (text.exp() * (text - base_text)).sum(-1).mean()
        optimiser.zero_grad()
        (bias + guard + mass + kl).backward()
        nn.utils.clip_grad_norm_([theta], 1.0)
        optimiser.step()
        if step >= 2:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def generation(model: SteerableModel, turns: int) -> dict[str, float]:
    """Median seconds for 32 greedy tokens at batch 8: bare, with a dial at 0, with a dial at 1."""
    found = sites.find(model.hf, sites.NORMS)
    steering = Steering(
        {s.name: (Diagonal(torch.full((s.width or 0,), 1e-3), torch.full((s.width or 0,), 1e-3)),) for s in found}
    )
    prompts = ["The nurse walked into the room and said that"] * 8
    options = {"max_new_tokens": 32, "min_new_tokens": 32}

    def timed() -> float:
        begun = time.perf_counter()
        model.generate(prompts, **options)
        return time.perf_counter() - begun

    def at(strength: float) -> float:
        with model.steer(steering, strength):
            return timed()

    timed()
    taken: dict[str, list[float]] = {"bare": [], "w=0": [], "w=1": []}
    for _ in range(turns):
        taken["bare"].append(timed())
        taken["w=0"].append(at(0.0))
        taken["w=1"].append(at(1.0))
    return {name: statistics.median(values) for name, values in taken.items()} | {
        "w=0 over bare": statistics.median(a / b for a, b in zip(taken["w=0"], taken["bare"], strict=True)),
        "w=1 over bare": statistics.median(a / b for a, b in zip(taken["w=1"], taken["bare"], strict=True)),
    }


def help_seconds() -> float:
    """Median seconds of `trimtab --help`."""

    def once() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "trimtab.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - begun

    return statistics.median(once() for _ in range(7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--out", default="bench/records")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    model = trimtab.load(args.model)
    task = trimtab.task("pronoun", seed=0)
    settings = trimtab.DSO()
    items = settings.concepts_per_step * settings.templates_per_step + settings.unambiguous_per_step
    seconds = [(ours(model, task, seed), plain(model, task, seed)) for seed in range(args.turns)]
    a, b = (statistics.median(s) for s in zip(*seconds, strict=True))
    figures: dict[str, float] = {
        "learning, ours, items/s": items / a,
        "learning, plain loop, items/s": items / b,
        "learning, ours over plain": statistics.median(q / p for p, q in seconds),
        **{f"generation at batch 8, {k}": v for k, v in generation(model, 3 * args.turns).items()},
        "--help, s": help_seconds(),
    }
    where = {
        "model": args.model,
        "dtype": str(model.dtype),
        "processor": next(
            (k for k in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(k)), platform.machine()
        ),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "speed.jsonl").open("w") as sink:
        for name, value in figures.items():
            print(f"{name:40} {value:.4g}")
            sink.write(json.dumps({"figure": name, "value": value, **where}) + "\n")


if __name__ == "__main__":
    main()
