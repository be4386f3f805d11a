"""Numbered cases without a test, each with its reason; the compatibility page prints them."""

from __future__ import annotations

REASONS: dict[int, str] = {}
