"""Where contrasts come from: benchmark items, descriptions of a person, or a file of your own.

    items:TASK[@SPLIT][:N]              the biased against the unbiased answer to a task's items
    descriptions:AXIS[:STEM][:LIST][:text][:N]
                                        a model told to be fair against the same told to be prejudiced
    jsonl:PATH                          yours

`positive` is always the side to steer towards: the unbiased answer, the fair description. A task's own name may hold
colons; N is a number of pairs, drawn by the seed.

The descriptions are those of Siddique et al., arXiv 2503.05371, in their structure: system "{stem}{description}.",
user a sentence, for nine axes of bias (the categories of BBQ), twelve pairs of descriptions an axis, three stems. The
stems are the paper's; descriptions (data/descriptions.txt) and sentences (data/sentences.txt, ten lists of fifty) are
our own words. With `text` the same words are a prompt and no chat, for models without a chat template.
"""

from __future__ import annotations

import difflib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import BadItem, NotFound, TaskError, UsageError
from trimtab.tasks import load_task
from trimtab.tasks.jsonl import Album
from trimtab.types import IMAGE, SPLITS, Contrast, Example, Item, Message, Option, Picture, Task

STEMS = {
    "act": "Act as if you are extremely ",
    "pretend": "Pretend you are very ",
    "express": "Express in your response that you are extremely ",
}
PAIRS = 200
"""Pairs of descriptions where no number is given."""
TEXT = "text"
"""In a spec: descriptions as a prompt and no chat."""
KINDS = {
    "items": "items:TASK[@SPLIT][:N]",
    "descriptions": "descriptions:AXIS[+AXIS][:STEM][:LIST][:text][:N]",
    "jsonl": "jsonl:PATH",
}
Against = Literal["anti", "neither"]


def load(spec: str, *, data: str | Path | None = None, seed: int) -> Contrast:
    """The contrast that `spec` names (see above); `data` is the folder of benchmark data.

    Raises UsageError for a spec that cannot be read, and what the three below raise.
    """
    kind, _, argument = spec.partition(":")
    if kind not in KINDS or not argument:
        raise UsageError(f"pairs '{spec}': expected {' or '.join(KINDS.values())}{_meant(spec, kind, argument)}")
    if kind == "jsonl":
        return from_jsonl(argument)
    words, n = _counted(argument.split(":"), spec)
    if kind == "descriptions":
        return _from_words(spec, words, n, seed)
    named, at, split = ":".join(words).rpartition("@")
    if not at or split not in (*SPLITS, "all"):
        named, split = ":".join(words), "train"
    return from_items(load_task(named, data=data, seed=seed), split, n=n, seed=seed)


def _counted(words: list[str], spec: str) -> tuple[list[str], int | None]:
    if len(words) < 2 or not words[-1].isdigit():
        return words, None
    if int(words[-1]) == 0:
        raise UsageError(f"pairs '{spec}': the number of pairs must be at least 1")
    return words[:-1], int(words[-1])


def _meant(spec: str, kind: str, argument: str) -> str:
    if kind in KINDS:
        return f"; nothing stands after '{kind}'"
    if spec.endswith(".jsonl"):
        return f"; did you mean 'jsonl:{spec}'?"
    near = difflib.get_close_matches(kind, KINDS, n=1)
    return f"; did you mean '{near[0]}:{argument}'?" if near else f"; for a task's items, 'items:{spec}'"


def merged(contrasts: Sequence[Contrast]) -> Contrast:
    """All pairs of several contrasts as one: what one steering is learned from instead of an ensemble of several.

    Nothing is drawn or weighed: a contrast of more pairs counts for more. Raises UsageError for none, for the same one
    twice, and where some have pairs and others only two sets of texts.
    """
    if not contrasts:
        raise UsageError("no contrast to merge; give one at least")
    if len(contrasts) == 1:
        return contrasts[0]
    digests = [c.digest() for c in contrasts]
    if twice := [c.name for n, c in enumerate(contrasts) if digests[n] in digests[:n]]:
        raise UsageError(f"contrast '{twice[0]}' comes twice; merged contrasts must differ")
    if len({c.paired for c in contrasts}) > 1:
        loose = ", ".join(c.name for c in contrasts if not c.paired)
        raise UsageError(f"only contrasts of pairs are merged with contrasts of pairs; without pairs are: {loose}")
    parts = [
        {"contrast": c.name, "texts": len(c.positive) + len(c.negative), "digest": digest, **c.origin}
        for c, digest in zip(contrasts, digests, strict=True)
    ]
    return Contrast(
        " & ".join(c.name for c in contrasts),
        tuple(e for c in contrasts for e in c.positive),
        tuple(e for c in contrasts for e in c.negative),
        paired=contrasts[0].paired,
        source="; and ".join(c.source for c in contrasts),
        origin={"parts": parts},
    )


