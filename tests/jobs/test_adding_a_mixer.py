"""What docs/adding-a-mixer.md tells people to write works: one file trains, is scored, profiled, diagnosed rightly."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import longtake.models.mixers
from longtake.evals.protocol import Protocol
from longtake.jobs.cli import main as cli
from longtake.jobs.diagnose import command as diagnose
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.jobs.export import command as export
from longtake.jobs.presets import in_words
from longtake.jobs.train import command as train
from longtake.jobs.train.check import memory_problems
from longtake.jobs.train.loop import train_loop
from longtake.jobs.train.loss import TrainingLoss
from longtake.models.checkpoint import load_model
from longtake.models.config import ModelConfig
from longtake.storage.store import open_store
from longtake.tables import table as tables
from tests.jobs.diagnose.test_command import CHEAP, changes, facts, horizon
from tests.jobs.evaluate import toy
from tests.jobs.toy_data import write_dataset
from tests.jobs.train import toy as training
from tests.jobs.train.rings import config_of, held_out, learn, walk
from tests.models import test_every_mixer
from tests.models.families import build

TEXT = (Path(__file__).parents[2] / "docs" / "adding-a-mixer.md").read_text()
(MIXER,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(LAYERS,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
EMA = "model.layers=[{mixer: ema}]"


@pytest.fixture(autouse=True)
def ema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file of the how-to, as if it lay in the folder."""
    (tmp_path / "ema.py").write_text(MIXER)
    monkeypatch.setattr(longtake.models.mixers, "__path__", [*longtake.models.mixers.__path__, str(tmp_path)])
    longtake.models.mixers.mixers.cache_clear()
    longtake.models.mixers.local_mixers.cache_clear()
    yield
    sys.modules.pop("longtake.models.mixers.ema", None)
    longtake.models.mixers.mixers.cache_clear()
    longtake.models.mixers.local_mixers.cache_clear()


def test_it_keeps_the_contract() -> None:
    config, kept = test_every_mixer.config_of("mixer", "ema"), 0
    for name, function in inspect.getmembers(test_every_mixer, inspect.isfunction):
        asked = set(inspect.signature(function).parameters)
        if name.startswith("test_") and asked and asked <= {"config", "model", "cuts", "frame"}:
            given = {"config": config, "model": build(config), "cuts": [1, 2, 7], "frame": 5}
            function(**{parameter: given[parameter] for parameter in asked})
            kept += 1
    assert kept >= 10


def test_the_layers_of_the_how_to_are_a_model() -> None:
    sizes = {"height": 8, "width": 8, "patch": 4, "dim": 16, "heads": 2}
    config = ModelConfig.model_validate(sizes | yaml.safe_load(LAYERS)["model"])
    assert in_words(config) == "2 layers: ema 1x1 + attention 6, ema 2x2 + attention 6"
    wrong = sizes | {"layers": [{"mixer": "ema", "options": {"longest": 0.5}}]}
    with pytest.raises(ValueError, match=r"options\.longest: .*options of mixer ema: longest"):
        ModelConfig.model_validate(wrong)


def test_it_trains_and_a_state_that_cannot_be_cut_is_not_cut() -> None:
    config = config_of(steps=60, model={"layers": [{"mixer": "ema"}] * 2}, memory={"regularise": 1e-4})
    same = walk(8, 16, 0)
    losses = []
    for steps in (1, 60):
        model = learn(config.model_copy(update={"steps": steps}), lambda step: same)
        losses.append(sum(part.item() for part in TrainingLoss(config, model, model).losses(same, 0)))
    assert losses[1] < 0.8 * losses[0]
    assert [name for name, _ in held_out(config, model, clips=4)[1].states] == ["layers.0.ssm", "layers.1.ssm"]
    told = memory_problems(config_of(model={"layers": [{"mixer": "ema"}]}, memory={"nested": [4, 8]}))
    assert told == ["memory.nested: [4, 8], but no layer's state can be cut to fewer dimensions"]
    mixed = config_of(model={"layers": [{"mixer": "ema"}, {"mixer": "ssm"}]}, memory={"nested": [4, 8]})
    assert not memory_problems(mixed)
    model = build(mixed.model)
    for part in TrainingLoss(mixed, model, model).losses(walk(2, 16, 0), 0):
        part.backward()  # type: ignore[no-untyped-call]


