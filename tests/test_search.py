"""Search: what may be chosen, what is computed once, when a setting is left, and a study that survives its workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import row, write_rows
from test_vision import ITEMS
from trimtab import artifact, capture, cli, contrasts, sites
from trimtab.errors import RunError, SiteError, TaskError, TrimtabError, UsageError
from trimtab.learners.contrast import CAA, PCA
from trimtab.model import SteerableModel
from trimtab.scoring import Prepared
from trimtab.search import Job, closed, measure, notebook, search, space, work
from trimtab.search.found import lines, turned
from trimtab.search.measure import Scorer
from trimtab.search.recall import Recalling, Tape, blocks, levels
from trimtab.search.space import Given, Space, source
from trimtab.testing import TINY_FAMILIES, TINY_VISION_FAMILIES, random_steering, tiny, tiny_task, tiny_vision
from trimtab.types import Contrast, Example, Outcome, Task

LAYERS = 4


@pytest.fixture(scope="module")
def model() -> SteerableModel:
    return tiny("llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def task() -> Task:
    """128 validation items: parts of 32, 64 and 128."""
    return tiny_task(24, 24)


@pytest.fixture(scope="module")
def items(task) -> Given:
    return Given("items:tiny", contrasts.from_items(task), (8, 16, 32), 0)


@pytest.fixture(scope="module")
def wide(items) -> Space:
    """Two sources, two learners, three layers, 21 strengths."""
    return Space((items, source("descriptions:gender", numbers=(4, 8), seed=0)), ("caa", "pca"), layers=(1, 3))


@pytest.fixture
def job(task, wide) -> Job:
    return Job(task, wide, trials=10, seed=0)


def trials(where: Path, name: str = "s") -> list:
    storage, _ = notebook.opened(where)
    return notebook.optuna.load_study(storage=storage, study_name=name).get_trials(deepcopy=False)


def told(found: list) -> list:
    """What must be the same of two studies: parameters and values of what was not lost."""
    return [(t.params, t.values, t.state) for t in found if not notebook.killed(t)]


# -- what may be chosen


class Asked:
    """A trial that takes the first or the last of everything, and knows what it was asked for."""

    def __init__(self, place: int = 0, **given) -> None:
        self.place, self.given, self.names = place, given, []

    def _one(self, name, choices):
        self.names.append(name)
        return self.given.get(name, choices[self.place])

    def suggest_categorical(self, name, choices):
        return self._one(name, list(choices))

    def suggest_int(self, name, low, high):
        return self._one(name, [low, high])

    def suggest_float(self, name, low, high, *, step):
        return self._one(name, [low, high])


def test_what_is_open_is_asked_for_and_what_is_given_is_not(wide, model):
    """Stems where pairs are descriptions; nothing at all in a space of one point."""
    of_items = Asked()
    wide.choose(of_items)
    assert of_items.names == ["pairs", "number of items:tiny", "learner", "first layer", "layers", "strength"]
    described = Asked(-1)
    chosen = wide.choose(described)
    assert {"descriptions", "stem", "sentences", "number of descriptions:gender"} <= set(described.names)
    assert (chosen.first, chosen.last, chosen.sites) == (3, 3, "layers.3.out")
    point = Space((source("descriptions:age:act:home:7", seed=0),), ("caa",), (0.4, 0.4, 1.0), (2, 2))
    asked = Asked()
    setting = point.choose(asked)
    assert asked.names == ["descriptions"]
    assert (setting.recipe.stem, setting.recipe.sentences, setting.recipe.number, setting.strength) == (
        "act", "home", 7, 0.4,
    )  # fmt: skip


def test_a_smaller_number_of_pairs_is_a_part_of_a_larger_one(items):
    """In an order of the seed; both sides alike."""
    few, many = (items.contrast(space.Recipe("items:tiny", n)) for n in (8, 32))
    assert few.positive == many.positive[:8]
    assert few.negative == many.negative[:8]
    assert len(many.positive) == 32
    whole = list(zip(items.whole.positive, items.whole.negative, strict=True))
    assert all(pair in whole for pair in zip(many.positive, many.negative, strict=True))
    assert items.contrast(space.Recipe("items:tiny", 10**6)) == items.whole
    other = replace(items, seed=1).contrast(space.Recipe("items:tiny", 8))
    assert set(other.positive) != set(few.positive)


def test_learners_keep_their_own_sites_and_ranges(items):
    """ITI steers heads whatever --site says; a learner that may not be turned below 0 has strengths of its own."""
    both = Space((items,), ("caa", "iti"), sites=("norm.mlp_in", "out"), layers=(1, 2))
    assert both.choose(Asked(learner="iti")).site == "attn.proj_in"
    assert both.choose(Asked(learner="caa")).site == "norm.mlp_in"
    assert both._strengths("caa") == (-2.0, 2.0)
    assert Space((items,), ("linear-act",), strength=(-3.0, 3.0, 0.5))._strengths("linear-act") == (0.0, 1.0)
    with pytest.raises(UsageError, match="may be turned from 0 to 1"):
        Space((items,), ("linear-act",), strength=(3.0, 4.0, 0.5))
    for nothing in ((-3.0, 0.0, 0.5), (0.0, 20.0, 20.0)):
        with pytest.raises(UsageError, match=r"0 alone is left.*may be turned from 0 to 1"):
            Space((items,), ("linear-act",), strength=nothing)
    with pytest.raises(UsageError, match=r"0 alone is left, the untouched model$"):
        Space((items,), ("caa",), strength=(0.0, 0.0, 1.0))


def test_a_direction_may_be_searched_as_far_as_is_asked_for(model, task, items, tmp_path):
    """Its range is a custom: what is found beyond it has a card with the range that was searched."""
    far = Space((items,), ("caa",), layers=(1, 2), strength=(8.0, 16.0, 8.0))
    assert far._strengths("caa") == (8.0, 16.0)
    found = search(model, task, far, trials=2, seed=0, out=tmp_path, test_limit=24, floor=None, sampler="random")
    steering = artifact.read(tmp_path / "steering")
    assert found.best.strength in (8.0, 16.0) and steering.trained_range == (-2.0, 16.0)
    model.require(steering, found.best.strength)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: Space((), ("caa",)), "a search needs pairs"),
        (lambda s: Space((s,), ()), "a search needs a learner"),
        (lambda s: Space((s,), ("caaa",)), "Did you mean 'caa'"),
        (lambda s: Space((s,), ("dso",)), "dso learns from a task's items"),
        (lambda s: Space((s,), ("caa",), options={"caa": {"centred": (True,)}}), "caa has no setting 'centred'"),
        (lambda s: Space((s,), ("caa",), options={"pca": {"centred": (True,)}}), "not among caa"),
        (lambda s: source("descriptions:gendre", seed=0), "did you mean 'gender'"),
        (lambda s: source("items:pronoun@test", seed=0), "learns from the split train alone"),
        (lambda s: space.layers("9-2"), "FIRST-LAST"),
        (lambda s: space.strengths("2:-2:0.2"), "LOW:HIGH:STEP"),
        (lambda s: space.strengths("0:nan:1"), "LOW:HIGH:STEP"),
        (lambda s: space.numbers("8,none"), "whole numbers"),
    ],
)
def test_a_space_that_cannot_be_is_refused(items, make, says):
    with pytest.raises(UsageError, match=says):
        make(items)


def test_layers_and_sites_must_be_those_of_the_model(model, items):
    with pytest.raises(UsageError, match=r"layers 2-9: tiny llama has 4 layers, 0 to 3"):
        Space((items,), ("caa",), layers=(2, 9)).on(model)
    with pytest.raises(SiteError, match="attn_out"):
        Space((items,), ("caa",), sites=("norm.attn_out",)).on(model)
    assert Space((items,), ("caa",)).on(model).layers == (0, LAYERS - 1)


# -- what is computed once


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_texts_read_as_tries_are_what_they_are_alone(models, family):
    """At every site of every family, last token and mean, with rows that begin alike and rows that are equal."""
    model = models[family]
    at = list(sites.names(model.hf).values())
    # Within Mistral's sliding window of six.
    rows = [(5, 6, 7), (5, 6, 8, 9), (5,), (5, 6, 7), (40, 41), (5, 6, 8, 9, 10)]
    for pool in ("last", "mean"):
        found, plain = model.pooled(at, rows, pool=pool), capture.pooled(model.body, at, rows, pool=pool)
        for site in at:
            torch.testing.assert_close(found[site.name], plain[site.name], atol=2e-5, rtol=2e-5)


def test_no_text_is_read_twice_and_a_learner_cannot_tell(model, wide, items, monkeypatch):
    """Overlapping recipes run the rest alone; the steering is that of the model itself."""
    ran: list[int] = []
    plain = SteerableModel.pooled

    def counted(self, at, rows, **more):
        ran.append(len(rows))
        return plain(self, at, rows, **more)

    monkeypatch.setattr(SteerableModel, "pooled", counted)
    own = Recalling(model, wide.on(model).patterns())
    few, many = (items.contrast(space.Recipe("items:tiny", n)) for n in (8, 32))
    for kind, pattern in ((CAA, "layers.1-3.out"), (PCA, "layers.2.out")):
        for contrast in (few, many):
            found = kind(sites=pattern).fit(own, contrast, seed=0)
            with monkeypatch.context() as inner:
                inner.setattr(SteerableModel, "pooled", plain)
                wanted = kind(sites=pattern).fit(model, contrast, seed=0)
            assert list(found.interventions) == list(wanted.interventions)
            for name, (one,) in found.interventions.items():
                torch.testing.assert_close(one.c, wanted.interventions[name][0].c, atol=1e-4, rtol=1e-3)
    block = blocks(model)[-1]
    assert "forward" not in block.__dict__, "what was left out while reading is there again"
    texts = {e for c in (few, many) for e in (*c.positive, *c.negative)}
    assert sum(ran) == own.texts_read == len(texts)
    CAA(sites="norm.final").fit(own, few, seed=0)
    assert sum(ran) == len(texts) + 16, "a site that no setting may steer is read plainly"


def test_a_full_disk_is_named_while_texts_are_read(model, items, monkeypatch):
    own = Recalling(model, ["layers.*.out"])
    CAA(sites="layers.1-2.out").fit(own, items.contrast(space.Recipe("items:tiny", 8)), seed=0)

    class Full:
        def seek(self, *place):
            raise OSError(28, "No space left on device")

    for shelf in own._kept.values():
        monkeypatch.setattr(shelf, "file", Full())
    with pytest.raises(RunError, match=r"activations need [\d,]+ bytes among the temporary files.*TMPDIR"):
        CAA(sites="layers.1-2.out").fit(own, items.contrast(space.Recipe("items:tiny", 32)), seed=0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2"])
def test_going_on_from_kept_hidden_states_is_exact(family, task):
    """At every first block, from the block itself and from a kept one below: bit for bit what a whole pass gives."""
    more = {"gpt2": {"n_layer": LAYERS}, "gemma2": {"num_hidden_layers": LAYERS, "sliding_window": 256}}
    model = tiny(family, **more.get(family, {"num_hidden_layers": LAYERS}))
    some = task.split("validation")[:12]
    for kept in ((1, 2, 3), (2,)):
        tape = Tape(model.encode(some), blocks=blocks(model), levels=kept, recording=True)
        model.score(some, prepared=tape)
        tape.recording = False
        for first in range(LAYERS):
            steering = random_steering(model, f"layers.{first}-{LAYERS - 1}.out", "shift", seed=first)
            with model.steer(steering):
                found = model.score(some, prepared=tape)
                wanted = model.score(some, prepared=Prepared(tape.encoded))
            assert found == wanted
            assert {n for n, _ in tape.below} == set(kept)


@pytest.mark.parametrize("family", TINY_VISION_FAMILIES)
def test_images_are_seen_while_searching(family):
    """A vision-language model reads pictures once as well, and a setting has the figures that it has outside."""
    model = tiny_vision(family, seed=2)
    own = Recalling(model, ["layers.*.out"])
    at = list(sites.find(model.hf, "layers.*.out"))
    rows = [e.prompt for e in model.encode(list(ITEMS))]
    found, plain = own.pooled(at, rows), model.pooled(at, rows)
    for site in at:
        torch.testing.assert_close(found[site.name], plain[site.name], atol=2e-5, rtol=2e-5)
    some = list(ITEMS)
    tape = Tape(own.encode(some), blocks=blocks(own), levels=tuple(range(1, len(blocks(own)))), recording=True)
    assert own.score(some, prepared=tape) == model.score(some)
    tape.recording = False
    for first in range(len(blocks(own))):
        steering = random_steering(model, f"layers.{first}-{len(blocks(own)) - 1}.out", "shift", seed=first)
        with own.steer(steering):
            again = own.score(some, prepared=tape)
        with model.steer(steering):
            wanted = model.score(some)
        for a, b in zip(again, wanted, strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_what_lies_below_is_not_run(model, task):
    """A steering from block 2 on computes no attention in blocks 0 and 1."""
    some = task.split("validation")[:6]
    tape = Tape(model.encode(some), blocks=blocks(model), levels=(1, 2, 3), recording=True)
    model.score(some, prepared=tape)
    tape.recording = False
    ran: list[int] = []
    handles = [b.mlp.register_forward_hook(lambda *a, n=n: ran.append(n)) for n, b in enumerate(tape.blocks)]
    with model.steer(random_steering(model, "layers.2-3.out", "shift")):
        model.score(some, prepared=tape)
    for handle in handles:
        handle.remove()
    assert set(ran) == {2, 3}


def test_hidden_states_are_kept_at_as_many_blocks_as_fit(model, task, monkeypatch):
    """All where there is room, evenly from the lowest where there is less, none where there is none."""
    encoded = model.encode(task.split("validation"))
    assert levels(model, (0, 3), encoded) == (1, 2, 3)
    tokens = sum(len(e.prompt) + sum(map(len, e.options)) for e in encoded)
    one = tokens * 32 * 4 / 0.25
    for room, kept in ((2.5, (1, 2)), (1.5, (1,)), (0.5, ())):
        monkeypatch.setattr("trimtab.memory.free_bytes", lambda device, room=room: int(room * one))
        assert levels(model, (0, 3), encoded) == kept


# -- figures, part by part


def test_every_part_holds_the_one_before_and_many_concepts(task):
    """The seed fixes the order; ambiguous items keep their share in every beginning."""
    order = measure.chosen(task, seed=0)
    assert {i.id for i in order} == {i.id for i in task.split("validation")}
    assert order == measure.chosen(task, seed=0) != measure.chosen(task, seed=1)
    assert order[:40] == measure.chosen(task, seed=0, limit=40)
    for end in (32, 64, 128):
        assert sum(i.ambiguous for i in order[:end]) == end // 2
    assert len({i.concept for i in order[:32]}) >= 3


def faked(monkeypatch, bias, spread=0.15):
    """Scores that depend on the strength alone: P(pro) - P(anti) is bias(strength), give or take the item's own."""
    real = SteerableModel.score

    def score(self, items, **more):
        real(self, items[:1])  # a steering that does nothing is refused
        w = max((float(d.strength) for d in self._dials), default=0.0)
        found = []
        for item in items:
            own = spread * (int(item.digest()[:4], 16) / 2**15 - 1)
            if item.ambiguous:
                gap = max(-1.0, min(1.0, bias(w) + own))
                found.append(Outcome(((1 + gap) / 2, (1 - gap) / 2, 0.0), 1.0))
            else:
                found.append(Outcome(tuple(1.0 if o.role == "correct" else 0.0 for o in item.options), 1.0))
        return found

    monkeypatch.setattr(SteerableModel, "score", score)


