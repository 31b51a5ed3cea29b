"""Evaluation: records first, figures that follow from them, controls beside them, and nothing lost to a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import row, write_rows
from reference import metrics_numpy as reference
from trimtab import artifact, frontier
from trimtab.errors import BadItem, RunError, StrengthError, TaskError, UsageError
from trimtab.evaluate import SAMPLE_PROMPTS, certify, evaluate, remarks
from trimtab.portions import Plan
from trimtab.reading import named
from trimtab.steering import Steering
from trimtab.testing import random_steering, tiny, tiny_task
from trimtab.types import RECORD_SCHEMA, Record, Text

KEYS = {"model", "steering", "strength", "task", "split", "metric", "value", "low", "high", "n", "clusters", "seed"}
NAMED = ("per_concept_bias", "stereotype_gap", "neither_rate", "unambiguous_accuracy", "perplexity", "kl")


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture(scope="module")
def steering(model) -> Steering:
    return random_steering(model, scale=0.05)


@pytest.fixture
def measure(model, steering, neutral_file):
    """Evaluate the tiny task at 0 and 1 with some arguments changed."""

    def run(task: Any = None, with_: Steering | None = steering, stops: Any = (0.0, 1.0), **more: Any):
        options = {"seed": 0, "neutral": neutral_file, "resamples": 50, "samples": SAMPLE_PROMPTS[:1], **more}
        return evaluate(model, task or tiny_task(12, 12), with_, stops, **options)

    return run


@pytest.fixture(scope="module")
def whole(model, steering, neutral_file, tmp_path_factory):
    """One unbroken run and its folder."""
    out = tmp_path_factory.mktemp("whole")
    found = evaluate(
        model, tiny_task(12, 12), steering, (0.0, 1.0), seed=0, neutral=neutral_file, resamples=50,
        samples=SAMPLE_PROMPTS[:1], out=out,
    )  # fmt: skip
    return found, out


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def by_key(folder: Path) -> dict[Any, dict[str, Any]]:
    named = lines(folder)[1:]
    keyed = {(r["kind"], r.get("task"), r["arm"], r["strength"], r.get("id", r.get("prompt"))): r for r in named}
    assert len(keyed) == len(named), "a record was written twice"
    assert all(r.pop("seconds", 1) > 0 for r in named), "how long it took"
    return keyed


def untimed(records: Any) -> list[str]:
    return sorted(repr(replace(r, seconds=0.0)) for r in records)


def of(rows: Any, **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


# -- what is measured


def test_strength_0_is_the_base_model(measure):
    """The row of strength 0 holds the figures of a run without any steering."""
    steered, bare = measure(), measure(with_=None, stops=())
    at_zero = [r for r in steered.results if r["strength"] == 0]
    base = [r for r in bare.results if r["steering"] not in ("instruction", "random")]
    assert [(r["metric"], r["value"], r["n"]) for r in at_zero] == [(r["metric"], r["value"], r["n"]) for r in base]
    assert steered.value("kl", strength=0) == 0


def test_strength_0_is_measured_although_nobody_asked(measure):
    """Every difference needs it."""
    found = measure(stops=(1.0,))
    assert {r["strength"] for r in found.results if r["steering"] == "steering"} == {0.0, 1.0}


def test_the_controls_stand_beside_every_strength(measure):
    """An instruction once, a random direction of the same norm at each strength above 0; left out when asked."""
    found = measure(stops=(0.0, 0.5, 1.0))
    arms = {(r["steering"], r["strength"]) for r in found.results}
    named = {("steering", 0.0), ("steering", 0.5), ("steering", 1.0), ("random", 0.5), ("random", 1.0)}
    assert arms == named | {("instruction", 1.0)}
    assert found.value("kl", strength=1.0, steering="random") > 0
    assert found.value("per_concept_bias", strength=1.0, steering="instruction") != found.value("per_concept_bias")
    assert {r["steering"] for r in measure(controls=False).results} == {"steering"}
    with pytest.raises(UsageError, match="per option, token, byte"):
        measure(per="word")
    fewer = {(r["steering"], r["strength"]) for r in measure(stops=(0.0, 0.5, 1.0), controls=[1.0]).results}
    assert fewer == arms - {("random", 0.5)}


def test_every_row_has_the_agreed_keys_and_every_figure_its_interval(whole):
    """value lies within [low, high], n, clusters and seed are given, and differences from the base are rows too."""
    found, _ = whole
    assert all(set(r) == KEYS for r in found.results)
    for r in found.results:
        assert r["low"] <= r["value"] + 1e-9
        assert r["value"] <= r["high"] + 1e-9
        assert r["n"] >= r["clusters"] >= 1
        assert r["seed"] == 0
        assert r["split"] == "test"
        assert r["task"] == "tiny"
    here = {r["metric"] for r in of(found.results, steering="steering", strength=1.0)}
    assert set(NAMED) <= here
    assert {f"{m}_difference" for m in NAMED} <= here
    assert {"per_concept_bias_choice", "neither_rate_choice", "unambiguous_accuracy_choice"} <= here
    for metric in NAMED:
        (difference,) = of(found.results, steering="steering", strength=1.0, metric=f"{metric}_difference")
        change = found.value(metric, strength=1.0) - found.value(metric)
        assert difference["value"] == pytest.approx(change, abs=1e-9)


def test_the_figures_follow_from_the_records_by_an_independent_restatement(whole):
    """Every figure of every arm, recomputed from the lines on disk by plain loops."""
    found, out = whole
    held: dict[Any, list[Any]] = {}
    for line in lines(out)[1:]:
        if line["kind"] != "sample":
            kind = line.pop("kind")
            held.setdefault((kind, line["arm"], line["strength"]), []).append(_Line(line))
    checked = 0
    for r in found.results:
        if r["metric"].endswith("_difference"):
            continue
        arm = r["steering"] if r["steering"] in ("instruction", "random") else "steering"
        kind = "text" if r["metric"] in ("perplexity", "kl") else "item"
        expected = reference.figure(r["metric"], held[kind, arm, r["strength"]])
        assert r["value"] == pytest.approx(expected, rel=1e-9, abs=1e-12), r
        checked += 1
    assert checked > 20


class _Line:
    """A JSON object with its fields as attributes."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


