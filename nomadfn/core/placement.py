"""Which index a new container gets, and how a cluster with an end is divided between functions.

What `share` holds to:

- A function with work gets one container even over the capacity, beside those that only finish what they have: a
  deploy takes over at once. A container may wait for the inputs that it submitted itself; if their function could not
  run, nothing would ever move.
- Containers that only wait like that do not count, up to the capacity once more: programs that fan out keep
  their cores busy, and programs that do nothing but wait do not fill the machine.
- All else is fair: `min_containers` first, then work, then buffers, each filled from the lowest up.
- A function over its share gives containers back only when another one lacks them, and never its `min_containers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Want(msgspec.Struct, frozen=True):
    """What one function asks for."""

    function: str
    wanted: int
    """All that it would have if it were alone (`autoscaler.Wanted.count`)."""
    buffer: int = 0
    """The part of `wanted` that shall only be idle and ready."""
    minimum: int = 0
    """`min_containers`."""
    has: int = 0
    """Containers that are there in any state: starting, ready, draining."""
    blocked: int = 0
    """Those of `has` that only wait for inputs that they submitted themselves."""
    draining: int = 0
    """Those of `has` that take nothing new; `wanted` counts them too."""
    inner: bool = False
    """Whether some of its pending inputs were submitted by a container."""
    name: str = ""
    """The function in words, for the reasons of others; `function` if empty."""


class Grant(msgspec.Struct, frozen=True):
    """`count` containers, draining ones included, may be there now.

    `share` is what the function gets once others have given theirs back, `yields` how many it has to give back
    itself, and `reason` what limits it ("the capacity of 4 containers (4 cores), of which embed holds 3").
    """

    count: int
    share: int
    yields: int = 0
    reason: str = ""


def next_indexes(taken: Iterable[int], count: int) -> tuple[int, ...]:
    """The `count` lowest indexes that are free, in order."""
    held = set(taken)
    indexes: list[int] = []
    candidate = 0
    while len(indexes) < count:
        if candidate not in held:
            indexes.append(candidate)
        candidate += 1
    return tuple(indexes)


def share(wants: Sequence[Want], capacity: int | None, capacity_reason: str = "") -> dict[str, Grant]:
    """Divide `capacity` containers (None: no end) between functions. Equal wants in equal order, equal grants."""
    if capacity is None:
        return {want.function: Grant(max(want.wanted, want.has), want.wanted) for want in wants}
    free = _discounts(wants, capacity)
    shares = _shares(wants, free, capacity)
    lacks = [max(0, part - want.has) for want, part in zip(wants, shares, strict=True)]
    room = capacity + sum(free) - sum(want.has for want in wants)
    given = _give(wants, lacks, room, free)
    yields = _yields(wants, shares, sum(lacks) - max(0, room))
    grants: dict[str, Grant] = {}
    for want, part, more, less in zip(wants, shares, given, yields, strict=True):
        count = want.has + more - less
        limited = count < want.wanted
        reason = _reason(want, wants, capacity, capacity_reason) if limited else ""
        grants[want.function] = Grant(count, part, less, reason)
    return grants


def _discounts(wants: Sequence[Want], capacity: int) -> list[int]:
    """How many blocked containers of each function do not count; no more than the capacity in all."""
    free = [0] * len(wants)
    return _fill(free, [min(want.blocked, want.has) for want in wants], capacity, [0] * len(wants))


def _shares(wants: Sequence[Want], free: Sequence[int], capacity: int) -> list[int]:
    first = [_first(want, uncounted) for want, uncounted in zip(wants, free, strict=True)]
    left = capacity - sum(first)
    has = [want.has - uncounted for want, uncounted in zip(wants, free, strict=True)]
    levels = list(first)
    for tops in (
        [min(want.minimum, want.wanted) for want in wants],
        [want.wanted - want.buffer for want in wants],
        [want.wanted for want in wants],
    ):
        caps = [max(level, top - uncounted) for level, top, uncounted in zip(levels, tops, free, strict=True)]
        filled = _fill(levels, caps, max(0, left), has)
        left -= sum(filled) - sum(levels)
        levels = filled
    return [level + uncounted for level, uncounted in zip(levels, free, strict=True)]


def _first(want: Want, uncounted: int) -> int:
    """Containers that the function gets even over the capacity."""
    if want.inner:
        return max(0, min(want.wanted, max(want.blocked, want.draining) + 1) - uncounted)
    if want.blocked > want.draining:
        return 0
    return max(0, min(want.wanted, want.draining + 1) - uncounted)


def _fill(levels: Sequence[int], caps: Sequence[int], amount: int, has: Sequence[int]) -> list[int]:
    """Raise the lowest of `levels` first, none over its cap, by `amount` in all.

    What does not divide goes to those who have it already, so that the division is stable.
    """
    need = sum(caps) - sum(levels)
    if need <= amount:
        return list(caps)
    low, high = 0, max(caps)
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(levels, caps, middle) <= amount:
            low = middle
        else:
            high = middle - 1
    filled = [max(level, min(cap, low)) for level, cap in zip(levels, caps, strict=True)]
    rest = amount - (sum(filled) - sum(levels))
    takers = [i for i, cap in enumerate(caps) if cap > filled[i] and filled[i] == low]
    for i in sorted(takers, key=lambda i: (has[i] <= low, i))[:rest]:
        filled[i] += 1
    return filled


def _cost(levels: Sequence[int], caps: Sequence[int], height: int) -> int:
    return sum(max(0, min(cap, height) - level) for level, cap in zip(levels, caps, strict=True))


def _give(wants: Sequence[Want], lacks: Sequence[int], room: int, free: Sequence[int]) -> list[int]:
    """How many containers each may start now: the first ones in any case, the others as far as there is room."""
    first = [
        max(0, min(lack, _first(want, uncounted) + uncounted - want.has))
        for want, lack, uncounted in zip(wants, lacks, free, strict=True)
    ]
    return _fill(first, lacks, max(0, room - sum(first)), [0] * len(wants))


def _yields(wants: Sequence[Want], shares: Sequence[int], lacking: int) -> list[int]:
    """Who gives back how many: first those who would not have them anyway, then those furthest over their share."""
    over = [max(0, want.has - max(part, want.minimum)) for want, part in zip(wants, shares, strict=True)]
    yields = [0] * len(wants)
    order = sorted(range(len(wants)), key=lambda i: (wants[i].has <= wants[i].wanted, -over[i], i))
    for i in order:
        yields[i] = max(0, min(over[i], lacking))
        lacking -= yields[i]
    return yields


def _reason(want: Want, wants: Sequence[Want], capacity: int, capacity_reason: str) -> str:
    words = capacity_reason or f"the capacity of {capacity:,} container{'' if capacity == 1 else 's'}"
    others = sorted((-other.has, other.name or other.function) for other in wants if other is not want and other.has)
    if others:
        held = [f"{name} holds {-has:,}" for has, name in others[:2]]
        if len(others) > 2:
            held.append(f"others hold {-sum(has for has, _ in others[2:]):,}")
        words += f", of which {', '.join(held[:-1])}{' and ' if len(held) > 1 else ''}{held[-1]}"
    return words
