"""The fairness objective on a task's items, for any learner that can differentiate its model.

    min   bias + tilt of wordings + guards against the base     subject to     KL(now || base) <= eps

terms.py has the terms, prices.py what the constraints cost. DSO (learners/dso) says what they are for and where they
come from; LoRA (learners/lora.py) is set against it on the same data and the same objective. What is learned, and how
it is put on the model, is the learner's business: here the model is scored as it is.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab import memory, scoring
from trimtab.errors import TaskError
from trimtab.learners.fairness.prices import Prices
from trimtab.learners.fairness.terms import Batch, Known, listed
from trimtab.model import SteerableModel, first_behind
from trimtab.scoring import Scores
from trimtab.stems import COPIED
from trimtab.types import Item, Task, by_concept

Text = tuple[tuple[int, ...], int]
"""Tokens, and how many of them stand before what counts."""
Window = tuple[tuple[int, ...], Tensor]
"""Tokens of neutral text, and the base's last hidden states at them; at the last of them, where an image is before."""
SCENES_AT_MOST = 96
"""Images, at most, behind which neutral text is read."""
WINDOWS_AT_MOST = 384
"""Windows of neutral text that steps draw from. With one window a passage (68) the KL was learned by heart: 0.02 there
and 0.06 on text that was not seen."""
HELD_WINDOWS = 96
"""Windows, of those that steps draw from, on which the result is held to the budget."""
GUARDS_AT_MOST = 256
"""Unambiguous items that a fit draws from, where a step takes few of them."""
GUARDED_STEPS = 25
"""Where it takes many, a fit draws from what so many steps take."""
REFERENCE_ITEMS = 4
"""Items of a template, at most, whose mean stands for the base's P(neither) and option mass there."""
REFERENCES_AT_MOST = 1536
"""Items that the base scores for references before learning; with more templates it scores each step's items."""
SCORED_AT_MOST = 512
"""Ambiguous training items, at most, that the base scores before learning where terms compare item by item."""
VALIDATION_AT_MOST = 240
"""Validation items looked at, half of them ambiguous."""
STEP_AT_ONCE = 8192
"""Tokens of one pass of a step, at most; `accumulate` is for less."""


