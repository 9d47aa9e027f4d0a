"""Configs: what is read is what was meant, and everything wrong is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from longtake.config import Config, config_hash, dump, load, shipped
from longtake.errors import UserError


class Adam(Config):
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["adam", "sgd"] = "adam"


class Part(Config):
    window: int = 6


class Run(Config):
    steps: int
    adam: Adam = Adam()
    layers: list[Part] = [Part()]
    sizes: dict[str, int] = {}
    workers: int | tuple[int, int] = 1
    resume: bool = False
    note: str = ""
    folder: Path | None = None


class Fussy(Config):
    first: int = 1
    second: int = 1

    @model_validator(mode="after")
    def _check(self) -> Fussy:
        if self.first != self.second:
            raise ValueError("first is not second", "second is not first")
        return self


class Holder(Config):
    fussy: Fussy = Fussy()


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def problems(folder: Path, name: str, *overrides: str, schema: type[Config] = Run) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(schema, name, overrides, folder)
    return list(caught.value.lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-4", 1e-4), ("1E+3", 1e3), ("2e3", 2e3), ("-1.5e-05", -1.5e-5), (".5", 0.5), ("5.", 5.0)],
        *[("3", 3), ("1_000", 1000), ("0x10", 16), ("true", True), ("null", None), ("~", None), ("", None)],
        # What YAML 1.1 takes for something else, and nobody means:
        *[("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2026-11-21", "2026-11-21"), ("010", "010")],
        *[("e5", "e5"), ("1e", "1e"), ("'1e-4'", "1e-4")],
    ],
)
def test_yaml_scalars_are_what_they_look_like(tmp_path: Path, text: str, value: Any) -> None:
    class Anything(Config):
        value: Any = 0

    write(tmp_path, a=f"value: {text}\n")
    for got in (
        load(Anything, "a", search=tmp_path).value,
        load(Anything, "a", [f"value={text}"], tmp_path).value,
    ):
        assert got == value
        assert type(got) is type(value)


def test_bases_merge_in_order_and_lists_are_replaced(tmp_path: Path) -> None:
    write(
        tmp_path,
        one="steps: 1\nadam: {lr: 0.1, betas: [0.5, 0.6]}\nlayers: [{window: 1}, {window: 2}]\n",
        two="adam: {lr: 0.2}\n",
        top="base: [one, two.yaml]\nadam: {kind: sgd}\nlayers: [{window: 9}]\n",
    )
    config = load(Run, "top", search=tmp_path)
    assert config.adam == Adam(lr=0.2, betas=(0.5, 0.6), kind="sgd")
    assert config.layers == [Part(window=9)]


def test_a_base_is_found_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, root="steps: 4\n")
    write(tmp_path / "deep", leaf="base: ../root.yaml\nnote: hi\n")
    assert load(Run, tmp_path / "deep" / "leaf.yaml", search=tmp_path / "elsewhere").steps == 4


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    write(tmp_path, a="steps: 1\nlayers: [{window: 1}, {window: 2}]\n")
    asked = ["adam.lr=3e-05", "layers.1.window=7", "sizes.x=3", "workers=[1, 2]", "note=a=b", "folder=x/y"]
    config = load(Run, "a", asked, tmp_path)
    assert config.adam.lr == 3e-5
    assert [layer.window for layer in config.layers] == [1, 7]
    assert (config.sizes, config.workers, config.note) == ({"x": 3}, (1, 2), "a=b")
    assert config.folder == Path("x/y")


def test_a_whole_number_fills_a_float_and_nothing_else_is_converted(tmp_path: Path) -> None:
    write(tmp_path, a="steps: 1\nadam: {lr: 1}\n")
    assert load(Run, "a", search=tmp_path).adam.lr == 1.0
    assert problems(tmp_path, "a", "steps='3'") == ['steps: got "3", expected a whole number']
    assert problems(tmp_path, "a", "steps=true") == ["steps: got true, expected a whole number"]
    assert problems(tmp_path, "a", "steps=3.5") == ["steps: got 3.5, expected a whole number"]
    assert problems(tmp_path, "a", "resume=1") == ["resume: got 1, expected true or false"]
    assert problems(tmp_path, "a", "note=3") == ["note: got 3, expected a text"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, a="adam: {lr: -1, knd: sgd}\nlayers: [{windw: 3}]\n")
    asked = ["adam.kind=adm", "resmue=true", "workers=many", "nonsense", "note.x.y=1"]
    assert problems(tmp_path, "a", *asked) == [
        "--set nonsense: expected key=value, such as model.window=6",
        "steps: is required, give it a value",
        "adam.lr: got -1, must be greater than 0",
        'adam.kind: got "adm", allowed: adam, sgd (did you mean adam?)',
        "adam.knd: unknown key (did you mean kind?); valid here: lr, betas, kind",
        "layers.0.windw: unknown key (did you mean window?); valid here: window",
        "resmue: unknown key (did you mean resume?); valid here: "
        "steps, adam, layers, sizes, workers, resume, note, folder",
        'workers: got "many", expected a whole number or a list',
        'note: got {"x": {"y": 1}}, expected a text',
    ]


def test_an_override_into_a_value_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a="steps: 3\nlayers: [{window: 1}]\n")
    assert problems(tmp_path, "a", "steps.x=1") == ["--set steps.x=1: steps is 3, it has no 'x'"]
    assert problems(tmp_path, "a", "layers.4.window=1") == [
        "--set layers.4.window=1: layers is a list of 1, it has no '4'"
    ]


def test_a_validator_may_tell_several_lines(tmp_path: Path) -> None:
    write(tmp_path, a="first: 1\n", b="fussy: {}\n")
    both = ["first is not second", "second is not first"]
    assert problems(tmp_path, "a", "second=2", schema=Fussy) == both
    nested = problems(tmp_path, "b", "fussy.second=2", schema=Holder)
    assert nested == [f"fussy: {line}" for line in both]


def test_an_unknown_config_names_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, maze="steps: 1\n", tiny="steps: 1\n")
    assert shipped(tmp_path) == ["maze", "tiny"]
    (line,) = problems(tmp_path, "mase")
    assert line.startswith("unknown config 'mase' (did you mean maze?); there are: maze, tiny")
    (line,) = problems(tmp_path, "some/where.yaml")
    assert line == "no config file some/where.yaml; give a YAML path or the name of a shipped config: maze, tiny"


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("steps: 1\nadam: {lr: 1\n", 3, "not valid YAML"),
        ("steps: 1\nnote: a\nsteps: 2\n", 3, "key 'steps' twice"),
        ("- 1\n", 1, "a config is a list of `key: value` lines"),
    ],
)
def test_bad_yaml_is_told_with_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    write(tmp_path, a=text)
    (got,) = problems(tmp_path, "a")
    assert got.startswith(f"{tmp_path / 'a.yaml'}:{line}: ")
    assert told in got


def test_circles_and_missing_bases_are_told(tmp_path: Path) -> None:
    write(tmp_path, a="base: b\nsteps: 1\n", b="base: [a, nowhere]\n")
    assert problems(tmp_path, "a") == [
        "a.yaml: base: a circle of files: a.yaml -> b.yaml -> a.yaml",
        f"{tmp_path / 'b.yaml'}: base: no file 'nowhere' beside it",
    ]


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Adam().lr = 3.0  # type: ignore[misc]


def test_the_hash_changes_with_a_setting_and_only_then() -> None:
    assert config_hash(Run(steps=1)) == config_hash(Run(steps=1, adam=Adam(lr=1e-3)))
    assert config_hash(Run(steps=1)) != config_hash(Run(steps=2))
    assert len(config_hash(Run(steps=1))) == 12


runs = st.builds(
    Run,
    steps=st.integers(),
    adam=st.builds(Adam, lr=st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False)),
    layers=st.lists(st.builds(Part, window=st.integers())),
    sizes=st.dictionaries(st.text(), st.integers(), max_size=3),
    note=st.text(),
)


@settings(deadline=None)  # it writes files: a busy disk is no failure
@given(runs)
def test_dump_and_load_are_inverse(tmp_path_factory: pytest.TempPathFactory, config: Run) -> None:
    path = tmp_path_factory.mktemp("config") / "a.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(Run, path) == config


@pytest.mark.parametrize(
    "text",
    ["1e-4", "no", "1:30", "010", "null", "", "0x1f", "<<", "true", "1_000", "=", "~", "\x85", "a\u2028b"],
)
def test_dump_quotes_texts_that_look_like_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(dump(Run(steps=1, note=text)))
    assert load(Run, tmp_path / "a.yaml").note == text


def test_a_shipped_config_is_a_base_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: longtake:train/tiny\nsteps: 3\n")
    (tmp_path / "sized.yaml").write_text("base: [longtake:sizes/tiny, longtake:families/mamba.yaml]\n")
    from longtake.jobs.presets import SizeConfig
    from longtake.jobs.train.config import TrainConfig

    assert load(TrainConfig, tmp_path / "own.yaml").steps == 3
    assert {layer.mixer for layer in load(SizeConfig, tmp_path / "sized.yaml").model.layers} == {"ssm"}


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("longtake:train/tyni", "no shipped config 'longtake:train/tyni' (did you mean longtake:train/tiny?)"),
        ("demo-block-ssm", "beside it; of those shipped there is longtake:train/demo-block-ssm"),
        ("../sizes/small.yaml", "beside it; of those shipped there is longtake:sizes/small"),
    ],
)
def test_a_base_that_is_not_there_meets_the_shipped_one(tmp_path: Path, base: str, told: str) -> None:
    (tmp_path / "own.yaml").write_text(f"base: {base}\nsteps: 3\n")
    with pytest.raises(UserError) as caught:
        load(Run, tmp_path / "own.yaml")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("data.clip=plain", "forward"),
        ("data.clip=Forward", "forward"),
        ("engine.precision=fp16", "autocast"),
        ("engine.backend=pytorch", "torch"),
        ("model.layers.0.mixer=mamba2", "ssm"),
    ],
)
def test_what_others_call_it_is_known_and_not_taken(override: str, meant: str) -> None:
    from longtake.jobs.train.command import CONFIGS
    from longtake.jobs.train.config import TrainConfig

    with pytest.raises(UserError, match=f"did you mean {meant}"):
        load(TrainConfig, "tiny", [override], search=CONFIGS)


def test_an_error_stays_within_a_screen() -> None:
    from longtake.errors import unknown

    told = unknown("column", "state_std.layers.7.smm", [f"state_std.layers.{number}.ssm" for number in range(300)])
    assert len(told) < 1300 and "did you mean state_std.layers.7.ssm?" in told and told.endswith(" more")
    assert unknown("table", "scors", ["scores", "steps"]).endswith("there are: scores, steps")
