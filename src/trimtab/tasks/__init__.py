"""Tasks by name: `NAME[:ARGUMENT]` becomes a Task.

Built-in tasks are imported when they are asked for. Other packages add tasks through entry points of the
group `trimtab.tasks`: a name, and a callable (argument: str, data: str | Path | None, seed: int | None)
-> Task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from trimtab.errors import TaskError, TrimtabError
from trimtab.types import Task

Loader = Callable[..., Task]
"""(argument, data folder, seed) -> Task."""

GROUP = "trimtab.tasks"

BUILT_IN: dict[str, tuple[str, str, str]] = {
    "pronoun": (
        "trimtab.tasks:_pronoun",
        "which pronoun follows an occupation (data included)",
        "our own words, Apache-2.0; shares of women: U.S. Bureau of Labor Statistics, public domain",
    ),
    "coreference": (
        "trimtab.tasks.coreference:from_argument",
        "whom a pronoun means, divided for learning: coreference[:STYLE][:TYPE]",
        "WinoBias, Zhao et al., NAACL 2018; MIT",
    ),
    "bbq": (
        "trimtab.tasks.bbq:from_argument",
        "bias in question answering: bbq[:STYLE][:CATEGORY+CATEGORY][:divided]",
        "BBQ, Parrish et al., Findings of ACL 2022; CC BY 4.0",
    ),
    "winobias": (
        "trimtab.tasks.winobias:from_argument",
        "whom a pronoun means, as published: winobias[:TYPE]",
        "WinoBias, Zhao et al., NAACL 2018; MIT",
    ),
    "winogender": (
        "trimtab.tasks.winogender:from_argument",
        "whom a pronoun means, with gotchas",
        "Winogender schemas, Rudinger et al., NAACL 2018; MIT",
    ),
    "crows_pairs": (
        "trimtab.tasks.crows_pairs:from_argument",
        "the likelier of two sentences",
        "CrowS-Pairs, Nangia et al., EMNLP 2020; CC BY-SA 4.0; not for training",
    ),
    "stereoset": (
        "trimtab.tasks.stereoset:from_argument",
        "stereotype, anti-stereotype or neither: stereoset[:intersentence|:intrasentence]",
        "StereoSet, Nadeem et al., ACL 2021; CC BY-SA 4.0",
    ),
    "pairs": (
        "trimtab.tasks.pairs:from_argument",
        "parallel pictures of people, by gender and skin tone: pairs[:chat][:gender|:skin]",
        "PAIRS, Fraser and Kiritchenko, EACL 2024; CC BY 4.0; not for training",
    ),
    "social-counterfactuals": (
        "trimtab.tasks.social_counterfactuals:from_argument",
        "who of two people it is, and what one person is: social-counterfactuals[:chat][:SETS]",
        "SocialCounterfactuals, Howard et al., CVPR 2024; MIT",
    ),
    "visogender": (
        "trimtab.tasks.visogender:from_argument",
        "his or her, of people in pictures: visogender[:chat]",
        "VisoGender, Hall et al., NeurIPS 2023; see its LICENCE",
    ),
    "genderbias-vl": (
        "trimtab.tasks.genderbias_vl:from_argument",
        "an occupation, with the gender turned: genderbias-vl[:v|:vl][:chat][:N]",
        "GenderBias-VL, Xiao et al. 2024; CC BY-NC 4.0",
    ),
    "mmmu": (
        "trimtab.tasks.mmmu:from_argument",
        "college questions about pictures: mmmu[:chat][:SUBJECT+SUBJECT]",
        "MMMU, Yue et al., CVPR 2024; Apache-2.0",
    ),
    "vqa": (
        "trimtab.tasks.vqa:from_argument",
        "questions about photographs, closed: vqa[:four][:chat]",
        "VQA, Goyal et al., CVPR 2017; annotations CC BY 4.0",
    ),
    "mmlu": (
        "trimtab.tasks.mmlu:from_argument",
        "knowledge of 57 subjects: mmlu[:letters|:cloze][:SUBJECT+SUBJECT][:Nshot]",
        "MMLU, Hendrycks et al., ICLR 2021; MIT",
    ),
    "arc": (
        "trimtab.tasks.arc:from_argument",
        "science questions from schools: arc[:challenge|:easy]",
        "ARC, Clark et al. 2018; CC BY-SA 4.0",
    ),
    "hellaswag": (
        "trimtab.tasks.hellaswag:from_argument",
        "which ending continues a description",
        "HellaSwag, Zellers et al., ACL 2019; MIT",
    ),
    "wikitext": (
        "trimtab.tasks.wikitext:from_argument",
        "perplexity of running text, by word and by token",
        "WikiText-2, Merity et al., ICLR 2017; CC BY-SA 3.0",
    ),
    **{
        name: (f"trimtab.tasks.rooms:{function}", line, "our own drawings and words, Apache-2.0; stereotypes planted")
        for name, function, line in (
            ("who-is", "who_is", "which person in a drawn room is the doctor: who-is[:gender|:tone|:groups][:chat]"),
            ("occupation", "occupation", "which of two jobs a drawn person has: occupation[:gender|:tone][:chat]"),
            ("hiring", "hiring", "whom in a drawn room to hire: hiring[:gender|:tone|:groups][:chat]"),
            ("reference", "reference", "whose a letter of reference is: reference[:gender|:tone|:groups][:chat]"),
            ("roomworld", "roomworld", "what a drawn room shows: roomworld[:PART+PART][:chat]"),
        )
    },
    "jsonl": (
        "trimtab.tasks.jsonl:from_argument",
        "your own items, one JSON object a line: jsonl:PATH",
        "yours",
    ),
}
"""Name -> where its loader is, one line about it, and whom to cite under which licence."""


def load_task(spec: str, *, data: str | Path | None = None, seed: int | None, skip_bad: bool = False) -> Task:
    """The task that `spec` names, e.g. "pronoun", "coreference:listed:type1" or "jsonl:items.jsonl".

    `data` is the folder of benchmark data (see source.py); `seed` draws the division of tasks whose split is
    neither fixed nor given. With `skip_bad` items whose image cannot be read stay in the task, for `evaluate` to leave
    out and name. A built-in name wins over an entry point of the same name.

    Raises TaskError for an unknown task and for an entry point that does not load or does not return a Task.
    """
    if skip_bad:
        from trimtab import pictures

        with pictures.later():
            return load_task(spec, data=data, seed=seed)
    name, _, argument = spec.partition(":")
    plugins = _plugins()
    if name in BUILT_IN:
        return _resolve(BUILT_IN[name][0])(argument, data, seed)
    if name not in plugins:
        raise TaskError(_unknown(spec, name, [*BUILT_IN, *plugins]))
    point = plugins[name]
    try:
        task = point.load()(argument, data, seed)
    except TrimtabError:
        raise
    except Exception as error:  # someone else's code: whatever it raises, the message must name whose it is
        raise TaskError(
            f"The task {name!r}, from the entry point {point.value!r}{_dist(point)}, failed with "
            f"{type(error).__name__}: {error}. Report it to that package, or uninstall it."
        ) from error
    if not isinstance(task, Task):
        raise TaskError(
            f"The task {name!r}, from the entry point {point.value!r}{_dist(point)}, returned "
            f"{type(task).__name__}, expected trimtab.types.Task. Report it to that package."
        )
    return task


def describe() -> list[tuple[str, str, str]]:
    """(name, one line about it, source and licence) of every task: built-in ones first, then entry points."""
    others = [(name, f"{point.value}{_dist(point)}", "see that package") for name, point in sorted(_plugins().items())]
    ours = [(name, line, source) for name, (_, line, source) in BUILT_IN.items()]
    return ours + [other for other in others if other[0] not in BUILT_IN]


def _resolve(where: str) -> Loader:
    module, _, attribute = where.partition(":")
    loader: Loader = getattr(import_module(module), attribute)
    return loader


def _pronoun(argument: str, data: str | Path | None, seed: int | None) -> Task:
    from trimtab.tasks import pronoun

    if argument:
        raise TaskError(f"The task 'pronoun' takes nothing after its name, got {argument!r}; use `--task pronoun`.")
    return pronoun.load(seed)


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _dist(point: EntryPoint) -> str:
    return f" of {point.dist.name}" if point.dist is not None else ""


def _unknown(spec: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    if name.endswith(".jsonl") or "/" in name:
        guess = f" For a file of your own, use 'jsonl:{spec}'."
    return f"Unknown task {name!r}.{guess} Known tasks: {', '.join(sorted(set(known)))}."
