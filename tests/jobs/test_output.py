"""What others wrote is shown and never obeyed, by terminal, spreadsheet or shell; and passwords are told nobody."""

from __future__ import annotations

import errno
import os
import shlex
from typing import Any

import pandas as pd
import pytest

from longtake.cluster import launch
from longtake.errors import UserError
from longtake.jobs.display.escapes import no_formula, printable
from longtake.jobs.display.table_formats import FORMATS
from longtake.jobs.exit_codes import ended
from longtake.storage.store import open_store

EVIL = "\x1b]0;owned\x07\x1b[2J=cmd"
FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1"]


def test_a_terminal_obeys_no_name() -> None:
    frame = pd.DataFrame({"name\x1b[31m": [EVIL, "plain ä 図"], "value": [1.5, None]})
    for kind in ("table", "md"):
        text = FORMATS[kind](frame).decode()
        assert "\x1b" not in text and "\x07" not in text
        assert "\\x1b]0;owned\\x07" in text and "plain ä 図" in text
    assert printable("plain ä 図") == "plain ä 図" and printable("\u202eabc") == "\\u202eabc"


def test_an_error_that_names_a_file_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"unknown run {EVIL}")

    assert ended(fail) == 2
    assert capsys.readouterr().err == "error: unknown run \\x1b]0;owned\\x07\\x1b[2J=cmd\n"


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EROFS])
def test_a_file_system_that_refuses_is_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/store/runs/r/x.pt")

    assert ended(fail) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: /store/runs/r/x.pt: {os.strerror(code)}") and errno.errorcode[code] in told
    assert told.count("\n") == 1


def test_a_spreadsheet_computes_no_cell() -> None:
    frame = pd.DataFrame({"=name": FORMULAS, "value": [-1.0, 2, -3, 4, 5, None], "whole": range(-3, 3)})
    head, *lines = FORMATS["csv"](frame).decode().replace("\r", "").splitlines()
    assert head == "'=name,value,whole"
    assert lines[0] == "'=1+1,-1.0,-3" and lines[2] == "'-1+2,-3.0,-1"  # numbers stay numbers
    for text in FORMULAS:
        assert no_formula(text) == f"'{text}"
    assert no_formula("a=1") == "a=1" and no_formula(-1) == -1


def test_commands_that_are_printed_can_be_pasted(tmp_path: Any) -> None:
    store = open_store(tmp_path / "my store; rm -rf x")
    assert shlex.split(f"longtake runs --store {store.argument}") == ["longtake", "runs", "--store", store.uri]
    assert open_store("s3://bucket/wm").argument == "s3://bucket/wm"


@pytest.mark.parametrize(
    "address",
    ["https://me:hunter2@mlflow.example", "https://mlflow.example/?token=hunter2", "https://hunter2@mlflow.example"],
)
def test_a_password_in_an_address_is_handed_to_nobody(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "AWS_ENDPOINT_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, address)
            with pytest.raises(UserError, match=f"{name}: has a password in it") as caught:
                launch._without_password(name)
            assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example:5000/path?experiment=3")
    assert launch._without_password("MLFLOW_TRACKING_URI").endswith("experiment=3")
