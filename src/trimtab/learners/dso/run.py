"""One fit of DSO: the data, the parameters, the passes, and the loop."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trimtab import sites
from trimtab.errors import UsageError
from trimtab.interventions import Diagonal
from trimtab.learners.dso import sampled
from trimtab.learners.dso.checkpoint import State
from trimtab.learners.fairness import Aims, Fairness, Window, schedule
from trimtab.learners.fairness.terms import Known
from trimtab.model import SteerableModel
from trimtab.scoring import Encoded
from trimtab.steering import Dial, Steering, attach
from trimtab.types import Item, Progress, ProgressCallback, Reward

if TYPE_CHECKING:
    from trimtab.learners.dso import DSO

CLIP = 1.0
"""Norm to which a step's gradient is clipped."""
PART_AT_MOST = 16384
"""Tokens of a part of a step whose activations are kept for the backward pass: some 8 GiB for demo:smollm2. A step on
BBQ that kept all at once was killed at 20 GB (measured)."""
SAVE_EVERY = 10
"""Steps after which a checkpoint is written."""


class Run:
    """One fit: the parameters, and the objective (learners/fairness) of what they make of the model."""

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
        self.aim = Fairness(Aims.of(settings), model, train, validation, texts, seed)
        self.sites = _above(sites.find(model.hf, settings.sites), settings.depth)
        if unknown := [s.name for s in self.sites if s.width is None]:
            raise UsageError(f"DSO cannot tell the width of {unknown}")
        self.widths = [int(site.width or 0) for site in self.sites]
        # One matrix (neurons, 2): a and b over all sites; views are cut out where needed.
        self.theta = torch.zeros(sum(self.widths), 2, device=model.device, requires_grad=True)
        self.best = self.theta.detach().clone()
        self.kept_at = 0
        self.held: dict[str, float] = {}

    @property
    def reward_name(self) -> str | None:
        """Where the user's reward function is from."""
        if self.reward is None:
            return None
        return f"{self.reward.__module__}:{getattr(self.reward, '__qualname__', type(self.reward).__name__)}"

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The base's view of things, and activation checkpointing where it was asked for."""
        with ExitStack() as stack:
            if self.s.checkpointing:
                stack.enter_context(self.model.activation_checkpointing())
            stack.enter_context(self.aim.prepared(exact=self.s.mode == "exact", looks=self.reward is None))
            yield

    # -- the steered model

    def interventions(self, theta: Tensor) -> dict[str, tuple[Diagonal]]:
        """Parameters (neurons, 2) as one Diagonal a site."""
        parts = theta.split(self.widths)
        return {s.name: (Diagonal(p[:, 0], p[:, 1]),) for s, p in zip(self.sites, parts, strict=True)}

    def attached(self, theta: Tensor | None = None) -> Dial:
        """The model steered at strength 1 by some parameters, those being learned unless told otherwise."""
        made = self.interventions(self.theta if theta is None else theta)
        return attach(self.model.hf, Steering(made, {"positions": self.s.positions}), 1.0)

    # -- one step

    def step(self, step: int) -> dict[str, float]:
        """Gradients of one step, part by part; returns its figures."""
        drawn, guards, windows = self.aim.draw(step)
        if self.s.mode == "exact":
            figures = self._descend(drawn, guards, windows)
        else:
            figures = self._descend_sampled(drawn, step)
            if guards or windows:
                more = self._descend([], guards, windows)
                figures |= more | {"loss": figures["loss"] + more["loss"]}
        self.aim.prices.follow(figures, self.s.kl_budget)
        return figures

    def _look(self) -> dict[str, float]:
        if not self.aim.looked_at[0]:
            return {}  # nothing would run, and a dial that did nothing complains
        with self.attached():
            return self.aim.look()

    def _window_kl(self, theta: Tensor) -> float:
        with self.attached(theta):
            return self.aim.window_kl()

    def _descend(
        self, concepts: Sequence[Sequence[Item]], guards: Sequence[Known], windows: Sequence[Window]
    ) -> dict[str, float]:
        """Add the gradient of the objective to theta's; in parts where less memory is asked for.

        Terms such as the templates' squared means are not sums over parts. So the parts are first run without a graph,
        the gradient is taken by what came out, and each part is run again to carry its share of it back to theta.
        """
        ambiguous = [i for members in concepts for i in members]
        known = [*(self.aim.known(ambiguous) if ambiguous else []), *guards]
        sizes = [len(members) for members in concepts]
        needed = max(self.s.accumulate, math.ceil(self.aim.tokens(known, windows) / PART_AT_MOST))
        parts = min(needed, max(len(known), len(windows), 1))
        if parts == 1:
            with self.attached():
                total, figures = self.aim.objective(known, sizes, self.aim.seen(known, windows))
                total.backward()
            return figures
        chosen = [slice(n, None, parts) for n in range(parts)]
        lengths = len(known), len(known), len(windows), len(windows)
        leaves: tuple[list[Any], ...] = tuple([None] * n for n in lengths)
        with torch.no_grad(), self.attached():
            for part in chosen:
                for held, found in zip(leaves, self.aim.seen(known[part], windows[part]), strict=True):
                    held[part] = found
        leaves = tuple([t.detach().requires_grad_() for t in held] for held in leaves)
        total, figures = self.aim.objective(known, sizes, leaves)
        total.backward()
        for part in chosen:
            with self.attached():
                again = self.aim.seen(known[part], windows[part])
                pairs = [
                    (t, x.grad)
                    for held, found in zip(leaves, again, strict=True)
                    for x, t in zip(held[part], found, strict=True)
                ]
                wanted = [(t, g) for t, g in pairs if g is not None]
                torch.autograd.backward([t for t, _ in wanted], [g for _, g in wanted])
        return figures

    def _descend_sampled(self, concepts: Sequence[Sequence[Item]], step: int) -> dict[str, float]:
        """Add the gradient of the sampled loss to theta's, part by part: it is a mean over items, so parts add up."""
        parts = min(self.s.accumulate, len(concepts))
        figures = {"loss": 0.0, "reward": 0.0}
        for n in range(parts):
            mine = concepts[n::parts]
            share = sum(map(len, mine)) / sum(map(len, concepts))
            with self.attached():
                loss, reward = self._sampled_loss(mine, step * parts + n)
                (share * loss).backward()
            figures["loss"] += share * float(loss.detach())
            figures["reward"] += share * reward
        return figures

    def _sampled_loss(self, concepts: Sequence[Sequence[Item]], key: int) -> tuple[Tensor, float]:
        """REINFORCE on answers generated now, and their mean reward."""
        items = [i for members in concepts for i in members]
        encoded = self.model.encode(items)
        draw = random.Random(f"{self.seed}:{key}:answers").getrandbits(63)
        answers = sampled.answers(self.model, [e.prompt for e in encoded], self.s.samples, self.s.max_new_tokens, draw)
        texts = [[self.model.text(a) for a in some] for some in answers]
        if self.reward is None:
            rewards = sampled.majority_rewards(concepts, texts)
        else:
            rewards = sampled.checked_rewards(self.reward, items, texts)
        said = [Known(i, Encoded(e.prompt, some)) for i, e, some in zip(items, encoded, answers, strict=True)]
        scores, _ = self.aim.scores(said)
        r = torch.tensor(rewards, device=self.model.device)
        return sampled.reinforce(r, torch.stack([x.logp for x in scores])), float(r.mean())

    # -- the loop

    def learn(self, checkpoint: Path | None, progress: ProgressCallback | None) -> list[dict[str, float]]:
        """Run the steps; returns the history of figures at each look."""
        optimiser = torch.optim.Adam([self.theta], lr=self.s.learning_rate, betas=(0.9, 0.99))
        state = State(self, optimiser, checkpoint)
        begun, first = time.monotonic(), state.step
        while state.step < self.s.steps and not state.stopped:
            rate = self.s.learning_rate * schedule(state.step, self.s.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            state.note(self.step(state.step))
            norm = float(nn.utils.clip_grad_norm_([self.theta], CLIP))
            optimiser.step()
            self._shrink(optimiser, rate * min(1.0, CLIP / max(norm, 1e-12)))
            state.step += 1
            looks = state.step % self.s.validate_every == 0 or state.step == self.s.steps
            if looks:
                state.look(self._look())
            if looks or state.step % SAVE_EVERY == 0:
                state.save()
            if progress is not None:
                left = (time.monotonic() - begun) / (state.step - first) * (self.s.steps - state.step)
                progress(Progress("learning", state.step, self.s.steps, state.latest, left))
        if not state.history:
            self.best = self.theta.detach().clone()
        self._hold_budget()
        return state.history

    @torch.no_grad()
    def _shrink(self, optimiser: torch.optim.Adam, rate: float) -> None:
        """The proximal step of lam |theta|_1 in the metric of Adam's step: a soft threshold at rate lam / sqrt(v).

        `rate` is Adam's, times what clipping left of the gradient: lam is weighed against the gradient as it was.
        """
        if self.s.l1 > 0:
            moments = optimiser.state[self.theta]
            v = moments["exp_avg_sq"] / (1.0 - optimiser.param_groups[0]["betas"][1] ** float(moments["step"]))
            threshold = rate * self.s.l1 / (v.sqrt() + optimiser.param_groups[0]["eps"])
            self.theta.copy_(self.theta.sign() * torch.relu(self.theta.abs() - threshold))

    @torch.no_grad()
    def _hold_budget(self) -> None:
        """Shrink the result, where its KL on the held windows exceeds the budget, to the largest share that keeps it.

        The dual variable steers towards the budget on a few windows a step; this makes it hold on many of them.
        """
        if not self.aim.windows or not math.isfinite(self.s.kl_budget):
            return
        self.held = {"budget": self.s.kl_budget, "share": 1.0, "kl": self._window_kl(self.best)}
        low, high = 0.0, 1.0
        if self.held["kl"] > self.s.kl_budget:
            for _ in range(10):
                middle = (low + high) / 2
                low, high = (middle, high) if self._window_kl(self.best * middle) <= self.s.kl_budget else (low, middle)
            self.best *= low
            self.held |= {"share": low, "kl": self._window_kl(self.best)}


def _above(found: list[sites.Site], depth: float) -> list[sites.Site]:
    """The sites in the blocks above a share of the depth, and those that belong to no block."""
    numbers = [int(s.name.split(".")[1]) if re.match(r"layers\.\d+\.", s.name) else None for s in found]
    blocks = 1 + max((n for n in numbers if n is not None), default=-1)
    kept = [s for s, n in zip(found, numbers, strict=True) if n is None or n >= math.floor(blocks * depth)]
    return kept or found
