"""metrics: figures against an independent restatement and by hand, and what the bootstrap promises."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import metrics_numpy as oracle
from trimtab import metrics, published, statistic
from trimtab.errors import UsageError
from trimtab.types import Record, TextRecord

PAIR = ("pro", "anti")
BIAS_AND_GAP = ("per_concept_bias", "stereotype_gap")


def record(
    p,
    roles=PAIR,
    *,
    id="0",
    concept="nurse",
    template="t0",
    ambiguous=True,
    groups=None,
    positions=None,
    mass=0.5,
    strength=0.0,
    arm="steering",
    task="toy",
):
    blank = (None,) * len(p)
    return Record(
        task=task,
        arm=arm,
        strength=strength,
        id=id,
        split="test",
        concept=concept,
        template=template,
        ambiguous=ambiguous,
        prompt="",
        options=tuple(str(i) for i in range(len(p))),
        roles=tuple(roles),
        groups=tuple(groups or blank),
        positions=tuple(positions or blank),
        p=tuple(p),
        mass=mass,
        digest="",
    )


def text(id, tokens, nll, kl=0.0, strength=0.0):
    return TextRecord(arm="steering", strength=strength, id=id, tokens=tokens, nll=nll, kl=kl, words=1 + tokens // 2)


def table(x, roles=PAIR, **extra):
    """Records from P(pro) of shape (concepts, templates)."""
    return [
        record(
            (float(q), 1 - float(q)),
            roles,
            id=f"{c:03}-{t:03}",
            concept=f"c{c:03}",
            template=f"t{t:03}",
            **extra,
        )
        for c, row in enumerate(x)
        for t, q in enumerate(row)
    ]


def crossed(seed, concepts, templates, mean=0.6, spread=(0.1, 0.1, 0.05)):
    """P(pro) = mean + concept + template + noise."""
    rng = np.random.default_rng(seed)
    a, b, c = spread
    x = mean + rng.normal(0, a, (concepts, 1)) + rng.normal(0, b, (1, templates))
    return np.clip(x + rng.normal(0, c, (concepts, templates)), 0, 1)


@st.composite
def some_records(draw):
    """Any mixture: roles, groups, positions, ties, items without pro or anti, concepts, templates."""
    kinds = draw(st.lists(st.sampled_from(["pair", "three", "groups", "twos", "plain"]), min_size=1, max_size=4))
    found = []
    for i in range(draw(st.integers(1, 14))):
        concept = draw(st.integers(0, len(kinds) - 1))
        kind, ambiguous = kinds[concept], draw(st.booleans())
        width = {"pair": 2, "three": 3, "groups": 4, "twos": 2, "plain": 2}[kind]
        weights = draw(st.lists(st.integers(0, 4), min_size=width, max_size=width).filter(any))
        roles = ("correct",) + ("wrong",) * (width - 1)
        if ambiguous:
            roles = tuple(draw(st.sampled_from(["pro", "anti", "neither"])) for _ in range(width))
        names = {"groups": ["a", "b", "c", None], "twos": ["a", "b", "c"]}.get(kind)
        groups = names and draw(st.permutations(names))[:width]
        positions = draw(st.one_of(st.none(), st.permutations(range(width)), st.just([0] * width)))
        found.append(
            record(
                [w / sum(weights) for w in weights],
                roles,
                id=str(i),
                concept=f"c{concept}",
                template=f"t{draw(st.integers(0, 3))}",
                ambiguous=ambiguous,
                groups=groups,
                positions=positions,
                mass=draw(st.floats(0, 1)),
            )
        )
    return found


# --- against the restatement --------------------------------------------------------------------------------


def test_the_oracle_shares_no_code():
    tree = ast.parse(inspect.getsource(oracle))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"__future__", "math"}


@settings(max_examples=80, deadline=None)
@given(some_records())
def test_values_equal_the_restatement(records):
    for name in metrics.ITEM_NAMES:
        assert metrics.value(name, records) == pytest.approx(oracle.figure(name, records), abs=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(some_records(), st.data())
def test_weighted_figures_equal_the_restatement(records, data):
    """The bootstrap's own evaluation, under any multiplicities, zeros included."""
    for name in metrics.ITEM_NAMES:
        found = metrics._statistic(name, records)
        if found is None:
            continue
        # The statistic indexes the clusters of the items it uses, in order of name; so does this.
        used = [r for r in records if not math.isnan(oracle.figure(name, [r]))]
        if name.startswith(("per_concept_bias", "tv_from_uniform")):
            many = {r.concept for r in records if r.ambiguous and len(oracle.distinct_groups(r)) > 2}
            roles = name != "tv_from_uniform"
            used = [
                r
                for r in records
                if r.ambiguous
                and (oracle.distinct_groups(r) if r.concept in many else roles and {"pro", "anti"} & set(r.roles))
            ]
        templates, concepts = sorted({r.template for r in used}), sorted({r.concept for r in used})
        assert (found.templates, found.concepts, found.n) == (
            len(templates),
            len(concepts),
            len(used),
        )
        wt = {t: data.draw(st.integers(0, 3)) for t in templates}
        wc = {c: data.draw(st.integers(0, 3)) for c in concepts}
        got = found(
            np.array([[wt[t]] for t in templates], dtype=float),
            np.array([[wc[c]] for c in concepts], dtype=float),
        )[0]
        within = dict.fromkeys(wc, 1) if isinstance(found, statistic.ByConcept) else wc
        item_weight = {r.id: wt[r.template] * within[r.concept] for r in used}
        want = oracle.figure(name, used, lambda r, w=item_weight: w[r.id], wc.get)
        assert got == pytest.approx(want, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 200), st.floats(0, 9)), min_size=1, max_size=6))
