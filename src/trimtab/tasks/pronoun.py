"""Built-in task: which pronoun a model writes for someone known only by an occupation.

An ambiguous item stops right before a pronoun that can only mean the one person in the sentence: "The nurse
said that" -> he / she / they. The masculine or the feminine pronoun follows the stereotype (`pro`) by the
occupation's share of women among employed people; the they-form is `neither`. An unambiguous item says the
gender first ("Mary is the mechanic. Mary said that") and has one `correct` and one `wrong` pronoun; the
they-form is left out, because it is not wrong for a named person.

Three cases (he/she, his/her, him/her) and three data files in our own words, none of which runs anything:
`data/occupations.csv` (shares and where each was looked up), `data/pronoun_templates.tsv` (wordings), and
the names below. The split is part of the data, not drawn: both files have a `split` column, so that an
addition never moves what is there, and an item exists only where its occupation and its wording are in the same
split, so that nothing tested, whether occupation, wording or name, was trained on.

Each occupation meets a fixed, balanced part of the wordings of its split (see `_met`).
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, cast

from trimtab.types import SPLITS, Item, Option, Role, Split, Task

Case = Literal["subject", "possessive", "object"]

PRONOUNS: dict[Case, tuple[str, str, str]] = {
    "subject": ("he", "she", "they"),
    "possessive": ("his", "her", "their"),
    "object": ("him", "her", "them"),
}
"""Masculine, feminine and they-form of each case."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: dict[Split, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (
        _names(
            "Mary Linda Susan Karen Nancy Lisa Margaret Sandra Emily Carol Michelle Amanda Melissa Rebecca Laura "
            "Cynthia Amy Angela Anna Maria"
        ),
        _names(
            "James Robert Michael William David Richard Thomas Charles Daniel Matthew Anthony Jacob Donald Steven "
            "Paul Andrew Kenneth George Kevin Brian"
        ),
    ),
    "validation": (
        _names("Helen Julia Diana Rachel Christine Teresa"),
        _names("Edward Ronald Timothy Jason Gary Henry"),
    ),
    "test": (
        _names("Jennifer Elizabeth Sarah Jessica Barbara Deborah Catherine Sophia Emma Martha Alice Olivia"),
        _names("John Joseph Christopher Joshua Peter Stephen Patrick Eric Jack Walter Arthur Benjamin"),
    ),
}
"""Women's and men's names of each split; no name is in two splits."""

# How many ambiguous wordings of each case an occupation meets. Training would not draw more. In validation and test
# wordings, not items, are what an interval rests on: many wordings with part of the occupations each say more than
# few wordings with all of them, at the same cost.
_AMBIGUOUS_PER_CASE: dict[Split, int] = {"train": 16, "validation": 4, "test": 7}

# Unambiguous items are a guard and a check, not the lesson: crossing everything would double the work of
# every evaluation and add little, since more of the same wordings are not new evidence.
_UNAMBIGUOUS_PER_CASE = 3

_EITHER = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")


@dataclass(frozen=True, slots=True)
class Occupation:
    """One occupation and how many of the people in it are women."""

    name: str
    """A noun, or a short noun phrase, that can follow "The"."""
    women_percent: float
    """Share of women among the employed, in percent, United States."""
    source_title: str
    """The row of the source that the share was read from."""
    source: str
    """cps-2022 (BLS, Current Population Survey, table 11), winobias, winogender-2015, or approx."""
    family: str
    """Occupations that are near in meaning or end in the same noun share a family, and so a split."""
    split: Split

    @property
    def stereotype(self) -> str:
        """The group the stereotype expects: "women" above 50 % women, else "men"."""
        return "women" if self.women_percent > 50 else "men"


@dataclass(frozen=True, slots=True)
class Template:
    """One wording, which stops right before a pronoun."""

    id: str
    case: Case
    kind: str
    """ambiguous; or how the wording says the gender: name, kin, title, stated."""
    text: str
    """Slots: {occupation}, {a occupation} (with its article), {name}, and [feminine|masculine]."""
    split: Split

    @property
    def ambiguous(self) -> bool:
        return self.kind == "ambiguous"


def load(seed: int | None = None) -> Task:
    """The pronoun task, every split of it.

    `seed` is taken because every task takes one, and changes nothing: the split is fixed in the data.
    """
    del seed
    items: list[Item] = []
    for split in SPLITS:
        jobs = [o for o in occupations() if o.split == split]
        mine = [t for t in templates() if t.split == split]
        met = _met(split, jobs, [t for t in mine if t.ambiguous])
        items += [_ambiguous_item(o, t) for o in jobs for t in met[o.name]]
        items += _unambiguous_items(split, jobs, [t for t in mine if not t.ambiguous])
    return Task(name="pronoun", items=tuple(items), division=_division(items), seed=None)


@cache
def occupations() -> tuple[Occupation, ...]:
    """Every occupation with its split, in the data file's order."""
    return tuple(
        Occupation(
            r["occupation"],
            float(r["women_percent"]),
            r["source_title"],
            r["source"],
            r["family"],
            cast(Split, r["split"]),
        )
        for r in _read("occupations.csv", ",")
    )


