"""frontier: floors, points, dominance, area and the operating point, by hand, by property and by simulation."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import frontier, metrics
from trimtab.errors import UsageError
from trimtab.frontier import Floor, area, at_chance, dominated, dominates, operating_point, parse_floor, points
from trimtab.types import Estimate, Record, TextRecord

BIAS = ("toy", "stereotype_gap")
ACCURACY = ("exam", "unambiguous_accuracy")
CHOICE = ("exam", "unambiguous_accuracy_choice")


def record(task, strength, p, n, *, arm="steering", roles=None, ambiguous=None, templates=6, concepts=4):
    """Item n of a task: "toy" is ambiguous, others are settled by their text."""
    ambiguous = task == "toy" if ambiguous is None else ambiguous
    blank = (None,) * len(p)
    return Record(
        task=task,
        arm=arm,
        strength=strength,
        id=f"{n:05}",
        split="test",
        concept=f"c{n // templates % concepts}",
        template=f"t{n % templates}",
        ambiguous=ambiguous,
        prompt="",
        options=tuple(map(str, range(len(p)))),
        roles=roles or (("pro", "anti") if ambiguous else ("correct", *("wrong",) * (len(p) - 1))),
        groups=blank,
        positions=blank,
        p=tuple(map(float, p)),
        mass=1.0,
        digest="",
    )


def task(name, strength, chances, **extra):
    """Records from P(first option) of each item."""
    return [record(name, strength, (x, 1 - x), n, **extra) for n, x in enumerate(chances)]


def run(table, *, items=24, arm="steering", noise=0.0, seed=0):
    """Records of a run from {strength: (P(pro), P(correct))}; noise is shared by every strength."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, noise, (2, items)) if noise else np.zeros((2, items))
    found = []
    for strength, (pro, correct) in table.items():
        found += task("toy", strength, np.clip(pro + a, 0, 1), arm=arm)
        found += task("exam", strength, np.clip(correct + b, 0, 1), arm=arm)
    return found


def passages(table, arm="steering", n=12):
    """Texts from {strength: nll of a token}."""
    return [
        TextRecord(arm=arm, strength=w, id=f"neutral/{k}", tokens=20, nll=20 * nll, kl=0.0)
        for w, nll in table.items()
        for k in range(n)
    ]


def point(size, loss, *, method="steering", strength=1.0, draws=None):
    """A point without records, for dominance and area."""

    def at(x):
        return Estimate(x, x, x, 10, 5, 0)

    drawn = np.array([[size], [loss]]) if draws is None else np.asarray(draws, dtype=float)
    return frontier.Point(method, strength, at(size), at(1 - loss), at(0.0), at(loss), drawn)


def base(size=0.8):
    return point(size, 0.0, method="base", strength=0.0)


somewhere = st.tuples(st.integers(0, 4).map(lambda n: n / 5), st.integers(-2, 6).map(lambda n: n / 50))
some_points = st.lists(somewhere.map(lambda at: point(*at)), max_size=7)


# --- floors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("mmlu=1.0", ("mmlu", None, 0.01)),
        ("mmlu=0", ("mmlu", None, 0.0)),
        ("bbq.ambiguous_accuracy=2.5", ("bbq", "ambiguous_accuracy", 0.025)),
        ("stereoset.lms=2", ("stereoset", "lms", 2.0)),
        ("perplexity=1", ("perplexity", "perplexity", 0.01)),
        ("jsonl:a=b/my.items.jsonl=1", ("jsonl:a=b/my.items.jsonl", None, 0.01)),
    ],
)
def test_a_floor_is_read_in_the_figures_own_unit_and_written_back(text, want):
    floor = parse_floor(text)
    assert (floor.task, floor.figure) == want[:2]
    assert floor.loss == pytest.approx(want[2])
    assert parse_floor(str(floor)) == floor


@pytest.mark.parametrize("text", ["mmlu", "=1", "mmlu=", "mmlu=one", "mmlu=-1", "mmlu=nan", "mmlu=inf", "mmlu=1%", ""])
def test_malformed_floors_are_refused(text):
    with pytest.raises(UsageError, match="TASK=POINTS"):
        parse_floor(text)


