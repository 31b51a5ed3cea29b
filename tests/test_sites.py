"""sites: the same names in every family, at the points of the forward pass that they claim."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from trimtab import sites
from trimtab.errors import SiteError, UnknownFamily
from trimtab.interventions import Diagonal
from trimtab.steering import Steering, attach
from trimtab.testing import (
    TINY_FAMILIES,
    TINY_VISION_FAMILIES,
    by_hand,
    logits,
    random_ids,
    random_steering,
    tiny,
    tiny_vision,
)

SANDWICH = ("attn_in", "attn_out", "mlp_in", "mlp_out")
NORM_NAMES = {
    "gemma2": SANDWICH,
    "gemma3": SANDWICH,
    "olmo2": ("attn_out", "mlp_out"),
    "opt-350m": ("attn_out", "mlp_out"),
    "phi": ("attn_in",),
}


def layers_of(model):
    return model.hf.config.get_text_config().num_hidden_layers


def fired_order(root, table):
    """Site names in the order in which plain hooks on their modules fire, with the activations seen."""
    order, seen, handles = [], {}, []

    def note(name, tensor):
        order.append(name)
        seen[name] = tensor

    for name, site in table.items():
        if site.side == "input":
            handles.append(site.module.register_forward_pre_hook(lambda m, a, n=name: note(n, a[0])))
        else:
            handles.append(
                site.module.register_forward_hook(lambda m, a, o, n=name: note(n, o[0] if isinstance(o, tuple) else o))
            )
    return order, seen, handles


def test_every_family_of_the_table_has_a_tiny_model():
    kinds = {tiny(family).family for family in TINY_FAMILIES}
    kinds |= {tiny_vision(family).family for family in TINY_VISION_FAMILIES}
    assert kinds == set(sites.FAMILIES)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_each_family_has_the_names_it_should(models, family):
    """Two norms a layer (one in Phi, four in Gemma 2 and 3), a projection, a block output, and one final norm."""
    model = models[family]
    norms = NORM_NAMES.get(family, ("attn_in", "mlp_in"))
    found = set(sites.names(model.hf))
    expected = {"norm.final"} if family != "opt-350m" else set()
    for i in range(layers_of(model)):
        expected |= {f"layers.{i}.norm.{n}" for n in norms} | {f"layers.{i}.attn.proj_in", f"layers.{i}.out"}
    assert found == expected
    assert len(sites.find(model.hf, sites.NORMS)) == len(norms) * layers_of(model) + (family != "opt-350m")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_names_come_in_the_order_in_which_they_are_computed(models, family):
    """Hooks on the sites fire in the order of names(), each once, with an activation of the stated width."""
    model = models[family]
    table = sites.names(model.hf)
    order, seen, handles = fired_order(model.hf, table)
    try:
        logits(model, random_ids(model, 1, 4))
    finally:
        for handle in handles:
            handle.remove()
    # A post-norm block ends with a norm: the norm fires, then the block it is the output of.
    assert order == list(table)
    for name, site in table.items():
        assert seen[name].shape[-1] == site.width, name


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_final_norm_is_what_the_unembedding_reads_and_a_block_feeds_the_next(models, family):
    """norm.final is the backbone's output, and layers.i.out is what block i+1's first part works on."""
    model = models[family]
    table = sites.names(model.hf)
    blocks = getattr(sites.backbone(model.hf), sites.FAMILIES[model.family].layers)
    inputs = {}
    watch = [
        b.register_forward_pre_hook(
            lambda m, a, k, i=i: inputs.update({i: a[0] if a else k["hidden_states"]}), with_kwargs=True
        )
        for i, b in enumerate(blocks)
    ]
    _, seen, handles = fired_order(model.hf, table)
    try:
        with torch.no_grad():
            last = model.body(input_ids=random_ids(model, 1, 4), use_cache=False).last_hidden_state
    finally:
        for handle in (*watch, *handles):
            handle.remove()
    for i in range(1, len(blocks)):
        assert torch.equal(seen[f"layers.{i - 1}.out"], inputs[i])
    if "norm.final" in table:
        assert torch.equal(seen["norm.final"], last)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_norm_sites_are_norms_and_projections_are_linear(models, family):
    """The table names modules of the kind it says: a norm gives norm.*, a projection has a 2-D weight."""
    for name, site in sites.names(models[family].hf).items():
        if ".norm." in name or name == "norm.final":
            assert "norm" in type(site.module).__name__.lower()
        if name.endswith("proj_in"):
            assert site.module.weight.ndim == 2
            assert site.side == "input"


def test_patterns_ranges_and_commas_choose_sites_in_order_without_repeats():
    model = tiny("llama", num_hidden_layers=12)

    def chosen(pattern):
        return [site.name for site in sites.find(model.hf, pattern)]

    assert chosen("layers.4-9.out") == [f"layers.{i}.out" for i in range(4, 10)]
    assert chosen("layers.1.out") == ["layers.1.out"], "1 is not a prefix of 10 and 11"
    assert chosen("norm.final, layers.0.norm.*") == [
        "layers.0.norm.attn_in",
        "layers.0.norm.mlp_in",
        "norm.final",
    ]
    assert chosen("layers.2.out,layers.1-3.out") == ["layers.1.out", "layers.2.out", "layers.3.out"]
    assert chosen(["layers.3.out", "layers.0.out"]) == ["layers.0.out", "layers.3.out"]
    assert len(chosen("layers.*.norm.*")) == 24
    assert len(chosen("*")) == 12 * 4 + 1


def test_a_range_that_runs_backwards_is_refused_and_does_not_mean_everything(llama):
    with pytest.raises(SiteError, match="1-0 runs backwards"):
        sites.find(llama.hf, "layers.1-0.out")


def test_every_part_of_a_pattern_must_name_something(llama):
    for pattern in ("layers.0.out,layers.7.out", "layers.5-9.out", "", "norm"):
        with pytest.raises(SiteError, match="no site"):
            sites.find(llama.hf, pattern)


def test_a_misspelt_site_is_answered_with_the_nearest_names(llama):
    with pytest.raises(SiteError, match=r"nearest: .*layers\.0\.norm\.attn_in"):
        sites.find(llama.hf, "layers.0.norm.atn_in")
    with pytest.raises(SiteError, match=r"nearest: .*module:model\.layers\.0\.mlp"):
        sites.find(llama.hf, "module:model.layers.0.mpl")


def test_any_module_is_a_site_by_its_own_name(llama):
    (site,) = sites.find(llama.hf, "module:model.layers.1.mlp.down_proj")
    assert (site.name, site.side, site.width) == ("module:model.layers.1.mlp.down_proj", "output", 32)
    (site,) = sites.find(llama.hf, "module:model.layers.1.mlp.down_proj@input")
    assert (site.name, site.side, site.width) == ("module:model.layers.1.mlp.down_proj@input", "input", 48)
    assert len(sites.find(llama.hf, "module:model.layers.*.mlp")) == 2
    with pytest.raises(SiteError, match="'input' or 'output'"):
        sites.find(llama.hf, "module:model.norm@inside")


def test_gpt2s_transposed_linear_layers_have_their_widths_the_right_way_round(models):
    (site,) = sites.find(models["gpt2"].hf, "module:transformer.h.0.mlp.c_proj@input")
    assert site.width == 4 * 32
    (site,) = sites.find(models["gpt2"].hf, "module:transformer.h.0.mlp.c_proj")
    assert site.width == 32


def test_module_sites_steer_where_they_say(llama):
    """An output by module name is the named site; an input obeys the equation, given by keyword or not."""
    ids = random_ids(llama, 2, 5)
    named = random_steering(llama, "layers.0.norm.attn_in", seed=2)
    (group,) = named.interventions.values()
    same = Steering({"module:model.layers.0.input_layernorm": group}, named.card)
    with attach(llama.hf, named):
        expected = logits(llama, ids)
    with attach(llama.hf, same):
        assert torch.equal(logits(llama, ids), expected)
    by_input = random_steering(llama, "module:model.layers.1.mlp.down_proj@input", seed=2)
    with by_hand(llama, by_input, torch.ones(2, 1, 1)):
        expected = logits(llama, ids)
    with attach(llama.hf, by_input):
        torch.testing.assert_close(logits(llama, ids), expected, atol=2e-5, rtol=2e-5)
    # Llama calls its attention with keywords only; its input is the output of the norm before it.
    by_keyword = Steering({"module:model.layers.0.self_attn@input": group}, named.card)
    with attach(llama.hf, named):
        expected = logits(llama, ids)
    with attach(llama.hf, by_keyword):
        assert torch.equal(logits(llama, ids), expected)


def test_a_site_that_holds_no_activation_is_refused_by_name(llama):
    """A module that returns a record of tensors, or is given token ids, cannot be steered and says so."""
    for site in ("module:model", "module:model.embed_tokens@input"):
        width = sites.find(llama.hf, site)[0].width or 32
        dial = attach(llama.hf, Steering({site: (Diagonal(None, torch.ones(width)),)}))
        with pytest.raises(SiteError, match=site):
            logits(llama, random_ids(llama, 1, 3))
        dial.detach()


class Mystery(nn.Module):
    """A model of no known family."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3))

    def forward(self, x):
        for block in self.trunk:
            x = block(x)
        return x


