"""How much of a base's per-concept bias would be there if no item had a direction: `bench/chance.py bbq:divided`.

The figure is mean_o |mean_{i in o} d_i|, d_i = P_i(pro) - P_i(anti), of ambiguous items i of concepts o. Its null has
every d_i with a sign of its own, drawn at random (a sign-flip test): a base whose figure is no larger shows no
stereotype on these items, and nothing that a method takes from it is bias. It does not fit items that are made in
pairs, as WinoBias' are: there the two of a pair cancel what the order of people does, which the null lets stand.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

import trimtab
from trimtab.evaluate import evaluate

DRAWS = 2000


def main() -> None:
    """Print the figure, its mean under the null with 95 % of the draws, and how often a draw is as large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    task = trimtab.task(args.task, data=args.data, seed=0)
    found = evaluate(
        trimtab.load(args.model), task, None, (), seed=0, split=args.split, limit=args.limit, controls=False,
        samples=(), kl=False,
    )  # fmt: skip
    concepts: dict[str, list[float]] = defaultdict(list)
    for record in found.records:
        by_role = dict(zip(record.roles, record.p, strict=True))
        if record.ambiguous and {"pro", "anti"} <= set(by_role):
            concepts[record.concept].append(by_role["pro"] - by_role["anti"])
    signs = np.random.default_rng(0)
    differences = [np.array(d) for d in concepts.values()]
    drawn = np.mean([np.abs((signs.choice((-1, 1), (DRAWS, len(d))) * d).mean(1)) for d in differences], axis=0)
    seen = np.mean([abs(d.mean()) for d in differences])
    low, high = np.quantile(drawn, (0.025, 0.975))
    print(
        f"{args.model}, {args.task}: {sum(map(len, differences))} items of {len(differences)} concepts, bias "
        f"{seen:.3f}; by chance {drawn.mean():.3f} [{low:.3f}, {high:.3f}], as large in {(drawn >= seen).mean():.1%}"
    )


if __name__ == "__main__":
    main()