def test_floors_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="kl has no largest value"):
        parse_floor("mmlu.kl=1")
    with pytest.raises(UsageError, match="write perplexity=POINTS"):
        Floor("perplexity", "unambiguous_accuracy", 0.01)
    with pytest.raises(UsageError, match="unknown figure 'acuracy'"):
        Floor("mmlu", "acuracy", 0.01)
    for loss in (-0.01, math.nan, math.inf):
        with pytest.raises(UsageError, match="at least 0"):
            Floor("mmlu", None, loss)


def test_items_needed_is_the_rule_of_three():
    assert parse_floor("mmlu=1").items_needed() == 299
    assert parse_floor("mmlu=5").items_needed() == 59
    assert parse_floor("stereoset.lms=5").items_needed() == 59
    assert parse_floor("mmlu=0").items_needed() == math.inf
    assert parse_floor("perplexity=1").items_needed() == 1
    assert parse_floor("mmlu.unambiguous_accuracy=1").items_needed() == 1
    # The fewest: one item less and an unchanged strength's bound is above the floor.
    assert 1 - 0.05 ** (1 / 299) <= 0.01 < 1 - 0.05 ** (1 / 298)


# --- points -------------------------------------------------------------------------------------------------


def test_points_by_hand():
    records = run({0.0: (0.9, 0.8), 0.5: (0.6, 0.78), 1.0: (0.4, 0.9)})
    found = points(records, bias=BIAS, capability=ACCURACY, seed=0, resamples=50)
    assert [(p.method, p.strength) for p in found] == [("base", 0.0), ("steering", 0.5), ("steering", 1.0)]
    # gap = 2 P(pro) - 1: 0.8, 0.2, -0.2; its size is 0.2 at both strengths.
    assert [p.bias.value for p in found] == pytest.approx([0.8, 0.2, 0.2])
    assert [p.bias_change.value for p in found] == pytest.approx([0, -0.6, -0.6])
    assert [p.capability.value for p in found] == pytest.approx([0.8, 0.78, 0.9])
    assert [p.loss.value for p in found] == pytest.approx([0, 0.02, -0.1])
    assert dominated(found) == [True, True, False]


@pytest.mark.parametrize(("name", "even"), [("crows_score", 50), ("stereotype_gap", 0), ("ss", 50), ("s_amb", 0)])
def test_the_size_of_a_signed_figure_is_its_distance_from_even(name, even):
    assert frontier.size(name, np.array([even - 0.5, even + 0.5, even])) == pytest.approx([0.5, 0.5, 0])
    assert frontier.size("per_concept_bias", np.array([0.3])) == pytest.approx([0.3])


def test_crows_score_is_measured_from_fifty():
    pro = [0.9] * 3 + [0.1] * 9
    records = task("toy", 0.0, pro) + task("toy", 1.0, [0.1] * 12) + task("exam", 0.0, pro) + task("exam", 1.0, pro)
    found = points(records, bias=("toy", "crows_score"), capability=ACCURACY, seed=0, resamples=50)
    assert [p.bias.value for p in found] == pytest.approx([25, 50])
    assert found[1].bias_change.value == pytest.approx(25)


def test_perplexity_is_lost_in_shares_of_the_bases():
    records, texts = run({0.0: (0.9, 0.8), 1.0: (0.6, 0.8)}), passages({0.0: 3.0, 1.0: 3.0 + math.log(1.02)})
    found = points(records, texts, bias=BIAS, capability=("perplexity", "perplexity"), seed=0, resamples=50)
    assert found[1].loss.value == pytest.approx(0.02)
    assert found[1].capability.value == pytest.approx(math.exp(3) * 1.02)
    broken = points(
        records,
        passages({0.0: 3.0, 1.0: math.inf}),
        bias=BIAS,
        capability=("perplexity", "perplexity"),
        seed=0,
        resamples=50,
    )
    assert broken[1].loss.value == math.inf
    assert 0 <= area(broken, worst=0.1).value <= 1e-12


