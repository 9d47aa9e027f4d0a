"""`longtake encode`: latents as a dataset like any other; training on them equals training that encodes as it goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtake.config import load
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.mixture import open_data
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.datasets import inspect, verify
from longtake.jobs.encode import command as encode
from longtake.jobs.encode.command import EncodeConfig, Encoder, prepare
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.check import trained_on
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.jobs.latents import pictures, tokenizers
from longtake.jobs.train import command as train
from longtake.jobs.train.config import TrainConfig
from longtake.models.autoencoder import Autoencoder
from longtake.models.config import AutoencoderConfig, SamplerConfig
from longtake.models.tokenizer import AutoencoderTokenizer
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from tests.jobs.toy_data import write_dataset
from tests.jobs.train.test_latents import AUTOENCODER, WORLD, Place

EPISODES, LENGTH = 20, 16


def asked(**changes: Any) -> EncodeConfig:
    """Four episodes of latents to a shard."""
    return EncodeConfig(
        **{"name": "mazes-latents", "dataset": "mazes", "tokenizer": "squeeze", "shard_mb": 0.02} | changes
    )


def encode_here(config: EncodeConfig, store: Store) -> Dataset:
    """All of it in this process, without Ray: the actor's own code, shard by shard."""
    job = prepare(config, store)
    encode._writer(job, store).claim()
    encode.keep_tokenizer(job, store)
    actor = Encoder(job, store.uri)
    for shard in reversed(range(len(job.shards))):
        actor({"shard": shard})
    return encode.finish(job, store)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("encode")
    store = open_store(folder / "store")
    random = np.random.default_rng(0)
    walks = np.cumsum(random.normal(0, 0.3, (EPISODES, LENGTH, 3)), 1).astype(np.float32)
    frames = random.integers(0, 256, (EPISODES, LENGTH, 16, 16, 3), dtype=np.uint8)
    actions = random.normal(size=(EPISODES, LENGTH, 2)).astype(np.float32)
    rooms = {"room": np.arange(LENGTH)}
    episodes = [Episode(f, a, w, {"seed": 3}, rooms) for f, a, w in zip(frames, actions, walks, strict=True)]
    write_dataset(store, "mazes", episodes, test=0.2)
    (folder / "squeeze.yaml").write_text(AUTOENCODER)
    (folder / "inner.yaml").write_text(WORLD)
    config = load(
        TrainConfig,
        folder / "squeeze.yaml",
        ["steps=2", "checkpoint_every=2", "validation.every=2"],
        search=train.CONFIGS,
    )
    run = train.train(config, store)
    encode_here(asked(), store)
    return Place(folder, run)


def test_the_rest_of_an_episode_is_as_it_was_and_the_manifest_says_what_encoded_it(place: Place) -> None:
    pixels, latents = place.store.dataset("mazes"), place.store.dataset("mazes-latents")
    told = latents.manifest.latents
    assert told is not None and (told.dataset, told.fingerprint) == ("mazes", pixels.fingerprint)
    assert (told.tokenizer, told.step, told.frame_shape) == (place.autoencoder, 2, (16, 16, 3))
    assert latents.frame_shape == (4, 4, 4) and latents.frame_dtype == "<f4" and latents.manifest.shards == 5
    assert list(latents.index.split) == list(pixels.index.split)
    assert latents.manifest.split_rule == "as in dataset mazes"
    tokenizer = tokenizers.read(place.store, "squeeze")
    for number in (0, EPISODES - 1):
        one, other = pixels.read(number, labels=True), latents.read(number, labels=True)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.pose, other.pose)
        np.testing.assert_array_equal(one.labels["room"], other.labels["room"])
        assert one.meta == other.meta
        truth = tokenizer.encode(torch.tensor(one.frames[None]))[0].permute(0, 2, 3, 1)
        np.testing.assert_allclose(other.frames, truth, atol=1e-5)


