"""The HTTP servers on real sockets and both event loops, with clients that do everything but behave."""

from __future__ import annotations

import gzip
import json
import math
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from predictor.api.connection import READ_AHEAD_BYTES, Connection
from tests.fakes.pod import LOOPS, ServedPod, echo, model
from tests.fakes.raw_client import RawClient, request

INFER = "/v2/models/echo/infer"


def inference(*values: float) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return request(path, f"Content-Length: {len(body)}", *headers, method="POST") + body


def values(body: bytes) -> list[float]:
    found: list[float] = json.loads(body)["outputs"][0]["data"]
    return found


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(loop: str) -> Iterator[ServedPod]:
    with pod(loop) as served:
        yield served
        served.until(lambda: served.pod.load.requests == 0)
        assert served.leases() == 0
        assert served.call(lambda: served.pod.load.body_bytes) == 0


def pod(loop: str, **settings: Any) -> ServedPod:
    return ServedPod(loop, model("echo"), model("held"), **settings)


def client(served: ServedPod, **options: Any) -> RawClient:
    return RawClient(served.port, **options)


def hold(served: ServedPod) -> None:
    """Make ``held`` hot, and its next runs wait."""
    with client(served) as first:
        assert first.post("/v2/models/held/infer", inference(1)).status == 200
    served.call(lambda: served.device.held.add("held"))


def one_connection(served: ServedPod) -> Connection:
    (connection,) = served.inference._service.connections
    return connection


# ---- connections -------------------------------------------------------------------------------------------------


def test_a_connection_is_kept_for_further_requests(served: ServedPod) -> None:
    with client(served) as one:
        for number in range(3):
            reply = one.post(INFER, inference(number))
            assert (reply.status, values(reply.body)) == (200, [number])
            assert "connection" not in reply.headers


def test_a_client_that_asks_to_close_is_answered_and_closed(served: ServedPod) -> None:
    with client(served) as one:
        reply = one.get("/livez", "Connection: close")

        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert one.ended()


def test_http_1_0_is_closed_after_the_answer_unless_the_client_wants_to_keep_it(served: ServedPod) -> None:
    with client(served) as one:
        for _ in range(2):
            one.send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert one.reply().headers["connection"] == "keep-alive"
        one.send("GET /livez HTTP/1.0\r\n\r\n")

        assert one.reply().headers["connection"] == "close"
        assert one.ended()


def test_every_answer_has_a_length_and_a_date(served: ServedPod) -> None:
    with client(served) as one:
        for reply in (one.get("/livez"), one.get("/nowhere"), one.post(INFER, b"{")):
            assert int(reply.headers["content-length"]) == len(reply.body)
            assert reply.headers["date"].endswith("GMT")


def test_head_is_get_without_the_body(served: ServedPod) -> None:
    with client(served) as one:
        reply = one.get("/v2", method="HEAD")

        assert (reply.status, reply.body) == (200, b"")
        assert int(reply.headers["content-length"]) == len(one.get("/v2").body)


def test_connections_beyond_the_limit_are_closed_at_once(loop: str) -> None:
    with pod(loop, max_connections=2) as served, client(served) as one, client(served) as two:
        assert one.get("/livez").status == two.get("/livez").status == 200
        with client(served) as three:
            assert three.ended()
        assert one.get("/livez").status == 200


# ---- pipelining --------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(served: ServedPod) -> None:
    with client(served) as one:
        one.send(b"".join(post(INFER, inference(number)) for number in range(200)))

        assert [values(one.reply().body) for _ in range(200)] == [[number] for number in range(200)]


def test_an_answer_waits_for_the_ones_before_it(served: ServedPod) -> None:
    hold(served)
    with client(served) as one:
        one.send(post("/v2/models/held/infer", inference(1)) + request("/livez") + request("/nowhere"))
        served.until(lambda: served.device.waiting("held") == 1)
        assert one.silent()
        served.call(lambda: served.device.let_go("held"))

        assert [one.reply().status for _ in range(3)] == [200, 200, 404]


