"""A model's cache of keys and values, by whichever name this version of transformers has for it.

It was `past_key_values`, as an argument and in outputs; since transformers 5.24 it is `cache`, and the old name goes
with 5.40. A hook sees the name that its caller used, and generation changed it from one version to the next: a hook
that knows the old one alone takes every pass for the first.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("cache", "past_key_values")
NOTES = ("shift", "behind")
"""Attributes by which vision.py notes on a cache what it must know of each row, where there is anything: (rows,)."""


def given(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward pass, or None."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def held(kwargs: Mapping[str, Any]) -> int:
    """How many tokens a row of the given cache holds; 0 without one."""
    found = given(kwargs)
    return int(found.get_seq_length()) if found is not None else 0


def argument(module: nn.Module, value: Any) -> dict[str, Any]:
    """A cache as the argument of a module's forward pass."""
    known = inspect.signature(module.forward).parameters
    return {next((name for name in NAMES if name in known), NAMES[-1]): value}


def put(kwargs: dict[str, Any], module: nn.Module, value: Any) -> None:
    """Make a cache the one among the arguments of a module's forward pass."""
    for name in NAMES:
        kwargs.pop(name, None)
    kwargs.update(argument(module, value))


def returned(output: Any) -> Any:
    """The cache that a forward pass put out."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def row(value: Any, number: int) -> Any:
    """One row of a cache as a cache of its own, which shares no memory with it."""
    return _made([value], lambda parts: parts[0][number : number + 1].clone())


def joined(values: Sequence[Any]) -> Any:
    """One cache with the rows of several, all of which hold equally many tokens."""
    return _made(values, torch.cat)


def _made(values: Sequence[Any], of: Callable[[list[Tensor]], Tensor]) -> Any:
    # Cache layers replace their tensors and never write into them, so shallow copies do not see each other.
    found = copy.copy(values[0])
    found.layers = [copy.copy(layer) for layer in found.layers]
    for n, layer in enumerate(found.layers):
        layer.keys = of([v.layers[n].keys for v in values])
        layer.values = of([v.layers[n].values for v in values])
    for name in NOTES:
        if getattr(found, name, None) is not None:
            setattr(found, name, of([getattr(v, name) for v in values]))
    return found


def size(value: Any) -> int:
    """Bytes of its keys and values."""
    return sum(t.numel() * t.element_size() for layer in value.layers for t in (layer.keys, layer.values))
