"""Contrasts: which side is positive, what is left out and counted, what is drawn, and what a file may hold."""

from __future__ import annotations

import json
from collections import Counter

import pytest

import trimtab
from trimtab import contrasts, pictures
from trimtab.errors import BadItem, NoChatTemplate, NotFound, TaskError, UsageError
from trimtab.testing import tiny, tiny_task
from trimtab.types import Example, Item, Message, Option, Task


def item(name, options, *, ambiguous=True, split="train", **shown):
    return Item(name, options, "c", "t", ambiguous, split=split, **(shown or {"prompt": f"{name} said"}))


PRO, ANTI, NEITHER = Option("he", "pro"), Option("she", "anti"), Option("they", "neither")
UNKNOWN = Option("nobody knows", "wrong")


def settled(right, *, leans=True):
    """Three answers as BBQ has them: the stereotyped, the other, and unknown; `right` is pro or anti."""
    return (
        Option("the old man", "correct" if right == "pro" else "wrong", leans="pro" if leans else None),
        Option("the young man", "correct" if right == "anti" else "wrong", leans="anti" if leans else None),
        UNKNOWN,
    )


def sides(found):
    return [(p.prompt, p.answer, n.answer) for p, n in zip(found.positive, found.negative, strict=True)]


# -- items


def test_on_ambiguous_items_the_unbiased_answer_stands_against_the_biased_one():
    """Anti against pro where the items have both; neither against pro where that is asked for."""
    items = [item("A", (PRO, ANTI, NEITHER)), item("B", (ANTI, PRO, NEITHER))]
    found = contrasts.from_items(items)
    assert sides(found) == [("A said", "she", "he"), ("B said", "she", "he")]
    assert found.paired
    assert sides(contrasts.from_items(items, against="neither")) == [("A said", "they", "he"), ("B said", "they", "he")]


def test_where_neither_is_the_right_answer_it_is_the_unbiased_one():
    """A task whose figures count it (BBQ), and items that have no anti option."""
    items = (item("A", (PRO, ANTI, NEITHER)),)
    bbq = Task("bbq", items, "fixed", figures=("ambiguous_accuracy_choice", "s_amb"))
    assert sides(contrasts.from_items(bbq)) == [("A said", "they", "he")]
    assert sides(contrasts.from_items(Task("own", items, "fixed"))) == [("A said", "she", "he")]
    assert sides(contrasts.from_items([item("A", (PRO, NEITHER))])) == [("A said", "they", "he")]


def test_on_unambiguous_items_a_wrong_answer_is_never_the_positive_side():
    """Right against stereotyped; where the stereotyped answer is the right one the item is left out, and counted."""
    items = [
        item("A", settled("anti"), ambiguous=False),
        item("B", settled("pro"), ambiguous=False),
        item("C", settled("anti", leans=False), ambiguous=False),
        item("D", (PRO, Option("x", "wrong"), NEITHER)),
        item("E", (PRO, ANTI)),
    ]
    found = contrasts.from_items(items)
    assert sides(found) == [("A said", "the young man", "the old man"), ("E said", "she", "he")]
    for words in (
        "on 1 ambiguous",
        "on 1 unambiguous",
        "1 whose right answer follows the stereotype",
        "1 unambiguous that do not say which way they lean",
        "1 ambiguous without both 'pro' and 'anti'",
    ):
        assert words in found.source
    assert sides(contrasts.from_items(items, unambiguous=False)) == [("E said", "she", "he")]


def test_a_chat_stays_a_chat_and_the_split_is_asked_for():
    """Items of other splits are not touched, and the origin says which task and split it was."""
    chat = (Message("user", "Who?"),)
    items = (item("A", (PRO, ANTI), messages=chat), item("B", (PRO, ANTI), split="test"))
    found = contrasts.from_items(Task("own", items, "by hand", seed=4))
    assert found.positive == (Example(chat, "she"),)
    assert found.origin == {"task": "own", "split": "train", "division": "by hand", "division_seed": 4}
    assert len(contrasts.from_items(Task("own", items, "by hand"), "all").positive) == 2
    with pytest.raises(TaskError, match=r"no items in the split 'validation' \(it has train 1, test 1\)"):
        contrasts.from_items(Task("own", items, "by hand"), "validation")


def test_items_without_a_pair_are_refused_with_the_reasons():
    with pytest.raises(TaskError, match=r"none of 1 items makes a pair.*1 unambiguous that do not say"):
        contrasts.from_items([item("A", settled("pro", leans=False), ambiguous=False)])
    with pytest.raises(UsageError, match="against is 'anti' or 'neither'"):
        contrasts.from_items([item("A", (PRO, ANTI))], against="pro")


