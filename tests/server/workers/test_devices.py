"""The device setting as a list of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.workers.devices import certainly_absent, count_gpus, devices, groups


@pytest.mark.parametrize(
    ("setting", "gpus", "expected"),
    [
        ("auto", 0, ("auto",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 0, ("cuda",)),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:0,2", 4, ("cuda:0", "cuda:2")),
        ("cuda:1", 4, ("cuda:1",)),
        ("cpu", 8, ("cpu",)),
        ("cpu,cpu", 0, ("cpu", "cpu")),
    ],
)
def test_a_setting_means_these_workers(setting: str, gpus: int, expected: tuple[str, ...]) -> None:
    assert devices(setting, gpus) == expected


@pytest.mark.parametrize("setting", ["gpu", "cuda:x", "cuda:0,", "cpu,tpu", ""])
def test_what_is_no_device_is_named(setting: str) -> None:
    with pytest.raises(ValueError, match="is no device"):
        devices(setting, 1)


@pytest.mark.parametrize(
    ("names", "parallel", "expected"),
    [
        (("cuda:0", "cuda:1"), 1, ("cuda:0", "cuda:1")),
        (("cuda:0", "cuda:1", "cuda:2", "cuda:3"), 2, ("cuda:0,cuda:1", "cuda:2,cuda:3")),
        (("cuda:2", "cuda:0"), 2, ("cuda:2,cuda:0",)),
        (("cpu",), 2, ("cpu,cpu",)),
        (("auto",), 1, ("auto",)),
    ],
)
def test_devices_share_a_worker_in_their_order(
    names: tuple[str, ...], parallel: int, expected: tuple[str, ...]
) -> None:
    assert groups(names, parallel) == expected


@pytest.mark.parametrize("names", [("cuda:0",), ("cpu", "cpu", "cpu"), ("auto",)])
def test_devices_that_do_not_come_out_even_are_named(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"--parallel 2 .* these are {len(names)}: {', '.join(names)}; name them"):
        groups(names, 2)


@pytest.mark.parametrize(("visible", "expected"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("1,-1,2", 1)])
def test_visible_devices_decide_the_count(visible: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    assert count_gpus({"CUDA_VISIBLE_DEVICES": visible}, tmp_path) == expected


def test_the_driver_lists_its_gpus(tmp_path: Path) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    assert count_gpus({}, tmp_path) == 3


@pytest.mark.parametrize(
    ("setting", "gpus", "driver", "expected"),
    [
        ("cuda", 0, None, "cuda"),
        ("cuda:1", 0, None, "cuda:1"),
        ("cuda:0,3", 2, None, "cuda:3"),
        ("cuda:0,1", 2, None, None),
        ("cuda", 2, None, None),
        ("auto", 0, None, None),
        ("cpu,cpu", 0, None, None),
        ("cuda", 0, "kfd", None),
        ("cuda", 0, "dxg", None),
        ("cuda", 0, "nvidia0", None),
        ("cuda:5", 2, "nvidia0", "cuda:5"),
    ],
)
def test_only_what_is_certainly_absent_is_refused(
    setting: str, gpus: int, driver: str | None, expected: str | None, tmp_path: Path
) -> None:
    if driver:
        (tmp_path / driver).touch()
    assert certainly_absent(setting, gpus, tmp_path) == expected
