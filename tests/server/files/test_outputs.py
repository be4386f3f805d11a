"""Pixels in, pictures out: real encoders in real processes, read back with Pillow."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipelines.protocol.frames import Picture, Preview
from server.api.wire import absolute, result_body
from server.files import outputs as outputs_module
from server.files import picture_pool
from server.files.encoding import CONTENT_TYPES, ImageFormat, encode
from server.files.folder_objects import FolderObjects
from server.files.outputs import EncoderError, Outputs, preview_image
from server.files.picture_pool import PicturePool

ROOT = Path(__file__).parents[3]
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


@pytest.fixture
def outputs(objects: FolderObjects) -> Iterator[Outputs]:
    made = Outputs(objects)
    yield made
    made.pool.close(wait=True)


def test_copies_that_take_long_leave_threads_to_other_submits(
    objects: FolderObjects, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = objects.put(b"x", "image/png", "png")
    image = {"file_name": key, "content_type": "image/png"}
    goes_on, read = threading.Event(), objects.read

    def slow(*asked: Any) -> bytes | None:
        goes_on.wait(30)
        return read(*asked)

    monkeypatch.setattr(objects, "read", slow)
    monkeypatch.setattr(outputs_module, "COPY_TURN_S", 0.01)

    def again() -> dict[str, Any] | None:
        return outputs.deliver_again(image, False, None, "allow", "")

    with ThreadPoolExecutor(20) as threads:
        copies = [threads.submit(again) for _ in range(20)]
        given_up = [copy.result() for copy in islice(as_completed(copies), 20 - outputs_module.COPIES_AT_ONCE)]
        goes_on.set()
    assert set(given_up) == {None}
    assert sum(copy.result() is not None for copy in copies) == outputs_module.COPIES_AT_ONCE


def gradient() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)


def picture() -> Picture:
    return Picture("a", 1, 0, 7, WIDTH, HEIGHT, gradient().tobytes(), has_nsfw_concept=False)


@pytest.mark.parametrize(("image_format", "worst"), [("png", 0), ("jpeg", 12), ("webp", 24)])
def test_every_format_holds_the_picture(
    outputs: Outputs, objects: FolderObjects, image_format: ImageFormat, worst: int
) -> None:
    async def main() -> dict[str, object]:
        encoded = await outputs.encode(picture(), image_format)
        return await outputs.deliver(encoded, sync_mode=False)

    entry = asyncio.run(main())
    key = str(entry["file_name"])
    path = objects.path(key)
    assert path is not None
    assert entry == {
        "url": f"/files/{key}",
        "content_type": f"image/{image_format}",
        "file_name": key,
        "file_size": path.stat().st_size,
        "width": WIDTH,
        "height": HEIGHT,
    }
    with Image.open(path) as opened:
        assert (opened.format, opened.size) == (image_format.upper(), (WIDTH, HEIGHT))
        difference = np.abs(np.asarray(opened.convert("RGB")).astype(int) - gradient())
    assert difference.max() <= worst


def test_a_lower_quality_makes_smaller_files_where_it_means_something() -> None:
    pixels = bytes((x * 7 + y * 13 + c * 50) % 256 for y in range(64) for x in range(64) for c in range(3))
    sizes = {kind: [len(encode(pixels, 64, 64, kind, quality=q)) for q in (20, 80, None)] for kind in CONTENT_TYPES}
    for kind in ("jpeg", "webp"):
        assert sizes[kind] == sorted(set(sizes[kind]))
    assert len(set(sizes["png"])) == 1
    assert len(encode(pixels, 64, 64, "jpeg", quality=1)) < sizes["jpeg"][0]


def test_sync_mode_answers_a_data_uri_and_stores_nothing(
    outputs: Outputs, objects: FolderObjects, tmp_path: Path
) -> None:
    async def main() -> dict[str, object]:
        return await outputs.deliver(await outputs.encode(picture(), "png"), sync_mode=True)

    entry = asyncio.run(main())
    head, _, data = str(entry["url"]).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(data))) as opened:
        assert np.array_equal(np.asarray(opened), gradient())
    assert list(tmp_path.iterdir()) == []


def test_discarded_pictures_leave_no_file(outputs: Outputs, tmp_path: Path) -> None:
    async def main() -> None:
        encoded = await outputs.encode(picture(), "jpeg")
        outputs.discard([await outputs.deliver(encoded, False), await outputs.deliver(encoded, True)])

    asyncio.run(main())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_pool_process_costs_a_retry_and_no_picture(outputs: Outputs) -> None:
    async def main() -> bytes:
        await outputs.warm()
        assert outputs.pool._executor is not None
        for pid in list(outputs.pool._executor._processes):
            os.kill(pid, signal.SIGKILL)
        return (await outputs.encode(picture(), "png")).data

    with Image.open(BytesIO(asyncio.run(main()))) as opened:
        assert opened.size == (WIDTH, HEIGHT)


def test_a_pool_that_hangs_is_replaced_and_costs_no_picture(objects: FolderObjects) -> None:
    async def main() -> bytes:
        outputs = Outputs(objects, pool=PicturePool(limit_s=1.0))
        await outputs.warm()
        assert outputs.pool._executor is not None
        for pid in list(outputs.pool._executor._processes):
            os.kill(pid, signal.SIGSTOP)
        data = (await outputs.encode(picture(), "png")).data
        outputs.pool.close(wait=True)
        return data

    with Image.open(BytesIO(asyncio.run(main()))) as opened:
        assert opened.size == (WIDTH, HEIGHT)


def test_a_process_that_starts_slowly_has_not_hung(objects: FolderObjects) -> None:
    """Any start is slow beside this limit, as it is beside 20 s on a machine whose cores are all busy."""

    async def main() -> bytes:
        outputs = Outputs(objects, pool=PicturePool(limit_s=0.01))
        await outputs.warm()
        outputs.pool.close(wait=True)
        return b"warm"

    assert asyncio.run(main()) == b"warm"


def test_an_encoder_that_cannot_start_is_a_problem_until_it_can(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        assert outputs.problem is None
        with monkeypatch.context() as full:
            full.setattr(picture_pool, "ProcessPoolExecutor", refuse)
            with pytest.raises(EncoderError, match="look at /dev/shm"):
                await outputs.encode(picture(), "png")
            assert outputs.problem is not None
        await outputs.warm()
        assert outputs.problem is None

    asyncio.run(main())


def test_pixels_that_do_not_fit_are_an_error_and_not_a_dead_pool(outputs: Outputs) -> None:
    broken = Picture("a", 1, 0, 7, WIDTH, HEIGHT, b"too short", has_nsfw_concept=False)

    async def main() -> None:
        with pytest.raises(ValueError, match="not enough image data"):
            await outputs.encode(broken, "png")
        assert (await outputs.encode(picture(), "png")).width == WIDTH

    asyncio.run(main())


def test_pool_processes_end_with_a_killed_node(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time; from pathlib import Path\n"
        "from server.files.folder_objects import FolderObjects; from server.files.outputs import Outputs\n"
        "if __name__ == '__main__':\n"
        "    outputs = Outputs(FolderObjects(Path(sys.argv[1])))\n"
        "    asyncio.run(outputs.warm())\n"
        "    print('warm', flush=True)\n"
        "    time.sleep(60)\n"
    )
    node = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    assert node.stdout.readline() == "warm\n"
    children = psutil.Process(node.pid).children(recursive=True)
    assert children
    node.kill()
    node.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_result_body_is_what_fal_answers() -> None:
    image = {"url": "/files/a.png"}
    body = result_body([image], [True], {"seed": 7, "prompt": "a", "model": "x"}, {"inference": 1.5, "encode": 0.1})
    assert body == {
        "images": [image],
        "timings": {"inference": 1.5},
        "seed": 7,
        "has_nsfw_concepts": [True],
        "prompt": "a",
    }


def test_a_preview_is_a_small_data_uri() -> None:
    entry = preview_image(Preview("a", 1, 3, 0, WIDTH, HEIGHT, gradient().tobytes()))
    head, _, data = entry["url"].partition(",")
    assert (head, entry["width"], entry["height"]) == ("data:image/jpeg;base64", WIDTH, HEIGHT)
    with Image.open(BytesIO(base64.b64decode(data))) as opened:
        assert opened.size == (WIDTH, HEIGHT)


def test_only_file_addresses_become_absolute_and_signed() -> None:
    body = {
        "images": [{"url": "/files/a.png"}, {"url": "data:image/png;base64,AA"}, {"url": "https://else/files/x"}],
        "prompt": "/files/not-an-address",
        "nested": {"url": "/files/b.png"},
    }
    made = absolute(body, "http://host:1/v3", lambda path: f"{path}?signed")
    assert [image["url"] for image in made["images"]] == [
        "http://host:1/v3/files/a.png?signed",
        "data:image/png;base64,AA",
        "https://else/files/x",
    ]
    assert (made["prompt"], made["nested"]["url"]) == ("/files/not-an-address", "http://host:1/v3/files/b.png?signed")
    assert body["nested"] == {"url": "/files/b.png"}, "the stored body is not touched"


def test_encoding_does_not_hold_up_the_event_loop(outputs: Outputs) -> None:
    large = Picture("a", 1, 0, 7, 2048, 2048, os.urandom(2048 * 2048 * 3), has_nsfw_concept=False)

    async def main() -> float:
        await outputs.warm()
        task = asyncio.create_task(outputs.encode(large, "png"))
        longest, before = 0.0, time.perf_counter()
        while not task.done():
            await asyncio.sleep(0.001)
            longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
        return longest

    assert asyncio.run(main()) < 0.5
