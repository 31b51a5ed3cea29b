"""Scenes: their spelling, what they refuse, and what is planned about occupations, cues and splits."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from trimtab.errors import UsageError
from trimtab.roomworld.scene import (
    ALL_ROOMS,
    HELD,
    OCCUPATIONS,
    WORN,
    Scene,
    any_person,
    any_scene,
    any_surroundings,
    dressed,
    others,
)
from trimtab.types import SPLITS


def test_a_scene_is_what_its_spelling_says() -> None:
    """For a thousand scenes, and no two scenes share a spelling."""
    scenes = [any_scene(n) for n in range(1000)]
    assert [Scene.parse(str(s)) for s in scenes] == scenes
    assert len({str(s) for s in scenes}) == len(set(scenes)) > 990


def test_a_seed_is_a_scene() -> None:
    assert any_scene(7) == any_scene(7) != any_scene(8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("kitchen", "moon"), "room is one of"),
        (("clock@left", "clock@top"), "wall_place is one of"),
        (("woman", "person"), "gender is one of"),
        (("coat", "toga"), "worn is one of"),
        (("+1", "+9"), "shift is between"),
        (("+1", ""), "a person is spelled"),
        ((".0.", ".x."), "a person is spelled"),
    ],
)
def test_what_cannot_be_read_is_named(change: tuple[str, str], says: str) -> None:
    text = "kitchen;clock@left;ball.red@right;woman.lighter.brown.0.green.stand.coat.stethoscope+1"
    assert str(Scene.parse(text)) == text
    with pytest.raises(UsageError, match=says):
        Scene.parse(text.replace(*change))


@pytest.mark.parametrize("text", ["", "kitchen", "kitchen;clock@left;ball.red@right"])
def test_a_scene_without_people_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="a scene is spelled"):
        Scene.parse(text)


def test_two_cues_decide_and_one_does_not() -> None:
    """No two occupations have the same pair; every cue alone is shared by two or more."""
    assert len(OCCUPATIONS) >= 24
    assert len({(o.worn, o.held) for o in OCCUPATIONS}) == len(OCCUPATIONS)
    worn, held = Counter(o.worn for o in OCCUPATIONS), Counter(o.held for o in OCCUPATIONS)
    assert set(worn) == set(WORN) and set(held) == set(HELD)
    assert min([*worn.values(), *held.values()]) >= 2


def test_stereotypes_are_half_each_and_crossed() -> None:
    for split in SPLITS:
        mine = [o for o in OCCUPATIONS if o.split == split]
        assert sum(o.gender == "woman" for o in mine) == len(mine) / 2
        for gender in ("woman", "man"):
            tones = Counter(o.tone for o in mine if o.gender == gender)
            assert abs(tones["lighter"] - tones["darker"]) <= 1


def test_pairs_share_a_cue_a_tone_and_a_split() -> None:
    for man, woman in zip(OCCUPATIONS[::2], OCCUPATIONS[1::2], strict=True):
        assert (man.gender, woman.gender, man.tone, man.split) == ("man", "woman", woman.tone, woman.split)
        assert (man.worn == woman.worn) != (man.held == woman.held)


def test_matches_counts_cues_and_refuses_others() -> None:
    doctor, nurse = OCCUPATIONS[:2]
    person = any_person(random.Random(0))
    assert person.matches(doctor) == 0
    assert dressed(person, doctor).matches(doctor) == 2
    assert dressed(person, doctor).matches(nurse) is None
    assert dressed(person, doctor, "held").matches(nurse) == 1
    assert all(dressed(person, o).matches(doctor) is None for o in others(doctor))


def test_an_eighth_is_held_out_whoever_is_in_it() -> None:
    """Gender, tone, cues, pose and order do not count: counterfactual twins are held out together."""
    scenes = [any_scene(n) for n in range(2000)]
    assert 0.1 < sum(s.held_out for s in scenes) / len(scenes) < 0.15
    flip = {"woman": "man", "man": "woman", "lighter": "darker", "darker": "lighter"}
    for scene in scenes[:300]:
        twins = [
            replace(p, gender=flip[p.gender], tone=flip[p.tone], worn=None, held=None, pose="wave")
            for p in reversed(scene.people)
        ]
        assert scene.with_people(twins).held_out == scene.held_out


def test_every_scene_has_every_room() -> None:
    rng = random.Random(0)
    rooms = Counter(any_surroundings(rng, [any_person(rng)]).room for _ in range(400))
    assert set(rooms) == set(ALL_ROOMS)
