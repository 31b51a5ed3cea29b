"""The artifact: what was saved is read back bit for bit, and whatever `save` would not have written is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from trimtab import artifact
from trimtab.errors import ArtifactError, NotFound, RunError, UsageError
from trimtab.interventions import Diagonal, Intervention, LowRank
from trimtab.steering import Steering

CARD = {"model": {"id": "tiny", "family": "llama"}, "learner": "none", "strength": {"trained": [0.0, 2.0]}, "seed": 3}


def kernel(kind: str, width: int, rank: int, seed: int) -> Intervention:
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    if kind == "low-rank":
        return LowRank(drawn(width, rank), drawn(rank, width), drawn(width))
    return Diagonal(drawn(width) if kind == "diagonal" else None, drawn(width))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = {"layers.0.norm.attn_in": (kernel("diagonal", 4, 1, 0),), "layers.1.out": (kernel("low-rank", 4, 2, 1),)}
    return artifact.save(Steering(groups, CARD), tmp_path / "steering")


def rewrite(folder: Path, *, tensors: Any = None, blob: bytes | None = None, **card: Any) -> None:
    """Change the tensors, with the hash in the card put right, and entries of the card."""
    path = folder / artifact.TENSORS
    if tensors is not None:
        held = load(path.read_bytes())
        tensors(held)
        blob = save(held)
    if blob is not None:
        path.write_bytes(blob)
    was = json.loads((folder / artifact.CARD).read_text())
    was["tensors"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / artifact.CARD).write_text(json.dumps({**was, **card}))


GROUPS = st.dictionaries(
    st.from_regex(r"layers\.[0-9]{1,2}\.(out|norm\.(attn|mlp)_in)|norm\.final", fullmatch=True),
    st.lists(
        st.tuples(st.sampled_from(["diagonal", "shift", "low-rank"]), st.integers(1, 9), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=4,
)


@given(GROUPS, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_what_is_read_is_what_was_saved(tmp_path_factory: pytest.TempPathFactory, groups: Any, seed: int) -> None:
    """Sites, kernels, their order and every bit of every tensor come back, and the card with what `save` adds."""
    made = {site: tuple(kernel(*parts, seed + n) for n, parts in enumerate(some)) for site, some in groups.items()}
    path = artifact.save(Steering(made, CARD), tmp_path_factory.mktemp("steering"))
    found = artifact.read(path)
    assert set(found.interventions) == set(made)
    for site, group in made.items():
        assert [type(i) for i in found.interventions[site]] == [type(i) for i in group]
        for one, other in zip(group, found.interventions[site], strict=True):
            assert one.tensors().keys() == other.tensors().keys()
            assert all(torch.equal(one.tensors()[k], other.tensors()[k]) for k in one.tensors())
    assert {k: found.card[k] for k in CARD} == CARD
    assert found.trained_range == (0.0, 2.0)
    again = artifact.save(found, tmp_path_factory.mktemp("again"))
    for name in (artifact.CARD, artifact.TENSORS):
        assert (again / name).read_bytes() == (path / name).read_bytes()


def test_one_steering_gives_one_file_and_other_numbers_another(tmp_path: Path) -> None:
    """Bytes follow from the numbers alone: not from the order of the sites, their dtype on disk, or the time."""
    a, b = kernel("diagonal", 5, 1, 0), kernel("shift", 5, 1, 1)
    one = artifact.save(Steering({"x": (a,), "y": (b,)}, CARD), tmp_path / "one") / artifact.TENSORS
    other = artifact.save(Steering({"y": (b,), "x": (a,)}, CARD), tmp_path / "other") / artifact.TENSORS
    assert one.read_bytes() == other.read_bytes()
    changed = Diagonal(a.a, a.c + 1e-6)  # type: ignore[union-attr]
    third = artifact.save(Steering({"x": (changed,), "y": (b,)}, CARD), tmp_path / "third") / artifact.TENSORS
    assert one.read_bytes() != third.read_bytes()


def test_a_folder_holds_two_files_that_others_may_read(folder: Path) -> None:
    """Nothing but the card and the tensors, readable by everyone, and the card is JSON that says what is applied."""
    assert {p.name for p in folder.iterdir()} == {artifact.CARD, artifact.TENSORS}
    assert all((p.stat().st_mode & 0o777) == 0o644 for p in folder.iterdir())
    card = json.loads((folder / artifact.CARD).read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert card["operation"] == "h' = h + w (A h + c)"
    assert card["schema"] == artifact.SCHEMA
    assert card["sites"]["layers.1.out"] == [{"kernel": "low-rank", "width": 4}]


def test_an_empty_steering_is_not_saved(tmp_path: Path) -> None:
    """It would be a silent no-op."""
    with pytest.raises(UsageError, match="nothing to save"):
        artifact.save(Steering({}), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


# -- refusals


@pytest.mark.parametrize("schema", [0, 2, "1", None, 1.5])
def test_an_unknown_schema_is_refused_with_both_numbers(folder: Path, schema: Any) -> None:
    """A card of another version is never guessed at."""
    rewrite(folder, schema=schema)
    with pytest.raises(ArtifactError, match=r"schema .* unknown here \(known: 1\)"):
        artifact.read(folder)


@pytest.mark.parametrize(("key", "value"), [("operation", "h' = h"), ("sign", -1), ("sign", None)])
def test_another_operation_or_sign_is_refused(folder: Path, key: str, value: Any) -> None:
    """The numbers mean nothing under another equation."""
    rewrite(folder, **{key: value})
    with pytest.raises(ArtifactError, match="unknown here"):
        artifact.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000, b"{}"])
def test_a_card_that_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    """Empty, cut, another type, not UTF-8, nested without end."""
    (folder / artifact.CARD).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"JSON|object|schema"):
        artifact.read(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"strength": {"trained": [0, math.nan]}},
        {"strength": {"trained": [0, math.inf]}},
        {"strength": {"trained": [1, 0]}},
        {"strength": {"trained": [0]}},
        {"strength": {"trained": "all"}},
        {"strength": 1},
        {"strength": {"trained": [0, 1], "default": math.nan}},
        {"strength": {"trained": [0, 1], "default": "full"}},
        {"model": "llama"},
        {"tensors": "all"},
        {"sites": None},
        {"sites": {}},
    ],
    ids=str,
)
def test_a_card_that_would_loosen_the_dial_is_refused(folder: Path, entry: dict[str, Any]) -> None:
    """A trained range of NaN or infinity would let every strength through; entries of another type are refused too."""
    card = json.loads((folder / artifact.CARD).read_text())
    (folder / artifact.CARD).write_text(json.dumps({**card, **entry}))
    with pytest.raises(ArtifactError):
        artifact.read(folder)


@pytest.mark.parametrize("name", [artifact.CARD, artifact.TENSORS])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    """Either of the two; a missing folder is NotFound."""
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        artifact.read(folder)
    with pytest.raises(NotFound):
        artifact.read(folder / "nowhere")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_one_flipped_bit_anywhere_in_the_tensors_is_refused(tmp_path_factory: Any, data: Any) -> None:
    """The card holds their SHA-256."""
    path = artifact.save(Steering({"x": (kernel("diagonal", 6, 1, 0),)}, CARD), tmp_path_factory.mktemp("flip"))
    blob = bytearray((path / artifact.TENSORS).read_bytes())
    place = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[place // 8] ^= 1 << (place % 8)
    (path / artifact.TENSORS).write_bytes(blob)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        artifact.read(path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 40, -1])
def test_truncated_tensors_are_refused_even_with_a_hash_that_fits(folder: Path, kept: int) -> None:
    """With the hash as it was, and by the file's own structure where someone made the hash fit."""
    blob = (folder / artifact.TENSORS).read_bytes()[:kept]
    (folder / artifact.TENSORS).write_bytes(blob)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        artifact.read(folder)
    rewrite(folder, blob=blob)
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.read(folder)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_even_with_a_hash_that_fits(folder: Path, bad: float) -> None:
    """One NaN in one tensor would make every later activation NaN."""

    def poison(held: dict[str, torch.Tensor]) -> None:
        held["layers.0.norm.attn_in#0.a"][2] = bad

    rewrite(folder, tensors=poison)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        artifact.read(folder)


