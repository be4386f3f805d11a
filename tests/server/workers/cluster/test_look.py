"""The doctor's look at a real Ray cluster. Run with `make test-ray`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.ray_machines import RayMachines, ray_machines
from server.cli.cluster_checkup import shared_workers
from server.cli.finding import Finding
from server.settings import VERSION, Settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    pytest.importorskip("ray", reason="pip install -r requirements-ray.lock")
    with ray_machines(1, 2) as made:
        yield made


def looked(address: str, **more: object) -> dict[str, Finding]:
    return {finding.subject: finding for finding in shared_workers(Settings(cluster=address, **more))}  # type: ignore[arg-type]


def test_every_machine_is_asked_and_answers(machines: RayMachines) -> None:
    found = looked(machines.address, workers="2")
    assert {finding.verdict for finding in found.values()} == {"ok"}, found
    assert "3 machines, 0 GPUs (0 free), 3 CPUs" in found["cluster"].detail
    assert found["places"].detail == "2 workers of 1 CPU would find a place"
    assert found["machines"].detail.startswith(f"all have fluxserve {VERSION} and reach this one at ")


def test_an_address_that_workers_would_not_reach_is_told_by_a_client_from_outside(machines: RayMachines) -> None:
    for _ in range(3):  # on a busy machine Ray gives up its own start of a client's server
        found = looked(machines.client, worker_host="192.0.2.1", worker_port=9)
        if "machine" in found:
            break
    assert {finding.verdict for finding in found.values()} == {"ok", "broken"}, [*found.values()]
    assert "does not reach this machine at 192.0.2.1:9" in found["machine"].detail
