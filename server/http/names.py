"""The names of fal's own hosts, which mean this server wherever they are led to it."""

from __future__ import annotations

FAL_HOSTS = (
    "fal.run",
    "queue.fal.run",
    "ws.fal.run",
    "falrun.com",
    "queue.falrun.com",
    "rest.fal.ai",
    "rest.alpha.fal.ai",
    "api.fal.ai",
    "fal.ai",
    "fal.media",
    "v3.fal.media",
    "v3b.fal.media",
)
"""Names that reach us when fal's own hosts are redirected by DNS or by CONNECT (server/http/tunnels.py). The Python
client tries falrun.com when fal.run cannot be reached."""
