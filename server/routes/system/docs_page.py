"""The documentation page: one HTML file without scripts or outside parts, so that it works air-gapped."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

from server.api.endpoints import Endpoint

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f4;border-radius:4px}"
    "pre{padding:.8rem;overflow:auto}code{padding:.1rem .3rem}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#262626}"
    "td,th{border-color:#333}a{color:#8bf}}"
)


def docs_page(rows: Iterable[Endpoint], origin: str) -> str:
    """HTML for these endpoints, with examples under the address `origin`."""
    listed = list(rows)
    index = "".join(
        f'<li><a href="#{escape(row.id)}">{escape(row.id)}</a> {escape(row.summary)}</li>' for row in listed
    )
    sections = "".join(section(row) for row in listed)
    example = escape(
        f"curl {origin}/run/fal-ai/flux-pro -H 'Content-Type: application/json' \\\n"
        '  -d \'{"prompt": "a red circle on a blue background"}\''
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>fluxserve</title><style>{_STYLE}</style><h1>fluxserve</h1>"
        "<p>fal's model API on your own machine. Run now under <code>/run</code>, queue under <code>/queue</code>. "
        'Machine-readable: <a href="/openapi.json">/openapi.json</a>, <a href="/v1/models">/v1/models</a>. '
        'State: <a href="/health">/health</a>.</p>'
        f"<pre>{example}</pre><ul>{index}</ul>{sections}</html>"
    )


@cache
def section(row: Endpoint) -> str:
    """One endpoint's heading and the table of its fields, as HTML."""
    schema = row.schema.model_json_schema()
    required = schema.get("required", [])
    fields = "".join(_field(name, field, name in required) for name, field in schema["properties"].items())
    return (
        f'<h2 id="{escape(row.id)}">{escape(row.id)}</h2><p>{escape(row.summary)}</p>'
        f"<table><tr><th>field<th>default<th>values<th>meaning</tr>{fields}</table>"
    )


def _field(name: str, field: dict[str, Any], is_required: bool) -> str:
    default = "<em>required</em>" if is_required else f"<code>{escape(str(field.get('default')))}</code>"
    meaning = escape(str(field.get("description", "")))
    return f"<tr><td><code>{escape(name)}</code><td>{default}<td>{escape(_values(field))}<td>{meaning}</tr>"


def _values(field: dict[str, Any]) -> str:
    """Type and limits in a few words."""
    if "enum" in field:
        return ", ".join(str(value) for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_values(part) for part in field[union])
    limits = [f"{word} {field[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in field]
    return " ".join([str(field.get("type", "any")), *limits])
