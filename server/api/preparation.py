"""The last look at an input before its worker: its pictures are read, its adapters fetched, its prompt written out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from models.registry import ModelSpec
from pipelines.protocol.conditions import Adapter, InputPicture
from server.api.endpoints import ENDPOINTS
from server.api.errors import InputError, Problem, problem
from server.api.pictures import read_pictures
from server.api.schemas.base import Input
from server.api.schemas.needs import AdapterNeed, PictureNeed
from server.api.schemas.pictures import Loc
from server.api.schemas.sizes import Size
from server.api.served import NotServedError, Served
from server.api.submission import Wish, decide, not_served, parse, rejection
from server.files.adapters import AdapterRefusedError, Adapters
from server.files.decoding import Pixels
from server.files.inputs import Inputs
from server.http.expander import Expander, ExpansionError
from server.jobs.live import EXPANDED, LiveJobs
from server.jobs.preparation import Prepared
from server.jobs.store.job import Job, Outcome

logger = logging.getLogger("fluxserve")


class Preparation:
    """See `server.jobs.preparation.Prepare`."""

    def __init__(
        self,
        served: Served,
        inputs: Inputs,
        adapters: Adapters,
        live: LiveJobs,
        expander: Expander | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._served = served
        self._inputs = inputs
        self._adapters = adapters
        self._live = live
        self._expander = expander
        self._now = now

    async def __call__(self, job: Job) -> Prepared | Outcome:
        """The job's parameters and pixels, or how it ends because its input is at fault."""
        try:
            return await self._prepare(job)
        except InputError as exc:
            return rejection(exc)
        except NotServedError as exc:
            return not_served(exc)

    def fault(self, job: Job, loc: Sequence[str | int], message: str) -> Outcome:
        """How the job has ended whose worker found a fault in its input.

        Args: loc: a field of one of its conditions, or of the body, as the worker knows it: ("inpaint", "mask").
        """
        _, _, wish = self._look_at(job)
        return rejection(InputError([problem(_field(wish, loc), message, "value_error")]))

    def _look_at(self, job: Job) -> tuple[Input, ModelSpec, Wish]:
        """The input, checked again, and what it asks for, before any of it is read."""
        endpoint = ENDPOINTS[job.endpoint]
        parsed = parse(endpoint, job.input)
        spec = self._served.model_for(endpoint.variants, parsed.steps())
        return parsed, spec, decide(parsed, spec, self._served)

    async def _prepare(self, job: Job) -> Prepared:
        assert job.params is not None
        parsed, spec, wish = self._look_at(job)
        adapters = await self._fetch(job, parsed.adapters())
        pictures = await self._read(job, wish.pictures)
        sizes: list[Size] = [picture.given_size for picture in pictures]
        final = decide(
            parsed,
            spec,
            self._served,
            pictures=sizes,
            adapters=adapters,
            seed=job.params["seed"],
            preview_every=job.params["preview_every"],
        )
        prompt, timings = await self._written_out(job, parsed)
        params = replace(final.params, prompt=prompt)
        return Prepared(params.to_dict(), [_as_frame(picture) for picture in pictures], timings)

    async def _written_out(self, job: Job, parsed: Input) -> tuple[str, dict[str, float]]:
        """The prompt to draw, and how long its expansion took. Without one it is used as it was written."""
        prompt = parsed.text()
        if not parsed.wants_expansion() or not prompt.strip():
            return prompt, {}
        if self._expander is None:
            self._live.log(job.id, "this server has no prompt expander: the prompt is used as written", "WARN")
            return prompt, {}
        began = time.monotonic()
        try:
            # Half of what a start deadline leaves: the request must not end because its prompt takes long.
            left_s = None if job.start_deadline is None else max(0.0, job.start_deadline - self._now()) / 2
            text = await self._expander.expand(prompt, left_s, job.tenant)
        except ExpansionError as exc:
            logger.warning("request %s: the prompt was not expanded: %s", job.id, exc)
            self._live.log(job.id, f"the prompt was not expanded, and is used as written: {exc}", "WARN")
            return prompt, {"prompt_expansion": time.monotonic() - began}
        self._live.log(job.id, f"{EXPANDED}: {text}" if job.store_io else EXPANDED)
        return text, {"prompt_expansion": time.monotonic() - began}

    async def _fetch(self, job: Job, needs: Sequence[AdapterNeed]) -> tuple[Adapter, ...]:
        if not needs:
            return ()
        self._live.log(job.id, "fetching the adapter" if len(needs) == 1 else f"fetching {len(needs)} adapters")
        found = await asyncio.gather(*(self._resolve(need, job.tenant) for need in needs))
        if problems := [each for each in found if isinstance(each, dict)]:
            raise InputError(problems)
        return tuple(each for each in found if isinstance(each, Adapter))

    async def _resolve(self, need: AdapterNeed, tenant: str) -> Adapter | Problem:
        try:
            return Adapter(await self._adapters.resolve(need.path, tenant), need.scale)
        except AdapterRefusedError as exc:
            return problem(need.loc, exc.message, exc.kind, value=need.path)

    async def _read(self, job: Job, needs: Sequence[PictureNeed]) -> list[Pixels]:
        if not needs:
            return []
        self._live.log(job.id, "reading the picture" if len(needs) == 1 else f"reading {len(needs)} pictures")
        return await read_pictures(self._inputs, needs, tenant=job.tenant)


def _field(wish: Wish, loc: Sequence[str | int]) -> Loc:
    """The field of the endpoint that a worker's place means: workers know conditions, not endpoints."""
    condition = next((each for each in wish.params.conditions if loc and each.kind == loc[0]), None)
    if condition is None:
        return tuple(loc) if loc and loc[0] == "loras" else ()
    match tuple(loc[1:]):
        case ("mask",):
            index = condition.pictures[1]
        case ("pictures", int(position)):
            index = condition.pictures[position]
        case _:  # its picture, or what the endpoint chose for it
            index = condition.pictures[0]
    return wish.pictures[index].loc


def _as_frame(picture: Pixels) -> dict[str, object]:
    return InputPicture(picture.width, picture.height, picture.channels, picture.data).to_dict()
