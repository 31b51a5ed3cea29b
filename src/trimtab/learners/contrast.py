"""Directions from contrast pairs: CAA (mean difference) and PCA (first principal component).

    h' = h + w v        at block outputs, all positions

    CAA    v = mean_i h_i+  -  mean_i h_i-
    PCA    v = s u,     u = the unit vector with the largest sum_i ((d_i - m) . u)^2,    d_i = h_i+ - h_i-

CAA: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681. PCA as in Siddique et
al., arXiv 2503.05371, and in Zou et al., arXiv 2310.01405: m is the mean difference where `centred`, else 0. The sign
of u is that under which more pairs have d_i . u > 0 than below 0; of a tie, the mean's.

Where we depart from the sources, and why:

- **The dose is shared between the sites.** What is added to one block's output flows on to all later ones, so v at each
  of L blocks moves the last of them by about L mean differences, where text breaks: on demo:smollm2, all 30 blocks,
  pairs of pronouns, perplexity rose from 57 to 4,794 at strength 1. With `share` each site gets 1/L of it: with one
  site, as in CAA, this is the source's; with many, strength 1 is about one mean difference in all (perplexity 57.3).
- **PCA at a dose that means something.** The sources add unit vectors, of which some models take 2 and others 200. s is
  the mean size of d_i . u: strength 1 is the typical way from a negative text to its positive twin along u. `scale =
  "unit"` gives unit vectors.
- **Uncentred is offered.** Centring takes the mean difference out, often the larger part, and what is left need not
  point from negative to positive at all: the card states for each site the share of pairs that agree with the sign.
- **Any pooling and any site.** The sources read the last token at block outputs, which is the default.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.errors import TaskError, UsageError
from trimtab.interventions import Diagonal
from trimtab.learners import sides
from trimtab.learners.card import card
from trimtab.model import SteerableModel
from trimtab.steering import Steering
from trimtab.types import Contrast, ProgressCallback

SCALES = ("difference", "unit")
ALIKE = 1e-6
"""Differences of this share of the activations are their rounding."""
STRENGTH = {"trained": [-2.0, 2.0]}
"""Nothing was trained at any strength: this is the range in which the sources search."""
OPEN = True
"""A search may go beyond that range, as it is a custom; the card then has the range that was searched."""
LIMITS = (
    "A direction in which texts of two kinds differ, added everywhere. Nothing was optimised: neither fairness nor "
    "capability was looked at while learning, and a difference of wording, length or topic between the two kinds is "
    "part of it. What it does, and at which strength, holds only where it was measured."
)


@dataclass(frozen=True)
class CAA:
    """Settings of Contrastive Activation Addition, the mean difference; `fit` learns a Steering."""

    sites: str = "layers.*.out"
    """Pattern of the sites to steer; `layers.10-20.out` for a range of blocks."""
    pool: str = "last"
    """"last": a text's activation is that of its last token, the answer's; "mean": the mean over its tokens."""
    scale: str = "difference"
    """"difference": v as it is; "unit": v has norm 1 at each site, before it is shared."""
    share: bool = True
    """Divide by the number of sites, so that strength 1 is about one mean difference in all and not one a site."""

    def __post_init__(self) -> None:
        _check(self)

    def fit(
        self, model: SteerableModel, contrast: Contrast, *, seed: int, progress: ProgressCallback | None = None
    ) -> Steering:
        """The mean difference at each site; pairs are not needed. `seed` goes to the card, nothing is drawn.

        Sites where the two sides are alike (before the first attention, the last token is often the same one) are left
        out, and the card lists them. Raises TaskError where none is left and for a contrast without two sides, BadItem
        for a pair of equal sides, SiteError for an unknown site.
        """
        read = sides.read(model, contrast, self.sites, pool=self.pool, progress=progress)
        found = []
        for site in read.sites:
            plus, minus = read.mean(site.name, True), read.mean(site.name, False)
            v = plus - minus
            if float(v.norm()) > ALIKE * float(plus.norm() + minus.norm()):
                found.append(_Direction(site.name, v if self.scale == "difference" else v / v.norm()))
        return _steering("caa", self, model, contrast, seed, read, found)


@dataclass(frozen=True)
class PCA:
    """Settings of the principal direction of differences; `fit` learns a Steering."""

    sites: str = "layers.*.out"
    """Pattern of the sites to steer; `layers.10-20.out` for a range of blocks."""
    pool: str = "last"
    """"last": a text's activation is that of its last token; "mean": the mean over its tokens."""
    centred: bool = True
    """Subtract the mean difference first, as the source does; without it, the mean difference is most of the result
    wherever it is most of the differences."""
    scale: str = "difference"
    """"difference": the mean size of the differences along the direction; "unit": norm 1 at each site, before it is
    shared."""
    share: bool = True
    """Divide by the number of sites, so that strength 1 is about one difference in all and not one a site."""

    def __post_init__(self) -> None:
        _check(self)

    def fit(
        self, model: SteerableModel, contrast: Contrast, *, seed: int, progress: ProgressCallback | None = None
    ) -> Steering:
        """The first principal component of the pairs' differences at each site. `seed` goes to the card.

        Sites where differences do not vary (or are 0, uncentred) are left out, and the card lists them. Raises
        TaskError where none is left and for a contrast without pairs (two at least where centred), BadItem for a pair
        of equal sides, SiteError for an unknown site.
        """
        needed = 2 if self.centred else 1
        read = sides.read(model, contrast, self.sites, pool=self.pool, needs_pairs=needed, progress=progress)
        found = []
        for site in read.sites:
            component = _component(read, site.name, self.centred)
            if component is None:
                continue
            u, explained = component
            along = torch.cat([d @ u for d in read.differences(site.name)])
            u, along = (u, along) if _points_up(u, along) else (-u, -along)
            v = u * along.abs().mean() if self.scale == "difference" else u
            agree = float((along > 0).double().mean())
            seen = {"explained": round(explained, 4), "agreeing_pairs": round(agree, 4)}
            found.append(_Direction(site.name, v, seen))
        return _steering("pca", self, model, contrast, seed, read, found)