def test_one_seed_gives_one_result_and_the_seed_moves_intervals_and_the_random_arm_only(measure):
    """Values of the steering do not depend on the seed of the bootstrap."""
    one, same, other = measure(), measure(), measure(seed=1)
    assert one.results == same.results

    def values(found: Any, arm: str) -> list[float]:
        return [r["value"] for r in of(found.results, steering=arm)]

    assert values(one, "steering") == values(other, "steering")
    assert values(one, "random") != values(other, "random")


def test_two_tasks_are_kept_apart(measure):
    """Rows and records name their task; asking for a figure can name it too."""
    import dataclasses

    second = dataclasses.replace(tiny_task(9, 9, seed=4), name="second")
    found = measure([tiny_task(12, 12), second])
    assert {r["task"] for r in found.results} == {"tiny", "second"}
    n = {t: of(found.results, task=t, metric="neither_rate", strength=0.0)[0]["n"] for t in ("tiny", "second")}
    assert n == {"tiny": 16, "second": 9}
    assert found.value("per_concept_bias", task="tiny") != found.value("per_concept_bias", task="second")
    with pytest.raises(UsageError, match="no figure 'bogus'"):
        found.value("bogus")


def test_a_limit_takes_so_many_items_spread_over_the_split(measure):
    """Not the first few, which would be one concept's."""
    found = measure(controls=False, limit=8)
    base = [r for r in found.records if r.strength == 0]
    assert len(base) == 8
    assert len({r.concept for r in base}) == 4


