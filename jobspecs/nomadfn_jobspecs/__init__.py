"""The Nomad job specs of nomadfn: plain HCL2, usable by hand, read as resources of this package."""

from importlib.resources import files


def read(name: str) -> str:
    """The text of `function.nomad.hcl` or `control.nomad.hcl`."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