def test_texts_equal_the_restatement(rows):
    texts = [text(str(i), *row) for i, row in enumerate(rows)]
    for name in metrics.TEXT_NAMES:
        assert metrics.value(name, texts) == pytest.approx(oracle.figure(name, texts))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_the_restatement(p):
    assert metrics.holm(p) == pytest.approx(oracle.holm(p))


# --- by hand ------------------------------------------------------------------------------------------------


def test_each_concept_weighs_the_same_and_opposite_biases_cancel_in_the_gap_only():
    records = [
        record((0.9, 0.1), id="0", concept="nurse"),
        record((0.7, 0.3), id="1", concept="nurse"),
        record((0.9, 0.1), id="2", concept="nurse"),
        record((0.2, 0.8), id="3", concept="pilot"),
    ]
    assert metrics.value("per_concept_bias", records) == pytest.approx(((0.8 + 0.4 + 0.8) / 3 + 0.6) / 2)
    assert metrics.value("stereotype_gap", records) == pytest.approx((0.8 + 0.4 + 0.8 - 0.6) / 4)
    found = metrics.concept_table(records)
    assert list(found) == ["nurse", "pilot"]
    assert found["nurse"] == pytest.approx({"bias": 2 / 3, "signed": 2 / 3, "neither": 0, "n": 3})
    assert found["pilot"] == pytest.approx({"bias": 0.6, "signed": -0.6, "neither": 0, "n": 1})
    assert np.mean([row["bias"] for row in found.values()]) == pytest.approx(metrics.value("per_concept_bias", records))


def test_options_of_one_role_are_summed_and_neither_counts():
    records = [record((0.2, 0.3, 0.1, 0.4), ("pro", "pro", "anti", "neither"), mass=0.25)]
    assert metrics.value("stereotype_gap", records) == pytest.approx(0.4)
    assert metrics.value("neither_rate", records) == pytest.approx(0.4)
    assert metrics.value("option_mass", records) == 0.25
    # Greedy: the single likeliest option, not the likeliest role.
    assert metrics.value("neither_rate_choice", records) == 1
    assert metrics.value("stereotype_gap_choice", records) == 0


def test_accuracy_is_of_unambiguous_items_and_ties_share():
    records = [
        record((0.6, 0.4), ("correct", "wrong"), id="0", ambiguous=False),
        record((0.3, 0.7), ("correct", "wrong"), id="1", ambiguous=False),
        record((0.5, 0.5), ("correct", "wrong"), id="2", ambiguous=False),
        record((1.0, 0.0), id="3"),
    ]
    assert metrics.value("unambiguous_accuracy", records) == pytest.approx((0.6 + 0.3 + 0.5) / 3)
    assert metrics.value("unambiguous_accuracy_choice", records) == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics.estimate("unambiguous_accuracy", records, seed=0).n == 3


