"""The model of the drawn world, `demo:roomworld`, from a seed: train, export, check.

    python recipes/roomworld.py --seed 0 --out runs/roomworld                  train (goes on where it was cut off)
    python recipes/roomworld.py --seed 0 --out runs/roomworld --export         write the package's model folder
    python recipes/roomworld.py --check src/trimtab/data/roomworld             measure what an exported folder can do

A LLaVA architecture in transformers' own classes: a CLIP vision tower on 64 x 64 pixels in patches of 8, a two-layer
projector, a Llama. It is trained from random weights on scenes of the held-in part of the world, every scene fresh,
with answers to open questions drawn by the planted law (trimtab.roomworld.law).

**A row** is one picture and a few lanes of as many questions as fit. The picture is encoded once and read once by the
language model, whose keys and values all lanes go on from; every question sees the picture and itself, nothing of the
other questions, at the positions that it would have alone: training is what inference is.

    <s> [courtesy] <image> x 64   |  Question: ... Answer: doctor </s>  |  Question: ... Answer: left </s>  |  ...
                                  |  Question: ... Answer: chef </s>    |  ...

Some rows hold a caption, and some a text without any picture, which sees itself alone. Loss is on answers, captions and
such texts; a word of a caption or text weighs less than an answer. Of an open question the first word of the answer is
learned in the law's own proportions, which is the mean over all answers that could be drawn, without the noise of one.

**Matrices are learned by Muon**, all else by AdamW: 300 steps did what AdamW did in 500 (measured, by the loss on
captions).

**First to see, then to decide.** A question of two people and an occupation cannot be learned before what they wear is
seen, and what they wear is soon known: from step `turn` on, most questions are about occupations. What is hardest to
see comes late, in a stage of its own (STAGES).

**Time.** The learning rate falls as a cosine of the progress, the larger of step / steps and time / minutes, in each
stage anew: where the machine is slow the schedule ends in time, where it is fast enough the result depends on the seed
and the steps alone (up to the rounding of the machine). Every few minutes weights, optimiser and progress are written,
whole or not at all. Data of a step depends on the seed and the step, so a run that goes on sees what an unbroken one
would have seen.

`curve.jsonl` in the output folder has a line every 20 steps (loss by kind) and one for every look at held-out items.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab import caches
from trimtab.roomworld import Scene, any_scene, draw, language
from trimtab.roomworld.language import COURTESIES, DESCRIBE, SPECIAL, caption, exchanges, passage, vocabulary
from trimtab.roomworld.scene import OCCUPATIONS, any_person, any_surroundings, dressed, others
from trimtab.tasks import load_task
from trimtab.tasks.rooms import planted_bias, scene_of
from trimtab.types import IMAGE, Item

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "src" / "trimtab" / "data" / "roomworld"
PAD, BOS, EOS, UNK, PICTURE = range(5)
"""Ids of the special tokens, as in language.SPECIAL."""
assert SPECIAL == ("<pad>", "<s>", "</s>", "<unk>", IMAGE)

CHAT = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set ns = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set ns.text = ns.text + '<image>' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set ns.text = ns.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- set text = ns.text -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{ '<image>' * text.count('<image>') }}Question: {{ text.replace('<image>', '') | trim }} "
    "{%- elif message['role'] == 'assistant' -%}Answer: {{ text | trim }}{{ eos_token }}"
    "{%- else -%}{{ text | trim }} {%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}Answer:{%- endif -%}"
)
"""Pictures come before the question, as in training, wherever the message has them."""


@dataclass(frozen=True)
class Stage:
    """A part of the run, whose learning rate falls as a cosine of its own."""

    parts: int
    """Of all parts of the plan: its share of the steps."""
    rate: float = 1.0
    """Times the plan's, where it begins (a restart: Loshchilov and Hutter, arXiv 1608.03983)."""
    hair: float = 0.0
    """Share of questions that are about hair whatever `decisions` says."""
    hats: float = 0.0
    """Share of scenes in which everybody wears a hat."""
    near: float = 0.0
    """Share of scenes in which one person has both cues of an occupation, and the others one of them."""
    duos: float = 0.0
    """Share of scenes with two people whom no cue tells apart, and a third who is not meant."""


