"""Modal's API, name by name: what nomadfn has of it, what it leaves aside, and what to do instead.

This table is the only one. `nomadfn check` looks a program's uses up in it, `docs/modal-compatibility.md` is written
from it (`python -m nomadfn.sdk.compat`), and what is unsupported raises with the words that stand here or in
the tables beside the code that refuses it. The names are those of Modal's public Python SDK, 1.4 to 1.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nomadfn_agent.alias import VIEWS

SUPPORTED = "supported"
IGNORED = "ignored"
RENAMED = "renamed"
UNSUPPORTED = "unsupported"
UNKNOWN = "unknown"

_LEFT_OUT: dict[str, str] = {
    "environment_name": "one control service is one environment: choose it with a profile, and leave it out",
    "client": "the client is made by itself: leave it out",
    "custom_domains": "point the domain at the gateway yourself, and leave it out",
}
"""Settings that many calls of Modal's take, and none here."""

_HAS: dict[str, str] = {
    "App": "`secrets=`, `image=` and the like are defaults of its functions",
    "App.name": "",
    "App.app_id": "",
    "App.function": "",
    "App.cls": "",
    "App.local_entrypoint": "also `datetime`, `Literal` and `Optional` parameters",
    "App.run": "attaches to the service that `nomadfn up` keeps, else starts a private one",
    "App.run(detach=)": "needs `nomadfn up`",
    "App.deploy": "needs `nomadfn up`, or a cluster",
    "App.registered_functions": "",
    "App.registered_entrypoints": "",
    "App.registered_classes": "",
    "App.registered_web_endpoints": "",
    "Function": "",
    "Function.remote": "",
    "Function.local": "",
    "Function.map": "also `max_ahead=`",
    "Function.starmap": "",
    "Function.for_each": "",
    "Function.spawn": "durable before it returns",
    "Function.spawn_map": "gives a `FunctionCall` over all inputs",
    "Function.remote_gen": "",
    "Function.from_name": "in a container, of its own app",
    "Function.update_autoscaler": "returns the settings now in force",
    "Function.autoscaler": "",
    "Function.autoscaler.update": "",
    "Function.autoscaler.settings": "",
    "Function.get_current_stats": "",
    "Function.with_options": "",
    "Function.with_concurrency": "",
    "Function.with_batching": "",
    "Function.get_web_url": "an address of the control service's gateway",
    "Function.hydrate": "",
    "FunctionCall.hydrate": "",
    "Function.get_raw_f": "",
    "Function.is_generator": "",
    "Function.spec": "",
    "Function.app": "",
    "FunctionCall": "",
    "FunctionCall.get": "",
    "FunctionCall.iter": "",
    "FunctionCall.num_inputs": "",
    "FunctionCall.cancel": "",
    "FunctionCall.from_id": "",
    "FunctionCall.gather": "",
    "FunctionCall.get_call_graph": "",
    "FunctionCall.object_id": "",
    "Cls": "",
    "Cls.from_name": "in a container, of its own app",
    "Cls.with_options": "",
    "Cls.with_concurrency": "",
    "Cls.with_batching": "",
    "Obj.update_autoscaler": "",
    "method": "",
    "enter": "",
    "exit": "",
    "parameter": "",
    "concurrent": "",
    "batched": "an exception in the returned list fails its own input only; also `on_batch_error=`",
    "asgi_app": "",
    "wsgi_app": "",
    "fastapi_endpoint": "FastAPI has to be in the function's environment",
    "web_server": "",
    "Cron": "",
    "Period": "",
    "Retries": "",
    "Image": "a virtual environment that `uv` makes; no container is built",
    "Image.debian_slim": "the Python version alone counts",
    "Image.from_registry": "the docker image of the Nomad job; not on one machine",
    "Image.pip_install": "",
    "Image.uv_pip_install": "",
    "Image.pip_install_from_requirements": "",
    "Image.env": "",
    "Image.workdir": "",
    "Image.add_local_python_source": "",
    "Image.imports": "",
    "Image.pip_install_from_pyproject": "",
    "Image.uv_sync": "",
    "Image.pipe": "",
    "Secret": "",
    "Secret.from_name": "a Nomad variable or a Consul key on a cluster, a file on one machine",
    "Secret.from_dict": "",
    "Secret.from_dotenv": "",
    "Secret.from_local_environ": "",
    "Dict": "",
    "Dict.from_name": "",
    "Dict.ephemeral": "",
    "Dict.get": "",
    "Dict.put": "",
    "Dict.pop": "",
    "Dict.update": "",
    "Dict.contains": "",
    "Dict.len": "",
    "Dict.keys": "",
    "Dict.values": "",
    "Dict.items": "",
    "Dict.clear": "",
    "Dict.delete": "`Dict.objects.delete` is the same",
    "Dict.from_id": "",
    "Dict.info": "",
    "Dict.objects": "",
    "Dict.objects.create": "",
    "Dict.objects.list": "",
    "Dict.objects.delete": "",
    "Queue": "",
    "Queue.from_name": "",
    "Queue.from_id": "",
    "Queue.ephemeral": "",
    "Queue.get": "",
    "Queue.get_many": "",
    "Queue.put": "",
    "Queue.put_many": "",
    "Queue.iterate": "",
    "Queue.len": "",
    "Queue.clear": "",
    "Queue.info": "",
    "Queue.objects": "",
    "Queue.objects.create": "",
    "Queue.objects.list": "",
    "Queue.objects.delete": "",
    "Queue.delete": "`Queue.objects.delete` is the same",
    "Error": "",
    "exception": "one tree; `TimeoutError` is the builtin one where Modal's is",
    "current_input_id": "",
    "current_function_call_id": "",
    "is_local": "",
    "enable_output": "containers' output is always shown",
}
"""What nomadfn has, with what differs."""

