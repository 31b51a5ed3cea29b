"""lm-evaluation-harness on a steered model: the model class `trimtab`, and its own command line, strength by strength.

    trimtab lm-eval --tasks arc_easy --steering my-steering --strength 0,0.5,1 --output_path out

is `lm-eval run --model trimtab --model_args {...} --tasks arc_easy --output_path out/strength-0.5` for each strength.
All that is not ours goes through to lm-eval, and its results are lm-eval's own JSON. The scoring is HFLM's, untouched:
the same numbers as `--model hf` at strength 0.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from trimtab import artifact
from trimtab.errors import MissingExtra, SteeringError, UsageError
from trimtab.model import SteerableModel, load
from trimtab.steering import Steering

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingExtra(f"lm-eval is not installed ({error.name} is missing): pip install 'trimtab[lm-eval]'") from error


@functools.lru_cache(maxsize=1)
def _loaded(name: str, dtype: str | None, device: str | None, revision: str | None) -> SteerableModel:
    """The model, kept for the next strength."""
    return load(name, dtype=dtype, device=device, revision=revision)


_attached = ExitStack()
"""The dial of the latest SteeredLM: they share a model, so an earlier one's comes off first."""


@register_model("trimtab")
class SteeredLM(HFLM):  # type: ignore[misc]
    """HFLM with a dial: `--model trimtab --model_args pretrained=M,steering=DIR,strength=0.5`.

    `pretrained` takes what `trimtab.load` takes, and may be left out where the steering's card names its model. Only
    the newest instance is steered; the strength is 1 where none is given. Raises what `trimtab.load`, `trimtab.read`
    and `SteerableModel.steer` raise, and UsageError for a strength without a steering.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        steering: str | None = None,
        strength: float | None = None,
        dtype: str | None = None,
        device: str | None = None,
        revision: str | None = None,
        beyond_range: bool = False,
        other_weights: bool = False,
        **options: Any,
    ) -> None:
        read = artifact.read(steering) if steering else None
        turned = (0.0 if read is None else 1.0) if strength is None else float(strength)
        _require_a_steering(read, [turned])
        self.steerable = _model(read, pretrained, dtype, device, revision)
        _attached.close()
        if read is not None and turned:
            self.dial = _attached.enter_context(
                self.steerable.steer(read, turned, beyond_range=beyond_range, other_weights=other_weights)
            )
        options.setdefault("max_length", self.steerable.context)
        super().__init__(pretrained=self.steerable.hf, tokenizer=self.steerable.tokenizer, **options)


def _require_a_steering(read: Steering | None, strengths: Sequence[float]) -> None:
    if read is None and any(strengths):
        raise UsageError(f"there is no steering to give strength {max(strengths, key=abs):g} to; add --steering DIR")


def _model(
    read: Steering | None, name: str | None, dtype: str | None, device: str | None, revision: str | None
) -> SteerableModel:
    name = name or (read.card.get("model", {}).get("id") if read is not None else None)
    if name is None:
        raise UsageError("no model: give pretrained=MODEL, or a steering whose card names one")
    # lm-eval says cuda where nobody chose a device, whether there is one or not.
    where = None if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
    return _loaded(str(name), None if dtype in (None, "auto") else dtype, where, revision)


def run(
    arguments: Sequence[str],
    *,
    model: str | None,
    steering: str | None,
    strengths: Sequence[float],
    output: Path | None = None,
    **options: Any,
) -> None:
    """`lm-eval run` with `arguments` once for each strength; several write into `output/strength-S`.

    A cache of answers (`--use_cache`) is kept apart for each model, dtype, steering and strength: lm-eval's own key is
    the request alone. Raises UsageError where the arguments choose another model than ours, for a task that lm-eval
    does not know and for a strength without a steering, what steering with any of the strengths would raise, before
    the first is measured, and SystemExit as lm-eval does for arguments that it refuses.
    """
    from lm_eval.__main__ import cli_evaluate

    if taken := {"--model", "-M", "--model_args", "-a"} & {a.split("=")[0] for a in arguments}:
        raise UsageError(
            f"{', '.join(sorted(taken))} is set by trimtab lm-eval; use --model NAME before, and --steering"
        )
    read = artifact.read(steering) if steering else None
    _require_a_steering(read, strengths)
    made = _model(read, model, *(options.get(name) for name in ("dtype", "device", "revision")))
    allowing = {name: bool(options.get(name)) for name in ("beyond_range", "other_weights")}
    if read is not None:
        for strength in strengths:
            made.require(read, strength, **allowing)
    for strength in strengths:
        chosen = {"pretrained": model, "steering": steering, "strength": strength, **options, "device": None}
        given = json.dumps({k: v for k, v in chosen.items() if v is not None})
        where = output / f"strength-{strength:g}" if output is not None and len(strengths) > 1 else output
        into = ["--output_path", str(where)] if where is not None else []
        into += ["--device", str(options["device"])] if options.get("device") else []
        words = _with_a_cache_of_its_own(arguments, made, read, strength)
        try:
            with _argv(["lm-eval", "run", "--model", "trimtab", "--model_args", given, *words, *into]):
                cli_evaluate()
        except ValueError as error:
            if "Tasks not found" in str(error):
                raise UsageError(f"{' '.join(str(error).split())[:300]} (lm-eval ls tasks lists them)") from error
            raise
        finally:
            # Where all answers were in its cache the model was not run, and a dial that did nothing is no mistake.
            with suppress(SteeringError) if words != list(arguments) else nullcontext():
                _attached.close()


def _with_a_cache_of_its_own(
    arguments: Sequence[str], model: SteerableModel, steering: Steering | None, strength: float
) -> list[str]:
    words = list(arguments)
    places = [
        n if "=" in word else n + 1
        for n, word in enumerate(words)
        # argparse takes the beginning of a name for it; --use is the shortest that means this one.
        if (name := word.partition("=")[0]) == "-c" or (len(name) > 4 and "--use_cache".startswith(name))
    ]
    if not places:
        return words
    answers_by = [model.fingerprint(), str(model.dtype), strength]
    answers_by += [steering.digest(), steering.positions] if steering is not None and strength else []
    mark = hashlib.sha256(json.dumps(answers_by).encode()).hexdigest()[:12]
    for n in places:
        words[n : n + 1] = [f"{path}-{mark}" for path in words[n : n + 1]]
    return words


@contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """Within it the process was called with these words: lm-eval's command line reads nothing else."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
