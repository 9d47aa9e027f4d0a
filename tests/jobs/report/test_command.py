"""`longtake report`: the page is whole, needs no network, and shows all that was asked for, quickly."""

from __future__ import annotations

import html
import re
import shlex
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.errors import UserError
from longtake.jobs import cli
from longtake.jobs.report import command as report
from longtake.jobs.report.gather import gather
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from tests.jobs.report.toy_store import BLOCK, WINDOW, small_model, write_profile, write_run, write_sweep


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    return Path(report.build(store, [BLOCK, WINDOW], tmp_path_factory.mktemp("out") / "page.html")).read_text()


class Balance(HTMLParser):
    """Tags that are opened and closed in order, and everything that would be loaded."""

    VOID = {"meta", "link", "img", "br", "wbr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [found[name] or "" for name in ("src", "href") if name in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page: str) -> None:
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert all(target.startswith(("data:", "#")) for target in reader.loads)
    assert "@import" not in page and page.count("<script") == page.count("<script>") == 1
    assert len(reader.ids) == len(set(reader.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)


def test_the_page_shows_everything_asked_for(page: str) -> None:
    assert page.count('class="strip"') == 3
    assert page.count("<video") == 2  # of retrieval and rollout
    assert page.count("<svg") == 12  # two tasks, training and state, each at three widths
    for word in (
        BLOCK,
        WINDOW,
        "abcdef012345",
        "0.1.0+gabc",
        "2 x &lt;CPU&gt; &amp; co",
        "prefers-color-scheme",
        "longtake evaluate",
    ):
        assert word in page
    for system in (
        "block_ssm, wiped",
        "causal_window, wiped",
        "copy last frame",
        "context mean",
        "nearest pose (oracle)",
    ):
        assert f"{system}</th>" in page


def test_the_default_place_is_in_the_store(store: Store) -> None:
    assert report.build(store, ["latest"]) == store.path("reports", f"{WINDOW}.html")


def test_the_default_place_is_in_a_bucket_too(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in the folder that one happens to be in."""
    monkeypatch.chdir(tmp_path)
    assert report.write(open_store(bucket), "r", "a page", None) == f"{bucket}/reports/r.html"
    assert open_store(bucket).read_bytes("reports/r.html") == b"a page" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_has_a_page_with_its_best_runs(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    sweep = write_sweep(copy, [WINDOW, BLOCK])
    made = Path(report.build(copy, [sweep]))
    text = made.read_text()
    assert made.name == f"{sweep}.html"
    assert [run.id for run in gather(copy, [sweep]).runs] == [WINDOW, BLOCK]  # the best first; the rest have no run
    for plot in ("history", "space", "importances", "price"):
        assert f'id="sweep-{sweep}-{plot}"' in text
        assert f"--plot {plot}.png --draw {plot} --store" in text
    assert "Trials: 9 done, 2 pruned" in text and f"longtake report {sweep} --store" in text


def words_of(svg: str) -> set[str]:
    """What is written in a picture, but for numbers: how many ticks there are depends on the width."""
    told = [html.unescape(re.sub("<.*?>", "", text)).strip() for text in re.findall(r"<text.*?</text>", svg, re.DOTALL)]
    return {word for word in told if re.search("[a-z]", word)}


@pytest.mark.drill
def test_every_plot_is_drawn_again_by_the_command_under_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same names, marks and axes."""
    copy = open_store(tmp_path / "store")
    store.download_dir("tables", tmp_path / "store" / "tables")  # no datasets: no pictures
    sweep = write_sweep(copy, [WINDOW, BLOCK])
    write_profile(copy, BLOCK)
    text = Path(report.build(copy, [sweep])).read_text()
    monkeypatch.chdir(tmp_path)
    drawn = set()
    for section in re.findall(r'<section class="card".*?</section>', text, re.DOTALL):
        commands = re.findall(r"Draw it again: <code>(.*?)</code>", section)
        svgs = re.findall(r"<svg.*?</svg>", section, re.DOTALL)
        assert len(commands) == (len(svgs) > 0) or "horizon.png" in commands[0]
        for command in commands:
            words = shlex.split(html.unescape(command).replace(".png", ".svg"))
            with pytest.raises(SystemExit) as left:
                cli.main(words[1:])
            assert not left.value.code
            picture = Path(words[words.index("--plot") + 1])
            drawn.add(picture.stem)
            if svgs:
                assert words_of(svgs[0]) <= words_of(picture.read_text()), picture
    plots = {"retrieval", "rollout", "horizon", "training", "state", "costs"}
    assert drawn == plots | {"history", "space", "importances", "price"}


def test_a_sweep_without_trials_says_so(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    tables.append(copy, "runs", [{"run": "s", "kind": "sweep", "name": "rates"}], part="s")
    text = Path(report.build(copy, ["s"])).read_text()
    assert "Trials: no trial yet" in text and "no plot of its history" in text


def test_costs_are_shown_where_the_model_was_profiled(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("tables", tmp_path / "tables")
    profile = write_profile(copy, BLOCK)
    assert [(found.id, found.runs) for found in gather(copy, [BLOCK, WINDOW]).profiles] == [(profile, ["block_ssm"])]
    assert gather(copy, [WINDOW]).profiles == []


@pytest.mark.slow
def test_the_page_of_a_long_run_is_quick_and_small(store: Store, tmp_path: Path) -> None:
    """100,000 steps and 20 scored checkpoints: under 20 s (of the processor: it may be busy) and 15 MB."""
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    count = 100_000
    random = np.random.default_rng(0)
    steps = pd.DataFrame({"run": BLOCK, "step": np.arange(count), "frames": 256, "frames_per_s": 900.0})
    steps["loss"] = random.normal(0.2, 0.01, count)
    steps["clip_frames"] = np.where(steps.step < 50_000, 16, 64)
    held = steps.step % 500 == 499
    for name in ("val_loss", *(f"state_{kind}.layers.{layer}.ssm" for kind in ("std", "rank") for layer in range(12))):
        steps[name] = np.where(held, random.normal(1, 0.1, count), np.nan)
    tables.append(copy, "steps", steps, part=f"{BLOCK}-long")
    rows = copy.table("scores", where=f"run == '{BLOCK}'").drop(columns="event_time")
    for number in range(19):
        tables.append(copy, "scores", rows.assign(checkpoint=number * 20), part=f"eval-{number}")
    began = time.process_time()
    page = Path(report.build(copy, [BLOCK]))
    assert time.process_time() - began < 20
    assert page.stat().st_size < 15e6


def test_a_store_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="longtake train"):
        report.build(open_store(tmp_path), ["latest"])


def test_a_run_without_scores_still_has_a_page(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    write_run(copy, BLOCK, small_model("ssm"))
    text = Path(report.build(copy, [BLOCK])).read_text()
    assert "There are no scores to show yet" in text and 'id="training"' in text and 'class="claims"' not in text


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_both_themes() -> None:
    css = (Path(report.__file__).parent / "page.html").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(themes) == 2
    for theme in themes:
        for name in ("ink", "muted", "floor", "good", "bad", *(f"series-{i}" for i in range(1, 7))):
            for behind in ("page", "card", "sunk"):
                light, dark = sorted((luminance(theme[name]), luminance(theme[behind])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {behind}: {theme[name]} on {theme[behind]}"
