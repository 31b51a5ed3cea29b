"""Fetching: a small server plays GitHub and the hub, with files in our own words in the layouts of the benchmarks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from trimtab.errors import MissingExtra, NotFound, RunError, TaskError, UsageError
from trimtab.runs import owned
from trimtab.tasks import hub, load_task
from trimtab.tasks.hub import LOCK, cache, fetch
from trimtab.tasks.pins import ALIASES, PINS, Pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTENCES = b"sent_more,sent_less,stereo_antistereo,bias_type\nOld cats nap.,Young cats nap.,stereo,age\n"
CROWS = "crows_pairs_anonymized.csv"


@dataclass
class Site:
    """What the server serves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    """Paths of which half is sent."""
    gated: set[str] = field(default_factory=set)
    codes: list[int] = field(default_factory=list)
    """Answered first, one a request, whatever is asked."""
    held: threading.Event | None = None
    """Where there is one, answers wait for it."""
    url: str = ""

    def github(self, repo: str, path: str, content: bytes) -> None:
        self.files[f"/{repo}/{COMMIT}/{path}"] = content

    def hub(self, repo: str, path: str, content: bytes) -> None:
        self.files[f"/datasets/{repo}/resolve/{COMMIT}/{path}"] = content


class Handler(BaseHTTPRequestHandler):
    """GitHub's raw files, and of the hub a file's head and body and a revision's list of files."""

    protocol_version = "HTTP/1.0"

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.site.asked.append(path)
        if self.site.held is not None:
            assert self.site.held.wait(10)
        if self.site.codes:
            self._send(self.site.codes.pop(0), b"", {}, body)
            return
        if path in self.site.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            return
        parts = path.split("/")
        if path.startswith("/api/datasets/"):
            inside = f"/datasets/{'/'.join(parts[3:5])}/resolve/{parts[6]}/"
            held = {p.removeprefix(inside): c for p, c in self.site.files.items() if p.startswith(inside)}
            listed = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in held.items()]
            if held:
                self._send(200, json.dumps(listed).encode(), {}, body)
            else:
                self._send(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound"}, body)
        elif path in self.site.files:
            content = self.site.files[path]
            about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, about, body, len(content) // 2 if path in self.site.cut else None)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)

    def _send(self, code: int, content: bytes, about: dict[str, str], body: bool, only: int | None = None) -> None:
        self.send_response(code)
        for name, value in (about | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:only])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of conftest's: this machine itself may be reached, and nothing else."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def checked(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":
            raise OSError("a test reached for the network")
        connect(self, address)

    def looked(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", checked)
    monkeypatch.setattr(socket, "getaddrinfo", looked)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with no data near it, an empty cache, and hosts that do not exist."""
    from huggingface_hub import constants

    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")) or name == "TRIMTAB_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRIMTAB_GITHUB_RAW", "https://github.invalid")
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def site(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that plays both hosts."""
    from huggingface_hub import constants

    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("TRIMTAB_GITHUB_RAW", site.url)
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield site
    server.shutdown()
    server.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pinned(monkeypatch: pytest.MonkeyPatch, name: str, contents: dict[str, bytes], **changes: Any) -> Pin:
    """The benchmark's pin at our commit, with the hashes of these contents."""
    known = PINS[name]
    files = {path: (known.files[path][0], sha(content)) for path, content in contents.items()}
    pin = replace(known, revision=COMMIT, files=files | changes.pop("files", {}), **changes)
    monkeypatch.setitem(PINS, name, pin)
    return pin


@pytest.fixture
def crows(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """CrowS-Pairs of one pair, served by GitHub."""
    pin = pinned(monkeypatch, "crows_pairs", {f"data/{CROWS}": SENTENCES})
    site.github(pin.repo, f"data/{CROWS}", SENTENCES)
    return site


def parquet(rows: list[dict[str, Any]]) -> bytes:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    files.write_table(arrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


# -- the table


@pytest.mark.parametrize("name", PINS)
def test_a_pin_is_a_commit_with_hashes_and_safe_names(name: str) -> None:
    """Forty digits, sixty-four digits, no way out of the folder; a name once."""
    pin = PINS[name]
    assert hub.COMMIT.fullmatch(pin.revision) and pin.repo.count("/") == 1
    assert pin.licence and "http" in pin.by_hand and pin.files
    names = [here for here, _ in pin.files.values()]
    assert len(set(names)) == len(names) and all(hub._inside(n) for n in names)
    assert all(sha256 is None or hub.HASH.fullmatch(sha256) for _, sha256 in pin.files.values())
    hashes = [sha256 for _, sha256 in pin.files.values() if sha256]
    assert len(set(hashes)) == len(hashes)
    assert (pin.host == "hub") == (pin.unpack is not None)


SHARED = Path(__file__).parents[3] / "shared" / "data"
OURS = Path(os.environ.get("TRIMTAB_DATA") or SHARED)


@pytest.mark.parametrize("name", [n for n, pin in PINS.items() if pin.unpack is None])
@pytest.mark.skipif(not (OURS / "crows_pairs").is_dir(), reason=f"no benchmarks in {OURS}")
def test_pinned_hashes_are_those_of_our_own_copies(name: str) -> None:
    """Wherever a file of that name is here, packed or not; at least one is, but for StereoSet (another form)."""
    from trimtab.tasks.rows import text_of

    checked = 0
    for here, sha256 in PINS[name].files.values():
        for path in (OURS / name / here, OURS / name / f"{here}.gz"):
            if sha256 is not None and path.is_file():
                raw = text_of(path).encode() if path.suffix == ".gz" else path.read_bytes()
                assert sha(raw) == sha256, path
                checked += 1
    assert checked or name == "stereoset"


# -- from a command to a task


def test_github_to_a_task(crows: Site, trimtab_cli: Any) -> None:
    """One command, then the task loads without a data folder; the lock file says where it came from."""
    ran = trimtab_cli("fetch", "crows_pairs")
    assert ran.code == 0, ran.err
    folder = cache() / "crows_pairs"
    assert ran.out == (f"{folder}: 1 file of GitHub nyu-mll/crows-pairs@{COMMIT}, CC BY-SA 4.0, not for training\n")
    assert load_task("crows_pairs", seed=None).items[0].options[0].text == "Old cats nap."
    lock = json.loads((folder / LOCK).read_text())
    assert {k: lock[k] for k in ("name", "host", "repo", "revision")} == {
        "name": "crows_pairs", "host": "github", "repo": "nyu-mll/crows-pairs", "revision": COMMIT,
    }  # fmt: skip
    assert lock["fetched"].startswith("20")
    assert lock["files"] == {CROWS: {"sha256": sha(SENTENCES), "from": f"data/{CROWS}", "from_sha256": sha(SENTENCES)}}
    assert sorted(p.name for p in folder.iterdir()) == [CROWS, LOCK]


def test_a_second_fetch_asks_nobody(crows: Site, trimtab_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so; a read-only cache does not matter to it."""
    fetch("crows_pairs")
    crows.asked.clear()
    monkeypatch.setattr(hub, "owned", None)  # a lock would be a write
    ran = trimtab_cli("fetch", "crows_pairs")
    assert ran.code == 0 and crows.asked == []
    assert "nothing was fetched: they were there already, and their hashes agree" in ran.err


def test_to_a_folder_of_ones_own(crows: Site, here: Path) -> None:
    """FOLDER/NAME, which `--data FOLDER` reads; the cache stays empty."""
    found = fetch("crows-pairs", to="mine")
    assert found.folder == Path("mine") / "crows_pairs" and found.fresh
    assert len(load_task("crows_pairs", data="mine", seed=None).items) == 1
    assert not cache().exists()


def test_mmlu_of_the_hub_becomes_a_file_a_subject(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several subjects, mixed; text with commas, quotes and lines; answers as they were; both hashes kept."""

    def row(subject: str, question: str, answer: int) -> dict[str, Any]:
        return {"question": question, "subject": subject, "choices": ["a, b", 'say "c"', "d", "e"], "answer": answer}

    test = [row("garden_birds", "Which\nsings?", 2), row("soups", "Hot?", 0), row("garden_birds", "Which flies?", 3)]
    contents = {
        "all/dev-00000-of-00001.parquet": parquet([row("garden_birds", "Shown", 1), row("soups", "Shown", 1)]),
        "all/test-00000-of-00001.parquet": parquet(test),
    }
    pin = pinned(monkeypatch, "mmlu", contents)
    for path, content in contents.items():
        site.hub(pin.repo, path, content)
    assert fetch("mmlu").files == 4
    task = load_task("mmlu:cloze:1shot", seed=None)
    assert [i.id for i in task.items] == ["mmlu/garden_birds/0", "mmlu/garden_birds/1", "mmlu/soups/0"]
    first = task.items[0]
    assert first.prompt == 'Question: Shown\nAnswer: say "c"\n\nQuestion: Which\nsings?\nAnswer:'
    assert [(o.text, o.role) for o in first.options][:3] == [
        ("a, b", "wrong"), ('say "c"', "wrong"), ("d", "correct"),
    ]  # fmt: skip
    entry = json.loads((cache() / "mmlu" / LOCK).read_text())["files"]["test/soups_test.csv"]
    assert entry["from_sha256"] == sha(contents["all/test-00000-of-00001.parquet"])
    assert entry["sha256"] == sha((cache() / "mmlu" / "test" / "soups_test.csv").read_bytes()) != entry["from_sha256"]


def test_arc_and_hellaswag_of_the_hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet to the JSON lines that their tasks read, letters of other alphabets and line separators kept."""
    question = {
        "id": "Q1",
        "question": "What is caf\u00e9\u2028?",
        "choices": {"text": ["A", "B"], "label": ["A", "B"]},
    }
    easy = parquet([question | {"answerKey": "B"}])
    pin = pinned(monkeypatch, "arc", {"ARC-Easy/test-00000-of-00001.parquet": easy})
    site.hub(pin.repo, "ARC-Easy/test-00000-of-00001.parquet", easy)
    fetch("arc")
    (item,) = load_task("arc", seed=None).items
    assert item.id == "arc/easy/Q1" and item.prompt == "Question: What is caf\u00e9\u2028?\nAnswer:"

    row = {"ind": 4, "activity_label": "Baking", "ctx_a": "She mixes.", "ctx_b": "then", "ctx": "She mixes. then"}
    row |= {"endings": ["bakes.", "flies.", "sinks.", "sings."], "source_id": "x", "split": "val", "label": "0"}
    whole = parquet([row])
    pin = pinned(monkeypatch, "hellaswag", {"data/validation-00000-of-00001.parquet": whole})
    site.hub(pin.repo, "data/validation-00000-of-00001.parquet", whole)
    fetch("hellaswag")
    (item,) = load_task("hellaswag", seed=None).items
    assert item.prompt == "Baking: She mixes. Then" and item.options[0].role == "correct"


def test_pictures_of_the_hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet with pictures in it to JSON lines and files, which the lock file holds to their bytes."""
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(sink, "PNG")
    row = {"id": "v_Art_1", "question": "What is <image 1>?", "options": "['x', 'y']", "answer": "B"}
    row |= {"question_type": "multiple-choice", "subfield": "x", "image_1": {"bytes": sink.getvalue(), "path": "a.png"}}
    whole = parquet([row])
    pin = pinned(monkeypatch, "mmmu", {"Art/validation-00000-of-00001.parquet": whole})
    site.hub(pin.repo, "Art/validation-00000-of-00001.parquet", whole)
    assert fetch("mmmu").files == 2
    (item,) = load_task("mmmu", seed=None).items
    path = cache() / "mmmu" / "Art" / "v_Art_1_1.png"
    assert path.read_bytes() == sink.getvalue() and item.images[0].digest == sha(sink.getvalue())
    path.write_bytes(b"another picture")
    with pytest.raises(TaskError, match=r"v_Art_1_1.png' was changed after it was fetched"):
        load_task("mmmu", seed=None)


def test_names_of_tasks_that_read_anothers_folder() -> None:
    """By the task as it is written for --task; an unknown one gets the nearest name."""
    assert hub.folder_name("coreference:listed") == "winobias" and hub.folder_name("wikitext") == "wikitext2"
    assert set(ALIASES.values()) <= set(PINS)
    with pytest.raises(UsageError, match=r"nothing to fetch for 'hellaswog'. Did you mean 'hellaswag'\?"):
        fetch("hellaswog")


def test_without_a_name_the_command_lists(crows: Site, trimtab_cli: Any) -> None:
    """Every benchmark with its commit and licence, and whether it was fetched."""
    fetch("crows_pairs")
    lines = {line.split()[0]: line for line in trimtab_cli("fetch").out.splitlines()}
    assert set(lines) == set(PINS)
    assert " fetched; GitHub nyu-mll/crows-pairs@" in lines["crows_pairs"]
    assert "not fetched; Hugging Face cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe, MIT" in lines["mmlu"]


def test_an_unknown_name_stops_before_the_first_is_fetched(crows: Site, trimtab_cli: Any) -> None:
    ran = trimtab_cli("fetch", "crows_pairs", "pronoun")
    assert ran.code == 2 and "'pronoun'" in ran.error and crows.asked == []


# -- what must not be kept


def test_a_wrong_hash_is_refused_with_both_and_nothing_is_kept(crows: Site, trimtab_cli: Any) -> None:
    wrong = SENTENCES.replace(b"nap", b"run")
    crows.github("nyu-mll/crows-pairs", f"data/{CROWS}", wrong)
    ran = trimtab_cli("fetch", "crows_pairs")
    assert ran.code == 6
    assert sha(wrong) in ran.error and sha(SENTENCES) in ran.error and "nothing was written" in ran.error
    assert not cache().exists()


def test_a_wrong_hash_of_the_hub_too_and_force_asks_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the client's own cache keeps may be damaged; --force goes round it."""
    row = {"ind": 4, "activity_label": "Baking", "ctx_a": "She mixes.", "ctx_b": "then"}
    good = parquet([row | {"endings": list("abcd"), "label": "0"}])
    path = "data/validation-00000-of-00001.parquet"
    pin = pinned(monkeypatch, "hellaswag", {path: good})
    site.hub(pin.repo, path, good)
    fetch("hellaswag", to="first")
    (kept,) = (p for p in (tmp_path / "hf").rglob("blobs/*") if p.is_file())
    kept.write_bytes(b"damaged")
    with pytest.raises(TaskError, match=f"SHA-256 {sha(b'damaged')}, expected {sha(good)}.*--force"):
        fetch("hellaswag", to="second")
    assert not Path("second").exists()
    assert fetch("hellaswag", to="second", force=True).fresh


def test_a_body_that_is_cut_off_leaves_nothing(crows: Site) -> None:
    """Tried twice, then one sentence; nothing half, and a later fetch works."""
    path = f"/nyu-mll/crows-pairs/{COMMIT}/data/{CROWS}"
    crows.cut.add(path)
    with pytest.raises(NotFound, match=r"could not be fetched \(127\.0\.0\.1: IncompleteRead"):
        fetch("crows_pairs")
    assert crows.asked == [path, path] and not cache().exists()
    crows.cut.clear()
    assert fetch("crows_pairs").fresh


def test_one_file_that_fails_keeps_the_others_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two categories of eleven would be measured without a word."""
    contents = {f"data/{name}.jsonl": b"{}\n" + name.encode() for name in ("Age", "SES")}
    pin = pinned(monkeypatch, "bbq", contents)
    site.github(pin.repo, "data/Age.jsonl", contents["data/Age.jsonl"])
    with pytest.raises(NotFound, match=r"data/SES\.jsonl is not there \(404\)"):
        fetch("bbq")
    assert not cache().exists()


def test_a_fetch_that_was_killed_while_writing_is_not_read_and_is_completed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file is written first, so what is missing is known."""
    contents = {f"word_language_model/data/wikitext-2/{n}": n.encode() for n in ("test.txt", "valid.txt")}
    pin = pinned(monkeypatch, "wikitext2", contents)
    for path, content in contents.items():
        site.github(pin.repo, path, content)
    write = hub.write_whole

    def killed(path: Path, content: bytes) -> None:
        if path.name == "valid.txt":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(hub, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch("wikitext2")
    monkeypatch.setattr(hub, "write_whole", write)
    from trimtab.tasks.source import find_folder

    with pytest.raises(TaskError, match=r"lacks valid\.txt, .*cut off.*`trimtab fetch wikitext2` completes it"):
        find_folder("wikitext2", None, required=("test.txt",))
    site.asked.clear()
    assert fetch("wikitext2").fresh
    assert [p.rpartition("/")[2] for p in site.asked] == ["valid.txt"]
    assert find_folder("wikitext2", None, required=("test.txt", "valid.txt")) == cache() / "wikitext2"


def test_a_full_disk_is_a_sentence(crows: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.runs.os.fsync", full)
    with pytest.raises(RunError, match=r"cannot write to .*: the disk is full.*--to"):
        fetch("crows_pairs")


def test_a_server_that_stumbles_once_is_asked_again(crows: Site) -> None:
    crows.codes[:] = [503]
    assert fetch("crows_pairs").fresh
    crows.codes[:] = [503, 429]
    with pytest.raises(NotFound, match=r"127\.0\.0\.1 answered 429"):
        fetch("crows_pairs", to="other")


# -- changed afterwards


def test_a_file_that_was_changed_is_neither_read_nor_kept(crows: Site) -> None:
    """Refused by the task and by a second fetch, with both hashes; --force replaces it."""
    path = fetch("crows_pairs").folder / CROWS
    path.write_bytes(SENTENCES + b"More.,Less.,stereo,age\n")
    with pytest.raises(TaskError) as raised:
        load_task("crows_pairs", seed=None)
    assert "was changed after it was fetched" in str(raised.value) and sha(SENTENCES) in str(raised.value)
    assert "`trimtab fetch crows_pairs --force`" in str(raised.value)
    with pytest.raises(TaskError, match="--force fetches it anew"):
        fetch("crows_pairs")
    fetch("crows_pairs", force=True)
    assert path.read_bytes() == SENTENCES and len(load_task("crows_pairs", seed=None).items) == 1


def test_a_file_that_was_removed_is_fetched_again(crows: Site) -> None:
    path = fetch("crows_pairs", to="my data").folder / CROWS
    path.unlink()
    with pytest.raises(TaskError, match=r"`trimtab fetch crows_pairs --to 'my data'` completes it"):
        load_task("crows_pairs", data="my data", seed=None)
    assert fetch("crows_pairs", to="my data").fresh and path.is_file()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[: len(text) // 2], "damaged or was edited"),
        (lambda text: text.replace(CROWS, f"../{CROWS}", 1), "damaged or was edited"),
        (lambda text: text.replace(COMMIT, "main"), "damaged or was edited"),
        (lambda text: text.replace(sha(SENTENCES), "f" * 64), "was edited: it gives"),
        (lambda text: text.replace(f'sha256": "{sha(SENTENCES)}', f'sha256": "{"0" * 64}', 1), "was changed after"),
    ],
)
def test_a_lock_file_that_was_edited(crows: Site, edit: Any, words: str) -> None:
    """Refused with the command that mends it, which does."""
    path = fetch("crows_pairs").folder / LOCK
    text = path.read_text()
    path.write_text(edit(text))
    assert path.read_text() != text
    with pytest.raises(TaskError, match=words) as raised:
        load_task("crows_pairs", seed=None)
    assert "`trimtab fetch crows_pairs --force`" in str(raised.value)
    with pytest.raises(TaskError, match=words):
        fetch("crows_pairs")
    fetch("crows_pairs", force=True)
    assert len(load_task("crows_pairs", seed=None).items) == 1


def test_a_pinned_file_changed_together_with_its_lock_is_still_refused(crows: Site) -> None:
    """The pin in the package is the last word."""
    folder = fetch("crows_pairs").folder
    other = SENTENCES.replace(b"Old", b"Grey")
    (folder / CROWS).write_bytes(other)
    (folder / LOCK).write_text((folder / LOCK).read_text().replace(sha(SENTENCES), sha(other)))
    with pytest.raises(TaskError, match=f"was edited: .*{sha(other)}.*{sha(SENTENCES)}"):
        load_task("crows_pairs", seed=None)


def test_a_file_without_a_pinned_hash_is_held_to_its_first_fetch(
    site: Site, monkeypatch: pytest.MonkeyPatch, trimtab_cli: Any
) -> None:
    path = f"data/{CROWS}"
    pin = pinned(monkeypatch, "crows_pairs", {}, files={path: (CROWS, None)})
    site.github(pin.repo, path, SENTENCES)
    assert "1 of them have no pinned SHA-256" in trimtab_cli("fetch", "crows_pairs").err
    (cache() / "crows_pairs" / CROWS).unlink()
    site.github(pin.repo, path, SENTENCES + b"More.,Less.,stereo,age\n")
    with pytest.raises(TaskError, match=f"expected {sha(SENTENCES)}"):
        fetch("crows_pairs")
    site.github(pin.repo, path, SENTENCES)
    assert fetch("crows_pairs").unpinned == (CROWS,)


def test_another_commit_is_not_mixed_in(crows: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer pin does not silently replace what results were made with; by force the old files go."""
    folder = fetch("crows_pairs").folder
    newer = "f" * 40
    monkeypatch.setitem(
        PINS, "crows_pairs", replace(PINS["crows_pairs"], revision=newer, files={"b.csv": ("b.csv", sha(b"b"))})
    )
    crows.files[f"/nyu-mll/crows-pairs/{newer}/b.csv"] = b"b"
    with pytest.raises(RunError, match=f"@{COMMIT}; --force replaces it with GitHub nyu-mll/crows-pairs@{newer}"):
        fetch("crows_pairs")
    fetch("crows_pairs", force=True)
    assert sorted(p.name for p in folder.iterdir()) == ["b.csv", LOCK]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_not_ours_is_left_alone(crows: Site, here: Path, force: bool) -> None:
    (here / "mine" / "crows_pairs").mkdir(parents=True)
    (here / "mine" / "crows_pairs" / CROWS).write_text("theirs")
    with pytest.raises(RunError, match="files that trimtab did not fetch"):
        fetch("crows_pairs", to="mine", force=force)
    assert (here / "mine" / "crows_pairs" / CROWS).read_text() == "theirs" and crows.asked == []


# -- two at once


def test_two_fetches_at_once(crows: Site) -> None:
    """One of them gets it, the other is told to wait; then it is whole and both see it."""
    crows.held = threading.Event()
    outcomes: list[Any] = []

    def run() -> None:
        try:
            outcomes.append(fetch("crows_pairs"))
        except RunError as error:
            outcomes.append(str(error))
            crows.held.set()  # type: ignore[union-attr]

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    refused = [o for o in outcomes if isinstance(o, str)]
    assert len(outcomes) == 2 and len(refused) == 1
    assert "another run is writing to" in refused[0] and "--to" in refused[0] and "--out" not in refused[0]
    assert not fetch("crows_pairs").fresh


def test_a_held_folder_is_refused(crows: Site) -> None:
    with owned(cache() / "crows_pairs"), pytest.raises(RunError, match="another run is writing"):
        fetch("crows_pairs")
    assert crows.asked == []


# -- no network, no such thing


def test_offline_is_one_sentence_with_the_command_and_the_place(trimtab_cli: Any) -> None:
    """A name that does not resolve, for GitHub and for the hub."""
    for name in ("crows_pairs", "arc"):
        pytest.importorskip("pyarrow")
        ran = trimtab_cli("fetch", name)
        assert ran.code == 3
        assert f"`trimtab fetch {name} --to .` where there is a network" in ran.error
        assert f"copy the folder {name} into {str(cache())!r}" in ran.error and ".invalid" in ran.error
    assert not cache().exists()


def test_a_refused_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TRIMTAB_GITHUB_RAW", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(NotFound, match=r"could not be fetched \(127\.0\.0\.1: .*refused"):
            fetch("crows_pairs")


def test_hf_hub_offline_is_obeyed_for_both_hosts(crows: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("crows_pairs", "hellaswag"):
        with pytest.raises(NotFound, match="HF_HUB_OFFLINE is set"):
            fetch(name)
    assert crows.asked == []


def test_gated_and_missing_repositories_are_told_apart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    pin = replace(PINS["hellaswag"], revision=COMMIT)
    monkeypatch.setitem(PINS, "hellaswag", pin)
    path = next(iter(pin.files))
    with pytest.raises(NotFound, match="does not have data/validation"):
        fetch("hellaswag")
    site.gated.add(f"/datasets/{pin.repo}/resolve/{COMMIT}/{path}")
    with pytest.raises(NotFound, match=r"is gated: accept its terms on .*/datasets/Rowan/hellaswag.*hf auth login"):
        fetch("hellaswag")


def test_without_pyarrow_nothing_is_downloaded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pip install 'trimtab\[hub\]'"):
        fetch("arc")
    assert site.asked == []


# -- a repository of one's own


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ("me/data@main", "a branch or tag moves; give the commit"),
        ("me/data@0123abc", "give the commit, 40 digits"),
        ("me/data", "expected OWNER/REPO@REVISION"),
        (f"data@{COMMIT}", "expected OWNER/REPO@REVISION"),
        (f"https://hub.invalid/me/data@{COMMIT}", "expected OWNER/REPO@REVISION"),
    ],
)
def test_a_mirror_is_a_repository_at_a_commit(mirror: str, words: str, trimtab_cli: Any) -> None:
    ran = trimtab_cli("fetch", "bbq", "--from", mirror)
    assert ran.code == 2 and words in ran.error


def test_a_mirror_must_have_what_the_task_reads(site: Site) -> None:
    with pytest.raises(NotFound, match="is private"):
        fetch("crows_pairs", mirror=f"me/data@{COMMIT}")
    site.hub("me/data", "README.md", b"no data")
    site.hub("me/data", f"../{CROWS}", SENTENCES)
    with pytest.raises(NotFound, match=rf"has none of {CROWS}, in its root or in a folder 'crows_pairs'"):
        fetch("crows_pairs", mirror=f"me/data@{COMMIT}")


def test_a_mirror_end_to_end_in_a_process_of_its_own(site: Site, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME are honoured as they are set; what is no data stays there; hashes are recorded."""
    site.hub("me/data", "README.md", b"mine")
    site.hub("me/data", f"crows_pairs/{CROWS}", SENTENCES)
    mirror = f"me/data@{COMMIT}"
    env = {**os.environ, "HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "hf home")}
    env["PYTHONPATH"] = str(Path(hub.__file__).parents[2])  # the working folder is another here
    run = [sys.executable, "-m", "trimtab.cli", "fetch", "crows_pairs", "--from", mirror]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"1 file of Hugging Face {mirror}" in done.stdout and "Traceback" not in done.stderr
    assert (tmp_path / "hf home" / "hub").is_dir()
    assert len(load_task("crows_pairs", seed=None).items) == 1
    site.asked.clear()
    assert not fetch("crows_pairs", mirror=mirror).fresh and site.asked == []
    with pytest.raises(RunError, match=f"holds crows_pairs of {mirror}"):
        fetch("crows_pairs")
    (cache() / "crows_pairs" / CROWS).write_bytes(b"changed")
    with pytest.raises(TaskError, match=rf"`trimtab fetch crows_pairs --from {mirror} --force`"):
        load_task("crows_pairs", seed=None)


# -- where a task looks


def test_the_cache_comes_last_and_never_behind_a_choice(
    crows: Site, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """../shared/data before it; --data and TRIMTAB_DATA instead of it, with the command that would fill them."""
    fetch("crows_pairs")
    shared = here.parent / "shared" / "data" / "crows_pairs"
    shared.mkdir(parents=True)
    assert load_task("crows_pairs", seed=None).items[0].options[0].text == "Old cats nap."
    (shared / CROWS).write_bytes(SENTENCES.replace(b"Old", b"Shared"))
    assert load_task("crows_pairs", seed=None).items[0].options[0].text == "Shared cats nap."
    (here / "empty").mkdir()
    for given in ("empty", None):
        if given is None:
            monkeypatch.setenv("TRIMTAB_DATA", "empty")
        with pytest.raises(NotFound) as raised:
            load_task("crows_pairs", data=given, seed=None)
        said = str(raised.value)
        assert "`trimtab fetch crows_pairs --to empty`" in said and "\n" not in said
        assert f"it is in {str(cache())!r}, which is not searched where a folder is chosen" in said


@pytest.mark.parametrize("name", ["bbq", "coreference", "winobias", "winogender", "crows_pairs", "stereoset", "mmlu",
                                  "arc", "hellaswag"])  # fmt: skip
def test_what_is_nowhere_says_where_it_was_looked_for_and_the_command(name: str, here: Path) -> None:
    """One sentence, with and without ../shared/data."""
    folder = ALIASES.get(name, name)
    for made in (False, True):
        if made:
            (here.parent / "shared" / "data").mkdir(parents=True)
        with pytest.raises(NotFound) as raised:
            load_task(name, seed=None)
        said = str(raised.value)
        assert "'../shared/data'" in said and f"not fetched into {str(cache())!r}" in said
        assert f"; run `trimtab fetch {folder}`, or give the folder with --data FOLDER or set TRIMTAB_DATA" in said
        assert said.count(". ") == 0 and said.endswith("has it).") and "\n" not in said


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRIMTAB_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    assert cache() == tmp_path / "cache" / "data"
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache() == tmp_path / "xdg" / "trimtab" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert cache() == tmp_path / "me" / ".cache" / "trimtab" / "data"
