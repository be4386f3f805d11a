"""Pictures of formats that this server does not read, known by how they begin, so that they are refused as such.

Pillow's own tests of beginnings are not asked: they know neither SVG nor JPEG XL, take any text that begins with "Py"
for a picture, and would have every one of its plugins imported.
"""

from __future__ import annotations

import codecs
import re

HEAD = 4096
"""Bytes that are looked at: an SVG may have a title, a licence and a DTD first."""

_BEGINNINGS = re.compile(
    b"|".join(
        (
            rb"GIF8", rb"BM", rb"\(\0\0\0.{8}\x01\0",  # the last a bitmap without its file's header
            rb"II[*+]\0", rb"MM\0[*+]", rb"II\xbc", rb"II(?:U\0|R[OS])", rb"II\x1a\0\0\0HEAP", rb"FUJIFILMCCD-RAW",
            rb"....ftyp",  # AVIF, HEIC, and films
            rb"\0\0\0\x0cjP  ", rb"\xff\x4f\xff\x51", rb"\0\0\0\x0cJXL ", rb"\xff\x0a",  # JPEG 2000 and XL
            rb"8BPS", rb"gimp xcf", rb"\0\0[\x01\x02]\0[^\0]", rb"icns",  # editors, icons
            rb"P[1-6fF]\s+[-#\d]", rb"P7(?:\n| 332)",  # netpbm
            rb"\n[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]", rb"\xb1\x68\xde\x3a",  # PCX and DCX
            rb"qoif", rb"DDS ", rb"v/1\x01", rb"#\?R(?:ADIANCE|GBE)", rb"BLP[12]",  # textures and light
            rb"\x01\xda[\0\x01][\x01\x02]", rb"\x59\xa6\x6a\x95", rb"FLIF", rb"BPG\xfb", rb"[\x8a\x8b][MJ]NG\r\n",
            rb"AT&TFORM", rb"SIMPLE  =", rb"Image type:", rb"/\* XPM \*/", rb"#define\s+\w+_width\s",
            rb"%!PS", rb"\xc5\xd0\xd3\xc6", rb"\xd7\xcd\xc6\x9a\0\0", rb"\x01\0\0\0.{36} EMF",  # instructions to draw
        )
    ),
    re.DOTALL,
)  # fmt: skip
"""Sources: Pillow's plugins, file(1)."""

_SVG = re.compile(
    rb"""
    (?> \s++ | <\? .*? \?> | <!-- .*? --> | <!DOCTYPE \s+ (?:\w+:)? svg\b [^\[>]*+ (?: \[ [^\]]*+ \] \s* )?+ > )*+
    < (?:\w+:)? svg [\s/>]
    """,
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
"""What may stand before the first element, without going back; a page with an <svg> in it is none."""

_TARGA_END = b"TRUEVISION-XFILE.\0"
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def is_foreign_picture(data: bytes) -> bool:
    """Whether it is a picture, but of another format than those of `server.files.decoding`."""
    head = data[:HEAD]
    if _BEGINNINGS.match(head) or data.endswith(_TARGA_END):
        return True
    if (encoding := _UTF_16.get(head[:2])) is not None:
        head = head[2:].decode(encoding, "replace").encode()
    return _SVG.match(head.removeprefix(codecs.BOM_UTF8)) is not None
