"""DSO: Direct Steering Optimization, reinforcement learning of affine maps on norm outputs.

    min over (a, b) of   mean_o | P(pro|o) - P(anti|o) |  +  lam (|a|_1 + |b|_1)
    subject to           KL(steered || base) <= eps
    with                 h' = h + w (a * h + b) at the backbone's norm outputs, all positions; trained at w = 1

Monteiro Paes, Sivakumar, Wang et al., "DSO: Direct Steering Optimization for Bias Mitigation", arXiv 2512.15926. With
S*(o) the majority outcome of concept o under the current steered model and reward -1 for it, +1 for the other, the
expected reward of o is -|P(pro|o) - P(anti|o)|. Where we depart from the source, and why:

- **Exact expectation.** Over a closed set of options the expected reward is computed and differentiated, not sampled.
- **Fresh sign.** |.| is taken of each concept's mean inside the batch; a remembered S* lags behind and oscillates.
- **Neither scores 0.** With +1 for it the model is paid for refusing. Its share is held where the base has it, and the
  options' total probability may not fall.
- **Own wordings for each concept.** Wordings have a tilt of their own, often larger than the concept's. When all
  concepts of a step shared the same few wordings the optimiser chased those tilts. So each concept draws its own, and a
  second term makes the wordings' means small as well, for they do not cancel in wordings that were never seen.
- **Guards.** Answering by position makes the bias exactly 0 when options are listed in all orders; so no place in the
  list may become likelier than another, and the right answer of unambiguous items may not lose probability, both
  against the base.
- **KL budget by a dual variable.** Its weight is multiplied up while KL on neutral text exceeds the budget, and down
  below it; a result that still exceeds it on 96 windows is shrunk until it does not. KL asks how far the model moved,
  not whether to the worse: so the text's own tokens may not become less likely either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trimtab import sites
from trimtab.errors import UsageError
from trimtab.learners.dso.run import Run
from trimtab.learners.dso.sampled import outcome as outcome
from trimtab.learners.fairness import Aims, data_card, require_learnable, with_kept
from trimtab.model import SteerableModel
from trimtab.neutral import passages
from trimtab.steering import Steering
from trimtab.types import POSITIONS, Item, ProgressCallback, Reward, Task

LICENCE = "The numbers of this steering may be used under Apache-2.0; the model they belong to has its own licence."
LIMITS = (
    "Learned to make the training task's ambiguous decisions equiprobable between its groups, and tested for that "
    "alone. It does not make a model fair in general, says nothing about groups or formats that were not measured, and "
    "is no reason to let a model decide about people unwatched."
)
LIMITS_OF_A_REWARD = (
    "Learned to raise a reward function of the user's own on the training task's items. Whatever else it changes, "
    "fairness included, was not aimed at and holds only where it was measured."
)


@dataclass(frozen=True)
class DSO:
    """Settings of Direct Steering Optimization; `fit` learns a Steering."""

    sites: str = sites.NORMS
    """Pattern of the sites to steer."""
    positions: str = "all"
    """Tokens that are steered, while learning and after: "all", "text", "image", those at which an image is, or
    "behind", those of words behind an image. What stands before is then run once and not in every step (stems.py)."""
    depth: float = 0.0
    """Share of the blocks, counted from the input, that is left alone; the backward pass ends above them."""
    steps: int = 200
    """Optimiser steps."""
    learning_rate: float = 1.5e-3
    """Of Adam, after a short warm-up, decaying to 0 along a cosine."""
    concepts_per_step: int = 50
    """Concepts in a step; the bias of each is taken of its items in the step."""
    templates_per_step: int = 1
    """Templates of each concept in a step. With one template a concept's term is an upper bound of its bias (Jensen),
    not an estimate; a step should see many wordings."""
    items_per_template: int = 8
    """Items of a concept in one template in a step, at most: neighbours in the task's order, so that pairs stay whole.
    Only BBQ has more (up to 240), of which a step on all would fill the memory."""
    unambiguous_per_step: int = 10
    """Unambiguous items in a step, for the guard."""
    template_weight: float = 5.0
    """Weight of the mean square, over the templates in a step, of a template's mean P(pro) - P(anti)."""
    unambiguous_guard: float = 1.5
    """Weight of the mean fall of log P(correct) below the base."""
    position_guard: float = 1.0
    """Weight of the growth over the base of max - min over the places of the list of the mean P(place)."""
    neither_guard: float = 1.0
    """Weight of what keeps the mean P(neither) where the base has it: a price that follows its rise."""
    mass_guard: float = 1.0
    """Weight of the mean fall of the log of the options' total probability below the base."""
    kl_budget: float = 0.12
    """eps: KL(steered || base) on neutral text, nats a token; inf for no budget."""
    kl_windows: int = 6
    """Windows of neutral text in a step at whose tokens the KL is computed; they make more of the gradient's noise than
    the items do."""
    kl_tokens: int = 28
    """Tokens of a window."""
    text_guard: float = 1.0
    """Weight of the mean fall below the base, at the windows' own tokens, of log P: perplexity may not rise."""
    l1: float = 0.0
    """lam: weight of |a|_1 + |b|_1, by a proximal step in the metric of Adam (soft threshold) after each update."""
    mode: str = "exact"
    """"exact" differentiates the expectation over the options; "sampled" generates answers and uses REINFORCE."""
    samples: int = 4
    """Answers generated for each item in sampled mode; each is compared with the mean of the others."""
    max_new_tokens: int = 16
    """Length of a generated answer in sampled mode."""
    validate_every: int = 40
    """Steps between looks at the validation items."""
    patience: int = 3
    """Looks without improvement after which learning stops."""
    accumulate: int = 1
    """Parts into which a step is split: less memory, the same gradient, a forward pass more. A step of over 16,384
    tokens is split in any case, so that none of its parts holds more."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            unbounded = f.name == "kl_budget" and value == math.inf
            if number and not unbounded and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"DSO.{f.name} must be a finite number of at least 0, got {value}")
        at_least_one = ("steps", "concepts_per_step", "templates_per_step", "items_per_template", "samples",
                        "max_new_tokens", "accumulate", "validate_every", "patience", "kl_tokens")  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise UsageError(f"DSO.{name} must be at least 1, got {getattr(self, name)}")
        if self.positions not in POSITIONS:
            raise UsageError(f"DSO.positions is one of {', '.join(POSITIONS)}, got '{self.positions}'")
        if self.mode not in ("exact", "sampled"):
            raise UsageError(f"DSO.mode is 'exact' or 'sampled', got '{self.mode}'")
        if self.mode == "sampled" and self.samples < 2:
            raise UsageError("DSO.samples must be at least 2: each answer is compared with the mean of the others")
        if self.kl_budget == 0:
            raise UsageError("DSO.kl_budget must be above 0: at 0 only the untouched model is left; inf is no budget")
        if not self.depth < 1:
            raise UsageError(f"DSO.depth is a share of the blocks below 1, got {self.depth}")

    def fit(
        self,
        model: SteerableModel,
        items: Task | Sequence[Item],
        *,
        seed: int,
        reward: Reward | None = None,
        neutral: str | Path | None = None,
        keep: Sequence[Task] = (),
        checkpoint: str | Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> Steering:
        """Learn a steering for `model` from the training items, stopping early on the validation items.

        `reward` (sampled mode) gives each generated answer a number; without it an answer scores -1 for the concept's
        majority outcome, +1 for the other, 0 for neither. `neutral` is a text file for the KL budget, the model's own
        neutral text by default, or ours. `keep` are tasks whose unambiguous items join the guard, of each about as many
        as there are of the task's own. With `checkpoint`, a file, a run that was killed goes on from there to the same
        result as an unbroken one. Raises TaskError where items are missing or of one outcome class, or a task to keep
        has no unambiguous ones, UsageError for settings, RunError for a checkpoint of another run.
        """
        if reward is not None and self.mode != "sampled":
            raise UsageError("a reward function needs generated answers: use DSO(mode='sampled')")
        train, validation = (with_kept(items, keep, s) for s in ("train", "validation"))
        require_learnable(train, needs_roles=reward is None)
        texts = passages("train", neutral or model.neutral) if Aims.of(self).reads_text else ()
        run = Run(self, model, train, validation, texts, seed, reward)
        with run.prepared():
            history = run.learn(Path(checkpoint) if checkpoint is not None else None, progress)
        data = data_card(items, keep, train, validation)
        return Steering(run.interventions(run.best.detach()), self._card(run, data, seed, history))

    def _card(self, run: Run, data: dict[str, Any], seed: int, history: list[dict[str, float]]) -> dict[str, Any]:
        default = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        # An infinite budget is no number in JSON.
        settings = {k: "inf" if v == math.inf else v for k, v in asdict(self).items()}
        alive = (run.best != 0).any(1)
        return {
            "learner": "dso",
            "settings": {
                "given": {k: v for k, v in settings.items() if v != default[k]},
                "defaulted": {k: v for k, v in settings.items() if v == default[k]},
            },
            "model": run.model.identity(),
            "strength": {"trained": [0.0, 1.0], "default": 1.0},
            **({} if self.positions == "all" else {"positions": self.positions}),
            "seed": seed,
            "data": data,
            **({} if run.reward is None else {"reward": run.reward_name}),
            "neurons": {"steered": int(alive.numel()), "surviving_share": float(alive.float().mean())},
            "kl_budget": run.held,
            "history": history,
            "stopped_at": history[-1]["step"] if history else 0,
            "kept_at": run.kept_at,
            "licence": LICENCE,
            "limits": LIMITS if run.reward is None else LIMITS_OF_A_REWARD,
        }
