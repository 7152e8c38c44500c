"""A model inside a web application of your own: a page with a form, and the story as it comes.

    pip install 'trilobit[server]'
    uvicorn --app-dir examples web_app:app

Whoever needs an API and not a page takes `trilobit serve`. Here the engine is part of the program:
one for all visitors, whose stories share each pass over the weights. A visitor who leaves ends his
request within a step.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, StreamingResponse

from trilobit import AsyncLLM, SamplingParams

PAGE = """<!doctype html><meta charset="utf-8"><title>Stories</title>
<form><input name="begun" value="Once upon a time" size="40"> <button>Tell</button></form><p></p>
<script>
document.forms[0].onsubmit = async (event) => {
  event.preventDefault();
  const shown = document.querySelector("p");
  const begun = event.target.begun.value;
  shown.textContent = begun;
  const answer = await fetch("story?" + new URLSearchParams({begun}));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done; ) shown.textContent += part.value;
};
</script>"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncLLM(os.environ.get("MODEL", "trilobit-stories-5m")) as llm:
        app.state.llm = llm
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@app.get("/story")
async def story(begun: str = Query(max_length=500)) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        async for event in app.state.llm.stream(begun, SamplingParams(max_tokens=150)):
            yield event.text

    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")
