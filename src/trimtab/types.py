"""The values that rooms exchange: frozen, plain, and free of torch.

A task makes `Item`s, a model turns each into an `Outcome`, evaluation writes `Record`s, metrics turn
records into `Estimate`s. Nothing here computes a statistic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

Role = Literal["pro", "anti", "neither", "correct", "wrong"]
Split = Literal["train", "validation", "test"]
Per = Literal["option", "token", "byte"]
"""What log P(option | prompt) is divided by before options are compared: nothing, the option's tokens, or its bytes."""
ROLES: tuple[Role, ...] = get_args(Role)
SPLITS: tuple[Split, ...] = get_args(Split)
PER: tuple[Per, ...] = get_args(Per)
Positions = Literal["all", "text", "image", "behind"]
"""Which tokens are steered: all, those of words, those at which an image is, or those of words behind an image."""
POSITIONS: tuple[Positions, ...] = get_args(Positions)
Mode = Literal["likelihood", "generated"]
"""Whether options are scored, or an answer is generated and read."""
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Option:
    """One answer that an item allows."""

    text: str
    """The answer's text. A single space is put between a prompt and it where neither brings one."""
    role: Role
    """On ambiguous items pro (follows the stereotype), anti, neither, or wrong (fits nothing); on others correct or
    wrong."""
    group: str | None = None
    """The group that this answer favours, where there are groups ("women", "men", ...)."""
    position: int | None = None
    """Where the prompt lists or mentions this option, counted from 0; None where it does not."""
    leans: Literal["pro", "anti"] | None = None
    """On unambiguous items: whether this answer, right or wrong, follows the stereotype or goes against it."""


IMAGE = "<image>"
"""What stands in a prompt or a message where one of the item's images is shown."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by where it comes from; nothing is opened or drawn before it is looked at (pictures.py)."""

    source: str
    """The path of a file, or SCHEME:WORDS of a room that draws."""
    digest: str
    """SHA-256 of the file's bytes, or of what it is drawn from: the image's identity."""


