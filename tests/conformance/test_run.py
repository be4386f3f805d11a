"""Cases 22 to 29: run."""

from __future__ import annotations

import pytest

from tests.conformance.child import Child
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted


@pytest.mark.case(22)
def test_022_both_clients_run_to_identical_outputs(server: Scripted, python: Child, js: Child, record: Record) -> None:
    arguments = {"prompt": "a fox", "seed": 7, "sync_mode": True, **TINY}
    by_python = python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=arguments)
    by_js = js("return await fal.run(endpoint, { input })", endpoint=DEV, input=arguments)
    assert by_js["data"] == by_python
    ids = [seen.answer_headers["x-fal-request-id"] for seen in record.all()]
    assert len(set(ids)) == 2
    assert by_js["requestId"] == ids[1]