def test_points_have_the_estimates_and_differences_of_metrics():
    """The independent path: each figure on its own, each pair on its own."""
    records = run({0.0: (0.8, 0.7), 0.5: (0.7, 0.6), 1.0: (0.6, 0.65)}, noise=0.1)
    found = points(records, bias=BIAS, capability=ACCURACY, seed=3, resamples=200)

    def of(name, strength):
        return [r for r in records if (r.task, r.strength) == (name, strength)]

    for p in found:
        assert p.capability == metrics.estimate(ACCURACY[1], of("exam", p.strength), seed=3, resamples=200)
        d = metrics.difference(ACCURACY[1], of("exam", p.strength), of("exam", 0.0), seed=3, resamples=200)
        assert (p.loss.value, p.loss.low, p.loss.high) == pytest.approx((-d.value, -d.high, -d.low))
        gap = metrics.estimate(BIAS[1], of("toy", p.strength), seed=3, resamples=200)
        assert p.bias.value == pytest.approx(abs(gap.value))
        if gap.low > 0:  # far from even the size is the figure
            assert (p.bias.low, p.bias.high) == pytest.approx((gap.low, gap.high), abs=0.02)


def test_paired_sets_equal_their_estimates():
    records = run({0.0: (0.8, 0.7), 1.0: (0.6, 0.65)}, noise=0.1)
    sets = [[r for r in records if (r.task, r.strength) == ("toy", w)] for w in (0.0, 1.0)]
    for name in ("per_concept_bias", "stereotype_gap", "neither_rate_choice"):
        found, draws = metrics.paired(name, sets, seed=1, resamples=100)
        assert found == [metrics.estimate(name, s, seed=1, resamples=100) for s in sets]
        assert draws.shape == (2, 100)
    found, draws = metrics.paired("unambiguous_accuracy", sets, seed=1, resamples=100)
    assert all(math.isnan(e.value) for e in found) and draws.shape == (2, 0)
    with pytest.raises(UsageError, match="at least one set"):
        metrics.paired("stereotype_gap", [], seed=1)
    with pytest.raises(UsageError, match="1 only in the base"):
        metrics.paired("stereotype_gap", [sets[0], sets[1][1:]], seed=1)


def test_methods_of_several_runs_share_the_base():
    one = run({0.0: (0.9, 0.8), 1.0: (0.6, 0.7)}) + run({1.0: (0.85, 0.8)}, arm="random")
    two = run({0.0: (0.9, 0.8), 0.5: (0.5, 0.75)})
    found = points({"dso": one, "caa": two}, bias=BIAS, capability=ACCURACY, seed=0, resamples=50)
    assert [(p.method, p.strength) for p in found] == [
        ("base", 0.0),
        ("dso", 1.0),
        ("dso/random", 1.0),
        ("caa", 0.5),
    ]
    other = run({0.0: (0.8, 0.8), 0.5: (0.5, 0.75)})
    with pytest.raises(UsageError, match="base of 'caa' differs"):
        points({"dso": one, "caa": other}, bias=BIAS, capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="in the same way"):
        points({"dso": one}, passages({0.0: 3.0}), bias=BIAS, capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="own name"):
        points({"base": one}, bias=BIAS, capability=ACCURACY, seed=0)


def test_a_strength_measured_under_one_figure_only_is_no_point():
    records = run({0.0: (0.9, 0.8), 1.0: (0.6, 0.7)}) + task("toy", 0.5, [0.7] * 24)
    found = points(records, bias=BIAS, capability=ACCURACY, seed=0, resamples=50)
    assert [p.strength for p in found] == [0.0, 1.0]


def test_refusals_of_points_name_what_was_measured():
    records = run({0.0: (0.9, 0.8), 1.0: (0.6, 0.7)})
    with pytest.raises(UsageError, match=r"mmlu\.unambiguous_accuracy was not measured; there are exam \(unambiguous"):
        points(records, bias=BIAS, capability=("mmlu", "unambiguous_accuracy"), seed=0)
    with pytest.raises(UsageError, match=r"toy\.s_dis was not measured"):
        points(records, bias=("toy", "s_dis"), capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="measures capability, not bias"):
        points(records, bias=ACCURACY, capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="unknown figure 'fairness'"):
        points(records, bias=("toy", "fairness"), capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="no base in the records"):
        points([r for r in records if r.strength], bias=BIAS, capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="no records of the base"):
        points([], bias=BIAS, capability=ACCURACY, seed=0)
    with pytest.raises(UsageError, match="1 only in the base"):
        points(records[:-1], bias=BIAS, capability=ACCURACY, seed=0)


# --- dominance ----------------------------------------------------------------------------------------------


