"""What a failed call to a bucket means: whether the service is at fault or one file, and what the operator can do."""

from __future__ import annotations

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from server.files.objects import ObjectsAwayError

FAULTS = BotoCoreError, ClientError, Boto3Error, ResponseParserError, OSError
"""What a call may raise: credentials are read from files and commands, too, in the middle of it."""

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_WRONG_KEY = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure")
_WRONG_PLACE = ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException")
_NO_KEYS = "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_UNANSWERED: dict[type[Exception], str] = {
    NoCredentialsError: _NO_KEYS,
    PartialCredentialsError: _NO_KEYS,
    SSLError: "its certificate is refused, or it speaks no TLS; set AWS_CA_BUNDLE, or correct --s3-endpoint",
    ProxyConnectionError: "the proxy of HTTPS_PROXY does not answer; put the service into NO_PROXY if it needs none",
    ResponseParserError: "what answers there is no S3 service; correct --s3-endpoint",
}


def is_of_the_service(exc: Exception) -> bool:
    """Whether other files would meet it, too, and each might wait for it; else the service has answered about one."""
    cause = _cause(exc)
    return not isinstance(cause, ClientError) or _status(cause) >= 500


def reason(exc: Exception) -> str:
    """What went wrong and what to do, a clause without a secret."""
    cause = _cause(exc)
    if isinstance(cause, ObjectsAwayError):
        return cause.why
    if isinstance(cause, ClientError):
        return _advice(str(cause.response.get("Error", {}).get("Code") or _status(cause)), cause.operation_name)
    known = next((text for kind, text in _UNANSWERED.items() if isinstance(cause, kind)), None)
    return known or f"the service does not answer ({type(cause).__name__}); start it, or correct --s3-endpoint"


def _cause(exc: Exception) -> Exception:
    """The library wraps what a large file meets."""
    return exc.__context__ if isinstance(exc, Boto3Error) and isinstance(exc.__context__, ClientError) else exc


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))


def _advice(code: str, operation: str) -> str:
    if code == "NoSuchBucket":
        return "there is no such bucket; make it, or correct --objects"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is more than 15 minutes off; set it"
    if code in _WRONG_KEY:
        return f"the service refuses the credentials ({code}); look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code in _WRONG_PLACE:
        return f"the bucket lies in another region ({code}); set AWS_REGION, or correct --s3-endpoint"
    if code in ("AccessDenied", "403"):
        return f"{operation} is not allowed; it needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
    if code.isdecimal() and int(code) < 500:  # an S3 service gives its errors a name
        return f"{operation} was answered with {code}, as by no S3 service; correct --s3-endpoint"
    return f"{operation} was answered with {code}; see the service's own log"
