"""What trials share is computed once: activations of texts, and what lies below the first steered block.

    Recalling    a model that keeps the activations of every text it has read, at all sites that a search may steer
    Tape         items made ready for scoring, with the hidden states between blocks that no setting changes

A text is run when the first recipe asks for it, and then for every site at once; a recipe that shares sentences with
earlier ones runs the rest alone. Activations lie in one nameless file, a row a text, of which memory holds what a
learner reads. Hidden states are kept in memory, at as many blocks as fit into a share of it: a steering that begins at
block l goes on from the nearest kept block at or below l. Both are exact, up to the rounding that the composition of a
batch brings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import capture, memory, sites
from trimtab.model import SteerableModel
from trimtab.packing import Layout
from trimtab.scoring import Encoded, Prepared
from trimtab.sites import Site

AT_ONCE = 256
"""Texts whose activations are written together."""
SHARE = 0.25
"""Of the free memory, for hidden states."""
Row = tuple[int, ...]


# -- activations of texts


class Recalling(SteerableModel):
    """The same model, which reads no text twice at the sites of some patterns."""

    def __init__(self, model: SteerableModel, patterns: Sequence[str]) -> None:
        super().__init__(model.hf, model.tokenizer, model.name)
        self.neutral = model.neutral
        # Eyes hang on the modules, so there is one pair of them; dials that are on the model are on this one too.
        self.processor, self.eyes, self.stems = model.processor, model.eyes, model.stems
        self._dials = model._dials
        self._at = tuple({site.name: site for p in patterns for site in sites.find(model.hf, p)}.values())
        every = blocks(self)
        self._above = every[max(sites.block_of(site.name, len(every)) for site in self._at) + 1 :]
        self._kept: dict[tuple[capture.Pool, int], _Shelf] = {}

    def pooled(
        self,
        at: Sequence[Site],
        rows: Sequence[Row],
        *,
        pool: capture.Pool = "last",
        skip: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> capture.Activations:
        """As the model's, and texts that were read before are not run."""
        if {site.name for site in at} - {site.name for site in self._at} or any(not row for row in rows):
            return super().pooled(at, rows, pool=pool, skip=skip, on_batch=on_batch)
        shelf = self._kept.setdefault((pool, skip), _Shelf(self._at))
        missing = [row for row in dict.fromkeys(rows) if row not in shelf.places]
        with capture.left_out(self._above):  # nothing is read there
            for start in range(0, len(missing), AT_ONCE):
                some = missing[start : start + AT_ONCE]
                shelf.add(some, super().pooled(self._at, some, pool=pool, skip=skip, on_batch=on_batch))
        return shelf.of(rows)

    @property
    def texts_read(self) -> int:
        """Texts that were run, each once a way of pooling."""
        return sum(len(shelf.places) for shelf in self._kept.values())


class _Shelf:
    """Vectors of texts at some sites: a row of the file is a text, with its sites side by side."""

    def __init__(self, at: Sequence[Site]) -> None:
        self.columns: dict[str, tuple[int, int]] = {}
        self.width = 0
        for site in at:
            self.columns[site.name] = self.width, site.width or 0
            self.width += site.width or 0
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as what was read from it
        self.places: dict[Row, int] = {}

    def add(self, rows: Sequence[Row], found: capture.Activations) -> None:
        """Keep what was found of rows."""
        together = np.concatenate([found[name].numpy() for name in self.columns], axis=1)
        try:
            self.file.seek(0, 2)
            self.file.write(together.data)
            self.file.flush()
        except OSError as error:
            raise capture.no_room(4 * self.width * (len(self.places) + len(rows)), error) from error
        self.places.update({row: n for n, row in enumerate(rows, start=len(self.places))})

    def of(self, rows: Sequence[Row]) -> capture.Activations:
        """The activations of rows, in their order."""
        index = np.array([self.places[row] for row in rows])
        return _Picked(self.file, self.columns, len(rows), index, (len(self.places), self.width))


@dataclass(frozen=True, eq=False)
class _Picked(capture.Activations):
    """Some rows of a shelf."""

    index: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    shape: tuple[int, int] = (0, 0)

    def _read(self, site: str, first: int, end: int) -> Float[Tensor, "some dim"]:
        offset, width = self.places[site]
        whole = np.memmap(self.file, np.float32, "r", shape=self.shape)
        return torch.from_numpy(np.ascontiguousarray(whole[self.index[first:end], offset : offset + width]))


# -- what lies below


@dataclass(eq=False)
class Tape(Prepared):
    """Items made ready, with the hidden states below some blocks once an unsteered pass has been recorded."""

    blocks: Sequence[nn.Module] = ()
    """All blocks of the model."""
    levels: tuple[int, ...] = ()
    """Numbers of the blocks below which hidden states are kept."""
    recording: bool = False
    """Whether the pass is the unsteered one that leaves them."""

    def run(self, body: nn.Module, blocks: Sequence[nn.Module], layout: Layout, rows: Sequence[int]) -> Tensor:
        """The last hidden states of a pass in which nothing is steered below the end of `blocks`."""
        key = tuple(rows)
        if self.recording:
            with ExitStack() as stack:
                seen = {n: stack.enter_context(capture.recorded(self.blocks[n - 1])) for n in self.levels}
                hidden = layout.run(body)
            self.below.update({(n, key): found[0] for n, found in seen.items()})
            return hidden
        nearest = max((n for n in self.levels if n <= len(blocks) and (n, key) in self.below), default=0)
        if not nearest:
            return layout.run(body)
        with capture.resumed(self.blocks[:nearest], self.below[nearest, key]):
            return layout.run(body)


def levels(model: SteerableModel, layers: tuple[int, int], items: Sequence[Encoded]) -> tuple[int, ...]:
    """Below which of the blocks that a steering may begin at hidden states are kept: all, or as many as memory has room
    for, evenly spread from the lowest on."""
    wanted = [n for n in range(layers[0], layers[1] + 1) if n > 0]
    tokens = sum(len(i.prompt) + sum(map(len, i.options)) for i in items)
    width = next((site.width for site in sites.find(model.hf, "layers.0.out")), None) or 0
    free = memory.free_bytes(model.device)
    room = len(wanted) if free is None else int(SHARE * free / max(1, tokens * width * model.dtype.itemsize))
    if room >= len(wanted):
        return tuple(wanted)
    return tuple(wanted[int(k * len(wanted) / room)] for k in range(room))


def blocks(model: SteerableModel) -> list[nn.Module]:
    """The model's blocks in order."""
    return [site.module for site in sites.find(model.hf, "layers.*.out")]
