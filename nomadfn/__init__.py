"""Serverless Python functions with Modal's programming model: `import nomadfn`, or `import nomadfn as modal`.

Names are imported at their first use, so that `import nomadfn` costs nothing. A name of Modal's API that nomadfn
does not have raises UnsupportedError, which says what to do instead.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing, whose import would take longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from nomadfn_agent.context import current_function_call_id, current_input_id

    from nomadfn import exception
    from nomadfn.exception import Error
    from nomadfn.sdk.app import App, LocalEntrypoint
    from nomadfn.sdk.cls import Cls
    from nomadfn.sdk.context import enable_output, is_local
    from nomadfn.sdk.dicts import Dict
    from nomadfn.sdk.function import Function
    from nomadfn.sdk.function_call import FunctionCall
    from nomadfn.sdk.image import Image
    from nomadfn.sdk.options import Retries
    from nomadfn.sdk.parameters import parameter
    from nomadfn.sdk.partial import batched, concurrent, enter, exit, method
    from nomadfn.sdk.queues import Queue
    from nomadfn.sdk.schedule import Cron, Period
    from nomadfn.sdk.secret import Secret
    from nomadfn.sdk.web import asgi_app, fastapi_endpoint, web_endpoint, web_server, wsgi_app

__all__ = [
    "App",
    "Cls",
    "Cron",
    "Dict",
    "Error",
    "Function",
    "FunctionCall",
    "Image",
    "LocalEntrypoint",
    "Period",
    "Queue",
    "Retries",
    "Secret",
    "asgi_app",
    "batched",
    "concurrent",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exception",
    "exit",
    "fastapi_endpoint",
    "is_local",
    "method",
    "parameter",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]

_HOMES = {
    "App": "nomadfn.sdk.app",
    "Cls": "nomadfn.sdk.cls",
    "Cron": "nomadfn.sdk.schedule",
    "Dict": "nomadfn.sdk.dicts",
    "Error": "nomadfn.exception",
    "Function": "nomadfn.sdk.function",
    "FunctionCall": "nomadfn.sdk.function_call",
    "Image": "nomadfn.sdk.image",
    "LocalEntrypoint": "nomadfn.sdk.app",
    "Period": "nomadfn.sdk.schedule",
    "Queue": "nomadfn.sdk.queues",
    "Retries": "nomadfn.sdk.options",
    "Secret": "nomadfn.sdk.secret",
    "asgi_app": "nomadfn.sdk.web",
    "batched": "nomadfn.sdk.partial",
    "concurrent": "nomadfn.sdk.partial",
    "current_function_call_id": "nomadfn_agent.context",
    "current_input_id": "nomadfn_agent.context",
    "enable_output": "nomadfn.sdk.context",
    "enter": "nomadfn.sdk.partial",
    "exit": "nomadfn.sdk.partial",
    "fastapi_endpoint": "nomadfn.sdk.web",
    "is_local": "nomadfn.sdk.context",
    "method": "nomadfn.sdk.partial",
    "parameter": "nomadfn.sdk.parameters",
    "web_endpoint": "nomadfn.sdk.web",
    "web_server": "nomadfn.sdk.web",
    "wsgi_app": "nomadfn.sdk.web",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        if name == "__version__":
            from importlib.metadata import version

            return version("nomadfn")
        raise AttributeError(f"module 'nomadfn' has no attribute {name!r}")
    import importlib

    if name in ("call_graph", "exception"):
        return importlib.import_module(f"nomadfn.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    from nomadfn.sdk.unsupported import refuse

    refuse(name)
    raise AttributeError(f"module 'nomadfn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
