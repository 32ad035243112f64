"""The GPUs that `gpu=` may name, and how a cluster's inventory calls them.

Drivers report names such as `NVIDIA H100 80GB HBM3` or `Tesla T4`, older ones without the maker. A model is
found by a regular expression over the whole name, so that an L40 is no L40S, a part of a GPU (MIG) no whole
one, and a 3090 no 3090 Ti.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """`pattern` is RE2 over the name behind its maker; 0 is no bound of memory."""

    pattern: str
    memory_min_mib: int = 0
    memory_max_mib: int = 0


_MAKER = "(NVIDIA )?"
_A100 = "A100(-(SXM|PCIE)[A-Z0-9]*)?"

MODELS = {
    "T4": Model("(Tesla )?T4"),
    "L4": Model("L4"),
    "A10": Model("A10"),
    "A10G": Model("A10G"),
    "A40": Model("A40"),
    "A100": Model(rf"{_A100}((-| )(40|64|80)GB)?( PCIe)?"),
    "A100-40GB": Model(rf"{_A100}(-| )40GB( PCIe)?", memory_max_mib=48 * 1024),
    "A100-80GB": Model(rf"{_A100}(-| )80GB( PCIe)?", memory_min_mib=72 * 1024),
    "L40": Model("L40"),
    "L40S": Model("L40S"),
    "V100": Model(r"(Tesla )?V100S?(-[A-Z0-9]+)?(-(16|32)GB)?"),
    "P100": Model(r"(Tesla )?P100(-[A-Z0-9]+)?(-(12|16)GB)?"),
    "RTX-A6000": Model("RTX A6000"),
    "RTX-3090": Model("(GeForce )?RTX 3090"),
    "RTX-4090": Model("(GeForce )?RTX 4090( D)?"),
    "RTX-5090": Model("(GeForce )?RTX 5090( D)?"),
    "RTX-PRO-6000": Model("RTX PRO 6000( Blackwell)?( Max-Q)?( (Server|Workstation) Edition)?"),
    "H100": Model(r"H100( NVL| PCIe| 64GB| 80GB| 94GB| 96GB)?( HBM[0-9a-z]+)?"),
    "H200": Model(r"H200( NVL)?( [0-9]+GB)?( HBM[0-9a-z]+)?"),
    "GH200": Model(r"GH200( [0-9]+GB?)?( HBM[0-9a-z]+)?"),
    "B200": Model(r"B200( [0-9]+GB)?( HBM[0-9a-z]+)?"),
    "B300": Model(r"B300( SXM[0-9]*)?( AC| LC)?( [0-9]+GB)?( HBM[0-9a-z]+)?"),
}
ANY = "any"


@dataclass(frozen=True, slots=True)
class Choice:
    """What `gpu=` comes to: a count, and the models that will do, the preferred one first (none: any)."""

    count: int = 0
    names: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """One regular expression a model, over the whole name. Empty when any model will do."""
        if ANY in self.names:
            return ()
        return tuple(_MAKER + MODELS[name].pattern for name in self.names)

    @property
    def memory_min_mib(self) -> int:
        """The least that every one of the models has to have; 0 if one of them is bound by its name alone."""
        return min((MODELS[name].memory_min_mib for name in self.names if name != ANY), default=0)

    @property
    def memory_max_mib(self) -> int:
        bounds = [MODELS[name].memory_max_mib for name in self.names if name != ANY]
        return max(bounds) if bounds and all(bounds) else 0

    def __str__(self) -> str:
        return f"{self.count} × {' or '.join(self.names)}" if self.names != (ANY,) else f"{self.count} × any GPU"


def choose(wanted: Iterable[str]) -> Choice:
    """What a checked list such as `["H100:4", "A100-80GB:4"]` asks for; its counts are all the same."""
    parts = [one.partition(":") for one in wanted]
    count = max((int(number or 1) for _, _, number in parts), default=0)
    return Choice(count, tuple(dict.fromkeys(name for name, _, _ in parts)))


def short_name(reported: str) -> str:
    """The closest name that `gpu=` has for a model as its driver reports it, or that itself if it has none."""
    fits = [name for name, model in MODELS.items() if re.fullmatch(_MAKER + model.pattern, reported)]
    return max(fits, key=len, default=reported)
