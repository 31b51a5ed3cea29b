"""Rows of tokens laid out for a forward pass: what rows begin with in common stands there once, and little is padded.

Packed, each row of the batch holds a trie of several rows: a token's position is its depth, and it attends to itself
and what stands above it, so that its activations are what they would be in a row of its own. A step of DSO (60 prompts,
six windows of 28 tokens) fills 27 rows of 28. Plain, rows are padded on the right and never masked: in a causal model a
token cannot see what stands to its right.
This room sees modules and tensors only; whether a model can be packed is model.py's business.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

WIDEST = 64
"""Width of a packed batch, at most, where rows are short; else twice the longest row."""
WIDTHS = 9
"""About how many widths are tried."""
ATTENTION = 100
"""Attention doubles the cost of a token in rows of about this width (SmolLM2 on two cores)."""
FORWARD_WIDEST, FORWARD_ATTENTION = 448, 400
"""The same two where there is no backward pass, in which attention costs most: 400 questions behind one example took a
sixth less time than in narrow batches, each of which holds the example again."""
PASS = 96
"""A forward and backward pass costs about as much as this many tokens before it computes any."""

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One batch: token ids, and where in it each token of the laid out rows stands."""

    ids: Int[Tensor, "bins width"]
    places: tuple[tuple[int, ...], ...]
    """Of each row, the place of each of its tokens in the flattened batch."""
    positions: Int[Tensor, "bins width"] | None = None
    sees: Bool[Tensor, "bins 1 width width"] | None = None
    """Which token (last axis) each token attends to; None for plain causal rows."""

    def run(self, body: nn.Module) -> Float[Tensor, "bins width dim"]:
        """The last hidden states of the batch."""
        own: dict[str, Tensor | None] = {}
        if self.sees is not None:
            kind = next(body.parameters()).dtype
            mask = torch.zeros(self.sees.shape, dtype=kind, device=self.ids.device)
            mask.masked_fill_(~self.sees, torch.finfo(kind).min)
            own = {"attention_mask": mask, "position_ids": self.positions}
        out: Tensor = body(input_ids=self.ids, use_cache=False, **own).last_hidden_state
        return out


Run = Callable[[Layout, Sequence[int]], Tensor]
"""From a layout, and the numbers of the rows in it, to last hidden states (bins, width, dim)."""


def hidden_at(
    rows: Sequence[Row],
    wanted: Sequence[tuple[int, int]],
    run: Run,
    *,
    pack: bool,
    device: torch.device,
    tokens_at_once: int,
    layouts: dict[tuple[int, ...], Layout] | None = None,
) -> Float[Tensor, "wanted dim"]:
    """Last hidden states at some (row, token) pairs, with as few passes as cost least.

    `layouts` keeps the layout of each pass, by the numbers of its rows, for the next time that these rows are run.
    """
    parts: list[Tensor] = []
    start: dict[tuple[int, int], int] = {}
    size = 0
    of_row: dict[int, list[int]] = {}
    for row, token in wanted:
        of_row.setdefault(row, []).append(token)

    def computed(some: Sequence[int]) -> tuple[Layout, Tensor]:
        layout = layouts.get(tuple(some)) if layouts is not None else None
        if layout is None:
            layout = (packed if pack else padded_rows)([rows[r] for r in some], device)
            if layouts is not None:
                layouts[tuple(some)] = layout
        return layout, run(layout, some).flatten(0, 1)

    for some, (layout, found) in fitting(_passes(rows, pack, tokens_at_once), computed):
        here = [(r, t) for r in some for t in dict.fromkeys(of_row.get(r, ()))]
        row_of = {r: n for n, r in enumerate(some)}
        index = torch.tensor([layout.places[row_of[r]][t] for r, t in here], dtype=torch.long, device=device)
        parts.append(found[index])
        start.update({pair: size + n for n, pair in enumerate(here)})
        size += len(here)
    order = [start[pair] for pair in wanted]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    return whole if order == list(range(size)) else whole[torch.tensor(order, dtype=torch.long, device=device)]


Result = TypeVar("Result")


def fitting(batches: Iterable[list[int]], run: Callable[[list[int]], Result]) -> Iterator[tuple[list[int], Result]]:
    """Each batch with what `run` makes of it; one that memory is too short for in halves, and so every later one.

    What was computed before is kept. While gradients are enabled nothing is halved: there the graph of what was
    computed is what fills memory, and halves do not help. Raises what `run` raised where a batch of one does not fit.
    """
    largest = None
    for batch in batches:
        left = [batch]
        while left:
            some = left.pop()
            if largest is not None and len(some) > largest:
                left += [some[largest:], some[:largest]]
                continue
            short = None
            try:
                made = run(some)
            except (RuntimeError, MemoryError) as error:
                if len(some) < 2 or torch.is_grad_enabled() or not _out_of_memory(error):
                    raise
                short = len(some)
            if short is not None:  # outside of the except block, which would keep alive what fills the memory
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                largest = short // 2
                left.append(some)
                continue
            yield some, made


def _out_of_memory(error: BaseException) -> bool:
    """Of an accelerator, or of the CPU's allocator, which has no type of its own for it."""
    said = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "out of memory" in said or "not enough memory" in said or "can't allocate memory" in said


