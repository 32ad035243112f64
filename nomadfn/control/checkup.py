"""What a cluster must have for nomadfn, looked at part by part; each says what was seen and what to do.

Everything here blocks. A part that depends on one that is not there is left out.
"""

from __future__ import annotations

import email.utils
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import requests

from nomadfn.adapters import cluster_secrets, consul_discovery, jobspec, nomad_words
from nomadfn.adapters.consul_store import ConsulStore, Shard, delete
from nomadfn.adapters.fsspec_blobs import shown
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.control.clustered import (
    IDENTITIES_SINCE,
    consul_settings,
    is_address,
    job_settings,
    journal_bounds,
    nomad_address,
    open_blobs,
)
from nomadfn.control.findings import Finding, uv_finding
from nomadfn.control.settings import Settings
from nomadfn.core import gpus
from nomadfn.exception import Error, NotFoundError, PermissionDeniedError, ServiceError
from nomadfn.ports import Needs
from nomadfn.profiles import Profile

OLDEST_NOMAD = (1, 6, 0)
CLOCK_S = 5.0
PROBE_S = 60.0
ANSWER_S = 5.0
PROBE = """
import os, shutil, sys
print('python', '.'.join(map(str, sys.version_info[:3])))
here = [os.path.dirname(sys.executable), os.environ.get('PATH', ''), os.path.expanduser('~/.local/bin')]
print('uv', shutil.which('uv', path=os.pathsep.join(here)) or '')
"""


def check(profile: Profile, settings: Settings, probe: bool) -> Iterator[Finding]:
    """Every finding as it is made. `probe` runs a short job to see the driver's Python."""
    yield _token(settings)
    yield from _check_consul(profile)
    yield _blobs(profile, settings)
    nomad = NomadApi(nomad_address(profile, settings))
    try:
        reached = list(_reach_nomad(nomad))
        yield from reached
        if all(one.ok for one in reached):
            yield from _check_nomad(profile, settings, nomad, probe)
    finally:
        nomad.close()


def _token(settings: Settings) -> Finding:
    if settings.token:
        return Finding("token", True, "NOMADFN_TOKEN is set")
    return Finding("token", False, "NOMADFN_TOKEN is not set: every command and control service of a cluster needs it")


def _blobs(profile: Profile, settings: Settings) -> Finding:
    """Only the control services need to reach it, so what fails here is no fault yet."""
    limits, _, _ = journal_bounds(settings.limits, bool(profile.blobs))
    if not profile.blobs:
        text = (
            f"none: values may have {limits.payload_bytes:,} bytes, and results are kept for "
            f"{limits.retention_s / 3600:g} h; for more, set blobs to a folder or an address such as s3://bucket/prefix"
        )
        return Finding("blob store", None, text)
    where = shown(profile.blobs)
    if not is_address(profile.blobs):
        here = "is here" if os.path.isdir(os.path.expanduser(profile.blobs)) else "is not on this machine"
        text = f"the folder {where} {here}; every control service must see it, others send large values through them"
        return Finding("blob store", True if here == "is here" else None, text)
    try:
        open_blobs(profile, "payloads")
    except Error as error:
        return Finding("blob store", None, f"not to be used from here: {error}; every control service must reach it")
    return Finding("blob store", True, f"{where} takes and gives bytes from here")


def _check_consul(profile: Profile) -> Iterator[Finding]:
    settings = consul_settings(profile)
    store = ConsulStore(settings)
    shard = Shard(profile.cluster, profile.shard)
    try:
        leader = consul_discovery.find_leader(store, shard)
        yield Finding("Consul", True, f"answers at {settings.address}")
        yield _attempt("Consul rights", lambda: _use_consul(store, shard), "keys, sessions and the lock's node")
        yield _clock("Consul", f"{settings.address}/v1/status/leader", settings.verify and (settings.ca_file or True))
    except Error as error:
        yield Finding("Consul", False, str(error))
        return
    finally:
        store.close()
    if leader is None:
        text = f"none leads; `nomadfn up --profile {profile.name}` starts it"
    else:
        text = f"{leader}, {leader.http_url or 'not serving yet'}"
    yield Finding("control service", None if leader is None else True, text)


def _use_consul(store: ConsulStore, shard: Shard) -> None:
    """Raises what the first of them is refused with; the text names the rule that lacks."""
    key = f"{shard.prefix}doctor"
    store.put(key, b"")
    session = store.open_session("nomadfn doctor", 60.0)
    try:
        store.lock(key, b"", session)
        store.transact([delete(key)])
        store.healthy_services()
    finally:
        store.end_session(session)


