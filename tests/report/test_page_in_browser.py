"""The report page in Chromium: search, filters, keyboard, accessibility, phone, print, hostile text, 20,000 items.

    make test-page

Needs the packages of the extra `page` and a Chromium: DISTILL_LAB_CHROMIUM, one on the PATH, or playwright's own. Without
them the tests are skipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from distill_lab.evaluation.summary_file import read_summary, write_summary
from distill_lab.files.jsonl import write_jsonl
from distill_lab.report.comparison_page import write_comparison
from distill_lab.report.page import write_report
from distill_lab.report.run_comparison import compare_runs
from distill_lab.types import Counts
from tests.made_runs import HOSTILE, made_run

playwright: Any = pytest.importorskip("playwright.sync_api", reason="not installed; make test-page installs it")
pytestmark = pytest.mark.slow
AXE = resources.files(pytest.importorskip("axe_playwright_python")) / "axe.min.js"
CHROMIUM = os.environ.get("DISTILL_LAB_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        try:
            launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Opens a page; at the end, nothing may have gone wrong in it or been loaded by it."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_page(path: Path, **context: Any) -> Any:
        contexts.append(browser.new_context(**({"viewport": DESK} | context)))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: request.url == path.as_uri() or problems.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(made_run(tmp_path_factory.mktemp("run"), num=300, advice=("Give more rows.",)))


def status(page: Any) -> str:
    return page.locator("#items-status").inner_text()


def controls(page: Any) -> Any:
    return page.locator("#items .controls")


def counted(page: Any, label: str, option: str) -> int:
    """The number that an option of a select promises."""
    text = controls(page).get_by_label(label).locator("option", has_text=option).inner_text()
    return int(re.search(r"\(([\d,]+)\)", text)[1].replace(",", ""))  # type: ignore[index]


def test_filters_show_as_many_as_they_promise(report: Path, opened: Opened) -> None:
    page = opened(report)
    assert status(page) == "Items 1 to 20 of 300"
    assert page.locator("#items-list article").count() == 20
    for kind in ("Lost", "Won", "Learned", "Wrong", "Cut"):
        number = counted(page, "Outcome", kind)
        assert number > 0
        value = controls(page).get_by_label("Outcome").locator("option", has_text=kind).get_attribute("value")
        controls(page).get_by_label("Outcome").select_option(value)
        assert status(page).endswith(f"of {number}, from 300")
        titles = page.locator("#items-list article .top > span:first-child").all_inner_texts()
        assert titles
        assert all(kind in title.split() for title in titles)
    controls(page).get_by_label("Outcome").select_option("0")
    controls(page).get_by_label("Level").select_option(label="2")
    assert status(page) == "Items 1 to 20 of 75, from 300"
    controls(page).get_by_label("Type").select_option(label="sort")
    assert status(page) == "Items 1 to 20 of 25, from 300"
    controls(page).get_by_label("Items per page").select_option("50")
    assert status(page) == "Items 1 to 25 of 25, from 300"


def test_search_finds_texts_of_prompts_and_answers(report: Path, opened: Opened) -> None:
    page = opened(report)
    controls(page).get_by_label("Search prompts and answers").fill("QUESTION 123:")
    playwright.expect(page.locator("#items-status")).to_have_text("Items 1 to 1 of 1, from 300")
    article = page.locator("#items-list article")
    assert "Question 123:" in article.inner_text()
    assert [each.inner_text() for each in article.locator("h4").all()] == ["Teacher", "Base student", "Student"]
    details = article.locator("details").first
    assert details.locator("p").is_hidden()
    details.locator("summary").click()
    assert "I think about" in details.locator("p").inner_text()
    controls(page).get_by_label("Search prompts and answers").fill("no such words")
    playwright.expect(page.locator("#items-status")).to_have_text("No item matches.")


def test_the_items_found_can_be_saved(report: Path, opened: Opened) -> None:
    page = opened(report)
    controls(page).get_by_label("Outcome").select_option("1")
    number = counted(page, "Outcome", "Lost")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the items found").click()
    rows = [json.loads(line) for line in Path(saved.value.path()).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == number
    assert all(row["student"]["score"] < row["teacher"]["score"] for row in rows)
    assert all(row["gold_answer"] and row["prompt"].startswith("Question") for row in rows)


def test_words_that_differ_are_marked(report: Path, opened: Opened) -> None:
    page = opened(report)
    controls(page).get_by_label("Outcome").select_option("1")
    assert page.locator("#items-list mark").count() == 0
    controls(page).get_by_label("Mark words").check()
    article = page.locator("#items-list article").first
    for name in ("teacher", "student"):
        said = article.locator(f".answer.{name} .text-block").first
        marked = [each.inner_text() for each in said.locator("mark").all()]
        assert marked
        assert all(words in said.inner_text() for words in marked)
    assert article.locator(".answer.base mark").count() == 0


def test_everything_works_with_the_keyboard(report: Path, opened: Opened) -> None:
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    controls(page).get_by_label("Search prompts and answers").focus()
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.textContent.trim()")
        )
        if reached[-1] == "BUTTON Next":
            break
    assert reached[-1] == "BUTTON Next"
    assert [each for each in reached if each.startswith("SELECT")]
    page.keyboard.press("Enter")
    assert status(page) == "Items 21 to 40 of 300"
    assert page.evaluate("document.activeElement.textContent") == "Next", "the focus stays where it was"
    page.get_by_role("button", name="Last").click()
    assert status(page) == "Items 281 to 300 of 300"
    assert page.get_by_role("button", name="Next").is_disabled()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, viewport: dict[str, int], report: Path, opened: Opened, tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, num=30, seed=seed) for seed, name in enumerate("abc")]
    write_comparison(compare_runs(runs), tmp_path / "comparison.html")
    for path in (report, tmp_path / "comparison.html"):
        page = opened(path, color_scheme=scheme, viewport=viewport)
        if path == report:
            controls(page).get_by_label("Mark words").check()
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})"
        )
        problems = [
            (rule["id"], node["target"], node["failureSummary"])
            for rule in found["violations"]
            for node in rule["nodes"]
        ]
        assert problems == []
        assert len(found["passes"]) > 10


def test_a_phone_scrolls_in_one_direction(report: Path, opened: Opened, tmp_path: Path) -> None:
    page = opened(report, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    long = made_run(tmp_path, num=6, output=" " + "long" * 200 + HOSTILE, advice=("word" * 100,))
    pair = {
        "id": "train-1",
        "test_id": "test-1",
        "reason": "shares 8 words in a row with a test prompt",
        "text": "x" * 300,
    }
    write_jsonl(long / "overlap.jsonl", [pair | {"test_text": "y"}])
    summary = read_summary(long / "summary.json")
    left_out = Counts(5, 4, {pair["reason"]: 1})
    write_summary(long / "summary.json", dataclasses.replace(summary, test_overlap=left_out))
    page = opened(write_report(long), viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_without_script_all_but_the_search_is_there(report: Path, opened: Opened) -> None:
    page = opened(report, java_script_enabled=False)
    for name in ("Score and speed", "All numbers", "Score by group", "Training", "Latency", "Side by side"):
        assert page.get_by_role("heading", name=name, exact=True, level=2).is_visible()
    assert page.locator("svg").count() >= 8
    assert page.locator("#examples article").count() >= 5
    assert page.locator("#items").is_hidden()
    assert page.get_by_text("allow this page its script").is_visible()


def test_print_shows_the_result_and_no_controls(report: Path, opened: Opened) -> None:
    page = opened(report)
    page.emulate_media(media="print")
    assert page.locator("#items .controls").is_hidden()
    assert page.get_by_role("heading", name="All numbers").is_visible()
    assert len(page.pdf()) > 20_000


def test_hostile_text_is_only_text(tmp_path: Path, opened: Opened) -> None:
    page = opened(write_report(made_run(tmp_path, num=12, output=HOSTILE)))
    controls(page).get_by_label("Mark words").check()
    assert page.title().startswith("system1: The student")
    assert page.locator("img").count() == 0
    assert page.locator("#items-list script").count() == 0
    assert "<script>document.title" in page.locator("#items-list article").first.inner_text()


def test_a_script_that_got_in_would_not_run(report: Path, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    titles = []
    for script in ("", '<script>document.title = "hacked"</script>'):
        text = report.read_text(encoding="utf-8").replace("<main", f"{script}<main")
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page.goto((tmp_path / "page.html").as_uri())
        titles.append(page.title())
        assert page.locator("#items-list article").count() == 20, "the page's own script runs"
    page.close()
    assert titles[0] == titles[1]


def test_20000_items_open_search_and_page(tmp_path: Path, opened: Opened) -> None:
    page = opened(write_report(made_run(tmp_path, num=20_000)))
    assert status(page) == "Items 1 to 20 of 20,000"
    page.get_by_role("button", name="Last").click()
    assert status(page) == "Items 19,981 to 20,000 of 20,000"
    controls(page).get_by_label("Search prompts and answers").fill("question 19999:")
    playwright.expect(page.locator("#items-status")).to_have_text("Items 1 to 1 of 1, from 20,000", timeout=60_000)
    assert page.locator("#items-list article").count() == 1
    controls(page).get_by_label("Search prompts and answers").fill("")
    playwright.expect(page.locator("#items-status")).to_have_text("Items 1 to 20 of 20,000", timeout=60_000)
    number = counted(page, "Outcome", "Lost")
    controls(page).get_by_label("Outcome").select_option("1")
    assert status(page) == f"Items 1 to 20 of {number:,}, from 20,000"
