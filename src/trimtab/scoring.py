"""Option scoring that computes only what is needed.

    log P(o | x) = sum_t log softmax(U h_t)[o_t]            h_t: last hidden state before token t of option o

Three ways to the same numbers. `score` runs a prefix that all items share once, and an item's prompt once for all its
options, from a cache. `score_packed` lays short rows out as tries in one pass (packing.py). `score_flat` is what
learners differentiate. Hidden states are unembedded only where an option's token is predicted. Rows that are padded
are padded on the right and never masked: in a causal model a token cannot see what stands to its right, so batches and
single items agree and the fast attention path is open.
This room takes modules and token ids; how a prompt becomes ids is model.py's business.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab import caches, capture
from trimtab.packing import PASS, Layout, fitting, hidden_at

STEMS = 8
"""Tokens of copied stems that a pass holds, at most, for each that it computes."""
POSITIONS, TILE = 256, 2048
"""Positions and words of the vocabulary that are unembedded together where both are taken in parts: small enough for a
processor's own cache. Eight positions with all words of Gemma 3 took three times as long."""
LOGITS_AT_ONCE = 2**23
"""How many logits are held at a time (32 MiB in float32): beyond that every table is memory that was never touched."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as token ids: the prompt, and for each option what follows it."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


class Readout:
    """From a last hidden state to logits, for a few vocabulary rows or for all.

    `logits = cap(scale * (U h + b))`, with the soft cap of Gemma 2 and the scales of Cohere and Granite where the
    config has them.
    """

    def __init__(self, head: nn.Linear, config: object) -> None:
        self.weight = head.weight
        self.bias = head.bias
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self._cap = getattr(config, "final_logit_softcapping", None)

    def __call__(
        self, h: Float[Tensor, "n dim"], rows: Int[Tensor, " k"] | slice | None = None
    ) -> Float[Tensor, "n k"]:
        """Logits in float32; over the whole vocabulary where `rows` is None."""
        weight = self.weight if rows is None else self.weight[rows]
        bias = self.bias if rows is None or self.bias is None else self.bias[rows]
        logits = nn.functional.linear(h, weight, bias).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits


@dataclass(frozen=True, slots=True)
class Scores:
    """Unnormalised log-probabilities of one item's options, and the log of their total probability."""

    logp: Float[Tensor, " options"]
    """log P(option | prompt), summed over its tokens."""
    log_mass: Float[Tensor, ""]
    """log of the sum of P over the options, overlapping options (one a prefix of another) counted once."""


RowSelector = Callable[[Sequence[int]], AbstractContextManager[None]]


def score(
    body: nn.Module,
    readout: Readout,
    items: Sequence[Encoded],
    *,
    tokens_per_batch: int = 4096,
    share: bool = True,
    rows: RowSelector | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Scores]:
    """Score every item's options; differentiable where gradients are enabled.

    `tokens_per_batch` bounds padded tokens a forward pass. `share=False` runs no prefix once for all (needed where
    rows are steered differently, and under activation checkpointing, which forbids caches between passes). `rows`
    tells a dial which items the rows of the coming pass belong to.
    """
    device = readout.weight.device
    results: dict[int, Scores] = {}
    everyone = list(range(len(items)))
    for shared, members in families([i.prompt for i in items]) if share else [(0, everyone)]:
        stem = None
        if shared:
            ids = torch.tensor([items[members[0]].prompt[:shared]], device=device)
            with _select(rows, members[:1]):
                stem = caches.returned(body(input_ids=ids, use_cache=True))

        def scored_of(batch: list[int], stem: object = stem, shared: int = shared) -> list[Scores]:
            return list(_score_batch(body, readout, items, batch, stem, shared, share, rows))

        for batch, scored in fitting(_batches(items, members, shared, tokens_per_batch), scored_of):
            results.update(zip(batch, scored, strict=True))
            if on_batch is not None:
                on_batch(len(batch))
    return [results[i] for i in range(len(items))]


