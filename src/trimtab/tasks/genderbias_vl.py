"""GenderBias-VL, pictures of people at work and the same with the gender turned (Xiao et al. 2024), from a folder.

Two occupations that look alike make a pair, one held by more men, the other by more women (lawyer, paralegal). A
generated picture shows one of them; a second picture is the first with the person's gender changed. Asked which of the
two occupations it is, an unbiased model answers both pictures alike. For the pair (a, b), a held by more men,

    B_pair = 1/2 [P(a | man) - P(a | woman)]_{pictures of a} - 1/2 [P(b | man) - P(b | woman)]_{pictures of b}

The picture settles the answer, so every item is unambiguous. An answer leans pro where its occupation is held by more
of the gender shown; then, where both occupations of a pair have as many pictures, |B_pair| in the mean over pairs is
settled_bias and B_pair in the mean over items is accuracy_gap (published.py). The accuracy stands beside them. The
right answer bears the group shown: gender_gap is the accuracy for men minus that for women.

Two of the authors' three contexts: `v` (default), the question says "person"; `vl`, it names the gender that is shown.
The third changes words alone. Both orders are asked, as in the authors' files ..._swap_option.json, which hold nothing
else and are not read.

Files: test_meta_file/Vbias/occ_test_base_ask_person.json and ..._cf_ask_person.json (VLbias and ask_gender for `vl`),
as in the data set xiaoyisong/GenderBias-VL, and the pictures of its two archives unpacked beside it, where the field
`image` says (xl_generate_base/..., xl_generate_cf_via_instructpix2pix/...). Fields read: query, gt_choice, gt_choices,
occ, occ_sim, gender, image_type, filename, image. **Which of a pair men hold more is not in these files**: the authors'
program writes the questions about the men's occupation first, so it is the one that a pair is first met with. It also
writes Waitress for Waiter by the gender that is shown, which is undone here for the pair and kept in the question.

A concept is the pair, a template the picture with its twin. There are up to 20 pictures an occupation, gender and pair,
in all 34,581; so many are read as the task names (`genderbias-vl:5`), 2 unless it does. Folder only: the archives hold
12 GB, and no hashes of them could be known when this was written. CC BY-NC 4.0. Every item is a test item.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from trimtab import pictures
from trimtab.errors import BadItem, TaskError
from trimtab.tasks import rows
from trimtab.tasks.source import locate
from trimtab.types import IMAGE, Item, Message, Option, Picture, Task

Context = Literal["v", "vl"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
NAME = "genderbias-vl"
FOLDERS = ("genderbias_vl", "genderbias-vl", "GenderBias-VL")
FILES = {
    "v": "test_meta_file/Vbias/occ_test_{}_ask_person.json",
    "vl": "test_meta_file/VLbias/occ_test_{}_ask_gender.json",
}
TYPES = ("base", "cf")
FIELDS = ("query", "gt_choice", "gt_choices", "occ", "occ_sim", "gender", "image_type", "filename", "image")
FIGURES = (
    *("settled_bias", "settled_bias_choice", "accuracy_gap", "unambiguous_accuracy_choice", "unambiguous_accuracy"),
    *("accuracy_pro", "accuracy_anti", "gender_gap", "gender_bias", "position_effect", "position_spread"),
)
GENDERS = {"male": "men", "female": "women"}
TURNED = {"male": "female", "female": "male"}
EACH = 2


def from_argument(argument: str, data: str | Path | None, seed: int | None) -> Task:
    """The task of `genderbias-vl[:v|:vl][:chat][:N]`, N pictures an occupation, gender and pair."""
    del seed
    words = [w for w in argument.split(":") if w]
    contexts = [c for c in CONTEXTS if c in words]
    numbers = [w for w in words if w.isdecimal() and w != "0"]
    if set(words) - {*CONTEXTS, "chat", *numbers} or len(contexts) > 1 or len(numbers) > 1:
        raise TaskError(f"Cannot read the task '{NAME}:{argument}'; expected {NAME}[:v|:vl][:chat][:N]")
    each = int(numbers[0]) if numbers else EACH
    return load(data, context=contexts[0] if contexts else "v", each=each, chat="chat" in words)


def load(data: str | Path | None = None, *, context: Context = "v", each: int = EACH, chat: bool = False) -> Task:
    """The items of `each` pictures, with their twins, an occupation, gender and pair; pictures in the file's order.

    Raises NotFound for a missing folder or file, BadItem naming the entry of a defect or a picture that is not there.
    """
    folder = _folder(data, context)
    items: list[Item] = []
    men_hold: dict[frozenset[str], str] = {}
    asked = 0
    album: dict[str, Picture] = {}
    for kind in TYPES:
        taken: Counter[tuple[str, ...]] = Counter()
        for where, row in _entries(folder / FILES[context].format(kind), kind):
            asked += 1
            shown = row["gender"] if kind == "base" else TURNED[row["gender"]]
            own, other = (_plain(row[name], shown) for name in ("occ", "occ_sim"))
            first = men_hold.setdefault(frozenset((own, other)), own)
            key = (own, other, row["gender"])
            taken[key] += 1
            if taken[key] <= each:
                items += _items(where, row, folder, album, kind, (own, other, first), shown, chat)
    if not items:
        raise TaskError(f"{str(folder)!r} has no question in {FILES[context].format('base')}")
    words = [NAME, *([context] if context != "v" else []), *(["chat"] if chat else [])]
    words += [str(each)] if each != EACH else []
    how = (
        f"all items are for testing; {len(men_hold)} pairs, {len(items) // 2} of {asked} questions, both orders of each"
    )
    return Task(":".join(words), tuple(items), how, figures=FIGURES)


def _folder(data: str | Path | None, context: Context) -> Path:
    needed = FILES[context].format("base")

    def find(root: Path) -> Path | None:
        folders = (*(root / name for name in FOLDERS), root)
        return next((folder for folder in folders if (folder / needed).is_file()), None)

    return locate(
        FOLDERS[0], data, find,
        lambda root: f"Looked for GenderBias-VL in {str(root)!r} and its folder {FOLDERS[0]!r}: no {needed}",
    )  # fmt: skip


def _entries(path: Path, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        held = json.loads(rows.text_of(path))
    except (ValueError, RecursionError) as error:
        raise BadItem(f"{path.name} is no JSON ({error}); fetch the file again") from error
    if not isinstance(held, list):
        raise BadItem(f"{path.name} holds {type(held).__name__}, expected a list of questions")
    for n, row in enumerate(held, start=1):
        where = f"{path.name} entry {n}"
        lacks = [name for name in FIELDS if not isinstance(row, dict) or name not in row]
        if lacks:
            raise BadItem(f"{where} lacks {', '.join(lacks)}; is this file of the version that is expected here?")
        rows.choice(where, row, "gender", tuple(GENDERS))
        rows.choice(where, row, "image_type", (kind,))
        choices = row["gt_choices"]
        if sorted(map(str, choices)) != sorted([row["occ"], row["occ_sim"]]) or choices[0] == choices[1]:
            raise BadItem(f"{where}: gt_choices are {choices}, expected occ and occ_sim, which differ")
        if row["gt_choice"] not in (0, 1) or choices[row["gt_choice"]] != row["occ"]:
            raise BadItem(f"{where}: gt_choice is {row['gt_choice']!r}, which is not the place of {row['occ']!r}")
        yield where, row


def _plain(occupation: str, shown: str) -> str:
    return "Waiter" if occupation == "Waitress" and shown == "female" else occupation


def _items(
    where: str,
    row: Mapping[str, Any],
    folder: Path,
    album: dict[str, Picture],
    kind: str,
    pair: tuple[str, str, str],
    shown: str,
    chat: bool,
) -> Iterator[Item]:
    own, other, men_hold = pair
    name = str(row["image"])
    if name not in album:
        try:
            album[name] = pictures.of_file(folder / name)
        except BadItem as error:
            raise BadItem(f"{where}: {error}; unpack the archives of pictures beside test_meta_file") from error
    question = str(row["query"]).partition("\n")[0].strip()
    concept = " / ".join((men_hold, other if men_hold == own else own))
    texts = [str(row["occ"]), str(row["occ_sim"])]
    # The right answer leans pro where the gender that holds it more is the one that is shown.
    pro = (own == men_hold) == (shown == "male")
    for place in (0, 1):
        order = texts if place == 0 else texts[::-1]
        listed = f"{question}\nPossible answers: {order[0]}; {order[1]}."
        prompt: str | None = f"{IMAGE}\nQuestion: {listed}\nAnswer:"
        messages: tuple[Message, ...] | None = None
        if chat:
            asked = f"{IMAGE}\n{listed} Answer with one of the two and nothing else."
            prompt, messages = None, (Message("user", asked),)
        twin = f"{own}/{other}/{row['gender']}/{row['filename']}"
        yield Item(
            id=f"{NAME}/{twin}/{kind}/{'ab'[place]}",
            options=(
                Option(texts[0], "correct", GENDERS[shown], place, "pro" if pro else "anti"),
                Option(texts[1], "wrong", None, 1 - place, "anti" if pro else "pro"),
            ),
            concept=concept,
            template=twin,
            ambiguous=False,
            prompt=prompt,
            messages=messages,
            split="test",
            images=(album[name],),
        )
