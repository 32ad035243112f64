"""`up`, `down`, `deploy` and what asks a service that stays, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from cli_harness import TIMEOUT_S, Cli

SHOP = """
import time

import nomadfn

app = nomadfn.App("shop")


@app.function()
def add(x, y=1):
    print("adding", x)
    return x + y


@app.function()
def fail():
    raise ValueError("no good")


@app.function()
def nap(seconds):
    time.sleep(seconds)
    return "rested"


@app.local_entrypoint()
def leave():
    print(add.spawn(1, y=2).object_id)
    nap.spawn(0.5)
"""
WRONG_TOKEN = "nf_" + "w" * 43


@pytest.fixture(scope="module")
def shop(shared_cli: Cli) -> Cli:
    """A service that is up, with the app `shop` deployed."""
    shared_cli.write("shop.py", SHOP)
    shared_cli.out("deploy", "shop.py")
    return shared_cli


def pid_of(cli: Cli) -> int:
    return int(json.loads((cli.data / "service.json").read_text())["pid"])


def test_up_and_down_do_nothing_when_there_is_nothing_to_do(cli: Cli) -> None:
    assert "No control service is running" in cli.out("down")
    first = cli.json("up", "--json")
    assert cli.json("up", "--json") == first
    assert "was up already" in cli.out("up", "--capacity", "3")
    assert cli.json("status", "--json")["pid"] == first["pid"]
    assert "has ended" in cli.out("down")
    assert cli.leftovers() == []
    assert "No control service is running" in cli.out("down")
    assert cli.leftovers() == []


def test_what_only_the_owner_may_read_is_for_the_owner_alone(cli: Cli) -> None:
    cli.out("up")
    for name in ("token", "service.json", "control.log", "journal.db"):
        assert (cli.data / name).stat().st_mode & 0o077 == 0, name


def test_a_service_that_was_killed_leaves_nothing_in_the_way(cli: Cli) -> None:
    cli.out("up")
    os.kill(pid_of(cli), signal.SIGKILL)
    eventually(lambda: cli.run("status").returncode == 3)
    assert "was killed" in cli.out("down")
    cli.out("up")
    os.kill(pid_of(cli), signal.SIGKILL)
    assert cli.json("up", "--json")["pid"] == pid_of(cli)


def test_without_a_service_every_question_says_how_to_start_one(cli: Cli) -> None:
    cli.write("shop.py", SHOP)
    for words in (["status"], ["app", "list"], ["function", "call", "a", "f"], ["deploy", "shop.py"]):
        done = cli.run(*words)
        assert done.returncode == 3
        assert done.stderr.startswith("Error: ")
        assert "nomadfn up" in done.stderr


def test_a_taken_port_is_named(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cli.run("up", "--port", port)
        assert done.returncode == 3
        assert port in done.stderr
        done = cli.run("up", NOMADFN_DATA_PORT=port)
        assert done.returncode == 3
        assert "data_port" in done.stderr
    assert cli.leftovers() == []


@pytest.mark.parametrize(
    ("words", "environ", "part"),
    [
        (["--capacity", "0"], {}, "--capacity"),
        ([], {"NOMADFN_CAPACITY": "many"}, "NOMADFN_CAPACITY"),
        (["--host", "0.0.0.0"], {}, "no token"),
        (["--host", "0.0.0.0"], {"NOMADFN_TOKEN": WRONG_TOKEN}, "--insecure-plaintext"),
        ([], {"NOMADFN_TOKEN": "x"}, "NOMADFN_TOKEN"),
        ([], {"NOMADFN_DATA_DIR": "/proc/nowhere"}, "NOMADFN_DATA_DIR"),
    ],
)
def test_wrong_settings_start_nothing(cli: Cli, words: list[str], environ: dict[str, str], part: str) -> None:
    done = cli.run("up", *words, **environ)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")
    assert part in done.stderr
    assert cli.leftovers() == []


def test_the_file_beside_the_user_sets_the_service(cli: Cli) -> None:
    cli.write("nomadfn.toml", "[control]\ncapacity = 5\n")
    assert cli.json("up", "--json")["capacity"] == 5


def test_a_second_service_on_the_same_folder_is_refused(shop: Cli) -> None:
    done = shop.run("control")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert str(pid_of(shop)) in done.stderr


def test_control_serves_in_the_foreground_until_ctrl_c(cli: Cli) -> None:
    process = cli.start("control", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert "Serving at http://127.0.0.1:" in process.stderr.readline()
    assert cli.json("status", "--json")["pid"] == process.pid
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert cli.leftovers() == []


def test_a_wrong_token_and_none_are_refused_with_a_line(shop: Cli) -> None:
    for words in (["status"], ["deploy", "shop.py"], ["run", "shop.py::add", "--x", "1"]):
        done = shop.run(*words, NOMADFN_TOKEN=WRONG_TOKEN)
        assert done.returncode == 3
        assert done.stderr.splitlines()[-1].startswith("Error: ") or "at " in done.stderr.splitlines()[-1]
        assert "token" in done.stderr
        assert WRONG_TOKEN not in done.stderr


def test_deploy_says_where_what_and_which_version(shop: Cli) -> None:
    done = shop.run("deploy", "--name", "second", "shop.py")
    assert done.returncode == 0
    assert "this machine" in done.stderr.splitlines()[0]
    assert "Deployed second, version 1, with 3 functions" in done.stdout
    again = shop.json("deploy", "--name", "second", "--json", "shop.py")
    assert (again["version"], again["functions"], again["changed"]) == (2, ["add", "fail", "nap"], [])
    assert {one["name"] for one in shop.json("app", "list", "--json")} >= {"shop", "second"}
    assert "Stopped second" in shop.out("app", "stop", "second")
    assert "second" not in shop.out("app", "list")


def test_a_function_is_called_with_json_or_text(shop: Cli) -> None:
    assert shop.out("function", "call", "shop", "add", "1", "-k", "y=41") == "42\n"
    assert shop.out("function", "call", "shop", "add", "a", '"b"') == "ab\n"
    assert shop.json("function", "call", "shop", "add", "[1]", "[2]", "--json") == [1, 2]


def test_a_called_function_that_raises_shows_its_traceback(shop: Cli) -> None:
    done = shop.run("function", "call", "shop", "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "ValueError: no good"


def test_names_that_do_not_exist_are_refused_with_those_that_do(shop: Cli) -> None:
    done = shop.run("function", "call", "shop", "subtract")
    assert done.returncode == 3
    assert "add" in done.stderr
    done = shop.run("app", "stop", "stop-me")
    assert done.returncode == 3
    assert "shop" in done.stderr


def test_scaling_changes_what_is_named_and_explain_shows_it(shop: Cli) -> None:
    said = shop.out("function", "scale", "shop", "add", "--min-containers", "1", "--scaledown-window", "9")
    assert "min 1, max unlimited, buffer 0, window 9 s" in said
    eventually(lambda: "ct-" in shop.out("function", "explain", "shop", "add"))
    explained = shop.json("function", "explain", "shop", "add", "--json")
    assert explained["overridden"] is True
    assert explained["wanted"] == 1
    assert explained["decisions"][-1]["reason"]
    assert "(changed)" in shop.out("function", "list", "--app", "shop")
    done = shop.run("function", "scale", "shop", "add", "--min-containers", "5", "--max-containers", "2")
    assert done.returncode == 3
    assert "min_containers" in done.stderr
    assert shop.run("function", "scale", "shop", "add").returncode == 2
    shop.out("function", "scale", "shop", "add", "--min-containers", "0")


def test_logs_are_kept_and_followed(shop: Cli) -> None:
    shop.out("function", "call", "shop", "add", "1001")
    eventually(lambda: "add#0 │ adding 1001" in shop.out("app", "logs", "shop"))
    follower = shop.start("app", "logs", "-f", "--tail", "1", "shop", stdout=subprocess.PIPE)
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "add#0 │ adding 1001\n"
        shop.out("function", "call", "shop", "add", "1002")
        assert follower.stdout.readline() == "add#0 │ adding 1002\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(TIMEOUT_S) == 130


def test_a_detached_run_goes_on_and_its_spawns_can_be_read(shop: Cli) -> None:
    done = shop.run("run", "--detach", "shop.py")
    assert done.returncode == 0, done.stderr
    assert "Detached" in done.stderr
    call = done.stdout.splitlines()[0]
    assert call.startswith("fc-")
    info = ask(shop, "GET", f"/v1/calls/{call}")
    assert (info["function"], info["kind"], info["num_inputs"]) == ("add", "spawn", 1)


def test_curl_can_call_spawn_and_read(shop: Cli) -> None:
    route = "/v1/apps/shop/functions/add"
    assert ask(shop, "POST", f"{route}/call", {"args": [1], "kwargs": {"y": 2}}) == {"result": 3}
    call = ask(shop, "POST", f"{route}/spawn", {"args": [20]})["call"]
    assert ask(shop, "GET", f"/v1/calls/{call}/result?wait_s=30") == {"result": 21}
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(shop, "POST", "/v1/apps/shop/functions/fail/call")
    with caught.value as answer:
        error = json.loads(answer.read())["error"]
    assert (error["kind"], error["message"]) == ("ValueError", "no good")
    assert "raise ValueError" in error["traceback"]


def test_a_call_that_outlives_the_wait_is_asked_for_later_and_can_be_cancelled(shop: Cli) -> None:
    outcome = ask(shop, "POST", "/v1/apps/shop/functions/nap/call?wait_s=0", {"args": [0.2]})
    assert outcome["pending"] is True
    assert ask(shop, "GET", f"/v1/calls/{outcome['call']}/result?wait_s=30") == {"result": "rested"}
    outcome = ask(shop, "POST", "/v1/apps/shop/functions/nap/call?wait_s=0", {"args": [500]})
    assert ask(shop, "POST", f"/v1/calls/{outcome['call']}/cancel", {"terminate_containers": True}) == {"cancelled": 1}


def test_large_arguments_and_results_pass(shop: Cli) -> None:
    text = "x" * 400_000
    outcome = ask(shop, "POST", "/v1/apps/shop/functions/add/call", {"args": [text, text]})
    assert outcome == {"result": text + text}


def ask(cli: Cli, method: str, path: str, body: Any = None) -> Any:
    record = json.loads((cli.data / "service.json").read_text())
    token = (cli.data / "token").read_text().strip()
    request = urllib.request.Request(
        record["http_url"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.loads(answer.read())


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
