"""What a client sent -> what is stored: the input checked, every default decided, the headers understood."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError
from starlette.datastructures import Headers

from models.registry import ModelSpec
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.params import DEPTH_ESTIMATOR, GenerationParams, wrap_seed
from server.api.endpoints import Endpoint
from server.api.errors import InputError, RequestError, problem
from server.api.lifecycle import access, lifetime
from server.api.retries import retry_limits
from server.api.schemas.base import Input
from server.api.schemas.control import SHOWS_DEPTH
from server.api.schemas.needs import Needs, PictureNeed
from server.api.schemas.pictures import Loc
from server.api.schemas.sizes import Size
from server.api.served import NotServedError, Served
from server.api.tags import read_tags
from server.api.validation import input_error
from server.files.objects import Access
from server.http.outgoing import is_host_name
from server.jobs.store.base import HINT_BUCKETS
from server.jobs.store.job import JobStatus, NewJob, Outcome, Repeat

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""

MIN_TIMEOUT_S = 0.1
MAX_TIMEOUT_S = 7 * 86400.0
LOW_PRIORITY = 1
_DEADLINE_HEADER = "X-Fluxserve-Deadline"
_TIMEOUT_HEADERS = ("X-Fal-Request-Start-Timeout", "X-Fal-Request-Timeout")  # the newer name wins


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Who asks, and what headers and query ask for beside the input.

    Args: as in NewJob; `done_within_s` is when its caller wants it done, which orders it and fails nothing;
        `max_queued` refuses the request when so many jobs wait already; `ttl_s` is how long its pictures are kept,
        None for the server's default; `access` is who may read them; `retries` limits
        single causes; `embed_parameters` puts prompt and seed into picture files, None as the operator decided;
        `traceparent` is the caller's own span (W3C Trace Context), of which ours are parts;
        `idempotency_key` names this submit, so that a repeated one is the same request.
    """

    tenant: str
    priority: int = 0
    start_within_s: float | None = None
    done_within_s: float | None = None
    max_attempts: int = 10
    store_io: bool = True
    webhook_url: str | None = None
    max_queued: int | None = None
    ttl_s: float | None = None
    access: Access = "allow"
    traceparent: str | None = None
    hint_bucket: int | None = None
    retries: dict[str, int] = field(default_factory=dict)
    embed_parameters: bool | None = None
    idempotency_key: str | None = None
    key_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def read_options(headers: Headers, query: bytes, tenant: str, key_id: str = "") -> RequestOptions:
    """Raises: RequestError 400 `bad_request` for a value that cannot be meant; unknown priorities are ignored."""
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    timeout = next((name for name in _TIMEOUT_HEADERS if name in headers), None)
    return RequestOptions(
        tenant=tenant,
        priority=LOW_PRIORITY if headers.get("x-fal-queue-priority", "").lower() == "low" else 0,
        start_within_s=None if timeout is None else _timeout(timeout, headers[timeout]),
        done_within_s=_timeout(_DEADLINE_HEADER, headers[_DEADLINE_HEADER]) if _DEADLINE_HEADER in headers else None,
        max_attempts=1 if _is_yes(headers.get("x-fal-no-retry", "")) else 10,
        store_io=headers.get("x-fal-store-io", "1").strip() != "0",
        webhook_url=_webhook(values["fal_webhook"][-1]) if values.get("fal_webhook") else None,
        # fal's number may wait before this one; ours is the number that is one too many.
        max_queued=_count(values["fal_max_queue_length"][-1]) + 1 if values.get("fal_max_queue_length") else None,
        ttl_s=lifetime(headers.get("x-fal-object-lifecycle-preference")),
        access=access(headers.get("x-fal-object-lifecycle-preference")),
        hint_bucket=_bucket(headers.get("x-fal-runner-hint", "")),
        retries=retry_limits(headers.get("x-fal-retry-config")),
        embed_parameters=_flag(headers.get("x-fluxserve-embed-parameters", "")),
        idempotency_key=_idempotency_key(headers.get("idempotency-key")),
        key_id=key_id,
        tags=read_tags(headers.get("x-fal-tags")),
        traceparent=_traceparent(headers.get("traceparent", "")),
    )


def _traceparent(header: str) -> str | None:
    """The caller's span, if it is one: by its specification anything else counts as none."""
    return header.strip() if _TRACEPARENT.fullmatch(header.strip()) else None


