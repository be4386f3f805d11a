"""Loads a certificate that has been renewed into the running server: months pass between two starts."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from server.http.tls import TlsFiles

logger = logging.getLogger("fluxserve.tls")

LOOK_S = 60.0


async def keep_certificate(context: ssl.SSLContext, renew: Callable[[], TlsFiles]) -> None:
    """Until cancelled, look whether the files of the served certificate are others, and let `context` serve those.

    Args: renew: makes new files where it is time to; also the operator may have put others in their place."""
    seen = _stamp(await asyncio.to_thread(renew))
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            files = await asyncio.to_thread(renew)
            if (stamp := _stamp(files)) != seen:
                _load(context, files)
                seen = stamp
                logger.info("serving the certificate that is now in %s", files.server)
        except (OSError, ValueError) as exc:
            logger.error("the certificate cannot be renewed, the earlier one is served: %s", exc)


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    """New connections get the new certificate. Raises: OSError (ssl.SSLError) if the two files are no pair."""
    # Tried on a context of its own first: a failure in the middle would leave the serving one with half of each.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.server, files.server_key)
    context.load_cert_chain(files.server, files.server_key)


def _stamp(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    facts = [file.stat() for file in (files.server, files.server_key)]
    return tuple((fact.st_mtime_ns, fact.st_ino) for fact in facts)
