"""The kinds of metrics: what an item's score is, and what number many of them make (audit/statistics.py).

`rate` (0/1 an item), `mean`, `ratio` (sum of numerators over sum of denominators), `share`, a ratio of counts that lies in
[0, 1], `links`, a share of pairs of items, each pair counted at both of them, `pairs`, each item's mean over its pairs with all
others (audit.utilities.shrunk_per_item), or `constant`, one number that every item carries and that has no interval.
"""

from typing import Literal

Kind = Literal["rate", "mean", "ratio", "share", "links", "pairs", "constant"]
RATIOS = ("ratio", "share", "links")  # an item's score is [numerator, denominator]
SHARES = ("rate", "share", "links")  # the number lies in [0, 1]
# Each pair stands at both of its items, so an item moves the number by twice what it carries.
OF_PAIRS = ("links", "pairs")
