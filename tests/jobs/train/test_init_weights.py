"""Where a training's first weights come from, and how its last ones leave: exports, other runs, language models."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from longtake.errors import UserError
from longtake.jobs.export import command as export
from longtake.jobs.train import command as train
from longtake.models.checkpoint import load_model
from longtake.storage.store import open_store
from longtake.training import checkpoints
from tests.jobs.train.toy import apart, config_of, run
from tests.models.test_mamba2_import import language_model, written


def test_a_language_model_gives_the_first_weights(place: Path) -> None:
    lm = place / "lm"
    written(lm, language_model(), "safetensors")  # dim 16, d_state 8, headdim 8
    store, begin = open_store(place / "store"), [f"init.mamba2_lm={lm}", "model.d_state=8", "steps=1"]
    first = run(store, "filled", config_of(place, *begin, "engine.lr=1e-9", "engine.weight_decay=0"))
    expected = load_file(lm / "model.safetensors")["backbone.layers.1.mixer.in_proj.weight"]
    assert (first["layers.1.ssm.in_proj.weight"] - expected).abs().max() < 1e-6
    (lm / "model.safetensors").unlink()
    run(store, "filled", config_of(place, *begin, "steps=2"))  # what is resumed needs it no more
    with pytest.raises(UserError) as caught:
        train.check(config_of(place, *begin), store)
    assert f"init.mamba2_lm: {lm}: no checkpoint here" in str(caught.value)


def test_an_exported_run_is_read_and_trained_on(place: Path, trained: str, tmp_path: Path) -> None:
    store, out = open_store(place / "store"), tmp_path / "out"
    export.main(trained, str(out), None, str(place / "store"))
    with checkpoints.opened(store, trained, 2) as folder:
        weights = load_file(folder / "model.safetensors")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]
    assert apart(dict(load_model(out).state_dict()), weights) == 0
    for named in (trained, str(out)):
        begin = config_of(place, "steps=1", f"init.run={named}", "engine.lr=1e-9", "engine.weight_decay=0")
        train.check(begin, store)
        assert apart(run(store, f"from-{len(named)}", begin), weights) < 1e-6
    settled = train._settled(config_of(place, "init.run=toy", "seed=11"), store)
    assert settled.init is not None and settled.init.step is not None


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["init.run=toyy"], "init: unknown run 'toyy' (did you mean toy?)"),
        (["init.run=TRAINED", "init.step=1"], "has no checkpoint of step 1; it has 2"),
        (["init.run=TRAINED", "model.dim=32"], "init.run: its weights do not fit this model: model.dim: 16 then, 32"),
        (["init.run=./nowhere"], "init: ./nowhere has no model.safetensors and no config.json"),
    ],
)
def test_weights_that_cannot_begin_a_run_are_refused(
    place: Path, trained: str, overrides: list[str], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        train.check(config_of(place, *(o.replace("TRAINED", trained) for o in overrides)), open_store(place / "store"))
    assert told in str(caught.value)


def test_weights_have_one_source(place: Path) -> None:
    with pytest.raises(UserError, match="init: give one of run and mamba2_lm"):
        config_of(place, "init.run=a", "init.mamba2_lm=b")


def test_export_refuses_what_is_there_and_what_is_not(place: Path, trained: str, tmp_path: Path) -> None:
    store = str(place / "store")
    with pytest.raises(UserError, match="is there already"):
        export.main(trained, str(place), None, store)
    with pytest.raises(UserError, match=f"run {trained} has no checkpoint of step 1; it has 2"):
        export.main(trained, str(tmp_path / "out"), 1, store)
    with pytest.raises(UserError, match="unknown run 'nobody'"):
        export.main("nobody", str(tmp_path / "out"), None, store)
    with pytest.raises(UserError, match=r"unknown run 'tooy' \(did you mean toy\?\)"):
        train.train(config_of(place), open_store(store), resume="tooy")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_export_is_refused_by_name(place: Path, trained: str, tmp_path: Path, name: str) -> None:
    out, store = tmp_path / "out", open_store(place / "store")
    export.main(trained, str(out), None, store.uri)
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out).returncode == 0
    begin = config_of(place, "steps=1", f"init.run={out}")
    train.check(begin, store)
    (out / name).write_bytes((out / name).read_bytes()[:-1] + b" ")
    with pytest.raises(UserError, match=f"{name}: damaged, its SHA-256 is not that in SHA256SUMS: export it again"):
        train.check(begin, store)
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        load_model(out)
    (out / "SHA256SUMS").unlink()
    if name == "model.safetensors":
        with pytest.raises(UserError, match="exported by an earlier version, without SHA256SUMS: export it again"):
            train.check(begin, store)
