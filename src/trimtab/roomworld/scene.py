"""Scenes of the drawn world as values: a room, two objects, and one to three people.

A scene has a compact spelling, `Scene.parse(str(scene)) == scene`:

    kitchen;clock@left;ball.red@right;woman.lighter.brown.0.green.stand.coat.stethoscope+1;man.darker.black.1.red...

room; what hangs on the wall @ where; what lies on the floor . its colour @ where; then the people from left to right:
presented gender . skin tone . hair . its style . colour of the clothes . pose . worn cue . held cue, and how far from
the middle of their place they stand, in 64ths of the picture. "-" is a cue that is absent.

**Cues.** Each occupation has two: something worn and something held. Together they are decisive, for no two occupations
have the same pair. Alone each is partial: at least two occupations share it.

**Stereotypes are planted, not observed.** Which gender an occupation leans to follows common clichés, half each, so
that a reader recognises the problem. Which skin tone it leans to follows nothing: tones alternate from pair to pair,
crossed with gender, because a figure for gender x tone needs something to find. law.py says how strongly.

**Held out.** A scene belongs to the held-out eighth by its surroundings and by the hair and the colours of its people
(`Scene.held_out`). The model never sees such a scene while it is trained; tasks are made of nothing else. Gender, tone,
cues, poses and the order of the people do not count, so that counterfactual twins are held out together.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trimtab.errors import UsageError
from trimtab.types import Split

Gender = Literal["woman", "man"]
Tone = Literal["lighter", "darker"]
Cues = Literal["both", "worn", "held", "none"]
"""Which of an occupation's cues someone has."""
GENDERS: tuple[Gender, ...] = get_args(Gender)
TONES: tuple[Tone, ...] = get_args(Tone)
CUES: tuple[Cues, ...] = get_args(Cues)
HAIR = ("black", "brown", "auburn", "grey")
STYLES = (0, 1)
COLOURS = ("red", "yellow", "green", "blue", "purple")
POSES = ("stand", "wave", "hip")
PLACES = ("left", "middle", "right")
WALLS = ("clock", "window", "painting", "shelf")
FLOORS = ("ball", "box", "plant", "cat")
WORN = (
    *("coat", "scrubs", "overalls", "apron", "suit", "headset"),
    *("helmet", "straw-hat", "scarf", "cap", "glasses", "robe"),
)
HELD = (
    *("stethoscope", "broom", "clipboard", "laptop", "spade", "can", "scissors"),
    *("brush", "case", "tray", "flask", "book", "hammer"),
)
ROOMS: dict[Split, tuple[str, ...]] = {
    "train": ("kitchen", "ward", "workshop", "office", "garden"),
    "validation": ("studio", "cellar"),
    "test": ("hall", "library", "street"),
}
"""Rooms by the split of the tasks that use them; the model itself is trained in all."""
ALL_ROOMS = tuple(room for rooms in ROOMS.values() for room in rooms)
HELD_OUT = 8
"""One scene in so many is held out."""


@dataclass(frozen=True, slots=True)
class Occupation:
    """One occupation: its cues, and what is planted about it."""

    name: str
    worn: str
    held: str
    gender: Gender
    """Whom the planted stereotype expects."""
    tone: Tone
    """Likewise."""
    split: Split


# Pairs share one cue and a tone, and lean to a man and to a woman: what a person with the shared cue does is then open.
_PAIRS: dict[Split, tuple[tuple[str, str, str, str, str, str], ...]] = {
    "train": (
        ("doctor", "coat", "stethoscope", "nurse", "scrubs", "stethoscope"),
        ("janitor", "overalls", "broom", "cleaner", "apron", "broom"),
        ("lawyer", "suit", "clipboard", "secretary", "headset", "clipboard"),
        ("engineer", "helmet", "laptop", "receptionist", "headset", "laptop"),
        ("builder", "helmet", "spade", "gardener", "straw-hat", "spade"),
        ("farmer", "straw-hat", "can", "florist", "apron", "can"),
        ("tailor", "scarf", "scissors", "artist", "scarf", "brush"),
    ),
    "validation": (
        ("scientist", "glasses", "flask", "pharmacist", "coat", "flask"),
        ("pilot", "cap", "case", "attendant", "cap", "tray"),
        ("professor", "glasses", "laptop", "librarian", "glasses", "book"),
    ),
    "test": (
        ("surgeon", "scrubs", "scissors", "hairdresser", "apron", "scissors"),
        ("manager", "suit", "case", "teacher", "suit", "book"),
        ("chef", "apron", "tray", "baker", "scarf", "tray"),
        ("carpenter", "overalls", "hammer", "decorator", "overalls", "brush"),
        ("judge", "robe", "hammer", "singer", "robe", "book"),
    ),
}