# -- a benchmark's items


def from_items(
    items: Task | Sequence[Item],
    split: str = "train",
    *,
    against: Against | None = None,
    unambiguous: bool = True,
    n: int | None = None,
    seed: int = 0,
    name: str = "items",
) -> Contrast:
    """One pair of each item that has one: its prompt with the unbiased answer, and with the biased one.

    On an ambiguous item the biased answer is the one of role pro, the other the one of role anti or neither, as
    `against` says; by default neither where the task's own figures count it as the right answer (BBQ) or where no
    item has an anti option, else anti. On an unambiguous item the pair is the right answer against the wrong one that
    follows the stereotype; where the anti-stereotypical answer is the wrong one it would have to be the positive side,
    so the item is left out, and so is one that does not say which way its answers lean. `unambiguous=False` leaves
    them all out. With `n`, so many pairs drawn by the seed.

    Raises TaskError where the split has no items or no pair is left.
    """
    task = items if isinstance(items, Task) else None
    chosen = task.split(split) if task is not None else tuple(items)  # type: ignore[arg-type]
    if task is not None:
        name = task.name
        if not chosen:
            there = ", ".join(f"{s} {k}" for s, k in Counter(i.split or "none" for i in task.items).items())
            raise TaskError(f"{name} has no items in the split '{split}' (it has {there}); name another with @SPLIT")
    if against is None:
        against = _against(task, chosen)
    if against not in ("anti", "neither"):
        raise UsageError(f"against is 'anti' or 'neither', got '{against}'")
    pairs: list[tuple[Example, Example]] = []
    kinds: Counter[str] = Counter()
    for item in chosen:
        found = _answers(item, against) if item.ambiguous or unambiguous else "unambiguous, not asked for"
        if isinstance(found, str):
            kinds[found] += 1
            continue
        kinds["ambiguous" if item.ambiguous else "unambiguous"] += 1
        prompt = item.prompt if item.prompt is not None else item.messages or ()
        pairs.append((Example(prompt, found[0].text, item.images), Example(prompt, found[1].text, item.images)))
    used = {k: kinds.pop(k, 0) for k in ("ambiguous", "unambiguous")}
    left = "; ".join(f"{k} {why}" for why, k in kinds.items()) or "nothing"
    if not pairs:
        raise TaskError(f"{name}: none of {len(chosen)} items makes a pair of answers; left out: {left}")
    sides = {"ambiguous": f"answer '{against}' against 'pro'", "unambiguous": "right against stereotyped answer"}
    what = ", ".join(f"{sides[k]} on {used[k]} {k} ones" for k in sides if used[k])
    source = f"items of {name}, split {split}: {what}; left out: {left}"
    pairs, source = _drawn(pairs, n, seed, source)
    origin = {}
    if task is not None:
        origin = {"task": name, "split": split, "division": task.division, "division_seed": task.seed}
    return Contrast(
        f"items:{name}", tuple(p for p, _ in pairs), tuple(q for _, q in pairs), source=source, origin=origin
    )


def _against(task: Task | None, items: Sequence[Item]) -> Against:
    if task is not None and any(f.startswith("ambiguous_accuracy") for f in task.figures):
        return "neither"
    return "anti" if any(o.role == "anti" for i in items if i.ambiguous for o in i.options) else "neither"


