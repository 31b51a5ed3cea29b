"""What a search may choose, and one choice of it: a Setting.

    pairs             where the contrast comes from, as `trimtab learn --pairs` names it
    descriptions      of an axis: one of its pairs of descriptions, or all; stem and sentences alike
    number            how many pairs
    learner           and LEARNER.NAME, a setting of it for which several values were given
    site              block outputs, a norm's, ...: the last part of a site's name
    first layer, layers     the first steered block, and how many from there on
    strength          in equal steps

These are the names in the study as well. What was given as one value is no parameter; what is open in one part of the
space only (stems, where pairs are descriptions) is asked for in that part alone. Pairs of items come from the split
train: what a trial is scored on is never learned from.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from trimtab import contrasts, learners, sites
from trimtab.errors import UsageError
from trimtab.model import SteerableModel
from trimtab.steering import Steering
from trimtab.types import Contrast, Example

NUMBERS = (32, 64, 128, 256)
"""Numbers of pairs, where none are given."""
STRENGTHS = (-2.0, 2.0, 0.2)
"""Lowest, highest and step, where none are given: those of Siddique et al."""
ALL = "all"
Pick = Callable[[str, Sequence[Any]], Any]
"""Asks for one of some values by the name of the parameter."""


class Suggests(Protocol):
    """What of an Optuna trial is used here."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one contrast is made."""

    source: str
    """As `--pairs` named it."""
    number: int
    """Pairs, never more than there are."""
    description: str = ""
    stem: str = ""
    sentences: str = ""

    def __str__(self) -> str:
        parts = [f"descriptions {self.description}", f"stem {self.stem}", f"sentences {self.sentences}"]
        return f"{self.number} pairs of {self.source}" + (f" ({', '.join(parts)})" if self.description else "")


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a space."""

    recipe: Recipe
    learner: str
    options: tuple[tuple[str, Any], ...]
    """Settings of the learner other than its sites."""
    site: str
    first: int
    last: int
    """The first and the last steered block."""
    strength: float

    @property
    def sites(self) -> str:
        """The pattern of the steered sites."""
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"layers.{span}.{self.site}"

    def fitted(self, model: SteerableModel, contrast: Contrast, seed: int) -> Any:
        """The steering that the learner makes of the contrast."""
        kind = learners.learner(self.learner)
        return kind(sites=self.sites, **dict(self.options)).fit(model, contrast, seed=seed)

    def __str__(self) -> str:
        options = "".join(f" {k}={v}" for k, v in self.options)
        return f"{self.learner}{options} at {self.sites}, strength {self.strength:g}, {self.recipe}"


# -- where pairs come from


@dataclass(frozen=True, eq=False)
class Given:
    """Pairs that are there before the search: of a task's training items, or in a file."""

    spec: str
    whole: Contrast
    numbers: tuple[int, ...]
    seed: int

    def choose(self, pick: Pick, named: Callable[[str, Sequence[Any]], str]) -> Recipe:
        """Ask for what is open."""
        return Recipe(self.spec, pick(named("number", self.numbers), self.numbers))

    def contrast(self, recipe: Recipe) -> Contrast:
        """The first so many pairs in an order drawn from the seed: a smaller number is a part of a larger."""
        size = min(len(self.whole.positive), len(self.whole.negative))
        if recipe.number >= size:
            return self.whole

        def some(side: Sequence[Example]) -> tuple[Example, ...]:
            order = random.Random(f"{self.seed}:pairs").sample(range(len(side)), len(side))
            return tuple(side[k] for k in order[: recipe.number])

        told = f"{self.whole.source}; {recipe.number} of {size} pairs, drawn by seed {self.seed}"
        return replace(self.whole, positive=some(self.whole.positive), negative=some(self.whole.negative), source=told)

    def identity(self) -> dict[str, Any]:
        """What of it must not change while a study is going on."""
        return {"texts": self.whole.digest()[:16], "number": list(self.numbers)}


