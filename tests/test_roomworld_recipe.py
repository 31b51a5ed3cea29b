"""The recipe of demo:roomworld: training is what inference is, a cut run goes on, and a short one learns."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import script
from trimtab.roomworld import any_scene, draw, language
from trimtab.roomworld.language import caption, exchanges, passages, prompt
from trimtab.tasks import load_task
from trimtab.types import IMAGE

recipe = script("recipes/roomworld.py")
SMALL = recipe.Plan(seed=0, steps=6, rows=3, hidden=32, vision_layers=1, text_layers=2, heads=2, warm_up=2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return recipe.make_tokenizer()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model after one step, as the package would carry it."""
    run = recipe.Run.new(SMALL)
    run.advance(narrow=False, rate=1e-3)
    folder = tmp_path_factory.mktemp("roomworld") / "model"
    recipe.export(run, folder)
    return folder


def test_words_are_encoded_as_the_tokenizer_does(tokenizer: Any) -> None:
    rng = random.Random(0)
    for n in range(200):
        scene = any_scene(n)
        texts = [caption(scene), *passages(1, n), *(f"{e.question} {e.answer}" for e in exchanges(scene, rng, 6))]
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tuple(ids) == recipe.encode(text)
            assert recipe.UNK not in ids
    assert tokenizer("").input_ids == [recipe.BOS]
    assert recipe.encode("zyzzyva") == (recipe.UNK,)
    assert tokenizer.decode(recipe.encode("Is this person the doctor, or not?")) == "is this person the doctor, or not?"


def test_the_processor_makes_what_training_showed(tokenizer: Any) -> None:
    """Pixels, and ids of a prompt; and a chat is the same ids as the prompt, wherever its picture stands."""
    processor = recipe.make_processor(tokenizer)
    scenes = [any_scene(n) for n in range(3)]
    text = prompt("Who is the doctor?")
    made = processor(images=[draw(s) for s in scenes], text=[text] * 3, return_tensors="pt")
    assert torch.allclose(made["pixel_values"], recipe.pixels_of(scenes), atol=1e-6)
    ids = (recipe.BOS, *[recipe.PICTURE] * 64, *recipe.encode(text.removeprefix(IMAGE)))
    assert tuple(made["input_ids"][0].tolist()) == ids
    for content in (
        f"{IMAGE}Who is the doctor?",
        f"Who is the doctor? {IMAGE}",
        [{"type": "text", "text": "Who is the doctor?"}, {"type": "image"}],
    ):
        turns = [{"role": "user", "content": content}]
        chat = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert (
            tokenizer(chat, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
        )


def test_questions_of_a_row_do_not_see_each_other() -> None:
    """Each target's log-probability in its row is what the model itself gives the question alone behind the picture."""
    model = recipe.make_model(SMALL).eval()
    plan = replace(SMALL, captions=1.0, texts=1.0, courtesies=0.5)
    batch = recipe.batch_of(plan, 0)
    with torch.no_grad():
        found = torch.full(batch.ids.shape, float("nan"))
        found[batch.target != -100] = recipe.losses(model, batch)[0]
        assert (batch.prefix == recipe.PAD).any(), "no courtesy in one row and not in another"
        for row in range(plan.rows * plan.lanes):
            picture = row // plan.lanes
            for k in range(int(batch.segment[row].max()) + 1):
                own = batch.segment[row] == k
                sees = bool(batch.sees_picture[row][own][0])
                before = batch.prefix[picture]
                prefix = before[before != recipe.PAD] if sees else before[:0]
                ids = torch.cat([prefix, batch.ids[row][own]])[None]
                pixels = batch.pixels[picture : picture + 1] if sees else None
                logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0, len(prefix) :]
                for at, target in enumerate(batch.target[row][own].tolist()):
                    if target == -100:
                        continue
                    log_p = logits[at].log_softmax(-1)
                    words, chances = (x[row][own][at].tolist() for x in (batch.others, batch.chances))
                    expected = -sum(p * log_p[w].item() for w, p in zip(words, chances, strict=True))
                    assert not sum(chances) or (target in words and abs(sum(chances) - 1) < 1e-5)
                    assert found[row][own][at].item() == pytest.approx(
                        expected if sum(chances) else -log_p[target].item(), abs=1e-4
                    )


