"""What Prometheus reads, by the names that vLLM gave them, so that dashboards fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gossamer.extras import needed
from gossamer.measure import clock
from gossamer.serving.sparsity import View

if TYPE_CHECKING:
    from gossamer.server.generation import Generation
    from gossamer.server.loop import EngineLoop

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_HISTOGRAMS = {
    "time_to_first_token_seconds": "From a request's arrival to its first token.",
    "request_queue_time_seconds": "From a request's arrival to the pass that reads its first tokens.",
    "inter_token_latency_seconds": "Between two tokens of a request.",
    "e2e_request_latency_seconds": "From a request's arrival to its end.",
}
_COUNTERS = {"prompt_tokens": "Tokens of prompts.", "generation_tokens": "Tokens that were made."}


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        model: its name, the label of all.
    """

    def __init__(self, model: str) -> None:
        prometheus: Any = needed("prometheus_client", "metrics need prometheus-client", "server")
        self._prometheus, self._model = prometheus, model
        self.registry = prometheus.CollectorRegistry()
        labels = {"registry": self.registry, "labelnames": ("model_name",)}
        self._histograms = {
            name: prometheus.Histogram(f"vllm:{name}", said, buckets=_SECONDS, **labels).labels(model)
            for name, said in _HISTOGRAMS.items()
        }
        self._counters = {
            name: prometheus.Counter(f"vllm:{name}", said, **labels).labels(model) for name, said in _COUNTERS.items()
        }
        self._ends = prometheus.Counter(
            "vllm:request_success", "Requests that ended, by the reason.", registry=self.registry,
            labelnames=("model_name", "finished_reason"),
        )  # fmt: skip

    def watch(self, loop: EngineLoop) -> None:
        """Tell of the engine at each look."""
        engine = loop.llm.engine

        def gauge(name: str, said: str, read: Any) -> None:
            made = self._prometheus.Gauge(f"vllm:{name}", said, registry=self.registry, labelnames=("model_name",))
            made.labels(self._model).set_function(read)

        def used() -> float:
            pages = engine.store.pages.get(View(None, 0))
            return 0.0 if pages is None else 1 - pages.free / pages.count

        gauge("num_requests_running", "Requests in the engine's batch.", lambda: len(engine.running))
        gauge("num_requests_waiting", "Requests that wait.", lambda: max(len(loop.open) - len(engine.running), 0))
        gauge("prefix_cache_queries", "Tokens of prompts that were looked for.", lambda: engine.prefixes.queries)
        gauge("prefix_cache_hits", "Tokens of prompts whose keys were there.", lambda: engine.prefixes.hits)
        gauge("kv_cache_usage_perc", "Share of the pages of dense heads in use, those of kept texts too.", used)

    def ended(self, generation: Generation, reason: str) -> None:
        """A request has ended."""
        times = generation.times
        self._ends.labels(self._model, reason).inc()
        self._counters["prompt_tokens"].inc(len(generation.prompt))
        self._counters["generation_tokens"].inc(generation.tokens)
        if times.begun is not None:
            self._histograms["request_queue_time_seconds"].observe(times.begun - times.arrived)
        if times.first is not None:
            self._histograms["time_to_first_token_seconds"].observe(times.first - times.arrived)
        for gap in times.gaps:
            self._histograms["inter_token_latency_seconds"].observe(gap)
        self._histograms["e2e_request_latency_seconds"].observe(clock.now() - times.arrived)

    def text(self) -> tuple[bytes, str]:
        """All of them, and the type of that text."""
        return self._prometheus.generate_latest(self.registry), self._prometheus.CONTENT_TYPE_LATEST
