"""The search of a strength in recipes/compare.py: by what validation items show, it ends where it should."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import script

recipe = script("recipes/compare.py")


def search(bias: Callable[[float], float], cost: Callable[[float], float], tries: int) -> list[float]:
    """The strengths that are tried of a method with these curves; costs in percent."""

    def point(w: float) -> Any:
        return SimpleNamespace(
            strength=w, bias=SimpleNamespace(value=bias(w)), loss=SimpleNamespace(value=cost(w) / 100)
        )

    points = [point(0.0)]
    for _ in range(tries):
        points.append(point(recipe.following(points)))
    return [p.strength for p in points[1:]]


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 7.0, 300.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_strength_is_found_whatever_the_unit_and_the_sign(scale, sign):
    """Bias falls to 0 at the strength `scale`, whose cost is 2.5: what is found leaves less than half of it."""

    def bias(w: float) -> float:
        return abs(1 - sign * w / scale)

    tried = search(bias, lambda w: 2.5 * abs(w / scale), tries=12)
    affordable = [w for w in tried if 2.5 * abs(w / scale) <= 3]
    assert min(map(bias, affordable)) < 0.5
    assert len(set(tried)) == len(tried)


def test_where_nothing_helps_both_signs_were_tried_and_small_strengths_after_them():
    assert search(lambda w: 1 + abs(w), lambda w: abs(w), tries=4) == [1, -1, 0.25, 0.0625]


def test_what_does_nothing_is_turned_up_and_what_ruins_the_model_down():
    assert search(lambda w: 1.0, lambda w: 0.0, tries=4) == [1, 4, 16, 64]
    assert search(lambda w: 0.1, lambda w: 1e9, tries=3) == [1, 0.25, 0.0625]
    nothing = float("nan")
    assert search(lambda w: 0.1, lambda w: nothing, tries=3) == [1, 0.25, 0.0625]
