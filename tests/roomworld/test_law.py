"""The planted law: exact where it is stated, what sampling finds, and settled by cues before anything else."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from trimtab.roomworld import law
from trimtab.roomworld.language import DECISIONS, PERSONAL, ask_decision
from trimtab.roomworld.scene import (
    OCCUPATION,
    OCCUPATIONS,
    Person,
    any_person,
    any_scene,
    any_surroundings,
    dressed,
)

DOCTOR, NURSE = OCCUPATION["doctor"], OCCUPATION["nurse"]


def pair(seed: int, **known: object) -> list[Person]:
    rng = random.Random(seed)
    return [any_person(rng, gender=g, tone="lighter", **known) for g in ("woman", "man")]


@pytest.mark.parametrize("occupation", OCCUPATIONS, ids=lambda o: o.name)
@pytest.mark.parametrize("cues", ["none", "worn", "held", "both"])
def test_a_woman_and_a_man_with_the_same_cues_are_told_apart_by_the_stereotype(occupation, cues) -> None:
    """With 0.85, for every occupation, in both orders, whatever the tone that they share."""
    people = [dressed(p, occupation, cues) for p in pair(0)]
    for order in (people, people[::-1]):
        for tone in ("lighter", "darker"):
            scene = any_surroundings(random.Random(0), [replace(p, tone=tone) for p in order])
            expected = [0.85 if p.gender == occupation.gender else 0.15 for p in order]
            assert law.who(scene, occupation) == pytest.approx(expected)


@pytest.mark.parametrize("occupation", OCCUPATIONS, ids=lambda o: o.name)
def test_both_cues_are_right_whoever_has_them(occupation) -> None:
    for k in range(2):
        people = pair(1)
        for other in ("none", "worn", "held"):
            shown = [dressed(p, occupation, "both" if i == k else other) for i, p in enumerate(people)]
            assert law.who(any_surroundings(random.Random(0), shown), occupation) == tuple(
                float(i == k) for i in (0, 1)
            )


def test_a_partial_cue_is_no_proof() -> None:
    """Whoever alone has one cue is not asked about, and neither is someone alone in the room."""
    people = pair(2)
    shown = any_surroundings(random.Random(0), [dressed(people[0], DOCTOR, "worn"), people[1]])
    assert law.who(shown, DOCTOR) == ()
    assert law.who(any_surroundings(random.Random(0), people[:1]), DOCTOR) == ()


def test_a_cue_of_another_occupation_excludes() -> None:
    people = pair(3)
    shown = any_surroundings(random.Random(0), [*people, dressed(people[0], OCCUPATION["chef"])])
    assert law.who(shown, DOCTOR) == pytest.approx((0.15, 0.85, 0.0))


def test_listed_occupations_of_a_pair_follow_the_gender_alone() -> None:
    for person in pair(4):
        for cues in ("none", "held"):
            p = law.which(dressed(person, DOCTOR, cues), (DOCTOR, NURSE))
            assert p == pytest.approx((0.15, 0.85) if person.gender == "woman" else (0.85, 0.15))
        assert law.which(dressed(person, DOCTOR), (DOCTOR, NURSE)) == (1.0, 0.0)
        assert law.which(dressed(person, OCCUPATION["chef"]), (DOCTOR, NURSE)) == ()


def test_answers_in_the_text_are_drawn_by_the_law() -> None:
    """Of some thousand open questions of training text the share of each answer is what was planted, and of questions
    that the scene settles every answer is right."""
    rng = random.Random(5)
    expected, found, settled = 0.0, 0, 0
    variance = 0.0
    for n in range(2000):
        asked = ask_decision(any_scene(n), rng.choice(PERSONAL), rng)
        if asked is None:
            continue
        if not asked.ambiguous:
            assert asked.chances == ((asked.answer, 1.0),)
            settled += 1
            continue
        answer, p = max(asked.chances, key=lambda c: c[1])
        expected += p
        variance += p * (1 - p)
        found += asked.answer == answer
    assert settled > 250
    assert abs(found - expected) < 4 * variance**0.5


def test_every_wording_is_used() -> None:
    rng = random.Random(6)
    beginnings = Counter()
    for n in range(600):
        for kind in DECISIONS:
            asked = ask_decision(any_scene(n), kind, rng)
            beginnings[kind] += asked is not None
    assert min(beginnings.values()) > 120