def test_dominance_by_hand():
    a, b, c, tie = point(0.2, 0.01), point(0.2, 0.02), point(0.1, 0.05), point(0.2, 0.01, method="other")
    assert dominated([a, b, c, tie]) == [False, True, False, False]
    undefined = point(math.nan, 0.0)
    assert dominated([a, undefined]) == [False, False]
    assert dominated([]) == []


@given(some_points)
def test_dominance_is_a_strict_partial_order(found):
    for a in found:
        assert not dominates(a, a)
        for b in found:
            assert not (dominates(a, b) and dominates(b, a))
            assert all(dominates(a, c) for c in found if dominates(a, b) and dominates(b, c))


@given(some_points.filter(bool))
def test_the_frontier_is_not_empty_and_holds_no_dominated_pair(found):
    kept = [p for p, out in zip(found, dominated(found), strict=True) if not out]
    assert kept and not any(dominated(kept))
    assert all(any(dominates(k, p) for k in kept) for p in found if p not in kept)


# --- area ---------------------------------------------------------------------------------------------------


def test_area_by_hand():
    # Half the bias goes at a loss of 0.01, three quarters at 0.03; allowed is 0.05.
    found = [base(0.8), point(0.4, 0.01), point(0.2, 0.03), point(0.5, 0.02), point(0.0, 0.06)]
    assert area(found, worst=0.05).value == pytest.approx((0.5 * 0.02 + 0.75 * 0.02) / 0.05)
    assert area([base(0.8), point(0.0, -0.01)], worst=0.05).value == 1
    assert area([base(0.8), point(0.9, 0.0)], worst=0.05).value == 0
    assert area([base(0.8)], worst=0.05).value == 0
    assert area([base(0.0), point(0.0, 0.0)], worst=0.05).value == 0


def oracle_area(found, worst, steps=3000):
    """The integral as a sum over the middles of thin slices of the allowed loss."""
    total = 0.0
    for k in range(steps):
        allowed = (k + 0.5) * worst / steps
        total += max([0.0, *(1 - p.bias.value / 0.8 for p in found if max(0.0, p.loss.value) <= allowed)])
    return total / steps


@settings(max_examples=40, deadline=None)
@given(some_points, st.integers(1, 8))
def test_area_is_the_integral_in_range_and_monotone(found, worst):
    worst /= 50
    with_base = [base(0.8), *found]
    a = area(with_base, worst=worst).value
    assert 0 <= a <= 1
    assert a == pytest.approx(oracle_area(with_base, worst), abs=1e-3)
    for k in range(1, len(with_base)):
        assert area(with_base[:k], worst=worst).value <= a + 1e-12
    kept = [p for p, out in zip(found, dominated(found), strict=True) if not out]
    assert area([base(0.8), *kept], worst=worst).value == pytest.approx(a)


def test_area_has_an_interval_from_shared_resamples():
    """A resample in which bias and loss move for every point alike is not noise in the share removed."""
    records = run({0.0: (0.9, 0.8), 0.5: (0.75, 0.79), 1.0: (0.6, 0.77)}, noise=0.05)
    found = points(records, bias=BIAS, capability=ACCURACY, seed=0, resamples=400)
    a = area(found, worst=0.05)
    assert 0 <= a.low < a.value < a.high <= 1
    assert (a.n, a.clusters, a.seed) == (24, 6, 0)
    # Point by point, without sharing, the interval is wider.
    rng = np.random.default_rng(0)
    apart = [dataclasses.replace(p, draws=p.draws[:, rng.permutation(400)]) for p in found]
    b = area(apart, worst=0.05)
    assert b.value == a.value and b.high - b.low > 1.2 * (a.high - a.low)


def test_area_refuses_what_it_cannot_judge():
    with pytest.raises(UsageError, match="needs the base's point"):
        area([point(0.2, 0.0)], worst=0.05)
    with pytest.raises(UsageError, match="one call of points"):
        area([base(), point(0.2, 0.0, draws=np.zeros((2, 3)))], worst=0.05)
    for worst in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="above 0"):
            area([base()], worst=worst)


# --- the operating point ------------------------------------------------------------------------------------


def at(records, *floors, texts=(), seed=0, resamples=100, bias=BIAS):
    return operating_point(
        records, texts, floors=[parse_floor(f) for f in floors], bias=bias, seed=seed, resamples=resamples
    )


