"""Methods of a class that answer HTTP: one instance a container, entered before its first request."""

from __future__ import annotations

from web_site import Site
from world import World

CLASSES = """
    import os
    import nomadfn

    app = nomadfn.App("site")

    @app.cls(max_containers=1, scaledown_window=30)
    @nomadfn.concurrent(max_inputs=10)
    class Model:
        size: str = nomadfn.parameter(default="small")

        @nomadfn.enter()
        async def load(self):
            self.loaded = f"{self.size} model"
            self.count = 0
            print("entered", flush=True)

        @nomadfn.asgi_app()
        def web(self):
            from fastapi import FastAPI

            web = FastAPI()

            @web.get("/")
            async def root():
                self.count += 1
                return {"loaded": self.loaded, "count": self.count, "pid": os.getpid()}

            return web

        @nomadfn.fastapi_endpoint(method="POST", label="predict")
        def predict_over_http(self, text: str):
            return {"loaded": self.loaded, "text": text, "pid": os.getpid()}

        @nomadfn.method()
        def predict(self, text: str):
            return [self.loaded, text, os.getpid()]

        @nomadfn.method()
        async def count_up(self):
            self.count += 10
            return self.count

        @nomadfn.exit()
        def leave(self):
            print(f"left after {self.count}", flush=True)

    @app.local_entrypoint()
    def main():
        import json, urllib.request

        model = Model()
        print(json.load(urllib.request.urlopen(model.web.get_web_url()))["loaded"], model.predict.remote("x")[:2])
        print(model.predict.get_web_url())
        for verb in (lambda: model.web.remote(), lambda: model.predict_over_http.remote("x")):
            try:
                verb()
            except nomadfn.exception.InvalidError as error:
                print(error)
"""


def test_a_class_answers_http_beside_its_other_methods(world: World) -> None:
    with Site(world, CLASSES) as site:
        first = site.get("Model.web").json()
        assert (first["loaded"], first["count"]) == ("small model", 1)
        second = site.client.post(site.url("predict"), params={"text": "hi"}).json()
        assert second == {"loaded": "small model", "text": "hi", "pid": first["pid"]}
        world.write(
            "calls.py",
            """
            import nomadfn

            Model = nomadfn.Cls.from_name("site", "Model")
            model = Model()
            print(model.predict.remote("there")[:2], model.count_up.remote(), model.web.get_web_url())
            print(Model(size="large").web.get_web_url())
            """,
        )
        said, large = world.python("calls.py").ok().out.splitlines()
        assert said == f"['small model', 'there'] 11 {site.url('Model.web')}"
        assert large.startswith(site.url("Model@"))
        assert large.endswith(".web")
        assert site.client.get(large).json()["loaded"] == "large model"
        assert site.get("Model.web?size=large").json()["count"] == 2
        assert site.get("Model.web?size=huge").json()["loaded"] == "huge model"
        assert site.get("Model.web").json() == {"loaded": "small model", "count": 12, "pid": first["pid"]}
        answer = site.client.get(f"{site.base}/", headers={"Host": "site--model-web.localhost"})
        assert answer.json()["count"] == 13
        shown = world.nomadfn("function", "explain", "site", "Model").ok().out
        assert site.url("Model.web") in shown
        assert site.url("predict") in shown
        logs = world.start("nomadfn", "app", "logs", "-f", "site")
        logs.says("entered")
        world.nomadfn("app", "stop", "site").ok()
        logs.says("left after 13")


def test_a_program_asks_its_own_class(world: World) -> None:
    world.write("site.py", CLASSES)
    lines = [line for line in world.nomadfn("run", "site.py").ok().out.splitlines() if "│" not in line]
    assert lines[:2] == ["small model ['small model', 'x']", "None"]
    assert len(lines) == 4
    assert "Model.web is a web function and takes HTTP requests only; send them to http://" in lines[2]
    assert "/site-dev/predict" in lines[3]


def test_run_and_serve_say_where_a_web_function_belongs(world: World) -> None:
    world.write("site.py", CLASSES)
    for name in ("Model.web", "Model.predict_over_http"):
        refused = world.nomadfn("run", f"site.py::{name}", "--text", "x")
        refused.refused(2, f"{name} is a web function", "nomadfn serve site.py")
    served = world.nomadfn("serve", "site.py", "--timeout", "1").ok()
    assert "Model.web answers at http://127.0.0.1:" in served.err


def test_parameters_without_a_default_have_to_stand_in_the_query(world: World) -> None:
    program = """
        import nomadfn

        app = nomadfn.App("site")

        @app.cls()
        class Greeter:
            greeting: str = nomadfn.parameter()
            times: int = nomadfn.parameter(default=1)

            @nomadfn.fastapi_endpoint(label="greet")
            def greet(self, name: str = "you"):
                return [f"{self.greeting} {name}"] * self.times

        @app.function()
        @nomadfn.fastapi_endpoint()
        def plain():
            return "plain"
    """
    with Site(world, program) as site:
        refused = site.get("greet?name=Ada")
        assert (refused.status_code, "Greeter needs greeting" in refused.text) == (400, True)
        refused = site.get("greet?greeting=hi&times=many")
        assert (refused.status_code, "?times=many is no int" in refused.text) == (400, True)
        assert site.get("greet?greeting=hi&times=2&name=Ada").json() == ["hi Ada", "hi Ada"]
        world.write(
            "urls.py",
            """
            import nomadfn

            print(nomadfn.Cls.from_name("site", "Greeter")(greeting="hello").greet.get_web_url())
            print(nomadfn.Function.from_name("site", "plain").with_options(timeout=5).get_web_url())
            """,
        )
        greeter, plain = world.python("urls.py").ok().out.splitlines()
        assert site.client.get(greeter).json() == ["hello you"]
        assert plain.startswith(site.url("plain@"))
        assert site.client.get(plain).json() == "plain"