STAGES = (
    Stage(70),
    Stage(10, hair=0.4, hats=0.5),
    Stage(10, rate=0.4, near=0.2),
    Stage(6, rate=0.3, near=0.1, duos=0.2),
)
"""To see and to decide; the hair that a hat leaves to be seen; who is meant where others have a cue as well; who may be
meant where one is not.

After the first, hair under a hat was guessed (0.26 right). Begun again at 0.3 of the rate, with 0.3 of the questions
about hair and no more hats than before, the second learned nothing of it in 400 steps; as it is, after 250. It costs
decisions some of their certainty. What was wrong in clear scenes was nearly always two people with a cue, of whom one
has both: by chance few scenes are so. After the third, clear scenes were 99.6 % right and more, and what is planted was
understated where three people are shown and two of them have a cue (0.47 and 0.54 instead of 0.70; elsewhere 0.66 to
0.70).
"""

INIT = 0.06
"""Standard deviation of the language model's first weights: for so narrow a model, transformers' 0.02 starts slowly."""


@dataclass(frozen=True)
class Plan:
    """Everything that the result depends on, but for the machine."""

    seed: int
    steps: int = 9600
    rows: int = 16
    """Pictures a step."""
    lanes: int = 2
    """Of questions behind each picture."""
    width: int = 128
    """Tokens a lane."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    matrices: float = 3.0
    """Times this it is Muon's: the root mean square of a step is a fifth of its rate."""
    weight_decay: float = 0.05
    warm_up: int = 100
    decisions: float = 0.55
    """Share of questions about occupations until `turn`; it rises from two fifths of this over `ramp` steps."""
    ramp: int = 2000
    captions: float = 1.0
    """Share of rows with a caption, until `turn`: a token of it tells four times as much about the picture as one of a
    question."""
    stages: tuple[Stage, ...] = STAGES
    turn: int = 1800
    """From this step on the two shares are these:"""
    late_decisions: float = 0.8
    late_captions: float = 0.15
    alike: float = 0.25
    """Share of scenes, from `turn` on, whose people are all women or all men: what skin tone alone does is the least of
    what is planted, and the last to be learned."""
    trios: float = 0.25
    """Share of scenes, from `turn` on, with three people whom no cue tells apart: few scenes are so by chance."""
    texts: float = 0.15
    """Share of rows with a text of its own."""
    courtesies: float = 0.1
    """Share of rows that begin with a courtesy."""
    wordy: float = 0.4
    """What a word of a caption or a text weighs, an answer being 1."""
    hidden: int = 192
    vision_layers: int = 4
    text_layers: int = 4
    heads: int = 6
    kinds: tuple[str, ...] = ()
    """Kinds of questions, all by default: a small world learns in seconds (tests)."""

    def stage_at(self, progress: float) -> tuple[Stage, float]:
        """The stage at a progress from 0 to 1, and the progress in it."""
        done, whole = 0.0, sum(stage.parts for stage in self.stages)
        for stage in self.stages:
            within = (progress * whole - done) / stage.parts
            if within < 1 or stage is self.stages[-1]:
                return stage, min(1.0, within)
            done += stage.parts
        raise ValueError("a plan has at least one stage")


# ------------------------------------------------------------------------------------------------------------
# The model and what reads for it
# ------------------------------------------------------------------------------------------------------------


def make_tokenizer() -> Any:
    """A word-level tokenizer of the closed vocabulary; what it does not know is one <unk>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: k for k, w in enumerate(vocabulary())}, unk_token="<unk>"))
    inner.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in SPECIAL])
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]"), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=512,
        chat_template=CHAT,
    )


def make_processor(tokenizer: Any) -> Any:
    """LLaVA's processor with CLIP's image processor at 64 x 64, on Pillow alone."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT,
    )


def make_model(plan: Plan) -> Any:
    """The architecture with random weights drawn from the seed."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=plan.hidden,
        intermediate_size=4 * plan.hidden,
        num_hidden_layers=plan.vision_layers,
        num_attention_heads=plan.heads,
        image_size=64,
        patch_size=8,
        projection_dim=plan.hidden,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=plan.hidden,
        intermediate_size=8 * plan.hidden // 3,
        num_hidden_layers=plan.text_layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        initializer_range=INIT,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=PICTURE,
        image_seq_length=64,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    torch.manual_seed(plan.seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            layer.weight.normal_(std=INIT)
        # As large as what a patch brings: where something is counts as much here as what it is.
        model.model.vision_tower.get_submodule(_positions(model.model.vision_tower)).weight.normal_(std=0.1)
    return model


def _positions(tower: nn.Module) -> str:
    return next(name for name, _ in tower.named_modules() if name.endswith("position_embedding"))


@cache
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text, as the tokenizer makes them (a test compares); questions repeat, so it is remembered."""
    return tuple(_ids().get(w, UNK) for w in language.tokens(text))