def test_an_oversized_file_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is looked at first; the message has both numbers."""
    monkeypatch.setattr(artifact, "LARGEST", 700)
    (folder / artifact.TENSORS).write_bytes(b"0" * 5000)
    monkeypatch.setattr(Path, "read_bytes", _not_the_tensors(Path.read_bytes))
    with pytest.raises(ArtifactError, match=r"[5,0]+ bytes|has .* bytes"):
        artifact.read(folder)


def _not_the_tensors(real: Any) -> Any:
    def read(self: Path) -> Any:
        assert self.name != artifact.TENSORS, "an oversized file was read"
        return real(self)

    return read


def test_a_header_that_claims_a_huge_tensor_is_refused(folder: Path) -> None:
    """A few bytes that describe a tensor of terabytes allocate nothing."""
    header = {"x#0.c": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    rewrite(folder, blob=len(text).to_bytes(8, "little") + text + b"\0" * 64)
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.read(folder)
    rewrite(folder, blob=(2**60).to_bytes(8, "little") + text)
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.read(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.bool])
def test_another_dtype_is_refused(folder: Path, dtype: torch.dtype) -> None:
    """Tensors are float32, nothing else."""

    def cast(held: dict[str, torch.Tensor]) -> None:
        held["layers.0.norm.attn_in#0.c"] = held["layers.0.norm.attn_in#0.c"].to(dtype)

    rewrite(folder, tensors=cast)
    with pytest.raises(ArtifactError, match="expected float32"):
        artifact.read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../x#0.a",
        "/etc/passwd#0.c",
        "layers..out#0.c",
        "x",
        "x#0",
        "x#-1.c",
        "x#0.q",
        "x#0.c\n",
        "x y#0.c",
        "x#9999.c",
        "",
    ],
)
def test_a_tensor_name_with_a_path_trick_or_of_another_form_is_refused(folder: Path, name: str) -> None:
    """Names are matched as a whole against SITE#i.NAME."""
    rewrite(folder, tensors=lambda held: held.update({name: torch.zeros(4)}))
    with pytest.raises(ArtifactError, match="is not of the form"):
        artifact.read(folder)


