"""What is told to be a picture of a format that is not read, and what to be none at all."""

from __future__ import annotations

import codecs

import pytest
from PIL import Image

from tests.server.files.test_decoding import packed, quarters, refusal

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'
XML = b'<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
DOCTYPE = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n'
ENTITIES = b'<!DOCTYPE svg [\n  <!ENTITY ns_svg "http://www.w3.org/2000/svg">\n] >\n'
COMMENT = b"<!-- Generator: some editor, <html> and all -->\r\n"

SVGS = {
    "bare": SVG,
    "xml": XML + SVG,
    "byte order mark": codecs.BOM_UTF8 + XML + SVG,
    "white space": b"\n \t" + SVG,
    "document type": DOCTYPE + SVG,
    "entities": XML + COMMENT + ENTITIES + COMMENT + SVG,
    "prefix": XML + b'<svg:svg xmlns:svg="http://www.w3.org/2000/svg"/>',
    "style sheet": XML + b'<?xml-stylesheet href="a.css"?>' + SVG,
    "utf-16": codecs.BOM_UTF16_LE + (XML + SVG).decode().encode("utf-16-le"),
    "utf-16, big end first": codecs.BOM_UTF16_BE + SVG.decode().encode("utf-16-be"),
}

FILES = {
    "Photoshop": b"8BPS\0\1" + bytes(20),
    "large Photoshop": b"8BPS\0\2" + bytes(20),
    "GIMP": b"gimp xcf v011\0",
    "cursor": b"\0\0\2\0\1\0\x20\x20",
    "JPEG 2000's stream": b"\xff\x4f\xff\x51\0\x2f",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "JPEG XL in boxes": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XR": b"II\xbc\1 \0\0\0",
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0",
    "BigTIFF, big end first": b"MM\0+\0\x08\0\0" + bytes(8),
    "Panasonic": b"IIU\0\x18\0\0\0",
    "Fujifilm": b"FUJIFILMCCD-RAW 0201",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n",
    "metafile": b"\1\0\0\0l\0\0\0" + bytes(32) + b" EMF",
    "float map": b"PF\n2 2\n-1.0\n",
    "any map": b"P7\nWIDTH 2\n",
    "XPM": b"/* XPM */\nstatic char *a[] = {",
    "a bitmap without its header": packed(quarters(), "DIB"),
    "XBM": packed(quarters().convert("1"), "XBM"),
    "BigTIFF": packed(quarters(), "TIFF", big_tiff=True),
}

NO_PICTURES = {
    "page": b"<!DOCTYPE html><html><body>" + SVG + b"</body></html>",
    "page as XML": XML + b'<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "a"><html>' + SVG + b"</html>",
    "feed": XML + b"<rss>" + SVG + b"</rss>",
    "word": b"<svgish/>",
    "prolog without end": b"<?" * 2000 + b"?><?" * 2000,
    "comments without end": b"<!-- -->" * 300 + b"<!--",
    "text": b"Python 3",
    "paragraph": b"P.S. 1",
    "list of numbers": b"1 2 3",
    "JSON": b'{"detail": "no"}',
    "zeros": bytes(64),
    "PDF": b"%PDF-1.7\n",
    "archive": b"PK\3\4",
    "audio": b"RIFF\0\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("svg", SVGS.values(), ids=SVGS)
def test_an_svg_however_it_begins(svg: bytes) -> None:
    assert refusal(svg).kind == "unsupported_image_format"


@pytest.mark.parametrize(
    "kind", ["GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "ICNS", "PCX", "PPM", "QOI", "SGI", "TGA", "DDS", "EPS"]
)
def test_what_pillow_writes(kind: str) -> None:
    error = refusal(packed(Image.new("RGB", (16, 16), "red"), kind))
    assert (error.kind, error.ctx) == ("unsupported_image_format", {"supported_formats": ["jpeg", "png", "webp"]})


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_what_others_write(data: bytes) -> None:
    assert refusal(data).kind == "unsupported_image_format"


@pytest.mark.parametrize("data", NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture(data: bytes) -> None:
    error = refusal(data)
    assert (error.kind, error.message) == ("image_load_error", "The file is not a picture")