_SETTINGS: dict[str, str] = {
    "name": "",
    "image": "",
    "schedule": "fires while the app is deployed",
    "env": "",
    "secrets": "",
    "gpu": "the node's devices on Nomad; recorded, not enforced, on one machine",
    "serialized": "",
    "cpu": "one number; not enforced on one machine",
    "memory": "one number, MiB; not enforced on one machine",
    "min_containers": "",
    "max_containers": "",
    "buffer_containers": "",
    "scaledown_window": "",
    "retries": "",
    "timeout": "",
    "startup_timeout": "",
}
"""Settings of `@app.function` and `@app.cls` that count."""

_RENAMED: dict[str, str] = {
    "Function.web_url": "get_web_url()",
    "Function.keep_warm": "update_autoscaler(min_containers=)",
    "web_endpoint": "fastapi_endpoint",
}
"""Old names, with the new ones; those of settings stand beside them."""

_ASIDE: dict[str, str] = {
    "App.function(include_source=)": "the program's source always travels; `False` is refused",
    "App.function(is_generator=)": "seen from the function",
    "App.run(show_progress=)": "",
    "App.run(interactive=)": "",
}
"""What may be given and changes nothing."""

_SECTIONS = (
    ("Apps", ("App",)),
    ("Settings of `@app.function` and `@app.cls`", ("App.function",)),
    ("Functions and calls", ("Function", "FunctionCall")),
    ("Classes", ("Cls", "Obj", "method", "enter", "exit", "parameter")),
    ("Concurrency and batching", ("concurrent", "batched")),
    ("Web", ("asgi_app", "wsgi_app", "fastapi_endpoint", "web_endpoint", "web_server")),
    ("Schedules and retries", ("Cron", "Period", "Retries")),
    ("Images", ("Image",)),
    ("Secrets", ("Secret",)),
    ("Dicts and queues", ("Dict", "Queue")),
)


@dataclass(frozen=True)
class Feature:
    """One name of Modal's API."""

    name: str
    status: str
    note: str
    """How it differs, why it changes nothing, the new name, or what to do instead."""


