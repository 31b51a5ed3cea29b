"""scoring: every shortcut gives the numbers of the plain way, which runs the whole model on prompt + option."""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import capture, scoring, sites
from trimtab.errors import BadItem, NoChatTemplate, StrengthError, UsageError
from trimtab.interventions import Diagonal
from trimtab.model import load
from trimtab.scoring import Encoded
from trimtab.steering import Steering, attach
from trimtab.testing import (
    BEGIN,
    TINY_FAMILIES,
    ByteTokenizer,
    random_ids,
    random_steering,
    tiny,
    tiny_task,
    write_tiny_folder,
)
from trimtab.types import PER, Example, Item, Message, Option

STEM = "This is a long enough opening that all of them share. "


def item(prompt, *options, id="x"):
    chat = {"messages": prompt} if isinstance(prompt, tuple) else {"prompt": prompt}
    return Item(id, tuple(Option(o, "pro") for o in options), "c", "t", True, **chat)


SINGLE = [item("The cook said that", "he", "she", "they"), item("A nurse in the hall thought", "she", "he")]
MIXED = [
    *SINGLE,
    item("The cook", "he", "was tired", "sat", id="long"),
    item("The pilot who came late said", "he", "he was", "they", id="prefix"),
    item("A", "no", "yes, and more than that", id="short"),
    item("The nurses", "no", "yes", "maybe", "they", id="four"),
]
STEMMED = [dataclasses.replace(i, prompt=STEM + i.prompt) for i in MIXED]


