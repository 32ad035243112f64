"""What Nomad's parser makes of nomadfn's own job spec, as far as nomadfn and the double look at it."""

from __future__ import annotations

from typing import Any

SECOND = 1_000_000_000


def parse(values: dict[str, Any]) -> dict[str, Any]:
    """The API job of `function.nomad.hcl` with these variables. A test compares it with the real parser's."""
    groups = [_group(values, lane) for lane in range(values["lanes"])]
    return {
        "ID": values["job_id"],
        "Name": values["job_id"],
        "Type": "service",
        "Region": values["region"],
        "Namespace": values["namespace"],
        "Datacenters": values["datacenters"],
        "NodePool": values["node_pool"],
        "Priority": values["priority"],
        "Constraints": [_condition(one["attribute"], one["operator"], one["value"]) for one in values["constraints"]],
        "Meta": {
            "nomadfn": values["cluster"],
            "nomadfn_app": values["app"],
            "nomadfn_function": values["function"],
            "nomadfn_spec": values["spec_digest"],
            "nomadfn_lanes": str(values["lanes"]),
        },
        "TaskGroups": groups,
    }


def _group(values: dict[str, Any], lane: int) -> dict[str, Any]:
    config: dict[str, Any] = {"command": values["python"], "args": values["agent_args"]}
    if values["driver"] in ("docker", "podman"):
        config |= {"image": values["image"], "network_mode": values["network_mode"]}
    task = {
        "Name": "agent",
        "Driver": values["driver"],
        "Config": config,
        "Env": {
            "NOMADFN_CONTROL_URLS": " ".join(values["control_urls"]),
            "NOMADFN_ENVIRONMENTS": values["environments"],
        },
        "Templates": [] if values["workload_identity"] else [{"Envvars": True, "ChangeMode": "noop"}],
        "KillSignal": "SIGTERM",
        "KillTimeout": int(values["kill_timeout"].removesuffix("s")) * SECOND,
        "Resources": {"CPU": values["cpu_mhz"], "MemoryMB": values["memory_mib"], "Devices": _devices(values)},
    }
    return {
        "Name": f"lane-{lane}",
        "Count": 0,
        "Tasks": [task],
        "Scaling": {"Enabled": False, "Min": 0, "Max": values["ceiling"]},
    }


def _devices(values: dict[str, Any]) -> list[dict[str, Any]]:
    if not values["gpu_count"]:
        return []
    models, conditions = values["gpu_models"], []
    if models:
        conditions.append(_condition("${device.model}", "regexp", f"^({'|'.join(models)})$"))
    for operator, bound in ((">=", values["gpu_memory_min_mib"]), ("<=", values["gpu_memory_max_mib"])):
        if bound:
            conditions.append(_condition("${device.attr.memory}", operator, f"{bound} MiB"))
    count = len(models)
    ranked = [
        _condition("${device.model}", "regexp", f"^({model})$") | {"Weight": -(-100 * (count - rank) // count)}
        for rank, model in enumerate(models if count > 1 else ())
    ]
    return [
        {
            "Name": values["gpu_device"],
            "Count": values["gpu_count"],
            "Constraints": conditions,
            "Affinities": ranked,
        }
    ]


def _condition(attribute: str, operator: str, value: str) -> dict[str, Any]:
    return {"LTarget": attribute, "Operand": operator, "RTarget": value}