def test_so_many_pairs_are_drawn_by_the_seed():
    """In their order, the same for one seed, whole pairs; more than there are is all of them."""
    task = tiny_task(12, 12)
    whole = sides(contrasts.from_items(task))
    few = contrasts.from_items(task, n=5, seed=1)
    assert len(few.positive) == 5
    assert [pair for pair in whole if pair in sides(few)] == sides(few)
    assert sides(few) == sides(contrasts.from_items(task, n=5, seed=1))
    assert sides(few) != sides(contrasts.from_items(task, n=5, seed=2))
    assert f"5 of {len(whole)} pairs, drawn by seed 1" in few.source
    assert sides(contrasts.from_items(task, n=10**6)) == whole


# -- descriptions


def test_the_data_is_what_it_claims_to_be():
    """Nine axes of twelve pairs; ten lists of fifty sentences; nothing twice, no two sides alike, nothing odd."""
    axes, lists = contrasts.axes(), contrasts.sentences()
    assert list(axes) == [
        *("age", "appearance", "disability", "gender", "nationality", "race", "religion", "sexuality", "socioeconomic")
    ]
    assert {len(pairs) for pairs in axes.values()} == {12}
    said = [d for pairs in axes.values() for pair in pairs for d in pair]
    assert len(set(said)) == len(said) == 216
    assert all(d == d.strip() and d and d[0].islower() and d[-1] not in ".,|" for d in said)
    assert [len(lines) for lines in lists.values()] == [50] * 10
    sentences = [s for lines in lists.values() for s in lines]
    assert len(set(sentences)) == 500
    assert all(3 <= len(s.split()) <= 14 and s[0].isupper() and s[-1] in ".?" for s in sentences)


def test_a_pair_differs_in_the_description_alone():
    """System "{stem}{description}.", user a sentence, and the model's turn next; fair is positive."""
    found = contrasts.from_descriptions("age", "act", n=50, seed=0)
    described = dict(contrasts.axes()["age"])
    for plus, minus in zip(found.positive, found.negative, strict=True):
        (system, user), (other, same) = plus.prompt, minus.prompt
        assert (system.role, user.role, user, plus.answer) == ("system", "user", same, "")
        fair = system.content.removeprefix(contrasts.STEMS["act"]).removesuffix(".")
        assert other.content == f"{contrasts.STEMS['act']}{described[fair]}."


def test_without_a_chat_the_same_words_are_paragraphs_of_a_prompt():
    """Pair by pair what a chat holds, drawn alike; a base model reads them, which has no template for a chat."""
    chats, texts = (contrasts.from_descriptions("age", n=30, chat=chat, seed=1) for chat in (True, False))
    for side in ("positive", "negative"):
        for chat, text in zip(getattr(chats, side), getattr(texts, side), strict=True):
            system, user = chat.prompt
            assert text.prompt == f"{system.content}\n\n{user.content}\n\n"
    base = tiny("llama", chat=False)
    with pytest.raises(NoChatTemplate, match="'descriptions:AXIS:text' makes prompts of them"):
        trimtab.CAA().fit(base, chats, seed=0)
    assert trimtab.CAA().fit(base, texts, seed=0).numbers() > 0


def test_sentences_descriptions_and_stems_go_round_evenly_and_no_pair_comes_twice():
    """Up to every combination there is, which is every pair once."""
    lines = ["A b c.", "D e f.", "G h i.", "J k l."]
    own = [("kind", "rude"), ("fair", "unfair"), ("calm", "angry")]
    for n in (4, 9, 24):
        found = contrasts.from_descriptions(own, ("act", "pretend"), lines, n=n, seed=3)
        assert len(set(zip(found.positive, found.negative, strict=True))) == n
        for turn in (0, 1):
            counts = Counter(e.prompt[turn] for e in found.positive)
            assert max(counts.values()) - min(counts.values()) <= 1
    with pytest.raises(UsageError, match="25 pairs were asked for; 3 descriptions x 2 stems x 4 sentences make 1 to"):
        contrasts.from_descriptions(own, ("act", "pretend"), lines, n=25, seed=3)


