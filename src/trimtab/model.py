"""A model with what steering needs around it: the one room, with weights.py, that knows transformers."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import capture, memory, scoring, sites
from trimtab.errors import (
    BadItem,
    FingerprintMismatch,
    ModelError,
    NoChatTemplate,
    NotFound,
    StrengthError,
    TrimtabError,
    UsageError,
)
from trimtab.packing import Layout, hidden_at
from trimtab.reading import named
from trimtab.scoring import Encoded, Prepared, Readout
from trimtab.steering import Dial, Steering, Strength, acting, attach, pass_again
from trimtab.stems import Stems
from trimtab.types import IMAGE, Example, Item, Message, Outcome, Per, Picture
from trimtab.vision import FIRST, SIGHTS, Eyes, processor_of
from trimtab.weights import Notice, hub_answers, resolve

Prompt = str | Sequence[Message]

SHORT = 128
"""Rows of up to so many tokens have plain attention on a CPU."""
TRIES = 256
"""Items of up to so many tokens are scored as tries."""
PACKED_AT_ONCE = 1024
"""Tokens a pass on a CPU, so that what a block computes stays in its cache: 8192 took a third longer."""
ADAPTED = ("scaling", "_disable_adapters", "_active_adapter")
"""Attributes by which a layer of PEFT says how it acts now."""
STEMMED_AT_ONCE = 256
"""Items whose rows go on from stems together, at most; progress is told between."""
POOLED_AT_ONCE = 512
"""Rows whose pooled activations are laid out together, at most: equal rows take no tokens, but room of their own."""
NEUTRAL = "neutral.txt"
"""The file of a model's own neutral text in its folder."""
ENCODED = 1 << 15
"""Items with images whose tokens are kept."""
TEXT_AT_ONCE = 8192
"""Tokens a pass of running text, at most: its last hidden states are all kept."""
WINDOW = 2048
"""Tokens of a running text that are read together, at most."""


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the processor or GPU is built for it (AMX, AVX512-BF16, CUDA, MPS), float32 elsewhere."""
    kind = torch.device(device).type
    if kind == "cpu":
        able = torch.cpu.get_capabilities()
        fast = able.get("amx_bf16") or able.get("avx512_bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16


def default_device() -> str:
    """The accelerator where torch sees one, else the CPU; of several processes on a machine each has its own."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return "cpu"
    own = os.environ.get("LOCAL_RANK", "")
    there = own.isdigit() and int(own) < torch.accelerator.device_count()
    return f"{accelerator.type}:{own}" if there else str(accelerator)


