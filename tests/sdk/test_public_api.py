"""The public names: light to import, every one of Modal's answered."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest

import nomadfn
import nomadfn as modal
from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError
from nomadfn.sdk.unsupported import INSTEAD


def test_importing_nomadfn_imports_nothing_else() -> None:
    program = "import sys, __future__; before = set(sys.modules); import nomadfn; print(*set(sys.modules) - before)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.strip() == "nomadfn"


def test_every_public_name_is_there() -> None:
    for name in nomadfn.__all__:
        assert getattr(nomadfn, name) is not None
    assert dir(nomadfn) == sorted(nomadfn.__all__)
    assert nomadfn.__version__


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_a_name_of_modals_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is not supported by nomadfn; .+"):
        getattr(modal, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nomadfn' has no attribute 'Ap'"):
        modal.Ap  # noqa: B018


def test_the_exceptions_are_reached_as_in_modal() -> None:
    assert modal.exception.InvalidError is InvalidError
    assert issubclass(modal.exception.FunctionTimeoutError, modal.exception.TimeoutError)
    assert modal.exception.ResourceExhausted is modal.exception.ResourceExhaustedError
    assert modal.Error is modal.exception.Error


def test_here_is_local_and_there_is_no_current_input() -> None:
    assert modal.is_local()
    assert modal.current_input_id() is None
    assert modal.current_function_call_id() is None


def test_functions_apps_and_calls_pickle_as_references() -> None:
    app = modal.App("pickled")

    @app.function()
    def f() -> None: ...

    assert pickle.loads(pickle.dumps(f)) is f
    assert pickle.loads(pickle.dumps(app)) is app
    found = pickle.loads(pickle.dumps(modal.Function.from_name("elsewhere", "g")))
    assert (found.app_name, found.name) == ("elsewhere", "g")
    assert pickle.loads(pickle.dumps(modal.FunctionCall.from_id("fc-1"))).object_id == "fc-1"


def test_parts_of_modals_function_and_call_are_refused_by_name() -> None:
    function: Any = modal.Function.from_name("elsewhere", "g")
    for name in ("shell", "experimental_spawn_map"):
        with pytest.raises(UnsupportedError, match=name):
            getattr(function, name)
    with pytest.raises(DeprecationError, match="update_autoscaler"):
        function.keep_warm(1)
    with pytest.raises(AttributeError):
        function.nonsense  # noqa: B018
    call: Any = modal.FunctionCall.from_id("fc-1")
    for name in ("logs", "get_gen"):
        with pytest.raises(UnsupportedError, match=rf"FunctionCall\.{name} is not supported by nomadfn; "):
            getattr(call, name)
    with pytest.raises(AttributeError):
        call.nonsense  # noqa: B018
    with pytest.raises(UnsupportedError, match="client"):
        modal.FunctionCall.from_id("fc-1", client=object())
    for wrong in (modal.Function, modal.FunctionCall):
        with pytest.raises(InvalidError, match="is made by"):
            wrong()


@pytest.mark.parametrize("name", ["include", "lookup"])
def test_parts_of_modals_app_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"App\.{name} is not supported by nomadfn; "):
        getattr(modal.App("refused"), name)


def test_an_unknown_part_of_an_app_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="bogus"):
        getattr(modal.App("refused"), "bogus")  # noqa: B009
