"""What stands before the first steered token is run once, and nothing about any number changes for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from test_vision import ITEMS, TALL, WIDE, family_of, item
from test_vision_positions import seen_items
from trimtab import packing, pictures, scoring, stems
from trimtab.errors import BadItem, TaskError
from trimtab.learners import fairness
from trimtab.learners.dso import DSO
from trimtab.learners.dso.run import Run
from trimtab.learners.fairness import Aims, Fairness
from trimtab.model import SteerableModel, first_behind
from trimtab.steering import Steering, attach
from trimtab.testing import TINY_VISION_FAMILIES, random_steering, tiny_vision
from trimtab.types import IMAGE, POSITIONS
from trimtab.vision import FIRST, SIGHTS

WITH = [name for name in TINY_VISION_FAMILIES if SIGHTS[name].stems]


def model_of(family: str) -> SteerableModel:
    return tiny_vision(family, seed=7)


def behind(model: SteerableModel, seed: int = 1) -> Steering:
    return random_steering(model, "*norm*", scale=0.2, seed=seed).at("behind")


def plain(model: SteerableModel, rows, wanted) -> torch.Tensor:
    """Every row whole."""
    return packing.hidden_at(
        rows, wanted, lambda layout, some: layout.run(model.body), pack=False, device=model.device, tokens_at_once=4096
    )


def test_the_families_without_stems_are_those_whose_images_see_what_follows_or_are_no_tokens():
    assert set(TINY_VISION_FAMILIES) - set(WITH) == {"paligemma", "mllama"}


@pytest.mark.parametrize("family", WITH)
@pytest.mark.parametrize("at_once", [4096, 24])
def test_hidden_states_and_gradients_are_those_of_whole_rows(family, at_once):
    """Rows that share an image, images of several sizes, words alone, and a token of a stem that is asked for."""
    model = model_of(family)
    flat = scoring.flatten(model.encode(list(ITEMS)))
    assert any(0 < first_behind(r) < len(r) for r in flat.rows)
    wanted = [*flat.wanted, (0, 1)]  # within the image, so that this row is run whole
    steering = behind(model)
    for group in steering.interventions.values():
        for intervention in group:
            for tensor in intervention.tensors().values():
                tensor.requires_grad_(True)
    learned = [t for g in steering.interventions.values() for i in g for t in i.tensors().values()]
    weight = torch.randn(len(wanted), model.body.config.hidden_size, generator=torch.Generator().manual_seed(3))
    found = []
    for way in ("stems", "plain"):
        with attach(model.hf, steering, 0.8):
            if way == "stems":
                hidden = model.last_hidden(flat.rows, wanted, tokens_at_once=at_once)
            else:
                hidden = plain(model, flat.rows, wanted)
            grads = torch.autograd.grad((hidden * weight).sum(), learned)
        found.append((hidden.detach(), grads))
    assert model.stems.computed > 0
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=2e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", TINY_VISION_FAMILIES)
def test_a_stem_is_run_once_for_all_strengths_and_steerings(family):
    model, items = model_of(family), list(ITEMS)
    first = model.score(items)
    assert model.stems.computed == 0, "no steering, and whole rows"
    with model.steer(behind(model), 0.0):
        zero = model.score(items)
        assert [o.logp for o in zero] == [o.logp for o in first] and model.stems.computed == 0
    for seed in (1, 2):
        for strength in (0.5, 1.0):
            with model.steer(behind(model, seed), strength):
                again = model.score(items)
    prompts = [e.prompt for e in model.encode(items)]
    distinct = {p[: first_behind(p)] for p in prompts if first_behind(p)}
    assert model.stems.computed == (len(distinct) if family in WITH else 0)
    assert any(a.logp != pytest.approx(b.logp, abs=1e-3) for a, b in zip(first, again, strict=True))


def test_other_steerings_beside_it_and_rows_of_several_strengths_do_without():
    model, items = model_of("llava"), list(ITEMS)
    for positions in ("all", "text", "image"):
        with model.steer(behind(model), 1.0), model.steer(random_steering(model, seed=5).at(positions), 0.5):
            model.score(items)
    with model.steer(behind(model), [0.5] * len(items)):
        rows = model.score(items)
    assert model.stems.computed == 0
    with model.steer(behind(model), 0.5):
        one = model.score(items)
    assert model.stems.computed > 0
    for a, b in zip(rows, one, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_a_dial_that_is_off_does_not_count():
    """Beside one that acts at all positions but is at 0, as learners leave the user's own."""
    model, items = model_of("llava"), list(ITEMS)
    with model.steer(random_steering(model, seed=5), 0.0), model.steer(behind(model), 1.0):
        model.score(items)
    assert model.stems.computed > 0


