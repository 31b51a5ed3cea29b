"""Pictures of a run, for people: the scene, the question, and how likely each answer is at the dial's stops.

    scenes     ambiguous items, one a concept: those concepts on which the base is most uneven, and of each the item on
               which the base's lean is the middle one
    settled    items of the same concepts that the picture settles, chosen alike by what the steering changed
    twins      two items of the same words whose pictures differ in one thing (a counterfactual pair), chosen as scenes

Nothing is chosen by how well the steering did. Pictures are set into the page as PNG; one that can no longer be opened
is named instead.
"""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from trimtab import figures, pictures
from trimtab.errors import TrimtabError
from trimtab.types import IMAGE, Picture, Record
from trimtab.verdict import Run, as_strength

SCENES, SETTLED, TWINS = 6, 3, 4
SIZE = 320
"""Pixels a side of a picture, at most."""
By = Mapping[tuple[str, float], Record]
"""An item's records under the steering, by id and strength."""


def shows_pictures(run: Run) -> bool:
    """Whether any item of the run shows one."""
    return any(r.images for r in run.items)


def html(run: Run, task: Mapping[str, Any]) -> str:
    """The gallery of a task; a sentence where it shows no pictures."""
    base = [r for r in run.of(task, "steering", 0.0) if r.images and all(map(math.isfinite, r.p))]
    if not base:
        return '<p class="absent">This task shows no pictures.</p>'
    stops = run.strengths
    by = {(r.id, w): r for w in stops for r in run.of(task, "steering", w)}
    whole = [r for r in base if all((r.id, w) in by for w in stops)]
    scenes = _scenes([r for r in whole if r.ambiguous])
    concepts = {r.concept for r in scenes}
    settled = _settled(run, [r for r in whole if not r.ambiguous], concepts, by)
    twins = _twins([r for r in whole if r.ambiguous])
    out = []
    if scenes:
        out.append(
            "<p>Where the picture does not tell, the answer should not follow the stereotype: those between whom "
            "nothing decides should be about as likely. These are the concepts on which the base is most uneven; of "
            "each, the picture on which it leans as it does on average.</p>"
        )
        out.append(_cards(_card(r, stops, by) for r in scenes))
    if settled:
        out.append("<p>Where the picture does tell, the right answer should stay.</p>")
        out.append(_cards(_card(r, stops, by) for r in settled))
    if twins:
        out.append(
            "<p>The same question twice, about pictures that differ in one thing. An even-handed model answers both "
            "alike.</p>"
        )
        out.append("".join(_pair(a, b, stops, by) for a, b in twins))
    return "".join(out)


# -- what is shown


def _lean(record: Record) -> float:
    """By how much the likeliest group's answer is ahead of the least likely one's, or pro of anti."""
    groups: dict[str, float] = defaultdict(float)
    for group, role, p in zip(record.groups, record.roles, record.p, strict=True):
        if group is not None or role in ("pro", "anti"):
            groups[group or role] += p
    return max(groups.values()) - min(groups.values()) if len(groups) > 1 else 0.0


