"""Pages of real records in a headless Chromium: nothing is asked of the network, and all that is there to use works."""

import json

import pytest
from browser import CHROMIUM, Browser
from repository import ROOT

from loopgrad.experiments import records
from loopgrad.experiments.records import RunRecord, WeightsRecord
from loopgrad.experiments.reports import comparison, comparison_page, deltas, deltas_page
from loopgrad.experiments.reports.films import films
from loopgrad.experiments.reports.html import Page, Section, document
from loopgrad.experiments.reports.inert import inert, shown

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    found = inert(records.read(ROOT / "docs/results/shortcuts/0/records.jsonl", RunRecord), shown)
    (folder / "compared.html").write_bytes(document(comparison_page.page(found, comparison.LEGEND)))
    found = inert(records.read(ROOT / "docs/results/deltas/records.jsonl", WeightsRecord)[:3], shown)
    (folder / "analysed.html").write_bytes(document(deltas_page.page(found, deltas.LEGEND, "rtol 0.001")))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as it:
        yield it


@pytest.fixture(params=["compared", "analysed"])
def name(request):
    return request.param


def column(browser, number, table=0):
    """The cells that are shown of a column of a table."""
    rows = f"[...document.querySelectorAll('.table table')[{table}].tBodies[0].rows].filter(it => !it.hidden)"
    return browser.run(f"{rows}.map(it => it.cells[{number}].textContent)")


