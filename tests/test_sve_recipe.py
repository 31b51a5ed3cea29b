"""recipes/sve_table.py keeps figures of one kind in one folder."""

from __future__ import annotations

import json

import pytest

from conftest import script
from trimtab.evaluate import Evaluation

recipe = script("recipes/sve_table.py")


def test_a_folder_is_of_one_model_and_of_one_size(tmp_path, monkeypatch, capsys):
    """Other settings are refused, and a table stands under those that its figures were made with."""
    monkeypatch.setattr(recipe, "compute", lambda units, notes, args: None)

    def ran(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["sve_table", "--out", str(tmp_path), *words])
        recipe.main()
        return capsys.readouterr().out

    assert "`demo:smollm2`, bbq:cloze, seed 0, 12 trials" in ran("--trials", "12")
    (tmp_path / "figures.json").write_text(json.dumps({"age.base": {"accuracy": 0.5, "half": 0.1, "n": 9}}))
    assert "50.0 ±10.0" in ran("--trials", "12")
    with pytest.raises(SystemExit, match=r"model demo:smollm2, not other/model; trials 12, not 20"):
        ran("--model", "other/model")
    assert "`demo:smollm2`, bbq:cloze, seed 0, 12 trials" in ran("--table", "--model", "other/model", "--seed", "7")


def test_a_figure_is_of_the_whole_task_at_its_strength():
    """All of BBQ has rows of its categories too, and the base's: the same metrics of fewer items, or of another arm."""

    def row(task: str, strength: float, value: float, n: int) -> list[dict[str, object]]:
        told = {"task": task, "strength": strength, "value": value, "low": value - 0.1, "high": value + 0.1, "n": n}
        return [{"metric": name, **told} for name in recipe.RIGHT]

    rows = [*row("bbq", 0.5, 0.25, 150), *row("bbq.Age", 0.5, 0.75, 7), *row("bbq", 0.0, 0.5, 150)]
    seen = Evaluation(tuple(rows), (), (), (), identity={"tasks": {"bbq": "digest"}})
    assert recipe.figure(seen, 0.5) == pytest.approx({"accuracy": 0.25, "half": 0.1, "n": 300})
    assert recipe.figure(seen, 0.0)["accuracy"] == 0.5
