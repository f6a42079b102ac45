"""The peers that a user of transformers writes in ten lines: token ids in, log-probabilities or replies out."""

from collections.abc import Sequence
from typing import Any

from organisms.engines import Completion, Generate, NextToken, Score


def scored(model: Any, requests: Sequence[Score | NextToken], pad: int, batch: int = 1) -> list[list[float]]:
    """What `engine.logprobs` and `engine.next_token` answer, in batches of `batch` in the order given, padded on the right."""
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(requests), batch):
            some = requests[start : start + batch]
            rows = [[*r.prompt_ids, *getattr(r, "continuation_ids", ())] for r in some]
            ids = torch.full((len(rows), max(map(len, rows))), pad)
            mask = torch.zeros_like(ids)
            for k, row in enumerate(rows):
                ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for request, row, one in zip(some, rows, logits, strict=True):
                if isinstance(request, NextToken):
                    values = one[len(row) - 1].float().log_softmax(-1)[list(request.choice_ids)]
                else:
                    logprobs = one[len(request.prompt_ids) - 1 : len(row) - 1].float().log_softmax(-1)
                    chosen = torch.tensor(request.continuation_ids, device=logprobs.device)
                    values = logprobs.gather(-1, chosen[:, None])[:, 0]
                found.append(values.tolist())
    return found


def generated(model: Any, requests: Sequence[Generate], renderer: Any, pad: int, batch: int) -> list[Completion]:
    """Greedy replies of transformers' `generate`, in batches of `batch` in the order given, padded on the left."""
    import torch

    found, stops = [], set(renderer.stop_ids)
    with torch.no_grad():
        for start in range(0, len(requests), batch):
            rows = [list(request.prompt_ids) for request in requests[start : start + batch]]
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=requests[start].max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # as ours: greedy, whatever the base's generation_config.json suggests
                eos_token_id=renderer.stop_ids,
                pad_token_id=pad,
            )
            for reply in output[:, width:].tolist():
                end = next((i for i, token in enumerate(reply) if token in stops), None)
                kept = reply if end is None else reply[:end]
                found.append(Completion(kept, renderer.decode(kept), end is not None))
    return found
