"""The report page in a headless Chromium: at phone and desk widths, in both themes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longtake.jobs.report import command as report
from longtake.jobs.report.gather import find_runs
from longtake.storage.store import Store
from tests.jobs.report.browser import Browser, chromium, find_chromium
from tests.jobs.report.toy_store import BLOCK, WINDOW, make_store, write_profile, write_sweep

pytestmark = pytest.mark.slow

SMALLEST_PX, CONTRAST = 11.0, 4.5
WIDTHS = (390, 1280)
THEMES = ("light", "dark")

READ = r"""
(() => {
  const numbers = color => (color.match(/[\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a));
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== "none") throw new Error("a picture behind text: " + at.outerHTML.slice(0, 80));
      layers.push(numbers(style.backgroundColor));
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const details of document.querySelectorAll("details")) details.open = true;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element), svg = element.ownerSVGElement;
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const back = behind(svg ? svg.parentElement : element);
    const ink = over(numbers(svg ? style.fill : style.color), back);
    const opacity = Number(style.opacity);
    const seen = light(ink.map((v, i) => v * opacity + back[i] * (1 - opacity)));
    const [low, high] = [seen, light(back)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize) * scale;
    found.push({ text: text.slice(0, 40), size, contrast: (high + 0.05) / (low + 0.05) });
  }
  return JSON.stringify(found);
})()
"""

PLAY = """
(async () => {
  const film = document.getElementById("film-TASK"), heard = new Set();
  const video = film.querySelector("video"), said = film.querySelector("output");
  const button = film.querySelector(".controls button");
  await new Promise((done, fail) => {
    if (video.readyState >= 2) return done();
    video.onloadeddata = done;
    video.onerror = () => fail(new Error(video.error.message));
    setTimeout(() => fail(new Error("the video did not load")), 8000);
  });
  video.scrollIntoView({ block: "center" });
  for (let i = 0; i < 100 && video.paused; i++) await new Promise(done => setTimeout(done, 50));
  const began = !video.paused;
  button.click();
  video.currentTime = 0;
  await new Promise(done => { video.onseeked = done; });
  button.click();
  for (let i = 0; i < 80 && heard.size < 3; i++) {
    await new Promise(done => setTimeout(done, 50));
    if (video.currentTime > 0) heard.add(said.value);
  }
  const playing = !video.paused && button.textContent === "Pause";
  button.click();
  await new Promise(done => setTimeout(done, 100));
  const place = film.querySelector(".controls input");
  place.value = place.max;
  place.dispatchEvent(new Event("input"));
  await new Promise(done => setTimeout(done, 400));
  const size = { width: video.videoWidth, height: video.videoHeight };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  let light = 0;
  for (let i = 0; i < pixels.length; i += 4) light += pixels[i] > 60;
  return JSON.stringify({
    began, playing, paused: video.paused, heard: heard.size, last: said.value, width: video.videoWidth,
    light: light * 4 / pixels.length,
  });
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it."""
    store: Store = make_store(tmp_path_factory.mktemp("store"))
    sweep = write_sweep(store, [run.id for run in find_runs(store, [BLOCK, WINDOW])])
    write_profile(store, BLOCK)
    return Path(report.build(store, [sweep], tmp_path_factory.mktemp("out") / "a page.html"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("NOT CHECKED, the report page in a browser: chromium is missing (apt-get install chromium)")
    with chromium(executable, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_everything_can_be_read(browser: Browser, page: Path, width: int, theme: str) -> None:
    browser.open(page, width, theme)
    found: list[dict[str, Any]] = json.loads(browser.run(READ))
    assert len(found) > 200
    small = [text for text in found if text["size"] < SMALLEST_PX]
    faint = [text for text in found if text["contrast"] < CONTRAST]
    assert not small and not faint, f"small: {small}\nfaint: {faint}"
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(245, 246, 248)", "dark": "rgb(16, 19, 23)",
    }[theme]  # fmt: skip
    assert browser.problems == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("task", "last"), [("retrieval", 11), ("rollout", 6)])
def test_the_film_plays_and_says_where_it_is(browser: Browser, page: Path, task: str, last: int) -> None:
    browser.open(page, 390, "light")
    told = json.loads(browser.run(PLAY.replace("TASK", task)))
    assert told["began"] and told["playing"] and told["paused"] and told["heard"] >= 3, told
    assert told["last"] == f"generated, distance {last}" and told["width"] > 300 and told["light"] > 0.3, told
    assert browser.problems == []


@pytest.mark.timeout(120)
def test_faults_would_be_found(browser: Browser, tmp_path: Path) -> None:
    """The checks can fail: small and faint text, an error, and a request are all seen."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<p style="font-size: 9px; color: #999; background: #fff">small</p><img src="http://longtake.invalid/x.png">'
        "<script>console.error('told'); nothing.at.all</script>"
    )
    browser.open(bad, 390, "light")
    (found,) = json.loads(browser.run(READ))
    assert found["size"] == 9 and found["contrast"] < CONTRAST
    for word in ("told", "nothing is not defined", "longtake.invalid"):
        assert any(word in problem for problem in browser.problems), browser.problems
