"""Where each benchmark is fetched from: repository, commit, SHA-256 of every file, and what makes our layout of it.

WinoBias, Winogender, CrowS-Pairs, BBQ, StereoSet, PAIRS and WikiText-2 come from GitHub as their authors wrote them:
copies on the hub lack files, columns or brackets that the tasks need. MMLU, MMMU, ARC and HellaSwag are parquet on the
hub and are turned into the CSV, JSON lines and image files that the tasks read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Host = Literal["hub", "github"]
Rows = list[dict[str, Any]]
Unpack = Callable[[str, Rows], Iterator[tuple[str, str | bytes]]]


def _lines(name: str, rows: Rows) -> Iterator[tuple[str, str | bytes]]:
    """The rows as JSON lines, in a file called `name`."""
    yield name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _by_subject(part: str, rows: Rows) -> Iterator[tuple[str, str | bytes]]:
    """MMLU's rows as a CSV file a subject, in the order in which they come."""
    subjects: dict[str, io.StringIO] = {}
    for row in rows:
        if (subject := row["subject"]) not in subjects:
            subjects[subject] = io.StringIO(newline="")
            _row(subjects[subject], ["question", *(f"choice{n}" for n in range(4)), "answer"])
        _row(subjects[subject], [row["question"], *row["choices"], row["answer"]])
    for subject, text in subjects.items():
        yield f"{part}/{subject}_{part}.csv", text.getvalue()


def _with_pictures(subject: str, rows: Rows) -> Iterator[tuple[str, str | bytes]]:
    """MMMU's rows of a subject as JSON lines, and image_1 to image_7 of each, their bytes as they are, beside them."""
    lines = []
    for row in rows:
        images = [row.get(f"image_{n}") for n in range(1, 8)]
        names = [f"{row['id']}_{n}.png" if image else None for n, image in enumerate(images, start=1)]
        for name, image in zip(names, images, strict=True):
            if name and image:
                yield f"{subject}/{name}", image["bytes"]
        kept = {field: row.get(field) for field in ("id", "question", "options", "answer", "question_type", "subfield")}
        lines.append(json.dumps({**kept, "images": names}, ensure_ascii=False) + "\n")
    yield f"{subject}/validation.jsonl", "".join(lines)


def _row(sink: io.StringIO, cells: list[Any]) -> None:
    csv.writer(sink, lineterminator="\n").writerow(cells)


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a benchmark's files are, at one commit."""

    host: Host
    repo: str
    revision: str
    licence: str
    by_hand: str
    """How to get them without this."""
    reads: tuple[str, ...]
    """Names that its task reads, as patterns: what is taken from a mirror."""
    files: Mapping[str, tuple[str, str | None]]
    """Path in the repository -> (name here, SHA-256 of what lies there, None where nobody was found who states it)."""
    unpack: Unpack | None = None
    """Makes files of a parquet file's rows; its first argument is the name here."""

    @property
    def origin(self) -> str:
        """In words."""
        where = "Hugging Face" if self.host == "hub" else "GitHub"
        return f"{where} {self.repo}@{self.revision}"


def _in(folder: str, hashes: Mapping[str, str | None]) -> dict[str, tuple[str, str | None]]:
    """Files of a folder there, which lie flat here."""
    return {f"{folder}/{name}": (name, sha256) for name, sha256 in hashes.items()}


def _as_there(hashes: Mapping[str, str | None]) -> dict[str, tuple[str, str | None]]:
    """Files that lie here as there."""
    return {name: (name, sha256) for name, sha256 in hashes.items()}


def _hashed(name: str, prefix: str) -> dict[str, tuple[str, str | None]]:
    """Files of which data/NAME.sha256 has a line each, as sha256sum writes them; there they lie in a folder more."""
    lines = (Path(__file__).parent / "data" / f"{name}.sha256").read_text(encoding="utf-8").splitlines()
    return {prefix + path: (path, sha256) for sha256, path in (line.split("  ", 1) for line in lines)}


