"""The double's cluster: jobs, a scheduler that places by GPU and memory, and allocations that are processes."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LIVE = ("pending", "running")
RESTARTS = 2
RESTART_S = 0.3
RESCHEDULE_S = 1.0


@dataclass
class Node:
    """A node of the double; `gpus` is model → count."""

    name: str = "node-1"
    memory_mib: int = 16_384
    gpus: dict[str, int] = field(default_factory=dict)
    eligible: bool = True
    lost: bool = False

    def stub(self) -> Json:
        devices = [
            {"Vendor": "nvidia", "Type": "gpu", "Name": model, "Instances": [{"ID": str(n), "Healthy": True}] * n}
            for model, n in self.gpus.items()
        ]
        return {
            "ID": self.name,
            "Name": self.name,
            "Datacenter": "dc1",
            "NodePool": "default",
            "Status": "down" if self.lost else "ready",
            "SchedulingEligibility": "eligible" if self.eligible else "ineligible",
            "Drain": not self.eligible,
            "Drivers": {"raw_exec": {"Detected": True, "Healthy": True}},
            "NodeResources": {"Memory": {"MemoryMB": self.memory_mib}, "Devices": devices},
        }


class State:
    """Everything under one lock. `changed` is notified after each change; `events` only grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition(threading.RLock())
        self.index = 10
        self.events: list[Json] = []
        self.jobs: dict[str, Json] = {}
        self.allocs: dict[str, Json] = {}
        self.evaluations: dict[str, Json] = {}
        self.variables: dict[str, dict[str, str]] = {}
        self.forbidden: list[str] = []
        """Variables whose paths begin so may not be touched."""
        self.scalings: list[tuple[str, str, int, str]] = []
        """Job, group, count and message of each scale call."""
        self.nodes = [Node()]
        self.deploying = False
        self.closed = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def register(self, job: Json, preserve: bool) -> None:
        with self.changed:
            old = self.jobs.get(job["ID"])
            if old is not None and preserve:
                counts = {group["Name"]: group["Count"] for group in old["TaskGroups"]}
                for group in job["TaskGroups"]:
                    group["Count"] = counts.get(group["Name"], group["Count"])
            self.jobs[job["ID"]] = job
            self.evaluate(job["ID"])

    def deregister(self, job_id: str) -> None:
        with self.changed:
            if self.jobs.pop(job_id, None) is not None:
                for alloc in self._live(job_id):
                    self._end(alloc, "alloc not needed as job is stopped")

    def scale(self, job_id: str, group: str, count: int, message: str) -> None:
        with self.changed:
            self.scalings.append((job_id, group, count, message))
            [found] = [one for one in self.jobs[job_id]["TaskGroups"] if one["Name"] == group]
            found["Count"] = count
            self.evaluate(job_id)

    def evaluate(self, job_id: str) -> None:
        """Place what lacks and end what is too much, the highest name index first."""
        failed: dict[str, Json] = {}
        job = self.jobs[job_id]
        for group in job["TaskGroups"]:
            there = {name_index(one): one for one in self._live(job_id) if one["TaskGroup"] == group["Name"]}
            for position in sorted(there, reverse=True):
                if position >= group["Count"]:
                    self._end(there[position], "alloc not needed due to job update")
            for position in range(group["Count"]):
                if position not in there and not self._is_pausing(job_id, group["Name"], position):
                    node, metrics = self._choose(group)
                    if node is None:
                        failed[group["Name"]] = metrics
                        break
                    self._place(job_id, group, position, node)
        self._record_evaluation(job_id, failed)

    def evaluate_all(self) -> None:
        with self.changed:
            for job_id in list(self.jobs):
                self.evaluate(job_id)

    def would_place(self, job: Json) -> tuple[Counter[str], dict[str, Json]]:
        """How many more of each group fit now, and why no more do."""
        placed: Counter[str] = Counter()
        failed: dict[str, Json] = {}
        taken: Counter[str] = Counter()
        for group in job["TaskGroups"]:
            for _ in range(group["Count"]):
                node, metrics = self._choose(group, taken)
                if node is None:
                    failed[group["Name"]] = metrics | {"CoalescedFailures": group["Count"] - placed[group["Name"]] - 1}
                    break
                placed[group["Name"]] += 1
                taken[node.name] += 1
        return placed, failed

    def _record_evaluation(self, job_id: str, failed: dict[str, Json]) -> None:
        evaluation = {
            "ID": str(uuid.uuid4()),
            "JobID": job_id,
            "Status": "complete",
            "FailedTGAllocs": failed or None,
            "ModifyIndex": self._next(),
        }
        self.evaluations[evaluation["ID"]] = evaluation
        self._emit("Evaluation", evaluation)

    def _choose(self, group: Json, taken: Counter[str] | None = None) -> tuple[Node | None, Json]:
        resources = group["Tasks"][0]["Resources"]
        metrics: Json = {"NodesEvaluated": 0, "ConstraintFiltered": Counter(), "DimensionExhausted": Counter()}
        usable = [node for node in self.nodes if node.eligible and not node.lost]
        for node in usable:
            metrics["NodesEvaluated"] += 1
            lacks = self._lacks(node, resources, (taken or Counter())[node.name])
            if not lacks:
                return node, metrics
            kind = "ConstraintFiltered" if lacks == "missing devices" else "DimensionExhausted"
            metrics[kind][lacks] += 1
        return None, metrics

    def _lacks(self, node: Node, resources: Json, taken: int) -> str:
        here = [alloc for alloc in self.allocs.values() if alloc["NodeName"] == node.name and _is_live(alloc)]
        for device in resources.get("Devices") or ():
            patterns = [one["RTarget"] for one in device["Constraints"] if one["LTarget"] == "${device.model}"]
            fits = [n for model, n in node.gpus.items() if all(re.search(one, model) for one in patterns)]
            if not any(n >= device["Count"] for n in fits):
                return "missing devices"
            if sum(fits) < device["Count"] * (1 + taken + sum(one["gpus"] > 0 for one in here)):
                return "devices: no devices match request"
        used = sum(alloc["memory_mib"] for alloc in here) + taken * resources["MemoryMB"]
        return "memory" if used + resources["MemoryMB"] > node.memory_mib else ""

    def _is_pausing(self, job_id: str, group: str, position: int) -> bool:
        """Whether the last allocation of this place failed just now: the next one comes later."""
        name = f"{job_id}.{group}[{position}]"
        return any(one["Name"] == name and time.monotonic() < one["pause_until"] for one in self.allocs.values())

    def _place(self, job_id: str, group: Json, position: int, node: Node) -> None:
        resources = group["Tasks"][0]["Resources"]
        alloc = {
            "ID": str(uuid.uuid4()),
            "Name": f"{job_id}.{group['Name']}[{position}]",
            "JobID": job_id,
            "TaskGroup": group["Name"],
            "NodeName": node.name,
            "ClientStatus": "pending",
            "DesiredStatus": "run",
            "DesiredDescription": "",
            "DesiredTransition": {},
            "TaskStates": {"agent": {"State": "pending", "Restarts": 0, "Events": []}},
            "CreateIndex": self._next(),
            "gpus": sum(one["Count"] for one in resources.get("Devices") or ()),
            "memory_mib": resources["MemoryMB"],
            "pause_until": 0.0,
        }
        self.allocs[alloc["ID"]] = alloc
        self._touch(alloc)
        threading.Thread(target=self._run, args=(alloc, group["Tasks"][0]), daemon=True).start()

    def _run(self, alloc: Json, task: Json) -> None:
        """The life of an allocation: its task runs, is started anew when it fails, and at last fails for good."""
        state = alloc["TaskStates"]["agent"]
        while True:
            code = self._run_once(alloc, task)
            with self.changed:
                stopped = alloc["DesiredStatus"] != "run" or self.closed or alloc["ClientStatus"] == "lost"
                if stopped or state["Restarts"] >= RESTARTS:
                    break
                state["Restarts"] += 1
                self._touch(alloc)
            time.sleep(RESTART_S)
        with self.changed:
            if alloc["ClientStatus"] != "lost":
                alloc["ClientStatus"] = "complete" if stopped or code == 0 else "failed"
            alloc["pause_until"] = 0.0 if stopped else time.monotonic() + RESCHEDULE_S
            self._touch(alloc)
            if not self.closed:
                self.evaluate_all()
        if not stopped:
            time.sleep(RESCHEDULE_S)
            self.evaluate_all()

    def _run_once(self, alloc: Json, task: Json) -> int:
        state = alloc["TaskStates"]["agent"]
        task_folder = self.folder / f"{alloc['ID']}.task"
        environment = {
            **os.environ,
            **task["Env"],
            "NOMAD_ALLOC_ID": alloc["ID"],
            "NOMAD_ALLOC_INDEX": str(name_index(alloc)),
            "NOMAD_GROUP_NAME": alloc["TaskGroup"],
            "NOMAD_JOB_ID": alloc["JobID"],
            "NOMAD_TASK_DIR": str(task_folder),
        }
        if task.get("Templates"):
            environment["NOMADFN_JOIN_TOKEN"] = self.variables[f"nomad/jobs/{alloc['JobID']}"]["join_token"]
        command = [task["Config"]["command"], *task["Config"]["args"]]
        with self.changed:
            if alloc["DesiredStatus"] != "run" or self.closed:
                return 0  # The test may be over, and its folder gone.
            task_folder.mkdir(exist_ok=True)
            try:
                with (self.folder / alloc["ID"]).open("ab") as log:
                    process = subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            except OSError as error:
                state["Events"].append({"Type": "Driver Failure", "DisplayMessage": str(error), "Details": {}})
                return 1
            self._processes[alloc["ID"]] = process
            alloc["ClientStatus"] = state["State"] = "running"
            self._touch(alloc)
        code = process.wait()
        details = {"exit_code": str(max(0, code)), "signal": str(max(0, -code))}
        with self.changed:
            self._processes.pop(alloc["ID"], None)
            state["Events"].append({"Type": "Terminated", "DisplayMessage": f"Exit Code: {code}", "Details": details})
        return code

    def _end(self, alloc: Json, why: str) -> None:
        alloc["DesiredStatus"], alloc["DesiredDescription"] = "stop", why
        self._touch(alloc)
        self._signal(alloc, signal.SIGTERM)

    def _signal(self, alloc: Json, number: int) -> None:
        process = self._processes.get(alloc["ID"])
        if process is not None:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                pass

    def kill(self, alloc_id: str) -> None:
        """As `kill -9` of the task's processes."""
        with self.changed:
            self._signal(self.allocs[alloc_id], signal.SIGKILL)

    def drain(self, node: Node) -> None:
        with self.changed:
            node.eligible = False
            for alloc in self._on(node):
                alloc["DesiredTransition"] = {"Migrate": True}
                self._end(alloc, "alloc is being migrated")
            self.evaluate_all()

    def undrain(self, node: Node) -> None:
        with self.changed:
            node.eligible = True
            self.evaluate_all()

    def lose(self, node: Node, kill: bool = True) -> None:
        """The node is gone, and what ran on it; without `kill` only Nomad's agent there is."""
        with self.changed:
            node.lost = True
            for alloc in self._on(node):
                alloc["ClientStatus"], alloc["DesiredStatus"] = "lost", "stop"
                self._touch(alloc)
                if kill:
                    self._signal(alloc, signal.SIGKILL)
            self.evaluate_all()

    def _on(self, node: Node) -> list[Json]:
        return [alloc for alloc in self.allocs.values() if alloc["NodeName"] == node.name and _is_live(alloc)]

    def _live(self, job_id: str) -> list[Json]:
        return [alloc for alloc in self.allocs.values() if alloc["JobID"] == job_id and _is_live(alloc)]

    def _next(self) -> int:
        self.index += 1
        return self.index

    def _touch(self, alloc: Json) -> None:
        alloc["ModifyIndex"] = self._next()
        self._emit("Allocation", alloc)

    def _emit(self, topic: str, what: Json) -> None:
        self.events.append({"Topic": topic, "Index": self.index, "Payload": {topic: copy.deepcopy(what)}})
        self.changed.notify_all()

    def close(self) -> None:
        """End every process, and wait until they are gone."""
        with self.changed:
            self.closed = True
            for alloc in self.allocs.values():
                self._signal(alloc, signal.SIGKILL)
            self.changed.notify_all()
            processes = list(self._processes.values())
        for process in processes:
            process.wait(10)


def _is_live(alloc: Json) -> bool:
    return alloc["ClientStatus"] in LIVE and alloc["DesiredStatus"] == "run"


def name_index(alloc: Json) -> int:
    return int(alloc["Name"].rpartition("[")[2].rstrip("]"))