def reference(model, encoded):
    """[log P(option | prompt)] of one item from full logits of one row at a time, with no cache and no padding."""
    out = []
    for option in encoded.options:
        ids = torch.tensor([encoded.prompt + option])
        logp = model.hf(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[0]
        start = len(encoded.prompt) - 1
        out.append(sum(logp[start + t, token] for t, token in enumerate(option)))
    return torch.stack(out)


def agree(model, items, outcomes, encoded=None):
    for one, outcome in zip(encoded or model.encode(items), outcomes, strict=True):
        with torch.no_grad():
            logp = reference(model, one).double()
        torch.testing.assert_close(torch.tensor(outcome.p).double(), logp.softmax(0), atol=1e-4, rtol=1e-4)
        counted = [
            lp
            for lp, o in zip(logp, one.options, strict=True)
            if not any(o != q and o[: len(q)] == q for q in one.options)
        ]
        assert outcome.mass == pytest.approx(float(torch.stack(counted).exp().sum()), rel=1e-3)


@pytest.mark.parametrize("items", [SINGLE, MIXED, STEMMED], ids=["single", "mixed", "stemmed"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_scores_equal_the_whole_model_run_on_prompt_and_option(models, family, items):
    """Single and multi-token options, mixed lengths, and a stem longer than every sliding window."""
    model = models[family]
    agree(model, items, model.score(items))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_log_probabilities_equal_the_plain_ones_themselves(models, family):
    """Not only their softmax: log P of every option, to 1e-4."""
    model = models[family]
    encoded = model.encode(STEMMED)
    for share in (True, False):
        with torch.no_grad():
            found = scoring.score(model.body, model.readout, encoded, share=share)
            for scores, one in zip(found, encoded, strict=True):
                torch.testing.assert_close(scores.logp, reference(model, one), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_shared_stem_changes_nothing_and_is_really_shared(models, family):
    """With and without a shared stem the numbers agree, and with it fewer tokens are run."""
    model, seen = models[family], []
    encoded = model.encode(STEMMED)
    watch = model.body.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    try:
        with torch.no_grad():
            shared = scoring.score(model.body, model.readout, encoded)
            tokens_shared, seen[:] = sum(seen), []
            plain = scoring.score(model.body, model.readout, encoded, share=False)
    finally:
        watch.remove()
    assert tokens_shared < sum(seen) / 2
    for a, b in zip(shared, plain, strict=True):
        torch.testing.assert_close(a.logp, b.logp, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.log_mass, b.log_mass, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "opt"])
def test_batch_size_and_order_change_nothing(models, family):
    """One item at a time, a few, or all at once, in any order."""
    model = models[family]
    whole = model.score(STEMMED)
    for budget in (1, 40, 100_000):
        for found, expected in zip(model.score(STEMMED, tokens_per_batch=budget), whole, strict=True):
            assert found.p == pytest.approx(expected.p, abs=1e-5)
    for found, expected in zip(model.score(STEMMED[::-1]), whole[::-1], strict=True):
        assert found.p == pytest.approx(expected.p, abs=1e-5)
    for one, expected in zip(STEMMED, whole, strict=True):
        assert model.score([one])[0].p == pytest.approx(expected.p, abs=1e-5)
    assert model.score([]) == []


def test_progress_counts_every_item_once(llama):
    done = []
    llama.score(MIXED, tokens_per_batch=30, on_batch=done.append)
    assert sum(done) == len(MIXED)
    assert len(done) > 1


def test_probabilities_sum_to_one_and_the_mass_of_overlapping_options_is_counted_once():
    """P("he was") is a part of P("he"): the mass is P("he") + P("they"), not the sum of the three."""
    model = tiny("llama", seed=5)  # other seeds make "he" or what follows it too improbable
    (outcome,) = model.score([MIXED[3]])
    assert sum(outcome.p) == pytest.approx(1)
    (pilot,) = model.encode([MIXED[3]])
    (he, _, they) = pilot.options
    with torch.no_grad():
        after = model.hf(input_ids=torch.tensor([pilot.prompt + he]), use_cache=False).logits[0, -1].argmax()
        one = Encoded(pilot.prompt, (he, (*he, int(after)), they))
        p_he, p_longer, p_they = reference(model, one).exp().tolist()
        (scores,) = scoring.score(model.body, model.readout, [one])
    assert p_longer > 1e-2 * (p_he + p_they), "too improbable to tell the two sums apart"
    assert float(scores.log_mass.exp()) == pytest.approx(p_he + p_they, rel=1e-4)


@pytest.mark.parametrize("items", [SINGLE, STEMMED], ids=["single", "stemmed"])
def test_the_flat_layout_gives_the_same_numbers(models, items):
    """score_flat, which learners differentiate, agrees with score on probabilities and mass, overlap included."""
    for family in ("llama", "gemma2", "gpt2", "phi"):
        model = models[family]
        encoded = model.encode(items)
        flat = scoring.flatten(encoded)
        with torch.no_grad():
            plain = scoring.score(model.body, model.readout, encoded)
            h = torch.stack(
                [model.body(input_ids=torch.tensor([flat.rows[r]])).last_hidden_state[0, t] for r, t in flat.wanted]
            )
            found = scoring.score_flat(model.readout, flat, h)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a.logp, b.logp, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(a.log_mass, b.log_mass, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens_at_once", [30, 4096])
def test_the_packed_way_gives_the_same_numbers_and_counts_each_item_once(models, tokens_at_once):
    """Options of several tokens, overlap, shared stems, equal items; in one pass and in many."""
    for family in ("llama", "phi", "gpt2"):
        model, counted = models[family], []
        encoded = model.encode([*MIXED, *STEMMED, *MIXED])
        with torch.no_grad():
            plain = scoring.score(model.body, model.readout, encoded)
            found = scoring.score_packed(
                model.body, model.readout, scoring.Prepared(encoded), tokens_at_once=tokens_at_once,
                on_batch=counted.append,
            )  # fmt: skip
        assert sum(counted) == len(encoded)
        assert (len(counted) > 1) == (tokens_at_once == 30)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a.logp, b.logp, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(a.log_mass, b.log_mass, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_what_lies_below_the_first_steered_site_is_computed_once_and_exactly(models, family):
    """Prepared items score bit for bit as fresh ones at every strength, and the lower blocks run no second time."""
    from trimtab.steering import Steering
    from trimtab.testing import random_steering

    model = models[family]
    last = len(list(getattr(sites.backbone(model.hf), sites.FAMILIES[model.family].layers))) - 1
    whole = random_steering(model, scale=0.3).interventions
    upper = Steering({k: v for k, v in whole.items() if k.startswith(f"layers.{last}.") or k == "norm.final"})
    assert upper.interventions
    items = [*MIXED, *STEMMED]
    ready = model.prepared(items)
    block = getattr(sites.backbone(model.hf), sites.FAMILIES[model.family].layers)[0]
    longest = max(len(e.prompt) + max(map(len, e.options)) for e in ready.encoded)
    tells = hasattr(block, "self_attn") and model.packs(longest)  # only packed passes are kept
    bare = model.score(items)
    for steering in (upper, Steering(whole)):
        for n, strength in enumerate((0.5, 1.0, 0.25)):
            with model.steer(steering, strength, beyond_range=True):
                fresh = model.score(items)
                with capture.recorded(block.self_attn if hasattr(block, "self_attn") else block) as ran:
                    again = model.score(items, prepared=ready)
            assert again == fresh != bare
            assert not tells or bool(ran) == (steering is not upper or n == 0)
    assert model.score(items, prepared=ready) == bare
    with pytest.raises(UsageError, match="were prepared"):
        model.score(items[1:], prepared=ready)


def test_a_pass_holds_what_memory_has_room_for(models, monkeypatch):
    """Fewer tokens where little is free, a power of two between bounds; the scores are the same."""
    from trimtab import memory

    model = models["llama"]
    whole = model.score([*MIXED, *STEMMED])
    assert model.tokens_at_once <= 4096
    per = memory.token_bytes(model.hf.config, model.dtype)
    seen = []
    for free in (0, 600 * per * 4, 3000 * per * 4, 10**15):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        seen.append(model.tokens_at_once)
    assert seen == [256, 512, 2048, 4096]
    monkeypatch.setattr(memory, "FEWEST", 16)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    counted = []
    for a, b in zip(model.score([*MIXED, *STEMMED], on_batch=counted.append), whole, strict=True):
        assert a.p == pytest.approx(b.p, abs=1e-5)
    assert len(counted) > 3


def test_the_soft_cap_and_the_bias_of_the_unembedding_matter(models):
    """The two families that have them would fail the comparison without: dropping either changes the scores."""
    for family, attribute, nothing in (("gemma2", "_cap", None), ("phi", "bias", None)):
        model = models[family]
        encoded, readout = model.encode(MIXED), model.readout
        assert getattr(readout, attribute) is not None
        with torch.no_grad():
            right = scoring.score(model.body, readout, encoded)
            setattr(readout, attribute, nothing)
            wrong = scoring.score(model.body, readout, encoded)
        assert max(float((a.logp - b.logp).abs().max()) for a, b in zip(right, wrong, strict=True)) > 1e-2


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_readout_of_a_few_rows_is_the_models_own_logits(models, family):
    model, rows = models[family], torch.tensor([7, 3, 200])
    ids = random_ids(model, 1, 5)
    with torch.no_grad():
        h = model.body(input_ids=ids, use_cache=False).last_hidden_state[0]
        whole = model.hf(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(model.readout(h), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.readout(h, rows), whole[:, rows], atol=1e-5, rtol=1e-5)


# -- gradients


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_gradients_reach_the_steering_and_equal_the_plain_ones(models, family, share):
    """d sum(w log P) / d(a, c), through the shared stem and the cached prompt, is that of the plain way."""
    model = models[family]
    encoded = model.encode(STEMMED)
    drawn = random_steering(model, seed=4)
    learned = {
        site: (Diagonal(group[0].a.clone().requires_grad_(), group[0].c.clone().requires_grad_()),)
        for site, group in drawn.interventions.items()
    }
    tensors = [t for (i,) in learned.values() for t in (i.a, i.c)]
    with attach(model.hf, Steering(learned), 0.8):
        scores = scoring.score(model.body, model.readout, encoded, share=share)
        total = sum((s.logp * torch.arange(1, len(s.logp) + 1)).sum() for s in scores)
        found = torch.autograd.grad(total, tensors)
        plain = sum((reference(model, e) * torch.arange(1, len(e.options) + 1)).sum() for e in encoded)
        expected = torch.autograd.grad(plain, tensors)
    assert max(float(g.abs().max()) for g in expected) > 1
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, atol=2e-3, rtol=1e-3)


# -- under a dial


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_a_strength_an_item_scores_each_item_at_its_own(models, family):
    """Items scored together under one strength each equal those scored one by one at that strength."""
    model = models[family]
    steering = random_steering(model, seed=3)
    strengths = [k / (len(STEMMED) - 1) for k in range(len(STEMMED))][::-1]
    base = model.score(STEMMED)
    with model.steer(steering, strengths):
        together = model.score(STEMMED)
        small = model.score(STEMMED, tokens_per_batch=60)
    for k, (one, w) in enumerate(zip(STEMMED, strengths, strict=True)):
        with model.steer(steering, w):
            (alone,) = model.score([one])
            agree(model, [one], [alone])
        assert together[k].p == pytest.approx(alone.p, abs=1e-5)
        assert small[k].p == pytest.approx(alone.p, abs=1e-5)
        assert together[k].mass == pytest.approx(alone.mass, rel=1e-3)
    assert max(abs(a - b) for o, q in zip(together, base, strict=True) for a, b in zip(o.p, q.p, strict=True)) > 0.01


def test_one_strength_for_all_keeps_the_shared_stem(models):
    """A number may share the stem; the scores are those of the plain way under the same dial."""
    for family in ("gemma3", "mistral", "gpt2"):
        model = models[family]
        with model.steer(random_steering(model, seed=8), 0.6):
            agree(model, STEMMED, model.score(STEMMED))


def test_too_few_or_too_many_strengths_for_the_items_are_refused(llama):
    """Three strengths neither stretch over more items nor are cut to fewer; both numbers are in the message."""
    for items in (MIXED, SINGLE):
        message = f"3 strengths for {len(items)} items"
        with pytest.raises(StrengthError, match=message), llama.steer(random_steering(llama), [0.5] * 3):
            llama.score(items)
    message = "3 strengths for 1 texts"
    with pytest.raises(StrengthError, match=message), llama.steer(random_steering(llama), [0.5] * 3):
        llama.logp(["A text"])


def test_a_strength_a_token_scores_items_of_one_length_and_refuses_others_with_both_lengths(llama):
    """Constant along a row it is a strength a row; a longer option, another prompt or text is refused by its length."""
    items, steering = [item("The cook said", "he", "she"), item("A cook cried", "they", "he")], random_steering(llama)
    n = len(llama.encode(items)[0].prompt)
    with llama.steer(steering, [0.3, 1.0]):
        expected = llama.score(items)
    longer, shorter = item("The cook said", "he", "was tired", id="long"), item("A cook said", "he", "she")
    m = n + len(llama.encode([longer])[0].options[1]) - 1
    with llama.steer(steering, torch.tensor([0.3, 1.0])[:, None].expand(2, n)):
        for found, plain in zip(llama.score(items), expected, strict=True):
            assert found.p == pytest.approx(plain.p, abs=1e-6)
        for other, says in ((longer, f"'long' .* {n} and {m} tokens"), (shorter, f"{n - 2} tokens")):
            with pytest.raises(StrengthError, match=f"{n} strengths a row, .*{says}"):
                llama.score([items[0], other])
        with pytest.raises(StrengthError, match=f"{n} strengths a row for {n - 2} tokens"):
            llama.logp(["The cook said", "A cook said"])
        with llama.unsteered():
            llama.score([items[0], longer])


def test_unsteered_is_the_base_model_even_under_a_strength_a_row(llama):
    base, text = llama.score(MIXED), llama.logp(["Some words here"])
    with llama.steer(random_steering(llama), [1.0] * len(MIXED)):
        steered = llama.score(MIXED)
        with llama.unsteered():
            for found, expected in zip(llama.score(MIXED), base, strict=True):
                assert found.p == pytest.approx(expected.p, abs=1e-6)
            assert torch.allclose(llama.logp(["Some words here"])[0], text[0])
    assert steered[0].p != pytest.approx(base[0].p, abs=1e-3)


# -- text to tokens


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_begin_of_text_token_stands_exactly_once(models, family):
    """Before prompts, texts and chats, whose template writes it itself; a text that has it gets no second.

    In what is scored, generated from, captured and measured as running text, with an instruction and without.
    """
    model = models[family]
    bos = model.tokenizer.bos_token_id
    chat = (Message("user", "Who came?"),)
    seen: list[tuple[int, ...]] = []
    for told in (None, "Be fair."):
        seen += [e.prompt for e in model.encode([SINGLE[0], item(chat, "he", "she")], told)]
        seen += model.example_tokens([Example("A word", "he"), Example(chat, "she"), Example(chat)], told)
        seen += model.tokens([model.render(p, told) for p in ("words", chat)])
    for row in (*seen, *model.tokens(["", "words", f"{BEGIN}words"])):
        assert row[0] == bos
        assert row.count(bos) == 1
    run: list[torch.Tensor] = []
    hook = model.body.register_forward_pre_hook(
        lambda module, args, given: run.append(given["input_ids"]), with_kwargs=True
    )
    with hook_removed(hook):
        model.hidden(["Some words", "More"], instruction="Be fair.")
        model.hidden(["Some words"])
        model.logp(["Some words"], given="Before")
    assert run
    assert all(ids[0, 0] == bos and int((ids == bos).sum(1).max()) == 1 for ids in run)
    assert model.tokens([]) == []


@contextmanager
def hook_removed(hook):
    try:
        yield
    finally:
        hook.remove()


def test_a_tokenizer_without_a_begin_token_gets_none():
    model = tiny("qwen2", tokenizer=ByteTokenizer(begin=False))
    assert model.tokens(["ab"]) == [tuple(model.tokenizer("ab").input_ids)]
    (encoded,) = model.encode([SINGLE[0]])
    assert model.tokenizer.bos_token_id not in encoded.prompt
    agree(model, MIXED, model.score(MIXED))


def test_chats_are_scored_as_the_template_writes_them(llama):
    chat = (Message("user", "Who came?"),)
    one = item(chat, "he", "she said so")
    (encoded,) = llama.encode([one])
    text = llama.render(chat)
    assert llama.tokenizer.decode(encoded.prompt) == text == f"{BEGIN}[user] Who came?<|end|>\n[assistant]\n"
    assert [llama.tokenizer.decode(o) for o in encoded.options] == ["he", "she said so"]
    agree(llama, [one], llama.score([one]))
    assert "Be fair." in llama.render(chat, "Be fair.")
    assert llama.render(chat, "Be fair.").count(BEGIN) == 1


def test_one_space_stands_between_prompt_and_option_however_it_was_written(llama):
    """A trailing space, a leading space, both or neither: the same tokens. A line break counts as the space."""
    ways = [
        ("The cook said", "he"),
        ("The cook said ", "he"),
        ("The cook said", " he"),
        ("The cook said ", " he"),
    ]
    encoded = [llama.encode([item(prompt, option, "no")])[0] for prompt, option in ways]
    assert len(set(encoded)) == 1
    assert llama.tokenizer.decode(encoded[0].prompt + encoded[0].options[0]) == f"{BEGIN}The cook said he"
    (broken,) = llama.encode([item("Who?\n", "A", "B")])
    assert llama.tokenizer.decode(broken.prompt + broken.options[0]) == f"{BEGIN}Who?\nA"
    assert [len(o) for o in broken.options] == [1, 1]


def test_tokens_that_join_across_the_border_belong_to_the_options(llama):
    """Where prompt and option share a token, the split moves back to the last token that all have in common."""
    one = item("Who said that? s", "he", "they", id="join")
    joined = dataclasses.replace(one, prompt="It was", options=(Option(" she", "pro"), Option(" shy", "anti")))
    (encoded,) = llama.encode([joined])
    decoded = [llama.tokenizer.decode(encoded.prompt + o) for o in encoded.options]
    assert decoded == [f"{BEGIN}It was she", f"{BEGIN}It was shy"]
    agree(llama, [one, joined], llama.score([one, joined]))


def test_options_that_become_the_same_tokens_are_refused_by_name(llama):
    with pytest.raises(BadItem, match=r"'alike'.*same tokens"):
        llama.encode([item("The cook said", "he", " he", id="alike")])


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(NoChatTemplate, match="chat template"):
        tiny("llama", chat=False).encode([item((Message("user", "Who?"),), "he", "she")])


def test_an_item_beyond_the_context_is_refused_with_both_numbers(llama):
    """The model takes 256 tokens; the longest option counts too."""
    with pytest.raises(BadItem, match=r"'big' needs 3.. tokens, .* takes 256"):
        llama.encode([item("a" * 300, "he", "she", id="big")])
    fits = 256 - 1 - len(llama.tokens([" he"])[0][1:])
    (outcome,) = llama.score([item("a" * fits, "he", "they")])
    assert math.isfinite(outcome.mass)
    with pytest.raises(BadItem, match="257 tokens"):
        llama.encode([item("a" * (fits + 1), "he", "they")])


# -- whole texts


def plain_logp(model, ids):
    with torch.no_grad():
        logp = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits.float().log_softmax(-1)[0]
    return torch.stack([logp[t, ids[t + 1]] for t in range(len(ids) - 1)])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logp_of_texts_equals_the_plain_one(models, family):
    """Every token after the first, and with `given` every token after those words and none of theirs."""
    model, texts = models[family], ["The cook came home.", "No."]
    for text, found in zip(texts, model.logp(texts), strict=True):
        torch.testing.assert_close(found, plain_logp(model, model.tokens([text])[0]), atol=1e-4, rtol=1e-4)
    given = "A word before:"
    for text, found in zip(texts, model.logp([f" {t}" for t in texts], given=given), strict=True):
        ids = model.tokens([f"{given} {text}"])[0]
        assert len(found) == len(model.tokens([f" {text}"])[0]) - 1
        torch.testing.assert_close(found, plain_logp(model, ids)[-len(found) :], atol=1e-4, rtol=1e-4)


def test_logp_takes_a_strength_a_text(llama):
    texts, steering = ["The cook came home.", "No, not so."], random_steering(llama)
    with llama.steer(steering, [0.0, 1.0]):
        found = llama.logp(texts)
    base = llama.logp(texts)
    with llama.steer(steering, 1.0):
        steered = llama.logp(texts)
    torch.testing.assert_close(found[0], base[0])
    torch.testing.assert_close(found[1], steered[1])
    assert (base[1] - steered[1]).abs().max() > 0.01


def test_hidden_states_take_a_strength_a_text_whatever_their_lengths(llama):
    """The longer text first: batches are sorted by length, strengths are not."""
    texts, steering = ["A text of many more words than the other.", "No, not so."], random_steering(llama)
    base = llama.hidden(texts)
    with llama.steer(steering, 1.0):
        steered = llama.hidden(texts)
    with llama.steer(steering, [0.0, 1.0]):
        found = llama.hidden(texts)
        with pytest.raises(StrengthError, match="2 strengths for 1 texts"):
            llama.hidden(texts[:1])
    torch.testing.assert_close(found[0], base[0])
    torch.testing.assert_close(found[1], steered[1])
    assert (base[1] - steered[1]).abs().max() > 0.01


def test_an_empty_prompt_has_nothing_to_continue():
    model = tiny("qwen2", tokenizer=ByteTokenizer(begin=False))
    with pytest.raises(UsageError, match="empty prompt"):
        model.generate("")


# -- the fakes themselves


def test_a_written_folder_loads_as_the_model_it_was(tmp_path):
    """write_tiny_folder and load: the same weights, tokens, template and scores."""
    for family in ("llama", "gpt2"):
        path = write_tiny_folder(tmp_path / family, family, seed=2)
        model, loaded = tiny(family, seed=2), load(str(path), dtype="float32", device="cpu")
        assert loaded.fingerprint() == model.fingerprint()
        assert loaded.tokens(["Hello, she said"]) == model.tokens(["Hello, she said"])
        assert loaded.render((Message("user", "Hi"),)) == model.render((Message("user", "Hi"),))
        for found, expected in zip(loaded.score(SINGLE), model.score(SINGLE), strict=True):
            assert found.p == pytest.approx(expected.p, abs=1e-6)
    assert not load(str(write_tiny_folder(tmp_path / "base", chat=False)), device="cpu").chats


def test_tiny_models_are_a_function_of_their_seed_and_not_uniform():
    assert tiny("llama", seed=1).fingerprint() == tiny("llama", seed=1).fingerprint()
    assert tiny("llama", seed=1).fingerprint() != tiny("llama", seed=2).fingerprint()
    before = torch.get_rng_state()
    for family in TINY_FAMILIES:
        outcomes = tiny(family).score(list(tiny_task().items))
        assert max(max(o.p) for o in outcomes) > 1.2 / 3, family
    assert torch.equal(torch.get_rng_state(), before), "making a model must not draw from the global generator"
    with pytest.raises(UsageError, match="llama"):
        tiny("lama")


def test_the_tiny_task_keeps_its_splits_apart():
    """No concept and no template is in two splits, every split has both kinds of item, and the seed decides."""
    task = tiny_task(7, 5, seed=3)
    for part in ("train", "validation", "test"):
        mine, others = task.split(part), [i for i in task.items if i.split != part]
        assert {i.ambiguous for i in mine} == {True, False}
        assert not {i.concept for i in mine} & {i.concept for i in others}
        assert not {i.template for i in mine} & {i.template for i in others}
    assert task.digest() == tiny_task(7, 5, seed=3).digest() != tiny_task(7, 5, seed=4).digest()
    assert len({i.id for i in task.items}) == len(task.items)


def test_an_item_of_one_token_batches_with_longer_ones(llama):
    """Encoded items of one-token prompts and of options up to three tokens, straight into scoring.score."""
    encoded = [
        Encoded((1,), ((5,), (6, 7, 8))),
        Encoded((1, 9, 9), ((5, 6), (5, 7))),
        Encoded((1,), ((3,), (4,))),
    ]
    with torch.no_grad():
        for scores, one in zip(scoring.score(llama.body, llama.readout, encoded), encoded, strict=True):
            torch.testing.assert_close(scores.logp, reference(llama, one), atol=1e-4, rtol=1e-4)


def test_options_per_token_and_per_byte_follow_from_their_log_probabilities(llama):
    """p = softmax(log P / n) with n 1, the option's tokens or its bytes; log P itself is the same."""
    asked = item("Who was it:", "a", "longer answer", "mid é")
    found = {per: llama.score([asked], per=per)[0] for per in PER}
    assert len({f.logp for f in found.values()}) == 1
    logp = np.array(found["option"].logp)
    lengths = {"option": np.ones(3), "token": np.array(found["token"].tokens), "byte": [1, 13, 6]}
    for per, outcome in found.items():
        odds = np.exp(logp / lengths[per])
        assert outcome.p == pytest.approx(odds / odds.sum(), abs=1e-4)


def test_an_empty_prompt_scores_texts_of_their_own(llama):
    """log P of every token of a text after the begin token, and no space before it."""
    texts = ("One calm day.", "Another day.")
    outcome = llama.score([item("", *texts)])[0]
    begin = llama.start or llama._prefix
    for text, logp, tokens in zip(texts, outcome.logp, outcome.tokens, strict=True):
        ids = begin + tuple(llama.tokenizer(text, add_special_tokens=False).input_ids)
        (each,) = scoring.sequence_logp(llama.body, llama.readout, [ids])
        assert (logp, tokens) == (pytest.approx(float(each.sum()), abs=1e-3), len(ids) - len(begin))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_families_part_the_prompts(prompts, overhead):
    """Each prompt once, behind a beginning that its family shares and leaves it a token; never dearer than alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "PASS", overhead)
        found = scoring.families(prompts)
    assert sorted(i for _, members in found for i in members) == list(range(len(prompts)))
    for shared, members in found:
        assert len({prompts[i][:shared] for i in members}) == 1
        assert all(len(prompts[i]) > shared for i in members)
    cost = sum(shared + sum(len(prompts[i]) - shared for i in members) for shared, members in found)
    assert cost + overhead * (len(found) - 1) <= sum(map(len, prompts))


def test_few_shot_prompts_run_their_beginning_once(llama):
    """Two subjects of long shots: each beginning is one row of one pass, and the scores are those of the plain way."""
    shots = {s: f"Questions about {s}. " + " ".join(f"Shot {n} of {s}." for n in range(9)) for s in ("seas", "law")}
    items = [item(f"{shots[s]} Question {n}: Answer:", "A", "B", id=f"{s}{n}") for n in range(6) for s in shots]
    encoded = llama.encode(items)
    widths = []
    seen = llama.body.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = scoring.score(llama.body, llama.readout, encoded)
    seen.remove()
    alone = [scoring.score(llama.body, llama.readout, [e], share=False)[0] for e in encoded]
    assert [a.logp.tolist() for a in found] == [pytest.approx(b.logp.tolist(), abs=1e-4) for b in alone]
    assert sum(rows == 1 for rows, _ in widths) == 2
    assert all(width < 40 for rows, width in widths if rows > 1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory")])
@pytest.mark.parametrize("packs", [True, False])
def test_batches_shrink_where_memory_is_short(llama, monkeypatch, error, packs):
    """The same scores, each item counted once, and no pass larger than what fits is tried twice."""
    items = [item(f"{n} of them said: {'so ' * (n % 2)}", "A", "Bee", id=str(n)) for n in range(10)]
    monkeypatch.setattr(type(llama), "packs", lambda self, longest: packs)
    sizes, done, limit = [], [], math.inf

    def short(module, args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > limit:
            raise error

    hook = llama.body.register_forward_pre_hook(short, with_kwargs=True)
    try:
        whole = llama.score(items)
        limit = max(sizes) // 2
        sizes.clear()
        found = llama.score(items, on_batch=done.append)
    finally:
        hook.remove()
    assert [o.logp for o in found] == [pytest.approx(o.logp, abs=1e-4) for o in whole]
    assert sum(done) == len(items)
    assert 1 <= sum(size > limit for size in sizes) <= 2


def test_an_item_too_large_for_memory_says_so(llama):
    """Nothing is left to halve."""

    def short(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = llama.body.register_forward_pre_hook(short, with_kwargs=True)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            llama.score([item("One of them said:", "A", "Bee")])
    finally:
        hook.remove()


@pytest.mark.parametrize(("positions", "words"), [(3, 50), (300, 5000), (257, 2048), (1, 4097)])
def test_nll_and_kl_by_tiles_are_those_of_whole_rows(positions, words):
    """Against float64 over all words at once, where positions and words do and do not fill their tiles."""
    draw = torch.Generator().manual_seed(positions)
    head = torch.nn.Linear(8, words, bias=False)
    head.weight.data = torch.randn(words, 8, generator=draw)
    h, base = (torch.randn(positions, 8, generator=draw) for _ in range(2))
    targets = torch.randint(words, (positions,), generator=draw)
    nll, kl = scoring.nll_and_kl(scoring.Readout(head, object()), h, base, targets)
    p, q = ((x.double() @ head.weight.double().T).log_softmax(-1) for x in (h, base))
    assert torch.allclose(nll, -p.gather(1, targets[:, None]).squeeze(1), atol=1e-4)
    assert torch.allclose(kl, (p.exp() * (p - q)).sum(-1), atol=1e-4)
    same = scoring.nll_and_kl(scoring.Readout(head, object()), h, h, targets)[1]
    assert not same.any()
