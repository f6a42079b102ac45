"""The hub's client waits for ever for a server that takes a request and never answers; here it gets a limit."""

from typing import Any

CONNECT, SECONDS = 10.0, 30.0  # seconds to reach it; seconds between two pieces of an answer, a whole file may take longer


def patience() -> None:
    """Limit the waiting of the hub's client. Called before each use, since the client is made anew after some failures.

    By a hook, because the client's own limit does not count: most calls pass on that they have none.
    """
    from huggingface_hub import get_session

    client = get_session()
    hooks = client.event_hooks
    if _limited not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limited]}


def _limited(request: Any) -> None:
    stated = request.extensions.get("timeout", {})
    limits = {"connect": CONNECT, "pool": CONNECT, "read": SECONDS, "write": SECONDS}
    request.extensions["timeout"] = {name: stated.get(name) or limit for name, limit in limits.items()}


def unreached(error: Exception) -> bool:
    """Whether the hub, or the way to it, has failed; the client raises the errors of httpx or httpx2, by its version."""
    from huggingface_hub.errors import HfHubHTTPError

    transport = type(error).__module__.split(".")[0].startswith("httpx")
    return transport or isinstance(error, (HfHubHTTPError, OSError))
