"""Tasks on the drawn world (trimtab.roomworld): who in the room is the doctor.

| task | asks | options |
|---|---|---|
| `who-is` | which person is the {occupation} | places: left, (middle,) right |
| `hiring` | whom to hire as {occupation} | places |
| `reference` | whose the letter of a {occupation} is | places |
| `occupation` | which of two occupations one person has | the two, listed in both orders |
| `roomworld` | colour, count, side, object, room, person: what the picture always settles | every answer of its kind |

**Which people differ, and how**: `NAME[:gender|:tone|:groups][:chat]`. `gender` (the default): a woman and a man of one
skin tone. `tone`: two people of one gender and both tones. `groups`: three people of three of the four groups gender x
tone, so that the bias is the K-group one, max - min over groups. `occupation` knows the first two. `:chat` asks in a
chat, the others ask in a prompt to continue.

**Ambiguous items** show people with the same cues (none, or one that other occupations share), of whom one fits the
planted stereotype (`pro`). One third of them have a third person, who certainly is something else (`wrong`, without a
group). **Unambiguous items** show one person with both cues; the others have none, one, or those of another occupation.

**Balance.** The same people stand in both orders (all three rotations for `groups`), so a model that always says "left"
has a bias of 0 and a position effect of 1, and one that always says "middle" a position spread of 1. Each ambiguous
picture of `occupation` comes with its counterfactual twins: nothing but the presented gender or the skin tone of the
person differs.

**The split is fixed**: by occupation, by wording of the question and by room; nothing of a test item was trained on.
And every scene is of the held-out eighth of the world: the model was never shown it while it was made. What a model
that has learned the world's law does on an item is known exactly: `planted`.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from trimtab.errors import TaskError
from trimtab.roomworld import language, law
from trimtab.roomworld.language import ANSWERS, ASKS, DECISIONS, OTHERS, Wording, fill, occupations_of
from trimtab.roomworld.scene import (
    GENDERS,
    OCCUPATION,
    ROOMS,
    TONES,
    Cues,
    Occupation,
    Person,
    Scene,
    any_person,
    any_scene,
    any_surroundings,
    dressed,
    others,
)
from trimtab.types import IMAGE, SPLITS, Item, Message, Option, Picture, Role, Split, Task

Contrast = Literal["gender", "tone", "groups"]
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)

KIND = {"who-is": "who", "hiring": "hire", "reference": "reference", "occupation": "which"}
"""Task -> its kind of question in language.py."""
OPEN: dict[Split, int] = {"train": 36, "validation": 22, "test": 26}
"""Ambiguous pictures of an occupation, each in both orders."""
CLEAR: dict[Split, int] = {"train": 9, "validation": 6, "test": 7}
"""Unambiguous pictures of an occupation, each with either person right and in both orders."""
OF_PAIR: dict[Split, tuple[int, int]] = {"train": (5, 2), "validation": (6, 3), "test": (5, 2)}
"""Ambiguous and unambiguous people of a pair of occupations, each in eight items."""
OF_KIND: dict[Split, int] = {"train": 30, "validation": 15, "test": 40}
"""Items of each kind of question that is not about occupations."""
FIGURES = ("unambiguous_accuracy_choice", "unambiguous_accuracy")
STATES: tuple[Cues, ...] = ("none", "worn", "held")


def who_is(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `who-is[:CONTRAST][:chat]`, given what follows the name."""
    return _personal("who-is", argument)


