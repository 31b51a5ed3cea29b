"""Sites: named points of the forward pass, the same names in every family.

    layers.12.norm.attn_in    output of the norm before attention in block 12
    layers.12.norm.attn_out   output of the norm after attention (Gemma 2/3, OLMo 2)
    layers.12.norm.mlp_in     output of the norm before the feed-forward part
    layers.12.norm.mlp_out    output of the norm after it (Gemma 2/3, OLMo 2)
    layers.12.attn.proj_in    input of the attention output projection
    layers.12.out             output of block 12
    norm.final                output of the norm before the unembedding
    vision.layers.3.out       the same points of a vision tower: norm.attn_in, attn.proj_in, norm.mlp_in, out
    vision.norm.final         the tower's last norm, where its output is what is projected
    projector.out             what images are to the language backbone
    module:PATH               output of any module, by its own name; module:PATH@input its first input

Sites of the vision part are named by patterns that begin with `vision.` or `projector.`, and by no others: `*norm.*`
is the backbone's norms in every model. A pattern may hold `*`, an inclusive range of layers (`layers.4-9.out`), and a
comma for several patterns. The tables below are the one place that knows how a family calls its parts. This room sees
modules and attributes only, never transformers.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from trimtab.errors import SiteError, UnknownFamily

NORMS = "*norm.*"
"""The pattern of every norm output of the backbone, the final norm included where there is one: what DSO steers."""
IMAGES = "images_at"
"""Attribute of a backbone that sees images: in the pass that runs, the (rows, tokens) at which it is given one; None in
a pass over words alone."""
BEHIND = "behind_at"
"""Attribute of the same: the (rows, tokens) of words that see an image before them; None where there is no image."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family names the parts of its language backbone."""

    norms: Mapping[str, str]
    """Site name -> attribute of a block, in the order of the forward pass."""
    """`attn_in` stands before the attention; whatever else is named comes after it."""
    layers: str = "layers"
    final: str = "norm"
    proj: str = "self_attn.o_proj"


@dataclass(frozen=True, slots=True)
class Tower:
    """How one family of vision towers names its parts."""

    layers: str
    attn_in: str
    mlp_in: str
    proj: str
    final: str | None = None
    """The last norm, where what it puts out is what is projected."""


_PRE = Family({"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"})
_SANDWICH = Family(
    {
        "attn_in": "input_layernorm",
        "attn_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    }
)
FAMILIES: dict[str, Family] = {
    "llama": _PRE,
    "mistral": _PRE,
    "gemma": _PRE,
    "qwen2": _PRE,
    "qwen3": _PRE,
    "phi3": _PRE,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": Family({"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}),
    "phi": Family({"attn_in": "input_layernorm"}, final="final_layernorm", proj="self_attn.dense"),
    "gpt2": Family({"attn_in": "ln_1", "mlp_in": "ln_2"}, layers="h", final="ln_f", proj="attn.c_proj"),
    "gpt_neox": Family(dict(_PRE.norms), final="final_layer_norm", proj="attention.dense"),
    "opt": Family(
        {"attn_in": "self_attn_layer_norm", "mlp_in": "final_layer_norm"},
        final="final_layer_norm",
        proj="self_attn.out_proj",
    ),
}
FAMILIES |= {
    "qwen2_vl_text": _PRE,
    "qwen2_5_vl_text": _PRE,
    "qwen3_vl_text": _PRE,
    "mllama_text_model": _PRE,
}
_CLIP = Tower("encoder.layers", "layer_norm1", "layer_norm2", "self_attn.out_proj")
_SIGLIP = Tower("encoder.layers", "layer_norm1", "layer_norm2", "self_attn.out_proj", "post_layernorm")
_QWEN = Tower("blocks", "norm1", "norm2", "attn.proj")
TOWERS: Mapping[str, Tower] = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _SIGLIP,
    "idefics3_vision": _SIGLIP,
    "smolvlm_vision": _SIGLIP,
    "internvl_vision": Tower("encoder.layer", "layernorm_before", "layernorm_after", "attention.projection_layer"),
    "qwen2_vl": _QWEN,
    "qwen2_vl_vision": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen2_5_vl_vision": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_vision": _QWEN,
    "mllama_vision_model": Tower(
        "transformer.layers", "input_layernorm", "post_attention_layernorm", "self_attn.o_proj"
    ),
}
PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")
_POST_NORM_OPT = Family(
    {"attn_out": "self_attn_layer_norm", "mlp_out": "final_layer_norm"},
    final="final_layer_norm",
    proj="self_attn.out_proj",
)
"""OPT-350m: the same modules as its siblings, called after the attention and after the feed-forward part."""