def click(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_a_page_asks_for_nothing_and_complains_of_nothing(browser, pages, name):
    for width, dark in ((1280, False), (400, True)):
        browser.open(pages / f"{name}.html", width, 900, dark)
        browser.run("document.querySelectorAll('details').forEach(it => { it.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        assert browser.run("document.querySelectorAll('button:not([hidden])').length") > 10, "the script has run"
    assert {url.partition(":")[0] for url in browser.requested()} <= {"file", "about", "data"}
    assert len([url for url in browser.requested() if url.startswith("file:")]) == len(
        [url for url in browser.requested() if url.endswith(".html")]
    )
    assert browser.complaints() == []


def test_a_script_that_got_in_would_not_run_and_nothing_could_be_fetched(browser, pages, tmp_path):
    planted = (
        (pages / "compared.html")
        .read_bytes()
        .replace(
            b"</header>",
            b"<script>window.ran = 1</script><img src=https://127.0.0.1:9/x.png onerror='window.ran = 2'></header>",
        )
    )
    (tmp_path / "planted.html").write_bytes(planted)
    before = len(browser.requested())
    browser.open(tmp_path / "planted.html")
    told = browser.run("fetch('https://127.0.0.1:9/').then(() => 'fetched', () => 'refused')")
    assert browser.run("window.ran") is None and told == "refused"
    browser.run("new Promise(done => setTimeout(done, 200))")
    sent = [it["params"] for it in browser.events if it["method"] == "Network.responseReceived"]
    assert all(it["response"]["url"].startswith("file:") for it in sent) and len(browser.requested()) > before
    browser.events.clear()


def test_a_column_sorts_up_down_and_as_it_was(browser, pages):
    browser.open(pages / "compared.html")
    before, header = column(browser, 0), ".table thead th:nth-child(4) button"  # bytes
    values = dict(zip(before, map(float, column(browser, 3)), strict=True))
    click(browser, header)
    assert column(browser, 0) == sorted(before, key=values.get)
    assert browser.run("document.querySelector('th[aria-sort]').textContent") == "saved MiB"
    click(browser, header)
    assert column(browser, 0) == sorted(before, key=values.get, reverse=True)
    click(browser, header)
    assert column(browser, 0) == before and not browser.run("document.querySelector('th[aria-sort]')")
    click(browser, ".table thead th:nth-child(1) button")
    assert column(browser, 0) == sorted(before)


def test_a_word_filters_rows_and_they_are_counted(browser, pages):
    browser.open(pages / "compared.html")
    before = column(browser, 0)
    assert before == ["bptt", "checkpointed", "last_cycle", "one_step"]
    typed = "(text => { const it = document.querySelector('.filter input'); it.value = text; "
    typed += "it.dispatchEvent(new Event('input')); })"
    browser.run(f"{typed}('STEP')")
    assert column(browser, 0) == ["one_step"]
    assert browser.run("document.querySelector('.count').textContent") == "1 of 4 rows"
    browser.run(f"{typed}('')")
    assert column(browser, 0) == before and browser.run("document.querySelector('.count').textContent") == ""


def test_a_mark_is_told_under_the_mouse_and_by_arrow_keys(browser, pages):
    browser.open(pages / "compared.html")
    told = "document.querySelector('.told').textContent"
    place = browser.run(
        "(() => { const it = document.querySelector('.chart .m'); it.scrollIntoView({block: 'center', "
        "behavior: 'instant'}); const box = it.getBoundingClientRect(); "
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.hover(*place)
    assert browser.run(told).endswith("samples exact (%) 0 at optimiser step 44")
    browser.hover(1, 1)
    assert browser.run(told) == ""
    browser.run("document.querySelector('.chart').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run(told).startswith("bptt: samples exact (%) ") and browser.run(told).endswith("step 88")
    browser.press("ArrowDown")
    assert browser.run(told).startswith("checkpointed: ") and browser.run(told).endswith("step 88")
    browser.press("Escape")
    assert browser.run(told) == ""


def test_a_key_of_the_legend_hides_its_series(browser, pages):
    browser.open(pages / "compared.html")
    hidden = "document.querySelectorAll('figure .s[display=none]').length"
    click(browser, "figure button.key")
    assert browser.run(hidden) == 1
    click(browser, "figure button.key")
    assert browser.run(hidden) == 0


def test_the_samples_of_weights_unfold_and_are_filtered(browser, pages):
    browser.open(pages / "analysed.html")
    fold = "#samples ~ details:not(.numbers)"
    assert browser.run(f"document.querySelectorAll('{fold}').length") == 3
    visible = f"document.querySelector('{fold} table').checkVisibility()"
    assert browser.run(visible) is False
    click(browser, f"{fold} summary")
    assert browser.run(visible) is True
    record = records.read(ROOT / "docs/results/deltas/records.jsonl")[0]
    solved = record["depths"][0]["solved"]
    titles = f"[...document.querySelectorAll('{fold} table')[0].tHead.rows[0].cells].map(it => it.textContent)"
    header = browser.run(titles)
    assert header[:2] == ["sample", "solved"] and header[2:5] == list(record["depths"][0]["streams"])
    shown_here = browser.run(
        f"[...document.querySelectorAll('{fold} table')[0].tBodies[0].rows].map(it => it.cells[1].textContent)"
    )
    assert [text == "yes" for text in shown_here] == [bool(it) for it in solved]


def test_answers_run_from_segment_to_segment(browser, tmp_path):
    texts = [["1 2"], ["1 3"], ["2 3"]]
    frames = [{"solved": 0, "halts": 0, "wrong": 1, "lines": it, "marked": [[0, 0, 0]]} for it in texts]
    sample = {"sample": 0, "scored": 2, "right": ["9 3"], "frames": frames, "residuals": [0.1, 0.2, 0.3]}
    parts = films([("bptt", [sample])])
    (tmp_path / "film.html").write_bytes(document(Page("k", "t", [], [], [Section("a", "A", parts)])))
    browser.open(tmp_path / "film.html")
    assert browser.run("document.querySelector('.film').checkVisibility()") is False
    click(browser, "summary")
    shown_now = "[...document.querySelectorAll('.frames li pre')].filter(it => it.checkVisibility())"
    shown_now += ".map(it => it.textContent.trim())"
    assert browser.run(shown_now) == ["2 3"], "the last one, until it runs"
    click(browser, ".film button")
    assert browser.run(shown_now) == ["1 2"]
    assert browser.run("document.querySelector('.film button').textContent") == "Pause"
    browser.run("new Promise(done => setTimeout(done, 2000))")
    assert browser.run(shown_now) == ["2 3"]
    assert browser.run("document.querySelector('.film button').textContent") == "Play"
    browser.run("document.querySelector('.film input').focus()")
    browser.press("ArrowLeft")
    assert browser.run(shown_now) == ["1 3"]
    assert "residual 0.2" in browser.run("document.querySelector('.film input').getAttribute('aria-valuetext')")
    assert browser.complaints() == []


def test_the_command_is_copied(browser, pages):
    browser.open(pages / "compared.html")
    browser.ask("Browser.grantPermissions", at="", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    click(browser, ".copy")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("document.querySelector('.copy').textContent") == "Copied"
    command = records.first(ROOT / "docs/results/shortcuts/0/records.jsonl")["command"]
    assert browser.run("navigator.clipboard.readText()") == command


RATIO = """
(() => {
  const linear = (it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map((it) => linear(it / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((p, q) => q - p);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (it) => {
    const ground = getComputedStyle(it).backgroundColor;
    return ground !== 'rgba(0, 0, 0, 0)' ? ground : it.parentElement ? behind(it.parentElement) : 'rgb(255, 255, 255)';
  };
  const least = (selector, of) => Math.min(
    ...[...document.querySelectorAll(selector)].map((it) => ratio(getComputedStyle(it)[of], behind(it))));
  const text = 'p, dt, dd, a, th, td, button, figcaption, summary, pre, label, li, .caption';
  return [least(text, 'color'), least('.grid text', 'fill'), least('.m, .bars rect, .swatch rect', 'fill')];
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_have_the_contrast_that_wcag_asks_for(browser, pages, name, dark):
    browser.open(pages / f"{name}.html", dark=dark)
    text, ticks, marks = browser.run(RATIO)
    assert text >= 4.5 and ticks >= 4.5 and marks >= 3


def test_the_theme_turns(browser, pages):
    browser.open(pages / "compared.html", dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(ground) == "rgb(21, 23, 26)" and browser.run("theme.textContent") == "Light"
    click(browser, "#theme")
    assert browser.run(ground) == "rgb(255, 255, 255)" and browser.run("theme.textContent") == "Dark"
