"""An exported folder is whole by itself: it is played without its store, and its card tells its scores."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.jobs.export import command as export
from longtake.jobs.export import hub
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.worlds.world import World
from tests.worlds.played import planted

RUN = "20261121-041233-k3f9"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("store"))
    planted(store, RUN)
    for system, run, value in (("block_ssm", RUN, 17.25), ("copy_last", "none", 11.5), ("block_ssm/wiped", RUN, 12.0)):
        label = {"run": run, "system": system, "checkpoint": 30 if run == RUN else 0, "task": "retrieval", "seed": 0}
        rows = [
            label
            | {
                "protocol": "abc123def456",
                "episode": e,
                "frame": 0,
                "distance": 9,
                "metric": "psnr",
                "better": "higher",
            }
            | {"value": value + e - 1.5, "dataset": "mazes", "split": "test"}
            for e in range(4)
        ]
        tables.append(store, "scores", rows, f"cells/{system}")
    return store


@pytest.fixture(scope="module")
def out(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    export.main(RUN, str(out), None, store.uri, "cc-by-4.0")
    return out


def test_an_exported_world_is_that_of_the_run(store: Store, out: Path, tmp_path: Path) -> None:
    """Also where its store is gone."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    ours, theirs = World.load(RUN, store=store.uri), World.load(str(moved), store=str(tmp_path / "no-store"))
    assert ours.about == theirs.about and theirs.action_names[0] == "forward"
    episode = store.dataset("mazes").read(0, 0, 4)
    for world in (ours, theirs):
        world.observe(episode.frames, pose=episode.pose)
    assert np.array_equal(ours.step("forward"), theirs.step("forward"))


def test_the_card_says_data_recipe_scores_floors_and_licence(out: Path) -> None:
    card = (out / "README.md").read_text()
    front = card.split("---")[1]
    assert 'license: "cc-by-4.0"' in front and 'library_name: "longtake"' in front
    assert "| retrieval | block_ssm | psnr | 17.250 [" in card and "| abc123def456 |" in card
    assert "| retrieval | copy_last | psnr | 11.500 [" in card and "block_ssm/wiped" in card
    assert "10 train, 1 val, 1 test" in card and "forward (0 or 1)" in card
    assert "steps: 30" in card and "The weights: cc-by-4.0." in card


def test_a_run_that_was_not_scored_says_so(store: Store, tmp_path: Path) -> None:
    planted(store, "20261122-041233-k3f9", name="other")
    export.main("other", str(tmp_path / "out"), None, store.uri)
    assert "has not scored this checkpoint" in (tmp_path / "out" / "README.md").read_text()


def test_a_store_that_may_only_be_read_is_enough(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, rel: str, data: bytes) -> None:
        raise UserError(f"store {self.uri} cannot be written")

    monkeypatch.setattr(Store, "write_bytes", refuse)
    export.main(RUN, str(tmp_path / "out"), None, store.uri)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store at"):
        export.main(RUN, str(tmp_path / "out"), None, str(tmp_path / "mistyped"))
    assert not list(tmp_path.iterdir())


class Hub:
    """What of huggingface_hub is used, on a folder."""

    root: Path

    def create_repo(self, repo: str, repo_type: str, exist_ok: bool) -> None:
        (self.root / repo).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return types.SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub

    def snapshot_download(repo: str, revision: str | None) -> str:
        if not (tmp_path / repo).is_dir():
            raise FileNotFoundError(repo)
        return str(tmp_path / repo)

    Hub.root = tmp_path
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return tmp_path


def test_what_is_pushed_is_played_from_the_hub(
    store: Store, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main(RUN, str(tmp_path / "out"), None, store.uri, push="someone/mazes")
    assert "hub/someone/mazes/commit/1" in capsys.readouterr().out
    world = World.load("someone/mazes")
    assert world.about.name == "block_ssm" and world.source.name == "someone/mazes"
    with pytest.raises(UserError, match="someone/nothing: the hub does not give it"):
        World.load("someone/nothing")


def test_what_cannot_be_pushed_is_told_before_anything_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--push mazes: expected OWNER/NAME"):
        export.main(RUN, str(tmp_path / "out"), None, store.uri, push="mazes")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="longtake\\[hub\\]"):
        export.main(RUN, str(tmp_path / "out"), None, store.uri, push="a/mazes")
    with pytest.raises(UserError, match="longtake\\[hub\\]"):
        World.load("a/mazes")
    assert not (tmp_path / "out").exists()


def test_the_config_of_an_exported_folder_says_what_its_actions_are(out: Path) -> None:
    told = json.loads((out / "config.json").read_text())["world"]
    assert told["controls"]["controls"][0] == {"name": "forward", "keys": ["ArrowUp", "w"], "action": [1.0, 0.0]}
    assert told["controls"]["motion"]["steps"] > 0 and told["dataset"] == "mazes"
