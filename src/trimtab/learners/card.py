"""The card of a steering that was learned from a contrast: the same entries, whichever learner made it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from trimtab.model import SteerableModel
from trimtab.types import Contrast

LICENCE = "The numbers of this steering may be used under Apache-2.0; the model they belong to has its own licence."


def card(
    learner: str,
    settings: Any,
    model: SteerableModel,
    contrast: Contrast,
    seed: int,
    *,
    strength: Mapping[str, Any],
    limits: str,
    **more: Any,
) -> dict[str, Any]:
    """What a steering folder says of how it was made.

    `settings` is the learner itself, a dataclass; given and defaulted ones are kept apart. `strength` holds `trained`
    (lowest, highest) and may hold `safe`; `default` is 1 where it says nothing else. `more` are the learner's own
    entries, plain JSON.
    """
    default = {f.name: _plain(f.default) for f in fields(settings) if f.default is not MISSING}
    held = {k: _plain(v) for k, v in asdict(settings).items()}
    data: dict[str, Any] = {
        "contrast": contrast.name,
        "paired": contrast.paired,
        "positive": len(contrast.positive),
        "negative": len(contrast.negative),
        "source": contrast.source,
        "digest": contrast.digest(),
        **contrast.origin,
    }
    return {
        "learner": learner,
        "settings": {
            "given": {k: v for k, v in held.items() if k not in default or v != default[k]},
            "defaulted": {k: v for k, v in held.items() if k in default and v == default[k]},
        },
        "model": model.identity(),
        "strength": {"default": 1.0, **strength},
        "seed": seed,
        "data": data,
        **more,
        "licence": LICENCE,
        "limits": limits,
    }


def _plain(value: Any) -> Any:
    """As JSON gives it back: an infinite number is none there, a tuple is a list."""
    return "inf" if value == math.inf else list(value) if isinstance(value, tuple) else value
