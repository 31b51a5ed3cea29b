"""Where benchmark data comes from: a folder on this machine, never a download.

The folder is, in this order, the one given (`--data FOLDER`), the one that TRIMTAB_DATA names, or
`../shared/data` as seen from the working folder. It may hold several benchmarks, each in a folder of its own
name, or be one benchmark's folder itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import NotFound

VARIABLE = "TRIMTAB_DATA"
DEFAULT = Path("..") / "shared" / "data"
REMEDY = f"give the folder with --data FOLDER or set {VARIABLE}"


def data_root(data: str | Path | None) -> Path:
    """The folder that holds benchmark data: `data`, else TRIMTAB_DATA, else ../shared/data.

    An explicit choice that is missing is an error, not a reason to try the next: data from another place than
    the one asked for would be a silent surprise.

    Raises NotFound if the folder is not there.
    """
    if data is not None:
        root, origin = Path(data).expanduser(), "the data folder given"
    elif os.environ.get(VARIABLE):
        root, origin = Path(os.environ[VARIABLE]).expanduser(), f"the data folder that {VARIABLE} names"
    else:
        root, origin = DEFAULT, f"a data folder: none was given, {VARIABLE} is not set, and"
    if not root.is_dir():
        why = "is a file, not a folder" if root.is_file() else "does not exist"
        raise NotFound(f"Looked for {origin} {str(root)!r}, which {why} (seen from {Path.cwd()}); {REMEDY}.")
    return root


def find_folder(name: str, data: str | Path | None, *, required: Sequence[str] = ()) -> Path:
    """The folder of benchmark `name`: the data folder itself, or its child of that name.

    A folder is recognised by the `required` files in it, so that its own name does not matter; with none
    required, by being called `name`.

    Raises NotFound saying which files were missing where.
    """
    root = data_root(data)
    itself = [root] if root.resolve().name == name else []
    candidates = [root, root / name] if required else [root / name, *itself]
    for folder in candidates:
        if folder.is_dir() and not missing(folder, required):
            return folder
    nearest = root / name if (root / name).is_dir() else root
    lacks = missing(nearest, required)
    what = f"{str(nearest)!r} lacks {', '.join(lacks)}" if lacks else f"{str(root)!r} has no folder {name!r}"
    raise NotFound(f"Looked for the benchmark {name!r} in {str(root)!r} and its folder {name!r}: {what}; {REMEDY}.")


def missing(folder: Path, required: Sequence[str]) -> list[str]:
    """The names among `required` that are not files in `folder`."""
    return [name for name in required if not (folder / name).is_file()]