def load(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    notice: Notice = lambda text: None,
) -> SteerableModel:
    """Load a causal language model by Hugging Face id, folder, `.gguf` file or bundled name, frozen, in eval mode.

    A config of a vision-language model (vision.SIGHTS) is loaded with its vision part and its processor. A folder may
    hold `neutral.txt`, for a model that knows few words (see `SteerableModel.neutral`). Never reaches for a network
    when the files are here. `notice` is told of licence terms and slow one-off work.
    Raises NotFound (no such model), ModelError (not a model, damaged, out of memory), MissingExtra (GGUF support, or an
    image processor that Pillow alone does not do), UsageError (unknown dtype or device).
    """
    where = device or default_device()
    kind = _dtype(dtype) if dtype is not None else default_dtype(_device(where))
    source, local = resolve(name, kind, notice)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging as hf_logging

    options: dict[str, Any] = {"local_files_only": local or not hub_answers()}
    if revision is not None:
        options["revision"] = revision
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        # Where PEFT is installed transformers looks for an adapter too, in a call that does not hear local_files_only.
        adapters = {"local_files_only": options["local_files_only"]}
        config = AutoConfig.from_pretrained(source, **options)
        sees = _sees(config, name)
        made = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        hf = made.from_pretrained(source, dtype=kind, adapter_kwargs=adapters, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        processor = processor_of(source, config, tokenizer, **options) if sees else None
    except TrimtabError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if local:
            raise ModelError(f"{source} cannot be loaded as a language model: {_one_line(error)}") from error
        raise NotFound(
            f"no model '{name}': it is no folder, .gguf file or bundled name, and the Hugging Face hub did not give it "
            f"({_one_line(error)})"
        ) from error
    except Exception as error:  # safetensors raises a type of its own for a damaged file
        raise ModelError(f"{source} cannot be loaded: {_one_line(error)}") from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    model = SteerableModel(hf.to(_device(where)), tokenizer, name, processor)
    own = Path(source) / NEUTRAL
    model.neutral = own if local and own.is_file() else None
    return model


def _sees(config: Any, name: str) -> bool:
    """Whether a config is that of a vision-language model. Raises ModelError for one of a family that is not known."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if getattr(config, "vision_config", None) is None or type(config) not in AutoModelForImageTextToText._model_mapping:
        return False
    if config.model_type in SIGHTS:
        return True
    if type(config) in AutoModelForCausalLM._model_mapping:  # its words alone, as before
        return False
    raise ModelError(
        f"{name} is a vision-language model of the family '{config.model_type}', which is not known here; known are "
        f"{', '.join(sorted(SIGHTS))}"
    )


class SteerableModel:
    """A frozen causal language model, its tokenizer, and the calls that scoring, learning and chatting need.

    With a `processor` it is a vision-language model: items may show images.
    """

    def __init__(self, hf: nn.Module, tokenizer: Any, name: str, processor: Any = None) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._dials: list[Dial] = []
        self._fingerprint: tuple[int, str] | None = None
        self.neutral: Path | None = None
        """A file of neutral text in its own words, for perplexity and KL where no other is named; None for ours."""
        self.processor = processor
        """Of a vision-language model; None of one that reads words alone."""
        self.eyes = None if processor is None else Eyes(hf, processor, name)
        self.stems = Stems(self.body)
        """What no steering behind an image changes, computed once."""
        self._stems_of: tuple[Any, ...] = ()
        self._recomputes = False
        self._encoded: OrderedDict[tuple[str, str | None], Encoded] = OrderedDict()
        # Batched generation reads its next token from the last column.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    # -- what it is

    @property
    def family(self) -> str:
        """The architecture's model type, such as "llama"."""
        return sites.family(self.hf)

    @property
    def body(self) -> nn.Module:
        """The language backbone: ids in, last hidden state out; of a vision-language model without its tower."""
        return self.hf.base_model if self.eyes is None else self.eyes.backbone  # type: ignore[return-value]

    @property
    def sees(self) -> bool:
        """Whether items may show it images."""
        return self.eyes is not None

    @property
    def readout(self) -> Readout:
        """Last hidden state in, logits out."""
        head = self.hf.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise ModelError(f"{self.name} ({type(self.hf).__name__}) has no unembedding, so it cannot score text")
        # The class around a vision tower unembeds without its language model's scales and caps, but for PaliGemma's.
        plain = self.eyes is not None and not self.eyes.sight.caps
        return Readout(head, object() if plain else self._text_config())

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.hf.parameters()).dtype

    @property
    def context(self) -> int:
        """The most tokens it takes."""
        return int(getattr(self._text_config(), "max_position_embeddings", 0) or 2**31)

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        held = self.tokenizer if self.eyes is None else self.eyes
        return bool(getattr(held, "chat_template", None))

    def _text_config(self) -> Any:
        return self.hf.config.get_text_config()  # type: ignore[union-attr, operator]

    def fingerprint(self) -> str:
        """SHA-256 over every weight, rounded to bfloat16: in float32 and bfloat16 a model has the same one.

        Not in float16, which lacks bfloat16's smallest numbers and has bits that bfloat16 lacks: a model that was
        converted to it has other weights.
        """
        version = sum(p._version for p in self.hf.parameters())
        if self._fingerprint is None or self._fingerprint[0] != version:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.hf.state_dict().items()):
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                plain = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
                digest.update(memoryview(plain.numpy()).cast("B") if plain.numel() else b"")
            self._fingerprint = version, digest.hexdigest()
        return self._fingerprint[1]

    # -- steering

    @contextmanager
    def steer(
        self,
        steering: Steering,
        strength: Strength = 1.0,
        *,
        beyond_range: bool = False,
        other_weights: bool = False,
    ) -> Iterator[Dial]:
        """Steer within the block: `h' = h + w (A h + c)` at the steering's sites, with w the strength.

        A list gives one strength a row of the batch. Raises FingerprintMismatch where the steering was learned on other
        weights (`other_weights=True` overrides that, not the family or the width), and what `attach` raises.
        """
        self._require_made_for(steering, other_weights)
        with attach(self.hf, steering, strength, beyond_range=beyond_range) as dial:
            self._dials.append(dial)
            try:
                yield dial
            finally:
                self._dials.remove(dial)

    def require(
        self, steering: Steering, strength: Strength, *, beyond_range: bool = False, other_weights: bool = False
    ) -> None:
        """Raise what `steer` would raise at its start, and leave the model as it is: for asking before long work."""
        self._require_made_for(steering, other_weights)
        attach(self.hf, steering, strength, beyond_range=beyond_range).detach()

    def identity(self) -> dict[str, str]:
        """What a card says of the model that a steering was made for."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"id": self.name, "family": self.family, "fingerprint": self.fingerprint(), "dtype": dtype}

    def _require_made_for(self, steering: Steering, other_weights: bool) -> None:
        made_for = steering.card.get("model", {})
        if made_for.get("family", self.family) != self.family:
            raise FingerprintMismatch(
                f"the steering was learned on a '{made_for['family']}' model, {self.name} is '{self.family}'"
            )
        stated = None if other_weights else made_for.get("fingerprint")
        if stated is not None and stated != self.fingerprint():
            learned, own = made_for.get("dtype", ""), str(self.dtype).removeprefix("torch.")
            half = bool(learned) and learned != own and "float16" in (learned, own)
            hint = f" (learned in {learned}, here {own}: float16 changes them; give --dtype {learned})" if half else ""
            raise FingerprintMismatch(
                f"the steering was learned on {made_for.get('id')} with fingerprint {stated[:12]}, "
                f"{self.name} has {self.fingerprint()[:12]}: other weights{hint}. Learn it anew, or pass "
                "other_weights=True (--other-weights) to use it all the same"
            )

    @contextmanager
    def unsteered(self) -> Iterator[None]:
        """Within it every dial is off: the base model, without losing anyone's steering."""
        with ExitStack() as stack:
            for dial in self._dials:
                stack.enter_context(dial.off())
            yield

    @contextmanager
    def _rows(self, index: Sequence[int]) -> Iterator[None]:
        with ExitStack() as stack:
            for dial in self._dials:
                stack.enter_context(dial.rows(index))
            yield

    # -- text to tokens

    def render(self, prompt: Prompt, instruction: str | None = None) -> str:
        """The text the model is shown: the prompt, or the chat in the model's own template with the answer begun.

        `instruction` goes before a prompt, or into a chat's system turn (the first user turn where the template
        refuses a system turn). Raises NoChatTemplate for a chat without a template.
        """
        if isinstance(prompt, str):
            return prompt if instruction is None else f"{instruction}\n\n{prompt}"
        if not self.chats:
            raise NoChatTemplate(
                f"{self.name} has no chat template (a base model?); give a prompt instead of messages, or use an "
                "instruction-tuned model"
            )
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        if instruction is None:
            return self._templated(turns)
        system, rest = (turns[0]["content"], turns[1:]) if turns[0]["role"] == "system" else ("", turns)
        joined = f"{system}\n\n{instruction}".strip()
        try:
            return self._templated([{"role": "system", "content": joined}, *rest])
        except ModelError:
            first = {"role": rest[0]["role"], "content": f"{joined}\n\n{rest[0]['content']}"}
            return self._templated([first, *rest[1:]])

    def _templated(self, turns: list[dict[str, str]]) -> str:
        try:
            if self.eyes is not None:
                return self.eyes.templated(turns)
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja raises whatever the template's author chose
            raise ModelError(f"the chat template of {self.name} refuses this chat: {_one_line(error)}") from error

    def tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of texts, each with the begin-of-text token of the model exactly once where it uses one."""
        start = self.start
        found = self.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
        plain = [tuple(ids) for ids in found]
        return [ids if ids[: len(start)] == start else (*start, *ids) for ids in plain]

    def knows(self, text: str) -> bool:
        """Whether no part of a text is the unknown token to the tokenizer."""
        unknown = self.tokenizer.unk_token_id
        return unknown is None or unknown not in self.tokenizer(text, add_special_tokens=False).input_ids

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens that every text begins with: the begin-of-text token, or none."""
        bos = self.tokenizer.bos_token_id
        if self.eyes is not None and self.eyes.sight.blocks == "prefix":
            return (bos,)  # its processor has switched off the tokenizer's own way, to put the token behind the images
        marks = self.tokenizer("").input_ids
        return (bos,) if bos is not None and marks[:1] == [bos] else ()

    def encode(self, items: Sequence[Item], instruction: str | None = None) -> list[Encoded]:
        """Items as token ids, split where the prompt's tokens and all options' tokens part.

        Prompt and option are tokenised together, because tokens may join across their border. An empty prompt is the
        begin-of-text token, in place of which a model that puts none before its texts has its tokenizer's begin or end
        token: the option is then a text of its own, scored whole. Raises BadItem for options that tokenise alike and
        for prompts beyond the context.
        """
        if any(item.images for item in items):
            return self._encode_some_seen(items, instruction)
        texts: list[str] = []
        leads: list[tuple[int, ...]] = []
        for item in items:
            self._refuse_lost_images(item)
            prompt = self._rendered(item, item.prompt if item.prompt is not None else item.messages or (), instruction)
            # A trailing space would be a token of its own; it belongs to the option's first word.
            stem = prompt.rstrip(" ") if item.prompt is not None else prompt
            texts.append(stem)
            leads.append(() if stem or self.start else self._prefix)
            texts += [_answered(stem, option.text, chat=item.prompt is None) for option in item.options]
        ids = iter(self.tokens(texts))
        return [
            self._parted(item, lead + next(ids), [lead + next(ids) for _ in item.options])
            for item, lead in zip(items, leads, strict=True)
        ]

    def _encode_some_seen(self, items: Sequence[Item], instruction: str | None) -> list[Encoded]:
        new = [i for i in items if len(i.images) == 1 and (i.digest(), instruction) not in self._encoded]
        if self.eyes is not None:
            self.eyes.look(i.images[0] for i in new)
        words = [n for n, item in enumerate(items) if not item.images]
        found = dict(zip(words, self.encode([items[n] for n in words], instruction), strict=True))
        for n, item in enumerate(items):
            if item.images:
                found[n] = self._encode_seen(item, instruction)
        return [found[n] for n in range(len(items))]

    def _encode_seen(self, item: Item, instruction: str | None) -> Encoded:
        """One item with images; kept, for steps and strengths come back to it and its images cost the most."""
        key = item.digest(), instruction
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        rows = self._seen_rows(item, [o.text for o in item.options], instruction)
        self._encoded[key] = self._parted(item, rows[0], rows[1:])
        if len(self._encoded) > ENCODED:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _seen_rows(self, item: Item, answers: Sequence[str], instruction: str | None) -> list[tuple[int, ...]]:
        """Token ids of the prompt of an item with images, and of it with each answer behind it."""
        eyes = self._require_eyes(item)
        try:
            stem = self._shown(item, instruction)
            if eyes.sight.blocks == "prefix":  # what it answers is tokenised apart from what it is asked
                (prompt,) = self.seen_tokens([stem], item.images)
                tails = self.tokenizer([a.strip(" ") for a in answers], add_special_tokens=False).input_ids
                return [prompt, *(prompt + tuple(t) for t in tails)]
            chat = item.prompt is None
            return self.seen_tokens([stem, *(_answered(stem, a, chat=chat) for a in answers)], item.images)
        except BadItem as error:
            named = f"item '{item.id}'"
            raise (error if named in str(error) else BadItem(f"{named}: {error}")) from error

    def _shown(self, item: Item, instruction: str | None) -> str:
        """The text that an item with images is: as `render` has it, with the family's placeholders where they stand."""
        eyes = self._require_eyes(item)
        what = f"item '{item.id}'"
        if item.prompt is not None:
            marked = eyes.marked(item.prompt, len(item.images), what).rstrip(" ")
            return eyes.put_in(self._rendered(item, marked, instruction))
        turns = list(item.messages or ())
        whole = "".join(m.content for m in turns)
        if IMAGE not in whole:
            first = next((n for n, m in enumerate(turns) if m.role == "user"), 0)
            turns[first] = Message(turns[first].role, IMAGE * len(item.images) + turns[first].content)
        else:
            eyes.marked(whole, len(item.images), what)
        return self._rendered(item, turns, instruction)

    def _rendered(self, item: Item, prompt: Prompt, instruction: str | None) -> str:
        """As `render`, and what it refuses names the item."""
        try:
            return self.render(prompt, instruction)
        except ModelError as error:
            raise type(error)(f"item '{item.id}': {error}") from error

    def _refuse_lost_images(self, item: Item) -> None:
        """Raise BadItem where an item's words stand for images that it does not have."""
        if self.eyes is None or item.images:
            return
        self.refuse_marks(item.prompt if item.prompt is not None else item.messages or (), f"item '{item.id}'")

    def refuse_marks(self, prompt: Prompt, who: str) -> None:
        """Raise BadItem where words that come with no image hold what stands for one: nothing would be seen there."""
        words = prompt if isinstance(prompt, str) else "".join(m.content for m in prompt)
        for mark in (IMAGE, self.eyes.placeholder) if self.eyes is not None else ():
            if mark in words:
                raise BadItem(f"{who} says {mark} and comes with no image; give it images, or other words")

    def _require_eyes(self, item: Item | None = None) -> Eyes:
        if self.eyes is None:
            what = (
                "an image" if item is None else f"item '{item.id}' shows {_counted(len(item.images), 'image')}, and it"
            )
            raise BadItem(
                f"{what} cannot be shown to {self.name}, which reads words alone; give a vision-language model "
                "(llava, qwen2_vl, gemma3, ...)"
            )
        return self.eyes

    def seen_tokens(self, texts: Sequence[str], images: Sequence[Picture]) -> list[tuple[int, ...]]:
        """Token ids of texts that all show the same images at the family's placeholders; the begin-of-text token once.

        Raises BadItem for images that cannot be opened or placeholders of another number, ModelError for a processor
        that does not fit the model.
        """
        start = self.start
        rows = self._require_eyes().rows(texts, images)
        return [row if not start or start[0] in row else (*start, *row) for row in rows]

    def example_tokens(self, examples: Sequence[Example], instruction: str | None = None) -> list[tuple[int, ...]]:
        """Token ids of examples: the prompt, or the chat with its answer begun, and behind it the answer's words.

        Raises BadItem for an example beyond the context and for images to a model that reads words alone,
        NoChatTemplate for a chat without a template.
        """
        texts = []
        for example in examples:
            if example.images:
                continue
            chat = not isinstance(example.prompt, str)
            self.refuse_marks(example.prompt, "an example")
            stem = self.render(example.prompt, instruction)
            texts.append(_answered(stem if chat else stem.rstrip(" "), example.answer, chat=chat))
        words = iter(self.tokens(texts))
        rows = [self._seen_example(e, instruction) if e.images else next(words) for e in examples]
        for example, row in zip(examples, rows, strict=True):
            if not 0 < len(row) <= self.context:
                raise BadItem(f"an example has {len(row)} tokens, {self.name} takes 1 to {self.context}: {example}")
        return rows

    @property
    def _prefix(self) -> tuple[int, ...]:
        """What stands before a text without a prompt where the model begins no text with a token of its own."""
        found = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next(((token,) for token in found if token is not None), ())

    def _parted(self, item: Item, prompt: tuple[int, ...], wholes: list[tuple[int, ...]]) -> Encoded:
        if len(set(wholes)) < len(wholes):
            texts = [o.text for o in item.options]
            raise BadItem(f"item '{item.id}': two of its options {texts} become the same tokens; make them differ")
        n = 0
        shortest = min(len(prompt), min(map(len, wholes)) - 1)
        while n < shortest and all(w[n] == prompt[n] for w in wholes):
            n += 1
        if n == 0:
            raise BadItem(
                f"item '{item.id}': its prompt and options share no first token, so there is nothing to go on"
            )
        longest = max(map(len, wholes))
        if longest > self.context:
            seen = sum(i >= FIRST for i in prompt)
            of_them = f", {seen} of them {_counted(len(item.images), 'image')}" if seen else ""
            raise BadItem(f"item '{item.id}' needs {longest} tokens{of_them}, {self.name} takes {self.context}")
        return Encoded(prompt[:n], tuple(w[n:] for w in wholes))

    # -- scoring

    def prepared(self, items: Sequence[Item], *, instruction: str | None = None) -> Prepared:
        """Items encoded, and ready to be scored several times: `score(items, prepared=...)` at another strength.

        What does not depend on the strength is then computed once. Raises what `encode` raises.
        """
        return Prepared(self.encode(items, instruction))

    @torch.no_grad()
    def score(
        self,
        items: Sequence[Item],
        *,
        instruction: str | None = None,
        per: Per = "option",
        tokens_per_batch: int | None = None,
        prepared: Prepared | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """The probability of each option of each item, normalised over its options, and their total probability.

        With l_k = log P(option k | prompt) and n_k its tokens or its UTF-8 bytes, p is the softmax of l_k, or of
        l_k / n_k with `per="token"` or `per="byte"`, under which a long option is not less likely for being long.

        `tokens_per_batch` bounds the tokens of a pass; without it memory does. `prepared` are these very items, made
        ready by `prepared`. One strength a token needs items of one length, their prompts' tokens, and options of one
        token each.
        """
        if not items:
            return []
        self._require_a_strength_each(len(items), "items")
        ready = self.prepared(items, instruction=instruction) if prepared is None else prepared
        encoded = ready.encoded
        if len(encoded) != len(items):
            raise UsageError(f"{len(encoded)} items were prepared, {len(items)} are to be scored; give the same ones")
        self._require_a_strength_a_token(items, encoded)
        at_once = self.tokens_at_once if tokens_per_batch is None else tokens_per_batch
        lengths = [len(e.prompt) + max(map(len, e.options)) for e in encoded]
        tries = [] if self._steers_rows() else [n for n, length in enumerate(lengths) if length <= TRIES]
        found: dict[int, scoring.Scores] = {}
        stemmed = [n for n, cut in enumerate(self.cuts([e.prompt for e in encoded])) if cut]
        for start in range(0, len(stemmed), STEMMED_AT_ONCE):
            some = stemmed[start : start + STEMMED_AT_ONCE]
            flat = scoring.flatten([encoded[n] for n in some])
            with self.short_rows(max(map(len, flat.rows))):
                hidden = self.last_hidden(flat.rows, flat.wanted, tokens_at_once=min(at_once, self.packed_at_once))
            found.update(zip(some, scoring.score_flat(self.readout, flat, hidden), strict=True))
            if on_batch is not None:
                on_batch(len(some))
        tries = [n for n in tries if n not in found]
        longest = max((lengths[n] for n in tries), default=0)
        if not self.packs(longest):
            tries = []
        if tries:
            with self.short_rows(longest):
                scores = scoring.score_packed(
                    self.body, self.readout, ready.some(tries), blocks=self._unsteered_blocks(), on_batch=on_batch,
                    tokens_at_once=min(at_once, self.packed_at_once),
                )  # fmt: skip
            found.update(zip(tries, scores, strict=True))
        if left := [n for n in range(len(items)) if n not in found]:
            scores = scoring.score(
                self.body,
                self.readout,
                [encoded[n] for n in left],
                tokens_per_batch=at_once,
                share=not self._steers_rows() and self._shares(encoded),
                rows=self._rows if self._dials else None,
                on_batch=on_batch,
            )
            found.update(zip(left, scores, strict=True))
        return [_outcome(item, e, found[n], per) for n, (item, e) in enumerate(zip(items, encoded, strict=True))]

    def last_hidden(
        self,
        rows: Sequence[tuple[int, ...]],
        wanted: Sequence[tuple[int, int]],
        *,
        tokens_at_once: int,
        untouched: bool = False,
    ) -> Float[Tensor, "wanted dim"]:
        """Last hidden states at some (row, token) pairs, differentiable: rows as tries, or from their stems on.

        `untouched` says that nothing but steerings behind images ever changes this model (no adapter in its weights),
        so that a pass without any may use and leave stems as well.
        """
        cuts = self.cuts(rows, untouched)
        for r, t in wanted:
            cuts[r] = 0 if t < cuts[r] else cuts[r]
        behind = [n for n, (r, _) in enumerate(wanted) if cuts[r]]
        others = [n for n, (r, _) in enumerate(wanted) if not cuts[r]]
        parts = []
        if behind:
            parts.append(
                self.stems.hidden_at(
                    rows, cuts, [wanted[n] for n in behind], device=self.device, tokens_at_once=tokens_at_once
                )
            )
        if others:
            numbers = {r: n for n, r in enumerate(r for r, cut in enumerate(cuts) if not cut)}
            parts.append(
                hidden_at(
                    [rows[r] for r in numbers],
                    [(numbers[wanted[n][0]], wanted[n][1]) for n in others],
                    lambda layout, some: layout.run(self.body),
                    pack=self.packs(max(len(rows[r]) for r in numbers)),
                    device=self.device,
                    tokens_at_once=tokens_at_once,
                )
            )
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([*behind, *others], device=self.device).argsort()
        return torch.cat(parts)[order]

    def cuts(self, rows: Sequence[tuple[int, ...]], untouched: bool = False) -> list[int]:
        """Of each row the tokens of its stem, up to the end of its first image; 0 where a steering does not spare that.

        Without a steering that acts there is none unless `untouched` says so (see `last_hidden`): a dial at 0 leaves
        the very numbers of a model without one.
        """
        able = self.eyes is not None and self.eyes.sight.stems and not self._recomputes
        dials = acting(self.hf.modules()) if able else []
        if not able or not (dials or untouched):
            return [0] * len(rows)
        if not all(d.positions == "behind" and not d.strength.ndim for d in dials):
            return [0] * len(rows)
        now = self._as_it_is()
        if now != self._stems_of:
            self.stems.forget()
            self._stems_of = now
        return [first_behind(row) for row in rows]

    def _as_it_is(self) -> tuple[Any, ...]:
        """What activations depend on besides tokens and dials: weights, and what others have hung on modules."""
        found: list[Any] = [self.device, self.dtype, *(p._version for p in self.hf.parameters())]
        for module in self.hf.modules():
            held = module.__dict__
            hooks = (*held["_forward_hooks"].values(), *held["_forward_pre_hooks"].values())
            found += [h for h in hooks if not type(getattr(h, "__self__", None)).__module__.startswith("trimtab.")]
            # A replaced forward pass, and an adapter of PEFT that is switched or scaled.
            found += [str(held[k]) if k in ADAPTED else held[k] for k in ("forward", *ADAPTED) if k in held]
        return tuple(found)

    def _unsteered_blocks(self) -> Sequence[nn.Module]:
        """The first blocks, in which no steering acts; none where there is no steering, or where it cannot be told."""
        steered = [name for dial in self._dials if not dial.is_off for name in dial.steering.interventions]
        if not steered or self.family not in sites.FAMILIES:
            return ()
        blocks = list(getattr(sites.backbone(self.hf), sites.FAMILIES[self.family].layers))
        return blocks[: min(sites.block_of(name, len(blocks)) for name in steered)]

    def answer(
        self, items: Sequence[Item], *, instruction: str | None = None, max_new_tokens: int = 24, rows_at_once: int = 32
    ) -> list[Outcome]:
        """What the model says to each item, greedily, and the option that it names (reading.named); p is 1 there.

        An answer that names no option, or several, has p 0 everywhere: an outcome of its own, never a guess.
        """
        self._require_a_strength_each(len(items), "items")
        words = [i for i in items if not i.images]
        for item in words:
            self._refuse_lost_images(item)
        shown = [i.prompt.rstrip(" ") if i.prompt is not None else i.messages or () for i in words]
        plain = iter(self.tokens([self.render(p, instruction) for p in shown]))
        prompts = [
            self.seen_tokens([self._shown(i, instruction)], i.images)[0] if i.images else next(plain) for i in items
        ]
        for item, row in zip(items, prompts, strict=True):
            if len(row) >= self.context:
                raise BadItem(
                    f"item '{item.id}' has {len(row)} tokens; {self.name} takes {self.context}, answer included"
                )
        order = sorted(range(len(items)), key=lambda n: len(prompts[n]))
        found: dict[int, Outcome] = {}
        for start in range(0, len(order), rows_at_once):
            batch = order[start : start + rows_at_once]
            with self._rows(batch):
                new = self.generate_ids([prompts[n] for n in batch], max_new_tokens=max_new_tokens)
            for n, ids in zip(batch, new, strict=True):
                said = self.text(ids)
                chosen = named(said, [o.text for o in items[n].options])
                p = tuple(float(k == chosen) for k in range(len(items[n].options)))
                found[n] = Outcome(p, 0.0 if chosen is None else 1.0, answer=said)
        return [found[n] for n in range(len(items))]

    @torch.no_grad()
    def logp(self, texts: Sequence[str], *, given: str = "") -> list[Float[Tensor, " tokens"]]:
        """log P of each token of each text after its first, or of all of them after the words `given`."""
        self._require_a_strength_each(len(texts), "texts")
        for text in (given, *texts):
            self.refuse_marks(text, "a text")
        rows = self._rows if self._dials else None
        if not given:
            return scoring.sequence_logp(self.body, self.readout, self.tokens(texts), rows=rows)
        skip = len(self.tokens([given])[0]) - 1
        sequences = self.tokens([f"{given}{t}" for t in texts])
        return scoring.sequence_logp(self.body, self.readout, sequences, skip=skip, rows=rows)

    @torch.no_grad()
    def hidden(self, texts: Sequence[str], *, instruction: str | None = None) -> list[Float[Tensor, "tokens dim"]]:
        """Last hidden states of texts, at the tokens that predict another token of the text.

        A text longer than a window (WINDOW tokens, or the model's context) is read in several, each beginning with the
        last token of the one before, so that every token is predicted once.
        """
        self._require_a_strength_each(len(texts), "texts")
        start = self.start
        before = start if instruction is None else self.tokens([f"{instruction}\n\n"])[0]
        width = min(WINDOW, self.context) - len(before)
        if width < 2:
            raise UsageError(f"the instruction has {len(before)} tokens, which leaves no room in a window of {WINDOW}")
        windows: list[tuple[int, ...]] = []
        skips: list[int] = []
        owner: list[int] = []
        for n, row in enumerate(self.tokens(texts)):
            own = row[len(start) :]
            for first in range(0, max(1, len(own) - 1), width - 1):
                windows.append(before + own[first : first + width])
                skips.append(len(before) - (0 if first else len(start)))
                owner.append(n)
        if not self._steers_rows():
            found = scoring.hidden_states(
                self.body, windows, skips=skips, tokens_at_once=min(self.tokens_at_once, TEXT_AT_ONCE)
            )
        else:  # together they would be sorted by length, away from their strengths
            found = []
            for n, window, skip in zip(owner, windows, skips, strict=True):
                with self._rows([n]):
                    found += scoring.hidden_states(self.body, [window], skips=[skip])
        parts: list[list[Tensor]] = [[] for _ in texts]
        for n, states in zip(owner, found, strict=True):
            parts[n].append(states)
        return [torch.cat(p) if len(p) > 1 else p[0] for p in parts]

    def pooled(
        self,
        at: Sequence[sites.Site],
        rows: Sequence[tuple[int, ...]],
        *,
        pool: capture.Pool = "last",
        skip: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> capture.Activations:
        """One vector a row of token ids and site, as `capture.pooled` has it: what rows begin with is run once."""
        longest = max(map(len, rows), default=0)
        if not 0 < longest <= TRIES or not self.packs(longest):
            return capture.pooled(
                self.body, at, rows, pool=pool, skip=skip, tokens_at_once=self.packed_at_once, on_batch=on_batch
            )

        def drive(keep: capture.Keep) -> None:
            order = sorted(range(len(rows)), key=lambda r: rows[r])
            for start in range(0, len(order), POOLED_AT_ONCE):
                part = order[start : start + POOLED_AT_ONCE]

                def run(layout: Layout, some: Sequence[int], part: list[int] = part) -> Float[Tensor, "bins width dim"]:
                    found: Tensor = keep([part[k] for k in some], layout.places, lambda: layout.run(self.body))
                    return found

                hidden_at(
                    [rows[r] for r in part], [(0, 0)], run, pack=True, device=self.device,
                    tokens_at_once=self.packed_at_once,
                )  # fmt: skip

        with self.short_rows(longest):
            return capture.pooled(self.body, at, rows, pool=pool, skip=skip, on_batch=on_batch, drive=drive)

    @torch.no_grad()
    def nll_and_kl(
        self,
        texts: Sequence[str],
        hidden: Sequence[Float[Tensor, "_ dim"]],
        base: Sequence[Float[Tensor, "_ dim"]] | None = None,
    ) -> list[tuple[int, float, float]]:
        """For each text its predicted tokens, `-log p` summed over them, and KL(hidden's || base's) summed, or NaN."""
        rows = [r[1:] for r in self.tokens(texts)]
        lengths = [len(r) for r in rows]
        targets = torch.tensor([t for r in rows for t in r], dtype=torch.long, device=self.device)
        before = None if base is None else torch.cat(list(base))
        nll, kl = scoring.nll_and_kl(self.readout, torch.cat(list(hidden)), before, targets)
        sums = ([float(part.sum()) for part in x.split(lengths)] for x in (nll, kl))
        return list(zip(lengths, *sums, strict=True))

    # -- learning

    def packs(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens may be laid out as tries: masks and positions of our own are heard.

        Held for every family in the table by the tests; elsewhere, with other attention kernels, and beyond a sliding
        window, each row stands for itself.
        """
        window = getattr(self._text_config(), "sliding_window", None)
        kernel = getattr(self._attending().config, "_attn_implementation", None)
        if self.eyes is not None and not self.eyes.sight.packs:
            return False
        return self.family in sites.FAMILIES and kernel in ("eager", "sdpa") and (not window or longest <= window)

    def _shares(self, encoded: Sequence[Encoded]) -> bool:
        """Whether prompts that begin alike may continue from one cache."""
        if self.eyes is None or self.eyes.sight.shares:
            return True
        return not any(i >= FIRST for e in encoded for i in e.prompt)

    def _attending(self) -> Any:
        """What attention kernels are set on: a vision tower keeps its own."""
        return self.hf if self.eyes is None else self.eyes.backbone

    @property
    def tokens_at_once(self) -> int:
        """Tokens of a pass without gradients that memory has room for now."""
        return memory.tokens_at_once(self._text_config(), self.dtype, self.device)

    @property
    def packed_at_once(self) -> int:
        """Tokens of a packed pass without gradients that are fastest: on a CPU, few enough for its caches."""
        return PACKED_AT_ONCE if self.device.type == "cpu" else 8 * PACKED_AT_ONCE

    @contextmanager
    def short_rows(self, longest: int) -> Iterator[None]:
        """Within it attention is plain matrix products, where rows are short and the processor is a CPU.

        The fused kernel's backward pass took 2.5 times as long as all else together on rows of nine tokens.
        """
        attending = self._attending()
        before = getattr(attending.config, "_attn_implementation", None)
        if self.device.type != "cpu" or longest > SHORT or before != "sdpa":
            yield
            return
        attending.set_attn_implementation("eager")
        try:
            yield
        finally:
            attending.set_attn_implementation(before)

    @contextmanager
    def activation_checkpointing(self) -> Iterator[None]:
        """Within it each block's activations are computed again in the backward pass instead of being kept.

        The model stays in eval mode; transformers' own switch works in training mode only, which turns dropout on.
        """

        def twice(block: nn.Module) -> Callable[..., Any]:
            forward, modules = block.forward, list(block.modules())

            def run(*args: Any, **kwargs: Any) -> Any:
                again = pass_again(modules)
                contexts = lambda: (nullcontext(), again)  # noqa: E731
                return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

            return run

        body = sites.backbone(self.hf)
        before, self._recomputes = self._recomputes, True  # a cache would be added to twice
        try:
            with ExitStack() as stack:
                for block in getattr(body, sites.FAMILIES[self.family].layers):
                    stack.enter_context(capture.forward_as(block, twice(block)))
                yield
        finally:
            self._recomputes = before

    def _require_a_strength_each(self, number: int, what: str) -> None:
        for dial in self._dials:
            if dial.strength.ndim and dial.strength.shape[0] != number and not dial.is_off:
                raise StrengthError(
                    f"{dial.strength.shape[0]} strengths for {number} {what}; give one number, or one for each"
                )

    def _require_a_strength_a_token(self, items: Sequence[Item], encoded: Sequence[Encoded]) -> None:
        given = {dial.strength.shape[1] for dial in self._dials if dial.strength.ndim == 2 and not dial.is_off}
        for n in given:
            for item, one in zip(items, encoded, strict=True):
                # An answer of several tokens is run with those before its last, behind the prompt.
                rows = {len(one.prompt), len(one.prompt) + max(map(len, one.options)) - 1}
                if rows != {n}:
                    raise StrengthError(
                        f"{n} strengths a row, but item '{item.id}' is run in rows of "
                        f"{' and '.join(map(str, sorted(rows)))} tokens; with one strength a token score items of that "
                        "one length whose options are one token each, or give one strength a row"
                    )

    def _steers_rows(self) -> bool:
        return any(dial.strength.ndim for dial in self._dials)

    # -- generating

    @overload
    def generate(self, prompts: str | Sequence[Message], max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int = ..., **options: Any) -> list[str]: ...
    def generate(
        self, prompts: Any, max_new_tokens: int = 40, *, images: Any = None, **options: Any
    ) -> str | list[str]:
        """Continue a prompt, or answer a chat; one text for one prompt, a list for a list.

        `images` are the pictures of the prompt, or a list of them for each prompt of a list. `options` go to
        transformers' generate (do_sample, temperature, ...); without them decoding is greedy.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Message))
        batch: list[Prompt] = [prompts] if single else list(prompts)
        if not batch:
            raise UsageError("generate needs at least one prompt")
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        none: list[Sequence[Picture]] = [()] * len(batch)
        shown = [tuple(images or ())] if single else [tuple(some) for some in images or none]
        if len(shown) != len(batch):
            raise UsageError(f"{len(shown)} lists of images for {len(batch)} prompts; give one for each, empty or not")
        new = self.generate_ids(self._prompt_rows(batch, shown), max_new_tokens=max_new_tokens, **options)
        texts = [self.text(row) for row in new]
        return texts[0] if single else texts

    def _prompt_rows(self, prompts: Sequence[Prompt], shown: Sequence[tuple[Picture, ...]]) -> list[tuple[int, ...]]:
        for prompt, images in zip(prompts, shown, strict=True):
            if not images:
                self.refuse_marks(prompt, "a prompt")
        examples = [Example(p if isinstance(p, str) else tuple(p), "", i) for p, i in zip(prompts, shown, strict=True)]
        words = iter(self.tokens([self.render(p) for p, images in zip(prompts, shown, strict=True) if not images]))
        return [self._seen_example(e, None) if e.images else next(words) for e in examples]

    def _seen_example(self, example: Example, instruction: str | None) -> tuple[int, ...]:
        prompt, messages = (example.prompt, None) if isinstance(example.prompt, str) else (None, example.prompt)
        item = Item("prompt", (), "", "", True, prompt=prompt, messages=messages, images=example.images)
        return self._seen_rows(item, [example.answer] if example.answer else [], instruction)[-1]

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @torch.no_grad()
    def generate_ids(
        self, rows: Sequence[tuple[int, ...]], *, keep_stop: bool = False, **options: Any
    ) -> list[list[int]]:
        """The tokens that follow each row, up to the end-of-text token (kept on request). Rows are padded left.

        No more than the model has room for behind the longest row. Raises UsageError where it has none.
        """
        for row in rows:
            if not row:
                raise UsageError("an empty prompt has no token to continue from")
            if len(row) >= self.context:
                raise UsageError(
                    f"a prompt has {len(row)} tokens; {self.name} takes {self.context}, its answer included"
                )
        width = max(map(len, rows))
        if "max_new_tokens" in options:
            options["max_new_tokens"] = min(options["max_new_tokens"], self.context - width)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self.device)
        settings = {"do_sample": False, "pad_token_id": pad, **options}
        with ExitStack() as stack:
            if self.eyes is not None:
                ids = stack.enter_context(self.eyes.prompts(ids))
            out = self.hf.generate(input_ids=ids, attention_mask=mask, **settings)[:, width:]  # type: ignore[operator]
        config: Any = self.hf.generation_config
        stops = set(_as_list(config.eos_token_id)) | {self.tokenizer.eos_token_id}
        return [_until(row, stops, keep_stop) for row in out.tolist()]


def first_behind(row: Sequence[int]) -> int:
    """The number of the first token behind a row's first image; 0 where there is none."""
    shown = False
    for n, token in enumerate(row):
        if shown and token < FIRST:
            return n
        shown = shown or token >= FIRST
    return 0


def _outcome(item: Item, encoded: Encoded, scores: scoring.Scores, per: Per) -> Outcome:
    logp, tokens = scores.logp.double(), tuple(len(o) for o in encoded.options)
    lengths = {"option": [1] * len(tokens), "token": tokens, "byte": [len(o.text.encode()) for o in item.options]}[per]
    p = (logp / torch.tensor(lengths, device=logp.device)).softmax(0)
    mass = math.exp(float(scores.log_mass))
    mass = 1.0 if mass > 1 else mass  # NaN stays what it is
    return Outcome(tuple(p.tolist()), mass, tuple(round(x, 5) for x in logp.tolist()), tokens)


def _answered(stem: str, answer: str, *, chat: bool) -> str:
    """A prompt without trailing spaces, or a chat, and its answer, with one space between where neither brings one."""
    space = bool(stem and answer) and not chat and not (answer[:1].isspace() or stem[-1:].isspace())
    return stem + (" " if space else "") + answer


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _until(row: list[int], stops: set[int | None], keep_stop: bool) -> list[int]:
    for place, token in enumerate(row):
        if token in stops:
            return row[: place + keep_stop]
    return row


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _dtype(value: str | torch.dtype) -> torch.dtype:
    if isinstance(value, torch.dtype):
        return value
    known: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
    if value not in known:
        raise UsageError(f"dtype '{value}' is not one of {', '.join(known)}")
    return known[value]


def _device(value: str) -> torch.device:
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{value}' cannot be used here: {_one_line(error)}") from error
    return device


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
