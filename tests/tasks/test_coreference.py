"""WinoBias: parsing of a small fixture in our own words, and what the real files give where they are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from trimtab.errors import NotFound, TaskError
from trimtab.tasks import coreference
from trimtab.tasks.coreference import OCCUPATIONS, load, parse_spec
from trimtab.types import SPLITS, Item, Task

MALE = [o for s in SPLITS for o in OCCUPATIONS[s][0]]
FEMALE = [o for s in SPLITS for o in OCCUPATIONS[s][1]]

SOUND = {
    "type1": [
        ("[The lawyer] waved to the nurse because [he] was glad.", "he", "she"),  # train
        ("The lawyer waved to [the nurse] because it was [her] turn.", "her", "his"),
        ("[The guard] paid the cleaner after [he] sold [his] boat.", "he his", "she her"),  # validation
        ("The driver met [the tailor] 's aunt when [she] came.", "she", "he"),  # test
    ],
    "type2": [
        ("The nurse saw [the lawyer] and thanked [him].", "him", "her"),
        ("The guard saw [the cleaner] and greeted [her].", "her", "him"),
        ("The tailor rang [the construction worker] and paid [him].", "him", "her"),
    ],
}
SWAP = {"he": "she", "his": "her", "him": "her", "she": "he", "her": "his"}


def swapped(line: str, old: str, new: str) -> str:
    for a, b in zip(old.split(), new.split(), strict=True):
        line = line.replace(f"[{a}]", f"[{b}]")
    return line


def write(
    folder: Path, extra: dict[str, list[tuple[str, str]]] | None = None, parts: tuple[str, ...] = ("dev",)
) -> Path:
    """The fixture, with more (pro, anti) lines of a type where given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "male_occupations.txt").write_text("\n".join(MALE) + "\n")
    (folder / "female_occupations.txt").write_text("\n".join(FEMALE) + "\n")
    for kind, rows in SOUND.items():
        pairs = [(line, swapped(line, old, new)) for line, old, new in rows] + (extra or {}).get(kind, [])
        for k, side in enumerate(("pro", "anti")):
            for part in parts:
                lines = [f"{' ' * (n % 2)}{n} {p[k]}" for n, p in enumerate(pairs, start=1)]
                (folder / f"{side}_stereotyped_{kind}.txt.{part}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "winobias")


def by_id(task: Task) -> dict[str, Item]:
    return {i.id: i for i in task.items}


def roles(item: Item) -> dict[str, str]:
    return {o.text: o.role for o in item.options}


# the table of occupations


def test_every_occupation_belongs_to_one_split_and_one_stereotype() -> None:
    assert len({*MALE, *FEMALE}) == len(MALE) + len(FEMALE) == 40
    assert len(MALE) == len(FEMALE) == 20


# the fixture


def test_type_1_is_ambiguous_and_follows_the_pronoun_not_the_key(folder: Path) -> None:
    items = by_id(load(folder))
    he, she = items["type1/dev/1/male"], items["type1/dev/1/female"]
    assert he.prompt == 'The lawyer waved to the nurse because he was glad. The pronoun "he" refers to the'
    assert she.prompt == 'The lawyer waved to the nurse because she was glad. The pronoun "she" refers to the'
    assert he.ambiguous and she.ambiguous
    assert roles(he) == {"lawyer": "pro", "nurse": "anti"}
    assert roles(she) == {"lawyer": "anti", "nurse": "pro"}
    assert he.concept == she.concept == "lawyer/nurse"
    assert he.template == she.template == "The _ waved to the _ because _ was glad."
    assert [o.position for o in he.options] == [0, 1]


def test_type_2_is_settled_by_the_bracket_whatever_the_pronoun(folder: Path) -> None:
    items = by_id(load(folder))
    for gender in ("male", "female"):
        item = items[f"type2/dev/3/{gender}"]
        assert not item.ambiguous
        assert roles(item) == {"tailor": "wrong", "construction worker": "correct"}
        assert item.concept == "construction worker/tailor"  # male first, though named second


def test_splits_follow_the_table(folder: Path) -> None:
    splits = {i.id.rsplit("/", 1)[0]: i.split for i in load(folder).items}
    assert [splits[f"type1/dev/{n}"] for n in (1, 2, 3, 4)] == ["train", "train", "validation", "test"]
    assert [splits[f"type2/dev/{n}"] for n in (1, 2, 3)] == ["train", "validation", "test"]


def test_several_pronouns_and_a_split_off_genitive(folder: Path) -> None:
    items = by_id(load(folder))
    assert items["type1/dev/3/female"].prompt == (
        'The guard paid the cleaner after she sold her boat. The pronoun "she" refers to the'
    )
    assert (items["type1/dev/4/female"].prompt or "").startswith("The driver met the tailor's aunt when she came.")
    assert 'The pronoun "his"' in (items["type1/dev/2/male"].prompt or "")


def test_listed_asks_in_both_orders(folder: Path) -> None:
    task = load(folder, style="listed")
    items = by_id(task)
    ab, ba = items["type1/dev/1/male/ab"], items["type1/dev/1/male/ba"]
    assert (ab.prompt or "").endswith('Who does "he" refer to, the lawyer or the nurse?\nAnswer: the')
    assert (ba.prompt or "").endswith('Who does "he" refer to, the nurse or the lawyer?\nAnswer: the')
    assert [(o.text, o.position) for o in ab.options] == [("lawyer", 0), ("nurse", 1)]
    assert [(o.text, o.position) for o in ba.options] == [("lawyer", 1), ("nurse", 0)]
    assert ab.template == ba.template
    assert len(task.items) == 2 * len(load(folder).items)


def test_chat_is_one_message_from_the_user(folder: Path) -> None:
    task = load(folder, style="chat", kinds=("type1",))
    item = by_id(task)["type1/dev/1/male/ba"]
    assert task.name == "coreference:chat:type1"
    assert item.prompt is None and item.messages is not None
    assert [m.role for m in item.messages] == ["user"]
    assert "the nurse or the lawyer" in item.messages[0].content
    assert [(o.text, o.position) for o in item.options] == [("lawyer", 1), ("nurse", 0)]


def test_the_upstream_test_files_are_read_too(tmp_path: Path) -> None:
    both = load(write(tmp_path / "winobias", parts=("dev", "test")))
    assert {i.id.split("/")[1] for i in both.items} == {"dev", "test"}
    assert len({i.id for i in both.items}) == len(both.items) == 28


def test_the_seed_changes_nothing(folder: Path) -> None:
    assert load(folder, seed=1) == load(folder, seed=2) == load(folder.parent)


LAWYER = "waved to the nurse because"
DEFECTS = {
    "another wording": (
        (f"[The lawyer] {LAWYER} [he] fell.", f"[The lawyer] {LAWYER} [she] slept."),
        "both pronouns",
    ),
    "another antecedent": (
        (f"[The lawyer] {LAWYER} [he] fell.", "The lawyer waved to [the nurse] because [she] fell."),
        "both pronouns",
    ),
    "the same pronoun": ((f"[The lawyer] {LAWYER} [he] fell.",) * 2, "both pronouns"),
    "one bracket": ((f"The lawyer {LAWYER} [he] fell.", f"The lawyer {LAWYER} [she] fell."), "two brackets"),
    "no pronoun in the bracket": (
        (f"[The lawyer] {LAWYER} [rain] fell.",) * 2,
        "one antecedent and its pronouns",
    ),
    "mixed genders": (
        (f"[The lawyer] {LAWYER} [he] lost [her] hat.",) * 2,
        "one antecedent and its pronouns",
    ),
    "a free pronoun": (
        (f"[The lawyer] {LAWYER} [he] lost his hat.", f"[The lawyer] {LAWYER} [she] lost his hat."),
        "pronoun outside brackets",
    ),
    "unknown antecedent": (
        (
            "[The juggler] waved to the nurse because [he] fell.",
            "[The juggler] waved to the nurse because [she] fell.",
        ),
        "exactly one occupation of each list",
    ),
    "three occupations": (
        (
            "[The lawyer] told the nurse and the cook that [he] fell.",
            "[The lawyer] told the nurse and the cook [she].",
        ),
        "exactly one occupation of each list",
    ),
    "one stereotype": (
        ("[The lawyer] told the cook that [he] fell.", "[The lawyer] told the cook that [she] fell."),
        "exactly one occupation of each list",
    ),
    "different splits": (
        ("[The lawyer] told the tailor that [he] fell.", "[The lawyer] told the tailor that [she] fell."),
        "occupations of different splits",
    ),
}


@pytest.mark.parametrize(("pair", "reason"), DEFECTS.values(), ids=DEFECTS)
def test_a_sentence_that_cannot_be_used_is_left_out_and_counted(
    tmp_path: Path, pair: tuple[str, str], reason: str
) -> None:
    task = load(write(tmp_path / "winobias", {"type1": [pair]}))
    assert len(task.items) == 14
    assert "left out of 8 sentences 1: 1 " in task.division and reason in task.division


def test_a_wording_in_two_splits_is_left_out_in_both(tmp_path: Path) -> None:
    line = "[The {}] told the {} that [{}] was late."
    names = [("lawyer", "nurse"), ("driver", "tailor")]
    extra = [(line.format(*n, "he"), line.format(*n, "she")) for n in names]
    task = load(write(tmp_path / "winobias", {"type1": extra}))
    assert len(task.items) == 14
    assert "2 with a wording of another split" in task.division


def test_a_misplaced_bracket_does_not_lose_the_sentence(tmp_path: Path) -> None:
    pair = (
        "The lawyer asked the [ nurse] and believed [her].",
        "The lawyer asked the [the nurse] and believed [him].",
    )
    items = by_id(load(write(tmp_path / "winobias", {"type2": [pair]})))
    assert (items["type2/dev/4/male"].prompt or "").startswith("The lawyer asked the nurse and believed him. The")


def test_a_lost_line_does_not_misalign_the_rest(folder: Path) -> None:
    file = folder / "anti_stereotyped_type1.txt.dev"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    task = load(folder)
    assert len(task.items) == 12
    assert "1 not there under both pronouns" in task.division


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "anti_stereotyped_type2.txt.dev").unlink()
    assert load(folder, kinds=("type1",)).items
    with pytest.raises(NotFound, match=r"lacks anti_stereotyped_type2\.txt\.dev"):
        load(folder)
    (folder / "pro_stereotyped_type2.txt.dev").unlink()
    with pytest.raises(NotFound, match=r"no pro_stereotyped_type2\.txt\.dev and anti_.*corefBias"):
        load(folder)
    (folder / "male_occupations.txt").unlink()
    with pytest.raises(NotFound, match=r"lacks male_occupations\.txt"):
        load(folder)


