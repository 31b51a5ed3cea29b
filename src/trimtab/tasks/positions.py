"""Where a prompt mentions its options: what the position effect is computed from."""

from __future__ import annotations

import re
from collections.abc import Sequence


def listed_positions(text: str, options: Sequence[str]) -> tuple[int | None, ...]:
    """The rank, from 0, of each option by its last mention in `text`; None for all unless all are mentioned.

    Whole words, whatever the case and the spacing. The last mention counts, because a question that lists its
    options comes after the story that also names them. A mention inside a longer option's mention ("doctor"
    in "eye doctor") belongs to the longer one. Options that differ in case alone cannot be told apart: None
    for all.
    """
    words = [" ".join(option.split()) for option in options]
    nothing: tuple[int | None, ...] = (None,) * len(words)
    if not all(words) or len({word.casefold() for word in words}) < len(words):
        return nothing
    taken: list[tuple[int, int]] = []
    last: dict[int, int] = {}
    for k in sorted(range(len(words)), key=lambda k: -len(words[k])):
        # Lookarounds, not \b: an option may begin or end with something that is no word character.
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words[k].split())) + r"(?!\w)"
        spans = [m.span() for m in re.finditer(pattern, text, flags=re.IGNORECASE)]
        free = [(a, b) for a, b in spans if not any(a < d and c < b for c, d in taken)]
        if not free:
            return nothing
        last[k] = free[-1][0]
        taken += free
    order = sorted(last, key=last.__getitem__)
    return tuple(order.index(k) for k in range(len(words)))