@dataclass(frozen=True, slots=True)
class Item:
    """One decision put to a model."""

    id: str
    options: tuple[Option, ...]
    concept: str
    """What the bias is about (an occupation, ...); per-concept bias averages over these."""
    template: str
    """The wording that the item shares with others: the cluster for the bootstrap."""
    ambiguous: bool
    """True where the prompt does not settle the answer."""
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    """Either a prompt to continue or a chat to answer, never both."""
    split: Split | None = None
    images: tuple[Picture, ...] = ()
    """One for each IMAGE in the prompt or the chat, in order; where there is none they stand before all words."""

    def digest(self) -> str:
        """The first 16 hex digits of a SHA-256 over everything the model is shown and may answer."""
        shown = [
            self.prompt,
            [[m.role, m.content] for m in self.messages or ()],
            [[o.text, o.role, o.group, *([o.leans] if o.leans else [])] for o in self.options],
            *([[i.digest for i in self.images]] if self.images else []),
        ]
        return hashlib.sha256(json.dumps(shown, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Text:
    """One running text whose likelihood is measured."""

    id: str
    text: str
    words: int
    """Its words as its source counts them, which need not be those of `text`."""
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """Items with a name, and how they were divided; or running texts."""

    name: str
    """What `--task` said, without the data folder."""
    items: tuple[Item, ...]
    division: str
    """In words: how items got their split (fixed, given, or drawn from a seed), and what was left out."""
    seed: int | None = None
    """The seed of a drawn division; None where the split is fixed or given."""
    figures: tuple[str, ...] = ()
    """The figures of metrics.py that its source defines, first the ones it is known by; () for the general ones."""
    parted: bool = False
    """Whether its templates begin with the name of a part and "/", and figures are wanted of each part as well."""

    texts: tuple[Text, ...] = ()
    """Running texts, of a task that has no items."""

    def split(self, name: str) -> tuple[Item, ...]:
        """The items of one split, or all of them for "all"."""
        return tuple(i for i in self.items if name == "all" or i.split == name)

    def texts_of(self, name: str) -> tuple[Text, ...]:
        """The texts of one split, or all of them for "all"."""
        return tuple(t for t in self.texts if name == "all" or t.split == name)

    def digest(self) -> str:
        """SHA-256 over the items and texts in order, ids and splits included: the training data's identity."""
        lines = [f"{i.id}\t{i.digest()}\t{i.concept}\t{i.template}\t{i.split}" for i in self.items]
        lines += [f"{t.id}\t{t.text}\t{t.split}" for t in self.texts]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """One text that activations are read at: a prompt or a chat, and the words of the answer that end it."""

    prompt: str | tuple[Message, ...]
    answer: str = ""
    images: tuple[Picture, ...] = ()
    """Pictures that the prompt shows, in the order in which it names them."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Texts of two kinds: a steering learned from them leads from `negative` to `positive`."""

    name: str
    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    paired: bool = True
    """Whether the n-th of both differ in nothing else, so that their difference means something."""
    source: str = ""
    """In words: how the texts were made, and what was left out."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where they were made of a task's items: its `task`, `split`, `division` and `division_seed`, for the card."""

    def digest(self) -> str:
        """SHA-256 over both sides in order."""

        def side(examples: tuple[Example, ...]) -> list[Any]:
            return [
                [
                    e.prompt if isinstance(e.prompt, str) else [[m.role, m.content] for m in e.prompt],
                    e.answer,
                    *(image.digest for image in e.images),
                ]
                for e in examples
            ]

        texts = [side(self.positive), side(self.negative)]
        return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of one item."""

    p: tuple[float, ...]
    """Probability of each option, normalised over the options; sums to 1. Of a generated answer 1 for the option that
    it names, and all 0 where it names none or several."""
    mass: float
    """Total unnormalised probability of the options: near 0, the model would have said something else."""
    logp: tuple[float, ...] = ()
    """log P(option | prompt) in nats, summed over the option's tokens; nothing is divided out."""
    tokens: tuple[int, ...] = ()
    """Tokens of each option behind the prompt."""
    answer: str | None = None
    """What was generated, where options were not scored but an answer was read."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that can be believed: value, 95 % interval, and what it rests on."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    seed: int


RECORD_SCHEMA = 1
CONTROLS = ("random", "instruction")
"""Arms that every steering is set against."""
BASELINES = ("self-debias",)
"""Arms that are measured where they are asked for."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a run: one item under one arm at one strength.

    `arm` is "steering" (strength 0 is the base), one of CONTROLS or one of BASELINES. The item's own text rides along
    so that a report never needs the model or the task again.
    """

    task: str
    arm: str
    strength: float
    id: str
    split: str | None
    concept: str
    template: str
    ambiguous: bool
    prompt: str
    options: tuple[str, ...]
    roles: tuple[str, ...]
    groups: tuple[str | None, ...]
    positions: tuple[int | None, ...]
    p: tuple[float, ...]
    mass: float
    digest: str
    leans: tuple[str | None, ...] = ()
    """Of each option on an unambiguous item, "pro" or "anti"; empty where no option has one."""
    logp: tuple[float, ...] = ()
    """log P(option | prompt), from which `p` follows: divided by 1, by tokens or by bytes, then normalised."""
    tokens: tuple[int, ...] = ()
    """Tokens of each option."""
    answer: str | None = None
    """What the model said, where an answer was generated and read; None where options were scored."""
    seconds: float = 0.0
    """Its share of the time that the items measured together with it took."""
    images: tuple[str, ...] = ()
    """Sources of the item's pictures."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One running text under one arm at one strength."""

    arm: str
    strength: float
    id: str
    tokens: int
    """Predicted tokens in the passage."""
    nll: float
    """Sum of -log p over them, in nats."""
    kl: float
    """Sum over them of KL(steered || base), in nats; NaN where it was left out."""
    task: str = "neutral"
    """The task whose text it is; "neutral" for the passages that are measured beside every task."""
    words: int = 0
    """Words of the passage, as its source counts them."""
    seconds: float = 0.0
    """Its share of the time that the passages measured together with it took."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One greedy completion, for people to read."""

    arm: str
    strength: float
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What a long call reports as it goes; the command line draws it."""

    stage: str
    done: int
    total: int
    figures: tuple[tuple[str, float], ...] = ()
    seconds_left: float | None = None


ProgressCallback = Callable[[Progress], None]


@runtime_checkable
class Learner(Protocol):
    """Settings that can fit: a frozen dataclass whose `fit` returns a Steering."""

    def fit(self, model: Any, items: Any, *, seed: int, progress: ProgressCallback | None = None) -> Any: ...


@runtime_checkable
class Reward(Protocol):
    """A user's own reward: one number for each generated answer."""

    def __call__(self, item: Item, answers: Sequence[str]) -> Sequence[float]: ...


def by_concept(items: Sequence[Item]) -> Iterator[tuple[str, list[Item]]]:
    """Items grouped by concept, concepts in order of first appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.concept, []).append(item)
    yield from groups.items()