def _made() -> tuple[Occupation, ...]:
    found: list[Occupation] = []
    for split, pairs in _PAIRS.items():
        for man, his_worn, his_held, woman, her_worn, her_held in pairs:
            tone = TONES[len(found) // 2 % 2]
            found.append(Occupation(man, his_worn, his_held, "man", tone, split))
            found.append(Occupation(woman, her_worn, her_held, "woman", tone, split))
    return tuple(found)


OCCUPATIONS = _made()
"""Thirty, in pairs: the first of a pair leans to men, the second to women, and they share a cue and a tone."""
OCCUPATION = {o.name: o for o in OCCUPATIONS}


@dataclass(frozen=True, slots=True)
class Person:
    """Someone in a scene, as drawn. Nothing here says what they do."""

    gender: Gender
    """Presented, in the signs that pictograms use: hair, and a dress or trousers."""
    tone: Tone
    """Of the skin."""
    hair: str
    """Its colour."""
    style: int
    """One of two cuts of the presented gender."""
    colour: str
    """Of the dress, or of the shirt."""
    pose: str = "stand"
    worn: str | None = None
    """The cue that is worn, if any."""
    held: str | None = None
    """The cue that is held (a stethoscope hangs around the neck), if any."""
    shift: int = 0
    """How far to the right of the middle of their place they stand, in 64ths of the picture."""

    def __post_init__(self) -> None:
        for name, known in _PERSON.items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in ("worn", "held")):
                raise UsageError(f"a person's {name} is one of {', '.join(map(str, known))}; got {value!r}")
        if not -3 <= self.shift <= 3:
            raise UsageError(f"a person's shift is between -3 and 3, got {self.shift}")

    def __str__(self) -> str:
        words = (self.gender, self.tone, self.hair, self.style, self.colour, self.pose, self.worn, self.held)
        return ".".join("-" if w is None else str(w) for w in words) + f"{self.shift:+d}"

    def matches(self, occupation: Occupation) -> int | None:
        """How many cues of the occupation they have (0 to 2); None where they have one that is not of it."""
        cues = ((self.worn, occupation.worn), (self.held, occupation.held))
        return None if any(own not in (None, its) for own, its in cues) else sum(own == its for own, its in cues)


_PERSON: dict[str, tuple[object, ...]] = {
    "gender": GENDERS,
    "tone": TONES,
    "hair": HAIR,
    "style": STYLES,
    "colour": COLOURS,
    "pose": POSES,
    "worn": WORN,
    "held": HELD,
}