def test_hopeless_settings_are_left_early_and_the_best_never_is(model, task, items, tmp_path, monkeypatch):
    """Bias falls towards strength 0.6; whatever the order of trials, pruning finds what measuring all finds."""
    faked(monkeypatch, lambda w: min(0.9, 0.05 + abs(w - 0.6)))
    one = Space((items,), ("caa",), (-2.0, 2.0, 0.2), (3, 3))
    for seed in range(2):
        found = {}
        for prune in (True, False):
            where = tmp_path / f"{seed}{prune}.log"
            job = Job(task, one, "bias", trials=14, sampler="random", prune=prune, seed=seed)
            job.work(model, where, "s")
            kept = [t for t in trials(where) if notebook.counts(t)]
            found[prune] = min((t for t in kept if notebook.whole(t)), key=lambda t: t.values[0])
            spent = sum(t.user_attrs["measured"]["items"] for t in kept)
            assert (spent < 14 * 128 * 0.6) is prune
        assert found[True].params == found[False].params
        assert found[True].values == found[False].values


def test_who_is_not_in_the_best_third_is_left(model, task):
    """By how many dominate it; with two aims what nothing dominates goes on, and of equal settings the first."""
    one = measure.Scorer(model, task, "bias", seed=0, layers=(3, 3), limit=32)
    part = measure.Measured(32, (0.3,))
    assert not one.outdone(part, [(0.1,), (0.2,)])
    assert one.outdone(part, [(0.1,), (0.2,), (0.4,)])
    assert not one.outdone(part, [(0.1,), (0.4,), (0.5,)])
    assert one.outdone(part, [(0.3,), (0.3,), (0.5,)])
    two = measure.Scorer(model, task, "bias+capability", seed=0, layers=(3, 3), limit=32)
    better = [(0.1, 0.9), (0.2, 0.8), (0.25, 0.95)]
    assert not two.outdone(measure.Measured(32, (0.3, 0.99)), better)
    assert two.outdone(measure.Measured(32, (0.3, 0.7)), better)


