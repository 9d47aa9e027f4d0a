"""`longtake configs`: every shipped config, a line each, and one whole."""

from __future__ import annotations

import pytest

from longtake.config import SHIPPED_FOLDER
from longtake.errors import UserError
from longtake.jobs.lookup import shipped_configs


def test_every_shipped_config_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    shipped_configs.main(None)
    lines = capsys.readouterr().out.splitlines()
    files = list(SHIPPED_FOLDER.glob("*/*.yaml"))
    assert len(files) > 50 and len([line for line in lines if line.startswith("  ")]) == len(files)
    assert not [line for line in lines if len(line.split(maxsplit=1)[1]) < 20]
    assert "train: `longtake train NAME`; base: longtake:train/NAME" in lines


def test_one_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/demo-memoryless", "longtake:train/demo-memoryless", "demo-memoryless"):
        shipped_configs.main(name)
        assert "null_context" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean train/tiny"):
        shipped_configs.main("train/tyni")
