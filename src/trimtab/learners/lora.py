"""LoRA fine-tuning through PEFT on DSO's data and objective: the baseline that changes weights.

    y = (W + w (alpha / r) B A) x          A (r, inner), B (dim, r) learned at chosen linear modules; trained at w = 1

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. The adapters, their initial values
(B = 0, so that learning begins at the base) and the forward pass while learning are PEFT's. What is minimised is
learners/fairness: term by term what DSO minimises, on the same draws of the same items.

Where it departs from common fine-tuning, and why:

- **A dial.** What was learned is kept as an Adapter a module, whose L is (alpha / r) B and whose R is A: w scales the
  change of the weights, 0 is the base bit for bit, 1 what was learned. Using it needs nothing of PEFT, and `to_peft`
  writes it for those who want it at one strength.
- **The same budget.** As DSO's, a result whose KL on the held windows exceeds the budget is scaled down until it does
  not: a baseline that may move further than the method is none.
- **No dropout, no weight decay.** The objective's guards and budget are the only regularisers, as in DSO.
- **No checkpoint.** A run that was killed begins anew.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import sites
from trimtab.errors import MissingExtra, SiteError, UsageError
from trimtab.interventions import Adapter
from trimtab.learners.fairness import Aims, Fairness, data_card, require_learnable, schedule, with_kept
from trimtab.model import SteerableModel
from trimtab.neutral import passages
from trimtab.runs import write_whole
from trimtab.steering import Steering
from trimtab.types import Item, Progress, ProgressCallback, Task

NAME = "trimtab"
"""What the adapter is called while it is in the model."""
CLIP = 1.0
"""Norm to which a step's gradient is clipped."""
LICENCE = "The numbers of this adapter may be used under Apache-2.0; the model they belong to has its own licence."
LIMITS = (
    "A low-rank change of weights, learned to make the training task's ambiguous decisions equiprobable between its "
    "groups, and tested for that alone. It does not make a model fair in general, says nothing about groups or formats "
    "that were not measured, and is no reason to let a model decide about people unwatched."
)


@dataclass(frozen=True)
class LoRA:
    """Settings of LoRA fine-tuning; `fit` learns a Steering of Adapters. What is not here is as in DSO by default."""

    targets: str = "attention"
    """Modules to adapt: "attention" is every linear module of the attention blocks, "all-linear" every linear one but
    the unembedding; or names as PEFT takes them, parted by commas ("q_proj,v_proj")."""
    rank: int = 8
    """r: rows of A, columns of B."""
    alpha: float = 16.0
    """The change is alpha / rank times B A."""
    steps: int = 200
    """Optimiser steps."""
    learning_rate: float = 2e-3
    """Of Adam, after a short warm-up, decaying to 0 along a cosine. 60 steps on demo:smollm2 left a validation bias of
    0.087 at 5e-4, 0.063 at 1e-3, 0.039 at 2e-3 and 0.024 at 4e-3 (one run each)."""
    concepts_per_step: int = 50
    """Concepts in a step, as in DSO."""
    templates_per_step: int = 1
    """Templates of each concept in a step, as in DSO."""
    items_per_template: int = 8
    """Items of a concept in one template in a step, at most, as in DSO."""
    kl_budget: float = 0.12
    """KL(adapted || base) on neutral text, nats a token; inf for no budget."""
    validate_every: int = 40
    """Steps between looks at the validation items."""
    patience: int = 3
    """Looks without improvement after which learning stops."""

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "concepts_per_step", "templates_per_step", "items_per_template",
                     "validate_every", "patience"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"LoRA.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("alpha", "learning_rate", "kl_budget"):
            value = getattr(self, name)
            if not value > 0 or (math.isinf(value) and name != "kl_budget"):
                raise UsageError(f"LoRA.{name} must be a finite number above 0, got {value}")
        if not self.targets.strip(", "):
            raise UsageError("LoRA.targets names no modules; 'attention' is the default")

    def fit(
        self,
        model: SteerableModel,
        items: Task | Sequence[Item],
        *,
        seed: int,
        neutral: str | Path | None = None,
        keep: Sequence[Task] = (),
        progress: ProgressCallback | None = None,
    ) -> Steering:
        """Learn adapters for `model` from the training items, stopping early on the validation items.

        The model is the same object, with the same modules and weights, when it returns or raises. `neutral` is a text
        file for the KL budget, the model's own neutral text by default, or ours; `keep` are tasks whose unambiguous
        items join the guard, as in DSO. Raises MissingExtra without PEFT, TaskError where items are missing or of one
        outcome class, SiteError where `targets` names nothing.
        """
        version = _peft().__version__
        train, validation = (with_kept(items, keep, s) for s in ("train", "validation"))
        require_learnable(train)
        aims = Aims.of(self)
        texts = passages("train", neutral or model.neutral) if aims.reads_text else ()
        with _adapted(model, self, seed) as adapters:
            aim = Fairness(aims, model, train, validation, texts, seed, adapters.off)
            with aim.prepared():
                learned = _learn(self, aim, adapters, progress)
            found = adapters.interventions()
        data = data_card(items, keep, train, validation)
        return Steering(found, self._card(model, data, seed, learned, {"modules": len(found), "peft": version}))

    def _card(
        self,
        model: SteerableModel,
        data: dict[str, Any],
        seed: int,
        learned: _Learned,
        adapter: dict[str, Any],
    ) -> dict[str, Any]:
        default = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        # An infinite budget is no number in JSON.
        settings = {k: "inf" if v == math.inf else v for k, v in asdict(self).items()}
        return {
            "learner": "lora",
            "settings": {
                "given": {k: v for k, v in settings.items() if v != default[k]},
                "defaulted": {k: v for k, v in settings.items() if v == default[k]},
            },
            "model": model.identity(),
            "strength": {"trained": [0.0, 1.0], "default": 1.0},
            "seed": seed,
            "data": data,
            "adapter": adapter,
            "kl_budget": learned.held,
            "history": learned.history,
            "stopped_at": learned.history[-1]["step"],
            "kept_at": learned.kept_at,
            "licence": LICENCE,
            "limits": LIMITS,
        }


