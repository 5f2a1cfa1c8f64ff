"""Serves metrics that outlive flow runs to Prometheus. Sources are read in the background; a scrape only formats."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.monitor.sample import GAUGES, Sample
from pipeline.background import Ended, in_background

Read = Callable[[], Sequence[Sample]]


class Exporter(Collector):
    """The newest samples of each source. A source that fails keeps its last ones, and counts as down."""

    def __init__(self, sources: Mapping[str, Read], say: Callable[[str], None], every_seconds: float = 60.0) -> None:
        self._sources, self._say, self._every_seconds = dict(sources), say, every_seconds
        self._lock = threading.Lock()
        self._samples: dict[str, Sequence[Sample]] = {}
        self._read_at: dict[str, float] = {}
        self._failed: dict[str, str] = dict.fromkeys(sources, "not read yet")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What a scrape shows."""
        with self._lock:
            samples = [sample for of_source in self._samples.values() for sample in of_source]
            for source in self._sources:
                labels = {"source": source}
                samples.append(Sample(name="igpt_source_up", value=source not in self._failed, labels=labels))
                read_at = self._read_at.get(source, 0.0)
                samples.append(Sample(name="igpt_source_read_timestamp_seconds", value=read_at, labels=labels))
        for name, description in GAUGES.items():
            family = GaugeMetricFamily(name, description)
            for sample in samples:
                if sample.name == name:
                    family.add_sample(name, dict(sample.labels), sample.value)
            yield family

    def read(self, source: str) -> None:
        """Read one source now."""
        try:
            samples = self._sources[source]()
        except Exception as error:  # noqa: BLE001 (whatever is wrong with one source, the others are served)
            reason = f"{type(error).__name__}: {error}"
            with self._lock:
                known = self._failed.get(source) == reason
                self._failed[source] = reason
            if not known:
                self._say(f"cannot read {source}: {reason}")
            return
        with self._lock:
            self._samples[source], self._read_at[source] = samples, time.time()
            failed = self._failed.pop(source, None)
        if failed is not None:
            self._say(f"reads {source}")

    @contextmanager
    def serving(self, address: str, port: int) -> Iterator[WSGIServer]:
        """Read every source periodically, each in a thread, and answer scrapes within the block."""

        def repeat(source: str) -> Callable[[Ended], None]:
            def loop(ended: Ended) -> None:
                while True:
                    self.read(source)
                    if ended(self._every_seconds):
                        return

            return loop

        registry = CollectorRegistry()
        registry.register(self)
        with ExitStack() as stack:
            server, _ = start_http_server(port, address, registry)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            for source in self._sources:
                stack.enter_context(in_background(repeat(source), name=f"read-{source}"))
            yield server
