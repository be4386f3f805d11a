"""C2PA: what the library's own reader finds in files that were signed with a certificate made here."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from pipelines.protocol.frames import Picture
from server.files.content_credentials import CredentialsError, read
from server.files.encoding import CONTENT_TYPES, ImageFormat, encode
from server.files.folder_objects import FolderObjects
from server.files.outputs import Outputs
from server.files.provenance import TRAINED_ALGORITHMIC_MEDIA, Provenance

c2pa = pytest.importorskip("c2pa", reason="the optional extra c2pa is not installed")

MADE = Provenance("fluxserve 1.2", "FLUX.1-dev", "fal-ai/flux/dev", "request-7", prompt="a secret fox", seed=7)
SIDE = 64
PIXELS = bytes(range(256)) * (SIDE * SIDE * 3 // 256)
DAY = timedelta(days=1)


def named(name: str) -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, "Example"), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


def issued(name: str, key: Any, by: str, by_key: Any, is_authority: bool) -> x509.Certificate:
    """A certificate by C2PA's profile (section 14.5.1): an authority's, or one for signing."""
    uses = {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    usage = x509.KeyUsage(**uses, **dict.fromkeys((*others, "decipher_only"), False))
    made = (
        x509.CertificateBuilder(named(by), named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), False)
        .add_extension(usage, True)
    )
    if not is_authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return made.sign(by_key, hashes.SHA256())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates(folder: Path) -> tuple[Path, Path, str]:
    """Chain, key, and the authority that a reader may trust."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = issued("Root", root_key, "Root", root_key, is_authority=True).public_bytes(Encoding.PEM)
    leaf = issued("Signer", key, "Root", root_key, is_authority=False).public_bytes(Encoding.PEM)
    (folder / "chain.pem").write_bytes(leaf + root)
    (folder / "key.pem").write_bytes(pem(key))
    return folder / "chain.pem", folder / "key.pem", root.decode()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A set of certificates for all of these tests."""
    return certificates(tmp_path_factory.mktemp("c2pa"))


def found(data: bytes, image_format: ImageFormat, trusted: str) -> tuple[str, dict[str, Any]]:
    """The library's verdict and the manifest that it reads."""
    settings = {"verify": {"verify_trust": True}, "trust": {"trust_anchors": trusted}}
    with c2pa.Reader(CONTENT_TYPES[image_format], BytesIO(data), context=c2pa.Context.from_dict(settings)) as reader:
        return str(reader.get_validation_state()), reader.get_active_manifest()


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_reader_that_trusts_the_operator_trusts_the_file(
    files: tuple[Path, Path, str], image_format: ImageFormat
) -> None:
    chain, key, root = files
    signed = encode(PIXELS, SIDE, SIDE, image_format, MADE, read(chain, key))
    state, manifest = found(signed, image_format, root)
    assert state == "Trusted"
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED_ALGORITHMIC_MEDIA)
    assert action["softwareAgent"]["name"] == "FLUX.1-dev"
    assert manifest["claim_generator_info"][0]["name"] == "fluxserve"
    assert "secret fox" not in json.dumps(manifest)
    with Image.open(BytesIO(signed)) as one, Image.open(BytesIO(encode(PIXELS, SIDE, SIDE, image_format))) as other:
        assert one.tobytes() == other.tobytes()
        assert "request-7" in str(one.info.get("xmp") or one.info["XML:com.adobe.xmp"])


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_what_is_changed_after_the_signature_shows(files: tuple[Path, Path, str], image_format: ImageFormat) -> None:
    chain, key, root = files
    signed = encode(PIXELS, SIDE, SIDE, image_format, MADE, read(chain, key))
    assert signed.count(b"request-7") >= 1
    state, _ = found(signed.replace(b"fal-ai/flux/dev", b"fal-ai/flux/pro"), image_format, root)
    assert state == "Invalid"


async def _stored(folder: Path, chain: Path, key: Path) -> bytes:
    outputs = Outputs(FolderObjects(folder), credentials=read(chain, key))
    try:
        encoded = await outputs.encode(Picture("a", 1, 0, 7, SIDE, SIDE, PIXELS, False), "png", MADE)
    finally:
        outputs.close()
    return encoded.data


def test_the_confined_process_that_encodes_signs_too(files: tuple[Path, Path, str], tmp_path: Path) -> None:
    chain, key, root = files
    assert found(asyncio.run(_stored(tmp_path, chain, key)), "png", root)[0] == "Trusted"


def test_what_cannot_sign_is_refused_at_the_start_in_a_sentence(files: tuple[Path, Path, str], tmp_path: Path) -> None:
    chain, key, _ = files
    other = tmp_path / "other.pem"
    other.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(CredentialsError, match="is not the key of the first certificate"):
        read(chain, other)
    with pytest.raises(CredentialsError, match="must be PEM"):
        read(key, key)
    with pytest.raises(CredentialsError, match="cannot be read"):
        read(tmp_path / "none.pem", key)


def test_a_certificate_for_other_purposes_is_refused_at_the_start(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    lone = issued("Root", key, "Root", key, is_authority=True)
    (tmp_path / "chain.pem").write_bytes(lone.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(pem(key))
    with pytest.raises(CredentialsError, match="C2PA cannot sign"):
        read(tmp_path / "chain.pem", tmp_path / "key.pem")
