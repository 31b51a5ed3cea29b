"""Images for a language backbone: each is encoded once, and its feature positions become token ids of their own.

Such a *virtual* id, FIRST or above, is unique by image and position. Where the backbone's input embedding meets one it
puts out the stored feature. Rows of ids are thus all that anyone else sees: prompts that begin alike share images as
they share words, tries hold them, a dial steers them, and gradients flow through them; scoring.py and packing.py know
nothing of it. `SIGHTS` is the one table of what a family needs passed along with its ids:

    blocks      tokens that see each other both ways: an image's own (Gemma 3), or all of a prompt (PaliGemma)
    rope        positions in time, height and width (Qwen2-VL and after)
    deep        features added behind the first blocks as well (Qwen3-VL)
    cross       features read by cross-attention, and one token for an image (Llama 3.2 Vision)

This room knows transformers' vision-language models and processors, and no tasks.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from trimtab import caches, sites
from trimtab.errors import BadItem, MissingExtra, ModelError
from trimtab.pictures import PIXELS, opened
from trimtab.steering import acting
from trimtab.types import IMAGE, Picture

if TYPE_CHECKING:
    from PIL.Image import Image

FIRST = 1 << 24
"""The first virtual id, above every vocabulary."""
PREFIX_ENDS = FIRST - 1
"""Stands for the token that ends a PaliGemma prompt, up to which tokens see each other both ways."""
STORED = 1 << 31
"""Bytes of features that are kept at most; those least recently used are computed again when they are needed."""
LAID_OUT = 1 << 13
"""Texts whose tokens are kept: many images are asked the same."""
TOGETHER, PIXELS_AT_ONCE = 16, 1 << 20
"""Images, and numbers of their pixels, that go through the tower together, at most."""
PIXELS_KEPT = 32
"""Images whose pixels are kept as well while a steering acts inside the vision tower."""
_NO_INPUT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "cross_attention_mask")


@dataclass(frozen=True, slots=True)
class Sight:
    """What a family needs for its images."""

    around: tuple[str, str] = ("", "")
    """What a prompt without a chat template has before and behind an image's placeholder."""
    blocks: Literal["image", "prefix"] | None = None
    rope: bool = False
    deep: bool = False
    cross: bool = False
    packs: bool = True
    """Whether rows that hold images may be laid out as tries."""
    shares: bool = True
    """Whether prompts that begin alike may continue from one cache."""
    stems: bool = True
    """Whether what stands before and at an image is the same whatever follows, and a cache holds all of it."""
    caps: bool = False
    """Whether its logits are scaled or capped as its language model's own would be."""
    among: bool = False
    """Whether an image among others is encoded otherwise than one alone."""
    first: int = 0
    """The position of the first token."""


_PLAIN = Sight()
_QWEN = Sight(around=("<|vision_start|>", "<|vision_end|>"), rope=True)
SIGHTS: Mapping[str, Sight] = {
    "llava": _PLAIN,
    "llava_next": _PLAIN,
    "llava_onevision": Sight(among=True),
    "idefics3": _PLAIN,
    "smolvlm": _PLAIN,
    "internvl": _PLAIN,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": Sight(around=_QWEN.around, rope=True, deep=True),
    "gemma3": Sight(blocks="image", shares=False),
    "paligemma": Sight(blocks="prefix", packs=False, shares=False, stems=False, caps=True, first=1),
    "mllama": Sight(cross=True, packs=False, shares=False, stems=False),
}
"""Model type of a vision-language model -> what it needs. One that is not here is refused."""


@dataclass(eq=False)
class _Seen:
    """An image that has token ids."""

    picture: Picture
    among: bool
    size: tuple[int, int]
    """Width and height in pixels, by which a processor lays out its tokens."""
    start: int
    """Its first virtual id."""
    tokens: int
    grid: tuple[int, int, int] | None = None
    """Its features in time, height and width, of a family with such positions."""


@dataclass(eq=False)
class _Features:
    """What the model's own code makes of an image."""

    embeds: Tensor
    """(tokens, dim); of cross-attention (states, dim)."""
    deep: tuple[Tensor, ...] = ()
    tiles: int = 0
    """Of cross-attention: how many tiles are no padding."""
    grid: tuple[int, int, int] | None = None

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.embeds, *self.deep))


@dataclass(eq=False)
class _Pass:
    """One forward pass of the backbone: its ids, virtual ones included, and where those are."""

    ids: Tensor
    virtual: Tensor | None
    """(rows, tokens), True at images; None where there is none."""
    standing: _Standing | None = None
    """What stands at the images, once it was looked up."""


