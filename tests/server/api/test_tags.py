"""X-Fal-Tags by fal's rules."""

from __future__ import annotations

import pytest

from server.api.tags import read_tags


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        (None, {}),
        ("", {}),
        ("team=web", {"team": "web"}),
        (" team = web , env=prod ", {"team": "web", "env": "prod"}),
        ("url=a=b", {"url": "a=b"}),
        ("team=web,team=app", {"team": "app"}),
        ("fal.team=x,Fal.team=y,falcon=1", {"falcon": "1"}),
        ("alone,=nameless,empty=,team=web", {"team": "web"}),
        (f"{'n' * 64}={'v' * 256}", {"n" * 64: "v" * 256}),
        (f"{'n' * 65}=v,team=web", {"team": "web"}),
        (f"n={'v' * 257},team=web", {"team": "web"}),
        ("bell=\x07,team=web", {"team": "web"}),
    ],
)
def test_tags_that_break_a_rule_are_dropped(header: str | None, meant: dict[str, str]) -> None:
    assert read_tags(header) == meant


def test_only_ten_count_and_duplicates_are_counted_before_they_are_removed() -> None:
    assert list(read_tags(",".join(f"t{number}=x" for number in range(12)))) == [f"t{number}" for number in range(10)]
    assert read_tags(",".join(["same=1"] * 10 + ["late=1"])) == {"same": "1"}


def test_what_breaks_a_rule_takes_no_place_from_what_does_not() -> None:
    broken = ["fal.team=x", "alone", "=nameless", f"{'n' * 65}=v", f"n={'v' * 900}"] * 3
    assert read_tags(",".join([*broken, "team=web"])) == {"team": "web"}
    assert len(read_tags(",".join([*broken, *(f"t{number}=x" for number in range(11))]))) == 10


def test_only_so_many_bytes_count() -> None:
    header = ",".join(f"t{number}={'v' * 250}" for number in range(5))
    assert list(read_tags(header)) == ["t0", "t1", "t2", "t3"]


def test_what_was_sent_as_utf_8_is_read_as_such_and_latin_1_stays() -> None:
    sent = "équipe=été,狐=きつね"
    assert read_tags(sent.encode().decode("latin-1")) == {"équipe": "été", "狐": "きつね"}
    assert read_tags("équipe=été") == {"équipe": "été"}
    wide = "狐" * 256
    assert read_tags(f"a={wide}".encode().decode("latin-1")) == {"a": wide}, "characters count, not bytes"
    assert read_tags(f"a={wide},b={wide}".encode().decode("latin-1")) == {"a": wide}, "but 1,024 bytes in all"
