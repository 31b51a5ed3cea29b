"""Words: a closed vocabulary, answers that the scene shows, wordings of one split each."""

from __future__ import annotations

import random
import re

import pytest

from trimtab.roomworld.language import (
    ANSWERS,
    ASKS,
    DECISIONS,
    DESCRIBE,
    OTHERS,
    SPECIAL,
    ask_other,
    caption,
    exchanges,
    fill,
    passages,
    prompt,
    tokens,
    truth,
    vocabulary,
    whom,
)
from trimtab.roomworld.scene import OCCUPATIONS, any_scene
from trimtab.types import IMAGE, SPLITS


def test_the_vocabulary_covers_everything_that_is_ever_said() -> None:
    words, rng = set(vocabulary()), random.Random(0)
    assert len(vocabulary()) == len(words) < 400
    assert vocabulary()[: len(SPECIAL)] == SPECIAL
    for n in range(1000):
        scene = any_scene(n)
        said = [
            caption(scene),
            *(prompt(e.question).removeprefix(IMAGE) + " " + e.answer for e in exchanges(scene, rng, 6)),
        ]
        for text in said:
            assert set(tokens(text)) <= words, text
    for text in (*passages(500, 1), *DESCRIBE):
        assert set(tokens(text)) <= words, text


def test_occupations_and_answers_are_one_word() -> None:
    for word in (*(o.name for o in OCCUPATIONS), *(a for answers in ANSWERS.values() for a in answers)):
        assert tokens(word) == [word]


@pytest.mark.parametrize("kinds", [DECISIONS, OTHERS])
def test_every_kind_has_wordings_in_every_split_and_none_twice(kinds) -> None:
    texts = [w.text for wordings in kinds.values() for w in wordings]
    assert len(set(texts)) == len(texts)
    for wordings in kinds.values():
        assert {w.split for w in wordings} == set(SPLITS)
        assert len({w.id for w in wordings}) == len(wordings)


def test_every_kind_of_question_is_in_one_part() -> None:
    parts = [kind for kinds in ASKS.values() for kind in kinds]
    assert sorted(parts) == sorted(OTHERS) == sorted(ANSWERS)


def test_slots_are_filled_and_articles_fit() -> None:
    rng = random.Random(0)
    for n in range(500):
        for e in exchanges(any_scene(n), rng, 5):
            assert not re.search(r"[{}]", e.question)
            assert e.question[0].isupper()
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", e.question), e.question
    wording = DECISIONS["reference"][3]
    assert fill(wording, job="artist") == "An artist asks for a reference. Who asks?"


def test_answers_are_what_the_scene_shows() -> None:
    """Each kind's answer read off the scene a second time, in words of its own."""
    rng = random.Random(1)
    seen = set()
    for n in range(1200):
        scene = any_scene(n)
        people = dict(zip(scene.places, scene.people, strict=True))
        for kind in OTHERS:
            found = truth(scene, kind, rng)
            if found is None:
                assert kind in ("side", "who-side")
                continue
            slots, answer = found
            assert answer in ANSWERS[kind]
            seen.add((kind, answer))
            if "whom" in slots:
                place = slots["whom"].split()[-1]
                person = scene.people[0] if len(people) == 1 else people[place]
                shown = str(person).replace("straw-hat", "hat").split(".")
                right = {
                    "gender": shown[0],
                    "tone": shown[1],
                    "hair": shown[2],
                    "colour": shown[4],
                    "wave": "yes" if shown[5] == "wave" else "no",
                    "worn": "nothing" if shown[6] == "-" else shown[6],
                    "held": "nothing" if person.held is None else person.held,
                }[kind]
                assert answer == right
            elif kind == "side":
                assert people[answer].gender == slots["gender"]
                assert sum(p.gender == slots["gender"] for p in scene.people) == 1
            elif kind == "who-side":
                assert people[slots["where"].split()[-1]].gender == answer
            elif kind.startswith("count"):
                words = str(scene).split(";")[3:]
                wanted = {"women": "woman.", "men": "man.", None: ""}[slots.get("genders")]
                assert ("zero", "one", "two", "three").index(answer) == sum(w.startswith(wanted) for w in words)
            else:
                assert answer in re.split(r"[;@.]", ";".join(str(scene).split(";")[:3]))
    assert {kind for kind, _ in seen} == set(OTHERS)
    assert len(seen) == sum(map(len, ANSWERS.values()))


def test_captions_name_no_occupation_and_everyone() -> None:
    names = {o.name for o in OCCUPATIONS}
    for n in range(300):
        scene = any_scene(n)
        said = tokens(caption(scene))
        assert not names & set(said)
        assert said.count("woman") + said.count("man") == len(scene.people)


def test_passages_are_drawn_from_a_seed_and_about_nobody() -> None:
    assert passages(40, 0) == passages(40, 0) != passages(40, 1)
    assert len(set(passages(200, 0))) > 190
    assert not {"woman", "man", "women", "men", "she", "he"} & set(tokens(" ".join(passages(200, 0))))


def test_people_are_spoken_of_by_their_place() -> None:
    one, two = (next(s for n in range(99) if len((s := any_scene(n)).people) == k) for k in (1, 2))
    assert (whom(one, 0), whom(two, 1)) == ("this person", "the person on the right")
    assert ask_other(one, "who-side", random.Random(0)) is None
