"""The store that is mutated, made once for all tests here, by somebody whose environment is full of secrets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.corruption.base import Base, make

PLANTED = {
    name: f"planted-{number}-0123456789"
    for number, name in enumerate(
        (
            "AWS_SESSION_TOKEN",
            "MLFLOW_TRACKING_PASSWORD",
            "WANDB_API_KEY",
            "HF_TOKEN",
            "RAY_AUTH_TOKEN",
            "PGPASSWORD",
            "GITHUB_TOKEN",
        )
    )
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """See `tests.corruption.base`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        yield make(tmp_path_factory.mktemp("base"))