def _score_batch(
    body: nn.Module,
    readout: Readout,
    items: Sequence[Encoded],
    batch: list[int],
    stem: object | None,
    shared: int,
    share: bool,
    rows: RowSelector | None,
) -> Iterator[Scores]:
    device = readout.weight.device
    prompts = [items[i].prompt[shared:] for i in batch]
    longer = any(len(o) > 1 for i in batch for o in items[i].options)
    with _select(rows, batch):
        cache = _expanded(stem, len(batch))
        caching = cache is not None or (longer and share)
        out = body(input_ids=padded(prompts, device), use_cache=caching, **caches.argument(body, cache))
    last = torch.tensor([len(p) - 1 for p in prompts], device=device)
    h = out.last_hidden_state[torch.arange(len(batch), device=device), last]
    width = max(len(items[i].options) for i in batch)
    heads = [[o[0] for o in items[i].options] for i in batch]
    tokens = torch.tensor([[*row, *([0] * (width - len(row)))] for row in heads], device=device)
    first = _log_softmax_at(readout, h, tokens)
    tails = _tails(body, readout, items, batch, caches.returned(out), share, rows) if longer else {}
    for row, index in enumerate(batch):
        options = items[index].options
        logp = first[row, : len(options)]
        if longer:
            logp = torch.stack([logp[k] + tails[row, k] if (row, k) in tails else logp[k] for k in range(len(options))])
        yield Scores(logp, torch.logsumexp(logp[_disjoint(options)], 0))


def _tails(
    body: nn.Module,
    readout: Readout,
    items: Sequence[Encoded],
    batch: list[int],
    cache: object,
    share: bool,
    rows: RowSelector | None,
) -> dict[tuple[int, int], Tensor]:
    """log P of everything after the first token, for each (row, option) that has more than one."""
    device = readout.weight.device
    jobs = [(row, k) for row, i in enumerate(batch) for k, o in enumerate(items[i].options) if len(o) > 1]
    tails = [items[batch[row]].options[k] for row, k in jobs]
    chosen = [batch[row] for row, _ in jobs]
    with _select(rows, chosen):
        if share:
            cache.batch_select_indices(torch.tensor([row for row, _ in jobs], device=device))  # type: ignore[attr-defined]
            some = padded([t[:-1] for t in tails], device)
            out = body(input_ids=some, use_cache=True, **caches.argument(body, cache))
            start = [0] * len(jobs)
        else:
            whole = [items[i].prompt + t[:-1] for i, t in zip(chosen, tails, strict=True)]
            out = body(input_ids=padded(whole, device), use_cache=False)
            start = [len(items[i].prompt) for i in chosen]
    at = [(j, start[j] + t, token) for j, tail in enumerate(tails) for t, token in enumerate(tail[1:])]
    index = torch.tensor(at, device=device)
    picked = _log_softmax_at(readout, out.last_hidden_state[index[:, 0], index[:, 1]], index[:, 2:]).squeeze(1)
    sums = torch.zeros(len(jobs), device=device).index_add(0, index[:, 0], picked)
    return dict(zip(jobs, sums.unbind(0), strict=True))


