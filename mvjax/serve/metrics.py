"""Counters of the server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.4, 0.8, 1.6)
_PLAYBACK = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
_MOST_PLAYBACK = 60.0  # seconds; a client can say anything


class Metrics:
    """What is counted; every server has its own registry."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._connections = prometheus_client.Counter(
            "mvjax_connections",
            "WebSocket connections by how they ended",
            ["end"],
            registry=self._registry,
        )
        self._frames = prometheus_client.Counter(
            "mvjax_frames", "frames answered", registry=self._registry
        )
        self._missed = prometheus_client.Counter(
            "mvjax_frames_missed",
            "frames answered later than 80 ms after they came",
            registry=self._registry,
        )
        self._skipped = prometheus_client.Counter(
            "mvjax_frames_skipped",
            "frames of users dropped because more waited than may",
            registry=self._registry,
        )
        self._latency = prometheus_client.Histogram(
            "mvjax_frame_latency_seconds", "from a frame's last sample to its answer",
            buckets=_SECONDS, registry=self._registry)  # fmt: skip
        self._step = prometheus_client.Histogram(
            "mvjax_step_seconds", "one step of the model", buckets=_SECONDS, registry=self._registry
        )
        self._batch = prometheus_client.Histogram(
            "mvjax_batch_size",
            "conversations in a step",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self._playback = prometheus_client.Histogram(
            "mvjax_playback_latency_seconds", "from the microphone to the loudspeaker, as clients say",
            buckets=_PLAYBACK, registry=self._registry)  # fmt: skip
        self._ratings = prometheus_client.Counter(
            "mvjax_ratings", "ratings of conversations", ["stars"], registry=self._registry
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Adds a number that is read when it is asked for."""
        gauge = prometheus_client.Gauge(f"mvjax_{name}", what, registry=self._registry)
        gauge.set_function(value)

    def step(self, seconds: float, conversations: int) -> None:
        """Counts a step."""
        self._step.observe(seconds)
        self._batch.observe(conversations)

    def frame(self, latency: float, *, missed: bool) -> None:
        """Counts a frame."""
        self._frames.inc()
        self._latency.observe(latency)
        self._missed.inc(missed)

    def skipped(self, frames: int) -> None:
        """Counts dropped frames."""
        self._skipped.inc(frames)

    def played(self, seconds: float) -> None:
        """Counts what a client says of its playback."""
        self._playback.observe(max(0.0, min(_MOST_PLAYBACK, seconds)))  # a sum has no way back

    def rated(self, stars: int) -> None:
        """Counts a rating."""
        self._ratings.labels(str(stars)).inc()

    def ended(self, how: str) -> None:
        """Counts a connection that is over."""
        self._connections.labels(how).inc()

    def text(self) -> bytes:
        """Returns all of them."""
        return prometheus_client.generate_latest(self._registry)

    def value(self, name: str, **labels: str) -> float:
        """Returns one of them, 0 if it was never counted; for tests and tools."""
        return self._registry.get_sample_value(name, labels) or 0.0