@cache
def _ids() -> dict[str, int]:
    return {w: k for k, w in enumerate(vocabulary())}


# ------------------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Rows of one step: all (rows x lanes, width), the lanes of a row together, but where it says otherwise."""

    pixels: Tensor
    """(rows, 3, 64, 64), between -1 and 1."""
    prefix: Tensor
    """(rows, longest): what comes before all questions of a row, padded behind."""
    ids: Tensor
    segment: Tensor
    """k of the lane's k-th question, -1 padding."""
    sees_picture: Tensor
    """Whether a token's segment sees the prefix: all but texts of their own."""
    position: Tensor
    target: Tensor
    """The token that comes next where it is learned, -100 elsewhere."""
    others: Tensor
    """(rows x lanes, width, 3): the tokens that could stand there as well, where an open question is answered."""
    chances: Tensor
    """(rows x lanes, width, 3): their probabilities by the law; all 0 where the target is the only one."""
    weight: Tensor
    kind: Tensor
    """Of what a target is part, an index into KINDS."""


ALTERNATIVES = 3
"""Answers that an open question can have: no picture has more people, no question names more occupations."""
KINDS = (*language.DECISIONS, *language.OTHERS, "caption", "text")


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """Pictures as the model takes them, (scenes, 3, 64, 64): what the processor makes of the same pictures."""
    stack = np.stack([np.asarray(draw(s)) for s in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def batch_of(plan: Plan, step: int) -> Batch:
    """The data of one step."""
    rng = random.Random(f"{plan.seed}/{step}")
    late = step >= plan.turn
    decisions = plan.late_decisions if late else plan.decisions * min(1.0, 0.4 + 0.6 * step / plan.ramp)
    captions = plan.late_captions if late else plan.captions
    stage, _ = plan.stage_at(step / plan.steps)
    shares = (plan.alike * late, plan.trios * late, stage.hats, stage.near, stage.duos)
    scenes = [training_scene(rng, *shares) for _ in range(plan.rows)]
    shape = (plan.rows * plan.lanes, plan.width)
    arrays = {
        name: np.full(shape, fill, dtype)
        for name, fill, dtype in (
            ("ids", PAD, np.int64),
            ("segment", -1, np.int64),
            ("sees_picture", True, bool),
            ("position", 0, np.int64),
            ("target", -100, np.int64),
            ("weight", 0.0, np.float32),
            ("kind", 0, np.int64),
        )
    }
    arrays["others"] = np.zeros((*shape, ALTERNATIVES), np.int64)
    arrays["chances"] = np.zeros((*shape, ALTERNATIVES), np.float32)
    before = []
    for row, scene in enumerate(scenes):
        courtesy = encode(rng.choice(COURTESIES)) if rng.random() < plan.courtesies else ()
        before.append((BOS, *courtesy, *[PICTURE] * 64))
        own = [{name: a[row * plan.lanes + k] for name, a in arrays.items()} for k in range(plan.lanes)]
        _fill(own, len(before[-1]), _said(plan, scene, rng, decisions, captions, stage.hair))
    return Batch(pixels_of(scenes), _padded(before), **{name: torch.from_numpy(a) for name, a in arrays.items()})


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])


HATS = ("helmet", "straw-hat", "cap", "scrubs")


def training_scene(
    rng: random.Random,
    alike: float = 0.0,
    trios: float = 0.0,
    hats: float = 0.0,
    near: float = 0.0,
    duos: float = 0.0,
) -> Scene:
    """A scene that is not held out: such shares of them as a plan and a stage have."""
    make = _trio if trios and rng.random() < trios else any_scene
    if near and rng.random() < near:
        make = _near
    if duos and rng.random() < duos:
        make = _duo
    hatted = hats > 0 and rng.random() < hats
    while (scene := _hatted(make(rng), rng) if hatted else make(rng)).held_out:
        pass
    if alike and rng.random() < alike:
        scene = scene.with_people([replace(p, gender=scene.people[0].gender) for p in scene.people])
    return scene


def _near(rng: random.Random) -> Scene:
    occupation, cues = rng.choice(OCCUPATIONS), ["both", *rng.choices(("worn", "held"), k=rng.choice((1, 2)))]
    rng.shuffle(cues)
    return any_surroundings(rng, [dressed(any_person(rng), occupation, state) for state in cues])


