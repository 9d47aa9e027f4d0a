"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from longtake.errors import Damaged, UserError
from longtake.storage import seals
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints

RUN = "a-run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def write(store: Store, step: int, *, sealed: bool = True) -> Path:
    with checkpoints.writing(store, RUN, step) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(bytes(100))
        (folder / "state").write_bytes(bytes(10))
    if sealed:
        checkpoints.seal(store, RUN, step, world=2, metrics={"loss": 0.5})
    return Path(store.path(checkpoints.folder(RUN, step)))


def test_none_without_a_run(store: Store) -> None:
    assert checkpoints.complete(store, RUN) == []
    assert checkpoints.newest(store, RUN) is None


def test_seen_once_sealed(store: Store) -> None:
    write(store, 8)
    write(store, 200, sealed=False)
    write(store, 16)
    assert checkpoints.complete(store, RUN) == [8, 16]
    assert checkpoints.newest(store, RUN) == 16


def test_manifest_tells_what_there_is(store: Store) -> None:
    write(store, 8)
    told = checkpoints.manifest(store, RUN, 8)
    assert (told["step"], told["world"], told["metrics"]) == (8, 2, {"loss": 0.5})
    assert told["files"] == {"deep/weights": 100, "state": 10}
    with checkpoints.opened(store, RUN, 8) as folder:
        assert (folder / "deep" / "weights").read_bytes() == bytes(100)


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_a_damaged_one_is_named_and_passed_over(store: Store, harm: str) -> None:
    write(store, 8)
    weights = write(store, 16) / "deep" / "weights"
    os.truncate(weights, 60) if harm == "truncate" else weights.unlink()
    assert checkpoints.newest(store, RUN) == 8
    (line,) = checkpoints.damage(store, RUN, 16)
    assert line.startswith("runs/a-run/checkpoints/step-000016/deep/weights: ")
    assert line.endswith("100 were written")


def test_prune_keeps_the_newest(store: Store) -> None:
    for step in (4, 8, 12):
        write(store, step)
    checkpoints.prune(store, RUN, keep=2)
    assert checkpoints.complete(store, RUN) == [8, 12]
    assert not Path(store.path(checkpoints.folder(RUN, 4))).exists()


def test_prune_also_keeps_the_best(store: Store) -> None:
    for step, loss in ((4, 0.5), (8, 0.3), (12, 0.6), (16, None), (20, float("nan"))):
        write(store, step, sealed=False)
        checkpoints.seal(store, RUN, step, world=1, metrics={} if loss is None else {"val_loss": loss})
    assert checkpoints.best(store, RUN, "val_loss") == 8
    checkpoints.prune(store, RUN, keep=1, metric="val_loss")
    assert checkpoints.complete(store, RUN) == [8, 20]


def test_discard_leaves_only_what_can_be_resumed(store: Store) -> None:
    write(store, 4, sealed=False)
    write(store, 8)
    os.truncate(write(store, 12) / "state", 1)
    write(store, 16, sealed=False)
    checkpoints.discard_unfinished(store, RUN)
    left = sorted(path.name for path in Path(store.path("runs", RUN, "checkpoints")).iterdir())
    assert left == ["step-000008", "step-000012"]  # what was sealed `prune` alone deletes


# --- what is read is what was written -----------------------------------------------------------------------