def test_a_setting_that_pays_with_answers_is_worse_than_any_that_does_not(model, task, items, tmp_path, monkeypatch):
    """With the objective bias: above 1 the model says "they" alone, has no bias left, and is not chosen."""

    real = SteerableModel.score

    def score(self, some, **more):
        real(self, some[:1])
        w = max((float(d.strength) for d in self._dials), default=0.0)
        gap, mute = (0.0, 1.0) if w > 1 else (0.4 - 0.2 * w, 0.0)
        return [
            Outcome(((1 - mute + gap) / 2, (1 - mute - gap) / 2, mute), 1.0)
            if i.ambiguous
            else Outcome(tuple(float(o.role == "correct") for o in i.options), 1.0)
            for i in some
        ]

    monkeypatch.setattr(SteerableModel, "score", score)
    one = Space((items,), ("caa",), (0.5, 2.0, 0.25), (3, 3))
    job = Job(task, one, "bias", trials=7, sampler="random", seed=0)
    job.work(model, tmp_path / "s.log", "s")
    by = {t.params["strength"]: t for t in trials(tmp_path / "s.log") if notebook.counts(t)}
    assert set(by) > {1.0}
    storage, _ = notebook.opened(tmp_path / "s.log")
    notes = notebook.Notebook(storage, "s", None)
    assert notes.watch()
    (best,) = notes.front()
    assert best.params["strength"] == 1.0
    mute = [t for w, t in by.items() if w > 1]
    assert mute
    assert all(t.values[0] > 1 for t in mute)
    assert all(t.user_attrs["measured"]["stopped"] for t in mute), "surely beyond the floor after the first part"