def test_a_split_without_items_is_a_task_error_that_lists_what_there_is(measure, tmp_path):
    """Before anything is written."""
    import dataclasses

    task = tiny_task(12, 12)
    only = dataclasses.replace(task, items=task.split("train"))
    with pytest.raises(TaskError, match=r"no items in split 'test' \(it has: train\)"):
        measure(only, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_strength_out_of_range_is_refused_before_the_base_is_measured(measure, model, tmp_path, monkeypatch):
    """Not after minutes; nothing is scored and no folder begun."""
    monkeypatch.setattr(model, "score", lambda *a, **k: pytest.fail("something was measured"))
    with pytest.raises(StrengthError, match="trained range"):
        measure(stops=(0.0, 0.5, 7.0), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- records


def test_records_are_versioned_json_lines_that_name_the_run(whole, model, steering):
    """The first line says what run this is; every item's line holds all that a report needs."""
    found, out = whole
    head, *rest = lines(out)
    assert head["kind"] == "run"
    assert head["schema"] == RECORD_SCHEMA
    assert head["fingerprint"] == model.fingerprint()
    assert head["seed"] == 0
    assert {r["kind"] for r in rest} == {"item", "text", "sample"}
    items = [r for r in rest if r["kind"] == "item"]
    assert len(items) == len(found.records) == 4 * 32
    assert all(set(r) == {"kind", *Record.__slots__} for r in items)
    assert all(abs(sum(r["p"]) - 1) < 1e-6 and 0 <= r["mass"] <= 1 for r in items)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["results"] == list(found.results)
    assert summary["schema"] == RECORD_SCHEMA
    assert {p.name for p in out.iterdir()} == {"records.jsonl", "summary.json"}


def test_a_run_cut_at_any_byte_goes_on_to_the_results_of_an_unbroken_one(measure, whole, tmp_path):
    """Cut within the first line, within a record, at a line's end, within the last: same figures, no line doubled."""
    found, out = whole
    content = (out / "records.jsonl").read_bytes()
    first = content.index(b"\n")
    ends = [n for n, byte in enumerate(content) if byte == 10]
    cuts = [0, first - 1, first, first + 40, ends[3] + 1, ends[40] - 5, ends[-2], len(content) - 1]
    cuts += [len(content) * k // 3 for k in (1, 2)]
    expected, records = by_key(out), untimed(found.records)
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "records.jsonl").write_bytes(content[:cut])
        again = measure(out=folder)
        assert again.results == found.results, f"cut at byte {cut}"
        assert untimed(again.records) == records
        assert by_key(folder) == expected


def test_a_finished_run_is_not_measured_again(measure, whole, model, monkeypatch, tmp_path):
    """Begun again it reads its records; a strength more is measured beside them."""
    found, out = whole
    (tmp_path / "records.jsonl").write_bytes((out / "records.jsonl").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(model, "score", lambda *a, **k: pytest.fail("measured again"))
        assert measure(out=tmp_path).results == found.results
    more = measure(out=tmp_path, stops=(0.0, 0.5, 1.0))
    assert {r["strength"] for r in more.results} == {0.0, 0.5, 1.0}
    assert of(more.results, strength=1.0, steering="steering") == of(found.results, strength=1.0, steering="steering")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed"),
        ({"with_": "other"}, "steering"),
        ({"split": "validation"}, "split"),
        ({"instruction": "Be nice."}, "instruction"),
        ({"task": "other"}, "tasks"),
        ({"task": {"concept": "all"}}, "tasks"),
        ({"task": {"template": "all"}}, "tasks"),
        ({"task": {"id": "renamed"}}, "tasks"),
        ({"limit": 3}, "tasks"),
    ],
    ids=str,
)
def test_a_folder_of_another_run_is_refused_by_what_differs(measure, whole, model, tmp_path, change, says):
    """Two runs are never mixed, and the folder stays as it was."""
    content = (whole[1] / "records.jsonl").read_bytes()
    (tmp_path / "records.jsonl").write_bytes(content)
    if "with_" in change:
        change = {"with_": random_steering(model, scale=0.05, seed=9)}
    if isinstance(change.get("task"), dict):
        task, ((field, word),) = tiny_task(12, 12), change["task"].items()
        items = [replace(i, **{field: f"{word} {n}" if field == "id" else word}) for n, i in enumerate(task.items)]
        change = {"task": replace(task, items=tuple(items))}
    elif "task" in change:
        change = {"task": tiny_task(12, 12, seed=3)}
    with pytest.raises(RunError, match=f"holds another run: its .*{says}.* differ"):
        measure(out=tmp_path, **change)
    assert (tmp_path / "records.jsonl").read_bytes() == content


def test_a_damaged_line_in_the_middle_is_refused_by_its_number(measure, whole, tmp_path):
    """A cut end is a kill; a broken middle is not, and nothing is thrown away on a guess."""
    held = (whole[1] / "records.jsonl").read_bytes().split(b"\n")
    held[5] = held[5][:20]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(held))
    with pytest.raises(RunError, match="line 6 is damaged"):
        measure(out=tmp_path)


