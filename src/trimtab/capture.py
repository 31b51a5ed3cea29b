"""Activations captured once and used again: what lies below the first steered site need not be computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def recorded(block: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the output hidden states of a block are appended to the list that is given."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def resumed(blocks: Sequence[nn.Module], hidden: Float[Tensor, "rows tokens dim"]) -> Iterator[None]:
    """Within it the given first blocks compute nothing, and the last of them puts out `hidden`.

    Embeddings, masks and positions are prepared as always, so this holds for any family; the blocks after compute what
    they would have computed, bit for bit.
    """

    def through(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    def given(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(forward_as(block, given if block is blocks[-1] else through))
        yield


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it a module computes something else; its hooks, attributes and place in the model stay."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
