"""What is minimised, from the probabilities of one step's items: the bias, and the guards against the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trimtab.scoring import Encoded
from trimtab.types import Item


@dataclass(frozen=True, slots=True)
class Known:
    """An item as tokens, with the base model's scores where they were computed."""

    item: Item
    encoded: Encoded
    logp: Tensor | None = None
    log_mass: Tensor | None = None

    def share(self, role: str) -> float:
        """The base's probability of a role."""
        assert self.logp is not None
        p = self.logp.softmax(0)
        return sum(float(v) for v, o in zip(p, self.item.options, strict=True) if o.role == role)

    def base_mass(self) -> float:
        """The base's log of the options' total probability."""
        assert self.log_mass is not None
        return float(self.log_mass)


class Batch:
    """Items with their steered scores: ambiguous ones by concept first, then unambiguous ones."""

    def __init__(self, known: Sequence[Known], sizes: Sequence[int], logp: Tensor) -> None:
        self.known, self.sizes, self.logp = known, sizes, logp
        self.ambiguous = sum(sizes)
        self.p = logp.softmax(-1)

    def terms(self, log_mass: Tensor, reference: Tensor) -> dict[str, Tensor | None]:
        """What the loss is made of; None where undefined. `reference` holds the base's (P(neither), log mass).

        All are at least 0 but "neither", the mean rise of its share, which has a price (see prices.py).
        """
        n = self.ambiguous
        fall = self._log_correct(self._before(slice(n, None))) - self._log_correct(self.logp[n:])
        return {
            "bias": self._bias(),
            "template": self._template_tilt(),
            "neither": (self._role("neither")[:n] - reference[:, 0]).mean()
            if self._mask("neither")[:n].any()
            else None,
            "mass": torch.relu((reference[:, 1] - log_mass[:n]).mean()) if n else None,
            "unambiguous": torch.relu(fall).mean() if n < len(self.known) else None,
            "position": self._position_growth(),
        }

    def falls(self) -> dict[str, Tensor | None]:
        """What a look is judged by: the bias, and by how much each guarded figure is worse than the base's."""
        n, before = self.ambiguous, self._before(slice(None)).softmax(-1)
        correct = (self._role("correct", before) - self._role("correct"))[n:]
        rise = (self._role("neither") - self._role("neither", before))[:n]
        return {
            "bias": self._bias(),
            "neither": torch.relu(rise.mean()) if n else None,
            "unambiguous": torch.relu(correct.mean()) if n < len(self.known) else None,
            "position": self._position_growth(),
        }

    def bias_error(self) -> float:
        """The standard error over concepts of their mean bias; 0 where it is undefined."""
        found = self._biases()
        return 0.0 if found is None or len(found) < 2 else float(found.std() / len(found) ** 0.5)

    def _before(self, part: slice) -> Tensor:
        """The base's log-probabilities of some of the items."""
        held = [k.logp for k in self.known[part] if k.logp is not None]
        if not held:
            return self.logp[part]
        before = pad_sequence(held, batch_first=True, padding_value=-math.inf)
        return nn.functional.pad(before, (0, self.logp.shape[1] - before.shape[1]), value=-math.inf)

    def _template_tilt(self) -> Tensor | None:
        """Mean over the templates at hand of the squared tilt: the mean P(pro) - P(anti), signed by group where named.

        With more than two groups: twice the sum of squared distances of their means from even; for two the same number.
        """
        n = self.ambiguous
        if not n:
            return None
        place = {name: i for i, name in enumerate(dict.fromkeys(k.item.template for k in self.known[:n]))}
        index = torch.tensor([place[k.item.template] for k in self.known[:n]], device=self.p.device)

        def sums(values: Tensor) -> Tensor:
            return torch.zeros(len(place), device=self.p.device).index_add(0, index, values)

        if any(_many_groups(k.item) for k in self.known[:n]):
            groups = sorted({o.group for k in self.known[:n] for o in k.item.options if o.group is not None})
            masks = [self._options(group=group)[:n] for group in groups]
            # (groups, templates): how many items offer the group, and its mean share in those.
            offers = torch.stack([sums(mask.amax(-1)) for mask in masks])
            shares = torch.stack([sums((self.p[:n] * mask).sum(-1)) for mask in masks]) / offers.clamp(min=1)
            offered = (offers > 0).float()
            even = (shares * offered).sum(0) / offered.sum(0).clamp(min=1)
            return 2 * ((shares - even).square() * offered).sum(0).mean()
        sign = torch.tensor([_orientation(k.item) for k in self.known[:n]], device=self.p.device)
        tilt = sums(sign * (self._role("pro") - self._role("anti"))[:n]) / sums(torch.ones(n, device=self.p.device))
        return tilt.square().mean()

    def _role(self, role: str, p: Tensor | None = None) -> Tensor:
        return ((self.p if p is None else p) * self._mask(role)).sum(-1)

    def _mask(self, role: str) -> Tensor:
        return self._options(role=role)

    def _options(self, **of: str) -> Tensor:
        """(items, options): 1 where an option is of a role or a group, 0 elsewhere and in the padding."""
        width = self.logp.shape[1]
        rows = [
            [float(all(getattr(o, name) == x for name, x in of.items())) for o in k.item.options] for k in self.known
        ]
        return torch.tensor([r + [0.0] * (width - len(r)) for r in rows], device=self.logp.device)

    def _log_correct(self, logp: Tensor) -> Tensor:
        correct = self._mask("correct")[self.ambiguous :].bool()
        return logp.log_softmax(-1).masked_fill(~correct, -math.inf).logsumexp(-1)

    def _bias(self) -> Tensor | None:
        """The mean of the concepts' biases."""
        found = self._biases()
        return None if found is None else found.mean()

    def _biases(self) -> Tensor | None:
        """Of each concept |P(pro) - P(anti)|, or max - min over groups where items offer more than two."""
        shift = (self._role("pro") - self._role("anti"))[: self.ambiguous].split(list(self.sizes))
        found, start = [], 0
        for part, size in zip(shift, self.sizes, strict=True):
            members = self.known[start : start + size]
            groups = sorted({o.group for c in members for o in c.item.options if o.group is not None})
            if any(_many_groups(c.item) for c in members):
                found.append(self._spread(start, members, groups))
            else:
                found.append(part.mean().abs())
            start += size
        return torch.stack(found) if found else None

    def _spread(self, start: int, members: Sequence[Known], groups: Sequence[str]) -> Tensor:
        means = []
        for group in groups:
            offered = [
                self.p[start + n, [k for k, o in enumerate(c.item.options) if o.group == group]].sum()
                for n, c in enumerate(members)
                if any(o.group == group for o in c.item.options)
            ]
            means.append(torch.stack(offered).mean())
        return torch.stack(means).max() - torch.stack(means).min()

    def _position_growth(self) -> Tensor | None:
        """Growth over the base of max_k P(k) - min_k P(k), k the places of ambiguous items that list their options.

        Apart for lists of each length, weighted by how many items have it: "always the middle one" leaves first and
        last alike, and so may "first of two, last of three". Not on unambiguous items: to become right more often
        where the right one is listed first is no shortcut.
        """
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for n, k in enumerate(self.known[: self.ambiguous]):
            places = [o.position or 0 for o in k.item.options]
            if listed(k.item):
                order = sorted(range(len(places)), key=places.__getitem__)
                by_length.setdefault(len(order), []).append((n, order))
        rows = [n for some in by_length.values() for n, _ in some]
        if not rows or any(self.known[n].logp is None for n in rows):
            return None
        before = self._before(slice(None)).softmax(-1)
        growth = []
        for some in by_length.values():
            row = torch.tensor([n for n, _ in some], device=self.p.device)[:, None]
            at = torch.tensor([order for _, order in some], device=self.p.device)
            now, base = (p[row, at].mean(0) for p in (self.p, before))
            growth.append(len(some) * torch.relu(now.max() - now.min() - (base.max() - base.min())))
        return torch.stack(growth).sum() / len(rows)


def _many_groups(item: Item) -> bool:
    return len({o.group for o in item.options} - {None}) > 2


def _orientation(item: Item) -> float:
    """1 or -1, so that P(pro) - P(anti) times it is about the same two groups in every item that names groups."""
    pro = next((o.group for o in item.options if o.role == "pro"), None)
    anti = next((o.group for o in item.options if o.role == "anti"), None)
    return -1.0 if pro is not None and anti is not None and pro > anti else 1.0


def listed(item: Item) -> bool:
    """Whether the prompt lists or mentions all options, at places of their own."""
    places = {o.position for o in item.options}
    return None not in places and len(places) == len(item.options) > 1
