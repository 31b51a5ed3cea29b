"""What one of several processes runs in test_team.py: an evaluation of a tiny model, its records into a folder."""

from __future__ import annotations

import sys

from trimtab import portions
from trimtab.evaluate import evaluate
from trimtab.testing import random_steering, tiny, tiny_task

portions.CHUNK = 5
model = tiny("llama", seed=0)
found = evaluate(
    model,
    tiny_task(12, 12),
    random_steering(model, scale=0.05),
    [0.5, 1.0],
    seed=0,
    resamples=50,
    samples=("The cook",),
    out=sys.argv[1],
)
print(len(found.records), len(found.results))
