"""What a steering costs where images are seen: generation, and a step of learning.

    python bench/vision.py [--model demo:roomworld] [--turns 15]        ratios on this machine
    python bench/vision.py --shapes qwen2.5-vl-7b gemma-3-4b            one DSO step on random weights of those shapes

The first alternates what it compares, so that noise of a shared machine falls on both, and takes medians of ratios.
The second is for an accelerator: it prints the time of a step, the peak memory and the share of the chip's matrix rate,
which it measures itself on square bfloat16 products. `--small` makes the same run on tiny shapes, to see that it runs.
One JSON record a figure goes to bench/records.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trimtab
from trimtab import sites
from trimtab.interventions import Diagonal
from trimtab.model import SteerableModel
from trimtab.steering import Steering
from trimtab.testing import noise, tiny_vision
from trimtab.types import IMAGE, Item, Option, Picture, Progress

BATCH, NEW = 8, 32
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-vl-7b": (
        "qwen2_5_vl",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4},
    ),
    "gemma-3-4b": (
        "gemma3",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256},
    ),
}  # fmt: skip
"""Family, and the size of its language backbone, as the published configs state them. The vision tower stays tiny: its
features are computed once, before the steps that are timed, and its random weights would change nothing else."""


def generation(model: SteerableModel, pictures: list[Picture], question: str, turns: int) -> dict[str, float]:
    """Seconds for 32 greedy tokens at batch 8, each prompt with its image: bare, with a dial at 0 and at 1, and at 1
    where words alone are steered, all of them or those behind the image."""
    found = sites.find(model.hf, sites.NORMS)
    steering = Steering(
        {s.name: (Diagonal(torch.full((s.width or 0,), 1e-3), torch.full((s.width or 0,), 1e-3)),) for s in found}
    )
    words, behind = steering.at("text"), steering.at("behind")

    def timed() -> float:
        begun = time.perf_counter()
        model.generate([question] * BATCH, images=[[p] for p in pictures], max_new_tokens=NEW, min_new_tokens=NEW)
        return time.perf_counter() - begun

    def at(strength: float, steering: Steering = steering) -> float:
        with model.steer(steering, strength):
            return timed()

    taken: dict[str, list[float]] = {"bare": [], "w=0": [], "w=1": [], "w=1, words": [], "w=1, behind": []}
    for turn in range(turns + 1):
        now = {"bare": timed(), "w=0": at(0.0), "w=1": at(1.0)}
        now |= {"w=1, words": at(1.0, words), "w=1, behind": at(1.0, behind)}
        if turn:  # the first one warms up, and encodes the images
            for name, seconds in now.items():
                taken[name].append(seconds)
    return {"bare, s": statistics.median(taken["bare"])} | {
        f"{w} over bare": statistics.median(a / b for a, b in zip(taken[w], taken["bare"], strict=True))
        for w in taken
        if w != "bare"
    }


def step(model: SteerableModel, items: list[Item], steps: int, positions: str = "all") -> dict[str, float]:
    """Seconds and encoded images of a DSO step, after the first."""
    assert model.eyes is not None
    marks: list[tuple[float, int]] = []

    def mark(p: Progress) -> None:
        if p.stage == "learning":
            marks.append((time.perf_counter(), model.eyes.encoded if model.eyes is not None else 0))

    learner = trimtab.DSO(steps=steps + 2, validate_every=10_000, positions=positions)
    learner.fit(model, items, seed=0, progress=mark)
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks[1:-1])]
    return {
        "a DSO step, s": statistics.median(s for s, _ in spent),
        "images encoded in a DSO step": max(n for _, n in spent),
        "images in all": float(len({p.digest for i in items for p in i.images})),
    }


def made_up(pictures: int, options: tuple[str, str] = ("left", "right")) -> list[Item]:
    """Items about pictures of random pixels: both roles, both orders, many concepts."""
    found = []
    for n in range(pictures):
        picture = noise(40, 40, n)
        for order in (0, 1):
            roles: Any = ("pro", "anti") if order == 0 else ("anti", "pro")
            shown = tuple(Option(o, r, position=k) for k, (o, r) in enumerate(zip(options, roles, strict=True)))
            for split in ("train", "validation"):
                found.append(
                    Item(f"{split}/{n}/{order}", shown, f"concept {n}", f"template {n}", True,
                         prompt=f"{IMAGE}which person is number {n}?", images=(picture,), split=split)
                )  # fmt: skip
    return found


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a square bfloat16 product, the best of 10."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def once() -> float:
        _wait(device)
        begun = time.perf_counter()
        a @ b
        _wait(device)
        return 2 * size**3 / (time.perf_counter() - begun)

    return max(once() for _ in range(10))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_shape(name: str, *, small: bool) -> dict[str, float]:
    """One DSO step on a model of a published shape with random weights."""
    family, config = SHAPES[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = tiny_vision(family, **({} if small else config))
    model.hf.to(device=device, dtype=torch.bfloat16)
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        seen = kwargs.get("inputs_embeds", kwargs.get("input_ids", args[0] if args else None))
        if torch.is_grad_enabled() and seen is not None:  # the step itself, not what the base is asked before it
            tokens += seen.shape[0] * seen.shape[1]

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    figures = step(model, made_up(50), 6)
    handle = model.body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        trimtab.DSO(steps=1, validate_every=10_000).fit(model, made_up(50), seed=0)
    finally:
        handle.remove()
    weights = sum(p.numel() for p in model.body.parameters())
    # Forward and the backward through activations; no gradient of weights: 4 FLOP a weight and token.
    rate = 4.0 * weights * tokens / figures["a DSO step, s"]
    chip = matrix_rate(device, 256 if small else 8192)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return figures | {"peak memory, GiB": peak, "share of the matrix rate": rate / chip}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:roomworld")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("bench/records"))
    parser.add_argument("--shapes", nargs="*", choices=tuple(SHAPES))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    figures: dict[str, float] = {}

    def keep(prefix: str, make: Callable[[], dict[str, float]]) -> None:
        for name, value in make().items():
            figures[f"{prefix}, {name}"] = value
            print(f"{prefix + ', ' + name:60} {value:.4g}", flush=True)

    if args.shapes:
        for name in args.shapes:
            keep(name, lambda name=name: on_shape(name, small=args.small))  # type: ignore[misc]
    else:
        model = trimtab.load(args.model)
        task = trimtab.task("who-is", seed=0)
        pictures = [i.images[0] for i in task.items[:BATCH]]
        question = task.items[0].prompt or ""
        keep(f"{args.model}, generation at batch {BATCH}", lambda: generation(model, pictures, question, args.turns))
        chosen = [*task.split("train"), *task.split("validation")]
        keep(f"{args.model}, all positions", lambda: step(model, chosen, 8))
        keep(f"{args.model}, behind images", lambda: step(model, chosen, 8, "behind"))
        tiny = tiny_vision("llava")
        shown = [noise(20, 20, n) for n in range(BATCH)]
        keep("tiny llava, generation at batch 8", lambda: generation(tiny, shown, f"{IMAGE}who is it?", args.turns))
    where = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / ("accelerator.jsonl" if args.shapes else "vision.jsonl")).open("w") as sink:
        for name, value in figures.items():
            sink.write(json.dumps({"figure": name, "value": value, **where}) + "\n")


if __name__ == "__main__":
    main()
