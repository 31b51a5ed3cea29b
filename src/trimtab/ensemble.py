"""Several steerings as one: added up with a strength each, or averaged.

    together       sum_k s_k I_k                      what several dials on one model do, under one dial
    mean           1/n sum_k I_k                      at strength mean_k s_k: the SVE
    weighted       sum_k s_k I_k / sum_k |s_k|        at strength mean_k |s_k|
    renormalised   the mean, with the members' mean norm at each site; at strength mean_k s_k

I_k stands for what member k adds at a site (A h + c) and s_k for its own strength. A site that a member does not steer
counts as 0 there, and n counts all members.

The mean is the ensemble of steering vectors of Siddique et al., arXiv 2503.05371: per layer the plain mean of nine
axes' vectors, at the mean of their strengths. There all vectors have the same layers. Where we go beyond the source:

- **weighted.** The plain mean forgets that one vector was chosen at 0.2 and another at 2, and that some were chosen at
  a negative strength. At its default strength the weighted mean is the mean of the members as they were chosen.
- **renormalised.** Vectors that are not parallel have a shorter mean: of nine orthogonal ones a third.
- **Any kernel.** Of Diagonals a and c are averaged, low-rank factors (adapters too) are stacked. Norms are those of a,
  of c, and the Frobenius norm of L R.

A learner learns; this room takes Steerings and gives a Steering, so it stands outside learners/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import FingerprintMismatch, SiteError, StrengthError, UsageError
from trimtab.interventions import Adapter, Diagonal, Intervention, LowRank
from trimtab.steering import Steering

HOWS = ("mean", "sum", "weighted", "renormalised")
CANCEL = 1e-5
"""A mean shorter than this share of its members' mean norm is what rounding left: it has no direction."""
LICENCE = "The numbers of this steering may be used under Apache-2.0; the model they belong to has its own licence."
LIMITS = (
    "Made of other steerings; nothing was learned or measured in making it. What members do alone does not say what "
    "they do together: it holds only where it was measured."
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_Groups = Sequence[tuple[Intervention, ...]]


@dataclass(frozen=True, eq=False)
class Member:
    """A steering among others: its name, and its own strength."""

    name: str
    steering: Steering
    strength: float = 1.0


def parse(spec: str) -> tuple[str, str, float | None]:
    """(name, folder, strength) of `NAME=DIR@S`, `NAME=DIR`, `DIR@S` or `DIR`; DIR's own name where none is given.

    An existing folder is taken at its word, whatever stands in its name. Raises UsageError for what is malformed.
    """
    name, rest, strength = "", spec, None
    if not Path(spec).is_dir() and "=" in spec:
        name, _, rest = spec.partition("=")
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{spec}': expected NAME=DIR with a name of letters, digits, - and _; got '{name}'")
    if not Path(rest).is_dir() and "@" in rest:
        rest, _, number = rest.rpartition("@")
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise UsageError(f"'{spec}': expected DIR@STRENGTH with a finite number, got '{number}'")
    if not rest.strip():
        raise UsageError(f"'{spec}' names no steering folder; expected NAME=DIR@STRENGTH, NAME and STRENGTH if wanted")
    return name or Path(rest).resolve().name, rest, strength


def default_strength(steering: Steering) -> float:
    """The strength to use where nobody says another: the card's, else 1."""
    return float(steering.card.get("strength", {}).get("default", 1.0))


def together(members: Sequence[Member], *, other_weights: bool = False) -> Steering:
    """Steerings added up, each with its own strength; one dial multiplies them all.

    It may be turned to where every member is within its own trained range. Raises UsageError where two have one name
    or all strengths are 0, FingerprintMismatch where they were learned on different weights.
    """
    _require_names(members)
    if not any(m.strength for m in members):
        raise UsageError("every strength is 0, so nothing would be steered; give one another strength")
    parts = [(m.strength, m.steering) for m in members]
    spans = [_ends(m.steering, m.strength) for m in members if m.strength]
    strength = {"trained": [max(low for low, _ in spans), min(high for _, high in spans)], "default": 1.0}
    return Steering(_summed(parts), _card("together", {}, members, strength, other_weights))


def require(members: Sequence[Member], by: float = 1.0) -> None:
    """Raise StrengthError, naming the member, where one would be outside its trained range with a dial at `by`."""
    for m in members:
        w, (low, high) = by * m.strength, m.steering.trained_range
        if not min(low, 0.0) <= w <= high + 1e-6:
            product = f" ({by:g} x {m.strength:g})" if by != 1.0 else ""
            raise StrengthError(
                f"{m.name}: strength {w:g}{product} is outside its trained range [{low:g}, {high:g}]; what it does "
                "there is unknown. Ask for it with beyond_range=True (--beyond-range) if you mean it"
            )


def combine(members: Sequence[Member], how: str = "mean", *, leave_out: str | None = None) -> Steering:
    """One steering made of several, as the top of this file has it; `leave_out` names one that is left out.

    Its trained range is the mean of the members' (weighted as they are), so that it holds their mean strength; of a sum
    it is where every member is within its own. Raises UsageError for an unknown `how`, fewer than two members, a name
    that comes twice or is not there, strengths that are all 0, and a mean that cancels where its norm is wanted;
    StrengthError for a member's strength outside its trained range; FingerprintMismatch for members of different
    weights.
    """
    if how not in HOWS:
        raise UsageError(f"steerings are combined by {', '.join(HOWS)}; got '{how}'")
    _require_names(members)
    if len(members) < 2:
        raise UsageError(f"combining takes two steerings or more, got {len(members)}")
    if leave_out is not None and leave_out not in {m.name for m in members}:
        raise UsageError(f"no member '{leave_out}' to leave out; there are {', '.join(m.name for m in members)}")
    require(members)
    chosen = [m for m in members if m.name != leave_out]
    settings = {"how": how, **({"leave_out": leave_out} if leave_out is not None else {})}
    if how == "sum":
        made = together(chosen)
        return Steering(made.interventions, _card("combine", settings, chosen, made.card["strength"]))
    sizes = [abs(m.strength) if how == "weighted" else 1.0 for m in chosen]
    signs = [math.copysign(1.0, m.strength) if how == "weighted" else 1.0 for m in chosen]
    if not sum(sizes):
        raise UsageError("every strength is 0, so there is no mean weighted by strength; use --how mean")
    weights = [size / sum(sizes) for size in sizes]
    parts = [(weight * sign, m.steering) for weight, sign, m in zip(weights, signs, chosen, strict=True)]
    spans = [_ends(m.steering, sign) for sign, m in zip(signs, chosen, strict=True)]
    ends = [sum(w * span[end] for w, span in zip(weights, spans, strict=True)) for end in (0, 1)]
    default = sum(sign * m.strength for sign, m in zip(signs, chosen, strict=True)) / len(chosen)
    strength = {"trained": ends, "default": default}
    found = _renormalised([m.steering for m in chosen]) if how == "renormalised" else _summed(parts)
    return Steering(found, _card("combine", settings, chosen, strength))


# -- the sums


def _summed(parts: Sequence[tuple[float, Steering]]) -> dict[str, tuple[Intervention, ...]]:
    """The weighted sum at every site that any of them steers."""
    return {
        site: _merged(site, [i.scaled(w) for w, s in parts for i in s.interventions.get(site, ())])
        for site in _sites(s for _, s in parts)
    }


def _sites(steerings: Iterable[Steering]) -> list[str]:
    return list(dict.fromkeys(site for s in steerings for site in s.interventions))


def _merged(site: str, group: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """The same delta with one kernel of a kind: Diagonals added, LowRanks stacked, and Adapters likewise.

    sum_k L_k R_k (h - m_k)  =  L R (h - m_1) + sum_k L_k R_k (m_1 - m_k)          L, R: the factors side by side
    """
    if len({i.width for i in group}) > 1:
        widths = " and ".join(str(w) for w in sorted({i.width for i in group}))
        raise SiteError(f"at '{site}' the steerings are {widths} wide; they belong to different models")
    diagonals = [i for i in group if isinstance(i, Diagonal)]
    lowranks = [i for i in group if isinstance(i, LowRank)]
    adapters = [i for i in group if isinstance(i, Adapter)]
    found: list[Intervention] = []
    if adapters:
        found.append(Adapter(torch.cat([i.L for i in adapters], 1), torch.cat([i.R for i in adapters])))
    if lowranks:
        m = lowranks[0].m
        moved = [i.L @ (i.R @ (m - i.m)) for i in lowranks if not torch.equal(i.m, m)]
        diagonals += [Diagonal(None, c) for c in moved]
        found.append(LowRank(torch.cat([i.L for i in lowranks], 1), torch.cat([i.R for i in lowranks]), m))
    if diagonals:
        a = [i.a for i in diagonals if i.a is not None]
        c = [i.c for i in diagonals]
        found.insert(0, Diagonal(reduce(torch.add, a) if a else None, reduce(torch.add, c)))
    return tuple(found)


def _renormalised(steerings: Sequence[Steering]) -> dict[str, tuple[Intervention, ...]]:
    """The mean at every site, each kind of number in it as large as it is in the members on average."""
    found = {}
    for site in _sites(steerings):
        groups = [s.interventions.get(site, ()) for s in steerings]
        shares = [i.scaled(1 / len(groups)) for group in groups for i in group]
        kept: list[Intervention] = []
        if diagonals := [i for i in shares if isinstance(i, Diagonal)]:
            (mean,) = _merged(site, diagonals)
            assert isinstance(mean, Diagonal)
            a = None if mean.a is None else mean.a * _growth(site, mean.a.norm(), [_size(g, "a") for g in groups])
            kept.append(Diagonal(a, mean.c * _growth(site, mean.c.norm(), [_size(g, "c") for g in groups])))
        for kind in (LowRank, Adapter):
            if factors := [i for i in shares if isinstance(i, kind)]:
                by = _growth(site, _product(factors, kind), [_product(g, kind) for g in groups])
                kept += [i.scaled(by) for i in factors]
        found[site] = _merged(site, kept)
    return found


def _size(group: Sequence[Intervention], name: str) -> Tensor:
    """The norm of what the Diagonals of a group have of `a` or of `c`, all of it added up."""
    tensors = [t for i in group if isinstance(i, Diagonal) and (t := i.a if name == "a" else i.c) is not None]
    return reduce(torch.add, tensors).norm() if tensors else torch.zeros(())


def _product(group: Sequence[Intervention], kind: type[LowRank | Adapter]) -> Tensor:
    """The Frobenius norm of the sum of L R over the factors of one kind in a group."""
    factors = [(i.L.double(), i.R.double()) for i in group if isinstance(i, kind)]
    if not factors:
        return torch.zeros(())
    L, R = torch.cat([x for x, _ in factors], 1), torch.cat([x for _, x in factors])
    # |L R|^2 = trace of (L'L)(R R'): the product itself would be as large as a weight of the model.
    return ((L.T @ L) * (R @ R.T)).sum().clamp(min=0).sqrt()


def _growth(site: str, mean: Tensor, sizes: Sequence[Tensor]) -> float:
    """By what a mean grows to the mean norm of its members; 1 where there is nothing."""
    wanted = sum(float(s) for s in sizes) / len(sizes)
    if wanted == 0:
        return 1.0
    if not float(mean) > CANCEL * wanted:
        raise UsageError(f"at '{site}' the members cancel, so their mean has no direction to keep; use --how mean")
    return wanted / float(mean)


# -- what it says of itself


def _ends(steering: Steering, by: float) -> tuple[float, float]:
    """The trained range of a steering that counts `by` times: what its dial may be turned to."""
    low, high = (end / by for end in (min(steering.trained_range[0], 0.0), steering.trained_range[1]))
    return (low, high) if by > 0 else (high, low)


def _require_names(members: Sequence[Member]) -> None:
    names = [m.name for m in members]
    if twice := [n for k, n in enumerate(names) if n in names[:k]]:
        raise UsageError(f"two steerings are called '{twice[0]}'; tell them apart with NAME=DIR")


def _card(
    learner: str,
    settings: Mapping[str, Any],
    members: Sequence[Member],
    strength: Mapping[str, Any],
    other_weights: bool = False,
) -> dict[str, Any]:
    return {
        "learner": learner,
        "settings": {"given": dict(settings), "defaulted": {}},
        "model": _model(members, other_weights),
        "strength": dict(strength),
        **_positions(members),
        "members": [_entry(m) for m in members],
        "licence": LICENCE,
        "limits": LIMITS,
    }


def _positions(members: Sequence[Member]) -> dict[str, str]:
    """The tokens that all of them steer; nothing where that is all. Raises UsageError where they are not the same."""
    first = members[0]
    for m in members:
        if m.steering.positions != first.steering.positions:
            raise UsageError(
                f"'{first.name}' steers {first.steering.positions} positions, '{m.name}' {m.steering.positions}: one "
                "steering has the same for all its parts; give --positions, or Steering.at"
            )
    return {} if first.steering.positions == "all" else {"positions": first.steering.positions}


def _entry(member: Member) -> dict[str, Any]:
    """What a card says of a member: enough to find it again, and what it was learned from."""
    card = member.steering.card
    kept = {key: card[key] for key in ("learner", "seed", "data", "members") if key in card}
    return {"name": member.name, "strength": member.strength, "digest": member.steering.digest(), **kept}


def _model(members: Sequence[Member], other_weights: bool) -> dict[str, Any]:
    """The model that all members were learned on."""
    stated = [(m.name, m.steering.card["model"]) for m in members if m.steering.card.get("model")]
    for key in ("family",) if other_weights else ("family", "fingerprint"):
        seen = [(name, str(model[key])) for name, model in stated if key in model]
        for name, value in seen:
            if value != seen[0][1]:
                raise FingerprintMismatch(
                    f"'{seen[0][0]}' was learned on a model of {key} {seen[0][1][:12]}, '{name}' on one of "
                    f"{value[:12]}: steerings are put together for one model"
                )
    return dict(stated[0][1]) if stated else {}