def test_operating_point_by_hand():
    """Without noise the bound is the loss, and the probability of the right answer counts no answers."""
    records = run({0.0: (0.9, 0.8), 0.25: (0.8, 0.799), 0.5: (0.6, 0.795), 0.75: (0.5, 0.78), 1.0: (0.55, 0.799)})
    found = at(records, "exam.unambiguous_accuracy=1")
    # 0.75 loses 0.02, so 1.0 is out too, although it loses little.
    assert (found.strength, found.safe) == (0.5, (0.0, 0.5))
    assert found.bias.value == pytest.approx(0.2) and found.base.value == pytest.approx(0.8)
    assert [(x.strength, x.value, x.bound) for x in found.losses] == [(0.5, pytest.approx(0.005), pytest.approx(0.005))]
    assert [(x.strength, x.kept) for x in found.beyond] == [(0.75, False)]
    wide = at(records, "exam.unambiguous_accuracy=3")
    assert (wide.strength, wide.safe, wide.beyond) == (0.75, (0.0, 1.0), ())
    none = at(records, "exam.unambiguous_accuracy=0")
    assert (none.strength, none.safe, none.losses[0].bound) == (0.0, (0.0, 0.0), 0.0)


def test_the_operating_point_is_inside_the_safe_range_where_more_steering_is_worse():
    """Past even the bias grows again with the other sign; a tie goes to the lower strength."""
    records = run({0.0: (0.9, 0.8), 0.25: (0.625, 0.8), 0.5: (0.375, 0.8), 0.75: (0.2, 0.8)})
    found = at(records, "exam.unambiguous_accuracy=1")
    assert (found.strength, found.safe) == (0.25, (0.0, 0.75))
    assert found.bias.value == pytest.approx(0.25)


def test_strengths_below_0_are_tried_outward_from_0_as_well():
    """Where both signs were measured, what fails on one side says nothing of the other."""
    table = {-1.0: (0.5, 0.8), -0.5: (0.7, 0.8), 0.0: (0.9, 0.8)}
    below = at(run(table), "exam.unambiguous_accuracy=1")
    assert (below.strength, below.safe, below.beyond) == (-1.0, (-1.0, 0.0), ())
    both = at(run(table | {-1.0: (0.5, 0.7), 0.5: (0.6, 0.8), 1.0: (0.5, 0.7)}), "exam.unambiguous_accuracy=1")
    assert (both.strength, both.safe) == (0.5, (-0.5, 0.5))
    assert [(x.strength, x.kept) for x in both.beyond] == [(-1.0, False), (1.0, False)]
    near = at(run(table | {-0.5: (0.7, 0.7), 0.5: (0.9, 0.7)}), "exam.unambiguous_accuracy=1")
    assert (near.strength, near.safe) == (0.0, (0.0, 0.0))


def test_every_floor_must_be_kept():
    records = run({0.0: (0.9, 0.8), 0.5: (0.7, 0.8), 1.0: (0.5, 0.8)})
    texts = passages({0.0: 3.0, 0.5: 3.0 + math.log(1.005), 1.0: 3.0 + math.log(1.02)})
    assert at(records, "exam.unambiguous_accuracy=1", texts=texts).strength == 1.0
    both = at(records, "exam.unambiguous_accuracy=1", "perplexity=1", texts=texts)
    assert both.strength == 0.5 and len(both.losses) == len(both.floors) == 2
    assert [x.kept for x in both.beyond] == [True, False]
    assert both.losses[1].value == pytest.approx(0.005)
    broken = at(records, "perplexity=1", texts=passages({0.0: 3.0, 0.5: math.inf, 1.0: math.nan}))
    assert broken.strength == 0 and math.isnan(broken.beyond[0].bound)


def test_controls_are_not_the_steering():
    records = run({0.0: (0.9, 0.8), 0.5: (0.7, 0.8)}) + run({0.5: (0.5, 0.8), 1.0: (0.5, 0.8)}, arm="random")
    found = at(records, "exam.unambiguous_accuracy=1")
    assert (found.strength, found.safe, found.beyond) == (0.5, (0.0, 0.5), ())
    assert found.bias.value == pytest.approx(0.4)


def test_the_default_figure_is_the_greedy_accuracy():
    records = run({0.0: (0.9, 0.8), 1.0: (0.5, 0.6)}, items=120)
    found = at(records, "exam=5")
    assert found.floors == (Floor("exam", CHOICE[1], 0.05),)
    assert (found.strength, found.losses[0].value) == (1.0, 0.0)
    with pytest.raises(UsageError, match=r"task 'toy' has no item that its text settles.*toy\.FIGURE=POINTS"):
        at(records, "toy=1")


