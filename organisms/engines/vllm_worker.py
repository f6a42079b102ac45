"""The process that vLLM runs in: JSON lines in on stdin, JSON lines out on stdout, until stdin ends.

The first line holds the arguments of `vllm.LLM`, every further one prompts, sampling parameters and an adapter; the answer to
each is one line, {"answers": ...} or {"error": ...}. Nothing listens on a port, and the end of the parent ends this process,
also in the middle of an answer.
"""

import json
import os
import queue
import sys
import threading


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    engine = None
    while True:
        message = json.loads(lines.get())
        try:
            if engine is None:
                engine, answer = _start(message), {"answers": []}
            else:
                answer = {"answers": _answer(engine, **message)}
        except Exception as error:  # the parent tells it to the user
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read(lines: queue.Queue) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _start(settings: dict):
    from vllm import LLM

    return LLM(**settings)


def _answer(engine, prompts: list[list[int]], parameters: list[dict], adapter: list | None) -> list[dict]:
    """For each prompt: `ids` that were generated; `prompt` and `chosen` log-probabilities (nats) where they are asked for."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    # Requests that begin alike share what they have in common; what earlier calls left must not change a last bit.
    engine.reset_prefix_cache()
    outputs = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        [SamplingParams(**one, detokenize=False) for one in parameters],
        lora_request=LoRARequest(*adapter) if adapter else None,
        use_tqdm=False,
    )
    return [_found(*one) for one in zip(outputs, prompts, parameters, strict=True)]


def _found(output, ids: list[int], asked: dict) -> dict:
    reply = output.outputs[0]
    found = {"ids": list(reply.token_ids)}
    if "prompt_logprobs" in asked:
        rows = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        found["prompt"] = [row[token].logprob for row, token in rows]
    if "logprob_token_ids" in asked:
        found["chosen"] = [reply.logprobs[0][token].logprob for token in asked["logprob_token_ids"]]
    return found


if __name__ == "__main__":
    main()
