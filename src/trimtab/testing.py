"""Small real models, a fake task and the dial's contract, for our tests and for learners and families of other people.

    class TestMyLearner(DialContract):
        def make_model(self):
            return tiny("llama")

        def make_steering(self, model):
            return MyLearner().fit(model, tiny_task().items, seed=0)

Everything is made in memory from a seed, in milliseconds, without a network. pytest is needed only where a contract
runs.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab import caches, sites
from trimtab.errors import SiteError, SteeringError, StrengthError, UsageError
from trimtab.interventions import Adapter, Diagonal, Intervention, LowRank
from trimtab.model import SteerableModel
from trimtab.steering import Steering, Strength, attach
from trimtab.types import IMAGE, SPLITS, Item, Option, Picture, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDTH = 32
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
CHAT = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
_PER_HEAD = {"head_dim": 8}
_COMMON = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_ALL_HEADS = {**_COMMON, "num_key_value_heads": 4}
_OPT = {
    "hidden_size": WIDTH,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": WIDTH,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _COMMON),
    "mistral": ("mistral", {**_COMMON, **_PER_HEAD, "sliding_window": 6}),
    "gemma": ("gemma", {**_COMMON, **_PER_HEAD}),
    # The caps are low enough to bend the logits and scores of a model this small.
    "gemma2": (
        "gemma2",
        {
            **_COMMON,
            **_PER_HEAD,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 4.0,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_COMMON,
            **_PER_HEAD,
            "num_hidden_layers": 3,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "qwen2": ("qwen2", _COMMON),
    "qwen3": ("qwen3", {**_COMMON, **_PER_HEAD}),
    "phi": ("phi", {**_ALL_HEADS, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _COMMON),
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in _ALL_HEADS.items() if k != "num_key_value_heads"}),
    "olmo2": ("olmo2", _COMMON),
    "opt": ("opt", _OPT),
    # The one published OPT that normalises after attention, has no final norm and embeds in another width.
    "opt-350m": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
}
TINY_FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
"""What `tiny` can make: one for each row of the site table, and OPT's post-norm variant."""


def ByteTokenizer(  # noqa: N802 - it stands for a class, but must be a plain one so that AutoTokenizer reads it back
    *,
    chat: bool = True,
    begin: bool = True,
    words: Sequence[str] = (" he", " she", " they"),
    marks: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """A real fast tokenizer: 256 bytes, three specials, and a few whole words so that tokens join across borders.

    `chat=False` leaves the chat template out, `begin=False` the begin-of-text token before every text. `marks` are
    further special tokens, and `named` says as which attributes a processor asks for some of them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {special: place for place, special in enumerate((PAD, BEGIN, END))}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = []
    for word in words:
        letters = word.replace(" ", "Ġ")
        for k in range(1, len(letters)):
            if letters[: k + 1] not in vocabulary:
                vocabulary[letters[: k + 1]] = len(vocabulary)
                merges.append((letters[:k], letters[k]))
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, vocabulary[BEGIN])]
        )
    specials: dict[str, Any] = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    if named:
        specials["extra_special_tokens"] = dict(named)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **specials, **({"chat_template": CHAT} if chat else {}))
    if marks:
        made.add_tokens(list(marks), special_tokens=True)
    return made


def tiny(
    family: str,
    *,
    seed: int = 0,
    chat: bool = True,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: Any,
) -> SteerableModel:
    """A randomly initialised model of one of `TINY_FAMILIES`: 2 or 3 layers, 32 wide, with logits far from uniform.

    `config` overrides settings of the family's own transformers config. Weights are a function of family, seed and
    config alone. Raises UsageError for a family that is not known.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in _CONFIGS:
        raise UsageError(f"no tiny model of the family '{family}'; there are {', '.join(_CONFIGS)}")
    tokenizer = ByteTokenizer(chat=chat) if tokenizer is None else tokenizer
    kind, settings = _CONFIGS[family]
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    made = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **{**settings, **config})
    before = torch.get_rng_state()
    try:
        hf = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    finally:
        torch.set_rng_state(before)
    _randomise(hf, seed)
    return SteerableModel(hf.to(dtype), tokenizer, f"tiny {family}")


# -- models that see

_CLIP_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 24,
}
_SIGLIP_TOWER = {
    **{k: v for k, v in _CLIP_TOWER.items() if k != "projection_dim"},
    "model_type": "siglip_vision_model",
    "vision_use_head": False,
}
_IDEFICS_TOWER = {k: v for k, v in _SIGLIP_TOWER.items() if k not in ("model_type", "vision_use_head")}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
_ROPE_3D = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_PINPOINTS = [[8, 16], [16, 8], [16, 16]]


@dataclass(frozen=True)
class _Sighted:
    """How a family's tiny model is made: its config, and the parts of its processor."""

    text: dict[str, Any]
    vision: dict[str, Any]
    processor: str
    image_processor: str
    mark: str = "<image>"
    """What stands for an image in a text."""
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the processor."""
    images: dict[str, Any] = field(default_factory=dict)
    """Of the image processor."""
    marks: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    token: str = "image_token_id"
    """What its config calls the id of an image's positions."""
    position: str | None = None
    """The token at an image's positions, where it is another than `mark`."""
    around: tuple[str, str] = ("", "")


_QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_IDEFICS_MARKS: tuple[str, ...] = (
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<video>",
)
_IDEFICS_MARKS += tuple(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4))
_SQUARE = {"height": 8, "width": 8}
_VISION: dict[str, _Sighted] = {
    "llava": _Sighted(
        {"model_type": "llama", **_COMMON}, _CLIP_TOWER, "LlavaProcessor", "CLIPImageProcessorPil",
        settings={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        images={"size": {"shortest_edge": 8}, "crop_size": _SQUARE}, marks=("<image>",),
    ),
    "llava_next": _Sighted(
        {"model_type": "mistral", **_COMMON, **_PER_HEAD}, _CLIP_TOWER, "LlavaNextProcessor",
        "LlavaNextImageProcessorPil", config={"image_grid_pinpoints": _PINPOINTS},
        settings={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        images={"size": {"shortest_edge": 8}, "crop_size": _SQUARE, "image_grid_pinpoints": _PINPOINTS},
        marks=("<image>",),
    ),
    "llava_onevision": _Sighted(
        {"model_type": "qwen2", **_COMMON}, _SIGLIP_TOWER, "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessorPil",
        config={"image_grid_pinpoints": _PINPOINTS},
        settings={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        images={"size": _SQUARE, "image_grid_pinpoints": _PINPOINTS}, marks=("<image>", "<video>"),
    ),
    "qwen2_vl": _Sighted(
        {**_COMMON, "rope_parameters": _ROPE_3D}, {**_QWEN_TOWER, "embed_dim": 16, "hidden_size": WIDTH},
        "Qwen2VLProcessor", "Qwen2VLImageProcessorPil", mark="<|image_pad|>",
        images={"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 16, "max_pixels": 96},
        marks=_QWEN_MARKS, around=("<|vision_start|>", "<|vision_end|>"),
    ),
    "qwen2_5_vl": _Sighted(
        {**_COMMON, "rope_parameters": _ROPE_3D},
        {**_QWEN_TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH, "window_size": 8,
         "fullatt_block_indexes": [1]},
        "Qwen2_5_VLProcessor", "Qwen2VLImageProcessorPil", mark="<|image_pad|>",
        images={"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 16, "max_pixels": 96},
        marks=_QWEN_MARKS, around=("<|vision_start|>", "<|vision_end|>"),
    ),
    "qwen3_vl": _Sighted(
        {**_COMMON, **_PER_HEAD, "num_hidden_layers": 3, "rope_parameters": {**_ROPE_3D, "mrope_interleaved": True}},
        {**_QWEN_TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH,
         "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        "Qwen3VLProcessor", "Qwen2VLImageProcessorPil", mark="<|image_pad|>",
        images={"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 16, "max_pixels": 96},
        marks=_QWEN_MARKS, around=("<|vision_start|>", "<|vision_end|>"),
    ),
    "gemma3": _Sighted(
        {"model_type": "gemma3_text", **_CONFIGS["gemma3"][1], "sliding_window": 48},
        {**_SIGLIP_TOWER, "image_size": 16}, "Gemma3Processor", "Gemma3ImageProcessorPil", mark="<boi>",
        config={"mm_tokens_per_image": 4}, settings={"image_seq_length": 4},
        images={"size": {"height": 16, "width": 16}}, position="<img>", token="image_token_index",
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"},
    ),
    "smolvlm": _Sighted(
        {"model_type": "llama", **_COMMON}, _IDEFICS_TOWER, "SmolVLMProcessor", "SmolVLMImageProcessorPil",
        config={"scale_factor": 2}, settings={"image_seq_len": 1},
        images={"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 8}, "do_image_splitting": True},
        marks=_IDEFICS_MARKS,
    ),
    "idefics3": _Sighted(
        {"model_type": "llama", **_COMMON}, _IDEFICS_TOWER, "Idefics3Processor", "Idefics3ImageProcessorPil",
        config={"scale_factor": 2}, settings={"image_seq_len": 1},
        images={"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 8}, "do_image_splitting": True},
        marks=_IDEFICS_MARKS,
    ),
    "paligemma": _Sighted(
        {"model_type": "gemma2", **_CONFIGS["gemma2"][1], "sliding_window": 48}, _SIGLIP_TOWER,
        "PaliGemmaProcessor", "SiglipImageProcessorPil", config={"projection_dim": WIDTH, "hidden_size": WIDTH},
        images={"size": _SQUARE, "image_seq_length": 4}, token="image_token_index", marks=("<image>",),
    ),
    "mllama": _Sighted(
        {**_COMMON, "num_hidden_layers": 3, "cross_attention_layers": [1]},
        {"hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
         "intermediate_size": 24, "vision_output_dim": 32, "image_size": 8, "patch_size": 4, "max_num_tiles": 4,
         "intermediate_layers_indices": [0],
         "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]},
        "MllamaProcessor", "MllamaImageProcessorPil", mark="<|image|>",
        images={"size": _SQUARE, "max_image_tiles": 4}, marks=("<|image|>", "<|python_tag|>"),
        token="image_token_index",
    ),
    "internvl": _Sighted(
        {"model_type": "qwen2", **_COMMON},
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
         "image_size": [8, 8], "patch_size": [4, 4]},
        "InternVLProcessor", "GotOcr2ImageProcessorPil", mark="<IMG_CONTEXT>",
        config={"downsample_ratio": 0.5, "image_seq_length": 1}, settings={"image_seq_length": 1},
        images={"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4},
        named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
               "video_token": "<video>"},
    ),
}  # fmt: skip
TINY_VISION_FAMILIES: tuple[str, ...] = tuple(_VISION)
"""What `tiny_vision` can make: one for each row of the table in vision.py."""
_SEEING_CHAT = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn.role }}] {% for part in turn.content %}"
    "{% if part.type == 'image' %}MARK{% else %}{{ part.text }}{% endif %}{% endfor %}"
    + END
    + "\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def tiny_vision(
    family: str,
    *,
    seed: int = 0,
    chat: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    vision: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    **text: Any,
) -> SteerableModel:
    """A randomly initialised vision-language model of one of `TINY_VISION_FAMILIES`, with its family's real processor.

    `text` overrides settings of its language model's config, `vision` those of its tower's, `config` of the whole,
    `settings` of its processor and `images` of its image processor, so that it may be as large as a published one:
    weights are then best drawn on the `device`, in the `dtype`, where they are to be. It opens pictures that `noise`
    makes, which are drawn when they are looked at, and files. Raises UsageError for a family that is not known.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText

    from trimtab.vision import still

    if family not in _VISION:
        raise UsageError(f"no tiny model of the family '{family}'; there are {', '.join(_VISION)}")
    row = _VISION[family]
    row = replace(
        row,
        vision={**row.vision, **(vision or {})},
        config={**row.config, **(config or {})},
        settings={**row.settings, **(settings or {})},
        images={**row.images, **(images or {})},
    )
    tokenizer = ByteTokenizer(chat=False, marks=row.marks, named=row.named)
    tower = getattr(transformers, row.image_processor)(**row.images)
    if "image_seq_length" in row.images:
        tower.image_seq_length = row.images["image_seq_length"]
    before, behind = row.around
    template = {"chat_template": _SEEING_CHAT.replace("MARK", f"{before}{row.mark}{behind}")} if chat else {}
    processor = still(getattr(transformers, row.processor), tower, tokenizer, **row.settings, **template)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    # Llama 3.2's embedding has 8 places more than its vocabulary, and the image token is there.
    words = len(tokenizer)
    made = AutoConfig.for_model(
        family,
        text_config={**row.text, **ids, "vocab_size": words, **text},
        vision_config=row.vision,
        tie_word_embeddings=False,
        **{row.token: tokenizer.convert_tokens_to_ids(row.position or row.mark)},
        **row.config,
    )
    there = torch.device(device)
    state = torch.get_rng_state()
    try:
        with there:
            hf = AutoModelForImageTextToText.from_config(made, dtype=torch.float32 if there.type == "cpu" else dtype)
    finally:
        torch.set_rng_state(state)
    if there.type != "meta":  # where there are shapes alone
        _randomise(hf, seed)
    model = SteerableModel(hf.to(dtype), tokenizer, f"tiny {family}", processor)
    assert model.eyes is not None
    files = model.eyes.opened
    model.eyes.opened = lambda picture: _noise(picture) if picture.source.startswith("noise:") else files(picture)
    return model


def write_tiny_vision_folder(path: str | Path, family: str = "llava", **settings: Any) -> Path:
    """Write a tiny vision-language model and its processor as `save_pretrained` does, for `trimtab.model.load`."""
    model = tiny_vision(family, **settings)
    return _write(path, model.hf, model.processor)


def _write(path: str | Path, *parts: Any) -> Path:
    """Write what a folder of a model is made of, without progress bars."""
    from transformers.utils import logging as hf_logging

    out = Path(path)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        for part in parts:
            part.save_pretrained(out)
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    return out


def noise(width: int, height: int, seed: int = 0) -> Picture:
    """A picture of random pixels, for the models that `tiny_vision` makes."""
    source = f"noise:{width}x{height}:{seed}"
    return Picture(source, hashlib.sha256(source.encode()).hexdigest())


def _noise(picture: Picture) -> Any:
    import numpy as np
    from PIL import Image

    _, size, seed = picture.source.split(":")
    width, height = map(int, size.split("x"))
    # Coarse, so that what resizing leaves differs from picture to picture.
    coarse = np.random.default_rng(int(seed)).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


@torch.no_grad()
def _randomise(hf: nn.Module, seed: int) -> None:
    generators = {d: torch.Generator(d).manual_seed(seed) for d in {p.device for p in hf.parameters()}}
    for module in hf.modules():
        for name, p in module.named_parameters(recurse=False):
            drawn = torch.randn(p.shape, generator=generators[p.device], device=p.device)
            if p.ndim > 1 and isinstance(module, nn.Embedding):
                p.copy_(drawn * 0.5)
            elif p.ndim > 1:
                p.copy_(drawn * 1.5 / max(2, min(p.shape)) ** 0.5)
            else:  # norms start at 1, or at 0 where the family adds 1; no weight may stay at its neutral value
                p.add_(drawn * (0.1 if name == "bias" else 0.3))


def write_tiny_folder(
    path: str | Path, family: str = "llama", *, chat: bool = True, seed: int = 0, **config: Any
) -> Path:
    """Write a tiny model and its tokenizer as `save_pretrained` does, for `trimtab.model.load(folder)`."""
    model = tiny(family, seed=seed, chat=chat, **config)
    return _write(path, model.hf, model.tokenizer)


def tiny_task(n_concepts: int = 6, n_templates: int = 6, seed: int = 0) -> Task:
    """A fake task: one ambiguous and one unambiguous item for each concept and template of one split.

    Concepts and templates are dealt to train, validation and test in turn, each in an order drawn from the seed, and
    only pairs of one split are kept, so that splits share neither. Raises UsageError below 3 of either.
    """
    if min(n_concepts, n_templates) < 3:
        raise UsageError(f"{n_concepts} concepts and {n_templates} templates cannot fill three splits; give 3 or more")
    rng = random.Random(seed)
    concepts = [f"maker of {chr(97 + k % 26)}{k}" for k in range(n_concepts)]
    places = [f"room {k}" for k in range(n_templates)]
    female = {concept: k % 2 == 0 for k, concept in enumerate(concepts)}
    rng.shuffle(concepts)
    rng.shuffle(places)
    items = []
    for c, concept in enumerate(concepts):
        for t, place in enumerate(places):
            if c % 3 != t % 3:
                continue
            pro, anti = ("she", "he") if female[concept] else ("he", "she")
            kind = {"concept": concept, "template": place, "split": SPLITS[c % 3]}
            open_options = (
                Option(pro, "pro", {"she": "women", "he": "men"}[pro]),
                Option(anti, "anti", {"she": "women", "he": "men"}[anti]),
                Option("they", "neither"),
            )
            prompt = f"In {place} the {concept} said that"
            items.append(Item(f"{c}-{t}-open", open_options, ambiguous=True, prompt=prompt, **kind))  # type: ignore[arg-type]
            named = rng.choice(("she", "he"))
            settled = tuple(Option(o, "correct" if o == named else "wrong") for o in ("she", "he"))
            prompt = f"In {place} the {concept}, whom everyone calls {named}, said that"
            items.append(Item(f"{c}-{t}-settled", settled, ambiguous=False, prompt=prompt, **kind))  # type: ignore[arg-type]
    return Task("tiny", tuple(items), "concepts and templates dealt to the splits in turn; mixed pairs left out", seed)


Kind = Literal["diagonal", "shift", "lowrank", "adapter"]


def random_steering(
    model: SteerableModel,
    pattern: str = sites.NORMS,
    kind: Kind = "diagonal",
    *,
    scale: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Steering:
    """A steering of random numbers of size `scale` at the sites of a pattern: for tests, not a learned one."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def intervention(site: sites.Site) -> Intervention:
        width = site.width
        if width is None:
            raise UsageError(f"site '{site.name}' does not tell its width, so no numbers can be drawn for it")
        if kind == "lowrank":
            m = torch.randn(width, generator=generator).to(dtype)
            return LowRank(drawn(width, 2), (drawn(2, width) / scale / width**0.5).to(dtype), m)
        if kind == "adapter":
            inner = sites.input_width(site.module)
            if inner is None:
                raise UsageError(f"the module of '{site.name}' does not tell its input's width")
            return Adapter(drawn(width, 2), (drawn(2, inner) / scale / inner**0.5).to(dtype))
        if kind not in ("diagonal", "shift"):
            raise UsageError(f"kind '{kind}' is not one of diagonal, shift, lowrank, adapter")
        return Diagonal(drawn(width) if kind == "diagonal" else None, drawn(width))

    chosen = {site.name: (intervention(site),) for site in sites.find(model.hf, pattern)}
    return Steering(chosen, {"learner": f"random numbers ({kind}, scale {scale:g}, seed {seed})"})


# -- what the contract works with


def random_ids(model: SteerableModel, rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Random token ids, none of them padding, begin or end: (rows, tokens).

    To a model that sees every third row is words alone, and the others begin with images of several sizes, as far as
    they fit.
    """
    generator = torch.Generator().manual_seed(seed)
    words = 3 + (256 if model.sees else len(model.tokenizer) - 3)
    ids = torch.randint(3, words, (rows, tokens), generator=generator)
    if model.eyes is not None:
        from trimtab.vision import PREFIX_ENDS

        for row in range(rows):
            if row % 3 != 1:
                size = (20, 12) if row % 3 else (9, 30)
                shown = model.seen_tokens([model.eyes.put_in(IMAGE)], [noise(*size, seed + row)])[0]
                ids_shown = [i for i in shown if i >= PREFIX_ENDS][:tokens]
                ids[row, : len(ids_shown)] = torch.tensor(ids_shown)
    return ids.to(model.device)


@torch.no_grad()
def logits(model: SteerableModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (rows, tokens, vocabulary) of the whole model, called as its users call it and without a cache."""
    extra = {}
    if mask is not None:
        extra = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    out: Tensor = model.hf(input_ids=ids, use_cache=False, **extra).logits
    return out


def hook_counts(root: nn.Module) -> list[tuple[int, int]]:
    """How many forward hooks and forward pre-hooks each module holds."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in root.modules()]


@contextmanager
def by_hand(model: SteerableModel, steering: Steering, w: Tensor) -> Iterator[None]:
    """The steering's effect restated with plain hooks: `h + w (A h + c)`, or `h + w B x`; A and B are written out.

    `w` must broadcast against activations (rows, tokens, dim); the oracle of `DialContract`.
    """

    def matrix(i: Diagonal | LowRank) -> tuple[Tensor, Tensor]:
        if isinstance(i, LowRank):
            A = i.L.double() @ i.R.double()
            return A, -(A @ i.m.double())
        return torch.diag(torch.zeros_like(i.c) if i.a is None else i.a).double(), i.c.double()

    def steered(h: Tensor, group: Sequence[Intervention], given: Tensor | None = None) -> Tensor:
        # OPT hands (rows * tokens, dim) to a norm inside its blocks.
        here = w if h.ndim == 3 else w.expand(-1, h.shape[0] // w.shape[0], -1).reshape(-1, 1)
        out = h.double()
        for i in group:
            if isinstance(i, Adapter):
                assert given is not None
                out = out + here * (given.double() @ (i.L.double() @ i.R.double()).T)
                continue
            A, c = matrix(i)
            out = out + here * (h.double() @ A.T + c)
        return out.to(h.dtype)

    handles = []
    for site in sites.find(model.hf, list(steering.interventions)):
        group = steering.interventions[site.name]
        if site.side == "input":
            handles.append(site.module.register_forward_pre_hook(lambda m, a, g=group: (steered(a[0], g), *a[1:])))
        else:
            handles.append(
                site.module.register_forward_hook(
                    lambda m, a, o, g=group: (
                        (steered(o[0], g, a[0]), *o[1:]) if isinstance(o, tuple) else steered(o, g, a[0] if a else None)
                    )
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class DialContract:
    """The dial's contract: what must hold for every steering on every model, whoever made them.

    Subclass it in a test file, under a name that pytest collects, and say which model and which steering. The model
    must be in float32 for the tolerances to mean anything; a learner's own result is the steering to give.
    """

    tolerance: ClassVar[float] = 2e-5
    """Largest difference of logits between two ways to compute one thing in float32."""
    no_compile: ClassVar[str | None] = None
    """Why the three compile tests (seconds each) are skipped, where they are; the reason is shown."""
    _kept: ClassVar[dict[type, tuple[SteerableModel, Steering]]] = {}

    def make_model(self) -> SteerableModel:
        """The model under test; called once a class."""
        raise NotImplementedError("a DialContract needs make_model()")

    def make_steering(self, model: SteerableModel) -> Steering:
        """The steering under test; called once a class."""
        raise NotImplementedError("a DialContract needs make_steering(model)")

    @classmethod
    def teardown_class(cls) -> None:
        """Forget the class's model."""
        DialContract._kept.pop(cls, None)

    def _pair(self) -> tuple[SteerableModel, Steering]:
        kind = type(self)
        if kind not in DialContract._kept:
            model = self.make_model()
            DialContract._kept[kind] = model, self.make_steering(model)
        return DialContract._kept[kind]

    def _full(self, steering: Steering) -> float:
        """A strength within the trained range at which the steering acts."""
        return steering.trained_range[1]

    def _close(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=self.tolerance)

    # -- the equation

    def test_the_effect_is_h_plus_w_times_ah_plus_c(self) -> None:
        """The steered logits equal those of plain hooks that write the equation out, and differ from the base's."""
        model, steering = self._pair()
        ids, full = random_ids(model, 3, 9), self._full(steering)
        w = torch.tensor([full, 0.3 * full, 0.0])
        with by_hand(model, steering, w[:, None, None].to(model.device)):
            expected = logits(model, ids)
        base = logits(model, ids)
        with attach(model.hf, steering, w):
            found = logits(model, ids)
        self._close(found, expected)
        assert (found[0] - base[0]).abs().max() > 100 * self.tolerance, "the steering changes nothing to speak of"

    def test_a_strength_a_token_acts_on_its_token(self) -> None:
        """With one strength a token the equation holds token by token."""
        model, steering = self._pair()
        ids = random_ids(model, 2, 7)
        w = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)) * self._full(steering)
        w[0, 3:] = 0
        with by_hand(model, steering, w[:, :, None].to(model.device)):
            expected = logits(model, ids)
        with attach(model.hf, steering, w):
            found = logits(model, ids)
        self._close(found, expected)

    def test_several_dials_add_in_any_order(self) -> None:
        """Two steerings at once add their deltas, each of the untouched activation, whichever came first."""
        model, steering = self._pair()
        other, ids = steering.random(5), random_ids(model, 2, 6)
        full = self._full(steering)
        with attach(model.hf, steering, full), attach(model.hf, other, 0.5 * full):
            one_way = logits(model, ids)
        with attach(model.hf, other, 0.5 * full), attach(model.hf, steering, full):
            other_way = logits(model, ids)
        halved = {site: tuple(_scaled(i, 0.5) for i in group) for site, group in other.interventions.items()}
        both = {site: (*group, *halved[site]) for site, group in steering.interventions.items()}
        with attach(model.hf, Steering(both, steering.card), full):
            as_one = logits(model, ids)
        with attach(model.hf, steering, full):
            alone = logits(model, ids)
        self._close(one_way, other_way)
        self._close(one_way, as_one)
        assert (one_way - alone).abs().max() > 100 * self.tolerance

    # -- 1, 2: rows

    def test_a_row_of_strength_zero_is_the_bare_model_bit_for_bit(self) -> None:
        """In a mixed batch the rows of strength 0 are bit-identical to the bare model's, the others not."""
        model, steering = self._pair()
        ids, full = random_ids(model, 4, 8), self._full(steering)
        base = logits(model, ids)
        with attach(model.hf, steering, [0.0, full, 0, 0.5 * full]):
            found = logits(model, ids)
        assert torch.equal(found[0], base[0])
        assert torch.equal(found[2], base[2])
        assert not torch.equal(found[1], base[1])
        assert not torch.equal(found[3], base[3])

    def test_strength_zero_is_the_bare_model_bit_for_bit(self) -> None:
        """Strength 0 for all, as a number, a list or a tensor a token, is the untouched model."""
        model, steering = self._pair()
        ids = random_ids(model, 2, 8)
        base = logits(model, ids)
        for nothing in (0, 0.0, [0.0, 0.0], torch.zeros(2, 8)):
            with attach(model.hf, steering, nothing):
                assert torch.equal(logits(model, ids), base)

    def test_a_dial_that_is_off_is_the_bare_model(self) -> None:
        """Within `off()` the model is untouched, whatever was attached, set or batched; after it the dial is as set."""
        model, steering = self._pair()
        ids, full = random_ids(model, 2, 6), self._full(steering)
        base, base_one = logits(model, ids), logits(model, ids[:1])
        with attach(model.hf, steering, [full, full]) as dial:
            steered = logits(model, ids)
            with dial.off():
                assert torch.equal(logits(model, ids), base)
                assert torch.equal(logits(model, ids[:1]), base_one)
                dial.strength = [0.0, full]
                assert torch.equal(logits(model, ids), base)
            turned = logits(model, ids)
        assert torch.equal(turned[0], base[0])
        assert torch.equal(turned[1], steered[1])

    def test_rows_do_not_see_each_other(self) -> None:
        """Another row's strength and tokens may change; this row's logits stay bit-identical."""
        model, steering = self._pair()
        ids, full = random_ids(model, 3, 8), self._full(steering)
        changed = ids.clone()
        changed[1] = random_ids(model, 1, 8, seed=9)[0]
        with attach(model.hf, steering, [0.6 * full, 0.2 * full, full]):
            before = logits(model, ids)
        with attach(model.hf, steering, [0.6 * full, 0.9 * full, full]):
            after = logits(model, changed)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[2], after[2])
        assert not torch.equal(before[1], after[1])

    # -- 3: padding

    def test_left_padding_changes_nothing(self) -> None:
        """Rows of different lengths, padded on the left, have the logits that each has alone at its strength."""
        model, steering = self._pair()
        full = self._full(steering)
        rows = [random_ids(model, 1, n, seed=n)[0] for n in (4, 9, 6)]
        w = [full, 0.4 * full, 0.0]
        ids, mask = _left_padded(model, rows)
        with attach(model.hf, steering, w):
            together = logits(model, ids, mask)
        for row, strength, found in zip(rows, w, together, strict=True):
            with attach(model.hf, steering, strength):
                alone = logits(model, row[None])[0]
            self._close(found[-len(row) :], alone)

    def test_left_padding_changes_no_generated_token(self) -> None:
        """Prompts of different lengths and strengths, generated together, continue as each does alone."""
        model, steering = self._pair()
        full = self._full(steering)
        rows = [tuple(random_ids(model, 1, n, seed=n)[0].tolist()) for n in (3, 8, 5)]
        w = [0.7 * full, 0.0, full]
        with attach(model.hf, steering, w):
            together = model.generate_ids(rows, max_new_tokens=6)
        for row, strength, found in zip(rows, w, together, strict=True):
            with attach(model.hf, steering, strength):
                assert model.generate_ids([row], max_new_tokens=6)[0] == found

    # -- 4: the cache

    def test_cached_decoding_equals_the_full_pass(self) -> None:
        """A prompt in one piece and then token by token, from a cache, gives the logits of the whole at once."""
        model, steering = self._pair()
        ids, full = random_ids(model, 2, 12), self._full(steering)
        with attach(model.hf, steering, [full, 0.5 * full]):
            self._close(_in_pieces(model, ids, (7, 1, 1, 1, 2)), logits(model, ids))

    def test_cached_decoding_keeps_strengths_at_their_tokens(self) -> None:
        """Steering limited to some positions stays at them when the sequence is fed in pieces from a cache."""
        model, steering = self._pair()
        ids = random_ids(model, 2, 12)
        w = torch.zeros(2, 12)
        w[0, 5:7] = self._full(steering)  # behind an image, whose tokens may see each other both ways
        w[1, 8:] = 0.5 * self._full(steering)
        base = logits(model, ids)
        with attach(model.hf, steering, w):
            whole = logits(model, ids)
            pieces = _in_pieces(model, ids, (5, 1, 4, 1, 1))
        self._close(pieces, whole)
        assert torch.equal(whole[0, :5], base[0, :5])
        assert torch.equal(whole[1, :8], base[1, :8])
        assert (whole[0, 5:] - base[0, 5:]).abs().max() > 100 * self.tolerance
        assert (whole[1, 8:] - base[1, 8:]).abs().max() > 100 * self.tolerance

    def test_tokens_decoded_beyond_the_last_strength_keep_it(self) -> None:
        """Strengths for a prompt's tokens only: what is decoded after them is steered with the last one."""
        model, steering = self._pair()
        ids, full = random_ids(model, 1, 10), self._full(steering)
        w = torch.zeros(1, 6)
        w[0, -1] = full
        longer = torch.cat([w, torch.full((1, 4), full)], 1)
        with attach(model.hf, steering, w):
            pieces = _in_pieces(model, ids, (6, 1, 2, 1))
        with attach(model.hf, steering, longer):
            self._close(pieces, logits(model, ids))

    # -- 5: batches

    def test_a_batch_of_one_equals_a_batch_of_many(self) -> None:
        """Each row of a batch has the logits it has alone."""
        model, steering = self._pair()
        ids, full = random_ids(model, 4, 7), self._full(steering)
        w = [0.25 * full, full, 0.0, 0.7 * full]
        with attach(model.hf, steering, w):
            together = logits(model, ids)
        for row, strength in enumerate(w):
            for alone in (strength, [strength]):
                with attach(model.hf, steering, alone):
                    self._close(logits(model, ids[row : row + 1])[0], together[row])

    def test_a_number_equals_the_same_number_a_row_or_a_token_exactly(self) -> None:
        """0.7 is [0.7] * rows is [[0.7] * tokens] * rows, bit for bit, in float32 and in bfloat16."""
        model, steering = self._pair()
        ids, w = random_ids(model, 3, 6), 0.7 * self._full(steering)
        for dtype in (torch.float32, torch.bfloat16):
            with _in_dtype(model, dtype):
                found = []
                for strength in (
                    w,
                    [w] * 3,
                    torch.full((3, 6), w),
                    torch.tensor(w),
                    torch.full((3,), w).double(),
                ):
                    with attach(model.hf, steering, strength):
                        found.append(logits(model, ids))
                assert all(torch.equal(found[0], other) for other in found[1:])

    def test_it_works_in_bfloat16(self) -> None:
        """In bfloat16 the dtype stays, the effect resembles that in float32, and rows of strength 0 are exact."""
        model, steering = self._pair()
        ids, full = random_ids(model, 2, 6), self._full(steering)
        base32 = logits(model, ids)
        with attach(model.hf, steering, full):
            change32 = logits(model, ids) - base32
        with _in_dtype(model, torch.bfloat16):
            base = logits(model, ids)
            with attach(model.hf, steering, [0.0, full]):
                found = logits(model, ids)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found[0], base[0])
        change = (found[1] - base[1]).float().flatten()
        alike = torch.cosine_similarity(change, change32[1].flatten(), dim=0)
        assert alike > 0.9, f"the effect in bfloat16 resembles that in float32 with a cosine of {alike:.2f} only"

    # -- turning

    def test_turning_the_dial_takes_effect_at_once(self) -> None:
        """A turned dial gives what a fresh one at that strength gives, bit for bit, back and forth."""
        model, steering = self._pair()
        ids, full = random_ids(model, 2, 6), self._full(steering)
        turns: tuple[Strength, ...] = (full, 0.0, [0.3 * full, full], [full, 0.3 * full], 0.5 * full)
        fresh = []
        for strength in turns:
            with attach(model.hf, steering, strength):
                fresh.append(logits(model, ids))
        with attach(model.hf, steering, 0.1 * full) as dial:
            for strength, expected in zip(turns, fresh, strict=True):
                dial.strength = strength
                assert torch.equal(logits(model, ids), expected)

    def test_selected_rows_take_their_own_strength(self) -> None:
        """Within `rows(index)` row i of a batch is steered with the strength of row index[i]."""
        model, steering = self._pair()
        ids, full = random_ids(model, 3, 6), self._full(steering)
        w = [full, 0.0, 0.4 * full]
        with attach(model.hf, steering, w) as dial:
            whole = logits(model, ids)
            with dial.rows([2, 0]):
                self._close(logits(model, ids[[2, 0]]), whole[[2, 0]])
            assert torch.equal(logits(model, ids), whole)

    # -- 6: leaving

    def test_leaving_leaves_no_hook(self) -> None:
        """After the context, left normally or by an exception, every module has the hooks and logits it had."""
        import pytest

        model, steering = self._pair()
        ids = random_ids(model, 2, 5)
        counts, base = hook_counts(model.hf), logits(model, ids)
        with attach(model.hf, steering, self._full(steering)):
            assert hook_counts(model.hf) != counts
            logits(model, ids)
        assert hook_counts(model.hf) == counts
        with pytest.raises(KeyError, match="on purpose"), attach(model.hf, steering, self._full(steering)):
            raise KeyError("on purpose")
        assert hook_counts(model.hf) == counts
        dial = attach(model.hf, steering)
        dial.detach()
        dial.detach()
        assert hook_counts(model.hf) == counts
        assert torch.equal(logits(model, ids), base)

    def test_nested_contexts_come_apart_in_any_order(self) -> None:
        """Of two dials either may leave first; the other goes on as if it had been alone, and nothing stays."""
        model, steering = self._pair()
        other, ids, full = steering.random(3), random_ids(model, 2, 5), self._full(steering)
        counts, base = hook_counts(model.hf), logits(model, ids)
        with attach(model.hf, other, full):
            alone = logits(model, ids)
        with attach(model.hf, other, full):
            with attach(model.hf, steering, full):
                assert not torch.equal(logits(model, ids), alone)
            assert torch.equal(logits(model, ids), alone)
        assert hook_counts(model.hf) == counts
        first, second = attach(model.hf, steering, full), attach(model.hf, other, full)
        first.detach()
        assert torch.equal(logits(model, ids), alone)
        second.detach()
        assert hook_counts(model.hf) == counts
        assert torch.equal(logits(model, ids), base)

    # -- 7: refusals

    def test_a_wrong_number_of_strengths_is_refused_with_both_numbers(self) -> None:
        """Strengths for 3 rows before a batch of 2, or for 4 tokens before 6, are refused with both numbers."""
        import pytest

        model, steering = self._pair()
        ids = random_ids(model, 2, 6)
        for strength, numbers in (
            ([0.5] * 3, "3 strengths for 2 rows"),
            (torch.full((2, 4), 0.5), "4 strengths .* 6 tok"),
        ):
            dial = attach(model.hf, steering, strength)
            try:
                with pytest.raises(StrengthError, match=numbers):
                    logits(model, ids)
            finally:
                dial.detach()
        with pytest.raises(StrengthError, match=r"\(1, 2, 3\)"):
            attach(model.hf, steering, torch.zeros(1, 2, 3))

    def test_a_strength_that_is_no_number_or_out_of_range_is_refused(self) -> None:
        """NaN, infinite, too small and too large strengths are refused at once; the larger one can be asked for."""
        import pytest

        model, steering = self._pair()
        counts, (low, high) = hook_counts(model.hf), steering.trained_range
        for bad in (
            float("nan"),
            float("inf"),
            [0.5, float("nan")],
            min(low, 0.0) - 0.5,
            high + 0.5,
            [0.0, high + 0.5],
            [],
            "much",
        ):
            with pytest.raises(StrengthError):
                attach(model.hf, steering, bad)  # type: ignore[arg-type]
        with pytest.raises(StrengthError, match=f"{high + 0.5:g}.*{high:g}.*beyond_range"):
            attach(model.hf, steering, high + 0.5)
        assert hook_counts(model.hf) == counts
        with attach(model.hf, steering, high + 0.5, beyond_range=True) as dial:
            logits(model, random_ids(model, 1, 4))
            with pytest.raises(StrengthError):
                dial.strength = float("nan")
            assert float(dial.strength) == high + 0.5

    def test_an_unknown_site_or_another_width_is_refused(self) -> None:
        """A steering for other sites or another width does not attach; the message has the name or both widths."""
        import pytest

        model, steering = self._pair()
        counts = hook_counts(model.hf)
        known = next(iter(steering.interventions))
        (site,) = sites.find(model.hf, known)
        width = int(site.width or 0)
        wrong = Steering({known: (Diagonal(None, torch.ones(width + 1)),)}, steering.card)
        with pytest.raises(SiteError, match=f"{width} wide.*{width + 1}"):
            attach(model.hf, wrong)
        with pytest.raises(SiteError, match=r"layers\.97\.out"):
            attach(model.hf, Steering({"layers.97.out": (Diagonal(None, torch.ones(width)),)}, steering.card))
        assert hook_counts(model.hf) == counts

    # -- 8: a silent steering

    def test_a_steering_that_fired_nowhere_is_an_error(self) -> None:
        """Leaving a context in which the steered model never ran, or that has no interventions, raises."""
        import pytest

        model, steering = self._pair()
        counts = hook_counts(model.hf)
        with pytest.raises(SteeringError, match="did nothing"), attach(model.hf, steering):
            pass
        with pytest.raises(SteeringError, match="no interventions"), attach(model.hf, Steering({})):
            logits(model, random_ids(model, 1, 4))
        assert hook_counts(model.hf) == counts

    # -- 9: compilation

    def test_turning_the_dial_of_a_compiled_model_recompiles_nothing(self) -> None:
        """Attached first and compiled then: every strength acts as in eager mode, and one compilation serves all."""
        self._require_compiler()
        model, steering = self._pair()
        ids, full = random_ids(model, 2, 6), self._full(steering)
        for turns in (
            (full, 0.3 * full, 0.0, full),
            ([0.0, full], [full, 0.5 * full], [0.0, 0.0], [full, full]),
        ):
            expected = []
            for strength in turns:
                with attach(model.hf, steering, strength):
                    expected.append(logits(model, ids))
            base = logits(model, ids)
            with _compiling(model) as (run, graphs), attach(model.hf, steering, turns[0]) as dial:
                found = [run(ids)]
                compiled = len(graphs)
                for strength in turns[1:]:
                    dial.strength = strength
                    found.append(run(ids))
                assert compiled > 0, "nothing was compiled, so this shows nothing"
                assert len(graphs) == compiled, f"turning the dial compiled {len(graphs) - compiled} graphs again"
                with dial.off():
                    self._close(run(ids), base)
                self._close(run(ids), expected[-1])
            for mine, eager in zip(found, expected, strict=True):
                self._close(mine, eager)
            assert (found[0] - base).abs().max() > 100 * self.tolerance

    def test_a_compiled_model_is_bare_again_after_leaving(self) -> None:
        """A graph that was compiled with the steering in it does not go on steering when the context is left."""
        self._require_compiler()
        model, steering = self._pair()
        ids = random_ids(model, 2, 6)
        base = logits(model, ids)
        with _compiling(model) as (run, _):
            with attach(model.hf, steering, self._full(steering)):
                assert (run(ids) - base).abs().max() > 100 * self.tolerance
            self._close(run(ids), base)

    def test_a_model_compiled_before_is_refused(self) -> None:
        """A model that was compiled before attaching is refused, or the steering that it ignores is an error."""
        import pytest

        self._require_compiler()
        model, steering = self._pair()
        counts, ids = hook_counts(model.hf), random_ids(model, 1, 4)
        compiled = torch.compile(model.hf, backend="eager", dynamic=False)
        with pytest.raises(SteeringError, match="attach first"):
            attach(compiled, steering)  # type: ignore[arg-type]
        assert hook_counts(model.hf) == counts
        torch._dynamo.reset()
        with _compiling(model) as (run, _):
            base = run(ids)
            changed: Tensor | None = None
            # The original object cannot tell that a compiled twin of it exists, so the twin must be caught out later.
            try:
                with attach(model.hf, steering, self._full(steering)):
                    changed = run(ids)
            except SteeringError as error:
                assert "did nothing" in str(error)
            else:
                assert changed is not None
                assert not torch.equal(changed, base)
        assert hook_counts(model.hf) == counts

    def _require_compiler(self) -> None:
        if self.no_compile:
            import pytest

            pytest.skip(self.no_compile)


def _scaled(i: Intervention, by: float) -> Intervention:
    if isinstance(i, Adapter):
        return Adapter(i.L, i.R * by)
    if isinstance(i, LowRank):
        return LowRank(i.L * by, i.R, i.m)
    return Diagonal(None if i.a is None else i.a * by, i.c * by)


def _left_padded(model: SteerableModel, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), int(model.tokenizer.pad_token_id or 0), device=model.device)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = row
        mask[place, width - len(row) :] = 1
    return ids, mask


@torch.no_grad()
def _in_pieces(model: SteerableModel, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    cache, parts = None, []
    for piece in ids.split(list(sizes), 1):
        out = model.hf(input_ids=piece, use_cache=True, **caches.argument(model.hf, cache))
        cache = caches.returned(out)
        parts.append(out.logits)
    return torch.cat(parts, 1)


@contextmanager
def _in_dtype(model: SteerableModel, dtype: torch.dtype) -> Iterator[None]:
    before = {name: p.data for name, p in model.hf.named_parameters()}
    buffers = {name: b.clone() for name, b in model.hf.named_buffers()}
    model.hf.to(dtype)
    try:
        yield
    finally:
        for name, p in model.hf.named_parameters():
            p.data = before[name]
        for name, b in model.hf.named_buffers():
            b.data = buffers[name]


@contextmanager
def _compiling(model: SteerableModel) -> Iterator[tuple[Callable[[Tensor], Tensor], list[int]]]:
    """The model compiled with a backend that runs graphs as they are and counts them."""
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model.hf, backend=counting, dynamic=False)

    @torch.no_grad()
    def run(ids: Tensor) -> Tensor:
        out: Tensor = compiled(input_ids=ids, use_cache=False).logits
        return out

    try:
        yield run, graphs
    finally:
        torch._dynamo.reset()
