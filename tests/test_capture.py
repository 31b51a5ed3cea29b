"""Capture: what lies below a block is computed once and replayed, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch

from trimtab import capture, sites
from trimtab.testing import TINY_FAMILIES, random_ids, tiny


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_replaying_the_lower_blocks_gives_the_whole_models_output_bit_for_bit(family):
    """The blocks above compute what they would have computed; afterwards the model is what it was."""
    model = tiny(family, seed=3)
    body = sites.backbone(model.hf)
    blocks = list(getattr(body, sites.FAMILIES[model.family].layers))[:1]
    ids = random_ids(model, 2, 7)
    with torch.no_grad():
        with capture.recorded(blocks[-1]) as seen:
            whole = model.body(input_ids=ids, use_cache=False).last_hidden_state
        with capture.resumed(blocks, seen[0]):
            replayed = model.body(input_ids=ids, use_cache=False).last_hidden_state
        with capture.resumed(blocks, seen[0].flip(-1)):
            other = model.body(input_ids=ids, use_cache=False).last_hidden_state
        after = model.body(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(replayed, whole)
    assert torch.equal(after, whole)
    assert not torch.allclose(other, whole, atol=1e-3), "what is replayed is not used"