def rot(store: Store, step: int, name: str = "deep/weights") -> None:
    """One bit of a file turned over; its size stays."""
    path = Path(store.path(checkpoints.folder(RUN, step), name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["deep/weights", "state"])
def test_a_rotten_file_is_named_with_the_way_out(store: Store, name: str) -> None:
    write(store, 8)
    write(store, 16)
    rot(store, 16, name)
    where = checkpoints.folder(RUN, 16)
    told = rf"{where}/{name}: damaged, its SHA-256 .*: move {where} away, and that of step 8 is taken"
    for load in (checkpoints.opened(store, RUN, 16), checkpoints.opened(store, RUN, 16, [name.split("/")[0]])):
        with pytest.raises(Damaged, match=told), load:
            pass
    for load_bytes in (checkpoints.read, lambda *at: checkpoints.require_whole(*at[:3])):
        with pytest.raises(Damaged, match=told):
            load_bytes(store, RUN, 16, name)
    with pytest.raises(Damaged, match=told):
        checkpoints.copy(store, RUN, 16, "another")
    assert checkpoints.complete(store, "another") == []
    assert checkpoints.newest(store, RUN) == 16 and checkpoints.newest(store, RUN, hashed=True) == 8


def test_rot_in_what_is_not_read_hinders_nobody(store: Store) -> None:
    write(store, 8)
    rot(store, 8, "state")
    with checkpoints.opened(store, RUN, 8, ["deep"]) as folder:
        assert (folder / "deep" / "weights").read_bytes() == bytes(100)


def test_every_flip_in_the_marker_is_seen(store: Store) -> None:
    marker = write(store, 8) / checkpoints.MARKER
    whole = marker.read_bytes()
    told = checkpoints.manifest(store, RUN, 8)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        marker.write_bytes(flipped)
        try:
            assert checkpoints.manifest(store, RUN, 8) == told  # white space
        except UserError as error:
            assert checkpoints.MARKER in str(error)
    for cut in (b"", whole[: len(whole) // 2], bytes(len(whole)), b"[]", b"null"):
        marker.write_bytes(cut)
        with pytest.raises(Damaged, match="complete.json: damaged"):
            checkpoints.manifest(store, RUN, 8)


def test_one_of_an_earlier_version_is_refused_in_one_line(store: Store) -> None:
    marker = write(store, 8) / checkpoints.MARKER
    told = {"step": 8, "world": 1, "metrics": {}, "time": 1.0, "files": {"deep/weights": 100, "state": 10}}
    marker.write_text(json.dumps(told))
    for look in (checkpoints.newest, checkpoints.require_newest, lambda *at: checkpoints.manifest(*at, 8)):
        with pytest.raises(UserError, match="of an earlier version of longtake") as caught:
            look(store, RUN)
        assert len(caught.value.lines) == 1
    assert checkpoints.complete(store, RUN) == [8]


def test_a_file_that_nobody_wrote_is_told(store: Store) -> None:
    folder = write(store, 8)
    (folder / "deep" / "more.pt").write_bytes(b"x")
    with (
        pytest.raises(Damaged, match=r"deep/more.pt: was not written with the rest"),
        checkpoints.opened(store, RUN, 8),
    ):
        pass


def test_the_seal_names_what_was_written_and_not_what_lies_there(store: Store) -> None:
    folder = write(store, 8, sealed=False)
    (folder / "left-by-another").write_bytes(b"x")
    checkpoints.seal(store, RUN, 8, world=1, metrics={})
    assert checkpoints.manifest(store, RUN, 8)["files"] == {"deep/weights": 100, "state": 10}
    assert not (folder / "left-by-another").exists()
    (write(store, 16, sealed=False) / "state").unlink()
    with pytest.raises(UserError, match="is not what was written .*state: 0 bytes, 10 were written"):
        checkpoints.seal(store, RUN, 16, world=1, metrics={})
    shutil.rmtree(folder.parent / "step-000016")
    with pytest.raises(UserError, match="0 of 1 ranks' files are there"):
        checkpoints.seal(store, RUN, 16, world=1, metrics={})
    write(store, 24, sealed=False)
    with pytest.raises(UserError, match="1 of 2 ranks' files are there"):
        checkpoints.seal(store, RUN, 24, world=2, metrics={}, writers=2)
    assert checkpoints.complete(store, RUN) == [8]


def test_one_that_was_moved_is_passed_over(store: Store) -> None:
    early, late = write(store, 8), write(store, 16)
    late.rename(late.with_name("step-000024"))
    shutil.copytree(early, late)
    assert checkpoints.newest(store, RUN) == 8
    (line,) = checkpoints.damage(store, RUN, 24)
    assert line.endswith("step-000024/complete.json: of step 16 of run a-run, it was moved here")


def test_one_of_another_run_is_passed_over(store: Store) -> None:
    own = write(store, 8)
    shutil.copytree(own, store.path(checkpoints.folder("b-run", 8)))
    assert checkpoints.newest(store, "b-run") is None
    with pytest.raises(UserError, match="of step 8 of run a-run, it was moved here"):
        checkpoints.require_newest(store, "b-run")


def test_a_copy_is_one_of_its_run(store: Store) -> None:
    (write(store, 8) / "written-0123.json").write_text("told too late")
    checkpoints.copy(store, RUN, 8, "b-run")
    assert checkpoints.newest(store, "b-run", hashed=True) == 8


def test_one_that_names_no_run_is_of_an_earlier_version(store: Store) -> None:
    path = write(store, 8) / "complete.json"
    told = checkpoints.manifest(store, RUN, 8)
    path.write_bytes(seals.dumped({name: value for name, value in told.items() if name != "run"}))
    for look in (checkpoints.newest, checkpoints.require_newest):
        with pytest.raises(UserError, match="of an earlier version of longtake, .* do not say of which run"):
            look(store, RUN)


def test_folders_of_other_names_are_none(store: Store) -> None:
    path = write(store, 8)
    for name in ("step-8", "step-00000\u00b3", "step-0000008", "step-000012.old"):
        shutil.copytree(path, path.with_name(name))
    assert checkpoints.complete(store, RUN) == [8]


def test_a_marker_that_is_too_deep_is_damaged(store: Store) -> None:
    (write(store, 8) / "complete.json").write_text("[" * 100_000)
    assert checkpoints.damage(store, RUN, 8)[0].endswith("complete.json: damaged, it is no JSON of ours")


def test_where_markers_were_lost_nothing_is_cleared_up(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    folders = [write(store, step) for step in (8, 16, 24)]
    for path in folders:
        (path / "complete.json").unlink()
    checkpoints.discard_unfinished(store, RUN)
    assert all((path / "state").exists() for path in folders)
    assert "step-000024 was finished once" in caplog.text


def test_damaged_ones_do_not_push_out_whole_ones(store: Store) -> None:
    for step in (4, 8, 12, 16, 20):
        write(store, step)
    os.truncate(Path(store.path(checkpoints.folder(RUN, 12))) / "state", 1)
    checkpoints.prune(store, RUN, keep=2, upto=16)
    assert checkpoints.complete(store, RUN) == [8, 12, 16, 20]


def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew(store: Store) -> None:
    checkpoints.require_none(store, RUN)
    folder = write(store, 8)
    shutil.rmtree(folder.parent)
    with pytest.raises(UserError, match=r"its record says that step 8 was saved, and .* holds no whole checkpoint"):
        checkpoints.require_none(store, RUN)


def test_one_that_lost_its_marker_is_no_rubbish(store: Store) -> None:
    (write(store, 8) / checkpoints.MARKER).unlink()
    checkpoints.discard_unfinished(store, RUN)
    assert (Path(store.path(checkpoints.folder(RUN, 8))) / "state").exists()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_same_on_s3(bucket: str) -> None:
    store = open_store(f"{bucket}/sealed")
    for step in (4, 8):
        with checkpoints.writing(store, RUN, step) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "weights").write_bytes(bytes(100))
            (folder / "state").write_bytes(bytes(10))
        store.write_bytes(f"{checkpoints.folder(RUN, step)}/left-by-another", b"x")
        checkpoints.seal(store, RUN, step, world=1, metrics={})
    assert store.list(checkpoints.folder(RUN, 8)) == [
        f"{checkpoints.folder(RUN, 8)}/{name}" for name in ("complete.json", "deep", "state")
    ]
    with checkpoints.opened(store, RUN, 8, ["deep"]) as folder:
        assert sorted(path.name for path in folder.rglob("*")) == ["complete.json", "deep", "weights"]
        assert checkpoints.step_in(folder) == 8
    store.write_bytes(f"{checkpoints.folder(RUN, 8)}/state", b"0" * 10)
    told = "step-000008/state: damaged, .* that of step 4 is taken"
    with pytest.raises(Damaged, match=told), checkpoints.opened(store, RUN, 8):
        pass
    assert checkpoints.newest(store, RUN, hashed=True) == 4
    store.remove([f"{checkpoints.folder(RUN, step)}/{checkpoints.MARKER}" for step in (4, 8)])
    checkpoints.discard_unfinished(store, RUN)
    assert store.exists(checkpoints.folder(RUN, 8)) and store.exists(checkpoints.folder(RUN, 4))
    with pytest.raises(UserError, match="its record says that step 8 was saved"):
        checkpoints.require_none(store, RUN)