def test_the_seed_draws_and_nothing_else_does():
    """The same seed gives the same texts; another one others; a stem of one's own is used as it is."""
    one, same, other = (contrasts.from_descriptions("race", seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.digest() == same.digest() != other.digest()
    assert len(one.positive) == contrasts.PAIRS
    own = contrasts.from_descriptions([("kind", "rude")], ["You are "], ["Hello."], n=1, seed=0)
    assert own.positive[0].prompt == (Message("system", "You are kind."), Message("user", "Hello."))


def test_descriptions_that_cannot_be_used_are_refused():
    """Equal sides, nothing at all, names that are not known."""
    with pytest.raises(BadItem, match="equal"):
        contrasts.from_descriptions([("kind", "kind")], n=1, seed=0)
    for bad in (
        lambda: contrasts.from_descriptions([], n=1, seed=0),
        lambda: contrasts.from_descriptions("age", [], n=1, seed=0),
        lambda: contrasts.from_descriptions("age", said=[], n=1, seed=0),
    ):
        with pytest.raises(UsageError, match="at least one of each"):
            bad()
    with pytest.raises(UsageError, match="no axis 'aeg'; did you mean 'age'"):
        contrasts.from_descriptions("aeg", seed=0)
    with pytest.raises(UsageError, match="no list of sentences 'works'"):
        contrasts.from_descriptions("age", said="works", seed=0)


# -- a file


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
        return path

    return write


CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def test_pairs_of_every_form_are_read(written):
    """Text, prompt and answer, a chat, a chat with its answer; blank lines and a byte order mark are fine."""
    found = contrasts.from_jsonl(
        written(
            "\ufeff" + json.dumps({"positive": "good", "negative": "bad"}),
            "",
            {"positive": {"prompt": "Who?", "answer": "I"}, "negative": {"prompt": "Who?", "answer": "you"}},
            {"positive": CHAT, "negative": {"messages": CHAT[1:], "answer": "Hi"}},
        )
    )
    turns = tuple(Message(m["role"], m["content"]) for m in CHAT)
    assert found.paired
    assert found.positive == (Example("good"), Example("Who?", "I"), Example(turns))
    assert found.negative == (Example("bad"), Example("Who?", "you"), Example(turns[1:], "Hi"))


def test_texts_with_a_label_are_two_sets_without_pairs(written):
    """In the file's order, sides of any two lengths."""
    found = contrasts.from_jsonl(
        written(
            {"text": "a", "label": "negative"},
            {"text": {"prompt": "b", "answer": "c"}, "label": "positive"},
            {"label": "negative", "text": CHAT},
        )
    )
    assert not found.paired
    assert (len(found.positive), len(found.negative)) == (1, 2)
    assert found.positive == (Example("b", "c"),)


def test_texts_may_show_pictures_that_lie_beside_the_file(written, tmp_path):
    """Both sides of a pair, or one; the same file is one picture."""
    from PIL import Image

    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    shown = {"prompt": "<image>Who?", "images": ["red.png"]}
    found = contrasts.from_jsonl(
        written({"positive": {**shown, "answer": "she"}, "negative": {"messages": CHAT, "images": ["red.png"]}})
    )
    picture = pictures.of_file(tmp_path / "red.png")
    assert found.positive[0].images == found.negative[0].images == (picture,)


GOOD = {"positive": "good", "negative": "bad"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, {"positive": "same", "negative": "same"}], "line 2: the two sides are equal"),
        ([GOOD, '{"positive": '], "line 2: invalid JSON"),
        ([GOOD, "[1]"], "line 2: expected an object"),
        ([GOOD, {"positive": "x"}], "line 2 has positive; expected 'positive' and 'negative'"),
        ([GOOD, {**GOOD, "label": "positive"}], "line 2 has positive, negative, label"),
        ([GOOD, {}], "line 2 has nothing"),
        ([GOOD, {"text": "x", "label": "positive"}], "line 2 is a text with a label, line 1 is a pair"),
        ([{"text": "x", "label": "good"}], "line 1: label is 'good'"),
        ([{"text": "x", "label": ["positive"]}], "line 1: label is"),
        ([{**GOOD, "negative": " "}], "line 1, negative: expected a text that is not empty"),
        ([{**GOOD, "negative": 3}], "line 1, negative: expected a text, an object"),
        ([{**GOOD, "negative": None}], "line 1, negative: expected a text, an object"),
        ([{**GOOD, "negative": {"answer": "x"}}], "expected either prompt or messages"),
        ([{**GOOD, "negative": {"prompt": "x", "messages": CHAT}}], "expected either prompt or messages"),
        ([{**GOOD, "negative": {"prompt": "x", "anwser": "y"}}], "unknown field 'anwser'"),
        ([{**GOOD, "negative": {"prompt": "x", "answer": ""}}], "line 1, negative, answer: expected a text"),
        ([{**GOOD, "negative": []}], "messages are a list of objects"),
        ([{**GOOD, "negative": [{"role": "user"}]}], "messages are a list of objects"),
        ([{**GOOD, "negative": [{"role": "robot", "content": "x"}]}], "role 'robot'"),
        ([{**GOOD, "negative": [*CHAT, {"role": "assistant", "content": "x"}]}], "the last message must be from user"),
        (['{"positive": "\\ud800", "negative": "x"}'], "half of a surrogate pair"),
        ([{**GOOD, "negative": {"prompt": "<image>x"}}], "0 images, but <image> stands in the text 1 times"),
        ([{**GOOD, "negative": {"prompt": "<image>x", "images": ["none.png"]}}], "line 1, negative, images: "),
        ([{**GOOD, "negative": {"prompt": "<image>x", "images": ["../x.png"]}}], "leads out of"),
        ([{**GOOD, "negative": {"prompt": "x", "images": "x.png"}}], "expected a list of paths"),
    ],
)
def test_a_defect_is_named_with_its_line(written, rows, words):
    with pytest.raises(BadItem) as refused:
        contrasts.from_jsonl(written(*rows))
    assert words in str(refused.value)
    assert "pairs.jsonl" in str(refused.value)


