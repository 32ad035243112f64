"""Environment and secrets of functions on one machine, from a program and its files to the container."""

from __future__ import annotations

import json
import subprocess

from world import NOMADFN, WAIT_S, World

ENV = {"N\"a'm$e ${HOME} %{if} {b}\n": "x", "VALUE": "'\"\\\n\r\t${HOME} %{if true}{{env}} $$ é 🎈", "EMPTY": ""}
PROGRAM = f"""
    import os
    import nomadfn

    app = nomadfn.App("keys")
    ENV = {ENV!r}
    EARLIER = nomadfn.Secret.from_dict({{"LAST": "dictionary", "MIDDLE": "dictionary", "FIRST": "dictionary"}})
    SECRETS = [EARLIER, nomadfn.Secret.from_name("db", required_keys=["PASSWORD"]), nomadfn.Secret.from_dotenv()]

    @app.function(env=ENV)
    def exact():
        return {{name: os.environ[name] for name in ENV}}

    @app.function(env={{"LAST": "env"}}, secrets=SECRETS, scaledown_window=2)
    def secret(names):
        return [os.environ.get(name) for name in names]

    @app.local_entrypoint()
    def main():
        assert exact.remote() == ENV, exact.remote()
        print(secret.remote(["FIRST", "MIDDLE", "LAST", "PASSWORD", "DOTENV"]))
"""


def create(world: World, name: str, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [NOMADFN, "secret", "create", name, *words],
        input=stdin,
        cwd=world.folder,
        env=world.env,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_all(world: World) -> None:
    world.write("keys.py", PROGRAM)
    world.write(".env", "DOTENV=from the file\n")


def test_values_of_every_kind_reach_the_function_unchanged_and_in_their_order(world: World) -> None:
    write_all(world)
    said = create(world, "db", "PASSWORD=-", "MIDDLE=named", "LAST=named", stdin="two\nlines ${x}\n")
    assert "lines" not in said
    done = world.nomadfn("run", "keys.py").ok()
    expected = ["dictionary", "named", "env", "two\nlines ${x}", "from the file"]
    assert done.out == f"{expected}\n"


def test_a_secret_that_is_missing_or_lacks_a_key_is_told_before_anything_runs(world: World) -> None:
    write_all(world)
    world.nomadfn("run", "keys.py").refused(3, "there is no secret db", "nomadfn secret create db KEY=-")
    create(world, "db", "USER=-", stdin="ada")
    world.up()
    refused = world.nomadfn("deploy", "keys.py").refused(3, "the secret db lacks PASSWORD", "it has USER")
    assert "ada" not in refused.report
    (world.folder / ".env").unlink()
    world.nomadfn("deploy", "keys.py").refused(3, "there is no file .env")


def test_a_changed_value_reaches_new_containers_and_a_deleted_secret_stops_them_with_its_name(world: World) -> None:
    write_all(world)
    create(world, "db", "PASSWORD=-", stdin="hunter2")
    world.up()
    world.deploy("keys.py")
    call = ("function", "call", "keys", "secret")
    assert world.nomadfn(*call, '["PASSWORD"]').ok().json == ["hunter2"]
    create(world, "db", "--force", "PASSWORD=-", stdin="hunter3")
    for pid in world.containers():
        world.execute("kill", "-9", pid)
    assert world.nomadfn(*call, '["PASSWORD"]').ok().json == ["hunter3"]
    world.nomadfn("secret", "delete", "db").ok()
    for pid in world.containers():
        world.execute("kill", "-9", pid)
    world.nomadfn(*call, '["PASSWORD"]').refused(3, "there is no secret db", "nomadfn secret create db KEY=-")


def test_nothing_shows_a_value(world: World) -> None:
    write_all(world)
    world.write(".env", "DOTENV=hunter2\n")
    create(world, "db", "PASSWORD=-", stdin="hunter2")
    world.up()
    world.deploy("keys.py")
    world.nomadfn("function", "call", "keys", "secret", "[]").ok()
    shown = [
        world.nomadfn(*words).ok().out
        for words in (
            ("secret", "list", "--json"),
            ("app", "history", "keys", "--json"),
            ("app", "list", "--json"),
            ("app", "logs", "keys"),
            ("function", "explain", "keys", "secret", "--json"),
            ("function", "list", "--json"),
        )
    ]
    assert "hunter2" not in "".join(shown) + world.log() + "".join(world.processes().values())
    spec = json.loads(shown[4])["spec"]
    assert spec["env"] == {"LAST": ""}
    assert [one["name"] for one in json.loads(shown[0])] == ["db"]
    for name in ("registry.db", "registry.db-wal"):
        path = world.data / name
        assert not path.exists() or path.stat().st_mode & 0o777 == 0o600


def test_the_command_says_what_is_wrong(world: World) -> None:
    world.nomadfn("secret", "create", "db").refused(2, "at least one KEY=-")
    world.nomadfn("secret", "create", "db", "KEY").refused(2, "'KEY' is no KEY=- and no KEY=VALUE")
    world.nomadfn("secret", "create", "a b", "A=1").refused(3, "is not the name of a secret")
    world.nomadfn("secret", "create", "db", "NOMADFN_X=1").refused(3, "nomadfn's own")
    world.nomadfn("secret", "create", "db", "A=-", "B=-").refused(2, "stdin holds one value")
    world.nomadfn("secret", "create", "db", "--from-dotenv", "none.env").refused(2, "no file none.env")
    world.nomadfn("secret", "delete", "db").refused(3, "there is no secret db")
    assert "No secrets" in world.nomadfn("secret", "list").ok().err
    world.write("some.env", "A=1\nB='x y'\n")
    assert "A, B, C" in world.nomadfn("secret", "create", "db", "C=3", "--from-dotenv", "some.env").ok().out
    world.nomadfn("secret", "create", "db", "A=1").refused(3, "db already", "--force")
