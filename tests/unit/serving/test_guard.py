"""Who is let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.errors import InputError, UsageError
from edge_effdet.serving.guard import Guard, Refusal
from edge_effdet.serving.options import ServeOptions

TOKEN = "0123456789abcdef"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def check(guard: Guard, path: str = "/detect", method: str = "POST", client: str = "192.0.2.1", **headers: str) -> int:
    """The status of a refusal; 0 where the request is let in."""
    sent = {"host": "127.0.0.1:8080", **headers}
    try:
        guard.check(method, path, {name.encode(): value.encode("latin-1") for name, value in sent.items()}, client)
    except Refusal as refusal:
        return refusal.status
    return 0


def test_a_site_cannot_reach_the_loopback_by_a_name_of_its_own():
    guard = Guard(ServeOptions(host_names="box.local"), 0)
    for host in ("127.0.0.1:8080", "localhost", "[::1]:80", "LOCALHOST:1", "box.local"):
        assert check(guard, host=host) == 0
    for host in ("evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil.example"):
        assert check(guard, host=host) == 421


def test_a_page_of_another_site_is_refused():
    guard = Guard(ServeOptions(), 0)
    assert check(guard, origin="http://127.0.0.1:8080") == 0
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1", "http://[x", ""):
        assert check(guard, origin=origin) == 403
    # A picture on its page has no Origin, and a link that somebody follows is no use of the service by the other site.
    asked = {"path": "/live.mjpeg", "method": "GET", "sec-fetch-site": "cross-site"}
    assert check(guard, **asked, **{"sec-fetch-mode": "no-cors"}) == 403
    assert check(guard, **asked, **{"sec-fetch-mode": "navigate"}) == 0


def test_the_token_is_asked_for_where_pictures_are(token_file: Path):
    guard = Guard(ServeOptions(listen="0.0.0.0:80", token_file=token_file), 0)
    for path in ("/detect", "/metrics", "/engine", "/live.mjpeg", "/v2/models/m/infer", "/v2", "/page", "//page/x"):
        assert check(guard, path) == 401, path
        assert check(guard, path, authorization=f"Bearer {TOKEN}") == 0
        # Another program's cookie may be of any form, and cookies do not tell ports apart.
        assert check(guard, path, cookie=f'prefs={{"a":1}}; edge_effdet_token_80={TOKEN}') == 0
        assert check(guard, path, cookie=f"edge_effdet_token_81={TOKEN}") == 401
        for wrong in ("Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9"):
            assert check(guard, path, authorization=wrong) == 401
        assert check(guard, path, cookie="edge_effdet_token_80=no") == 401
        assert check(guard, path, cookie="\x00;;=") == 401
    for path in ("/", "/page/page.js", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/session"):
        assert check(guard, path) == 0
    # Whoever has the token may call the service by any name.
    assert check(guard, host="box.example", authorization=f"Bearer {TOKEN}") == 0


def test_a_client_gets_its_rate_and_others_theirs():
    guard = Guard(ServeOptions(), 2)
    assert [check(guard) for _ in range(4)] == [0, 0, 429, 429]
    assert check(guard, client="192.0.2.2") == 0
    assert check(guard, method="GET") == 0
    with pytest.raises(Refusal) as refused:
        guard.check("POST", "/detect", {b"host": b"127.0.0.1"}, "192.0.2.1")
    assert int(refused.value.headers["Retry-After"]) >= 1


def test_a_rate_below_one_a_second_lets_the_first_request_in():
    guard = Guard(ServeOptions(), 0.1)
    assert [check(guard) for _ in range(2)] == [0, 429]


@pytest.mark.parametrize("text", ["", "short", "with a space in it, and long", "ü" * 20, "a" * 15])
def test_a_token_that_is_none(tmp_path: Path, text: str):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(InputError):
        Guard(ServeOptions(token_file=path), 0)
    with pytest.raises(InputError):
        Guard(ServeOptions(token_file=tmp_path / "missing"), 0)


def test_beyond_this_machine_everybody_would_be_let_in(token_file: Path):
    for listen in ("0.0.0.0:80", "[::]:80", "192.0.2.7:80"):
        with pytest.raises(UsageError, match="token_file"):
            ServeOptions(listen=listen)
        ServeOptions(listen=listen, token_file=token_file)
    for listen in ("127.0.0.1:0", "localhost:80", "[::1]:80", "127.9.9.9:1"):
        ServeOptions(listen=listen)
    for wrong in ("80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", ":80", "127.0.0.1:-1"):
        with pytest.raises(UsageError):
            ServeOptions(listen=wrong)
    with pytest.raises(UsageError, match="private_key"):
        ServeOptions(certificate=token_file)
    with pytest.raises(UsageError, match="HTTPS alone"):
        ServeOptions(client_authority=token_file)