@dataclass(frozen=True, eq=False)
class Described:
    """Chats that differ in how the model is told to be: an axis, and what may be chosen of it."""

    spec: str
    axis: str
    descriptions: Mapping[str, str | list[tuple[str, str]]]
    """ALL, and each pair by its words, as contrasts.from_descriptions takes them."""
    stems: tuple[str, ...]
    lists: tuple[str, ...]
    numbers: tuple[int, ...]
    seed: int
    chat: bool = True

    def choose(self, pick: Pick, named: Callable[[str, Sequence[Any]], str]) -> Recipe:
        """Ask for what is open."""
        words = tuple(self.descriptions)
        description = pick(named("descriptions", words), words)
        stem = pick(named("stem", self.stems), self.stems)
        said = pick(named("sentences", self.lists), self.lists)
        number = pick(named("number", self.numbers), self.numbers)
        told = len(self.descriptions) - 1 if description == ALL else 1
        begun = len(contrasts.STEMS) if stem == ALL else 1
        heard = sum(len(lines) for name, lines in contrasts.sentences().items() if said in (ALL, name))
        return Recipe(self.spec, min(number, told * begun * heard), description, stem, said)

    def contrast(self, recipe: Recipe) -> Contrast:
        """As contrasts.from_descriptions makes it, by the seed."""
        found = contrasts.from_descriptions(
            self.descriptions[recipe.description],
            tuple(contrasts.STEMS) if recipe.stem == ALL else recipe.stem,
            None if recipe.sentences == ALL else recipe.sentences,
            n=recipe.number,
            chat=self.chat,
            seed=self.seed,
        )
        return replace(found, name=f"descriptions:{self.axis}")

    def identity(self) -> dict[str, Any]:
        """What of it must not change while a study is going on."""
        return {
            "descriptions": list(self.descriptions), "stem": list(self.stems), "sentences": list(self.lists),
            "number": list(self.numbers), **({} if self.chat else {"chat": False}),
        }  # fmt: skip


Source = Given | Described


def source(spec: str, *, numbers: Sequence[int] = NUMBERS, data: str | Path | None = None, seed: int) -> Source:
    """A source of pairs by what `--pairs` says; raises what contrasts.load raises, and UsageError for another split.

    What the words state (a stem, a list of sentences, a number) is fixed, what they leave out is searched.
    """
    kind, _, argument = spec.partition(":")
    words = argument.split(":")
    fixed = int(words[-1]) if len(words) > 1 and words[-1].isdigit() else None
    if kind == "descriptions":
        contrasts.load(spec, data=data, seed=seed)  # refuses what cannot be read
        return _described(spec, words, (fixed,) if fixed else tuple(numbers), seed)
    if kind == "items":
        named = ":".join(words[: -1 if fixed else None])
        head, at, split = named.rpartition("@")
        if at and split in ("validation", "test", "all"):
            raise UsageError(
                f"pairs '{spec}': a search learns from the split train alone; trials are scored on validation items, "
                f"and the report is of test items: write items:{head}"
            )
        spec, load = spec if at or fixed else f"items:{named}", f"items:{named}"
    else:
        load = spec
    whole = contrasts.load(load, data=data, seed=seed)
    size = min(len(whole.positive), len(whole.negative))
    open_ = numbers if kind == "items" else (size,)
    return Given(spec, whole, tuple(dict.fromkeys(min(n, size) for n in ((fixed,) if fixed else open_))), seed)


def _described(spec: str, words: Sequence[str], numbers: tuple[int, ...], seed: int) -> Described:
    axis = words[0]
    stems = tuple(w for w in words[1:] if w in contrasts.STEMS) or (*contrasts.STEMS, ALL)
    lists = tuple(w for w in words[1:] if w in contrasts.sentences()) or (*contrasts.sentences(), ALL)
    known = contrasts.axes()
    names = list(known) if axis == ALL else axis.split("+")
    told: dict[str, str | list[tuple[str, str]]] = {ALL: axis}
    told |= {f"{p} | {d}": [(p, d)] for name in names for p, d in known[name]}
    return Described(spec, axis, told, stems, lists, numbers, seed, chat=contrasts.TEXT not in words)


# -- the space


