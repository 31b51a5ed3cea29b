"""Self-Debias: what the model is shown the second time, and the arm in records, tables, frontier and report."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from trimtab import frontier, report, terminal, verdict
from trimtab.errors import BadItem, UsageError
from trimtab.evaluate import evaluate
from trimtab.selfdebias import CHECK, REWRITE, first_answer, second_look
from trimtab.testing import noise, random_steering, tiny, tiny_task, tiny_vision, write_tiny_folder
from trimtab.types import IMAGE, Item, Message, Option, Outcome, Task

OPTIONS = (Option("she", "pro", "women"), Option("he", "anti", "men"), Option("they", "neither"))
PROMPT = Item("a", OPTIONS, "nurse", "said", True, prompt="The nurse said that")
CHAT = Item("b", OPTIONS, "nurse", "said", True, messages=(Message("system", "Brief."), Message("user", "Who?")))


def test_a_prompt_is_shown_with_its_continuation_the_request_and_once_more():
    """Options, roles and id stay; one space joins the answer; an empty prompt is the answer alone."""
    shown = second_look(PROMPT, "she")
    assert shown.prompt == f"The nurse said that she\n\n{REWRITE}\n\nThe nurse said that"
    assert replace(shown, prompt=PROMPT.prompt) == PROMPT
    assert second_look(replace(PROMPT, prompt="Said: "), "she").prompt == f"Said: she\n\n{REWRITE}\n\nSaid: "
    assert second_look(replace(PROMPT, prompt=""), "She came.").prompt == f"She came.\n\n{REWRITE}\n\n"


def test_a_picture_is_shown_once():
    """A prompt that is written twice has one picture, before both."""
    model, shown = tiny_vision("llava", max_position_embeddings=1024), noise(20, 12, 1)
    one = replace(PROMPT, prompt=f"{IMAGE} who is it?", images=(shown,))
    again = second_look(one, "she")
    assert again.prompt == f"{IMAGE} who is it? she\n\n{REWRITE}\n\nwho is it?" and again.images == (shown,)
    assert sum(model.score([again])[0].p) == pytest.approx(1)


def test_a_chat_gets_the_answer_as_the_models_turn_and_the_request_as_the_users():
    shown = second_look(CHAT, " she ")
    assert shown.messages == (*CHAT.messages, Message("assistant", "she"), Message("user", CHECK))
    assert shown.prompt is None


def test_the_first_answer_is_the_likeliest_option_or_what_was_said():
    assert first_answer(PROMPT, Outcome((0.2, 0.5, 0.3), 0.9)) == "he"
    assert first_answer(PROMPT, Outcome((0.4, 0.4, 0.2), 0.9)) == "she"
    assert first_answer(PROMPT, Outcome((0.0, 0.0, 0.0), 0.0, answer=" It was a nurse.\n")) == "It was a nurse."
    assert first_answer(PROMPT, Outcome((0.0, 0.0, 0.0), 0.0, answer=" \n")) == ""


@pytest.fixture(scope="module")
def roomy():
    """The tiny Llama with a context for twice the prompt."""
    return tiny("llama", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def task():
    """The test items of a tiny task, every second one as a chat."""
    items = [
        i if n % 2 else replace(i, prompt=None, messages=(Message("user", i.prompt),))
        for n, i in enumerate(tiny_task(9, 9).items)
    ]
    return Task("mixed", tuple(items), "given", 0)


def measured(model, task, tmp_path, **options):
    settings = {"controls": False, "baselines": ["self-debias"], "samples": (), "resamples": 100, **options}
    return evaluate(model, task, None, (), seed=0, out=tmp_path, **settings)


def test_the_arm_is_the_score_of_the_second_look(roomy, task, tmp_path):
    """Of each item: the base's likeliest option shown back, options scored on that prompt; recorded as it was shown."""
    found = measured(roomy, task, tmp_path / "run")
    records = {(r.arm, r.id): r for r in found.records}
    items = task.split("test")
    assert len(records) == 2 * len(items)
    for item in items:
        base, second = records["steering", item.id], records["self-debias", item.id]
        shown = second_look(item, first_answer(item, Outcome(base.p, base.mass)))
        (outcome,) = roomy.score([shown])
        assert second.p == pytest.approx(outcome.p, abs=1e-5)
        assert second.strength == 1.0 and second.digest == item.digest() == base.digest
        wanted = shown.prompt or "\n".join(f"[{m.role}] {m.content}" for m in shown.messages)
        assert second.prompt == wanted
        assert base.options[max(range(len(base.p)), key=base.p.__getitem__)] in second.prompt
    assert any(records["steering", i.id].p != records["self-debias", i.id].p for i in items)


def test_running_text_is_the_bases_for_it_has_no_answer(roomy, task, tmp_path):
    found = measured(roomy, task, tmp_path / "run")
    assert found.value("kl", strength=1.0, steering="self-debias") == 0
    assert found.value("perplexity", strength=1.0, steering="self-debias") == found.value("perplexity")