def test_an_item_that_does_not_fit_is_named_before_anything_is_measured(tmp_path, neutral_file):
    """Not when its turn comes; and a seed that no figure can be drawn with is refused at once too."""
    short, task = tiny("llama", max_position_embeddings=64), tiny_task(12, 12)
    last = max(i for i, item in enumerate(task.items) if item.split == "test")
    items = [replace(i, prompt="x " * 99) if n == last else i for n, i in enumerate(task.items)]
    options = {"neutral": neutral_file, "samples": (), "out": tmp_path / "run"}
    with pytest.raises(BadItem, match=f"item '{task.items[last].id}'"):
        evaluate(short, replace(task, items=tuple(items)), None, (), seed=0, **options)
    with pytest.raises(UsageError, match="a seed is 0 or more, got -1"):
        evaluate(short, task, None, (), seed=-1, **options)
    assert not (tmp_path / "run").exists()


def test_a_strength_at_which_numbers_overflow_leaves_the_figures_of_the_others(model, measure, tmp_path):
    """Nothing is said of it but that; it is not safe, and a floor is not kept there."""
    far = random_steering(model, scale=1e30)
    broken = Steering(far.interventions, {"strength": {"trained": [0.0, 1.0]}})
    found = measure(with_=broken, stops=(0.0, 1e-32, 1.0), controls=False, out=tmp_path)
    assert all(math.isnan(p) for r in found.records if r.strength == 1.0 for p in r.p)
    assert {r["strength"] for r in found.results if r["metric"] == "per_concept_bias"} == {0.0, 1e-32}
    assert any("at strength 1 the model's numbers overflow" in said for said in remarks(found, seed=0))
    again = measure(with_=broken, stops=(0.0, 1e-32, 1.0), controls=False, out=tmp_path)
    assert json.dumps(again.results) == json.dumps(found.results)
    point = frontier.operating_point(
        found.records, floors=[frontier.parse_floor("tiny.unambiguous_accuracy=100")], bias=("tiny", "stereotype_gap"),
        seed=0, resamples=50,
    )  # fmt: skip
    assert point.safe == (0.0, 1e-32)
    assert certify(model, tiny_task(12, 12), broken, seed=0).card["strength"]["safe"] == [0.0, 0.0]


# -- the card


def test_certify_writes_the_safe_range_and_results_with_intervals(model, steering, neutral_file):
    """A strength is safe up to the first stop at which capability falls by more than is allowed."""
    made = certify(model, tiny_task(12, 12), steering, seed=0, neutral=neutral_file)
    safe = made.card["strength"]["safe"]
    assert safe[0] == 0
    assert safe[1] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert {r["split"] for r in made.card["results"]} == {"validation"}
    wild = Steering(random_steering(model, scale=3.0).interventions)
    worse = certify(model, tiny_task(12, 12), wild, seed=0, neutral=neutral_file)
    assert worse.card["strength"]["safe"] == [0.0, 0.0]


