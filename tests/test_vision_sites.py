"""Steering inside the vision part: named sites, and features that are never taken from the store while it acts."""

from __future__ import annotations

import pytest
import torch

from test_vision import item, oracle_logp
from trimtab import sites
from trimtab.errors import SiteError, StrengthError, UsageError
from trimtab.interventions import Diagonal
from trimtab.steering import Steering
from trimtab.testing import TINY_VISION_FAMILIES, hook_counts, noise, random_steering, tiny_vision
from trimtab.types import IMAGE

WIDE, TALL = noise(20, 12, 1), noise(9, 30, 2)
ITEMS = [item("wide", f"{IMAGE}who?", WIDE), item("tall", f"{IMAGE}who?", TALL), item("words", "who is it?")]


@pytest.fixture(scope="module", params=TINY_VISION_FAMILIES)
def seeing(request):
    return tiny_vision(request.param, seed=8)


PATTERNS = ("vision.layers.0.out", "vision.layers.0.norm.*", "vision.layers.1.attn.proj_in", "projector.out")


def test_patterns_of_words_never_name_the_vision_part(seeing):
    for pattern in ("*", "*norm*", sites.NORMS, "layers.*", "*.out"):
        assert not any(sites.in_vision(s.name) for s in sites.find(seeing.hf, pattern))
    inside = {id(m) for m in seeing.body.modules()}
    assert all(id(s.module) in inside for s in sites.find(seeing.hf, "*"))


def test_the_vision_part_is_named(seeing):
    names = [s.name for s in sites.find(seeing.hf, "vision.*,projector.out")]
    for name in ("norm.attn_in", "attn.proj_in", "norm.mlp_in", "out"):
        assert f"vision.layers.0.{name}" in names
    assert "projector.out" in names
    inside = {id(m) for m in seeing.body.modules()}
    assert not any(id(s.module) in inside for s in sites.find(seeing.hf, "vision.*,projector.out"))


def test_a_model_of_words_alone_has_none(llama):
    with pytest.raises(SiteError, match=r"'vision\.layers\.0\.out' is of a vision part"):
        sites.find(llama.hf, "vision.layers.0.out")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_features_are_computed_under_the_steering(seeing, pattern):
    """At several strengths, mixed in one batch as well: what the whole model makes of the pixels under it."""
    steering = random_steering(seeing, pattern, "shift", scale=0.5, seed=1)
    shown = ITEMS[:2]
    base = seeing.score(ITEMS)
    changed = False
    for strength in (1.0, 0.4):
        with seeing.steer(steering, strength):
            found = seeing.score(ITEMS)
            for one, outcome in zip(ITEMS, found, strict=True):
                expected = [
                    oracle_logp(seeing, one, o.text, n) for o, n in zip(one.options, outcome.tokens, strict=True)
                ]
                assert outcome.logp == pytest.approx(expected, abs=1e-4), (one.id, strength)
        changed |= any(abs(a - b) > 1e-3 for a, b in zip(found[0].logp, base[0].logp, strict=True))
        assert found[2].logp == pytest.approx(base[2].logp, abs=1e-5), "no image, no change"
    assert changed
    with seeing.steer(steering, [1.0, 0.4]):
        mixed = seeing.score(shown)
    for one, strength, outcome in zip(shown, (1.0, 0.4), mixed, strict=True):
        with seeing.steer(steering, strength):
            assert seeing.score([one])[0].logp == pytest.approx(outcome.logp, abs=1e-4)


def test_the_store_is_neither_read_nor_written_while_it_acts(seeing):
    steering = random_steering(seeing, "vision.layers.0.out", "shift", scale=0.5, seed=2)
    before = [o.logp for o in seeing.score(ITEMS)]
    ready = seeing.prepared(ITEMS)
    counts, encoded = hook_counts(seeing.hf), seeing.eyes.encoded
    with seeing.steer(steering, 1.0):
        steered = [o.logp for o in seeing.score(ITEMS, prepared=ready)]
        assert seeing.eyes.encoded > encoded
        fresh = noise(14, 14, 50)
        seeing.score([item("fresh", f"{IMAGE}who?", fresh)])
    assert [o.logp for o in seeing.score(ITEMS, prepared=ready)] == [pytest.approx(b, abs=1e-5) for b in before]
    assert any(abs(a - b) > 1e-3 for a, b in zip(steered[0], before[0], strict=True))
    assert hook_counts(seeing.hf) == counts
    # An image first seen under a steering is kept as the base sees it.
    again = tiny_vision(seeing.hf.config.model_type, seed=8)
    asked = item("fresh", f"{IMAGE}who?", fresh)
    assert seeing.score([asked])[0].logp == pytest.approx(again.score([asked])[0].logp, abs=1e-4)


def test_strength_zero_reads_the_store(seeing):
    steering = random_steering(seeing, "vision.layers.0.out", "shift", scale=0.5, seed=2)
    ready = seeing.prepared(ITEMS)
    encoded = seeing.eyes.encoded
    with pytest.raises(Exception, match="did nothing"), seeing.steer(steering, 0.0):
        seeing.score(ITEMS, prepared=ready)
    assert seeing.eyes.encoded == encoded


def test_a_tensor_that_changes_in_place_takes_effect(seeing):
    """As while it is learned; and gradients reach it through the tower."""
    (site,) = sites.find(seeing.hf, "vision.layers.0.out")
    c = torch.zeros(site.width or 0, requires_grad=True)
    steering = Steering({site.name: (Diagonal(None, c),)})
    ids = torch.tensor([seeing.encode(ITEMS[:1])[0].prompt])
    with seeing.steer(steering, 1.0):
        one = seeing.body(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        (gradient,) = torch.autograd.grad(one.square().sum(), [c])
        with torch.no_grad():
            c += torch.linspace(-1, 1, len(c))
            two = seeing.body(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    assert float(gradient.abs().max()) > 0
    assert (one - two).abs().max() > 1e-3


def test_what_cannot_be_said_of_images_is_refused(seeing):
    steering = random_steering(seeing, "vision.layers.0.out", "shift", seed=2)
    with pytest.raises(UsageError, match=r"'vision\.layers\.0\.out' is in the vision part"):
        seeing.require(steering.at("text"), 1.0)
    ids = torch.tensor([seeing.encode(ITEMS[:1])[0].prompt])
    with pytest.raises(StrengthError, match="one strength a token"), seeing.steer(steering, torch.ones(ids.shape)):
        seeing.body(input_ids=ids, use_cache=False)
