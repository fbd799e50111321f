"""Bytes → requests, without sockets."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.api.message import Request
from predictor.api.reader import MAX_HEAD_BYTES, MAX_HEADERS, Limits, Load, RequestReader
from predictor.errors import BodyTooLarge, HeadTooLarge, HearthError, MalformedRequest, MethodNotAllowed, TooManyRequests

LIMITS = Limits(max_body_bytes=1000, max_body_bytes_in_flight=1500, max_connections=10, idle_timeout_s=1.0)


class Rig:
    """A reader and what it read."""

    def __init__(self, **limits: Any) -> None:
        self.requests: list[Request] = []
        self.load = Load()
        self.reader = RequestReader(
            replace(LIMITS, **limits),
            self.load,
            make=lambda began_s: Request(lambda *_: None, lambda *_: _nothing(), began_s),
            ready=self.requests.append,
        )

    def feed(self, data: bytes) -> list[tuple[str, str, bytes]]:
        """Feed as a connection does; what all requests so far were."""
        at = 0
        while at < len(data):
            take_bytes = self.reader.take_bytes
            self.reader.feed(data[at : at + take_bytes])
            at += take_bytes
        return [(request.method, request.path, bytes(request.body)) for request in self.requests]

    def feed_in_steps(self, data: bytes, step: int) -> None:
        for at in range(0, len(data), step):
            self.feed(data[at : at + step])


def _nothing() -> Any:
    raise AssertionError("a reader starts no work")


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    pieces = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (path.encode(), b"".join(pieces))


GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
TALK = GET + post("/b", b"x" * 300) + chunked("/c", b"abc", b"d" * 200) + GET + post("/e", b"") + post("/f", b"y" * 50)


@given(st.lists(st.integers(1, len(TALK)), max_size=12))
def test_however_a_stream_is_cut_the_same_requests_are_read(cuts: list[int]) -> None:
    whole, cut = Rig(), Rig()
    edges = [0, *sorted(cuts), len(TALK)]

    expected = whole.feed(TALK)
    for begin, end in itertools.pairwise(edges):
        found = cut.feed(TALK[begin:end])

    assert found == expected
    assert [path for _, path, _ in found] == ["/a", "/b", "/c", "/a", "/e", "/f"]
    assert cut.load == whole.load == Load(0, 300 + 203 + 50)


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    with contextlib.suppress(MalformedRequest):  # anything else that is raised fails this test
        Rig().feed(data)


@given(st.data())
def test_a_stream_with_a_damaged_byte_is_read_or_refused_and_the_books_stay_true(data: st.DataObject) -> None:
    rig = Rig()
    at = data.draw(st.integers(0, len(TALK) - 1))
    try:
        rig.feed(TALK[:at] + data.draw(st.binary(min_size=1, max_size=3)) + TALK[at + 1 :])
    except HearthError:
        pass
    finally:
        rig.reader.close()
    assert rig.load.body_bytes == sum(request.body_bytes for request in rig.requests)


SMUGGLING = {
    "length and chunked": "Content-Length: 3\r\nTransfer-Encoding: chunked",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 3",
    "two lengths": "Content-Length: 3\r\nContent-Length: 3",
    "two different lengths": "Content-Length: 3\r\nContent-Length: 4",
    "a list of lengths": "Content-Length: 3, 3",
    "a signed length": "Content-Length: +3",
    "a hexadecimal length": "Content-Length: 0x3",
    "a length beyond 64 bits": "Content-Length: 99999999999999999999",
    "an encoding inside chunked": "Transfer-Encoding: gzip, chunked",
    "an encoding that is not chunked": "Transfer-Encoding: identity",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunked in disguise": "Transfer-Encoding: xchunked",
    "a space before the colon": "Content-Length : 3",
    "a folded header": "X-A: b\r\n Content-Length: 3",
    "a bare line feed": "X-A: b\nContent-Length: 3",
    "a zero byte": "X-A: b\0c",
    "a second host": "Host: other",
}


@pytest.mark.parametrize("case", SMUGGLING)
def test_a_head_that_two_servers_could_read_differently_is_refused(case: str) -> None:
    head = f"POST / HTTP/1.1\r\nHost: h\r\n{SMUGGLING[case]}\r\n\r\nabc"

    with pytest.raises(MalformedRequest):
        Rig().feed(head.encode())


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_not_http_1_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedRequest):
        Rig().feed(head)


def test_connect_is_refused() -> None:
    with pytest.raises(MethodNotAllowed, match="no proxy"):
        Rig().feed(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n")


@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_a_head_without_end_is_refused_when_it_exceeds_the_limit(step: int) -> None:
    rig = Rig()
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * (2 * MAX_HEAD_BYTES)

    with pytest.raises(HeadTooLarge, match=f"exceed {MAX_HEAD_BYTES} bytes"):
        rig.feed_in_steps(head, step)


def test_a_request_line_without_end_is_refused() -> None:
    with pytest.raises(HeadTooLarge):
        Rig().feed(b"GET /" + b"a" * (2 * MAX_HEAD_BYTES))


def test_more_headers_than_the_limit_are_refused() -> None:
    lines = "".join(f"X-{number}: a\r\n" for number in range(MAX_HEADERS + 1))

    with pytest.raises(HeadTooLarge, match=f"more than {MAX_HEADERS} headers"):
        Rig().feed(f"GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())


def test_an_announced_body_beyond_the_limit_is_refused_before_it_comes() -> None:
    with pytest.raises(BodyTooLarge, match="1001 bytes, this server accepts 1000 bytes"):
        Rig().feed(post("/", b"a" * 1001)[:-1001])


def test_a_chunked_body_beyond_the_limit_is_refused_and_given_back() -> None:
    rig = Rig()

    with pytest.raises(BodyTooLarge):
        rig.feed(chunked("/", *[b"a" * 100] * 11))
    rig.reader.close()

    assert rig.load.body_bytes == 0


def test_bodies_beyond_what_the_pod_may_hold_are_refused_for_now() -> None:
    rig = Rig()
    rig.feed(post("/", b"a" * 900))

    with pytest.raises(TooManyRequests) as refused:
        rig.feed(post("/", b"a" * 900))

    assert refused.value.retry_after_s == 1.0


@pytest.mark.parametrize(
    "framing", [b"1;" + b"e" * 200_000, b"0\r\nX-Trailer: " + b"t" * 200_000, b"1\r\na\r\n0\r\n" + b"T: t\r\n" * 50_000]
)
def test_chunk_framing_without_end_is_refused(framing: bytes) -> None:
    with pytest.raises(MalformedRequest, match="chunk framing"):
        Rig().feed(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + framing)


def test_one_byte_chunks_are_well_within_the_limits() -> None:
    assert Rig().feed(chunked("/", *[b"a"] * 1000)) == [("POST", "/", b"a" * 1000)]


def test_trailers_do_not_become_headers() -> None:
    rig = Rig()
    rig.feed(chunked("/", b"abc")[:-2] + b"Host: other\r\nX-A: b\r\n\r\n")

    assert rig.requests[0].headers == {b"host": b"h", b"transfer-encoding": b"chunked"}


def test_repeated_headers_are_joined() -> None:
    rig = Rig()
    rig.feed(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: a\r\nACCEPT: b\r\nX-Empty:\r\n\r\n")

    assert rig.requests[0].headers == {b"host": b"h", b"accept": b"a, b", b"x-empty": b""}


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_an_offer_of_another_protocol_is_declined_and_its_request_read_as_http_1(body: bytes) -> None:
    offer = post("/a", body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")

    rig = Rig()
    found = rig.feed(offer + GET + post("/b", b"xyz"))

    assert found == [("POST", "/a", body), ("GET", "/a", b""), ("POST", "/b", b"xyz")]
    assert rig.requests[0].keep_alive


@given(st.lists(st.integers(1, 200), max_size=6))
def test_an_offer_of_another_protocol_may_be_cut_anywhere(cuts: list[int]) -> None:
    talk = post("/a", b"abc", "Connection: Upgrade", "Upgrade: h2c") + GET
    rig, edges = Rig(), [0, *sorted(cuts), len(talk)]
    found: list[tuple[str, str, bytes]] = []

    for begin, end in itertools.pairwise(edges):
        if begin < end:
            found = rig.feed(talk[begin:end])

    assert found == [("POST", "/a", b"abc"), ("GET", "/a", b"")]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b?c=d&e", "/a/b", "c=d&e"),
        ("http://host:80/a?b", "/a", "b"),
        ("http://host", "/", ""),
        ("/a%2Fb", "/a%2Fb", ""),
        ("/a//b", "/a//b", ""),
    ],
)
def test_a_target_is_split_into_path_and_query(target: str, path: str, query: str) -> None:
    rig = Rig()
    rig.feed(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    assert (rig.requests[0].path, rig.requests[0].query) == (path, query)


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        ("HTTP/1.1\r\nHost: h", True),
        ("HTTP/1.1\r\nHost: h\r\nConnection: close", False),
        ("HTTP/1.0", False),
        ("HTTP/1.0\r\nConnection: keep-alive", True),
    ],
)
def test_a_connection_is_kept_as_its_version_and_the_client_say(lines: str, *, keeps: bool) -> None:
    rig = Rig()
    rig.feed(f"GET / {lines}\r\n\r\n".encode())

    assert rig.requests[0].keep_alive is keeps


def test_bytes_after_the_last_request_are_ignored() -> None:
    rig = Rig()

    assert len(rig.feed(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)) == 1
    assert len(rig.feed(GET)) == 1


def test_a_client_that_waits_before_it_sends_its_body_is_noticed_only_while_it_waits() -> None:
    rig = Rig()
    head, body = post("/", b"abc", "Expect: 100-Continue")[:-3], b"abc"

    rig.feed(head)
    waits = rig.reader.awaits_continue
    rig.feed(body)

    assert waits
    assert not rig.reader.awaits_continue
