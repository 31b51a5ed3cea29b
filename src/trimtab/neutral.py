"""Neutral text: what perplexity and KL are measured on, in our own words, or from a file of the user's.

Our own is two files: `neutral.txt`, dealt out to the splits, and `neutral_training.txt`, for training only: other
registers (letters, dialogues, recipes, news), so that what the KL budget holds is more than one manner of writing.
"""

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
    more: list[str] = []
    if path is None:
        whole, more = (_passages(_own(name)) for name in ("neutral.txt", "neutral_training.txt"))
    else:
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"no neutral text file {file}; give a text file with passages parted by blank lines")
        whole = _passages(file.read_text("utf-8", errors="replace"))
    if split == "all":
        chosen = whole + more
    else:
        # Every 20 passages: 10 train, 3 validation, 7 test; so each split covers the whole file.
        bounds = {"train": range(10), "validation": range(10, 13), "test": range(13, 20)}
        chosen = [p for i, p in enumerate(whole) if i % 20 in bounds[split]] + (more if split == "train" else [])
    if not chosen:
        raise TaskError(
            f"the neutral text has {len(whole)} passages, too few to give '{split}' one of its own "
            f"({', '.join(SPLITS)}); give at least 20 passages of four words or more, parted by blank lines"
        )
    return tuple(chosen)


def _own(name: str) -> str:
    return files("trimtab").joinpath("data", name).read_text("utf-8")


def _passages(text: str) -> list[str]:
    whole = [" ".join(p.split()) for p in text.replace("\r\n", "\n").split("\n\n")]
    return [p for p in whole if len(p.split()) >= 4]