def _reach_nomad(nomad: NomadApi) -> Iterator[Finding]:
    try:
        version = nomad.version()
    except (PermissionDeniedError, ServiceError) as error:
        if not nomad.knows_token():
            text = f"{nomad.address.url} does not know the token; set NOMAD_TOKEN to the SecretID of one that it has"
            yield Finding("Nomad", False, text)
            return
        if not isinstance(error, PermissionDeniedError):
            yield Finding("Nomad", False, str(error))
            return
        lacks = '; nomadfn reads the agent\'s version: agent { policy = "read" }' if nomad.address.token else ""
        yield Finding("Nomad", False, f"{error}{lacks}")
        return
    except Error as error:
        yield Finding("Nomad", False, str(error))
        return
    shown = ".".join(map(str, version))
    if version < OLDEST_NOMAD:
        yield Finding("Nomad", False, f"is {shown} at {nomad.address.url}; nomadfn needs 1.6 or newer: upgrade it")
    else:
        how = "a signed identity" if version >= IDENTITIES_SINCE else "a token of their job, in its Nomad variable"
        yield Finding("Nomad", True, f"{shown} at {nomad.address.url}; agents join with {how}")


def _check_nomad(profile: Profile, settings: Settings, nomad: NomadApi, probe: bool) -> Iterator[Finding]:
    address = nomad.address
    job = job_settings(profile, settings, nomad)
    yield _clock("Nomad", f"{address.url}/v1/status/leader", not address.skip_verify and (address.ca_path or True))
    rights = _rights(nomad, job, job.workload_identity)
    yield rights
    yield _secrets(nomad)
    yield _kill_timeout(nomad, job)
    try:
        stubs = nomad.nodes()
    except PermissionDeniedError:
        yield Finding(
            "nodes", None, "may not be read: placement failures are told without them (node { policy = read })"
        )
    else:
        yield from _check_nodes(nomad_words.read_nodes(stubs), job)
    if probe and rights.ok:
        yield from _python(nomad, job)


def _rights(nomad: NomadApi, job: JobSettings, has_identities: bool) -> Finding:
    """What the token may do, tried one by one on jobs that there are none of; nothing is registered.

    `read-logs` is only known once a job has run: the probe says so.
    """
    absent = f"{jobspec.prefix(job)}doctor-of-nothing"

    def plan() -> None:
        rendered = jobspec.render(Needs("doctor", "doctor"), job)
        nomad.plan(nomad.parse(rendered.hcl, rendered.variables))

    def keep_variable() -> None:
        path = f"nomad/jobs/{absent}"
        nomad.put_variable(path, {"doctor": "was here"})
        nomad.delete_variable(path)

    tries: dict[str, Callable[[], Any]] = {
        "list-jobs": lambda: nomad.jobs(absent),
        "read-job": lambda: nomad.counts(absent),
        "submit-job": plan,
        "scale-job": lambda: nomad.scale(absent, "lane-0", 0, "doctor"),
        "write and destroy on the variables nomad/jobs/*": keep_variable,
    }
    missing = []
    for right, attempt in tries.items():
        try:
            attempt()
        except NotFoundError:
            pass  # It may be asked, and there is none of that name.
        except PermissionDeniedError:
            missing.append(right)
        except (Error, ValueError) as error:
            return Finding("Nomad rights", False, str(error))
    where = f"in the namespace {job.namespace}"
    if missing:
        text = f"{where} the token in NOMAD_TOKEN lacks {', '.join(missing)}; add that to its policy (docs/cluster.md)"
        only_variables = has_identities and missing == list(tries)[-1:]
        note = "; `nomadfn up --nomad` needs it" if only_variables else ""
        return Finding("Nomad rights", None if only_variables else False, text + note)
    return Finding("Nomad rights", True, f"{', '.join(tries)}, {where}")


def _secrets(nomad: NomadApi) -> Finding:
    """Whether functions can name secrets: to read one that is not there tells who may from who may not."""
    folder = cluster_secrets.FOLDER
    try:
        nomad.variable(f"{folder}doctor")
    except NotFoundError:
        pass
    except PermissionDeniedError:
        text = f"may not be read, so functions cannot name any: the token lacks read on the variables {folder}*"
        return Finding("secrets", None, text)
    except Error as error:
        return Finding("secrets", False, str(error))
    return Finding("secrets", True, f"Nomad variables {folder}* can be read")


def _kill_timeout(nomad: NomadApi, job: JobSettings) -> Finding:
    cap_s = nomad.max_kill_timeout_s()
    if cap_s is None:
        text = f"{job.kill_timeout_s} s; each client's max_kill_timeout (30 s by default) is the most"
        return Finding("kill_timeout", None, text)
    if job.kill_timeout_s > cap_s:
        text = (
            f"{job.kill_timeout_s} s is more than max_kill_timeout = {cap_s:g} s of the Nomad client: raise that, or "
            "lower kill_timeout_s; until then functions have less time to finish when a node is drained"
        )
        return Finding("kill_timeout", False, text)
    return Finding("kill_timeout", True, f"{job.kill_timeout_s} s, of {cap_s:g} s that the Nomad client allows")


