"""Nomad's HTTP API over the double's state."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import nomadfn_jobspecs

from nomad_double import jobs
from nomad_double.state import State
from nomadfn.adapters.nomad_api import NomadAddress

HEARTBEAT_S = 1.0


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NomadDouble:
    """A server on a port of its own; `state` is what tests look into."""

    def __init__(self, folder: Path) -> None:
        self.state = State(folder)
        state = self.state

        class Handler(_Handler):
            double = state

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = NomadAddress(url=f"http://127.0.0.1:{self._server.server_address[1]}")
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.state.close()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    double: State
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else each answer waits for an acknowledgement of its head, as Nomad's do not.

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        if self.double.closed:
            self.close_connection = True
            return
        if url.path == "/v1/event/stream":
            self._stream()
            return
        try:
            for method, pattern, handle in ROUTES:
                found = re.fullmatch(pattern, url.path) if method == self.command else None
                if found is not None:
                    with self.double.changed:
                        self._reply(200, handle(self.double, *map(unquote, found.groups()), query=query, body=body))
                    return
            raise Refused(404, f"the double has no {self.command} {url.path}")
        except Refused as refused:
            self._reply(refused.status, str(refused))

    def _reply(self, status: int, what: Any) -> None:
        data = what.encode() if isinstance(what, str) else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        state, seen = self.double, 0
        try:
            while not state.closed:
                with state.changed:
                    if len(state.events) == seen:
                        state.changed.wait(HEARTBEAT_S)
                    news, seen = state.events[seen:], len(state.events)
                for event in news:
                    self.wfile.write(json.dumps({"Index": event["Index"], "Events": [event]}).encode() + b"\n")
                self.wfile.write(b"{}\n")
        except OSError:
            pass


def _parse(state: State, *, body: Any, query: Any) -> Any:
    if body["JobHCL"] != nomadfn_jobspecs.read("function.nomad.hcl"):
        raise Refused(400, "the double parses nothing but nomadfn's own job spec for functions")
    return jobs.parse(json.loads(body["Variables"]))


def _register(state: State, *, body: Any, query: Any) -> Any:
    state.register(body["Job"], body["PreserveCounts"])
    return {"EvalID": "", "Warnings": ""}


def _list_jobs(state: State, *, body: Any, query: Any) -> Any:
    return [
        {"ID": id, "Name": id, "Meta": job["Meta"], "Stop": False}
        for id, job in state.jobs.items()
        if id.startswith(query.get("prefix", ""))
    ]


def _job(state: State, job_id: str) -> Any:
    if job_id not in state.jobs:
        raise Refused(404, "job not found")
    return state.jobs[job_id]


def _scale(state: State, job_id: str, *, body: Any, query: Any) -> Any:
    _job(state, job_id)
    if state.deploying:
        raise Refused(400, "job scaling blocked due to active deployment")
    state.scale(job_id, body["Target"]["Group"], body["Count"], body["Message"])
    return {}


def _scale_status(state: State, job_id: str, *, body: Any, query: Any) -> Any:
    groups = _job(state, job_id)["TaskGroups"]
    return {"JobStopped": False, "TaskGroups": {one["Name"]: {"Desired": one["Count"]} for one in groups}}


def _plan(state: State, job_id: str, *, body: Any, query: Any) -> Any:
    placed, failed = state.would_place(body["Job"])
    kind = "None" if job_id in state.jobs else "Added"
    updates = {group["Name"]: {"Place": placed[group["Name"]]} for group in body["Job"]["TaskGroups"]}
    return {
        "Annotations": {"DesiredTGUpdates": updates},
        "FailedTGAllocs": failed or None,
        "Diff": {"Type": kind, "ID": job_id, "Fields": None, "Objects": None, "TaskGroups": None},
    }


def _deregister(state: State, job_id: str, *, body: Any, query: Any) -> Any:
    _job(state, job_id)
    state.deregister(job_id)
    return {}


def _evaluations(state: State, job_id: str, *, body: Any, query: Any) -> Any:
    return [one for one in state.evaluations.values() if one["JobID"] == job_id]


def _allocations(state: State, *, body: Any, query: Any) -> Any:
    [prefix] = re.findall(r'JobID matches "\^([^"]*)"', query["filter"])
    return [
        one for one in state.allocs.values() if one["JobID"].startswith(prefix) and one["ClientStatus"] != "complete"
    ]


def _allocation(state: State, alloc_id: str, *, body: Any, query: Any) -> Any:
    if alloc_id not in state.allocs:
        raise Refused(404, "alloc not found")
    return state.allocs[alloc_id]


def _log(state: State, alloc_id: str, *, body: Any, query: Any) -> Any:
    path = state.folder / alloc_id
    return path.read_text()[-int(query["offset"]) :] if path.exists() else ""


def _allowed(state: State, path: str, query: Any) -> None:
    if query.get("namespace") != "default" or path.startswith(tuple(state.forbidden)):
        raise Refused(403, "Permission denied")


def _variable(state: State, path: str, *, body: Any, query: Any) -> Any:
    _allowed(state, path, query)
    if path not in state.variables:
        raise Refused(404, "variable not found")
    return {"Path": path, "Items": state.variables[path]}


def _list_variables(state: State, *, body: Any, query: Any) -> Any:
    return [
        {"Path": path, "ModifyTime": 1_700_000_000_000_000_000}
        for path in sorted(state.variables)
        if path.startswith(query.get("prefix", ""))
    ]


def _put_variable(state: State, path: str, *, body: Any, query: Any) -> Any:
    _allowed(state, path, query)
    if query.get("cas") == "0" and path in state.variables:
        raise Refused(409, json.dumps({"Path": path, "Items": state.variables[path]}))
    state.variables[path] = body["Items"]
    return {}


def _delete_variable(state: State, path: str, *, body: Any, query: Any) -> Any:
    _allowed(state, path, query)
    state.variables.pop(path, None)
    return {}


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/v1/agent/self", lambda state, **_: {"config": {"Version": {"Version": "1.6.0"}}}),
    ("POST", "/v1/jobs/parse", _parse),
    ("POST", "/v1/jobs", _register),
    ("GET", "/v1/jobs", _list_jobs),
    ("GET", "/v1/job/([^/]+)/scale", _scale_status),
    ("POST", "/v1/job/([^/]+)/scale", _scale),
    ("GET", "/v1/job/([^/]+)", lambda state, job_id, **_: _job(state, job_id)),
    ("POST", "/v1/job/([^/]+)/plan", _plan),
    ("DELETE", "/v1/job/([^/]+)", _deregister),
    ("GET", "/v1/job/([^/]+)/evaluations", _evaluations),
    ("GET", "/v1/allocations", _allocations),
    ("GET", "/v1/allocation/([^/]+)", _allocation),
    ("GET", "/v1/nodes", lambda state, **_: [node.stub() for node in state.nodes]),
    ("GET", "/v1/client/fs/logs/([^/]+)", _log),
    ("GET", "/v1/vars", _list_variables),
    ("GET", "/v1/var/(.+)", _variable),
    ("PUT", "/v1/var/(.+)", _put_variable),
    ("DELETE", "/v1/var/(.+)", _delete_variable),
]
