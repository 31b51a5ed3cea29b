"""Neutral text: what perplexity and KL are measured on, in our own words, or from a file of the user's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trimtab.errors import NotFound, TaskError
from trimtab.types import SPLITS


def passages(split: str, path: str | Path | None = None) -> tuple[str, ...]:
    """The passages of one split: paragraphs parted by blank lines, dealt out in order so that splits never share one.

    Training holds its KL budget on "train"; evaluation reads "test". `split="all"` gives every passage. Raises
    NotFound for a missing file and TaskError where a split would be empty.
    """
    if path is None:
        text = files("trimtab").joinpath("data/neutral.txt").read_text("utf-8")
    else:
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"no neutral text file {file}; give a text file with passages parted by blank lines")
        text = file.read_text("utf-8", errors="replace")
    whole = [" ".join(p.split()) for p in text.replace("\r\n", "\n").split("\n\n")]
    whole = [p for p in whole if len(p.split()) >= 4]
    if split == "all":
        chosen = whole
    else:
        # Every 20 passages: 10 train, 3 validation, 7 test; so each split covers the whole file.
        bounds = {"train": range(10), "validation": range(10, 13), "test": range(13, 20)}
        chosen = [p for i, p in enumerate(whole) if i % 20 in bounds[split]]
    if not chosen:
        raise TaskError(
            f"the neutral text has {len(whole)} passages, too few to give '{split}' one of its own "
            f"({', '.join(SPLITS)}); give at least 20 passages of four words or more, parted by blank lines"
        )
    return tuple(chosen)
