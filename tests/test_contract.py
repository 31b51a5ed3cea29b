"""The dial's contract, for every family and every kernel.

Compiling takes seconds a class. By default one class of each kind of forward pass is compiled (pre-norm; sandwich norms
with sliding layers; positional forward hooks and Conv1D; flattened rows) and each kernel; TRIMTAB_COMPILE=all does all.
"""

from __future__ import annotations

import os

from trimtab.testing import TINY_FAMILIES, TINY_VISION_FAMILIES, DialContract, random_steering, tiny, tiny_vision

CASES = [(family, "diagonal") for family in TINY_FAMILIES]
CASES += [(family, kind) for family in ("llama", "opt") for kind in ("shift", "lowrank")]
COMPILED = {("llama", "lowrank"), ("gemma3", "diagonal"), ("gpt2", "diagonal"), ("opt", "shift")}
ADAPTED = {
    "llama": "module:model.layers.*.self_attn.*_proj",
    "gemma3": "module:model.layers.*.mlp.down_proj",
    "gpt2": "module:transformer.h.*.attn.c_attn",
    "opt": "module:model.decoder.layers.*.fc?",
}
"""Linear modules for adapters: Linear and Conv1D, and OPT's flattened rows."""
EVERYWHERE = ",".join(["*norm*", "layers.*.attn.proj_in", "layers.*.out"])


def contract(family: str, kind: str, pattern: str) -> type[DialContract]:
    chosen = ((family, kind) in COMPILED and pattern == "*norm*") or (family, kind) == ("llama", "adapter")
    compiled = os.environ.get("TRIMTAB_COMPILE") == "all" or chosen

    class Case(DialContract):
        no_compile = None if compiled else "compiled for another class of this file; TRIMTAB_COMPILE=all does all"

        def make_model(self):
            return tiny(family, seed=3)

        def make_steering(self, model):
            return random_steering(model, pattern, kind, scale=0.2, seed=1)

    return Case


for _family, _kind in CASES:
    _name = f"Test_{_family.replace('-', '_')}_{_kind}"
    globals()[_name] = type(_name, (contract(_family, _kind, "*norm*"),), {})
for _family, _pattern in ADAPTED.items():
    _name = f"Test_{_family}_adapter"
    globals()[_name] = type(_name, (contract(_family, "adapter", _pattern),), {})
Test_every_site_at_once = type("Test_every_site_at_once", (contract("gemma3", "diagonal", EVERYWHERE),), {})


def seeing(family: str) -> type[DialContract]:
    """Rows of images of several sizes among rows of words."""

    class Case(DialContract):
        no_compile = "where images stand is asked anew in every pass, which a compiled graph cannot do without a break"

        def make_model(self):
            return tiny_vision(family, seed=3)

        def make_steering(self, model):
            return random_steering(model, "*norm*", "diagonal", scale=0.2, seed=1)

    return Case


for _family in TINY_VISION_FAMILIES:
    globals()[f"Test_sees_{_family}"] = type(f"Test_sees_{_family}", (seeing(_family),), {})
