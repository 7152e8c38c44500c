"""The chat page, as a person uses it: a real browser, a real server, real models.

Only words that no small model says on demand (markup, Arabic) are put into its mouth, by answering
the browser in the server's place. With TRILOBIT_ARTEFACTS, screenshots are kept in that folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn
from browsers import PATIENCE_MS, chromium
from conftest import ENDLESS_CONTEXT as CONTEXT
from live_server import Live, serving
from playwright.sync_api import Browser, BrowserContext, Error, Page, Route, expect
from ports import kept_port
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from trilobit.bundled import ARABIC, DEFAULT
from trilobit.serve.app import create_app, guards
from trilobit.serve.body import Json
from trilobit.serve.page import PATHS, add_page
from trilobit.serve.queue import Queue
from trilobit.serve.settings import Settings
from trilobit.serve.sse import DONE, Events, event

FOLDER = Path(__file__).parents[2] / "src/trilobit/serve/page"
CHATTY = "chatty"
KEY = "sk-a-key-of-ours"
ENDLESS = {"max_tokens": 250_000}  # hours, of that model
# What the page takes away after a while ("Copied", "Undo"): who looks late would miss it.
WHAT_GOES_STAYS = """
    const soon = window.setTimeout;
    window.setTimeout = (call, ms = 0, ...rest) => soon(call, ms <= 1000 ? ms : 2 ** 30, ...rest);
"""
STARVED = 6  # times that a browser is slower than it could be
ANSWER = (
    "Four weights fit a byte:\n\n```python\nfields = codes + 1  # 0, 1, 2\n```\n\nThat is *all*."
)


@pytest.fixture(scope="module")
def live(endless_model: Path) -> Iterator[Live]:
    """The model that chats, and two of the package, which do not."""
    with serving(DEFAULT, ARABIC, f"{CHATTY}={endless_model}") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Visit:
    """Opens pages in browsers of nobody. What a page logs as an error, or throws, is a fault."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._contexts: list[BrowserContext] = []
        self.faults: list[str] = []

    def __call__(
        self, url: str = "", *, model: str = "", sampling: object = None, **settings: object
    ) -> Page:
        """model, sampling: chosen in this browser before; without model, the one that chats.
        settings: of Playwright's contexts."""
        wide = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"}
        context = self._browser.new_context(**wide | settings)  # type: ignore[arg-type]
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        kept = json.dumps({"model": model or CHATTY, "sampling": sampling or {}})
        page.add_init_script(f"localStorage.trilobit ??= JSON.stringify({kept})")
        page.add_init_script(WHAT_GOES_STAYS)
        page.goto(url or self._url)
        expect(page.locator("#box")).to_be_visible()
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visit(browser: Browser, live: Live) -> Iterator[Visit]:
    made = Visit(browser, live.url)
    yield made
    made.close()
    # That a request failed is told by the browser itself; everything else is our fault.
    assert [one for one in made.faults if not one.startswith("Failed to load resource")] == []


def say(page: Page, text: str) -> None:
    page.locator("#box").fill(text)
    page.keyboard.press("Enter")


def settled(page: Page) -> None:
    """Until the last message was answered and nothing is being written any more."""
    expect(page.locator(".cost").last).to_be_attached()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    expect(page.locator(".send:not(.stop)")).to_be_visible()


def answers_with(page: Page, *texts: str, thought: str = "") -> list[dict[str, object]]:
    """Have the model say these texts, the last one ever again; what it was asked, as it comes.

    thought: what it thinks before each.
    """
    asked: list[dict[str, object]] = []

    def answer(route: Route) -> None:
        text = texts[min(len(asked), len(texts) - 1)]
        asked.append(route.request.post_data_json)
        chunks: list[dict[str, object]] = [
            {"choices": [{"index": 0, "delta": {field: piece}, "finish_reason": None}]}
            for field, said in (("reasoning_content", thought), ("content", text))
            for piece in re.findall(r"\S*\s*", said)
        ]
        chunks += [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(chunks)}},
        ]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        route.fulfill(content_type="text/event-stream", body=f"{body}data: [DONE]\n\n")

    page.route("**/v1/chat/completions", answer)
    return asked


def keep_screenshot(page: Page, name: str) -> None:
    folder = os.environ.get("TRILOBIT_ARTEFACTS")
    if folder:
        page.screenshot(path=Path(folder) / f"chat-{name}.png")


