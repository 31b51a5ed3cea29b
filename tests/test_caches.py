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


def test_rows_of_a_cache_joined_again_are_the_cache(llama: Any) -> None:
    """Keys, values and notes in the order that is asked for; a row shares no memory, and joining changes no part."""
    with torch.no_grad():
        whole = caches.returned(llama.body(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), use_cache=True))
    whole.behind = torch.tensor([True, False, True])
    rows = [caches.row(whole, n) for n in (2, 0, 1)]
    together = caches.joined(rows)
    assert together.behind.tolist() == [True, True, False] and together.get_seq_length() == 3
    assert caches.size(together) == caches.size(whole) == sum(map(caches.size, rows))
    for layer, before in zip(together.layers, whole.layers, strict=True):
        assert torch.equal(layer.keys, before.keys[[2, 0, 1]]) and torch.equal(layer.values, before.values[[2, 0, 1]])
    whole.layers[0].keys.zero_()
    assert float(rows[0].layers[0].keys.abs().sum()) > 0
    with torch.no_grad():
        llama.body(input_ids=torch.tensor([[1], [2], [3]]), use_cache=True, **caches.argument(llama.body, together))
    assert together.get_seq_length() == 4 and all(r.get_seq_length() == 3 for r in rows)
