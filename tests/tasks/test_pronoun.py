"""The built-in pronoun task: enough of it, split cleanly, balanced, and saying what it claims to say."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from importlib import resources

import pytest

from trimtab.tasks import pronoun
from trimtab.tasks.pronoun import NAMES, PRONOUNS, load, occupations, templates, with_article
from trimtab.types import SPLITS


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


# Not the task's own lists, so that a slip there is not repeated here.
GENDERED = set(
    words("""
    he she him her his hers himself herself man men woman women male female males females boy boys girl
    girls guy guys gal lady ladies gentleman gentlemen sir madam mr mrs ms miss mother mothers father
    fathers mom dad sister sisters brother brothers daughter daughters son sons aunt uncle niece nephew
    wife wives husband husbands grandmother grandfather granddaughter grandson stepmother stepfather
    king kings queen queens prince princess lord lords duke duchess bride groom widow
    widower hero heroine actor actress waiter waitress host hostess
    steward stewardess policeman policewoman fireman chairman salesman saleswoman businessman housewife
    midwife seamstress nanny maid fisherman craftsman landlord landlady cow cows bull bulls hen hens
    rooster stallion mare ewe monk nun maternal paternal masculine feminine manned
    """)
)
PERSON_NOUNS = set(
    words("""
    engineer engineers worker workers teacher teachers manager managers driver drivers officer officers
    guard guards clerk clerks agent agents operator operators technician technicians assistant
    assistants author authors composer composers conductor inventor inventors astronomer astronomers
    historian historians gardener gardeners builder builders fisher fishers student students pupil
    employee boss owner server servers director trainer inspector attendant advisor administrator
    designer designers scholar
    """)
)

# How the first wordings (each case's, in order) and the first test occupations were placed, for good.
PLACED_AMBIGUOUS = "TETEVTETTETVTETTETVTETTV"
PLACED_UNAMBIGUOUS = "TETTETVTETTETVTE"
PLACED_TEST_OCCUPATIONS = (
    "addiction counselor, alarm installer, animal trainer, bank teller, caregiver, chiropractor, city bus driver, "
    "coach, cost estimator, curator, customer service representative, dental hygienist, dentist, detective, "
    "dispatcher, doctor, drywall installer, editor, event planner, financial analyst, fitness trainer, geologist, "
    "glazier, home health aide, house painter, ironworker, journalist, laboratory technician, librarian, "
    "logistician, machinist, manicurist, nurse, nursing aide, packer, pharmacist, pharmacy technician, pilot, "
    "porter, private investigator, receptionist, referee, sales representative, school counselor, security "
    "analyst, security guard, sound technician, speech pathologist, surgeon, systems analyst, taxi driver, tour "
    "guide, translator, truck driver, tutor, welder"
)


@pytest.fixture(scope="module")
def task():
    return load()


def neutral_paragraphs() -> list[str]:
    data = resources.files("trimtab").joinpath("data")
    files = (data.joinpath(name).read_text("utf-8") for name in ("neutral.txt", "neutral_training.txt"))
    return [p for text in files for p in text.strip().split("\n\n")]


def test_there_are_enough_occupations_templates_and_items(task):
    jobs = Counter(o.split for o in occupations())
    ambiguous = Counter(t.split for t in templates() if t.ambiguous)
    unambiguous = [t for t in templates() if not t.ambiguous]
    assert len(occupations()) >= 150
    assert jobs["train"] >= 350
    assert jobs["test"] >= 36
    assert jobs["validation"] >= 15
    assert ambiguous["train"] >= 470
    assert ambiguous["validation"] >= 18
    assert ambiguous["test"] >= 40
    assert len(unambiguous) >= 68
    assert sum(t.split == "train" for t in unambiguous) >= 47
    for case in PRONOUNS:
        assert sum(t.case == case for t in templates() if t.ambiguous) >= 66
        assert sum(t.case == case for t in unambiguous) >= 22
    n = Counter((i.split, i.ambiguous) for i in task.items)
    assert n["train", True] == jobs["train"] * 3 * 16
    assert {i.template for i in task.split("train") if i.ambiguous} == {
        t.id for t in templates() if t.split == "train" and t.ambiguous
    }
    assert 1100 <= n["test", True] <= 1200
    assert 340 <= n["validation", True] <= 380
    assert all(0 < n[split, False] <= n[split, True] for split in SPLITS)
    for split in SPLITS:
        assert f"= {n[split, True]} items, and {n[split, False]} unambiguous" in task.division


def test_the_data_files_state_every_split_and_what_was_placed_stays():
    for file, delimiter in (("occupations.csv", ","), ("pronoun_templates.tsv", "\t")):
        text = resources.files("trimtab.tasks").joinpath("data").joinpath(file).read_text("utf-8")
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
        assert {r["split"] for r in rows} == set(SPLITS)
        assert all(None not in r and None not in r.values() for r in rows), "a row is too long or too short"
    split = {t.id: t.split for t in templates()}
    letters = {"T": "train", "E": "test", "V": "validation"}
    placed = [*PLACED_AMBIGUOUS * 3, *PLACED_UNAMBIGUOUS * 3]
    ids = [*(f"t{n:02}" for n in range(1, 73)), *(f"u{n:02}" for n in range(1, 49))]
    assert {i: split[i] for i in ids} == {i: letters[p] for i, p in zip(ids, placed, strict=True)}
    assert {o.name for o in occupations() if o.split == "test"} >= set(PLACED_TEST_OCCUPATIONS.split(", "))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_occupation_meets_equally_many_wordings_and_the_reverse(task, split):
    items = [i for i in task.split(split) if i.ambiguous]
    mine = {t.id: t for t in templates() if t.split == split and t.ambiguous}
    jobs = {o.name: o for o in occupations() if o.split == split}
    per_case = Counter((i.concept, mine[i.template].case) for i in items)
    assert {concept for concept, _ in per_case} == set(jobs)
    assert len(per_case) == len(jobs) * len(PRONOUNS)
    assert len(set(per_case.values())) == 1
    uses = Counter(i.template for i in items)
    assert set(uses) == set(mine)
    assert max(uses.values()) - min(uses.values()) <= 1
    # Each wording sees the stereotypes, and the whole range of shares, nearly as the split does.
    women = sum(o.stereotype == "women" for o in jobs.values()) / len(jobs)
    mean = sum(o.women_percent for o in jobs.values()) / len(jobs)
    for t in mine:
        met = [jobs[i.concept] for i in items if i.template == t]
        assert abs(sum(o.stereotype == "women" for o in met) / len(met) - women) < 0.1
        assert abs(sum(o.women_percent for o in met) / len(met) - mean) < 4
    # No blocks: any two wordings of a case share some occupations and differ in others.
    sets = {t: frozenset(i.concept for i in items if i.template == t) for t in mine}
    assert len(set(sets.values())) == len(sets)
    for a in mine:
        for b in mine:
            if a < b and mine[a].case == mine[b].case:
                assert sets[a] & sets[b], (a, b)


def test_splits_share_no_concept_no_template_no_name_and_no_family(task):
    for field in ("concept", "template"):
        seen = defaultdict(set)
        for item in task.items:
            seen[getattr(item, field)].add(item.split)
        assert all(len(splits) == 1 for splits in seen.values()), field
    names = [name for pair in NAMES.values() for group in pair for name in group]
    assert len(names) == len(set(names))
    families = defaultdict(set)
    heads = defaultdict(set)
    for o in occupations():
        families[o.family].add(o.split)
        heads[o.name.split()[-1]].add(o.split)
    assert all(len(splits) == 1 for splits in families.values())
    assert all(len(splits) == 1 for splits in heads.values()), "occupations that end alike must stay together"


def test_no_wording_ends_like_one_of_another_split():
    endings = defaultdict(set)
    for t in templates():
        text = t.text.replace("{a occupation}", "_").replace("{occupation}", "_")
        endings[tuple(text.split()[-2:])].add(t.split)
    assert not [ending for ending, splits in endings.items() if len(splits) > 1]


def test_only_the_names_of_the_split_occur_in_it(task):
    for item in task.items:
        capitals = set(re.findall(r"[A-Z][a-z]+", item.prompt))
        for split in SPLITS:
            if split != item.split:
                assert not capitals & {n for group in NAMES[split] for n in group}, item.prompt


def test_splits_are_balanced(task):
    def share(split):
        return [o.women_percent for o in occupations() if split in (o.split, "all")]

    everything = share("all")
    assert sum(p < 15 for p in everything) >= 25
    assert sum(p > 80 for p in everything) >= 25
    assert sum(35 <= p <= 65 for p in everything) >= 25
    for split in SPLITS:
        mine = share(split)
        assert abs(sum(mine) / len(mine) - sum(everything) / len(everything)) < 8
        assert 0.35 < sum(p > 50 for p in mine) / len(mine) < 0.65
        for ambiguous in (True, False):
            cases = Counter(t.case for t in templates() if t.split == split and t.ambiguous is ambiguous)
            assert set(cases) == set(PRONOUNS)
            assert len(set(cases.values())) == 1


def test_options_are_the_pronouns_of_one_case(task):
    for item in task.items:
        texts = tuple(o.text for o in item.options)
        full = next(p for p in PRONOUNS.values() if p[0] == texts[0])
        assert texts == (full if item.ambiguous else full[:2])
        assert [o.group for o in item.options[:2]] == ["men", "women"]
        if item.ambiguous:
            assert {o.role for o in item.options[:2]} == {"pro", "anti"}
            assert (item.options[2].role, item.options[2].group) == ("neither", None)
        else:
            assert {o.role for o in item.options} == {"correct", "wrong"}
        assert all(o.position is None for o in item.options)


def test_roles_follow_the_share_of_women(task):
    share = {o.name: o.women_percent for o in occupations()}
    for item in task.items:
        if item.ambiguous:
            (pro,) = [o for o in item.options if o.role == "pro"]
            assert pro.group == ("women" if share[item.concept] > 50 else "men")
    assert 50.0 not in share.values(), "an even share has no stereotype"


def test_unambiguous_prompts_state_the_gender_that_is_correct(task):
    told = {
        "women": {
            "woman",
            "lady",
            "sister",
            "mother",
            "daughter",
            "aunt",
            "niece",
            "wife",
            "grandmother",
            "granddaughter",
            "stepmother",
            "ms",
        },
        "men": {
            "man",
            "gentleman",
            "brother",
            "father",
            "son",
            "uncle",
            "nephew",
            "husband",
            "grandfather",
            "grandson",
            "stepfather",
            "mr",
        },
    }
    for pair in NAMES.values():
        told["women"] |= {n.lower() for n in pair[0]}
        told["men"] |= {n.lower() for n in pair[1]}
    pairs = defaultdict(set)
    for item in task.items:
        if not item.ambiguous:
            (correct,) = [o.group for o in item.options if o.role == "correct"]
            said = {group for group, marks in told.items() if marks & set(words(item.prompt))}
            assert said == {correct}, item.prompt
            pairs[item.concept, item.template].add(correct)
    assert all(groups == {"men", "women"} for groups in pairs.values())


def test_unambiguous_selection_reaches_everything(task):
    for split in SPLITS:
        items = [i for i in task.split(split) if not i.ambiguous]
        assert {i.concept for i in items} == {o.name for o in occupations() if o.split == split}
        uses = Counter(i.template for i in items)
        assert set(uses) == {t.id for t in templates() if t.split == split and not t.ambiguous}
        assert max(uses.values()) <= 1.5 * min(uses.values())
        assert min(Counter(i.concept for i in items).values()) >= 6
        used = {w for i in items for w in re.findall(r"[A-Z][a-z]+", i.prompt)}
        assert all(name in used for group in NAMES[split] for name in group)


def test_prompts_are_clean(task):
    for item in task.items:
        assert item.prompt == item.prompt.strip()
        assert "  " not in item.prompt
        assert not set("{}[]|") & set(item.prompt)
        assert item.prompt[0].isupper()
        assert item.prompt.count(item.concept) == 1
        assert 4 <= len(re.findall(r"\w+|[^\w\s]", item.prompt)) <= 20
        assert item.prompt[-1].isalpha() or item.prompt[-1] == ","


def test_ambiguous_prompts_and_occupations_say_no_gender(task):
    for item in task.items:
        if item.ambiguous:
            assert not GENDERED & set(words(item.prompt)), item.prompt
    for o in occupations():
        assert not GENDERED & set(words(o.name))
        assert not re.search(r"(man|men|ess|wife|maid)$", o.name), o.name


def test_articles_are_right(task):
    assert with_article("artist") == "an artist"
    assert with_article("nurse") == "a nurse"
    for item in task.items:
        for article, word in re.findall(r"\b([Aa]n?) (\w+)", item.prompt):
            assert (article.lower() == "an") == (word[0].lower() in "aeiou"), item.prompt
    hidden = re.compile(r"(eu|uni|usu|ute|one\b|once|hour|honest|honor|heir|[A-Z])")
    assert not [o.name for o in occupations() if hidden.match(o.name)], "spelling would hide the article"


def test_ids_are_unique_and_stable(task):
    ids = [i.id for i in task.items]
    assert len(ids) == len(set(ids))
    assert all(
        re.fullmatch(r"pronoun/(train|validation|test)/(un)?amb/[a-z-]+/[tu]\d{2,4}(/(wo)?men)?", i) for i in ids
    )
    prompts = [i.prompt for i in task.items if i.ambiguous]
    assert len(prompts) == len(set(prompts))
    assert "pronoun/test/amb/nurse/t02" in ids


def test_loading_is_deterministic_and_ignores_the_seed(task):
    pronoun.occupations.cache_clear()
    pronoun.templates.cache_clear()
    assert load(7).digest() == task.digest()
    assert load(7).seed is None
    assert task.division.startswith("fixed: ")


def test_every_share_says_where_it_is_from():
    sources = Counter(o.source for o in occupations())
    assert set(sources) <= {"cps-2022", "winobias", "winogender-2015", "approx"}
    assert sources["approx"] <= 0.1 * len(occupations())
    for o in occupations():
        assert 0 <= o.women_percent <= 100
        assert o.source_title
        # A share known only roughly must not be near enough to even for its role to be in doubt.
        assert o.source != "approx" or abs(o.women_percent - 50) >= 15, o.name
    assert len({o.name for o in occupations()}) == len(occupations())


def test_neutral_text_is_long_enough_and_names_no_one():
    paragraphs = neutral_paragraphs()
    assert len(paragraphs) >= 340
    assert len(set(paragraphs)) == len(paragraphs)
    jobs = re.compile(rf"\b({'|'.join(re.escape(o.name) for o in occupations())})s?\b")
    for p in paragraphs:
        assert "\n" not in p, p
        assert 50 <= len(p.split()) <= 90, (len(p.split()), p)
        assert not GENDERED & set(words(p)), (GENDERED & set(words(p)), p)
        assert not PERSON_NOUNS & set(words(p)), (PERSON_NOUNS & set(words(p)), p)
        assert not jobs.search(p.lower()), (jobs.search(p.lower()), p)
    # Not one template over and over: no opening of three words is used more than twice.
    assert max(Counter(tuple(words(p)[:3]) for p in paragraphs).values()) <= 2
