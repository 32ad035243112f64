"""What `nomadfn run` shows while a program runs: what containers write, and a bar for each `.map` that lasts.

The bar stands on stderr, and only where that is a terminal. Lines of containers go to the stream that they were
written to; where that is the bar's terminal they are printed above it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from nomadfn_agent import wire

from nomadfn.cli import output
from nomadfn.sdk.progress import Observer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

JUST_NOW_S = 1.0
REFRESH_S = 0.1
QUICK_S = 0.4
"""A map that is over sooner gets no bar."""


@dataclass
class _Map:
    """One `.map` that goes on; written by the SDK's threads, read by the one that draws."""

    function: str
    total: int | None
    started: float
    pool: str
    """What figures call it."""
    done: int = 0
    containers: int = 0
    """The most that there were at once."""
    task: TaskID | None = None


class RunDisplay(Observer):
    """The observer of `nomadfn run`. `close` takes the bar away and must be called at the end."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._shows_bar = sys.stderr.isatty() and not quiet
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._lock = threading.RLock()
        self._maps: dict[int, _Map] = {}
        self._figures: dict[str, wire.Stats] = {}
        self._progress: Progress | None = None
        self._drawer: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False
        self.app_id = ""
        self._open: dict[int, int] = {}
        """Inputs of each map without a result."""
        self._abandoned: deque[tuple[float, int]] = deque(maxlen=100)
        """When maps ended, and how many of their inputs had no result then."""
        self.cancelled = 0
        """Unfinished inputs that were cancelled when the app stopped."""

    def running(self, app: str, app_id: str, target: str) -> None:
        self.app_id = app_id
        if not self._quiet:
            self._write(output.paint(f"Running {app} on {target}", output.DIM, self._stderr), self._stderr)

    def web_functions(self, urls: dict[str, str]) -> None:
        for name, url in sorted(urls.items()):
            if not self._quiet:
                self._write(output.paint(f"{name} answers at {url}", output.DIM, self._stderr), self._stderr)

    def stopped(self, app: str, cancelled: int) -> None:
        self.cancelled += cancelled

    def notice(self, text: str) -> None:
        if not self._quiet:
            self._write(output.paint(f"nomadfn: {text}", output.DIM, self._stderr), self._stderr)

    def log(self, line: wire.Log) -> None:
        stream = self._stdout if line.stream == 1 else self._stderr
        lines = line.text.splitlines() or [""]
        self._write("\n".join(output.container_line(line.function, line.index, text, stream) for text in lines), stream)

    def stats(self, figures: wire.Stats) -> None:
        self._figures[figures.name] = figures
        for one in tuple(self._maps.values()):
            if one.pool == figures.name:
                one.containers = max(one.containers, figures.containers)

    def unfinished(self) -> int:
        """Inputs that wait or run: by the last figures, or by the maps that were left just now, which are newer."""
        figures = sum(one.pending + one.running for one in tuple(self._figures.values()))
        since = time.monotonic() - JUST_NOW_S
        return max(figures, sum(left for at, left in self._abandoned if at >= since))

    def map_started(self, key: int, function: str, total: int | None, pool: str) -> None:
        if not self._shows_bar:
            return
        with self._lock:
            if self._closed:
                return
            self._maps[key] = _Map(function, total, time.monotonic(), pool)
            if self._drawer is None:
                self._drawer = threading.Thread(target=self._draw, name="nomadfn progress", daemon=True)
                self._drawer.start()
        self._wake.set()

    def map_advanced(self, key: int, submitted: int, done: int) -> None:
        self._open[key] = submitted - done
        one = self._maps.get(key)
        if one is not None:
            one.done = done

    def map_finished(self, key: int) -> None:
        self._abandoned.append((time.monotonic(), self._open.pop(key, 0)))
        with self._lock:
            one = self._maps.pop(key, None)
            if one is not None and one.task is not None and self._progress is not None:
                # At once, so that what the program prints next stands below.
                self._progress.remove_task(one.task)
                self._progress.console.print(_summary(one), highlight=False, markup=False)
            if not self._maps:
                self._end_bars()

    def close(self) -> None:
        """Leave the terminal as it was found."""
        with self._lock:
            self._closed = True
            self._end_bars()
        self._wake.set()
        if self._drawer is not None:
            self._drawer.join(timeout=1.0)

    def _write(self, text: str, stream: IO[str]) -> None:
        with self._lock:
            if self._progress is not None and stream.isatty():
                from rich.text import Text

                self._progress.console.print(Text.from_ansi(text), soft_wrap=True)
                return
            # Whoever read this stream may have gone (`| head`); the program finds out when it writes itself.
            with contextlib.suppress(OSError):
                stream.write(f"{text}\n")
                stream.flush()

    def _draw(self) -> None:
        """The thread that draws: it sleeps while there is no map."""
        while not self._closed:
            if not self._maps:
                self._wake.wait()
                self._wake.clear()
                continue
            time.sleep(REFRESH_S)
            now = time.monotonic()
            with self._lock:
                if not self._closed and any(one.task or now - one.started > QUICK_S for one in self._maps.values()):
                    self._refresh()

    def _refresh(self) -> None:
        """Bring the bars up to date; the first call starts them."""
        if self._progress is None:
            self._progress = _make_progress()
            self._progress.start()
        now = time.monotonic()
        for one in self._maps.values():
            if one.task is None:
                if now - one.started <= QUICK_S:
                    continue
                one.task = self._progress.add_task(one.function, total=one.total, figures="")
            line = self._figures_line(one, now)
            self._progress.update(one.task, completed=one.done, figures=line, refresh=False)
        self._progress.refresh()

    def _end_bars(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _figures_line(self, one: _Map, now: float) -> str:
        shown = [f"{one.done:,} done" if one.total is None else f"{one.done:,}/{one.total:,}"]
        figures = self._figures.get(one.pool)
        if figures is not None:
            starting = f" (+{figures.starting})" if figures.starting else ""
            shown += [f"{figures.running:,} running", f"{output.plural(figures.containers, 'container')}{starting}"]
        return " · ".join([*shown, _rate(one, now)])


def _rate(one: _Map, now: float) -> str:
    rate = one.done / max(now - one.started, 1e-3)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _summary(one: _Map) -> str:
    """The line that a map leaves behind."""
    now = time.monotonic()
    is_whole = one.total is None or one.done >= one.total
    count = f"{one.done:,}" if is_whole else f"{one.done:,} of {one.total:,}"
    parts = [f"{count} inputs in {now - one.started:.1f} s", _rate(one, now)]
    if one.containers:
        parts.append(output.plural(one.containers, "container"))
    return f"{'✓' if is_whole else '·'} {one.function}  {' · '.join(parts)}"


def _make_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, highlight=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    )
