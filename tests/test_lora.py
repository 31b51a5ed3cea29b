"""LoRA: what is learned through PEFT is a steering like any other, and equal to PEFT's own; its dial; its refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import pytest
import torch

from trimtab import artifact
from trimtab.errors import ArtifactError, FingerprintMismatch, MissingExtra, SiteError, TaskError, UsageError
from trimtab.evaluate import evaluate
from trimtab.interventions import Adapter, Diagonal, LowRank
from trimtab.learners.dso import DSO
from trimtab.learners.fairness import Aims
from trimtab.learners.lora import LoRA, to_peft
from trimtab.steering import Steering, attach
from trimtab.testing import DialContract, hook_counts, logits, random_ids, random_steering, tiny, tiny_task

peft = pytest.importorskip("peft")
FAST = {"steps": 12, "validate_every": 4, "learning_rate": 1e-2, "rank": 4}
PROJECTIONS = "module:model.layers.*.self_attn.*_proj"


@pytest.fixture(scope="module")
def task():
    return tiny_task(9, 9)


@pytest.fixture(scope="module")
def model():
    """A tiny Llama of its own: learning must leave it as it was."""
    return tiny("llama", seed=2)


@pytest.fixture(scope="module")
def learned(model, task):
    return LoRA(**FAST).fit(model, task, seed=0)


class TestContract(DialContract):
    """The dial's contract holds for what a fit gives: rows, tokens, caches, padding, leaving, refusals."""

    no_compile = "compiled for an adapter in test_contract.py"

    def make_model(self):
        return tiny("qwen2", seed=3)

    def make_steering(self, model):
        return LoRA(**{**FAST, "kl_budget": float("inf")}).fit(model, tiny_task(9, 9), seed=1)


# -- what a fit does


def test_learning_lowers_the_objective_and_the_bias(model, task, learned):
    """On the training items the loss of the last steps is far below that of the first, and the bias falls with w; a
    random adapter of the same norm does not do it."""
    history = learned.card["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    found = evaluate(
        model, task, learned, (0.0, 0.5, 1.0), seed=0, split="train", samples=(), resamples=50, controls=[1.0]
    )
    bias = [found.value("per_concept_bias", strength=w) for w in (0.0, 0.5, 1.0)]
    assert bias[2] < 0.7 * bias[0]
    assert bias[1] < bias[0]
    assert found.value("per_concept_bias", strength=1.0, steering="random") > bias[2]


def test_the_model_comes_back_as_it_was(task):
    """Modules, weights, hooks and gradients, after a fit and after one that fails half-way; nothing of PEFT stays."""
    model = tiny("gemma3", seed=1)

    def state():
        model._fingerprint = None
        return (
            model.fingerprint(),
            [(n, type(m)) for n, m in model.hf.named_modules()],
            hook_counts(model.hf),
            [p.requires_grad for p in model.hf.parameters()],
            sorted(vars(model.hf)),
        )

    before, ids = state(), random_ids(model, 2, 6)
    base = logits(model, ids)
    LoRA(**FAST).fit(model, task, seed=0)
    assert state() == before

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LoRA(**FAST).fit(model, task, seed=0, progress=stop)
    assert state() == before
    assert torch.equal(logits(model, ids), base)


