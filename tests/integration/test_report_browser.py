"""The page about a run in a real browser: it works, nothing leaves it, and what is hostile in the
data stays text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from helpers import Run, wait_until
from video_pipeline.testing.clips import DEMO_CLIPS, write_clip

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page in")

MILLISECONDS = 120_000
"""How long the browser may take for one thing, on a busy machine."""

PLUGIN = """\
from dataclasses import replace

from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Say(Task):
    name = "say"

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        return [{"role": "user", "content": [video, {"type": "text", "text": "Why?"}]}]

    def parse(self, text, sample):
        if "fail" in sample:
            raise ValueError(sample["fail"])
        return {"caption": sample["say"], sample.get("field", "words"): ["a", "b"]}

whole = SimulatedEngine.generate

async def generate(self, name, *more):
    answer = await whole(self, name, *more)
    return replace(answer, finish_reason="length") if name.startswith("cut") else answer

SimulatedEngine.generate = generate
"""

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "</textarea></style></title><img src=x onerror='window.hacked = 3'>",
    "]]> <!-- <script> {{ 7 * 7 }} {% raw %}",
    "\u202egpj.exe \x00\x07\x1b[2J \u2028 & &amp; \"quoted' `",
    "https://example.com/ javascript:window.hacked=4",
]


FAULTS = (Path(__file__).parent / "page_faults.js").read_text(encoding="utf-8")

ON_PAPER = 703
"""Width of an A4 page between its margins, in CSS pixels."""


def shown(text: str) -> str:
    """How a text is to be read on the page: what cannot be seen is an escape."""
    return re.sub("[\x00-\x1f\u202e\u2028]", lambda match: repr(match[0])[1:-1], text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Thirty clips with harmless captions, three whose answers are cut off, one of which only the
    beginning is there, and hostile keys, captions, fields, paths and errors."""
    run = Run(tmp_path_factory.mktemp("report") / "run")
    run.write_plugin(PLUGIN)
    run.configure(
        run={"task": "say", "max_error_rate": 1.0},
        vision={"nframes": 4},
        sampling={"max_tokens": 16},
        report={"samples": 60},
    )
    clips = [
        write_clip(run.folder / name, **DEMO_CLIPS[name]).name for name in ("h264.mp4", "mjpeg.avi")
    ]
    harmless = [
        {"id": n, "path": clips[n % 2], "say": f"Caption number {n}: a square crosses the picture."}
        for n in range(30)
    ]
    hostile = [
        entry
        for n, text in enumerate(HOSTILE)
        for entry in (
            {"id": f"say {text}", "path": clips[0], "say": text, "field": text},
            {"id": f"fail {n}", "path": clips[1], "fail": text},
            {"id": f"gone {n}", "path": f"{text.replace(chr(0), '')}.mp4"},
        )
    ]
    harmless[29]["id"] = "0123456789abcdef" * 4
    long = {"id": "long", "path": clips[0], "say": "<b>word</b> " * 90_000}
    cut_off = [{"id": f"cut {n}", "path": clips[0], "say": "A square"} for n in range(3)]
    webm = write_clip(run.folder / "vp9.webm", **DEMO_CLIPS["vp9.webm"])
    webm.write_bytes(webm.read_bytes()[:10_000])
    begin = {"id": "begin", "path": webm.name, "say": "A square"}
    run.write_samples([*harmless, *cut_off, *hostile, long, begin])
    run.snakemake("--resources", "gpu=1")
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
            timeout=MILLISECONDS,
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(finished: Run, browser: Browser) -> Iterator[Page]:
    """The page; what it should not do is looked for when the test is over."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    address = (finished.folder / "results" / "out.report.html").as_uri()
    requests, complaints = [], []
    page.set_default_timeout(MILLISECONDS)
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(address)
    page.locator("article").first.wait_for()
    yield page
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:image/webp")} == {address}
    assert page.evaluate("typeof window.hacked") == "undefined"
    page.close()


def keys_shown(page: Page) -> list[str]:
    keys = "cards => cards.map((card) => card.dataset.key)"
    shown: list[str] = page.eval_on_selector_all("article", keys)
    return shown


def whole_gallery(page: Page) -> list[str]:
    """The keys of all pages, from the first on."""
    found = keys_shown(page)
    following = page.locator("#gallery-pager button", has_text="Next")
    while following.is_visible() and following.is_enabled():
        following.click()
        found += keys_shown(page)
    return found


def test_it_opens_and_counts(opened: Page, finished: Run) -> None:
    summary = finished.summary()["samples"]
    tiles = opened.locator(".tiles li").all_inner_texts()
    assert tiles[1].startswith(f"{summary['ok']}\n")
    assert tiles[2].startswith(f"{summary['error']}\n")
    rows = opened.locator("table.errors tbody tr")
    counts = [int(text) for text in rows.locator("td.n").all_inner_texts()]
    assert sum(counts) == summary["error"]
    assert counts == sorted(counts, reverse=True)
    assert opened.locator("#curves figure").count() == 3
    assert opened.locator("#histograms .block").count() > 4
    assert opened.locator("#rank-rows tr").count() == 1
    assert opened.locator("#rank-rows path.engine").count() == 1
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_the_model_saw_is_beside_its_answer(opened: Page) -> None:
    card = opened.locator("article", has_text="Caption number 0:")
    image = card.locator("img")
    assert (
        image.evaluate("async (image) => { await image.decode(); return image.naturalWidth }") > 600
    )
    assert "4 pictures" in (image.get_attribute("alt") or "")
    card.locator("button.sheet").click()
    assert opened.locator("#large img").is_visible()
    opened.keyboard.press("Escape")
    assert not opened.locator("#large img").is_visible()
    card.locator("summary", has_text="Prompt").click()
    assert card.locator("dd", has_text="Why?").is_visible()


def test_all_samples_are_on_its_pages(opened: Page, finished: Run) -> None:
    expected = {shown(record["__key"]) for record in finished.records()}
    found = whole_gallery(opened)
    assert len(found) == len(expected)
    assert set(found) == expected
    opened.locator("#gallery-pager-below button", has_text="Previous").click()
    assert opened.locator("#found").inner_text().endswith(f"of {len(expected)} samples")


def test_search_and_filters(opened: Page, finished: Run) -> None:
    search = opened.get_by_role("searchbox", name="Search the gallery")
    search.fill("NUMBER 17:")
    assert keys_shown(opened) == ["17"]
    assert opened.locator("article mark").all_text_contents()[:2] == ["number", "17:"]
    search.fill("no such file")
    assert {key.split()[0] for key in whole_gallery(opened)} == {"gone"}
    search.fill("(unbalanced [.*")
    assert opened.locator("#found").inner_text() == "Nothing is like this."
    search.fill("")
    opened.locator("#show").select_option("failed")
    assert len(whole_gallery(opened)) == finished.summary()["samples"]["error"]
    missing = opened.locator("table.errors tr", has_text="No such file or directory: …")
    missing.get_by_role("button").click()
    found = whole_gallery(opened)
    assert len(found) == int(missing.locator("td.n").inner_text()) > 3
    assert {key.split()[0] for key in found} == {"gone"}


def test_answers_that_were_cut_off_are_amber_and_can_be_filtered(
    opened: Page, finished: Run
) -> None:
    assert finished.summary()["samples"]["truncated_at"] == {"sampling.max_tokens": 3}
    note = opened.locator(".verdict.warn", has_text="cut off")
    assert note.inner_text().startswith("3 answers were cut off: raise sampling.max_tokens.")
    colour = "element => getComputedStyle(element).color"
    amber = note.evaluate(colour)
    red, green, _ = map(int, re.findall(r"\d+", amber)[:3])
    assert red > green > 60  # neither the red of errors nor the ink
    assert opened.locator(".tiles .warn", has_text="cut off").locator("b").evaluate(colour) == amber
    opened.locator("#show").select_option("failed")
    note.get_by_role("button").click()
    assert set(whole_gallery(opened)) == {"cut 0", "cut 1", "cut 2"}
    assert opened.locator("article .tag").all_text_contents() == ["cut off"] * 3
    assert {tag.evaluate(colour) for tag in opened.locator("article .tag").all()} == {amber}
    opened.locator("#show").select_option("answered")
    assert {"cut 0", "0"} <= set(whole_gallery(opened))


def test_damaged_videos_are_amber_and_can_be_filtered(opened: Page, finished: Run) -> None:
    assert finished.summary()["samples"]["damaged"] == 1
    note = opened.locator(".verdict.warn", has_text="damaged")
    assert note.inner_text().startswith(
        "1 answer is about the part of a damaged video that could be read."
    )
    assert opened.locator(".tiles .warn", has_text="damaged").locator("b").inner_text() == "1"
    note.get_by_role("button").click()
    assert whole_gallery(opened) == ["begin"]
    assert opened.locator("article .tag.warn").all_text_contents() == ["damaged"]


def test_rates_say_what_time_they_refer_to(opened: Page, finished: Run) -> None:
    captions = opened.locator("#curves figcaption").all_inner_texts()
    assert all("starts of the models included" in caption for caption in captions)
    tile = opened.locator(".tiles li", has_text="samples a second").inner_text()
    assert re.search(r"in the \d+ s that a model ran", tile)
    throughput = finished.summary()["throughput"]
    assert throughput["bound"] == "too short to tell"
    assert 0 <= throughput["decode_workers_load"] <= 1


def test_keys(opened: Page) -> None:
    first = keys_shown(opened)
    opened.keyboard.press("ArrowRight")
    assert keys_shown(opened) != first
    opened.keyboard.press("ArrowLeft")
    assert keys_shown(opened) == first
    opened.keyboard.press("/")
    assert opened.evaluate("document.activeElement.id") == "search"
    opened.keyboard.type("gone/")
    assert opened.locator("#search").input_value() == "gone/"
    opened.keyboard.press("ArrowRight")  # within the text
    opened.keyboard.press("Escape")
    assert opened.locator("#search").input_value() == ""
    assert keys_shown(opened) == first
    opened.locator("body").press("Tab")
    assert opened.evaluate("document.activeElement !== document.body")


def test_light_and_dark(opened: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(paper)
    opened.get_by_role("button", name="Dark").click()
    dark = opened.evaluate(paper)
    assert dark != light
    opened.get_by_role("button", name="Light").click()
    assert opened.evaluate(paper) == light
    opened.reload()
    opened.locator("article").first.wait_for()
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(paper) == dark


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_can_be_read(opened: Page, width: int, scheme: Literal["light", "dark"]) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    for shows in ("all", "cut", "failed"):
        opened.locator("#show").select_option(shows)
        for details in opened.locator("details:not([open]) > summary").all()[:3]:
            details.click()
        assert opened.evaluate(FAULTS) == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width


def test_on_paper_it_is_light(opened: Page) -> None:
    opened.get_by_role("button", name="Dark").click()
    opened.set_viewport_size({"width": ON_PAPER, "height": 1000})
    opened.emulate_media(media="print", color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(paper) == "rgb(255, 255, 255)"
    assert opened.evaluate(FAULTS) == []
    assert opened.locator("h1").is_visible()
    assert not opened.locator("#filters").is_visible()
    assert opened.pdf(format="A4").startswith(b"%PDF")


def test_tab_goes_through_all_controls_from_top_to_bottom(opened: Page) -> None:
    elements = "[...document.querySelectorAll('*')]"
    place = f"{elements}.indexOf(document.activeElement)"
    controls = f"""{elements}.map((element, place) => [element, place])
      .filter(([element]) => element.matches("a[href], button:enabled, input, select, summary"))
      .filter(([element]) => element.checkVisibility()).map(([element, place]) => place)"""
    outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
    expected, visited = opened.evaluate(controls), []
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    assert opened.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    while not visited or opened.evaluate("document.activeElement !== document.body"):
        assert opened.evaluate(outlined)
        visited.append(opened.evaluate(place))
        assert len(visited) <= 2 * len(expected)
        opened.keyboard.press("Tab")
    assert visited == sorted(visited)
    assert set(expected) <= set(visited)


def test_every_section_is_in_the_navigation(opened: Page) -> None:
    links = "links => links.map((link) => link.hash.slice(1))"
    sections = "sections => sections.map((section) => section.id)"
    assert opened.eval_on_selector_all(".bar nav a", links) == opened.eval_on_selector_all(
        "main > section", sections
    )


def test_an_address_with_a_section_opens_there(opened: Page) -> None:
    opened.goto(f"{opened.url}#errors")
    opened.reload()
    top = "document.getElementById('errors').getBoundingClientRect().top"
    wait_until(lambda: 0 <= opened.evaluate(top) < 100, "the section below the header")


def test_figures_are_named(opened: Page) -> None:
    marks = opened.locator("#histograms .mark").all_inner_texts()
    assert set(marks) == {"p50", "p95", "p99"}
    assert "· p95 " in opened.locator("#histograms figcaption").first.inner_text()
    # All answers are of the same length.
    answers = opened.locator("#histograms figure", has_text="Tokens of an answer")
    assert re.search(r"16 tokens, for all \d+ samples\.", answers.inner_text())
    assert answers.locator("svg").count() == 0
    assert "first request" in opened.locator(".tiles li", has_text="start-up").inner_text()


def test_it_says_what_the_run_was_made_with(opened: Page, finished: Run) -> None:
    block = opened.locator("#setup").inner_text()
    for words in (
        *("sampling.max_tokens\n16", "vision.nframes\n4", "engine\nsimulated"),
        *("transformers\n", "Why?", str(finished.folder), "snakemake --snakefile "),
        *(" --cores 2 --resources gpu=1", f"--configfile {finished.folder}/my.yaml"),
    ):
        assert words in block


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_is_hostile_stays_text(opened: Page, number: int) -> None:
    text = HOSTILE[number]
    kinds = "[...new Set([...document.querySelectorAll('*')].map((one) => one.localName))]"
    known = {*opened.evaluate(kinds), "mark"}
    times = {f"say {text}": 3, f"fail {number}": 1, f"gone {number}": 1}  # say: key, field, caption
    for key, count in times.items():
        card = find_card(opened, shown(key))
        wanted = text.replace(chr(0), "") if key.startswith("gone") else text
        assert (card.text_content() or "").count(shown(wanted)) >= count
        for summary in card.locator("summary").all():
            summary.click()
        opened.locator("#search").fill("window script")  # what is marked is text all the same
        opened.locator("#search").fill("")
    assert set(opened.evaluate(kinds)) <= known


def find_card(page: Page, key: str) -> Locator:
    """The card of a sample, on whichever page it is."""
    page.locator("#show").select_option("answered" if key.startswith("say") else "failed")
    while key not in keys_shown(page):
        page.locator("#gallery-pager button", has_text="Next").click()
    return page.locator("article").nth(keys_shown(page).index(key))


def test_a_caption_of_a_megabyte(opened: Page, finished: Run) -> None:
    assert (finished.folder / "results" / "out.report.html").stat().st_size < 3_000_000
    opened.locator("#search").fill("of 1,080,000 characters")
    assert keys_shown(opened) == ["long"]
    assert opened.locator("article b").count() == 0


def test_inside_of_snakemakes_report(finished: Run, browser: Browser) -> None:
    """It is shown in a frame, from a ``data:`` address, which may not be long."""
    finished.snakemake("--report", "report.html")
    page = browser.new_context(offline=True).new_page()
    page.set_default_timeout(MILLISECONDS)
    page.goto((finished.folder / "report.html").as_uri())
    page.get_by_text("Results").click()
    page.get_by_text("page", exact=True).click()  # and not the table of figures
    page.locator("tr", has_text="say").get_by_role("link").first.click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Gallery").click()
    frame.locator("#search").fill("number 17:")
    assert frame.locator("article").count() == 1
    assert "Caption number 17" in (frame.locator("article").text_content() or "")
    page.context.close()
