"""What this server offers, for people and programs: the model list and an OpenAPI document from the endpoint table."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from models.registry import ModelSpec
from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.paths import app_root
from server.api.schemas import answers
from server.api.served import NotServedError, Served
from server.api.unserved import UNSERVED, Unserved

_SCHEMAS = "#/components/schemas/"


def model_list(rows: Iterable[Endpoint | Unserved], served: Served) -> dict[str, Any]:
    """The endpoints in fal's shape (`models`) and OpenAI's (`data`) at once; `served_by` names the checkpoint.

    What this server never answers is in fal's alone, with its reason: whoever lists OpenAI's picks from it.
    """
    listed = list(rows)
    return {
        "object": "list",
        "data": [openai_entry(row) for row in listed if isinstance(row, Endpoint)],
        "models": [_entry(row, served) if isinstance(row, Endpoint) else _unserved_entry(row) for row in listed],
        "next_cursor": None,
        "has_more": False,
    }


def openai_entry(row: Endpoint) -> dict[str, Any]:
    """One endpoint as OpenAI describes a model."""
    return {"id": row.id, "object": "model", "created": 0, "owned_by": row.id.split("/")[0]}


def _unserved_entry(row: Unserved) -> dict[str, Any]:
    return {
        "endpoint_id": row.id,
        "metadata": {"display_name": row.id, "status": "unavailable", "reason": row.summary},
    }


def _entry(row: Endpoint, served: Served) -> dict[str, Any]:
    metadata: dict[str, Any] = {"display_name": row.summary, "category": row.category}
    metadata |= {"alias_of": row.alias_of} if row.alias_of else {}
    try:
        spec, by_steps = served.model_for(row.variants, row.usual_steps), served.by_steps(row.variants)
        beside = None if row.beside is None else served.beside(spec, row.beside)
    except NotServedError as exc:
        reason = str(exc.body["detail"])
        return {"endpoint_id": row.id, "metadata": metadata | {"status": "unavailable", "reason": reason}}
    metadata |= {
        "status": "active",
        "served_by": spec.name,
        "is_on_demand": spec in served.on_demand,
        **({"by_steps": {str(steps): each.name for steps, each in by_steps.items()}} if by_steps else {}),
        "with": None if beside is None or beside == spec else beside.name,
        "is_substitute": _is_substitute(row, spec),
        "licence": spec.licence,
    }
    return {"endpoint_id": row.id, "metadata": metadata}


def _is_substitute(row: Endpoint, spec: ModelSpec) -> bool:
    """Whether other weights answer than the id says: an operator's alias, another kind, or pro, which is closed."""
    is_closed = row.id.startswith("fal-ai/flux-pro")
    return row.alias_of is not None or row.variants[0] != spec.variant or is_closed


def openapi(
    rows: Iterable[Endpoint], title: str, version: str, is_protected: bool, server_url: str = "/"
) -> dict[str, Any]:
    """OpenAPI 3.1 of some endpoints: each runs at once under /run, is queued under /queue, and is followed up."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for row in rows:
        name = _name(row)
        _collect(row.schema.model_json_schema(ref_template=_SCHEMAS + "{model}"), f"{name}Input", schemas)
        paths[f"/run/{row.id}"] = {"post": _run(row, name)}
        paths[f"/run/{row.id}/stream"] = {"post": _stream(row, name)}
        paths[f"/queue/{row.id}"] = {"post": _submit(row, name)}
        paths |= _follow_ups(app_root(row.id))
    for model in answers.ALL:
        _collect(model.model_json_schema(ref_template=_SCHEMAS + "{model}"), model.__name__, schemas)
    key = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Key YOUR_KEY"}
    document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "servers": [{"url": server_url}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"apiKeyAuth": key}},
    }
    return document | ({"security": [{"apiKeyAuth": []}]} if is_protected else {})


def queue_openapi(row: Endpoint, version: str, is_protected: bool, server_url: str) -> dict[str, Any]:
    """One endpoint's document, with the metadata that fal puts there. Only its outermost parts are the caller's own."""
    document = _queue_document(row, version, is_protected)
    metadata = {
        "endpointId": row.id,
        "category": "text-to-image",
        "playgroundUrl": f"{server_url}/playground/{row.id}",
        "documentationUrl": f"{server_url}/docs",
    }
    return document | {"servers": [{"url": server_url}], "info": document["info"] | {"x-fal-metadata": metadata}}


@cache
def _queue_document(row: Endpoint, version: str, is_protected: bool) -> dict[str, Any]:
    """Of a lasting table: a list of all of them with their documents took half a second of the event loop."""
    return openapi([row], f"Queue OpenAPI for {row.id}", version, is_protected)


def all_endpoints() -> list[Endpoint]:
    """Every row of the table, in its order."""
    return list(ENDPOINTS.values())


def whole_catalogue() -> list[Endpoint | Unserved]:
    """And behind them those of fal's FLUX endpoints that this server does not answer, by an alias neither."""
    unserved = (Unserved(name, reason) for name, reason in UNSERVED.items() if name not in ENDPOINTS)
    return [*ENDPOINTS.values(), *unserved]