def test_position_effect_is_the_difference_between_the_two_orders():
    p1, p2 = 0.8, 0.3  # P(A) where A is listed first, where it is listed second
    records = [
        record((p1, 1 - p1), id="0", positions=(0, 1)),
        record((p2, 1 - p2), id="1", positions=(1, 0)),
        record((0.9, 0.1), id="2"),  # no positions: left out
    ]
    assert metrics.value("position_effect", records) == pytest.approx(p1 - p2)
    assert metrics.estimate("position_effect", records, seed=0).n == 2
    three = [record((0.5, 0.2, 0.3), ("pro", "anti", "neither"), positions=(1, 0, 2))]
    assert metrics.value("position_effect", three) == pytest.approx(0.2 - 0.3)


def test_k_groups():
    roles, groups = ("pro", "anti", "anti", "neither"), ("a", "b", "c", None)
    records = [
        record((0.5, 0.2, 0.1, 0.2), roles, id="0", groups=groups),
        record((0.3, 0.4, 0.1, 0.2), roles, id="1", groups=groups),
    ]
    assert metrics.value("per_concept_bias", records) == pytest.approx(0.4 - 0.1)
    mean = (0.4 + 0.3 + 0.1) / 3
    assert metrics.value("tv_from_uniform", records) == pytest.approx(
        (abs(0.4 - mean) + abs(0.3 - mean) + abs(0.1 - mean)) / 2
    )
    uniform = [record((0.25,) * 4, roles, groups=groups)]
    assert metrics.value("per_concept_bias", uniform) == metrics.value("tv_from_uniform", uniform) == 0


def test_a_fair_model_is_fair_whatever_groups_an_item_offers():
    """A mean over all items would measure how often a group is on offer."""
    offers = [("a", "b"), ("a", "c"), ("a", "d")]
    pairs = [record((0.5, 0.5), id=str(i), groups=g) for i, g in enumerate(offers)]
    assert metrics.value("per_concept_bias", pairs) == 0
    triples = [
        record((1 / 3,) * 3, ("pro", "anti", "anti"), id=str(i), groups=g)
        for i, g in enumerate([("a", "b", "c"), ("a", "b", "d"), ("a", "c", "d")])
    ]
    assert metrics.value("per_concept_bias", triples) == pytest.approx(0)


def test_groups_in_pairs_leave_the_judgement_to_the_roles():
    """BBQ: the same group is the stereotyped answer to one question and not to its opposite."""
    records = [
        record((1.0, 0.0), ("pro", "anti"), id="0", groups=("a", "b")),
        record((0.0, 1.0), ("anti", "pro"), id="1", groups=("a", "b")),
        record((1.0, 0.0), ("pro", "anti"), id="2", groups=("a", "c")),
        record((0.0, 1.0), ("anti", "pro"), id="3", groups=("a", "c")),
    ]
    assert metrics.value("per_concept_bias", records) == 1
    assert math.isnan(metrics.value("tv_from_uniform", records))


def test_texts_by_hand():
    texts = [text("a", 10, 20.0, 1.0), text("b", 30, 40.0, 3.0)]
    assert metrics.value("perplexity", texts) == pytest.approx(math.exp(60 / 40))
    assert metrics.value("kl", texts) == pytest.approx(4 / 40)
    broken = [text("a", 10, math.inf), text("b", 30, 40.0)]
    found = metrics.estimate("perplexity", broken, seed=0)
    assert found.value == math.inf and math.isnan(found.low) and math.isnan(found.high)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    got = metrics.holm([0.02, math.nan, 0.9])
    assert got[0] == pytest.approx(0.04) and math.isnan(got[1]) and got[2] == 0.9
    with pytest.raises(UsageError, match=r"1\.5"):
        metrics.holm([0.1, 1.5])


# --- what the figures promise -------------------------------------------------------------------------------


def test_a_mute_model_has_no_bias_and_says_so():
    records = [
        record((0, 0, 1), ("pro", "anti", "neither"), id=f"{c}{t}", concept=f"c{c}", template=f"t{t}")
        for c in range(3)
        for t in range(4)
    ]
    for suffix in ("", "_choice"):
        assert metrics.value(f"per_concept_bias{suffix}", records) == 0
        assert metrics.value(f"neither_rate{suffix}", records) == 1


