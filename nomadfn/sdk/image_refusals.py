"""What Modal's `Image` has and nomadfn's has not, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nomadfn.exception import UnsupportedError

_BUILDER = "it needs a builder of container images: build an image with your own tools and use Image.from_registry(tag)"
_SYSTEM = f"install it on the machines that run containers, or {_BUILDER.partition(': ')[2]}"
_FILES = (
    "containers have the file system of their machine: open the file where it is, or put it into a package beside the "
    "program, which travels with it"
)

ON_CLASS = {
    "micromamba": _BUILDER,
    "from_dockerfile": _BUILDER,
    "from_gcp_artifact_registry": "use Image.from_registry(tag); who may pull it is a matter of the nodes' docker",
    "from_aws_ecr": "use Image.from_registry(tag); who may pull it is a matter of the nodes' docker",
    "from_scratch": "containers need a Python: use Image.debian_slim()",
    "from_id": "an image has no id to be found by; write its recipe",
    "from_name": "an image has no name to be found by; write its recipe in a module of your own and import it",
    "conda": _BUILDER,
    "from_gcp_registry": "use Image.from_registry(tag)",
    "from_dockerhub": "use Image.from_registry(tag)",
}
ON_IMAGE = {
    "apt_install": _SYSTEM,
    "run_commands": _SYSTEM,
    "dockerfile_commands": _BUILDER,
    "entrypoint": _BUILDER,
    "shell": _BUILDER,
    "cmd": "it is for sandboxes; leave it out",
    "micromamba_install": _BUILDER,
    "conda_install": _BUILDER,
    "run_function": "do it in the function, and keep what it makes in a folder of the machine",
    "pip_install_private_repos": (
        "use pip_install('git+https://…'), with the credentials in the git configuration of the machines that build"
    ),
    "poetry_install_from_file": (
        "use pip_install_from_pyproject, or export a requirements file for pip_install_from_requirements"
    ),
    "add_local_file": _FILES,
    "add_local_dir": _FILES,
    "copy_local_file": _FILES,
    "copy_local_dir": _FILES,
    "copy_mount": _FILES,
    "build": "an image is built when its app is run or deployed; leave it out",
    "publish": "an image has no name to be found by; write its recipe in a module of your own and import it",
    "logs": "the log of a build is shown while it runs; see `nomadfn app logs`",
    "hydrate": "an image is built when its app is run or deployed; leave it out",
    "object_id": "an image has no id; its recipe is its name",
}
_SETTINGS = {
    "secrets": (
        "set what the build needs where it runs (UV_INDEX_URL, PIP_INDEX_URL, a .netrc), or give env={...} to the step"
    ),
    "uv_version": "the machine's own uv is used; leave it out",
    "secret": "who may pull an image is a matter of the nodes' docker: log in there",
    "setup_dockerfile_commands": _BUILDER,
    "add_python": "nomadfn adds no Python to a container image: name one that has it, such as 'python:3.12-slim'",
    "ignore": "whole modules travel, without hidden files; leave it out",
}


def refuse_settings(verb: str, given: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a setting that has a value."""
    for name, value in given.items():
        if value is not None and not (isinstance(value, (list, tuple, dict, set)) and not value):
            raise UnsupportedError(
                f"Image.{verb}({name}=...) is not supported by nomadfn; {_SETTINGS.get(name, 'leave it out')}"
            )