def test_an_unknown_family_is_told_its_modules_and_how_to_name_a_site():
    with pytest.raises(UnknownFamily) as caught:
        sites.find(Mystery(), "norm.final")
    message = str(caught.value)
    assert "'Mystery'" in message
    assert "module:PATH" in message
    assert "llama" in message
    assert "trunk.*.*" in message
    assert "trunk.0.1" not in message


def test_an_unknown_family_can_be_steered_by_module_name():
    model, x = Mystery(), torch.randn(2, 5, 8)
    c = torch.arange(8.0)
    base = model(x)
    with attach(model, Steering({"module:trunk.2.1": (Diagonal(None, c),)}), [0.0, 1.0]):
        found = model(x)
    assert torch.equal(found[0], base[0])
    torch.testing.assert_close(found[1], base[1] + c)


class TowerConfig:
    model_type = "clip"
    hidden_size = 48


class Tower(nn.Module):
    """A vision tower: deeper than the language model, with the same names inside."""

    def __init__(self):
        super().__init__()
        self.config = TowerConfig()
        self.layers = nn.ModuleList(nn.ModuleDict({"input_layernorm": nn.LayerNorm(48)}) for _ in range(9))
        self.norm = nn.LayerNorm(48)


class PairConfig:
    model_type = "pair"

    def __init__(self, text):
        self.text_config = text

    def get_text_config(self):
        return self.text_config


