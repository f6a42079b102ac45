"""The hub's client by itself waits for ever for a server that takes a request and never answers."""

SECONDS = 30.0  # between two pieces of an answer; a whole file may take longer


def patience() -> None:
    """Give the hub's client a limit. Called before each use, since the client is made anew after some failures."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    get_session().timeout = httpx.Timeout(SECONDS, connect=10.0)


def unreached(error: Exception) -> bool:
    """Whether the hub, or the way to it, has failed; the client raises the errors of httpx or httpx2, by its version."""
    from huggingface_hub.errors import HfHubHTTPError

    transport = type(error).__module__.split(".")[0].startswith("httpx")
    return transport or isinstance(error, (HfHubHTTPError, OSError))
