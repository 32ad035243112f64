"""What `@app.function(...)` accepts and how it refuses the rest."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nomadfn import App, Function, Retries, Secret, method, parameter
from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

names = itertools.count()


def make(**settings: Any) -> Function[Any, Any]:
    def resize(x: int) -> int:
        return x

    app: Any = App(f"options-{next(names)}")
    made: Function[Any, Any] = app.function(**settings)(resize)
    return made


def spec(**settings: Any) -> Any:
    return make(**settings).spec


def test_the_defaults_are_the_documented_ones() -> None:
    one = spec()
    assert (one.autoscaler.min_containers, one.autoscaler.max_containers) == (0, None)
    assert (one.autoscaler.buffer_containers, one.autoscaler.scaledown_window_s) == (0, 60)
    assert (one.timeout_s, one.startup_timeout_s, one.retries.max_retries) == (300, 300, 0)


def test_settings_reach_the_spec() -> None:
    one = spec(
        gpu=["h100:2", "A100-80GB:2"],
        cpu=0.5,
        memory=512,
        timeout=10,
        retries=3,
        env={"A": "1", "B": None},
        min_containers=1,
        max_containers=4,
        buffer_containers=2,
        scaledown_window=300,
        name="big",
    )
    assert one.name == "big"
    assert one.gpu == ["H100:2", "A100-80GB:2"]
    assert (one.cpu, one.memory_mib, one.timeout_s, one.startup_timeout_s) == (0.5, 512, 10, 10)
    assert (one.retries.max_retries, one.retries.backoff_coefficient, one.retries.initial_delay_s) == (3, 1.0, 1.0)
    assert one.env == {"A": "1"}
    assert one.autoscaler.scaledown_window_s == 300
    assert spec(retries=Retries(max_retries=2)).retries.backoff_coefficient == 2.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_containers": -1}, "resize: min_containers=-1 must be a whole number, 0 or more"),
        ({"min_containers": 1.5}, "min_containers=1.5"),
        ({"min_containers": True}, "min_containers=True"),
        ({"max_containers": 0}, "max_containers=0 must be a whole number, 1 or more"),
        ({"min_containers": 5, "max_containers": 2}, "min_containers=5 is more than max_containers=2"),
        ({"buffer_containers": "2"}, "buffer_containers='2'"),
        ({"scaledown_window": 1}, "scaledown_window=1 must be from 2 to 3,600 seconds"),
        ({"scaledown_window": 3601}, "from 2 to 3,600"),
        ({"timeout": 0}, "timeout=0 must be from 1 to 86,400 seconds"),
        ({"timeout": 86_401}, "from 1 to 86,400"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"startup_timeout": 0}, "startup_timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": "3"}, "retries='3'"),
        ({"cpu": 0}, "cpu=0"),
        ({"memory": 0.5}, "memory=0.5"),
        ({"env": ["A"]}, "must be a dictionary"),
        ({"env": {"A": 1}}, "function resize: env=: the value of A must be a string, not int"),
        ({"env": {"A=B": "1"}}, "the name 'A=B'"),
        ({"env": {"A": "\ud800"}}, "no UTF-8"),
        ({"secrets": Secret.from_dict()}, "must be a list"),
        ({"secrets": ["database"]}, "secrets= has a str; it takes what Secret.from_"),
        ({"env": {"NOMADFN_TOKEN": "x"}}, "nomadfn's own"),
        ({"gpu": "H900"}, "the known GPUs are any, T4"),
        ({"gpu": "H100:0"}, "count from 1 to"),
        ({"gpu": "H100:x"}, "count from 1 to"),
        ({"gpu": 4}, "not a name"),
        ({"gpu": []}, "names no GPU"),
        ({"gpu": ["H100", "A100-80GB:2"]}, "asks for 1 GPUs in one place and 2 in another"),
        ({"name": "no spaces"}, "is not a name"),
        ({"colour": "red"}, "no setting 'colour'; it takes gpu, cpu"),
    ],
)
def test_a_wrong_value_is_refused_with_its_remedy(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        make(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keep_warm", "min_containers"),
        ("concurrency_limit", "max_containers"),
        ("container_idle_timeout", "scaledown_window"),
        ("allow_concurrent_inputs", "concurrent"),
    ],
)
def test_an_old_name_raises_the_new_one(old: str, new: str) -> None:
    with pytest.raises(DeprecationError, match=new):
        make(**{old: 1})


@pytest.mark.parametrize("name", ["volumes", "cloud", "proxy"])
def test_what_only_modal_has_is_refused_unless_it_is_empty(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"resize: {name}="):
        make(**{name: object()})
    make(**{name: None})
    make(**{name: []})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_retries": -1}, "max_retries=-1"),
        ({"max_retries": 1, "backoff_coefficient": 0.5}, "from 1 to 10"),
        ({"max_retries": 1, "initial_delay": 61}, "from 0 to 60 seconds"),
        ({"max_retries": 1, "max_delay": -1}, "from 0 to 60 seconds"),
    ],
)
def test_retries_check_themselves(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Retries(**settings)
    assert words in str(caught.value)


def test_misuse_of_the_decorator_is_refused_with_the_fix() -> None:
    app: Any = App("misuse")

    def f() -> None: ...

    with pytest.raises(InvalidError, match=r"write @app\.function\(\)"):
        app.function(f)
    with pytest.raises(InvalidError, match=r"write @app\.local_entrypoint\(\)"):
        app.local_entrypoint(f)
    with pytest.raises(InvalidError, match=r"put @app\.cls\(\) above a class"):
        app.function()(type("C", (), {}))
    with pytest.raises(InvalidError, match="needs a function"):
        app.function()(len)
    with pytest.raises(InvalidError, match=r"@app\.function\(\) twice"):
        app.function()(app.function()(f))


def test_methods_are_refused() -> None:
    app = App("methods")
    with pytest.raises(InvalidError, match=r"put @nomadfn.method\(\) above it instead"):

        class C:
            @app.function()
            def m(self) -> None: ...


def test_two_functions_of_one_name_are_refused_and_one_that_is_defined_again_replaces_itself() -> None:
    app = App("names")

    @app.function(name="same")
    def first() -> None: ...

    with pytest.raises(InvalidError, match="two functions called 'same'"):

        @app.function(name="same")
        def second() -> None: ...

    for _ in range(2):

        @app.function()
        def again() -> None: ...

    assert set(app.registered_functions) == {"same", "again"}


def test_calling_a_function_object_names_the_two_ways() -> None:
    with pytest.raises(InvalidError, match=r"resize\.remote.*resize\.local"):
        make()(1)


def test_local_calls_the_function_itself() -> None:
    assert make().local(5) == 5


def test_a_generator_function_is_refused_by_every_verb_but_its_own() -> None:
    app = App("generators")

    @app.function()
    def numbers() -> Any:
        yield 1

    assert list(numbers.local()) == [1]
    for verb in (numbers.remote, numbers.spawn):
        with pytest.raises(InvalidError, match="generator function"):
            verb()
    with pytest.raises(InvalidError, match="generator function"):
        list(numbers.map([1]))
    with pytest.raises(InvalidError, match="does not run"):
        list(numbers.remote_gen())
    with pytest.raises(InvalidError, match=r"resize is no generator function.*resize\.remote"):
        list(make().remote_gen(1))


def test_a_generator_function_has_no_retries() -> None:
    def numbers() -> Any:
        yield 1

    app: Any = App("no-retries")
    with pytest.raises(InvalidError, match=r"function numbers: retries= .* leave it out"):
        app.function(retries=2)(numbers)
    app.function(retries=0)(numbers)


def test_app_names_and_arguments_are_checked() -> None:
    for wrong in ("", "a b", "-x", "x" * 65, 5):
        with pytest.raises(InvalidError, match="app name"):
            App(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="volumes"):
        App("x", volumes={"/data": object()})
    with pytest.raises(InvalidError, match="has no functions"):
        App("empty").run().__enter__()


def test_the_secrets_of_an_app_come_before_those_of_its_functions() -> None:
    first, second = Secret.from_dict({"A": "1"}), Secret.from_dict({"A": "2"})
    app = App("secretive", secrets=[first])

    @app.function(secrets=[second])
    def f() -> None: ...

    @app.cls()
    class C:
        @method()
        def m(self) -> None: ...

    assert f._secrets == (first, second)
    assert C._function._secrets == (first,)  # type: ignore[attr-defined]
    with pytest.raises(InvalidError, match="app secretive: secrets= must be a list"):
        App("secretive", secrets=first)  # type: ignore[arg-type]


def test_what_is_on_or_off_is_not_anything_else() -> None:
    with pytest.raises(InvalidError, match="serialized='yes' must be True or False"):
        make(serialized="yes")


def test_settings_that_go_by_name_say_so() -> None:
    with pytest.raises(InvalidError, match=r"write Retries\(max_retries=3\)"):
        Retries(3)
    with pytest.raises(InvalidError, match="needs max_retries="):
        Retries()
    with pytest.raises(InvalidError, match=r"write parameter\(default=5\)"):
        parameter(5)
