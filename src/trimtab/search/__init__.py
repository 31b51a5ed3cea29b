"""Search: the steering with the best figures among recipes, learners, layers and strengths, by Optuna.

    space = Space((source("items:pronoun", seed=0),), ("caa", "pca"), layers=(10, 29), strength=(-2, 2, 0.2))
    found = search(model, task, space, trials=50, seed=0, out="my-search")

The system of Siddique et al., arXiv 2503.05371 ("individual steering vectors"), with other learners, layers and
objectives. Contrasts come from training items or from texts; settings are compared on validation items; what is
reported is measured on test items, afterwards and once.

    space.py      what may be chosen, and one choice
    recall.py     what trials share: activations of texts, hidden states below the steered blocks
    measure.py    the figures of a setting, part by part, and when to leave off
    notebook.py   the study in Optuna's storage
    work.py       one worker;  crew.py  several
    found.py      the result: steerings, front, test figures

Where we depart from the source, and why:

- **Chosen and reported on different items.** The source chose vectors by the rows that it then reported.
- **Bias and capability are objectives.** The source maximises accuracy, which says nothing of either alone; that
  objective is here too.
- **Layers are searched.** The source steers layers -5 to -17 of every model.
- **Nothing is done twice.** The model stays, texts are read once, items are scored without generating, what lies below
  the steered blocks is computed once, repeated settings are answered from memory, and hopeless ones are left early.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import TaskError, UsageError
from trimtab.model import SteerableModel
from trimtab.neutral import passages
from trimtab.runs import owned
from trimtab.search import notebook
from trimtab.search.found import Found as Found
from trimtab.search.found import finish
from trimtab.search.measure import OBJECTIVES as OBJECTIVES
from trimtab.search.measure import SPLIT, Scorer
from trimtab.search.notebook import Notebook, Presence, opened
from trimtab.search.recall import Recalling
from trimtab.search.space import Given, Space
from trimtab.search.space import source as source
from trimtab.search.work import Pace, Worker
from trimtab.types import Item, Progress, ProgressCallback, Task

FLOOR = 0.03
"""Capability that may be lost against the base, where nothing else is said: three points."""


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be searched, and by which rules; the model comes with the work."""

    task: Task
    space: Space
    objective: str = "bias+capability"
    trials: int = 50
    sampler: str = "tpe"
    limit: int | None = None
    """Validation items, at most."""
    prune: bool = True
    floor: float | None = FLOOR
    seed: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"a search tries at least 1 setting, got {self.trials}")
        if self.objective not in OBJECTIVES:
            raise UsageError(f"the objective is one of {', '.join(OBJECTIVES)}; got '{self.objective}'")
        if self.floor is not None and not self.floor >= 0:
            raise UsageError(f"the floor is a number of points of at least 0, got {100 * self.floor:g}")
        if self.sampler not in notebook.SAMPLERS:
            raise UsageError(f"no sampler '{self.sampler}'; there are {', '.join(notebook.SAMPLERS)}")
        if not self.task.split(SPLIT):
            raise TaskError(f"task '{self.task.name}' has no validation items, on which settings are compared")
        if not self.task.split("test"):
            raise TaskError(f"task '{self.task.name}' has no test items, on which the result is reported")
        _apart(self.task, self.space)

    def work(
        self,
        model: SteerableModel,
        where: str | Path,
        name: str,
        *,
        progress: ProgressCallback | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take part in the study of that name until it is done.

        Raises UsageError and SiteError for what the model does not have, RunError for a study of another search,
        UsageError where no setting can be used.
        """
        space = self.space.on(model)
        with self.reading(where, name, signed=True) as notes:
            own = Recalling(model, space.patterns())
            scorer = Scorer(
                own, self.task, self.objective, seed=self.seed, layers=space.layers or (0, 0), limit=self.limit,
                prune=self.prune, floor=self.floor,
            )  # fmt: skip
            aims = [(aim.name, aim.higher) for aim in scorer.aims]
            last = scorer.base[-1]
            base = {"values": list(last.values), "figures": last.figures}
            with notebook.quiet():
                drawn = notebook.sampler(self.sampler, self.seed, aims=len(aims), trials=self.trials)
                notes.begin(self._identity(model, space, scorer), aims, drawn, base)
            Worker(own, space, scorer, notes, self.trials, self.seed, progress, wanted).run()

    @contextlib.contextmanager
    def reading(self, where: str | Path, name: str, *, signed: bool = False) -> Iterator[Notebook]:
        """The study's notebook; `signed` for who works on it."""
        storage, journal = opened(where)
        with contextlib.ExitStack() as stack:
            presence = None
            if journal is not None and signed:
                presence = stack.enter_context(Presence(journal.with_name(f"{journal.name}.workers")))
            stack.callback(storage.remove_session)
            yield Notebook(storage, name, presence)

    def look(self, notes: Notebook, progress: ProgressCallback) -> Callable[[], None]:
        """What shows the progress of a study at which others are at work."""
        pace: list[Pace] = []
        last: list[Progress] = []

        def look() -> None:
            if not notes.watch():
                return
            if not pace and (identity := notes.study.user_attrs.get(notebook.IDENTITY)):
                pace.append(Pace(notes, self.trials, [(a["name"], a["higher"]) for a in identity["aims"]]))
            for one in pace:
                last[:] = [one.now()]
                progress(last[0])

        return look

    def _identity(self, model: SteerableModel, space: Space, scorer: Scorer) -> dict[str, Any]:
        return {
            "space": space.identity(),
            "task": self.task.name,
            "items": [len(scorer.items), scorer.digest],
            "parts": [len(part) for part in scorer.parts],
            "aims": [{"name": a.name, "figures": list(a.figures), "higher": a.higher} for a in scorer.aims],
            "floor": self.floor,
            "seed": self.seed,
            "model": model.fingerprint(),
            "dtype": str(model.dtype),
        }


def search(
    model: SteerableModel,
    task: Task,
    space: Space,
    *,
    seed: int,
    out: str | Path,
    objective: str = "bias+capability",
    trials: int = 50,
    sampler: str = "tpe",
    limit: int | None = None,
    test_limit: int | None = None,
    prune: bool = True,
    floor: float | None = FLOOR,
    storage: str | None = None,
    study: str | None = None,
    neutral: str | Path | None = None,
    command: str = "",
    progress: ProgressCallback | None = None,
) -> Found:
    """Try settings of a space until so many were, save the best and the front, and measure these on test items.

    `storage` is a database's URL or a journal's path, by default study.log in `out`; several processes may share it,
    and a study that was cut off goes on. `floor` is the capability that may be lost: with the objective "bias" no
    setting may lose more, with two objectives the best of the front may not. Raises UsageError, TaskError, RunError,
    and what learners raise where no setting at all can be used.
    """
    job = Job(task, space, objective, trials, sampler, limit, prune, floor, seed=seed)
    reportable(test_limit, neutral)
    folder = Path(out)
    where, name = storage or folder / "study.log", study or named(model.name, task, objective)
    with owned(folder):
        job.work(model, where, name, progress=progress)
        return closed(
            job, model, where, name, folder, test_limit=test_limit, neutral=neutral, command=command, progress=progress
        )


def closed(
    job: Job,
    model: SteerableModel,
    where: str | Path,
    name: str,
    out: Path,
    *,
    test_limit: int | None = None,
    neutral: str | Path | None = None,
    command: str = "",
    progress: ProgressCallback | None = None,
) -> Found:
    """The result of a study that is done, saved and measured on test items: found.finish."""
    with job.reading(where, name) as notes, notebook.quiet():
        notes.watch()
        return finish(
            model, job.task, job.space.on(model), notes, out, floor=job.floor, seed=job.seed, limit=test_limit,
            neutral=neutral, command=command, progress=progress,
        )  # fmt: skip


def named(model: str, task: Task, objective: str) -> str:
    """A study's name where none is given: the same on every machine."""
    return f"{Path(model).name} {task.name} {objective}"


def reportable(test_limit: int | None, neutral: str | Path | None) -> None:
    """Refuse before a search what its report would be refused for. Raises UsageError, NotFound, TaskError."""
    if test_limit is not None and test_limit < 1:
        raise UsageError(f"a report takes at least 1 test item, got {test_limit}")
    passages("test", neutral)


def _apart(task: Task, space: Space) -> None:
    """Refuse texts to learn from that are validation or test items: their prompt, or it with one of its options."""
    held = [i for i in task.items if i.split != "train"]
    kept: dict[Any, Item] = {i.prompt if i.prompt is not None else i.messages: i for i in held}
    whole = {_plain(f"{i.prompt} {o.text}"): i for i in held if i.prompt for o in i.options}
    for given in space.sources:
        if not isinstance(given, Given):
            continue
        for example in (*given.whole.positive, *given.whole.negative):
            begun = () if isinstance(example.prompt, tuple) else _beginnings(f"{example.prompt} {example.answer}")
            item = kept.get(example.prompt) or next((whole[text] for text in begun if text in whole), None)
            if item is not None:
                raise TaskError(
                    f"pairs '{given.spec}' hold the prompt of item '{item.id}' of the split '{item.split}': a search "
                    "may not learn from what it is measured on; take that text out"
                )


def _plain(text: str) -> str:
    """Words apart by one space, without the punctuation that may end a sentence."""
    return " ".join(text.split()).rstrip(".,;:!?")


def _beginnings(text: str) -> Iterator[str]:
    """The first word of a text, the first two, and so on."""
    words = text.split()
    return (_plain(" ".join(words[:n])) for n in range(1, len(words) + 1))
