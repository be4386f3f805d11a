"""llms.txt: the server and each endpoint in Markdown, enough for a language model to call them by it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from server.api.endpoints import Endpoint

Schema = Mapping[str, Any]

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxLength": "at most {} characters",
}
_EXAMPLES = {
    "prompt": "a red boat on a calm lake",
    "image_url": "https://example.com/picture.png",
    "image_urls": ["https://example.com/picture.png"],
    "control_image_url": "https://example.com/picture.png",
    "control_lora_image_url": "https://example.com/picture.png",
    "mask_url": "https://example.com/mask.png",
    "loras": [{"path": "https://example.com/style.safetensors", "scale": 1}],
}
"""Values for fields that an endpoint requires."""


def index(rows: Iterable[Endpoint], origin: str, is_open: bool) -> str:
    """The server: how it is called, and every endpoint with the address of its own page."""
    listed = "\n".join(f"- [{row.id}]({origin}/models/{row.id}/llms.txt): {row.summary}" for row in rows)
    return f"""# fluxserve

> fal's model API for FLUX, on this machine. Programs written for fal run here when their base address changes.

## How to call it

- {_key_line(is_open)}
- `POST {origin}/run/ENDPOINT` with a JSON input draws and answers the result on the same connection.
- `POST {origin}/queue/ENDPOINT` stores the request and answers `request_id`, `status_url`, `response_url` and
  `cancel_url` at once. GET `status_url` until `status` is `COMPLETED`, then GET `response_url`; PUT `cancel_url` to
  cancel.
- A result's `images[].url` is the picture. With `sync_mode: true` it is a data URI and nothing is stored.
- A picture to be read is given by an `https` address or a data URI; larger ones are uploaded first: POST
  `{{"content_type": "image/png", "file_name": "a.png"}}` to `{origin}/rest/storage/upload/initiate`, PUT the bytes to
  its `upload_url`, and use its `file_url`.
- An error is a JSON object with `detail`: a sentence, or a list whose entries name the field (`loc`) and the fault
  (`msg`). 404 says which checkpoint is missing; 429 means: wait and ask again.
- Agents: the Model Context Protocol at `{origin}/mcp`. OpenAI's image API: base URL `{origin}/v1`.
- As OpenAPI: everything at {origin}/openapi.json, one endpoint at
  {origin}/api/openapi/queue/openapi.json?endpoint_id=ENDPOINT

## Endpoints

{listed}
"""


def page(row: Endpoint, origin: str, is_open: bool) -> str:
    """One endpoint: its fields with what they may be, an example, and what it answers."""
    schema = row.schema.model_json_schema()
    required = [name for name in schema["properties"] if name in schema.get("required", ())]
    others = [name for name, about in schema["properties"].items() if name not in required and _is_of_use(about)]
    fields = "\n".join(_field(name, schema, name in required) for name in (*required, *others))
    example = json.dumps({name: _EXAMPLES.get(name, "...") for name in required or ["prompt"]})
    key = "" if is_open else " -H 'Authorization: Key YOUR_KEY'"
    return f"""# {row.id}

> {row.summary}

- **Endpoint**: `{origin}/run/{row.id}`
- **Queue**: `{origin}/queue/{row.id}`
- **Category**: {row.category}
- **Price**: see `{origin}/v1/models/pricing?endpoint_id={row.id}`
- {_key_line(is_open)}

## Input

{fields}

## Example

```sh
curl {origin}/run/{row.id}{key} -H 'Content-Type: application/json' -d '{example}'
```

## Output

- **`images`** (`list`): `url`, `content_type`, `width`, `height` of each
- **`seed`** (`integer`): of the first picture; picture k has `seed + k`
- **`has_nsfw_concepts`** (`list<boolean>`): whether the safety checker blacked a picture out
- **`prompt`** (`string`): what was drawn
- **`timings`** (`object`): seconds

How to queue, upload and read errors: {origin}/llms.txt
"""


def _key_line(is_open: bool) -> str:
    return "No key is needed." if is_open else "Every call needs the header `Authorization: Key YOUR_KEY`."


def _is_of_use(about: Schema) -> bool:
    """Whether a caller gains by the field: some are only there to be accepted, or to be refused in words."""
    return not str(about.get("description", "")).startswith(("Accepted", "Not supported"))


def _field(name: str, schema: Schema, is_required: bool) -> str:
    about = schema["properties"][name]
    kinds, limits = zip(*(_read(way, schema) for way in _ways(about, schema)), strict=True)
    default = f", default `{json.dumps(about['default'])}`" if "default" in about else ""
    need = "required" if is_required else "optional"
    may_be = " or ".join(limit for limit in limits if limit)
    said = " ".join(part for part in (about.get("description", ""), may_be and f"({may_be})") if part)
    return f"- **`{name}`** (`{' or '.join(dict.fromkeys(kinds))}`, {need}{default}): {said}".rstrip(": ")


def _ways(about: Schema, schema: Schema) -> Iterator[Schema]:
    """The forms that a value may have; a reference is what it refers to."""
    if "$ref" in about:
        yield from _ways(schema["$defs"][about["$ref"].rpartition("/")[2]], schema)
        return
    forms = about.get("anyOf") or about.get("oneOf")
    for form in forms or ():
        yield from _ways(form, schema)
    if not forms:
        yield about


def _read(way: Schema, schema: Schema) -> tuple[str, str]:
    """What kind of value it is, and what it may be."""
    limits = [text.format(way[name]) for name, text in _BOUNDS.items() if name in way]
    if "enum" in way:
        limits.append("one of " + ", ".join(f"`{json.dumps(value)}`" for value in way["enum"]))
    if "const" in way:
        limits.append(f"`{json.dumps(way['const'])}`")
    if "properties" in way:
        limits.append(f"an object of {', '.join(f'`{name}`' for name in way['properties'])}")
    if "items" in way:
        inner = [_read(item, schema) for item in _ways(way["items"], schema)]
        limits += [f"each {limit or kind}" for kind, limit in inner]
    return str(way.get("type", "string")), "; ".join(limits)
