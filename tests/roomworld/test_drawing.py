"""Pictures: the same bytes at every call, and twins that differ where they should and nowhere else."""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import replace

import numpy as np
import pytest

from trimtab.errors import MissingExtra, UsageError
from trimtab.roomworld import Scene, any_scene, draw
from trimtab.roomworld.drawing import SHADE, SIZE, SKIN, box
from trimtab.roomworld.scene import (
    ALL_ROOMS,
    COLOURS,
    FLOORS,
    HAIR,
    HELD,
    OCCUPATIONS,
    PLACES,
    POSES,
    WALLS,
    WORN,
    any_person,
    any_surroundings,
    dressed,
)

SCENES = [any_scene(n) for n in range(12)]


def pixels(scene: Scene, size: int = SIZE) -> np.ndarray:
    return np.asarray(draw(scene, size)).astype(int)


def test_the_same_bytes_at_every_call() -> None:
    """And on every machine with the Pillow that the digest was taken with: what a model was trained on stays."""
    digest = hashlib.sha256()
    for scene in SCENES:
        image = draw(scene)
        assert image.mode == "RGB" and image.size == (SIZE, SIZE)
        assert image.tobytes() == draw(str(scene)).tobytes()
        digest.update(image.tobytes())
    assert digest.hexdigest()[:16] == "64d32efaa96c0b61"


@pytest.mark.parametrize("size", [32, 200, 640])
def test_any_size_shows_the_same_scene(size: int) -> None:
    """The large picture, reduced, is the small one but for the smoothing of edges."""
    large = draw(SCENES[3], size)
    assert large.size == (size, size)
    small = np.asarray(large.resize((32, 32), 4)).astype(int)
    assert np.abs(small - np.asarray(draw(SCENES[3], 64).resize((32, 32), 4)).astype(int)).mean() < 4


@pytest.mark.parametrize("size", [0, 15, 5000])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="16 to 4096"):
        draw(SCENES[0], size)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"trimtab\[vision\]"):
        draw(SCENES[0])


@pytest.mark.parametrize("index", range(12))
def test_twins_differ_within_the_person_alone(index: int) -> None:
    """Another gender or tone changes pixels of that person's place and no other, and does change some."""
    scene = SCENES[index]
    before = pixels(scene)
    for k, person in enumerate(scene.people):
        left, right = (round(x * SIZE) for x in box(scene, k))
        for change in ({"gender": "man" if person.gender == "woman" else "woman"}, {"tone": other_tone(person.tone)}):
            people = list(scene.people)
            people[k] = replace(person, **change)
            changed = np.argwhere((pixels(scene.with_people(people)) != before).any(-1))
            assert len(changed) > 20
            assert changed[:, 1].min() >= left - 1 and changed[:, 1].max() <= right


def test_another_tone_changes_skin_and_nothing_else() -> None:
    """Before smoothing, every pixel that changes goes from one skin colour to the other (or between their smiles)."""
    rng = random.Random(1)
    for _ in range(4):
        person = dressed(any_person(rng, tone="lighter"), rng.choice(OCCUPATIONS))
        scene = any_surroundings(rng, [person])
        light, dark = (pixels(scene.with_people([replace(person, tone=t)]), 1024) for t in ("lighter", "darker"))
        changed = (light != dark).any(-1)
        assert changed.mean() > 0.01
        skins = [np.array(c) for c in (SKIN["lighter"], SHADE["lighter"])]
        # Reduced two by two: a pixel in the midst of changed ones has one colour.
        inner = changed.copy()
        for axis in (0, 1):
            for step in (-2, -1, 1, 2):
                inner &= np.roll(changed, step, axis)
        found = light[inner]
        near = np.min([np.abs(found - s).max(-1) for s in skins], axis=0)
        assert (near == 0).mean() > 0.97


def other_tone(tone: str) -> str:
    return "darker" if tone == "lighter" else "lighter"


def test_every_feature_shows() -> None:
    """Two values of anything that a scene says are never the same picture."""
    rng = random.Random(2)
    person = any_person(rng, gender="woman", tone="lighter", hair="black", colour="red", pose="stand", style=0, shift=0)
    scene = replace(any_surroundings(rng, [person]), room="hall", wall="clock", floor="ball", floor_colour="red")
    for name, values in (
        *(("hair", HAIR), ("style", (0, 1)), ("colour", COLOURS), ("pose", POSES)),
        *(("worn", (None, *WORN)), ("held", (None, *HELD)), ("shift", (-1, 0, 1))),
    ):
        seen = {draw(scene.with_people([replace(person, **{name: v})])).tobytes() for v in values}
        assert len(seen) == len(values), name
    for name, values in (
        *(("room", ALL_ROOMS), ("wall", WALLS), ("wall_place", PLACES)),
        *(("floor", FLOORS), ("floor_colour", COLOURS), ("floor_place", PLACES)),
    ):
        assert len({draw(replace(scene, **{name: v})).tobytes() for v in values}) == len(values), name


@pytest.mark.parametrize("count", [1, 2, 3])
def test_colours_can_be_told_in_every_garment(count: int) -> None:
    """Whatever is worn over it, the colour of the clothes changes at least a dozen pixels of the small picture."""
    rng = random.Random(3)
    people = [any_person(rng) for _ in range(count)]
    for worn in WORN:
        for gender in ("woman", "man"):
            both = []
            for colour in ("red", "green"):
                first = replace(people[0], gender=gender, worn=worn, colour=colour)
                both.append(pixels(any_surroundings(random.Random(4), [first, *people[1:]])))
            assert (np.abs(both[0] - both[1]).max(-1) > 60).sum() >= 12, (worn, gender)


def test_hair_can_be_told_under_every_hat() -> None:
    """Its colour changes at least eight pixels of the small picture, whatever is worn."""
    for worn in WORN:
        for gender in ("woman", "man"):
            for style in (0, 1):
                person = any_person(random.Random(5), gender=gender, style=style, worn=worn, tone="lighter")
                for one, other in (("black", "auburn"), ("grey", "brown"), ("black", "brown")):
                    both = [
                        pixels(any_surroundings(random.Random(6), [replace(person, hair=hair)]))
                        for hair in (one, other)
                    ]
                    assert (np.abs(both[0] - both[1]).max(-1) > 30).sum() >= 8, (worn, gender, style, one, other)