def _check_nodes(nodes: list[nomad_words.Node], job: JobSettings) -> Iterator[Finding]:
    usable = [node for node in nodes if node.usable]
    able = [node for node in usable if job.driver in node.drivers]
    have = f"{nomad_words.counted(len(able), 'node')} of {len(usable):,} can run the driver {job.driver}"
    if able:
        yield Finding("driver", True, have)
    else:
        others = ", ".join(sorted({driver for node in usable for driver in node.drivers})) or "none"
        yield Finding(
            "driver", False, f"{have}: enable it on the clients, or set driver to one that there is: {others}"
        )
    models: Counter[str] = Counter()
    for node in usable:
        for model, number in node.gpus.items():
            models[gpus.short_name(model)] += number
    if models:
        yield Finding("GPUs", True, ", ".join(f"{number} × {model}" for model, number in sorted(models.items())))
    else:
        text = "no node reports one; functions with gpu= need the nvidia device plugin on their nodes"
        yield Finding("GPUs", None, text)


def _python(nomad: NomadApi, job: JobSettings) -> Iterator[Finding]:
    uv = ""

    def look() -> str:
        nonlocal uv
        python, uv = _probe(nomad, job)
        return python

    python = _attempt("Python", look, "")
    yield python
    if python.ok:
        yield uv_finding(uv)


def _probe(nomad: NomadApi, job: JobSettings) -> tuple[str, str]:
    """Run the driver's Python for a moment; says which it is, and where uv is. Raises `ServiceError`."""
    rendered = jobspec.render(Needs("doctor", "probe", max_containers=1), job)
    made = nomad.parse(rendered.hcl, rendered.variables)
    made |= {"ID": f"{rendered.job_id}-doctor", "Name": "nomadfn-doctor", "Type": "batch", "Update": None}
    group = made["TaskGroups"][0]
    group |= {"Count": 1, "Scaling": None, "ReschedulePolicy": {"Attempts": 0, "Unlimited": False}}
    group |= {"Update": None, "Migrate": None}
    group["RestartPolicy"] = {"Attempts": 0, "Mode": "fail"}
    task = group["Tasks"][0]
    task["Config"]["args"] = ["-c", PROBE]
    task |= {"Artifacts": None, "Templates": None, "Identities": None}
    nomad.register(made)
    try:
        return _await_probe(nomad, made["ID"], job)
    finally:
        nomad.deregister(made["ID"])


def _await_probe(nomad: NomadApi, job_id: str, job: JobSettings) -> tuple[str, str]:
    deadline = time.monotonic() + PROBE_S
    while time.monotonic() < deadline:
        for alloc in nomad.allocations_of(job_id):
            if alloc["ClientStatus"] == "complete":
                told = nomad.log_tail(alloc["ID"], nomad_words.TASK, "stdout", 2000)
                said, _, uv = told.strip().partition("\n")
                if tuple(map(int, said.removeprefix("python ").split(".")[:2])) < (3, 11):
                    raise ServiceError(f"{job.python} is {said}; functions need Python 3.11 or newer: set job.python")
                return f"{job.python} is {said} with the driver {job.driver}", uv.removeprefix("uv").strip()
            if alloc["ClientStatus"] == "failed":
                why = nomad_words.describe_end(alloc)
                raise ServiceError(f"{job.python} does not run with the driver {job.driver}: {why}; set job.python")
        time.sleep(0.2)
    raise ServiceError(f"a job with the driver {job.driver} was not run within {PROBE_S:g} s; is there room on a node?")


def _clock(part: str, url: str, verify: bool | str) -> Finding:
    """Clocks far apart make identities look expired and results older than they are."""
    try:
        before = time.time()
        with requests.Session() as session:
            session.trust_env = False
            date = session.get(url, timeout=ANSWER_S, verify=verify).headers["Date"]
        apart_s = email.utils.parsedate_to_datetime(date).timestamp() - before
    except (requests.RequestException, KeyError, ValueError) as error:
        return Finding(f"{part} clock", None, f"cannot be read: {error}")
    if abs(apart_s) > CLOCK_S:
        text = f"is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} this machine's: set both by NTP"
        return Finding(f"{part} clock", False, text)
    return Finding(f"{part} clock", True, "agrees with this machine's")


def _attempt(part: str, work: Callable[[], Any], good: str) -> Finding:
    try:
        return Finding(part, True, work() or good)
    except NotFoundError as error:
        return Finding(part, False, f"{error}; does the namespace exist?")
    except (Error, ValueError) as error:
        return Finding(part, False, str(error))