def changed_weights(model):
    with torch.no_grad():
        next(model.body.layers[0].parameters()).mul_(1.5)


def another_hook(model):
    model.body.layers[0].register_forward_hook(lambda module, args, out: out * 1.5)


def another_forward(model):
    block = model.body.layers[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.5


def a_scaled_adapter(model):
    """As PEFT has it: a number on a layer, that no parameter tells of."""
    layer = model.body.layers[0].mlp.down_proj
    before = getattr(layer, "scaling", {"default": 1.0})
    if not hasattr(layer, "scaling"):
        layer.register_forward_hook(lambda module, args, out: out * module.scaling["default"])
    layer.scaling = {"default": before["default"] * 1.5}


@pytest.mark.parametrize("change", [changed_weights, another_hook, another_forward, a_scaled_adapter])
def test_what_changes_the_model_makes_stems_anew(change):
    """Numbers of a model that is no more would be silently wrong."""
    model, items = model_of("llava"), list(ITEMS)
    with model.steer(behind(model), 1.0, other_weights=True):
        before = model.score(items)
        for _ in range(2):
            change(model)
            after = model.score(items)
            model.stems.forget()
            fresh = model.score(items)
            assert [o.logp for o in after] == [o.logp for o in fresh] != [o.logp for o in before]
            before = after


def test_little_room_for_stems_changes_no_number(monkeypatch):
    model, items = model_of("llava"), list(ITEMS)
    with model.steer(behind(model), 1.0):
        whole = model.score(items)
        ran = model.stems.computed
        model.stems.forget()
        monkeypatch.setattr(stems, "KEPT", 1)
        narrow = model.score(items)
        assert [o.logp for o in narrow] == [o.logp for o in whole]
        model.score(items)
        assert model.stems.computed == 3 * ran, "nothing was kept"
        assert model.stems._bytes == 0 and not model.stems._held


def test_stems_of_inference_mode_serve_learning():
    model, items = model_of("llava"), list(ITEMS[:2])
    with torch.inference_mode(), model.steer(behind(model), 1.0):
        model.score(items)
    flat = scoring.flatten(model.encode(items))
    steering = behind(model)
    c = next(iter(steering.interventions.values()))[0].c.requires_grad_(True)
    with attach(model.hf, steering, 1.0):
        model.last_hidden(flat.rows, flat.wanted, tokens_at_once=4096).sum().backward()
    assert float(c.grad.abs().sum()) > 0


def test_a_prompt_that_ends_at_its_image_is_run_whole():
    model = model_of("llava")
    items = [item("ends", f"who is it? {IMAGE}", WIDE), item("begins", f"{IMAGE} who?", TALL)]
    with model.steer(behind(model), 1.0):
        found = model.score(items)
    assert model.stems.computed == 1
    with model.steer(behind(model), [1.0, 1.0]):
        for a, b in zip(found, model.score(items), strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_out_of_memory_halves_the_rows_of_a_pass():
    """As elsewhere: what was too much at once is run in parts, stems as well."""
    model, items = model_of("llava"), list(ITEMS)
    with model.steer(behind(model), 1.0):
        whole = model.score(items)
        model.stems.forget()

        def short(module, args, kwargs):
            if len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]) > 1:
                raise torch.OutOfMemoryError("out of memory")

        handle = model.body.register_forward_pre_hook(short, with_kwargs=True, prepend=True)
        narrow = model.score([i for i in items if i.images])
        handle.remove()
    shown = [o for i, o in zip(items, whole, strict=True) if i.images]
    for a, b in zip(narrow, shown, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("family", "accumulate"), [("llava", 1), ("llava", 3), ("gemma3", 1), ("mllama", 1)])