def violations(page: Page) -> list[str]:
    """What axe-core finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')[:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


# ---- its files --------------------------------------------------------------------------------


def test_every_file_has_its_type_and_the_strict_policy(live: Live) -> None:
    types = {".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
    types |= {".svg": "image/svg+xml", "": "text/html"}
    with live.client() as client:
        for address in sorted(PATHS):
            got = client.get(address)
            assert got.status_code == 200, address
            assert got.headers["content-type"].split(";")[0] == types[Path(address).suffix]
            assert got.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in got.headers
            policy = got.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            again = client.get(address, headers={"If-None-Match": got.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert client.head(address).status_code == 200


def test_models_tell_what_they_are_made_for_before_they_are_opened(live: Live) -> None:
    with live.client() as client:
        told = {model.pop("id"): model for model in client.get("/v1/models").json()["data"]}
    facts = ("chat", "generates", "embeds", "max_model_len")
    assert [told[CHATTY][fact] for fact in facts] == [True, True, True, CONTEXT]
    assert [told[DEFAULT][fact] for fact in facts] == [False, True, True, 512]


def test_no_file_outside_the_page_can_be_had(live: Live) -> None:
    with live.client() as client:
        for address in ("/page/__init__.py", "/page/vendor/README.md", "/page/../app.py", "/page/"):
            assert client.get(address).status_code == 404, address


def test_without_page_there_is_none(endless_model: Path) -> None:
    with serving(str(endless_model), "--no-page") as server, server.client() as client:
        assert client.get("/").status_code == 404
        assert client.get("/page/main.js").status_code == 404
        assert client.get("/v1/models").status_code == 200


def test_libraries_are_as_published() -> None:
    table = (FOLDER / "vendor/README.md").read_text(encoding="utf-8")
    sums = dict(re.findall(r"\| \[(\S+)\].*`([0-9a-f]{64})` \|", table))
    files = {path.name: path for path in (FOLDER / "vendor").iterdir() if path.suffix != ".md"}
    assert sums == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}


def test_everything_is_said_in_both_languages() -> None:
    words = (FOLDER / "words.js").read_text(encoding="utf-8")
    english, arabic = (
        re.findall(
            r"^  (\w+):", words.partition(f"const {name} = {{")[2].partition("\n};")[0], re.M
        )
        for name in ("ENGLISH", "ARABIC")
    )
    assert english == arabic
    code = "".join(p.read_text("utf-8") for p in FOLDER.glob("*.js") if p.name != "words.js")
    assert [key for key in english if f'"{key}"' not in code] == []


# ---- reading and writing ----------------------------------------------------------------------


def test_an_answer_appears_piece_by_piece(visit: Visit) -> None:
    page = visit(sampling=ENDLESS)
    say(page, "Hello")
    page.wait_for_function(
        """() => {
            const said = document.querySelector('.prose')?.textContent.length;
            window.seen = new Set(window.seen).add(said);
            return window.seen.size > 3;
        }"""
    )
    page.keyboard.press("Escape")
    settled(page)


def test_what_an_answer_cost_is_told(visit: Visit) -> None:
    page = visit(sampling={"max_tokens": 300})
    say(page, "Hello")
    expect(page.locator(".cost")).to_contain_text("300 tokens")
    expect(page.locator(".context")).to_contain_text(re.compile(r"\d+ of 262,144 tokens"))


def test_what_is_sent_before_the_models_are_known_is_answered(visit: Visit, live: Live) -> None:
    page = visit(live.url, sampling={"max_tokens": 5})
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    say(page, "Hello")
    expect(page.locator("#box")).to_have_value("Hello")
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    settled(page)
    expect(page.locator(".said")).to_have_text("Hello")


def test_a_thought_is_drawn_apart_and_folded_when_the_answer_comes(visit: Visit) -> None:
    page = visit()
    asked = answers_with(page, "It is *Tom*.", thought="Who? <img src=x> Perhaps **Tom**.")
    say(page, "Who is it?")
    settled(page)
    thought = page.locator("details.reasoning")
    assert asked[0]["include_reasoning"] is True
    expect(thought.locator("div")).to_have_text("Who? <img src=x> Perhaps **Tom**.")
    expect(thought.locator("div")).to_be_hidden()  # folded
    expect(page.locator(".message.assistant .prose")).to_have_text("It is Tom.")
    thought.locator("summary").click()
    expect(thought.locator("div")).to_be_visible()
    page.reload()
    expect(page.locator("details.reasoning div")).to_have_text("Who? <img src=x> Perhaps **Tom**.")


def test_stop_stops_it_and_keeps_what_came(visit: Visit, live: Live) -> None:
    page = visit(sampling=ENDLESS)
    say(page, "Never end")
    prose = page.locator(".message.assistant .prose")
    expect(prose).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    settled(page)
    expect(page.locator(".cost")).to_contain_text("Stopped")
    text = prose.inner_text()
    say(page, "And now?")  # the server is free again, and answers
    expect(page.locator(".message.assistant .prose").nth(1)).not_to_be_empty()
    page.keyboard.press("Escape")
    settled(page)
    assert prose.first.inner_text() == text


def test_every_piece_is_drawn_when_it_has_come_and_a_rate_is_told_of_them(
    visit: Visit, own_server: Callable[..., Thread]
) -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def words() -> AsyncIterator[str]:
        while True:
            while said.empty():
                await asyncio.sleep(0.001)
            if not (word := said.get()):
                return
            yield word

    page = visit(own_server(speaking(words)).url)
    say(page, "Hello")
    text = ""
    for number in range(6):
        said.put(f"{number} ")
        text += f"{number} "
        expect(page.locator(".prose")).to_have_text(text.strip())
    time.sleep(0.02)  # what came within 10 ms has no rate
    said.put("6")
    said.put("")
    expect(page.locator(".cost")).to_contain_text(re.compile(r"7 tokens · [\d,.]+ tokens/s"))


def test_stop_works_where_a_starved_browser_is_told_more_than_it_can_draw(
    visit: Visit, own_server: Callable[..., Thread]
) -> None:
    async def words() -> AsyncIterator[str]:
        number = 0
        while True:
            number += 1
            yield f"{number} " if number % 50 else f"{number}\n\n"
            await asyncio.sleep(0)

    page = visit(own_server(speaking(words)).url)
    slowing = page.context.new_cdp_session(page)
    slowing.send("Emulation.setCPUThrottlingRate", {"rate": STARVED})
    say(page, "Never end")
    prose = page.locator(".prose")
    expect(prose).to_contain_text("1 2 3")
    page.get_by_role("button", name="Stop").click()
    settled(page)
    expect(page.locator(".cost")).to_contain_text("Stopped")
    numbers = list(map(int, prose.text_content().split()))
    assert numbers == list(range(1, len(numbers) + 1))


def test_reload_keeps_history(visit: Visit) -> None:
    page = visit(sampling={"max_tokens": 20})
    say(page, "Remember this")
    settled(page)
    before = page.locator(".log").inner_text()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Remember this")
    settled(page)
    assert page.locator(".log").inner_text() == before


def test_reload_in_the_middle_keeps_what_came(visit: Visit) -> None:
    page = visit(sampling=ENDLESS)
    say(page, "Never end")
    expect(page.locator(".prose")).to_contain_text(re.compile(".{200}", re.DOTALL))
    page.reload()
    expect(page.locator(".cost")).to_contain_text("Stopped")
    assert len(page.locator(".prose").inner_text()) > 50


def test_markup_of_a_model_stays_text(visit: Visit) -> None:
    page = visit()
    hostile = (
        '<img src="x" onerror="document.title=1">\n\n<script>document.title = 1</script>\n\n'
        "[a](javascript:document.title=1) ![b](https://example.com/b.png) <b onclick=x>bold</b>\n\n"
        "```html\n<img src=x onerror=document.title=1>\n```\n\n- <svg onload=document.title=1>\n\n"
        "<style>body { display: none }</style><iframe src=//example.com>"
    )
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    answers_with(page, hostile)
    say(page, "Say it")
    settled(page)
    prose = page.locator(".prose")
    expect(prose).to_contain_text('<img src="x" onerror="document.title=1">')
    expect(prose).to_contain_text("<script>document.title = 1</script>")
    expect(prose).to_contain_text("<b onclick=x>bold</b>")
    assert prose.locator("img, script, svg, style, iframe, b, [onclick], [onerror]").count() == 0
    assert [a.get_attribute("href") for a in prose.locator("a").all()] == [
        "https://example.com/b.png"
    ]
    assert not [url for url in requests if "example.com" in url]
    assert page.title().startswith("Say it")


def test_a_text_that_is_too_much_for_markdown_is_shown_as_it_is(visit: Visit) -> None:
    page = visit()
    deep = "> " * 5_000 + "the end"
    answers_with(page, deep)
    say(page, "Go deep")
    settled(page)
    assert page.locator(".prose .plain").text_content() == deep


def test_policy_lets_nothing_inline_run(visit: Visit) -> None:
    page = visit()
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<img src=x onerror=alert(1)>'")
    with pytest.raises(Error, match="TrustedScript"):
        page.evaluate("document.createElement('script').text = 'document.title = 1'")
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("fetch('https://example.com/')")
    visit.faults.clear()  # the browser tells of each


def test_an_arabic_message_runs_right_to_left(visit: Visit) -> None:
    page = visit()
    answers_with(page, "الأوزان ثلاثية: `-1` و`0` و`+1`.\n\nAnd in English.\n\n```c\nint x;\n```")
    say(page, "كيف تُخزَّن الأوزان؟")
    settled(page)
    direction = "one => getComputedStyle(one).direction"
    assert page.locator(".said").evaluate(direction) == "rtl"
    assert page.locator(".prose").evaluate(direction) == "rtl"
    assert page.locator(".prose pre").evaluate(direction) == "ltr"
    # Laid out as it runs: each paragraph begins at its own side.
    sides = page.locator(".prose p").evaluate_all(
        """all => all.map(one => {
            const range = document.createRange();
            range.selectNodeContents(one);
            const [text, box] = [range.getBoundingClientRect(), one.getBoundingClientRect()];
            return text.left - box.left < box.right - text.right ? "left" : "right";
        })"""
    )
    assert sides == ["right", "left"]
    assert page.locator("body").evaluate(direction) == "ltr"


def test_the_interface_is_arabic_for_who_reads_arabic(visit: Visit) -> None:
    page = visit(locale="ar-EG")
    expect(page.get_by_role("button", name="محادثة جديدة").first).to_be_visible()
    sidebar, main = page.locator(".sidebar").bounding_box(), page.locator("main").bounding_box()
    assert sidebar["x"] >= main["x"] + main["width"] - 1
    answers_with(page, "أهلًا بك.\n\n" + ANSWER)
    say(page, "مرحبًا، كيف تُخزَّن الأوزان الثلاثية؟")
    settled(page)
    keep_screenshot(page, "arabic")
    assert violations(page) == []
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="New conversation").first).to_be_visible()
    page.reload()
    assert page.locator("html").get_attribute("dir") == "ltr"


# ---- a model that was not made to chat --------------------------------------------------------


def test_arabic_begins_and_goes_on_at_the_right(visit: Visit) -> None:
    page = visit(model=ARABIC, sampling={"max_tokens": 40, "seed": 7})
    begin = page.locator(".starters button").first
    assert begin.evaluate("one => getComputedStyle(one).direction") == "rtl"
    start = begin.inner_text().removesuffix(" …")
    begin.click()
    settled(page)
    text = page.locator(".manuscript .text")
    assert text.inner_text().startswith(start)
    assert len(text.inner_text()) > len(start) + 40
    assert text.evaluate("one => getComputedStyle(one).direction") == "rtl"
    keep_screenshot(page, "arabic-text")


def test_a_model_that_does_not_chat_continues_a_text(visit: Visit) -> None:
    page = visit(model=DEFAULT, sampling={"max_tokens": 40, "seed": 7})
    expect(page.locator(".welcome")).to_contain_text("It was not made to answer questions")
    with page.expect_request("**/v1/completions") as first:
        page.locator(".starters button").first.click()
    start = first.value.post_data_json["prompt"]
    settled(page)
    text = page.locator(".manuscript .text")
    whole = text.inner_text()
    assert whole.startswith(start)
    assert len(whole) > len(start) + 40
    with page.expect_request("**/v1/completions") as second:
        say(page, "Then the fox said")
    assert second.value.post_data_json["prompt"] == f"{whole} Then the fox said"
    settled(page)
    with page.expect_request("**/v1/completions") as third:
        page.get_by_role("button", name="Continue").click()
    assert (
        third.value.post_data_json["prompt"]
        == text.inner_text()[: len(third.value.post_data_json["prompt"])]
    )
    settled(page)
    keep_screenshot(page, "story")
    assert violations(page) == []


def test_a_text_longer_than_the_context_is_read_from_a_later_sentence(visit: Visit) -> None:
    page = visit(model=DEFAULT, sampling={"max_tokens": 50, "seed": 1})
    page.locator(".starters").wait_for()
    text = " ".join(f"On day {day} the bear ate {day} red apples." for day in range(100))
    text += " Then the bear"
    with page.expect_request("**/v1/completions") as asked:
        say(page, text)
    prompt = asked.value.post_data_json["prompt"]
    assert text.endswith(prompt)
    assert prompt.startswith("On day ")
    assert len(prompt) > 700
    settled(page)
    expect(page.locator(".cost")).to_contain_text("Read the end only")
    assert len(page.locator(".manuscript .text").inner_text()) > len(text)


def test_a_chat_is_not_given_to_a_model_that_does_not_chat(visit: Visit) -> None:
    page = visit(sampling={"max_tokens": 5})
    say(page, "Hello")
    settled(page)
    page.get_by_label("Model").select_option(DEFAULT)
    expect(page.locator(".problem")).to_contain_text("was not made to answer")
    page.locator("#box").fill("Well?")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Start a new text").click()
    expect(page.locator(".starters")).to_be_visible()


# ---- what can be done with it -----------------------------------------------------------------


def test_edited_and_repeated_messages_keep_what_was_there(visit: Visit) -> None:
    page = visit()
    asked = answers_with(page, "First.", "Second.", "Third.")
    say(page, "One")
    settled(page)
    page.get_by_role("button", name="Write it again").click()
    expect(page.locator(".prose")).to_have_text("Second.")
    settled(page)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".prose")).to_have_text("First.")
    page.locator("#box").press("ArrowUp")
    page.get_by_role("textbox", name="Edit").fill("Two")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".prose")).to_have_text("Third.")
    settled(page)
    assert [one["messages"] for one in asked] == [
        [{"role": "user", "content": "One"}],
        [{"role": "user", "content": "One"}],
        [{"role": "user", "content": "Two"}],
    ]
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Previous version").first.click()
    expect(page.locator(".said")).to_have_text("One")
    expect(page.locator(".prose")).to_have_text("Second.")


def test_conversations_are_found_renamed_deleted_and_brought_back(visit: Visit) -> None:
    page = visit()
    answers_with(page, "About pears.", "About apples.")
    for question in ("What is round?", "What is red?"):
        page.keyboard.press("Control+Shift+O")
        say(page, question)
        settled(page)
    titles = page.locator(".sidebar nav li a")
    expect(titles).to_have_text(["What is red?", "What is round?"])
    page.keyboard.press("Control+k")
    page.keyboard.type("PEARS")
    expect(titles).to_have_text(["What is round?"])
    titles.first.hover()
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("Fruit")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["Fruit"])
    page.get_by_role("searchbox").fill("")
    titles.first.hover()
    page.get_by_role("button", name="Delete: What is red?").click()
    expect(titles).to_have_text(["Fruit"])
    page.get_by_role("button", name="Undo").click()
    expect(titles).to_have_count(2)
    page.reload()
    expect(titles).to_have_count(2)
    expect(titles.filter(has_text="Fruit")).to_have_count(1)


def test_two_tabs_show_the_same_conversations(visit: Visit) -> None:
    page = visit()
    other = page.context.new_page()
    other.goto(page.url)
    answers_with(page, "Seen.")
    say(page, "Seen elsewhere?")
    settled(page)
    other.get_by_role("link", name="Seen elsewhere?").click()
    expect(other.locator(".prose")).to_have_text("Seen.")
    expect(other.locator("[aria-busy=true]")).to_have_count(0)
    page.locator(".sidebar nav li").hover()
    page.get_by_role("button", name="Delete: Seen elsewhere?").click()
    expect(other.locator(".sidebar")).to_contain_text("No conversations yet")


def test_exported_conversations_can_be_imported_elsewhere(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    answers_with(page, ANSWER)
    say(page, "Keep me")
    settled(page)
    page.get_by_role("button", name="Settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "kept.json"
    download.value.save_as(file)
    other = visit()
    for expected in ("Conversations imported: 1", "already here: 1"):
        other.get_by_role("button", name="Settings").click()
        other.locator("input[type=file]").set_input_files(file)
        expect(other.locator(".toast")).to_contain_text(expected)
        other.keyboard.press("Escape")
    other.locator(".sidebar nav a").click()
    expect(other.locator(".prose")).to_contain_text("That is all.")
    broken = json.loads(file.read_text("utf-8"))
    broken["conversations"][0]["messages"][0]["parent"] = "nobody"
    file.write_text(json.dumps(broken))
    other.locator("input[type=file]").count()
    other.get_by_role("button", name="Settings").click()
    other.locator("input[type=file]").set_input_files(file)
    expect(other.locator(".toast")).to_contain_text("not a file of conversations")


def test_settings_reach_the_model(visit: Visit) -> None:
    page = visit()
    asked = answers_with(page, "Yes.")
    page.get_by_role("button", name="Settings").click()
    assert violations(page) == []
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("New tokens at most").fill("33")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Seed").press("Tab")
    page.get_by_role("radio", name="Dark").check()
    keep_screenshot(page, "settings")
    page.keyboard.press("Escape")
    say(page, "Well?")
    settled(page)
    body = asked[0]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Well?"},
    ]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.9, 33)
    assert body["seed"] == 5
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_messages_and_code_can_be_copied(visit: Visit) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    answers_with(page, ANSWER)
    say(page, "Code, please")
    settled(page)
    copied = "navigator.clipboard.readText()"
    page.locator(".prose figure button").click()
    expect(page.locator(".prose figure button")).to_have_text("Copied")
    assert page.evaluate(copied) == "fields = codes + 1  # 0, 1, 2"
    page.locator(".message.assistant").get_by_role("button", name="Copy", exact=True).last.click()
    page.wait_for_function(f"async wanted => await {copied} === wanted", arg=ANSWER)
    expect(page.locator(".hljs-comment")).to_have_text("# 0, 1, 2")
    keep_screenshot(page, "light")
    page.emulate_media(color_scheme="dark")
    keep_screenshot(page, "dark")
    assert violations(page) == []


def test_all_of_it_works_by_keyboard(visit: Visit) -> None:
    page = visit(sampling=ENDLESS)
    expect(page.locator("#box")).to_be_focused()
    page.keyboard.type("Never")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("end")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("Never\nend")
    expect(page.locator(".prose")).not_to_be_empty()
    page.keyboard.press("Escape")
    settled(page)
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
            )
        )
    assert {
        "New conversation",
        "Search",
        "Settings",
        "Write it again",
        "Edit",
        "Message",
    } <= reached


def test_a_screen_reader_hears_whole_paragraphs(visit: Visit) -> None:
    page = visit()
    answers_with(page, "First paragraph.\n\nSecond one.")
    say(page, "Read to me")
    settled(page)
    spoken = page.locator("[role=status][aria-live=polite] p")
    expect(spoken.last).to_have_text("Done")
    assert "Second one." in spoken.all_inner_texts()


# ---- where things go wrong --------------------------------------------------------------------


def test_a_phone_shows_all_without_scrolling_sideways(visit: Visit) -> None:
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    long = "w" * 300
    answers_with(
        page, f"{ANSWER}\n\n{long}\n\n| a | b | c |\n|---|---|---|\n| {long[:60]} | x | y |"
    )
    page.locator("#box").fill(f"Wide? {long}")
    page.get_by_role("button", name="Send").tap()
    settled(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") == 360
    assert page.locator(".log").evaluate("one => one.scrollWidth <= one.clientWidth")
    assert violations(page) == []
    keep_screenshot(page, "phone")
    page.get_by_role("button", name="Conversations and settings").tap()
    expect(page.locator(".sidebar")).to_be_in_viewport()
    page.get_by_role("button", name="Settings", exact=True).tap()
    assert page.locator("dialog").evaluate("one => one.scrollWidth <= one.clientWidth")
    page.get_by_role("button", name="Close").last.tap()
    expect(page.locator(".sidebar")).not_to_be_in_viewport()


def speaking(words: Callable[[], AsyncIterator[str]]) -> Starlette:
    """The page, and a model that answers with these words, each when it comes."""

    async def parts() -> AsyncIterator[bytes]:
        count = 0
        async for word in words():
            count += 1
            yield event({"choices": [{"index": 0, "delta": {"content": word}}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": count}})
        yield DONE

    async def answer(_: Request) -> Response:
        return Events(parts(), keep_alive_s=PATIENCE_MS)

    async def models(_: Request) -> Response:
        return Json({"data": [{"id": CHATTY, "max_model_len": CONTEXT}]})

    counted = Counter("requests", "", ("route", "status"), registry=CollectorRegistry())
    app = Starlette(middleware=guards(Settings(models={}), Queue(64), counted))
    app.add_route("/v1/models", models)
    app.add_route("/v1/chat/completions", answer, methods=["POST"])
    add_page(app)
    return app


class Thread:
    """A server in a thread, which can die and come back at the same address."""

    def __init__(self, port: int, app: Starlette | None = None, **settings: object) -> None:
        models = {DEFAULT: DEFAULT}
        self._make = lambda: app or create_app(Settings(models=models, **settings))  # type: ignore[arg-type]
        self._port, self.url = port, f"http://127.0.0.1:{port}"

    def start(self) -> None:
        config = uvicorn.Config(
            self._make(), port=self._port, log_config=None, ws="none", timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            self._thread.join(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def own_server() -> Iterator[Callable[..., Thread]]:
    with ExitStack() as stack:

        def start(app: Starlette | None = None, **settings: object) -> Thread:
            one = Thread(stack.enter_context(kept_port()), app, **settings)
            one.start()
            stack.callback(one.stop)
            return one

        yield start


def test_a_dead_server_gives_a_clear_line_and_a_retry(
    visit: Visit, own_server: Callable[..., Thread]
) -> None:
    server = own_server()
    page = visit(server.url, sampling={"max_tokens": 20})
    page.locator(".starters").wait_for()
    server.stop()
    say(page, "Once upon a time")
    problem = page.locator(".problem")
    expect(problem).to_contain_text("The server does not answer.")
    keep_screenshot(page, "dead-server")
    assert violations(page) == []
    server.start()
    problem.get_by_role("button", name="Try again").click()
    settled(page)
    expect(problem).to_have_count(0)
    assert len(page.locator(".manuscript .text").inner_text()) > 30


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 503, "headers": {"Retry-After": "7"}}, "The server is busy. Try again in 7 s."),
        ({"status": 400, "json": {"error": {"message": "the prompt is <b>long"}}}, "is <b>long"),
        ({"body": 'data: {"choices": [{"delta": {"content": "Hm"}}]}\n\n'}, "broke off"),
        ({"body": 'data: {"error": {"message": "the disk is gone"}}\n\n'}, "the disk is gone"),
        ({"body": "data: what?\n\n"}, "broke off"),
    ],
    ids=["busy", "refused", "cut", "failed", "garbled"],
)
def test_what_went_wrong_is_told_and_can_be_tried_again(
    visit: Visit, answer: dict[str, object], told: str
) -> None:
    page = visit()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))  # type: ignore[arg-type]
    say(page, "Hello")
    expect(page.locator(".problem")).to_contain_text(told)
    page.unroute("**/v1/chat/completions")
    answers_with(page, "Here I am.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".prose")).to_have_text("Here I am.")
    expect(page.locator(".problem")).to_have_count(0)
    visit.faults.clear()  # the garbled one is logged, for who looks for it


def test_the_key_is_asked_for_kept_and_sent(
    visit: Visit, own_server: Callable[..., Thread]
) -> None:
    server = own_server(keys=(KEY,))
    page = visit(server.url, sampling={"max_tokens": 20})
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server asks for an API key")
    assert violations(page) == []
    for key in ("wrong", KEY):
        dialog.locator("input").fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog).to_contain_text("did not accept this key")
    expect(dialog).to_have_count(0)
    expect(page.get_by_label("Model")).to_have_value(DEFAULT)  # before, nothing can be sent
    say(page, "Once upon a time")
    settled(page)
    assert len(page.locator(".manuscript .text").inner_text()) > 30
    page.reload()
    expect(page.get_by_label("Model")).to_have_value(DEFAULT)
    expect(dialog).to_have_count(0)
    refused = {"status": 401, "json": {"error": {"message": "no"}}}
    page.route("**/v1/completions", lambda route: route.fulfill(**refused), times=1)  # type: ignore[arg-type]
    page.get_by_role("button", name="Continue").click()  # as if the key had been changed
    dialog.locator("input").fill(KEY)
    page.keyboard.press("Enter")
    settled(page)
    expect(page.locator(".problem")).to_have_count(0)
    assert page.locator(".manuscript .text span").count() == 3
