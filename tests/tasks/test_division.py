"""A drawn division is disjoint by concept and by template, repeatable, and says what it did."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import TaskError, UsageError
from trimtab.tasks.division import divide, overlap
from trimtab.types import SPLITS, Item, Option

OPTIONS = (Option("a", "pro"), Option("b", "anti"))


def item(concept: str, template: str, k: int = 0) -> Item:
    return Item(f"{concept}/{template}/{k}", OPTIONS, concept, template, True, prompt="x")


def grid(concepts: int, templates: int) -> list[Item]:
    return [item(f"c{c}", f"t{t}") for c in range(concepts) for t in range(templates)]


def blocks(n: int, size: int = 4) -> list[Item]:
    """n groups that share neither concept nor template."""
    return [item(f"c{k}", f"t{k}", j) for k in range(n) for j in range(size)]


edges = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)), min_size=3, max_size=80, unique=True
)


@given(edges, st.integers(0, 2**32))
@settings(deadline=None)
def test_disjoint_whatever_the_graph(found: list[tuple[int, int, int]], seed: int) -> None:
    items = [item(f"n{c}", f"n{t}", k) for c, t, k in found]  # concepts and templates share their names
    try:
        divided, words = divide(items, seed)
    except TaskError as refusal:
        assert "--split all" in str(refusal)
        return
    assert overlap(divided) == (0, 0)
    assert {i.split for i in divided} == set(SPLITS)
    assert {i.id for i in divided} <= {i.id for i in items}
    assert f"{len(items) - len(divided)} item" in words


@given(edges, st.integers(0, 2**32), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_items_does_not_matter(
    found: list[tuple[int, int, int]], seed: int, order: random.Random
) -> None:
    items = [item(f"c{c}", f"t{t}", k) for c, t, k in found]
    shuffled = order.sample(items, len(items))
    try:
        divided, words = divide(items, seed)
    except TaskError as refusal:
        with pytest.raises(TaskError, match=re.escape(str(refusal))):
            divide(shuffled, seed)
        return
    again, words_again = divide(shuffled, seed)
    assert {i.id: i.split for i in divided} == {i.id: i.split for i in again}
    assert words == words_again
    kept = {i.id for i in again}
    assert [i.id for i in again] == [i.id for i in shuffled if i.id in kept]  # the order given comes back


@pytest.mark.parametrize("items", [grid(12, 10), blocks(20)], ids=["grid", "groups"])
def test_seeds_differ(items: list[Item]) -> None:
    seen = {tuple((i.id, i.split) for i in divide(items, seed)[0]) for seed in range(10)}
    assert len(seen) > 5


def test_groups_are_dealt_whole_and_nothing_is_left_out() -> None:
    items = blocks(20)
    divided, words = divide(items, 3)
    assert len(divided) == len(items)
    counts = Counter(i.split for i in divided)
    for split, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        assert abs(counts[split] - share * len(items)) <= 4  # one group
    assert "drawn with seed 3" in words and "20 groups" in words and "0 items left out" in words


def test_three_groups_fill_three_splits_for_every_seed() -> None:
    for seed in range(50):
        assert {i.split for i in divide(blocks(3), seed)[0]} == set(SPLITS)


def test_a_group_of_more_than_half_is_divided_inside() -> None:
    items = [*grid(10, 10), item("x", "x"), item("y", "y")]
    divided, words = divide(items, 0)
    assert "concepts and templates separately" in words
    assert max(Counter(i.split for i in divided).values()) < 60  # whole groups would put 100 into one split


def test_a_grid_keeps_what_the_fractions_say() -> None:
    divided, words = divide(grid(10, 10), 5)
    assert Counter(i.split for i in divided) == {"train": 25, "validation": 4, "test": 9}
    assert words == (
        "drawn with seed 5, concepts and templates separately: train 25, validation 4, test 9; "
        "62 items left out because their concept and template fell into different splits"
    )


def test_the_smallest_grid_gives_each_split_one() -> None:
    divided, _ = divide(grid(3, 3), 1)
    assert Counter(i.split for i in divided) == {"train": 1, "validation": 1, "test": 1}


def test_other_fractions() -> None:
    divided, _ = divide(grid(10, 10), 5, fractions=(0.8, 0.1, 0.1))
    assert Counter(i.split for i in divided) == {"train": 64, "validation": 1, "test": 1}


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.2, 0.2), (0.5, 0.5), (0.5, 0.7, -0.2)])
def test_fractions_that_are_none(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="three positive numbers with the sum 1"):
        divide(grid(5, 5), 0, fractions=fractions)


@pytest.mark.parametrize(
    ("items", "numbers"),
    [
        (grid(2, 9), "2 concepts and 9 templates"),
        (grid(9, 1), "9 concepts and 1 template "),
        ([], "0 concepts and 0 templates"),
    ],
)
def test_too_few_to_be_disjoint(items: list[Item], numbers: str) -> None:
    with pytest.raises(TaskError) as raised:
        divide(items, 0)
    message = str(raised.value)
    assert numbers in message and "at least 3 of each" in message
    assert '"split" on each line' in message and "--split all" in message


def test_a_graph_that_cannot_be_divided() -> None:
    # Every item holds on to the one concept or to the one template, so no third split can be reached.
    star = [item("hub", f"t{k}") for k in range(5)] + [item(f"c{k}", "hub") for k in range(5)]
    with pytest.raises(TaskError, match=r"10 items over 6 concepts and 6 templates .*--split all"):
        divide(star, 0)


def test_overlap_counts_what_is_shared() -> None:
    divided, _ = divide(grid(6, 6), 0)
    assert overlap(divided) == (0, 0)
    train = next(i for i in divided if i.split == "train")
    test = next(i for i in divided if i.split == "test")
    mixed = Item("mixed", OPTIONS, train.concept, test.template, True, prompt="x", split="test")
    assert overlap([*divided, mixed]) == (1, 0)
