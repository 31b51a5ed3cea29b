"""Images on every vision-language family: our numbers are those of transformers' own full forward pass.

The oracle never sees a virtual id: it calls the family's processor with images and text, and the whole model with what
comes out, one item at a time.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch

from trimtab import contrasts, packing, scoring, sites
from trimtab import model as model_room
from trimtab.learners.contrast import CAA
from trimtab.model import SteerableModel
from trimtab.testing import BEGIN, TINY_VISION_FAMILIES, noise, random_steering, tiny_vision
from trimtab.types import IMAGE, Contrast, Example, Item, Option

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=TINY_VISION_FAMILIES)
def seeing(request: pytest.FixtureRequest) -> SteerableModel:
    """A tiny model of each family, shared by the tests of this file."""
    return tiny_vision(request.param, seed=2)


def item(name: str, prompt: str, *images: Any, options: tuple[str, ...] = ("he", "she", "the man")) -> Item:
    made = tuple(Option(text, role) for text, role in zip(options, ("pro", "anti", "neither"), strict=True))
    return Item(name, made, "concept", "template", True, prompt=prompt, images=images)


WIDE, TALL, SMALL = noise(20, 12, 1), noise(9, 30, 2), noise(8, 8, 3)
ITEMS = (
    item("wide", f"{IMAGE}who is the doctor?", WIDE),
    item("tall", f"{IMAGE}who is the doctor?", TALL),
    item("words", "the doctor said that"),
    item("later", f"look: {IMAGE} who is it?", SMALL),
    item("unmarked", "who is it", WIDE),
    item("several", f"one {IMAGE} and two {IMAGE} are here", TALL, WIDE),
    item("twice", f"one {IMAGE} and two {IMAGE} again", SMALL, SMALL),
    item("side by side", f"{IMAGE}{IMAGE}both", WIDE, SMALL),
    item("more words", "a longer text that shows nothing at all"),
)
BEGINS_ITSELF = ("paligemma", "mllama")
"""Processors that put the begin-of-text token where it belongs."""


def family_of(model: SteerableModel) -> str:
    return str(model.hf.config.model_type)


def oracle_inputs(model: SteerableModel, one: Item, answer: str | None = None) -> tuple[Any, int]:
    """What the processor makes of an item, and how many tokens behind the answer's end it adds."""
    assert model.eyes is not None
    assert one.prompt is not None
    prompt = one.prompt if IMAGE in one.prompt else IMAGE * len(one.images) + one.prompt
    before, behind = model.eyes.sight.around
    text = prompt.replace(IMAGE, f"{before}{model.processor.image_token}{behind}")
    own = family_of(model) in BEGINS_ITSELF and bool(one.images)
    text = text if own else BEGIN + text
    images = [[model.eyes.opened(p) for p in one.images]]
    settings = {"add_special_tokens": False, "return_tensors": "pt"}
    if not one.images:
        return model.tokenizer([text + (f" {answer}" if answer else "")], **settings), 0
    if family_of(model) == "paligemma":
        suffix = {"suffix": [answer]} if answer else {}
        made = model.processor(text=[text], images=images, **suffix, **settings)
        made.pop("labels", None)
        return made, 1 if answer else 0
    return model.processor(text=[text + (f" {answer}" if answer else "")], images=images, **settings), 0


@torch.no_grad()
def oracle_logp(model: SteerableModel, one: Item, answer: str, tokens: int) -> float:
    inputs, more = oracle_inputs(model, one, answer)
    ids = inputs["input_ids"][0]
    end = len(ids) - more
    logp = model.hf(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(logp[t - 1, ids[t]]) for t in range(end - tokens, end))


@pytest.mark.parametrize("way", ["tries", "rows", "shared"])
def test_scores_are_those_of_the_whole_model_item_by_item(seeing, way, monkeypatch):
    """Batches of images of several sizes, several images, and words alone; packed, in plain rows, and from a cache."""
    items = list(ITEMS)
    if way == "tries":
        found = seeing.score(items)
    elif way == "shared":
        monkeypatch.setattr(model_room, "TRIES", 0)
        monkeypatch.setattr(scoring, "PASS", 1)
        found = seeing.score(items)
    else:
        steering = random_steering(seeing, "layers.0.out", "shift")
        with seeing.steer(steering, [0.0] * len(items)) as dial:
            found = seeing.score(items)
            assert dial.fired
    for one, outcome in zip(items, found, strict=True):
        expected = [oracle_logp(seeing, one, o.text, n) for o, n in zip(one.options, outcome.tokens, strict=True)]
        torch.testing.assert_close(torch.tensor(outcome.logp), torch.tensor(expected), **CLOSE, msg=one.id)