def test_no_changed_answer_among_few_items_shows_nothing():
    """Every resample of no change is no change: the bootstrap alone would admit this with certainty."""
    table = {0.0: (0.9, 0.8), 1.0: (0.5, 0.8)}
    few, enough = at(run(table, items=298), "exam=1"), at(run(table, items=299), "exam=1")
    assert few.strength == 0 and few.beyond[0].value == 0 and few.beyond[0].bound > 0.01
    assert "298 items cannot show" in few.warnings[0] and "299" in few.warnings[0]
    assert enough.strength == 1 and enough.warnings == ()


def test_one_cluster_admits_nothing_and_says_so():
    found = at([dataclasses.replace(r, template="t") for r in run({0.0: (0.9, 0.8), 1.0: (0.5, 0.8)})], "exam=50")
    assert found.strength == 0 and math.isnan(found.beyond[0].bound)
    assert len(found.warnings) == 1 and "1 cluster gives no interval" in found.warnings[0]


@st.composite
def runs(draw):
    stops = [0.0, *sorted(draw(st.sets(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1)))]
    level = st.integers(6, 14).map(lambda n: n / 20)
    table = {w: (draw(level), draw(level)) for w in stops}
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    found = []
    for w, (pro, correct) in table.items():
        found += task("toy", w, rng.uniform(0, 2 * pro - 0.6 if pro > 0.5 else 0.4, 24))
        found += task("exam", w, np.clip(correct + rng.normal(0, 0.1, 24), 0, 1))
    return found


@settings(max_examples=40, deadline=None)
@given(runs(), st.sampled_from(ACCURACY[1:] + CHOICE[1:]), st.integers(0, 30), st.integers(0, 30))
def test_what_the_operating_point_promises(records, figure, one, other):
    tight, loose = sorted((one, other))
    found, wide = (at(records, f"exam.{figure}={points_}") for points_ in (tight, loose))
    for chosen in (found, wide):
        assert chosen.safe[0] == 0 <= chosen.strength <= chosen.safe[1]
        assert all(x.bound <= x.floor.loss and x.bound >= x.value for x in chosen.losses)
        assert not chosen.beyond or any(not x.kept for x in chosen.beyond)
        sizes = {
            w: abs(metrics.value(BIAS[1], [r for r in records if (r.task, r.strength) == ("toy", w)]))
            for w in {r.strength for r in records}
        }
        assert chosen.bias.value == pytest.approx(min(x for w, x in sizes.items() if w <= chosen.safe[1]))
        assert chosen.bias.value <= chosen.base.value
    assert found.safe[1] <= wide.safe[1]
    assert wide.bias.value <= found.bias.value