def test_a_step_of_dso_has_the_gradient_of_whole_rows_kept_in_memory(family, positions, accumulate, monkeypatch):
    """From stems; in parts; in several passes; and where blocks are run twice, when other passes have come between."""
    monkeypatch.setattr(fairness, "STEP_AT_ONCE", 64)
    found = {}
    for way in ("whole", "stems", "checkpointing"):
        model = model_of(family)
        model._recomputes = way == "whole"
        settings = DSO(positions=positions, kl_windows=2, kl_tokens=6, checkpointing=way == "checkpointing",
                       accumulate=accumulate)  # fmt: skip
        items = [*seen_items(), *(replace(i, id=f"{i.id}w", images=(), prompt=i.prompt[7:]) for i in seen_items())]
        texts = ["he said that she is here", "the man said so"]
        run = Run(settings, model, items, [], texts, 0, None)
        with torch.no_grad():
            run.theta.add_(0.1 * torch.randn(run.theta.shape, generator=torch.Generator().manual_seed(2)))
        with run.prepared():
            run.step(0)
        stemmed = way == "stems" and positions == "behind" and family in WITH
        assert bool(model.stems.computed) == stemmed or way == "checkpointing"
        found[way] = run.theta.grad
    assert float(found["whole"].abs().max()) > 1e-3
    for way in ("stems", "checkpointing"):
        torch.testing.assert_close(found[way], found["whole"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["image", "behind"])
def test_neutral_text_is_read_behind_an_image_where_the_steering_acts_there_alone(positions):
    """On words alone its KL would be 0 whatever it did; what counts is the text, not the image before it."""
    model, items = model_of("llava"), seen_items()
    aim = Fairness(Aims(positions=positions, kl_tokens=6), model, items, [], ["he said that she is here"], 0)
    with aim.prepared():
        (prompts,) = {tuple(p.prompt[:1]) for p in model.encode(items)}
        for ids, hidden in aim.windows:
            shown = [n for n, i in enumerate(ids) if i >= FIRST]
            assert ids[:1] == prompts and shown[-1] == len(ids) - len(hidden) - 1
            assert len(hidden) <= 6
        with attach(model.hf, random_steering(model, "*norm*", scale=0.5, seed=1).at(positions), 1.0):
            assert aim.window_kl() > 1e-3
        assert aim.window_kl() == pytest.approx(0.0, abs=1e-6)


def test_learning_behind_images_that_no_item_shows_is_refused():
    model = model_of("llava")
    words = [item(one.id, str(one.prompt).replace(IMAGE, "")) for one in seen_items()]
    with pytest.raises(TaskError, match="acts where an image is seen, and no training item shows one"):
        Fairness(Aims(positions="behind"), model, words, [], ["he said that she is here"], 0)._cut_windows()


def test_the_tower_takes_several_images_at_once_and_a_text_is_laid_out_once(monkeypatch):
    """The same features as one by one, and the processor is asked once for a text with images of one size."""
    items = [item(str(n), f"{IMAGE}who is it?", p) for n, p in enumerate((WIDE, TALL, WIDE))]
    alone, together = model_of("llava"), model_of("llava")
    for one in items:
        alone.encode([one])
    asked = []
    processed = together.eyes._processed
    monkeypatch.setattr(together.eyes, "_processed", lambda text, images: asked.append(text) or processed(text, images))
    encoded = together.encode(items)
    assert together.eyes.encoded == alone.eyes.encoded == 2
    for a, b in zip(alone.eyes._store.values(), together.eyes._store.values(), strict=True):
        torch.testing.assert_close(a.embeds, b.embeds, atol=1e-5, rtol=1e-5)
    before = len(asked)
    together._encoded.clear()
    assert together.encode(items) == encoded
    assert len(asked) == before and family_of(together) == "llava"


def test_an_image_that_cannot_be_opened_is_named_among_others(tmp_path):
    """Encoding several at once leaves it out; the item that shows it is refused as ever, and the others are there."""
    model, bad = model_of("llava"), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    items = [item("good", f"{IMAGE}who?", WIDE), item("bad", f"{IMAGE}who?", pictures.of_file(bad))]
    with pytest.raises(BadItem, match=r"item 'bad'.*bad\.png"):
        model.encode([*items, item("other", f"{IMAGE}who?", TALL)])
    assert model.eyes.encoded == 2
    assert len(model.encode(items[:1])) == 1 and model.eyes.encoded == 2
