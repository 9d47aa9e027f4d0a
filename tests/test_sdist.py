"""The source distribution builds without the checkout, and its wheel is the checkout's, byte for byte."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.test_house import ROOMS, ROOT


def wheel(root: Path, folder: Path) -> dict[str, bytes]:
    """What the wheel of a folder holds."""
    (built,) = WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_its_wheel_is_that_of_the_checkout(tmp_path: Path) -> None:
    (packed,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path / "sdist"), versions=["standard"])
    with tarfile.open(packed) as file:
        names = file.getnames()
        file.extractall(tmp_path, filter="data")
        assert not [member.name for member in file if member.issym() or member.islnk()]
    assert len(names) == len(set(names))
    root = tmp_path / Path(packed).name.removesuffix(".tar.gz")
    ours, its = wheel(ROOT, tmp_path / "ours"), wheel(root, tmp_path / "its")
    assert its == ours
    for room in ROOMS:
        assert f"{room.replace('.', '/')}/__init__.py" in ours
    assert "longtake/jobs/configs/train/demo.yaml" in ours and "longtake/jobs/report/page.html" in ours