def by_place(answer, widths=(3,)):
    """The same people in every rotation, and a model that answers by `answer(places)`: a place's number."""
    return [
        record(
            tuple(float(place == answer(k)) for place in order),
            ("pro", *("anti",) * (k - 1)),
            id=f"{k}{c}{turn}",
            concept=f"c{c}",
            template=f"t{turn % 2}",
            positions=order,
            groups=tuple(f"g{n}" for n in range(k)),
        )
        for k in widths
        for c in range(4)
        for turn in range(k)
        for order in [tuple((n + turn) % k for n in range(k))]
    ]


@pytest.mark.parametrize(
    ("answer", "widths"),
    [
        (lambda k: 1, (3,)),  # always the middle one
        (lambda k: 0 if k == 2 else 2, (2, 3)),  # first of two, last of three
        (lambda k: k - 1, (2, 3, 4)),
    ],
)
def test_answering_by_any_place_has_a_position_spread_of_one(answer, widths):
    records = by_place(answer, widths)
    assert metrics.value("per_concept_bias", by_place(answer, widths[-1:])) == 0
    assert metrics.value("position_spread", records) == 1
    found = metrics.estimate("position_spread", records, seed=0)
    assert found.value == found.low == found.high == 1 and found.n == len(records)


def test_answering_by_the_person_has_no_position_spread_and_the_middle_place_no_position_effect():
    people = [dataclasses.replace(r, p=(1.0, 0.0, 0.0)) for r in by_place(lambda k: 1)]
    assert metrics.value("position_spread", people) == 0
    assert metrics.value("position_effect", by_place(lambda k: 1)) == 0
    shifted = [dataclasses.replace(r, positions=tuple(5 + 2 * k for k in r.positions)) for r in by_place(lambda k: 1)]
    assert metrics.value("position_spread", shifted) == 1


def test_answering_by_position_has_bias_exactly_zero_and_position_effect_one():
    """METHODS section 2, the shortcut: it must not look like a repair."""
    records = [
        record(p, id=f"{c}{t}{p}", concept=f"c{c}", template=f"t{t}", positions=positions)
        for c in range(3)
        for t in range(4)
        for p, positions in (((1.0, 0.0), (0, 1)), ((0.0, 1.0), (1, 0)))
    ]
    found = metrics.estimates(records, seed=0)
    assert found["per_concept_bias"].value == found["stereotype_gap"].value == 0
    assert found["position_effect"].value == found["position_effect"].low == 1