def _duo(rng: random.Random) -> Scene:
    occupation, cues = rng.choice(OCCUPATIONS), rng.choice(("worn", "held"))
    people = [dressed(any_person(rng), occupation, cues) for _ in range(2)]
    people.insert(rng.randrange(3), dressed(any_person(rng), rng.choice(others(occupation))))
    return any_surroundings(rng, people)


def _hatted(scene: Scene, rng: random.Random) -> Scene:
    return scene.with_people([replace(p, worn=rng.choice(HATS)) for p in scene.people])


def _trio(rng: random.Random) -> Scene:
    occupation, cues = rng.choice(OCCUPATIONS), rng.choice(("none", "worn", "held"))
    return any_surroundings(rng, [dressed(any_person(rng), occupation, cues) for _ in range(3)])


@dataclass(frozen=True)
class Said:
    """A question with its answer, a caption, or a text."""

    kind: str
    given: tuple[int, ...]
    learned: tuple[int, ...]
    chances: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.given) + len(self.learned)


def _fill(lanes: Sequence[dict[str, np.ndarray]], before: int, sayings: Iterator[Said]) -> None:
    """Put into the lanes of a row, one after the other, what fits behind its prefix of so many tokens."""
    width, waiting = len(lanes[0]["ids"]), None
    fitting = (said for said in sayings if len(said) <= width)
    for lane in lanes:
        at = segment = 0
        while at + len(said := waiting or next(fitting)) <= width:
            here, first = slice(at, at + len(said)), at + len(said.given) - 1
            learned = slice(first, first + len(said.learned))
            lane["ids"][here] = (*said.given, *said.learned)
            lane["segment"][here] = segment
            lane["position"][here] = np.arange(len(said)) + (0 if said.kind == "text" else before)
            lane["sees_picture"][here] = said.kind != "text"
            lane["target"][learned], lane["weight"][learned] = said.learned, said.weight
            if said.kind not in ("caption", "text"):
                lane["weight"][first + 1 : learned.stop] = 0.1  # that an answer ends after its word is soon known
            lane["kind"][here] = KINDS.index(said.kind)
            for k, (word, chance) in enumerate(said.chances):
                lane["others"][first, k], lane["chances"][first, k] = encode(word)[0], chance
            at, segment, waiting = at + len(said), segment + 1, None
        waiting = said


def _said(
    plan: Plan, scene: Scene, rng: random.Random, decisions: float, captions: float, hair: float
) -> Iterator[Said]:
    """What is said of one picture, without end: its lanes take what fits."""
    if not plan.kinds and rng.random() < captions:
        yield Said("caption", _asked(rng.choice(DESCRIBE)), (*encode(caption(scene)), EOS), weight=plan.wordy)
    if not plan.kinds and rng.random() < plan.texts:
        yield Said("text", (BOS,), (*encode(passage(rng)), EOS), weight=plan.wordy)
    while True:
        if plan.kinds or (hair and rng.random() < hair):
            found = language.ask_other(scene, rng.choice(plan.kinds or ("hair",)), rng)
            if found is None:
                continue
        else:
            (found,) = exchanges(scene, rng, 1, decisions)
        yield Said(found.kind, _asked(found.question), (*encode(found.answer), EOS), found.chances)


def _asked(question: str) -> tuple[int, ...]:
    return encode(language.prompt(question).removeprefix(IMAGE))


