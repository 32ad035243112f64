"""Which modules of the standard library are slow to import? Asked with coroutines from end to end.

    nomadfn run examples/import_times.py
    nomadfn run examples/import_times.py --modules asyncio,http.server,unittest.mock --rounds 9

Shows: an `async def` function, which awaits inside its container; an `async def` entrypoint with `.remote.aio`
and `.map.aio`; `kwargs`, the same for every input of a map.
"""

import asyncio
import statistics
import sys

import nomadfn

app = nomadfn.App("import-times")

COMMON = "asyncio,json,sqlite3,http.server,email.message,unittest.mock,concurrent.futures,xml.dom.minidom"


@app.function()
async def start_ms(statement: str, rounds: int) -> float:
    """Median time in ms that a new Python needs for one statement, from its start to its end."""
    times_ms = []
    for _ in range(rounds):
        started = asyncio.get_running_loop().time()
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", statement)
        if await process.wait():
            raise ValueError(f"Python could not run {statement!r}")
        times_ms.append((asyncio.get_running_loop().time() - started) * 1000)
    return statistics.median(times_ms)


@app.local_entrypoint()
async def main(modules: str = COMMON, rounds: int = 3) -> None:
    base_ms = await start_ms.remote.aio("", rounds)
    print(f"Python {sys.version_info.major}.{sys.version_info.minor} itself: {base_ms:.1f} ms")
    names = modules.split(",")
    statements = [f"import {name}" for name in names]
    total_ms = [one_ms async for one_ms in start_ms.map.aio(statements, kwargs={"rounds": rounds})]
    for one_ms, name in sorted(zip(total_ms, names, strict=True), reverse=True):
        print(f"{one_ms - base_ms:8.1f} ms  {name}")