# -- PEFT's part


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtra(
            f"LoRA is learned through PEFT, which is not installed ({error.name} is missing): "
            "pip install 'trimtab[peft]'"
        ) from error
    return peft


class _Adapters:
    """PEFT's layers in a model: their parameters, switching them off, and what they add up to."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers = layers
        self.scale = {name: layer.scaling[NAME] for name, layer in layers.items()}
        self.parameters: list[nn.Parameter] = []
        for layer in layers.values():
            for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
                # As PEFT does where it trains: in bfloat16 small steps would be lost.
                part.weight.data = part.weight.data.float()
                self.parameters.append(part.weight)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is the base."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def turn(self, share: float) -> None:
        """Scale what was learned, as the dial will."""
        for name, layer in self.layers.items():
            layer.scaling[NAME] = self.scale[name] * share

    def interventions(self) -> dict[str, tuple[Adapter]]:
        """One Adapter a module, at the scale it was turned to."""
        found = {}
        for name, layer in self.layers.items():
            A, B = (part[NAME].weight.detach().float().clone() for part in (layer.lora_A, layer.lora_B))
            found[f"module:{name}"] = (Adapter(B * layer.scaling[NAME], A),)
        return found


@contextmanager
def _adapted(model: SteerableModel, settings: LoRA, seed: int) -> Iterator[_Adapters]:
    """Within it PEFT's layers stand in the model, and what is drawn is drawn from a stream of its own."""
    peft = _peft()
    targets = _targets(model, settings.targets)
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, lora_dropout=0.0, bias="none",
        fan_in_fan_out="Conv1D" in {type(m).__name__ for m in model.hf.modules()},
    )  # fmt: skip
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            tuner = peft.LoraModel(model.hf, config, NAME)
        except ValueError as error:  # before anything was replaced
            _cleared(model)
            raise SiteError(
                f"LoRA.targets '{settings.targets}' names no module of {model.name} that can be adapted: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
    try:
        layers = {n: m for n, m in model.hf.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
        yield _Adapters(layers)
    finally:
        tuner.unload()
        _cleared(model)


def _cleared(model: SteerableModel) -> None:
    if hasattr(model.hf, "peft_config"):
        del model.hf.peft_config


def _targets(model: SteerableModel, targets: str) -> list[str] | str:
    """What PEFT is told to adapt."""
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    if model.sees and targets != "attention":
        # By their whole names: in the vision tower are modules of the same ones, which no gradient would reach.
        whole = {id(m): name for name, m in model.hf.named_modules()}
        inner = [whole[id(m)] for m in model.body.modules() if isinstance(m, torch.nn.Linear)]
        if targets != "all-linear":
            inner = [name for name in inner if any(f".{name}".endswith(f".{end}") for end in wanted)]
        return inner or wanted
    if targets == "all-linear":
        return targets
    if targets != "attention":
        return wanted
    names = {id(module): name for name, module in model.hf.named_modules()}
    inside = {names[id(site.module)].rpartition(".")[0] for site in sites.find(model.hf, "layers.*.attn.proj_in")}
    linear = (name for name, m in model.hf.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2)
    return [name for name in linear if name.rpartition(".")[0] in inside]


# -- the loop


@dataclass(slots=True)
class _Learned:
    """What a fit leaves beside its numbers."""

    history: list[dict[str, float]]
    kept_at: int = 0
    held: dict[str, float] | None = None


def _learn(settings: LoRA, aim: Fairness, adapters: _Adapters, progress: ProgressCallback | None) -> _Learned:
    """Run the steps, put the best numbers back, and hold them to the budget."""
    optimiser = torch.optim.Adam(adapters.parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
    found, since, stale, lowest = _Learned([]), [], 0, math.inf
    best: list[Tensor] = []
    begun = time.monotonic()
    for step in range(1, settings.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * schedule(step - 1, settings.steps)
        optimiser.zero_grad()
        since.append(_step(aim, step - 1))
        nn.utils.clip_grad_norm_(adapters.parameters, CLIP)
        optimiser.step()
        if step % settings.validate_every == 0 or step == settings.steps:
            seen = aim.look()
            found.history.append({"step": step, **_means(since), **seen})
            since = []
            score = seen.get("validation_score")
            # As in DSO: the newest look within a standard error of the best is kept.
            if score is None or score <= lowest + seen["validation_error"]:
                best, found.kept_at = [p.detach().clone() for p in adapters.parameters], step
            stale = 0 if score is None or score < lowest else stale + 1
            lowest = lowest if score is None else min(lowest, score)
        if progress is not None:
            newest = since[-1] if since else found.history[-1]
            left = (time.monotonic() - begun) / step * (settings.steps - step)
            figures = tuple((k, v) for k, v in newest.items() if k != "step")
            progress(Progress("learning", step, settings.steps, figures, left))
        if stale >= settings.patience:
            break
    if not best:
        raise UsageError(
            f"after {step} steps no figure on validation items is a finite number any more: give a lower learning_rate "
            f"than {settings.learning_rate:g}, or another dtype"
        )
    with torch.no_grad():
        for p, kept in zip(adapters.parameters, best, strict=True):
            p.copy_(kept)
    found.held = _held(settings.kl_budget, aim, adapters)
    return found


def _step(aim: Fairness, step: int) -> dict[str, float]:
    """Gradients of one step; returns its figures."""
    concepts, guards, windows = aim.draw(step)
    known = [*aim.known([i for members in concepts for i in members]), *guards]
    total, figures = aim.objective(known, [len(members) for members in concepts], aim.seen(known, windows))
    torch.autograd.backward([total])
    aim.prices.follow(figures, aim.aims.kl_budget)
    return figures


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the steps that have it."""
    names = dict.fromkeys(name for figures in steps for name in figures)
    return {name: statistics.fmean(f[name] for f in steps if name in f) for name in names}


def _held(budget: float, aim: Fairness, adapters: _Adapters) -> dict[str, float] | None:
    """Turn the result down, where its KL on the held windows exceeds the budget, to the largest share that keeps it."""
    if not aim.windows or not math.isfinite(budget):
        return None
    held = {"budget": budget, "share": 1.0, "kl": aim.window_kl()}
    if held["kl"] > budget:
        low, high = 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            adapters.turn(middle)
            low, high = (middle, high) if aim.window_kl() <= budget else (low, middle)
        adapters.turn(low)
        held |= {"share": low, "kl": aim.window_kl()}
    return held


# -- for others


def to_peft(steering: Steering, folder: str | Path, strength: float = 1.0) -> Path:
    """Write a steering of Adapters as PEFT reads one (`PeftModel.from_pretrained(model, folder)`), at one strength.

    PEFT has no dial and does not know the card: what is written is the change of weights, w L R. Raises UsageError for
    a steering that holds anything else, or several adapters a module.
    """
    from safetensors.torch import save

    tensors, ranks = {}, {}
    for site, group in steering.interventions.items():
        if len(group) != 1 or not isinstance(group[0], Adapter) or not site.startswith("module:"):
            raise UsageError(f"PEFT takes one adapter a module; at '{site}' there is something else")
        name, adapter = site.removeprefix("module:"), group[0]
        ranks[name] = adapter.R.shape[0]
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapter.R.detach().float().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = (adapter.L * strength).detach().float().cpu().contiguous()
    made_for = steering.card.get("model", {})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": made_for.get("id"),
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        # alpha is each rank, so that PEFT multiplies by 1: the scale is in B.
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": made_for.get("family") == "gpt2",
    }
    out = Path(folder)
    write_whole(out / "adapter_model.safetensors", save(tensors))
    write_whole(out / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
    return out