@cache
def templates() -> tuple[Template, ...]:
    """Every wording with its split, by case, each case in the data file's order."""
    rows = _read("pronoun_templates.tsv", "\t")
    return tuple(
        Template(r["id"], case, r["kind"], r["text"], cast(Split, r["split"]))
        for case in PRONOUNS
        for r in rows
        if r["case"] == case
    )


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it.

    By the first letter, which is right for every occupation in the data file (a test holds it to that): none
    begins with a sounded or silent letter that its spelling hides, as in "hour" or "university".
    """
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _met(split: Split, jobs: list[Occupation], mine: list[Template]) -> dict[str, list[Template]]:
    """The ambiguous wordings that each occupation meets, in their order, keyed by the occupation's name.

    Occupations take turns by share of women, and each takes, of every case, the wordings that were taken least
    so far. So each occupation meets equally many, each wording is met about equally often, and neighbours in
    share get different wordings, so that every wording meets the whole range of shares. Among equals a hash of
    the two decides: without it, the same blocks of wordings would always go together.
    """
    count = _AMBIGUOUS_PER_CASE[split]
    taken: Counter[str] = Counter()
    met: dict[str, list[Template]] = {}
    for occupation in sorted(jobs, key=lambda o: (o.women_percent, o.name)):
        lots = {t.id: hashlib.sha256(f"{occupation.name}/{t.id}".encode()).digest() for t in mine}
        chosen: set[str] = set()
        for case in PRONOUNS:
            ids = [t.id for t in mine if t.case == case]
            chosen.update(sorted(ids, key=lambda i: (taken[i], lots[i]))[:count])
        taken.update(chosen)
        met[occupation.name] = [t for t in mine if t.id in chosen]
    return met


def _ambiguous_item(occupation: Occupation, template: Template) -> Item:
    he, she, they = PRONOUNS[template.case]
    role: dict[str, Role] = {group: "pro" if group == occupation.stereotype else "anti" for group in ("men", "women")}
    return Item(
        id=f"pronoun/{template.split}/amb/{_slug(occupation.name)}/{template.id}",
        options=(
            Option(he, role["men"], "men"),
            Option(she, role["women"], "women"),
            Option(they, "neither"),
        ),
        concept=occupation.name,
        template=template.id,
        ambiguous=True,
        prompt=_fill(template.text, occupation.name),
        split=template.split,
    )


def _unambiguous_items(split: Split, jobs: list[Occupation], mine: list[Template]) -> list[Item]:
    """Each occupation with a few wordings of each case, each of them in both genders.

    Wordings and names are walked in turn, so that all are used about equally often.
    """
    items: list[Item] = []
    women, men = NAMES[split]
    named = 0
    for index, occupation in enumerate(jobs):
        for case in PRONOUNS:
            pool = [t for t in mine if t.case == case]
            count = min(_UNAMBIGUOUS_PER_CASE, len(pool))
            for turn in range(index * count, index * count + count):
                template = pool[turn % len(pool)]
                items += [
                    _unambiguous_item(occupation, template, "women", women[named % len(women)]),
                    _unambiguous_item(occupation, template, "men", men[named % len(men)]),
                ]
                # Only wordings with a name use one up, or a rhythm of the two lists could pass some by.
                named += template.kind == "name"
    return items


def _unambiguous_item(occupation: Occupation, template: Template, group: str, name: str) -> Item:
    he, she, _ = PRONOUNS[template.case]
    prompt = _EITHER.sub(lambda m: m[1] if group == "women" else m[2], template.text)
    return Item(
        id=f"pronoun/{template.split}/unamb/{_slug(occupation.name)}/{template.id}/{group}",
        options=(
            Option(he, "correct" if group == "men" else "wrong", "men"),
            Option(she, "correct" if group == "women" else "wrong", "women"),
        ),
        concept=occupation.name,
        template=template.id,
        ambiguous=False,
        prompt=_fill(prompt, occupation.name).replace("{name}", name),
        split=template.split,
    )


def _fill(text: str, occupation: str) -> str:
    return text.replace("{a occupation}", with_article(occupation)).replace("{occupation}", occupation)


def _slug(occupation: str) -> str:
    return occupation.replace(" ", "-")


def _read(file: str, delimiter: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath("data").joinpath(file).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter=delimiter))


def _division(items: list[Item]) -> str:
    jobs = Counter(o.split for o in occupations())
    wordings = Counter(t.split for t in templates() if t.ambiguous)
    counts = Counter((i.split, i.ambiguous) for i in items)
    met = {
        split: sorted(set(Counter(i.concept for i in items if i.split == split and i.ambiguous).values()))
        for split in SPLITS
    }
    parts = (
        f"{split} {jobs[split]} occupations x {' or '.join(map(str, met[split]))} of {wordings[split]} ambiguous "
        f"wordings = {counts[split, True]} items, and {counts[split, False]} unambiguous items"
        for split in SPLITS
    )
    return (
        "fixed: the data files put each occupation (families together) and each wording in one split, and an item "
        "exists only where both are in the same one; where an occupation meets only some wordings, which ones is "
        "fixed too, and balanced; " + "; ".join(parts)
    )
