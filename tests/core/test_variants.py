"""Variants of functions and classes in the core: which are one, what they follow, and when they go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload
from test_core import APP, SESSION, World, failure_of, of

from nomadfn.core import effects, records, variants
from nomadfn.core.core import Core
from nomadfn.exception import InvalidError, NotFoundError, ResourceExhaustedError

changed = msgspec.structs.replace

CODE = wire.CodeRef(digest="1")
MODEL = wire.FunctionSpec(
    name="Model",
    methods=[wire.MethodSpec(name="predict"), wire.MethodSpec(name="wait", is_async=True)],
    parameters=[
        wire.ParameterSpec(name="size", type="str", default="small"),
        wire.ParameterSpec(name="count", type="int", default="1"),
    ],
)
OPEN = wire.FunctionSpec(
    name="Open",
    methods=[wire.MethodSpec(name="go")],
    parameters=[wire.ParameterSpec(name="size", type="str")],
    autoscaler=wire.AutoscalerSettings(min_containers=2),
)


class Models(World):
    """The same world with a class beside its function."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.spec = wire.AppSpec(name="app", functions=[*self.spec.functions, MODEL, OPEN], code=CODE)
        self.core.start_app(self.now, APP, self.spec, SESSION)

    def vary(self, base: str = "Model", fields: dict[str, Any] | None = None, **more: Any) -> str:
        variation = wire.Variation(
            base=base, fields=sorted(fields or {}), values=wire.FunctionSpec(name="", **(fields or {})), **more
        )
        return self.core.put_variant(self.now, APP, variation)[0].id

    def call(self, function: str, method: str, kind: int = wire.REMOTE) -> str:
        self.function = function
        return self.submit(b"x", kind=kind, method=method)

    def deploy(self, *functions: wire.FunctionSpec, digest: str = "1") -> None:
        spec = wire.AppSpec(name="app", functions=list(functions), code=wire.CodeRef(digest=digest))
        self.core.start_app(self.now, APP, spec, SESSION)


def test_the_same_differences_are_one_variant_and_other_ones_another() -> None:
    world = Models()
    large = world.vary(arguments={"size": "large"})
    assert large.startswith(f"{APP}/Model@")
    assert world.vary(arguments={"size": "large"}) == large
    assert world.vary(arguments={"size": "large", "count": "2"}) != large
    assert world.vary(fields={"cpu": 2.0}) == world.vary(fields={"cpu": 2.0}) != world.vary(fields={"cpu": 3.0})
    spec = world.core.function(large).spec
    assert (spec.program_name, spec.arguments) == ("Model", {"size": "large", "count": "1"})


def test_a_variant_has_containers_of_its_own_and_the_method_comes_with_the_input() -> None:
    world = Models()
    large = world.vary(arguments={"size": "large"})
    world.call(large, "predict")
    world.call(f"{APP}/Model", "wait")
    world.start(2)
    delivers = of(world.settle(), effects.Deliver)
    functions = {one.method: world.core.state.containers[one.container].function.id for one in delivers}
    assert functions == {"predict": large, "wait": f"{APP}/Model"}


@pytest.mark.parametrize(
    ("function", "method", "words"),
    [
        ("Model", "", "say which method: predict, wait"),
        ("Model", "nonsense", "class Model has no method 'nonsense'; it has predict, wait"),
        ("f", "go", "f is a function and has no methods"),
        ("Open", "go", "class Open needs size: write Open(size=...)"),
    ],
)
def test_a_call_that_no_method_can_take_is_refused(function: str, method: str, words: str) -> None:
    world = Models()
    world.call(f"{APP}/{function}", method)
    (reject,) = of(world.settle(), effects.Reject)
    assert reject.error == "InvalidError"
    assert words in reject.message


def test_a_class_that_needs_parameters_keeps_no_containers_and_its_variants_only_when_they_are_told_to() -> None:
    world = Models()
    chosen = world.vary("Open", arguments={"size": "x"})
    assert of(world.wait(1.0), effects.StartContainer) == []
    world.core.override(chosen, {"min_containers": 1})
    (start,) = of(world.wait(1.0), effects.StartContainer)
    assert start.container.function.id == chosen


def test_what_a_variant_is_made_of_is_checked() -> None:
    kept, replaced, given = (
        wire.SecretSpec(values={"V": text}, of_image=text == "image") for text in ("image", "a", "b")
    )
    base = changed(MODEL, env={"A": "1", "B": "1"}, max_inputs=4, target_inputs=2, secrets=[kept, replaced])
    secrets = wire.Variation(base="Model", fields=["secrets"], values=wire.FunctionSpec(name="", secrets=[given]))
    assert variants.make_spec(base, secrets).secrets == [kept, given]
    env = wire.Variation(base="Model", fields=["env"], values=wire.FunctionSpec(name="", env={"B": "2"}))
    assert variants.make_spec(base, env).env == {"A": "1", "B": "2"}
    more = wire.Variation(base="Model", fields=["max_inputs"], values=wire.FunctionSpec(name="", max_inputs=1))
    assert variants.make_spec(base, more).target_inputs is None
    batches = wire.Variation(base="Model", fields=["max_batch_size"], values=wire.FunctionSpec(name="x"))
    with pytest.raises(InvalidError, match="Model is not @batched"):
        variants.make_spec(base, batches)
    with pytest.raises(InvalidError, match="min_containers=3 is more than max_containers=2"):
        variants.make_spec(base, wire.Variation(base="Model", autoscaler={"min_containers": 3, "max_containers": 2}))
    with pytest.raises(InvalidError, match=r"class Open needs size: write Open\(size=\.\.\.\)"):
        variants.arguments(OPEN, {})
    with pytest.raises(NotFoundError, match="app app has no Gone any more"):
        Models().vary("Gone", {"cpu": 1.0})
    values = {"size": "a", "count": -(2**63)}
    assert variants.arguments(MODEL, values) == {"size": "a", "count": str(-(2**63))}


