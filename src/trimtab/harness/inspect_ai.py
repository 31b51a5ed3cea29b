"""inspect_ai on a steered model: the provider `trimtab`, which inspect finds by its entry point.

    inspect eval task.py --model trimtab/demo:smollm2 -M steering=my-steering -M strength=0.5

What waits at the same time is generated as rows of one batch, each row with its own strength. Loads no torch until a
model is named: inspect imports all its providers at every start.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from trimtab.errors import MissingExtra, NoChatTemplate, TrimtabError, UsageError
from trimtab.types import Message

try:
    import anyio
    import anyio.from_thread
    import anyio.to_thread
    from anyio.lowlevel import RunVar
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        TopLogprob,
        modelapi,
    )
    from inspect_ai.tool import ToolChoice, ToolInfo
    from rich.markup import escape
except ImportError as error:
    raise MissingExtra(
        f"inspect_ai is not installed ({error.name} is missing): pip install 'trimtab[inspect]'"
    ) from error

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.model import SteerableModel
    from trimtab.steering import Steering

ARGUMENTS = ("steering", "strength", "dtype", "device", "revision", "beyond_range", "other_weights", "batch_size")
"""What -M takes."""
MAX_TOKENS = 2048
"""Tokens of an answer where nobody says how many, as inspect's own `hf` has it; at most half of the context."""
UNHEARD = ("frequency_penalty", "presence_penalty", "logit_bias", "best_of", "response_schema", "prompt_logprobs")
"""Settings of a task that would change an answer and that we do not have: refused, where others ignore them."""
QUIET = 0.02
"""Seconds without a new request after which a batch begins."""


class Refused(PrerequisiteError):  # type: ignore[misc]
    """One of trimtab's errors as inspect prints it: a sentence without a traceback."""

    def __init__(self, error: TrimtabError) -> None:
        super().__init__(escape(str(error)))
        self.args = (str(error),)


