"""The names of Modal's public API that nomadfn does not have, and what to do instead."""

from __future__ import annotations

from nomadfn.exception import UnsupportedError

_FOLDER = "use a folder of the machine's own file system"
_WEB = "use @app.function() with @nomadfn.web_server(port), or with @nomadfn.asgi_app()"
_OWN = "nomadfn runs on machines of your own, where it is not needed"

INSTEAD = {
    "Volume": _FOLDER,
    "NetworkFileSystem": _FOLDER,
    "CloudBucketMount": _FOLDER,
    "Mount": "the program's source and the modules beside it always travel; leave it out",
    "FilePatternMatcher": "the program's source and the modules beside it always travel; leave it out",
    "Sandbox": "use a function, or a container of your own",
    "SandboxSnapshot": "use a function, or a container of your own",
    "Stub": "use nomadfn.App",
    "gpu": "write the GPU's name as a string: gpu='H100:4'",
    "build": "do it in the function, or install it into the environment",
    "forward": "listen on a port of the machine itself",
    "Tunnel": "listen on a port of the machine itself",
    "Proxy": _OWN,
    "Client": "the client is made by itself; leave it out",
    "Environment": "use one control service for each environment",
    "Workspace": _OWN,
    "SchedulerPlacement": _OWN,
    "experimental": "leave it out",
    "interact": "run the program in a terminal of its own",
    "config": "settings are environment variables that begin with NOMADFN_",
    "functions": "use nomadfn.Function and nomadfn.FunctionCall",
    "app": "use nomadfn.App",
    "container_process": "use the subprocess module in the function",
    "io_streams": "use the subprocess module in the function",
    "file_io": _FOLDER,
    "snapshot": "containers are forked from a warm parent already; leave it out",
    "runner": "use app.run()",
    "output": "what containers print is always shown",
}

ON_APP = {
    "server": _WEB,
    "include": "define the functions on one app, in one or several modules that import it",
    "lookup": "use nomadfn.Function.from_name for a deployed function, or nomadfn.App(name) to define one",
    "set_description": "the app's name is all that is shown",
    "set_tags": "the app's name is all that is shown",
    "get_tags": "the app's name is all that is shown",
    "get_dashboard_url": "use `nomadfn app list` and `nomadfn function explain`",
}


def refuse(name: str) -> None:
    """Raise UnsupportedError if `name` is one that Modal has."""
    if name in INSTEAD:
        raise UnsupportedError(f"{name} is not supported by nomadfn; {INSTEAD[name]}")
