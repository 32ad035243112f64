"""From what a function needs to the Nomad job that serves it.

The text of the job is the same for every function; what differs travels as variables, in JSON, which Nomad's
parser takes literally. So nothing that a user writes can add a block or be evaluated. What `render` gives here is
byte for byte what is registered.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import nomadfn_jobspecs

from nomadfn.core import gpus, lanes
from nomadfn.exception import InvalidError
from nomadfn.ports import Needs
from nomadfn.version import __version__

DRIVERS = ("docker", "podman", "exec", "raw_exec")
IMAGE_DRIVERS = ("docker", "podman")
OPERATORS = ("=", "!=", ">", ">=", "<", "<=", "regexp", "set_contains", "set_contains_any", "version", "semver")
MAX_PRIORITY = 49
SLUG_LENGTH = 40
DIGEST_LENGTH = 10
ADDRESSES = ("control_urls",)
"""Variables that may change while a spec does not: agents learn of new addresses when they join.

But where a task fetches its agent from a control service that is gone, a job can start no container any more: then the
next leader's containers go into another job, and those that run go on in the old one.
"""
AGENT_PATH = "/v1/agent/nomadfn-agent.pyz"
"""Where every control service offers the agent, whether it leads or not."""
AGENT_FILE = "${NOMAD_TASK_DIR}/nomadfn-agent.pyz"


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the cluster's owner says of every function's job. A wrong value raises `InvalidError` that names it."""

    cluster: str = "nomadfn"
    """Its jobs are told from those of other nomadfn clusters by this name."""
    region: str = "global"
    namespace: str = "default"
    datacenters: tuple[str, ...] = ("*",)
    node_pool: str = "default"
    constraints: tuple[tuple[str, str, str], ...] = ()
    """Attribute, operator and value of each, as in a Nomad `constraint` block."""
    priority: int = 40
    ceiling: int = 100
    """Containers that all functions together may have."""
    driver: str = "docker"
    image: str = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    """By default of the control service's own minor version, which the agent that it offers is for."""
    network_mode: str = ""
    python: str = "python3"
    agent_url: str = ""
    """From where Nomad fetches the agent. Empty, or only a query (`?python=3.12`): a control service has it."""
    agent_args: tuple[str, ...] = ()
    """What Python is started with; empty: what finds the agent, or runs the one that Nomad has fetched."""
    control_urls: tuple[str, ...] = ()
    environments: str = ""
    """Folder of the nodes for the Python environments of images; empty: below the user's cache folder."""
    workload_identity: bool = True
    """False for Nomad older than 1.7: a token in the job's own Nomad variable takes its place."""
    cpu_cores: float = 0.125
    """For functions that do not say `cpu=`."""
    memory_mib: int = 256
    """For functions that do not say `memory=`."""
    core_mhz: int = 2000
    """What one core of `cpu=` counts for in Nomad, which deals out megahertz."""
    gpu_device: str = "nvidia/gpu"
    kill_timeout_s: int = 30

    def __post_init__(self) -> None:
        _require(1 <= self.priority <= MAX_PRIORITY, "priority", self.priority, f"from 1 to {MAX_PRIORITY}")
        _require(self.ceiling >= 1, "ceiling", self.ceiling, "1 or more")
        _require(self.driver in DRIVERS, "driver", self.driver, f"one of {', '.join(DRIVERS)}")
        _require(self.kill_timeout_s >= 1, "kill_timeout_s", self.kill_timeout_s, "1 or more seconds")
        _require(bool(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.cluster)), "cluster", self.cluster, "a-z, 0-9, -")
        for _, operator, _ in self.constraints:
            _require(operator in OPERATORS, "constraints", operator, f"one of {', '.join(OPERATORS)} as operator")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A function's job: its id, the job spec, and the variables that go with it, as JSON text."""

    job_id: str
    hcl: str
    variables: str
    lanes: int
    needs: Needs = field(repr=False)


def render(needs: Needs, settings: JobSettings) -> Rendered:
    """The job of a function. Equal needs under equal settings give equal bytes.

    Raises `InvalidError` for what no job can hold.
    """
    hcl = nomadfn_jobspecs.read("function.nomad.hcl")
    values = _variables(needs, settings)
    lasting = {name: value for name, value in values.items() if values["agent_path"] or name not in ADDRESSES}
    # A job is never changed under its containers: another text or agent is another job, too.
    digest = hashlib.sha256(json.dumps([lasting, hcl, __version__], sort_keys=True).encode()).hexdigest()
    job_id = f"{prefix(settings)}{_slug(needs.app)}-{_slug(needs.function)}-{digest[:DIGEST_LENGTH]}"
    values |= {"job_id": job_id, "spec_digest": digest}
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    return Rendered(job_id, hcl, text, values["lanes"], needs)


def prefix(settings: JobSettings) -> str:
    """What the ids of all function jobs of this cluster begin with."""
    return f"{settings.cluster}-fn-"


def _variables(needs: Needs, settings: JobSettings) -> dict[str, Any]:
    choice = gpus.choose(needs.gpu)
    image = needs.image or settings.image
    for name, text in (("app", needs.app), ("function", needs.function), ("image", image)):
        _require("\0" not in text, name, text, "text without a null character")
    if settings.driver in IMAGE_DRIVERS:
        _require(image != "", "image", image, f"the name of an image, for the driver {settings.driver}")
    elif needs.image:
        raise InvalidError(
            f"function {needs.function} asks for the image {needs.image!r}, but the cluster's driver is "
            f"{settings.driver}, which has none; leave the image out, or set the driver to docker or podman"
        )
    return {
        "cluster": settings.cluster,
        "app": needs.app,
        "function": needs.function,
        "region": settings.region,
        "namespace": settings.namespace,
        "datacenters": list(settings.datacenters),
        "node_pool": settings.node_pool,
        "priority": settings.priority,
        "constraints": [
            {"attribute": attribute, "operator": operator, "value": value}
            for attribute, operator, value in settings.constraints
        ],
        "lanes": lanes.lanes_for(needs.max_containers),
        "ceiling": settings.ceiling,
        "driver": settings.driver,
        "image": image if settings.driver in IMAGE_DRIVERS else "",
        "network_mode": settings.network_mode,
        "python": settings.python,
        **_agent(settings),
        "control_urls": list(settings.control_urls),
        "environments": settings.environments,
        "workload_identity": settings.workload_identity,
        "cpu_mhz": max(1, round(settings.core_mhz * (needs.cpu_cores or settings.cpu_cores))),
        "memory_mib": needs.memory_mib or settings.memory_mib,
        "gpu_device": settings.gpu_device,
        "gpu_count": choice.count,
        "gpu_models": list(choice.patterns),
        "gpu_memory_min_mib": choice.memory_min_mib,
        "gpu_memory_max_mib": choice.memory_max_mib,
        "kill_timeout": f"{settings.kill_timeout_s}s",
    }


def _agent(settings: JobSettings) -> dict[str, Any]:
    """How a task comes by its agent."""
    if settings.agent_url.startswith("?") or not settings.agent_url:
        args = settings.agent_args or ("-c", nomadfn_jobspecs.start())
        return {"agent_url": "", "agent_path": AGENT_PATH + settings.agent_url, "agent_args": list(args)}
    args = settings.agent_args or (AGENT_FILE,)
    return {"agent_url": settings.agent_url, "agent_path": "", "agent_args": list(args)}


def _slug(name: str) -> str:
    """A readable part of a job's id; the digest in it tells apart what looks alike here."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:SLUG_LENGTH] or "x"


def _require(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise InvalidError(f"{name}={value!r} is not accepted for a Nomad job; it must be {accepted}")
