"""`Dict` as programs for Modal use it: from programs and containers alike, over a kill of the service."""

from __future__ import annotations

from world import World

PROGRAM = """
    import asyncio
    import nomadfn as modal

    app = modal.App("kv-app")
    kv = modal.Dict.from_name("kv", create_if_missing=True)

    class Point:
        def __init__(self, x):
            self.x = x

    @app.function()
    def work(i):
        kv[i] = {"square": i * i}
        return kv.put("lock", i, skip_if_exists=True)

    @app.function()
    def fill(d):
        d["from"] = "container"
        d["large"] = bytes(3_000_000)

    @app.function()
    async def later(name):
        d = modal.Dict.from_name(name)
        await d.put.aio("async", 1)
        return [key async for key in d.keys.aio()]

    @app.local_entrypoint()
    def main(key="cloud", value="dictionary"):
        kv[key] = value
        print(f"{key}: {kv[key]}")
        print(sum(work.map(range(20))), "has the lock, and", kv.len(), "entries")
        assert sorted(v["square"] for k, v in kv.items() if isinstance(k, int)) == [i * i for i in range(20)]
        assert sorted(map(str, later.remote("kv"))) == sorted(map(str, kv.keys()))
        with modal.Dict.ephemeral() as d:
            fill.remote(d)
            assert (d["from"], len(d["large"]), "large" in d, "small" in d) == ("container", 3_000_000, True, False)
            d[("a", 1)] = Point(5)
            assert d[("a", 1)].x == 5
            assert (len(d.pop("large")), d.pop("large", None)) == (3_000_000, None)
            d.update({"x": 1, 2: bytes(150_000)}, y=bytes(100_000), z=bytes(100_000))
            assert sorted(map(str, d.keys())) == sorted(["('a', 1)", "from", "2", "x", "y", "z"])
            d["x"] += 5
            assert d.get("x") == 6
            del d["x"]
            assert d.get("x", default=True) is True
            d.clear()
            assert (d.len(), list(d.values())) == (0, [])
            gone = modal.Dict.from_id(d.object_id)
        for ask in (lambda: gone["x"], lambda: kv["no"], lambda: kv.pop("no"), lambda: modal.Dict.from_name("un")["x"]):
            try:
                ask()
            except (KeyError, modal.exception.NotFoundError) as error:
                print(type(error).__name__)
        modal.Dict.objects.create("other")
        modal.Dict.objects.create("other", allow_existing=True)
        try:
            modal.Dict.objects.create("other")
        except modal.exception.AlreadyExistsError as error:
            print(error)
        print([d.name for d in modal.Dict.objects.list()], kv.info().name)
        modal.Dict.objects.delete("other")
        modal.Dict.delete("other", allow_missing=True)
"""
PRINTED = """\
cloud: dictionary
1 has the lock, and 22 entries
NotFoundError
KeyError
KeyError
NotFoundError
there is a Dict 'other' already; Dict.from_name('other') is it
['other', 'kv'] kv
"""
OTHER = """
    import sys
    import nomadfn

    d = nomadfn.Dict.from_name("kept", create_if_missing=True)
    if sys.argv[1] == "write":
        d["small"] = 1
        d["large"] = "x" * 1_000_000
        print(d.put("lock", "first", skip_if_exists=True))
    else:
        print(d["small"], len(d["large"]), d.put("lock", "second", skip_if_exists=True), d["lock"])
"""
FULL = """
    import nomadfn

    d = nomadfn.Dict.from_name("full", create_if_missing=True)
    for write in (lambda: d.put(bytes(20_000), 1), lambda: d.put("fn", (one for one in ())), fill := lambda: [
        d.put(n, bytes(100_000)) for n in range(20)
    ]):
        try:
            write()
        except nomadfn.Error as error:
            print(f"{type(error).__name__}: {error}")
    print(d.len())
"""


def test_dicts_do_what_a_program_for_modal_asks_of_them(world: World) -> None:
    world.write("kv.py", PROGRAM)
    assert world.nomadfn("run", "kv.py").ok().out == PRINTED


def test_two_apps_and_programs_share_one_and_it_outlives_a_kill_of_the_service(world: World) -> None:
    world.write("other.py", OTHER)
    world.write("kv.py", PROGRAM)
    world.up()
    assert world.python("other.py", "write").ok().out == "True\n"
    world.kill_service()
    world.up()
    assert world.python("other.py", "read").ok().out == "1 1000000 False first\n"
    said = world.nomadfn("run", "kv.py").ok().out
    assert said == PRINTED.replace("['other', 'kv']", "['other', 'kv', 'kept']"), "and an app that runs beside it"


def test_what_a_dict_cannot_take_is_said_with_the_limit(world: World) -> None:
    world.write("full.py", FULL)
    world.env["NOMADFN_LIMITS_DICT_BYTES"] = str(1024 * 1024)
    world.up()
    key, value, full, count = world.python("full.py").ok().out.splitlines()
    assert "a key of Dict 'full' has more than 16,384 bytes" in key
    assert "SerializationError: the value of 'fn', of type generator, cannot be put into a Dict" in value
    assert full.startswith("ResourceExhaustedError: all Dicts and Queues together hold 1,00")
    assert full.endswith("or raise the setting limits.dict_bytes")
    assert count == "10"
