"""The counters of a server, for Prometheus. docs/serving.md lists them.

Owns names and meanings. Each server has its own registry.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .answer import Answer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"relay_{name}", words, labels, registry=self.registry)

        def histogram(name: str, words: str) -> Histogram:
            return Histogram(f"relay_{name}", words, registry=self.registry, buckets=_SECONDS)

        self.requests = counter("requests", "Requests by path and status", "path", "status")
        self.hang_ups = counter("hang_ups", "Requests whose client hung up before the end")
        self.tokens = counter("tokens", "Tokens written", "author")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of the student's prompts")
        self.calls = counter("calls", "Calls by what became of them", "outcome")
        self.answers = counter("answers", "Answers by whether a teacher that failed was missed", "is_degraded")
        self.seconds = histogram("request_seconds", "From a request to the end of its answer")
        self.first_token = histogram("first_token_seconds", "From a request to its first text, streamed answers only")
        self.teacher_wait = histogram("teacher_wait_seconds", "Waiting for one answer of the teacher")
        self.in_flight = Gauge("relay_in_flight", "Answers under way", registry=self.registry)
        self.queued = Gauge("relay_queued", "Requests that wait for a place", registry=self.registry)
        self.teacher_up = Gauge("relay_teacher_up", "1 unless the teacher failed lately", registry=self.registry)

    def add(self, answers: list[Answer], prompt_tokens: int):
        """Counts an answered request."""
        self.prompt_tokens.inc(prompt_tokens)
        for answer in answers:
            self.tokens.labels("student").inc(answer.student_tokens)
            self.tokens.labels("teacher").inc(answer.teacher_tokens)
            self.answers.labels(str(answer.has_failed_teacher).lower()).inc()
            for call in answer.calls:
                self.calls.labels(call.outcome).inc()
                if call.wait_s:
                    self.teacher_wait.observe(call.wait_s)

    def page(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)
