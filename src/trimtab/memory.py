"""Memory: how many tokens a forward pass may hold, and that what one step frees is kept for the next.

    tokens = SHARE * free / bytes of a token
    bytes of a token = size of a number * (2 * layers * keys + 8 * dim + 3 * inner)

the cache of keys and values, the residual stream and what a block makes of it, and its feed-forward part, counted
without gradients. An estimate: where it was too bold, the pass is halved (packing.fitting). This room sees tensors and
numbers only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SHARE = 0.25
"""Of the free memory: others use the machine too, and an estimate may be wrong."""
FEWEST = 256
MOST = {"cpu": 4096}
"""Of a kind of device: more is not faster."""
_MOST = 65536
_GROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))

_TRIM, _MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST = 2**25
"""What glibc's own rule raises the threshold for separate mappings to at most; before 2.35 more is refused."""


def tokens_at_once(config: Any, dtype: torch.dtype, device: torch.device) -> int:
    """The most tokens of a pass without gradients, between FEWEST and what is of use on the device."""
    most = MOST.get(device.type, _MOST)
    free = free_bytes(device)
    if free is None:
        return min(most, 4096)
    fit = int(SHARE * free / token_bytes(config, dtype))
    # A power of two: small changes of what is free must not change what is computed together.
    return max(FEWEST, min(most, 2 ** (fit.bit_length() - 1) if fit else 0))


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a token takes in a forward pass, by the numbers that a text model's config states."""

    def stated(*names: str, default: int) -> int:
        return next((int(v) for name in names if (v := getattr(config, name, None))), default)

    dim = stated("hidden_size", "n_embd", default=1024)
    layers = stated("num_hidden_layers", "n_layer", default=32)
    heads = stated("num_attention_heads", "n_head", default=16)
    keys = stated("num_key_value_heads", default=heads) * stated("head_dim", default=dim // heads)
    inner = stated("intermediate_size", "ffn_dim", "n_inner", default=4 * dim)
    size: int = torch.empty(0, dtype=dtype).element_size()
    return size * (2 * layers * keys + 8 * dim + 3 * inner)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min((b for b in (_free_of_machine(), _free_of_group()) if b is not None), default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else 1024 * int(kib)


def _free_of_group() -> int | None:
    """What the container's limit leaves."""
    for limit, usage in _GROUP:
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, usage)]
        except OSError:
            continue
        if all(text.isdigit() for text in texts):
            return max(0, int(texts[0]) - int(texts[1]))
    return None


@contextmanager
def kept() -> Iterator[None]:
    """Within it glibc keeps freed memory for the next step, instead of returning it to the system and asking anew.

    A learning step frees some 700 MB at its end and takes them again, zeroed, page by page: of DSO on demo:smollm2
    16,000 to 60,000 page faults a step, about a twentieth of its time. Other C libraries are left alone. Behind it the
    thresholds are where glibc's own rule ends up after large blocks were freed, since that rule stops once anybody sets
    them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        yield
        return
    mallopt(_TRIM, 2**31 - 1)
    if not mallopt(_MMAP, 2**30):
        mallopt(_MMAP, _LARGEST)
    try:
        yield
    finally:
        mallopt(_TRIM, 2 * _LARGEST)
        mallopt(_MMAP, _LARGEST)