def features() -> Iterator[Feature]:
    """The whole table."""
    from .options import RENAMED as renamed
    from .options import UNSUPPORTED as settings

    for name, note in _HAS.items():
        yield Feature(name, SUPPORTED, note)
    for name, note in _SETTINGS.items():
        yield Feature(f"App.function({name}=)", SUPPORTED, note)
    for name, note in _ASIDE.items():
        yield Feature(name, IGNORED, note)
    for name, note in renamed.items():
        yield Feature(f"App.function({name}=)", RENAMED, f"use `{note}`")
    for name, note in _RENAMED.items():
        yield Feature(name, RENAMED, f"use `{note}`")
    for owner, table in _refusals():
        for name, note in table.items():
            yield Feature(owner + name, UNSUPPORTED, note)
    for name, note in settings.items():
        if f"App.function({name}=)" not in _ASIDE:
            yield Feature(f"App.function({name}=)", UNSUPPORTED, note)


def _refusals() -> list[tuple[str, dict[str, str]]]:
    """The tables beside the code that refuses: whose names they are, and what to do instead."""
    from . import function, image_refusals, secret, unsupported

    names = {name: note for name, note in unsupported.INSTEAD.items() if name not in VIEWS}
    images = {**image_refusals.ON_CLASS, **image_refusals.ON_IMAGE}
    return [
        ("", names),
        ("App.", unsupported.ON_APP),
        ("Function.", function.MODAL_ONLY),
        ("Image.", images),
        ("Secret.", secret.MODAL_ONLY),
    ]


class Table:
    """The table by name, for looking up what a program uses."""

    def __init__(self) -> None:
        self._by_name = {one.name: one for one in features()}

    def find(self, use: str) -> Feature:
        """What is known of a use, such as `Image.pip_install(pre=)`; of the whole it belongs to where it has no row.

        The status is `unknown` for a name that Modal's API does not have.
        """
        use = use.replace("App.cls(", "App.function(")
        called, _, setting = use.partition("(")
        setting = setting.removesuffix("=)")
        found = self._by_name.get(use)
        if found is not None:
            return found
        if setting in _LEFT_OUT:
            return Feature(use, UNSUPPORTED, _LEFT_OUT[setting])
        if called == "App.function":
            return Feature(use, UNKNOWN, "@app.function has no such setting")
        whole = called
        while whole:
            found = self._by_name.get(whole)
            if found is not None and (setting or found.status != SUPPORTED or whole == "exception"):
                return Feature(use, found.status, found.note)
            whole = whole.rpartition(".")[0]
        return Feature(use, UNKNOWN, "nomadfn knows no such name; it may be of a newer Modal, or misspelt")


def _section_of(name: str) -> str:
    for title, owners in _SECTIONS:
        if name.startswith("App.function(") and "App.function" in owners:
            return title
    owner = name.partition(".")[0]
    for title, owners in _SECTIONS:
        if owner in owners:
            return title
    return "Everything else"


def markdown() -> str:
    """`docs/modal-compatibility.md`, whole."""
    by_section: dict[str, list[Feature]] = {title: [] for title, _ in _SECTIONS}
    for one in features():
        by_section.setdefault(_section_of(one.name), []).append(one)
    order = (SUPPORTED, IGNORED, RENAMED, UNSUPPORTED)
    lines = [_HEAD]
    for title, found in by_section.items():
        lines += [f"## {title}", "", "| Modal | nomadfn | how it differs, or what to do |", "|---|---|---|"]
        for one in sorted(found, key=lambda one: order.index(one.status)):
            lines.append(f"| `{one.name}` | {one.status} | {one.note} |")
        lines.append("")
    return "\n".join(lines)


_HEAD = """# What nomadfn has of Modal's API

A program that keeps to what is supported runs as it is: `nomadfn run --as-modal FILE`, or `import nomadfn as modal`.
`nomadfn check FILE` lists what a program uses of this table, line by line, without running it. What is *unsupported*
raises `UnsupportedError` with the words of the last column; *ignored* may be given and changes nothing; *renamed*
raises `DeprecationError`.

This page is made from the table that `nomadfn check` reads:
`python -m nomadfn.sdk.compat > docs/modal-compatibility.md`.
"""


if __name__ == "__main__":
    print(markdown(), end="")