def _log_softmax_at(readout: Readout, h: Float[Tensor, "n dim"], tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """log softmax of the logits at a few tokens a row, never holding more than LOGITS_AT_ONCE logits."""
    step = max(1, LOGITS_AT_ONCE // readout.weight.shape[0])
    parts = []
    for start in range(0, len(h), step):
        logits = readout(h[start : start + step])
        parts.append(logits.gather(1, tokens[start : start + step]) - logits.logsumexp(-1, keepdim=True))
    return torch.cat(parts)


def sequence_logp(
    body: nn.Module,
    readout: Readout,
    sequences: Sequence[tuple[int, ...]],
    *,
    skip: int = 0,
    rows: RowSelector | None = None,
) -> list[Float[Tensor, " tokens"]]:
    """log P of each token of each sequence given those before it, the first `skip + 1` tokens being given."""
    device = readout.weight.device
    out: list[Float[Tensor, " tokens"]] = []
    for index, ids in enumerate(sequences):
        row = torch.tensor([ids], device=device)
        with _select(rows, [index]):
            h = body(input_ids=row, use_cache=False).last_hidden_state[0, skip:-1]
        out.append(_log_softmax_at(readout, h, row[0, skip + 1 :, None]).squeeze(1))
    return out


def hidden_states(
    body: nn.Module,
    sequences: Sequence[tuple[int, ...]],
    *,
    skips: Sequence[int] = (),
    tokens_at_once: int = 4096,
) -> list[Tensor]:
    """The last hidden state at every token of each sequence that predicts another, its first `skips` left out."""
    device = next(body.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found: dict[int, Tensor] = {}

    def run(batch: list[int]) -> list[Tensor]:
        out = body(input_ids=padded([sequences[i] for i in batch], device), use_cache=False).last_hidden_state
        # Copied: a slice would keep the whole padded batch alive.
        return [out[row, skips[i] if skips else 0 : len(sequences[i]) - 1].clone() for row, i in enumerate(batch)]

    def batches() -> Iterator[list[int]]:
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) == 8 or (len(batch) + 1) * len(sequences[i]) > tokens_at_once):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    for batch, states in fitting(batches(), run):
        found.update(zip(batch, states, strict=True))
    return [found[i] for i in range(len(sequences))]


def nll_and_kl(
    readout: Readout, h: Float[Tensor, "n dim"], base: Float[Tensor, "n dim"] | None, targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`-log p(target)` and `KL(p || p_base)` at each position, in nats, float64; without a base the KL is NaN.

    The vocabulary is taken in tiles, so that its rows are read once for many positions: with z and y the logits of h
    and of the base, and A_k and B_k the log of sum exp over tile k,

        KL = sum_k e^(A_k - A) E_k[z - y]  -  A + B        E_k: under softmax(z) within the tile;  A = log sum_k e^A_k
    """
    vocabulary = readout.weight.shape[0]
    nll = torch.zeros(len(h), dtype=torch.float64, device=h.device)
    kl = torch.full_like(nll, torch.nan)
    for start in range(0, len(h), POSITIONS):
        part = slice(start, start + POSITIONS)
        wanted = targets[part]
        said = torch.zeros(len(wanted), dtype=torch.float32, device=h.device)
        ours, theirs, apart = [], [], []
        for first in range(0, vocabulary, TILE):
            tile = slice(first, min(first + TILE, vocabulary))
            z = readout(h[part], tile)
            mine = ((wanted >= tile.start) & (wanted < tile.stop)).nonzero().squeeze(1)
            said[mine] = z[mine, wanted[mine] - first]
            ours.append(z.logsumexp(-1))
            if base is not None:
                y = readout(base[part], tile)
                theirs.append(y.logsumexp(-1))
                apart.append(((z - ours[-1][:, None]).exp() * (z - y)).sum(-1))
        a = torch.stack(ours).double()
        whole = a.logsumexp(0)
        nll[part] = whole - said
        if base is not None:
            b, d = (torch.stack(parts).double() for parts in (theirs, apart))
            kl[part] = ((a - whole).exp() * d).sum(0) - whole + b.logsumexp(0)
    return nll, kl


def families(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """(tokens that they begin with, numbers of the prompts) of groups whose beginning is worth computing once.

    Sorted, prompts that begin alike stand together: a tree of beginnings. From the leaves up, a group of n prompts
    leaves the one that it is in where (n - 1) times the tokens it shares beyond that one's are more than a pass costs.
    Every prompt keeps at least one token of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    found: list[tuple[int, list[int]]] = []
    tree: list[tuple[int, list[int]]] = [(0, [])]
    for n, i in enumerate(order):
        alike = _common_prefix([prompts[i], prompts[order[n + 1]]]) if n + 1 < len(order) else 0
        pool = [i]
        while tree[-1][0] > alike:
            shared, held = tree.pop()
            pool = held + pool
            beyond = shared - max(tree[-1][0], alike)
            if (len(pool) - 1) * beyond > PASS:
                found.append((shared, pool))
                pool = []
        if tree[-1][0] < alike:
            tree.append((alike, pool))
        else:
            tree[-1][1].extend(pool)
    return [*found, tree[0]] if tree[0][1] else found


def _batches(items: Sequence[Encoded], members: Sequence[int], shared: int, budget: int) -> Iterator[list[int]]:
    """Numbers of the members in batches of like length.

    Items with longer options continue from a cache, and a cache row may not end in padding: they are grouped by exact
    length. Single-token items may be padded, within an eighth of their length.
    """
    buckets: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for i in members:
        longer = any(len(o) > 1 for o in items[i].options)
        length = len(items[i].prompt) - shared
        buckets[longer, length].append(i)
    merged: list[tuple[bool, int, list[int]]] = []
    for (longer, length), members in sorted(buckets.items(), reverse=True):
        fits = merged and not longer and not merged[-1][0] and merged[-1][1] <= length + max(1, length // 8)
        if fits:
            merged[-1][2].extend(members)
        else:
            merged.append((longer, length, list(members)))
    for longer, length, members in merged:
        widest = max(sum(len(o) for o in items[i].options) for i in members) if longer else 1
        # The stem's keys and values are copied for each row.
        step = max(1, min(budget // max(length, widest), STEMS * budget // (shared + length)))
        for start in range(0, len(members), step):
            yield members[start : start + step]


def _disjoint(options: tuple[tuple[int, ...], ...]) -> list[int]:
    """Options that are no continuation of another: P("he was") is part of P("he")."""
    return [k for k, o in enumerate(options) if not any(o[: len(p)] == p and o != p for p in options)]


def _expanded(stem: object | None, rows: int) -> object | None:
    if stem is None:
        return None
    # Cache layers replace their tensors and never write into them, so shallow copies do not see each other; a deep
    # copy would refuse tensors that carry a graph.
    mine = copy.copy(stem)
    mine.layers = [copy.copy(layer) for layer in stem.layers]  # type: ignore[attr-defined]
    mine.batch_repeat_interleave(rows)  # type: ignore[attr-defined]
    return mine


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts start with, leaving each at least one of its own."""
    low, high = min(prompts), max(prompts)
    n = 0
    while n < min(len(low), len(high)) and low[n] == high[n]:
        n += 1
    return min(n, min(len(p) for p in prompts) - 1)


def padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Int[Tensor, "rows tokens"]:
    """Rows of token ids as one matrix, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*r, *([0] * (width - len(r)))] for r in rows], device=device)


def _select(rows: RowSelector | None, index: Sequence[int]) -> AbstractContextManager[None]:
    return nullcontext() if rows is None else rows(index)


@dataclass(frozen=True, slots=True)
class Flat:
    """Items laid out for one differentiable pass: rows of tokens, and where in them each option's tokens are predicted.

    An option of several tokens has a row of its own; all others are read off the first row of their item.
    """

    rows: tuple[tuple[int, ...], ...]
    wanted: tuple[tuple[int, int], ...]
    """(row, token) pairs whose last hidden state is unembedded."""
    reads: tuple[tuple[int, int, int], ...]
    """(index in `wanted`, token predicted there, slot), with slots numbering the options of all items in order."""
    options: tuple[int, ...]
    """Number of options of each item."""
    disjoint: tuple[tuple[int, ...], ...]
    """Of each item, the options whose probabilities add up to the mass: those that continue no other."""


def flatten(items: Sequence[Encoded]) -> Flat:
    """Lay items out for `score_flat`."""
    rows: list[tuple[int, ...]] = []
    wanted: dict[tuple[int, int], int] = {}
    reads: list[tuple[int, int, int]] = []
    slot = 0
    for item in items:
        end = len(item.prompt) - 1
        first = len(rows)
        if all(len(o) == 1 for o in item.options):
            rows.append(item.prompt)
        for option in item.options:
            if len(option) > 1:
                rows.append(item.prompt + option[:-1])
            row = len(rows) - 1 if len(option) > 1 else first
            for t, token in enumerate(option):
                reads.append((wanted.setdefault((row, end + t), len(wanted)), token, slot))
            slot += 1
    disjoint = tuple(tuple(_disjoint(i.options)) for i in items)
    return Flat(tuple(rows), tuple(wanted), tuple(reads), tuple(len(i.options) for i in items), disjoint)


def score_flat(readout: Readout, flat: Flat, h: Float[Tensor, "wanted dim"]) -> list[Scores]:
    """Scores of flattened items from the last hidden states that they want, each unembedded once.

    The same numbers as `score`, with gradients and without a cache between passes, so that activation checkpointing may
    be used.
    """
    place, token, slot = torch.tensor(flat.reads, device=h.device).unbind(1)
    logp = torch.zeros(sum(flat.options), device=h.device)
    step = max(1, LOGITS_AT_ONCE // readout.weight.shape[0])
    for start in range(0, len(h), step):
        logits = readout(h[start : start + step])
        norm = logits.logsumexp(-1)
        mine = ((place >= start) & (place < start + step)).nonzero().squeeze(1)
        at = place[mine] - start
        logp = logp.index_add(0, slot[mine], logits[at, token[mine]] - norm[at])
    parts = zip(logp.split(list(flat.options)), flat.disjoint, strict=True)
    return [Scores(part, torch.logsumexp(part[list(counted)], 0)) for part, counted in parts]


@dataclass(eq=False)
class Prepared:
    """Items made ready to be scored again and again: what no steering changes is computed once.

    That is their tokens, how these are laid out for passes, and where a steering begins at block l > 0 the hidden
    states that the blocks below it put out, which the first pass with such a steering leaves here.
    """

    encoded: Sequence[Encoded]
    layouts: dict[tuple[int, ...], Layout] = field(default_factory=dict)
    below: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)
    """By (l, numbers of a pass's rows): what block l - 1 puts out."""

    def some(self, numbers: Sequence[int]) -> Prepared:
        """Some of the items; what is kept is kept here where they are all of them."""
        if len(numbers) == len(self.encoded):
            return self
        return Prepared([self.encoded[n] for n in numbers])

    def run(self, body: nn.Module, blocks: Sequence[nn.Module], layout: Layout, rows: Sequence[int]) -> Tensor:
        """The last hidden states of a pass in which nothing is steered below the end of `blocks`."""
        if not blocks:
            return layout.run(body)
        key = (len(blocks), tuple(rows))
        if key in self.below:
            with capture.resumed(blocks, self.below[key]):
                return layout.run(body)
        with capture.recorded(blocks[-1]) as seen:
            hidden = layout.run(body)
        self.below[key] = seen[0]
        return hidden


def score_packed(
    body: nn.Module,
    readout: Readout,
    prepared: Prepared,
    *,
    tokens_at_once: int,
    blocks: Sequence[nn.Module] = (),
    on_batch: Callable[[int], None] | None = None,
) -> list[Scores]:
    """The same numbers as `score`, by tries of all items' rows: the fastest way where rows are short.

    Only for a model that can be packed, steered alike in all rows. `blocks` are the first ones, in which no steering
    acts: they are run once for `prepared`.
    """
    items = prepared.encoded
    flat = flatten(items)
    counts = (max(1, sum(len(o) > 1 for o in i.options)) for i in items)
    ends = {end - 1 for end in itertools.accumulate(counts)}  # an item's last row; it counts as the item

    def run(layout: Layout, rows: Sequence[int]) -> Tensor:
        hidden = prepared.run(body, blocks, layout, rows)
        if on_batch is not None:
            on_batch(sum(r in ends for r in rows))
        return hidden

    h = hidden_at(
        flat.rows, flat.wanted, run, pack=True, device=readout.weight.device, tokens_at_once=tokens_at_once,
        layouts=prepared.layouts,
    )  # fmt: skip
    return score_flat(readout, flat, h)
