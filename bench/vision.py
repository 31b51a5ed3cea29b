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
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Shape:
    """A published model's sizes, as its config states them, and what to change of them to see that all of it runs."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    pixels: int
    """A side of the pictures that it is shown."""
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    def made(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> SteerableModel:
        """Random weights of this shape."""
        return tiny_vision(
            self.family, dtype=dtype, device=device, config=self.config, settings=self.settings, images=self.images,
            vision=self.vision, **self.text,
        )  # fmt: skip

    def but(self, *, pixels: int, **parts: dict[str, Any]) -> Shape:
        """The shape with some settings of some parts otherwise."""
        return replace(self, pixels=pixels, **{name: getattr(self, name) | new for name, new in parts.items()})


def layer_types(blocks: int) -> list[str]:
    """Gemma 3: every sixth block attends to everything."""
    return ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(blocks)]


SHAPES = {
    "qwen2.5-vl-7b": Shape(
        "qwen2_5_vl",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
         "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
         "fullatt_block_indexes": [7, 15, 23, 31]},
        448,
        images={"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 56 * 56,
                "max_pixels": 448 * 448},
    ),
    "gemma-3-4b": Shape(
        "gemma3",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
         "sliding_window": 1024, "query_pre_attn_scalar": 256, "layer_types": layer_types(34)},
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
         "patch_size": 14, "image_size": 896},
        896,
        config={"mm_tokens_per_image": 256},
        settings={"image_seq_length": 256},
        images={"size": {"height": 896, "width": 896}},
    ),
}  # fmt: skip
"""An image is 256 tokens of both. The tokenizer is of bytes, so a text has more tokens than theirs would; embedding and
unembedding are as large as theirs, and Gemma's are two matrices here, one there."""
SMALL = {
    "qwen2.5-vl-7b": SHAPES["qwen2.5-vl-7b"].but(
        pixels=56,
        text={"hidden_size": 224, "intermediate_size": 1184, "num_hidden_layers": 2, "vocab_size": 512,
              "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
        vision={"depth": 2, "hidden_size": 80, "intermediate_size": 214, "num_heads": 1, "out_hidden_size": 224,
                "fullatt_block_indexes": [1]},
    ),
    "gemma-3-4b": SHAPES["gemma-3-4b"].but(
        pixels=112,
        text={"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 6, "head_dim": 16, "vocab_size": 512,
              "query_pre_attn_scalar": 16, "layer_types": layer_types(6)},
        vision={"hidden_size": 72, "intermediate_size": 269, "num_hidden_layers": 2, "num_attention_heads": 1,
                "image_size": 112},
        config={"mm_tokens_per_image": 16},
        settings={"image_seq_length": 16},
        images={"size": {"height": 112, "width": 112}},
    ),
}  # fmt: skip
"""A sixteenth as wide and of few blocks, everything else as it is: to see that it runs, where there is no chip."""


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

    ways: dict[str, Callable[[], float]] = {
        "bare": timed, "w=0": lambda: at(0.0), "w=1": lambda: at(1.0), "w=1, words": lambda: at(1.0, words),
        "w=1, behind": lambda: at(1.0, behind),
    }  # fmt: skip
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        # Each is first, second, ... as often as the others, so that what a place in the turn does falls on all.
        order = [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]
        now = {way: ways[way]() for way in order}
        if turn:  # the first one warms up, and encodes the images
            for name, seconds in now.items():
                taken[name].append(seconds)
    return {"bare, s": statistics.median(taken["bare"])} | {
        f"{w} over bare": statistics.median(a / b for a, b in zip(taken[w], taken["bare"], strict=True))
        for w in taken
        if w != "bare"
    }


def step(model: SteerableModel, items: list[Item], steps: int, **settings: Any) -> dict[str, float]:
    """Seconds and encoded images of a DSO step, after the first."""
    assert model.eyes is not None
    marks: list[tuple[float, int]] = []

    def mark(p: Progress) -> None:
        if p.stage == "learning":
            marks.append((time.perf_counter(), model.eyes.encoded if model.eyes is not None else 0))

    learner = trimtab.DSO(steps=steps + 2, validate_every=10_000, **settings)
    learner.fit(model, items, seed=0, progress=mark)
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks[1:-1])]
    return {
        "a DSO step, s": statistics.median(s for s, _ in spent),
        "images encoded in a DSO step": max(n for _, n in spent),
        "images in all": float(len({p.digest for i in items for p in i.images})),
    }


def made_up(pictures: int, pixels: int = 40, options: tuple[str, str] = ("left", "right")) -> list[Item]:
    """Items about pictures of random pixels: both roles, both orders, many concepts."""
    found = []
    for n in range(pictures):
        picture = noise(pixels, pixels, n)
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
    """DSO steps on a model of a published shape with random weights: every token steered, and those behind images."""
    shape = (SMALL if small else SHAPES)[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = shape.made(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    items = made_up(12 if small else 50, shape.pixels)
    weights = sum(p.numel() for p in blocks_of(model).parameters())
    chip = matrix_rate(device, 256 if small else 8192)
    figures = {"weights in blocks": float(weights), "matrix rate, FLOP/s": chip}
    for how in ("all", "behind"):
        # Blocks of every token are run twice: what their backward pass needs would not fit beside the weights.
        settings: dict[str, Any] = {"positions": how, "checkpointing": how == "all"}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        found = step(model, items, 6, **settings)
        tokens = learned_tokens(model, items, settings)
        # Forward, and backward through activations: no gradient of weights is computed. 2 FLOP a weight and token each,
        # and 2 more where blocks run twice, which is work that the share does not count.
        rate = 4.0 * weights * tokens / found["a DSO step, s"]
        found |= {"tokens in a DSO step": float(tokens), "share of the matrix rate": rate / chip}
        if device.type == "cuda":
            found["peak memory, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        figures |= {f"{how}, {what}": value for what, value in found.items()}
    return figures


def blocks_of(model: SteerableModel) -> torch.nn.Module:
    """The blocks of the language backbone, in which a step spends its products."""
    found = sites.find(model.hf, "layers.0.out")[0].module
    return next(m for m in model.body.modules() if isinstance(m, torch.nn.ModuleList) and found in list(m))


def learned_tokens(model: SteerableModel, items: list[Item], settings: dict[str, Any]) -> int:
    """Tokens that go through the first block with gradients in one step of DSO."""
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        seen = args[0] if args else kwargs["hidden_states"]
        if torch.is_grad_enabled():  # the step itself, not what the base is asked before it
            tokens += seen.shape[0] * seen.shape[1]

    first = next(iter(blocks_of(model).children()))
    handle = first.register_forward_pre_hook(count, with_kwargs=True)
    try:
        trimtab.DSO(steps=1, validate_every=10_000, **settings).fit(model, items, seed=0)
    finally:
        handle.remove()
    return tokens


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
        keep(f"{args.model}, behind images", lambda: step(model, chosen, 8, positions="behind"))
        tiny = tiny_vision("llava")
        shown = [noise(20, 20, n) for n in range(BATCH)]
        keep("tiny llava, generation at batch 8", lambda: generation(tiny, shown, f"{IMAGE}who is it?", args.turns))
    where = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if args.shapes and args.small:  # figures of no model
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / ("accelerator.jsonl" if args.shapes else "vision.jsonl")).open("w") as sink:
        for name, value in figures.items():
            sink.write(json.dumps({"figure": name, "value": value, **where}) + "\n")


if __name__ == "__main__":
    main()
