"""Apps and sessions: what is deployed, what is ephemeral, and what ends with whom."""

from __future__ import annotations

import msgspec
from nomadfn_agent import wire

from ..exception import InvalidError, NotFoundError
from . import calls, dicts, pool, scaling, shared_queues, streams, variants
from .effects import AppGone, FunctionGone
from .model import STOPPING, App, Function, Session
from .state import State, drop_blob

SESSION_AWAY_S = 30.0
"""A session that has been away for this long is ended."""


def open_session(state: State, id: str, parent: str, seen: int) -> bool:
    """A client is there, for the first time or again; True when the session was known.

    What it has not seen of its results is sent again.
    """
    session = state.sessions.get(id)
    if session is None:
        state.sessions[id] = Session(id, parent)
        return False
    session.attached = True
    state.away.pop(id, None)
    calls.resend(state, session, seen)
    return True


def detach_session(state: State, now: float, id: str) -> None:
    """Its connection is gone; it may come back within `SESSION_AWAY_S`."""
    session = state.sessions.get(id)
    if session is not None and session.attached:
        session.attached = False
        session.away_since = now
        state.away[id] = session


def expect_session(state: State, now: float, id: str) -> Session:
    """A session from before a restart: it is away until it comes back, or is ended as any other."""
    if id not in state.sessions:
        open_session(state, id, "", 0)
        detach_session(state, now, id)
    return state.sessions[id]


def end_session(state: State, now: float, session: Session) -> None:
    """Cancel what was only for this client: its `.remote` and `.map` inputs and its ephemeral apps."""
    for id in sorted(session.apps):
        app = state.apps.get(id)
        if app is not None and app.session == session.id:
            stop_app(state, now, app, "its session ended")
    for call in list(session.calls.values()):
        if call.durable:
            calls.close(state, now, call, call.accepted)
        else:
            calls.cancel(state, now, call)
    streams.drop_session(state, session)
    dicts.drop_session(state, session.id)
    shared_queues.drop_session(state, session.id)
    for batch in [*session.unacknowledged, *session.unsent.values()]:
        for index in batch.indexes:
            if (one := batch.call.drop(index)) is not None:
                drop_blob(state, one.status, one.payload)
        state.calls.pop(batch.call.id, None)
    for call in list(session.calls.values()):
        state.calls.pop(call.id, None)
    state.unsent.pop(session.id, None)
    state.away.pop(session.id, None)
    state.sessions.pop(session.id, None)


def end_away_sessions(state: State, now: float) -> None:
    while state.away:
        session = next(iter(state.away.values()))
        if now - session.away_since < SESSION_AWAY_S:
            return
        end_session(state, now, session)


def put_app(
    state: State, now: float, id: str, spec: wire.AppSpec, *, session: str = "", deployed: bool = False
) -> tuple[App, list[str]]:
    """Start, deploy or bring back an app; returns it and the names of the functions that changed.

    A function whose code and definition are the same keeps its containers. Settings that were changed since
    the last deploy go back to the definition's.
    """
    app = state.apps.get(id)
    new = app is None
    state.apps_version += 1
    if app is None:
        app = state.apps[id] = App(id, spec.name, session, deployed, now)
    app.session = session
    app.stopping = False
    if deployed:
        state.deployed[spec.name] = id
    elif session in state.sessions:
        state.sessions[session].apps.add(id)
    same_code = not new and app.code == spec.code
    app.code = spec.code
    changed = [one.name for one in spec.functions if _put_function(state, app, one, same_code=same_code)]
    kept = {one.name for one in spec.functions}
    for function in [one for one in app.functions.values() if one.spec.name not in kept]:
        if function.variation is None or function.variation.base not in kept:
            _remove_function(state, now, app, function, "its function was removed from the app")
        else:
            _follow(state, now, app, function, same_code=same_code)
    return app, changed