def test_what_nobody_wants_of_a_block_is_not_computed() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    x, wanted = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.4
    sizes: list[int] = []
    watching = module[1].register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    whole = module(x)[wanted]
    of_all = torch.autograd.grad(whole.square().sum(), list(module.parameters()))
    with recipe.only(module, wanted):
        found = module(x)
    watching.remove()
    assert sizes == [3, int(wanted.sum())]
    assert torch.allclose(found[wanted], whole) and not found[~wanted].any()
    of_some = torch.autograd.grad(found.square().sum(), list(module.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(of_some, of_all, strict=True))
    assert module(x).shape == x.shape, "a hook was left"


def test_rows_are_full_and_of_scenes_that_are_not_held_out() -> None:
    batch = recipe.batch_of(recipe.Plan(seed=1, rows=24), 3)
    assert (batch.segment < 0).float().mean() < 0.1
    assert (batch.segment.max(1).values >= 0).all(), "a lane without anything"
    said = (batch.segment.reshape(24, -1, batch.segment.shape[1]).amax(-1) + 1).sum(-1)
    assert said.min() >= 4, "a picture of which little more is said than its caption"
    again = recipe.batch_of(recipe.Plan(seed=1, rows=24), 3)
    assert torch.equal(batch.ids, again.ids) and torch.equal(batch.pixels, again.pixels)
    rng = random.Random(0)
    assert not any(recipe.training_scene(rng).held_out for _ in range(300))
    kinds = {recipe.KINDS[k] for k in batch.kind[batch.target != -100].tolist()}
    assert {"caption", "text", "who", "which", "colour"} <= kinds
    late = recipe.batch_of(recipe.Plan(seed=1, rows=24), 5000)
    decided = [
        sum(recipe.KINDS[k] in recipe.language.DECISIONS for k in b.kind[b.chances.sum(-1) > 0].tolist())
        for b in (batch, late)
    ]
    assert decided[1] > 1.5 * decided[0], "to decide comes after to see"
    last = recipe.batch_of(recipe.Plan(seed=1, rows=24), 7000)
    hair = [int((b.kind == recipe.KINDS.index("hair")).sum()) for b in (late, last)]
    assert hair[1] > 10 * hair[0] > 0, "details come last"


def test_a_stages_scenes_are_what_it_is_for() -> None:
    """A second person with a cue leaves the first one certain; of a duo either may be meant, and never the third."""
    rng = random.Random(3)
    for _ in range(60):
        settled, _ = recipe.language._asked_about(recipe.training_scene(rng, near=1.0))
        assert settled
        duo = recipe.training_scene(rng, duos=1.0)
        _, open_ = recipe.language._asked_about(duo)
        meant = [sum(p > 0 for p in chances) for _, chances in open_]
        assert len(duo.people) == 3 and 2 in meant
        hatted = recipe.training_scene(rng, hats=1.0)
        assert not hatted.held_out and {p.worn for p in hatted.people} <= set(recipe.HATS)


def test_a_run_that_goes_on_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    def weights(run: Any) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    quiet = {"narrow": False, "say": lambda text: None}
    whole = recipe.train(SMALL, tmp_path / "whole", minutes=1e6, **quiet)

    class Cut(Exception):
        pass

    advance, done = recipe.Run.advance, 0

    def until_cut(self: Any, **how: Any) -> Any:
        nonlocal done
        if done == 4:
            raise Cut
        done += 1
        return advance(self, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.Run, "advance", until_cut)
        with pytest.raises(Cut):
            recipe.train(SMALL, tmp_path / "cut", minutes=1e6, every=0.0, **quiet)
    assert json.loads((tmp_path / "cut" / "state.json").read_text())["step"] == 4
    assert len(list((tmp_path / "cut").glob("checkpoint-*"))) == 1
    resumed = recipe.train(SMALL, tmp_path / "cut", minutes=1e6, **quiet)
    assert torch.equal(weights(whole), weights(resumed))
    with pytest.raises(SystemExit, match="another plan"):
        recipe.Run.resumed(replace(SMALL, seed=1), tmp_path / "cut")


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_muons_steps_are_near_orthogonal_and_of_a_known_size(shape: tuple[int, ...]) -> None:
    """All singular values come near 1, directions stay, and a step's root mean square is a fifth of the rate."""
    torch.manual_seed(0)
    given = torch.randn(shape)
    found = recipe.orthogonal(given)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    assert (u.mT @ found @ v.mT).diagonal(dim1=-2, dim2=-1).min() > 0.6
    weights = torch.nn.Parameter(torch.zeros(shape[1:]))
    weights.grad = given[0]
    recipe.Muon([weights], lr=0.1, weight_decay=0.0).step()
    assert weights.detach().square().mean().sqrt().item() == pytest.approx(0.02, rel=0.25)
    assert (weights.detach() * given[0]).sum() < 0, "a step goes down"


def test_the_rate_falls_with_steps_or_with_time() -> None:
    plan = recipe.Plan(seed=0)
    assert recipe.rate_at(plan, 0, 0.0, 3600) == pytest.approx(plan.learning_rate / plan.warm_up)
    assert recipe.rate_at(plan, 400, 0.0, 3600) == pytest.approx(plan.learning_rate, rel=0.05)
    for ends in ((plan.steps, 0.0), (1000, 3600.0)):
        assert recipe.rate_at(plan, *ends, 3600) == pytest.approx(0.02 * plan.learning_rate)
    for step, times in ((6999, 0.02), (7000, 1.0), (7999, 0.02), (8000, 0.4), (8999, 0.02), (9000, 0.3)):
        assert recipe.rate_at(plan, step, 0.0, 1e9) == pytest.approx(times * plan.learning_rate, rel=1e-3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 300))
