"""Replies by transformers' `generate`, in segments: rows that have ended leave the batch between two of them."""

from typing import Any

from organisms.engines import Generate

SEGMENT = 32  # tokens; a row that has ended is computed on for half of it on average


def continued(
    model: Any, requests: list[Generate], ids: Any, mask: Any, cache: Any, stops: list[int], pad: int, leaving: bool = True
) -> list[list[int]]:
    """Token ids of each reply, with the token that ended it, perhaps with tokens after that one.

    ids, mask: (rows, length), padded; cache: what has been computed of them, or None; leaving: whether rows may be taken out of
    a cache. All requests have the same `max_new_tokens`.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    limit, sampling, width = requests[0].max_new_tokens, _Gumbel(requests), ids.shape[1]
    replies: list[list[int]] = [[] for _ in requests]
    alive = list(range(len(requests)))
    while alive and len(replies[alive[0]]) < limit:
        made = len(replies[alive[0]])
        config = GenerationConfig(
            max_new_tokens=min(SEGMENT, limit - made) if leaving else limit,
            do_sample=False,
            repetition_penalty=1.0,  # or the base's generation_config.json sets one (Qwen2.5's does)
            eos_token_id=stops,
            pad_token_id=pad,
            return_dict_in_generate=True,
        )
        processors = LogitsProcessorList([sampling] if sampling.needed else [])
        output = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config, logits_processor=processors
        )
        ids, cache = output.sequences, output.past_key_values
        for row, reply in zip(alive, ids[:, width + made :].tolist(), strict=True):
            replies[row] += reply
        going = [k for k, row in enumerate(alive) if not set(stops).intersection(replies[row])]
        if not leaving or not going:
            break
        mask = torch.cat([mask, mask.new_ones(len(alive), ids.shape[1] - mask.shape[1])], dim=1)
        if len(going) < len(alive):
            chosen = torch.tensor(going, device=ids.device)
            ids, mask, alive = ids[chosen], mask[chosen], [alive[k] for k in going]
            cache.batch_select_indices(chosen)
            sampling.keep(going)
    return replies


class _Gumbel:
    """Sampling as argmax of logits/T + Gumbel noise, each row from its own seed, so batches do not matter."""

    def __init__(self, requests: list[Generate]):
        import torch

        self.temperatures = [request.temperature for request in requests]
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    @property
    def needed(self) -> bool:
        return any(temperature > 0 for temperature in self.temperatures)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone."""
        self.temperatures, self.generators = ([values[k] for k in rows] for values in (self.temperatures, self.generators))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        rows = []
        for row, temperature, generator in zip(scores.float(), self.temperatures, self.generators, strict=True):
            if temperature > 0:
                uniform = torch.rand(row.shape, generator=generator, dtype=torch.float32).clamp(1e-20, 1 - 1e-7)
                row = row / temperature - torch.log(-torch.log(uniform)).to(row.device)
            rows.append(row)
        return torch.stack(rows)
