"""Steering limited to the tokens of words, or to those at which an image is."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch

from test_vision import ITEMS, family_of, item, oracle_inputs
from trimtab import artifact, ensemble
from trimtab.errors import ArtifactError, UsageError
from trimtab.learners.dso import DSO
from trimtab.steering import Steering, attach
from trimtab.testing import (
    TINY_VISION_FAMILIES,
    _in_pieces,
    logits,
    noise,
    random_ids,
    random_steering,
    tiny_vision,
    write_tiny_vision_folder,
)
from trimtab.types import IMAGE, POSITIONS, Item, Option
from trimtab.vision import FIRST

KINDS = {"diagonal": "*norm*", "shift": "layers.*.out", "lowrank": "layers.*.out",
         "adapter": "module:model.*layers.*.mlp.down_proj"}  # fmt: skip


@pytest.fixture(scope="module", params=TINY_VISION_FAMILIES)
def seeing(request):
    return tiny_vision(request.param, seed=6)


def at(seeing, ids: torch.Tensor, positions: str) -> torch.Tensor:
    images = ids >= FIRST
    behind = (images.cumsum(1) > 0) & ~images
    return {"all": torch.ones_like(images), "image": images, "text": ~images, "behind": behind}[positions].float()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_strength_of_zero_elsewhere(seeing, positions, kind):
    """One number at some positions is one strength a token, 0 at all others; rows of several strengths as well."""
    if kind == "adapter" and family_of(seeing) in ("smolvlm", "idefics3"):
        pattern = "module:model.text_model.layers.*.mlp.down_proj"
    elif kind == "adapter":
        pattern = "module:model.language_model.layers.*.mlp.down_proj"
    else:
        pattern = KINDS[kind]
    steering, ids = random_steering(seeing, pattern, kind, scale=0.2, seed=1), random_ids(seeing, 3, 9)
    where = at(seeing, ids, positions)
    for strength in (0.7, torch.tensor([1.0, 0.5, 0.0])):
        by_row = torch.as_tensor(strength).expand(3)[:, None]
        with attach(seeing.hf, steering, where * by_row):
            expected = logits(seeing, ids)
        with attach(seeing.hf, steering.at(positions), strength):
            found = logits(seeing, ids)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    base = logits(seeing, ids)
    for of_images in ("image", "behind"):
        with attach(seeing.hf, steering.at(of_images), 1.0):
            assert torch.equal(logits(seeing, ids)[1], base[1]), "in a row of words alone there is no image"


@pytest.mark.parametrize("positions", POSITIONS)
def test_passes_of_words_and_of_images_take_turns_under_one_dial(seeing, positions):
    """What a dial keeps from one pass is of no consequence to the next, whatever either is given."""
    steering, ids = random_steering(seeing, "*norm*", scale=0.2, seed=4).at(positions), random_ids(seeing, 3, 9)
    words = ids[1:2]
    assert not bool((words >= FIRST).any()) and bool((ids >= FIRST).any())
    with attach(seeing.hf, steering, 0.7):
        apart = [logits(seeing, ids)]
    with attach(seeing.hf, steering, 0.7):
        logits(seeing, words)
        apart.append(logits(seeing, ids))
        between = logits(seeing, words)
    assert torch.equal(*apart)
    steered = steering.at("text") if positions in ("all", "text") else None
    with nullcontext() if steered is None else attach(seeing.hf, steered, 0.7):
        assert torch.equal(between, logits(seeing, words))


@pytest.mark.parametrize("positions", POSITIONS[1:])
def test_cached_decoding_keeps_to_its_positions(seeing, positions):
    steering, ids = random_steering(seeing, "*norm*", scale=0.2, seed=2).at(positions), random_ids(seeing, 3, 12)
    with attach(seeing.hf, steering, [1.0, 0.5, 0.8]):
        torch.testing.assert_close(_in_pieces(seeing, ids, (7, 1, 1, 1, 2)), logits(seeing, ids), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("positions", POSITIONS[1:])
def test_scores_are_those_of_the_whole_model(seeing, positions):
    """Packed and in rows, against the whole model with pixels under the same steering, item by item."""
    steering = random_steering(seeing, "*norm*", scale=0.2, seed=3).at(positions)
    items = list(ITEMS)
    with seeing.steer(steering, 0.8):
        packed = seeing.score(items)
    with seeing.steer(steering, [0.8] * len(items)):
        rows = seeing.score(items)
    for one, a, b in zip(items, packed, rows, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-4)
        with seeing.steer(steering, 0.8), torch.no_grad():
            for n, option in enumerate(one.options):
                inputs, more = oracle_inputs(seeing, one, option.text)
                ids = inputs["input_ids"][0]
                end, length = len(ids) - more, a.tokens[n]
                logp = seeing.hf(**inputs, use_cache=False).logits[0].log_softmax(-1)
                expected = sum(float(logp[t - 1, ids[t]]) for t in range(end - length, end))
                assert a.logp[n] == pytest.approx(expected, abs=1e-4), one.id


def test_words_and_images_make_the_whole_at_one_site_before_attention(seeing):
    """Each does something, and not the same."""
    steering, both = random_steering(seeing, "layers.0.norm.attn_in", scale=0.5, seed=4), random_ids(seeing, 2, 32)
    ids = torch.cat([both[1:, :3], both[:1]], 1)  # words before the image
    found = {}
    for positions in POSITIONS:
        with attach(seeing.hf, steering.at(positions), 1.0):
            found[positions] = logits(seeing, ids)
    base = logits(seeing, ids)
    assert all((f - base).abs().max() > 1e-3 for f in found.values())
    apart = itertools.combinations([found[p] for p in ("text", "image", "behind")], 2)
    assert all((a - b).abs().max() > 1e-3 for a, b in apart)


def test_a_model_of_words_alone_is_steered_at_all_of_them(llama):
    steering, ids = random_steering(llama, seed=5), random_ids(llama, 2, 7)
    with attach(llama.hf, steering, 1.0):
        expected = logits(llama, ids)
    with attach(llama.hf, steering.at("text"), 1.0):
        assert torch.equal(logits(llama, ids), expected)
    for positions in ("image", "behind"):
        with pytest.raises(UsageError, match=f"shown no images, so there are no {positions} positions"):
            attach(llama.hf, steering.at(positions), 1.0)


def test_the_card_says_where_and_is_checked(llama, tmp_path):
    steering = random_steering(llama, seed=5).at("text")
    read = artifact.read(artifact.save(steering, tmp_path / "s"))
    assert read.positions == "text"
    assert steering.random(1).positions == "text"
    with pytest.raises(UsageError, match="'everywhere' is not one of all, text, image, behind"):
        steering.at("everywhere")  # type: ignore[arg-type]
    odd = Steering(steering.interventions, {**steering.card, "positions": "odd"})
    with pytest.raises(ArtifactError, match="positions 'odd'"):
        artifact.read(artifact.save(odd, tmp_path / "odd"))


def test_steerings_of_several_positions_are_not_put_together(llama):
    one, other = random_steering(llama, seed=1), random_steering(llama, seed=2)
    same = [ensemble.Member(n, s.at("text")) for n, s in (("a", one), ("b", other))]
    assert ensemble.together(same).positions == "text"
    mixed = [ensemble.Member("a", one.at("text")), ensemble.Member("b", other)]
    with pytest.raises(UsageError, match="'a' steers text positions, 'b' all"):
        ensemble.together(mixed)


ROLES = (Option("he", "pro", "men"), Option("she", "anti", "women"))


def seen_items() -> list[Item]:
    """Two concepts in four wordings, each about its own image, ambiguous and clear."""
    found = []
    for c, concept in enumerate(("doctor", "nurse")):
        for t in range(4):
            split = "validation" if t == 3 else "train"
            prompt, images = f"{IMAGE}in room {t} the {concept} said that", (noise(10 + c, 12, 10 * c + t),)
            found.append(Item(f"{c}{t}", ROLES, concept, f"t{t}", True, prompt=prompt, images=images, split=split))
            clear = (Option("he", "correct"), Option("she", "wrong"))
            prompt = f"{IMAGE}the {concept}, he says, so"
            found.append(Item(f"{c}{t}c", clear, concept, f"t{t}", False, prompt=prompt, images=images, split=split))
    return found


@pytest.mark.parametrize("positions", POSITIONS)
def test_dso_learns_at_its_positions(positions):
    """The whole learner on items with images: each is encoded once, and the card says where it acts."""
    model, items = tiny_vision("llava", seed=1), seen_items()
    learner = DSO(steps=6, learning_rate=0.01, validate_every=3, positions=positions, kl_budget=float("inf"))
    steering = learner.fit(model, items, seed=0)
    assert steering.positions == positions
    assert model.eyes.encoded == len({i.images[0].digest for i in items})
    assert any(float(i.c.abs().sum()) > 0 for group in steering.interventions.values() for i in group)


def test_the_command_line_learns_and_applies_at_positions(trimtab_cli, base_folder, task_file, neutral_file, tmp_path):
    out = tmp_path / "learned"
    args = ("learn", "dso", "--model", base_folder, "--task", f"jsonl:{task_file}", "--seed", 0, "--out", out,
            "--neutral", neutral_file, "--steps", 2)  # fmt: skip
    assert "shown no images" in trimtab_cli(*args, "--positions", "image").error
    assert trimtab_cli(*args, "--positions", "text").code == 0
    assert artifact.read(out).positions == "text"
    applied = ("generate", "--model", base_folder, "--steering", out, "--max-new-tokens", 2, "the")
    assert trimtab_cli(*applied).code == 0
    assert trimtab_cli(*applied, "--positions", "all").code == 0
    assert "shown no images" in trimtab_cli(*applied, "--positions", "image").error


def test_a_vision_folder_is_learned_on_from_the_command_line(tmp_path):
    folder = write_tiny_vision_folder(tmp_path / "m", seed=1)
    from trimtab.model import load

    model = load(str(folder), dtype="float32", device="cpu")
    assert model.sees
    assert item("a", "b").images == ()


@pytest.mark.parametrize("targets", ["attention", "all-linear", "q_proj, down_proj"])
def test_lora_adapts_the_language_part_alone(targets):
    """A tower has modules of the same names, whose features are stored and would not follow."""
    pytest.importorskip("peft")
    from trimtab.learners.lora import LoRA

    model = tiny_vision("llava", seed=1)
    settings = LoRA(steps=4, targets=targets, kl_budget=float("inf"))
    steering = settings.fit(model, seen_items(), seed=0)
    assert steering.interventions
    assert all(name.startswith("module:model.language_model.") for name in steering.interventions)
    assert model.eyes.encoded == len({i.images[0].digest for i in seen_items()})
