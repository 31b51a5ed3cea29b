"""The terms of DSO's objective (docs/dso.md) again, slowly: loops over items in numpy, no shared code.

Written from the formulas. An item has `options` (each with role, group, position), `concept`, `template` and
`ambiguous`; its log-probabilities, steered and of the base, need not be normalised. Undefined is None.
"""

from __future__ import annotations

import numpy as np


def softmax(logp):
    e = np.exp(np.asarray(logp, dtype=np.float64) - max(logp))
    return e / e.sum()


def share(item, p, **wanted):
    """Total probability of the options with this role, group or position."""
    ((field, value),) = wanted.items()
    return sum(x for o, x in zip(item.options, p, strict=True) if getattr(o, field) == value)


def groups_of(item):
    return {o.group for o in item.options} - {None}


def shift(item, p):
    return share(item, p, role="pro") - share(item, p, role="anti")


def together(pairs, field):
    """(item, p) of each concept or template."""
    found = {}
    for item, p in pairs:
        found.setdefault(getattr(item, field), []).append((item, p))
    return list(found.values())


def group_means(pairs):
    """Each group's mean probability over the items that offer it."""
    names = sorted(set().union(*(groups_of(i) for i, _ in pairs)))
    return [np.mean([share(i, p, group=g) for i, p in pairs if g in groups_of(i)]) for g in names]


def many(pairs):
    return any(len(groups_of(i)) > 2 for i, _ in pairs)


def concept_bias(pairs):
    if many(pairs):
        means = group_means(pairs)
        return max(means) - min(means)
    return abs(np.mean([shift(i, p) for i, p in pairs]))


def orientation(item):
    """-1 where the pro option's group sorts after the anti option's, else 1."""
    pro = next(o.group for o in item.options if o.role == "pro")
    anti = next(o.group for o in item.options if o.role == "anti")
    return -1 if pro is not None and anti is not None and pro > anti else 1


def template_tilt(pairs, by_group):
    if by_group:
        means = np.array(group_means(pairs))
        return 2 * np.sum((means - means.mean()) ** 2)
    return np.mean([orientation(i) * shift(i, p) for i, p in pairs]) ** 2


def place_spreads(pairs):
    """{places listed: (items, max - min over places of the mean P there)}, of items with each option at its own."""
    found = {}
    for item, p in pairs:
        places = [o.position for o in item.options]
        if None not in places and len(set(places)) == len(places) > 1:
            row = [share(item, p, position=place) for place in sorted(places)]
            found.setdefault(len(places), []).append(row)
    return {k: (len(rows), np.ptp(np.mean(rows, axis=0))) for k, rows in found.items()}


def biases(items, steered):
    """Of each concept."""
    pairs = [(i, softmax(s)) for i, s in zip(items, steered, strict=True) if i.ambiguous]
    return [concept_bias(members) for members in together(pairs, "concept")]


def bias_error(items, steered):
    """The standard error over concepts; 0 for fewer than two."""
    found = biases(items, steered)
    return np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0


def terms(items, steered, base, log_mass, reference):
    """All terms; `reference` has (P(neither), log mass) of each ambiguous item, in their order."""
    out = dict.fromkeys(("bias", "template", "neither", "mass", "unambiguous", "position"))
    rows = list(zip(items, map(softmax, steered), map(softmax, base), log_mass, strict=True))
    clear = [
        np.log(share(i, q, role="correct") / share(i, p, role="correct")) for i, p, q, _ in rows if not i.ambiguous
    ]
    if clear:
        out["unambiguous"] = np.mean(np.maximum(0, clear))
    rows = [row for row in rows if row[0].ambiguous]
    if not rows:
        return out
    pairs = [(i, p) for i, p, _, _ in rows]
    out["bias"] = np.mean(biases(items, steered))
    out["template"] = np.mean([template_tilt(members, many(pairs)) for members in together(pairs, "template")])
    if any(o.role == "neither" for i, _ in pairs for o in i.options):
        rises = [share(i, p, role="neither") - r[0] for (i, p), r in zip(pairs, reference, strict=True)]
        out["neither"] = np.mean(rises)
    falls = [r[1] - mass for (_, _, _, mass), r in zip(rows, reference, strict=True)]
    out["mass"] = max(0, np.mean(falls))
    now, before = place_spreads(pairs), place_spreads([(i, q) for i, _, q, _ in rows])
    if now:
        growth = [n * max(0, spread - before[k][1]) for k, (n, spread) in now.items()]
        out["position"] = sum(growth) / sum(n for n, _ in now.values())
    return out