def test_a_search_scores_validation_items_and_learns_from_training_texts(model, task, job, tmp_path, monkeypatch):
    """Nothing else is ever encoded while settings are compared."""
    shown: list = []
    read: list = []
    encode, texts = SteerableModel.encode, SteerableModel.example_tokens
    monkeypatch.setattr(
        SteerableModel, "encode", lambda self, some, *a: [shown.extend(some), encode(self, some, *a)][1]
    )
    monkeypatch.setattr(
        SteerableModel, "example_tokens", lambda self, some, *a: [read.extend(some), texts(self, some, *a)][1]
    )
    job.work(model, tmp_path / "s.log", "s")
    assert {i.split for i in shown} == {"validation"}
    kept = {i.prompt for i in task.items if i.split != "train"}
    assert read
    assert not [e for e in read if e.prompt in kept]


def test_leaks_are_refused(model, task, items, monkeypatch):
    """A task whose splits leak, pairs that hold a test item, a task without test items."""
    leaky = next(i for i in task.items if i.split == "test")
    sides = (Example(leaky.prompt, "they"),), (Example(leaky.prompt, "she"),)
    own = Given("jsonl:own", Contrast("own", *sides), (1,), 0)
    with pytest.raises(TaskError, match=f"hold the prompt of item '{leaky.id}' of the split 'test'"):
        Job(task, Space((own,), ("caa",)), seed=0)
    said = [f"{leaky.prompt.strip()}  {o.text.strip()}. So" for o in leaky.options[:2]]
    whole = Given("jsonl:own", Contrast("own", *[(Example(s),) for s in said]), (1,), 0)
    with pytest.raises(TaskError, match=f"hold the prompt of item '{leaky.id}' of the split 'test'"):
        Job(task, Space((whole,), ("caa",)), seed=0)
    learnt = next(i for i in task.items if i.split == "train")
    other = [(Example(f"{learnt.prompt} {o.text}"),) for o in learnt.options]
    Job(task, Space((Given("jsonl:own", Contrast("own", *other[:2]), (1,), 0),), ("caa",)), seed=0)
    for split in ("validation", "test"):
        less = replace(task, items=tuple(i for i in task.items if i.split != split))
        with pytest.raises(TaskError, match=f"no {split} items"):
            Job(less, Space((items,), ("caa",)), seed=0)
    monkeypatch.setattr(Task, "split", lambda self, name: tuple(i for i in self.items if i.split == "test"))
    with pytest.raises(TaskError, match="no items in the split 'validation'"):
        Scorer(model, task, "bias", seed=0, layers=(0, 3))