def _middle(records: Sequence[Record], size: Callable[[Record], float]) -> Record:
    ordered = sorted(records, key=lambda r: (size(r), r.id))
    return ordered[len(ordered) // 2]


def _scenes(records: Sequence[Record]) -> list[Record]:
    of: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        of[record.concept].append(record)

    def bias(concept: str) -> float:
        signed = [_signed(r) for r in of[concept]]
        return abs(sum(signed) / len(signed))

    worst = sorted(of, key=lambda c: (-bias(c), c))[:SCENES]
    return [_middle(of[c], _lean) for c in worst]


def _signed(record: Record) -> float:
    shares = {"pro": 0.0, "anti": 0.0}
    for role, p in zip(record.roles, record.p, strict=True):
        if role in shares:
            shares[role] += p
    return shares["pro"] - shares["anti"]


def _settled(run: Run, records: Sequence[Record], concepts: set[str], by: By) -> list[Record]:
    of: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.concept in concepts or not concepts:
            of[record.concept].append(record)
    top = run.top or 0.0

    def changed(record: Record) -> float:
        return sum(abs(p - q) for p, q in zip(record.p, by[record.id, top].p, strict=True))

    return [_middle(of[c], changed) for c in sorted(of)][:SETTLED]


def _twins(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pairs of items with the same words, ids that differ in one part only, and different pictures."""
    alike: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        parts = record.id.split("/")
        for n, part in enumerate(parts):
            words = (*parts[:n], None, *parts[n + 1 :])
            alike[record.concept, record.prompt, record.options, words, part.count("-")].append(record)
    pairs: dict[str, list[tuple[Record, Record]]] = defaultdict(list)
    for same in alike.values():
        for a, b in combinations(same, 2):
            if a.images != b.images and _one_apart(a.id, b.id):
                pairs[a.concept].append((a, b))
    chosen = [
        sorted(some, key=lambda p: (_apart(*p), p[0].id))[len(some) // 2]
        for some in sorted(pairs.values(), key=lambda s: (-sum(_apart(*p) for p in s) / len(s), s[0][0].id))
    ]
    return chosen[:TWINS]


def _one_apart(a: str, b: str) -> bool:
    """Whether two ids differ in one word that says something: not a number, nor two orders such as "ab" and "ba"."""
    one, other = a.replace("/", "-").split("-"), b.replace("/", "-").split("-")
    differ = [(x, y) for x, y in zip(one, other, strict=False) if x != y]
    if len(one) != len(other) or len(differ) != 1:
        return False
    x, y = differ[0]
    return not x.isdigit() and sorted(x) != sorted(y)


def _apart(a: Record, b: Record) -> float:
    return max(abs(p - q) for p, q in zip(a.p, b.p, strict=True))


# -- how it looks


def _cards(cards: Any) -> str:
    return f'<div class="gallery">{"".join(cards)}</div>'


def _card(record: Record, stops: Sequence[float], by: By, *, told: str = "") -> str:
    kind = "the picture does not tell" if record.ambiguous else "the picture tells"
    question = record.prompt.replace(IMAGE, " ").strip()
    return (
        f'<article class="item picture"><p class="who">{escape(told or record.concept)} · {kind}</p>'
        f'<div class="frames">{"".join(map(_image, record.images))}</div>'
        f'<p class="prompt">{escape(question)}</p>{_table(record, stops, by)}</article>'
    )


def _table(record: Record, stops: Sequence[float], by: By) -> str:
    heads = "".join(f'<th scope="col">{"base" if w == 0 else as_strength(w)}</th>' for w in stops)
    rows = []
    for n, (text, role, group) in enumerate(zip(record.options, record.roles, record.groups, strict=True)):
        about = escape(group) if group else escape(role)
        mark = ' <span class="role">right</span>' if role == "correct" else ""
        cells = "".join(_cell(by[record.id, w].p[n], w) for w in stops)
        rows.append(
            f'<tr><th scope="row">{escape(text.strip())}{mark}<br><span class="role">{about}</span></th>{cells}</tr>'
        )
    return (
        '<table><caption class="hidden">Probability of each answer at each stop of the dial, %</caption>'
        f'<thead><tr><th scope="col">answer, %</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _cell(p: float, strength: float) -> str:
    return f"<td>{round(100 * p)}{figures.bar(p, 'base' if strength == 0 else 'steering')}</td>"


def _pair(a: Record, b: Record, stops: Sequence[float], by: By) -> str:
    def told(mine: Record, other: Record) -> str:
        """The words by which the two ids differ."""
        own, others = mine.id.replace("/", "-").split("-"), other.id.replace("/", "-").split("-")
        return next(x for x, y in zip(own, others, strict=True) if x != y)

    return _cards([_card(a, stops, by, told=told(a, b)), _card(b, stops, by, told=told(b, a))])


def _image(source: str) -> str:
    try:
        content = pictures.thumbnail(Picture(source, ""), SIZE)
    except TrimtabError as error:
        return f'<p class="absent">{escape(str(error))}</p>'
    return f'<img alt="{escape(_alt(source))}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _alt(source: str) -> str:
    scheme, colon, words = source.partition(":")
    return f"Drawn scene: {words}" if colon and scheme in pictures.SCHEMES else "The picture that the question is about"
