"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lorabank.workflows.asking.questions import Answered

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Meter:
    """The counters of one server; names of tasks are labels, words of callers are not."""

    def __init__(self) -> None:
        self._registry = here = CollectorRegistry()
        self.requests = Counter("lorabank_requests", "Calls.", ["endpoint", "status"], registry=here)
        self.seconds = Histogram("lorabank_request_seconds", "Seconds of a call.", ["endpoint"], registry=here)
        self._answers = Counter("lorabank_answers", "Texts answered.", ["model", "task", "task_id"], registry=here)
        self._tokens = Counter("lorabank_tokens", "Tokens of free text.", ["kind"], registry=here)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batches = Histogram("lorabank_batch_texts", "Texts of a batch.", registry=here, buckets=sizes)
        self.batch_seconds = Histogram("lorabank_batch_seconds", "Seconds of a batch.", registry=here)
        self.waiting = Gauge("lorabank_queue_texts", "Texts that wait.", registry=here)
        self.revision = Gauge("lorabank_bank_revision", "Number of the bank's newest change.", registry=here)
        self.loads = Counter("lorabank_loads", "States of the bank that were loaded.", registry=here)

    def answered(self, model: str, one: Answered) -> None:
        """Count an answer."""
        self._answers.labels(model, one.who.task, one.who.task_id).inc()
        if one.written is not None:
            self._tokens.labels("prompt").inc(one.written.prompt_tokens)
            self._tokens.labels("generated").inc(one.written.tokens)

    def page(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)
