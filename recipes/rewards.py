"""Rewards of your own for DSO's sampled mode: a function of an item and some answers to it, one number for each.

    trimtab learn dso --model demo:smollm2 --task pronoun --mode sampled --set max_new_tokens=32 \
        --reward recipes.rewards:shorter --seed 0 --out shorter

Answers to one item are compared with each other only, so a number that is the same for all of them changes nothing.
What matters is the size of the differences: keep them within about 1, the size that the guards are weighted for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.types import Item

LONG = 40
"""Words from which on an answer counts as long; give max_new_tokens a number that lets answers end by themselves."""

REFUSAL = re.compile(
    r"\bI(?: am|'m) (?:sorry|unable|not able)\b"
    r"|\bI (?:can ?not|can't|won't|will not|refuse|must decline)\b"
    r"|\bas an AI\b|\b(?:not appropriate|inappropriate) (?:to|for me)\b",
    re.IGNORECASE,
)
"""How English refusals begin. A list of words, not a judge: read some answers before you believe the figure."""


def shorter(item: Item, answers: Sequence[str]) -> list[float]:
    """From 0 for one word towards -1 for LONG words and more; -1 for no answer, which is mute and not short."""
    return [-min(1.0, (len(a.split()) - 1) / LONG) if a.split() else -1.0 for a in answers]


def no_refusal(item: Item, answers: Sequence[str]) -> list[float]:
    """0 for an answer, -1 for a refusal in its first words or for saying nothing."""
    return [-1.0 if not a.strip() or REFUSAL.search(a[:200].replace("\u2019", "'")) else 0.0 for a in answers]
