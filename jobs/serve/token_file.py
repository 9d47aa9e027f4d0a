"""The token of a service, in a file that its user alone may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from longtake.errors import UserError

SHORTEST = 16


def read_or_make(path: Path) -> str:
    """The token in a file, which is made with a new one if it is not there.

    Raises:
        UserError: others may read the file, or what it holds is too short to be a secret.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    if path.stat().st_mode & 0o077:
        raise UserError(f"--token-file {path}: others may read it; chmod 600 it, or remove it and a new one is made")
    token = path.read_text().strip()
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"--token-file {path}: no token of {SHORTEST} letters or more; remove it and a new one is made")
    return token
