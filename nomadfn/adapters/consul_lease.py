"""The lease as a lock in Consul: who leads a shard, since which epoch, and where it is reached.

A session with a TTL holds the lock key. It lives on a catalog node of nomadfn's own, without health checks and
without lock delay, so that neither the end of a Consul server nor a wait stands between two leaders. A keeper
thread renews it and watches the key: that the lease is lost is known at once where it was taken, and at the next
renewal where it ran out. While Consul cannot be reached nothing is lost yet: nobody else can take the lease
then, and whatever is written under it is fenced.

The key's value is the leader's record: how others find it. A standby that sees its connection to the leader end
does not wait for the TTL: it ends the leader's session and takes the lease (`take_over`). A wrong suspicion costs
a change of leaders and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from nomadfn.adapters.consul_discovery import Leader, find_leader, leader_of, wait_for_leader
from nomadfn.adapters.consul_store import ConsulStore, Hold, Shard, insist, put, write_locked
from nomadfn.exception import ServiceError
from nomadfn.ports import LeaseHeldError

TTL_S = 15.0
"""Consul ends a session between one and two TTLs after its last renewal."""
RENEWALS_PER_TTL = 3
ACQUIRE_S = 10.0
"""How long Consul may be away while the lease is taken."""
RELEASE_S = 2.0
"""How long Consul may be away while the lease is given back; after that its TTL does it."""
MAX_NOTE_CHARACTERS = 500

P = ParamSpec("P")
T = TypeVar("T")


class ConsulLease:
    """A `Lease` on `shard`. `on_lost` is called with the reason, on a thread of the lease, once for each loss.

    Raises `ServiceError` where Consul refuses or cannot be reached. `ttl_s` is 10 s or more on a Consul that has
    its defaults. Any thread may call; `release` makes waits of other threads for this lease return soon.
    """

    def __init__(
        self, store: ConsulStore, shard: Shard, *, ttl_s: float = TTL_S, on_lost: Callable[[str], None] | None = None
    ) -> None:
        self.shard = shard
        self._store = store
        self._ttl_s = ttl_s
        self._on_lost = on_lost
        self._turn = threading.RLock()
        self._hold: Hold | None = None
        self._me: Leader | None = None
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def hold(self) -> Hold:
        """What writes under this lease carry. Raises `ServiceError` when it is not held."""
        hold = self._hold
        if hold is None:
            raise ServiceError(f"{self.shard} is not led from here: take the lease first.")
        return hold

    def acquire(self) -> int:
        with self._turn:
            if self._hold is not None:
                raise LeaseHeldError(f"{self.shard} is led by this process already, in epoch {self._hold.epoch}.")
            self._join_keeper()
            self._stop = threading.Event()
            session = self._insist(self._store.open_session, f"nomadfn {self.shard}", self._ttl_s)
            try:
                epoch = self._lock(session)
            except BaseException:
                self._quietly(self._store.end_session, session)
                raise
            self._hold = Hold(self.shard, session, epoch)
            self._keeper = threading.Thread(
                target=self._keep, args=(self._hold, self._stop), name="consul-lease", daemon=True
            )
            self._keeper.start()
            return epoch

    def _lock(self, session: str) -> int:
        """Lock the key; returns the epoch.

        It is the key's `LockIndex`, and more than the last one that was written down where somebody has deleted or
        put the key, which makes Consul count from 1 again.
        """
        me = Leader(session, 0, time.time(), socket.gethostname(), os.getpid())
        if not self._insist(self._store.lock, self.shard.lock, me.encode(), session):
            holder = self.leader()
            who = f"is led by {holder}. End that one first, or stand by" if holder else "was led a moment ago"
            raise LeaseHeldError(f"{self.shard} {who}.")
        key = f"{self.shard.prefix}epoch"
        locked = self._insist(self._store.get, self.shard.lock)
        last = self._insist(self._store.get, key)
        try:
            epoch = max(locked.lock_index if locked else 0, int(last.value) + 1 if last else 1)
        except ValueError:
            raise ServiceError(
                f"{key} in Consul is not the number that it was. Set it to one larger than any epoch before."
            ) from None
        self._me = dataclasses.replace(me, epoch=epoch)
        fence = Hold(self.shard, session, epoch).fence
        record = write_locked(self.shard.lock, self._me.encode(), session)
        if self._insist(self._store.transact, [fence, put(key, str(epoch).encode()), record]):
            raise LeaseHeldError(f"{self.shard} was taken by another control service a moment ago.")
        return epoch

    def take_over(self, leader: Leader) -> int:
        """End the session of a leader that is believed dead and take its lease, as `acquire` does.

        Where another one leads by now, that one stays: then this raises `LeaseHeldError`.
        """
        found = self.leader()
        if found is not None and found.session == leader.session:
            self._insist(self._store.end_session, leader.session)
        return self.acquire()

    def leader(self) -> Leader | None:
        """Who leads now, or None."""
        return self._insist(find_leader, self._store, self.shard)

    def is_held(self) -> bool:
        """Whether Consul says now that it is held here."""
        hold = self._hold
        if hold is None:
            return False
        entry = self._store.get(self.shard.lock)
        return entry is not None and entry.session == hold.session

    def wait_for_change(self, known: Leader | None, timeout_s: float) -> Leader | None:
        """See `consul_discovery.wait_for_leader`; a standby waits here for None, also while Consul is away."""
        end = time.monotonic() + timeout_s
        return insist(
            lambda: wait_for_leader(self._store, self.shard, known, end - time.monotonic()),
            timeout_s,
            threading.Event(),
        )

    def describe(self, note: str) -> None:
        self._rewrite(note=note[:MAX_NOTE_CHARACTERS])

    def announce(self, *, http_url: str, data_url: str) -> None:
        """Say where the leader is reached: clients, containers and standbys read it from Consul."""
        self._rewrite(http_url=http_url, data_url=data_url)

    def _rewrite(self, **changes: Any) -> None:
        """Change the record, fenced. A lease that is lost or not held has none; the keeper tells of the loss."""
        with self._turn:
            if self._hold is not None and self._me is not None:
                self._me = dataclasses.replace(self._me, **changes)
                record = write_locked(self.shard.lock, self._me.encode(), self._hold.session)
                self._insist(self._store.transact, [self._hold.fence, record])

    def release(self) -> None:
        """Give the lease back: the next one has it at once. Where Consul is away, the TTL does it."""
        with self._turn:
            hold, self._hold = self._hold, None
            self._stop.set()
            if hold is not None:
                end = json.dumps({"epoch": hold.epoch}).encode()
                if self._quietly(self._store.unlock, self.shard.lock, end, hold.session):
                    self._quietly(self._store.end_session, hold.session)
            self._join_keeper()

    def _join_keeper(self) -> None:
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join(RELEASE_S)
            self._keeper = None

    def _keep(self, hold: Hold, stop: threading.Event) -> None:
        """Renew the session and watch the key until the lease is released or lost."""
        interval_s = self._ttl_s / RENEWALS_PER_TTL
        renew_at = time.monotonic() + interval_s
        index = 0
        while not stop.is_set():
            try:
                wait_s = max(0.0, renew_at - time.monotonic())
                index, entry = self._store.wait(self.shard.lock, index, wait_s)
                if entry is None or entry.session != hold.session:
                    leader = leader_of(entry)
                    reason = f"it was taken by {leader}" if leader else "its session has ended"
                    self._lost(hold, stop, reason)
                elif time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + interval_s
                    if not self._store.renew_session(hold.session):
                        self._lost(hold, stop, "its session has run out")
            except ServiceError:
                # Away, or refusing for now: nobody else leads until the session has really ended.
                index = 0
                stop.wait(min(1.0, interval_s / 2))

    def _lost(self, hold: Hold, stop: threading.Event, reason: str) -> None:
        """Not under the turn: `release` holds it while it waits for the keeper."""
        if not stop.is_set():
            stop.set()
            if self._hold is hold:
                self._hold = None
            if self._on_lost is not None:
                self._on_lost(f"{self.shard} is not led from here any more: {reason}.")

    def _insist(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return insist(functools.partial(call, *args, **kwargs), ACQUIRE_S, threading.Event())

    def _quietly(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            insist(functools.partial(call, *args, **kwargs), RELEASE_S, threading.Event())
        except ServiceError:
            return False
        return True
