"""What `fluxserve doctor` finds of the bucket that several nodes share: the look that a serving node takes itself."""

from __future__ import annotations

from urllib.parse import urlsplit

from server.cli.finding import Finding
from server.files.choice import ObjectsError, open_bucket
from server.settings import Settings

SUBJECT = "bucket"
FAR_MS = 300.0
"""A result is three writes, so beyond this it shows about a second late."""
SKEW_S = 5.0


def shared_files(settings: Settings) -> list[Finding]:
    """Nothing without `--objects`."""
    if settings.objects is None:
        return []
    try:
        bucket = open_bucket(settings.objects, settings.s3_endpoint)
    except ObjectsError as exc:
        return [Finding(SUBJECT, "broken", str(exc))]
    look = bucket.check()
    if look.problem is not None:
        what, _, advice = look.problem.partition("; ")
        return [Finding(SUBJECT, "broken", what, advice)]
    lasting = [] if look.lasting is None else [Finding(SUBJECT, "warning", look.lasting)]
    return [
        *lasting,
        _distance(bucket.where, look.took_s * 1e3),
        *_clock(look.ahead_s),
        *_readers(settings, bucket.origin),
    ]


def _distance(where: str, took_ms: float) -> Finding:
    detail = f"{where} takes, gives and lists files, a small one in {took_ms:.0f} ms"
    if took_ms > FAR_MS:
        return Finding(
            SUBJECT, "warning", detail, "a result waits for three writes: put bucket and nodes closer together"
        )
    return Finding(SUBJECT, "ok", detail)


def _clock(ahead_s: float | None) -> list[Finding]:
    if ahead_s is None:
        return []
    detail = f"this machine's clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the bucket's"
    if abs(ahead_s) > SKEW_S:
        return [Finding("clock", "warning", detail, "S3 refuses what is signed 15 minutes off: set it by NTP")]
    return [Finding("clock", "ok", detail)]


def _readers(settings: Settings, origin: str | None) -> list[Finding]:
    """Where `--s3-redirect` sends clients."""
    if not settings.s3_redirect or origin is None:
        return []
    if origin.startswith("http://") and (settings.public_url or "").startswith("https://"):
        advice = "pages at https:// may not read from http://: give the service a certificate"
        return [Finding("readers", "warning", f"clients are sent to {origin}", advice)]
    if "." not in (urlsplit(origin).hostname or ""):
        advice = "if that name is known only here, leave --s3-redirect out"
        return [Finding("readers", "warning", f"clients are sent to {origin}", advice)]
    return [Finding("readers", "ok", f"clients are sent to {origin}")]
