"""The search of a strength in recipes/compare.py: by what validation items show, it ends where it should."""

from __future__ import annotations

import json
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


def test_a_model_by_its_folder_or_with_an_owner_has_files_of_its_own(tmp_path):
    """Where they are looked for again: in the output folder itself."""
    for name in ("owner/model-1b", "/models/mine", "demo:smollm2"):
        home = tmp_path / f"{recipe.plain(name)}.pronoun.0"
        assert home.parent == tmp_path
        home.with_name(f"{recipe.plain(name)}.all.0")


def test_figures_of_other_numbers_of_items_are_not_taken_for_those_asked_for(tmp_path, monkeypatch, capsys):
    unit = {
        "model": "demo:x", "task": "bbq", "seed": 0, "method": "caa", "evaluations": 6, "numbers": 1,
        "area": {"value": 0.5, "low": 0.4, "high": 0.6}, "base": {"bias": 0.2, "capability": 0.9},
        "left": {c: {"strength": 1.0, "value": 0.5, "low": 0.4, "high": 0.6, "cost": 0.0} for c in ("1", "3")},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(unit))
    (tmp_path / "b.json").write_text(json.dumps(unit | {"items": [10, 20], "method": "pca"}))
    monkeypatch.setattr(recipe, "RECORDS", tmp_path / "none.jsonl")
    for more, shown in (((), "caa"), (("--validation", "10", "--test", "20"), "pca"), (("--test", "7"), "")):
        monkeypatch.setattr("sys.argv", ["compare", "--table", "--out", str(tmp_path), *more])
        recipe.main()
        out = capsys.readouterr().out
        assert [m for m in ("caa", "pca") if f"| {m} |" in out] == ([shown] if shown else [])
    monkeypatch.setattr("sys.argv", ["compare", "--readme", "--out", str(tmp_path), "--test", "7"])
    with pytest.raises(SystemExit):
        recipe.main()