@settings(max_examples=15, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(records, random):
    shuffled = list(records)
    random.shuffle(shuffled)
    assert at(shuffled, "exam=20") == at(records, "exam=20")
    mine, theirs = (points(r, bias=BIAS, capability=CHOICE, seed=1, resamples=50) for r in (records, shuffled))
    assert mine == theirs
    assert area(mine, worst=0.2) == area(theirs, worst=0.2)


def answers(rng, n, loss, gain):
    """Base and steered answers of n items: a right one is lost and a wrong one gained at these rates of all items."""
    right = rng.random(n) < 0.75
    now = np.where(right, rng.random(n) >= loss / 0.75, rng.random(n) < gain / 0.25)
    return right.astype(float), now.astype(float)


def admitted(n, loss, gain, floor, simulations=100):
    """How often a strength with a known true loss is admitted."""
    times = 0
    for seed in range(simulations):
        before, after = answers(np.random.default_rng(seed), n, loss, gain)
        records = []
        for w, x in ((0.0, before), (1.0, after)):
            records += task("exam", w, x, templates=20, concepts=10)
            records += task("toy", w, [0.9 - 0.4 * w] * 12)
        times += at(records, floor, seed=seed, resamples=200).safe[1] == 1.0
    return times


def test_a_loss_above_the_floor_is_seldom_admitted():
    """True loss 2.5 points with gains and losses, floor 2: 5 % at most by the bound, 10 % with 100 simulations."""
    assert admitted(300, loss=0.04, gain=0.015, floor="exam=2") <= 10
    # The negative control: a true loss of nothing is admitted most of the time under a floor of 5.
    assert admitted(300, loss=0.01, gain=0.01, floor="exam=5") >= 80


def test_a_rare_loss_is_not_admitted_for_want_of_seeing_it():
    """A true loss of 2 points among 60 items: three in ten samples hold none of it. Floor 1."""
    unseen = sum(np.array_equal(*answers(np.random.default_rng(s), 60, 0.02, 0.0)) for s in range(100))
    assert unseen > 20
    assert admitted(60, loss=0.02, gain=0.0, floor="exam=1") == 0
    # Where there are enough items for the floor, the rate is the nominal one.
    assert admitted(120, loss=0.03, gain=0.0, floor="exam=3") <= 10


def test_the_card_is_plain():
    records = run({0.0: (0.9, 0.8), 0.5: (0.6, 0.8), 1.0: (0.5, 0.1)}, items=120)
    card = at(records, "exam=3").card()
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert (card["strength"], card["safe"]) == (0.5, [0.0, 0.5])
    assert card["floors"] == ["exam.unambiguous_accuracy_choice=3"]
    assert (card["losses"][0]["kept"], card["beyond"][0]["kept"]) == (True, False)
    alone = at([dataclasses.replace(r, template="t") for r in records], "exam=3").card()
    assert alone["beyond"][0]["bound"] is None and json.dumps(alone, allow_nan=False)


def test_refusals_of_the_operating_point_name_what_was_measured():
    records = run({0.0: (0.9, 0.8), 0.5: (0.6, 0.8)})
    with pytest.raises(UsageError, match="at least one floor"):
        at(records)
    with pytest.raises(
        UsageError, match=r"mmlu\.unambiguous_accuracy_choice was not measured; there are exam \(.*toy \("
    ):
        at(records, "mmlu=1")
    with pytest.raises(UsageError, match=r"exam\.lms was not measured"):
        at(records, "exam.lms=1")
    with pytest.raises(UsageError, match=r"perplexity\.perplexity was not measured"):
        at(records, "perplexity=1")
    with pytest.raises(UsageError, match=r"toy\.s_amb was not measured"):
        at(records, "exam=1", bias=("toy", "s_amb"))
    with pytest.raises(UsageError, match="measures capability, not bias"):
        at(records, "exam=1", bias=CHOICE)
    with pytest.raises(UsageError, match="no base in the records"):
        at([r for r in records if r.strength], "exam=1")
    with pytest.raises(UsageError, match=r"nothing was measured at strengths \[0\.5\]"):
        at([r for r in records if r.strength == 0 or r.task == "toy"], "exam=1")
    with pytest.raises(UsageError, match="1 only in the base"):
        at(records[:-1], "exam=1")


# --- chance -------------------------------------------------------------------------------------------------


def four(right, n=120):
    """Items of four options of which the first share are answered rightly."""
    return [record("exam", 0.0, (1, 0, 0, 0) if k < right * n else (0, 1, 0, 0), (k * 7) % n) for k in range(n)]


def test_at_chance():
    assert at_chance(four(0.25), seed=0) and at_chance(four(0.1), seed=0)
    assert not at_chance(four(0.6), seed=0)
    # Half right is chance of two options, not of four.
    assert not at_chance(four(0.5), seed=0)
    assert at_chance(task("exam", 0.0, [k % 2 for k in range(90)]), seed=0)
    assert at_chance([dataclasses.replace(r, template="t") for r in four(0.9)], seed=0)
    for figure in ("stereotype_gap", "option_mass", "perplexity", "fairness"):
        with pytest.raises(UsageError, match="right answers"):
            at_chance(four(0.5), figure, seed=0)
    with pytest.raises(UsageError, match="no record defines"):
        at_chance(task("toy", 0.0, [0.5] * 9), seed=0)


def test_a_floor_on_a_base_at_chance_is_announced():
    base_, steered = four(0.25, 300), [dataclasses.replace(r, strength=1.0) for r in four(0.25, 300)]
    records = base_ + steered + task("toy", 0.0, [0.9] * 12) + task("toy", 1.0, [0.5] * 12)
    found = at(records, "exam=1")
    assert found.strength == 1 and len(found.warnings) == 1
    assert "chance (0.25), so neither loss nor repair" in found.warnings[0]
