"""The artifact: a folder with `steering.safetensors` and `card.json`, which says how it must be applied.

Reading runs no code, unpickles nothing and follows no link. The tensors are named `SITE#i.NAME`, with i counting the
interventions at a site and NAME one of a, c (Diagonal), L, R, m (LowRank) or L, R (Adapter).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ArtifactError, NotFound, UsageError
from trimtab.interventions import Adapter, Diagonal, Intervention, LowRank
from trimtab.runs import write_whole
from trimtab.steering import Steering
from trimtab.types import POSITIONS

SCHEMA = 1
OPERATION = "h' = h + w (A h + c)"
WITH_ADAPTERS = "h' = h + w (A h + c + L R x), x: input of the site's module"
"""Of a steering that holds an Adapter: one who knows only the other must not apply it."""
TENSORS = "steering.safetensors"
CARD = "card.json"
LARGEST = 2**30
"""Bytes; a steering is a few thousandths of a percent of a model, so a larger file is no steering."""
_TENSOR = re.compile(r"(?P<site>[A-Za-z0-9_.:@]+)#(?P<index>\d{1,3})\.(?P<name>[acLRm])")
_KERNELS = {
    frozenset("c"): "shift",
    frozenset("ac"): "diagonal",
    frozenset("LRm"): "low-rank",
    frozenset("LR"): "adapter",
}


def save(steering: Steering, folder: str | Path) -> Path:
    """Write a steering and its card into a folder; the same steering gives the same bytes."""
    from safetensors.torch import save as to_bytes

    tensors = {
        f"{site}#{index}.{name}": tensor.detach().float().cpu().contiguous()
        for site, group in sorted(steering.interventions.items())
        for index, intervention in enumerate(group)
        for name, tensor in intervention.tensors().items()
    }
    if not tensors:
        raise UsageError("an empty steering has nothing to save")
    blob = to_bytes(tensors)
    sites = {
        site: [{"kernel": _KERNELS[frozenset(i.tensors())], "width": i.width} for i in group]
        for site, group in steering.interventions.items()
    }
    card = {
        "schema": SCHEMA,
        "operation": _operation(steering),
        "sign": 1,
        **{k: v for k, v in steering.card.items() if k not in ("schema", "operation", "sign", "sites", "tensors")},
        "sites": sites,
        "tensors": {"file": TENSORS, "sha256": hashlib.sha256(blob).hexdigest(), "numbers": steering.numbers()},
    }
    out = Path(folder)
    write_whole(out / TENSORS, blob)
    # The card names the tensors' hash, so writing it last makes a torn pair visible.
    write_whole(out / CARD, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    return out


def read(folder: str | Path) -> Steering:
    """Read a steering folder; raises NotFound, or ArtifactError for anything that `save` would not have written."""
    path = Path(folder)
    if not path.is_dir():
        raise NotFound(f"no steering folder {path}")
    card = _card(path)
    blob = _bytes(path / TENSORS)
    stated = card["tensors"].get("sha256") if isinstance(card.get("tensors"), dict) else None
    if stated != hashlib.sha256(blob).hexdigest():
        raise ArtifactError(
            f"{path}: {TENSORS} is not the file that the card describes (SHA-256 differs); copy both again"
        )
    tensors = _tensors(path, blob)
    groups: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None or ".." in key:
            raise ArtifactError(f"{path}: tensor name {key!r} is not of the form SITE#i.NAME")
        groups[match["site"]][int(match["index"])][match["name"]] = tensor
    listed = card.get("sites")
    if not isinstance(listed, dict) or set(listed) != set(groups):
        raise ArtifactError(f"{path}: the card's sites and the tensors' sites differ")
    interventions: dict[str, tuple[Intervention, ...]] = {}
    for site, entries in listed.items():
        held = groups[site]
        if not isinstance(entries, list) or sorted(held) != list(range(len(entries))):
            raise ArtifactError(f"{path}: at '{site}' the card lists other interventions than the tensors hold")
        interventions[site] = tuple(
            _intervention(path, site, entry, held[index]) for index, entry in enumerate(entries)
        )
    made = Steering(interventions, card)
    if card["operation"] != _operation(made):
        raise ArtifactError(f"{path}: the tensors are not those of the operation {card['operation']!r}")
    return made


def _operation(steering: Steering) -> str:
    kinds = {type(i) for group in steering.interventions.values() for i in group}
    return WITH_ADAPTERS if Adapter in kinds else OPERATION


def _card(path: Path) -> dict[str, Any]:
    raw = _bytes(path / CARD)
    try:
        card = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path / CARD} is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise ArtifactError(f"{path / CARD} is not an object")
    if card.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path}: card schema {card.get('schema')!r} is unknown here (known: {SCHEMA}); a newer trimtab may read it"
        )
    if card.get("operation") not in (OPERATION, WITH_ADAPTERS) or card.get("sign") != 1:
        raise ArtifactError(
            f"{path}: operation {card.get('operation')!r} with sign {card.get('sign')!r} is unknown here"
        )
    trained = (
        card.get("strength", {}).get("trained", [0.0, 1.0]) if isinstance(card.get("strength", {}), dict) else None
    )
    numbers = isinstance(trained, list) and len(trained) == 2 and all(isinstance(v, int | float) for v in trained)
    # A NaN would compare false with every strength, and so allow them all.
    if trained is None or not (numbers and -math.inf < trained[0] <= trained[1] < math.inf):
        raise ArtifactError(f"{path}: the card's trained strength range is not two finite numbers, the lower one first")
    default = card.get("strength", {}).get("default", 1.0)
    if not (isinstance(default, int | float) and math.isfinite(default)):
        raise ArtifactError(f"{path}: the card's default strength {default!r} is not a finite number")
    if card.get("positions", "all") not in POSITIONS:
        raise ArtifactError(f"{path}: the card's positions {card['positions']!r} are not one of {', '.join(POSITIONS)}")
    if not isinstance(card.get("model", {}), Mapping):
        raise ArtifactError(f"{path}: the card's model entry is not an object")
    members = card.get("members", [])
    if not (isinstance(members, list) and all(_is_member(m) for m in members)):
        raise ArtifactError(f"{path}: the card's members are not a list of objects with name, strength and digest")
    return card


def _is_member(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("strength"), int | float):
        return False
    named = isinstance(entry.get("name"), str) and isinstance(entry.get("digest"), str)
    return named and math.isfinite(entry["strength"])


def _bytes(path: Path) -> bytes:
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link; a steering folder holds its own files")
    if not path.is_file():
        raise ArtifactError(f"{path.parent} is no steering folder: it has no {path.name}")
    size = path.stat().st_size
    if size > LARGEST:
        raise ArtifactError(f"{path} has {size:,} bytes; a steering has at most {LARGEST:,}")
    return path.read_bytes()


def _tensors(path: Path, blob: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path / TENSORS} is damaged: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ArtifactError(f"{path}: tensor '{key}' is {tensor.dtype}, expected float32")
    return tensors


def _intervention(path: Path, site: str, entry: Any, tensors: dict[str, Tensor]) -> Intervention:
    kernel = _KERNELS.get(frozenset(tensors))
    if kernel is None or not isinstance(entry, dict) or entry.get("kernel") != kernel:
        raise ArtifactError(f"{path}: at '{site}' the tensors {sorted(tensors)} do not make the card's kernel")
    try:
        if kernel == "adapter":
            made: Intervention = Adapter(**tensors)
        else:
            made = LowRank(**tensors) if kernel == "low-rank" else Diagonal(tensors.get("a"), tensors["c"])
    except UsageError as error:
        raise ArtifactError(f"{path}: at '{site}': {error}") from error
    if made.width != entry.get("width"):
        raise ArtifactError(
            f"{path}: at '{site}' the card says width {entry.get('width')}, the tensors have {made.width}"
        )
    return made