class SteeredAPI(ModelAPI):  # type: ignore[misc]
    """A model with a dial: `--model trimtab/NAME -M steering=DIR -M strength=0.5`.

    NAME is what `trimtab.load` takes, and may be left out (`trimtab/`) where the steering's card names its model. The
    strength is the card's default where none is given; a request may bring its own, `extra_body={"strength": 0.3}`.
    Decoding is greedy unless the task sets a temperature above 0, top_p or top_k; of these, what is unset is off.
    Raises Refused, with the sentence of what `trimtab.load`, `trimtab.read` and `SteerableModel.require` raise.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        steering: Any = None,
        strength: Any = None,
        dtype: str | None = None,
        device: str | None = None,
        revision: Any = None,
        beyond_range: Any = False,
        other_weights: Any = False,
        batch_size: Any = 32,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        try:
            if unknown:
                raise UsageError(
                    f"the model argument{'s'[: len(unknown) > 1]} {', '.join(sorted(unknown))} "
                    f"{'are' if len(unknown) > 1 else 'is'} unknown; trimtab/ takes {', '.join(ARGUMENTS)}"
                )
            self.beyond_range = _switch("beyond_range", beyond_range)
            self.other_weights = _switch("other_weights", other_weights)
            self.batch_size = _whole("batch_size", batch_size)
            self.steering: Steering | None = _read(steering)
            card = self.steering.card if self.steering is not None else {}
            self.model_name = model_name or card.get("model", {}).get("id") or ""
            if not self.model_name:
                raise UsageError("no model: give --model trimtab/NAME, or a steering whose card names one")
            usual = card.get("strength", {}).get("default", 1.0) if self.steering is not None else 0.0
            self.strength = _number(usual if strength is None else strength)
            self.model = _loaded(self.model_name, dtype, device, revision)
            if not self.model.chats:
                raise NoChatTemplate(
                    f"{self.model_name} has no chat template (a base model?), and inspect_ai asks in chats; use an "
                    "instruction-tuned model, or trimtab eval"
                )
            self._allowed: set[float] = set()
            with _turn:
                self.require(self.strength)
            # inspect's cache knows a model by its name and this, not by its arguments: without it one strength would
            # be given another's answers.
            tensors = card.get("tensors", {}).get("sha256", "")[:16]
            positions = card.get("positions", "all")
            self.base_url = f"trimtab:{revision}:{self.model.dtype}:{tensors}:{positions}:{self.strength!r}"
        except TrimtabError as error:
            raise Refused(error) from error

    def require(self, strength: float) -> None:
        """Raise what steering with this strength would raise; only while no batch runs on the model."""
        if self.steering is None:
            if strength:
                raise UsageError(f"there is no steering to give strength {strength:g} to; add -M steering=DIR")
        elif strength not in self._allowed:
            allowing = {"beyond_range": self.beyond_range, "other_weights": self.other_weights}
            self.model.require(self.steering, strength, **allowing)
            self._allowed.add(strength)

    # -- what inspect asks a provider

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a chat, in one batch with what else is asked now.

        Raises UsageError for tools, for content that is no text and for settings that trimtab does not have.
        """
        if tools:
            raise UsageError(
                f"trimtab/{self.model_name} cannot call tools, and was given {', '.join(t.name for t in tools)}"
            )
        prompt = self._prompt(input)
        room = self.model.context - len(prompt)
        if room < 1:
            said = f"the chat has {len(prompt)} tokens, {self.model_name} takes {self.model.context}"
            return ModelOutput.from_content(self.model_name, "", "model_length", said)
        request = self._request(prompt, room, config)
        answers = await _desk(self.model).answer(request)
        used = sum(a.tokens for a in answers)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(request, answer) for answer in answers],
            usage=ModelUsage(input_tokens=len(prompt), output_tokens=used, total_tokens=len(prompt) + used),
            metadata={"strength": request.strength},
        )

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer; inspect's estimate would fetch another one."""
        return len(self.model.tokens([text])[0])

    def max_tokens(self) -> int:
        """Where the task does not say."""
        return min(MAX_TOKENS, self.model.context // 2)

    def max_connections(self) -> int:
        """As many as a batch holds."""
        return self.batch_size

    def connection_key(self) -> str:
        """Strengths of one model share it, and its connections."""
        return self.model_name

    def collapse_user_messages(self) -> bool:
        """Many templates want turns to alternate."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Many templates want turns to alternate."""
        return True

    def collapse_system_messages(self) -> bool:
        """Templates know one system turn at most."""
        return True

    def close(self) -> None:
        """Let go of the model; its memory is free when the last provider has."""
        self.__dict__.pop("model", None)

    # -- from inspect's words to ours, and back

    def _prompt(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        turns = []
        for message in chat:
            if message.role == "tool" or getattr(message, "tool_calls", None):
                raise UsageError(f"the chat holds tool calls, and trimtab/{self.model_name} cannot call tools")
            if strange := {part.type for part in message.content_list} - {"text"}:
                raise UsageError(
                    f"a {message.role} message holds {', '.join(sorted(strange))}; trimtab/{self.model_name} reads text"
                )
            turns.append(Message(message.role, message.text))
        # As an instruction it goes into the first user turn where the template refuses a system turn.
        system = turns[0].content if len(turns) > 1 and turns[0].role == "system" else None
        for turn in turns:
            self.model.refuse_marks(turn.content, f"a {turn.role} message")
        text = self.model.render(turns if system is None else turns[1:], system)
        return self.model.tokens([text])[0]

    def _request(self, prompt: tuple[int, ...], room: int, config: GenerateConfig) -> _Request:
        if unheard := [name for name in UNHEARD if getattr(config, name)]:
            raise UsageError(f"trimtab/{self.model_name} does not have {', '.join(unheard)}; leave it out of the task")
        body = dict(config.extra_body or {})
        strength = _number(body.pop("strength", self.strength))
        if body:
            raise UsageError(f"extra_body holds {', '.join(sorted(body))}; trimtab knows one entry, strength")
        wanted = config.max_tokens if config.max_tokens is not None else self.max_tokens()
        if wanted < 1:
            raise UsageError(f"max_tokens must be at least 1, got {wanted}")
        narrowed = bool(config.top_p or config.top_k)
        temperature = (1.0 if narrowed else 0.0) if config.temperature is None else float(config.temperature)
        settings = _Settings(
            tokens=min(wanted, room),
            temperature=temperature,
            top_p=1.0 if config.top_p is None or not temperature else config.top_p,
            top_k=config.top_k or 0 if temperature else 0,
            seed=config.seed if temperature else None,
            stops=tuple(s for s in config.stop_seqs or () if s),
            top=(config.top_logprobs or 0) if config.logprobs or config.top_logprobs else None,
        )
        return _Request(self, prompt, strength, settings, config.num_choices or 1, room < wanted)

    def _choice(self, request: _Request, answer: _Answer) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=answer.text, model=self.model_name, source="generate")
        cut = "model_length" if request.short_of_context else "max_tokens"
        return ChatCompletionChoice(
            message=message, stop_reason="stop" if answer.ended else cut, logprobs=_logprobs(answer)
        )


modelapi(name="trimtab")(SteeredAPI)


# -- requests, and the desk at which they wait


@dataclass(frozen=True)
class _Settings:
    """What rows of one batch have in common."""

    tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stops: tuple[str, ...]
    top: int | None
    """How many most likely tokens are told beside each token's log probability; None for no log probabilities."""

    def options(self) -> dict[str, Any]:
        """For transformers."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.tokens, **(drawn if self.temperature else {})}


@dataclass(frozen=True)
class _Told:
    """A token's log probability under the model itself, before temperature and top_p."""

    token: str
    logp: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _Answer:
    text: str
    tokens: int
    """Generated, with the end-of-text token."""
    ended: bool
    """By that token or a stop sequence, not by the limit."""
    told: tuple[_Told, ...] | None


@dataclass(eq=False)
class _Request:
    provider: SteeredAPI
    prompt: tuple[int, ...]
    strength: float
    settings: _Settings
    choices: int
    short_of_context: bool
    """Whether the context, not max_tokens, limits the answer."""
    answers: list[_Answer] | None = None
    error: Exception | None = None
    left: bool = False
    """Whether nobody waits for it any more."""

    @property
    def rows(self) -> int:
        """Of a batch; greedy choices are all the same one."""
        return self.choices if self.settings.temperature else 1

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for what may share a batch."""
        way = self.provider
        return id(way.steering), way.beyond_range, way.other_weights, self.settings


class _Desk:
    """Where requests to one model wait: the first in the queue takes along what may share its batch."""

    def __init__(self) -> None:
        self.waiting: dict[_Request, None] = {}
        self.lock = anyio.Lock()

    async def answer(self, request: _Request) -> list[_Answer]:
        """Its answers, generated in a thread, so that inspect goes on with the rest. Raises what went wrong there."""
        self.waiting[request] = None
        try:
            async with self.lock:
                if request in self.waiting:
                    await self._quiet(request.provider.batch_size)
                    batch = self._batch(request)
                    await anyio.to_thread.run_sync(_run, batch)
                    for done in batch:
                        self.waiting.pop(done, None)
        finally:
            request.left = True
            self.waiting.pop(request, None)
        if request.error is not None:
            raise request.error
        assert request.answers is not None
        return request.answers

    async def _quiet(self, enough: int) -> None:
        seen = 0
        while seen < len(self.waiting) < enough:
            seen = len(self.waiting)
            await anyio.sleep(QUIET)

    def _batch(self, first: _Request) -> list[_Request]:
        """`first`, and those like it whose lengths are closest to its own."""
        batch, rows = [first], first.rows
        if first.settings.seed is not None:  # alone, so that a draw does not depend on who else asks
            return batch
        like = [r for r in self.waiting if r is not first and r.key == first.key]
        for other in sorted(like, key=lambda r: abs(len(r.prompt) - len(first.prompt))):
            if rows + other.rows <= first.provider.batch_size:
                batch.append(other)
                rows += other.rows
        return batch


_desks: RunVar[WeakKeyDictionary[SteerableModel, _Desk]] = RunVar("desks of trimtab")
_turn = threading.Lock()
"""Held by who steers: dials act on the model, whichever loop or thread runs it."""


def _desk(model: SteerableModel) -> _Desk:
    """The model's desk in this event loop, to which its lock belongs."""
    desks: WeakKeyDictionary[SteerableModel, _Desk] | None = _desks.get(None)
    if desks is None:
        desks = WeakKeyDictionary()
        _desks.set(desks)
    return desks.setdefault(model, _Desk())


# -- in the worker thread


def _run(batch: list[_Request]) -> None:
    """Give each request its answers, or what went wrong."""
    import torch

    from trimtab.packing import fitting

    with _turn:
        allowed = []
        for request in batch:
            try:
                request.provider.require(request.strength)
                allowed.append(request)
            except TrimtabError as error:
                request.error = error
        rows = [request for request in allowed for _ in range(request.rows)]
        found: dict[int, _Answer] = {}
        try:
            with torch.no_grad():
                places = [list(range(len(rows)))] if rows else []
                for some, made in fitting(places, lambda some: _answered(batch, [rows[i] for i in some], some[0])):
                    found.update(zip(some, made, strict=True))
        except Exception as error:  # each asker is told; the desk must go on
            for request in allowed:
                request.error = error
            return
    answers = iter(found[i] for i in range(len(rows)))
    for request in allowed:
        own = [next(answers) for _ in range(request.rows)]
        request.answers = own if request.rows == request.choices else own * request.choices


def _answered(batch: list[_Request], rows: list[_Request], first: int) -> list[_Answer]:
    """An answer for each row; `first` is the place of these rows in a batch that memory was too short for."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    way, settings = rows[0].provider, rows[0].settings
    model = way.model
    watch = _Watch(batch, rows)
    with ExitStack() as stack:
        if way.steering is not None:
            allowing = {"beyond_range": way.beyond_range, "other_weights": way.other_weights}
            stack.enter_context(model.steer(way.steering, [r.strength for r in rows], **allowing))
        if settings.seed is not None:
            gpu = [model.device] if model.device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(gpu))
            torch.manual_seed(settings.seed + first)
        new = model.generate_ids(
            [r.prompt for r in rows],
            keep_stop=True,
            logits_processor=LogitsProcessorList([watch.before]),
            stopping_criteria=StoppingCriteriaList([watch.after]),
            **settings.options(),
        )
    return [watch.answer(row, ids) for row, ids in enumerate(new)]


class _Watch:
    """Stands by while a batch is generated: sees stop sequences, log probabilities, and that nobody waits any more."""

    def __init__(self, batch: list[_Request], rows: list[_Request]) -> None:
        self.batch = batch
        self.model, self.settings = rows[0].provider.model, rows[0].settings
        self.width = max(len(r.prompt) for r in rows)
        self.stopped: list[int | None] = [None] * len(rows)
        """After how many tokens a row said a stop sequence."""
        self.told: list[list[tuple[float, list[int], list[float]]]] = [[] for _ in rows]
        self.logp: Tensor | None = None
        eos = self.model.hf.generation_config.eos_token_id  # type: ignore[union-attr]
        self.ends = {self.model.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
        self.spelled: dict[int, str] = {}
        # A token is a byte at least; some more, because what a cut begins with may be read otherwise.
        self.tail = max((len(s.encode()) for s in self.settings.stops), default=0) + 8

    def before(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Hear the scores from which the next token will be taken."""
        if self.settings.top is not None:
            self.logp = scores.float().log_softmax(-1)
        return scores

    def after(self, ids: Tensor, scores: Any, **more: Any) -> Tensor:
        """Which rows end with the token that was taken."""
        import torch

        if all(r.left for r in self.batch[1:]):
            anyio.from_thread.check_cancelled()  # raises where the first has left as well
        if self.logp is not None:
            chosen = self.logp.gather(1, ids[:, -1:])[:, 0].tolist()
            top = self.logp.topk(self.settings.top or 0)
            for row, told in enumerate(zip(chosen, top.indices.tolist(), top.values.tolist(), strict=True)):
                self.told[row].append(told)
        if self.settings.stops:
            said = ids[:, self.width :]
            for row, tail in enumerate(said[:, -self.tail :].tolist()):
                if self.stopped[row] is None and self._stop(self.model.text(tail)) is not None:
                    self.stopped[row] = said.shape[1]
        return torch.tensor([n is not None for n in self.stopped], device=ids.device)

    def _stop(self, text: str) -> int | None:
        """Where the first stop sequence begins."""
        return min((text.index(s) for s in self.settings.stops if s in text), default=None)

    def answer(self, row: int, ids: list[int]) -> _Answer:
        """What a row said."""
        ids = ids[: self.stopped[row]]  # behind it stands padding
        marked = bool(ids) and ids[-1] in self.ends
        kept = ids[:-1] if marked else ids
        text = self.model.text(kept)
        at = self._stop(text)
        if at is not None:
            text = text[:at]
            while kept and len(self.model.text(kept[:-1])) >= at:
                kept = kept[:-1]
        told = None if self.settings.top is None else tuple(self._tell(row, n, t) for n, t in enumerate(kept))
        return _Answer(text, len(ids), marked or at is not None, told)

    def _tell(self, row: int, place: int, token: int) -> _Told:
        logp, ids, values = self.told[row][place]
        return _Told(self._spell(token), logp, tuple((self._spell(i), v) for i, v in zip(ids, values, strict=True)))

    def _spell(self, token: int) -> str:
        """A token as it reads behind a letter: many tokenizers drop the space that a text begins with."""
        if token not in self.spelled:
            letter = list(self.model.tokens(["a"])[0][-1:])
            alone, both = (
                self.model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                for ids in (letter, [*letter, token])
            )
            self.spelled[token] = both[len(alone) :]
        return self.spelled[token]


def _logprobs(answer: _Answer) -> Logprobs | None:
    if answer.told is None:
        return None

    def spelled(token: str, logp: float) -> dict[str, Any]:
        # Part of a character has no spelling, and its bytes are not known here.
        return {"token": token, "logprob": logp, "bytes": None if "\ufffd" in token else list(token.encode())}

    return Logprobs(
        content=[
            Logprob(**spelled(t.token, t.logp), top_logprobs=[TopLogprob(**spelled(*one)) for one in t.top] or None)
            for t in answer.told
        ]
    )


# -- arguments


_models: WeakValueDictionary[tuple[Any, ...], SteerableModel] = WeakValueDictionary()
"""Strengths of one model share it: a model is loaded once while a provider has it."""


def _loaded(name: str, dtype: str | None, device: str | None, revision: Any) -> SteerableModel:
    from trimtab.model import load

    key = (name, dtype or None, device or None, None if revision is None else str(revision))
    model = _models.get(key)
    if model is None:
        model = _models[key] = load(name, dtype=key[1], device=key[2], revision=key[3])
    return model


def _read(folder: Any) -> Steering | None:
    if folder is None or folder == "":
        return None
    from trimtab import artifact

    return artifact.read(str(folder))


def _number(value: Any) -> float:
    """A strength; the command line hands over what YAML makes of it."""
    if isinstance(value, list):
        raise UsageError(f"one strength is needed here, got {value}; run inspect eval once for each")
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"strength '{value}' is not a number") from None


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} is true or false, got '{value}'")
    return value


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is a whole number of at least 1, got '{value}'")
    return value