@dataclass(eq=False)
class _Standing:
    """The images of a pass: where their tokens are, and what stands there."""

    rows: Tensor
    columns: Tensor
    numbers: Tensor
    """Of each token, the number of its image."""
    seen: list[_Features]
    """Images of the pass, each once, or once for each strength that acts on the tower."""
    which: Tensor
    """Of each token, its image among `seen`."""
    offset: Tensor
    """Of each token, its place in its image."""

    def at(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """(tokens, dim): of each token its row of its image's part."""
        sizes = torch.tensor([0, *(len(p) for p in parts[:-1])], device=self.which.device).cumsum(0)
        whole = torch.cat([p.to(like.device, like.dtype) for p in parts])
        return whole[sizes[self.which] + self.offset]


class Eyes:
    """A vision-language model's images: to token ids, and from these to what the backbone is given."""

    def __init__(self, hf: nn.Module, processor: Any, name: str) -> None:
        self.hf = cast(Any, hf)
        self.processor, self.name = processor, name
        config: Any = hf.config
        self.kind = str(config.model_type)
        if self.kind not in SIGHTS:
            raise ModelError(
                f"{name} is a vision-language model of the family '{self.kind}', which is not known here; known are "
                f"{', '.join(sorted(SIGHTS))}"
            )
        self.sight = SIGHTS[self.kind]
        self.backbone = cast(Any, sites.backbone(hf))
        self.embedding = self.backbone.get_input_embeddings()
        self.opened: Callable[[Picture], Image] = opened
        """What opens a picture."""
        found = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
        self.image_token = int(next((i for i in found if i is not None), processor.image_token_id))
        self.placeholder = str(processor.image_token)
        self._by_key: dict[tuple[str, bool], _Seen] = {}
        self._order: list[_Seen] = []
        self._starts: list[int] = []
        self._store: OrderedDict[int, _Features] = OrderedDict()
        self._stored = 0
        self._pixels: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._laid_out: OrderedDict[tuple[str, tuple[tuple[int, int], ...]], list[int]] = OrderedDict()
        """What the processor made of a text with images of some sizes, of which alone the number of tokens depends."""
        self._prompts: Tensor | None = None
        self._newline = 0
        """Of a PaliGemma prompt, the token that PREFIX_ENDS stands for."""
        self._last: _Pass | None = None
        self._now: _Pass | None = None
        self._has: Tensor | None = None
        self._listy: bool | None = None
        self.encoded = 0
        """How often an image went through the vision tower."""
        self._others = sites.vision_modules(hf)
        setattr(self.backbone, sites.IMAGES, None)
        setattr(self.backbone, sites.BEHIND, None)
        self.embedding.register_forward_pre_hook(self._words_for_images)
        self.embedding.register_forward_hook(self._images_for_words)
        self.backbone.register_forward_pre_hook(self._pass_along, with_kwargs=True)
        if self.sight.rope:
            self.hf.model.register_forward_pre_hook(self._forget_stale_positions, with_kwargs=True)
        if self.sight.cross:
            for n in config.get_text_config().cross_attention_layers:
                self.backbone.layers[n].register_forward_hook(self._past_the_blind)

    # -- text

    def marked(self, text: str, images: int, what: str) -> str:
        """A prompt in which IMAGE stands once for each image; without one they stand before all words."""
        places = text.count(IMAGE)
        if places == 0:
            return IMAGE * images + text
        if places != images:
            raise BadItem(f"{what} names {places} images by {IMAGE} and comes with {images}; give one for each")
        return text

    def put_in(self, text: str) -> str:
        """A prompt with the family's own placeholder for each IMAGE."""
        before, behind = self.sight.around
        return text.replace(IMAGE, f"{before}{self.placeholder}{behind}")

    def templated(self, turns: Sequence[Mapping[str, str]]) -> str:
        """A chat in the model's template, with the family's placeholders in and the answer begun."""
        if self._listy is None:
            self._listy = self._takes_parts()
        shaped = [{"role": t["role"], "content": _parts(t["content"]) if self._listy else t["content"]} for t in turns]
        text = self._render(shaped)
        return text if self._listy else self.put_in(text)

    @property
    def chat_template(self) -> Any:
        """Its processor's, or else its tokenizer's; None where there is none."""
        own = getattr(self.processor, "chat_template", None)
        return own or getattr(self.processor.tokenizer, "chat_template", None)

    def _render(self, turns: list[dict[str, Any]]) -> str:
        template = self.chat_template
        chosen = template.get("default") if isinstance(template, dict) else template
        return str(
            self.processor.tokenizer.apply_chat_template(
                turns, chat_template=chosen, tokenize=False, add_generation_prompt=True
            )
        )

    def _takes_parts(self) -> bool:
        """Whether the template reads a turn as a list of parts, as those made for images do, and not as one text."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "PROBE"}]}]
        try:
            said = self._render(probe)
        except Exception:  # jinja raises whatever the template's author chose
            return False
        return "PROBE" in said and "'type'" not in said and self.placeholder in said

    # -- images to token ids

    def rows(self, texts: Sequence[str], pictures: Sequence[Picture]) -> list[tuple[int, ...]]:
        """Token ids of texts that all show the same pictures, as the model's processor makes them.

        Positions that hold the image token become the virtual ids of the pictures, in order. Of a PaliGemma prompt the
        last token says where the prompt ends. Raises BadItem (a picture that cannot be opened, another number of
        placeholders), ModelError (a processor that does not fit its model).
        """
        among = self.sight.among and len(pictures) > 1
        seen = [self._by_key.get((p.digest, among)) for p in pictures]
        images = [self.opened(p) for p in pictures] if None in seen else []
        sizes = tuple(i.size for i in images) or tuple(s.size for s in seen if s is not None)
        inputs: Any = None
        if new := [t for t in dict.fromkeys(texts) if (t, sizes) not in self._laid_out]:
            images = images or [self.opened(p) for p in pictures]
            with self._looking_once():
                for text in new:
                    inputs = self._processed(text, images)
                    self._laid_out[text, sizes] = inputs["input_ids"][0].tolist()
        made = [self._laid_out[text, sizes] for text in texts]
        while len(self._laid_out) > LAID_OUT:
            self._laid_out.popitem(last=False)
        for picture, image in zip(pictures, images, strict=False):
            if (picture.digest, among) not in self._by_key:
                one = inputs if inputs is not None and len(pictures) == 1 else self._inputs_of(image, among)
                self._number(picture, among, image.size, self._untouched_features(self._tensors(one)))
        shown = [i for p in pictures for i in self._ids(self._by_key[p.digest, among])]
        return [self._replaced(ids, shown) for ids in made]

    @contextmanager
    def _looking_once(self) -> Iterator[None]:
        whole = self.processor.image_processor
        self.processor.image_processor = _Remembering(whole)
        try:
            yield
        finally:
            self.processor.image_processor = whole

    def look(self, pictures: Iterable[Picture]) -> None:
        """Encode images that are shown alone and have no ids yet, several in one pass where the tower takes that.

        One by one those of demo:roomworld took twice as long. What cannot be opened is left for `rows` to refuse.
        """
        if self.sight.rope or self.sight.cross or self.sight.deep:
            return
        new = {p.digest: p for p in pictures if (p.digest, False) not in self._by_key}
        waiting: list[tuple[Picture, tuple[int, int], Tensor]] = []
        for picture in new.values():
            try:
                image = self.opened(picture)
                inputs = self._tensors(self._inputs_of(image, False))
            except BadItem:
                continue
            pixels = inputs.get("pixel_values")
            if set(inputs) != {"pixel_values"} or not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) > 1:
                return
            most = min(TOGETHER, max(1, PIXELS_AT_ONCE // pixels.numel()))
            if waiting and (len(waiting) >= most or waiting[0][2].shape != pixels.shape):
                self._look_at(waiting)
                waiting = []
            waiting.append((picture, image.size, pixels))
        if waiting:
            self._look_at(waiting)

    def _look_at(self, some: Sequence[tuple[Picture, tuple[int, int], Tensor]]) -> None:
        together = torch.cat([pixels for _, _, pixels in some])
        with self._untouched():
            found = self.hf.model.get_image_features(pixel_values=together, return_dict=True).pooler_output
            if len(found) == len(some) > 1:
                features = [_Features(_one_image(part).clone()) for part in found]
                self.encoded += len(some)
            else:  # it says nothing of where an image ends
                features = [self._features({"pixel_values": pixels}) for _, _, pixels in some]
        for (picture, size, _), one in zip(some, features, strict=True):
            self._number(picture, False, size, one)

    def _replaced(self, ids: list[int], shown: list[int]) -> tuple[int, ...]:
        found = sum(i == self.image_token for i in ids)
        if found != len(shown):
            raise ModelError(
                f"the processor of {self.name} makes {found} tokens of images for which the model has {len(shown)} "
                "features; its files do not belong together"
            )
        images = iter(shown)
        row = [next(images) if i == self.image_token else i for i in ids]
        if self.sight.blocks == "prefix":
            self._newline = row[-1]
            row[-1] = PREFIX_ENDS
        return tuple(row)

    def _processed(self, text: str, images: Sequence[Any]) -> Any:
        if self.sight.blocks == "prefix":
            # Its processor puts one behind the images, whatever a template has begun with.
            text = text.removeprefix(self.processor.tokenizer.bos_token or "")
        self._refuse_thin(images)
        try:
            return self.processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt")
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise BadItem(f"the processor of {self.name} refuses these images or this text: {what}") from error

    def _refuse_thin(self, images: Sequence[Any]) -> None:
        """Raise BadItem for an image that the processor, which sets its shorter side, would enlarge beyond measure."""
        size = getattr(getattr(self.processor, "image_processor", None), "size", None) or {}
        edge = dict(size).get("shortest_edge")
        if not edge or dict(size).get("longest_edge"):  # where both are there they count pixels, and bound the whole
            return
        for image in images:
            width, height = image.size
            made = edge * edge * max(width, height) // min(width, height)
            if made > PIXELS:
                raise BadItem(
                    f"an image of {width:,} x {height:,} pixels would become {made:,} for {self.name}, more than "
                    f"{PIXELS:,}; cut it"
                )

    def _inputs_of(self, image: Any, among: bool) -> Any:
        many = 2 if among else 1
        return self._processed(self.put_in(IMAGE * many), [image] * many)

    def _ids(self, seen: _Seen) -> range:
        return range(seen.start, seen.start + seen.tokens)

    def _number(self, picture: Picture, among: bool, size: tuple[int, int], features: _Features) -> None:
        start = FIRST if not self._order else self._order[-1].start + self._order[-1].tokens
        tokens = 1 if self.sight.cross else len(features.embeds)
        seen = _Seen(picture, among, size, start, tokens, features.grid)
        self._keep(len(self._order), features)
        self._by_key[picture.digest, among] = seen
        self._order.append(seen)
        self._starts.append(start)

    # -- features

    def _tensors(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in inputs.items() if k not in _NO_INPUT}
        parameter = next(self.hf.parameters())

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)

        return {k: moved(v) for k, v in kept.items()}

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Within it no steering touches the tower, and there is no graph, whatever mode the caller is in."""
        with ExitStack() as stack:
            for dial in acting(self._others):
                stack.enter_context(dial.off())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            yield

    def _untouched_features(self, inputs: dict[str, Any]) -> _Features:
        with self._untouched():
            return self._features(inputs)

    def _features(self, inputs: dict[str, Any]) -> _Features:
        """What the model makes of one image as it stands."""
        self.encoded += 1
        model: Any = self.hf.model
        if self.sight.cross:
            named = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
            seen = model.vision_model(**{k: inputs[k] for k in named}).last_hidden_state
            states = model.multi_modal_projector(seen)
            return _Features(states.reshape(-1, states.shape[-1]), tiles=int(inputs["aspect_ratio_mask"].sum()))
        takes = inspect.signature(inspect.unwrap(model.get_image_features)).parameters
        out = model.get_image_features(**{k: v for k, v in inputs.items() if k in takes}, return_dict=True)
        found = out.pooler_output
        embeds = _one_image(found)
        deep = tuple(_one_image(f) for f in out.deepstack_features) if self.sight.deep else ()
        grid = None
        if self.sight.rope:
            merge = int(self.hf.config.vision_config.spatial_merge_size)
            t, h, w = (int(n) for n in inputs["image_grid_thw"][0])
            grid = t, h // merge, w // merge
        if "batch_num_images" in inputs and int(inputs["batch_num_images"][0]) > 1:
            embeds = embeds[: len(embeds) // int(inputs["batch_num_images"][0])]
        return _Features(embeds, deep, grid=grid)

    def _keep(self, number: int, features: _Features) -> None:
        self._store[number] = features
        self._stored += features.bytes()
        while self._stored > STORED and len(self._store) > 1:
            self._stored -= self._store.popitem(last=False)[1].bytes()

    def _pixels_of(self, number: int, *, keep: bool) -> dict[str, Any]:
        if number in self._pixels:
            self._pixels.move_to_end(number)
            return self._pixels[number]
        seen = self._order[number]
        found = self._tensors(self._inputs_of(self.opened(seen.picture), seen.among))
        if keep:
            self._pixels[number] = found
            if len(self._pixels) > PIXELS_KEPT:
                self._pixels.popitem(last=False)
        return found

    def _stored_features(self, number: int) -> _Features:
        if number not in self._store:
            self._keep(number, self._untouched_features(self._pixels_of(number, keep=False)))
        self._store.move_to_end(number)
        return self._store[number]

    def _numbers(self, ids: Tensor) -> Tensor:
        """Of each id, the number of its image; of one that is of none, something."""
        starts = torch.tensor(self._starts, device=ids.device)
        return torch.searchsorted(starts, ids.clamp(min=FIRST), right=True) - 1

    def _stand(self, now: _Pass) -> _Standing:
        """Looks up the images of a pass: stored features, or those under the steerings that act on the tower now.

        The latter are never stored: a steering may be learned, and its tensors change in place.
        """
        assert now.virtual is not None
        rows, columns = now.virtual.nonzero(as_tuple=True)
        ids = now.ids[rows, columns]
        numbers = self._numbers(ids)
        starts = torch.tensor(self._starts, device=ids.device)
        dials = acting(self._others)
        if not dials:
            shown, which = numbers.unique(return_inverse=True)
            seen = [self._stored_features(n) for n in shown.tolist()]
            return _Standing(rows, columns, numbers, seen, which, ids - starts[numbers])
        pairs, which = torch.stack([rows, numbers]).unique(dim=1, return_inverse=True)
        made: dict[Any, _Features] = {}
        for r, n in pairs.T.tolist():
            key = n, tuple(dial.of_row(r) for dial in dials)
            if key not in made:
                with ExitStack() as stack:
                    for dial in dials:
                        stack.enter_context(dial.alone(r))
                    made[key] = self._features(self._pixels_of(n, keep=True))
        each = [made[n, tuple(dial.of_row(r) for dial in dials)] for r, n in pairs.T.tolist()]
        return _Standing(rows, columns, numbers, each, which, ids - starts[numbers])

    # -- the forward pass

    @contextmanager
    def prompts(self, ids: Tensor) -> Iterator[Tensor]:
        """Within it the first pass is over these ids, whatever words stand in for their images; gives those words.

        transformers' generate looks up ids in tables of the vocabulary's size, where virtual ones have no place.
        """
        words = self._worded(ids)
        self._prompts = ids
        try:
            yield words
        finally:
            self._prompts = None

    def _worded(self, ids: Tensor) -> Tensor:
        words = ids.masked_fill(ids >= FIRST, self.image_token)
        return words.masked_fill(ids == PREFIX_ENDS, self._newline) if self.sight.blocks == "prefix" else words

    def _words_for_images(self, module: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        ids = args[0]
        if self._prompts is not None and ids.ndim == 2 and ids.shape[1] == self._prompts.shape[1]:
            # Beams and several answers a prompt are rows of their own.
            ids = self._prompts.repeat_interleave(ids.shape[0] // self._prompts.shape[0], 0)
            self._prompts = None
        virtual = ids >= FIRST
        shown = bool(virtual.any())
        self._last = _Pass(ids, virtual if shown else None)
        if not shown and not (self.sight.blocks == "prefix" and bool((ids == PREFIX_ENDS).any())):
            return None
        words = self._worded(ids)
        size = int(module.weight.shape[0])
        return (words.masked_fill(words >= size, 0),)

    def _images_for_words(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        now = self._last
        if now is None or now.virtual is None or self.sight.cross:
            return None
        at = now.standing = self._stand(now)
        out = output.clone()
        out[at.rows, at.columns] = at.at([f.embeds for f in at.seen], out)
        return out

    def _pass_along(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the backbone is given besides embeddings, from the ids that these are of."""
        given = dict(kwargs)
        if args and isinstance(args[0], Tensor):
            given["input_ids"], args = args[0], args[1:]
        if given.get("input_ids") is not None:
            given["inputs_embeds"] = self.embedding(given.pop("input_ids"))
        embeds = given.get("inputs_embeds")
        now, self._last = self._last, None
        if embeds is None or now is None or now.ids.shape != embeds.shape[:2]:
            now = None
        self._now = now
        shown = None
        if now is not None:
            # What came through the whole model with pixels has the image token itself.
            shown = now.virtual if now.virtual is not None else now.ids == self.image_token
            shown = shown if bool(shown.any()) else None
        setattr(module, sites.IMAGES, shown)
        setattr(module, sites.BEHIND, None if embeds is None else self._behind(embeds.shape[:2], shown, given))
        if now is not None:
            if self.sight.first and given.get("position_ids") is None:
                given["position_ids"] = _depths(now, given) + self.sight.first
            if self.sight.blocks:
                self._see_both_ways(now, given)
            if self.sight.rope:
                self._place_in_space(now, given)
            if self.sight.deep and now.virtual is not None:
                self._reach_deep(now, given)
            if self.sight.cross:
                self._look_across(now, given)
        return args, given

    # -- words behind an image

    def _behind(self, shape: torch.Size, shown: Tensor | None, given: dict[str, Any]) -> Tensor | None:
        """(rows, tokens), True at words that have an image before them in their row, be it in an earlier pass.

        So it depends on nothing that comes after: rows in one pass, in pieces, and in tries agree.
        """
        held = caches.given(given)
        before = getattr(held, "behind", None)
        if shown is None and before is None:
            return None
        if before is not None:
            before = before.repeat_interleave(shape[0] // before.shape[0])[:, None]
        if shown is None:
            return cast(Tensor, before).expand(shape)
        mask, cached = given.get("attention_mask"), caches.held(given)
        if isinstance(mask, Tensor) and mask.ndim == 4:
            sees = _allowed(mask, shape, cached, shown.device)[:, 0, :, cached:]
            found = (sees & shown[:, None, :]).any(-1)
        else:
            found = shown.cumsum(1) > 0
        if before is not None:
            found = found | before
        if given.get("use_cache") or held is not None:
            self._noted_on(given).behind = found[:, -1]
        return found & ~shown

    def _noted_on(self, given: dict[str, Any]) -> Any:
        """The cache of a pass, made here where there is none yet, to note on it what later passes must know."""
        held = caches.given(given)
        if held is None:
            held = _counting_cache()(config=self.backbone.config)
            caches.put(given, self.backbone, held)
        return held

    # -- blocks

    def _see_both_ways(self, now: _Pass, given: dict[str, Any]) -> None:
        block = self._blocks(now, given)
        if block is None:
            return
        cached = caches.held(given)
        alike = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
        config: Any = self.hf.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        mask = given.get("attention_mask")
        embeds: Tensor = given["inputs_embeds"]

        whole = _allowed(
            mask.get("full_attention") if isinstance(mask, dict) else mask, now.ids.shape, cached, embeds.device
        )[..., cached:]
        # Whom a token is seen by it may see, if both are of one block: in a trie, that is its own row alone. A window
        # cuts off what is behind an image's token, and nothing of a prompt.
        both = whole.transpose(-1, -2) & alike[:, None]
        if self.sight.blocks == "prefix":
            both = both | (whole & alike[:, None])

        def opened(of: Any, windowed: bool) -> Tensor:
            sees = _allowed(of, now.ids.shape, cached, embeds.device)
            if windowed and window and not (isinstance(of, Tensor) and of.ndim == 4):
                sees = sees & _within_window(now.ids.shape[1], cached, int(window), embeds.device)
            sees = torch.cat([sees[..., :cached], sees[..., cached:] | both], -1)
            lowest = torch.finfo(embeds.dtype).min
            return torch.zeros(sees.shape, dtype=embeds.dtype, device=embeds.device).masked_fill_(~sees, lowest)

        if isinstance(mask, dict):
            given["attention_mask"] = {k: opened(m, k.startswith("sliding")) for k, m in mask.items()}
        elif window and "sliding_attention" in kinds:
            given["attention_mask"] = {k: opened(mask, k.startswith("sliding")) for k in sorted(kinds)}
        else:
            given["attention_mask"] = opened(mask, False)

    def _blocks(self, now: _Pass, given: dict[str, Any]) -> Tensor | None:
        """(rows, tokens): a number that tokens which see each other share, -1 elsewhere; None where there is none."""
        if self.sight.blocks == "prefix":
            ends = now.ids == PREFIX_ENDS
            if not bool(ends.any()):
                return None
            return ends.long().flip(1).cumsum(1).flip(1).clamp(max=1) - 1
        if now.virtual is None:
            return None
        depth = _depths(now, given)
        starts = torch.tensor(self._starts, device=now.ids.device)
        number = self._numbers(now.ids)
        # An image that is shown twice in a row is two blocks: the same offset at two depths.
        begun = depth - (now.ids - starts[number])
        return torch.where(now.virtual, number * (1 << 20) + begun, -1)

    # -- positions in space

    def _place_in_space(self, now: _Pass, given: dict[str, Any]) -> None:
        held = caches.given(given)
        before = getattr(held, "shift", None)
        if now.virtual is None and before is None:
            return
        rows, tokens = now.ids.shape
        depth = _depths(now, given)
        own = torch.zeros(3, rows, tokens, dtype=torch.long, device=depth.device)
        offset, saved = torch.zeros_like(depth), torch.zeros_like(depth)
        shown = torch.zeros_like(depth, dtype=torch.bool) if now.virtual is None else now.virtual
        if now.standing is not None:
            at = now.standing
            grids = torch.tensor([seen.grid or (1, 1, 1) for seen in self._order], device=depth.device)
            _, h, w = grids[at.numbers].unbind(1)
            own[:, at.rows, at.columns] = torch.stack([at.offset // (h * w), at.offset // w % h, at.offset % w])
            offset[at.rows, at.columns] = at.offset
            sizes = grids.prod(1)[at.numbers]
            ends = at.offset == sizes - 1
            saved[at.rows, at.columns] = torch.where(ends, sizes - torch.maximum(h, w), 0)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and tokens > 1 and caches.held(given) == 0:
            above = _allowed(mask, now.ids.shape, 0, depth.device)[:, 0] & ~torch.eye(
                tokens, dtype=torch.bool, device=depth.device
            )
            shift = (above.double() @ saved.double()[..., None])[..., 0].long()
        else:
            shift = saved.cumsum(1) - saved
        if before is not None:
            shift = shift + before.repeat_interleave(rows // before.shape[0])[:, None]
        placed = torch.where(shown, depth - offset - shift, depth - shift)[None] + own
        stated: Tensor | None = given.get("position_ids")
        whole = stated is not None and stated.ndim == 3 and stated.shape[0] == 4
        given["position_ids"] = placed if stated is None or not whole else torch.cat([stated[:1], placed])
        if given.get("use_cache") or held is not None:
            total = saved.sum(1)
            earlier = 0 if before is None else before.repeat_interleave(rows // before.shape[0])
            self._noted_on(given).shift = total + earlier

    def _forget_stale_positions(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """transformers remembers the last prompt's shift on the model itself; another batch must not have it."""
        if kwargs.get("image_grid_thw") is None and caches.held(kwargs) == 0:
            module.rope_deltas = None

    # -- features behind the first blocks

    def _reach_deep(self, now: _Pass, given: dict[str, Any]) -> None:
        at = now.standing
        assert at is not None
        given["visual_pos_masks"] = now.virtual
        given["deepstack_visual_embeds"] = [
            # In the order of rows and columns, as the mask takes them.
            at.at(parts, given["inputs_embeds"])
            for parts in zip(*(f.deep for f in at.seen), strict=True)
        ]

    # -- cross-attention

    def _look_across(self, now: _Pass, given: dict[str, Any]) -> None:
        held = caches.given(given)
        if given.get("cross_attention_states") is not None:  # transformers' own way, with pixels
            self._has = None
            return
        rows, tokens = now.ids.shape
        embeds: Tensor = given["inputs_embeds"]
        lowest = torch.finfo(embeds.dtype).min
        if caches.held(given) > 0:
            if now.virtual is not None:
                raise ModelError("images of this family must all stand in the part of a prompt that is run first")
            kept = getattr(held, "across", None)
            if kept is None:
                return
            mask, full, has = (t.repeat_interleave(rows // t.shape[0], 0) for t in kept)
            self._has = has
            given["cross_attention_mask"] = mask.expand(-1, -1, tokens, -1)
            given["full_text_row_masked_out_mask"] = full.expand(-1, -1, tokens, -1)
            return
        shown: list[list[tuple[int, _Features]]] = [[] for _ in range(rows)]
        if now.virtual is not None:
            at = self._stand(now)
            for r, c, k in zip(at.rows.tolist(), at.columns.tolist(), at.which.tolist(), strict=True):
                shown[r].append((c, at.seen[k]))
        width = max([1, *(sum(len(f.embeds) for _, f in row) for row in shown)])
        states = embeds.new_zeros(rows, width, embeds.shape[-1])
        sees = torch.zeros(rows, tokens, width, dtype=torch.bool, device=embeds.device)
        own = torch.zeros(rows, 1, width, dtype=torch.bool, device=embeds.device)
        for r, row in enumerate(shown):
            begin = 0
            for (first, last), (_, features) in zip(_spans([c for c, _ in row], tokens), row, strict=True):
                size = len(features.embeds)
                states[r, begin : begin + size] = features.embeds.to(embeds.dtype)
                real = size * features.tiles // self._tiles(size)
                sees[r, first:last, begin : begin + real] = True
                begin += size
            own[r, 0, :begin] = True
        any_ = sees.any(-1, keepdim=True)
        # A token before the first image is not kept from attending; its row alone sees all states, as in transformers.
        mask = torch.zeros(sees.shape, dtype=embeds.dtype, device=embeds.device).masked_fill_(
            ~torch.where(any_, sees, own), lowest
        )
        mask = torch.where(own.any(-1, keepdim=True), mask, 0.0)[:, None]
        full = any_.to(embeds.dtype)[:, None]
        has = own.any(-1)[:, 0]
        self._has = has
        given["cross_attention_states"] = states
        given["cross_attention_mask"] = mask
        given["full_text_row_masked_out_mask"] = full
        if given.get("use_cache") or held is not None:
            self._noted_on(given).across = mask[:, :, -1:], full[:, :, -1:], has

    def _tiles(self, size: int) -> int:
        """Tiles of an image's states, padding included."""
        return size // int(self.hf.model.vision_model.num_patches)

    def _past_the_blind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Rows that show no image pass a cross-attention block as they came, as they do alone.

        The block is run for them all the same, so that a steering in it fires on every batch.
        """
        if self._has is None or not args:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        kept = torch.where(self._has[:, None, None], hidden, args[0])
        return (kept, *output[1:]) if isinstance(output, tuple) else kept


class _Remembering:
    """An image processor that looks at the same images once: one item has several texts, and one set of images."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self._kept: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items(), key=lambda pair: pair[0])))
        if key not in self._kept:
            self._kept[key] = self._whole(images, *args, **kwargs)
        # A processor takes entries out of what it is given.
        found = self._kept[key]
        return type(found)(data=dict(found))


def _parts(text: str) -> list[dict[str, str]]:
    """A turn as parts: {"type": "image"} for each IMAGE, and the text between."""
    made: list[dict[str, str]] = []
    for n, words in enumerate(text.split(IMAGE)):
        if n:
            made.append({"type": "image"})
        if words:
            made.append({"type": "text", "text": words})
    return made or [{"type": "text", "text": ""}]


def _one_image(found: Any) -> Tensor:
    """Features of one image as (tokens, dim), however many tiles they come in."""
    whole = torch.cat([f.reshape(-1, f.shape[-1]) for f in found]) if isinstance(found, list | tuple) else found
    return whole.reshape(-1, whole.shape[-1])


def _depths(now: _Pass, given: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): how many tokens stand before each in its row."""
    stated = given.get("position_ids")
    if stated is not None:
        flat: Tensor = stated if stated.ndim == 2 else stated[0]
        return flat.expand(now.ids.shape)
    rows, tokens = now.ids.shape
    return (torch.arange(tokens, device=now.ids.device) + caches.held(given)).expand(rows, tokens)


def _allowed(mask: Any, shape: torch.Size, cached: int, device: torch.device) -> Tensor:
    """(rows, 1, tokens, cached + tokens): what each token may attend to by a mask of any of the usual forms."""
    rows, tokens = shape
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return (mask if mask.dtype == torch.bool else mask == 0).expand(rows, 1, tokens, -1)
    column = torch.arange(cached + tokens, device=device)
    sees = column[None, :] <= torch.arange(cached, cached + tokens, device=device)[:, None]
    sees = sees[None, None].expand(rows, 1, tokens, cached + tokens)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        sees = sees & mask[:, None, None, : cached + tokens].bool()
    return sees


def _within_window(tokens: int, cached: int, window: int, device: torch.device) -> Tensor:
    column = torch.arange(cached + tokens, device=device)
    return column[None, :] > torch.arange(cached, cached + tokens, device=device)[:, None] - window


def _spans(places: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """For each image token the tokens that attend to its image: up to the next image, which has its own.

    Images that stand side by side are attended to together.
    """
    ends = [*places[1:], tokens][: len(places)]
    for k in range(len(places) - 1, -1, -1):
        if k + 1 < len(places) and places[k + 1] == places[k] + 1:
            ends[k] = ends[k + 1]
    return list(zip(places, ends, strict=True))


@cache
def _counting_cache() -> Any:
    """A cache that knows how far positions ran behind its tokens, and which rows have shown an image, and goes on
    knowing when rows are copied."""
    from transformers import DynamicCache

    class CountingCache(DynamicCache):  # type: ignore[misc]
        shift: Tensor | None = None
        behind: Tensor | None = None
        across: tuple[Tensor, ...] | None = None

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self._of_rows(lambda noted: noted.repeat_interleave(repeats))

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self._of_rows(lambda noted: noted[indices])

        def _of_rows(self, changed: Callable[[Tensor], Tensor]) -> None:
            for name in caches.NOTES:
                if getattr(self, name) is not None:
                    setattr(self, name, changed(getattr(self, name)))

    return CountingCache


# -- processors


class _NoVideos:
    """Stands where a processor keeps what it reads videos with, which needs torchvision; stills do not."""

    model_input_names: tuple[str, ...] = ()
    _auto_class = None


def still(kind: type, image_processor: Any, tokenizer: Any, **settings: Any) -> Any:
    """A processor of a class of transformers, from its parts, without whatever reads videos.

    Those parts need torchvision, which images do not; asked for a video, the processor fails. Raises ModelError where
    class, image processor and tokenizer do not fit.
    """
    with _without_number_words(kind):
        try:
            return _stills(kind)(**_sorted_parts(kind, image_processor, tokenizer), **settings)
        except (TypeError, ValueError, AttributeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ModelError(f"{kind.__name__} cannot be made of its parts: {what}") from error


@cache
def _stills(kind: type) -> type:
    def check(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else kind.check_argument_for_proper_class(self, name, argument)  # type: ignore[attr-defined]

    def to_dict(self: Any) -> Any:
        return {k: v for k, v in kind.to_dict(self).items() if k != "video_processor"}  # type: ignore[attr-defined]

    own = {"check_argument_for_proper_class": check, "to_dict": to_dict, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), own)


def _sorted_parts(kind: Any, image_processor: Any, tokenizer: Any) -> dict[str, Any]:
    known = {"image_processor": image_processor, "tokenizer": tokenizer, "video_processor": _NoVideos()}
    return {name: known[name] for name in kind.get_attributes()}


@contextmanager
def _without_number_words(kind: type) -> Iterator[None]:
    """Within it SmolVLM's processor may be made without a package that spells the number of a video's frames."""
    module: Any = inspect.getmodule(kind)
    missing = hasattr(module, "num2words") and module.num2words is None
    if missing:
        module.num2words = str
    try:
        yield
    finally:
        if missing:
            module.num2words = None


def processor_of(source: str, config: Any, tokenizer: Any, **options: Any) -> Any:
    """The processor in a model's folder or repository, with its Pillow image processor: the same images on any machine.

    Raises MissingExtra where its image processor exists for torchvision alone, ModelError where it has none.
    """
    try:
        from transformers import AutoImageProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    except ImportError as error:  # Pillow is an extra
        raise MissingExtra(f"images need Pillow; run: pip install 'trimtab[vision]' ({error})") from error
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        raise ModelError(f"{source}: transformers has no processor for '{config.model_type}'")
    alone = "and there is none for Pillow alone; install torchvision from where torch came from"
    try:
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error):
            raise
        raise MissingExtra(f"{source}: its image processor needs torchvision, {alone}") from error
    held, _ = kind.get_processor_dict(source, **options)
    takes = set(inspect.signature(kind.__init__).parameters) - set(kind.get_attributes()) - {"self", "kwargs", "args"}
    settings = {k: v for k, v in held.items() if k in takes}
    return still(kind, image_processor, tokenizer, **settings)
