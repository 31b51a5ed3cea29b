"""Sampled mode: answers that the model generates, what they are worth, and REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import UsageError
from trimtab.model import SteerableModel
from trimtab.types import Item, Reward


def reinforce(rewards: Float[Tensor, "items samples"], logp: Float[Tensor, "items samples"]) -> Float[Tensor, ""]:
    """-mean_n (r_n - mean of the item's other rewards) log P(answer_n)."""
    samples = rewards.shape[1]
    advantage = rewards - (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    return -(advantage * logp).mean()


@torch.no_grad()
def answers(
    model: SteerableModel, prompts: Sequence[tuple[int, ...]], samples: int, max_new_tokens: int, draw: int
) -> list[tuple[tuple[int, ...], ...]]:
    """Some answers to each prompt, drawn at temperature 1 from a random stream of their own, whatever the model's own
    generation settings: REINFORCE needs draws of the distribution that is scored."""
    rows = [p for p in prompts for _ in range(samples)]
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(draw)
        new = model.generate_ids(
            rows,
            keep_stop=True,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=max_new_tokens,
        )
    return [tuple(tuple(a) for a in new[i * samples : (i + 1) * samples]) for i in range(len(prompts))]


def majority_rewards(concepts: Sequence[Sequence[Item]], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    """-1 for a concept's majority outcome among its answers, +1 for the other, 0 for any other answer or a tie."""
    found: list[list[float]] = []
    for members in concepts:
        mine = answers[len(found) : len(found) + len(members)]
        outcomes = [[outcome(i, a) for a in some] for i, some in zip(members, mine, strict=True)]
        flat = [o for some in outcomes for o in some]
        lead = flat.count("pro") - flat.count("anti")
        sign = {"pro": -1.0, "anti": 1.0}
        found += [[sign.get(o, 0.0) * ((lead > 0) - (lead < 0)) for o in some] for some in outcomes]
    return found


def checked_rewards(reward: Reward, items: Sequence[Item], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    """What the user's function says; raises UsageError unless it is one finite number for each answer."""
    rewards = []
    for item, some in zip(items, answers, strict=True):
        said = reward(item, list(some))
        try:
            mine = [float(r) for r in said]
        except (TypeError, ValueError):  # one number, None, words
            mine = []
        if len(mine) != len(some) or not all(map(math.isfinite, mine)):
            raise UsageError(
                f"the reward function must return one finite number for each answer it is given; for {len(some)} "
                f"answers to item '{item.id}' it returned {said!r:.80}"
            )
        rewards.append(mine)
    return rewards


def outcome(item: Item, answer: str) -> str:
    """The role of the option that a generated answer begins with, as whole words; "neither" where it is none."""
    said = answer.strip().casefold()
    for option in sorted(item.options, key=lambda o: -len(o.text)):
        text = option.text.strip().casefold()
        if said.startswith(text) and not said[len(text) : len(text) + 1].isalnum():
            return option.role
    return "neither"
