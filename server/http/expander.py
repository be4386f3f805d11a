"""Has a language model of the operator's choice write prompts out: any server that speaks OpenAI's chat completions.

Its address is the operator's own, so it may lie inside, unlike those that callers name.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any

import httpx

KEPT = 1024
"""Expansions that are remembered, by whose they are and prompt: how soon one comes must not tell what others ask."""
MAX_TOKENS = 512
MAX_CHARACTERS = 8192
INSTRUCTION = (
    "You write prompts for a text-to-image model. Rewrite the user's prompt as one paragraph of plain English, at most "
    "120 words: keep every subject, number, colour, place and quoted text of it, and add composition, light, materials "
    "and style where it leaves them open. Answer with the paragraph alone."
)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


class ExpansionError(Exception):
    """There is no expansion; the sentence says why, without an address."""


class Expander:
    """Args: url: below which `/chat/completions` lies. model: None for the first that the server lists."""

    def __init__(self, url: str, model: str | None = None, key: str | None = None, timeout_s: float = 20.0) -> None:
        self.timeout_s = timeout_s
        self._model = model
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # The timeout is over all of a call; not by a proxy of the environment, which may be this server.
        self._http = httpx.AsyncClient(base_url=f"{url.rstrip('/')}/", headers=headers, timeout=None, trust_env=False)

    async def expand(self, prompt: str, within_s: float | None = None, whose: str = "") -> str:
        """The prompt written out. Args: within_s: if less than the usual time is left. Raises: ExpansionError."""
        if (known := self._kept.get((whose, prompt))) is not None:
            self._kept.move_to_end((whose, prompt))
            return known
        within_s = self.timeout_s if within_s is None else min(within_s, self.timeout_s)
        try:
            async with asyncio.timeout(within_s):
                text = _text_of(await self._answer(prompt))
        except TimeoutError as exc:
            raise ExpansionError(f"no answer within {within_s:.3g} s") from exc
        except httpx.HTTPStatusError as exc:
            raise ExpansionError(f"it answered {exc.response.status_code}") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise ExpansionError(f"it cannot be reached ({type(exc).__name__})") from exc
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as exc:
            raise ExpansionError("its answer has no text") from exc
        self._keep((whose, prompt), text)
        return text

    async def aclose(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def _answer(self, prompt: str) -> Any:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
        body = {"model": await self._model_name(), "messages": messages, "max_tokens": MAX_TOKENS, "stream": False}
        answer = await self._http.post("chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()

    async def _model_name(self) -> str:
        if self._model is None:
            answer = await self._http.get("models")
            answer.raise_for_status()
            self._model = str(answer.json()["data"][0]["id"])
        return self._model

    def _keep(self, asked: tuple[str, str], text: str) -> None:
        self._kept[asked] = text
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _text_of(answer: Any) -> str:
    """Raises: ValueError if it is empty or too long for a prompt; what a reasoning model thinks aloud is left out."""
    text = _THOUGHTS.sub("", answer["choices"][0]["message"]["content"]).strip().strip('"').strip()
    text = text.encode("utf-8", "replace").decode()  # an answer that was cut may end in half a character
    if not 0 < len(text) <= MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters")
    return text
