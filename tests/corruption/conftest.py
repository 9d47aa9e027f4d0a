"""The store that is mutated, made once for all tests here, by somebody whose environment is full of secrets."""

from __future__ import annotations

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
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """See `tests.corruption.base`."""
    with pytest.MonkeyPatch.context() as patch:
        _plant(patch)
        return make(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test here and no longer: a token in the environment is what the tests after these would use."""
    _plant(monkeypatch)


def _plant(patch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        patch.setenv(name, value)