# -- the study


def test_the_same_seed_finds_the_same(model, job, tmp_path):
    """And another seed others."""
    for name in ("one", "two"):
        job.work(model, tmp_path / f"{name}.log", "s")
    replace(job, seed=1).work(model, tmp_path / "other.log", "s")
    one, two, other = (told(trials(tmp_path / f"{n}.log")) for n in ("one", "two", "other"))
    assert one == two != other
    assert len([t for t in trials(tmp_path / "one.log") if notebook.counts(t)]) == 10


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A child of a fork has none of its parent's threads, and would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def forked(task) -> int:
    """Run in a process of its own, which begins as this one is; gives its id."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            signal.alarm(120)
            task()
        finally:
            os._exit(1)
    return child


def killer(at: int, moment: str):
    """Kills the process in its trial `at`: before it is signed, while it is measured, or before it is told."""
    seen = {"n": -1}
    choose, steering, answer = Space.choose, work.Worker._steering, work.Worker._answer

    def die(name):
        if name == moment and seen["n"] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def chosen(self, trial):
        seen["n"] += 1
        die("drawn")
        return choose(self, trial)

    def learned(self, *given):
        die("learned")
        return steering(self, *given)

    def answered(self, *given):
        die("measured")
        return answer(self, *given)

    Space.choose, work.Worker._steering, work.Worker._answer = chosen, learned, answered


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_study_that_was_killed_goes_on_as_if_it_had_not_been(model, job, tmp_path, sampler):
    """At any trial and moment: SIGKILL loses that trial alone, and the others are those of an unbroken study."""
    job = replace(job, trials=8, sampler=sampler)
    job.work(model, tmp_path / "whole.log", "s")
    wanted = told(trials(tmp_path / "whole.log"))
    where = tmp_path / "killed.log"
    deaths = [(0, "drawn"), (2, "learned"), (1, "measured"), (3, "drawn")]
    for at, moment in deaths:

        def doomed(at=at, moment=moment):
            killer(at, moment)
            job.work(model, where, "s")

        _, status = os.waitpid(forked(doomed), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    job.work(model, where, "s")
    found = trials(where)
    assert sum(map(notebook.killed, found)) == len(deaths)
    assert told(found) == wanted
    assert not (tmp_path / "killed.log.workers").exists()


def test_two_workers_share_a_study_and_do_no_setting_twice(model, task, items, tmp_path):
    """Exactly as many settings as asked for, each worked on once, by both."""
    small = Space((items,), ("caa", "pca"), (-1.0, 1.0, 0.5), (3, 3))
    job = Job(task, small, trials=14, sampler="random", seed=0)
    where = tmp_path / "s.log"

    def slow():
        run, measured = work.Worker.run, Scorer.measured

        def together(self):
            while len(list((tmp_path / "s.log.workers").iterdir())) < 2:
                time.sleep(0.01)
            run(self)

        def slowly(self, *given):
            time.sleep(0.03)
            return measured(self, *given)

        work.Worker.run, Scorer.measured = together, slowly
        job.work(model, where, "s")
        os._exit(0)

    children = [forked(slow), forked(slow)]
    assert [os.waitpid(c, 0)[1] for c in children] == [0, 0]
    found = trials(where)
    tried = [t for t in found if notebook.counts(t)]
    keys = [t.user_attrs["setting"]["key"] for t in tried]
    assert len(tried) == 14
    assert len(set(keys)) == len(keys)
    assert len({t.user_attrs["setting"]["worker"] for t in tried}) == 2
    assert not [t for t in found if t.state.name == "RUNNING"]


def test_a_dead_workers_trial_is_taken_up_by_the_living(model, job, tmp_path):
    """While another worker waits for the last trial."""
    job = replace(job, trials=3)
    where = tmp_path / "s.log"

    def doomed():
        killer(1, "learned")
        job.work(model, where, "s")

    os.waitpid(forked(doomed), 0)
    assert [t.state.name for t in trials(where)] == ["COMPLETE", "RUNNING"]
    job.work(model, where, "s")
    assert sum(map(notebook.counts, trials(where))) == 3


def test_repeated_settings_are_answered_from_memory(model, task, items, tmp_path, monkeypatch):
    """A space of four points: each is measured once, strength 0 never, and the study ends when nothing new comes."""
    monkeypatch.setattr(notebook, "REPEATS", 40)
    ran: list[float] = []
    measured = Scorer.measured
    monkeypatch.setattr(Scorer, "measured", lambda self, s, w, *more: [ran.append(w), measured(self, s, w, *more)][1])
    one = replace(items, numbers=(16,))
    small = Space((one,), ("caa",), (-1.0, 1.0, 0.5), (3, 3))
    job = Job(task, small, trials=50, sampler="random", seed=0)
    job.work(model, tmp_path / "s.log", "s")
    assert sorted(ran) == [-1.0, -0.5, 0.5, 1.0]
    found = trials(tmp_path / "s.log")
    repeats = [t for t in found if notebook.REPEAT in t.user_attrs]
    assert len(found) == len(repeats) + 4
    for t in repeats:
        first = t.user_attrs[notebook.REPEAT]
        assert first == "base" or t.values == found[first].values


def test_an_int_and_a_clipped_span_are_the_same_setting(items):
    """What differs in words and not in texts or sites has one key."""
    one = Space((items,), ("caa",), layers=(1, 3))
    given = {"number of items:tiny": 8, "first layer": 3, "strength": 1.0}
    keys = {work.key_of(s, one.contrast(s.recipe)) for n in (1, 2, 3) for s in [one.choose(Asked(**given, layers=n))]}
    assert len(keys) == 1


def test_a_study_of_another_search_is_refused(model, job, tmp_path):
    """Naming what differs; a foreign study and a damaged journal too."""
    where = tmp_path / "s.log"
    replace(job, trials=1).work(model, where, "s")
    other = replace(job, space=replace(job.space, layers=(2, 3)))
    with pytest.raises(RunError, match=r"space layers \[1, 3\] there, \[2, 3\] here"):
        other.work(model, where, "s")
    with pytest.raises(RunError, match=r"floor 0\.03 there, 0\.01 here"):
        replace(job, floor=0.01).work(model, where, "s")
    storage, _ = notebook.opened(where)
    foreign = notebook.optuna.create_study(storage=storage, study_name="theirs", directions=["minimize"] * 2)
    foreign.add_trial(notebook.optuna.trial.create_trial(values=[1, 2]))
    with pytest.raises(RunError, match="none of trimtab search"):
        job.work(model, where, "theirs")
    damaged = tmp_path / "damaged.log"
    damaged.write_text("{}\nnot a journal\n{}\n")
    with pytest.raises(RunError, match="no journal of Optuna"):
        job.work(model, damaged, "s")


def test_a_line_that_was_cut_short_is_taken_away(model, job, tmp_path):
    """A kill in the middle of a write, or a full disk."""
    where = tmp_path / "s.log"
    replace(job, trials=2).work(model, where, "s")
    with where.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    job.work(model, where, "s")
    assert sum(map(notebook.counts, trials(where))) == 10


@pytest.mark.parametrize("held", [b"SQLite format 3\0\n\x0a and more", b"one line", b"notes\nof mine", b'{"a": 1}\n{'])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, held):
    """As where `--storage study.db` was written for sqlite:///study.db."""
    path = tmp_path / "study.db"
    path.write_bytes(held)
    with pytest.raises(RunError, match="no journal of Optuna" + (".*sqlite:///" if held[:6] == b"SQLite" else "")):
        notebook.opened(path)
    assert path.read_bytes() == held


