"""API keys over HTTP, in the words of fal's platform API: list, create, change, revoke. For an operator's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from server.api import accounts
from server.api.body import read_object
from server.api.platform import page_of
from server.api.validation import input_error
from server.gateway.key_file import LONGEST_NAME, USUAL_SCOPES, IssuedKey, KeyFile, KeyScope, check_name
from server.gateway.keys import Caller, KeyRing
from server.http.errors import PlainError, WireError
from server.jobs.limits import BudgetRule, Limits
from server.jobs.service import JobService
from server.routes.system.accounts import Cursor

OPEN = "This server asks for no key. The first one is made on its machine: `fluxserve keys new --scope admin`"
OWN_KEY = "This is the key that asks: end it with another one, or by `fluxserve keys revoke`"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "What cannot be meant, in words"},
    403: {"description": "The key is not the operator's, or the server is open"},
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "No key of this id is in use"}}

Bound = Annotated[int | None, Field(ge=1, lt=2**53)]
Alias = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(check_name)]


def _readable(text: str) -> str:
    BudgetRule.parse(text)
    return text


BudgetText = Annotated[str, AfterValidator(_readable), Field(description="5/day in money, 200mp/month in megapixels")]


class KeyLimits(BaseModel):
    """What a key may take at once; null is no limit of its own."""

    model_config = ConfigDict(extra="forbid")

    running: Bound = None
    waiting: Bound = None
    per_minute: Bound = None
    storage_bytes: Bound = None


class NewKey(BaseModel):
    """A key to make. `alias` alone is fal's; the rest is what `fluxserve keys new` knows."""

    model_config = ConfigDict(extra="forbid")

    alias: Alias
    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=len(KeyScope))] = list(USUAL_SCOPES)
    tenant: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    limits: KeyLimits = KeyLimits()
    budgets: Annotated[list[BudgetText], Field(max_length=8)] = []


class KeyChange(BaseModel):
    """What is given takes the place of what the key has."""

    model_config = ConfigDict(extra="forbid")

    alias: Alias | None = None
    limits: KeyLimits | None = None
    budgets: Annotated[list[BudgetText], Field(max_length=8)] | None = None


Model = TypeVar("Model", NewKey, KeyChange)


async def _read(request: Request, kind: type[Model]) -> Model:
    try:
        return kind.model_validate(await read_object(request))
    except ValidationError as exc:
        raise input_error(exc) from exc


async def _new_key(request: Request) -> NewKey:
    return await _read(request, NewKey)


async def _key_change(request: Request) -> KeyChange:
    return await _read(request, KeyChange)


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    inner = _without_references(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inner}}}}


def _without_references(value: Any, definitions: dict[str, Any]) -> Any:
    """A schema whole in itself, as a part of the document must be."""
    if isinstance(value, list):
        return [_without_references(each, definitions) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        value = definitions[value["$ref"].rpartition("/")[2]] | {k: v for k, v in value.items() if k != "$ref"}
    return {name: _without_references(each, definitions) for name, each in value.items()}


def keys_router(file: KeyFile, keys: KeyRing, jobs: JobService) -> APIRouter:
    """The routes; the gateway asks for a key with the scope admin. Plain `def`: they wait for the disk, on threads."""
    router = APIRouter(responses=_ANSWERS, dependencies=[Depends(lambda: _refuse_open(keys))])

    @router.get("/v1/keys")
    def listed(
        include_revoked: Annotated[bool, Query(description="Those that no longer admit, too")] = False,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """All keys without their secrets, the newest first, then those of the settings."""
        issued = [key for key in reversed(file.read()) if include_revoked or key.revoked_at is None]
        every: list[IssuedKey | str] = [*issued, *keys.configured]
        page, following = page_of(every, limit, cursor)
        shown = [_configured(key) if isinstance(key, str) else _entry(key, jobs) for key in page]
        return {"keys": shown, "next_cursor": following, "has_more": following is not None}

    @router.post("/v1/keys", status_code=201, openapi_extra=_body(NewKey))
    def create(wanted: Annotated[NewKey, Depends(_new_key)]) -> dict[str, Any]:
        """Make a key. Its secret is in this answer and nowhere else."""
        budgets = [BudgetRule.parse(text) for text in wanted.budgets]
        key, issued = file.issue(wanted.alias, wanted.tenant, wanted.scopes, _limits(wanted.limits), budgets)
        keys.refresh()
        return {"key_id": issued.id, "key_secret": key.partition(":")[2], "key": key}

    @router.patch("/v1/keys/{key_id}", responses=_UNKNOWN, openapi_extra=_body(KeyChange))
    def change(key_id: str, wanted: Annotated[KeyChange, Depends(_key_change)]) -> dict[str, Any]:
        """Give a key another name, other limits or other budgets; they hold at once."""
        budgets = None if wanted.budgets is None else [BudgetRule.parse(text) for text in wanted.budgets]
        limits = None if wanted.limits is None else _limits(wanted.limits)
        if not file.change(key_id, wanted.alias, None if limits is None else lambda own: limits, budgets):
            raise WireError(404, {"detail": f"No key {key_id[:64]} is in use", "code": "not_found"})
        keys.refresh()
        return _entry(next(key for key in file.read() if key.id == key_id), jobs)

    @router.delete("/v1/keys/{key_id}", status_code=204, responses={409: {"description": "The key that asks"}})
    def revoke(key_id: str, request: Request) -> Response:
        """End a key for good; what it has submitted runs on. As on fal, one that is not there is no error."""
        caller: Caller = request.scope["caller"]
        if caller.key == key_id:
            raise PlainError(409, OWN_KEY)
        file.revoke(key_id)
        keys.refresh()
        return Response(status_code=204)

    return router


def _refuse_open(keys: KeyRing) -> None:
    """Whoever is let in without a key must not be able to lock everybody else out."""
    if keys.is_open:
        raise PlainError(403, OPEN)


def _limits(given: KeyLimits) -> Limits:
    return Limits(**given.model_dump())


def _entry(key: IssuedKey, jobs: JobService) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "alias": key.name,
        "scope": "ADMIN" if KeyScope.ADMIN in key.scopes else "API",
        "scopes": list(key.scopes),
        "tenant": key.tenant,
        "created_at": accounts.iso(key.created_at),
        "revoked_at": None if key.revoked_at is None else accounts.iso(key.revoked_at),
        "is_configured": False,
        "limits": KeyLimits.model_validate(key.limits, from_attributes=True).model_dump(),
        "budgets": _budgets(key.id, key.budgets, jobs),
    }


def _budgets(key_id: str, rules: Sequence[BudgetRule], jobs: JobService) -> list[dict[str, Any]]:
    """Each as it was given, and how much of it is used; nothing is counted any more for a key that has ended."""
    counted = [accounts.budget_entry(budget, jobs.store, key_id) for budget in jobs.allowance.budgets(key_id)]
    if len(counted) != len(rules):
        return [{"rule": str(rule)} for rule in rules]
    return [{"rule": str(rule)} | entry for rule, entry in zip(rules, counted, strict=True)]


def _configured(key_id: str) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "alias": "",
        "scope": "ADMIN",
        "scopes": list(KeyScope),
        "tenant": key_id,
        "created_at": None,
        "revoked_at": None,
        "is_configured": True,
        "limits": KeyLimits().model_dump(),
        "budgets": [],
    }