def _answers(item: Item, against: Against) -> tuple[Option, Option] | str:
    """(unbiased, biased) answer of an item, or why there is none."""
    if item.ambiguous:
        better = next((o for o in item.options if o.role == against), None)
        biased = next((o for o in item.options if o.role == "pro"), None)
        return (better, biased) if better and biased else f"ambiguous without both 'pro' and '{against}'"
    if any(o.role == "wrong" and o.leans == "anti" for o in item.options):
        return "whose right answer follows the stereotype"
    right = next((o for o in item.options if o.role == "correct"), None)
    biased = next((o for o in item.options if o.role == "wrong" and o.leans == "pro"), None)
    return (right, biased) if right and biased else "unambiguous that do not say which way they lean"


def _drawn(
    pairs: list[tuple[Example, Example]], n: int | None, seed: int, source: str
) -> tuple[list[tuple[Example, Example]], str]:
    if n is None or n >= len(pairs):
        return pairs, source
    kept = sorted(random.Random(f"{seed}:pairs").sample(range(len(pairs)), n))
    return [pairs[k] for k in kept], f"{source}; {n} of {len(pairs)} pairs, drawn by seed {seed}"


# -- descriptions


def axes() -> dict[str, tuple[tuple[str, str], ...]]:
    """The nine axes of bias, each with its (fair, prejudiced) descriptions."""
    found = {}
    for name, lines in _sections("descriptions.txt").items():
        parted = [tuple(part.strip() for part in line.split("|")) for line in lines]
        found[name] = tuple((p[0], p[1]) for p in parted)
    return found


def sentences() -> dict[str, tuple[str, ...]]:
    """Ten lists of fifty short sentences that a user might say."""
    return {name: tuple(lines) for name, lines in _sections("sentences.txt").items()}


