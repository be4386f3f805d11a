"""The library's client for one bucket: how long it waits, how often it tries, how it addresses the service.

Credentials and region come from where AWS' own tools look: variables, profile files, roles.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

CONNECT_S = 2.0
SILENCE_S = 10.0
"""Until a service that has taken a request, and sends nothing, counts as away."""
TRIES = 3
CONNECTIONS = 64


class BucketError(ValueError):
    """The bucket's address cannot be used; the sentence is for the operator."""


def new_client(bucket: str, endpoint: str | None) -> Any:
    """The library's client for this service, with credentials from where AWS' own tools look. Raises: BucketError."""
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    host = urlsplit(endpoint or "").hostname or ""
    is_virtual = host.startswith(f"{bucket}.")
    if endpoint is not None and is_virtual:
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)  # the library puts it there itself
    style = "virtual" if endpoint is None or is_virtual else "path"
    how = Config(
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        retries={"total_max_attempts": TRIES, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        s3={"addressing_style": style},
        # Services other than AWS often know no checksums in trailers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.session.Session()
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=how)
    except (BotoCoreError, ValueError) as exc:
        raise BucketError(f"--objects cannot be used: {exc}") from exc