@dataclass(frozen=True, slots=True)
class Site:
    """A named point of one model's forward pass."""

    name: str
    module: nn.Module = field(repr=False, compare=False)
    side: Literal["output", "input"]
    width: int | None
    """Size of the last axis there; None where the module does not tell."""


def family(root: nn.Module) -> str:
    """The model type of the language part, as its config states it ("llama", "gemma3_text", ...)."""
    config: Any = getattr(root, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(getattr(text, "model_type", type(root).__name__))


def backbone(root: nn.Module) -> nn.Module:
    """The module that owns the blocks and the final norm of the language part.

    A vision tower inside the same model has another model type and is never picked, however deep it is. Raises
    UnknownFamily, with the module names, where the table has no row.
    """
    kind = family(root)
    row = _row(root, kind)
    if row is not None:
        for module in root.modules():
            same = family(module) == kind if getattr(module, "config", None) is not None else False
            if same and isinstance(getattr(module, row.layers, None), nn.ModuleList):
                return module
    raise _unknown(root, kind)


def names(root: nn.Module) -> dict[str, Site]:
    """Every named site of the model in the order of the forward pass."""
    body = backbone(root)
    row = _row(root, family(root))
    assert row is not None, "backbone() has refused a family without a row"
    hidden = _hidden_size(root)
    found: dict[str, Site] = {}

    def add(name: str, module: nn.Module | None, side: Literal["output", "input"], width: int | None) -> None:
        if module is not None:
            found[name] = Site(name, module, side, width)

    for index, block in enumerate(getattr(body, row.layers)):
        before = [(n, a) for n, a in row.norms.items() if n == "attn_in"]
        after = [(n, a) for n, a in row.norms.items() if n != "attn_in"]
        for name, attribute in before:
            add(f"layers.{index}.norm.{name}", _child(block, attribute), "output", hidden)
        proj = _child(block, row.proj) or _child(block, row.proj.replace("self_attn.", "cross_attn."))
        add(f"layers.{index}.attn.proj_in", proj, "input", input_width(proj))
        for name, attribute in after:
            add(f"layers.{index}.norm.{name}", _child(block, attribute), "output", hidden)
        add(f"layers.{index}.out", block, "output", hidden)
    add("norm.final", _child(body, row.final), "output", hidden)
    return found


def vision_names(root: nn.Module) -> dict[str, Site]:
    """Every named site of the vision part, in the order of the forward pass; none where the model has no such part."""
    found: dict[str, Site] = {}
    tower = _tower(root)
    if tower is None:
        return found
    body, row = tower
    blocks: Any = _child(body, row.layers)
    width = getattr(getattr(root.config, "vision_config", None), "hidden_size", None)
    for index, block in enumerate(blocks):
        parts: list[tuple[str, nn.Module | None, Literal["output", "input"]]] = [
            ("norm.attn_in", _child(block, row.attn_in), "output"),
            ("attn.proj_in", _child(block, row.proj), "input"),
            ("norm.mlp_in", _child(block, row.mlp_in), "output"),
            ("out", block, "output"),
        ]
        for name, module, side in parts:
            if module is not None:
                size = input_width(module) if side == "input" else _norm_width(_child(block, row.attn_in)) or width
                label = f"vision.layers.{index}.{name}"
                found[label] = Site(label, module, side, size)
    if row.final is not None and (last := _child(body, row.final)) is not None:
        found["vision.norm.final"] = Site("vision.norm.final", last, "output", _norm_width(last) or width)
    for _, module in root.named_modules():
        for path in PROJECTORS:
            projector = _child(module, path)
            if projector is not None and "projector.out" not in found:
                found["projector.out"] = Site("projector.out", projector, "output", _hidden_size(root))
    return found


def vision_modules(root: nn.Module) -> list[nn.Module]:
    """Every module of a vision-language model that has no part in the language backbone: tower, projector."""
    inner = backbone(root)
    language = {id(m) for m in inner.modules()}
    above = {id(m) for _, m in root.named_modules() if any(c is inner for c in m.modules())}
    unembedding: Any = getattr(root, "get_output_embeddings", None)
    head = unembedding() if unembedding is not None else None
    return [m for m in root.modules() if id(m) not in language and id(m) not in above and m is not head]


def in_vision(name: str) -> bool:
    """Whether a site's name, or a pattern, is of the vision part."""
    return name.startswith(("vision.", "projector."))


def find(root: nn.Module, pattern: str | Iterable[str]) -> list[Site]:
    """The sites that a pattern names, in the order of the forward pass; every part of it must match something."""
    parts = [p.strip() for p in pattern.split(",")] if isinstance(pattern, str) else list(pattern)
    words, seen = {}, {}
    if any(in_vision(p) for p in parts):
        seen = vision_names(root)
        if not seen:
            raise SiteError(f"'{next(p for p in parts if in_vision(p))}' is of a vision part, which this model has not")
    if not all(p.startswith("module:") or in_vision(p) for p in parts):
        words = names(root)
    table = {**seen, **words}
    chosen: dict[str, Site] = {}
    for part in parts:
        if part.startswith("module:"):
            matches = _by_module(root, part)
        else:
            expanded = _expand_ranges(part)
            accept = re.compile("|".join(fnmatch.translate(p) for p in expanded))
            here = seen if in_vision(part) else words
            matches = [site for name, site in here.items() if accept.match(name)]
            # A range that runs past the last layer is a slip, not a wish for fewer.
            for one in expanded if matches else ():
                if not fnmatch.filter(here, one):
                    raise _no_such_site(root, one, list(here))
        if not matches:
            raise _no_such_site(root, part, list(table))
        chosen.update({site.name: site for site in matches})
    order = {name: place for place, name in enumerate(table)}
    return sorted(chosen.values(), key=lambda site: order.get(site.name, len(order)))


def block_of(name: str, blocks: int) -> int:
    """The number of the block that a site is in, of so many; `blocks` for what comes after them, 0 where its name does
    not tell."""
    if match := re.match(r"layers\.(\d+)\.", name):
        return int(match[1])
    return blocks if name == "norm.final" else 0


def _by_module(root: nn.Module, part: str) -> list[Site]:
    path, _, side = part.removeprefix("module:").partition("@")
    if side not in ("", "input", "output"):
        raise SiteError(f"'{part}': after @ comes 'input' or 'output', not '{side}'")
    sites = []
    for name, module in root.named_modules():
        if name and fnmatch.fnmatchcase(name, path):
            width = input_width(module) if side == "input" else _output_width(module)
            label = f"module:{name}" + ("@input" if side == "input" else "")
            sites.append(Site(label, module, "input" if side == "input" else "output", width))
    return sites


def _expand_ranges(pattern: str) -> list[str]:
    match = re.search(r"(?<=\.)(\d+)-(\d+)(?=\.|$)", pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise SiteError(f"'{pattern}': the range {first}-{last} runs backwards; write {last}-{first}")
    return [pattern[: match.start()] + str(i) + pattern[match.end() :] for i in range(first, last + 1)]


def _row(root: nn.Module, kind: str) -> Family | None:
    config = getattr(root, "config", None)
    if kind == "opt" and not getattr(config, "do_layer_norm_before", True):
        return _POST_NORM_OPT
    return FAMILIES.get(kind)


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
        if module is None:
            return None
    return module


def _tower(root: nn.Module) -> tuple[nn.Module, Tower] | None:
    """The vision tower and its row; None where the model, or the table, has none."""
    config: Any = getattr(root, "config", None)
    kind = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    row = TOWERS.get(kind)
    if row is None:
        return None
    for module in root.modules():
        own: Any = getattr(module, "config", None)
        if getattr(own, "model_type", None) == kind and isinstance(_child(module, row.layers), nn.ModuleList):
            return module, row
    return None


def _norm_width(norm: nn.Module | None) -> int | None:
    weight = getattr(norm, "weight", None)
    return int(weight.shape[-1]) if weight is not None else None


def _hidden_size(root: nn.Module) -> int | None:
    config: Any = getattr(root, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "hidden_size", None)
    return int(size) if size is not None else None


def input_width(module: nn.Module | None) -> int | None:
    """Size of the last axis of what a linear module is given; None where the module does not tell."""
    if isinstance(module, nn.Linear):
        return module.in_features
    weight = getattr(module, "weight", None)  # GPT-2's Conv1D keeps (in, out)
    return int(weight.shape[0]) if weight is not None and weight.ndim <= 2 else None


def _output_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    weight = getattr(module, "weight", None)
    return int(weight.shape[-1]) if weight is not None and weight.ndim <= 2 else None


def _unknown(root: nn.Module, kind: str) -> UnknownFamily:
    collapsed: dict[str, None] = {}
    for name, _ in root.named_modules():
        collapsed.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", name), None)
    listing = "\n  ".join(name for name in collapsed if name)
    return UnknownFamily(
        f"no site table for the family '{kind}' (known: {', '.join(sorted(FAMILIES))}). "
        "Name sites by pattern instead, for example sites='module:PATH' with * for the block number, "
        f"from the module names this model has:\n  {listing}"
    )


def _no_such_site(root: nn.Module, part: str, table: list[str]) -> SiteError:
    modules = [f"module:{name}" for name, _ in root.named_modules() if name]
    available = modules if part.startswith("module:") else table
    near = difflib.get_close_matches(part, available, n=3)
    shown = near or available[:8]
    return SiteError(f"no site '{part}' in this model; {'nearest' if near else 'it has'}: {', '.join(shown)}")