def test_a_shard_does_not_depend_on_who_makes_it(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store/datasets/mazes-latents")
    again = encode_here(asked(), open_store(tmp_path / "store"))
    first = place.store.dataset("mazes-latents")
    assert (again.fingerprint, again.manifest.seal) == (first.fingerprint, first.manifest.seal)
    half = encode_here(asked(name="half", dtype="float16"), open_store(tmp_path / "store"))
    np.testing.assert_array_equal(half.read(0).frames, first.read(0).frames.astype(np.float16))


def test_a_bucket_gets_the_same_bytes(place: Place, bucket: str) -> None:
    there, latents = open_store(f"{bucket}/encode"), "datasets/mazes-latents/"
    there.upload_dir(place.folder / "store", "")
    theirs = place.store.find(latents)
    there.remove(theirs)
    made = encode_here(asked(), there)
    assert made.manifest.seal == place.store.dataset("mazes-latents").manifest.seal
    assert there.find(latents) == theirs and any(name.endswith(".shard") for name in theirs)
    assert not [name for name in theirs if there.read_bytes(name) != place.store.read_bytes(name)]


def test_training_on_latents_equals_training_with_the_tokenizer_on_the_fly(place: Place) -> None:
    data = ["data.dataset=mazes-latents", "tokenizer=dataset"]
    runs = [train.train(place.config("inner", *more), place.store) for more in ([], data)]
    weights = []
    for run in runs:
        with checkpoints.opened(place.store, run, 2) as folder:
            weights.append(load_file(folder / "model.safetensors"))
            assert (folder / "tokenizer/model.safetensors").is_file()
    losses = [place.store.table("steps", where=f"run == {run!r}").loss.to_numpy() for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)


def test_a_model_of_latents_is_asked_of_the_true_pixels_unless_told_otherwise(place: Place) -> None:
    run = train.train(
        place.config("inner", "name=scored", "data.dataset=mazes-latents", "tokenizer=dataset", "steps=1"), place.store
    )
    (subject,) = find_subjects(place.store, run)
    protocol = Protocol(task="retrieval", context=8, horizon=4, episodes=2, sampler=SamplerConfig(steps=1))
    own = EvaluateConfig(protocols=[protocol], wiped=False, stranger=False)
    for config, dataset in ((own, "mazes"), (own.model_copy(update={"dataset": "mazes-latents"}), "mazes-latents")):
        cells = plan_cells(config, place.store, [subject])
        assert {cell.payload.dataset for cell in cells} == {dataset}
        rows = [row for cell in cells for row in score_cell(cell.payload)]
        assert {"scored", "copy_last", "scored/reconstruction"} <= {row["system"] for row in rows}
        assert all(np.isfinite(row["value"]) for row in rows)
    asked_of = place.store.dataset("mazes")
    assert trained_on(subject, asked_of, place.store, protocol) == []
    learned = protocol.model_copy(update={"split": "train"})
    assert len(trained_on(subject, asked_of, place.store, learned)) == 2


def test_inspect_shows_decoded_pictures_and_verify_reads_all(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place.store.dataset("mazes-latents")
    frames = data.read(0).frames
    tokenizer = tokenizers.of_dataset(place.store, "mazes-latents")
    decoded = tokenizer.decode(torch.tensor(frames[None]).permute(0, 1, 4, 2, 3))[0].numpy()
    shown = pictures.shown(data, frames)
    assert shown.dtype == np.uint8 and shown.shape == (LENGTH, 16, 16, 3)
    assert np.abs(shown.astype(int) - decoded).max() <= 1
    inspect.main("mazes-latents", place.store.uri, str(tmp_path / "s.png"), str(tmp_path / "film.mp4"))
    assert place.autoencoder in capsys.readouterr().out
    assert (tmp_path / "s.png").is_file() and (tmp_path / "film.mp4").is_file()
    assert verify.main("mazes-latents", place.store.uri) == 0
    shutil.copytree(place.folder / "store/datasets", tmp_path / "datasets")
    weights = tmp_path / "datasets/mazes-latents/tokenizer/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert verify.main("mazes-latents", str(tmp_path)) == 1
    assert "tokenizer: another tokenizer than encoded these latents" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["zeroed", "swapped", "more"])
def test_a_tokenizer_that_is_not_the_one_that_encoded_is_refused_where_it_is_used(
    place: Place, tmp_path: Path, harm: str
) -> None:
    shutil.copytree(place.folder / "store/datasets", tmp_path / "datasets")
    folder, store = tmp_path / "datasets/mazes-latents/tokenizer", open_store(tmp_path)
    weights = folder / "model.safetensors"
    if harm == "zeroed":
        weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    elif harm == "swapped":
        config = json.loads((folder / "config.json").read_text())
        AutoencoderTokenizer(Autoencoder(AutoencoderConfig.model_validate_json(json.dumps(config["model"])))).save(
            folder
        )
    else:
        (folder / "more").write_text("")
    data = store.dataset("mazes-latents")
    job = prepare(asked(), place.store)
    for use in (
        lambda: tokenizers.of_dataset(store, "mazes-latents"),
        lambda: pictures.shown(data, data.read(0).frames),
        lambda: Encoder(job, store.uri),
    ):
        with pytest.raises(UserError, match="mazes-latents/tokenizer: damaged, or another tokenizer than made these"):
            use()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset": "maze"}, "unknown dataset 'maze' (did you mean mazes?)"),
        ({"dataset": "mazes-latents"}, "mazes-latents holds latents already; encode mazes, its pixels"),
        ({"tokenizer": "squeez"}, "unknown tokenizer 'squeez' (did you mean squeeze?)"),
        ({"tokenizer": "./nowhere"}, "./nowhere is no folder with a config.json"),
        ({"tokenizer": "pixels"}, "tokenizer: pixels"),
        ({"tokenizer": "dataset"}, "tokenizer: dataset"),
    ],
)
def test_what_cannot_be_encoded_is_refused(place: Place, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(asked(**changes), place.store)
    assert told in str(caught.value)


def test_frames_of_another_size_and_a_missing_package_are_told(place: Place, tmp_path: Path) -> None:
    AutoencoderTokenizer(Autoencoder(AutoencoderConfig(height=8, width=8, downsample=2, widths=[8]))).save(tmp_path)
    with pytest.raises(UserError, match="was trained on frames of 8 x 8 x 3, these are 16 x 16 x 3"):
        prepare(asked(tokenizer=str(tmp_path)), place.store)
    if shutil.which("diffusers-cli"):
        pytest.skip("diffusers is installed")
    told = {"_class_name": "AutoencoderKL", "in_channels": 3, "latent_channels": 4, "block_out_channels": [8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(told | {"scaling_factor": 0.2}))
    with pytest.raises(UserError, match="diffusers is missing: pip install"):
        prepare(asked(tokenizer=str(tmp_path)), place.store)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["tokenizer=dataset"], "tokenizer: dataset, but frames of mazes are pixels"),
        (["data.dataset=mazes-latents"], "holds latents of tokenizer"),
        (["data.dataset=mazes-latents", "tokenizer=pixels"], "tokenizer: pixels, but mazes-latents holds latents"),
        (
            ["data.dataset=mazes-latents", "tokenizer=dataset", "model.height=8"],
            "model.height: 8, but latents of mazes-latents have 4",
        ),
    ],
)
def test_trainings_that_take_latents_for_pixels_are_refused(place: Place, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        train.check(place.config("inner", *overrides), place.store)
    assert told in str(caught.value)


def test_an_autoencoder_is_not_trained_on_latents_nor_are_latents_mixed_with_others(place: Place) -> None:
    config = load(TrainConfig, place.folder / "squeeze.yaml", ["data.dataset=mazes-latents"], search=train.CONFIGS)
    with pytest.raises(UserError, match="an autoencoder is trained on pixels: take mazes"):
        train.check(config, place.store)
    AutoencoderTokenizer(Autoencoder(AutoencoderConfig(height=16, width=16, downsample=4, widths=[16, 16]))).save(
        place.folder / "other"
    )
    encode_here(asked(name="others", tokenizer=str(place.folder / "other")), place.store)
    with pytest.raises(UserError, match="others cannot be mixed with mazes-latents: tokenizer"):
        open_data(place.store, {"mazes-latents": 1, "others": 1})


def test_a_damaged_source_is_told_by_the_actor_and_leaves_no_shard(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "store", tmp_path / "store")
    store, job = open_store(tmp_path / "store"), prepare(asked(name="damaged"), place.store)
    encode.keep_tokenizer(job, store)
    shard = tmp_path / "store/datasets/mazes/shards/00000.shard"
    raw = bytearray(shard.read_bytes())
    raw[-9] ^= 1
    shard.write_bytes(bytes(raw))
    told = Encoder(job, store.uri)({"shard": len(job.shards) - 1})["problem"]
    assert "does not match; `longtake verify mazes` lists all damage" in told
    assert not (tmp_path / "store/datasets/damaged/shards").exists()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_actors_make_what_is_missing(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place.folder / "store", tmp_path / "store")
    store, made = open_store(tmp_path / "store"), tmp_path / "store/datasets/mazes-latents"
    for gone in ("manifest.json", "index.parquet", "index/00001.parquet", "index/00003.parquet"):
        (made / gone).unlink()
    again = encode.run(prepare(asked(), store), store, cpus=1)
    assert "3 of 5 shards reused" in capsys.readouterr().out
    assert again.manifest.seal == place.store.dataset("mazes-latents").manifest.seal
    encode.run(prepare(asked(), store), store)
    assert "reused" in capsys.readouterr().out