@dataclass(frozen=True, eq=False)
class Space:
    """Everything that a search may choose."""

    sources: tuple[Source, ...]
    learners: tuple[str, ...]
    strength: tuple[float, float, float] = STRENGTHS
    """Lowest, highest, step."""
    layers: tuple[int, int] | None = None
    """The lowest and the highest block that may be steered; None for all of a model's."""
    sites: tuple[str, ...] = ()
    """Kinds of sites; () for each learner's own."""
    options: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    """Learner -> name of a setting -> its values."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("a search needs pairs: give --pairs items:TASK, descriptions:AXIS or jsonl:PATH")
        if not self.learners:
            raise UsageError("a search needs a learner, such as caa or pca")
        for name in self.learners:
            self._kind(name)
            self._strengths(name)
        if stray := [name for name in self.options if name not in self.learners]:
            raise UsageError(f"a setting of '{stray[0]}' was given, which is not among {', '.join(self.learners)}")

    def choose(self, trial: Suggests) -> Setting:
        """Ask a trial for one setting."""

        def pick(name: str, choices: Sequence[Any]) -> Any:
            return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)

        specs = [s.spec for s in self.sources]
        chosen = self.source(pick("pairs", specs))
        recipe = chosen.choose(pick, lambda word, choices: self._named(chosen, word, choices))
        learner = pick("learner", self.learners)
        options = tuple((k, pick(f"{learner}.{k}", v)) for k, v in self.options.get(learner, {}).items())
        kinds = self._sites(learner)
        site = pick("site" if kinds == self.sites else f"site of {learner}", kinds)
        low, high = self._layers
        first = low if low == high else trial.suggest_int("first layer", low, high)
        last = min(high, first + pick("layers", _spans(high - low + 1)) - 1)
        return Setting(recipe, learner, options, site, first, last, self._strength(learner, trial))

    def source(self, spec: str) -> Source:
        """The source of that name."""
        return next(s for s in self.sources if s.spec == spec)

    def contrast(self, recipe: Recipe) -> Contrast:
        """The contrast of a recipe."""
        return self.source(recipe.source).contrast(recipe)

    def fitted(self, model: SteerableModel, setting: Setting, contrast: Contrast, seed: int) -> Steering:
        """What a setting's learner makes of its contrast; where its range is a custom, that holds all of this space."""
        steering: Steering = setting.fitted(model, contrast, seed)
        if not _open(setting.learner):
            return steering
        low, high = steering.trained_range
        trained = [min(low, self.strength[0]), max(high, self.strength[1])]
        strength = {**steering.card.get("strength", {}), "trained": trained}
        return Steering(steering.interventions, {**steering.card, "strength": strength})

    def patterns(self) -> list[str]:
        """Patterns of all sites that any setting may steer."""
        low, high = self._layers
        kinds = dict.fromkeys(kind for name in self.learners for kind in self._sites(name))
        return [f"layers.{low}-{high}.{kind}" for kind in kinds]

    def on(self, model: SteerableModel) -> Space:
        """The space on a model; raises UsageError for blocks, and SiteError for sites, that it does not have."""
        blocks = sum(1 for name in sites.names(model.hf) if re.fullmatch(r"layers\.\d+\.out", name))
        low, high = self.layers or (0, blocks - 1)
        if high >= blocks:
            raise UsageError(f"layers {low}-{high}: {model.name} has {blocks} layers, 0 to {blocks - 1}")
        found = replace(self, layers=(low, high))
        for pattern in found.patterns():
            sites.find(model.hf, pattern)
        return found

    @property
    def _layers(self) -> tuple[int, int]:
        assert self.layers is not None, "a space is put on a model before anything is chosen"
        return self.layers

    def identity(self) -> dict[str, Any]:
        """What must be the same wherever a study goes on, as plain JSON."""
        return {
            "pairs": {s.spec: s.identity() for s in self.sources},
            "learners": list(self.learners),
            "options": {k: {n: list(v) for n, v in some.items()} for k, some in self.options.items()},
            "sites": {name: list(self._sites(name)) for name in self.learners},
            "layers": list(self._layers),
            "strength": list(self.strength),
        }

    def _named(self, chosen: Source, word: str, choices: Sequence[Any]) -> str:
        """A parameter's name: the plain word where all sources have the same choices, else one of its own."""
        others = [getattr(s, _FIELD[word], None) for s in self.sources]
        same = all(o is None or tuple(o) == tuple(choices) for o in others)
        return word if same else f"{word} of {chosen.spec}"

    def _kind(self, name: str) -> Any:
        if name == "dso":
            raise UsageError("dso learns from a task's items, not from pairs, so a search of pairs has nothing for it")
        kind = learners.learner(name)
        known = {f.name for f in fields(kind)}
        if "sites" not in known:
            raise UsageError(f"the learner '{name}' has no sites to choose, so it cannot be searched")
        if unknown := [k for k in self.options.get(name, {}) if k not in known - {"sites"}]:
            raise UsageError(f"{name} has no setting '{unknown[0]}' to search; it has {', '.join(sorted(known))}")
        return kind

    def _sites(self, learner: str) -> tuple[str, ...]:
        """The kinds of sites of a learner: its own where none were given, or where it can take no other (ITI)."""
        default = next(f.default for f in fields(learners.learner(learner)) if f.name == "sites")
        match = re.fullmatch(r"layers\.\*\.(.+)", str(default))
        own = match[1] if match else "norm.*" if default == sites.NORMS else "out"
        return (own,) if not self.sites or own == "attn.proj_in" else self.sites

    def _strengths(self, learner: str) -> tuple[float, float]:
        """What was given, as far as it may be turned: the learner's module states that as STRENGTH and OPEN."""
        stated = getattr(_module(learner), "STRENGTH", {})
        below, above = (-math.inf, math.inf) if _open(learner) else stated.get("trained", (0.0, 1.0))
        low, high, step = self.strength
        inside = [low + k * step for k in range(_steps(low, high, step) + 1)]
        inside = [round(w, 9) for w in inside if min(below, 0.0) - 1e-9 <= w <= above + 1e-9]
        if not any(inside):
            others = "" if _open(learner) else f"; what {learner} learns may be turned from {below:g} to {above:g}"
            only = ", of which 0 alone is left, the untouched model" if inside else ""
            raise UsageError(f"strengths {low:g} to {high:g} in steps of {step:g}{only}{others}")
        return inside[0], inside[-1]

    def _strength(self, learner: str, trial: Suggests) -> float:
        low, high = self._strengths(learner)
        if low == high:
            return low
        ranges = {self._strengths(name) for name in self.learners}
        name = "strength" if len(ranges) == 1 else f"strength {low:g} to {high:g}"
        return round(trial.suggest_float(name, low, high, step=self.strength[2]), 9)


