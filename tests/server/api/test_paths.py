"""fal's path rules."""

from __future__ import annotations

import pytest

from server.api.paths import FollowUp, app_root, belongs_to, endpoint_id, follow_up


@pytest.mark.parametrize(
    ("endpoint", "root"),
    [
        ("fal-ai/fast-sdxl", "fal-ai/fast-sdxl"),
        ("fal-ai/flux/dev", "fal-ai/flux"),
        ("fal-ai/flux-pro/v1.1-ultra/redux", "fal-ai/flux-pro"),
        ("workflows/me/my-flow", "workflows/me/my-flow"),
        ("workflows/me/my-flow/x", "workflows/me/my-flow"),
        ("comfy/me/my-flow/x", "comfy/me/my-flow"),
        ("1234-my-app", "1234/my-app"),
    ],
)
def test_app_root_drops_the_sub_path(endpoint: str, root: str) -> None:
    assert app_root(endpoint) == root


def test_a_legacy_id_is_split_at_its_first_hyphen_only() -> None:
    assert endpoint_id("/1234-my-app") == "1234/my-app"
    assert endpoint_id("/fal-ai/flux/dev") == "fal-ai/flux/dev"
    assert endpoint_id("x1234-app") == "x1234-app"


@pytest.mark.parametrize(
    ("tail", "action"),
    [
        ("", "result"),
        ("/response", "result"),
        ("/status", "status"),
        ("/status/stream", "status/stream"),
        ("/cancel", "cancel"),
        ("/nonsense", None),
        ("/status/nonsense", None),
    ],
)
@pytest.mark.parametrize("app", ["fal-ai/flux", "fal-ai/flux/dev", "comfy/me/flow", "1234/my-app"])
def test_follow_ups_are_found_under_root_and_full_id(app: str, tail: str, action: str | None) -> None:
    assert follow_up(f"/{app}/requests/abc{tail}") == FollowUp(app, "abc", action)


@pytest.mark.parametrize("path", ["/fal-ai/flux/dev", "/requests/abc", "/fal-ai/flux/requests", "", "/"])
def test_other_paths_are_no_follow_ups(path: str) -> None:
    assert follow_up(path) is None


def test_the_last_requests_tail_counts() -> None:
    assert follow_up("/a/b/requests/1/x/requests/2/status") == FollowUp("a/b/requests/1/x", "2", "status")


def test_a_job_is_found_under_any_id_of_its_app_root_only() -> None:
    assert belongs_to("fal-ai/flux/dev", "fal-ai/flux")
    assert belongs_to("fal-ai/flux/dev", "fal-ai/flux/schnell")
    assert not belongs_to("fal-ai/flux/dev", "fal-ai/flux-pro")
    assert not belongs_to("fal-ai/flux/dev", "fal-ai")


def test_a_comfy_job_is_found_under_two_segments() -> None:
    assert belongs_to("comfy/me/flow", "comfy/me/flow")
    assert belongs_to("comfy/me/flow", "comfy/me")
    assert not belongs_to("comfy/me/flow", "comfy/m")