def test_generated_answers_are_shown_back_and_a_silent_one_stays(roomy, task, tmp_path, monkeypatch):
    """What was said goes into the second prompt as it was said; an item without an answer keeps its first outcome."""
    items = task.split("test")
    mute = items[0].id
    asked: list[list[Item]] = []

    def answer(parts, *, instruction=None, max_new_tokens=24):
        asked.append(list(parts))
        return [
            Outcome(tuple(0.0 for _ in i.options), 0.0, answer="  " if i.id == mute else f"well, said {i.id}")
            for i in parts
        ]

    monkeypatch.setattr(roomy, "answer", answer)
    found = measured(roomy, task, tmp_path / "run", mode="generated")
    shown = asked[-1]
    assert [i.id for i in shown] == [i.id for i in items if i.id != mute]
    assert all(
        s == second_look(i, f"well, said {i.id}")
        for i, s in zip([i for i in items if i.id != mute], shown, strict=True)
    )
    kept = next(r for r in found.records if r.arm == "self-debias" and r.id == mute)
    assert kept.answer == "  "
    assert kept.prompt == next(r for r in found.records if r.arm == "steering" and r.id == mute).prompt


def test_a_run_that_was_cut_off_goes_on_to_the_same_records(roomy, task, tmp_path):
    """With the last lines gone, whole items of the arm are measured anew."""
    whole = measured(roomy, task, tmp_path / "whole")
    assert whole.results
    cut = tmp_path / "cut"
    cut.mkdir()
    lines = (tmp_path / "whole" / "records.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "records.jsonl").write_bytes(b"".join(lines[:-15]))
    again = measured(roomy, task, cut)
    assert again.results == whole.results


def test_it_stands_in_tables_frontier_and_report_under_its_name(roomy, task, tmp_path):
    """Beside a steering and its controls: a column, a method, a row, a mark, a sentence and what it means."""
    steering = random_steering(roomy, "*norm*", scale=0.2)
    found = evaluate(
        roomy, task, steering, (0.0, 1.0), seed=0, out=tmp_path / "run", baselines=["self-debias"], resamples=100,
        samples=(),
    )  # fmt: skip
    arms = {(r["steering"], r["strength"]) for r in found.results}
    assert arms == {("steering", 0), ("steering", 1), ("instruction", 1), ("random", 1), ("self-debias", 1)}
    shown = io.StringIO()
    terminal.table(found, shown)
    assert "self-debias" in shown.getvalue()
    run = verdict.read(tmp_path / "run")
    names = {"bias": ("mixed", "per_concept_bias"), "capability": frontier.capability_of(run.items, "mixed")}
    points = frontier.points(run.items, run.texts, **names, seed=0, resamples=100)
    assert [p.method for p in points] == ["base", "steering", "instruction", "random", "self-debias"]
    page = report.render(tmp_path / "run")
    for words in (
        "Self-Debias",
        "f-mark-self-debias",
        CHECK[:40],
        "is shown its own likeliest answer",
        "own second look",
    ):
        assert words in page
    assert run.strengths == [0.0, 1.0]
    plain = evaluate(roomy, task, steering, (0.0, 1.0), seed=0, out=tmp_path / "plain", resamples=100, samples=())
    assert "self-debias" not in {r["steering"] for r in plain.results}
    without = report.render(tmp_path / "plain")
    assert "Self-Debias" not in without and "own likeliest answer" not in without


def test_a_context_too_short_for_a_second_look_is_refused_before_anything_is_measured(llama, task, tmp_path):
    with pytest.raises(BadItem, match="tokens, tiny llama takes 256"):
        measured(llama, task, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_baselines_by_name(roomy, task, tmp_path):
    """An instruction alone, without the random direction; an unknown one is refused with those that there are."""
    found = measured(roomy, task, tmp_path / "run", baselines=["instruction"])
    assert {r["steering"] for r in found.results} == {"steering", "instruction"}
    with pytest.raises(UsageError, match="no baseline 'luck'; there are instruction, self-debias"):
        measured(roomy, task, tmp_path / "other", baselines=["luck"])


def test_on_the_command_line(trimtab_cli, task_file, neutral_file, tmp_path):
    """`--baseline self-debias`, alone and beside the controls."""
    folder = write_tiny_folder(tmp_path / "model", max_position_embeddings=1024)
    spec = ("eval", "--model", folder, "--task", f"jsonl:{task_file}", "--seed", 0, "--neutral", neutral_file,
            "--limit", 6, "--json", "-", "--baseline", "self-debias")  # fmt: skip
    ran = trimtab_cli(*spec)
    assert ran.code == 0, ran.err
    assert {r["steering"] for r in json.loads(ran.out)} == {"base", "instruction", "self-debias"}
    ran = trimtab_cli(*spec, "--no-controls")
    assert {r["steering"] for r in json.loads(ran.out)} == {"base", "self-debias"}
    assert trimtab_cli(*spec, "--baseline", "luck").code == 2