def test_no_usable_sentence(folder: Path) -> None:
    for side in ("pro", "anti"):
        (folder / f"{side}_stereotyped_type2.txt.dev").write_text("1 The cook slept.\n")
    with pytest.raises(TaskError, match=r"No usable sentence of type2 .* 1 without two brackets"):
        load(folder)


# the name


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("coreference", ("continuation", ("type1", "type2"))),
        ("coreference:listed", ("listed", ("type1", "type2"))),
        ("coreference:chat:type1", ("chat", ("type1",))),
        ("coreference:type2", ("continuation", ("type2",))),
    ],
)
def test_spec(spec: str, expected: tuple[str, tuple[str, ...]], folder: Path) -> None:
    style, kinds = parse_spec(spec)
    assert (style, kinds) == expected
    assert load(folder, style=style, kinds=kinds).name == spec


@pytest.mark.parametrize(
    "spec",
    [
        "coreference:",
        "coreference:type3",
        "coreference:type1:chat",
        "coreference:chat:listed",
        "coreference:type1:type2",
        "coreference:chat:chat",
        "other:chat",
    ],
)
def test_a_spec_that_cannot_be_read_lists_what_can(spec: str) -> None:
    with pytest.raises(TaskError, match=r"continuation, listed, chat and TYPE one of type1, type2"):
        parse_spec(spec)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(TaskError, match="Did you mean 'listed'"):
        parse_spec("coreference:list")


