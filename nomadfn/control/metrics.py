"""`/metrics` in the text form of Prometheus: what the core knows, looked at when it is asked for.

Nothing is kept for it but a few counters. The event loop copies figures (`sample`); a thread makes families and text
of them (`render`), and imports prometheus-client when it is first asked. Counters begin at 0 when a control service
begins to lead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nomadfn.control.durable import APPEND_BOUNDS_S
from nomadfn.core.model import CONTAINER_STATES
from nomadfn.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from nomadfn.control.service import Service
    from nomadfn.core.state import State

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("app", "function")


@dataclass(slots=True)
class Row:
    """The functions of one name in all apps of one name."""

    accepted: int
    succeeded: int
    failed: int
    cancelled: int
    retried: int
    lost: int
    pending: int = 0
    running: int = 0
    wanted: int = 0
    containers: list[int] = field(default_factory=lambda: [0] * len(CONTAINER_STATES))
    """In each of `CONTAINER_STATES`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a control service that leads."""

    epoch: int
    capacity: int | None
    sessions: int
    agents: int
    last_segment: int
    lag: int
    journal_bytes: int
    append_counts: Sequence[int]
    append_s: float
    rows: dict[tuple[str, str], Row]


def sample(service: Service) -> Figures:
    """A copy of what changes; the only part that runs on the event loop."""
    state, writer = service.core.state, service.writer
    return Figures(
        epoch=state.epoch,
        capacity=service.cluster.capacity,
        sessions=len(service.clients.sessions),
        agents=service.agents.count,
        last_segment=writer.last_segment,
        lag=state.record_number - state.durable_number,
        journal_bytes=writer.size_bytes,
        append_counts=tuple(writer.append_counts),
        append_s=writer.append_s,
        rows=rows_of(state),
    )


def rows_of(state: State) -> dict[tuple[str, str], Row]:
    rows = {
        key: Row(one.accepted, one.succeeded, one.failed - one.cancelled, one.cancelled, one.retried, one.lost)
        for key, one in state.totals.items()
    }
    for function in state.functions.values():
        row = rows.get((function.totals.app, function.totals.function))
        if row is not None:
            row.pending += function.waiting_inputs
            row.running += function.running_inputs
            row.wanted += function.wanted
            for container in function.containers.values():
                row.containers[container.state] += 1
    return rows


def render(figures: Figures | None) -> bytes:
    """The page; None is that of a standby. Takes a while for many functions, so call it on a thread."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    registry.register(_Families(figures))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families:
    """A collector as prometheus-client has them."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        figures = self._figures
        yield InfoMetricFamily("nomadfn_build", "The version of nomadfn.", {"version": __version__})
        leads = 0 if figures is None else 1
        yield GaugeMetricFamily("nomadfn_leader", "1 where this control service leads, 0 where it stands by.", leads)
        if figures is not None:
            yield from _of_service(figures)
            yield from _of_functions(figures.rows)


def _of_service(figures: Figures) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    yield GaugeMetricFamily("nomadfn_epoch", "The number of the lease that is held.", figures.epoch)
    if figures.capacity is not None:
        yield GaugeMetricFamily("nomadfn_containers_max", "Containers that may run at once.", figures.capacity)
    yield GaugeMetricFamily("nomadfn_sessions", "Clients that are connected.", figures.sessions)
    yield GaugeMetricFamily("nomadfn_agents", "Agents of a cluster that are connected.", figures.agents)
    text = "The number of the last segment that this control service has written."
    yield GaugeMetricFamily("nomadfn_journal_last_segment", text, figures.last_segment)
    text = "Records that are made and not yet durable."
    yield GaugeMetricFamily("nomadfn_journal_lag_records", text, figures.lag)
    yield GaugeMetricFamily("nomadfn_journal_size_bytes", "What the journal holds.", figures.journal_bytes)
    bounds = [*map(str, APPEND_BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, itertools.accumulate(figures.append_counts), strict=True))
    text = "How long segments took to become durable."
    yield HistogramMetricFamily("nomadfn_journal_append_seconds", text, buckets, figures.append_s)


def _of_functions(rows: dict[tuple[str, str], Row]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def family(kind: Any, name: str, text: str, value: Callable[[Row], float]) -> Any:
        made = kind(name, text, labels=LABELS)
        for labels, row in rows.items():
            made.add_metric(labels, value(row))
        return made

    yield family(CounterMetricFamily, "nomadfn_inputs_accepted", "Inputs that were taken.", lambda row: row.accepted)
    text = "Inputs that came to an end, by how."
    finished = CounterMetricFamily("nomadfn_inputs_finished", text, labels=(*LABELS, "outcome"))
    for labels, row in rows.items():
        for outcome in ("succeeded", "failed", "cancelled"):
            finished.add_metric((*labels, outcome), getattr(row, outcome))
    yield finished
    text = "Attempts that raised and were made again."
    yield family(CounterMetricFamily, "nomadfn_inputs_retried", text, lambda row: row.retried)
    text = "Attempts that ended with their container."
    yield family(CounterMetricFamily, "nomadfn_inputs_lost", text, lambda row: row.lost)
    yield family(GaugeMetricFamily, "nomadfn_inputs_pending", "Inputs that wait.", lambda row: row.pending)
    text = "Inputs that containers have."
    yield family(GaugeMetricFamily, "nomadfn_inputs_running", text, lambda row: row.running)
    text = "Containers that the autoscaler wants."
    yield family(GaugeMetricFamily, "nomadfn_containers_wanted", text, lambda row: row.wanted)
    containers = GaugeMetricFamily("nomadfn_containers", "Containers, by their state.", labels=(*LABELS, "state"))
    for labels, row in rows.items():
        for state, count in zip(CONTAINER_STATES, row.containers, strict=True):
            containers.add_metric((*labels, state), count)
    yield containers
