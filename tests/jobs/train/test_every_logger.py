"""The contract of a logger, for every one that is registered: what a training counts on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from longtake.jobs.train.loggers import loggers, modules
from longtake.jobs.train.loggers.base import MetricLogger


@pytest.mark.parametrize("name", loggers())
def test_it_is_a_logger_with_a_card(name: str) -> None:
    is_a_logger(name)


@pytest.mark.parametrize("name", loggers())
def test_a_run_goes_on_in_a_second_session(name: str, tmp_path: Path) -> None:
    goes_on_in_a_second_session(name, tmp_path)


def is_a_logger(name: str) -> None:
    """It has the whole face, and says what it needs and where that is from."""
    logger = loggers()[name]
    assert issubclass(logger, MetricLogger) and not logger.__abstractmethods__
    assert (logger.package is None) == (not logger.install)
    assert len((modules()[name].__doc__ or "").strip()) > 20


def goes_on_in_a_second_session(name: str, folder: Path) -> None:
    """It takes steps, some of them again, and leaves something in the folder that it is given."""
    package = loggers()[name].package
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for steps in (range(3), range(2, 4)):
        logger = loggers()[name](folder, "20260101-000000-abcd", {"name": "toy", "engine": {"lr": 0.1}})
        for step in steps:
            logger.add(step, {"loss": 1 / (1 + step), "val_loss.16": 0.5})
        logger.flush()
        logger.close()
    assert [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
