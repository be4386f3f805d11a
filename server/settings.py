"""What the operator decides: flags over FLUXSERVE_* environment over a config file over defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One server's settings, validated once at start; imports nothing of ours."""

    model_config = SettingsConfigDict(env_prefix="FLUXSERVE_", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_port: int = Field(8443, ge=0, le=65535)
    data_dir: Path = Path("data")
    models: tuple[str, ...] = ("flux-shapes",)
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    api_keys: tuple[str, ...] = ()
    public_url: str | None = None
    allow_private_cidrs: tuple[str, ...] = ()
    allow_insecure_bind: bool = False
    max_queue: int = Field(10_000, ge=0)
    retention_s: float = Field(7 * 86400.0, gt=0)
    hang_s: float = Field(120.0, gt=0)
