"""Figures as functions of cluster weights: what the bootstrap computes again under every resample.

A statistic maps multiplicities of templates and of concepts, (templates, resamples) and (concepts, resamples), to the
figure under each, (resamples,). Both are drawn in the order of the clusters' names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Figure:
    """What a reader, a table or a search needs to know about a figure."""

    low: float
    """The least value that it can take."""
    high: float
    """The greatest."""
    better: Literal["lower", "higher", "zero"]
    """The good direction; "zero" for signed figures, which are good where they are small in size."""
    meaning: str
    """One line for a legend."""
    of: Literal["items", "texts"] = "items"
    """Which kind of record it is computed from."""


def greedy(p: Sequence[float]) -> list[float]:
    """1 on the likeliest option, shared equally where several tie; nothing where no option was chosen."""
    top = max(p)
    if not top:
        return [0.0] * len(p)
    ties = sum(q == top for q in p)
    return [1 / ties if q == top else 0.0 for q in p]


def share(p: Sequence[float], labels: Sequence[object], label: object) -> float:
    """The probability of the options that bear a label."""
    return sum(q for q, own in zip(p, labels, strict=True) if own == label)


def index(labels: Sequence[Any]) -> tuple[np.ndarray, int]:
    """Each label's place among the distinct ones in sorted order, and how many there are."""
    place = {label: i for i, label in enumerate(sorted(set(labels)))}
    return np.array([place[label] for label in labels], dtype=np.intp), len(place)


