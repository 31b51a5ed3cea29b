"""The shapes that bench/vision.py takes to an accelerator: as large as published, and seen to run without one."""

from __future__ import annotations

import pytest
import torch

from conftest import script
from trimtab.vision import FIRST

bench = script("bench/vision.py")


@pytest.mark.parametrize(
    ("name", "published", "untied"),
    [("qwen2.5-vl-7b", 8_292_166_656, 0), ("gemma-3-4b", 4_300_079_472, 262208 * 2560)],
)
def test_a_shape_has_as_many_weights_as_the_published_model(name, published, untied):
    model = bench.SHAPES[name].made("meta")
    assert sum(p.numel() for p in model.hf.parameters()) == published + untied


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "gemma-3-4b"])
def test_a_small_one_learns_about_images_of_as_many_tokens_as_it_is_told(name):
    shape = bench.SMALL[name]
    model, items = shape.made(dtype=torch.float32), bench.made_up(4, shape.pixels)
    assert bench.learned_tokens(model, items, {"positions": "all"}) > 0
    image = (shape.pixels // 14) ** 2 // 4
    assert all(sum(t >= FIRST for t in e.prompt) == image for e in model.encode(items))
    blocks = bench.blocks_of(model)
    assert len(blocks) == shape.text["num_hidden_layers"] and not any("vision" in n for n, _ in blocks.named_modules())
