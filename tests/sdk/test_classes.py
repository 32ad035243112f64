"""`@app.cls`: what it leaves in the spec, every way to use it wrongly, and its instances in this process."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import nomadfn
from nomadfn.exception import DeprecationError, InvalidError, NotFoundError, UnsupportedError

names = itertools.count()


def new_app() -> Any:
    return nomadfn.App(f"classes-{next(names)}")


def defined(user_cls: Any, **settings: Any) -> Any:
    return new_app().cls(**settings)(user_cls)


class Plain:
    size: str = nomadfn.parameter(default="small")
    count: int = nomadfn.parameter(default=1)
    loud: bool = nomadfn.parameter(default=False)
    key: bytes = nomadfn.parameter(default=b"\x00k")
    weights: list[int] = nomadfn.parameter(init=False)

    kind = "plain"

    @nomadfn.enter()
    def later(self) -> None:
        self.weights.append(2)

    @nomadfn.enter(snap=True)
    def first(self) -> None:
        self.weights = [1]

    @nomadfn.exit()
    def leave(self) -> None: ...

    @nomadfn.method()
    def predict(self, x: int) -> Any:
        return self.size, self.count, self.weights, x

    @nomadfn.method()
    async def predict_async(self, x: int) -> Any:
        return self.predict.local(x)

    def helper(self) -> str:
        return f"helped {self.size}"


def test_the_spec_says_methods_parameters_and_settings() -> None:
    spec = defined(Plain, timeout=7, max_containers=3, env={"A": "1"}).spec
    assert spec.name == "Plain"
    assert [(one.name, one.is_async) for one in spec.methods] == [("predict", False), ("predict_async", True)]
    told = [(one.name, one.type, one.default) for one in spec.parameters]
    assert told == [
        ("size", "str", "small"),
        ("count", "int", "1"),
        ("loud", "bool", "false"),
        ("key", "bytes", "AGs="),
    ]
    assert (spec.timeout_s, spec.autoscaler.max_containers, spec.env) == (7.0, 3, {"A": "1"})
    assert spec.has_exit
    assert spec.is_async


def test_concurrency_is_of_the_class_and_batching_of_its_one_method() -> None:
    class Batched:
        @nomadfn.batched(max_batch_size=8, wait_ms=10)
        def embed(self, texts: list[str]) -> list[int]:
            return [len(one) for one in texts]

    spec = defined(nomadfn.concurrent(max_inputs=4, target_inputs=3)(Batched)).spec
    assert (spec.max_inputs, spec.target_inputs, spec.max_batch_size, spec.batch_wait_ms) == (4, 3, 8, 10)
    assert [one.name for one in spec.methods] == ["embed"]


def test_methods_parameters_and_hooks_are_inherited_and_may_be_overridden_with_their_decorator() -> None:
    class Base:
        size: str = nomadfn.parameter(default="small")

        @nomadfn.enter()
        def load(self) -> None:
            self.loaded = ["base"]

        @nomadfn.method()
        def predict(self) -> Any:
            return "base"

        @nomadfn.method()
        def other(self) -> Any:
            return self.loaded, self.size

    class Derived(Base):
        @nomadfn.enter()
        def load_more(self) -> None:
            self.loaded.append("derived")

        @nomadfn.method()
        def predict(self) -> Any:
            return "derived"

    derived = defined(Derived)
    assert [one.name for one in derived.spec.methods] == ["predict", "other"]
    assert derived(size="large").other.local() == (["base", "derived"], "large")
    assert derived().predict.local() == "derived"

    class Again(defined(Base)):
        @nomadfn.method()
        def more(self) -> str:
            return "more"

    again = defined(Again)
    assert (again().predict.local(), again().more.local()) == ("base", "more")


def test_an_instance_here_is_entered_once_and_before_its_first_method() -> None:
    cls = defined(Plain)
    obj = cls(size="large")
    assert obj.helper() == "helped large"
    assert obj.predict.local(5) == ("large", 1, [1, 2], 5)
    assert obj.predict.local(6) == ("large", 1, [1, 2], 6)
    assert asyncio.run(obj.predict_async.local(7)) == ("large", 1, [1, 2], 7)
    assert (obj.size, obj.count, obj.loud, obj.key, obj.kind, cls.kind) == (
        "large",
        1,
        False,
        b"\x00k",
        "plain",
        "plain",
    )
    assert cls().predict.local(1) == ("small", 1, [1, 2], 1)


def test_async_enter_methods_run_here_too() -> None:
    class Opens:
        @nomadfn.enter()
        async def open(self) -> None:
            await asyncio.sleep(0)
            self.opened = True

        @nomadfn.method()
        def sync(self) -> bool:
            return self.opened

        @nomadfn.method()
        async def coroutine(self) -> bool:
            return self.opened

        @nomadfn.method()
        async def generate(self) -> Any:
            yield self.opened

    cls = defined(Opens)
    assert cls().sync.local() is True
    assert asyncio.run(cls().coroutine.local()) is True

    async def first() -> Any:
        return [one async for one in cls().generate.local()]

    async def blocked() -> Any:
        return cls().sync.local()

    assert asyncio.run(first()) == [True]
    with pytest.raises(InvalidError, match=r"Opens: its @enter method open is async"):
        asyncio.run(blocked())


def test_a_class_instances_and_methods_can_be_pickled() -> None:
    app = new_app()
    cls = app.cls()(Plain)
    again = pickle.loads(pickle.dumps([cls, cls(count=3), cls(count=3).predict, cls.with_options(cpu=2)]))
    assert again[0] is cls
    assert repr(again[1]) == f"<Plain(count=3) of {app.name}>"
    assert again[2].local(1)[1] == 3
    assert again[3]._changes == cls.with_options(cpu=2)._changes
    elsewhere = nomadfn.Cls.from_name("elsewhere", "Other")
    assert repr(pickle.loads(pickle.dumps(elsewhere(a=1).go))) == "<Method go of <Other(a=1) of elsewhere>>"


def test_later_options_go_over_earlier_ones() -> None:
    cls = defined(Plain)
    changed = cls.with_options(cpu=1, env={"A": "1", "B": "1"}, max_containers=2).with_concurrency(max_inputs=3)
    changes = changed.with_options(memory=64, env={"B": "2"}, scaledown_window=9)._changes
    assert changes.fields == {
        "cpu": 1.0,
        "memory_mib": 64,
        "env": {"A": "1", "B": "2"},
        "max_inputs": 3,
        "target_inputs": None,
    }
    assert changes.autoscaler == {"max_containers": 2, "scaledown_window_s": 9.0}
    assert not cls._changes


def a_class(**members: Any) -> type:
    if not any(getattr(one, "nomadfn_role", "") for one in members.values()):
        members["go"] = nomadfn.method()(lambda self: None)
    annotations = members.pop("annotations", {})
    return type("Wrong", (), {**members, "__annotations__": annotations, "__module__": __name__})


def go(self: Any) -> None: ...


def takes(self: Any, x: int) -> None: ...


def generates(self: Any) -> Any:
    yield 1


def batch(self: Any, xs: list[int]) -> list[int]:
    return xs


batch.__qualname__ = "Wrong.batch"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: a_class(__init__=lambda self, x: None), ["class Wrong", "__init__", "nomadfn.parameter()", "enter"]),
        (lambda: type("Wrong", (), {}), ["class Wrong has no method", "@nomadfn.method()"]),
        (lambda: a_class(size=nomadfn.parameter()), ["class Wrong: parameter size needs a type"]),
        (
            lambda: a_class(size=nomadfn.parameter(), annotations={"size": float}),
            ["class Wrong: parameter size is of type float", "str, int, bool or bytes"],
        ),
        (
            lambda: a_class(size=nomadfn.parameter(default=3), annotations={"size": str}),
            ["class Wrong: the default of parameter size takes a str, not 3"],
        ),
        (
            lambda: a_class(on=nomadfn.parameter(default=1), annotations={"on": bool}),
            ["the default of parameter on takes a bool, not 1"],
        ),
        (
            lambda: a_class(go=nomadfn.concurrent(max_inputs=2)(nomadfn.method()(go))),
            ["class Wrong: @concurrent is above its method go", "under @app.cls"],
        ),
        (
            lambda: a_class(
                one=nomadfn.batched(max_batch_size=2, wait_ms=0)(batch), two=nomadfn.method()(lambda self: None)
            ),
            ["class Wrong has the @batched method one", "two", "move them to another class"],
        ),
        (
            lambda: a_class(
                one=nomadfn.batched(max_batch_size=2, wait_ms=0)(batch),
                two=nomadfn.batched(max_batch_size=2, wait_ms=0)(batch),
            ),
            ["class Wrong has 2 @batched methods, one and two"],
        ),
        (lambda: go, ["function go: @app.cls() is for classes", "@app.function()"]),
        (
            lambda: nomadfn.enter()(takes),
            ["method takes: @enter calls it without arguments", "x: str = nomadfn.parameter()"],
        ),
        (lambda: nomadfn.exit()(generates), ["method generates: @exit is for methods that return"]),
        (lambda: nomadfn.enter()(nomadfn.method()(lambda self: None)), ["it has @method and @enter"]),
        (lambda: nomadfn.method()(nomadfn.method()(lambda self: None)), ["it has @method twice"]),
        (lambda: nomadfn.method()(staticmethod(go)), ["method go: @method is for methods with self", "@staticmethod"]),
        (lambda: nomadfn.method()(classmethod(go)), ["@classmethod"]),
        (lambda: nomadfn.method(is_generator=True)(go), ["method go: is_generator=True, and it returns"]),
        (lambda: nomadfn.enter(snap="yes")(go), ["@enter(snap='yes')"]),
        (lambda: nomadfn.batched(max_batch_size=2, wait_ms=0)(nomadfn.enter()(go)), ["@enter cannot be combined"]),
        (lambda: nomadfn.exit()(nomadfn.batched(max_batch_size=2, wait_ms=0)(batch)), ["@exit cannot be combined"]),
        (lambda: nomadfn.method(go), ["@method needs parentheses", "write @method()"]),
        (lambda: nomadfn.enter(go), ["write @enter()"]),
        (lambda: nomadfn.exit(go), ["write @exit()"]),
        (lambda: nomadfn.parameter(init=3), ["parameter(init=3)"]),
        (lambda: nomadfn.batched(max_batch_size=2, wait_ms=0)(Plain), ["class Plain: @batched is for a method"]),
        (lambda: nomadfn.enter()(Plain), ["class Plain: @enter is for a method"]),
        (lambda: nomadfn.method()(Plain), ["class Plain: @method is for a method"]),
        (lambda: nomadfn.concurrent(max_inputs=2)(defined(Plain)), ["class Plain: @concurrent stands above @app.cls"]),
        (lambda: nomadfn.method()(defined(Plain)), ["class Plain: @method stands above @app.cls"]),
        (lambda: defined(Plain), ["class Plain: it has @app.cls() twice"]),
    ],
)
def test_a_class_that_cannot_be_is_refused_with_its_name_and_the_fix(
    wrong: Callable[[], Any], words: list[str]
) -> None:
    with pytest.raises(InvalidError) as caught:
        defined(wrong())
    for one in words:
        assert one in str(caught.value)


def test_decorators_of_functions_and_of_classes_are_not_mixed_up() -> None:
    app = new_app()
    with pytest.raises(InvalidError, match=r"class Plain: @app.function\(\) is for functions; put @app.cls\(\)"):
        app.function()(Plain)
    with pytest.raises(InvalidError, match=r"@method is for methods of a class with @app.cls\(\)"):
        app.function()(nomadfn.method()(lambda x: x))
    with pytest.raises(InvalidError, match=r"write @app.cls\(\)"):
        app.cls(Plain)

    class Inside:
        with pytest.raises(InvalidError, match=r"put @nomadfn.method\(\) above it instead"):

            @app.function()
            def f(self) -> None: ...

    with pytest.raises(InvalidError, match=r"class Plain: @app.function\(\) is for functions"):
        app.function()(nomadfn.concurrent(max_inputs=2)(Plain))


def test_a_decorated_method_is_not_overridden_without_its_decorator() -> None:
    class Hidden(Plain):
        def predict(self, x: int) -> Any: ...

    class Changed(Plain):
        @nomadfn.enter()
        def predict(self) -> Any: ...  # type: ignore[override]

    for wrong, words in ((Hidden, "without a decorator"), (Changed, "a @enter")):
        with pytest.raises(InvalidError, match=f"class {wrong.__name__}: predict is .*{words}.*overrides a @method"):
            defined(wrong)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"cpu": -1}, InvalidError, "class Plain: cpu=-1"),
        ({"gpu": "abacus"}, InvalidError, "class Plain: gpu='abacus'"),
        ({"keep_warm": 1}, DeprecationError, "class Plain: keep_warm is an old name"),
        ({"volumes": {"/a": 1}}, UnsupportedError, "class Plain: volumes= of @app.cls is not supported"),
        ({"colour": 1}, InvalidError, "class Plain: @app.cls has no setting 'colour'"),
        ({"name": "Other"}, InvalidError, "class Plain: @app.cls has no setting 'name'"),
    ],
)
def test_settings_of_a_class_are_those_of_a_function(settings: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        defined(Plain, **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 3}, "Plain(size=...) takes a str, not 3 of type int"),
        ({"count": True}, "Plain(count=...) takes an int, not True of type bool"),
        ({"count": 2**63}, "out of its range"),
        ({"sise": "x"}, "Plain has no parameter 'sise'; its parameters: size, count, loud, key"),
        ({"size": "\ud800"}, "text that UTF-8 can hold"),
        ({"size": "x" * 20_000}, "more than 16,384 bytes"),
    ],
)
def test_wrong_parameters_are_refused_when_the_instance_is_made(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        defined(Plain)(**arguments)
    assert words in str(caught.value)


def test_a_parameter_without_a_default_has_to_be_given() -> None:
    class Needs:
        size: str = nomadfn.parameter()

        @nomadfn.method()
        def go(self) -> str:
            return self.size

    cls = defined(Needs)
    with pytest.raises(InvalidError, match=r"class Needs needs size: write Needs\(size=\.\.\.\)"):
        cls()
    with pytest.raises(InvalidError, match=r"Needs\('large'\) says no name: write Needs\(size=\.\.\.\)"):
        cls("large")
    assert cls(size="large").go.local() == "large"


def test_misuse_of_classes_and_instances_says_what_to_do() -> None:
    cls = defined(Plain)
    with pytest.raises(AttributeError, match=r"write Plain\(\).predict"):
        cls.predict  # noqa: B018
    with pytest.raises(AttributeError, match="class Plain has no attribute 'nonsense'"):
        cls.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        cls().nonsense  # noqa: B018
    with pytest.raises(InvalidError, match=r"Plain.predict.remote\(...\)"):
        cls().predict(1)
    with pytest.raises(InvalidError, match=r"write Plain.with_options\(...\)\(\).predict"):
        cls().predict.with_options(cpu=1)
    with pytest.raises(DeprecationError, match="update_autoscaler"):
        cls().keep_warm(1)
    for made in (nomadfn.Cls, type(cls())):
        with pytest.raises(InvalidError, match="is made by"):
            made()
    with pytest.raises(InvalidError, match=r"does not run, so Plain has no containers"):
        cls().predict.remote(1)
    with pytest.raises(NotFoundError, match="has no method '_private'"):
        nomadfn.Cls.from_name("elsewhere", "Other")()._private  # noqa: B018
    with pytest.raises(UnsupportedError, match="environment_name"):
        nomadfn.Cls.from_name("elsewhere", "Other", environment_name="x")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"cpu": "two"}, InvalidError, "cpu='two'"),
        ({"min_containers": 3, "max_containers": 2}, InvalidError, "min_containers=3 is more than max_containers=2"),
        ({"volumes": {"/a": 1}}, UnsupportedError, "volumes= of with_options is not supported"),
        ({"region": "eu"}, UnsupportedError, "region= of with_options"),
        ({"serialized": True}, InvalidError, "with_options has no setting 'serialized'"),
        ({"concurrency_limit": 2}, DeprecationError, "max_containers"),
        ({"secrets": "A"}, InvalidError, "secrets= must be a list"),
    ],
)
def test_wrong_options_are_refused_at_once(settings: Any, error: Any, words: str) -> None:
    app = new_app()

    @app.function()
    def f() -> None: ...

    for owner in (f, defined(Plain)):
        with pytest.raises(error) as caught:
            owner.with_options(**settings)
        assert words in str(caught.value)
        with pytest.raises(InvalidError, match="target_inputs=3 is more than max_inputs=2"):
            owner.with_concurrency(max_inputs=2, target_inputs=3)
        with pytest.raises(InvalidError, match="max_batch_size=0"):
            owner.with_batching(max_batch_size=0, wait_ms=1)


def test_a_class_and_a_function_of_one_app_have_different_names() -> None:
    app = new_app()
    app.cls()(Plain)
    with pytest.raises(InvalidError, match="two things called 'Plain', and one is a class"):
        app.function(name="Plain")(go)