def _passes(rows: Sequence[Row], pack: bool, tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows of each pass, none of more tokens than may be held at once (but at least one row).

    Packed rows count by the tokens that they add to the one sorted before them: what they share stands there once.
    """
    groups = [sorted(range(len(rows)), key=lambda r: rows[r])] if pack else length_buckets([len(r) for r in rows])
    for group in groups:
        held: list[int] = []
        size = 0
        for r in group:
            if pack:
                more = size + len(rows[r]) - (_shared(rows[held[-1]], rows[r]) if held else 0)
            else:
                more = max(size // max(1, len(held)), len(rows[r])) * (len(held) + 1)
            if held and more > tokens:
                yield held
                held, more = [], len(rows[r])
            held.append(r)
            size = more
        if held:
            yield held


def _shared(one: Row, other: Row) -> int:
    """Tokens that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def padded_rows(rows: Sequence[Row], device: torch.device) -> Layout:
    """Each row for itself, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*r, *([0] * (width - len(r)))] for r in rows], device=device)
    return Layout(ids, tuple(tuple(range(n * width, n * width + len(r))) for n, r in enumerate(rows)))


def packed(rows: Sequence[Row], device: torch.device) -> Layout:
    """Rows as tries, at the width that costs least: wide bins share more and pad less, narrow ones attend less."""
    longest = max(map(len, rows))
    learning = torch.is_grad_enabled()
    attention = ATTENTION if learning else FORWARD_ATTENTION
    # Rows that share much need room for what they do not share.
    widest = max(WIDEST if learning else FORWARD_WIDEST, 2 * longest)
    paths = _paths(rows)
    found = (_bins(rows, paths, width) for width in range(longest, widest + 1, max(4, (widest - longest) // WIDTHS)))
    width, bins = min(found, key=lambda pair: len(pair[1]) * pair[0] * (attention + pair[0]))
    ids = np.zeros((len(bins), width), dtype=np.int64)
    positions = np.zeros((len(bins), width), dtype=np.int64)
    sees = np.broadcast_to(np.eye(width, dtype=bool), (len(bins), width, width)).copy()
    places: dict[int, tuple[int, ...]] = {}
    for b, group in enumerate(bins):
        child: dict[tuple[int, int], int] = {}
        for r in group:
            mine: list[int] = []
            for depth, token in enumerate(rows[r]):
                above = mine[-1] if mine else -1
                if (above, token) not in child:
                    n = child[above, token] = len(child)
                    ids[b, n], positions[b, n] = token, depth
                    if mine:
                        sees[b, n] |= sees[b, above]
                mine.append(child[above, token])
            places[r] = tuple(b * width + n for n in mine)
    as_tensor = [torch.from_numpy(x).to(device) for x in (ids, positions, sees[:, None])]
    return Layout(as_tensor[0], tuple(places[r] for r in range(len(rows))), as_tensor[1], as_tensor[2])


def _paths(rows: Sequence[Row]) -> list[list[int]]:
    """Of each row the number of each of its beginnings, the same for rows that begin so: entry n is of n + 1 tokens."""
    child: dict[tuple[int, int], int] = {}
    found = []
    for row in rows:
        path: list[int] = []
        for token in row:
            path.append(child.setdefault((path[-1] if path else -1, token), len(child)))
        found.append(path)
    return found


def _bins(rows: Sequence[Row], paths: Sequence[Sequence[int]], width: int) -> tuple[int, list[list[int]]]:
    """The width of the widest bin, and the rows of each, none of whose tries is wider than `width`.

    The longest row first, each into the bin in which it finds the most of itself; among equals, into the fullest.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    holders: dict[int, list[int]] = {}
    """Of every beginning of a row, the bins that hold it."""
    for r in sorted(range(len(rows)), key=lambda r: (-len(rows[r]), rows[r])):
        row, path = rows[r], paths[r]
        for shared in range(len(row), -1, -1):
            holding = holders.get(path[shared - 1], ()) if shared else range(len(bins))
            if open_ := [b for b in holding if room[b] >= len(row) - shared]:
                chosen = min(open_, key=room.__getitem__)
                break
        else:
            chosen, shared = len(bins), 0
            bins.append([])
            room.append(width)
        for beginning in path[shared:]:
            holders.setdefault(beginning, []).append(chosen)
        room[chosen] -= len(row) - shared
        bins[chosen].append(r)
    return width - min(room), bins


def length_buckets(lengths: Sequence[int], overhead: int = PASS) -> list[list[int]]:
    """Split rows into batches of like length, least cost first: padded tokens plus `overhead` for each batch.

    Exact, by dynamic programming over the distinct lengths.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    distinct = sorted(set(lengths))
    count = {n: sum(1 for length in lengths if length == n) for n in distinct}
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(distinct) + 1):
        options = []
        for start in range(end):
            held = sum(count[n] for n in distinct[start:end])
            options.append((best[start][0] + held * distinct[end - 1] + overhead, start))
        best.append(min(options))
    cuts, end = [], len(distinct)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    place, batches = 0, []
    for start, end in reversed(cuts):
        held = sum(count[n] for n in distinct[start:end])
        batches.append(order[place : place + held])
        place += held
    return batches
