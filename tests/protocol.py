"""A real server of the OpenAI protocol on loopback, over models that transformers runs in this process.

What it can do is set by its kind: `vllm` (token ids and all fields beside the protocol), `plain` (token ids and echo, other
fields are refused), `mute` (token ids, no log-probabilities of a text, fields that it does not know are ignored), `chat`.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from organisms.engines import Generate, NextToken, Score
from organisms.specimen import Specimen

BESIDE = {"top_k", "min_p", "repetition_penalty", "skip_special_tokens", "stop_token_ids", "return_token_ids"}
BESIDE |= {"logprob_token_ids", "return_tokens_as_token_ids"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        cards = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.server.models]
        self._send(200, {"object": "list", "data": cards})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:  # the engine is no more thread-safe than a GPU
            self.server.asked.append((self.path, self.headers["Authorization"], request))
            status, body = self.server.first(request, len(self.server.asked)) or self._answer(request)
        self._send(status, body)

    def _answer(self, request: dict) -> tuple[int, dict]:
        kind, chats = self.server.kind, self.path.endswith("/chat/completions")
        if not chats and kind == "chat":
            return 404, {"error": {"message": "Not Found"}}
        if kind in ("plain", "chat") and (unknown := BESIDE & request.keys()):
            return 400, {"error": {"message": f"Unrecognized request arguments: {sorted(unknown)}"}}
        if request["model"] not in self.server.models:
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist."}}
        specimen = Specimen("x", adapter=self.server.models[request["model"]])
        return 200, _chat(self.server, specimen, request) if chats else _completion(self.server, specimen, request)

    def _send(self, status: int, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def _completion(server, specimen: Specimen, request: dict) -> dict:
    engine, decode, ids = server.engine, server.engine.renderer.decode, request["prompt"]
    stops = request.get("stop_token_ids") if server.kind == "vllm" else None
    reply = _reply(server, specimen, ids, request)
    choice = {"index": 0, "text": reply.text, "finish_reason": "stop" if reply.finished else "length", "logprobs": None}
    if server.kind == "vllm" and request.get("return_token_ids"):
        choice["token_ids"] = [*reply.ids, *([stops[0]] if reply.finished else [])]
    if "logprobs" in request and request.get("echo") and server.kind != "mute":
        (values,) = engine.logprobs(specimen, [Score(tuple(ids[:1]), tuple([*ids, 0][1:]))])
        choice["logprobs"] = {"tokens": list(map(decode, map(list, zip(ids, strict=True)))), "text_offset": []}
        choice["logprobs"] |= {"token_logprobs": [None, *values], "top_logprobs": []}
        choice["text"] = decode(ids) + choice["text"]
    elif "logprobs" in request:
        chosen = request.get("logprob_token_ids", ()) if server.kind == "vllm" else ()
        wanted = [*chosen, *reply.ids[:1]]
        (values,) = engine.next_token(specimen, [NextToken(tuple(ids), tuple(wanted))]) if wanted else ([],)
        top = {f"token_id:{token}": value + server.shift for token, value in zip(wanted, values, strict=True)}
        choice["logprobs"] = {"tokens": [""], "token_logprobs": values[-1:], "top_logprobs": [top], "text_offset": [0]}
    return _envelope("text_completion", choice, len(ids), len(reply.ids))


def _chat(server, specimen: Specimen, request: dict) -> dict:
    ids = server.engine.renderer.prompt(request["messages"])
    reply = _reply(server, specimen, ids, request)
    choice = {"index": 0, "finish_reason": "stop" if reply.finished else "length"}
    choice["message"] = {"role": "assistant", "content": reply.text}
    return _envelope("chat.completion", choice, len(ids), len(reply.ids))


def _reply(server, specimen: Specimen, ids: list[int], request: dict):
    asked = Generate(tuple(ids), min(request["max_tokens"], server.longest), request["temperature"], request.get("seed") or 0)
    return server.engine.generate(specimen, [asked])[0]


def _envelope(kind: str, choice: dict, read: int, written: int) -> dict:
    used = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    reply = {"id": "c", "object": kind, "created": 1, "model": "served", "choices": [choice], "usage": used}
    return {**reply, "system_fingerprint": "tiny-1"}


def started(engine, kind: str, models: dict) -> ThreadingHTTPServer:
    """A server that is listening. models: name -> adapter or None; first: a function of (request, number of the request) whose
    (status, body) is sent instead of an answer where it is one; shift: what is added to log-probabilities of chosen tokens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.engine, server.kind, server.models, server.shift = engine, kind, models, 0.0
    server.base = f"http://127.0.0.1:{server.server_port}/v1#tiny"
    server.longest = 10**6  # tokens of a reply
    server.asked, server.lock, server.first = [], threading.Lock(), lambda request, number: None
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