@dataclass(frozen=True, slots=True)
class Scene:
    """A room with people in it, from left to right."""

    room: str
    wall: str
    """What hangs on the wall."""
    wall_place: str
    floor: str
    """What lies on the floor, in front."""
    floor_colour: str
    floor_place: str
    people: tuple[Person, ...]

    def __post_init__(self) -> None:
        for name, known in _SCENE.items():
            if getattr(self, name) not in known:
                raise UsageError(f"a scene's {name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        if not 1 <= len(self.people) <= 3:
            raise UsageError(f"a scene has one to three people, got {len(self.people)}")

    def __str__(self) -> str:
        things = (
            f"{self.room};{self.wall}@{self.wall_place};{self.floor}.{self.floor_colour}@{self.floor_place}",
            *map(str, self.people),
        )
        return ";".join(things)

    @classmethod
    def parse(cls, text: str) -> Scene:
        """The scene that a text spells, as `str` spells it. Raises UsageError that says which part cannot be read."""
        parts = text.split(";")
        if len(parts) < 4:
            raise UsageError(
                f"a scene is spelled ROOM;WALL@PLACE;FLOOR.COLOUR@PLACE;PERSON[;PERSON[;PERSON]], got {text!r}"
            )
        room, wall, floor, *people = parts
        wall, _, wall_place = wall.partition("@")
        floor, _, floor_place = floor.partition("@")
        floor, _, colour = floor.partition(".")
        return cls(room, wall, wall_place, floor, colour, floor_place, tuple(map(_person, people)))

    @property
    def places(self) -> tuple[str, ...]:
        """What the places of its people are called, from left to right."""
        return {1: ("middle",), 2: ("left", "right"), 3: PLACES}[len(self.people)]

    @property
    def held_out(self) -> bool:
        """Whether it is kept from the training of the model."""
        looks = sorted(f"{p.hair}.{p.style}.{p.colour}" for p in self.people)
        key = ";".join([*str(self).split(";")[:3], *looks])
        return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0

    def with_people(self, people: Iterable[Person]) -> Scene:
        """The same surroundings with other people."""
        return replace(self, people=tuple(people))


_SCENE: dict[str, tuple[str, ...]] = {
    "room": ALL_ROOMS,
    "wall": WALLS,
    "wall_place": PLACES,
    "floor": FLOORS,
    "floor_colour": COLOURS,
    "floor_place": PLACES,
}


def _person(text: str) -> Person:
    words = text.split(".")
    last, sign, shift = words[-1].rpartition("+" if "+" in words[-1] else "-")
    if len(words) != 8 or not sign or not shift.isdigit() or not words[3].isdigit():
        raise UsageError(
            "a person is spelled GENDER.TONE.HAIR.STYLE.COLOUR.POSE.WORN.HELD and +N or -N, with - for what is absent; "
            f"got {text!r}"
        )
    worn, held = (None if w == "-" else w for w in (words[6], last))
    moved = int(sign + shift)
    # Whatever the words are: Person refuses what it does not know.
    return Person(words[0], words[1], words[2], int(words[3]), words[4], words[5], worn, held, moved)  # type: ignore[arg-type]


def any_person(rng: random.Random, **known: object) -> Person:
    """Someone drawn at random without cues, but for what is known of them."""
    drawn: dict[str, object] = {
        "gender": rng.choice(GENDERS),
        "tone": rng.choice(TONES),
        "hair": rng.choice(HAIR),
        "style": rng.choice(STYLES),
        "colour": rng.choice(COLOURS),
        "pose": rng.choice(POSES),
        "shift": rng.randint(-1, 1),
    }
    return Person(**{**drawn, **known})  # type: ignore[arg-type]


def any_surroundings(rng: random.Random, people: Iterable[Person], rooms: tuple[str, ...] = ALL_ROOMS) -> Scene:
    """A room drawn at random around these people."""
    return Scene(
        rng.choice(rooms),
        rng.choice(WALLS),
        rng.choice(PLACES),
        rng.choice(FLOORS),
        rng.choice(COLOURS),
        rng.choice(PLACES),
        tuple(people),
    )


def dressed(person: Person, occupation: Occupation, cues: Cues = "both") -> Person:
    """The person with cues of an occupation, and no others."""
    return replace(
        person,
        worn=occupation.worn if cues in ("both", "worn") else None,
        held=occupation.held if cues in ("both", "held") else None,
    )


def any_scene(seed: int | random.Random) -> Scene:
    """A scene for training or a gallery, drawn from a seed.

    Half of the scenes with company are open about some occupation (two or three people with the same cues, or none);
    in the others everyone has cues of their own: decisive, partial or absent.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(f"roomworld:{seed}")
    n = rng.choices((1, 2, 3), (2, 5, 3))[0]
    people = [any_person(rng) for _ in range(n)]
    cues = [(rng.choice(OCCUPATIONS), rng.choices(CUES, (5, 2, 2, 1))[0]) for _ in range(n)]
    if n > 1 and rng.random() < 0.5:
        subject = rng.choice(OCCUPATIONS)
        cues = [(subject, rng.choices(CUES, (1, 2, 2, 4))[0])] * n
        if n == 3 and rng.random() < 0.7:
            cues[rng.randrange(3)] = (rng.choice(others(subject)), "both")
    return any_surroundings(rng, [dressed(p, o, state) for p, (o, state) in zip(people, cues, strict=True)])


def others(occupation: Occupation, split: Split | None = None) -> tuple[Occupation, ...]:
    """Occupations that share no cue with this one: someone with their cues is certainly not of it."""
    return tuple(
        o for o in OCCUPATIONS if o.worn != occupation.worn and o.held != occupation.held and split in (None, o.split)
    )