@dataclass(frozen=True, eq=False)
class _Direction:
    """What was found at one site, before the dose is shared."""

    site: str
    v: Tensor
    seen: dict[str, float] = field(default_factory=dict)


def _check(settings: CAA | PCA) -> None:
    if settings.scale not in SCALES:
        name = type(settings).__name__
        raise UsageError(f"{name}.scale is 'difference' or 'unit', got '{settings.scale}'")


def _component(read: sides.Sides, site: str, centred: bool) -> tuple[Tensor, float] | None:
    """The unit vector u with the largest sum of squares of (d - m) . u, and its share of the whole sum of squares.

    From the Gram matrix where pairs are fewer than dimensions, else from the scatter matrix: memory does not grow with
    the pairs. None where the sum of squares is nothing but rounding.
    """
    pairs = read.positive
    mean = torch.stack([d.sum(0) for d in read.differences(site)]).sum(0) / pairs
    shift = mean if centred else torch.zeros_like(mean)
    if pairs <= len(mean):
        D = torch.cat(list(read.differences(site))) - shift
        values, vectors = torch.linalg.eigh(D @ D.T)
        u = D.T @ vectors[:, -1]
    else:
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for d in read.differences(site):
            scatter += (d - shift).T @ (d - shift)
        values, vectors = torch.linalg.eigh(scatter)
        u = vectors[:, -1]
    whole = float(values.sum())
    size = sum(float((h * h).sum()) for positive in (True, False) for h in read.side(site, positive))
    if not whole > ALIKE**2 * size:
        return None
    return u / u.norm(), float(values[-1]) / whole


def _points_up(u: Tensor, along: Tensor) -> bool:
    """Whether most pairs go up along u; of a tie the mean decides, and of a tie of that u's largest number."""
    for balance in ((along > 0).sum() - (along < 0).sum(), along.mean(), u[u.abs().argmax()]):
        if float(balance) != 0:
            return float(balance) > 0
    return True


def _steering(
    learner: str,
    settings: CAA | PCA,
    model: SteerableModel,
    contrast: Contrast,
    seed: int,
    read: sides.Sides,
    found: list[_Direction],
) -> Steering:
    if not found:
        what = "the two sides do not differ" if learner == "caa" else "the differences of pairs do not vary"
        raise TaskError(f"{what} at any site of '{settings.sites}', so there is no direction; name later sites")
    part = len(found) if settings.share else 1
    shifts = {d.site: (d.v / part).float() for d in found}
    directions = {d.site: {"norm": round(float(shifts[d.site].norm()), 6), **d.seen} for d in found}
    left_out = [site.name for site in read.sites if site.name not in shifts]
    made = card(
        learner, settings, model, contrast, seed, strength=STRENGTH, limits=LIMITS, directions=directions,
        **({"sites_left_out": left_out} if left_out else {}),
    )  # fmt: skip
    return Steering({site: (Diagonal(None, v),) for site, v in shifts.items()}, made)
