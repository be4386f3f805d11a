"""The frames between the node and a worker: dataclasses, msgpack on the wire, length-prefixed. No torch.

    frame = 4-byte big-endian length + msgpack [type name, {field: value}]

node -> worker: Submit, Cancel, Sleep, Wake, Shutdown
worker -> the processes that share its steps: Share (answered by Shared), Loading (load this one, too), Sleep, Wake
(answered by Ready)
worker -> node: Loading, Ready, Heartbeat, Waits, Note, Started, Progress, Preview, Picture, Finished, Failed,
Cancelled, Log

Every frame about a job carries `job_id` and the `epoch` of the claim, so that a late frame of an earlier
claim is recognised and dropped by the node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgpack

MAX_FRAME = 1 << 30
_HEADER = struct.Struct(">I")

FailureKind = Literal["model_error", "input_error", "out_of_memory", "internal", "deadline"]
"""model_error: caused by this request (NaN, a Python error in its tensors). input_error: caused by one field of it,
named by `loc`. out_of_memory: does not fit alone. internal: caused by the worker; worth running again elsewhere.
deadline: it did not start in time."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Run this request. `params` is `GenerationParams.to_dict()`. `priority` 0 is normal, 1 low.

    `pictures` are what its conditions name by index: `InputPicture.to_dict()` each, together below MAX_FRAME.

    `age_s` is how long the job has waited so far; `start_within_s` is what is left of its start deadline, and
    `done_within_s` of the time in which its caller wants it done.
    """

    job_id: str
    epoch: int
    params: dict[str, Any]
    priority: int = 0
    age_s: float = 0.0
    start_within_s: float | None = None
    done_within_s: float | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop this request before the next step; answered by Cancelled (or by its own end, if it came first)."""

    job_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Finish what was submitted, then free the device until Wake."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Load every given model again, with Loading frames; answered by another Ready."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Drop everything and exit with status 0."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Load progress of one model, `fraction` in [0, 1]; `stage` is a word or two for people."""

    model: str
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker takes requests. `models`: one dict a checkpoint with at least `name`, `family`,
    `has_safety_checker`, `guidance_embeds`, `size_multiple`, `dtype`, `load_s`, and `acceleration`: what each level
    does here, in words. `on_demand`: names of those that the first request for them loads."""

    device: str
    device_name: str
    models: list[dict[str, Any]]
    on_demand: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent at least every second and between steps; its absence for `hang_s` gets the worker killed.

    `load_ms`: predicted milliseconds of work it holds. `memory`: bytes by name, for /metrics.
    `loaded`: names of the checkpoints in memory. `tally`: see `pipelines.protocol.tally`.
    `lookups`: see `pipelines.protocol.lookups`.
    """

    steps: int
    running: int
    waiting: int
    load_ms: float
    memory: dict[str, int] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    tally: dict[str, list[float]] = field(default_factory=dict)
    lookups: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waits:
    """The request waits, beside those that are drawn, until the checkpoint `model` is loaded; no more when it is ""."""

    job_id: str
    epoch: int
    model: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the request's own log: something in it is done otherwise than asked."""

    job_id: str
    epoch: int
    message: str


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; its prompt is being encoded."""

    job_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` of `num_steps` is done; `eta_s` is the engine's estimate of what is left."""

    job_id: str
    epoch: int
    step: int
    num_steps: int
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A small RGB picture of image `index` after `step`: `pixels` is height x width x 3 bytes, row major."""

    job_id: str
    epoch: int
    step: int
    index: int
    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """Finished image `index`: `pixels` is height x width x 3 bytes, row major, RGB (black if flagged)."""

    job_id: str
    epoch: int
    index: int
    seed: int
    width: int
    height: int
    pixels: bytes
    has_nsfw_concept: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """All pictures were sent. `timings` in seconds: queue_wait, encode, denoise, decode, safety, inference; and
    `device`: of the device's time, the part that was its own (steps shared with others count by tokens)."""

    job_id: str
    epoch: int
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without a picture. `message` is one sentence for the user, without paths or traces.

    `loc` names the field at fault, for `input_error`: ("image_url",) or ("loras", 0, "path").
    """

    job_id: str
    epoch: int
    kind: FailureKind
    message: str
    loc: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "loc", tuple(self.loc))  # a list on the wire


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was dropped after `step` steps, as asked."""

    job_id: str
    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the operator's log, with the worker's level name."""

    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Share:
    """Take part in a step of the weights `group`, over pictures of these lengths in tokens.

    `tensors`: shape and dtype of what the first rank hands to all: latents, text, modulation, rotations. `form`: fields
    of a `pipelines.ops.exchanges.Form`, so that one who does not have these weights knows what the others wait for."""

    group: str
    text_lengths: list[int]
    image_lengths: list[int]
    tensors: list[tuple[list[int], str]]
    form: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shared:
    """How a rank's part of a Share went: `problem` is one sentence, or nothing; `is_memory`: for lack of memory."""

    problem: str = ""
    is_memory: bool = False


Frame = (
    Submit
    | Cancel
    | Sleep
    | Wake
    | Shutdown
    | Loading
    | Ready
    | Heartbeat
    | Waits
    | Note
    | Started
    | Progress
    | Preview
    | Picture
    | Finished
    | Failed
    | Cancelled
    | Log
    | Share
    | Shared
)

_TYPES: dict[str, type[Any]] = {
    t.__name__: t
    for t in (
        Submit, Cancel, Sleep, Wake, Shutdown, Loading, Ready, Heartbeat, Waits, Note, Started,
        Progress, Preview, Picture, Finished, Failed, Cancelled, Log, Share, Shared,
    )
}  # fmt: skip


class ProtocolError(Exception):
    """The peer sent something that is not a frame."""


def encode(frame: Frame) -> bytes:
    """One frame as bytes, header included."""
    body: bytes = msgpack.packb([type(frame).__name__, asdict(frame)], use_bin_type=True)
    return _HEADER.pack(len(body)) + body


def decode(body: bytes) -> Frame:
    """One frame from its body. Raises ProtocolError."""
    try:
        name, values = msgpack.unpackb(body, raw=False)
        frame: Frame = _TYPES[name](**values)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"not a frame: {len(body)} bytes") from exc
    return frame


class FrameReader:
    """Splits a byte stream into frames: feed it the bytes that arrived, iterate the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame completed by `data`. Raises ProtocolError on an absurd length."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ProtocolError(f"frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield decode(body)
