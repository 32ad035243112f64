"""Every frame that the SDK, the control service and the agents exchange.

A frame is one msgpack array whose first item is its tag. On a websocket one binary message is one
frame; on a byte stream (the supervisor's socket) a frame stands behind its length, 4 bytes, big endian.
Frames carry columns (`indexes`, `payloads`), so that many inputs cost one frame. Payloads are opaque
bytes: the control service never looks into one. This package (frames here, `payload` for what is inside
a payload, `link` for the client's end of a websocket) is all that `nomadfn` shares with the agent.

Who sends what:

    SDK         → control   Hello  Submit  Ack  Request  Taken
    control     → SDK       Welcome  Accepted  Rejected  Results  ManyResults  Parts  Reply  Log  Stats
    runner      → control   Hello  Ready  StartFailed  Outputs  Returned  Attach  Part  Fed
    control     → runner    Bind  Deliver  DeliverBatch  Withdraw  Interrupt  Drain  Consumed  Feed
    control     → supervisor   Start  Stop  Recall  Prepare  (on a cluster: Joined)
    supervisor  → control      Preparing  Started  Ended  Log  Withdrawn  (on a cluster: Join  Leaving)

An input is named by its call and its index in it; the client makes call ids, so sending the same
`Submit` twice is harmless. One run of one input is a *delivery*, a number that the control service
never gives twice: an output for a delivery that is no longer held is of an old attempt and is ignored.
Results of a session are numbered from 1; `Ack(n)` says that everything up to n has arrived.
What an input gives and gets while it runs is its stream; see `streams`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from .image import ImageSpec as ImageSpec
from .image import ImageStep as ImageStep
from .image import image_id as image_id
from .image import needs_environment as needs_environment
from .specs import AppSpec as AppSpec
from .specs import AutoscalerSettings as AutoscalerSettings
from .specs import CodeRef as CodeRef
from .specs import FunctionSpec as FunctionSpec
from .specs import MethodSpec as MethodSpec
from .specs import ParameterSpec as ParameterSpec
from .specs import RetryPolicy as RetryPolicy
from .specs import ScheduleSpec as ScheduleSpec
from .specs import SecretSpec as SecretSpec
from .specs import Variation as Variation
from .specs import WebSpec as WebSpec
from .streams import PART_EXTRA_BYTES as PART_EXTRA_BYTES
from .streams import STREAM_WINDOW_BYTES as STREAM_WINDOW_BYTES
from .streams import Consumed as Consumed
from .streams import Fed as Fed
from .streams import Feed as Feed
from .streams import Part as Part
from .streams import Parts as Parts
from .streams import Taken as Taken

VERSION = 1
MAX_FRAME_BYTES = 256 * 1024
"""What a sender aims at; one payload up to INLINE_PAYLOAD_BYTES may stand alone in a larger frame."""
INLINE_PAYLOAD_BYTES = 128 * 1024
"""A payload larger than this travels as a blob reference (see `REF`)."""
MAX_INPUTS_PER_FRAME = 512
STREAM_HEADER = struct.Struct(">I")

PICKLE = 0
JSON = 1
REF = 16
"""Added to a codec or a status: the payload is `payload.BlobRef` in msgpack, not the bytes themselves."""
DURABLE = 32
"""Added to a codec in `Deliver`: the result is kept for days, so a blob with it has to survive a power cut."""

OK = 0
EXCEPTION = 1
"""The function raised: the payload is `payload.Raised` in msgpack."""
FAILURE = 2
"""nomadfn could not get a result: the payload is `payload.Failure` in msgpack."""

BATCH_RAISED = 3
"""The function raised for a whole batch, and is to be run again with halves of it: no payload, and no result."""

REMOTE = 0
MAP = 1
SPAWN = 2
SPAWN_MAP = 3
DURABLE_KINDS = frozenset((SPAWN, SPAWN_MAP))


class _Frame(msgspec.Struct, array_like=True, gc=False):
    pass


class Hello(_Frame, tag=1):
    """First frame of every websocket but an agent's. `seen` is the number of the last result that the session has."""

    version: int
    role: str
    """`client` or `runner`."""
    session: str
    """The client's own random id, or the container's id."""
    python: str = ""
    client_version: str = ""
    seen: int = 0
    parent: str = ""
    """For a client inside a container: the container's id."""
    again: bool = False
    """For a runner: an earlier leader has told it its function, and it has that."""
    takes_many: bool = False
    """For a client: it knows `ManyResults`."""


class Welcome(_Frame, tag=2):
    version: int
    epoch: int
    """Changes when another control service leads; a client that sees a new one sends its apps and inputs again."""
    resumed: bool
    blobs: str
    """Folder of the blob store, for whoever sees the same one; empty where there is none. See `store.Place`."""
    http_url: str
    map_window: int
    max_payload_bytes: int
    max_function_bytes: int
    target: str = ""
    """The service in words, for the first line that `run` prints."""
    blobs_mark: str = ""
    """Name of the file in `blobs` by which the folder is known to be the same one."""