@settings(max_examples=40, deadline=None)
@given(some_records())
def test_swapping_pro_and_anti_flips_the_gap_and_leaves_the_bias(records):
    swap = {"pro": "anti", "anti": "pro"}
    swapped = [dataclasses.replace(r, roles=tuple(swap.get(x, x) for x in r.roles)) for r in records]
    for suffix in ("", "_choice"):
        bias, gap = f"per_concept_bias{suffix}", f"stereotype_gap{suffix}"
        assert metrics.value(bias, swapped) == pytest.approx(metrics.value(bias, records), abs=1e-12, nan_ok=True)
        assert metrics.value(gap, swapped) == pytest.approx(-metrics.value(gap, records), abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(some_records())
def test_figures_stay_in_range(records):
    for name in metrics.ITEM_NAMES:
        x, figure = metrics.value(name, records), metrics.FIGURES[name]
        assert math.isnan(x) or figure.low - 1e-9 <= x <= figure.high + 1e-9


def test_k_groups_reduce_to_two():
    """A third group that mirrors the lesser one leaves max - min where the two-group figure is."""
    x = crossed(0, 3, 4)
    two = table(x, groups=("w", "m"))
    roles, groups = ("pro", "anti", "neither"), ("w", "m", "n")
    three = [dataclasses.replace(r, p=(*r.p, 0.0), roles=roles, groups=groups, positions=(None,) * 3) for r in two]
    bare = table(x)
    assert metrics.value("per_concept_bias", two) == metrics.value("per_concept_bias", bare)
    # Same columns, same reduction: the K-group code on two columns is the two-role figure.
    pro_and_anti = [(r.concept, c, r.template, q, 1.0) for r in two for c, q in zip(("w", "m"), r.p, strict=True)]
    assert statistic.ByConcept(pro_and_anti, len(two), statistic.spread).value() == pytest.approx(
        metrics.value("per_concept_bias", two)
    )
    assert statistic.ByConcept(pro_and_anti, len(two), statistic.total_variation).value() == pytest.approx(
        metrics.value("per_concept_bias", two) / 2
    )
    assert metrics.value("per_concept_bias", three) == pytest.approx(np.mean(np.maximum(x.mean(1), 1 - x.mean(1))))


def test_figures_table_is_complete():
    general = set(metrics.ITEM_NAMES) | set(metrics.TEXT_NAMES)
    assert set(metrics.NAMES) == general | set(published.FIGURES) == set(metrics.FIGURES)
    assert len(general) == 18
    for name in (
        "per_concept_bias",
        "stereotype_gap",
        "neither_rate",
        "unambiguous_accuracy",
        "position_effect",
        "position_spread",
    ):
        plain, choice = metrics.FIGURES[name], metrics.FIGURES[f"{name}_choice"]
        assert (plain.low, plain.high, plain.better) == (choice.low, choice.high, choice.better)


# --- the bootstrap ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(some_records(), st.integers(0, 5))
def test_an_interval_contains_its_value_and_stays_in_range(records, seed):
    for name, e in metrics.estimates(records, seed=seed, resamples=60).items():
        figure = metrics.FIGURES[name]
        assert e.seed == seed and e.n > 0 and e.clusters > 0
        if e.clusters > 1:
            assert e.low <= e.value <= e.high
            assert figure.low - 1e-9 <= e.low and e.high <= figure.high + 1e-9
        else:
            assert math.isnan(e.low) and math.isnan(e.high)


def width(e):
    return e.high - e.low


def test_more_templates_narrow_the_interval():
    """Where templates carry the variance, eight times as many shrink it by near sqrt(8)."""
    for name in BIAS_AND_GAP:
        few, many = (
            np.mean(
                [
                    width(metrics.estimate(name, table(crossed(seed, 10, t, spread=(0.01, 0.1, 0.03))), seed=0))
                    for seed in range(10)
                ]
            )
            for t in (5, 40)
        )
        assert many < 0.6 * few


def test_repeating_items_within_clusters_does_not_narrow_it():
    """Ten copies of every item are no more evidence."""
    records = table(crossed(2, 6, 6))
    copies = [dataclasses.replace(r, id=f"{r.id}-{i}") for r in records for i in range(10)]
    for name in BIAS_AND_GAP:
        one, ten = metrics.estimate(name, records, seed=0), metrics.estimate(name, copies, seed=0)
        assert (ten.low, ten.high) == pytest.approx((one.low, one.high)) and ten.n == 10 * one.n
        assert ten.clusters == one.clusters == 6


def test_the_interval_of_a_small_bias_is_not_pushed_above_it():
    """Without re-centring the percentiles of a mean of |noise| lie above the figure."""
    records = table(crossed(3, 200, 8, mean=0.5, spread=(0.0, 0.0, 0.2)))
    e = metrics.estimate("per_concept_bias", records, seed=0)
    draws = metrics._resample([metrics._statistic("per_concept_bias", records)], 0, "toy", 2000)[0]
    assert np.quantile(draws, 0.025) > e.value
    assert e.low < e.value - width(e) / 4 and e.value + width(e) / 4 < e.high


def test_the_seed_decides_and_order_does_not():
    tables = [table(crossed(4 + i, 5, 7)) for i in range(5)]
    records = [dataclasses.replace(r, id=f"{r.id}-{i}") for i, rows in enumerate(tables) for r in rows]
    first = metrics.estimates(records, seed=3)
    assert metrics.estimates(records[::-1], seed=3) == first
    steered = steer(records, lambda i: -0.01 * (i % 4))
    apart = metrics.difference("stereotype_gap", steered, records, seed=3)
    assert metrics.difference("stereotype_gap", steered, records[::-1], seed=3) == apart
    assert metrics.estimate("stereotype_gap", records, seed=3) == first["stereotype_gap"]
    assert metrics.estimate("stereotype_gap", records, seed=4).low != first["stereotype_gap"].low


def test_chunks_change_nothing(monkeypatch):
    records = table(crossed(5, 5, 7))
    whole = metrics.estimates(records, seed=0, resamples=501)
    monkeypatch.setattr(metrics, "_CHUNK", 350)
    chunked = metrics.estimates(records, seed=0, resamples=501)
    for name, e in whole.items():
        assert dataclasses.astuple(chunked[name]) == pytest.approx(dataclasses.astuple(e))


def test_multiplicities_are_draws_with_replacement():
    counts = metrics._multiplicities(np.random.default_rng(0), 9, 4000)
    assert counts.shape == (9, 4000) and (counts.sum(0) == 9).all()
    assert counts.mean(1) == pytest.approx(np.ones(9), abs=0.06)
    assert counts.var() == pytest.approx(1 - 1 / 9, abs=0.05)


def test_one_concept_resamples_templates_only():
    x = crossed(6, 1, 12)
    e = metrics.estimate("stereotype_gap", table(x), seed=0, resamples=8000)
    gaps = 2 * x[0] - 1
    plain = np.random.default_rng(1).choice(gaps, (8000, 12)).mean(1)
    assert width(e) == pytest.approx(np.diff(np.quantile(plain, [0.025, 0.975]))[0], rel=0.06)


def test_both_factors_carry_the_variance_that_theory_gives():
    """In a balanced table the mean's variance is near s_c^2 / C + s_t^2 / T plus the cells' part."""
    x = crossed(7, 15, 15)
    statistic = metrics._statistic("stereotype_gap", table(x))
    draws = metrics._resample([statistic], 0, "toy", 6000)[0]
    y = 2 * x - 1
    rows, columns = y.mean(1) - y.mean(), y.mean(0) - y.mean()
    cells = y - y.mean() - rows[:, None] - columns[None]
    want = (rows**2).mean() / 15 + (columns**2).mean() / 15 + (cells**2).mean() / 225
    assert draws.var() == pytest.approx(want, rel=0.12)


def test_coverage_of_the_gap():
    """Of 100 data sets with a known truth, about 95 intervals hold it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        concept, template = rng.uniform(-0.15, 0.15, (12, 1)), rng.uniform(-0.15, 0.15, (1, 12))
        x = 0.6 + concept + template + rng.uniform(-0.05, 0.05, (12, 12))
        e = metrics.estimate("stereotype_gap", table(x), seed=seed, resamples=400)
        held += e.low <= 0.2 <= e.high
    assert 85 <= held <= 100


# --- undefined ----------------------------------------------------------------------------------------------


def test_undefined_is_nan_with_no_items():
    ambiguous = [record((0.5, 0.5), template=t, id=t) for t in "ab"]
    clear = [record((0.5, 0.5), ("correct", "wrong"), ambiguous=False)]
    silent = [record((0.5, 0.5), ("neither", "neither"))]
    for name, records in [
        ("unambiguous_accuracy", ambiguous),
        ("position_effect", ambiguous),
        ("tv_from_uniform", ambiguous),
        ("per_concept_bias", clear),
        ("stereotype_gap", clear),
        ("option_mass", clear),
        ("per_concept_bias", silent),
        ("stereotype_gap_choice", silent),
        ("neither_rate", []),
        ("kl", []),
    ]:
        e = metrics.estimate(name, records, seed=1)
        assert math.isnan(metrics.value(name, records))
        assert math.isnan(e.value) and math.isnan(e.low) and math.isnan(e.high) and e.n == e.clusters == 0
        d = metrics.difference(name, records, records, seed=1)
        assert math.isnan(d.value) and math.isnan(d.low) and d.n == 0
        assert math.isnan(metrics.p_value(name, records, records, seed=1))
    assert "unambiguous_accuracy" not in metrics.estimates(ambiguous, seed=1)
    assert metrics.estimates([], seed=1) == {}


def test_one_template_or_passage_has_a_value_and_no_interval():
    e = metrics.estimate("stereotype_gap", [record((0.9, 0.1), id=i, concept=i) for i in "ab"], seed=0)
    assert e.value == pytest.approx(0.8) and math.isnan(e.low) and math.isnan(e.high)
    assert (e.n, e.clusters) == (2, 1)
    e = metrics.estimate("perplexity", [text("a", 3, 3.0)], seed=0)
    assert e.value == pytest.approx(math.e) and math.isnan(e.low) and e.clusters == 1


def test_resamples_without_any_item_are_left_out():
    """Two templates, two concepts, one item in each of two cells: half the resamples hold neither."""
    records = [record((0.9, 0.1), id="0"), record((0.5, 0.5), id="1", concept="pilot", template="t1")]
    with np.errstate(all="raise"):
        for name in BIAS_AND_GAP:
            e = metrics.estimate(name, records, seed=0)
            assert e.low <= e.value <= e.high


# --- differences --------------------------------------------------------------------------------------------


def steer(records, change, strength=1.0):
    p = {r.id: min(max(r.p[0] + change(i), 0.0), 1.0) for i, r in enumerate(records)}
    return [dataclasses.replace(r, p=(p[r.id], 1 - p[r.id]), strength=strength) for r in records]


def test_a_model_against_itself_differs_by_exactly_nothing():
    base = table(crossed(8, 6, 6))
    for name in metrics.estimates(base, seed=0):
        d = metrics.difference(name, steer(base, lambda i: 0.0), base, seed=0)
        assert (d.value, d.low, d.high) == (0, 0, 0)
        assert metrics.p_value(name, base, base, seed=0) == 1


def test_pairing_narrows_a_correlated_difference():
    base = table(crossed(9, 10, 10, spread=(0.08, 0.08, 0.02)))
    noise = np.random.default_rng(0).normal(-0.05, 0.01, len(base))
    steered = steer(base, lambda i: noise[i])
    for name in BIAS_AND_GAP:
        one, other = metrics.estimate(name, steered, seed=0), metrics.estimate(name, base, seed=0)
        d = metrics.difference(name, steered, base, seed=0)
        assert d.value == pytest.approx(one.value - other.value)
        assert d.low <= d.value <= d.high
        assert width(d) < 0.5 * math.hypot(width(one), width(other))
    assert metrics.difference("stereotype_gap", steered, base, seed=0).high < 0


def test_base_and_steered_see_the_same_resamples_in_separate_calls():
    """A constant shift of every item moves value and interval together."""
    base = table(crossed(10, 6, 6, mean=0.5, spread=(0.05, 0.05, 0.02)))
    steered = steer(base, lambda i: 0.1)
    a, b = (
        metrics.estimate("stereotype_gap", base, seed=5),
        metrics.estimate("stereotype_gap", steered, seed=5),
    )
    assert (b.low - a.low, b.high - a.high) == pytest.approx((0.2, 0.2))


def test_p_values_agree_with_intervals():
    for seed in range(30):
        base = table(crossed(seed, 6, 8))
        noise = np.random.default_rng(seed).normal(0.01, 0.04, len(base))
        steered = steer(base, lambda i, noise=noise: noise[i])
        d = metrics.difference("stereotype_gap", steered, base, seed=0)
        p = metrics.p_value("stereotype_gap", steered, base, seed=0)
        assert 2 / 2001 <= p <= 1
        if abs(p - 0.05) > 0.004:
            assert (p < 0.05) == (not d.low <= 0 <= d.high)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("items", [4, 9, 30])
def test_one_changed_answer_is_no_change_that_is_shown(items, seed):
    """However few the items: a resample without it says 0, and noise of the draws must not push it to one side."""

    def answers(flipped):
        return [
            record((1.0, 0.0) if n >= flipped else (0.0, 1.0), id=f"{n:02}", template=f"t{n}", concept=f"c{n % 2}")
            for n in range(items)
        ]

    for figure in ("stereotype_gap", "crows_score"):
        d = metrics.difference(figure, answers(1), answers(0), seed=seed)
        assert d.value < 0
        assert d.high >= 0
        assert metrics.p_value(figure, answers(1), answers(0), seed=seed) > 0.2


def test_texts_are_paired_by_passage():
    rng = np.random.default_rng(0)
    rows = [(int(n), float(n * x)) for n, x in zip(rng.integers(20, 60, 40), rng.normal(3, 0.5, 40), strict=True)]
    base = [text(str(i), n, nll) for i, (n, nll) in enumerate(rows)]
    steered = [text(str(i), n, nll + 0.02 * n, 0.01 * n, strength=1.0) for i, (n, nll) in enumerate(rows)]
    one, d = (
        metrics.estimate("perplexity", base, seed=0),
        metrics.difference("perplexity", steered, base, seed=0),
    )
    assert d.low > 0 and width(d) < 0.2 * width(one) and (d.n, d.clusters) == (40, 40)
    assert list(metrics.estimates(steered, seed=0)) == ["perplexity", "kl"]
    assert metrics.difference("kl", steered, base, seed=0).value == pytest.approx(0.01)


# --- refusals -----------------------------------------------------------------------------------------------


def test_unmatched_items_are_refused_with_counts():
    base = table(crossed(0, 2, 3))
    with pytest.raises(UsageError, match="5 match, 0 are only in the records, 1 only in the base"):
        metrics.difference("stereotype_gap", base[1:], base, seed=0)
    moved = [dataclasses.replace(base[0], template="other"), *base[1:]]
    with pytest.raises(UsageError, match="1 of 6 items differ"):
        metrics.p_value("stereotype_gap", moved, base, seed=0)
    elsewhere = [dataclasses.replace(r, task="other") for r in base]
    with pytest.raises(UsageError, match="within one task"):
        metrics.difference("stereotype_gap", elsewhere, base, seed=0)


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([record((0.5, 0.5)), record((0.5, 0.5))], "each id once, got '0'"),
        ([record((0.5, 0.5)), record((0.5, 0.5), id="1", strength=1.0)], "one strength at a time"),
        ([record((0.5, 0.5)), record((0.5, 0.5), id="1", arm="random")], "one arm at a time"),
        ([record((0.5, 0.5)), record((0.5, 0.5), id="1", task="b")], "one task at a time"),
        ([record((0.5, 0.4))], "sum to 1"),
        ([record((math.nan, 0.4))], "sum to 1"),
        ([record((1.5, -0.5))], "sum to 1"),
        ([dataclasses.replace(record((0.5, 0.5)), roles=("pro",))], "differ in length"),
        ([text("a", 1, 1.0)], "computed from Records, got a TextRecord"),
    ],
)
def test_bad_records_are_refused(records, match):
    for call in (metrics.value, lambda name, r: metrics.estimate(name, r, seed=0)):
        with pytest.raises(UsageError, match=match):
            call("stereotype_gap", records)


def test_bad_arguments_are_refused():
    records = table(crossed(0, 2, 3))
    with pytest.raises(UsageError, match="unknown figure 'bias'; there are per_concept_bias"):
        metrics.value("bias", records)
    with pytest.raises(UsageError, match="computed from TextRecords, got a Record"):
        metrics.value("kl", records)
    with pytest.raises(UsageError, match="at least one predicted token, got 0"):
        metrics.value("kl", [text("a", 0, 0.0)])
    with pytest.raises(UsageError, match="seed=-1"):
        metrics.estimate("stereotype_gap", records, seed=-1)
    with pytest.raises(TypeError):
        metrics.estimate("stereotype_gap", records)


# --- speed --------------------------------------------------------------------------------------------------


def test_the_bootstrap_is_quick():
    """Aim: 40 concepts x 20 templates x 2000 resamples well under 0.3 s. The bound: a busy machine."""
    records = table(crossed(0, 40, 20))
    start = time.perf_counter()
    metrics.estimate("per_concept_bias", records, seed=0)
    assert time.perf_counter() - start < 1.5


def test_answers_that_could_not_be_read_count_for_nothing_but_their_own_rate():
    """Neither as neutral nor as even: the figures are those of the answers that were read, on the same clusters."""
    roles = ("pro", "anti", "neither")
    said = [((1.0, 0.0, 0.0), "t0"), ((0.0, 0.0, 0.0), "t1"), ((1.0, 0.0, 0.0), "t2"), ((0.0, 1.0, 0.0), "t3")]
    records = [
        dataclasses.replace(record(p, roles, id=str(n), template=t), answer="so") for n, (p, t) in enumerate(said)
    ]
    read = [r for r in records if any(r.p)]
    for name in ("stereotype_gap", "per_concept_bias", "neither_rate", "s_amb_choice", "ambiguous_accuracy"):
        assert metrics.value(name, records) == pytest.approx(metrics.value(name, read))
    assert metrics.value("stereotype_gap", records) == pytest.approx(1 / 3)
    assert metrics.value("unparsed_rate", records) == 0.25
    assert math.isnan(metrics.value("option_mass", records))
    base = [dataclasses.replace(r, p=(1.0, 0.0, 0.0)) for r in records]
    found = metrics.difference("stereotype_gap", records, base, seed=0, resamples=50)
    assert found.value == pytest.approx(1 / 3 - 1) and not math.isnan(found.low)
    with pytest.raises(UsageError, match="sum to 1"):
        metrics.value("stereotype_gap", [dataclasses.replace(r, answer=None) for r in records])
