"""Messages of a WebSocket as they come in: msgpack in binary frames, JSON in text frames, both to plain JSON values."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgpack

from server.api.body import MAX_VALUES, checked_object, parse_object
from server.api.errors import InputError, problem


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came."""

    data: bytes
    is_binary: bool

    def decode(self) -> dict[str, Any]:
        """Raises: InputError."""
        return _unpack(self.data) if self.is_binary else parse_object(self.data)


def _unpack(data: bytes) -> dict[str, Any]:
    """One msgpack map as plain JSON values; binary becomes a data URI. Raises: InputError."""
    containers = values = 0

    def bounded(container: Any) -> Any:
        """An empty one takes a byte to send and sixty to keep; many full ones hold millions of values."""
        nonlocal containers, values
        containers, values = containers + 1, values + len(container)
        if max(containers, values) > MAX_VALUES:
            raise ValueError
        return container

    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            list_hook=bounded,
            object_hook=bounded,
            max_array_len=MAX_VALUES,
            max_map_len=MAX_VALUES,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise InputError([problem([], "The message is not msgpack", "msgpack_invalid")]) from exc
    plain: dict[str, Any] = _plain(checked_object(value))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"data:application/octet-stream;base64,{base64.b64encode(value).decode()}"
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError([problem([], "msgpack extension types are not supported", "msgpack_invalid")])