def test_a_drawn_division_follows_the_card_whatever_the_seed_and_the_path(
    trimtab_cli, chat_folder, neutral_file, tmp_path, monkeypatch
):
    """No item that was trained on is tested on, with another --seed and with another spelling of the path."""
    rows = []
    for c in range(9):
        for t in range(9):
            options = [{"text": "she", "role": "pro"}, {"text": "he", "role": "anti"}]
            rows.append({"id": f"{c}/{t}", "prompt": f"In room {t} worker {c} said that", "options": options,
                         "concept": f"worker {c}", "template": f"room {t}", "ambiguous": True})  # fmt: skip
    path = write_rows(tmp_path / "items.jsonl", rows)
    out = tmp_path / "steering"
    ran = trimtab_cli(
        "learn", "dso", "--model", chat_folder, "--task", f"jsonl:{path}", "--seed", 5, "--out", out, "--steps", 1,
        "--neutral", neutral_file,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    from trimtab.tasks import load_task

    trained = {i.id for i in load_task(f"jsonl:{path}", seed=5).split("train")}
    monkeypatch.chdir(tmp_path)
    tested = {}
    for n, spec in enumerate((f"jsonl:{path}", "jsonl:items.jsonl")):
        ran = trimtab_cli(
            "eval", "--steering", out, "--task", spec, "--seed", 8, "--strength", "0", "--no-controls",
            "--neutral", neutral_file, "--out", tmp_path / f"run{n}",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        tested[n] = {r["id"] for r in lines(tmp_path / f"run{n}") if r["kind"] == "item"}
        assert tested[n]
        assert not tested[n] & trained
        summary = json.loads((tmp_path / f"run{n}/summary.json").read_text())
        assert "seed 5" in summary["tasks"][0]["division"]
    assert trained & {i.id for i in load_task(f"jsonl:{path}", seed=8).split("test")}, "seed 8 would have leaked"
    assert artifact.read(out).card["data"]["division_seed"] == 5


def test_json_is_strict_and_undefined_bounds_are_null(trimtab_cli, chat_folder, neutral_file, tmp_path):
    """One template gives no interval; NaN is no JSON."""
    rows = [row(i) | {"template": "one", "split": "test"} for i in tiny_task(6, 6).items]
    path = write_rows(tmp_path / "one.jsonl", rows)
    ran = trimtab_cli(
        "eval", "--model", chat_folder, "--task", f"jsonl:{path}", "--seed", 0, "--json", "-", "--no-controls",
        "--neutral", neutral_file,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(ran.out, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    (bias,) = of(found, metric="per_concept_bias")
    assert bias["low"] is None
    assert bias["high"] is None
    assert bias["clusters"] == 1
    assert all(set(r) == KEYS for r in found)


def test_the_public_name_can_be_called_whether_or_not_the_module_was_imported_first():
    """Importing trimtab.evaluate replaces the package's attribute by the module."""
    import importlib

    import trimtab

    importlib.import_module("trimtab.evaluate")
    assert callable(trimtab.evaluate)
    with pytest.raises(TypeError, match="seed"):
        trimtab.evaluate(None, None)


def test_generated_answers_are_read_and_what_cannot_be_read_is_said(measure):
    """Each record holds what was said and the option that it names; the share that names none is a figure."""
    found = measure(stops=(0.0, 1.0), mode="generated", controls=False)
    for strength in (0.0, 1.0):
        records = [r for r in found.records if r.strength == strength]
        unread = [named(r.answer, r.options) is None for r in records]
        assert 0 < sum(unread) < len(unread)
        assert [not any(r.p) for r in records] == unread
        assert found.value("unparsed_rate", strength=strength) == pytest.approx(sum(unread) / len(unread))
    assert not any(r["metric"] == "option_mass" for r in found.results)
    with pytest.raises(UsageError, match="likelihood or generated"):
        measure(mode="guessed")


def test_what_asks_nothing_is_not_answered(measure, model, monkeypatch):
    """Whole sentences and running text have no question; said before anything is measured."""
    monkeypatch.setattr(model, "answer", lambda *a, **k: pytest.fail("something was measured"))
    plain = tiny_task(12, 12)
    sentences = replace(plain, items=tuple(replace(i, prompt="") for i in plain.items))
    texts = replace(plain, items=(), texts=(Text("a", "Some words.", 2, "test"),))
    for task in (sentences, texts):
        with pytest.raises(UsageError, match="asks nothing that an answer could be generated to"):
            measure(task, mode="generated")


def test_an_answer_is_what_the_model_says_under_its_own_strength(llama):
    """Row by row the same as alone, whatever the order of lengths, and the option that it names has all of p."""
    from trimtab.testing import random_steering
    from trimtab.types import Item, Option

    prompts = ["The cook said that it was", "A nurse", "The clerk was late, because", "One"]
    said = [llama.generate(p, max_new_tokens=24) for p in prompts]
    options = [(Option(s.split()[0] if s.split() else "x", "pro"), Option("unheard of", "anti")) for s in said]
    items = [Item(p, o, "c", "t", True, prompt=p) for p, o in zip(prompts, options, strict=True)]
    found = llama.answer(items, rows_at_once=2)
    assert [o.answer for o in found] == said
    steering = random_steering(llama, scale=0.5)
    with llama.steer(steering, [0.0, 1.0, 0.0, 1.0], beyond_range=True):
        mixed = [o.answer for o in llama.answer(items, rows_at_once=2)]
    with llama.steer(steering, 1.0, beyond_range=True):
        steered = [o.answer for o in llama.answer(items)]
    assert mixed == [said[0], steered[1], said[2], steered[3]]
    assert steered != said


def test_changes_over_parts_are_corrected_together(llama, neutral_file, monkeypatch):
    """Holm over the parts that define the figure, from the records alone; a task without parts has none."""
    from dataclasses import replace

    from trimtab import evaluate as evaluating
    from trimtab import metrics
    from trimtab.evaluate import adjusted
    from trimtab.testing import random_steering, tiny_task

    plain = tiny_task(9, 9)
    parted = tuple(replace(i, template=f"{'ab'[int(i.template.split()[-1]) % 2]}/{i.template}") for i in plain.items)
    task = replace(plain, items=parted, parted=True)
    monkeypatch.setattr(evaluating, "FEWEST_CLUSTERS", 2)
    options = {"seed": 0, "neutral": neutral_file, "controls": False, "samples": (), "resamples": 60}
    steering = random_steering(llama, scale=0.3)
    found = evaluate(llama, task, steering, [1.0], split="all", **options)
    got = adjusted(found, "per_concept_bias", 1.0, seed=0, resamples=60)
    assert list(got) == [f"{task.name}:a", f"{task.name}:b"]
    raw = []
    for part in "ab":
        mine = [r for r in found.records if r.template.startswith(f"{part}/")]
        sides = [[r for r in mine if r.strength == w] for w in (1.0, 0.0)]
        raw.append(metrics.p_value("per_concept_bias", *sides, seed=0, resamples=60))
    assert list(got.values()) == metrics.holm(raw)
    monkeypatch.setattr(evaluating, "FEWEST_CLUSTERS", 100)
    assert adjusted(found, "per_concept_bias", 1.0, seed=0, resamples=60) == {}
    assert (
        adjusted(evaluate(llama, plain, steering, [1.0], split="all", **options), "per_concept_bias", 1.0, seed=0) == {}
    )


def test_a_base_that_was_measured_before_is_taken_and_changes_no_figure(measure, monkeypatch):
    alone, base = measure(controls=False), measure(with_=None, controls=False)
    asked: list[str] = []
    applied = Plan.applied
    monkeypatch.setattr(Plan, "applied", lambda self, cell: (asked.append(cell), applied(self, cell))[1])
    borrowed = measure(controls=False, base=base)
    assert {strength for _, strength in asked} == {1.0}, "strength 0 was measured again"
    assert borrowed.results == alone.results
    assert {(r.arm, r.strength, r.id) for r in borrowed.records} == {(r.arm, r.strength, r.id) for r in alone.records}
    assert len(borrowed.samples) == len(alone.samples)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"split": "validation"}, "split"), ({"limit": 4}, "tasks"), ({"per": "token"}, "per"), ({"kl": False}, "KL")],
)
def test_a_base_of_something_else_is_refused_by_what_differs(measure, change, says):
    base = measure(with_=None, controls=False, **change)
    with pytest.raises(UsageError, match=says):
        measure(controls=False, base=base)


def test_without_kl_the_other_figures_stay(measure, tmp_path):
    whole, less = measure(controls=False), measure(controls=False, kl=False, out=tmp_path)
    kept = [r for r in whole.results if not r["metric"].startswith("kl")]
    assert len(kept) < len(whole.results)
    assert list(less.results) == kept
    with pytest.raises(RunError, match="kl"):
        measure(controls=False, out=tmp_path)