def new_job(
    endpoint: Endpoint,
    job_id: str,
    body: dict[str, Any],
    options: RequestOptions,
    served: Served,
    *,
    base_url: str = "",
    is_ephemeral: bool = False,
    preview_every: int = 0,
) -> NewJob:
    """The job for one input. Raises: InputError if the model rejects it, NotServedError if no checkpoint can do it."""
    # What is missing comes before what is wrong: mending the input would not help.
    usual = served.model_for(endpoint.variants, None)
    if endpoint.beside is not None:
        served.beside(usual, endpoint.beside)
    parsed = parse(endpoint, body)
    spec = served.model_for(endpoint.variants, parsed.steps())
    wish = decide(parsed, spec, served, preview_every=preview_every)
    fetches = bool(wish.pictures or parsed.adapters() or parsed.wants_expansion())
    return NewJob(
        id=job_id,
        endpoint=endpoint.id,
        input=body,
        params=wish.params.to_dict(),
        output={"format": parsed.image_format(), "sync_mode": parsed.sync_mode, "ttl_s": options.ttl_s}
        | ({"access": options.access} if options.access != "allow" else {})
        | ({"retries": options.retries} if options.retries else {})
        | ({"traceparent": options.traceparent} if options.traceparent else {})
        | ({} if options.done_within_s is None else {"done_within_s": options.done_within_s})
        | ({} if options.embed_parameters is None else {"embed_parameters": options.embed_parameters})
        | ({"needs_inputs": True} if fetches else {}),
        priority=options.priority,
        start_within_s=options.start_within_s,
        max_attempts=options.max_attempts,
        is_ephemeral=is_ephemeral,
        webhook_url=options.webhook_url,
        base_url=base_url,
        # Pictures of a sync_mode answer are in its body, and fal keeps none of them.
        store_io=options.store_io and not parsed.sync_mode,
        hint_bucket=options.hint_bucket,
        tenant=options.tenant,
        key_id=options.key_id,
        tags=options.tags,
        is_repeatable=options.store_io and parsed.wanted_seed() is not None and not fetches,
    )


def rejected_job(
    endpoint: Endpoint, job_id: str, body: dict[str, Any], options: RequestOptions, exc: InputError, base_url: str
) -> NewJob:
    """fal accepts any object at submit: an input that the model rejects is a job that has failed already."""
    return NewJob(
        id=job_id,
        endpoint=endpoint.id,
        input=body,
        params=None,
        webhook_url=options.webhook_url,
        base_url=base_url,
        store_io=options.store_io,
        tenant=options.tenant,
        key_id=options.key_id,
        tags=options.tags,
        outcome=rejection(exc),
    )


def known_by(new: NewJob, name: str | None, query: bytes, body: bytes) -> NewJob:
    """The same job, with what a repetition of its submit would be known by: everything that it asks for."""
    digest = hashlib.sha256(query + b"\n" + body).digest()
    return replace(new, repeat=Repeat(name, digest))


def parse(endpoint: Endpoint, body: dict[str, Any]) -> Input:
    """The input, validated. Raises InputError."""
    try:
        return endpoint.schema.model_validate(body)
    except ValidationError as exc:
        raise input_error(exc) from exc


@dataclass(frozen=True, slots=True)
class Wish:
    """What the worker is to do, and the pictures that it needs for that, in the order of their indices."""

    params: GenerationParams
    pictures: tuple[PictureNeed, ...]


def decide(
    parsed: Input,
    spec: ModelSpec,
    served: Served,
    *,
    pictures: Sequence[Size] = (),
    adapters: tuple[Adapter, ...] = (),
    seed: int | None = None,
    preview_every: int = 0,
) -> Wish:
    """Every value that the worker needs; a missing seed is drawn here.

    Decided twice for an input with pictures or adapters: when it is submitted, to reject it early, and again when
    `pictures` (their sizes) are read and `adapters` fetched. Raises: InputError, NotServedError.
    """
    needs = Needs(lambda variant: served.beside(spec, variant).name, partial(_named_controlnet, served, spec))
    conditions = parsed.conditions(needs)
    width, height = parsed.pixels(spec.max_pixels, pictures)
    if width * height > spec.max_pixels:
        raise _too_large(width, height, spec.max_pixels)
    wanted_seed = parsed.wanted_seed() if seed is None else seed
    params = GenerationParams(
        model=spec.name,
        prompt=parsed.text(),
        width=width,
        height=height,
        num_inference_steps=parsed.steps(),
        guidance_scale=parsed.guidance(spec.default_guidance),
        # 32 bits, so that JavaScript clients keep every digit.
        seed=secrets.randbelow(2**32) if wanted_seed is None else wrap_seed(wanted_seed),
        num_images=parsed.count(),
        max_sequence_length=spec.max_sequence_length,
        safety_threshold=parsed.threshold(),
        acceleration=parsed.speed(),
        preview_every=preview_every,
        conditions=conditions,
        adapters=adapters,
        negative_prompt=parsed.avoided(),
    )
    if DEPTH_ESTIMATOR in params.models:
        _check_estimator(parsed, spec, served)
    return Wish(params, tuple(needs.pictures))


