"""What is fetched from the hub. Its client waits for ever for a server that never answers; here it gets a limit."""

import re
from pathlib import Path
from typing import Any

from organisms.errors import Missing, UserError, first_line

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


def snapshot(repository: str, revision: str | None, patterns: list[str]) -> str:
    """The directory of a hub repository at a revision (branch, tag, commit, or a commit's first digits), files by pattern."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision
    from huggingface_hub.utils import httpx

    patience()
    try:
        if revision and re.fullmatch("[0-9a-f]{7,39}", revision):
            revision = _whole_revision(repository, revision)
        return snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no hub id (owner/name): {first_line(error)}") from None
    except GatedRepoError:
        raise UserError(f"{repository} is gated: accept its licence on the hub, then `hf auth login`") from None
    except NoRevision:
        raise UserError(f"{repository} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UserError(f"{repository} is not on the hub (or is private: `hf auth login`); check the spelling") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, httpx.TransportError) as error:
        raise Missing(
            f"{repository} is not in the local hub cache and the hub cannot be reached ({type(error).__name__}); "
            "connect, or give the path of a local directory"
        ) from None


def _whole_revision(repository: str, short: str) -> str:
    """The commit that begins with these digits: of those in the local cache, else of the hub's, which knows whole ones only."""
    from huggingface_hub import HfApi, constants

    cached = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots")
    here = [path.name for path in cached.glob(f"{short}*")]
    if len(here) == 1:
        return here[0]
    commits = [commit.commit_id for commit in HfApi().list_repo_commits(repository)]
    return next((commit for commit in commits if commit.startswith(short)), short)