def _name(row: Endpoint) -> str:
    """`fal-ai/flux-pro/v1.1` -> `FluxProV11`."""
    words = row.id.removeprefix("fal-ai/").replace("/", "-").replace(".", "").split("-")
    return "".join(word.capitalize() for word in words)


def _collect(schema: dict[str, Any], name: str, schemas: dict[str, Any]) -> None:
    """Put a pydantic schema and what it refers to under their names."""
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema | {"title": name, "x-fal-order-properties": list(schema.get("properties", {}))}


def _run(row: Endpoint, name: str) -> dict[str, Any]:
    answers_ = {"200": _json("The pictures", "Output")} | _errors(
        "400", "401", "413", "422", "429", "499", "500", "503", "504"
    )
    return _operation(f"{row.summary}: run now", f"run{name}", answers_, name)


def _stream(row: Endpoint, name: str) -> dict[str, Any]:
    events = {
        "description": "Progress events, then the output",
        "content": {"text/event-stream": {}},
    }
    answers_ = {"200": events} | _errors("400", "401", "413", "422", "429", "499", "500", "503", "504")
    return _operation(f"{row.summary}: run now, with progress", f"stream{name}", answers_, name)


def _submit(row: Endpoint, name: str) -> dict[str, Any]:
    answers_ = {"200": _json("Stored", "QueueStatus")} | _errors("400", "401", "413", "422", "429", "503")
    return _operation(f"{row.summary}: put in the queue", f"submit{name}", answers_, name)


def _follow_ups(root: str) -> dict[str, Any]:
    """The four questions about a request of one app."""
    base = f"/queue/{root}/requests/{{request_id}}"
    name = "".join(part.capitalize() for part in root.replace("/", "-").split("-"))
    request_id = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}
    logs = {"name": "logs", "in": "query", "schema": {"type": "string", "enum": ["0", "1", "true", "false"]}}
    status = {"200": _json("Ended", "QueueStatus"), "202": _json("Not ended yet", "QueueStatus")} | _errors(
        "401", "404"
    )
    events = {"description": "Status events", "content": {"text/event-stream": {}}}
    result = {"200": _json("The pictures", "Output")} | _errors("400", "401", "404", "422", "499", "500", "503", "504")
    cancel = {"202": _json("The request will end", "Cancellation")} | _errors("400", "401", "404")
    operations = {
        base: ("get", "Result", f"result{name}", result, [request_id]),
        f"{base}/status": ("get", "Status", f"status{name}", status, [request_id, logs]),
        f"{base}/status/stream": (
            "get",
            "Status events",
            f"events{name}",
            {"200": events} | _errors("401", "404"),
            [request_id, logs],
        ),
        f"{base}/cancel": ("put", "Cancel", f"cancel{name}", cancel, [request_id]),
    }
    return {
        path: {verb: {"summary": summary, "operationId": name_, "parameters": parameters, "responses": responses}}
        for path, (verb, summary, name_, responses, parameters) in operations.items()
    }


def _operation(summary: str, name: str, responses: dict[str, Any], schema: str) -> dict[str, Any]:
    body = {"content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{schema}Input"}}}}
    return {"summary": summary, "operationId": name, "requestBody": body | {"required": True}, "responses": responses}


def _json(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _SCHEMAS + schema}}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: _json("See docs/api.md, errors", "ErrorAnswer") for status in statuses}