def cells(*keys: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The distinct combinations of keys, sorted by the first key first, and each row's combination."""
    distinct, inverse = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    return tuple(distinct.T), inverse.reshape(-1)


class Ratio:
    """Ratios of weighted sums, put together: f(W) = finish(..., sum_i W_i x_ki / sum_i W_i y_ki, ...)."""

    def __init__(
        self,
        templates: Sequence[str],
        concepts: Sequence[str],
        columns: Sequence[tuple[Sequence[float], Sequence[float]]],
        finish: Callable[..., np.ndarray] = lambda ratio: ratio,
    ):
        """`columns` are the pairs (x_k, y_k), each with one number an item; an item's y is 0 where k leaves it out."""
        template, self.templates = index(templates)
        concept, self.concepts = index(concepts)
        # Items of one template and concept always share a weight, so only their sums are needed.
        (self.template, self.concept), cell = cells(template, concept)
        self.columns = [(np.bincount(cell, x), np.bincount(cell, y)) for x, y in columns]
        self.n = sum(any(y[i] for _, y in columns) for i in range(len(templates)))
        self.finish, self.width = finish, len(self.template)

    def __call__(self, templates: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Multiplicities (templates, resamples) and (concepts, resamples) to figures (resamples,)."""
        weight = templates[self.template] * concepts[self.concept]
        with np.errstate(all="ignore"):  # NaN: this resample holds no item; inf: a broken model's perplexity
            return self.finish(*((x @ weight) / (y @ weight) for x, y in self.columns))

    def value(self) -> float:
        """The figure of the records as they are."""
        return float(self(np.ones((self.templates, 1)), np.ones((self.concepts, 1)))[0])


class ByConcept:
    """Column means within each concept, reduced to one number a concept, then the mean over concepts.

        m_oc(W) = sum_{i in o, c} W_i x_i / sum_{i in o, c} W_i y_i,   f(W) = sum_o W_o g(m_o.) / sum_o W_o

    Columns are pro and anti, or the groups; y is 1, or 0 where an item is counted for nothing. A concept's own
    multiplicity cancels within it and counts outside.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, str, str, float, float]],
        n: int,
        reduce: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ):
        """`rows` are (concept, column, template, x, y), `n` the items that they are of."""
        concepts, columns, templates, x, y = zip(*rows, strict=True)
        template, self.templates = index(templates)
        concept, self.concepts = index(concepts)
        column, _ = index(columns)
        (cell_concept, cell_column, self.template), cell = cells(concept, column, template)
        self.x, self.y = np.bincount(cell, x)[:, None], np.bincount(cell, y)[:, None]
        new_concept = np.diff(cell_concept, prepend=-1) != 0
        new_column = new_concept | (np.diff(cell_column, prepend=-1) != 0)
        self.column_starts = np.flatnonzero(new_column)
        self.concept_starts = np.flatnonzero(new_concept[self.column_starts])
        self.reduce, self.n, self.width = reduce, n, len(self.x)

    def __call__(self, templates: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Multiplicities (templates, resamples) and (concepts, resamples) to figures (resamples,)."""
        weight = templates[self.template]
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN: this resample holds no item of the column
            means = np.add.reduceat(weight * self.x, self.column_starts) / np.add.reduceat(
                weight * self.y, self.column_starts
            )
            each = self.reduce(means, self.concept_starts)
            held = np.where(np.isnan(each), 0, concepts)
            found: np.ndarray = (held * np.nan_to_num(each)).sum(0) / held.sum(0)
            return found

    def value(self) -> float:
        """The figure of the records as they are."""
        return float(self(np.ones((self.templates, 1)), np.ones((self.concepts, 1)))[0])


class OneFactor:
    """A `ByConcept` over templates instead of concepts: what is averaged over is what is resampled, and nothing else
    is.

    For clusters that are concept and template at once, such as a scene shown with several people: drawing both would
    count their variance twice.
    """

    def __init__(self, rows: Sequence[tuple[str, str, float, float]], n: int, reduce: Callable[..., np.ndarray]):
        """`rows` are (cluster, column, x, y), `n` the items that they are of."""
        self.inner = ByConcept([(cluster, column, "", x, y) for cluster, column, x, y in rows], n, reduce)
        self.templates, self.concepts = self.inner.concepts, 1
        self.n, self.width = n, self.inner.width

    def __call__(self, templates: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Multiplicities (templates, resamples) and (1, resamples), of which only the first count, to (resamples,)."""
        return self.inner(np.ones((1, templates.shape[1])), templates)

    def value(self) -> float:
        """The figure of the records as they are."""
        return self.inner.value()


class Combined:
    """A figure of several statistics over the same items: f(W) = finish(g_1(W), g_2(W), ...)."""

    def __init__(self, parts: Sequence[Ratio | ByConcept], finish: Callable[..., np.ndarray]):
        first = parts[0]
        self.parts, self.finish = parts, finish
        self.templates, self.concepts, self.n, self.width = first.templates, first.concepts, first.n, first.width

    def __call__(self, templates: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Multiplicities (templates, resamples) and (concepts, resamples) to figures (resamples,)."""
        return self.finish(*(part(templates, concepts) for part in self.parts))

    def value(self) -> float:
        """The figure of the records as they are."""
        return float(self(np.ones((self.templates, 1)), np.ones((self.concepts, 1)))[0])


def spread(means: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """max_c m_oc - min_c m_oc, which for the columns pro and anti is |P(pro) - P(anti)|."""
    return np.fmax.reduceat(means, starts) - np.fmin.reduceat(means, starts)


def apart(means: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """As `spread`, but undefined where the resample holds fewer than two of the columns."""
    held = np.add.reduceat((~np.isnan(means)).astype(int), starts)
    return np.where(held > 1, spread(means, starts), np.nan)


def first_minus_second(means: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """m_o1 - m_o2 of the two columns in order of name; undefined where a concept has another number of them."""
    sizes = np.diff(np.append(starts, len(means)))
    second = np.minimum(starts + 1, len(means) - 1)
    found: np.ndarray = np.where((sizes == 2)[:, None], means[starts] - means[second], np.nan)
    return found


def total_variation(means: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """1/2 sum_c |m_oc - mean_c m_oc| over the columns that the resample holds."""
    held = ~np.isnan(means)
    centre = np.add.reduceat(np.nan_to_num(means), starts) / np.add.reduceat(held.astype(float), starts)
    sizes = np.diff(np.append(starts, len(means)))
    away = np.where(held, np.abs(means - np.repeat(centre, sizes, axis=0)), 0)
    return np.where(np.isnan(centre), np.nan, np.add.reduceat(away, starts) / 2)


Statistic = Ratio | ByConcept | OneFactor | Combined
