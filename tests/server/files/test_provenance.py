"""Every picture file says that a machine made it; its prompt only where asked."""

from __future__ import annotations

from io import BytesIO
from xml.etree import ElementTree

import pytest
from PIL import Image

from server.files.encoding import ImageFormat, encode
from server.files.provenance import TRAINED_ALGORITHMIC_MEDIA, Provenance

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
HOSTILE = 'a "fox" <b>&amp; \x00 \ud800 ]]> ?> 狐'


def made(**changes: object) -> Provenance:
    return Provenance(**{"software": "fluxserve 1", "model": "m", "endpoint": "e", "request_id": "r"} | changes)  # type: ignore[arg-type]


def said(file: bytes) -> dict[str, str]:
    """The properties in a file's XMP packet, read by Pillow and a real XML parser."""
    with Image.open(BytesIO(file)) as picture:
        packet = picture.info.get("xmp") or picture.info["XML:com.adobe.xmp"]
    text = packet.decode() if isinstance(packet, bytes) else packet
    root = ElementTree.fromstring(text[text.index("<x:xmpmeta") : text.rindex("<?xpacket")])
    return dict(next(element for element in root.iter() if element.tag.endswith("Description")).attrib)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_every_format_names_its_source_and_keeps_its_pixels(image_format: ImageFormat) -> None:
    pixels = bytes(range(192))
    marked, plain = (encode(pixels, 8, 8, image_format, p) for p in (made(), None))
    properties = said(marked)
    assert properties[f"{IPTC}DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    assert properties[f"{IPTC}AISystemUsed"] == "m"
    assert f"{IPTC}AIPromptInformation" not in properties
    with Image.open(BytesIO(marked)) as one, Image.open(BytesIO(plain)) as other:
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_any_prompt_can_be_inside(image_format: ImageFormat) -> None:
    properties = said(encode(bytes(192), 8, 8, image_format, made(prompt=HOSTILE, seed=7)))
    assert properties[f"{IPTC}AIPromptInformation"] == HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert properties["{urn:fluxserve:1:}seed"] == "7"


def test_a_prompt_too_long_for_a_jpeg_is_cut() -> None:
    """A JPEG segment holds 65,533 bytes; the picture must not be lost for its label."""
    properties = said(encode(bytes(192), 8, 8, "jpeg", made(prompt="狐&" * 40_000)))
    assert properties[f"{IPTC}AIPromptInformation"].endswith("…")