def put_variant(state: State, now: float, app: App, variation: wire.Variation) -> tuple[Function, bool]:
    """The variant of one of the app's functions, and whether it was there. Raises InvalidError or what is over."""
    base = app.functions.get(variation.base)
    if base is None or app.stopping:
        raise NotFoundError(f"app {app.name} has no {variation.base} any more; deploy it again")
    spec = variants.make_spec(base.spec, variation)
    function = app.functions.get(spec.name)
    known = function is not None
    if function is None:
        if (last := variants.to_make_room(app)) is not None:
            _remove_function(state, now, app, last, "other variants took its place")
        _put_function(state, app, spec, same_code=True)
        function = app.functions[spec.name]
        function.variation = variation
        state.apps_version += spec.is_web  # It has an address of its own.
    function.used_at = now
    return function, known


def _follow(state: State, now: float, app: App, function: Function, *, same_code: bool) -> None:
    """A variant after a deploy of its base."""
    assert function.variation is not None
    try:
        spec = variants.make_spec(app.functions[function.variation.base].spec, function.variation)
    except InvalidError as error:
        _remove_function(state, now, app, function, str(error))
    else:
        _put_function(state, app, spec, same_code=same_code)


def _put_function(state: State, app: App, spec: wire.FunctionSpec, *, same_code: bool) -> bool:
    spec = variants.without_open_minimum(spec)
    id = f"{app.id}/{spec.name}"
    function = app.functions.get(spec.name) or state.functions.get(id)
    if function is None:
        function = Function(id, app.id, spec, state.totals_of(app.name, spec.program_name))
        same = False
    else:
        old = msgspec.structs.replace(function.spec, autoscaler=spec.autoscaler, schedule=spec.schedule)
        same = same_code and old == spec
        function.app = app.id
        function.totals = state.totals_of(app.name, spec.name)  # A replay may have made it, which knows no names.
        function.overrides, function.temporary = {}, {}
        function.spec = spec
        function.failures = 0
        function.retry_start_at = 0.0
        if not same:
            function.revision += 1
            function.mean_run_s = None
            scaling.drain_outdated(state, function)
    app.functions[spec.name] = function
    state.functions[id] = function
    function.next_decision = 0.0
    state.touch(function)
    return not same


def _remove_function(state: State, now: float, app: App, function: Function, why: str) -> None:
    del app.functions[function.spec.name]
    state.apps_version += function.spec.is_web
    _cancel_calls(state, now, {function.id}, why)
    for container in list(function.containers.values()):
        pool.stop(state, container, why)
    function.app = ""
    state.effects.append(FunctionGone(app.id, function.spec.name))
    state.touch(function)


def forget_variants(state: State, now: float) -> None:
    """Drop those that nobody has used for long, so that they do not become more and more."""
    for function in variants.unused(state, now):
        _remove_function(state, now, state.apps[function.app], function, "nobody has used it for long")


def stop_app(state: State, now: float, app: App, why: str) -> int:
    """Cancel everything of the app that has no result and end its containers; returns how many inputs those were."""
    if app.stopping:
        return 0
    app.stopping = True
    state.apps_version += 1
    cancelled = _cancel_calls(state, now, {function.id for function in app.functions.values()}, why)
    for function in app.functions.values():
        for container in list(function.containers.values()):
            if container.state != STOPPING:
                container.forget_all()
                pool.stop(state, container, why)
        state.touch(function)
    if state.deployed.get(app.name) == app.id:
        del state.deployed[app.name]
    return cancelled


def _cancel_calls(state: State, now: float, functions: set[str], why: str) -> int:
    text = f"{calls.CANCELLED_TEXT}: {why}"
    return sum(
        calls.cancel(state, now, call, text=text)
        for call in list(state.calls.values())
        if call.function.id in functions and not call.finished
    )


def sweep(state: State, now: float) -> None:
    """End detached apps that have nothing left to do, and forget stopped ones whose containers are gone."""
    for function in [one for one in state.functions.values() if not one.app and not one.containers]:
        _drop_function(state, function)
    for app in list(state.apps.values()):
        functions = app.functions.values()
        if not (app.deployed or app.session or app.stopping) and not any(
            one.waiting_inputs or one.running_inputs for one in functions
        ):
            stop_app(state, now, app, "it was detached and its inputs are done")
        if app.stopping and not any(one.containers for one in functions):
            for function in functions:
                _drop_function(state, function)
            del state.apps[app.id]
            state.effects.append(AppGone(app.id))


def _drop_function(state: State, function: Function) -> None:
    for table in (state.functions, state.active, state.dirty):
        table.pop(function.id, None)
