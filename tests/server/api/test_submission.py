"""Inputs and headers -> jobs: defaults decided, limits said, faults named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from models.registry import REGISTRY, UNNAMED
from pipelines.protocol.conditions import Redux, Refine
from pipelines.protocol.params import GenerationParams
from server.api.endpoints import ENDPOINTS
from server.api.errors import InputError, Problem, RequestError
from server.api.served import NotServedError, Served
from server.api.submission import MAX_TIMEOUT_S, RequestOptions, new_job, parse, read_options, rejection
from server.jobs.store.base import HINT_BUCKETS
from server.jobs.store.job import SHARED, JobStatus

SPEC = REGISTRY["FLUX.1-dev"]
SERVED = Served((SPEC,))
EVERYTHING = Served((*REGISTRY.values(), *(replace(SPEC, variant=variant) for variant in UNNAMED)))
PRO = "fal-ai/flux-pro"
LIGHTNING = "fal-ai/fast-lightning-sdxl"


def params(endpoint: str = PRO, **body: Any) -> GenerationParams:
    job = new_job(ENDPOINTS[endpoint], "id", {"prompt": "a fox"} | body, RequestOptions(SHARED), SERVED)
    assert job.params is not None
    return GenerationParams.from_dict(job.params)


def faults(endpoint: str = PRO, **body: Any) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        new_job(ENDPOINTS[endpoint], "id", {"prompt": "a fox"} | body, RequestOptions(SHARED), EVERYTHING)
    orjson.dumps(caught.value.body)
    return caught.value.problems


def fault(endpoint: str = PRO, **body: Any) -> Problem:
    (only,) = faults(endpoint, **body)
    return only


def test_defaults_of_flux_pro() -> None:
    decided = params(seed=7)
    assert decided == GenerationParams(
        model="FLUX.1-dev",
        prompt="a fox",
        width=1024,
        height=768,
        num_inference_steps=28,
        guidance_scale=3.5,
        seed=7,
        max_sequence_length=512,
        safety_threshold=0.5,
    )


@pytest.mark.parametrize(
    ("endpoint", "steps", "guidance", "size"),
    [
        ("fal-ai/flux/dev", 28, 3.5, (1024, 768)),
        ("fal-ai/flux/schnell", 4, 3.5, (1024, 768)),
        ("fal-ai/flux/krea", 28, 4.5, (1024, 768)),
        ("fal-ai/flux-pro/v1.1", 28, 3.5, (1024, 768)),
        ("fal-ai/flux-pro/v1.1-ultra", 28, 3.5, (2752, 1536)),
        ("fal-ai/flux-pro/kontext/text-to-image", 28, 3.5, (1024, 1024)),
        ("fal-ai/flux-kontext-lora/text-to-image", 30, 2.5, (1024, 768)),
    ],
)
def test_defaults_by_endpoint(endpoint: str, steps: int, guidance: float, size: tuple[int, int]) -> None:
    decided = params(endpoint)
    assert (decided.num_inference_steps, decided.guidance_scale) == (steps, guidance)
    assert (decided.width, decided.height) == size


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        (-1, [-1, 0, 1, 2]),
        (2**63 - 1, [2**63 - 1, 2**63, 2**63 + 1, 2**63 + 2]),
        (2**64 - 2, [2**64 - 2, 2**64 - 1, 0, 1]),
        (-(2**63) - 1, [2**63 - 1, 2**63, 2**63 + 1, 2**63 + 2]),
    ],
)
def test_every_integer_is_a_seed_and_torch_takes_it(asked: int, drawn: list[int]) -> None:
    decided = params(seed=asked, num_images=4)
    assert list(decided.seeds) == drawn
    for seed in decided.seeds:
        torch.Generator().manual_seed(seed)


def test_a_missing_or_null_seed_is_drawn_from_32_bits() -> None:
    drawn = {params(**body).seed for body in ({}, {"seed": None}, {}, {})}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        ("square_hd", (1024, 1024)),
        ("portrait_16_9", (576, 1024)),
        ({"width": 640, "height": 480}, (640, 480)),
        ({"width": 640}, (640, 512)),
        ({}, (512, 512)),
        ({"width": 1, "height": 1}, (1, 1)),
        ({"width": 14142, "height": 296}, (14142, 296)),
    ],
)
def test_sizes(size: Any, pixels: tuple[int, int]) -> None:
    decided = params(image_size=size)
    assert (decided.width, decided.height) == pixels


@pytest.mark.parametrize(
    ("size", "loc", "kind", "ctx"),
    [
        ({"width": 14143}, ["body", "image_size", "width"], "less_than_equal", {"le": 14142}),
        ({"height": 0}, ["body", "image_size", "height"], "greater_than", {"gt": 0}),
        ({"height": "tall"}, ["body", "image_size", "height"], "int_parsing", None),
        ("huge", ["body", "image_size"], "literal_error", None),
        (5, ["body", "image_size"], "image_size_type", None),
        (None, ["body", "image_size"], "image_size_type", None),
        ([512, 512], ["body", "image_size"], "image_size_type", None),
    ],
)
def test_a_wrong_size_is_one_clear_fault(size: Any, loc: list[str], kind: str, ctx: dict[str, Any] | None) -> None:
    entry = fault(image_size=size)
    assert (entry["loc"], entry["type"]) == (loc, kind)
    if ctx:
        assert entry["ctx"] == ctx
    if kind == "literal_error":
        assert "landscape_4_3" in entry["msg"]


def test_a_picture_beyond_the_model_says_the_largest_of_its_shape() -> None:
    entry = fault(image_size={"width": 8000, "height": 4000})
    assert (entry["type"], entry["loc"]) == ("image_too_large", ["body", "image_size"])
    limits = entry["ctx"]
    assert limits["max_width"] * limits["max_height"] <= SPEC.max_pixels
    assert limits["max_width"] / limits["max_height"] == pytest.approx(2, rel=0.01)
    params(image_size={"width": limits["max_width"], "height": limits["max_height"]})


@pytest.mark.parametrize(
    ("body", "field", "kind", "ctx"),
    [
        ({"num_inference_steps": -1}, "num_inference_steps", "greater_than_equal", {"ge": 1}),
        ({"num_inference_steps": 51}, "num_inference_steps", "less_than_equal", {"le": 50}),
        ({"num_inference_steps": 2.5}, "num_inference_steps", "int_from_float", None),
        ({"guidance_scale": 0.5}, "guidance_scale", "greater_than_equal", {"ge": 1}),
        ({"num_images": 5}, "num_images", "less_than_equal", {"le": 4}),
        ({"output_format": "gif"}, "output_format", "literal_error", {"expected": "'jpeg' or 'png'"}),
        ({"safety_tolerance": "7"}, "safety_tolerance", "literal_error", None),
        ({"safety_tolerance": 0}, "safety_tolerance", "literal_error", None),
        ({"safety_tolerance": True}, "safety_tolerance", "literal_error", None),
        ({"seed": 1e300}, "seed", "int_parsing_size", None),
        ({"prompt": 5}, "prompt", "string_type", None),
        ({"prompt": "x" * 40_000}, "prompt", "string_too_long", {"max_length": 32_768}),
        ({"sync_mode": "perhaps"}, "sync_mode", "bool_parsing", None),
    ],
)
def test_every_fault_says_its_field_and_limit(body: dict[str, Any], field: str, kind: str, ctx: Any) -> None:
    entry = fault(**body)
    assert (entry["loc"], entry["type"]) == (["body", field], kind)
    if ctx:
        assert entry["ctx"] == ctx
        assert str(next(iter(ctx.values()))) in entry["msg"]


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InputError) as caught:
        parse(ENDPOINTS[PRO], {})
    (entry,) = caught.value.problems
    assert (entry["loc"], entry["type"]) == (["body", "prompt"], "missing")


def test_a_rejected_null_is_shown_as_null() -> None:
    entry = fault(prompt=None)
    assert (entry["type"], entry["input"]) == ("string_type", None)


def test_several_faults_are_all_reported() -> None:
    assert len(faults(num_images=0, output_format="gif", image_size={"width": 0, "height": 0})) == 4


def test_unknown_fields_are_ignored() -> None:
    assert params(seed=1, unheard_of={"a": [1]}) == params(seed=1)


@pytest.mark.parametrize(("level", "threshold"), [("1", 0.25), (1, 0.25), ("2", 0.5), (6, 0.97)])
def test_tolerance_is_a_digit_as_text_or_number(level: Any, threshold: float) -> None:
    assert params(safety_tolerance=level).safety_threshold == threshold


def test_tolerance_rises_with_the_level() -> None:
    thresholds = [params(safety_tolerance=str(level)).safety_threshold or 0 for level in range(1, 7)]
    assert thresholds == sorted(set(thresholds))


def test_the_checker_can_be_switched_off_where_the_endpoint_allows_it() -> None:
    assert params(enable_safety_checker=False).safety_threshold is None
    assert params("fal-ai/flux/dev", enable_safety_checker=False).safety_threshold is None
    assert params("fal-ai/flux-pro/kontext/text-to-image", enable_safety_checker=False).safety_threshold == 0.5


def test_acceleration_reaches_the_worker() -> None:
    assert params("fal-ai/flux/dev", acceleration="high").acceleration == "high"
    assert params("fal-ai/flux/dev", acceleration="max").acceleration == "max"
    assert fault("fal-ai/flux-lora", acceleration="high")["loc"] == ["body", "acceleration"]


def test_more_adapters_than_a_step_should_carry_are_refused_at_the_submit() -> None:
    loras = [{"path": "a"}] * 17
    entry = fault("fal-ai/flux-2/klein/4b/lora", loras=loras)
    assert (entry["loc"], entry["ctx"]["max_length"]) == (["body", "loras"], 16)
    schema = ENDPOINTS["fal-ai/flux-lora"].schema.model_json_schema()
    assert schema["properties"]["loras"]["maxItems"] == 16


def test_what_is_not_supported_says_so() -> None:
    part = {"control_lora_image_url": "https://x.test/a.png", "control_lora_strength": 0.5}
    strength = fault("fal-ai/flux-control-lora-canny", **part)
    assert (strength["type"], strength["loc"]) == ("feature_not_supported", ["body", "control_lora_strength"])
    assert params("fal-ai/flux-lora", loras=[]).guidance_scale == 3.5
    assert params("fal-ai/flux-pro/v1.1-ultra", image_url=None).width == 2752


def test_the_steps_of_a_request_select_the_lightning_that_was_distilled_for_them() -> None:
    two, eight = (
        replace(REGISTRY["random:SDXL-Lightning"], name=f"{steps} steps", distilled_steps=steps) for steps in (2, 8)
    )
    for steps, name in (("1", "2 steps"), ("2", "2 steps"), ("4", "2 steps"), ("8", "8 steps")):
        body = {"prompt": "a fox", "num_inference_steps": steps}
        job = new_job(ENDPOINTS[LIGHTNING], "id", body, RequestOptions(SHARED), Served((two, eight)))
        assert job.params is not None
        assert (job.params["model"], job.params["num_inference_steps"]) == (name, int(steps))


def test_what_is_missing_is_said_before_what_is_wrong() -> None:
    with pytest.raises(NotServedError, match="lightning"):
        new_job(ENDPOINTS[LIGHTNING], "id", {"num_inference_steps": 3}, RequestOptions(SHARED), SERVED)


def test_a_picture_endpoint_needs_a_checkpoint_that_can_and_says_which() -> None:
    picture = {"image_url": "https://x.test/a.png", "mask_url": "https://x.test/b.png"}
    for endpoint, flag in (
        ("fal-ai/flux-pro/v1/fill", "--model FLUX.1-Fill-dev"),
        ("fal-ai/flux-kontext/dev", "--model FLUX.1-Kontext-dev"),
        ("fal-ai/flux-pro/v1/redux", "--model FLUX.1-Redux-dev"),
    ):
        for input_ in (picture, {}, {"num_inference_steps": -1}):  # an input that is wrong besides
            with pytest.raises(NotServedError, match=flag):
                params(endpoint, **input_)


DEPTHS = ("fal-ai/flux-pro/v1/depth", "fal-ai/flux-lora-depth", "fal-ai/flux-control-lora-depth/image-to-image")
GUIDE = dict.fromkeys(("control_image_url", "image_url", "control_lora_image_url"), "https://x.test/a.png") | {
    "prompt": "a fox"
}


def deep(endpoint: str, *served: str, **body: Any) -> GenerationParams:
    of = Served(tuple(REGISTRY[name] for name in served))
    job = new_job(ENDPOINTS[endpoint], "id", body, RequestOptions(SHARED), of)
    assert job.params is not None
    return GenerationParams.from_dict(job.params)


@pytest.mark.parametrize("endpoint", DEPTHS)
def test_what_nothing_here_tells_the_depth_of_needs_an_estimator(endpoint: str) -> None:
    for input_ in (GUIDE, {}):  # an input that is wrong besides
        with pytest.raises(NotServedError, match="--model Depth-Anything-V2-Small"):
            deep(endpoint, "FLUX.1-Depth-dev", **input_)
    assert deep(endpoint, "FLUX.1-Depth-dev", "Depth-Anything-V2-Small", **GUIDE).model == "FLUX.1-Depth-dev"
    assert deep(endpoint, "flux-shapes", **GUIDE).model == "flux-shapes-depth"


def test_where_the_depth_may_be_sent_that_is_said() -> None:
    endpoint = "fal-ai/flux-control-lora-depth"
    guide = {name: value for name, value in GUIDE.items() if name in ("control_lora_image_url", "prompt")}
    assert deep(endpoint, "FLUX.1-Depth-dev", **guide, preprocess_depth=False).model == "FLUX.1-Depth-dev"
    with pytest.raises(InputError) as caught:
        deep(endpoint, "FLUX.1-Depth-dev", **guide)
    (problem,) = caught.value.problems
    assert (problem["loc"], problem["type"]) == (["body", "preprocess_depth"], "feature_not_supported")
    assert problem["msg"].endswith("preprocess_depth false, or start it with --model Depth-Anything-V2-Small")
    for served in (("FLUX.1-Depth-dev", "Depth-Anything-V2-Small"), ("flux-shapes",)):
        assert "depth-estimator" in deep(endpoint, *served, **guide).models


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("1:1", (2048, 2048)), ("21:9", (3136, 1344)), ("5:4", (2304, 1824)), ("1000:1000", (2048, 2048))],
)
def test_ultra_takes_any_ratio_within_its_limits(ratio: str, size: tuple[int, int]) -> None:
    decided = params("fal-ai/flux-pro/v1.1-ultra", aspect_ratio=ratio)
    assert (decided.width, decided.height) == size


@pytest.mark.parametrize("ratio", ["22:9", "9:22", "1:0", "0:1", "16x9", "", "1:1:1", "-1:1", "99999999:1"])
def test_ultra_refuses_other_ratios(ratio: str) -> None:
    assert fault("fal-ai/flux-pro/v1.1-ultra", aspect_ratio=ratio)["loc"] == ["body", "aspect_ratio"]


def test_a_small_model_draws_ultra_smaller_instead_of_refusing() -> None:
    small = replace(SPEC, max_pixels=1024 * 1024)
    job = new_job(
        ENDPOINTS["fal-ai/flux-pro/v1.1-ultra"], "id", {"prompt": "x"}, RequestOptions(SHARED), Served((small,))
    )
    assert job.params is not None
    width, height = job.params["width"], job.params["height"]
    assert width * height <= small.max_pixels
    assert width / height == pytest.approx(16 / 9, rel=0.05)


@pytest.mark.parametrize("endpoint", ["fal-ai/flux-pro/v1.1-ultra", "fal-ai/flux-pro/v1.1-ultra/redux"])
@pytest.mark.parametrize(
    ("body", "shares"),
    [
        ({}, (0.1, 0.9)),
        ({"image_prompt_strength": 0}, (0, 1)),
        ({"image_prompt_strength": 0.1}, (0.1, 0.9)),
        ({"image_prompt_strength": 0.75}, (0.75, 0.25)),
        ({"image_prompt_strength": 1}, (1, 0)),
        *(({"prompt": text, "image_prompt_strength": share}, (1, 1)) for text in ("", " \n") for share in (0, 0.1, 1)),
    ],
)
def test_ultra_shares_between_picture_and_text(endpoint: str, body: dict[str, Any], shares: tuple[float, ...]) -> None:
    given = {"prompt": "a fox", "image_url": "https://x.test/a.png"} | body
    served = Served((SPEC, REGISTRY["FLUX.1-Redux-dev"]))
    job = new_job(ENDPOINTS[endpoint], "id", given, RequestOptions(SHARED), served)
    assert job.params is not None
    redux, refine = GenerationParams.from_dict(job.params).conditions
    assert redux == Redux((0,), "FLUX.1-Redux-dev", *map(float, shares))
    assert refine == Refine()


@pytest.mark.parametrize("share", [-0.01, 1.01])
def test_ultra_shares_no_more_than_all(share: float) -> None:
    body = {"image_url": "https://x.test/a.png", "image_prompt_strength": share}
    assert fault("fal-ai/flux-pro/v1.1-ultra", **body)["loc"] == ["body", "image_prompt_strength"]


def test_sync_mode_keeps_nothing() -> None:
    job = new_job(
        ENDPOINTS[PRO], "id", {"prompt": "x", "sync_mode": True, "output_format": "png"}, RequestOptions(SHARED), SERVED
    )
    assert not job.store_io
    assert job.output == {"format": "png", "sync_mode": True, "ttl_s": None}


def test_a_rejected_input_is_a_failed_outcome_with_fals_body() -> None:
    exc = InputError(faults(num_images=9, output_format="gif"))
    outcome = rejection(exc)
    assert (outcome.status, outcome.http_status, outcome.body) == (JobStatus.FAILED, 422, exc.body)
    assert outcome.error is not None
    assert "less than or equal to 4" in outcome.error


def options(query: str = "", **headers: str) -> RequestOptions:
    return read_options(
        Headers({name.replace("_", "-"): value for name, value in headers.items()}), query.encode(), SHARED
    )


def test_headers_and_query_are_understood() -> None:
    assert options() == RequestOptions(SHARED)
    assert options(x_fal_queue_priority="low").priority == 1
    assert options(x_fal_queue_priority="urgent").priority == 0
    assert options(x_fal_no_retry="true").max_attempts == 1
    assert options(x_fal_no_retry="0").max_attempts == 10
    assert options(x_fal_store_io="0").store_io is False
    assert options(x_fal_request_timeout="2.0").start_within_s == 2
    assert options(x_fal_request_timeout="2", x_fal_request_start_timeout="30").start_within_s == 30
    assert options(x_fal_request_timeout="1e12").start_within_s == MAX_TIMEOUT_S
    assert options(x_fluxserve_deadline="8").done_within_s == 8
    assert options("fal_webhook=https%3A%2F%2Fx.test%2Fhook%3Fa%3D1").webhook_url == "https://x.test/hook?a=1"
    assert options("fal_webhook=%20https%3A%2F%2Fx.test%2Fhook+").webhook_url == "https://x.test/hook"
    assert options("fal_max_queue_length=0").max_queued == 1  # with one that waits it is one too many
    assert options(x_fal_runner_hint="a").hint_bucket == options(x_fal_runner_hint="a").hint_bucket
    assert len({options(x_fal_runner_hint=str(number)).hint_bucket for number in range(1000)}) == HINT_BUCKETS
    assert options().hint_bucket is None
    limits = options(x_fal_retry_config='{"server_error": {"retries": 2}, "connection_error": {"retries": 99}}').retries
    assert limits == {"server_error": 2, "connection_error": 9}
    for nonsense in (
        "",
        "{",
        "[1]",
        '{"server_error": 1}',
        '{"server_error": {"retries": -1}}',
        '{"x": {"retries": 1}}',
    ):
        assert options(x_fal_retry_config=nonsense).retries == {}


@pytest.mark.parametrize(("header", "meant"), [("1", True), ("TRUE", True), ("0", False), ("", None), ("yes?", None)])
def test_who_asks_gets_prompt_and_seed_into_the_file(header: str, meant: bool | None) -> None:
    assert options(x_fluxserve_embed_parameters=header).embed_parameters is meant


def test_a_bad_timeout_is_named_as_it_was_sent() -> None:
    with pytest.raises(RequestError, match="X-Fal-Request-Start-Timeout must be seconds"):
        options(x_fal_request_start_timeout="soon")
    with pytest.raises(RequestError, match="X-Fluxserve-Deadline must be seconds"):
        options(x_fluxserve_deadline="tomorrow")


@pytest.mark.parametrize("timeout", ["abc", "", "nan", "inf", "-1", "0", "0.1"])
def test_an_unusable_timeout_is_a_bad_request(timeout: str) -> None:
    with pytest.raises(RequestError) as caught:
        options(x_fal_request_timeout=timeout)
    assert (caught.value.status, caught.value.body["error_type"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "query",
    [
        "fal_webhook=ftp://x.test",
        "fal_webhook=nonsense",
        "fal_webhook=http://",
        "fal_webhook=http://[::1",
        "fal_webhook=http://x:bad/",
        "fal_webhook=",
        "fal_webhook=http://a..b/x",
        "fal_webhook=http://a b.test/",
        "fal_webhook=http://.example.com/",
        "fal_webhook=http://xn--a/",
        f"fal_webhook=http://{'a' * 64}.test/",
        "fal_webhook=http://x.test/%0d%0a",
        "fal_max_queue_length=-1",
        "fal_max_queue_length=x",
        "fal_max_queue_length=9999999999",
    ],
)
def test_an_unusable_query_is_a_bad_request(query: str) -> None:
    with pytest.raises(RequestError) as caught:
        options(query)
    assert caught.value.body["error_type"] == "bad_request"


@pytest.mark.parametrize("text", ["-1", "9999999999", "9" * 5000])
def test_an_unusable_queue_length_is_told_the_limits(text: str) -> None:
    assert options("fal_max_queue_length=999999999").max_queued == 1_000_000_000
    with pytest.raises(RequestError) as caught:
        options(f"fal_max_queue_length={text}")
    assert caught.value.body["detail"] == "fal_max_queue_length must be a whole number from 0 to 999999999"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(sorted({name for row in ENDPOINTS.values() for name in row.schema.model_fields}))


@given(st.sampled_from(sorted(ENDPOINTS)), st.dictionaries(fields, values, max_size=6))
def test_any_input_makes_params_or_a_clean_fault(endpoint: str, body: dict[str, Any]) -> None:
    try:
        job = new_job(ENDPOINTS[endpoint], "id", body, RequestOptions(SHARED), EVERYTHING)
    except InputError as exc:
        for entry in exc.problems:
            assert entry["loc"][0] == "body"
            assert entry["msg"]
    else:
        assert job.params is not None
        GenerationParams.from_dict(job.params)