def test_a_space_in_which_nothing_works_ends_in_a_sentence(task, tmp_path):
    """With the reasons, after a few settings, not after all."""
    base = tiny("llama", num_hidden_layers=LAYERS, chat=False)
    described = Space((source("descriptions:gender", seed=0),), ("caa",))
    with pytest.raises(UsageError, match=r"no setting .* can be used: all 10 that were tried .*no chat template"):
        Job(task, described, trials=30, seed=0).work(base, tmp_path / "s.log", "s")
    prompts = Space((source("descriptions:gender:text", seed=0),), ("caa",))
    Job(task, prompts, trials=2, seed=0).work(base, tmp_path / "t.log", "t")
    assert sum(map(notebook.counts, trials(tmp_path / "t.log", "t"))) == 2


def test_a_setting_that_cannot_be_used_is_no_end(model, task, items, tmp_path):
    """One source without a difference beside one with: its trials fail, are counted, and the search goes on."""
    same = Contrast("same", *[tuple(Example(f"{k}", "she") for k in range(4))] * 2)
    broken = Given("jsonl:same", same, (4,), 0)
    job = Job(task, Space((broken, items), ("caa",), layers=(2, 3)), trials=8, sampler="random", seed=0)
    job.work(model, tmp_path / "s.log", "s")
    found = [t for t in trials(tmp_path / "s.log") if notebook.counts(t)]
    failed = [t for t in found if t.state.name == "FAIL"]
    assert len(found) == 8
    assert failed
    assert len(failed) < 8
    assert all("equal sides" in t.user_attrs[notebook.REASON] for t in failed)