def test_the_image_matters(seeing):
    """The same words about another image have another answer; about the same one the same."""
    items = [item(str(n), f"{IMAGE}who is it?", p) for n, p in enumerate((WIDE, TALL, WIDE))]
    wide, tall, again = (torch.tensor(o.logp) for o in seeing.score(items))
    assert (wide - tall).abs().max() > 1e-2
    torch.testing.assert_close(wide, again, atol=1e-5, rtol=0)


def test_an_image_is_encoded_once(seeing):
    """However many items, strengths and steps come back to it."""
    other = noise(12, 12, 77)
    items = [item(f"{n}", f"{IMAGE}number {n}", other) for n in range(3)]
    before = seeing.eyes.encoded
    ready = seeing.prepared(items)
    for _ in range(3):
        seeing.score(items, prepared=ready)
    seeing.score(items)
    assert seeing.eyes.encoded == before + 1


def test_generation_is_that_of_the_whole_model(seeing):
    """Greedy, several prompts at once from a cache, against transformers' own generate with pixels, one at a time."""
    items = list(ITEMS)
    outcomes = seeing.answer(items, max_new_tokens=6)
    for one, outcome in zip(items, outcomes, strict=True):
        inputs, _ = oracle_inputs(seeing, one)
        alone = seeing.hf.generate(
            **inputs, max_new_tokens=6, do_sample=False, pad_token_id=seeing.tokenizer.pad_token_id
        )[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [seeing.tokenizer.eos_token_id]
        alone = alone[: next((n for n, t in enumerate(alone) if t in ends), len(alone))]
        assert outcome.answer == seeing.text(alone), one.id


def test_generation_under_a_steering_is_that_of_full_passes(seeing):
    """With a cache, rows of several strengths, left padding: what full passes over the growing rows choose."""
    steering = random_steering(seeing, "*norm*", scale=0.2, seed=1)
    rows = [e.prompt for e in seeing.encode(list(ITEMS))]
    strengths = [float(n % 3) / 2 for n in range(len(rows))]
    with seeing.steer(steering, strengths):
        found = seeing.generate_ids(rows, max_new_tokens=4)
    for row, w, new in zip(rows, strengths, found, strict=True):
        with seeing.steer(steering, w), torch.no_grad():
            for token in new:
                h = seeing.body(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0, -1:]
                assert int(seeing.readout(h).argmax()) == token
                row = (*row, token)


def test_prepared_items_score_alike_at_every_strength(seeing):
    steering = random_steering(seeing, "layers.1.*norm*", scale=0.3, seed=4)
    items = list(ITEMS)
    ready = seeing.prepared(items)
    for strength in (0.0, 0.5, 1.0):
        with seeing.steer(steering, strength):
            kept = seeing.score(items, prepared=ready)
            anew = seeing.score(items)
        for a, b in zip(kept, anew, strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_gradients_are_those_of_full_passes(seeing):
    """Through tries or plain rows as DSO has them, against the whole model with pixels."""
    steering = random_steering(seeing, "*norm*", scale=0.1, seed=5)
    tensors = [t for group in steering.interventions.values() for i in group for t in i.tensors().values()]
    items = list(ITEMS)
    encoded = seeing.encode(items)
    flat = scoring.flatten(encoded)

    def ours() -> torch.Tensor:
        hidden = packing.hidden_at(
            flat.rows, flat.wanted, lambda layout, some: layout.run(seeing.body),
            pack=seeing.packs(max(map(len, flat.rows))), device=seeing.device, tokens_at_once=4096,
        )  # fmt: skip
        return sum(s.logp.sum() for s in scoring.score_flat(seeing.readout, flat, hidden))

    def theirs() -> torch.Tensor:
        total = torch.zeros(())
        for one, e in zip(items, encoded, strict=True):
            for option, tokens in zip(one.options, e.options, strict=True):
                inputs, more = oracle_inputs(seeing, one, option.text)
                ids = inputs["input_ids"][0]
                end = len(ids) - more
                logp = seeing.hf(**inputs, use_cache=False).logits[0].log_softmax(-1)
                total = total + sum(logp[t - 1, ids[t]] for t in range(end - len(tokens), end))
        return total

    for t in tensors:
        t.requires_grad_(True)
    found = []
    for run in (ours, theirs):
        with seeing.steer(steering, 1.0):
            found.append(torch.autograd.grad(run(), tensors, allow_unused=True))
    for mine, other in zip(*found, strict=True):
        mine = torch.zeros_like(other) if mine is None else mine
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_images_reach_across_a_sliding_window_as_in_transformers(family):
    """Blocks that see both ways in layers whose window is shorter than they are: scored, and generated from a cache."""
    seeing = tiny_vision(family, seed=2, sliding_window=3)
    items = list(ITEMS)
    assert not seeing.packs(12)
    for one, outcome in zip(items, seeing.score(items), strict=True):
        expected = [oracle_logp(seeing, one, o.text, n) for o, n in zip(one.options, outcome.tokens, strict=True)]
        assert outcome.logp == pytest.approx(expected, abs=1e-4), one.id
    for one, outcome in zip(items, seeing.answer(items, max_new_tokens=5), strict=True):
        assert outcome.answer == seeing.answer([one], max_new_tokens=5)[0].answer, one.id
        inputs, _ = oracle_inputs(seeing, one)
        made = seeing.hf.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
        alone = made[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [n for n, t in enumerate(alone) if t == seeing.tokenizer.eos_token_id]
        assert outcome.answer == seeing.text(alone[: ends[0]] if ends else alone), one.id


def test_beams_and_several_answers_show_their_prompts_images():
    """Rows that transformers makes of a prompt have the prompt's images."""
    seeing = tiny_vision("qwen2_vl", seed=2)
    one = ITEMS[0]
    (row,) = [e.prompt for e in seeing.encode([one])]
    inputs, _ = oracle_inputs(seeing, one)
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **options}
        # Three options part behind the first letters, so the prompt is shown whole.
        whole = tuple(seeing.seen_tokens([seeing.eyes.put_in(one.prompt)], one.images)[0])
        assert whole[: len(row)] == row
        ids = torch.tensor([whole])
        with seeing.eyes.prompts(ids) as words, torch.no_grad():
            found = seeing.hf.generate(input_ids=words, attention_mask=torch.ones_like(words), **settings)
        expected = seeing.hf.generate(**inputs, **settings)
        assert torch.equal(found[:, len(whole) :], expected[:, inputs["input_ids"].shape[1] :])


def test_a_repetition_penalty_of_the_model_is_heard():
    """It looks up the prompt's ids in the vocabulary, where virtual ones have no place."""
    seeing = tiny_vision("qwen2_vl", seed=2)
    row = seeing.encode(ITEMS[:1])[0].prompt
    assert len(seeing.generate_ids([row], max_new_tokens=3, repetition_penalty=1.3)[0]) <= 3


def test_a_direction_is_learned_where_images_are_shown(seeing):
    """CAA's vector: the difference of what a plain hook sees at the answer's last token in the whole model."""
    items = [
        item(f"{n}", f"{IMAGE}who is the doctor?", picture, options=("he", "she", "nobody"))
        for n, picture in enumerate((WIDE, TALL))
    ]
    contrast = contrasts.from_items(items, against="anti")
    assert [e.images for e in contrast.positive] == [(WIDE,), (TALL,)]
    site = sites.find(seeing.hf, "layers.*.out")[-1]
    found = CAA(sites=site.name).fit(seeing, contrast, seed=0)
    last: dict[str, list[torch.Tensor]] = {"she": [], "he": []}
    for one in items:
        for answer, kept in last.items():
            inputs, more = oracle_inputs(seeing, one, answer)
            out: list[torch.Tensor] = []
            handle = site.module.register_forward_hook(
                lambda m, a, o, out=out: out.append(o[0] if isinstance(o, tuple) else o)
            )
            try:
                with torch.no_grad():
                    seeing.hf(**inputs, use_cache=False)
            finally:
                handle.remove()
            kept.append(out[-1][0, len(inputs["input_ids"][0]) - 1 - more])
    expected = torch.stack(last["she"]).mean(0) - torch.stack(last["he"]).mean(0)
    (learned,) = found.interventions[site.name]
    torch.testing.assert_close(learned.c, expected, **CLOSE)


def test_two_pictures_make_two_sides():
    """What a contrast is identified by includes what it shows; a text without pictures has the digest it always had."""
    words = Contrast("c", (Example("who?", "she"),), (Example("who?", "he"),))
    shown = [Contrast("c", (Example("who?", "she", (p,)),), (Example("who?", "he", (p,)),)) for p in (WIDE, TALL)]
    assert len({c.digest() for c in (words, *shown)}) == 3
    plain = [[["who?", "she"]], [["who?", "he"]]]
    assert words.digest() == hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()
