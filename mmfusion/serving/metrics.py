"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mmfusion.serving.engine import Engine
from mmfusion.serving.queue import Queue

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # seconds


class Metrics:
    """Requests by route and status, how long they took, and what the engine is doing."""

    def __init__(self, engine: Engine, queue: Queue) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "mmfusion_requests", "Requests answered", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "mmfusion_request_seconds", "Until the end of the answer", ["route"], buckets=BUCKETS,
            registry=own,
        )  # fmt: skip
        most = queue.limits.concurrency
        for name, told, value in (
            ("running", "Requests that are worked on", lambda: min(queue.accepted, most)),
            ("waiting", "Requests that wait", lambda: max(queue.accepted - most, 0)),
            ("passes", "Decoder passes so far", lambda: engine.stepper.passes),
            ("tokens", "Tokens in these passes", lambda: engine.stepper.tokens),
            (
                "cache_places",
                "Tokens that the caches have room for",
                lambda: engine.pool.kv.shape[2],
            ),
        ):
            Gauge(f"mmfusion_{name}", told, registry=own).set_function(value)

    def note(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
