"""A program whose functions scale and call their own app, as in the guide, and try what they must not."""

PROGRAM = """
    import nomadfn

    app = nomadfn.App("my-app")

    @app.function(max_containers=4, scaledown_window=2)
    def process(item):
        return item * item

    @app.function(scaledown_window=2)
    def scale_up_for_peak():
        process = nomadfn.Function.from_name("my-app", "process")
        process.update_autoscaler(min_containers=1, buffer_containers=1)
        settings = process.update_autoscaler(max_containers=3)
        return [settings.min_containers, settings.max_containers, settings.buffer_containers, process.remote(7)]

    @app.function(scaledown_window=2)
    async def scale_down_after_peak():
        settings = await process.update_autoscaler.aio(min_containers=0, buffer_containers=0, scaledown_window=30)
        return [settings.min_containers, settings.max_containers, settings.buffer_containers, settings.scaledown_window]

    def tried(attempt):
        try:
            return repr(attempt())
        except nomadfn.Error as error:
            return type(error).__name__

    @app.function(scaledown_window=2)
    def overreach():
        from nomadfn.sdk.blocking import run_sync
        from nomadfn.sdk.client import default_client

        other = nomadfn.Function.from_name("other", "process")
        by_id = nomadfn.Function.from_name("my-app", "process")
        ask = lambda operation, **body: run_sync(default_client().request(operation, body))
        return {
            "scale another app": tried(lambda: other.update_autoscaler(min_containers=1)),
            "call another app": tried(lambda: other.remote(1)),
            "stop": tried(lambda: ask("app.stop", app_id="my-app")),
            "deploy": tried(lambda: ask("app.deploy", spec={"name": "my-app"})),
            "history": tried(lambda: ask("app.history", app="my-app")),
            "write a secret": tried(lambda: ask("secret.write", name="db", values={"A": "1"})),
            "list secrets": tried(lambda: ask("secret.list")),
            "delete a secret": tried(lambda: ask("secret.delete", name="db")),
            "wrong": tried(lambda: by_id.update_autoscaler(min_containers=9)),
            "unknown": tried(lambda: nomadfn.Function.from_name("my-app", "gone").update_autoscaler(min_containers=1)),
        }

    @app.local_entrypoint()
    def main():
        print(scale_up_for_peak.remote(), scale_down_after_peak.remote())
"""
OTHER = """
    import nomadfn

    app = nomadfn.App("other")

    @app.function()
    def process(item):
        return item
"""
SCALED_UP = [1, 3, 1, 49]
SCALED_DOWN = [0, 3, 0, 30.0]
REFUSED = {
    **dict.fromkeys(("scale another app", "call another app", "stop", "deploy", "history"), "PermissionDeniedError"),
    **dict.fromkeys(("write a secret", "list secrets", "delete a secret"), "PermissionDeniedError"),
    "wrong": "InvalidError",
    "unknown": "NotFoundError",
}
