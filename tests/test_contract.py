"""The dial's contract, for every family and every kernel."""

from __future__ import annotations

import pytest

from trimtab.testing import TINY_FAMILIES, DialContract, random_steering, tiny

CASES = [(family, "diagonal") for family in TINY_FAMILIES]
CASES += [(family, kind) for family in ("llama", "opt") for kind in ("shift", "lowrank")]
EVERYWHERE = ",".join(["*norm*", "layers.*.attn.proj_in", "layers.*.out"])


def contract(family: str, kind: str, pattern: str) -> type[DialContract]:
    class Case(DialContract):
        def make_model(self):
            return tiny(family, seed=3)

        def make_steering(self, model):
            return random_steering(model, pattern, kind, scale=0.2, seed=1)

    return Case


for _family, _kind in CASES:
    _name = f"Test_{_family.replace('-', '_')}_{_kind}"
    globals()[_name] = type(_name, (contract(_family, _kind, "*norm*"),), {})
Test_every_site_at_once = type("Test_every_site_at_once", (contract("gemma3", "diagonal", EVERYWHERE),), {})