class Submit(_Frame, tag=3):
    """Inputs `first`, `first + 1`, … of one call."""

    call: str
    function: str
    kind: int
    first: int
    payloads: list[bytes]
    codec: int = PICKLE
    refs: list[int] = []
    """Positions in `payloads` that are blob references."""
    priority: int = 0
    deadline_s: float | None = None
    """Seconds from now after which the inputs are not started any more."""
    parent: str = ""
    """Id of the input that makes this call, where one does."""
    method: str = ""
    """Of a class: which of its methods."""
    attempt: int = 0
    """Of an input that is sent again: the delivery whose parts have arrived. It is not run anew then."""


class Accepted(_Frame, tag=4):
    """Inputs of a durable call that are safe from now on."""

    call: str
    first: int
    count: int


class Rejected(_Frame, tag=5):
    """Inputs that were not taken. `error` names a class of `nomadfn.exception`."""

    call: str
    first: int
    count: int
    error: str
    message: str
    retry_after_s: float = 1.0
    limit: str = ""
    value: int = 0
    maximum: int = 0


class Results(_Frame, tag=6):
    """Outputs of one call. `number` is the session's number of the last of them."""

    number: int
    call: str
    indexes: list[int]
    statuses: list[int]
    payloads: list[bytes]
    codec: int = PICKLE

    def each(self) -> Sequence[Results]:
        return (self,)


class ManyResults(_Frame, tag=14):
    """One output of each of several calls, as they follow one another. `number` is that of the last one."""

    number: int
    calls: list[str]
    indexes: list[int]
    statuses: list[int]
    payloads: list[bytes]
    codecs: list[int]

    def each(self) -> Sequence[Results]:
        """The same as a frame for each call; all of them have the last one's number."""
        columns = zip(self.calls, self.indexes, self.statuses, self.payloads, self.codecs, strict=True)
        return [
            Results(self.number, call, [index], [status], [data], codec) for call, index, status, data, codec in columns
        ]


class Ack(_Frame, tag=7):
    """A client has every result up to this number; a leader, of a runner, as many frames of outputs of this link."""

    number: int


class Request(_Frame, tag=8):
    """One operation by name (`control/operations.py`); every request gets one `Reply` with its id."""

    id: int
    operation: str
    body: dict[str, Any]


class Reply(_Frame, tag=9):
    """`error` is empty, or names a class of `nomadfn.exception` and `message` its text."""

    id: int
    body: Any = None
    error: str = ""
    message: str = ""


class Log(_Frame, tag=10):
    """What a container wrote. From a supervisor `app`, `function` and `index` are empty."""

    container: str
    stream: int
    """1 stdout, 2 stderr, 0 a notice of nomadfn itself."""
    text: str
    app: str = ""
    function: str = ""
    index: int = -1


class Stats(_Frame, tag=11):
    """One function's figures, sent to the sessions that watch its app when they change."""

    function: str
    name: str
    pending: int
    running: int
    containers: int
    """Containers that are ready."""
    starting: int
    wanted: int
    reason: str


class Bind(_Frame, tag=20):
    """The runner's first frame from the control service: which function it is, and where its code lies."""

    function: str
    spec: FunctionSpec
    code: CodeRef
    app: str
    app_name: str
    index: int
    blobs: str
    code_cache: str
    """Folder into which archives are unpacked, one sub-folder a digest; empty is one of the container's own."""
    blobs_mark: str = ""
    http_url: str = ""
    """As in `Welcome`."""
    env: dict[str, str] = {}
    """All environment variables that `env=` and secrets give the function; `spec` has no values of them."""


class Ready(_Frame, tag=21):
    slots: int


class StartFailed(_Frame, tag=22):
    """The function could not be loaded. `payload` is `payload.Raised` in msgpack."""

    payload: bytes
    entering: bool = False
    """An `@enter` method raised it: after the last try it is what the inputs fail with."""


class Deliver(_Frame, tag=23):
    """Inputs to run, in this order. `deliveries` are this run's numbers."""

    call: str
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    """One codec for all, or one an input; with `REF` and `DURABLE` where they apply."""
    method: str = ""
    """Of a class: which of its methods. A batch needs none said: a class has one batched method, and no other."""


class Outputs(_Frame, tag=24):
    """What the deliveries gave. `run_ns` is the time that user code took for all of them together."""

    deliveries: list[int]
    statuses: list[int]
    payloads: list[bytes]
    run_ns: int
    stuck_ns: int = 0
    """Sent beside an input that runs long: for so long at least."""


class Returned(_Frame, tag=26):
    """Deliveries that were not started and will not be: interrupted, or withdrawn by the supervisor."""

    deliveries: list[int]


class Interrupt(_Frame, tag=27):
    """Raise InputCancellation in these deliveries if they run; those not started are named in a `Returned`."""

    deliveries: list[int]


