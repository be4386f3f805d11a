"""What a picture file says of its making: XMP that names it machine-made, as the IPTC and the EU's rules ask.

Terms: IPTC Photo Metadata Standard 2025.1 (digital source type, AI system used, AI prompt information). Runs in the
encode pool's processes and imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

MAX_PROMPT = 8000
"""Characters of a prompt that are kept: a JPEG segment holds 65,533 bytes, and one character may take six of them."""

# The packet's fixed GUID and the byte-order mark are part of XMP, ISO 16684-1, section 7.3.2.
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:fluxserve="urn:fluxserve:1:"
 {properties}/></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True, slots=True)
class Provenance:
    """How one picture came to be.

    Args:
        software: name and version of this server.
        model, endpoint, request_id: what drew it, where it was asked for, under which id.
        prompt, seed: only if the caller or the operator asked for them to be inside.
    """

    software: str
    model: str
    endpoint: str
    request_id: str
    prompt: str | None = None
    seed: int | None = None

    def xmp(self) -> bytes:
        """An XMP packet in UTF-8, about a kilobyte without a prompt."""
        properties = {
            "Iptc4xmpExt:DigitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
            "Iptc4xmpExt:AISystemUsed": self.model,
            "Iptc4xmpExt:AIPromptInformation": None if self.prompt is None else _cut(self.prompt),
            "xmp:CreatorTool": self.software,
            "dc:identifier": self.request_id,
            "fluxserve:endpoint": self.endpoint,
            "fluxserve:seed": None if self.seed is None else str(self.seed),
        }
        said = "\n ".join(f"{name}={quoteattr(_xml(value))}" for name, value in properties.items() if value is not None)
        return _PACKET.format(properties=said).encode()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PROMPT else text[: MAX_PROMPT - 1] + "…"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold, halves of surrogate pairs among them."""
    return "".join(
        char if char in "\t\n\r" or " " <= char < "\ud800" or char >= "\ue000" else "\ufffd" for char in text
    )
