"""The two sides of a contrast as a model sees them: token ids, and activations that are read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import Tensor

from trimtab import capture, sites
from trimtab.errors import BadItem, ModelError, NoChatTemplate, TaskError, UsageError
from trimtab.model import SteerableModel
from trimtab.sites import Site
from trimtab.types import Contrast, Example, Message, Progress, ProgressCallback

AT_ONCE = 1024
"""Rows of one site that are in memory together."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Pooled activations of both sides at some sites: the rows of the positive side first."""

    sites: tuple[Site, ...]
    activations: capture.Activations
    positive: int
    negative: int

    def side(self, site: str, positive: bool) -> Iterator[Tensor]:
        """One side's vectors at a site in float64, (some, dim) at a time."""
        first, end = (0, self.positive) if positive else (self.positive, self.positive + self.negative)
        for chunk in self.activations.chunks(site, first, end, at_once=AT_ONCE):
            yield chunk.double()

    def differences(self, site: str) -> Iterator[Tensor]:
        """h+ - h- of each pair at a site in float64, (some, dim) at a time."""
        for plus, minus in zip(self.side(site, True), self.side(site, False), strict=True):
            yield plus - minus

    def mean(self, site: str, positive: bool) -> Tensor:
        """The mean of one side at a site, float64."""
        count = self.positive if positive else self.negative
        return torch.stack([chunk.sum(0) for chunk in self.side(site, positive)]).sum(0) / count


def read(
    model: SteerableModel,
    contrast: Contrast,
    pattern: str,
    *,
    pool: str = "last",
    needs_pairs: int = 0,
    progress: ProgressCallback | None = None,
) -> Sides:
    """Run both sides through the unsteered model once and keep one vector a text and site, on disk.

    Raises UsageError for what is no contrast and for an unknown pool, TaskError for a side without texts and where
    fewer than `needs_pairs` pairs are there, BadItem for a pair of equal sides, SiteError for an unknown site.
    """
    if pool not in get_args(capture.Pool):
        raise UsageError(f"pool is 'last' or 'mean', got '{pool}'")
    rows = tokens(model, contrast, needs_pairs=needs_pairs)
    at = sites.find(model.hf, pattern)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(Progress("reading", done, len(rows)))

    # A mean over tokens leaves out the begin-of-text token: its activations are many times all others.
    skip = len(model.start) if pool == "mean" else 0
    with model.unsteered():
        found = model.pooled(at, rows, pool=cast(capture.Pool, pool), skip=skip, on_batch=advance)
    return Sides(tuple(at), found, len(contrast.positive), len(contrast.negative))


def tokens(model: SteerableModel, contrast: Contrast, *, needs_pairs: int = 0) -> list[tuple[int, ...]]:
    """The token ids of the positive side, and behind them those of the negative one; refuses what `read` refuses.

    Where a model's chat template takes no system turn, its words go before the first user turn, on both sides.
    """
    if not isinstance(contrast, Contrast):
        raise UsageError(
            f"a direction is learned from a Contrast, got {type(contrast).__name__}; trimtab.contrasts makes one "
            "(from_items, from_descriptions, from_jsonl)"
        )
    name, plus, minus = contrast.name, contrast.positive, contrast.negative
    if not (plus and minus):
        raise TaskError(
            f"contrast '{name}' has {len(plus)} positive and {len(minus)} negative texts; texts of one class alone "
            "show no direction"
        )
    if contrast.paired and len(plus) != len(minus):
        raise TaskError(f"contrast '{name}' is paired, but has {len(plus)} positive and {len(minus)} negative texts")
    if needs_pairs and not contrast.paired:
        raise TaskError(f"contrast '{name}' has no pairs, and differences of pairs are what is learned from here")
    if len(plus) < needs_pairs:
        raise TaskError(f"contrast '{name}' has {len(plus)} pairs; at least {needs_pairs} are needed")
    try:
        rows = _rows(model, (*plus, *minus))
    except NoChatTemplate as error:
        if "descriptions:" not in name:
            raise
        raise NoChatTemplate(f"{error}; 'descriptions:AXIS:text' makes prompts of them") from None
    ours, theirs = rows[: len(plus)], rows[len(plus) :]
    if contrast.paired:
        for n, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1):
            if one == other:
                raise BadItem(f"pair {n} of contrast '{name}' has two equal sides: {_shortened(model.text(one))!r}")
    elif sorted(ours) == sorted(theirs):
        raise TaskError(f"contrast '{name}' has the same texts on both sides")
    return rows


def _rows(model: SteerableModel, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    try:
        return _in_parts(model, examples)
    except NoChatTemplate:
        raise
    except ModelError:
        folded = [_without_system(e) for e in examples]
        if folded == list(examples):
            raise
        return _in_parts(model, folded)


def _in_parts(model: SteerableModel, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """A tokenizer's own record of a text is some kilobytes: never all texts at once."""
    parts = range(0, len(examples), AT_ONCE)
    return [row for start in parts for row in model.example_tokens(examples[start : start + AT_ONCE])]


def _without_system(example: Example) -> Example:
    turns = example.prompt
    if isinstance(turns, str) or len(turns) < 2 or turns[0].role != "system":
        return example
    first = Message(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}")
    return replace(example, prompt=(first, *turns[2:]))


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 80 else words[:79] + "…"
