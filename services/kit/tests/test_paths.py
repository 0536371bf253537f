"""The differential table of scope paths, and the rule as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khomas.kit.auth.paths import Cover, decoded_path, odd_path

SEGMENT = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)
PATH = st.lists(SEGMENT, max_size=4).map(lambda segments: "/" + "/".join(segments))


@pytest.mark.parametrize(
    ("scope", "request_path"),
    [
        ("/foo", "/foobar"),
        ("/foo", "/foo/%2e%2e/secret"),
        ("/foo", "/foo/../secret"),
        ("/foo%2Fbar", "/foo/bar"),
        ("/FOO", "/foo"),
        ("/foo/", "/foo"),
        ("/re\u0301sume\u0301", "/résumé"),
        ("/foo/bar", "/foo"),
        ("/foo", "/"),
        ("/foo", "foo"),
    ],
)
def test_path_outside_the_scope_is_refused(scope: str, request_path: str) -> None:
    plain = decoded_path(scope)
    assert plain is None or odd_path([request_path]) is not None or Cover([plain]).uncovered([request_path])


@pytest.mark.parametrize(
    ("scope", "request_path"),
    [
        ("/foo", "/foo"),
        ("/foo", "/foo/"),
        ("/foo", "/foo/bar"),
        ("/foo/", "/foo/bar"),
        ("/", "/anything/at/all"),
        ("/", "/"),
        ("/%66oo", "/foo"),
        ("/with%20space", "/with space/x"),
        ("/résumé", "/résumé/x"),
    ],
)
def test_path_inside_the_scope_is_allowed(scope: str, request_path: str) -> None:
    plain = decoded_path(scope)
    assert plain is not None
    assert odd_path([request_path]) is None
    assert Cover([plain]).uncovered([request_path]) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "foo",
        "/foo/..",
        "/foo/../",
        "/./foo",
        "/foo/.",
        "//foo",
        "/foo//bar",
        "/foo//",
        "/foo%2fbar",
        "/foo%2Fbar",
        "/%2e%2e/x",
        "/foo%",
        "/foo%4",
        "/foo%zz",
        "/foo%00",
        "/foo%0abar",
        "/foo\nbar",
        "/foo\x00",
        "/foo\x7f",
        "/foo\x85",
        "/re\u0301sume\u0301",
    ],
)
def test_odd_path_is_refused_in_scopes_and_requests(path: str) -> None:
    assert odd_path([path]) == path
    assert decoded_path(path) is None


@pytest.mark.parametrize("path", ["/%ff", "/%c2%85", "/re%CC%81"])
def test_scope_that_decodes_to_something_odd_is_refused(path: str) -> None:
    assert decoded_path(path) is None


def test_one_odd_path_among_many_is_found() -> None:
    paths = [f"/vo/file_{number}" for number in range(10_000)]
    paths[7_000] = "/vo/../secret"
    assert odd_path(paths) == "/vo/../secret"


@given(PATH, PATH)
def test_scope_covers_exactly_the_paths_that_begin_with_its_segments(scope: str, path: str) -> None:
    wanted, asked = ([part for part in text.split("/") if part] for text in (scope, path))
    covered = Cover([scope]).uncovered([path]) is None
    assert covered == (asked[: len(wanted)] == wanted)


@given(PATH, st.sampled_from(["/..", "/.", "//", "/%2e", "/%2F", "/\x00", "/%", "/a\n/b"]), PATH)
def test_no_oddity_anywhere_passes(before: str, oddity: str, after: str) -> None:
    path = before.rstrip("/") + oddity + after
    assert odd_path([path]) is not None
    assert decoded_path(path) is None


@given(st.lists(PATH, max_size=5), PATH)
def test_many_scopes_cover_what_any_of_them_covers(scopes: list[str], path: str) -> None:
    each = any(Cover([scope]).uncovered([path]) is None for scope in scopes)
    assert (Cover(scopes).uncovered([path]) is None) == each
