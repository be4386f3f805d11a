"""fal's lifecycle header: seconds, or the server's default."""

from __future__ import annotations

import pytest

from server.api.lifecycle import MAX_LIFETIME_S, access, lifetime


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ('{"expiration_duration_seconds": 60}', 60),
        ('{"expiration_duration_seconds": 3600.5, "initial_acl": {"default": "forbid"}}', 3600.5),
        ('{"expiration_duration_seconds": 1e30}', MAX_LIFETIME_S),
        (None, None),
        ("", None),
        ("{", None),
        ("[]", None),
        ("{}", None),
        ('{"expiration_duration_seconds": null}', None),
        ('{"expiration_duration_seconds": "60"}', None),
        ('{"expiration_duration_seconds": true}', None),
        ('{"expiration_duration_seconds": -1}', None),
    ],
)
def test_what_is_not_understood_is_ignored(header: str | None, seconds: float | None) -> None:
    assert lifetime(header) == seconds


@pytest.mark.parametrize(
    ("header", "who"),
    [
        ('{"initial_acl": {"default": "forbid", "rules": [{"user": "a", "decision": "allow"}]}}', "forbid"),
        ('{"expiration_duration_seconds": 60, "initial_acl": {"default": "hide"}}', "hide"),
        ('{"initial_acl": {"default": "allow"}}', "allow"),
        ('{"initial_acl": {"default": "nobody"}}', "allow"),
        ('{"initial_acl": {"default": ["hide"]}}', "allow"),
        ('{"initial_acl": "forbid"}', "allow"),
        ("[]", "allow"),
        (None, "allow"),
    ],
)
def test_who_may_read(header: str | None, who: str) -> None:
    assert access(header) == who
