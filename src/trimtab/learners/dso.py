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
- **Guards.** Answering by position makes the bias exactly 0 when options are listed in both orders; so the position
  effect may not grow, and the right answer of unambiguous items may not lose probability, both against the base.
- **KL budget by a dual variable.** Its weight is multiplied up while KL on neutral text exceeds the budget, and down
  below it; a result that still exceeds it on all the text is shrunk until it does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trimtab import capture, packing, scoring, sites
from trimtab.errors import RunError, TaskError, UsageError
from trimtab.interventions import Diagonal
from trimtab.model import SteerableModel
from trimtab.neutral import passages
from trimtab.packing import Layout
from trimtab.runs import write_whole
from trimtab.scoring import Encoded, Scores
from trimtab.steering import Dial, Steering, attach
from trimtab.types import Item, Progress, ProgressCallback, Reward, Task, by_concept

LICENCE = "The numbers of this steering may be used under Apache-2.0; the model they belong to has its own licence."
LIMITS = (
    "Learned to make the training task's ambiguous decisions equiprobable between its groups, and tested for that "
    "alone. It does not make a model fair in general, says nothing about groups or formats that were not measured, and "
    "is no reason to let a model decide about people unwatched."
)


Window = tuple[tuple[int, ...], Tensor]
"""Tokens of neutral text, and the base's last hidden states at them."""
DUAL_RATE = 0.03
"""How fast the KL's weight follows its budget: a factor of at most exp(0.03) a step. At 0.1 it overshot to 70 and
stopped the learning for 50 steps (measured)."""
GUARDS_AT_MOST = 128
"""Unambiguous items that a fit draws from."""
REFERENCE_ITEMS = 4
"""Items of a template whose mean stands for the base's P(neither) and option mass there."""
VALIDATION_AT_MOST = 200
"""Validation items looked at, spread evenly."""


@dataclass(frozen=True)
class DSO:
    """Settings of Direct Steering Optimization; `fit` learns a Steering."""

    sites: str = sites.NORMS
    """Pattern of the sites to steer."""
    depth: float = 0.0
    """Share of the blocks, counted from the input, that is left alone; those compute each item once only."""
    steps: int = 75
    """Optimiser steps."""
    learning_rate: float = 1.5e-3
    """Of Adam, after a short warm-up, decaying to 0 along a cosine."""
    concepts_per_step: int = 20
    """Concepts in a step; the bias of each is estimated from its items in the step."""
    templates_per_step: int = 3
    """Templates of each concept in a step, all items of a template together, so that pairs stay whole."""
    unambiguous_per_step: int = 12
    """Unambiguous items in a step, for the guard."""
    template_weight: float = 2.0
    """Weight of the mean square, over the templates in a step, of a template's mean P(pro) - P(anti)."""
    unambiguous_guard: float = 1.0
    """Weight of the mean fall of log P(correct) below the base."""
    position_guard: float = 1.0
    """Weight of the growth of |P(listed first) - P(listed last)| over the base."""
    neither_guard: float = 1.5
    """Weight of the mean rise of P(neither) over the base, or a quarter of its fall."""
    mass_guard: float = 1.0
    """Weight of the mean fall of the log of the options' total probability below the base."""
    kl_budget: float = 0.04
    """eps: KL(steered || base) on neutral text, nats a token; inf for no budget."""
    kl_windows: int = 6
    """Windows of neutral text in a step at whose tokens the KL is computed."""
    kl_tokens: int = 14
    """Tokens of a window; about as many as a prompt has, so that they share a pass."""
    l1: float = 0.0
    """lam: weight of |a|_1 + |b|_1, applied as a proximal step (soft threshold) after each update."""
    mode: str = "exact"
    """"exact" differentiates the expectation over the options; "sampled" generates answers and uses REINFORCE."""
    samples: int = 4
    """Answers generated for each item in sampled mode; each is compared with the mean of the others."""
    max_new_tokens: int = 16
    """Length of a generated answer in sampled mode."""
    validate_every: int = 38
    """Steps between looks at the validation items."""
    patience: int = 3
    """Looks without improvement after which learning stops."""
    accumulate: int = 1
    """Parts into which a step is split: less memory, the same gradient, a forward pass more."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            unbounded = f.name == "kl_budget" and value == math.inf
            if number and not unbounded and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"DSO.{f.name} must be a finite number of at least 0, got {value}")
        at_least_one = ("steps", "concepts_per_step", "templates_per_step", "samples", "max_new_tokens", "accumulate",
                        "validate_every", "patience", "kl_tokens")  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise UsageError(f"DSO.{name} must be at least 1, got {getattr(self, name)}")
        if self.mode not in ("exact", "sampled"):
            raise UsageError(f"DSO.mode is 'exact' or 'sampled', got '{self.mode}'")
        if self.mode == "sampled" and self.samples < 2:
            raise UsageError("DSO.samples must be at least 2: each answer is compared with the mean of the others")
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
        checkpoint: str | Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> Steering:
        """Learn a steering for `model` from the training items, stopping early on the validation items.

        `reward` (sampled mode) gives each generated answer a number; without it an answer scores -1 for the concept's
        majority outcome, +1 for the other, 0 for neither. `neutral` is a text file for the KL budget, our own text by
        default. With `checkpoint`, a file, a run that was killed goes on from there to the same result as an unbroken
        one. Raises TaskError where items are missing or of one outcome class, UsageError for settings, RunError for a
        checkpoint of another run.
        """
        if reward is not None and self.mode != "sampled":
            raise UsageError("a reward function needs generated answers: use DSO(mode='sampled')")
        train, validation = _items(items, "train"), _items(items, "validation")
        _require_learnable(train, needs_roles=reward is None)
        run = _Run(self, model, train, validation, passages("train", neutral), seed, reward)
        with run.prepared():
            history = run.learn(Path(checkpoint) if checkpoint is not None else None, progress)
        return Steering(run.interventions(run.best.detach()), self._card(run, items, seed, history))

    def _card(
        self, run: _Run, items: Task | Sequence[Item], seed: int, history: list[dict[str, float]]
    ) -> dict[str, Any]:
        default = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        settings = asdict(self)
        alive = (run.best != 0).any(1)
        data: dict[str, Any] = {"items": len(run.train), "validation_items": len(run.validation), "split": "train"}
        if isinstance(items, Task):
            data |= {
                "task": items.name,
                "division": items.division,
                "division_seed": items.seed,
                "digest": items.digest(),
            }
        return {
            "learner": "dso",
            "settings": {
                "given": {k: v for k, v in settings.items() if v != default[k]},
                "defaulted": {k: v for k, v in settings.items() if v == default[k]},
            },
            "model": {"id": run.model.name, "family": run.model.family, "fingerprint": run.model.fingerprint()},
            "strength": {"trained": [0.0, 1.0], "safe": [0.0, 1.0], "default": 1.0},
            "seed": seed,
            "data": data,
            "neurons": {"steered": int(alive.numel()), "surviving_share": float(alive.float().mean())},
            "kl_budget": run.held,
            "history": history,
            "stopped_at": history[-1]["step"] if history else 0,
            "licence": LICENCE,
            "limits": LIMITS,
        }


@dataclass(frozen=True, slots=True)
class _Known:
    """A training item as tokens; where computed, the base's scores and what lies below the first steered block."""

    item: Item
    encoded: Encoded
    below: tuple[Tensor | None, ...] = ()
    logp: Tensor | None = None
    log_mass: Tensor | None = None


