"""ITI: Inference-Time Intervention, a shift of the attention heads that tell the two sides apart.

    x' = x + w alpha sum over chosen heads j of  sigma_j theta_j       x: input of the attention output projection

Li, Patel, Viegas, Pfister and Wattenberg, "Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model", arXiv 2306.03341. At that point x is the heads' outputs side by side. For each head a logistic regression
(theta, b) on its part of x learns which side a text is from:

    min over (theta, b)   sum_i log(1 + exp(-y_i (theta . x_i + b)))  +  ridge / 2 |theta|^2,      y = 1, -1

The heads whose probes are most often right on texts held back are chosen. theta_j is then the unit vector along the
mean difference of the two sides (or along the probe), sigma_j the standard deviation of theta_j . x over all texts.

Where we depart from the source, and why:

- **Pairs stay whole.** Both sides of a pair are held back or neither: they share a prompt, and a probe that has seen
  one half knows the other.
- **Ties.** Few texts held back make many heads equally often right; among them the higher mean log probability decides,
  then the lower layer and head. The source leaves it to the sort.
- **All positions, and so a smaller alpha.** The source shifts the last position of each step, by 15 deviations. A dial
  acts on every token, prompt included: on demo:smollm2, 16 heads of 270, perplexity rose by 4 % at alpha 2, by 10 % at
  3, by 39 % at 5 and to thirty times at 15.
- **A twentieth of the heads** where no number is given: the source's 48 are 5 % of the 1,024 of LLaMA-7B.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import TaskError, UsageError
from trimtab.interventions import Diagonal
from trimtab.learners import sides
from trimtab.learners.card import card
from trimtab.model import SteerableModel
from trimtab.sites import Site
from trimtab.steering import Steering
from trimtab.types import Contrast, Progress, ProgressCallback

STRENGTH = {"trained": [-2.0, 2.0]}
"""Nothing was trained at any strength: this is the range that other directions are given as well."""
OPEN = True
"""A search may go beyond that range, as it is a custom; the card then has the range that was searched."""
LIMITS = (
    "A shift of the attention heads in which texts of two kinds are told apart best, added everywhere. Nothing was "
    "optimised: neither fairness nor capability was looked at while learning, and heads may tell the kinds apart by "
    "wording or topic. What it does, and at which strength, holds only where it was measured."
)
INTERCEPT = 1e-6
"""Weight of b^2 / 2: without any, a head that tells all texts apart may leave b without a best value."""


@dataclass(frozen=True)
class ITI:
    """Settings of Inference-Time Intervention; `fit` learns a Steering."""

    sites: str = "layers.*.attn.proj_in"
    """Pattern of the sites whose heads are looked at; `layers.10-20.attn.proj_in` for a range of blocks."""
    heads: int = 0
    """Heads that are shifted, over all sites together; 0: a twentieth of those that are there, one at least."""
    only: str = ""
    """LAYER.HEAD, parted by commas, both counted from 0: shift these heads instead of the best."""
    alpha: float = 3.0
    """Standard deviations of the shift at strength 1."""
    direction: str = "mean"
    """"mean": along the mean difference of the two sides; "probe": along the probe's weights."""
    held: float = 0.2
    """Share of the pairs, or of each side's texts, that is held back from the probes to choose heads by."""
    ridge: float = 1.0
    """Weight of |theta|^2 / 2 in a probe."""
    pool: str = "last"
    """"last": a text's activation is that of its last token, the answer's; "mean": the mean over its tokens."""

    def __post_init__(self) -> None:
        if self.direction not in ("mean", "probe"):
            raise UsageError(f"ITI.direction is 'mean' or 'probe', got '{self.direction}'")
        if self.heads < 0:
            raise UsageError(f"ITI.heads must be at least 1, or 0 for a twentieth of them, got {self.heads}")
        if not 0 < self.held < 1:
            raise UsageError(f"ITI.held is a share between 0 and 1, got {self.held}")
        for name in ("alpha", "ridge"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"ITI.{name} must be a finite number above 0, got {value}")
        _named(self.only)

    def fit(
        self, model: SteerableModel, contrast: Contrast, *, seed: int, progress: ProgressCallback | None = None
    ) -> Steering:
        """Probe every head, choose, and shift; `seed` draws which texts are held back. Pairs are not needed.

        Raises UsageError for a site that is no `attn.proj_in`, for more heads than there are and for a head out of
        range; TaskError for fewer than two texts a side; BadItem for a pair of equal sides.
        """
        read = sides.read(model, contrast, self.sites, pool=self.pool, progress=progress)
        shape = _heads_of(model, read.sites)
        wanted = self._wanted(read.sites, shape)
        held = _held(contrast, self.held, seed)
        found: list[_Head] = []
        probes = {}
        for n, site in enumerate(read.sites, start=1):
            probes[site.name] = theta = _fitted(_rows(read, site, shape, ~held), shape, self.ridge)
            found += _judged(_rows(read, site, shape, held), theta, site)
            if progress is not None:
                progress(Progress("probing", n, len(read.sites)))
        best = sorted(found, key=lambda h: (-h.accuracy, h.loss, h.layer, h.head))
        chosen = (
            [h for h in best if (h.layer, h.head) in wanted] if wanted else best[: self.heads or -(-len(best) // 20)]
        )
        shifts, listed = self._shifts(read, shape, probes, chosen)
        made = card(
            "iti", self, model, contrast, seed, strength=STRENGTH, limits=LIMITS,
            heads={"of": len(found), "texts_held_back": int(held.sum()), "chosen": listed},
        )  # fmt: skip
        return Steering({site: (Diagonal(None, v.float()),) for site, v in shifts.items()}, made)

    def _wanted(self, at: tuple[Site, ...], shape: tuple[int, int]) -> set[tuple[int, int]]:
        """The heads that `only` names. Raises UsageError for what is not there."""
        layers, wanted = [_layer(site) for site in at], _named(self.only)
        for layer, head in wanted:
            if layer not in layers:
                raise UsageError(f"ITI.only: no layer {layer} among those of sites ({layers[0]} to {layers[-1]})")
            if head >= shape[0]:
                raise UsageError(f"ITI.only: layer {layer} has no head {head}, it has 0 to {shape[0] - 1}")
        if not wanted and self.heads > len(at) * shape[0]:
            raise UsageError(
                f"{self.heads} heads were asked for, and there are {len(at) * shape[0]} ({len(at)} sites of "
                f"{shape[0]}); set heads to fewer"
            )
        return wanted

    def _shifts(
        self, read: sides.Sides, shape: tuple[int, int], probes: dict[str, Tensor], chosen: list[_Head]
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """alpha sigma theta at each site with a chosen head, zero outside those, and what the card says of each."""
        heads, dim = shape
        shifts, listed = {}, []
        for site in read.sites:
            here = sorted(h.head for h in chosen if h.site == site.name)
            if not here:
                continue
            if self.direction == "probe":
                theta = probes[site.name][:, :dim]
            else:
                theta = (read.mean(site.name, True) - read.mean(site.name, False)).view(heads, dim)
            size = theta.norm(dim=1, keepdim=True)
            if not bool((size[here] > 0).all()):
                raise TaskError(f"at '{site.name}' the two sides do not differ in a chosen head: there is no direction")
            theta = theta / size.clamp(min=1e-300)
            sigma = _deviation(read, site.name, theta)
            v = torch.zeros(heads, dim, dtype=torch.float64)
            v[here] = self.alpha * sigma[here, None] * theta[here]
            shifts[site.name] = v.flatten()
            accuracy = {h.head: h.accuracy for h in chosen if h.site == site.name}
            listed += [
                {
                    "layer": _layer(site),
                    "head": h,
                    "accuracy": round(accuracy[h], 4),
                    "sigma": round(float(sigma[h]), 6),
                }
                for h in here
            ]
        return shifts, listed


@dataclass(frozen=True, slots=True)
class _Head:
    """How well one head's probe does on the texts held back."""

    site: str
    layer: int
    head: int
    accuracy: float
    loss: float


Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Goes once over some texts: ((some, heads, dim), y of each, 1 or -1)."""


def _named(text: str) -> set[tuple[int, int]]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if bad := [p for p in parts if not re.fullmatch(r"\d+\.\d+", p)]:
        raise UsageError(f"ITI.only: '{bad[0]}' is not LAYER.HEAD, such as 12.3")
    return {(int(layer), int(head)) for layer, _, head in (p.partition(".") for p in parts)}


def _layer(site: Site) -> int:
    return int(site.name.split(".")[1])


def _heads_of(model: SteerableModel, at: tuple[Site, ...]) -> tuple[int, int]:
    """(heads, numbers of each) at every site."""
    if other := [s.name for s in at if not re.fullmatch(r"layers\.\d+\.attn\.proj_in", s.name)]:
        raise UsageError(f"ITI shifts heads, at sites layers.N.attn.proj_in; '{other[0]}' is none")
    config: Any = model.hf.config
    heads = int(config.get_text_config().num_attention_heads)
    widths = {int(site.width or 0) for site in at}
    if len(widths) > 1 or next(iter(widths)) % heads:
        raise UsageError(
            f"{model.name} has {heads} heads, but its attention is {sorted(widths)} wide: not so many each"
        )
    return heads, next(iter(widths)) // heads


def _held(contrast: Contrast, share: float, seed: int) -> Bool[Tensor, " rows"]:
    """Which texts are held back: so many of the pairs, or of each side, and at least one on either part."""
    rng = random.Random(f"{seed}:held")
    sizes = (len(contrast.positive), len(contrast.negative))
    if min(sizes) < 2:
        raise TaskError(f"contrast '{contrast.name}' has {min(sizes)} text on a side; ITI needs two: one to choose by")

    def drawn(size: int) -> Tensor:
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[rng.sample(range(size), min(size - 1, max(1, round(share * size))))] = True
        return chosen

    first = drawn(sizes[0])
    return torch.cat([first, first if contrast.paired else drawn(sizes[1])])


def _rows(read: sides.Sides, site: Site, shape: tuple[int, int], kept: Bool[Tensor, " rows"]) -> Chunks:
    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for positive in (True, False):
            for x in read.side(site.name, positive):
                some = x[kept[start : start + len(x)]].view(-1, *shape)
                start += len(x)
                if len(some):
                    yield some, torch.full((len(some),), 1.0 if positive else -1.0, dtype=torch.float64)

    return chunks


def _fitted(chunks: Chunks, shape: tuple[int, int], ridge: float) -> Float[Tensor, "heads weights"]:
    """The probe of every head, the intercept last: Newton steps, halved until each head's objective falls enough."""
    heads, dim = shape
    weight = torch.full((dim + 1,), ridge, dtype=torch.float64)
    weight[-1] = INTERCEPT
    theta = torch.zeros(heads, dim + 1, dtype=torch.float64)
    value, gradient, hessian = _terms(chunks, theta, weight)
    for _ in range(100):
        step = torch.linalg.solve(hessian, gradient)
        fall = (gradient * step).sum(1)
        if float(fall.max()) < 1e-12:
            break
        size = torch.ones(heads, dtype=torch.float64)
        for _ in range(40):
            trial = _terms(chunks, theta - size[:, None] * step, weight)
            short = trial[0] > value - 1e-4 * size * fall + 1e-12 * value
            if not bool(short.any()):
                break
            size = torch.where(short, size / 2, size)
        theta = theta - size[:, None] * step
        value, gradient, hessian = trial
    return theta


def _terms(chunks: Chunks, theta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, gradient and Hessian of every head's probe."""
    value = 0.5 * (weight * theta**2).sum(1)
    gradient = weight * theta
    hessian = torch.diag(weight).expand(len(theta), -1, -1).clone()
    for x, y in chunks():
        z = _with_one(x)
        margin = y[:, None] * torch.einsum("nhd,hd->nh", z, theta)
        value += torch.nn.functional.softplus(-margin).sum(0)
        p = torch.sigmoid(-margin)
        gradient -= torch.einsum("nh,nhd->hd", y[:, None] * p, z)
        per_head = z.transpose(0, 1)
        hessian += per_head.transpose(1, 2) @ (per_head * (p * (1 - p)).T[:, :, None])
    return value, gradient, hessian


def _judged(chunks: Chunks, theta: Tensor, site: Site) -> list[_Head]:
    right = loss = torch.zeros(len(theta), dtype=torch.float64)
    count = 0
    for x, y in chunks():
        margin = y[:, None] * torch.einsum("nhd,hd->nh", _with_one(x), theta)
        right = right + (margin > 0).double().sum(0)
        loss = loss + torch.nn.functional.softplus(-margin).sum(0)
        count += len(y)
    return [
        _Head(site.name, _layer(site), head, float(right[head]) / count, float(loss[head]) / count)
        for head in range(len(theta))
    ]


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def _deviation(read: sides.Sides, site: str, theta: Float[Tensor, "heads dim"]) -> Float[Tensor, " heads"]:
    """The standard deviation of theta . x over all texts of both sides."""
    along = torch.cat([
        torch.einsum("nhd,hd->nh", x.view(-1, *theta.shape), theta)
        for positive in (True, False)
        for x in read.side(site, positive)
    ])  # fmt: skip
    return along.std(0, correction=0)