def test_one_seed_gives_one_result_and_leaves_the_global_generator_alone(model, task, learned):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again = LoRA(**FAST).fit(model, task, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert again.digest() == learned.digest()
    assert again.card == learned.card
    assert LoRA(**FAST).fit(model, task, seed=1).digest() != learned.digest()


def test_a_tight_budget_holds(model, task):
    """Learned past it, the change is scaled down until KL on the held windows is within."""
    held = LoRA(**{**FAST, "kl_budget": 0.002}).fit(model, task, seed=0).card["kl_budget"]
    assert held["kl"] <= 0.002
    assert 0 < held["share"] < 1


def test_the_objective_is_dsos_with_its_weights():
    """The defaults of both are the shared ones, so that the two are compared on one objective."""
    for settings in (DSO(), LoRA()):
        assert Aims.of(settings) == Aims()
    assert {f.name for f in fields(Aims)} <= {f.name for f in fields(DSO)}


@pytest.mark.parametrize(
    ("family", "targets", "names"),
    [
        ("llama", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama", "q_proj, v_proj", {"q_proj", "v_proj"}),
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", "attention", {"c_attn", "c_proj"}),
        ("opt", "attention", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("gpt_neox", "attention", {"query_key_value", "dense"}),
    ],
)
def test_which_modules_are_adapted(task, family, targets, names):
    """The attention's projections and no others of the same name; PEFT's own ways to name them."""
    made = LoRA(targets=targets, rank=2, steps=1).fit(tiny(family), task, seed=0)
    assert {site.rpartition(".")[2] for site in made.interventions} == names
    if family == "gpt2":
        assert all(".attn." in site for site in made.interventions)
    assert all(i.R.shape[0] == 2 for (i,) in made.interventions.values())


# -- the dial


def test_w_scales_the_change_of_the_weights(model, learned):
    """At w the model computes with W + w L R: the logits of the same model with those weights merged by hand."""
    ids = random_ids(model, 2, 8)
    for w in (0.3, 1.0, 2.0):
        merged = tiny("llama", seed=2)
        modules = dict(merged.hf.named_modules())
        for site, (i,) in learned.interventions.items():
            modules[site.removeprefix("module:")].weight.data += w * (i.L @ i.R)
        with attach(model.hf, learned, w, beyond_range=True):
            found = logits(model, ids)
        torch.testing.assert_close(found, logits(merged, ids), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_peft_reads_what_to_peft_writes_and_computes_the_same(tmp_path, family, strength):
    """Linear and Conv1D; PEFT's own forward is the oracle of ours."""
    pattern = {"llama": PROJECTIONS, "gpt2": "module:transformer.h.*.attn.c_*"}[family]
    model = tiny(family, seed=5)
    steering = random_steering(model, pattern, "adapter", scale=0.3)
    ids = random_ids(model, 2, 7)
    with attach(model.hf, steering, strength):
        ours = logits(model, ids)
    to_peft(steering, tmp_path / "adapter", strength)
    theirs = peft.PeftModel.from_pretrained(tiny(family, seed=5).hf, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, ours, atol=2e-5, rtol=2e-5)


def test_what_is_no_adapter_is_not_written_for_peft(model, tmp_path):
    for steering in (
        random_steering(model, "*norm*"),
        Steering({"module:lm_head": (Adapter(torch.ones(2, 1), torch.ones(1, 3)),) * 2}),
    ):
        with pytest.raises(UsageError, match="one adapter a module"):
            to_peft(steering, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_steered_and_adapted_at_once(model, learned):
    """A steering upstream is what an adapter reads, as the weight that it changes does."""
    steering, ids = random_steering(model, "*norm*", scale=0.2), random_ids(model, 2, 8)
    merged = tiny("llama", seed=2)
    modules = dict(merged.hf.named_modules())
    for site, (i,) in learned.interventions.items():
        modules[site.removeprefix("module:")].weight.data += i.L @ i.R
    with attach(merged.hf, steering, 1.0):
        expected = logits(merged, ids)
    with attach(model.hf, learned, 1.0), attach(model.hf, steering, 1.0):
        torch.testing.assert_close(logits(model, ids), expected, atol=2e-5, rtol=2e-5)


def test_prepared_items_are_scored_as_fresh_ones(model, task, learned):
    """What is kept between strengths is kept below the first steered block only, and adapters act in the first."""
    items = task.split("test")
    ready = model.prepared(items)
    with model.steer(random_steering(model, "layers.1.out", scale=0.2), 1.0):
        model.score(items, prepared=ready)
    for w in (0.0, 0.5, 1.0):
        with model.steer(learned, w):
            kept, fresh = model.score(items, prepared=ready), model.score(items)
        for one, other in zip(kept, fresh, strict=True):
            assert one.p == pytest.approx(other.p, abs=1e-6)


# -- the artifact


def test_saved_and_read_it_is_the_same_and_says_its_operation(learned, tmp_path):
    """Without PEFT, too; the same bytes for the same steering."""
    folder = artifact.save(learned, tmp_path / "one")
    back = artifact.read(folder)
    assert back.digest() == learned.digest()
    assert back.card["operation"] == artifact.WITH_ADAPTERS
    assert {e["kernel"] for group in back.card["sites"].values() for e in group} == {"adapter"}
    again = artifact.save(back, tmp_path / "other")
    for name in ("card.json", "steering.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_an_edited_folder_is_refused(learned, tmp_path):
    """Tensors that are not the card's, another operation than the tensors', a kernel or width that is not theirs."""

    def edited(change):
        folder = artifact.save(learned, tmp_path / "edited")
        card = json.loads((folder / "card.json").read_text())
        change(card)
        (folder / "card.json").write_text(json.dumps(card))
        return folder

    site = next(iter(learned.interventions))
    for change, words in (
        (lambda card: card.update(operation=artifact.OPERATION), "operation"),
        (lambda card: card["sites"][site][0].update(kernel="low-rank"), "kernel"),
        (lambda card: card["sites"][site][0].update(width=7), "width 7"),
    ):
        with pytest.raises(ArtifactError, match=words):
            artifact.read(edited(change))
    folder = artifact.save(learned, tmp_path / "edited")
    blob = bytearray((folder / "steering.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "steering.safetensors").write_bytes(blob)
    with pytest.raises(ArtifactError, match="SHA-256"):
        artifact.read(folder)
    plain = artifact.save(Steering({"norm.final": (Diagonal(None, torch.ones(32)),)}), tmp_path / "plain")
    card = json.loads((plain / "card.json").read_text())
    (plain / "card.json").write_text(json.dumps({**card, "operation": artifact.WITH_ADAPTERS}))
    with pytest.raises(ArtifactError, match="operation"):
        artifact.read(plain)


def test_another_model_is_refused(learned):
    """Other weights by their fingerprint, other widths even where that is waved through; inputs take no adapter."""
    other = tiny("llama", seed=9)
    with pytest.raises(FingerprintMismatch), other.steer(learned):
        pass
    with pytest.raises(SiteError, match="32 wide"):
        tiny("llama", intermediate_size=40).require(
            Steering({"module:model.layers.0.mlp.down_proj": (Adapter(torch.ones(16, 1), torch.ones(1, 48)),)}), 1.0
        )
    with pytest.raises(SiteError, match="takes 40 numbers, the adapter was made for 48"):
        tiny("llama", intermediate_size=40).require(
            Steering({"module:model.layers.0.mlp.down_proj": (Adapter(torch.ones(32, 1), torch.ones(1, 48)),)}), 1.0
        )
    with pytest.raises(SiteError, match="is an input"):
        other.require(Steering({"layers.0.attn.proj_in": (Adapter(torch.ones(32, 1), torch.ones(1, 32)),)}), 1.0)
    for bad in ((torch.ones(3, 2), torch.ones(3, 4)), (torch.ones(3), torch.ones(1, 4))):
        with pytest.raises(UsageError, match="L \\(dim, rank\\) and R"):
            Adapter(*bad)


def test_the_random_twin_has_the_norm_of_every_change(learned):
    """Of L R, module by module; drawn by the seed."""
    twin = learned.random(3)
    for site, (i,) in learned.interventions.items():
        (other,) = twin.interventions[site]
        assert float((other.L @ other.R).norm()) == pytest.approx(float((i.L @ i.R).norm()), rel=1e-4)
    assert learned.random(3).digest() == twin.digest() != learned.random(4).digest()


def test_adapters_combine_like_any_kernel(model, learned):
    """The mean of an adapter and a LowRank at other sites, and of two adapters at the same: half of each change."""
    from trimtab.ensemble import Member, combine

    other = learned.random(1)
    steering = Steering(random_steering(model, "norm.final", "lowrank").interventions)
    made = combine([Member("a", learned), Member("b", other), Member("c", steering)])
    assert isinstance(made.interventions["norm.final"][0], LowRank)
    for site, (i,) in learned.interventions.items():
        (mean,), (twin,) = made.interventions[site], other.interventions[site]
        torch.testing.assert_close(mean.L @ mean.R, (i.L @ i.R + twin.L @ twin.R) / 3)
    grown = combine([Member("a", learned), Member("b", other)], "renormalised")
    for site, (i,) in learned.interventions.items():
        (g,) = grown.interventions[site]
        assert float((g.L @ g.R).norm()) == pytest.approx(float((i.L @ i.R).norm()), rel=1e-3)


# -- refusals and the command line


def test_what_a_fit_refuses(model, task):
    """Settings out of range, modules that are not there, items without a bias; the model stays bare."""
    for bad in ({"rank": 0}, {"alpha": 0.0}, {"learning_rate": float("nan")}, {"kl_budget": 0.0}, {"targets": " , "}):
        with pytest.raises(UsageError, match="LoRA"):
            LoRA(**bad)
    modules = [type(m) for m in model.hf.modules()]
    with pytest.raises(SiteError, match="'left_proj' names no module"):
        LoRA(targets="left_proj").fit(model, task, seed=0)
    with pytest.raises(TaskError, match="no ambiguous item"):
        LoRA().fit(model, [i for i in task.items if not i.ambiguous], seed=0)
    assert [type(m) for m in model.hf.modules()] == modules
    assert not hasattr(model.hf, "peft_config")


def test_numbers_that_run_away_are_refused_in_a_sentence(model, task):
    with pytest.raises(UsageError, match=r"no figure on validation items is a finite number.*learning_rate than 1e"):
        LoRA(**{**FAST, "learning_rate": 1e20}).fit(model, task, seed=0)
    assert torch.isfinite(logits(model, random_ids(model, 2, 5))).all()


def test_without_peft_the_extra_is_named_and_what_was_learned_still_works(model, task, learned, tmp_path, monkeypatch):
    folder = artifact.save(learned, tmp_path / "made")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"pip install 'trimtab\[peft\]'"):
        LoRA(**FAST).fit(model, task, seed=0)
    with model.steer(artifact.read(folder), 0.5):
        assert model.generate("The baker said that", max_new_tokens=3)


def test_on_the_command_line(trimtab_cli, chat_folder, task_file, neutral_file, tmp_path, monkeypatch):
    """learn, show, eval beside a steering, generate and chat; without PEFT code 8."""
    out, task = tmp_path / "lora", f"jsonl:{task_file}"
    spec = ("learn", "lora", "--model", chat_folder, "--task", task, "--seed", 0, "--neutral", neutral_file,
            "--set", "steps=6", "--set", "rank=2", "--set", "learning_rate=1e-2")  # fmt: skip
    ran = trimtab_cli(*spec, "--out", out)
    assert ran.code == 0, ran.err
    for words in ("L R x", "learner      lora, seed 0", "rank=2", "results on the validation split"):
        assert words in ran.out
    measured = ("eval", "--task", task, "--seed", 0, "--neutral", neutral_file, "--limit", 6, "--json", "-")
    ran = trimtab_cli(*measured, "--steering", out, "--strength", "0.5,1")
    assert ran.code == 0, ran.err
    arms = {(r["steering"], r["strength"]) for r in json.loads(ran.out)}
    assert arms == {(str(out), s) for s in (0, 0.5, 1)} | {("random", 0.5), ("random", 1), ("instruction", 1)}
    ran = trimtab_cli("generate", "--steering", out, "--strength", "0.5", "--max-new-tokens", 3, "--compare", "Hello")
    assert ran.code == 0, ran.err
    assert trimtab_cli(*spec, "--out", out).code == 7
    assert trimtab_cli(*spec, "--out", tmp_path / "x", "--sites", "*norm*").code == 2
    monkeypatch.setitem(sys.modules, "peft", None)
    ran = trimtab_cli(*spec, "--out", tmp_path / "x")
    assert ran.code == 8 and "trimtab[peft]" in ran.error
    assert not (tmp_path / "x").exists()