def _sections(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in files("trimtab").joinpath("data", name).read_text("utf-8").splitlines():
        if line.startswith("# "):
            found[line[2:].strip()] = []
        elif line.strip():
            found[next(reversed(found))].append(line.strip())
    return found


def from_descriptions(
    descriptions: str | Sequence[tuple[str, str]],
    stems: str | Sequence[str] = tuple(STEMS),
    said: str | Sequence[str] | None = None,
    *,
    n: int = PAIRS,
    chat: bool = True,
    seed: int,
) -> Contrast:
    """`n` pairs of chats that differ in the description p or d of their system turn: "{stem}{p}." against "{stem}{d}.".

    `descriptions` is an axis ("age"), several ("age+race"), "all", or pairs (fair, prejudiced) of your own; `stems`
    one name of STEMS, several, or stems of your own; `said` the name of a list of sentences, sentences of your own,
    or None for all lists. Sentences are drawn by the seed, none twice before all were used, and descriptions and stems
    go round evenly; no pair comes twice. The chat ends where the model's answer begins; without `chat` both turns are
    paragraphs of one prompt, and what comes next is the model's.

    Raises UsageError for an unknown name and where there are fewer different pairs than `n`; equal descriptions are
    refused.
    """
    name, described = _described(descriptions)
    begun = [STEMS.get(s, s) for s in ([stems] if isinstance(stems, str) else stems)]
    heard = _said(said)
    if not (described and begun and heard):
        raise UsageError("descriptions, stems and sentences: at least one of each is needed")
    if equal := [p for p, d in described if p == d]:
        raise BadItem(f"descriptions '{equal[0]}' and '{equal[0]}' are equal: the sides of a pair must differ")
    frames = [(stem, p, d) for stem in begun for p, d in described]
    most = len(frames) * len(heard)
    if not 1 <= n <= most:
        raise UsageError(
            f"{n} pairs were asked for; {len(described)} descriptions x {len(begun)} stems x {len(heard)} sentences "
            f"make 1 to {most}"
        )
    rng = random.Random(f"{seed}:descriptions:{name}")
    rng.shuffle(frames)
    rng.shuffle(heard)
    positive, negative, again = [], [], math.lcm(len(frames), len(heard))
    for k in range(n):
        # Both go round; where they would meet again, frames move on by one, so that no pair comes twice.
        stem, p, d = frames[(k + k // again) % len(frames)]
        user = heard[k % len(heard)]
        positive.append(_told(f"{stem}{p}.", user, chat))
        negative.append(_told(f"{stem}{d}.", user, chat))
    source = (
        f"{'system turns' if chat else 'prompts that begin'} '{begun[0]}...' with {len(described)} pairs of "
        f"descriptions ({name}) and {len(begun)} stems, before {min(n, len(heard))} sentences; drawn by seed {seed}"
    )
    return Contrast(f"descriptions:{name}", tuple(positive), tuple(negative), source=source)


def _told(system: str, user: str, chat: bool) -> Example:
    return Example((Message("system", system), Message("user", user)) if chat else f"{system}\n\n{user}\n\n")


def _from_words(spec: str, words: list[str], n: int | None, seed: int) -> Contrast:
    axis, *rest = words
    lists = sentences()
    stems = [w for w in rest if w in STEMS]
    named = [w for w in rest if w in lists]
    if unknown := [w for w in rest if w not in STEMS and w not in lists and w != TEXT]:
        raise UsageError(
            f"pairs '{spec}': '{unknown[0]}' is no stem ({', '.join(STEMS)}), list of sentences ({', '.join(lists)}), "
            f"'{TEXT}' or number"
        )
    if len(stems) > 1 or len(named) > 1 or rest.count(TEXT) > 1:
        raise UsageError(f"pairs '{spec}': expected {KINDS['descriptions']}, with one stem and one list at most")
    said = named[0] if named else None
    most = len(_described(axis)[1]) * (1 if stems else len(STEMS)) * len(_said(said))
    begun = stems[0] if stems else tuple(STEMS)
    return from_descriptions(axis, begun, said, n=n or min(PAIRS, most), chat=TEXT not in rest, seed=seed)


def _described(given: str | Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    if not isinstance(given, str):
        return "own", [(p, d) for p, d in given]
    known = axes()
    names = list(known) if given == "all" else given.split("+")
    for axis in names:
        if axis not in known:
            near = difflib.get_close_matches(axis.lower(), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"no axis '{axis}'{hint}; there are {', '.join(known)}, and all")
    return given, [pair for axis in names for pair in known[axis]]


def _said(given: str | Sequence[str] | None) -> list[str]:
    known = sentences()
    if given is None:
        return [s for lines in known.values() for s in lines]
    if not isinstance(given, str):
        return list(dict.fromkeys(given))
    if given not in known:
        raise UsageError(f"no list of sentences '{given}'; there are {', '.join(known)}")
    return list(known[given])


# -- a file


def from_jsonl(path: str | Path) -> Contrast:
    r"""Contrasts of your own, one JSON object a line: pairs, or texts with a label.

        {"positive": "She is the engineer.", "negative": "She is the secretary."}
        {"positive": {"prompt": "Who is it?", "answer": "Nobody knows."}, "negative": {"prompt": "Who is it?",
         "answer": "The old man."}}
        {"text": {"messages": [{"role": "user", "content": "Hello"}], "answer": "Hi"}, "label": "positive"}

    (each on one line of the file). A text is a string, or an object with `prompt` or `messages`, and `answer` if one
    follows; a list is taken for messages. Its `images` are paths of files, as an item's are (tasks/jsonl.py): where the
    words have `<image>`, one for each. Either all lines are pairs or all have a label.

    Raises NotFound for a missing file, BadItem naming the line of a defect, a pair of equal sides among them, and
    TaskError for a file without lines or with one label only.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        why = "is a folder" if file.is_dir() else "does not exist"
        raise NotFound(f"The file of pairs {str(path)!r} {why} (seen from {Path.cwd()}); give the path of a JSONL file")
    sides: dict[str, list[Example]] = {"positive": [], "negative": []}
    first: tuple[int, bool] | None = None
    album = Album(file.parent)
    for line, row in _rows(file):
        where = f"{str(path)!r} line {line}"
        paired = "positive" in row or "negative" in row
        wanted = ("positive", "negative") if paired else ("text", "label")
        if set(row) != set(wanted):
            got = ", ".join(row) or "nothing"
            raise BadItem(f"{where} has {got}; expected 'positive' and 'negative', or 'text' and 'label'")
        if first is None:
            first = line, paired
        elif first[1] != paired:
            kinds = ("a pair", "a text with a label") if paired else ("a text with a label", "a pair")
            raise BadItem(f"{where} is {kinds[0]}, line {first[0]} is {kinds[1]}; a file holds one of the two")
        if not paired:
            if row["label"] not in ("positive", "negative"):
                raise BadItem(f"{where}: label is {row['label']!r}, expected 'positive' or 'negative'")
            sides[row["label"]].append(_example(f"{where}, text", row["text"], album))
            continue
        both = [_example(f"{where}, {side}", row[side], album) for side in wanted]
        if both[0] == both[1]:
            raise BadItem(f"{where}: the two sides are equal; a pair must differ")
        for side, example in zip(wanted, both, strict=True):
            sides[side].append(example)
    if first is None:
        raise TaskError(f"{str(path)!r} has no lines; expected one JSON object a line")
    if empty := [side for side, examples in sides.items() if not examples]:
        raise TaskError(f"{str(path)!r} has one class only: no text is labelled '{empty[0]}'")
    positive, negative = tuple(sides["positive"]), tuple(sides["negative"])
    return Contrast(f"jsonl:{path}", positive, negative, paired=first[1], source=f"the file {path}")


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Split at \n alone: JSON text may hold U+2028 and others at which str.splitlines would cut.
    for line, raw in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{str(file)!r} line {line}"
        try:
            text = raw.decode("utf-8")
            if not text.strip():
                continue
            row = json.loads(text)
        except UnicodeDecodeError as error:
            raise BadItem(f"{where}: not UTF-8; save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise BadItem(f"{where}: invalid JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadItem(f"{where}: expected an object {{...}}, got {type(row).__name__}")
        yield line, row


def _example(where: str, given: Any, album: Album) -> Example:
    if isinstance(given, str):
        return Example(_text(where, given))
    if isinstance(given, list):
        return Example(_messages(where, given))
    if not isinstance(given, dict):
        raise BadItem(f"{where}: expected a text, an object with prompt or messages, or a list of messages")
    if unknown := [k for k in given if k not in ("prompt", "messages", "answer", "images")]:
        raise BadItem(f"{where}: unknown field '{unknown[0]}'; known are prompt, messages, answer, images")
    if ("prompt" in given) == ("messages" in given):
        raise BadItem(f"{where}: expected either prompt or messages")
    answer = _text(f"{where}, answer", given["answer"]) if "answer" in given else ""
    prompt = _messages(where, given["messages"]) if "messages" in given else _text(f"{where}, prompt", given["prompt"])
    return Example(prompt, answer, _images(where, given, prompt, album))


def _images(
    where: str, given: Mapping[str, Any], prompt: str | tuple[Message, ...], album: Album
) -> tuple[Picture, ...]:
    words = prompt if isinstance(prompt, str) else "".join(m.content for m in prompt)
    mentions, names = words.count(IMAGE), given.get("images", [])
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() and "\0" not in n for n in names):
        raise BadItem(f"{where}, images: expected a list of paths of files")
    if mentions != len(names) and (mentions or "images" not in given):
        raise BadItem(f"{where}: {len(names)} images, but {IMAGE} stands in the text {mentions} times")
    try:
        return tuple(album.picture(name) for name in names)
    except BadItem as error:
        raise BadItem(f"{where}, images: {error}") from error


def _messages(where: str, given: Any) -> tuple[Message, ...]:
    whole = isinstance(given, list) and given and all(isinstance(m, dict) for m in given)
    if not whole or any(set(m) != {"role", "content"} for m in given):
        raise BadItem(f"{where}: messages are a list of objects with role and content")
    turns = tuple(Message(_text(where, m["role"]), _text(where, m["content"])) for m in given)
    if bad := [t.role for t in turns if t.role not in ("system", "user", "assistant")]:
        raise BadItem(f"{where}: role '{bad[0]}' is not system, user or assistant")
    if turns[-1].role != "user":
        raise BadItem(f"{where}: the last message must be from user; what the assistant says is 'answer'")
    return turns


def _text(where: str, given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise BadItem(f"{where}: expected a text that is not empty, got {json.dumps(given)[:60]}")
    try:
        given.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise BadItem(f"{where}: holds half of a surrogate pair, which is no text") from error
    return given
