"""An exported folder on the hub, through huggingface_hub: it keeps the token and does the talking."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from longtake.errors import UserError
from longtake.worlds.source import HUB


def require(repo: str) -> None:
    """Raise UserError unless it can be pushed to from here, as far as can be known without asking."""
    if not HUB.fullmatch(repo) or "@" in repo:
        raise UserError(f"--push {repo}: expected OWNER/NAME")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("--push needs huggingface_hub: pip install 'longtake[hub]'")


def push(folder: Path, repo: str) -> str:
    """Upload a folder as a model, making the repository if need be; returns the page of the commit.

    Raises:
        UserError: the hub refuses, or is out of reach.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="model", exist_ok=True)
        output = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{folder.name}, by longtake export"
        )
    except LocalTokenNotFoundError:
        raise UserError(f"--push {repo}: no token here; `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"--push {repo}: {type(error).__name__}: {error}; the folder is written: {folder}") from error
    return str(output.commit_url)