# the real files

DATA = Path(os.environ.get("TRIMTAB_DATA") or Path("..") / "shared" / "data")
real = pytest.mark.skipif(
    not any((f / "pro_stereotyped_type1.txt.dev").is_file() for f in (DATA, DATA / "winobias")),
    reason=f"no WinoBias in {DATA}: set TRIMTAB_DATA to a folder that has it",
)


@pytest.fixture(scope="module")
def winobias() -> Task:
    return load(DATA)


@real
def test_no_occupation_pair_or_wording_is_in_two_splits(winobias: Task) -> None:
    homes: dict[str, set[str | None]] = {}
    for item in winobias.items:
        for key in (*item.concept.split("/"), item.concept, f"template {item.template}"):
            homes.setdefault(key, set()).add(item.split)
    assert all(len(splits) == 1 for splits in homes.values())


@real
def test_numbers_of_the_dev_files(winobias: Task) -> None:
    counts = Counter((i.split, i.ambiguous) for i in winobias.items if "/dev/" in i.id)
    assert {s: (counts[s, True], counts[s, False]) for s in SPLITS} == {
        "train": (248, 242),
        "validation": (68, 66),
        "test": (112, 110),
    }


@real
@pytest.mark.parametrize("style", coreference.STYLES)
def test_whatever_ignores_the_pronoun_has_no_bias(style: coreference.Style) -> None:
    """Choosing by occupation, by mention or by listing: P(pro) = P(anti) in each concept."""
    task = load(DATA, style=style)
    signs: dict[tuple[str, str], int] = {}
    for item in task.items:
        if item.ambiguous:
            chosen = {
                "male": next(o for o in item.options if o.text == item.concept.split("/")[0]),
                "mentioned first": item.options[0],
                "listed first": next(o for o in item.options if o.position == 0),
            }
            for rule, option in chosen.items():
                key = (rule, item.concept)
                signs[key] = signs.get(key, 0) + (1 if option.role == "pro" else -1)
    assert len(signs) == 3 * len({i.concept for i in task.items if i.ambiguous}) >= 3 * 106
    assert set(signs.values()) == {0}


@real
def test_whatever_follows_the_stereotype_has_bias_one(winobias: Task) -> None:
    """The control of the test above: the same figure can be far from 0."""
    for item in winobias.items:
        if item.ambiguous:
            gender = item.id.rsplit("/", 1)[1]
            k = ("male", "female").index(gender)
            assert roles(item)[item.concept.split("/")[k]] == "pro"


@real
def test_every_item_of_the_real_files_is_whole(winobias: Task) -> None:
    assert len({i.id for i in winobias.items}) == len(winobias.items)
    for style in coreference.STYLES:
        for item in load(DATA, style=style).items:
            shown = item.prompt or (item.messages or ())[-1].content
            assert not set("[]") & set(shown) and "  " not in shown and " '" not in shown
            assert sorted(o.position for o in item.options if o.position is not None) == [0, 1]
            assert all(o.text in shown for o in item.options)


@real
def test_the_person_meant_in_type_2_is_always_named_second(winobias: Task) -> None:
    """A warning more than a wish: the documentation says so, and what to read beside the accuracy."""
    settled = [i for i in winobias.items if not i.ambiguous]
    assert all(i.options[1].role == "correct" for i in settled)
