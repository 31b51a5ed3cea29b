"""DSO: it learns what it says, the same seed gives the same file, a killed run loses nothing, and each guard guards."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab import artifact
from trimtab.errors import RunError, TaskError, UsageError
from trimtab.evaluate import evaluate
from trimtab.learners import fairness
from trimtab.learners.dso import DSO, outcome
from trimtab.learners.dso import run as learning
from trimtab.learners.dso.run import Run
from trimtab.learners.dso.sampled import majority_rewards
from trimtab.learners.fairness import with_kept
from trimtab.learners.fairness.prices import KL_RATE, NEITHER_MARGIN, Prices
from trimtab.learners.fairness.terms import Batch, Known
from trimtab.model import SteerableModel
from trimtab.steering import Steering
from trimtab.testing import tiny, tiny_task
from trimtab.types import Item, Option, Progress, Task
from trimtab.verdict import learned_from

FAST: dict[str, Any] = {"steps": 12, "learning_rate": 5e-3, "validate_every": 4, "patience": 99}


@pytest.fixture(scope="module")
def model() -> SteerableModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def task() -> Task:
    return tiny_task(12, 12)


@pytest.fixture
def fit(model, task, neutral_file):
    """Learn with some settings changed."""

    def run(items: Any = task, *, seed: int = 0, on: SteerableModel = model, **given: Any) -> Steering:
        calls = {k: given.pop(k) for k in ("reward", "keep", "checkpoint", "progress") if k in given}
        return DSO(**{**FAST, **given}).fit(on, items, seed=seed, neutral=neutral_file, **calls)

    return run


def numbers(steering: Steering) -> torch.Tensor:
    return torch.cat([t.flatten() for g in steering.interventions.values() for i in g for t in i.tensors().values()])


def saved(steering: Steering, folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in artifact.save(steering, folder).iterdir()}


def figure(
    metric: str, model: SteerableModel, items: Any, steering: Steering | None, neutral: Path, split: str = "train"
) -> float:
    """One figure of the base, or of a steering at strength 1."""
    task = items if isinstance(items, Task) else Task("own", tuple(items), "given")
    found = evaluate(
        model, task, steering, [1.0], seed=0, split=split, controls=False, samples=(), neutral=neutral, resamples=2
    )  # fmt: skip
    return found.value(metric, strength=0.0 if steering is None else 1.0)


def train_bias(model: SteerableModel, items: Any, steering: Steering | None, neutral: Path) -> float:
    return figure("per_concept_bias", model, items, steering, neutral)


# -- it learns


def test_the_bias_falls_and_a_random_direction_of_the_same_norm_does_not_do_it(model, task, fit, neutral_file):
    """On training items the bias falls by more than two thirds; three random twins keep most of it."""
    steering = fit(steps=40, validate_every=40)
    before = train_bias(model, task, None, neutral_file)
    after = train_bias(model, task, steering, neutral_file)
    assert before > 0.3, "the tiny model has no bias to speak of, so this shows nothing"
    assert after < before / 3
    for seed in range(3):
        assert train_bias(model, task, steering.random(seed), neutral_file) > 0.6 * before


def test_the_base_is_untouched_by_learning(model, task, fit):
    """After fit, also one that failed, the weights, their gradients and the hooks are as before."""
    fingerprint = model.fingerprint()
    fit(steps=2)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(steps=2, progress=stop_at(1, RuntimeError("on purpose")))
    assert model.fingerprint() == fingerprint
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert model.hf.config._attn_implementation == "sdpa"


def test_the_loss_is_the_one_that_is_written_down(model, task, fit, neutral_file):
    """One step over all concepts and wordings reports the bias that evaluation finds on the base."""
    steering = fit(steps=1, concepts_per_step=99, templates_per_step=99, validate_every=1)
    (first,) = steering.card["history"]
    assert first["bias"] == pytest.approx(train_bias(model, task, None, neutral_file), abs=1e-5)
    assert first["unambiguous"] == pytest.approx(0, abs=1e-6)
    assert first["mass"] == pytest.approx(0, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-6)


# -- the same seed, the same file


def test_one_seed_gives_one_folder_byte_for_byte_and_another_seed_another(fit, tmp_path):
    """Card and tensors; on a fresh copy of the model as well."""
    one = saved(fit(), tmp_path / "a")
    assert saved(fit(), tmp_path / "b") == one
    assert saved(fit(on=tiny("llama")), tmp_path / "c") == one
    torch.manual_seed(99)
    assert saved(fit(), tmp_path / "d") == one
    assert saved(fit(seed=1), tmp_path / "e")[artifact.TENSORS] != one[artifact.TENSORS]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def stop_at(step: int, error: BaseException):
    def progress(p: Progress) -> None:
        if p.done >= step:
            raise error

    return progress


KILLS = [
    *(({}, k) for k in [(1,), (4,), (5,), (11,), (12,), (6, 9, 12)]),
    ({"depth": 0.5}, (5,)),
    ({"depth": 0.5}, (8,)),
]


@pytest.mark.parametrize(("settings", "kills"), KILLS, ids=str)
def test_a_killed_run_goes_on_to_the_file_of_an_unbroken_one(fit, tmp_path, settings, kills):
    """Killed at any step, also several times, and begun again: the same bytes, card and tensors."""
    whole = saved(fit(**settings), tmp_path / "whole")
    checkpoint = tmp_path / "checkpoint.safetensors"
    for step in kills:
        with pytest.raises(Killed):
            fit(checkpoint=checkpoint, progress=stop_at(step, Killed()), **settings)
        assert checkpoint.exists() == (step >= 4)
    assert saved(fit(checkpoint=checkpoint, **settings), tmp_path / "resumed") == whole


def test_a_killed_sampled_run_goes_on_to_the_file_of_an_unbroken_one(fit, tmp_path):
    """Generated answers are drawn from seed and step alone, so resuming draws the same."""
    sampled = {"mode": "sampled", "steps": 4, "validate_every": 2, "max_new_tokens": 4, "concepts_per_step": 2}
    whole = saved(fit(**sampled), tmp_path / "whole")
    with pytest.raises(Killed):
        fit(checkpoint=tmp_path / "c.safetensors", progress=stop_at(3, Killed()), **sampled)
    assert saved(fit(checkpoint=tmp_path / "c.safetensors", **sampled), tmp_path / "resumed") == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [({"learning_rate": 1e-3}, "settings"), ({"seed": 1}, "seed"), ({"on": 7}, "model"), ({"items": 3}, "data")],
    ids=lambda v: str(v) if isinstance(v, str) else "",
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(fit, tmp_path, change, says):
    """Other settings, seed, weights or items: continuing would be a mixture of two runs."""
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        fit(checkpoint=path, progress=stop_at(4, Killed()))
    before = path.read_bytes()
    if "on" in change:
        change = {"on": tiny("llama", seed=change["on"])}
    if "items" in change:
        change = {"items": tiny_task(12, 12, seed=change["items"])}
    with pytest.raises(RunError, match=f"of another run: its .*{says}"):
        fit(checkpoint=path, **change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "no state", "other state", "a pickle"])
def test_a_damaged_checkpoint_is_refused_and_says_what_to_do(fit, tmp_path, damage):
    """It is neither guessed at nor silently begun anew."""
    from safetensors.torch import save

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        fit(checkpoint=path, progress=stop_at(4, Killed()))
    whole = path.read_bytes()
    path.write_bytes({
        "empty": b"", "cut": whole[:-50], "noise": bytes(range(256)) * 4, "no state": save({"theta": torch.zeros(2)}),
        "other state": save({"theta": torch.zeros(2)}, metadata={"state": json.dumps({"step": 3})}),
        "a pickle": b"\x80\x04\x95",
    }[damage])  # fmt: skip
    with pytest.raises(RunError, match=r"damaged.*delete it to begin anew"):
        fit(checkpoint=path)


# -- memory: the same result in smaller pieces


def one_step(fit, **given: Any) -> torch.Tensor:
    # A first step of Adam shows the sign of a gradient only; the second moments show its size.
    return numbers(fit(steps=3, validate_every=3, concepts_per_step=4, **given))


def test_checkpointed_activations_give_the_same_numbers(fit):
    """Computing activations again in the backward pass changes nothing but memory."""
    torch.testing.assert_close(one_step(fit, checkpointing=True), one_step(fit), atol=1e-6, rtol=1e-4)


def test_accumulated_parts_give_the_gradient_of_the_whole_bias(fit):
    """Without the terms that are means of a whole step, four parts of one concept each sum to the step's gradient."""
    plain = {
        "template_weight": 0.0,
        "neither_guard": 0.0,
        "mass_guard": 0.0,
        "unambiguous_per_step": 0,
        "kl_windows": 0,
    }
    whole = one_step(fit, **plain)
    for parts in (2, 4, 50):
        torch.testing.assert_close(one_step(fit, accumulate=parts, **plain), whole, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_parts_give_the_gradient_of_the_whole_objective(model, task, checkpointing):
    """With every term on, away from 0 where the guards have their kinks, the parts' gradients sum to the whole's."""

    def gradient(parts: int) -> torch.Tensor:
        settings = DSO(concepts_per_step=4, accumulate=parts, checkpointing=checkpointing)
        run = Run(settings, model, list(task.split("train")), [], ["Rain fell on the hill."] * 4, 0, None)
        with torch.no_grad():
            run.theta.copy_(torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        with run.prepared():
            figures = run.step(0)
        assert {"bias", "template", "neither", "mass", "unambiguous", "kl", "text"} <= figures.keys()
        assert run.theta.grad is not None
        return run.theta.grad

    whole = gradient(1)
    assert float(whole.norm()) > 1e-3
    for parts in (2, 3, 50):
        torch.testing.assert_close(gradient(parts), whole, atol=1e-5, rtol=1e-3)


def test_a_long_step_is_split_unasked(model, task, monkeypatch):
    """A step of more tokens than a part may hold runs in parts, with the whole's gradient."""
    passes = []

    def gradient() -> torch.Tensor:
        run = Run(DSO(concepts_per_step=4), model, list(task.split("train")), [], ["Rain fell on the hill."], 0, None)
        with torch.no_grad():
            run.theta.copy_(torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        with run.prepared():
            seen = run.aim.seen
            monkeypatch.setattr(run.aim, "seen", lambda known, windows: passes.append(1) or seen(known, windows))
            run.step(0)
        assert run.theta.grad is not None
        return run.theta.grad

    whole, count = gradient(), len(passes)
    assert count == 1
    monkeypatch.setattr(learning, "PART_AT_MOST", 100)
    torch.testing.assert_close(gradient(), whole, atol=1e-5, rtol=1e-3)
    assert len(passes) - count >= 4


def test_a_step_takes_some_neighbours_of_many_items(model, task):
    """Of a template with many items of a concept a step has a run of neighbours, so that pairs stay together; over the
    steps all of them come; where all fit they come in the task's order."""
    items = [i for i in task.split("train") if i.ambiguous]
    many = [dataclasses.replace(items[0], id=f"many/{n}") for n in range(10)]
    run = Run(DSO(concepts_per_step=1, items_per_template=4, kl_windows=0), model, many, [], [], 0, None)
    with run.prepared():
        drawn = [[int(i.id.split("/")[1]) for i in run.aim.draw(step)[0][0]] for step in range(40)]
        run.aim.aims = dataclasses.replace(run.aim.aims, items_per_template=10)
        assert [i.id for i in run.aim.draw(0)[0][0]] == [i.id for i in many]
    assert {tuple(d) for d in drawn} == {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)}


@pytest.mark.parametrize("known_before", [True, False])
def test_what_the_base_makes_of_few_listed_items_is_known_before_the_first_step(model, monkeypatch, known_before):
    """Then no step asks the base again; of many each step asks, and is told the same."""
    monkeypatch.setattr(fairness, "SCORED_AT_MOST", 99 if known_before else 0)
    items = list(listed_task("the cook", "the guard").items)
    run = Run(DSO(kl_windows=0), model, items, [], [], 0, None)
    plain, _ = run.aim.scores([Known(i, e) for i, e in zip(items, model.encode(items), strict=True)])
    asked = []
    scores = run.aim.scores
    with run.prepared():
        monkeypatch.setattr(run.aim, "scores", lambda *given: asked.append(1) or scores(*given))
        known = run.aim.known(items[::-1])
        assert len(asked) == (not known_before)
    assert [k.item for k in known] == items[::-1]
    for k, s in zip(known[::-1], plain, strict=True):
        torch.testing.assert_close(k.logp, s.logp, atol=1e-5, rtol=1e-5)
        assert k.base_mass() == pytest.approx(float(s.log_mass), rel=1e-5)


def test_accumulated_parts_keep_less_for_the_backward_pass(model, task, fit):
    """What autograd holds at once falls with the number of parts: that is what accumulation is for."""

    def held(parts: int) -> int:
        now, most = [0], [0]

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor
                now[0] += tensor.numel()
                most[0] = max(most[0], now[0])

            def __del__(self) -> None:
                now[0] -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            fit(steps=1, validate_every=1, accumulate=parts, concepts_per_step=4)
        return most[0]

    assert held(4) < 0.5 * held(1)


def test_depth_leaves_the_lower_blocks_alone(fit):
    """At depth 0.5 of two blocks only sites of the second and the final norm are steered; at 0 all."""
    assert {s.split(".")[1] for s in fit(steps=1, depth=0.5).interventions if s.startswith("layers")} == {"1"}
    assert {s.split(".")[1] for s in fit(steps=1).interventions if s.startswith("layers")} == {"0", "1"}


# -- the terms


def test_l1_leaves_fewer_neurons_and_the_card_reports_their_share(fit):
    """The share in the card is the share of neurons with a number that is not 0; without l1 it is 1."""
    dense, sparse = fit(), fit(l1=0.3)
    for steering in (dense, sparse):
        alive = torch.cat([(g[0].a != 0) | (g[0].c != 0) for g in steering.interventions.values()])
        assert steering.card["neurons"]["steered"] == alive.numel()
        assert steering.card["neurons"]["surviving_share"] == pytest.approx(alive.float().mean().item())
    assert dense.card["neurons"]["surviving_share"] == 1
    assert 0 < sparse.card["neurons"]["surviving_share"] < 0.9


def test_a_small_kl_budget_keeps_the_model_nearer_to_its_base(model, task, fit, neutral_file):
    """On neutral text that training did not see, a tiny budget ends with less KL than none at all."""

    def kl(budget: float) -> float:
        return figure("kl", model, task, fit(steps=80, validate_every=80, kl_budget=budget), neutral_file, "test")

    tight, loose = kl(1e-4), kl(float("inf"))
    assert loose > 1e-3, "the KL is small without a budget, so this shows nothing"
    assert tight < loose / 1.5


@pytest.mark.parametrize(("budget", "shrunk"), [(1e-3, True), (1e3, False)])
def test_the_result_is_shrunk_onto_the_budget_and_no_further(model, task, fit, neutral_file, budget, shrunk):
    """What the dual variable leaves above the budget is taken back; what is within stays as it was learned."""
    steering = fit(steps=20, kl_budget=budget)
    held = steering.card["kl_budget"]
    assert held["budget"] == budget
    assert held["kl"] <= budget
    assert (held["share"] < 1) == shrunk
    if shrunk:
        assert held["kl"] > 0.8 * budget, "more was taken back than needed"


@pytest.mark.parametrize("off", [{"kl_windows": 0}, {"kl_budget": math.inf, "text_guard": 0.0}], ids=str)
def test_without_neutral_text_nothing_is_held_and_none_is_read(model, task, tmp_path, off):
    steering = DSO(**{**FAST, **off}).fit(model, task, seed=0, neutral=tmp_path / "not there.txt")
    assert steering.card["kl_budget"] == {}
    assert not {"kl", "text"} & steering.card["history"][-1].keys()


def test_without_a_budget_the_text_guard_still_guards_and_the_card_is_json(fit, tmp_path):
    steering = fit(steps=4, kl_budget=math.inf, text_guard=5.0)
    assert "text" in steering.card["history"][-1]
    assert "kl" not in steering.card["history"][-1]
    card = (artifact.save(steering, tmp_path / "s") / "card.json").read_text()
    json.loads(card, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def listed_task(*people: str) -> Task:
    """Options named in the prompt, each item in every rotation."""
    items = []
    for c in range(6):
        for t in range(4):
            for order in range(len(people)):
                names = people[order:] + people[:order]
                options = tuple(
                    Option(n, "pro" if n == people[0] else "anti", n.split()[1], names.index(n)) for n in people
                )
                prompt = f"In case {c} of room {t}, is it {' or '.join(names)}? It is"
                items.append(Item(f"{c}-{t}-{order}", options, f"case {c}", f"room {t}", True, prompt, None, "train"))
    return Task("listed", tuple(items), "all for training")


@pytest.mark.parametrize("people", [("the cook", "the guard"), ("the cook", "the guard", "the maid")], ids=len)
def test_the_position_guard_closes_the_shortcut(model, fit, neutral_file, people):
    """Answering by position makes the bias 0 too; guarded, the bias falls and no place becomes likelier."""
    task = listed_task(*people)
    steps = 40 if len(people) == 2 else 120
    steering = fit(task, steps=steps, validate_every=steps, position_guard=5.0)
    base, guarded = (figure("position_spread", model, task, s, neutral_file) for s in (None, steering))
    assert train_bias(model, task, steering, neutral_file) < 0.5 * train_bias(model, task, None, neutral_file)
    assert guarded <= base + 0.03


def test_the_unambiguous_guard_keeps_right_answers(model, task, fit, neutral_file):
    """With the guard P(correct) on settled training items stays what it was, and is not below what it is without."""

    def accuracy(steering: Steering | None) -> float:
        return figure("unambiguous_accuracy", model, task, steering, neutral_file)

    free, guarded = (accuracy(fit(steps=30, unambiguous_guard=g, unambiguous_per_step=99)) for g in (0.0, 5.0))
    assert guarded >= accuracy(None) - 0.02
    assert guarded >= free - 0.01


def test_what_is_to_be_kept_right_joins_the_guard_and_the_card(model, fit, neutral_file):
    """Another task's settled items: its right answers lose less than without, and a report knows what was seen."""
    open_, other = tiny_task(12, 12), tiny_task(9, 9, seed=5)
    learned = Task("open", tuple(i for i in open_.items if i.ambiguous), "given")
    # Learning this world happens to raise what is right in it: so the wrong answer is to be kept.
    roles: Any = {"correct": "wrong", "wrong": "correct"}
    kept = Task(
        "kept",
        tuple(
            dataclasses.replace(i, options=tuple(dataclasses.replace(o, role=roles[o.role]) for o in i.options))
            for i in other.items
            if not i.ambiguous
        ),
        "given",
    )
    given: dict[str, Any] = {"kl_budget": math.inf, "text_guard": 0.0, "learning_rate": 0.03, "unambiguous_guard": 20.0}
    with_, without = fit(learned, keep=[kept], **given), fit(learned, **given)
    before, a, b = (
        figure("unambiguous_accuracy", model, kept, s, neutral_file, "train") for s in (None, with_, without)
    )
    assert b < before - 0.01, "nothing to keep, then"
    assert a > b
    assert [(k["task"], k["split"]) for k in with_.card["data"]["keep"]] == [("kept", "train")]
    assert {d["task"] for d in learned_from(with_.card)} == {"open", "kept"}
    assert "keep" not in without.card["data"]
    with pytest.raises(TaskError, match="'open' has no unambiguous training items"):
        fit(kept, keep=[learned])


def test_a_kept_task_does_not_crowd_out_the_one_that_is_learned():
    """Of each about as many settled items as the learned task has, all where it has none; wholes of a template."""
    learned, large = tiny_task(6, 6), tiny_task(24, 12, seed=5)
    own = with_kept(learned, (), "train")
    most = sum(not i.ambiguous for i in own)
    whole = [i for i in large.split("train") if not i.ambiguous]
    joined = with_kept(learned, [large, large], "train")
    assert joined[: len(own)] == own
    added = joined[len(own) :]
    assert most < len(whole), "nothing is capped, then"
    assert len(added) % 2 == 0 and added[: len(added) // 2] == added[len(added) // 2 :]
    each = added[: len(added) // 2]
    assert most <= len(each) < most + max(Counter((i.concept, i.template) for i in whole).values())
    assert {i.id for i in each} <= {i.id for i in whole} and len({i.id for i in each}) == len(each)
    open_ = Task("open", tuple(i for i in learned.items if i.ambiguous), "given")
    assert [i for i in with_kept(open_, [large], "train") if not i.ambiguous] == whole


def test_neither_is_held_where_the_base_has_it(model, task, fit, neutral_file):
    """The share of "they" after learning is near the base's: the model is not paid for refusing."""
    after, before = (figure("neither_rate", model, task, s, neutral_file) for s in (fit(steps=40), None))
    assert after == pytest.approx(before, abs=0.06)


def test_the_price_of_neither_finds_the_share_that_is_aimed_at():
    """On a figure that yields to pressure and is noisy, the price settles where the figure is the margin below 0."""
    prices, noise = Prices(), torch.Generator().manual_seed(0)
    x, seen = 0.2, []
    for _ in range(400):
        rise = torch.tensor(x, requires_grad=True)
        prices.of_neither(rise).backward()
        x -= 0.02 * (float(rise.grad) - 0.3)  # something else pushes it up with a force of 0.3
        seen.append(x)
        prices.follow({"neither": x + 0.03 * float(torch.randn((), generator=noise))}, 1.0)
    assert sum(seen[200:]) / 200 == pytest.approx(-NEITHER_MARGIN, abs=0.01)
    assert prices.neither == pytest.approx(0.3, abs=0.15)


@given(st.floats(0.0, 50.0), st.floats(0.0, 10.0))
def test_the_price_of_kl_rises_above_the_budget_falls_below_it_and_stays_in_bounds(kl, budget):
    prices = Prices(kl=1.0)
    prices.follow({"kl": kl}, budget)
    assert math.exp(-KL_RATE) * 0.999 <= prices.kl <= math.exp(KL_RATE) * 1.001
    assert (prices.kl > 1) == (max(kl, 1e-9) > max(budget, 1e-9)) or kl == pytest.approx(budget, abs=1e-8)
    for _ in range(1000):
        prices.follow({"kl": kl}, budget)
    assert 0.1 <= prices.kl <= 100


def test_what_a_step_makes_of_neutral_text_is_the_formula(model, task):
    """KL(steered || base) at all tokens; log P(base) - log P(steered) of the tokens that a window predicts."""
    run = Run(DSO(kl_tokens=9), model, list(task.split("train")), [], ["Rain fell on the hill and on us."] * 3, 0, None)
    with torch.no_grad():
        run.theta.copy_(torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    with run.prepared(), torch.no_grad():
        with run.attached():
            _, _, kl, loss = run.aim.seen([], run.aim.windows[:2])
        for (ids, _), k, lost in zip(run.aim.windows[:2], kl, loss, strict=True):
            row = torch.tensor([ids])
            base = model.hf(input_ids=row).logits[0].log_softmax(-1)
            with run.attached():
                now = model.hf(input_ids=row).logits[0].log_softmax(-1)
            torch.testing.assert_close(k, (now.exp() * (now - base)).sum(-1), atol=1e-5, rtol=1e-4)
            fall = (base - now)[torch.arange(len(ids) - 1), row[0, 1:]]
            torch.testing.assert_close(lost, fall, atol=1e-5, rtol=1e-4)


def test_every_window_begins_as_a_text_does_and_is_no_longer_than_was_asked(model, task):
    """Cut from the middle of a passage it would lack the begin-of-text token, and some models are lost without it."""
    run = Run(DSO(kl_tokens=4), model, list(task.split("train")), [], ["Rain fell on the hill and on us."] * 3, 0, None)
    with run.prepared():
        assert len(model.start) == 1
        assert {ids[:1] for ids, _ in run.aim.windows} == {model.start}
        assert len({ids for ids, _ in run.aim.windows}) > 3
        assert all(ids.count(model.start[0]) == 1 and len(ids) <= 4 for ids, _ in run.aim.windows)


def test_the_text_guard_holds_the_likelihood_of_neutral_text(model, task, fit, neutral_file):
    """Without a KL budget, perplexity on training passages rises less than half as much as without the guard."""

    def perplexity(guard: float | None) -> float:
        steering = None if guard is None else fit(steps=40, learning_rate=0.02, kl_budget=math.inf, text_guard=guard)
        return figure("perplexity", model, task, steering, neutral_file)

    base, free, guarded = perplexity(None), perplexity(0.0), perplexity(20.0)
    assert free > 1.01 * base, "it does not rise without the guard, so this shows nothing"
    assert guarded - base < 0.5 * (free - base)


# -- K groups


@pytest.mark.parametrize("k", [2, 3, 4])
def test_even_probabilities_are_where_bias_and_tilt_are_least(k):
    """For any number of groups both are 0 at equal shares and nowhere else; for two they are the terms of two roles."""
    groups = "abcd"[:k]
    options = tuple(Option(g, "pro" if g == "a" else "anti", g) for g in groups)
    known = [Known(Item(f"{n}", options, f"c{n}", f"t{n % 2}", True, "x", None, "train"), None) for n in range(4)]
    even = Batch(known, [1] * 4, torch.zeros(4, k))._template_tilt(), Batch(known, [1] * 4, torch.zeros(4, k))._bias()
    assert max(map(float, even)) < 1e-6
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = Batch(known, [1] * 4, torch.randn(4, k, generator=g))
        assert float(batch._bias()) > 0.01
        assert float(batch._template_tilt()) > 1e-5
        if k == 2:
            shift = (batch.p[:, 0] - batch.p[:, 1]).view(2, 2).mean(0)  # items 0, 2 and 1, 3 share a template
            torch.testing.assert_close(batch._template_tilt(), shift.square().mean())


def three_groups() -> list[Item]:
    options = tuple(Option(text, role, text) for text, role in (("a", "pro"), ("b", "anti"), ("c", "anti")))
    return [
        Item(f"{c}-{t}", options, f"team {c}", f"game {t}", True, f"In game {t} team {c} chose", None, "train")
        for c in range(6)
        for t in range(4)
    ]


def test_with_three_groups_the_range_between_them_falls(model, fit, neutral_file):
    """max - min over the groups, as evaluation measures it, is what is learned down."""
    items = three_groups()
    before = train_bias(model, items, None, neutral_file)
    after = train_bias(model, items, fit(items, steps=60, validate_every=60, learning_rate=1e-2), neutral_file)
    assert before > 0.2
    assert after < 0.5 * before


# -- sampled mode


def shorter(item: Item, answers: Any) -> list[float]:
    """A user's own reward: fewer characters."""
    return [-float(len(a)) for a in answers]


def test_a_reward_of_the_users_own_is_raised(model, fit, task):
    """REINFORCE on "shorter answers": sampled answers are shorter than the base's, drawn with other seeds."""
    items = [dataclasses.replace(i, split="train") for i in task.split("train") if i.ambiguous]
    sampled = {"mode": "sampled", "samples": 6, "max_new_tokens": 6, "learning_rate": 3e-2, "kl_budget": 10.0}
    sampled |= {"templates_per_step": 3, "kl_windows": 0, "unambiguous_per_step": 0}
    steering = fit(items, reward=shorter, steps=40, validate_every=40, **sampled)

    def length(w: float) -> float:
        torch.manual_seed(0)
        prompts = [i.prompt or "" for i in items] * 6
        with model.steer(steering, w):
            texts = model.generate(prompts, max_new_tokens=6, do_sample=True, top_k=0)
        return sum(map(len, texts)) / len(texts)

    assert length(1.0) < 0.9 * length(0.0)


def test_sampling_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(fit):
    """Twice the same, another with another seed; the caller's random stream is not moved."""
    sampled = {"mode": "sampled", "steps": 2, "max_new_tokens": 4, "concepts_per_step": 2, "samples": 2}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = numbers(fit(reward=shorter, **sampled))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(numbers(fit(reward=shorter, **sampled)), one)
    assert not torch.equal(numbers(fit(reward=shorter, seed=1, **sampled)), one)


def test_the_default_reward_of_sampled_mode_runs(fit):
    """Without a reward of one's own the concept's majority outcome is charged."""
    steering = fit(mode="sampled", steps=2, max_new_tokens=4, concepts_per_step=2)
    assert "reward" in steering.card["history"][-1]


@pytest.mark.parametrize("given", [{"unambiguous_per_step": 0}, {"kl_windows": 0}, {"accumulate": 2}], ids=str)
def test_sampled_mode_runs_without_unambiguous_items_without_neutral_text_and_in_parts(fit, given):
    """The guards that are left out are left out, nothing more."""
    seen = fit(mode="sampled", steps=1, validate_every=1, max_new_tokens=3, concepts_per_step=2, **given).card[
        "history"
    ][-1]
    assert ("kl" in seen) == ("kl_windows" not in given)
    assert ("unambiguous" in seen) == ("unambiguous_per_step" not in given)


@pytest.mark.parametrize(
    "bad",
    [lambda i, a: [0.0], lambda i, a: [float("nan")] * len(a), lambda i, a: 1.0, lambda i, a: None],
    ids=["too few", "NaN", "one number", "nothing"],
)
def test_a_reward_that_returns_nonsense_is_refused(fit, bad):
    """One finite number for each answer, or a sentence."""
    with pytest.raises(UsageError, match="one finite number for each answer"):
        fit(mode="sampled", steps=1, max_new_tokens=2, reward=bad)


def test_a_wrong_answer_is_neither_of_the_two():
    """An ambiguous item may have answers that are wrong: they are no part of the majority and earn nothing."""
    item = tiny_task().items[0]
    told = dataclasses.replace(item, options=(*item.options[:2], Option("a lamp", "wrong")))
    pro, anti = (o.text for o in told.options[:2])
    assert majority_rewards([[told]], [[pro, pro, anti, "a lamp", "mm"]]) == [[-1.0, -1.0, 1.0, 0.0, 0.0]]


def test_an_answer_is_matched_as_whole_words():
    """ "she" does not begin with "he", "hear" is not "he", the longer option wins."""
    item = tiny_task().items[0]
    said = {o.text: o.role for o in item.options}
    assert outcome(item, " She, and") == said["she"]
    assert outcome(item, "he.") == said["he"]
    assert outcome(item, "hear") == "neither"
    assert outcome(item, "") == "neither"
    assert outcome(item, "well, he") == "neither"


# -- settings, validation, progress


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"steps": -1}, {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"l1": -0.1},
        {"kl_budget": float("nan")}, {"kl_budget": 0}, {"mode": "guess"}, {"mode": "sampled", "samples": 1},
        {"depth": 1.0},
        {"accumulate": 0}, {"items_per_template": 0}, {"concepts_per_step": 0}, {"patience": 0}, {"validate_every": 0},
        {"kl_tokens": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_when_they_are_made(bad):
    """Before any model is loaded, with the name of the setting."""
    with pytest.raises(UsageError, match=next(k for k in reversed(bad))):
        DSO(**bad)


def test_a_reward_in_exact_mode_is_refused(fit):
    """It would be ignored."""
    with pytest.raises(UsageError, match="mode='sampled'"):
        fit(reward=shorter)


def test_it_learns_without_validation_items(fit, task):
    """The last parameters are the result then."""
    items = [dataclasses.replace(i, split=None) for i in task.split("train")]
    steering = fit(items)
    assert numbers(steering).abs().sum() > 0
    assert steering.card["data"]["validation_items"] == 0
    assert "safe" not in steering.card["strength"], "nobody measured it"
    assert len(steering.card["history"]) == 3


def test_the_newest_look_that_is_as_good_as_the_best_is_kept_and_patience_stops(fit):
    """Within the best score's noise the longer learned wins; learning stops `patience` looks after the best."""
    steering = fit(steps=60, validate_every=2, patience=2, learning_rate=0.05)
    history = steering.card["history"]
    scores = [h["validation_score"] for h in history]
    best = scores.index(min(scores))
    assert len(scores) - 1 - best == 2
    within = [
        h["step"]
        for n, h in enumerate(history)
        if h["validation_score"] <= min(scores[:n], default=float("inf")) + h["validation_error"]
    ]
    assert steering.card["kept_at"] == within[-1] >= history[best]["step"]
    assert steering.card["stopped_at"] == 2 * len(scores) < 60
    cut = fit(steps=60, validate_every=2, patience=1, learning_rate=0.05)
    assert len(cut.card["history"]) <= len(scores)


def test_progress_is_monotone_and_ends_at_the_total(fit):
    """done rises by one a step to the total; loss, bias, KL and the time left are told."""
    seen: list[Progress] = []
    fit(progress=seen.append)
    assert [p.done for p in seen] == list(range(1, 13))
    assert {p.total for p in seen} == {12}
    assert all(p.seconds_left is not None and p.seconds_left >= 0 for p in seen)
    assert all({"loss", "bias", "kl"} <= dict(p.figures).keys() for p in seen)


def test_the_card_tells_given_settings_from_defaulted_ones(fit, model, task):
    """And model, data, seed, licence and limits, so that the file explains itself."""
    card = fit(steps=1).card
    assert card["settings"]["given"] == {"steps": 1, "learning_rate": 5e-3, "validate_every": 4, "patience": 99}
    assert set(card["settings"]["defaulted"]) == {f.name for f in dataclasses.fields(DSO)} - set(
        card["settings"]["given"]
    )
    assert card["model"]["fingerprint"] == model.fingerprint()
    assert card["data"]["digest"] == task.digest()
    assert card["seed"] == 0
    assert card["licence"]
    assert card["limits"]


def test_no_training_items_is_a_task_error(fit, task):
    """A task whose items are all for testing has nothing to learn from."""
    only = dataclasses.replace(task, items=task.split("test"))
    with pytest.raises(TaskError, match="no ambiguous item"):
        fit(only)