@dataclass(frozen=True)
class Aims:
    """What a step draws, and what the terms weigh: fields of DSO's settings, which say what each is."""

    concepts_per_step: int = 50
    templates_per_step: int = 1
    items_per_template: int = 8
    unambiguous_per_step: int = 10
    template_weight: float = 5.0
    unambiguous_guard: float = 1.5
    position_guard: float = 1.0
    neither_guard: float = 1.0
    mass_guard: float = 1.0
    kl_budget: float = 0.12
    kl_windows: int = 6
    kl_tokens: int = 28
    text_guard: float = 1.0
    positions: str = "all"

    @classmethod
    def of(cls, settings: Any) -> Aims:
        """Those of a learner's settings that it has; the others as they are here."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls) if hasattr(settings, f.name)})

    @property
    def reads_text(self) -> bool:
        """Whether any term is about neutral text."""
        return self.kl_windows > 0 and (math.isfinite(self.kl_budget) or self.text_guard > 0)


class Fairness:
    """The objective of one fit. What the base makes of guards, references and windows is computed before the first
    step, so that a run that goes on from a checkpoint sees the same numbers as an unbroken one."""

    def __init__(
        self,
        aims: Aims,
        model: SteerableModel,
        train: list[Item],
        validation: list[Item],
        texts: Sequence[str],
        seed: int,
        untouched: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """`untouched` makes a context within which the model is the base; without it every dial of it is off."""
        self.aims, self.model, self.seed = aims, model, seed
        self.train, self.validation, self.texts = train, validation, texts
        self._untouched = model.unsteered if untouched is None else untouched
        self.readout = model.readout
        self.prices = Prices()
        self.of_concept = {o: _by_template(members) for o, members in by_concept([i for i in train if i.ambiguous])}
        self.listed = any(listed(i) for i in train if i.ambiguous)
        self.guards: list[Known] = []
        self.references: dict[str, tuple[float, float]] = {}
        self.scored: dict[int, Known] = {}
        self.windows: list[Window] = []
        self.looked_at: tuple[list[Known], list[int]] = [], []

    @contextmanager
    def prepared(self, *, exact: bool = True, looks: bool = True) -> Iterator[None]:
        """Fast attention for short rows, and the base's view of things: what `exact` terms and `looks` need too."""
        with ExitStack() as stack:
            spread = self.train[:: max(1, len(self.train) // 256)]
            longest = max(len(r) for r in scoring.flatten(self.model.encode(spread)).rows)
            stack.enter_context(self.model.short_rows(longest))
            if self.model.device.type == "cpu":
                stack.enter_context(memory.kept())
            self.guards = self._with_base(self._chosen_guards())
            self.windows = self._cut_windows() if self.texts else []
            if exact:
                self.references = self._base_of_templates()
                self.scored = {} if self.references else self._base_of_few()
            if looks:
                self.looked_at = self._chosen_validation()
            yield

    # -- what the base makes of it

    def _with_base(self, items: Sequence[Item]) -> list[Known]:
        """Items as tokens with the base model's scores."""
        if not items:
            return []
        plain = [Known(i, e) for i, e in zip(items, self.model.encode(items), strict=True)]
        with torch.no_grad(), self._untouched():
            scores, _ = self.scores(plain)
        return [Known(k.item, k.encoded, s.logp, s.log_mass) for k, s in zip(plain, scores, strict=True)]

    def _chosen_guards(self) -> list[Item]:
        clear = [i for i in self.train if not i.ambiguous] if self.aims.unambiguous_per_step else []
        most = max(GUARDS_AT_MOST, GUARDED_STEPS * self.aims.unambiguous_per_step)
        return random.Random(f"{self.seed}:guards").sample(clear, min(most, len(clear)))

    def _base_of_templates(self) -> dict[str, tuple[float, float]]:
        """The base's mean (P(neither), log mass) of each template, from a few of its items.

        Both depend on the wording far more than on the concept, so a few items stand for all: a pass over every item
        that is drawn would cost a third of the learning time. Empty where there are too many templates for that.
        """
        groups = dict(_by_template([i for i in self.train if i.ambiguous]))
        if self.listed or len(groups) > REFERENCES_AT_MOST:
            return {}
        each = min(REFERENCE_ITEMS, REFERENCES_AT_MOST // max(1, len(groups)))
        rng = random.Random(f"{self.seed}:reference")
        few = {t: rng.sample(members, min(each, len(members))) for t, members in sorted(groups.items())}
        seen = iter(self._with_base([i for members in few.values() for i in members]))
        found = {}
        for template, members in few.items():
            mine = [next(seen) for _ in members]
            p = [k.share("neither") for k in mine]
            mass = [k.base_mass() for k in mine]
            found[template] = sum(p) / len(p), sum(mass) / len(mass)
        return found

    def _base_of_few(self) -> dict[int, Known]:
        """Every ambiguous training item as the base scores it, by identity; empty where there are too many for that.

        Of few items each is drawn in many steps, and a pass of the base over those of a step is a fifth of its time.
        """
        few = [i for i in self.train if i.ambiguous]
        return {id(k.item): k for k in self._with_base(few)} if len(few) <= SCORED_AT_MOST else {}

    def _reference(self, known: Sequence[Known]) -> Tensor:
        """(items, 2): what P(neither) and the log mass of each item are compared with."""
        pairs = [
            self.references[k.item.template] if self.references else (k.share("neither"), k.base_mass()) for k in known
        ]
        return torch.tensor(pairs, device=self.model.device).reshape(-1, 2)

    def _cut_windows(self) -> list[Window]:
        """Windows of neutral text, equally many from each passage, with the base's last hidden states.

        Each begins with the tokens that any text begins with: without them Gemma is another model, and a budget held at
        0.12 nats on bare windows was 0.29 on whole passages (measured). A steering that does nothing where no image is
        seen is held to text behind one: that of a training item, up to its first words.
        """
        rng = random.Random(f"{self.seed}:windows")
        begin = self.model.start
        scenes = self._scenes() if self.aims.positions in ("image", "behind") else [()]
        passages = [ids[len(begin) :] for ids in self.model.tokens(self.texts)]
        length = max(1, self.aims.kl_tokens - len(begin))
        each = math.ceil(WINDOWS_AT_MOST / max(1, len(passages)))
        cut = []
        for ids in passages:
            starts = range(max(1, len(ids) - length + 1))
            cut += [ids[n : n + length] for n in rng.sample(starts, min(each, len(starts)))]
        cut = rng.sample(cut, min(WINDOWS_AT_MOST, len(cut)))
        texts = []
        for ids in cut:
            scene = rng.choice(scenes)
            texts.append((scene + ids, len(scene)) if scene else (begin + ids, 0))
        with torch.no_grad(), self._untouched():
            _, hidden = self.scores([], texts)
        parts = hidden.split([len(ids) - skip for ids, skip in texts])
        return [(ids, h) for (ids, _), h in zip(texts, parts, strict=True)]

    def _scenes(self) -> list[tuple[int, ...]]:
        """What training items begin with, their first image included, each once."""
        shown = _drawn([i for i in self.train if i.images], SCENES_AT_MOST)
        prompts = [e.prompt for e in self.model.encode(shown)]
        found = dict.fromkeys(p[:cut] for p in prompts if (cut := first_behind(p)))
        if not found:
            raise TaskError(
                f"a steering at positions '{self.aims.positions}' acts where an image is seen, and no training item "
                "shows one before words; give items with images, or other positions"
            )
        return list(found)

    def _chosen_validation(self) -> tuple[list[Known], list[int]]:
        """Validation items, those of a concept together and the unambiguous ones last, and how many of each concept."""
        half = VALIDATION_AT_MOST // 2
        ambiguous = _drawn([i for i in self.validation if i.ambiguous], half)
        groups = [members for _, members in by_concept(ambiguous)]
        ordered = [i for members in groups for i in members]
        ordered += _drawn([i for i in self.validation if not i.ambiguous], half)
        return self._with_base(ordered), [len(members) for members in groups]

    # -- one step

    def draw(self, step: int) -> tuple[list[list[Item]], list[Known], list[Window]]:
        """Items of some concepts, unambiguous items and windows of neutral text: a function of the seed and step."""
        rng = random.Random(f"{self.seed}:{step}")
        concepts = rng.sample(sorted(self.of_concept), min(self.aims.concepts_per_step, len(self.of_concept)))
        drawn = [
            [
                item
                for _, members in rng.sample(groups, min(self.aims.templates_per_step, len(groups)))
                for item in _neighbours(members, self.aims.items_per_template, rng)
            ]
            for groups in (self.of_concept[o] for o in concepts)
        ]
        guards = rng.sample(self.guards, min(self.aims.unambiguous_per_step, len(self.guards)))
        windows = rng.sample(self.windows, min(self.aims.kl_windows, len(self.windows)))
        return drawn, guards, windows

    def known(self, items: Sequence[Item]) -> list[Known]:
        """Items of a step: with the base's view where a term compares item by item."""
        if self.scored:
            return [self.scored[id(i)] for i in items]
        if not self.references:
            return self._with_base(items)
        return [Known(i, e) for i, e in zip(items, self.model.encode(items), strict=True)]

    def scores(self, known: Sequence[Known], texts: Sequence[Text] = ()) -> tuple[list[Scores], Tensor]:
        """Scores of items, and the last hidden states (tokens, dim) of texts, which ride along in the same pass."""
        flat = scoring.flatten([k.encoded for k in known])
        rows = (*flat.rows, *(ids for ids, _ in texts))
        riding = [(len(flat.rows) + n, t) for n, (ids, skip) in enumerate(texts) for t in range(skip, len(ids))]
        hidden = self.model.last_hidden(
            rows,
            [*flat.wanted, *riding],
            tokens_at_once=STEP_AT_ONCE if torch.is_grad_enabled() else self.model.packed_at_once,
            untouched=self._behind,
        )
        items = scoring.score_flat(self.readout, flat, hidden[: len(flat.wanted)]) if known else []
        return items, hidden[len(flat.wanted) :]

    @property
    def _behind(self) -> bool:
        """Whether nothing that is learned acts before the end of an image."""
        return self.aims.positions == "behind"

    def tokens(self, known: Sequence[Known], windows: Sequence[Window]) -> int:
        """How many tokens a pass over them computes and keeps; of a stem keys and values alone, an eighth or so."""
        rows = [*scoring.flatten([k.encoded for k in known]).rows, *(ids for ids, _ in windows)]
        cuts = self.model.cuts(rows, untouched=self._behind)
        return sum(len(row) - cut + cut // COPIED for row, cut in zip(rows, cuts, strict=True))

    def seen(self, known: Sequence[Known], windows: Sequence[Window]) -> tuple[list[Tensor], ...]:
        """What the model makes of it as it is now: each item's log-probabilities, each item's log mass, each window's
        KL and the loss of likelihood of its own tokens."""
        scores, hidden = self.scores(known, _texts(windows))
        kl, loss = self._on_text(hidden, windows) if windows else ((), ())
        return [x.logp for x in scores], [x.log_mass for x in scores], list(kl), list(loss)

    def _on_text(self, hidden: Tensor, windows: Sequence[Window]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each window KL(steered || base) at its tokens, and log P(base) - log P(steered) of those it predicts."""
        now = self.readout(hidden).log_softmax(-1)
        gain = now - self.readout(torch.cat([h for _, h in windows])).log_softmax(-1)
        lengths = [len(h) for _, h in windows]
        counted = [ids[-len(h) :] for ids, h in windows]
        following = torch.tensor([t for ids in counted for t in (*ids[1:], ids[0])], device=now.device)
        loss = -gain.gather(1, following[:, None]).squeeze(1)
        return (now.exp() * gain).sum(-1).split(lengths), tuple(part[:-1] for part in loss.split(lengths))

    def objective(
        self, known: Sequence[Known], sizes: Sequence[int], seen: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, dict[str, float]]:
        """The bias of concepts of these sizes, the guards, and the KL, all of one step."""
        logps, log_mass, kl, loss = seen
        terms: dict[str, Tensor | None] = {}
        if known:
            logp = pad_sequence(list(logps), batch_first=True, padding_value=-math.inf)
            reference = self._reference(known[: sum(sizes)])
            terms |= Batch(known, sizes, logp).terms(torch.stack(list(log_mass)), reference)
        if kl and math.isfinite(self.aims.kl_budget):
            terms["kl"] = torch.cat(list(kl)).mean()
        if any(map(len, loss)):
            terms["text"] = torch.relu(torch.cat(list(loss)).mean())
        weights = {
            "bias": 1.0,
            "template": self.aims.template_weight,
            "neither": self.aims.neither_guard,
            "mass": self.aims.mass_guard,
            "unambiguous": self.aims.unambiguous_guard,
            "position": self.aims.position_guard,
            "kl": self.prices.kl,
            "text": self.aims.text_guard,
        }
        found = {name: term for name, term in terms.items() if term is not None}
        costs = {**found, "neither": self.prices.of_neither(found["neither"])} if "neither" in found else found
        total = sum((weights[name] * cost for name, cost in costs.items()), torch.zeros((), device=self.model.device))
        return total, {"loss": float(total.detach()), **{name: float(term.detach()) for name, term in found.items()}}

    # -- between steps

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Bias and guard figures on the validation items as the model is now; a lower `validation_score` is better, as
        far as its `validation_error` lets tell."""
        known, sizes = self.looked_at
        if not known:
            return {}
        found = [x.logp for x in self.scores(known)[0]]
        batch = Batch(known, sizes, pad_sequence(found, batch_first=True, padding_value=-math.inf))
        figures = {f"validation_{k}": float(v) for k, v in batch.falls().items() if v is not None}
        return figures | {"validation_score": sum(figures.values()), "validation_error": batch.bias_error()}

    @torch.no_grad()
    def window_kl(self) -> float:
        """KL(now || base) at all tokens of the held windows, mean in nats a token."""
        held = self.windows[:HELD_WINDOWS]
        _, hidden = self.scores([], _texts(held))
        nothing = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        return float(scoring.nll_and_kl(self.readout, hidden, torch.cat([h for _, h in held]), nothing)[1].mean())


def split_of(items: Task | Sequence[Item], split: str) -> list[Item]:
    """The items of a split; of items that were never divided all are for training."""
    if isinstance(items, Task):
        return list(items.split(split))
    divided = any(i.split for i in items)
    return [i for i in items if i.split == split] if divided else list(items) if split == "train" else []


def with_kept(items: Task | Sequence[Item], keep: Sequence[Task], split: str) -> list[Item]:
    """The items of a split, with the unambiguous ones of tasks that are to stay as they are.

    Of each kept task about as many as there are of `items`' own, where there are any: a large one would crowd out the
    others, since guards are drawn from all alike. Raises TaskError for a kept task without any to learn from.
    """
    own = split_of(items, split)
    most = sum(not i.ambiguous for i in own)
    found = list(own)
    for task in keep:
        settled = [i for i in task.split(split) if not i.ambiguous]
        if not settled and split == "train":
            raise TaskError(f"task '{task.name}' has no unambiguous training items, so nothing of it can be kept right")
        found += _drawn(settled, most) if most else settled
    return found


def data_card(
    items: Task | Sequence[Item], keep: Sequence[Task], train: Sequence[Item], validation: Sequence[Item]
) -> dict[str, Any]:
    """What a steering's card says of the items it was learned from."""

    def named(task: Task) -> dict[str, Any]:
        return {
            "task": task.name,
            "division": task.division,
            "division_seed": task.seed,
            "digest": task.digest(),
        }

    data: dict[str, Any] = {"items": len(train), "validation_items": len(validation), "split": "train"}
    if isinstance(items, Task):
        data |= named(items)
    if keep:
        data["keep"] = [{"split": "train", **named(task)} for task in keep]
    return data


def require_learnable(train: list[Item], *, needs_roles: bool = True) -> None:
    """Raise TaskError where there is no bias to learn from."""
    ambiguous = [i for i in train if i.ambiguous]
    if not ambiguous:
        raise TaskError("there is no ambiguous item in the training split: nothing to make equiprobable")
    if not needs_roles:
        return
    for concept, members in by_concept(ambiguous):
        roles = {o.role for i in members for o in i.options}
        groups = max(len({o.group for o in i.options} - {None}) for i in members)
        if not {"pro", "anti"} <= roles and groups < 3:
            raise TaskError(
                f"concept '{concept}' has one class of outcome ({', '.join(sorted(roles))}); a bias needs options of "
                "both roles, pro and anti, or of more than two groups in one item"
            )


def schedule(step: int, steps: int) -> float:
    """A linear warm-up over the first tenth (10 steps at most), then a cosine to 0."""
    warm = max(1, min(10, steps // 10))
    return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _texts(windows: Sequence[Window]) -> list[Text]:
    return [(ids, len(ids) - len(hidden)) for ids, hidden in windows]


def _drawn(items: Sequence[Item], most: int) -> list[Item]:
    """About so many items, those of one concept and template (both orders of a list) together, drawn by a hash.

    Not every n-th, which would beat with the order of wordings in the data; not by the seed, so that runs compare.
    """
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.concept, item.template), []).append(item)
    found: list[Item] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256("\n".join(key).encode()).digest()):
        if len(found) >= most:
            break
        found += groups[key]
    return found


def _by_template(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.template, []).append(item)
    return list(groups.items())


def _neighbours(members: list[Item], most: int, rng: random.Random) -> list[Item]:
    """At most so many items that follow each other, beginning at a multiple of that; nothing is drawn where all fit."""
    if len(members) <= most:
        return members
    start = most * rng.randrange(math.ceil(len(members) / most))
    return members[start : start + most]
