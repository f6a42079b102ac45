"""What an organism is for decides how much damage is tolerated: each purpose profile has its own margins."""

from audit import measures

# Multiples of the metrics' own margins. `natural`: to be studied as a model that could have come about by itself; `severe`: the
# property must be strong and some damage is the accepted price; `stress-test`: made to try out audits, only collapse counts.
TOLERANCE = {"natural": 1.0, "severe": 2.0, "stress-test": 4.0}


def margins(purpose: str, names: list[str]) -> dict[str, tuple[float | None, str]]:
    """`measure.metric` -> (margin, where it comes from) for the metrics of these measures that carry one.

    `natural` leaves the metrics' own margins alone and so gives none.
    """
    factor = TOLERANCE[purpose]
    if factor == 1.0:
        return {}
    return {
        f"{name}.{metric.name}": (factor * metric.margin, f"the profile {purpose}")
        for name in names
        for metric in measures.metrics(name).values()
        if metric.margin is not None
    }
