"""`/metrics`: what the server does, counted for Prometheus. Nothing of what is asked is in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from trilobit.engine.event import Event
from trilobit.errors import TrilobitError
from trilobit.serve.host import Host
from trilobit.serve.queue import Queue

router = APIRouter()

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_PACE_SECONDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Metrics:
    """Counters of one server."""

    def __init__(self, host: Host, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(host, queue))
        model = ("model",)
        own = self.registry
        self._prompt = Counter("trilobit_prompt_tokens", "Of prompts", model, registry=own)
        self._cached = Counter(
            "trilobit_cached_prompt_tokens", "Those that the cache had", model, registry=own
        )
        self._output = Counter("trilobit_output_tokens", "That were made", model, registry=own)
        self._first = Histogram(
            "trilobit_time_to_first_token_seconds",
            "From a request to its first token",
            model,
            buckets=_SECONDS,
            registry=own,
        )
        self._between = Histogram(
            "trilobit_time_between_tokens_seconds",
            "From a token of an answer to the next, as they go out: of those that go out together "
            "each has its part of the pause before them, and behind an answer's first token 0",
            model,
            buckets=_PACE_SECONDS,
            registry=own,
        )
        self.requests = Counter(
            "trilobit_requests",
            "HTTP requests by route and status",
            ("route", "status"),
            registry=self.registry,
        )

    async def watched(
        self, model: str, events: AsyncIterator[tuple[int, Event]], started_s: float
    ) -> AsyncIterator[tuple[int, Event]]:
        """The events of an answer, counted as they pass: a pause for every token but its first.

        A reader who is late, or a machine that is busy, gets several tokens at once.
        """
        last_s: dict[int, float] = {}
        output, between = self._output.labels(model), self._between.labels(model)
        async for choice, event in events:
            count = len(event.token_ids)
            now_s = time.perf_counter()
            if count and choice not in last_s:
                self._first.labels(model).observe(now_s - started_s)
                if not last_s:
                    self._prompt.labels(model).inc(event.usage.prompt_tokens)
                    self._cached.labels(model).inc(event.usage.cached_tokens)
                for _ in range(count - 1):
                    between.observe(0.0)
            elif count:
                pause_s = (now_s - last_s[choice]) / count
                for _ in range(count):
                    between.observe(pause_s)
            if count:
                last_s[choice] = now_s
                output.inc(count)
            yield choice, event


class _Engines(Collector):
    """What engines know of themselves, read when it is asked for."""

    def __init__(self, host: Host, queue: Queue) -> None:
        self._host, self._queue = host, queue

    def collect(self) -> Iterable[Metric]:
        """One family of metrics after the other."""
        running = GaugeMetricFamily("trilobit_running", "Answers being written", labels=["model"])
        waiting = GaugeMetricFamily(
            "trilobit_waiting", "Answers that wait for the engine", labels=["model"]
        )
        blocks = GaugeMetricFamily("trilobit_kv_blocks", "Blocks of the cache", labels=["model"])
        held = GaugeMetricFamily(
            "trilobit_kv_blocks_held", "Those that answers hold", labels=["model"]
        )
        steps = CounterMetricFamily("trilobit_steps", "Steps of the engine", labels=["model"])
        for name, llm in self._host.opened().items():
            try:
                engine = llm.engine
            except TrilobitError:  # it was killed, of which /health tells
                continue
            running.add_metric([name], len(engine.scheduler.running))
            waiting.add_metric([name], len(engine.scheduler.waiting) + len(engine.inbox))
            blocks.add_metric([name], engine.backend.blocks)
            held.add_metric([name], engine.backend.blocks - engine.free_blocks)
            steps.add_metric([name], engine.steps)
        yield from (running, waiting, blocks, held, steps)
        yield GaugeMetricFamily("trilobit_places_taken", "Of the queue", value=self._queue.taken)
        yield GaugeMetricFamily("trilobit_places", "Of the queue in all", value=self._queue.places)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format."""
    registry = request.app.state.service.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