class Pair(nn.Module):
    """A vision-language model whose tower comes first and is deeper."""

    def __init__(self, text):
        super().__init__()
        self.config = PairConfig(text.config)
        self.vision_tower = Tower()
        self.language_model = text

    def forward(self, **inputs):
        return self.language_model(**inputs)


def test_of_a_vision_language_model_the_language_part_is_picked(llama):
    """The tower has 9 layers and stands first; the sites are those of the 2-layer language model."""
    pair = Pair(llama.hf)
    assert sites.family(pair) == "llama"
    assert sites.backbone(pair) is llama.hf.model
    table = sites.names(pair)
    assert len(table) == 2 * 4 + 1
    assert all(site.width == 32 for site in table.values())
    ids, steering = random_ids(llama, 2, 4), random_steering(llama)
    with attach(llama.hf, steering):
        expected = logits(llama, ids)
    with torch.no_grad(), attach(pair, steering, [1.0, 1.0]):
        assert torch.equal(pair(input_ids=ids, use_cache=False).logits, expected)


def test_a_real_vision_language_config_names_its_language_family():
    """Transformers' own composite configs state the text part's model type."""
    composite = AutoConfig.for_model(
        "llava", text_config={"model_type": "mistral"}, vision_config={"model_type": "clip_vision_model"}
    )

    class Root(nn.Module):
        config = composite

    assert sites.family(Root()) == "mistral"
