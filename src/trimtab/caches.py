"""A model's cache of keys and values, by whichever name this version of transformers has for it.

It was `past_key_values`, as an argument and in outputs; since transformers 5.24 it is `cache`, and the old name goes
with 5.40. A hook sees the name that its caller used, and generation changed it from one version to the next: a hook
that knows the old one alone takes every pass for the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")


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