def test_what_is_pipelined_behind_a_held_request_is_read_ahead_only_so_far(served: ServedPod) -> None:
    hold(served)
    flood = request("/livez") * 15_000
    with client(served) as one:
        one.send(post("/v2/models/held/infer", inference(1)))
        served.until(lambda: served.device.waiting("held") == 1)
        one.socket.settimeout(0)
        sent_bytes = one.socket.send(flood)
        one.socket.settimeout(10)
        served.until(lambda: not one_connection(served)._reading)
        unread_bytes = served.call(lambda: len(one_connection(served)._unread))
        served.call(lambda: served.device.let_go("held"))
        count = sent_bytes // len(request("/livez"))
        replies = [one.reply().status for _ in range(count + 1)]

    assert unread_bytes < READ_AHEAD_BYTES + (256 << 10)
    assert replies == [200] * (count + 1)


# ---- bodies ------------------------------------------------------------------------------------------------------


def test_a_chunked_body_is_understood(served: ServedPod) -> None:
    body = inference(1, 2)
    with client(served) as one:
        one.send(request(INFER, "Transfer-Encoding: chunked", method="POST"))
        for byte in body:
            one.send(b"1\r\n%c\r\n" % byte)
        one.send(b"0\r\n\r\n")

        assert values(one.reply().body) == [1, 2]
        assert one.get("/livez").status == 200


def test_a_client_that_expects_a_word_first_gets_it(served: ServedPod) -> None:
    body = inference(1)
    with client(served) as one:
        one.send(request(INFER, f"Content-Length: {len(body)}", "Expect: 100-continue", method="POST"))
        interim = one.reply()
        one.send(body)

        assert interim.status == 100
        assert values(one.reply().body) == [1]


def test_the_word_comes_after_the_answers_before_it(served: ServedPod) -> None:
    body = inference(1)
    with client(served) as one:
        one.send(request("/livez") + request(INFER, f"Content-Length: {len(body)}", "Expect: 100-continue", method="POST"))
        statuses = [one.reply().status, one.reply().status]
        one.send(body)

        assert statuses == [200, 100]
        assert one.reply().status == 200


def test_a_client_that_expects_a_word_for_too_large_a_body_hears_413_instead(loop: str) -> None:
    with pod(loop, max_body_bytes=2000) as served, client(served) as one:
        one.send(request(INFER, "Content-Length: 2001", "Expect: 100-continue", method="POST"))

        assert one.reply().status == 413


@pytest.mark.parametrize("encoding", ["Content-Length: 20000000", "Transfer-Encoding: chunked"])
def test_a_client_that_sends_too_much_reads_413_though_it_goes_on_sending(loop: str, encoding: str) -> None:
    with pod(loop, max_body_bytes=100_000) as served, client(served) as one:
        one.send(request(INFER, encoding, method="POST"))
        for _ in range(200):
            one.send(b"186a0\r\n" + b"a" * 100_000 + b"\r\n" if "chunked" in encoding else b"a" * 100_000)
        reply = one.reply()

        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert "HEARTH_MAX_BODY_BYTES" in reply.json["error"]
        assert one.ended()
        assert served.call(lambda: served.pod.load.body_bytes) == 0


def test_bodies_beyond_what_the_pod_may_hold_are_put_off(loop: str) -> None:
    with pod(loop, max_body_bytes=1024, max_body_bytes_in_flight=1500) as served:
        hold(served)
        with client(served) as one, client(served) as two:
            one.send(post("/v2/models/held/infer", inference(1) + b" " * 900))
            served.until(lambda: served.device.waiting("held") == 1)
            reply = two.post(INFER, inference(1) + b" " * 900)
            served.call(lambda: served.device.let_go("held"))

            assert (reply.status, reply.headers["retry-after"]) == (429, "1")
            assert one.reply().status == 200
        with client(served) as three:
            assert three.post(INFER, inference(1) + b" " * 900).status == 200


def deflated(data: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return raw.compress(data) + raw.flush()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": deflated,
}


