"""fal's own clients, in the versions that people run: each does what its users do, set up as `fluxserve env` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility import driving
from tests.compatibility.driving import Seen
from tests.compatibility.rows import JAVASCRIPT, PYTHON, Row, params
from tests.conformance.scripted import Scripted


def check(row: Row, seen: Seen) -> None:
    """Every operation did its work, every limit is one, and nothing else wanted to leave the machine."""
    seen.assert_all(row.operations)
    for operation in row.limits:
        assert "error" in seen.answers[operation]
    assert bool(seen.escapes) == bool(row.limits), seen.escapes


@pytest.mark.case(15)
@pytest.mark.parametrize("row", params(PYTHON))
def test_015_python(row: Row, server: Scripted, tmp_path: Path) -> None:
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)
    lines = driving.printed(server.server, row.setup)
    check(row, driving.drive_python(row, lines, tmp_path, "drive_fal_client.py"))


@pytest.mark.case(14)
@pytest.mark.parametrize("row", params(JAVASCRIPT))
def test_014_javascript(row: Row, server: Scripted, tmp_path: Path) -> None:
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)
    lines = driving.printed(server.server, row.setup)
    check(row, driving.drive_node(row, lines, tmp_path, "client.program.mjs"))