def test_a_database_serves_as_well(model, job, tmp_path):
    """SQLite here; with signs of life. An URL that cannot be opened is not repeated: it may hold a password."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    replace(job, trials=3).work(model, url, "s")
    assert len([t for t in trials(url) if notebook.counts(t)]) == 3
    with pytest.raises(RunError, match=r"the storage nosuch://\.\.\. cannot be opened") as refused:
        job.work(model, "nosuch://user:secret@host/db", "s")
    assert "secret" not in str(refused.value)


def test_progress_tells_the_best_the_front_and_the_pace(model, job, tmp_path):
    seen = []
    job.work(model, tmp_path / "s.log", "s", progress=seen.append)
    assert seen[0].done == 0
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("searching", 10, 10)
    assert {"best bias", "best capability", "on the front", "trials an hour"} <= dict(seen[-1].figures).keys()
    assert any(p.seconds_left for p in seen)


# -- the result


@pytest.fixture(scope="module")
def result(model, task, wide, neutral_file, tmp_path_factory):
    """A whole search, with its folder."""
    out = tmp_path_factory.mktemp("search")
    found = search(model, task, wide, trials=12, seed=0, out=out, test_limit=24, neutral=neutral_file)
    return found, out


def test_the_best_and_the_front_are_steerings_with_cards(model, wide, task, result):
    """With recipe, study, trial and figures; the strength found is the default, and is positive."""
    found, out = result
    steering = artifact.read(out / "steering")
    card = steering.card["search"]
    assert card["trial"] == found.best.number
    assert card["split"] == "validation"
    assert card["items"] == 128
    assert {name: e["value"] for name, e in card["objectives"].items()} == found.best.values
    assert card["figures"]["per_concept_bias"]["n"] == 64
    assert steering.card["strength"]["default"] == abs(found.best.setting.strength) > 0
    assert steering.card["data"]["positive"] == found.best.setting.recipe.number
    assert {p.number for p in found.front} >= {found.best.number}
    for point in found.front:
        if len(found.front) > 1:
            assert artifact.read(out / "front" / str(point.number)).card["search"]["trial"] == point.number
    # What lies in the folder does what the trial did.
    scorer = Scorer(model, task, "bias+capability", seed=0, layers=(1, 3))
    *_, last = scorer.measured(steering, steering.card["strength"]["default"])
    assert last.values == pytest.approx(tuple(found.best.values.values()), abs=2e-3)


def test_the_report_is_of_test_items_that_the_search_never_saw(result):
    _, out = result
    records = [json.loads(line) for line in (out / "eval" / "records.jsonl").read_text().splitlines()]
    of_items = [r for r in records if r["kind"] == "item"]
    assert {r["split"] for r in of_items} == {"test"}
    assert {r["arm"] for r in of_items} == {"steering", "instruction", "random"}
    lines_ = (out / "trials.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines_]
    assert sum(r["state"] == "complete" and "repeat of" not in r for r in rows) == 12
    assert all(r["parameters"] and r["measured"]["figures"] is not None for r in rows)


def test_asking_again_gives_the_same_and_a_longer_search_replaces_it(model, task, wide, result, neutral_file):
    """Nothing is measured anew; what belongs to an earlier best is moved aside."""
    found, out = result
    before = (out / "steering" / "steering.safetensors").read_bytes()
    options = {"seed": 0, "out": out, "test_limit": 24, "neutral": neutral_file}
    again = search(model, task, wide, trials=12, **options)
    assert (out / "steering" / "steering.safetensors").read_bytes() == before
    assert again.best.number == found.best.number
    search(model, task, wide, trials=12, **options | {"test_limit": 12})
    assert (out / "eval-1" / "records.jsonl").is_file(), "figures of other test items are moved aside"
    longer = search(model, task, wide, trials=20, **options)
    assert artifact.read(out / "steering").card["search"]["trial"] == longer.best.number
    aside = out / f"eval-of-trial-{found.best.number}"
    assert aside.is_dir() is (longer.best.number != found.best.number)


def test_what_the_report_would_be_refused_for_is_refused_before_the_search(model, task, wide, tmp_path):
    for more, says in (
        ({"test_limit": 0}, "at least 1 test item"),
        ({"neutral": tmp_path / "gone"}, "no neutral text"),
    ):
        with pytest.raises(TrimtabError, match=says):
            search(model, task, wide, trials=2, seed=0, out=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_the_result_is_told_to_a_person(result):
    found, _ = result
    told_ = "\n".join(lines(found))
    assert f"* trial {found.best.number}" in told_
    assert "12 settings tried" in told_
    assert "neither_rate: base" in told_
    base = {r["metric"]: r for r in found.best.test.results if r["strength"] == 0.0 and r["task"] == "tiny"}
    shown = [base[m] for m in ("per_concept_bias", "unambiguous_accuracy_choice")]
    line = next(text for text in told_.splitlines() if text.startswith("base"))
    assert line.split()[-6:] == " ".join(f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in shown).split()


def test_test_figures_are_the_objectives_own(result):
    """The accuracy of a task in which "unknown" may be right is that of ambiguous and settled items together."""
    records = [r for r in result[0].best.test.records if (r.arm, r.strength) == ("steering", 0.0)]
    both = measure.Aim("accuracy", ("ambiguous_accuracy_choice", "unambiguous_accuracy_choice"), higher=True)
    found = both.estimate(records, seed=0)
    assert found.value == both.of(records) and found.n == len(records)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("kind", ["shift", "diagonal", "lowrank"])
def test_a_steering_turned_round_does_at_w_what_it_did_at_minus_w(model, task, kind):
    some = task.split("validation")[:6]
    steering = random_steering(model, "layers.*.out", kind, scale=0.1)
    with model.steer(steering, -0.7, beyond_range=True):
        wanted = model.score(some)
    with model.steer(turned(steering), 0.7):
        assert model.score(some) == wanted


def test_a_study_without_a_result_says_so(model, task, items, neutral_file, tmp_path, monkeypatch):
    """Every setting is surely worse than the base; the trials are written down all the same."""
    faked(monkeypatch, lambda w: 0.1 + 0.3 * abs(w))
    one = Space((items,), ("caa",), (1.0, 2.0, 0.2), (3, 3))
    job = Job(task, one, "bias", trials=4, sampler="random", seed=0)
    job.work(model, tmp_path / "s.log", "s")
    with pytest.raises(TaskError, match="surely worse than the untouched model"):
        closed(job, model, tmp_path / "s.log", "s", tmp_path, neutral=neutral_file)
    assert (tmp_path / "trials.jsonl").is_file()


# -- the command


def test_a_search_from_the_command_line(trimtab_cli, chat_folder, neutral_file, tmp_path):
    """To a steering that show and eval take, and the same again from the finished folder."""
    tasks = write_rows(tmp_path / "items.jsonl", [row(i) for i in tiny_task(12, 12).items])
    words = (
        "search", "--model", chat_folder, "--task", f"jsonl:{tasks}", "--pairs", f"items:jsonl:{tasks}", "--pairs",
        "descriptions:gender:act", "--learner", "caa,pca", "--set", "pca.centred=true,false", "--layers", "0-1",
        "--strength", "-1:1:0.5", "--number", "4,8", "--objective", "bias", "--floor", "none", "--trials", 5, "--seed",
        0, "--neutral", neutral_file, "--test-limit", 8, "--out", tmp_path / "out",
    )  # fmt: skip
    ran = trimtab_cli(*words)
    assert ran.code == 0, ran.err
    assert "5 settings tried" in ran.out
    assert "per_concept_bias" in ran.out
    assert trimtab_cli("show", tmp_path / "out" / "steering").code == 0
    assert trimtab_cli("report", tmp_path / "out" / "eval").code == 0
    again = trimtab_cli(*words)
    assert again.code == 0
    assert again.out == ran.out
    changed = trimtab_cli(*[("0:1:0.5" if w == "-1:1:0.5" else w) for w in words])
    assert changed.code == 7
    assert "space strength [-1.0, 1.0, 0.5] there, [0.0, 1.0, 0.5] here" in changed.error


def test_several_workers_from_the_command_line(trimtab_cli, chat_folder, neutral_file, tmp_path):
    """The processes search, this one reports; where all fail, the first one's words are passed on."""
    tasks = write_rows(tmp_path / "items.jsonl", [row(i) for i in tiny_task(12, 12).items])
    words = (
        "search", "--model", chat_folder, "--task", f"jsonl:{tasks}", "--pairs", f"items:jsonl:{tasks}", "--trials", 4,
        "--seed", 0, "--neutral", neutral_file, "--test-limit", 8, "--workers", 2, "--out",
    )  # fmt: skip
    ran = trimtab_cli(*words, tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "4 settings tried" in ran.out
    assert (tmp_path / "out" / "steering" / artifact.CARD).is_file()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--learner", "caaa"), 2, "Did you mean 'caa'"),
        (("--set", "caa.nothing=1"), 2, "caa has"),
        (("--set", "pool=mean"), 2, "LEARNER.NAME=VALUE"),
        (("--layers", "0-9"), 2, "has 2 layers"),
        (("--workers", "0"), 2, "at least one worker"),
        (("--trials", "0"), 2, "at least 1 setting"),
        (("--pairs", "items:pronoun@test"), 2, "split train alone"),
        (("--floor", "-1"), 2, "floor"),
    ],
)
def test_bad_words_are_refused(trimtab_cli, chat_folder, task_file, tmp_path, words, code, says):
    ran = trimtab_cli(
        "search", "--model", chat_folder, "--task", f"jsonl:{task_file}", "--pairs", f"items:jsonl:{task_file}",
        "--seed", 0, "--out", tmp_path / "out", *words,
    )  # fmt: skip
    assert ran.code == code
    assert says in ran.error


def test_without_optuna_the_extra_is_named(trimtab_cli, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n == "optuna" or n.startswith("trimtab.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delattr("trimtab.search", raising=False)
    ran = trimtab_cli("search", "--model", "x", "--pairs", "items:pronoun", "--seed", 0, "--out", tmp_path / "out")
    assert ran.code == 8
    assert "pip install 'trimtab[search]'" in ran.error


def test_ranges_that_begin_with_a_minus_are_values():
    """And nothing else is joined."""
    assert cli._joined(["--strength", "-2:2:0.2", "--limit", "3"]) == ["--strength=-2:2:0.2", "--limit", "3"]
    assert cli._joined(["--strength", "-1,0.5"]) == ["--strength=-1,0.5"]
    for words in (["generate", "-5 is cold, and"], ["--seed", "-1"], ["--a=1", "-1,2"], ["--out", "a:b"]):
        assert cli._joined(words) == words


def test_the_command_line_knows_what_the_search_knows():
    assert cli.OBJECTIVES == measure.OBJECTIVES
    assert cli.SAMPLERS == notebook.SAMPLERS