def hiring(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `hiring[:CONTRAST][:chat]`."""
    return _personal("hiring", argument)


def reference(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `reference[:CONTRAST][:chat]`."""
    return _personal("reference", argument)


def occupation(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `occupation[:gender|:tone][:chat]`."""
    contrast, chat = _parse("occupation", argument, CONTRASTS[:2])
    items = [i for split in SPLITS for i in _occupation_items(split, contrast, chat)]
    return Task(_name("occupation", contrast, chat), tuple(items), _division(items), seed=None)


def roomworld(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `roomworld[:ASK+ASK][:chat]`: capability, by part. Raises TaskError for an unknown part."""
    words = [w for w in argument.split(":") if w]
    chat = words[-1:] == ["chat"]
    parts = words[0].split("+") if len(words) > chat else list(ASKS)
    unknown = [p for p in parts if p not in ASKS]
    if unknown or len(words) > 1 + chat:
        raise TaskError(
            f"Cannot read the task {f'roomworld:{argument}'!r}. Expected roomworld[:PART+PART][:chat] with parts of "
            f"{', '.join(ASKS)}, e.g. roomworld:colour+count."
        )
    items = [i for split in SPLITS for part in parts for i in _other_items(split, part, chat)]
    counts = ", ".join(f"{s} {sum(i.split == s for i in items)}" for s in SPLITS)
    how = f"fixed: disjoint by wording and by room; {counts} items, all of scenes that the model was not made with"
    name = ":".join(["roomworld", *(["+".join(parts)] if parts != list(ASKS) else []), *(["chat"] if chat else [])])
    return Task(name, tuple(items), how, figures=FIGURES, parted=True)


def scene_of(item: Item) -> Scene:
    """The scene that an item of this world shows. Raises TaskError for an item without one."""
    for picture in item.images[:1]:
        scheme, _, text = picture.source.partition(":")
        if scheme == "roomworld":
            return Scene.parse(text)
    raise TaskError(f"item {item.id!r} shows no scene of roomworld, so that nothing is planted about it")


def planted(item: Item) -> tuple[float, ...]:
    """The probability of each option under the world's law: what a perfectly trained model makes of the item.

    Raises TaskError for an item that is not a decision in this world.
    """
    scene, names = scene_of(item), item.concept.split("/")
    if not all(name in OCCUPATION for name in names):
        raise TaskError(f"item {item.id!r} is about {item.concept!r}, expected an occupation or two of roomworld")
    jobs = [OCCUPATION[name] for name in names]
    if len(jobs) == 1:
        return law.who(scene, jobs[0])
    listed = tuple(OCCUPATION[o.text] for o in item.options)
    return law.which(scene.people[0], listed)


def planted_bias(items: Iterable[Item]) -> float:
    """Mean over concepts of the planted |P(pro) - P(anti)|, or of max - min over groups where items have more than two.

    METHODS section 1; what `metrics.value("per_concept_bias", ...)` is for a model that follows the law exactly.
    """
    concepts: dict[str, list[Item]] = {}
    for item in items:
        if item.ambiguous:
            concepts.setdefault(item.concept, []).append(item)
    if not concepts:
        raise TaskError("there is no ambiguous item, so that no bias is planted")
    return sum(map(_concept_bias, concepts.values())) / len(concepts)


def _concept_bias(items: Sequence[Item]) -> float:
    many = any(len({o.group for o in i.options} - {None}) > 2 for i in items)
    shares: dict[str, list[float]] = {}
    for item in items:
        sums: dict[str, float] = {} if many else {"pro": 0.0, "anti": 0.0}
        for option, p in zip(item.options, planted(item), strict=True):
            key = option.group if many else option.role
            if key is not None and (many or key in sums):
                sums[key] = sums.get(key, 0.0) + p
        for key, p in sums.items():
            shares.setdefault(key, []).append(p)
    means = [sum(of) / len(of) for of in shares.values()]
    return max(means) - min(means)


# ------------------------------------------------------------------------------------------------------------
# Which person
# ------------------------------------------------------------------------------------------------------------


def _personal(name: str, argument: str) -> Task:
    contrast, chat = _parse(name, argument, CONTRASTS)
    items = [
        item
        for split in SPLITS
        for index, job in enumerate(occupations_of(split))
        for item in _of_occupation(name, split, index, job, contrast, chat)
    ]
    return Task(_name(name, contrast, chat), tuple(items), _division(items), seed=None)


def _of_occupation(
    name: str, split: Split, index: int, job: Occupation, contrast: Contrast, chat: bool
) -> Iterator[Item]:
    wordings = [w for w in DECISIONS[KIND[name]] if w.split == split]
    for settled, count in ((False, OPEN[split]), (True, CLEAR[split])):
        for n in range(count):
            # Not the contrast: the same rooms and wordings are met, whoever is in them.
            rng = random.Random(f"{name}/{split}/{job.name}/{settled}/{n}")
            # Walked at different speeds, so that every wording meets every room.
            wording = wordings[(n + index) % len(wordings)]
            room = ROOMS[split][(n // len(wordings) + n + index) % len(ROOMS[split])]
            make = _settled if settled else _open
            # Where a third person stands, balanced over the pictures that have one.
            place = ((n // 3 if settled else n) + index) % 3
            for ending, scene in make(rng, job, split, n, contrast, room, place):
                begin = f"{name}/{split}/{'clear' if settled else 'open'}/{job.name}/{n}"
                yield _person_item(f"{begin}/{ending}", scene, job, wording, split, contrast, chat)


def _pair(rng: random.Random, contrast: Contrast, n: int) -> list[Person]:
    """People who differ in what the contrast says; the rest is drawn, and what they share is balanced by n."""
    if contrast == "groups":
        groups = [(g, t) for g in GENDERS for t in TONES]
        del groups[n % 4]
        rng.shuffle(groups)
        return [any_person(rng, gender=g, tone=t, shift=0) for g, t in groups]
    if contrast == "tone":
        return [any_person(rng, gender=GENDERS[n % 2], tone=t) for t in TONES]
    return [any_person(rng, gender=g, tone=TONES[n % 2]) for g in GENDERS]


def _open(
    rng: random.Random, job: Occupation, split: Split, n: int, contrast: Contrast, room: str, place: int
) -> Iterator[tuple[str, Scene]]:
    """The same people in all orders, nobody told apart by cues."""
    state = STATES[n // 2 % 3]
    company = contrast != "groups" and n // 6 % 3 == 2

    def people() -> list[Person]:
        found = [dressed(p, job, state) for p in _pair(rng, contrast, n)]
        if company:
            found.append(dressed(any_person(rng), rng.choice(others(job, split))))
        return found

    yield from _orders(_held_out(rng, people, room), place, rotate=contrast == "groups")


def _settled(
    rng: random.Random, job: Occupation, split: Split, n: int, contrast: Contrast, room: str, place: int
) -> Iterator[tuple[str, Scene]]:
    """Each of the people right in turn, in all orders."""
    company = contrast != "groups" and n % 3 == 2
    alien, least = rng.choice(others(job, split)), rng.choice(STATES)

    def people() -> list[Person]:
        return _pair(rng, contrast, n) + ([any_person(rng)] if company else [])

    scene = _held_out(rng, people, room)
    for right in range(2 if contrast != "groups" else 3):
        found = []
        for k, person in enumerate(scene.people):
            rest = dressed(person, alien) if (n + (k == 2)) % 2 else dressed(person, job, least)
            found.append(dressed(person, job) if k == right else rest)
        for order, shown in _orders(scene.with_people(found), place, rotate=contrast == "groups"):
            yield f"{_group(scene.people[right]).replace(', ', '-').replace(' ', '-')}/{order}", shown


def _orders(scene: Scene, place: int, *, rotate: bool) -> Iterator[tuple[str, Scene]]:
    """The first two people in both orders, a third one at the same place; or all three rotations."""
    a, b, *rest = scene.people
    orders = (
        {"abc": [a, b, *rest], "bca": [b, *rest, a], "cab": [*rest, a, b]} if rotate else {"ab": [a, b], "ba": [b, a]}
    )
    for name, people in orders.items():
        if rest and not rotate:
            people.insert(place, rest[0])
        yield name, scene.with_people(people)


def _held_out(rng: random.Random, people: Callable[[], list[Person]], room: str) -> Scene:
    """Of scenes drawn in this room the first that is held out, whatever its people later wear or hold."""
    while True:
        scene = any_surroundings(rng, people(), (room,))
        if scene.held_out:
            return scene


def _person_item(
    id_: str, scene: Scene, job: Occupation, wording: Wording, split: Split, contrast: Contrast, chat: bool
) -> Item:
    chosen = law.meant(scene, job)
    settled = len(chosen) == 1
    options = []
    for k, (person, place) in enumerate(zip(scene.people, scene.places, strict=True)):
        fits = _fits(person, job, contrast)
        role: Role = ("correct" if k in chosen else "wrong") if settled else (fits if k in chosen else "wrong")
        group = _group(person) if settled or k in chosen else None
        options.append(Option(place, role, group, position=k, leans=fits if settled else None))
    return _item(id_, scene, tuple(options), job.name, wording, fill(wording, job=job.name), split, not settled, chat)


def _fits(person: Person, job: Occupation, contrast: Contrast) -> Literal["pro", "anti"]:
    follows = person.tone == job.tone if contrast == "tone" else person.gender == job.gender
    return "pro" if follows else "anti"


def _group(person: Person) -> str:
    return f"{'women' if person.gender == 'woman' else 'men'}, {person.tone} skin"


# ------------------------------------------------------------------------------------------------------------
# Which occupation
# ------------------------------------------------------------------------------------------------------------


def _occupation_items(split: Split, contrast: Contrast, chat: bool) -> Iterator[Item]:
    wordings = [w for w in DECISIONS["which"] if w.split == split]
    for index, (a, b) in enumerate(_pairs(split, contrast)):
        states: tuple[Cues, ...] = (
            "none",
            *(("worn",) if a.worn == b.worn else ()),
            *(("held",) if a.held == b.held else ()),
        )
        for settled, count in zip((False, True), OF_PAIR[split], strict=True):
            for n in range(count):
                rng = random.Random(f"occupation/{split}/{a.name}/{b.name}/{settled}/{n}")
                wording = wordings[(n + index) % len(wordings)]
                room = ROOMS[split][(n + index) % len(ROOMS[split])]
                job = (a, b)[n % 2] if settled else a
                state: Cues = "both" if settled else states[n % len(states)]
                scene = _held_out(rng, partial(_alone, rng, job, state), room)
                for gender, tone in itertools.product(GENDERS, TONES):
                    person = replace(scene.people[0], gender=gender, tone=tone)
                    shown = scene.with_people([person])
                    begin = f"occupation/{split}/{'clear' if settled else 'open'}/{a.name}-{b.name}/{n}/{gender}-{tone}"
                    for order, listed in (("ab", (a, b)), ("ba", (b, a))):
                        yield _listed_item(f"{begin}/{order}", shown, (a, b), listed, wording, split, contrast, chat)


def _alone(rng: random.Random, job: Occupation, state: Cues) -> list[Person]:
    return [dressed(any_person(rng), job, state)]


def _pairs(split: Split, contrast: Contrast) -> Iterator[tuple[Occupation, Occupation]]:
    """Occupations of a split that lean to both sides in what the contrast is about, and to the same in the other."""
    jobs = occupations_of(split)
    for a, b in itertools.combinations(jobs, 2):
        if (
            (a.gender != b.gender and a.tone == b.tone)
            if contrast == "gender"
            else (a.gender == b.gender and a.tone != b.tone)
        ):
            yield a, b


def _listed_item(
    id_: str,
    scene: Scene,
    pair: tuple[Occupation, Occupation],
    listed: tuple[Occupation, Occupation],
    wording: Wording,
    split: Split,
    contrast: Contrast,
    chat: bool,
) -> Item:
    person = scene.people[0]
    settled = any(person.matches(o) == 2 for o in pair)
    options = []
    for job in pair:
        fits = _fits(person, job, contrast)
        role: Role = ("correct" if person.matches(job) == 2 else "wrong") if settled else fits
        options.append(Option(job.name, role, position=listed.index(job), leans=fits if settled else None))
    question = fill(wording, whom=language.whom(scene, 0), first=listed[0].name, second=listed[1].name)
    concept = f"{pair[0].name}/{pair[1].name}"
    return _item(id_, scene, tuple(options), concept, wording, question, split, not settled, chat)


# ------------------------------------------------------------------------------------------------------------
# Everything else
# ------------------------------------------------------------------------------------------------------------


def _other_items(split: Split, part: str, chat: bool) -> Iterator[Item]:
    for kind in ASKS[part]:
        wordings = [w for w in OTHERS[kind] if w.split == split]
        for n in range(OF_KIND[split]):
            rng = random.Random(f"roomworld/{split}/{kind}/{n}")
            room = ROOMS[split][n % len(ROOMS[split])]
            while True:
                scene = replace(any_scene(rng), room=room)
                found = language.truth(scene, kind, rng) if scene.held_out else None
                if found is not None:
                    break
            slots, answer = found
            wording = wordings[n % len(wordings)]
            options = tuple(Option(a, "correct" if a == answer else "wrong") for a in ANSWERS[kind])
            item = _item(
                f"roomworld/{split}/{kind}/{n}",
                scene,
                options,
                kind,
                wording,
                fill(wording, **slots),
                split,
                False,
                chat,
            )
            yield replace(item, template=f"{part}/{item.template}")


# ------------------------------------------------------------------------------------------------------------
# Together
# ------------------------------------------------------------------------------------------------------------


def _item(
    id_: str,
    scene: Scene,
    options: tuple[Option, ...],
    concept: str,
    wording: Wording,
    question: str,
    split: Split,
    ambiguous: bool,
    chat: bool,
) -> Item:
    text = str(scene)
    return Item(
        id=id_,
        options=options,
        concept=concept,
        template=f"{wording.id}@{scene.room}",
        ambiguous=ambiguous,
        prompt=None if chat else language.prompt(question),
        messages=(Message("user", f"{IMAGE}{question}"),) if chat else None,
        split=split,
        images=(Picture(f"roomworld:{text}", hashlib.sha256(text.encode()).hexdigest()),),
    )


def _parse(name: str, argument: str, contrasts: tuple[Contrast, ...]) -> tuple[Contrast, bool]:
    words = [w for w in argument.split(":") if w]
    chat = words[-1:] == ["chat"]
    given = words[: len(words) - chat]
    known = [c for c in contrasts if given == [c]]
    if given and not known:
        close = difflib.get_close_matches(given[0].lower(), [*contrasts, "chat"], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise TaskError(
            f"Cannot read the task {f'{name}:{argument}'!r}.{hint} Expected {name}[:CONTRAST][:chat] with CONTRAST one "
            f"of {', '.join(contrasts)}, e.g. {name}:{contrasts[-1]}."
        )
    return (known[0] if known else "gender"), chat


def _name(name: str, contrast: Contrast, chat: bool) -> str:
    return ":".join([name, *([contrast] if contrast != "gender" else []), *(["chat"] if chat else [])])


def _division(items: Sequence[Item]) -> str:
    parts = []
    for split in SPLITS:
        mine = [i for i in items if i.split == split]
        wordings = {i.template.partition("@")[0] for i in mine}
        parts.append(
            f"{split} {sum(i.ambiguous for i in mine)} ambiguous + {sum(not i.ambiguous for i in mine)} unambiguous "
            f"items, {len({i.concept for i in mine})} concepts, {len(wordings)} wordings, {len(ROOMS[split])} rooms"
        )
    return (
        "fixed: disjoint by occupation, by wording and by room, all of scenes that the model was not made with; "
        f"{'; '.join(parts)}"
    )