class Drain(_Frame, tag=28):
    """Finish what is there, send the outputs and end."""


class Attach(_Frame, tag=29):
    """A runner's frame behind Hello where another control service leads now: it goes on with what it has.

    It names what it holds and what it has finished and its last leader may have lost; an `Outputs` with that follows.
    """

    code: str
    """Digest of the program's source that it has loaded."""
    slots: int
    deliveries: list[int]
    calls: list[str]
    indexes: list[int]


class DeliverBatch(_Frame, tag=30):
    """Inputs with a call of each. Those of a batched function run together; more of the batch follows until `last`."""

    calls: list[str]
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    last: bool = True


class Withdraw(_Frame, tag=31):
    """Where several inputs run at once: give back those that have not been started; answered by one `Returned`."""

    deliveries: list[int]


class Start(_Frame, tag=40):
    """Make a container. `env` holds what the runner needs to join (address, token); never user values."""

    container: str
    env: dict[str, str]
    image: ImageSpec | None = None
    """The environment that it runs in, which is made first where it is not there."""


class Stop(_Frame, tag=41):
    """End a container: SIGTERM to its process group and SIGKILL after `grace_s`; 0 is SIGKILL at once."""

    container: str
    grace_s: float


class Prepare(_Frame, tag=61):
    """Make this environment unless it is there; its log comes as that of a container with the environment's name."""

    image: ImageSpec


class Leads(_Frame, tag=60):
    """From an agent to the warm parent of an image: another control service leads now, which the runners shall join."""

    data_url: str


class Started(_Frame, tag=42):
    container: str
    pid: int


class Ended(_Frame, tag=43):
    """The operating system says that the container's process is gone."""

    container: str
    exit_code: int
    """As in `subprocess`: negative is the signal's number."""
    tail: str
    """The last lines of what it wrote to stderr and stdout."""
    what: str = ""
    """In words, where it is not its exit code that says how it ended."""


class Recall(_Frame, tag=47):
    """Take back what the container has not started, up to this delivery; answered by `Withdrawn`.

    The supervisor answers for its runner, which may be busy with user code that lets nothing else run.
    """

    container: str
    up_to: int


class Withdrawn(_Frame, tag=48):
    """Of the container's deliveries up to `up_to` those beyond `after` have not been started, and will not be there.

    The columns are as in `Outputs`: what the runner has finished and not sent yet. It sends them again itself.
    """

    container: str
    after: int
    up_to: int
    deliveries: list[int]
    statuses: list[int]
    payloads: list[bytes]
    run_ns: int


class Preparing(_Frame, tag=49):
    """The container waits for its environment; `what` in words. It is about to start once `Started` follows."""

    container: str
    what: str


class Join(_Frame, tag=44):
    """First frame of an agent's websocket: which allocation it is in, and the containers that it has already."""

    version: int
    job: str
    alloc: str
    lane: int
    position: int
    containers: list[str]
    """Those that run, and those whose `Ended` the control service may not have yet: it follows."""


class Joined(_Frame, tag=45):
    """The agent is welcome; again when `control_urls` have changed. `Start` and `Stop` may come before it."""

    epoch: int
    control_urls: list[str] = []
    """Where control services are: the leader, and those who may follow it."""


class Leaving(_Frame, tag=46):
    """The agent has been told to end: its containers shall get no more inputs. It ends with the last of them."""

    what: str


ClientFrame = Hello | Submit | Ack | Request | Taken
ToClientFrame = Welcome | Accepted | Rejected | Results | ManyResults | Reply | Log | Stats | Parts
RunnerFrame = Hello | Ready | StartFailed | Outputs | Returned | Attach | Part | Fed
ToRunnerFrame = Bind | Ack | Deliver | DeliverBatch | Withdraw | Interrupt | Drain | Consumed | Feed
ToSupervisorFrame = Start | Stop | Recall | Joined | Leads | Prepare
SupervisorFrame = Preparing | Started | Ended | Log | Withdrawn
AgentFrame = SupervisorFrame | Leaving

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_first = msgspec.msgpack.Decoder(Hello | Join).decode
decode_from_client = msgspec.msgpack.Decoder(ClientFrame).decode
decode_to_client = msgspec.msgpack.Decoder(ToClientFrame).decode
decode_from_runner = msgspec.msgpack.Decoder(RunnerFrame).decode
decode_to_runner = msgspec.msgpack.Decoder(ToRunnerFrame).decode
decode_to_supervisor = msgspec.msgpack.Decoder(ToSupervisorFrame).decode
decode_from_supervisor = msgspec.msgpack.Decoder(SupervisorFrame).decode
decode_from_agent = msgspec.msgpack.Decoder(AgentFrame).decode


def encode_for_stream(frame: msgspec.Struct) -> bytes:
    """The frame behind its length, for a byte stream."""
    body = encode(frame)
    return STREAM_HEADER.pack(len(body)) + body