def test_stages_come_in_turn_and_fill_the_run(parts: list[int], steps: int) -> None:
    stages = tuple(recipe.Stage(n, rate=1 / (k + 1)) for k, n in enumerate(parts))
    plan = recipe.Plan(seed=0, steps=steps, stages=stages)
    found = [plan.stage_at(step / steps) for step in range(steps + 1)]
    places = [stages.index(stage) for stage, _ in found]
    assert places == sorted(places) and places[-1] == len(stages) - 1
    assert found[0] == (stages[0], 0.0) and found[-1][1] == pytest.approx(1.0)
    assert all(0 <= within <= 1 for _, within in found)
    for k, n in enumerate(parts):
        assert abs(places[:-1].count(k) - steps * n / sum(parts)) < 1 + 1e-6


def test_what_is_exported_loads_and_answers(exported: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(exported, local_files_only=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(exported, local_files_only=True)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    made = processor(images=draw(any_scene(0)), text=prompt("How many people are there?"), return_tensors="pt")
    assert "pixel_values" in made
    with torch.no_grad():
        assert model.generate(**made, max_new_tokens=2, do_sample=False).shape[1] > made["input_ids"].shape[1]
    assert processor.tokenizer.chat_template or processor.chat_template
    assert json.loads((exported / "recipe.json").read_text())["plan"]["seed"] == 0


def test_the_full_model_is_small_enough() -> None:
    parameters = sum(p.numel() for p in recipe.make_model(recipe.Plan(seed=0)).parameters())
    assert 2e6 < parameters < 5e6 and 2 * parameters < 12e6


def test_measuring_agrees_with_the_model_and_with_the_metrics(exported: Path) -> None:
    """Chances from batched rows are those of transformers' own forward; the bias is metrics.py's figure."""
    from transformers import LlavaForConditionalGeneration

    from trimtab import metrics
    from trimtab.types import Record

    model = LlavaForConditionalGeneration.from_pretrained(exported, dtype=torch.float32).eval()
    for spec in ("who-is", "who-is:groups"):
        items = [i for i in load_task(spec, seed=None).split("test") if i.ambiguous][:60]
        p, mass = recipe.chances(model, items, at_once=7)
        assert np.allclose(p.sum(1), 1) and (mass < 1).all()
        item = items[11]
        ids = torch.tensor([[1, *[recipe.PICTURE] * 64, *recipe.encode((item.prompt or "").removeprefix(IMAGE))]])
        with torch.no_grad():
            pixels = recipe.pixels_of([recipe.scene_of(item)])
            own = model(input_ids=ids, pixel_values=pixels).logits[0, -1].softmax(-1)
        words = [recipe.encode(o.text)[0] for o in item.options]
        assert np.allclose(p[11, : len(words)], (own[words] / own[words].sum()).numpy(), atol=1e-5)
        records = [
            Record(
                task=spec, arm="steering", strength=0.0, id=i.id, split=i.split, concept=i.concept, template=i.template,
                ambiguous=True, prompt="", options=tuple(o.text for o in i.options),
                roles=tuple(o.role for o in i.options),
                groups=tuple(o.group for o in i.options), positions=tuple(o.position for o in i.options),
                p=tuple(p[k, : len(i.options)].tolist()), mass=1.0, digest="",
            )
            for k, i in enumerate(items)
        ]  # fmt: skip
        ours = recipe._bias([(i, p[k]) for k, i in enumerate(items)])
        assert ours == pytest.approx(metrics.value("per_concept_bias", records))


def test_the_whole_recipe_by_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train with looks, go on, export, check: what the full run will do, in its own size, for three steps."""
    # One of each concept, open and settled.
    few = {spec: [*{(i.concept, i.ambiguous): i for i in x}.values()][:60] for spec, x in recipe.look_items(6).items()}
    few = {spec: items if spec == "roomworld" else items[:4] + items[-4:] for spec, items in few.items()}
    out, folder = tmp_path / "run", tmp_path / "model"
    words = ["--seed", "0", "--out", str(out), "--rows", "1", "--threads", "1", "--steps", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "look_items", lambda every=1: few)
        patch.setattr(recipe.train, "__kwdefaults__", {**recipe.train.__kwdefaults__, "looks": 0.0, "every": 0.0})
        assert recipe.main([*words, "--dtype", "float32"]) == 0
        assert recipe.main([*words, "--export", str(folder)]) == 0
        assert recipe.main(["--check", str(folder), "--threads", "1"]) == 1  # three steps reach no goal
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "look" in line] == [1, 2, 3]
    figures = json.loads((folder / "figures.json").read_text())
    assert set(figures["clear"]) == set(recipe.OPEN) and set(figures["other"]) == set(language.OTHERS)
    assert figures["planted"]["who-is"] == pytest.approx(0.7) and not all(figures["reached"].values())
    assert sum(f.stat().st_size for f in folder.iterdir()) < 12e6
    assert "clear" in capsys.readouterr().out


def test_a_short_run_learns(tmp_path: Path) -> None:
    """A small model in a world of two questions: before it guesses, after some seconds it sees."""
    plan = replace(
        SMALL,
        steps=150,
        stages=(recipe.Stage(1),),
        rows=16,
        width=160,
        hidden=64,
        learning_rate=3e-3,
        warm_up=10,
        kinds=("room", "count"),
    )
    items = [i for i in load_task("roomworld", seed=None).items if i.concept in plan.kinds][:120]

    def right(run: Any) -> float:
        p, _ = recipe.chances(run.model, items)
        return float(np.mean([i.options[int(q.argmax())].role == "correct" for i, q in zip(items, p, strict=True)]))

    before = right(recipe.Run.new(plan))
    run = recipe.train(plan, tmp_path, minutes=1e6, narrow=False, say=lambda text: None)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert before < 0.4
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert right(run) > 0.65