def _module(learner: str) -> Any:
    return sys.modules[learners.learner(learner).__module__]


def _open(learner: str) -> bool:
    """Whether the range of strengths of what a learner makes is a custom and no bound."""
    return bool(getattr(_module(learner), "OPEN", False))


_FIELD = {"number": "numbers", "descriptions": "descriptions", "stem": "stems", "sentences": "lists"}


def _spans(most: int) -> tuple[int, ...]:
    return tuple(sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most}))


def _steps(low: float, high: float, step: float) -> int:
    return math.floor((high - low) / step + 1e-9)


# -- words to values


def layers(text: str) -> tuple[int, int]:
    """FIRST-LAST, or one number, counted from 0. Raises UsageError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"layers are FIRST-LAST, counted from 0, such as 10-29; got '{text}'")
    return int(match[1]), int(match[2] or match[1])


def strengths(text: str) -> tuple[float, float, float]:
    """LOW:HIGH:STEP, or one strength. Raises UsageError."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1:
        parts = [parts[0], parts[0], 1.0]
    if len(parts) != 3 or not all(map(math.isfinite, parts)) or parts[2] <= 0 or parts[0] > parts[1]:
        raise UsageError(f"strengths are LOW:HIGH:STEP, such as -2:2:0.2, or one strength; got '{text}'")
    low, high, step = parts
    return low, round(low + _steps(low, high, step) * step, 9), step


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of pairs, parted by commas. Raises UsageError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"numbers of pairs are whole numbers of at least 1, parted by commas; got '{text}'")
    return tuple(dict.fromkeys(map(int, parts)))