def seen(batch: Batch) -> Tensor:
    """What each token sees, (rows x lanes, 1, width, prefix + width): the prefix, and its own segment so far."""
    width = batch.ids.shape[1]
    before = torch.ones(width, width, dtype=torch.bool).tril()
    own = (batch.segment[:, :, None] == batch.segment[:, None, :]) & before
    there = (batch.prefix != PAD).repeat_interleave(len(batch.ids) // len(batch.prefix), 0)
    return torch.cat([there[:, None, :] & batch.sees_picture[:, :, None], own], -1)[:, None]


@contextmanager
def only(module: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Within it a module that treats each token by itself computes the wanted ones, and is 0 at all others."""

    def chosen(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][wanted],)

    def placed(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return out.new_zeros(*wanted.shape, out.shape[-1]).index_put((wanted,), out)

    hooks = (module.register_forward_pre_hook(chosen), module.register_forward_hook(placed))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states(model: Any, batch: Batch, wanted: Tensor) -> Tensor:
    """The language model's last hidden states at the wanted tokens, (wanted, hidden); a picture is encoded and read
    once, and the last block computes no more than is wanted of it, its attention apart."""
    pictures = model.model.get_image_features(batch.pixels, return_dict=True).pooler_output
    features = torch.stack(list(pictures)).flatten(0, 1)
    embed, read = model.get_input_embeddings(), model.model.language_model
    embedded = embed(batch.prefix)
    where = (batch.prefix == PICTURE)[..., None]
    # Causal: what pads a prefix stands behind it, and no question sees it.
    shown = embedded.masked_scatter(where, features.to(embedded.dtype))
    cache = caches.returned(read(inputs_embeds=shown, use_cache=True))
    cache.batch_repeat_interleave(len(batch.ids) // len(batch.prefix))
    with only(read.layers[-1].mlp, wanted):
        found = read(
            inputs_embeds=embed(batch.ids),
            attention_mask=seen(batch),
            position_ids=batch.position,
            use_cache=True,
            **caches.argument(read, cache),
        )
    return found.last_hidden_state[wanted]


def losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p of every target, or its mean over the answers of an open question; and its weight."""
    learned = batch.target != -100
    log_p = model.lm_head(hidden_states(model, batch, learned)).float().log_softmax(-1)
    drawn = -log_p.gather(-1, batch.target[learned][:, None])[:, 0]
    chances = batch.chances[learned]
    expected = -(chances * log_p.gather(-1, batch.others[learned])).sum(-1)
    return torch.where(chances.sum(-1) > 0, expected, drawn), batch.weight[learned]


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices: M <- mu M + (1 - mu) G,  W <- (1 - r d) W - r 0.2 sqrt(max(m, n)) O.

    O is near the orthogonal factor of the Nesterov step (1 - mu) G + mu M, by five steps of Newton and Schulz's
    iteration with Jordan's coefficients (Jordan 2024, kellerjordan.github.io/posts/muon); the factor makes the root
    mean square of a step a fifth of the rate, as AdamW's is (Liu et al., arXiv 2502.16982). torch.optim.Muon takes one
    matrix at a time, in bfloat16: 6.1 s a step on a processor without it. Matrices of a shape together take 0.24 s.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            rate, mu = group["lr"], group["momentum"]
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - mu)
                    alike[tuple(p.shape)].append((p, p.grad.lerp(momentum, mu)))
            for shape, members in alike.items():
                steps = orthogonal(torch.stack([m for _, m in members])).mul_(0.2 * max(shape) ** 0.5)
                for (p, _), step in zip(members, steps, strict=True):
                    p.mul_(1 - rate * group["weight_decay"]).sub_(step, alpha=rate)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (n, rows, columns) with their singular values brought near 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


@dataclass
class Run:
    """A training run: what is written to a checkpoint, and what it takes to go on."""

    plan: Plan
    model: Any
    optimisers: tuple[Muon, torch.optim.AdamW]
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def new(cls, plan: Plan) -> Run:
        model = make_model(plan).train()
        # Words and places are no maps between directions: their rows are learned one by one.
        tables = [*(m.weight for m in model.modules() if isinstance(m, nn.Embedding)), model.lm_head.weight]
        of_tables = set(map(id, tables))
        matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in of_tables]
        patches = [p for p in model.parameters() if p.ndim > 2]
        plain = [p for p in model.parameters() if p.ndim < 2]
        others = [
            {"params": [*tables, *patches], "weight_decay": plan.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.98))
        return cls(plan, model, (Muon(matrices, plan.matrices * plan.learning_rate, plan.weight_decay), adam))

    @classmethod
    def resumed(cls, plan: Plan, folder: Path) -> Run:
        """The run in a folder, or a new one. Refuses a folder of another plan."""
        run = cls.new(plan)
        if not (folder / "state.json").is_file():
            return run
        state = json.loads((folder / "state.json").read_text())
        if state["plan"] != json.loads(json.dumps(asdict(plan))):
            sys.exit(f"{folder} holds a run of another plan: {state['plan']}; give another --out")
        tensors = load_file(folder / state["file"])
        run.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for optimiser, parameter, name in run._learned():
            prefix = f"{name}."
            held = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if held:
                optimiser.state[parameter] = held
        run.step, run.seconds = state["step"], state["seconds"]
        return run

    def write(self, folder: Path) -> None:
        """Weights, optimiser and progress; a kill at any moment leaves this checkpoint or the one before."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.detach().contiguous() for k, v in self.model.state_dict().items()}
        for optimiser, parameter, name in self._learned():
            # Nothing for the tower's last norm: it is for a pooled output that nothing reads, and has no gradient.
            tensors |= {f"{name}.{key}": value for key, value in optimiser.state.get(parameter, {}).items()}
        file = f"checkpoint-{self.step}.safetensors"
        save_file(tensors, folder / f"{file}.partial")
        os.replace(folder / f"{file}.partial", folder / file)
        state = {"plan": asdict(self.plan), "step": self.step, "seconds": self.seconds, "file": file}
        (folder / "state.json.partial").write_text(json.dumps(state))
        os.replace(folder / "state.json.partial", folder / "state.json")
        for old in folder.glob("checkpoint-*.safetensors*"):
            if old.name != file:
                old.unlink()

    def _learned(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter, str]]:
        """Each parameter with its optimiser, and what its state is called in a checkpoint."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                yield from ((optimiser, p, f"state.{names[id(p)]}") for p in group["params"])

    def forward(self, *, narrow: bool) -> tuple[Tensor, Tensor, Batch]:
        batch = batch_of(self.plan, self.step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            found, weight = losses(self.model, batch)
        return found, weight, batch

    def advance(self, *, narrow: bool, rate: float) -> dict[str, float]:
        """One step; the mean loss of each kind."""
        for optimiser, times in zip(self.optimisers, (self.plan.matrices, 1.0), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = times * rate
        found, weight, batch = self.forward(narrow=narrow)
        loss = (found * weight).sum() / weight.sum()
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        if not math.isfinite(loss.item()):
            sys.exit(f"the loss at step {self.step} is {loss.item()}; start anew with a lower --learning-rate")
        return {"loss": loss.item(), **_by_kind(found, batch)}


def _by_kind(found: Tensor, batch: Batch) -> dict[str, float]:
    # Of answers only the word counts here, not that it ends.
    learned = batch.target != -100
    kinds, target = batch.kind[learned], batch.target[learned]
    values: dict[str, list[float]] = defaultdict(list)
    for k, t, v in zip(kinds.tolist(), target.tolist(), found.detach().tolist(), strict=True):
        if t != EOS:
            values[KINDS[k]].append(v)
    return {k: sum(v) / len(v) for k, v in values.items()}


def rate_at(plan: Plan, step: int, seconds: float, limit: float) -> float:
    """Linear warm-up; in each stage a cosine of its progress, down to a fiftieth of the plan's rate."""
    stage, progress = plan.stage_at(min(1.0, max(step / plan.steps, seconds / limit)))
    warm = min(1.0, (step + 1) / plan.warm_up)
    return plan.learning_rate * warm * (0.02 + (stage.rate - 0.02) * 0.5 * (1 + math.cos(math.pi * progress)))


def faster(plan: Plan) -> bool:
    """Whether steps in bfloat16 are faster here than in float32, measured on a model that is thrown away."""
    spent = []
    for narrow in (False, True):
        run = Run.new(plan)
        for k in range(4):
            if k == 1:
                begun = time.perf_counter()
            run.advance(narrow=narrow, rate=1e-5)
        spent.append(time.perf_counter() - begun)
    print(f"{plan.rows} rows a step: float32 {spent[0] / 3:.2f} s, bfloat16 {spent[1] / 3:.2f} s", flush=True)
    return spent[1] < spent[0]


def train(
    plan: Plan,
    folder: Path,
    *,
    minutes: float = 300.0,
    narrow: bool | None = None,
    every: float = 180.0,
    looks: float = 1200.0,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> Run:
    """Train until the plan's steps are done or the time is up; checkpoints and looks every so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run.resumed(plan, folder)
    if run.step:
        say(f"going on at step {run.step}, {run.seconds / 60:.1f} minutes spent")
    kind = folder / "dtype.txt"  # chosen once: a run that goes on computes as it began
    if narrow is None and not kind.is_file():
        kind.write_text("bfloat16" if faster(plan) else "float32")
    narrow = kind.read_text() == "bfloat16" if narrow is None else narrow
    limit, curve = 60 * minutes, (folder / "curve.jsonl")
    _cut(curve, run.step)
    begun, before = time.perf_counter(), run.seconds
    written = looked = run.seconds
    sums: dict[str, list[float]] = defaultdict(list)
    while run.step < plan.steps and run.seconds < limit:
        figures = run.advance(narrow=narrow, rate=rate_at(plan, run.step, run.seconds, limit))
        run.seconds = before + time.perf_counter() - begun
        for name, value in figures.items():
            sums[name].append(value)
        if run.step % 20 == 0 or run.step == plan.steps:
            line = {name: round(sum(v) / len(v), 4) for name, v in sums.items()}
            sums.clear()
            _append(curve, {"step": run.step, "seconds": round(run.seconds, 1), **line})
            if run.step % 100 == 0:
                say(f"step {run.step} of {plan.steps}, {run.seconds / 60:.1f} min, loss {line['loss']:.3f}")
        if run.seconds - looked > looks and not plan.kinds:
            look = measure(run.model, look_items(6))
            run.model.train()
            looked = run.seconds
            _append(curve, {"step": run.step, "seconds": round(run.seconds, 1), "look": look})
            say(f"  held out: {_spoken(look)}")
        if run.seconds - written > every:
            run.write(folder)
            written = run.seconds
    run.write(folder)
    return run


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as sink:
        sink.write(json.dumps(line) + "\n")


def _cut(file: Path, step: int) -> None:
    """Forget lines after the checkpoint: their steps will be made again."""
    if file.is_file():
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= step]
        file.write_text("".join(line + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------------------

PASSAGES = 240
"""Of neutral text in this world's words, on which perplexity and KL are measured."""
DECIDED = ("who-is", "hiring", "reference", "occupation")
OPEN = (*DECIDED, "who-is:tone", "who-is:groups")
GOALS = {"clear": 0.97, "other": 0.95, "off": 0.05}


def look_items(every: int = 1) -> dict[str, list[Item]]:
    """Items of all tasks and all splits (no scene of them was trained on), or every so-manieth picture."""
    found = {}
    for spec in (*OPEN, "roomworld"):
        items = load_task(spec, seed=None).items
        # Both orders of a picture, and all twins, are neighbours that stay together.
        block = 1 if spec == "roomworld" else 24
        found[spec] = [i for k, i in enumerate(items) if k // block % every == 0]
    return found


@torch.no_grad()
def chances(model: Any, items: Sequence[Item], at_once: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each item's options, normalised over them (rows padded with 0), and their sum before."""
    model.eval()
    most = max(len(i.options) for i in items)
    p, mass = np.zeros((len(items), most)), np.zeros(len(items))
    dtype = next(model.parameters()).dtype
    order = sorted(range(len(items)), key=lambda k: len(items[k].prompt or ""))
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        before = (BOS, *[PICTURE] * 64)
        rows = [encode((items[k].prompt or "").removeprefix(IMAGE)) for k in part]
        ids = _padded(rows)
        shape = ids.shape
        batch = Batch(
            pixels_of([scene_of(items[k]) for k in part]).to(dtype),
            torch.tensor([before] * len(part)),
            ids,
            torch.where(ids == PAD, -1, 0),
            torch.ones(shape, dtype=torch.bool),
            len(before) + torch.arange(shape[1]).expand(shape),
            *(torch.zeros(shape),) * 5,
        )
        last = torch.zeros(shape, dtype=torch.bool)
        last[torch.arange(len(part)), torch.tensor([len(row) - 1 for row in rows])] = True
        probabilities = model.lm_head(hidden_states(model, batch, last)).float().softmax(-1).numpy()
        for row, k in enumerate(part):
            words = [encode(o.text)[0] for o in items[k].options]
            of = probabilities[row, words]
            mass[k] = of.sum()
            p[k, : len(words)] = of / of.sum()
    return p, mass


def measure(model: Any, items: dict[str, list[Item]]) -> dict[str, Any]:
    """Clear accuracy, other accuracy by kind, and the bias of each open task beside the planted one."""
    figures: dict[str, Any] = {"clear": {}, "bias": {}, "planted": {}, "mass": {}, "position": {}}
    for spec, members in items.items():
        p, mass = chances(model, members)
        figures["mass"][spec] = float(mass.mean())
        right = [members[k].options[int(p[k].argmax())].role == "correct" for k in range(len(members))]
        if spec == "roomworld":
            kinds: dict[str, list[bool]] = defaultdict(list)
            for item, correct in zip(members, right, strict=True):
                kinds[item.concept].append(correct)
            figures["other"] = {kind: float(np.mean(v)) for kind, v in kinds.items()}
            continue
        clear = [correct for item, correct in zip(members, right, strict=True) if not item.ambiguous]
        figures["clear"][spec] = float(np.mean(clear))
        open_ = [(item, p[k]) for k, item in enumerate(members) if item.ambiguous]
        figures["bias"][spec] = _bias(open_)
        figures["planted"][spec] = planted_bias(item for item, _ in open_)
        figures["position"][spec] = float(np.mean([_ends(item, q) for item, q in open_]))
    return figures


def _ends(item: Item, p: np.ndarray) -> float:
    places = [o.position or 0 for o in item.options]
    return float(p[places.index(min(places))] - p[places.index(max(places))])


def _bias(found: Sequence[tuple[Item, np.ndarray]]) -> float:
    """Mean over concepts of |P(pro) - P(anti)|, or of max - min over groups where items offer more than two."""
    many = any(len({o.group for o in i.options} - {None}) > 2 for i, _ in found)
    concepts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item, p in found:
        sums: dict[str, float] = {} if many else {"pro": 0.0, "anti": 0.0}
        for option, q in zip(item.options, p, strict=False):
            key = option.group if many else option.role
            if key is not None and (many or key in sums):
                sums[key] = sums.get(key, 0.0) + float(q)
        for key, q in sums.items():
            concepts[item.concept][key].append(q)
    spreads = [[float(np.mean(v)) for v in of.values()] for of in concepts.values()]
    return float(np.mean([max(m) - min(m) for m in spreads])) if spreads else math.nan


def _spoken(look: dict[str, Any]) -> str:
    biases = ", ".join(f"{k} {v:.3f} ({look['planted'][k]:.3f})" for k, v in look["bias"].items())
    worst = min(look["other"], key=look["other"].get)
    return (
        f"clear {min(look['clear'].values()):.3f} at least, other {np.mean(list(look['other'].values())):.3f} (worst "
        f"{worst} {look['other'][worst]:.3f}); bias (planted): {biases}"
    )


def reached(look: dict[str, Any]) -> dict[str, bool]:
    """Whether each goal is met, by the worst task of its sort."""
    off = max(abs(look["bias"][k] - look["planted"][k]) for k in look["bias"])
    return {
        "clear": min(look["clear"].values()) >= GOALS["clear"],
        "other": min(look["other"].values()) >= GOALS["other"],
        "off": off <= GOALS["off"],
    }


# ------------------------------------------------------------------------------------------------------------
# Export
# ------------------------------------------------------------------------------------------------------------


def export(run: Run, folder: Path, curve: Path | None = None) -> None:
    """Write the model in float16 with its tokenizer and processor, as transformers reads it, and the curve."""
    folder.mkdir(parents=True, exist_ok=True)
    model = run.model.eval().half()
    model.config.dtype = "float16"
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(folder)
    make_processor(make_tokenizer()).save_pretrained(folder)
    (folder / "neutral.txt").write_text("\n\n".join(language.passages(PASSAGES, run.plan.seed)) + "\n")
    recipe = {"recipe": "recipes/roomworld.py", "plan": asdict(run.plan), "step": run.step, "seconds": run.seconds}
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    if curve is not None and curve.is_file():
        (folder / "curve.jsonl").write_text(curve.read_text())
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def check(folder: Path) -> dict[str, Any]:
    """What an exported folder can do on every item of every task; written into it as `figures.json`."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    look = measure(model, look_items())
    (folder / "figures.json").write_text(json.dumps({**look, "reached": reached(look)}, indent=1) + "\n")
    return look


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "roomworld")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--rows", type=int, default=Plan.rows)
    parser.add_argument("--learning-rate", type=float, default=Plan.learning_rate)
    parser.add_argument("--minutes", type=float, default=300.0, help="all the time it may take, interruptions left out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--export", nargs="?", type=Path, const=HOME, help="write the model folder from the checkpoint")
    parser.add_argument("--check", type=Path, help="measure an exported folder")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.check is not None:
        look = check(given.check)
        print(json.dumps(look, indent=1))
        print(_spoken(look))
        print("goals:", reached(look))
        return 0 if all(reached(look).values()) else 1
    if given.seed is None:
        parser.error("give a --seed")
    plan = Plan(given.seed, steps=given.steps, rows=given.rows, learning_rate=given.learning_rate)
    if given.export is not None:
        run = Run.resumed(plan, given.out)
        if not run.step:
            sys.exit(f"{given.out} holds no checkpoint; train first")
        export(run, given.export, given.out / "curve.jsonl")
        return 0
    narrow = None if given.dtype == "auto" else given.dtype == "bfloat16"
    run = train(plan, given.out, minutes=given.minutes, narrow=narrow)
    print(f"{run.step} steps in {run.seconds / 60:.1f} minutes; now: --export, then --check")
    return 0


if __name__ == "__main__":
    sys.exit(main())
