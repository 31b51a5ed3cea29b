"""What stands in a row before its first steered token: run once, and kept for every later pass.

A steering at positions `behind` begins behind an image. In a causal model the keys and values of what stands there and
before are then the same at any strength, and at any step of learning, and no gradient flows through them: a row goes on
from them with its last few tokens, and these are all that a pass computes. The same numbers as from whole rows, and the
same gradients. A question about a picture of demo:roomworld has 75 tokens, 65 of them such a stem.
This room sees modules and tensors only; whether stems may be used is model.py's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import caches
from trimtab.packing import Row, fitting, length_buckets, padded_rows

KEPT = 1 << 30
"""Bytes of keys and values that are kept, at most; those least recently used are computed again when they are needed.
"""
COPIED = 8
"""Tokens of stems that a pass holds, at most, for each that it computes: their keys and values are copied for it."""


class Stems:
    """Keys and values of stems, each a row of tokens, for one model with its weights as they are."""

    def __init__(self, body: nn.Module) -> None:
        self._body = body
        self._held: OrderedDict[Row, Any] = OrderedDict()
        self._bytes = 0
        self.computed = 0
        """How many stems were run."""

    def hidden_at(
        self,
        rows: Sequence[Row],
        cuts: Sequence[int],
        wanted: Sequence[tuple[int, int]],
        *,
        device: torch.device,
        tokens_at_once: int,
    ) -> Float[Tensor, "wanted dim"]:
        """Last hidden states at some (row, token) pairs; the first `cuts` tokens of each row are its stem.

        Every cut is at least 1 and leaves a token, and no token of a stem is wanted.
        """
        places: dict[int, list[int]] = {}
        for row, token in wanted:
            places.setdefault(row, []).append(token)
        parts: list[Tensor] = []
        found: dict[tuple[int, int], int] = {}
        for some in self._passes(rows, cuts, sorted(places), tokens_at_once):
            for batch, hidden in fitting([some], lambda batch: self._run(rows, cuts, batch, device)):
                pairs = [(k, r, t) for k, r in enumerate(batch) for t in dict.fromkeys(places[r])]
                found.update({(r, t): len(found) + n for n, (_, r, t) in enumerate(pairs)})
                at = torch.tensor([(k, t - cuts[r]) for k, r, t in pairs], device=device)
                parts.append(hidden[at[:, 0], at[:, 1]])
        order = [found[pair] for pair in wanted]
        return torch.cat(parts)[torch.tensor(order, dtype=torch.long, device=device)]

    def _passes(
        self, rows: Sequence[Row], cuts: Sequence[int], some: Sequence[int], tokens: int
    ) -> Iterator[list[int]]:
        """Numbers of the rows of each pass: stems of one length, and tails of about one length."""
        alike: dict[int, list[int]] = {}
        for r in some:
            alike.setdefault(cuts[r], []).append(r)
        for cut, members in alike.items():
            for bucket in length_buckets([len(rows[r]) - cut for r in members]):
                group = [members[n] for n in bucket]
                width = max(len(rows[r]) for r in group)
                step = max(1, min(tokens // (width - cut), COPIED * tokens // width))
                yield from (group[n : n + step] for n in range(0, len(group), step))

    def _run(
        self, rows: Sequence[Row], cuts: Sequence[int], some: Sequence[int], device: torch.device
    ) -> Float[Tensor, "some width dim"]:
        """The last hidden states of some rows' tails, padded on the right."""
        cache = caches.joined(self._of([rows[r][: cuts[r]] for r in some], device))
        tails = padded_rows([rows[r][cuts[r] :] for r in some], device)
        out = self._body(input_ids=tails.ids, use_cache=True, **caches.argument(self._body, cache))
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _of(self, stems: Sequence[Row], device: torch.device) -> list[Any]:
        """The cache of each stem, all of one length."""
        new = [s for s in dict.fromkeys(stems) if s not in self._held]
        made: dict[Row, Any] = {}
        # What is computed while learning, or in inference mode, may be wanted in the other.
        with torch.inference_mode(False), torch.no_grad():
            for batch, cache in fitting([list(range(len(new)))] if new else [], lambda b: self._fresh(new, b, device)):
                made.update({new[n]: caches.row(cache, k) for k, n in enumerate(batch)})
        self.computed += len(new)
        for stem in stems:
            if stem in self._held:
                self._held.move_to_end(stem)
        found = [self._held[s] if s in self._held else made[s] for s in stems]
        self._keep(made)
        return found

    def _fresh(self, stems: Sequence[Row], some: Sequence[int], device: torch.device) -> Any:
        ids = torch.tensor([stems[n] for n in some], device=device)
        return caches.returned(self._body(input_ids=ids, use_cache=True))

    def _keep(self, made: dict[Row, Any]) -> None:
        self._held.update(made)
        self._bytes += sum(map(caches.size, made.values()))
        while self._bytes > KEPT and self._held:
            self._bytes -= caches.size(self._held.popitem(last=False)[1])

    def forget(self) -> None:
        """The weights are others now."""
        self._held.clear()
        self._bytes = 0
