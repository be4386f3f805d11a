"""The operator's own prices for what is drawn: a TOML file, and zero for everything without one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from server.api.endpoints import ENDPOINTS
from server.jobs.limits import BudgetRule
from server.jobs.store.budgets import Budget

ANY = "*"
UNIT = "megapixels"


class PricesError(Exception):
    """The price table cannot be used; the sentence says why."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    megapixel: dict[str, NonNegativeFloat] = {}


@dataclass(frozen=True, slots=True)
class Prices:
    """What a megapixel costs, by endpoint. Args: by_endpoint: `*` is for all others, zero without it."""

    currency: str = "USD"
    by_endpoint: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path | None) -> Prices:
        """The table of a file; zero for everything without one. Raises: PricesError."""
        if file is None:
            return cls()
        try:
            table = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as exc:
            raise PricesError(f"{file} cannot be read: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise PricesError(f"{file} is not valid TOML: {exc}") from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            raise PricesError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
        if (unknown := next((name for name in table.megapixel if name not in (ANY, *ENDPOINTS)), None)) is not None:
            hint = "`fluxserve models --endpoints` lists them"
            raise PricesError(f"{file} names {unknown}, which is no endpoint here; {hint}")
        return cls(table.currency, table.megapixel)

    def of(self, endpoint: str) -> float:
        """Of one megapixel."""
        return self.by_endpoint.get(endpoint, self.by_endpoint.get(ANY, 0.0))

    def budget(self, rule: BudgetRule) -> Budget:
        """A key's rule with what endpoints cost now."""
        if rule.unit == "megapixels":
            return Budget(rule.amount, UNIT, rule.period, lambda endpoint: 1.0)
        return Budget(rule.amount, self.currency, rule.period, self.of)

    def cost(self, endpoint: str, units: float) -> float:
        """Of so many megapixels, to the millionth."""
        return round(self.of(endpoint) * units, 6)
