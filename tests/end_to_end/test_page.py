"""The report page in a real browser: Debian's Chromium opens it from disk, clicks, types, prints."""

import base64
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.report.write import write_report
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from tests.helpers.browser import MISSING, console_messages, open_page, requested_urls, set_color_scheme, set_width
from tests.helpers.runs import make_run, tiny_config, train_run

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")

CONTRAST = """
const lightness = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const parts = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  const [r, g, b, share = 1] = parts(getComputedStyle(element).backgroundColor);
  if (share === 1) return [r, g, b];
  const further = behind(element.parentElement);
  return [r, g, b].map((v, i) => share * v + (1 - share) * further[i]);
};
return [...document.querySelectorAll("h1, h2, p, a, th, td, summary, svg text, figcaption")]
  .filter(each => each.textContent.trim() && each.getClientRects().length && !each.classList.contains("skip"))
  .map(each => {
    const style = getComputedStyle(each), colour = each.closest("svg") ? style.fill : style.color;
    const [a, b] = [lightness(parts(colour)), lightness(behind(each))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.tagName, each.textContent.slice(0, 40)];
  }).sort((one, other) => one[0] - other[0])[0];
"""
SMALLEST_TEXT = """
const sizes = [...document.querySelectorAll("svg text")].map(each =>
  parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a);
return Math.min(...sizes.filter(size => size > 0));
"""
PRINTED_WIDTH = 688
"""Pixels between the margins of an A4 page."""
UNDRAWN = """
return [...document.querySelectorAll("svg")].filter(svg => {
  const marks = [...svg.querySelectorAll("[role=graphics-symbol]")];
  const seen = marks.some(each => each.getBBox().width + each.getBBox().height > 0);
  return !seen || svg.getBoundingClientRect().width < 200;
}).map(svg => svg.getAttribute("aria-label"));
"""


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    changes = ("train.max_steps=6", "train.evaluate_every=2 steps", "train.log_every=1 step", "optim.milestones=[]")
    run = make_run(tmp_path_factory.mktemp("paged") / "run", tiny_config(tiny_root, *changes))
    train_run(SingleWorkerComms(), run.path)
    write_json(run.attempt(1), {"attempt": 1, "state": "finished", "workers": 1, "started": 10.0, "ended": 12.5})
    write_json(run.manifest, {"started": 9.0})
    return run


@pytest.fixture(scope="module")
def browser(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    page = write_report([run.path], tmp_path_factory.mktemp("page") / "report.html")
    with open_page(page, tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Return the folder for screenshots and PDFs: FMFSD_ARTEFACTS, or the test's folder if that is unset or empty."""
    return Path(os.environ.get("FMFSD_ARTEFACTS") or tmp_path)


def test_the_report_opens_from_disk_without_console_messages_and_network_requests(browser: webdriver.Chrome) -> None:
    assert console_messages(browser) == []
    assert set(requested_urls(browser)) == {browser.current_url}
    assert browser.current_url.startswith("file://")


def test_every_chart_is_drawn_and_every_image_loaded(browser: webdriver.Chrome) -> None:
    assert len(browser.find_elements(By.TAG_NAME, "svg")) >= 5
    assert browser.execute_script(UNDRAWN) == []
    loaded = "return [...document.images].map(image => image.complete && image.naturalWidth > 0 && image.alt !== '')"
    pictures = browser.execute_script(loaded)
    assert len(pictures) > 20
    assert all(pictures)


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#test tbody tr")
    return [row.find_elements(By.TAG_NAME, "td")[number].text for row in rows]


def test_a_table_is_sorted_by_click_and_by_keyboard(browser: webdriver.Chrome) -> None:
    heads, top1 = browser.find_elements(By.CSS_SELECTOR, "#test th button")[1:3]
    before = column(browser, 1)
    heads.click()
    assert column(browser, 1) == sorted(before)
    heads.send_keys(Keys.ENTER)
    assert column(browser, 1) == sorted(before, reverse=True)
    top1.send_keys(Keys.SPACE)
    values = [float(each.removesuffix(" %")) for each in column(browser, 2)]
    assert values == sorted(values)
    sorted_by = browser.find_elements(By.CSS_SELECTOR, "#test th[aria-sort]")
    assert [(each.text.split()[0], each.get_attribute("aria-sort")) for each in sorted_by] == [("top-1", "ascending")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_enough_contrast_in_light_and_dark_mode(
    scheme: str, browser: webdriver.Chrome, artefacts: Path
) -> None:
    set_color_scheme(browser, scheme)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(253, 253, 252)") == (scheme == "light")
    worst = browser.execute_script(CONTRAST)
    assert worst[0] >= 4.5, worst
    screenshot = artefacts / f"run-report-{scheme}.png"
    browser.get_screenshot_as_file(str(screenshot))
    assert screenshot.stat().st_size > 10_000


def test_the_report_fits_a_phone_screen(browser: webdriver.Chrome) -> None:
    set_width(browser, 360)
    widths = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    smallest = browser.execute_script(SMALLEST_TEXT)
    set_width(browser, 1000)
    assert widths[0] <= widths[1]
    assert smallest >= 8, "font size in charts, in pixels"


def test_the_report_is_accessible_by_screen_reader_and_keyboard(browser: webdriver.Chrome) -> None:
    levels = [int(each.tag_name[1]) for each in browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = "svg:not([aria-label]), th:not([scope]), img:not([alt]), html:not([lang])"
    assert browser.find_elements(By.CSS_SELECTOR, unnamed) == []
    browser.refresh()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"


def test_the_report_prints_dark_on_white_without_clipping(browser: webdriver.Chrome, artefacts: Path) -> None:
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    (artefacts / "run-report.pdf").write_bytes(printed)
    assert printed.startswith(b"%PDF")
    set_color_scheme(browser, "dark", media="print")
    set_width(browser, PRINTED_WIDTH)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    widest = browser.execute_script(
        "return Math.max(...[...document.querySelectorAll('.wide')].map(e => e.scrollWidth))"
    )
    set_color_scheme(browser, "light")
    set_width(browser, 1000)
    assert paper == "rgb(255, 255, 255)"
    assert widest <= PRINTED_WIDTH
