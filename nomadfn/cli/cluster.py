"""`up` and `down` on a cluster: the control service as a Nomad job, one instance leading and the others standing by."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from nomadfn.exception import InvalidError, ServiceError
from nomadfn.profiles import as_table

if TYPE_CHECKING:
    from nomadfn.adapters.nomad_api import NomadApi
    from nomadfn.control.settings import Settings
    from nomadfn.profiles import Profile
    from nomadfn.sdk.leader import Leader

START_S = 120.0
STOP_S = 60.0
POLL_S = 0.2
LOG_TAIL_BYTES = 2000
SECRETS = ("NOMADFN_TOKEN", "NOMADFN_METRICS_TOKEN", "NOMADFN_WEB_TOKEN", "NOMAD_TOKEN", "CONSUL_HTTP_TOKEN")
STORE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "FSSPEC_")
"""Of the variables that the packages behind the address of a blob store read."""
ADDRESSES = ("NOMAD_ADDR", "CONSUL_HTTP_ADDR", "NOMAD_NAMESPACE", "NOMAD_REGION")


def settings_of(profile: Profile) -> Settings:
    """What the profile and the environment say. Raises `InvalidError` where libraries for a cluster are missing."""
    from nomadfn.control.settings import load_settings

    try:
        import consul  # noqa: F401
        import nomad  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidError(f"a cluster needs {error.name}: pip install 'nomadfn[nomad,consul]'") from None
    return load_settings(profile=profile)


def up(profile: Profile, insecure_plaintext: bool, as_json: bool) -> None:
    """Register the control job, and wait until one of its instances leads."""
    from nomadfn.cli import output
    from nomadfn.sdk.leader import find_leader

    settings = settings_of(profile)
    if not settings.token:
        raise InvalidError(
            "the control services of a cluster need the token that its owner will use: set NOMADFN_TOKEN, for example "
            'to "nf_$(openssl rand -hex 32)", and keep it'
        )
    if not as_json:
        output.note(f"Starting the control service of {profile}")
    nomad = _connect(profile, settings)
    try:
        former = find_leader(profile)
        secrets = _secrets(profile)
        nomad.put_variable(f"nomad/jobs/{profile.control_job}", secrets)
        hcl, variables = render(profile, settings, insecure_plaintext)
        nomad.register(nomad.parse(hcl, variables))
        leader = _await_leader(profile, nomad)
    finally:
        nomad.close()
    record = {"cluster": profile.cluster, "job": profile.control_job, "http_url": leader.http_url}
    if as_json:
        output.print_json(record)
        return
    how = "is up" if former is None else "was up already; its job is registered anew"
    print(f"The control service of {profile} {how}: {leader.http_url} leads (Nomad job {profile.control_job})")
    print(_what_is_kept(profile, settings))


def _secrets(profile: Profile) -> dict[str, str]:
    """What the control services need of this environment and nobody else may read."""
    from nomadfn.control.clustered import is_address

    of_store = STORE_PREFIXES if is_address(profile.blobs) else ()
    return {
        name: value for name, value in os.environ.items() if value and (name in SECRETS or name.startswith(of_store))
    }


def _what_is_kept(profile: Profile, settings: Settings) -> str:
    from nomadfn.adapters.fsspec_blobs import shown
    from nomadfn.control.clustered import journal_bounds

    limits, _, _ = journal_bounds(settings.limits, bool(profile.blobs))
    if profile.blobs:
        where = f"payloads and code lie in {shown(profile.blobs)}"
        return f"Results are kept for {limits.retention_s / 86_400:g} days; {where}"
    return (
        f"Results are kept for {limits.retention_s / 3600:g} h, and values may have {limits.payload_bytes:,} bytes: "
        f"for more, set blobs in the profile to a folder or an address such as s3://bucket/prefix"
    )


def down(profile: Profile, everything: bool) -> None:
    """Stop the control job, with `everything` also those of the functions."""
    from nomadfn.adapters import jobspec
    from nomadfn.exception import NotFoundError

    settings = settings_of(profile)
    nomad = _connect(profile, settings)
    try:
        try:
            nomad.deregister(profile.control_job)
        except NotFoundError:
            print(f"No control service of {profile} is running as the Nomad job {profile.control_job}.")
        else:
            _await_end(profile)
            nomad.delete_variable(f"nomad/jobs/{profile.control_job}")
            print(f"The control service of {profile} has ended; spawned inputs are kept for the next `nomadfn up`.")
        left = nomad.jobs(jobspec.prefix(_job(profile, settings, nomad)))
        for job in left if everything else ():
            nomad.deregister(job["ID"])
        if left:
            what = "ended" if everything else "go on, and wait for the next leader; `nomadfn down --all` ends them"
            print(f"{len(left):,} function jobs {what}.")
    finally:
        nomad.close()


def render(profile: Profile, settings: Settings, insecure_plaintext: bool) -> tuple[str, str]:
    """The job spec of the control services and its variables, as JSON."""
    import nomadfn_jobspecs

    job, own = settings.job, dict(settings.control_job)
    driver = own.setdefault("driver", job.get("driver", "docker"))
    if driver in ("exec", "raw_exec"):
        own.setdefault("command", sys.executable)
    elif not own.get("image"):
        raise InvalidError(
            f"the driver {driver} of the control job needs an image in which nomadfn[nomad,consul] is installed: "
            f'[profiles.{profile.name}.control_job] image = "…"; or set driver = "raw_exec"'
        )
    shared = {name: job[name] for name in ("region", "namespace", "datacenters", "node_pool") if name in job}
    environment = {name: os.environ[name] for name in ADDRESSES if os.environ.get(name)}
    environment |= {"NOMADFN_PROFILE": profile.name, "NOMADFN_PROFILE_JSON": json.dumps(as_table(profile))}
    if insecure_plaintext or settings.insecure_plaintext:
        environment["NOMADFN_INSECURE_PLAINTEXT"] = "true"
    own["constraints"] = [
        {"attribute": attribute, "operator": operator, "value": value}
        for attribute, operator, value in own.get("constraints", job.get("constraints", ()))
    ]
    variables = {
        **shared,
        **own,
        "job_id": profile.control_job,
        "cluster": profile.cluster,
        "settings": environment,
        "has_secrets": True,
    }
    return nomadfn_jobspecs.read("control.nomad.hcl"), json.dumps(variables, indent=2, sort_keys=True) + "\n"


def _connect(profile: Profile, settings: Settings) -> NomadApi:
    from nomadfn.adapters.nomad_api import NomadApi
    from nomadfn.control.clustered import nomad_address

    return NomadApi(nomad_address(profile, settings))


def _job(profile: Profile, settings: Settings, nomad: NomadApi) -> Any:
    from nomadfn.control.clustered import job_settings

    return job_settings(profile, settings, nomad)


def _await_leader(profile: Profile, nomad: NomadApi) -> Leader:
    from nomadfn.sdk.leader import find_leader

    deadline = time.monotonic() + START_S
    while (found := find_leader(profile)) is None:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"no control service leads {profile} after {START_S:g} s. {_why_not(profile, nomad)}"
                f"; `nomad job status {profile.control_job}` shows more"
            )
        time.sleep(POLL_S)
    return found


def _why_not(profile: Profile, nomad: NomadApi) -> str:
    """What Nomad knows of instances that do not come up."""
    for alloc in nomad.allocations_of(profile.control_job):
        state = (alloc.get("TaskStates") or {}).get("control") or {}
        told = [event["DisplayMessage"] for event in state.get("Events") or () if event.get("DisplayMessage")]
        if alloc["ClientStatus"] == "failed" or state.get("Failed"):
            said = nomad.log_tail(alloc["ID"], "control", "stderr", LOG_TAIL_BYTES).strip()
            return f"An instance failed: {'; '.join(told[-3:])}\n{said}\n"
    for evaluation in nomad.evaluations(profile.control_job):
        for metrics in (evaluation.get("FailedTGAllocs") or {}).values():
            filtered = ", ".join(metrics.get("ConstraintFiltered") or metrics.get("DimensionExhausted") or ())
            return f"Nomad has no place for it: {filtered or 'no node is ready'}"
    return "Its instances run, and do not lead"


def _await_end(profile: Profile) -> None:
    from nomadfn.sdk.leader import find_leader

    deadline = time.monotonic() + STOP_S
    while find_leader(profile) is not None:
        if time.monotonic() > deadline:
            raise ServiceError(f"a control service of {profile} still leads after {STOP_S:g} s; is one run by hand?")
        time.sleep(POLL_S)
