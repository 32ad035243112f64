"""What a program uses of Modal's API is found in its source, by whatever name it goes there."""

from __future__ import annotations

import textwrap

import pytest

from nomadfn.sdk.modal_use import uses


def names(source: str) -> list[str]:
    return [use.name for use in uses(textwrap.dedent(source), "program.py")]


@pytest.mark.parametrize(
    "header",
    ["import modal", "import nomadfn as modal", "import modal as modal"],
)
def test_the_module_is_known_by_every_import(header: str) -> None:
    assert names(f"{header}\napp = modal.App('a')") == ["App"]


def test_names_that_are_imported_and_renamed_are_followed() -> None:
    source = """
        from modal import App as Application, Image
        from modal.exception import TimeoutError
        app = Application(image=Image.debian_slim())
    """
    assert names(source) == ["App", "Image", "exception.TimeoutError", "App(image=)", "Image.debian_slim"]


def test_settings_of_decorators_are_uses_unless_they_are_none() -> None:
    source = """
        import modal
        app = modal.App("a")
        @app.function(gpu="H100", region=None)
        @modal.concurrent(max_inputs=3)
        def f(): ...
    """
    assert names(source) == ["App", "App.function", "App.function(gpu=)", "concurrent", "concurrent(max_inputs=)"]


def test_what_stands_under_a_decorator_is_a_function_and_the_users_own_keywords_are_none_of_ours() -> None:
    source = """
        import modal
        app = modal.App("a")
        @app.function()
        def f(volumes): ...
        f.remote(volumes=1)
        f.map([1], order_outputs=False)
    """
    assert names(source)[2:] == ["Function.remote", "Function.map", "Function.map(order_outputs=)"]


def test_methods_of_an_instance_are_functions_and_its_parameters_are_the_users() -> None:
    source = """
        import modal
        app = modal.App("a")
        @app.cls()
        class Model: ...
        model = Model(volumes=3)
        model.predict.remote_gen(1)
        modal.Cls.from_name("a", "Model").with_options(gpu="T4")().predict.spawn(1).get(timeout=3)
    """
    assert names(source)[2:] == [
        "Function.remote_gen",
        "Cls",
        "Cls.from_name",
        "Cls.with_options",
        "Cls.with_options(gpu=)",
        "Function.spawn",
        "FunctionCall.get",
        "FunctionCall.get(timeout=)",
    ]


def test_chains_and_assignments_are_followed_whatever_their_order() -> None:
    source = """
        import modal
        def build():
            return base.apt_install("git")
        base = other
        other = modal.Image.debian_slim().pip_install("a", pre=True)
    """
    assert names(source) == [
        "Image.apt_install",
        "Image",
        "Image.debian_slim",
        "Image.pip_install",
        "Image.pip_install(pre=)",
    ]


def test_aio_is_the_verb_itself() -> None:
    source = "import modal\nf = modal.Function.from_name('a', 'b')\nasync def main(): await f.remote.aio(1)"
    assert names(source)[-1] == "Function.remote"


def test_what_came_from_elsewhere_is_left_alone() -> None:
    assert names("import requests\nrequests.get('x').volumes\napp = object()\napp.function(gpu=1)") == []


def test_every_use_has_its_line() -> None:
    found = uses("import modal\n\nimage = (\n    modal.Image.debian_slim()\n    .apt_install('git')\n)\n", "p.py")
    assert [(use.line, use.name) for use in found] == [(4, "Image"), (4, "Image.debian_slim"), (5, "Image.apt_install")]


def test_a_name_that_means_something_else_in_a_function_is_left_alone_there() -> None:
    source = """
        import modal
        app = modal.App("a")
        def web():
            app = FastAPI()
            @app.get("/")
            def index(): ...
        def other(app):
            app.post(1)
        def last():
            app.run()
    """
    assert names(source) == ["App", "App.run"]


def test_names_in_modules_of_modals_are_the_public_ones() -> None:
    source = "from modal.functions import FunctionCall\nimport modal.schedule\nmodal.schedule.Cron('* * * * *')"
    assert names(source) == ["FunctionCall", "Cron"]
