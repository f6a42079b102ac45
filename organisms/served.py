"""A model that is only reachable through an OpenAI-compatible endpoint: `https://host/v1#model-name`, and how it is asked."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import Field

from organisms.errors import UserError
from organisms.strict import Strict

SCHEMES = ("http://", "https://")


class EndpointPlan(Strict):
    """`audit.endpoint`: how a base that is an endpoint is asked. Its key is in the environment and written nowhere."""

    key_env: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the endpoint's key")
    workers: int = Field(default=8, gt=0, description="requests asked at once")
    max_cost_tokens: int | None = Field(default=None, gt=0, description="most tokens, read and written, that are paid for")


@dataclass(frozen=True)
class Address:
    """url: the protocol's root, as it ends in /v1; model: a name that is served there."""

    url: str
    model: str

    @classmethod
    def parse(cls, name: str) -> "Address":
        """Raises UserError where no model is named, or where the URL carries what may be a secret."""
        url, _, model = name.partition("#")
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"base {parts.scheme}://...{parts.hostname}{parts.path}: the URL carries a user, a key or a query and would "
                "stand in every reading; put the key into an environment variable and name that: endpoint.key_env=NAME"
            )
        if not model or not parts.hostname:
            raise UserError(
                f"base {name!r}: an endpoint is named by its URL and the model that it serves, https://host/v1#model"
            )
        return cls(url.rstrip("/"), model)

    @property
    def server(self) -> str:
        """Host, port and path."""
        return self.url.partition("//")[2]

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"


def is_endpoint(name: str) -> bool:
    """Whether a base is named by the URL of an endpoint."""
    return name.startswith(SCHEMES)