PINS: dict[str, Pin] = {
    "bbq": Pin(
        "github", "nyu-mll/BBQ", "bea11bd97d79217245b5871acd247b9d6eb24598", "CC BY 4.0",
        "git clone https://github.com/nyu-mll/BBQ",
        ("data/*.jsonl", "data/*.jsonl.gz", "templates/*.csv"),
        _as_there({
            "data/Age.jsonl": "46e805b3fc2d8cbd26eeb8e8430d98cf7b2dc9c83574ff3674e8ce4f0fca2a60",
            "data/Disability_status.jsonl": "375d40d9b71f056150264445ec189b13934998f3f49a1e311aa7578eb3b45e5f",
            "data/Gender_identity.jsonl": "8b5adbb368510a97d5775dc43e1c719e0249fe2da33f13c83e3e29edafec7a00",
            "data/Nationality.jsonl": "a583e74666aec0341ded8aa3983e7cad694eb24de72c254d28b2df3035720090",
            "data/Physical_appearance.jsonl": "e48d7e13508565f4801574e611043470c25c95a0a62af3699cb5ee7cb02608fb",
            "data/Race_ethnicity.jsonl": "4a9f1214cfaa115ce7f0bdb40609122e431f5152c71b8ca64d665e483b946ae6",
            "data/Race_x_SES.jsonl": "af8e2ae3d0e5be9ebcbfe7149e591d47ff649e263307f4548f7fb12f6a6d83e8",
            "data/Race_x_gender.jsonl": "e5dbba782f8c4e25b99dd5470b5136e2db73dbf401cf6d4a5a3ed31b02f95696",
            "data/Religion.jsonl": "cb9555f9f3454a52cd2df85956b59bd7fcca5aa922c8527693b1164d08417616",
            "data/SES.jsonl": "9f92754bb037b0982604b9112705fb81d60a19d9e759c67e4a85e484a070f528",
            "data/Sexual_orientation.jsonl": "2c71036b9e7584fe589c42aef32c1a42bc01b9a5e9b1b8704342630cdb08cefd",
            "templates/new_templates - Race_x_SES.csv": None,
            "templates/new_templates - Race_x_gender.csv": None,
        }),
    ),
    "winobias": Pin(
        "github", "uclanlp/corefBias", "0bce984dd081bbc10b0622f326727a024c607895", "MIT",
        "git clone https://github.com/uclanlp/corefBias, in its folder WinoBias/wino/data,",
        ("*_stereotyped_type?.txt.dev", "*_stereotyped_type?.txt.test", "*male_occupations.txt"),
        _in("WinoBias/wino/data", {
            "male_occupations.txt": "6b82d88847b69d56d207a0c396e9830b031890de585e916e6b4e9bc50672657e",
            "female_occupations.txt": "693bff12286c2c1d46c7d4d45a44a631574710c30b39c1a3001bb7bdebb44ed8",
            "anti_stereotyped_type1.txt.dev": "a4e0ebae344e78b56f657a42e8ae684b9db7747d177c5e7149c0907ebb7f3bf6",
            "anti_stereotyped_type2.txt.dev": "763ad829ad724f9a85ead689ba8ca69072020cb1238def6210f0fc6a47b97e59",
            "pro_stereotyped_type1.txt.dev": "dd55a0d220fe4c0ceb63dd4648223fb4fe1a58d5ad95c116a002ad24b0e292a5",
            "pro_stereotyped_type2.txt.dev": "8f0250de723cea9328e3eaf7169e07936f01aa5909ce7aa580db66eb803f4e86",
            "anti_stereotyped_type1.txt.test": None,
            "anti_stereotyped_type2.txt.test": None,
            "pro_stereotyped_type1.txt.test": None,
            "pro_stereotyped_type2.txt.test": None,
        }),
    ),
    "winogender": Pin(
        "github", "rudinger/winogender-schemas", "1c7f8b481ad8a234b41e9f76a424d6e856e13f7f", "MIT",
        "git clone https://github.com/rudinger/winogender-schemas, in its folder data,",
        ("all_sentences.tsv", "templates.tsv", "occupations-stats.tsv"),
        _in("data", {
            "all_sentences.tsv": "bd69da16bf228cb8df63fd0843aec2d8b5c36a7f21bf8c7b168bcc83932556c8",
            "templates.tsv": "496f2e2dc77296bcebcdd8865a8dc5715ce22b772de9abb5f531d5b3114c48a0",
            "occupations-stats.tsv": "3f7f37c16381a70571356982ea7fe613ac700ad04a6d3b19b9f2be18248df567",
        }),
    ),
    "crows_pairs": Pin(
        "github", "nyu-mll/crows-pairs", "8aaac11c485473159ec9328a65253a5be9a479dc", "CC BY-SA 4.0, not for training",
        "git clone https://github.com/nyu-mll/crows-pairs, in its folder data,",
        ("crows_pairs_anonymized.csv",),
        {"data/crows_pairs_anonymized.csv": (
            "crows_pairs_anonymized.csv", "dfb36986ce0502abbaf7055b9176da3d08d48e07df1251991b5dfbcbceab9d0c"
        )},
    ),
    "stereoset": Pin(
        "github", "moinnadeem/StereoSet", "ead7d086a64a192a1eca88e0dd2fd163de375218", "CC BY-SA 4.0",
        "git clone https://github.com/moinnadeem/StereoSet, in its folder data,",
        ("dev.json", "dev.json.gz", "stereoset_dev.jsonl", "stereoset_dev.jsonl.gz"),
        {"data/dev.json": ("dev.json", "73a0f31b711688112602e4c3ac6ab1e1a7cadcdd67df6c6fd55501c889676c90")},
    ),
    "pairs": Pin(
        "github", "katiefraser/PAIRS", "507075ac84d244c4f98b965ba257b197d4944b04", "CC BY 4.0, for evaluation only",
        "git clone https://github.com/katiefraser/PAIRS, in its folder data,",
        ("occupations/*/*.png", "status/*/*.png", "potential_crime/*/*.png"),
        _hashed("pairs", "data/"),
    ),
    "mmlu": Pin(
        "hub", "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", "MIT",
        "https://people.eecs.berkeley.edu/~hendrycks/data.tar, the link in https://github.com/hendrycks/test,",
        ("dev/*_dev.csv", "dev/*_dev.csv.gz", "test/*_test.csv", "test/*_test.csv.gz"),
        {
            "all/dev-00000-of-00001.parquet": (
                "dev", "2b19bde1ed8ca6b482fb283abc90e8e0d9d228947029c0b91795d64b28b3bc3f"
            ),
            "all/test-00000-of-00001.parquet": (
                "test", "74a41822ce7d3def56e1682f958469c04642a5336a5ce912fa375fdb90fb25d7"
            ),
        },
        _by_subject,
    ),
    "mmmu": Pin(
        "hub", "MMMU/MMMU", "98e6ac0cb9b7b2cd2c991b85a50762edc4aedc68", "Apache-2.0",
        "the data set MMMU/MMMU of https://mmmu-benchmark.github.io, written out as docs/vision-tasks.md says,",
        ("*/validation.jsonl", "*/*.png"),
        {
            f"{subject}/validation-00000-of-00001.parquet": (subject, None)
            for subject in (
                "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory",
                "Basic_Medical_Science", "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
                "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance",
                "Geography", "History", "Literature", "Manage", "Marketing", "Materials", "Math",
                "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
            )
        },
        _with_pictures,
    ),
    "arc": Pin(
        "hub", "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "CC BY-SA 4.0",
        "ARC-V1-Feb2018.zip from https://allenai.org/data/arc",
        ("*[Tt]est*.jsonl", "*[Tt]est*.jsonl.gz"),
        {
            "ARC-Challenge/test-00000-of-00001.parquet": (
                "ARC-Challenge-Test.jsonl", "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9"
            ),
            "ARC-Easy/test-00000-of-00001.parquet": (
                "ARC-Easy-Test.jsonl", "4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177"
            ),
        },
        _lines,
    ),
    "hellaswag": Pin(
        "hub", "Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", "MIT",
        "git clone https://github.com/rowanz/hellaswag",
        ("hellaswag_val.jsonl", "hellaswag_val.jsonl.gz"),
        {"data/validation-00000-of-00001.parquet": (
            "hellaswag_val.jsonl", "899813071e1e95efafec90f856e1987d2150fa4d020fc005df6962c259f660cd"
        )},
        _lines,
    ),
    "wikitext2": Pin(
        "github", "pytorch/examples", "77f55b912142e11fcfdf5b530231fb9c52f181e8", "CC BY-SA 3.0",
        "the folder word_language_model/data/wikitext-2 of https://github.com/pytorch/examples",
        ("test.txt", "test.txt.gz", "valid.txt", "valid.txt.gz"),
        _in("word_language_model/data/wikitext-2", {
            "test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        }),
    ),
}  # fmt: skip
"""A benchmark's folder -> its pin.

Commits on GitHub are those that our own copies were taken from; revisions on the hub, and BBQ's hashes, are those that
inspect_evals 0.26.0 pins. Hashes were computed from our copies (BBQ, eight files; WinoBias, Winogender, CrowS-Pairs,
WikiText-2, PAIRS), or stated by public projects that pin the same commit (BBQ's data, CrowS-Pairs, StereoSet,
WikiText-2 and all files of the hub but MMMU's; MMLU's dev file by one, the others by several). MMMU's commit is the one
that public projects pin, none of which states hashes. They agree where there are both. None of it was downloaded when
this was written.
"""

ALIASES = {"coreference": "winobias", "wikitext": "wikitext2"}
"""Tasks that read another's folder."""
