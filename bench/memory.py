"""Peak memory against the number of items, or of pairs: `python bench/memory.py --data FOLDER`, `... --pairs 500,2000`.

Items: an evaluation of all of BBQ that is in the folder, on a tiny model (with SmolLM2's tokenizer), whose weights are
nothing: what is left grows with the items or does not; strengths 0 and 1 and both controls, figures included. Pairs:
CAA at every block of demo:smollm2, whose activations would fill 0.13 MiB a pair if they were held. Each size runs in a
process of its own. Prints and appends to bench/records/memory.jsonl the peak resident memory in MiB.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDS = Path(__file__).parent / "records" / "memory.jsonl"


def measured(data: str, limit: int) -> dict[str, float]:
    """One evaluation of so many items (0 for none: the imports, the model and the task alone)."""
    import torch
    from transformers import AutoTokenizer

    from trimtab.evaluate import evaluate
    from trimtab.tasks import load_task
    from trimtab.testing import random_steering, tiny
    from trimtab.weights import resolve

    source, _ = resolve("demo:smollm2", torch.float32, lambda text: None)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = tiny("llama", seed=0, tokenizer=tokenizer, max_position_embeddings=2048)
    task = load_task("bbq", data=data, seed=None)
    begun = time.monotonic()
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if limit:
        with tempfile.TemporaryDirectory() as out:
            evaluate(
                model, task, random_steering(model, scale=0.05), [1.0], seed=0, split="all", out=out, limit=limit,
                samples=(), resamples=200,
            )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    n = min(limit, len(task.items))
    return {"items": n, "loaded_mib": loaded, "peak_mib": peak, "seconds": time.monotonic() - begun}


def captured(pairs: int) -> dict[str, float]:
    """One direction a block learned from so many pairs, no two of a text."""
    import trimtab
    from trimtab.types import Contrast, Example

    model = trimtab.load("demo:smollm2")
    sides = [
        tuple(Example(f"Note {n} of the day. The people in the office were", f" {word}") for n in range(pairs))
        for word in ("kind", "rude")
    ]
    begun = time.monotonic()
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trimtab.CAA().fit(model, Contrast("bench", sides[0], sides[1]), seed=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"pairs": pairs, "loaded_mib": loaded, "peak_mib": peak, "seconds": time.monotonic() - begun}


def main() -> None:
    """Measure each size in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of benchmark data, for items")
    parser.add_argument("--items", default="2000,100000", help="sizes parted by commas")
    parser.add_argument("--pairs", help="numbers of pairs parted by commas; then no items are measured")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(captured(args.one) if args.pairs else measured(args.data, args.one)))
        return
    given = ["--pairs", args.pairs] if args.pairs else ["--data", args.data or parser.error("items need --data")]
    what = "pairs" if args.pairs else "items"
    for size in (args.pairs or args.items).split(","):
        words = [sys.executable, __file__, *given, "--one", size]
        row = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        row = {k: round(v, 1) for k, v in row.items()}
        print(
            f"{row[what]:>7.0f} {what}: peak {row['peak_mib']:.0f} MiB (before them: {row['loaded_mib']:.0f})",
            flush=True,
        )
        with RECORDS.open("a") as file:
            file.write(json.dumps({**row, "machine": platform.processor() or platform.machine()}) + "\n")


if __name__ == "__main__":
    main()
