"""Packing: however rows are laid out, each token's activations are what they are in a row of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import packing
from trimtab.testing import TINY_FAMILIES, tiny

CPU = torch.device("cpu")
ROWS = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=9).map(tuple), min_size=1, max_size=40)
WINDOW = {"mistral": {"sliding_window": 16}, "gemma2": {"sliding_window": 16}, "gemma3": {"sliding_window": 16}}


def run_on(model):
    return lambda layout, some: layout.run(model.body)


def everywhere(rows):
    return [(r, t) for r in range(len(rows)) for t in range(len(rows[r]))]


def some_rows(seed: int, count: int = 30):
    """Rows of which many begin alike, some are equal, and some begin another."""
    g = torch.Generator().manual_seed(seed)

    def drawn(low, high, n):
        return tuple(torch.randint(low, high, (n,), generator=g).tolist())

    rows = [drawn(3, 200, 5)]
    while len(rows) < count:
        (which,), (kept,), (more,) = drawn(0, len(rows), 1), drawn(0, 6, 1), drawn(0, 6, 1)
        rows.append(rows[which][:kept] + drawn(3, 200, more) or (7,))
    return rows


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_packed_row_has_the_activations_of_a_row_of_its_own(family):
    """Every family, both attention kernels that packing is open to, one pass and several."""
    model, rows = tiny(family, seed=5, **WINDOW.get(family, {})), some_rows(1)
    assert model.packs(max(map(len, rows)))
    with torch.no_grad():
        alone = torch.cat([model.body(input_ids=torch.tensor([r]), use_cache=False).last_hidden_state[0] for r in rows])
        for tokens_at_once in (8192, 20):
            found = packing.hidden_at(
                rows, everywhere(rows), run_on(model), pack=True, device=CPU, tokens_at_once=tokens_at_once
            )
            torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)
        with model.short_rows(64):
            found = packing.hidden_at(rows, everywhere(rows), run_on(model), pack=True, device=CPU, tokens_at_once=8192)
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


def test_beyond_a_sliding_window_rows_are_not_packed():
    """A mask of our own would replace the window; the model says so before."""
    assert not tiny("mistral", sliding_window=4).packs(5)
    assert tiny("mistral", sliding_window=4).packs(4)


@pytest.mark.parametrize("pack", [True, False])
def test_what_is_asked_for_comes_in_the_order_it_was_asked(pack):
    model, rows = tiny("llama", seed=5), some_rows(2)
    wanted = everywhere(rows)[::-3] + everywhere(rows)[:4] + everywhere(rows)[-1:] * 2
    with torch.no_grad():
        whole = packing.hidden_at(rows, everywhere(rows), run_on(model), pack=pack, device=CPU, tokens_at_once=8192)
        some = packing.hidden_at(rows, wanted, run_on(model), pack=pack, device=CPU, tokens_at_once=8192)
    place = {pair: n for n, pair in enumerate(everywhere(rows))}
    torch.testing.assert_close(some, whole[[place[pair] for pair in wanted]], atol=1e-5, rtol=1e-4)


def test_gradients_through_a_packed_batch_are_those_of_single_rows():
    model, rows = tiny("gpt2", seed=5), some_rows(3, 12)
    weight = model.body.ln_f.weight.requires_grad_()
    with model.short_rows(64):
        packing.hidden_at(rows, everywhere(rows), run_on(model), pack=True, device=CPU, tokens_at_once=8192).pow(
            3
        ).sum().backward()
    found, weight.grad = weight.grad, None
    for r in rows:
        model.body(input_ids=torch.tensor([r]), use_cache=False).last_hidden_state.pow(3).sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-3, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_a_layout_holds_each_row_once_and_shares_what_may_be_shared(rows):
    """Places spell the rows; a token sees what stands before it in its row and nothing else; no token is wasted."""
    layout = packing.packed(rows, CPU)
    ids, positions = layout.ids.flatten(), layout.positions.flatten()
    width = layout.ids.shape[1]
    assert width <= max(packing.WIDEST, max(map(len, rows)))
    for row, places in zip(rows, layout.places, strict=True):
        assert tuple(ids[list(places)].tolist()) == row
        assert positions[list(places)].tolist() == list(range(len(row)))
        for t, place in enumerate(places):
            seen = layout.sees[place // width, 0, place % width].nonzero().squeeze(1) + place // width * width
            assert sorted(seen.tolist()) == sorted(places[: t + 1])
    tries = len({row[:n] for row in rows for n in range(1, len(row) + 1)})
    used = len({p for places in layout.places for p in places})
    assert tries <= used <= sum(map(len, rows))
    if layout.ids.shape[0] == 1:
        assert used == tries


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_length_buckets_hold_each_row_once_and_cost_no_more_than_one_batch_or_one_each(lengths):
    buckets = packing.length_buckets(lengths)
    assert sorted(i for b in buckets for i in b) == list(range(len(lengths)))

    def cost(batches):
        return sum(packing.PASS + len(b) * max(lengths[i] for i in b) for b in batches)

    assert cost(buckets) <= min(cost([range(len(lengths))]), cost([[i] for i in range(len(lengths))]))
