"""Activations captured once and used again: pooled for learners, or whole where lower blocks need not run twice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import RunError, SiteError, UsageError
from trimtab.sites import Site

Pool = Literal["last", "mean"]
"""A row's activation at a site: that of its last token, or the mean over all its tokens."""
Places = Sequence[Sequence[int]]
"""Of each row of a pass, the place of each of its tokens in the flattened batch."""
Keep = Callable[[Sequence[int], Places, Callable[[], Any]], Any]
"""Runs one pass, the last argument, over the rows of these numbers, and keeps what is seen; gives what it returns."""


@dataclass(frozen=True, eq=False)
class Activations:
    """One vector a row and site, in a nameless file that dies with it: memory holds only what is asked for."""

    file: IO[bytes]
    places: Mapping[str, tuple[int, int]]
    """Site -> where its rows begin in the file, in bytes, and how wide they are."""
    rows: int

    def __getitem__(self, site: str) -> Float[Tensor, "rows dim"]:
        """The rows' vectors at a site, float32, in the order in which the rows were given."""
        return self._read(site, 0, self.rows)

    def chunks(
        self, site: str, first: int = 0, end: int | None = None, *, at_once: int = 1024
    ) -> Iterator[Float[Tensor, "some dim"]]:
        """The vectors of rows `first` to `end` (not included) at a site, so many at once."""
        end = self.rows if end is None else end
        for start in range(first, end, at_once):
            yield self._read(site, start, min(end, start + at_once))

    def _read(self, site: str, first: int, end: int) -> Float[Tensor, "some dim"]:
        offset, width = self.places[site]
        self.file.seek(offset + 4 * width * first)
        flat = np.fromfile(self.file, np.float32, (end - first) * width)
        return torch.from_numpy(flat.reshape(end - first, width))


@torch.no_grad()
def pooled(
    body: nn.Module,
    at: Sequence[Site],
    rows: Sequence[tuple[int, ...]],
    *,
    pool: Pool = "last",
    skip: int = 0,
    tokens_at_once: int = 4096,
    on_batch: Callable[[int], None] | None = None,
    drive: Callable[[Keep], Any] | None = None,
) -> Activations:
    """Run rows of token ids through `body` once and keep, at every site of `at`, one vector a row.

    The mean leaves out each row's first `skip` tokens. Rows are padded on the right and never masked (causal models
    do not look there), in batches of like length of at most `tokens_at_once` padded tokens; or `drive` lays them out,
    and hands each pass to what it is given. Memory does not grow with the number of rows; the file, among the system's
    temporary ones, has 4 bytes a row and number. Raises UsageError for an empty row and for a site of unknown width,
    SiteError for one that `body` does not compute, RunError where the disk is full.
    """
    least = skip + 1 if pool == "mean" else 1
    if any(len(row) < least for row in rows) or not rows:
        raise UsageError(f"activations need rows of at least {least} tokens, got lengths {sorted(map(len, rows))[:3]}")
    places: dict[str, tuple[int, int]] = {}
    size = 0
    for site in at:
        if site.width is None:
            raise UsageError(f"site '{site.name}' does not tell its width, so its activations cannot be kept")
        places[site.name] = size, site.width
        size += 4 * site.width * len(rows)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - what is returned keeps it open

    def keep(batch: Sequence[int], where: Places, forward: Callable[[], Any]) -> Any:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for site in at:
                stack.enter_context(pooling(site, pool, skip, where, seen))
            out = forward()
        if silent := [site.name for site in at if site.name not in seen]:
            raise SiteError(f"the language backbone does not compute {', '.join(silent[:6])}; nothing to read there")
        try:
            for name, vectors in seen.items():
                offset, dim = places[name]
                for n, vector in zip(batch, vectors.cpu().numpy(), strict=True):
                    file.seek(offset + 4 * dim * n)
                    file.write(vector.data)
            file.flush()
        except OSError as error:
            raise no_room(size, error) from error
        if on_batch is not None:
            on_batch(len(batch))
        return out

    if drive is not None:
        drive(keep)
    else:
        _padded(body, rows, tokens_at_once, keep)
    return Activations(file, places, len(rows))


def no_room(size: int, error: OSError) -> RunError:
    """What to say where the temporary files have no room for so many bytes of activations."""
    return RunError(
        f"activations need {size:,} bytes among the temporary files ({tempfile.gettempdir()}): {error}; give "
        "fewer sites or texts, or another folder with TMPDIR"
    )


def _padded(body: nn.Module, rows: Sequence[tuple[int, ...]], tokens_at_once: int, keep: Keep) -> None:
    device = next(body.parameters()).device
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    while order:
        width = len(rows[order[-1]])
        batch = order[-max(1, tokens_at_once // width) :]
        del order[-len(batch) :]
        ids = torch.tensor([[*rows[n], *([0] * (width - len(rows[n])))] for n in batch], device=device)
        where = [range(k * width, k * width + len(rows[n])) for k, n in enumerate(batch)]
        keep(batch, where, lambda ids=ids: body(input_ids=ids, use_cache=False))  # type: ignore[misc]


@contextmanager
def pooling(site: Site, pool: Pool, skip: int, where: Places, seen: dict[str, Tensor]) -> Iterator[None]:
    """Within it a pass of rows laid out so leaves its pooled activations at a site in `seen`, float32 (rows, dim)."""

    def keep(h: Any) -> None:
        h = h[0] if isinstance(h, tuple) else h
        if not isinstance(h, Tensor) or not h.is_floating_point():
            raise SiteError(f"site '{site.name}' holds a {type(h).__name__}; only an activation tensor can be read")
        if h.shape[-1] != site.width:
            raise SiteError(f"site '{site.name}' is {h.shape[-1]} wide, expected {site.width}")
        flat = h.reshape(-1, h.shape[-1])  # OPT does so itself inside a block
        # Only what is kept is made float32: a copy of h would be as large as two of a bfloat16 pass's own.
        if pool == "last":
            seen[site.name] = flat[torch.tensor([row[-1] for row in where], device=h.device)].float()
        else:
            means = [flat[list(row[skip:])].mean(0, dtype=torch.float32) for row in where]
            seen[site.name] = torch.stack(means)

    if site.side == "output":
        handle = site.module.register_forward_hook(lambda module, args, output: keep(output))
    else:
        handle = site.module.register_forward_pre_hook(
            lambda module, args, kwargs: keep(args[0] if args else next(iter(kwargs.values()), None)), with_kwargs=True
        )
    try:
        yield
    finally:
        handle.remove()


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

    def given(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with left_out(blocks[:-1]), forward_as(blocks[-1], given) if blocks else nullcontext():
        yield


@contextmanager
def left_out(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it these blocks hand on what they are given, at no cost."""

    def through(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(forward_as(block, through))
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