def test_variants_follow_a_deploy_of_what_they_are_variants_of() -> None:
    world = Models()
    large = world.vary(arguments={"size": "large"})
    world.call(large, "predict")
    (old,) = world.start(1)
    world.settle()
    world.deploy(changed(MODEL, timeout_s=7.0), digest="2")
    function = world.core.function(large)
    assert (function.spec.timeout_s, function.revision) == (7.0, 2)
    assert world.core.container(old).stop_reason.startswith("revision 2")  # type: ignore[union-attr]
    assert world.core.start_app(world.now, APP, world.spec, SESSION) == {
        name: f"{APP}/{name}" for name in ("f", "Model", "Open")
    }


def test_a_variant_goes_with_what_it_is_a_variant_of() -> None:
    world = Models()
    large, cpu = world.vary(arguments={"size": "large"}), world.vary("f", {"cpu": 2.0})
    world.call(large, "predict")
    world.settle()
    world.deploy(changed(MODEL, parameters=[]), world.spec.functions[0])
    found = world.settle()
    assert [one.name for one in of(found, effects.FunctionGone)] == ["Open", large.partition("/")[2]]
    failure = failure_of(of(found, effects.SendResults))
    assert failure.error == "InputCancellation"
    assert "Model has no parameter size any more" in failure.message
    assert world.core.function(cpu).spec.cpu == 2.0
    world.core.stop_app(world.now, APP)
    for container in list(world.core.state.containers):
        world.core.container_lost(world.now, container, "stopped")
    world.wait(1.0)
    assert world.core.state.functions == {}


def test_what_enter_has_raised_is_what_the_inputs_fail_with() -> None:
    world = Models()
    call = world.call(f"{APP}/Model", "predict")
    raised = payload.encode(payload.Raised(b"pickled", "ValueError", "no", "Traceback"))
    for _ in range(3):
        world.settle()
        (start,) = [one for one in world.core.state.containers.values() if one.state == 0]
        world.core.container_start_failed(world.now, start.id, "Traceback", raised)
        world.core.container_lost(world.now, start.id, "exit code 2")
        world.now += 0.1
    (result,) = of(world.settle(), effects.SendResults)
    assert (result.call, result.statuses, result.payloads) == (call, [wire.EXCEPTION], [raised])


def test_a_variant_that_nobody_has_used_for_a_day_is_forgotten_and_one_in_use_is_not() -> None:
    world = Models()
    unused, used = world.vary(arguments={"size": "unused"}), world.vary(arguments={"size": "used"})
    world.core.override(used, {"min_containers": 1})
    world.start(1)
    world.now += variants.KEEP_S - 120
    assert world.vary(arguments={"size": "asked again"})
    world.wait(300)
    gone = [f"{one.app}/{one.name}" for one in of(world.seen, effects.FunctionGone)]
    assert gone == [unused]
    assert unused not in world.core.state.functions
    assert used in world.core.state.functions


def test_the_variants_of_an_app_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "MAX_VARIANTS", 2)
    world = Models()
    first = world.vary(arguments={"size": "1"})
    world.now += 1
    second = world.vary(arguments={"size": "2"})
    world.now += 1
    world.vary(arguments={"size": "1"})
    third = world.vary(arguments={"size": "3"})
    assert {first, third} <= world.core.state.functions.keys()
    world.wait(1)
    assert second not in world.core.state.functions
    for one in (first, third):
        world.call(one, "predict")
    with pytest.raises(ResourceExhaustedError, match="2 variants that are all in use, and may have 2"):
        world.vary(arguments={"size": "4"})


def test_spawns_of_a_variant_are_there_after_a_restart_with_their_method() -> None:
    world = Models()
    large = world.vary(arguments={"size": "large"})
    call = world.call(large, "wait", wire.SPAWN)
    world.settle()
    segment = records.encode_segment(world.journal())
    snapshot = records.encode_segment(list(world.core.snapshot()))
    variation = world.core.function(large).variation
    assert variation is not None
    for written in (segment, snapshot):
        core = Core(epoch=2)
        core.restore_app(world.now, APP, world.spec, SESSION, False, 0)
        core.put_variant(world.now, APP, variation)
        core.replay(records.decode_segment(written))
        core.end_replay(world.now)
        (start,) = of(core.settle(world.now), effects.StartContainer)
        core.container_ready(world.now, start.container.id)
        (deliver,) = of(core.settle(world.now), effects.Deliver)
        assert (deliver.call, deliver.method, start.container.function.id) == (call, "wait", large)


def test_a_class_with_exit_methods_has_more_time_to_end() -> None:
    world = Models()
    world.deploy(changed(MODEL, has_exit=True))
    world.call(f"{APP}/Model", "predict")
    world.start(1)
    world.settle()
    world.core.stop_app(world.now, APP)
    (stop,) = of(world.settle(), effects.StopContainer)
    assert stop.grace_s == 20.0