@pytest.mark.parametrize("coding", COMPRESSED)
def test_a_compressed_body_is_understood(served: ServedPod, coding: str) -> None:
    with client(served) as one:
        for _ in range(2):
            body = COMPRESSED[coding](inference(*range(1000)))
            assert values(one.post(INFER, body, f"Content-Encoding: {coding}").body) == list(range(1000))


@pytest.mark.parametrize(
    ("coding", "body", "status", "says"),
    [
        ("gzip", gzip.compress(b"a" * 5_000_000), 413, "decompressed"),
        ("deflate", zlib.compress(b"a" * 5_000_000), 413, "decompressed"),
        ("gzip", gzip.compress(inference(1))[:-9], 400, "cut short"),
        ("gzip", gzip.compress(inference(1)) + b"more", 400, "goes on after its end"),
        ("gzip", b"", 400, "cut short"),
        ("gzip", inference(1), 400, "not gzip"),
        ("deflate", inference(1), 400, "not deflate"),
        ("br", b"abc", 415, "send gzip, deflate or nothing"),
        ("gzip, gzip", b"abc", 415, "send gzip, deflate or nothing"),
    ],
)
def test_a_compressed_body_that_is_damaged_or_a_bomb_is_refused(
    loop: str, coding: str, body: bytes, status: int, says: str
) -> None:
    with pod(loop, max_body_bytes=1_000_000) as served, client(served) as one:
        reply = one.post(INFER, body, f"Content-Encoding: {coding}")

        assert (reply.status, one.get("/livez").status) == (status, 200)
        assert says in reply.json["error"]
        assert served.call(lambda: served.pod.load.body_bytes) == 0


def test_no_coding_is_a_coding(served: ServedPod) -> None:
    with client(served) as one:
        assert one.post(INFER, inference(1), "Content-Encoding: identity").status == 200


# ---- bad requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 100_000, 431),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X-%d: a\r\n" * 1 + b"".join(b"H%d: a\r\n" % n for n in range(200)) + b"\r\n",
            431,
        ),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
    ],
    ids=["garbage", "TLS", "no host", "smuggling", "long header", "many headers", "CONNECT"],
)
def test_what_is_no_proper_request_is_refused_in_json_and_closed(served: ServedPod, data: bytes, status: int) -> None:
    with client(served) as one:
        one.send(data)
        reply = one.reply()

        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert reply.json["error"]
        assert one.ended()


def test_a_bad_request_is_refused_after_the_good_ones_before_it_are_answered(served: ServedPod) -> None:
    hold(served)
    with client(served) as one:
        one.send(post("/v2/models/held/infer", inference(1)) + b"garbage\r\n\r\n")
        served.until(lambda: served.device.waiting("held") == 1)
        served.call(lambda: served.device.let_go("held"))

        assert [one.reply().status, one.reply().status] == [200, 400]
        assert one.ended()


def test_an_offer_of_h2c_is_declined_and_answered(served: ServedPod) -> None:
    with client(served) as one:
        reply = one.post(INFER, inference(1), "Connection: Upgrade", "Upgrade: h2c")

        assert values(reply.body) == [1]
        assert one.get("/livez").status == 200


def test_a_failing_handler_is_a_500_and_the_connection_goes_on(served: ServedPod) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("secret")

    with client(served) as one:
        one.post(INFER, inference(1))
        served.pod.catalogue.known = fail  # type: ignore[assignment]
        reply = one.post(INFER, inference(1))

        assert (reply.status, one.get("/livez").status) == (500, 200)
        assert "secret" not in reply.json["error"]


# ---- slow clients ------------------------------------------------------------------------------------------------


def test_an_idle_client_is_closed(loop: str) -> None:
    with pod(loop, idle_timeout_s=0.1) as served, client(served) as never, client(served) as once:
        assert once.get("/livez").status == 200
        assert never.ended()
        assert once.ended()