def test_the_card_cannot_point_to_another_file(folder: Path, tmp_path: Path) -> None:
    """`tensors.file` in the card is a remark: what is read is always the folder's own file."""
    card = json.loads((folder / artifact.CARD).read_text())
    (tmp_path / "secret").write_bytes(b"nothing of yours")
    for file in ("../secret", str(tmp_path / "secret")):
        card["tensors"]["file"] = file
        (folder / artifact.CARD).write_text(json.dumps(card))
        assert artifact.read(folder).numbers() == 28


@pytest.mark.parametrize("name", [artifact.CARD, artifact.TENSORS])
def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A link may lead out of the folder, a pipe may never end."""
    real = tmp_path / "elsewhere"
    (folder / name).rename(real)
    (folder / name).symlink_to(real)
    with pytest.raises(ArtifactError, match="is a link"):
        artifact.read(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        artifact.read(folder)


def drop(key: str) -> Any:
    return lambda held: held.pop(key)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (lambda held: held.update({"extra#0.c": torch.zeros(4)}), "sites differ"),
        (drop("layers.0.norm.attn_in#0.a"), "do not make the card's kernel"),
        (drop("layers.1.out#0.R"), "do not make the card's kernel"),
        (lambda held: held.update({"layers.1.out#2.c": torch.zeros(4)}), "other interventions"),
        (lambda held: held.update({"layers.0.norm.attn_in#0.c": torch.zeros(5)}), "one shape"),
        (lambda held: held.update({"layers.1.out#0.R": torch.zeros(3, 4)}), "LowRank needs"),
        (lambda held: held.update({f"layers.0.norm.attn_in#0.{n}": torch.zeros(9) for n in "ac"}), "width 4"),
    ],
)
def test_tensors_that_the_card_does_not_describe_are_refused(folder: Path, tensors: Any, says: str) -> None:
    """A site, an intervention or a tensor more or less, shapes that do not chain, another width."""
    rewrite(folder, tensors=tensors)
    with pytest.raises(ArtifactError, match=says):
        artifact.read(folder)


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_in_place_of_the_tensors_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    """Reading runs no code, even where the hash fits."""
    trace = tmp_path / "it ran"
    for blob in (pickle.dumps(Trap(trace)), _torch_saved(Trap(trace), tmp_path / "pickled.pt")):
        rewrite(folder, blob=blob)
        with pytest.raises(ArtifactError, match="damaged"):
            artifact.read(folder)
        assert not trace.exists()


def _torch_saved(value: Any, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


def test_a_torn_pair_is_refused_whichever_half_is_older(tmp_path: Path) -> None:
    """An old card beside new tensors, as after a kill between the two writes, and the reverse."""
    old = artifact.save(Steering({"x": (kernel("diagonal", 4, 1, 0),)}, CARD), tmp_path / "old")
    new = artifact.save(Steering({"x": (kernel("diagonal", 4, 1, 1),)}, CARD), tmp_path / "new")
    blobs = {p: (p / artifact.TENSORS).read_bytes() for p in (old, new)}
    for one, other in ((old, new), (new, old)):
        (one / artifact.TENSORS).write_bytes(blobs[other])
        with pytest.raises(ArtifactError, match="SHA-256 differs"):
            artifact.read(one)


def test_a_kill_between_the_two_writes_leaves_no_steering_that_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    """The card comes last: without it there is no steering, and with an old one the pair is torn."""
    real = artifact.write_whole

    def once(path: Path, content: bytes) -> None:
        if path.name == artifact.CARD:
            raise RunError("killed here")
        real(path, content)

    monkeypatch.setattr(artifact, "write_whole", once)
    with pytest.raises(RunError):
        artifact.save(Steering({"x": (kernel("shift", 4, 1, 0),)}, CARD), tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"no card\.json"):
        artifact.read(tmp_path / "s")
