"""Pixels to files to the result body that fal's clients read; the only code that knows image formats."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

from pipelines.protocol.frames import Picture, Preview
from server.files.content_credentials import Credentials, CredentialsError
from server.files.encoding import CONTENT_TYPES, ImageFormat, encode
from server.files.objects import Access, Objects
from server.files.picture_pool import PicturePool, why_unusable
from server.files.provenance import Provenance

FILES_PREFIX = "/files/"
COPIES_AT_ONCE, COPY_TURN_S = 8, 1.0


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One finished picture as a file's bytes."""

    data: bytes
    image_format: ImageFormat
    seed: int
    width: int
    height: int
    has_nsfw_concept: bool


class EncoderError(Exception):
    """No process encodes pictures now; the sentence says why."""


class Outputs:
    """Encodes in a small pool of processes, so that neither the event loop nor the GIL waits for it.

    Args: objects: where files go. ttl_s: how long they are kept. pool: encodes; closed with this. credentials: sign
        every file.
    """

    def __init__(
        self,
        objects: Objects,
        ttl_s: float | None = None,
        pool: PicturePool | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._objects = objects
        self._ttl_s = ttl_s
        self._credentials = credentials
        self._copying = BoundedSemaphore(COPIES_AT_ONCE)
        self.pool = pool or PicturePool()
        self.is_warm = False
        """Whether an encoder has worked, and has not failed since."""
        self.encoder_problem = why_unusable()

    @property
    def problem(self) -> str | None:
        """Why what is drawn now could not be stored, in one sentence; None if it could."""
        return self._objects.problem or self.encoder_problem

    async def warm(self) -> None:
        """Start a pool process now, so that the first picture does not wait for it (about 0.3 s).

        Raises: EncoderError."""
        await self._encode(bytes(3), 1, 1, "jpeg")

    async def encode(
        self,
        picture: Picture,
        image_format: ImageFormat,
        provenance: Provenance | None = None,
        quality: int | None = None,
    ) -> EncodedPicture:
        """The picture as a file's bytes, marked as made by a machine.

        Args: quality: as in `encode`.
        Raises: ValueError if its pixels do not fit its size. EncoderError.
        """
        data = await self._encode(picture.pixels, picture.width, picture.height, image_format, provenance, quality)
        return EncodedPicture(data, image_format, picture.seed, picture.width, picture.height, picture.has_nsfw_concept)

    async def deliver(
        self,
        picture: EncodedPicture,
        sync_mode: bool,
        ttl_s: float | None = None,
        access: Access = "allow",
        tenant: str = "",
    ) -> dict[str, Any]:
        """The picture's entry in `images`: stored as a file, or with `sync_mode` as a data URI and not stored.

        Args: ttl_s: keep the file shorter than usual. access: who may read it. tenant: whose it is.
        Raises: OSError if the disk refuses.
        """
        content_type = CONTENT_TYPES[picture.image_format]
        if sync_mode:
            url, name = _data_uri(content_type, picture.data), None
        else:
            ttl_s = self._ttl_s if ttl_s is None else ttl_s
            name = await self._objects.beside(
                self._objects.put, picture.data, content_type, picture.image_format, None, ttl_s, None, access, tenant
            )
            url = FILES_PREFIX + name
        return {
            "url": url,
            "content_type": content_type,
            "file_name": name,
            "file_size": len(picture.data),
            "width": picture.width,
            "height": picture.height,
        }

    def deliver_again(
        self, image: Mapping[str, Any], sync_mode: bool, ttl_s: float | None, access: Access, tenant: str
    ) -> dict[str, Any] | None:
        """The entry of a picture that is stored already, for another result: a file of its own, or a data URI.

        Returns: None if its file is gone, or others are being copied for long. Raises: OSError if the disk refuses.
        """
        # Submits wait here: a slow bucket must not have all of their threads.
        if not self._copying.acquire(timeout=COPY_TURN_S):
            return None
        try:
            return self._copied(image, sync_mode, ttl_s, access, tenant)
        finally:
            self._copying.release()

    def _copied(
        self, image: Mapping[str, Any], sync_mode: bool, ttl_s: float | None, access: Access, tenant: str
    ) -> dict[str, Any] | None:
        key = image["file_name"]
        data = None if key is None or self._objects.stat(key) is None else self._objects.read(key)
        if data is None:
            return None
        if sync_mode:
            return {**image, "url": _data_uri(image["content_type"], data), "file_name": None}
        ttl_s = self._ttl_s if ttl_s is None else ttl_s
        suffix = key.rpartition(".")[2]
        name = self._objects.put(data, image["content_type"], suffix, None, ttl_s, None, access, tenant)
        return {**image, "url": FILES_PREFIX + name, "file_name": name}

    def discard(self, images: Sequence[Mapping[str, Any]]) -> None:
        """Delete the files of entries that no result will name."""
        for image in images:
            if image["file_name"] is not None:
                self._objects.delete(image["file_name"])

    def close(self) -> None:
        """End the pool; what it is encoding is dropped."""
        self.pool.close()

    async def _encode(
        self,
        pixels: bytes,
        width: int,
        height: int,
        image_format: ImageFormat,
        provenance: Provenance | None = None,
        quality: int | None = None,
    ) -> bytes:
        about = (image_format, provenance, self._credentials, quality)
        try:
            data = await self.pool.run(encode, pixels, width, height, *about)
        except CredentialsError as exc:
            raise EncoderError(str(exc)) from exc
        except BrokenProcessPool as exc:
            self.is_warm, self.encoder_problem = False, f"pictures cannot be encoded: {exc}"
            raise EncoderError(self.encoder_problem) from exc
        self.is_warm, self.encoder_problem = True, None
        return data


def preview_image(preview: Preview) -> dict[str, Any]:
    """A preview as an entry in `images`: a data URI, encoded here and now since it is small."""
    data = encode(preview.pixels, preview.width, preview.height, "jpeg")
    return {
        "url": _data_uri(CONTENT_TYPES["jpeg"], data),
        "content_type": CONTENT_TYPES["jpeg"],
        "width": preview.width,
        "height": preview.height,
    }


def _data_uri(content_type: str, data: bytes) -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
