"""The operator's price table."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.api.prices import Prices, PricesError


def write(folder: Path, text: str) -> Path:
    file = folder / "prices.toml"
    file.write_text(text)
    return file


def test_nothing_costs_anything_without_a_table() -> None:
    assert Prices.read(None).cost("fal-ai/flux/dev", 9) == 0.0


def test_a_table_has_a_price_for_each_endpoint_and_one_for_the_rest(tmp_path: Path) -> None:
    text = 'currency = "EUR"\n[megapixel]\n"fal-ai/flux/dev" = 0.025\n"*" = 0.003\n'
    prices = Prices.read(write(tmp_path, text))
    assert (prices.currency, prices.cost("fal-ai/flux/dev", 3), prices.of("fal-ai/flux/schnell")) == (
        "EUR",
        0.075,
        0.003,
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[megapixel", "not valid TOML"),
        ('[megapixel]\n"a/b" = 1', "names a/b, which is no endpoint here"),
        ('[megapixel]\n"*" = -1', "greater than or equal to 0"),
        ('currency = "euro"', "currency"),
        ("price = 1", "price"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_in_a_sentence(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(PricesError, match=reason):
        Prices.read(write(tmp_path, text))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PricesError, match="cannot be read"):
        Prices.read(tmp_path / "none.toml")
