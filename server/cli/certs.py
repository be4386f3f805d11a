"""`fluxserve certs`: the local certificate authority, and how clients come to trust it."""

from __future__ import annotations

import json

from server.cli.failures import ENVIRONMENT, CommandError
from server.cli.options import Config, DataDir, Json, settings_from
from server.http import tls
from server.http.names import FAL_HOSTS


def certs(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Show the certificates (made now if there are none), their fingerprints, and how to trust them."""
    settings = settings_from(config, data_dir=data_dir)
    try:
        files = tls.files_of(settings.data_dir)
        if not files.server.exists():
            tls.ensure(settings.data_dir, tls.served_names(settings.host, also=FAL_HOSTS))
        authority, served = tls.read_certificate(files.ca), tls.read_certificate(files.server)
    except (OSError, ValueError) as exc:
        raise CommandError(f"the certificates cannot be read: {exc}", ENVIRONMENT) from exc
    facts: dict[str, str | list[str]] = {
        "ca": str(files.ca),
        "ca_bundle": str(files.bundle),
        "ca_fingerprint": tls.fingerprint(authority),
        "ca_not_after": authority.not_valid_after_utc.isoformat(),
        "certificate": str(files.server),
        "certificate_not_after": served.not_valid_after_utc.isoformat(),
        "names": tls.names_in(served),
    }
    print(json.dumps(facts) if as_json else _text(facts))


def _text(facts: dict[str, str | list[str]]) -> str:
    return f"""authority    {facts["ca"]}
             SHA-256 {facts["ca_fingerprint"]}
             valid until {facts["ca_not_after"]}
certificate  {facts["certificate"]}
             valid until {facts["certificate_not_after"]}, for
             {", ".join(facts["names"])}

To trust it
  Python       export SSL_CERT_FILE={facts["ca_bundle"]}   (public authorities and this one)
  Node         export NODE_EXTRA_CA_CERTS={facts["ca"]}
  curl         curl --cacert {facts["ca"]} ...
  a machine    copy {facts["ca"]} to it; whoever holds ca.key can pose as any site to those who trust it"""