@pytest.mark.parametrize("start", ["GET /", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_client_that_does_not_finish_its_request_hears_408(loop: str, start: str) -> None:
    with pod(loop, idle_timeout_s=0.1) as served, client(served) as one:
        one.send(start)
        reply = one.reply()

        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert one.ended()


def test_a_client_that_drips_is_not_kept_by_it(loop: str) -> None:
    with pod(loop, idle_timeout_s=0.1) as served, client(served) as one:
        began_s = time.monotonic()
        one.send("GET / HTTP/1.1\r\nX: ")
        while one.silent():
            one.send("a")
            time.sleep(0.01)

        assert one.reply().status == 408
        assert time.monotonic() - began_s < 5


def test_a_held_request_is_no_idle_client(loop: str) -> None:
    with pod(loop, idle_timeout_s=0.05) as served:
        hold(served)
        with client(served) as one:
            one.send(post("/v2/models/held/infer", inference(1)))
            served.until(lambda: served.device.waiting("held") == 1)
            deadline_s = served.call(lambda: one_connection(served).deadline_s)
            served.call(lambda: served.device.let_go("held"))

            assert one.reply().status == 200
            assert deadline_s == math.inf


def big_answer() -> bytes:
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "UINT8", "shape": [20_000_000], "parameters": {"binary_data_size": 20_000_000}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return post(INFER, head + b"\0" * 20_000_000, f"Inference-Header-Content-Length: {len(head)}")


def test_a_client_that_does_not_take_its_answer_counts_as_inside_and_is_cut_at_last(loop: str) -> None:
    with pod(loop, idle_timeout_s=0.2) as served, client(served, receive_bytes=65536) as one:
        one.send(big_answer())
        served.until(lambda: any(connection._blocked for connection in served.inference._service.connections))
        inside = served.call(lambda: served.pod.load.requests)
        for connection in served.inference._service.connections:  # skip the time that so many bytes buy
            connection.deadline_s = 0.0
        served.until(lambda: served.inference.connections == 0)

        assert inside == 1
        assert served.call(lambda: served.pod.load.requests) == 0


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it_and_the_next(served: ServedPod) -> None:
    with client(served, receive_bytes=65536) as one:
        one.send(big_answer() + request("/livez"))
        served.until(lambda: any(connection._blocked for connection in served.inference._service.connections))

        assert len(one.reply().body) > 20_000_000
        assert one.reply().json == {"live": True}


# ---- large bodies ------------------------------------------------------------------------------------------------


def large(size_bytes: int, name: str = "echo") -> bytes:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [size_bytes], "parameters": {"binary_data_size": size_bytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + (b"0123456789" * (size_bytes // 10 + 1))[:size_bytes]
    return post(f"/v2/models/{name}/infer", body, f"Inference-Header-Content-Length: {len(head)}")


@pytest.mark.parametrize("size_bytes", [0, 65_000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 300_000])
def test_a_body_of_any_size_comes_back_and_so_do_requests_pipelined_around_it(served: ServedPod, size_bytes: int) -> None:
    with client(served) as one:
        one.send(request("/livez") + large(size_bytes) + large(size_bytes) + post(INFER, inference(7)))
        replies = [one.reply() for _ in range(4)]

        expected = large(size_bytes)[-size_bytes:] if size_bytes else b""
        assert [reply.status for reply in replies] == [200] * 4
        assert replies[1].body.endswith(expected)
        assert replies[2].body == replies[1].body
        assert values(replies[3].body) == [7]
    served.until(lambda: served.passage.used_bytes == 0)


def test_a_large_body_may_be_cut_anywhere_and_waits_for_the_request_before_it(served: ServedPod) -> None:
    hold(served)
    with client(served) as one:
        one.send(post("/v2/models/held/infer", inference(1)))
        served.until(lambda: served.device.waiting("held") == 1)
        data = large(300_000)
        for begin in range(0, len(data), 50_001):
            one.send(data[begin : begin + 50_001])
        served.call(lambda: served.device.let_go("held"))

        assert values(one.reply().body) == [1]
        assert one.reply().body.endswith(data[-300_000:])


def test_a_large_body_is_where_a_worker_reads_it_and_its_tensors_are_aligned(served: ServedPod) -> None:
    seen: list[tuple[int, int] | None] = []
    served.device.computes["echo"] = lambda inputs, body: (
        seen.append(served.passage.find(body[0])),  # type: ignore[func-returns-value]
        echo(inputs, body),
    )[1]
    with client(served) as one:
        one.send(large(1_000_000))
        assert one.reply().status == 200

    assert [(place[0] % 64, place[1]) for place in seen if place] == [(0, 1_000_000)]


def test_a_large_body_that_waits_for_100_continue_is_asked_for(served: ServedPod) -> None:
    head, body = large(200_000).split(b"\r\n\r\n", 1)
    with client(served) as one:
        one.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert one.reply().status == 100
        one.send(body)
        assert one.reply().status == 200


def test_without_room_a_large_body_is_assembled_as_any_other(served: ServedPod) -> None:
    with client(served) as one:
        occupied = served.call(lambda: served.passage.take(served.passage.size_bytes))
        one.send(large(1_000_000))
        assert one.reply().status == 200
        assert occupied is not None


def test_a_client_that_goes_in_the_middle_of_a_large_body_leaves_no_memory_behind(served: ServedPod) -> None:
    one = client(served)
    one.send(large(5_000_000)[:-1000])
    served.until(lambda: served.pod.load.body_bytes > 1_000_000)
    one.reset()

    served.until(lambda: served.inference.connections == 0)
    assert served.call(lambda: served.passage.used_bytes) == 0


def test_large_bodies_beyond_what_the_pod_may_hold_are_put_off(loop: str) -> None:
    with pod(loop, max_body_bytes=1 << 20, max_body_bytes_in_flight=1_500_000) as served:
        hold(served)
        with client(served) as one, client(served) as two:
            one.send(large(1_000_000, "held"))
            served.until(lambda: served.device.waiting("held") == 1)
            two.send(large(1_000_000))
            assert two.reply().status == 429
            served.call(lambda: served.device.let_go("held"))
            assert one.reply().status == 200
        served.until(lambda: served.passage.used_bytes == 0)


# ---- clients that go away ----------------------------------------------------------------------------------------


def test_a_client_that_ends_its_side_still_gets_its_answer(served: ServedPod) -> None:
    hold(served)
    with client(served) as one:
        one.send(post("/v2/models/held/infer", inference(1)))
        served.until(lambda: served.device.waiting("held") == 1)
        one.finish()
        interim = one.reply()
        served.call(lambda: served.device.let_go("held"))

        assert interim.status == 100  # by which the server found out that the client is there
        assert values(one.reply().body) == [1]
        assert one.ended()


def test_a_client_that_ends_its_side_at_once_gets_all_its_answers(served: ServedPod) -> None:
    with client(served) as one:
        one.send(post(INFER, inference(1)) + request("/livez"))
        one.finish()
        statuses = [status for status in (one.reply().status for _ in range(2)) if status != 100]
        if len(statuses) < 2:
            statuses.append(one.reply().status)

        assert statuses == [200, 200]
        assert one.ended()


@pytest.mark.parametrize("rudely", [False, True])
def test_a_client_that_goes_while_its_model_computes_ends_its_lease(loop: str, *, rudely: bool) -> None:
    with pod(loop, idle_timeout_s=0.4) as served:
        hold(served)
        one = client(served)
        one.send(post("/v2/models/held/infer", inference(1)))
        served.until(lambda: served.device.waiting("held") == 1)
        one.reset() if rudely else one.socket.close()

        served.until(lambda: served.inference.connections == 0)
        assert served.leases() == 1, "the worker still computes on it"
        served.call(lambda: served.device.let_go("held"))
        assert served.leases() == 0
        assert served.call(lambda: served.pod.load.requests) == 0


@pytest.mark.parametrize("rudely", [False, True])
def test_a_client_that_goes_while_its_model_is_looked_up_stops_that(loop: str, *, rudely: bool) -> None:
    with pod(loop, idle_timeout_s=0.4) as served:
        served.catalogue.hanging.add("slow")
        one = client(served)
        one.send(post("/v2/models/slow/infer", inference(1)))
        served.until(lambda: served.pod.load.requests == 1)
        one.reset() if rudely else one.socket.close()

        served.until(lambda: served.catalogue.abandoned["slow"] == 1)
        served.until(lambda: served.inference.connections == 0)


def test_a_client_that_goes_in_the_middle_of_its_body_is_forgotten(served: ServedPod) -> None:
    one = client(served)
    one.send(post(INFER, inference(*range(1000)))[:-100])
    served.until(lambda: served.pod.load.body_bytes > 0)
    one.reset()

    served.until(lambda: served.inference.connections == 0)
    assert served.call(lambda: served.pod.load.body_bytes) == 0


def test_many_clients_that_hang_up_at_once_disturb_nobody(served: ServedPod) -> None:
    hold(served)
    gone = [client(served) for _ in range(50)]
    for one in gone:
        one.send(post("/v2/models/held/infer", inference(1)))
    with client(served) as stays:
        stays.send(post("/v2/models/held/infer", inference(7)))
        served.until(lambda: served.device.waiting("held") + len(served.device.dispatcher) == 51)
        for one in gone:
            one.reset()
        served.call(lambda: served.device.let_go("held"))

        assert values(stays.reply().body) == [7]
    served.until(lambda: served.inference.connections == 0)


# ---- limits on what is inside ------------------------------------------------------------------------------------


def test_requests_beyond_the_limit_are_put_off_and_probes_are_not(loop: str) -> None:
    with pod(loop, max_in_flight=1) as served:
        hold(served)
        with client(served) as one, client(served) as two:
            one.send(post("/v2/models/held/infer", inference(1)))
            served.until(lambda: served.device.waiting("held") == 1)
            put_off, probed = two.post(INFER, inference(1)), two.get("/livez")
            served.call(lambda: served.device.let_go("held"))

            assert (put_off.status, put_off.headers["retry-after"], probed.status) == (429, "1", 200)
            assert "HEARTH_MAX_IN_FLIGHT" in put_off.json["error"]
            assert one.reply().status == 200
            assert two.post(INFER, inference(1)).status == 200


# ---- draining ----------------------------------------------------------------------------------------------------


def test_draining_closes_the_idle_finishes_the_busy_and_takes_nobody_new(loop: str) -> None:
    with pod(loop) as served:
        hold(served)
        with client(served) as idle, client(served) as busy:
            assert idle.get("/livez").status == 200
            busy.send(post("/v2/models/held/infer", inference(1)))
            served.until(lambda: served.device.waiting("held") == 1)
            drained = served.begin(served.inference.drain(10))

            assert idle.ended()
            with pytest.raises(ConnectionRefusedError):
                client(served)
            served.call(lambda: served.device.let_go("held"))
            reply = busy.reply()

            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert busy.ended()
            drained.result(10)


def test_draining_answers_what_was_pipelined_and_read(loop: str) -> None:
    with pod(loop) as served:
        hold(served)
        with client(served) as one:
            one.send(post("/v2/models/held/infer", inference(1)))
            served.until(lambda: served.device.waiting("held") == 1)
            drained = served.begin(served.inference.drain(10))
            served.call(lambda: served.device.let_go("held"))

            assert one.reply().status == 200
            assert one.ended()
            drained.result(10)


def test_draining_cuts_what_does_not_finish_in_time(loop: str) -> None:
    with pod(loop) as served:
        hold(served)
        with client(served) as one:
            one.send(post("/v2/models/held/infer", inference(1)))
            served.until(lambda: served.device.waiting("held") == 1)
            served.do(served.inference.drain(0.05))

            assert one.ended()
            served.call(lambda: served.device.let_go("held"))
            assert served.leases() == 0


def test_a_socket_that_listened_before_the_server_existed_loses_no_early_client(loop: str) -> None:
    served = pod(loop)
    with socket.create_connection(("127.0.0.1", served.port), 10) as early:
        early.sendall(request("/livez"))
        with served:
            assert early.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