def test_it_is_evaluated(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    write_dataset(store, "mazes", toy.episodes(), test=0.5)
    toy.write_run(store, mixer="ema")
    config = EvaluateConfig(protocols=[toy.RETRIEVAL], clips_per_cell=4)
    cells = [cell.payload for cell in plan_cells(config, store, find_subjects(store, toy.RUN))]
    rows = [row for cell in cells if cell.system.startswith("block_ssm") for row in score_cell(cell)]
    assert {row["system"] for row in rows} == {"block_ssm", "block_ssm/wiped", "block_ssm/stranger"}


@pytest.mark.slow
def test_a_run_of_it_goes_from_verb_to_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planned, trained, killed and resumed, exported and read, scored, diagnosed: with its options, as what it is."""
    training.write_place(tmp_path)
    layers = "model.layers=[{mixer: ema, options: {longest: 8}}, {mixer: ema, spatial_block: frame}]"
    store, config = open_store(tmp_path / "store"), training.config_of(tmp_path, layers)
    with pytest.raises(SystemExit):
        cli(["train", str(tmp_path / "toy.yaml"), "--set", layers, "--store", store.uri, "--dry-run"])
    assert "2 layers: ema 1x1 + attention 2, ema 2x2 + attention 2" in capsys.readouterr().out
    straight = training.run(store, "straight", config)
    with pytest.raises(training.Killed):
        train_loop(training.DyingContext(store, "killed", keep=9), config)
    assert training.apart(training.run(store, "killed", config), straight) == 0

    run = train.train(config, store)
    export.main(run, str(tmp_path / "out"), None, store.uri)
    model = load_model(tmp_path / "out")
    assert [layer.mixer_options.longest for layer in model.config.stack] == [8.0, 64.0]  # type: ignore[union-attr]
    assert training.apart(model.state_dict(), straight) == 0

    asked = EvaluateConfig(protocols=[Protocol(task="retrieval", context=4, horizon=4, episodes=2, metrics=["psnr"])])
    for cell in plan_cells(asked, store, find_subjects(store, run)):
        tables.append(store, "scores", score_cell(cell.payload), part=cell.part)
    systems = store.table("scores", where=f"run == {run!r}").system
    assert set(systems) == {"toy", "toy/wiped", "toy/stranger"}
    capsys.readouterr()
    diagnose.main([run], store.uri)
    said = capsys.readouterr().out
    assert "ema 1x1 + attention 2" in said and "d_state" not in said


def test_it_is_profiled_with_the_bytes_and_half_lives_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli(["profile", "tiny", "--dry-run", "--frames", "8,64", "--families", "causal_full", "--set", EMA])
    said = capsys.readouterr().out
    assert not left.value.code and "ema 1x1 + attention" in said
    halves = float(re.findall(r"slowest state \(layer \d, block 1x1\) halves every (\d+) frames", said)[0])
    assert 1 < halves <= 64


def test_it_is_diagnosed_by_what_it_is() -> None:
    steps = {"state_rank.layers.0.ssm": [1.0, 1.0], "state_std.layers.0.ssm": [0.1, 0.1]}
    found = facts(horizon(6), EMA, steps=steps)
    advice = changes(found)
    assert "model.d_state" not in advice and "model.layers" not in advice, "it has no such width, and does carry on"
    assert not [setting for setting in advice if "d_state" in setting]
    assert found.full is not None and "ema 1x1" in next(iter(found.told()))
    large = changes(facts(horizon(6), CHEAP, "model.layers=[{mixer: ema, spatial_block: frame}]"))
    assert "16 tokens later" in large["model.layers.0.spatial_block"].why
    assert "the spread and rank of its state" in "\n".join(facts(horizon(6), EMA).missing("s"))
