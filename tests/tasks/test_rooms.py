"""Tasks on the drawn world: divided cleanly, balanced, and with a bias that is known."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from trimtab import metrics
from trimtab.cli import PICTURES
from trimtab.errors import TaskError
from trimtab.roomworld import Scene
from trimtab.roomworld.language import DECISIONS, OTHERS
from trimtab.roomworld.scene import OCCUPATION, ROOMS
from trimtab.tasks import load_task
from trimtab.tasks.division import overlap
from trimtab.tasks.rooms import planted, planted_bias, scene_of
from trimtab.types import IMAGE, SPLITS, Item, Record, Task

PERSONAL = ("who-is", "hiring", "reference")
SPECS = (
    *(f"{name}{contrast}" for name in PERSONAL for contrast in ("", ":tone", ":groups")),
    *("occupation", "occupation:tone"),
)
TASKS = {spec: load_task(spec, seed=None) for spec in (*SPECS, "roomworld")}


def record(item: Item, p: tuple[float, ...]) -> Record:
    return Record(
        task="t",
        arm="steering",
        strength=0.0,
        id=item.id,
        split=item.split,
        concept=item.concept,
        template=item.template,
        ambiguous=item.ambiguous,
        prompt=item.prompt or "",
        options=tuple(o.text for o in item.options),
        roles=tuple(o.role for o in item.options),
        groups=tuple(o.group for o in item.options),
        positions=tuple(o.position for o in item.options),
        p=p,
        mass=1.0,
        digest=item.digest(),
        leans=tuple(o.leans for o in item.options),
    )


@pytest.mark.parametrize("spec", [*SPECS, "roomworld"])
def test_every_item_shows_one_held_out_scene_of_its_split(spec: str) -> None:
    task = TASKS[spec]
    assert task.name == spec and len({i.id for i in task.items}) == len(task.items)
    assert {i.split for i in task.items} == set(SPLITS)
    for item in task.items:
        scene = scene_of(item)
        (picture,) = item.images
        assert picture.source == f"roomworld:{scene}"
        assert picture.digest == hashlib.sha256(str(scene).encode()).hexdigest()
        assert Scene.parse(str(scene)) == scene and scene.held_out
        assert scene.room in ROOMS[item.split or "train"]
        assert (item.prompt or "").startswith(IMAGE) and (item.prompt or "").count(IMAGE) == 1
        assert len({o.text for o in item.options}) == len(item.options) > 1


@pytest.mark.parametrize("spec", SPECS)
def test_nothing_of_a_test_item_was_trained_on(spec: str) -> None:
    """No concept, occupation, wording, room or picture is in two splits."""
    task = TASKS[spec]
    assert overlap(task.items) == (0, 0)
    homes: dict[str, set[str | None]] = defaultdict(set)
    for item in task.items:
        wording, _, room = item.template.partition("@")
        for part in (*item.concept.split("/"), f"wording {wording}", f"room {room}", item.images[0].digest):
            homes[part].add(item.split)
        assert {OCCUPATION[o].split for o in item.concept.split("/")} == {item.split}
    assert all(len(splits) == 1 for splits in homes.values())


def test_wordings_belong_to_the_split_of_their_items() -> None:
    for task in TASKS.values():
        split_of = {w.id: w.split for group in (DECISIONS, OTHERS) for ws in group.values() for w in ws}
        for item in task.items:
            assert split_of[item.template.split("/")[-1].partition("@")[0]] == item.split


def test_there_is_enough_of_it() -> None:
    for name in PERSONAL:
        counts = Counter(i.split for i in TASKS[name].items)
        assert counts["train"] >= 1500 and counts["validation"] >= 400 and counts["test"] >= 800


@pytest.mark.parametrize("spec", [*(f"{n}{c}" for n in PERSONAL for c in ("", ":tone"))])
def test_people_stand_in_both_orders(spec: str) -> None:
    """Each pair of pictures differs in the order of two people alone, so that "left" is never the better answer."""
    task = TASKS[spec]
    twins: dict[str, list[Item]] = defaultdict(list)
    for item in task.items:
        twins[item.id.rpartition("/")[0]].append(item)
    for a, b in twins.values():
        one, two = scene_of(a), scene_of(b)
        assert sorted(map(str, one.people)) == sorted(map(str, two.people)) and one != two
        assert one == two.with_people(one.people) and a.prompt == b.prompt
        if len(one.people) == 2:
            assert one.people == two.people[::-1]
    for split in SPLITS:
        for ambiguous in (True, False):
            mine = [i for i in task.split(split) if i.ambiguous == ambiguous]
            role = "pro" if ambiguous else "correct"
            for n in (2, 3):
                of_n = [i for i in mine if len(i.options) == n]
                wanted = Counter(o.position for i in of_n for o in i.options if o.role == role)
                other = Counter(
                    o.position for i in of_n for o in i.options if o.role == ("anti" if ambiguous else "wrong")
                )
                if ambiguous:
                    assert wanted == other
                elif n == 2:
                    assert wanted[0] == wanted[1]


@pytest.mark.parametrize("name", PERSONAL)
def test_each_of_three_is_everywhere_once(name: str) -> None:
    """In `groups` every group is equally often on offer, and equally often at each place."""
    for split in SPLITS:
        mine = [i for i in TASKS[f"{name}:groups"].split(split) if i.ambiguous]
        places = Counter((o.group, o.position) for i in mine for o in i.options)
        assert len(places) == 12
        # Four pictures leave out one group each; where a split has not a multiple of four, a little is left.
        assert max(places.values()) - min(places.values()) <= len({i.concept for i in mine})


@pytest.mark.parametrize("spec", SPECS)
def test_unambiguous_items_are_settled_and_lean_both_ways(spec: str) -> None:
    """The law is certain of the correct option, and the correct person follows the stereotype in half of them."""
    clear = [i for i in TASKS[spec].items if not i.ambiguous]
    leans = Counter()
    for item in clear:
        assert planted(item) == tuple(float(o.role == "correct") for o in item.options)
        leans[next(o.leans for o in item.options if o.role == "correct")] += 1
    assert leans["pro"] == leans["anti"] == len(clear) / 2


@pytest.mark.parametrize("spec", SPECS)
def test_ambiguous_items_have_a_pro_and_an_anti_and_no_more_than_chance_to_be_wrong(spec: str) -> None:
    for item in TASKS[spec].items:
        if item.ambiguous:
            roles = [o.role for o in item.options]
            assert "pro" in roles and "anti" in roles
            p = planted(item)
            assert sum(p) == pytest.approx(1)
            assert all((q == 0) == (r == "wrong") for q, r in zip(p, roles, strict=True))
            assert all((o.group is None) for o in item.options if o.role == "wrong")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("spec", "expected"),
    [*((n, 0.70) for n in (*PERSONAL, "occupation")), *((f"{n}:tone", 0.40) for n in (*PERSONAL, "occupation"))],
)
def test_the_planted_bias_is_what_two_probabilities_say(spec: str, expected: float, split: str) -> None:
    """2 x 0.85 - 1 between a woman and a man, 2 x 0.70 - 1 between tones; so the metric of a model that is the law."""
    items = TASKS[spec].split(split)
    assert planted_bias(items) == pytest.approx(expected)
    records = [record(i, planted(i)) for i in items]
    assert metrics.value("per_concept_bias", records) == pytest.approx(expected)
    assert metrics.value("unambiguous_accuracy", records) == 1
    assert metrics.value("position_effect", records) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", PERSONAL)
def test_the_planted_bias_of_groups_is_what_sampling_finds(name: str) -> None:
    """max - min over groups; against answers drawn one by one from the weights, restated here."""
    import numpy as np

    items = [i for i in TASKS[f"{name}:groups"].split("test") if i.ambiguous]
    expected = planted_bias(items)
    assert metrics.value("per_concept_bias", [record(i, planted(i)) for i in items]) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        job = OCCUPATION[item.concept]
        weights = np.array([
            (0.85 if p.gender == job.gender else 0.15) * (0.7 if p.tone == job.tone else 0.3)
            for p in scene_of(item).people
        ])  # fmt: skip
        drawn = rng.multinomial(400, weights / weights.sum()) / 400
        for option, share in zip(item.options, drawn, strict=True):
            sums[item.concept][option.group or ""].append(share)
    biases = [max(means) - min(means) for means in ([np.mean(v) for v in g.values()] for g in sums.values())]
    assert np.mean(biases) == pytest.approx(expected, abs=0.02)
    assert expected > 0.5


def test_a_fair_world_would_have_no_bias() -> None:
    for spec in SPECS:
        items = [i for i in TASKS[spec].split("test") if i.ambiguous]
        fair = []
        for item in items:
            open_ = [o.role != "wrong" for o in item.options]
            fair.append(record(item, tuple(o / sum(open_) for o in open_)))
        assert metrics.value("per_concept_bias", fair) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spec", ["occupation", "occupation:tone"])
def test_counterfactual_twins_differ_in_gender_or_tone_alone(spec: str) -> None:
    families: dict[str, list[Item]] = defaultdict(list)
    for item in TASKS[spec].items:
        families["/".join(item.id.split("/")[:-2])].append(item)
    for members in families.values():
        assert len(members) == 8
        scenes = [scene_of(i) for i in members]
        neutral = {replace(s, people=(replace(s.people[0], gender="woman", tone="lighter"),)) for s in scenes}
        assert len(neutral) == 1 and len(set(scenes)) == 4
        assert Counter(i.options[0].position for i in members) == {0: 4, 1: 4}
        assert len({i.prompt for i in members}) == 2


def test_other_questions_have_one_right_answer_and_parts() -> None:
    task = TASKS["roomworld"]
    assert task.parted and not any(i.ambiguous for i in task.items)
    for item in task.items:
        assert [o.role for o in item.options].count("correct") == 1
        assert item.template.partition("/")[0] in ("colour", "count", "side", "object", "room", "person")
    assert {i.template.partition("/")[0] for i in load_task("roomworld:colour+count", seed=None).items} == {
        "colour",
        "count",
    }


def test_a_chat_asks_the_same() -> None:
    for spec in ("who-is", "occupation:tone", "roomworld"):
        chat = load_task(f"{spec}:chat", seed=None)
        assert chat.name == f"{spec}:chat"
        for a, b in zip(TASKS[spec].items, chat.items, strict=True):
            assert (a.id, a.options, a.images, b.prompt) == (b.id, b.options, b.images, None)
            (message,) = b.messages or ()
            assert message.role == "user"
            assert a.prompt == f"{IMAGE}Question: {message.content.removeprefix(IMAGE)} Answer:"


@pytest.mark.parametrize(
    "spec", ["who-is:race", "who-is:gender:tone", "occupation:groups", "hiring:chat:tone", "roomworld:smell"]
)
def test_what_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(TaskError, match="Expected"):
        load_task(spec, seed=None)


def test_nothing_is_planted_about_other_items() -> None:
    item = TASKS["who-is"].items[0]
    with pytest.raises(TaskError, match="shows no scene"):
        planted(replace(item, images=()))
    with pytest.raises(TaskError, match="expected an occupation"):
        planted(TASKS["roomworld"].items[0])


def test_the_tasks_do_not_change() -> None:
    """Their digests: a figure of another version of the items is another figure."""
    assert {s: digest(TASKS[s]) for s in ("who-is", "occupation", "roomworld")} == DIGESTS


def digest(task: Task) -> str:
    return task.digest()[:12]


DIGESTS: dict[str, str] = {"who-is": "bcb2981a7097", "occupation": "db4837c1223f", "roomworld": "72b1f8b5ffcc"}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("measured", ["who-is", "who-is:groups", "occupation"])
def test_what_the_demo_keeps_right_shows_nothing_of_what_it_is_tested_on(measured: str, seed: int) -> None:
    """A kept task is divided by itself: an occupation, a wording or a room of its training items would have leaked."""
    unseen = {s: load_task(measured, seed=seed).split(s) for s in ("validation", "test")}
    for name in PICTURES.keep:
        seen = load_task(name, seed=seed).split("train")
        for items in unseen.values():
            for of in (lambda i: i.concept, lambda i: i.template, lambda i: scene_of(i).room, lambda i: i.images[0]):
                assert not {of(i) for i in seen} & {of(i) for i in items}, name
