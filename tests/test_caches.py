"""A cache is found by either of its names, and given by the one that the module knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trimtab import caches, scoring
from trimtab.scoring import Encoded


class Held:
    """A cache of three tokens."""

    def get_seq_length(self) -> int:
        return 3


class Old(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return past_key_values


class New(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> Any:
        return cache


@pytest.mark.parametrize("name", caches.NAMES)
def test_a_cache_is_found_by_either_name(name: str) -> None:
    held = Held()
    assert caches.given({name: held, "input_ids": None}) is held
    assert caches.given({n: held if n == name else None for n in caches.NAMES}) is held
    assert caches.held({name: held}) == 3
    assert caches.returned(SimpleNamespace(**{name: held})) is held
    assert caches.given({name: None}) is None and caches.held({}) == 0


@pytest.mark.parametrize("module", [Old(), New()])
def test_a_cache_is_given_by_the_name_that_the_module_knows(module: nn.Module) -> None:
    held = Held()
    assert module(None, **caches.argument(module, held)) is held
    for before in caches.NAMES:
        kwargs: dict[str, Any] = {"input_ids": None, before: None}
        caches.put(kwargs, module, held)
        assert module(**kwargs) is held


def test_scoring_from_caches_uses_no_name_that_transformers_has_given_up(
    llama: Any, recwarn: pytest.WarningsRecorder
) -> None:
    """A stem that many prompts share, and options of several tokens behind each prompt: both go on from a cache."""
    passes: list[int] = []
    hook = llama.body.register_forward_pre_hook(lambda _, __, kw: passes.append(caches.held(kw)), with_kwargs=True)
    stem = tuple(range(3, 23))
    items = [Encoded((*stem, n), ((5, 6), (7, 8))) for n in range(30, 60)]
    with torch.no_grad():
        scoring.score(llama.body, llama.readout, items)
    hook.remove()
    assert passes == [0, len(stem), len(stem) + 1]
    assert not [w for w in recwarn if "past_key_values" in str(w.message)]
