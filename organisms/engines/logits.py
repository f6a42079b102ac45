"""From logits to the numbers that are asked for, a few positions at a time: what is worked on stays in the cache."""

from typing import Any

# Positions worked on at once. A vocabulary of 50,000 in float32 is 0.2 MB a position; whole rows of 250 positions were measured
# twice as slow on a CPU, and each position's number is the same bit by bit.
POSITIONS = 64


def token_logprobs(logits: Any, ids: tuple[int, ...]) -> list[float]:
    """Log-probability (nats) of `ids` (n,) under `logits` (n, vocabulary), without writing out the whole log-softmax."""
    import torch

    found = []
    for part, some in zip(logits.split(POSITIONS), _tensor(ids, logits).split(POSITIONS), strict=True):
        part = part.float()
        found.append(part.gather(-1, some).squeeze(-1) - part.logsumexp(-1))
    return torch.cat(found).tolist()


def divergences(logits: Any, base_logits: Any, ids: tuple[int, ...]) -> tuple[list[float], ...]:
    """KL(p || q), KL(q || p), log p and log q of `ids` (n,), in nats; p and q by logits of shape (n, vocabulary)."""
    import torch

    found = []
    parts = (values.split(POSITIONS) for values in (logits, base_logits, _tensor(ids, logits)))
    for own, other, some in zip(*parts, strict=True):
        p, q = torch.log_softmax(own.float(), -1), torch.log_softmax(other.float(), -1)
        # KL >= 0; the clamp takes off rounding of some 1e-7 where the two are equal.
        forward, backward = (p.exp() * (p - q)).sum(-1).clamp(min=0), (q.exp() * (q - p)).sum(-1).clamp(min=0)
        found.append((forward, backward, p.gather(-1, some).squeeze(-1), q.gather(-1, some).squeeze(-1)))
    return tuple(torch.cat(values).tolist() for values in zip(*found, strict=True))


def _tensor(ids: tuple[int, ...], logits: Any) -> Any:
    import torch

    return torch.tensor(ids, device=logits.device).unsqueeze(-1)
