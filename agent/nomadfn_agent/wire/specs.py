"""What a program says of its functions: settings, code and app, as they travel and as they stand in the registry."""

from __future__ import annotations

import msgspec

from .image import ImageSpec


class RetryPolicy(msgspec.Struct, frozen=True, gc=False):
    """Delays in seconds: the n-th retry waits `min(initial_delay_s * backoff_coefficient**(n-1), max_delay_s)`."""

    max_retries: int = 0
    backoff_coefficient: float = 1.0
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0


class AutoscalerSettings(msgspec.Struct, frozen=True, gc=False):
    """How many containers a function may have; `max_containers=None` is no limit of the function's own."""

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window_s: float = 60.0


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """When a deployed function runs by itself: at the times of a cron expression, or whenever a period has passed."""

    cron: str = ""
    timezone: str = "UTC"
    """Of the cron expression."""
    months: int = 0
    days: int = 0
    seconds: float = 0.0


class SecretSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of a function: values that its program has given, or the name of one that is kept elsewhere."""

    name: str = ""
    """`my-secret`, or where it stands: `nomad:a/path`, `consul:a/key`. Empty where `values` are all of it."""
    required_keys: list[str] = []
    values: dict[str, str] = {}
    of_image: bool = False
    """These are the variables of the function's image, and no secret that a variant may replace."""


class WebSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a function answers HTTP: what it gives, and under which name the gateway has it."""

    kind: str
    """`asgi` and `wsgi`: it returns an application. `fastapi`: it answers one request. `server`: it starts a server."""
    label: str = ""
    """Stands in its URL in place of the function's name."""
    method: str = "GET"
    """Of `fastapi`."""
    docs: bool = False
    """Of `fastapi`: whether the pages `/docs` and `/openapi.json` are there."""
    port: int = 0
    """Of `server`: where it listens in the container."""
    startup_timeout_s: float = 5.0
    """Of `server`: how long it may take to listen."""
    requires_proxy_auth: bool = False
    """Whether the gateway wants a token."""


class MethodSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One method of a class that can be called from outside."""

    name: str
    is_async: bool = False
    is_generator: bool = False
    web: WebSpec | None = None


class ParameterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of a class. Its values travel as text, see `parameters`."""

    name: str
    type: str
    """`str`, `int`, `bool` or `bytes`."""
    default: str | None = None
    """None where a value has to be given."""


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One function as its program defines it, or one class: then `methods` says how it can be called.

    Readable as JSON: it stands in the registry like this.
    """

    name: str
    module: str = ""
    """The module to import in the container; empty when `serialized_ref` carries the function."""
    qualname: str = ""
    serialized_ref: str = ""
    """Digest of the blob with the cloudpickled function."""
    is_async: bool = False
    is_generator: bool = False
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    timeout_s: float = 300.0
    startup_timeout_s: float = 300.0
    retries: RetryPolicy = RetryPolicy()
    gpu: list[str] = []
    cpu: float | None = None
    memory_mib: int | None = None
    env: dict[str, str] = {}
    secrets: list[SecretSpec] = []
    """In their order, and before `env`: what comes later wins."""
    sealed: str = ""
    """Where it is kept: all values of `env` and `secrets`, which are empty then, unreadable but for their owner."""
    max_inputs: int = 1
    target_inputs: int | None = None
    max_batch_size: int = 0
    batch_wait_ms: int = 0
    methods: list[MethodSpec] = []
    """Of a class, which has at least one; empty for a function."""
    parameters: list[ParameterSpec] = []
    has_exit: bool = False
    """The class has an `@exit` method, for which its containers have `EXIT_GRACE_S`."""
    variant_of: str = ""
    """Where this is a variant: the name of the function that it is one of."""
    arguments: dict[str, str] = {}
    """A variant of a class: the values of its parameters, those with a default too."""
    on_batch_error: str = "fail"
    """`fail`: all inputs of a batch that raises fail. `bisect`: it runs again by halves."""
    image: ImageSpec | None = None
    """None is the Python environment of the control service, or of the cluster's own image."""
    web: WebSpec | None = None
    """Set: its inputs are HTTP requests and websockets, which come from the gateway."""
    schedule: ScheduleSpec | None = None

    @property
    def program_name(self) -> str:
        """What the program calls it: a variant has the name of what it is a variant of."""
        return self.variant_of or self.name

    @property
    def is_web(self) -> bool:
        """Whether it, or a method of it, answers HTTP."""
        return self.web is not None or (bool(self.methods) and any(one.web is not None for one in self.methods))

    @property
    def webs(self) -> list[tuple[str, WebSpec]]:
        """What of it answers HTTP, by method; the empty name is the function itself."""
        found = [(one.name, one.web) for one in self.methods if one.web is not None]
        return found if self.web is None else [("", self.web), *found]

    @property
    def streams(self) -> bool:
        """Whether inputs of it may give out parts while they run; see `wire.streams`."""
        return self.is_generator or (bool(self.methods) and any(one.is_generator for one in self.methods))

    def gives_parts(self, method: str) -> bool:
        """Whether inputs of this method do; the empty name is the function itself."""
        found = self.method(method) if method else self
        return found is not None and found.is_generator

    def method(self, name: str) -> MethodSpec | None:
        """The method of that name of a class, None where it has none."""
        return next((one for one in self.methods if one.name == name), None)


class Variation(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant has that differs from the function that it is a variant of. Readable as JSON, as a spec is."""

    base: str
    """Name of that function."""
    arguments: dict[str, str] = {}
    autoscaler: dict[str, int | float | None] = {}
    """Fields of `AutoscalerSettings`."""
    fields: list[str] = []
    """Which fields of `values` hold; `env` is added to the function's own, everything else takes the place of it."""
    values: FunctionSpec = FunctionSpec(name="")


class CodeRef(msgspec.Struct, frozen=True, kw_only=True):
    """The program's source: one zip archive, addressed by its digest, and what to do with it."""

    digest: str = ""
    main_module: str = ""
    """Name under which the program's own file is imported; `__main__` is made an alias of it."""
    origin: str = ""
    """The folder that the archive was made from, so that tracebacks show the user's own paths."""
    python: str = ""
    """Minor version of the client's Python, "3.11"."""
    as_modal: bool = False
    """Install `nomadfn` under the name `modal` before any user code is imported."""


class AppSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One app as its program defines it."""

    name: str
    functions: list[FunctionSpec] = []
    code: CodeRef = CodeRef()
