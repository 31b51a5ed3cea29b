"""Dividing items so that nothing of a test item was trained on: neither its concept nor its template.

A drawn division is a function of the seed and of the set of (concept, template) pairs and their counts; the
order of the items in a file does not matter.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trimtab.errors import TaskError, UsageError
from trimtab.types import SPLITS, Item, Split

DRAWS = 200
"""How many shuffles are tried until every split has an item, before giving up."""

Node = tuple[str, str]


def divide(
    items: Iterable[Item], seed: int, *, fractions: tuple[float, float, float] = (0.5, 0.2, 0.3)
) -> tuple[list[Item], str]:
    """Items with a split each, disjoint by concept and by template, and how that was done in words.

    Concepts and templates are the two sides of a graph with an edge for each item. Where it falls into three
    or more connected components and none holds more than half of the items, whole components are dealt to the
    splits in a shuffled order, each to the split that lacks most items, and every item is kept. Otherwise
    concepts and templates are divided separately, each by `fractions`, and the items whose concept and
    template fall into different splits are left out: of a full grid about sum(f^2) = 38 % stays, which is the
    price of testing on concepts *and* templates that were not trained on.

    The items come back in the order given. Raises TaskError where no disjoint division with an item in every
    split exists or was found, UsageError for fractions that are not three positive numbers with the sum 1.
    """
    items = list(items)
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise UsageError(f"fractions must be three positive numbers with the sum 1, got {fractions!r}.")
    concepts = sorted({i.concept for i in items})
    templates = sorted({i.template for i in items})
    if len(concepts) < 3 or len(templates) < 3:
        raise TaskError(
            f"{_count(len(concepts), 'concept')} and {_count(len(templates), 'template')} cannot be divided "
            "into train, validation and test: no concept and no template may be in two splits, so at least 3 "
            f"of each are needed. {_REMEDY}"
        )
    rng = random.Random(seed)
    parts = components(items)
    sizes = Counter({k: sum(n for n in part.values()) for k, part in enumerate(parts)})
    if len(parts) >= 3 and max(sizes.values()) <= len(items) / 2:
        home = _deal(parts, rng, fractions)
        divided = [replace(i, split=home[i.concept]) for i in items]
        how = f"by whole groups that share neither concept nor template ({len(parts)} groups)"
    else:
        divided = _cross(items, concepts, templates, rng, fractions)
        how = "concepts and templates separately"
    left = len(items) - len(divided)
    counts = ", ".join(f"{s} {sum(i.split == s for i in divided)}" for s in SPLITS)
    because = " because their concept and template fell into different splits" if left else ""
    return divided, f"drawn with seed {seed}, {how}: {counts}; {_count(left, 'item')} left out{because}"


def overlap(items: Iterable[Item]) -> tuple[int, int]:
    """How many concepts, and how many templates, occur in more than one split."""
    concepts: dict[str, set[str | None]] = {}
    templates: dict[str, set[str | None]] = {}
    for item in items:
        concepts.setdefault(item.concept, set()).add(item.split)
        templates.setdefault(item.template, set()).add(item.split)
    return sum(len(s) > 1 for s in concepts.values()), sum(len(s) > 1 for s in templates.values())


def components(items: Sequence[Item]) -> list[Counter[Node]]:
    """The connected components of the concept-template graph, each as {concept node: number of items}.

    Sorted by their first concept, so that the order of the items does not matter.
    """
    parent: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for item in items:
        # The side is part of the node: a concept and a template may have the same name.
        parent[find(("concept", item.concept))] = find(("template", item.template))
    groups: dict[Node, Counter[Node]] = {}
    for item in items:
        node = ("concept", item.concept)
        groups.setdefault(find(node), Counter())[node] += 1
    return sorted(groups.values(), key=min)


_REMEDY = 'Give a "split" on each line of the file, or use `--split all` for evaluation only.'


def _deal(parts: list[Counter[Node]], rng: random.Random, fractions: tuple[float, float, float]) -> dict[str, Split]:
    total = sum(sum(part.values()) for part in parts)
    lacking = {s: f * total for s, f in zip(SPLITS, fractions, strict=True)}
    empty = set(SPLITS)
    home: dict[str, Split] = {}
    shuffled = rng.sample(parts, len(parts))
    for done, part in enumerate(shuffled):
        # Once only as many groups remain as there are empty splits, each of those must get one.
        choices = [s for s in SPLITS if s in empty] if len(parts) - done == len(empty) else list(SPLITS)
        split = max(choices, key=lambda s: lacking[s])
        lacking[split] -= sum(part.values())
        empty.discard(split)
        home.update((concept, split) for _, concept in part)
    return home


def _cross(
    items: list[Item],
    concepts: list[str],
    templates: list[str],
    rng: random.Random,
    fractions: tuple[float, float, float],
) -> list[Item]:
    for _ in range(DRAWS):
        of_concept = _cut(concepts, rng, fractions)
        of_template = _cut(templates, rng, fractions)
        kept = [
            replace(i, split=of_concept[i.concept]) for i in items if of_concept[i.concept] == of_template[i.template]
        ]
        if {i.split for i in kept} == set(SPLITS):
            return kept
    raise TaskError(
        f"{_count(len(items), 'item')} over {_count(len(concepts), 'concept')} and "
        f"{_count(len(templates), 'template')} hang together so closely that {DRAWS} drawn divisions each "
        f"left a split without items: no concept and no template may be in two splits. {_REMEDY}"
    )


def _cut(keys: list[str], rng: random.Random, fractions: tuple[float, float, float]) -> dict[str, Split]:
    """Shuffled keys cut in three by `fractions`, at least one key in each."""
    n = len(keys)
    first = min(max(round(fractions[0] * n), 1), n - 2)
    second = min(max(round((fractions[0] + fractions[1]) * n), first + 1), n - 1)
    shuffled = rng.sample(keys, n)
    ends: tuple[tuple[Split, list[str]], ...] = (
        ("train", shuffled[:first]),
        ("validation", shuffled[first:second]),
        ("test", shuffled[second:]),
    )
    return {key: split for split, part in ends for key in part}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