def test_a_file_without_both_classes_or_without_anything_is_refused(written, tmp_path):
    with pytest.raises(TaskError, match="one class only: no text is labelled 'negative'"):
        contrasts.from_jsonl(written({"text": "x", "label": "positive"}))
    with pytest.raises(TaskError, match="no lines"):
        contrasts.from_jsonl(written(""))
    with pytest.raises(NotFound, match="does not exist"):
        contrasts.from_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(NotFound, match="is a folder"):
        contrasts.from_jsonl(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"positive": "caf\xe9", "negative": "x"}')
    with pytest.raises(BadItem, match="line 2: not UTF-8"):
        contrasts.from_jsonl(tmp_path / "latin.jsonl")


# -- the grammar


def test_a_spec_names_what_to_build(written, task_file):
    """Items with their split and number, also where the task's own name holds colons; descriptions; a file."""
    spec = f"items:jsonl:{task_file}"
    train = contrasts.load(spec, seed=0)
    assert train.origin["split"] == "train"
    assert contrasts.load(f"{spec}@validation:3", seed=0).origin["split"] == "validation"
    assert len(contrasts.load(f"{spec}@validation:3", seed=0).positive) == 3
    assert len(contrasts.load(f"{spec}:4", seed=0).positive) == 4
    assert len(contrasts.load(f"{spec}@all", seed=0).positive) > len(train.positive)
    few = contrasts.load("descriptions:age+race:pretend:food:30", seed=2)
    assert few == contrasts.from_descriptions("age+race", "pretend", "food", n=30, seed=2)
    plain = contrasts.load("descriptions:age+race:food:text:pretend:30", seed=2)
    assert plain == contrasts.from_descriptions("age+race", "pretend", "food", n=30, chat=False, seed=2)
    assert len(contrasts.load("descriptions:all", seed=0).positive) == contrasts.PAIRS
    assert len(contrasts.load("descriptions:age:act:food", seed=0).positive) == 200
    path = written(GOOD)
    assert contrasts.load(f"jsonl:{path}", seed=0) == contrasts.from_jsonl(path)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "expected items:TASK"),
        ("pronoun", "for a task's items, 'items:pronoun'"),
        ("description:age", "did you mean 'descriptions:age'"),
        ("mine.jsonl", "did you mean 'jsonl:mine.jsonl'"),
        ("items:", "nothing stands after 'items'"),
        ("descriptions:age:sing", "'sing' is no stem (act, pretend, express)"),
        ("descriptions:age:act:pretend", "one stem and one list at most"),
        ("descriptions:age:text:text", "one stem and one list at most"),
        ("descriptions:ag", "did you mean 'age'"),
        ("descriptions:age:act:food:601", "make 1 to 600"),
        ("items:pronoun:0", "must be at least 1"),
    ],
)
def test_a_spec_that_cannot_be_read_says_what_was_meant(spec, words):
    with pytest.raises(UsageError) as refused:
        contrasts.load(spec, seed=0)
    assert words in str(refused.value)


def test_an_unknown_task_is_the_tasks_own_refusal():
    with pytest.raises(TaskError, match="Unknown task 'pronuon'"):
        contrasts.load("items:pronuon", seed=0)
