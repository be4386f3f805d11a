"""Where a server that claims fal's protocol has its areas."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

FAL_HOST = "fal.run"


@dataclass(frozen=True)
class Areas:
    """Addresses without a slash at the end. Args: proxy: the proxy endpoint of fal's JavaScript client, if any."""

    run: str
    queue: str
    rest: str
    cdn: str
    proxy: str | None = None

    @property
    def realtime(self) -> str:
        """The run area as WebSockets reach it."""
        return "ws" + self.run.removeprefix("http")

    @classmethod
    def of(cls, url: str) -> Areas:
        """fal's own hosts for fal's own address; for any other one our prefixes below it."""
        base = url.rstrip("/")
        if httpx.URL(base).host == FAL_HOST:
            return cls("https://fal.run", "https://queue.fal.run", "https://rest.fal.ai", "https://v3.fal.media")
        return cls(f"{base}/run", f"{base}/queue", f"{base}/rest", f"{base}/cdn", f"{base}/api/fal/proxy")