def _check_estimator(parsed: Input, spec: ModelSpec, served: Served) -> None:
    """Raises: NotServedError if nothing here tells depth; InputError where the caller may send it instead."""
    try:
        served.beside(spec, DEPTH_ESTIMATOR)
    except NotServedError as exc:
        if SHOWS_DEPTH not in type(parsed).model_fields:
            raise
        msg = (
            "This server cannot tell the depth of a picture: send one that shows it, with preprocess_depth false, "
            f"or start it with {exc.missing}"
        )
        raise InputError([problem([SHOWS_DEPTH], msg, "feature_not_supported", value=True)]) from exc


def _named_controlnet(served: Served, spec: ModelSpec, name: str, loc: Loc) -> str:
    """The name of the ControlNet that an input asks for. Raises: InputError if it is not served."""
    found = served.named(spec, "controlnet", name)
    if found is None:
        msg = "This server holds no such ControlNet: start it with --model and its folder or Hugging Face id"
        raise InputError([problem(loc, msg, "feature_not_supported", value=name)])
    return found.name


def rejection(exc: InputError) -> Outcome:
    """How a job whose input the model rejects has ended."""
    count = len(exc.problems)
    return Outcome(
        status=JobStatus.FAILED,
        http_status=exc.status,
        body=exc.body,
        error=f"Invalid input: {exc.problems[0]['msg']}" + (f" (and {count - 1} more)" if count > 1 else ""),
        error_type=str(exc.problems[0]["type"]),
        metrics={"inference_time": None},
    )


def not_served(exc: NotServedError) -> Outcome:
    """How a job has ended for which no checkpoint is here any more."""
    return Outcome(
        status=JobStatus.FAILED,
        http_status=exc.status,
        body=exc.body,
        error=exc.body["detail"],
        error_type="model_not_served",
        metrics={"inference_time": None},
    )


def _too_large(width: int, height: int, max_pixels: int) -> InputError:
    """The limit is an area; `ctx` states it as the largest picture of the shape that was asked for."""
    scale = math.sqrt(max_pixels / (width * height))
    limits = {"max_height": max(1, int(height * scale)), "max_width": max(1, int(width * scale))}
    msg = (
        f"{width}x{height} is larger than this model draws ({max_pixels} pixels): "
        f"at most {limits['max_width']}x{limits['max_height']} in this shape"
    )
    return InputError([problem(["image_size"], msg, "image_too_large", limits, {"width": width, "height": height})])


def _timeout(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not MIN_TIMEOUT_S < seconds < math.inf:  # nan fails this, too
        raise RequestError(400, "bad_request", f"{name} must be seconds, more than {MIN_TIMEOUT_S}")
    return min(seconds, MAX_TIMEOUT_S)


def _bucket(hint: str) -> int | None:
    """The same hint, the same bucket; none without a hint."""
    return zlib.crc32(hint.encode("utf-8", "surrogateescape")) % HINT_BUCKETS if hint else None


def _flag(value: str) -> bool | None:
    """1 or 0, true or false; None for anything else."""
    return {"1": True, "true": True, "0": False, "false": False}.get(value.strip().lower())


def _idempotency_key(text: str | None) -> str | None:
    if text is not None and not (0 < len(text) <= 255 and text.isascii() and text.isprintable()):
        raise RequestError(400, "bad_request", "Idempotency-Key must be 1 to 255 printable ASCII characters")
    return text


def _is_yes(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes")


def _webhook(text: str) -> str:
    url = text.strip(" ")  # as urlsplit reads it, but what calls the address later would not
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        has_host = bool(host) and " " not in host and is_host_name(host)
        is_usable = parts.scheme in ("http", "https") and has_host and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable or len(url) > 2048 or not url.isprintable():
        raise RequestError(
            400, "bad_request", "fal_webhook must be an http or https address of at most 2048 characters"
        )
    return url


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise RequestError(400, "bad_request", "fal_max_queue_length must be a whole number from 0 to 999999999")
    return int(text)
