"""The requests that are sent to an endpoint, one function a question; Refused where the answer is not what was asked for.

Every request states its sampling in full, since a server that reads the model's generation_config.json takes what is left out
from there: top-k 20 and a repetition penalty of 1.05 with some. EXTENSIONS are vLLM's and others' fields beside the protocol.
"""

from typing import Any

from organisms.endpoint import Endpoint, Refused
from organisms.engines import Generate
from organisms.errors import UserError

EXTENSIONS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
MOST_STOPS = 4  # of the protocol
GREEDY = {"temperature": 0, "top_p": 1, "max_tokens": 1}


def complete(endpoint: Endpoint, model: str, request: Generate, stops: dict[int, str], extended: bool, most: int) -> dict:
    """A reply to a prompt of token ids: `text` as the server writes it, `ids` (None where it gives none), `finished`.

    stops: id -> text of what ends a reply. The token that ended one is not in `ids`.
    """
    if extended:
        extra = {**EXTENSIONS, "stop_token_ids": list(stops), "return_token_ids": True}
        reply = endpoint.complete(list(request.prompt_ids), most, model=model, **_sampling(request), extra_body=extra)
    else:
        stop = list(stops.values())[:MOST_STOPS]
        reply = endpoint.complete(list(request.prompt_ids), most, model=model, **_sampling(request), stop=stop)
    choice = _whole(endpoint, reply, request)
    ids, finished = getattr(choice, "token_ids", None), choice.finish_reason == "stop"
    if ids is not None and finished:
        ids = ids[:-1]
    return {"text": choice.text, "ids": ids, "finished": finished, **_told(reply)}


def chat(endpoint: Endpoint, model: str, messages: list[dict], request: Generate, extended: bool, most: int) -> dict:
    """A reply to messages; a thought that the server has taken out of it stands in it again."""
    extra = {"extra_body": EXTENSIONS} if extended else {}
    reply = endpoint.ask(messages, most, model=model, **_sampling(request), **extra)
    choice = _whole(endpoint, reply, request)
    text, thought = choice.message.content or "", None
    for name in ("reasoning_content", "reasoning"):
        thought = thought or getattr(choice.message, name, None)
    if thought:
        text = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    return {"text": text, "ids": None, "finished": choice.finish_reason == "stop", **_told(reply)}


def echoed(endpoint: Endpoint, model: str, ids: list[int]) -> tuple[list[float], str]:
    """Log-probabilities (nats) of each token of a text after its first, given those before it; and the text as it is read."""
    reply = endpoint.complete(ids, len(ids) + 1, model=model, echo=True, logprobs=1, **GREEDY)
    choice = reply.choices[0]
    values = choice.logprobs.token_logprobs if choice.logprobs else None
    if not values or not len(ids) <= len(values) <= len(ids) + 1 or None in values[1 : len(ids)]:
        raise Refused(f"{endpoint.name} returns no log-probabilities of a given text (`echo` with `logprobs`)")
    return values[1 : len(ids)], choice.text


def chosen(endpoint: Endpoint, model: str, ids: list[int], choices: list[int]) -> list[float]:
    """Log-probabilities (nats) of chosen ids as the next token, over the full vocabulary: vLLM's `logprob_token_ids`."""
    extra = {"logprob_token_ids": choices, "return_tokens_as_token_ids": True}
    reply = endpoint.complete(ids, len(ids) + 1, model=model, logprobs=1, extra_body=extra, **GREEDY)
    found = reply.choices[0].logprobs
    top = found.top_logprobs[0] if found and found.top_logprobs else {}
    if any(f"token_id:{choice}" not in top for choice in choices):
        raise Refused(f"{endpoint.name} returns no log-probabilities of chosen tokens (`logprob_token_ids`)")
    return [top[f"token_id:{choice}"] for choice in choices]


def _sampling(request: Generate) -> dict[str, Any]:
    return {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": 1,
        "seed": request.seed,
        "frequency_penalty": 0,
        "presence_penalty": 0,
    }


def _whole(endpoint: Endpoint, reply: Any, request: Generate) -> Any:
    """The choice, unless the server has cut it off before the length that was asked for, which it does without a word."""
    choice, written = reply.choices[0], reply.usage.completion_tokens if reply.usage else None
    if choice.finish_reason == "length" and written is not None and written < request.max_new_tokens:
        raise UserError(
            f"{endpoint.name} stops a reply after {written} of {request.max_new_tokens} tokens, so its replies are not those "
            "that are asked for; serve it with a longer context (vLLM: --max-model-len), or ask for less (suite=quick)"
        )
    return choice


def _told(reply: Any) -> dict[str, Any]:
    """`read`: tokens of the prompt as the server counts them; `fingerprint`: its name for its own configuration, or None."""
    return {
        "read": reply.usage.prompt_tokens if reply.usage else None,
        "fingerprint": getattr(reply, "system_fingerprint", None),
    }
