"""Text with values in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khomas.kit.expressions import Scalar
from khomas.kit.templating import TemplateError, parse_template


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("run_{run:06d}.fits", "run_004742.fits"),
        ("{zenith:02d}/{zenith}", "60/60"),
        ("{emin:.3f}", "0.015"),
        ("{text:02d}", "07"),
        ("{text:>4}", "   7"),
        ("{flag}", "true"),
        ("{whole:03d}", "005"),
        ("{{print $1}}", "{print $1}"),
        ("no key", "no key"),
        ("", ""),
    ],
)
def test_template_is_filled(source: str, expected: object) -> None:
    values: dict[str, Scalar] = {"run": 4742, "zenith": 60, "emin": 0.0146, "text": "7", "flag": True, "whole": 5.0}
    assert parse_template(source).fill(values) == expected


@pytest.mark.parametrize("source", ["{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{A}", "{a:{b}}", "{a:9999}"])
def test_what_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        parse_template(source)


def test_unknown_key_is_refused_with_the_nearest_and_its_position() -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template("sim_{zenit}").require(frozenset({"zenith", "index"}))
    assert (caught.value.position, caught.value.nearest) == (4, "zenith")


def test_value_that_does_not_fit_its_format_is_refused() -> None:
    with pytest.raises(TemplateError, match="cannot be formatted"):
        parse_template("{kind:02d}").fill({"kind": "gamma"})


@given(st.text())
def test_text_with_doubled_braces_comes_back(text: str) -> None:
    assert parse_template(text.replace("{", "{{").replace("}", "}}")).fill({}) == text