class _Run:
    """One fit: the data, the parameters, and the loop."""

    def __init__(
        self,
        settings: DSO,
        model: SteerableModel,
        train: list[Item],
        validation: list[Item],
        texts: Sequence[str],
        seed: int,
        reward: Reward | None,
    ) -> None:
        self.s, self.model, self.seed, self.reward = settings, model, seed, reward
        self.train, self.validation, self.texts = train, validation, texts
        self.sites = _above(model, sites.find(model.hf, settings.sites), settings.depth)
        widths = {site.width for site in self.sites}
        if None in widths:
            raise UsageError(f"DSO cannot tell the width of {[s.name for s in self.sites if s.width is None]}")
        self.widths = [int(site.width or 0) for site in self.sites]
        # One flat vector: a over all sites, then b over all sites; views are cut out where needed.
        self.theta = torch.zeros(sum(self.widths), 2, device=model.device, requires_grad=True)
        self.best = self.theta.detach().clone()
        self.readout = model.readout
        spread = train[:: max(1, len(train) // 256)]
        self.longest = max(len(r) for e in model.encode(spread) for r in scoring.flatten([e]).rows)
        self.blocks = self._lower_blocks()
        self.beta = 1.0
        self.held: dict[str, float] = {}
        self.known: dict[str, _Known] = {}
        self.references: dict[str, tuple[float, float]] = {}
        self.guards: list[Item] = []
        self.listed = any(_listed(i) for i in train if i.ambiguous)
        self.windows = self._windows() if math.isfinite(settings.kl_budget) else []
        self.of_concept = {o: _templates(members) for o, members in by_concept([i for i in train if i.ambiguous])}
        self.of_template: dict[str, list[Item]] = {}
        for item in train:
            if item.ambiguous:
                self.of_template.setdefault(item.template, []).append(item)

    # -- preparation

    def _lower_blocks(self) -> list[nn.Module]:
        count = capture.first_block(self.model.hf, [s.name for s in self.sites])
        if count == 0:
            return []
        body = sites.backbone(self.model.hf)
        return list(getattr(body, sites.FAMILIES[self.model.family].layers))[:count]

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Fast attention for short rows, and activation checkpointing where it was asked for."""
        with ExitStack() as stack:
            stack.enter_context(self.model.short_rows(self.longest))
            if self.s.checkpointing:
                stack.enter_context(self.model.activation_checkpointing())
            yield

    def _encoded(self, items: Sequence[Item]) -> list[_Known]:
        """Items as tokens; with blocks left alone, also what those compute."""
        new = [i for i in items if i.id not in self.known]
        if new and self.blocks:
            self._with_base(new)
        elif new:
            self.known.update({i.id: _plain(i, e) for i, e in zip(new, self.model.encode(new), strict=True)})
        return [self.known[i.id] for i in items]

    def _with_base(self, items: Sequence[Item]) -> list[_Known]:
        """Items with the base model's view of them, computed once."""
        new = [i for i in items if i.id not in self.known or self.known[i.id].logp is None]
        if new:
            encoded = self.model.encode(new)
            flat = scoring.flatten(encoded)
            below: dict[int, Tensor] = {}

            def run(layout: Layout, rows: Sequence[int]) -> Tensor:
                if not self.blocks:
                    return layout.run(self.model.body)
                with capture.recorded(self.blocks[-1]) as seen:
                    hidden = layout.run(self.model.body)
                lower = seen[0].flatten(0, 1)
                below.update({r: lower[list(places)] for r, places in zip(rows, layout.places, strict=True)})
                return hidden

            with torch.no_grad(), self.model.unsteered():
                scores = scoring.score_flat(self.readout, flat, self._hidden(flat.rows, flat.wanted, run))
            start = 0
            for item, code, found in zip(new, encoded, scores, strict=True):
                held = tuple(below.get(r) for r in range(start, start + _rows(code)))
                self.known[item.id] = _Known(item, code, held, found.logp.clone(), found.log_mass.clone())
                start += _rows(code)
        return [self.known[i.id] for i in items]

    def _reference(self, items: Sequence[Item]) -> Tensor:
        """The base's mean (P(neither), log mass) of each item's template, from a few of its items; (items, 2).

        Both depend on the wording far more than on the concept, so a few items stand for all: a pass over every
        item that is drawn would cost a third of the learning time.
        """
        missing = sorted({i.template for i in items if i.template not in self.references})
        rng = random.Random(f"{self.seed}:reference")
        few = {t: rng.sample(self.of_template[t], min(REFERENCE_ITEMS, len(self.of_template[t]))) for t in missing}
        seen = {k.item.id: k for k in self._with_base([i for group in few.values() for i in group])}
        for template, group in few.items():
            p = [_share(seen[i.id], "neither") for i in group]
            mass = [float(seen[i.id].log_mass) for i in group]  # type: ignore[arg-type]
            self.references[template] = sum(p) / len(p), sum(mass) / len(mass)
        return torch.tensor([self.references[i.template] for i in items], device=self.model.device).reshape(-1, 2)

    def _windows(self) -> list[Window]:
        """Windows of neutral text, one from each passage, with the base's last hidden states."""
        rng = random.Random(f"{self.seed}:windows")
        cut = []
        for ids in self.model.tokens(self.texts):
            start = rng.randrange(max(1, len(ids) - self.s.kl_tokens + 1))
            cut.append(ids[start : start + self.s.kl_tokens])
        with torch.no_grad(), self.model.unsteered():
            _, hidden = self._scores([], cut)
        return list(zip(cut, hidden.split([len(ids) for ids in cut]), strict=True))

    # -- the steered model

    def interventions(self, theta: Tensor) -> dict[str, tuple[Diagonal]]:
        """Parameters (neurons, 2) as one Diagonal a site."""
        parts = theta.split(self.widths)
        return {s.name: (Diagonal(p[:, 0], p[:, 1]),) for s, p in zip(self.sites, parts, strict=True)}

    def _hidden(
        self, rows: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, int]], run: packing.Run
    ) -> Tensor:
        """Last hidden states (wanted, dim) at some (row, token) pairs."""
        pack = self.model.packs(max(map(len, rows)))
        return packing.hidden_at(rows, wanted, run, pack=pack, device=self.model.device)

    def _scores(
        self, known: Sequence[_Known], texts: Sequence[tuple[int, ...]] = ()
    ) -> tuple[list[Scores], Tensor]:
        """Scores of items, and the last hidden states (tokens, dim) of texts, which ride along in the same pass."""
        flat = scoring.flatten([k.encoded for k in known])
        rows = (*flat.rows, *texts)
        below = [*(h for k in known for h in k.below), *(None for _ in texts)]
        riding = [(len(flat.rows) + n, t) for n, text in enumerate(texts) for t in range(len(text))]

        def run(layout: Layout, some: Sequence[int]) -> Tensor:
            held = [h for h in (below[r] for r in some) if h is not None]
            reuse = bool(self.blocks) and len(held) == len(some)
            with capture.resumed(self.blocks, layout.spread(held)) if reuse else nullcontext():
                return layout.run(self.model.body)

        hidden = self._hidden(rows, [*flat.wanted, *riding], run)
        items = scoring.score_flat(self.readout, flat, hidden[: len(flat.wanted)]) if known else []
        return items, hidden[len(flat.wanted) :]

    # -- the objective

    def _attached(self) -> Dial:
        return attach(self.model.hf, Steering(self.interventions(self.theta)), 1.0)

    def _seen(self, known: Sequence[_Known], windows: Sequence[Window]) -> tuple[list[Tensor], ...]:
        """What the steered model makes of it: each item's log-probabilities, each item's log mass, each window's KL."""
        with self._attached():
            scores, hidden = self._scores(known, [ids for ids, _ in windows])
        kl: tuple[Tensor, ...] = ()
        if windows:
            logits, base = self.readout(hidden), self.readout(torch.cat([h for _, h in windows]))
            now, before = logits.log_softmax(-1), base.log_softmax(-1)
            kl = (now.exp() * (now - before)).sum(-1).split([len(ids) for ids, _ in windows])
        return [x.logp for x in scores], [x.log_mass for x in scores], list(kl)

    def _objective(
        self, known: Sequence[_Known], sizes: Sequence[int], seen: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, dict[str, float]]:
        """The bias of concepts of these sizes, the guards, and the KL, all of one step."""
        logps, log_mass, kl = seen
        terms: dict[str, Tensor | None] = {}
        if known:
            reference = self._reference([k.item for k in known[: sum(sizes)]])
            logp = pad_sequence(list(logps), batch_first=True, padding_value=-math.inf)
            terms |= _Batch(known, sizes, logp).terms(torch.stack(list(log_mass)), reference)
        if kl:
            terms["kl"] = torch.cat(list(kl)).mean()
        weights = {
            "bias": 1.0,
            "template": self.s.template_weight,
            "neither": self.s.neither_guard,
            "mass": self.s.mass_guard,
            "unambiguous": self.s.unambiguous_guard,
            "position": self.s.position_guard,
            "kl": self.beta,
        }
        found = {name: term for name, term in terms.items() if term is not None}
        total = sum((weights[name] * term for name, term in found.items()), torch.zeros((), device=self.model.device))
        return total, {"loss": float(total.detach()), **{name: float(term.detach()) for name, term in found.items()}}

    def _descend(
        self, concepts: Sequence[Sequence[_Known]], clear: Sequence[_Known], windows: Sequence[Window]
    ) -> dict[str, float]:
        """Add the gradient of the objective to theta's; in parts where less memory is asked for.

        Terms such as the templates' squared means are not sums over parts. So the parts are first run without a graph,
        the gradient is taken by what came out, and each part is run again to carry its share of it back to theta.
        """
        known = [k for group in concepts for k in group] + list(clear)
        sizes = [len(group) for group in concepts]
        parts = min(self.s.accumulate, max(1, len(known)))
        if parts == 1:
            total, figures = self._objective(known, sizes, self._seen(known, windows))
            self._backward([total], None)
            return figures
        chosen = [slice(n, None, parts) for n in range(parts)]
        leaves: tuple[list[Any], ...] = [None] * len(known), [None] * len(known), [None] * len(windows)
        with torch.no_grad():
            for part in chosen:
                for held, found in zip(leaves, self._seen(known[part], windows[part]), strict=True):
                    held[part] = found
        leaves = tuple([t.detach().requires_grad_() for t in held] for held in leaves)
        total, figures = self._objective(known, sizes, leaves)
        total.backward()
        for part in chosen:
            again = self._seen(known[part], windows[part])
            pairs = [
                (t, x.grad)
                for held, found in zip(leaves, again, strict=True)
                for x, t in zip(held[part], found, strict=True)
            ]
            wanted = [(t, g) for t, g in pairs if g is not None]
            self._backward([t for t, _ in wanted], [g for _, g in wanted])
        return figures

    def _backward(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> None:
        # Attached again: activation checkpointing computes the blocks, hooks and all, once more. Only the blocks, so
        # the final norm stays silent, and the dial may not be asked on leaving whether every site fired.
        dial = self._attached() if self.s.checkpointing else None
        try:
            torch.autograd.backward(list(outputs), gradients)
        finally:
            if dial is not None:
                dial.detach()

    def _sampled_loss(self, concepts: Sequence[Sequence[_Known]], key: int) -> tuple[Tensor, dict[str, float]]:
        """REINFORCE with a leave-one-out baseline: -mean_n (r_n - mean of the other rewards) log P(answer_n)."""
        known = [k for group in concepts for k in group]
        with self._attached():
            answers = self._generate([k.encoded.prompt for k in known], key)
        texts = [[self.model.text(a) for a in some] for some in answers]
        if self.reward is None:
            start = 0
            rewards: list[list[float]] = []
            for group in concepts:
                rewards += _majority_rewards(group, texts[start : start + len(group)])
                start += len(group)
        else:
            rewards = [[float(r) for r in self.reward(k.item, t)] for k, t in zip(known, texts, strict=True)]
            if any(len(r) != self.s.samples or not all(map(math.isfinite, r)) for r in rewards):
                raise UsageError("the reward function must return one finite number for each answer it is given")
        said = [_plain(k.item, Encoded(k.encoded.prompt, some)) for k, some in zip(known, answers, strict=True)]
        with self._attached():
            scores, _ = self._scores(said)
        r = torch.tensor(rewards, device=self.model.device)
        advantage = r - (r.sum(1, keepdim=True) - r) / (self.s.samples - 1)
        return -(advantage * torch.stack([x.logp for x in scores])).mean(), {"reward": float(r.mean())}

    def _descend_sampled(self, concepts: Sequence[Sequence[_Known]], step: int) -> dict[str, float]:
        """Add the gradient of the sampled loss to theta's, part by part: it is a mean over items, so parts add up."""
        parts = min(self.s.accumulate, len(concepts))
        figures = {"loss": 0.0, "reward": 0.0}
        for n in range(parts):
            mine = concepts[n::parts]
            share = sum(map(len, mine)) / sum(map(len, concepts))
            loss, seen = self._sampled_loss(mine, step * parts + n)
            self._backward([share * loss], None)
            figures["loss"] += share * float(loss.detach())
            figures["reward"] += share * seen["reward"]
        return figures

    @torch.no_grad()
    def _generate(self, prompts: Sequence[tuple[int, ...]], key: int) -> list[tuple[tuple[int, ...], ...]]:
        rows = [p for p in prompts for _ in range(self.s.samples)]
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(random.Random(f"{self.seed}:{key}:answers").getrandbits(63))
            new = self.model.generate_ids(
                rows,
                keep_stop=True,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.s.max_new_tokens,
            )
        n = self.s.samples
        return [tuple(tuple(a) for a in new[i * n : (i + 1) * n]) for i in range(len(prompts))]

    # -- the loop

    def learn(self, checkpoint: Path | None, progress: ProgressCallback | None) -> list[dict[str, float]]:
        """Run the steps; returns the history of figures at each look."""
        optimiser = torch.optim.Adam([self.theta], lr=self.s.learning_rate, betas=(0.9, 0.99))
        state = _State(self, optimiser, checkpoint)
        begun, first, window = time.monotonic(), state.step, []
        while state.step < self.s.steps and not state.stopped:
            step = state.step
            rate = self.s.learning_rate * _schedule(step, self.s.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            window.append(self.step(step))
            nn.utils.clip_grad_norm_([self.theta], 1.0)
            optimiser.step()
            self._shrink(rate)
            state.step += 1
            if state.step % self.s.validate_every == 0 or state.step == self.s.steps:
                figures = {k: sum(f[k] for f in window if k in f) / len(window) for k in window[-1]}
                state.look(figures, self._validate())
                window = []
                state.save()
                # A resumed run begins with the guards alone, and the base's values may be rounded otherwise in a batch
                # of other items; so an unbroken run begins anew here as well.
                self.known.clear()
                self.references.clear()
                self.guards = []
            if progress is not None:
                spent = time.monotonic() - begun
                left = spent / (state.step - first) * (self.s.steps - state.step)
                shown = tuple(
                    (k, v) for k, v in (state.history[-1] if not window else window[-1]).items() if k != "step"
                )
                progress(Progress("learning", state.step, self.s.steps, shown, left))
        if not state.history:
            self.best = self.theta.detach().clone()
        self._hold_budget()
        return state.history

    @torch.no_grad()
    def _hold_budget(self) -> None:
        """Shrink the result, where its KL on all windows exceeds the budget, to the largest share that keeps it.

        The dual variable steers towards the budget on a few windows a step; this makes it hold on all of them.
        """
        if not self.windows:
            return
        self.held = {"budget": self.s.kl_budget, "share": 1.0, "kl": self._window_kl(self.best)}
        low, high = 0.0, 1.0
        if self.held["kl"] > self.s.kl_budget:
            for _ in range(7):
                middle = (low + high) / 2
                low, high = (middle, high) if self._window_kl(self.best * middle) <= self.s.kl_budget else (low, middle)
            self.best *= low
            self.held |= {"share": low, "kl": self._window_kl(self.best)}

    def _window_kl(self, theta: Tensor) -> float:
        """KL(steered || base) at all tokens of all windows, mean in nats a token."""
        with attach(self.model.hf, Steering(self.interventions(theta)), 1.0):
            _, hidden = self._scores([], [ids for ids, _ in self.windows])
        nothing = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        base = torch.cat([h for _, h in self.windows])
        return scoring.nll_and_kl(self.readout, hidden, base, nothing)[1] / len(hidden)

    def _guards(self) -> list[Item]:
        """The unambiguous items that steps draw from; the base scores them in one go, which is cheaper."""
        if self.guards:
            return self.guards
        clear = [i for i in self.train if not i.ambiguous]
        most = max(GUARDS_AT_MOST, self.s.unambiguous_per_step)
        chosen = random.Random(f"{self.seed}:guards").sample(clear, min(most, len(clear)))
        for start in range(0, len(chosen), 128):
            self._with_base(chosen[start : start + 128])
        self.guards = chosen
        return chosen

    def step(self, step: int) -> dict[str, float]:
        """Gradients of one step, part by part; returns its figures."""
        rng = random.Random(f"{self.seed}:{step}")
        groups, clear = self.of_concept, self._guards()
        concepts = rng.sample(sorted(groups), min(self.s.concepts_per_step, len(groups)))
        # The position guard compares with the base item by item.
        prepare = self._with_base if self.listed else self._encoded
        drawn = [
            prepare([i for t in rng.sample(groups[o], min(self.s.templates_per_step, len(groups[o]))) for i in t])
            for o in concepts
        ]
        guard = self._with_base(rng.sample(clear, min(self.s.unambiguous_per_step, len(clear))))
        windows = rng.sample(self.windows, min(self.s.kl_windows, len(self.windows)))
        if self.s.mode == "exact":
            figures = self._descend(drawn, guard, windows)
        else:
            figures = self._descend_sampled(drawn, step)
            if guard or windows:
                more = self._descend([], guard, windows)
                figures |= more | {"loss": figures["loss"] + more["loss"]}
        if "kl" in figures:
            over = figures["kl"] / max(self.s.kl_budget, 1e-9) - 1.0
            self.beta = min(100.0, max(0.1, self.beta * math.exp(DUAL_RATE * max(-1.0, min(1.0, over)))))
        return figures

    @torch.no_grad()
    def _shrink(self, rate: float) -> None:
        if self.s.l1 > 0:
            self.theta.copy_(nn.functional.softshrink(self.theta, rate * self.s.l1))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Bias and guard figures on the validation items at strength 1; lower `score` is better."""
        chosen = self.validation[:: max(1, len(self.validation) // VALIDATION_AT_MOST)]
        if not chosen or self.reward is not None:
            return {}
        cached = self._with_base(chosen)
        groups = [[c for c in cached if c.item.ambiguous and c.item.concept == o] for o, _ in by_concept(chosen)]
        groups = [g for g in groups if g]
        ordered = [c for g in groups for c in g] + [c for c in cached if not c.item.ambiguous]
        found: list[Tensor] = []
        with self._attached():
            for start in range(0, len(ordered), 256):
                found += [x.logp for x in self._scores(ordered[start : start + 256])[0]]
        logp = pad_sequence(found, batch_first=True, padding_value=-math.inf)
        batch = _Batch(ordered, [len(g) for g in groups], logp)
        figures = {f"validation_{k}": float(v) for k, v in batch.falls().items() if v is not None}
        figures["validation_score"] = sum(figures.values())
        return figures


class _State:
    """What a killed run needs to go on: parameters, optimiser moments, the dual variable, the best so far."""

    def __init__(self, run: _Run, optimiser: torch.optim.Adam, path: Path | None) -> None:
        self.run, self.optimiser, self.path = run, optimiser, path
        self.step = 0
        self.stale = 0
        self.best_score = math.inf
        self.history: list[dict[str, float]] = []
        data = hashlib.sha256("\n".join(f"{i.digest()} {i.id}" for i in [*run.train, *run.validation]).encode())
        self.identity = {
            "settings": asdict(run.s),
            "seed": run.seed,
            "model": run.model.fingerprint(),
            "dtype": str(run.model.dtype),
            "data": data.hexdigest(),
            "neutral": hashlib.sha256("\n".join(run.texts).encode()).hexdigest(),
        }
        if path is not None and path.exists():
            self._load(path)

    @property
    def stopped(self) -> bool:
        return self.stale >= self.run.s.patience

    def look(self, figures: dict[str, float], validation: dict[str, float]) -> None:
        self.history.append({"step": self.step, **figures, **validation})
        score = validation.get("validation_score")
        if score is None or score < self.best_score:
            self.best_score = math.inf if score is None else score
            self.run.best = self.run.theta.detach().clone()
            self.stale = 0
        else:
            self.stale += 1

    def save(self) -> None:
        if self.path is None:
            return
        from safetensors.torch import save

        moments = self.optimiser.state[self.run.theta]
        tensors = {
            "theta": self.run.theta.detach(),
            "best": self.run.best,
            "exp_avg": moments["exp_avg"],
            "exp_avg_sq": moments["exp_avg_sq"],
            "updates": moments["step"].reshape(1),
        }
        scalars = {
            "identity": self.identity,
            "step": self.step,
            "stale": self.stale,
            "beta": self.run.beta,
            "best_score": self.best_score,
            "history": self.history,
        }
        blob = save({k: t.cpu().contiguous() for k, t in tensors.items()}, metadata={"state": json.dumps(scalars)})
        write_whole(self.path, blob)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                scalars = json.loads(file.metadata()["state"])
                tensors = {k: file.get_tensor(k).to(self.run.model.device) for k in file.keys()}  # noqa: SIM118
            whole = {"identity", "step", "stale", "beta", "best_score", "history"} <= scalars.keys()
            if not (whole and {"theta", "best", "exp_avg", "exp_avg_sq", "updates"} <= tensors.keys()):
                raise ValueError("parts are missing")
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint {path} is damaged ({error}); delete it to begin anew") from error
        differing = sorted(k for k, v in self.identity.items() if scalars["identity"].get(k) != v)
        if differing:
            raise RunError(
                f"the checkpoint {path} is of another run: its {', '.join(differing)} differ. Give another --out, or "
                "delete it to begin anew"
            )
        with torch.no_grad():
            self.run.theta.copy_(tensors["theta"])
        self.run.best = tensors["best"]
        self.run.beta = scalars["beta"]
        self.step, self.stale = scalars["step"], scalars["stale"]
        self.best_score, self.history = scalars["best_score"], scalars["history"]
        self.optimiser.state[self.run.theta] = {
            "step": tensors["updates"].cpu().reshape(()),
            "exp_avg": tensors["exp_avg"],
            "exp_avg_sq": tensors["exp_avg_sq"],
        }


class _Batch:
    """Items with their steered scores: ambiguous ones by concept first, then unambiguous ones."""

    def __init__(self, known: Sequence[_Known], sizes: Sequence[int], logp: Tensor) -> None:
        self.known, self.sizes, self.logp = known, sizes, logp
        self.ambiguous = sum(sizes)
        self.p = logp.softmax(-1)

    def terms(self, log_mass: Tensor, reference: Tensor) -> dict[str, Tensor | None]:
        """What the loss is made of; None where undefined. `reference` holds the base's (P(neither), log mass)."""
        n = self.ambiguous
        fall = self._log_correct(self._before(slice(n, None))) - self._log_correct(self.logp[n:])
        return {
            "bias": self._bias(),
            "template": self._template_tilt(),
            "neither": _leaning((self._role("neither")[:n] - reference[:, 0]).mean()) if n else None,
            "mass": torch.relu((reference[:, 1] - log_mass[:n]).mean()) if n else None,
            "unambiguous": torch.relu(fall).mean() if n < len(self.known) else None,
            "position": self._position_growth(),
        }

    def falls(self) -> dict[str, Tensor | None]:
        """What a look is judged by: the bias, and by how much each guarded figure is worse than the base's."""
        n, before = self.ambiguous, self._before(slice(None)).softmax(-1)
        correct = (self._role("correct", before) - self._role("correct"))[n:]
        rise = (self._role("neither") - self._role("neither", before))[:n]
        return {
            "bias": self._bias(),
            "neither": torch.relu(rise.mean()) if n else None,
            "unambiguous": torch.relu(correct.mean()) if n < len(self.known) else None,
            "position": self._position_growth(),
        }

    def _before(self, part: slice) -> Tensor:
        """The base's log-probabilities of some of the items."""
        held = [k.logp for k in self.known[part] if k.logp is not None]
        if not held:
            return self.logp[part]
        before = pad_sequence(held, batch_first=True, padding_value=-math.inf)
        return nn.functional.pad(before, (0, self.logp.shape[1] - before.shape[1]), value=-math.inf)

    def _template_tilt(self) -> Tensor | None:
        """Mean over the templates at hand of the squared mean of P(pro) - P(anti), signed by group where named."""
        if not self.ambiguous:
            return None
        names = [k.item.template for k in self.known[: self.ambiguous]]
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        index = torch.tensor([place[name] for name in names], device=self.p.device)
        sign = torch.tensor([_orientation(k.item) for k in self.known[: self.ambiguous]], device=self.p.device)
        shift = sign * (self._role("pro") - self._role("anti"))[: self.ambiguous]
        count = torch.bincount(index, minlength=len(place))
        means = torch.zeros(len(place), device=self.p.device).index_add(0, index, shift) / count
        return means.pow(2).mean()

    def _role(self, role: str, p: Tensor | None = None) -> Tensor:
        return ((self.p if p is None else p) * self._mask(role)).sum(-1)

    def _mask(self, role: str) -> Tensor:
        width = self.logp.shape[1]
        rows = [[float(o.role == role) for o in k.item.options] for k in self.known]
        return torch.tensor([r + [0.0] * (width - len(r)) for r in rows], device=self.logp.device)

    def _log_correct(self, logp: Tensor) -> Tensor:
        correct = self._mask("correct")[self.ambiguous :].bool()
        return logp.log_softmax(-1).masked_fill(~correct, -math.inf).logsumexp(-1)

    def _bias(self) -> Tensor | None:
        """Mean over concepts of |P(pro) - P(anti)|, or of max - min over groups where items offer more than two."""
        shift = (self._role("pro") - self._role("anti"))[: self.ambiguous].split(list(self.sizes))
        found, start = [], 0
        for part, size in zip(shift, self.sizes, strict=True):
            members = self.known[start : start + size]
            groups = sorted({o.group for c in members for o in c.item.options if o.group is not None})
            if any(len({o.group for o in c.item.options} - {None}) > 2 for c in members):
                found.append(self._spread(start, members, groups))
            else:
                found.append(part.mean().abs())
            start += size
        return torch.stack(found).mean() if found else None

    def _spread(self, start: int, members: Sequence[_Known], groups: Sequence[str]) -> Tensor:
        means = []
        for group in groups:
            offered = [
                self.p[start + n, [k for k, o in enumerate(c.item.options) if o.group == group]].sum()
                for n, c in enumerate(members)
                if any(o.group == group for o in c.item.options)
            ]
            means.append(torch.stack(offered).mean())
        return torch.stack(means).max() - torch.stack(means).min()

    def _position_growth(self) -> Tensor | None:
        """Growth of |mean P(listed first) - P(listed last)| over the base's, on items that list their options."""
        ends = []
        for n, k in enumerate(self.known):
            places = [o.position for o in k.item.options]
            if _listed(k.item):
                order = sorted(range(len(places)), key=lambda i: places[i] or 0)
                ends.append((n, order[0], order[-1]))
        if not ends or any(k.logp is None for k in self.known):
            return None
        row, first, last = torch.tensor(ends, device=self.p.device).unbind(1)
        before = self._before(slice(None)).softmax(-1)
        now, base = ((p[row, first] - p[row, last]).mean() for p in (self.p, before))
        return torch.relu(now.abs() - base.abs())


def _leaning(rise: Tensor) -> Tensor:
    """|rise|, a fall counting a quarter; were they even, noise would let the share of refusals end above the base's."""
    return torch.relu(rise) + 0.25 * torch.relu(-rise)


def _schedule(step: int, steps: int) -> float:
    """A linear warm-up over the first tenth (10 steps at most), then a cosine to 0."""
    warm = max(1, min(10, steps // 10))
    return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _above(model: SteerableModel, found: list[sites.Site], depth: float) -> list[sites.Site]:
    """The sites in the blocks above a share of the depth, and those that belong to no block."""
    numbers = [int(s.name.split(".")[1]) if re.match(r"layers\.\d+\.", s.name) else None for s in found]
    blocks = 1 + max((n for n in numbers if n is not None), default=-1)
    kept = [s for s, n in zip(found, numbers, strict=True) if n is None or n >= math.floor(blocks * depth)]
    return kept or found


def _items(items: Task | Sequence[Item], split: str) -> list[Item]:
    if isinstance(items, Task):
        return list(items.split(split))
    divided = any(i.split for i in items)
    return [i for i in items if i.split == split] if divided else list(items) if split == "train" else []


def _require_learnable(train: list[Item], *, needs_roles: bool) -> None:
    ambiguous = [i for i in train if i.ambiguous]
    if not ambiguous:
        raise TaskError("there is no ambiguous item in the training split; DSO has nothing to make equiprobable")
    if not needs_roles:
        return
    for concept, members in by_concept(ambiguous):
        roles = {o.role for i in members for o in i.options}
        groups = {o.group for i in members for o in i.options} - {None}
        if not {"pro", "anti"} <= roles and len(groups) < 2:
            raise TaskError(
                f"concept '{concept}' has one class of outcome ({', '.join(sorted(roles))}); a bias needs options of "
                "both roles, pro and anti, or of two groups"
            )


def _templates(members: Sequence[Item]) -> list[list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in members:
        groups.setdefault(item.template, []).append(item)
    return list(groups.values())


def _plain(item: Item, encoded: Encoded) -> _Known:
    """An item of which nothing was computed."""
    return _Known(item, encoded, (None,) * _rows(encoded))


def _rows(encoded: Encoded) -> int:
    """Rows that an item takes in a flat layout."""
    return max(1, sum(len(o) > 1 for o in encoded.options))


def _listed(item: Item) -> bool:
    """Whether the prompt lists or mentions all options, at places of their own."""
    places = {o.position for o in item.options}
    return None not in places and len(places) > 1


def _orientation(item: Item) -> float:
    """1 or -1, so that P(pro) - P(anti) times it is about the same two groups in every item that names groups."""
    pro = next((o.group for o in item.options if o.role == "pro"), None)
    anti = next((o.group for o in item.options if o.role == "anti"), None)
    return -1.0 if pro is not None and anti is not None and pro > anti else 1.0


def _share(known: _Known, role: str) -> float:
    assert known.logp is not None
    p = known.logp.softmax(0)
    return sum(float(v) for v, o in zip(p, known.item.options, strict=True) if o.role == role)


def _majority_rewards(group: Sequence[_Known], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    """-1 for the concept's majority outcome among the answers, +1 for the other, 0 for neither or a tie."""
    outcomes = [[outcome(c.item, a) for a in some] for c, some in zip(group, answers, strict=True)]
    flat = [o for some in outcomes for o in some]
    lead = flat.count("pro") - flat.count("anti")
    sign = {"pro": -1.0, "anti": 1.0, "neither": 0.0}
    return [[sign[o] * ((lead > 0) - (lead < 0)) for o in some] for some in outcomes]


def outcome(item: Item, answer: str) -> str:
    """The role of the option that a generated answer begins with, as whole words; "neither" where it is none."""
    said = answer.strip().casefold()
    for option in sorted(item.options, key=lambda o: -len(o.text)):
        text = option.text.strip().casefold()
        if said.startswith(text) and not said[len(text) : len(text) + 1].isalnum():
            return option.role
    return "neither"
