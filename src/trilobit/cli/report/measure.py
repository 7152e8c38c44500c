"""What a report tells of a model: what `info`, `bench` and `perplexity` print as JSON, and zeros.

Each measurement of speed is a `trilobit bench` in a process of its own: the memory of one would
else count as the next one's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trilobit.cli.info import file_facts
from trilobit.cli.perplexity import facts as perplexity_facts
from trilobit.errors import RequestError
from trilobit.evaluate.perplexity import WINDOW, Perplexity, perplexity
from trilobit.formats.dead_tensors import Judge
from trilobit.formats.open import open_source
from trilobit.llm import LLM
from trilobit.machine import cores
from trilobit.model import tensor_names
from trilobit.progress import Progress, Watch, steps

Facts = dict[str, Any]  # JSON values
_SHORTEST = 64  # tokens of a prompt: less is over before it can be timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to measure. texts: for perplexity; tasks: of lm-eval. Either may be none.

    limit: questions of each task; None takes all. data: a folder with their files, else the Hub is
    asked.

    prompt: tokens of it, where its length is not what is measured; longest: else, at most.
    """

    prompt: int
    generate: int
    longest: int
    runs: int
    threads: int | None
    texts: Sequence[str]
    tasks: Sequence[str] = ()
    limit: int | None = None
    data: Path | None = None


def measure(name: str, path: Path, settings: Settings, watch: Watch) -> Facts:
    """All of one model, as JSON values; None is what was not measured.

    info, speed, perplexity, tasks: as those commands print them (`eval` the tasks). by_threads,
    by_context: more of `bench`, in order, with the one in `speed`. shares: of -1, 0 and 1 in each
    layer. activity: of each layer of a relu² model, the gates that were open and the inputs of
    down_proj that were not 0.

    Raises RequestError where `bench` or `perplexity` say that it cannot be.
    """
    info = file_facts(path)
    scored = activity = tasks = None
    if settings.texts and info["tokenizer"]:
        scored, activity = _read(name, path, settings, watch)
    if settings.tasks and info["tokenizer"]:
        tasks = _tasks(name, path, settings, watch)
    speeds = _speeds(name, path, info["context"], settings, watch)
    speed = speeds[0]
    on_text = bool(activity)
    if not on_text:
        activity = list(zip(speed["gates_open"], speed["inputs_open"], strict=True))
    return {
        "name": name,
        "info": info,
        "speed": speed,
        "by_threads": _curve(speeds, "threads", "prompt_tokens"),
        "by_context": _curve(speeds, "prompt_tokens", "threads"),
        "perplexity": scored,
        "tasks": tasks,
        "activity": activity or None,
        "activity_of": ("text" if on_text else "random tokens") if activity else None,
        "shares": _shares(name, path, watch),
    }


def _speeds(name: str, path: Path, context: int, settings: Settings, watch: Watch) -> list[Facts]:
    """The main measurement first, then with fewer threads, then with other prompts."""
    what = f"Speed of {name}"
    watch(Progress(what=what, done=0, total=1))
    always = ("--generate", settings.generate, "--runs", settings.runs)
    threads = () if settings.threads is None else ("--threads", settings.threads)
    room = min(settings.longest, context - settings.generate)
    main = _bench(path, *always, *threads, "--prompt", settings.prompt, "--energy")
    fewer = [n for n in _doublings(1, settings.threads or cores().count) if n != main["threads"]]
    prompts = [n for n in _doublings(_SHORTEST, room) if _are_apart(n, main["prompt_tokens"])]
    more = [("--threads", n, "--prompt", main["prompt_tokens"]) for n in fewer]
    more += [("--threads", main["threads"], "--prompt", n) for n in prompts]
    found = [main]
    for done, words in enumerate(more, 1):
        note = f"({words[1]} threads, {words[3]} tokens)"
        watch(Progress(what=what, done=done, total=len(more) + 1, note=note))
        found.append(_bench(path, *always, *words))
    watch(Progress(what=what, done=1, total=1))
    return found


def _doublings(least: int, most: int) -> list[int]:
    """least, twice that, and so on, and `most`."""
    numbers = []
    while least < most:
        numbers.append(least)
        least *= 2
    return [*numbers, most] if most > 0 else []


def _are_apart(tokens: int, others: int) -> bool:
    """Whether two prompts differ so much that both are worth their time."""
    return max(tokens, others) >= 1.2 * min(tokens, others)


def _bench(path: Path, *words: object) -> Facts:
    done = subprocess.run(
        [sys.executable, "-m", "trilobit", "bench", *map(str, words), "--json", "--", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise RequestError(f"{path}: {last[0].removeprefix('error: ')}")
    found: Facts = json.loads(done.stdout)
    return found


def _curve(speeds: list[Facts], along: str, fixed: str) -> list[Facts]:
    """Those that differ from the first in one thing alone, in its order."""
    same = [one for one in speeds if one[fixed] == speeds[0][fixed]]
    return sorted(same, key=lambda one: int(one[along]))


def _read(
    name: str, path: Path, settings: Settings, watch: Watch
) -> tuple[Facts, list[tuple[float, float]]]:
    """Perplexity of the texts, every token of them, and what of the MLPs they needed."""

    def tell(found: Perplexity, windows: int) -> None:
        note = f"{found.by_token:.4f}"
        watch(Progress(what=f"Perplexity of {name}", done=found.windows, total=windows, note=note))

    with LLM(path, threads=settings.threads) as llm:
        window = min(WINDOW, llm.context)
        found = perplexity(llm, settings.texts, mode="sliding", window=window, progress=tell)
        return perplexity_facts(found), llm.activity()


def _tasks(name: str, path: Path, settings: Settings, watch: Watch) -> list[Facts]:
    from trilobit.evaluate.tasks import evaluate  # of an extra, which others do without

    def tell(progress: Progress) -> None:
        watch(replace(progress, what=f"Tasks of {name}"))

    with LLM(path, threads=settings.threads) as llm:
        asked = list(settings.tasks)
        scores = evaluate(llm, asked, data=settings.data, limit=settings.limit, progress=tell)
    return [asdict(score) for score in scores]


def _shares(name: str, path: Path, watch: Watch) -> list[tuple[float, float, float]]:
    source = open_source(path)
    tell = steps(watch, f"Weights of {name}")
    layers = source.config.num_hidden_layers
    shares = []
    for layer in range(layers):
        judge = Judge()
        for matrix in tensor_names.projections(source.config, layer):
            judge.projection(matrix, *source.projection(matrix))
            source.forget()
        shares.append(judge.shares)
        if tell:
            tell(layer + 1, layers)
    return shares
