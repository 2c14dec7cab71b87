"""What `/metrics` shows, in Prometheus' format."""

from __future__ import annotations

from typing import Any

from dto.serving.records import Reply

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Counters and distributions of one server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry()
        self.requests: Any = Counter(
            "dto_requests", "Requests by HTTP status", ["status"], registry=registry
        )
        self.exits: Any = Counter(
            "dto_exits", "Responses by what ended their thinking", ["reason"], registry=registry
        )
        self.tokens: Any = Counter(
            "dto_tokens", "Tokens by the part of the response", ["part"], registry=registry
        )
        self.live: Any = Gauge("dto_live_requests", "Requests under way", registry=registry)
        self.waiting: Any = Gauge("dto_waiting_requests", "Requests that wait", registry=registry)
        first, answer, whole = (
            Histogram(f"dto_{name}_seconds", about, buckets=SECONDS, registry=registry)
            for name, about in (
                ("first_token", "Time to the first token"),
                ("first_answer_token", "Time to the first token of the answer"),
                ("response", "Time to the end of the response"),
            )
        )
        self.first_token: Any = first
        self._answer: Any = answer
        self._whole: Any = whole

    def count(self, reply: Reply) -> None:
        """Count a response."""
        self.exits.labels(reply.exit_reason).inc()
        for part in ("prompt", "thinking", "trial", "answer", "inserted", "withdrawn", "wasted"):
            self.tokens.labels(part).inc(getattr(reply.tokens, part))
        self._whole.observe(reply.seconds)
        if reply.seconds_to_answer is not None:
            self._answer.observe(reply.seconds_to_answer)

    def text(self) -> bytes:
        """The page."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
