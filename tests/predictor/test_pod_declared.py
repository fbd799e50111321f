"""A whole pod without a repository: models declared by mounted documents and over the admin port, with credentials."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from predictor import declared
from predictor.declared import CredentialShard, Declared, Location, ModelShard
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_onnx
from tests.predictor.test_pod import Server, _until

SCOPE = "secret/red"


def put(s3: FakeS3, bucket: str, folder: str, scale: float) -> None:
    for path, contents in affine_onnx(scale=scale).items():
        s3.put(bucket, f"{folder}/{path}", contents)


class Declaring:
    """A pod, and the shard that declares its models."""

    def __init__(self, s3: FakeS3, other: FakeS3, folder: Path) -> None:
        (folder / "models").mkdir()
        (folder / "credentials").mkdir()
        self._serial = 0
        self._entries: dict[str, Declared] = {}
        variables = other.environment() | {"AWS_ACCESS_KEY_ID": "red-key", "AWS_SECRET_ACCESS_KEY": "red-secret"}
        (folder / "credentials" / declared.credential_file(declared.credential_shard(SCOPE))).write_bytes(
            declared.encode(CredentialShard(1, {SCOPE: variables}))
        )
        mounted = {"mounted": Declared(Location("s3://first/mounted"))}
        (folder / "models" / declared.model_file(declared.model_shard("mounted"))).write_bytes(
            declared.encode(ModelShard(1, mounted))
        )
        self.server = Server(
            s3,
            models="",
            declared_path=str(folder / "models"),
            credentials_path=str(folder / "credentials"),
        )

    def declare(self, name: str, entry: Declared | None) -> None:
        """As a controller does, over the admin port."""
        self._serial += 1
        self._entries.pop(name, None)
        if entry is not None:
            self._entries[name] = entry
        shard = declared.model_shard(name)
        assert shard != declared.model_shard("mounted")
        models = {known: entry for known, entry in self._entries.items() if declared.model_shard(known) == shard}
        body = b'{"shards":[{"file":"%b","document":%b}]}' % (
            declared.model_file(shard).encode(),
            declared.encode(ModelShard(self._serial, models)),
        )
        answer = self.server.admin.put("/hearth/v1/declarations", content=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["serials"][declared.model_file(shard)] == self._serial

    def first(self, name: str) -> float:
        """The first output for the input 1: its scale plus one."""
        answer = self.server.infer(name)
        assert answer.status_code == 200, answer.text
        value: float = answer.json()["outputs"][0]["data"][0]
        return value

    def state(self, since: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = self.server.admin.get("/hearth/v1/state", params={"since": since}).json()
        return answer

    def fares(self, name: str) -> dict[int, str]:
        found = [entry for entry in self.state()["declared"] if entry["name"] == name]
        return {place["number"]: place["state"] for entry in found for place in entry["locations"]}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Declaring, FakeS3, FakeS3]]:
    with FakeS3() as s3, FakeS3() as other:
        put(s3, "first", "mounted", 1.0)
        put(s3, "first", "old", 2.0)
        put(s3, "first", "new/7", 3.0)
        put(other, "second", "scoped", 4.0)
        declaring = Declaring(s3, other, tmp_path_factory.mktemp("mounts"))
        try:
            yield declaring, s3, other
        finally:
            status, logged = declaring.server.stop()
            assert status == 0, logged
            assert "red-secret" not in logged


def test_a_mounted_declaration_is_served_from_the_start(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, _, _ = stand
    assert pod.first("mounted") == 2.0
    assert pod.server.http.post("/v2/repository/index").json()[0]["name"] == "mounted"
    assert pod.state()["declared"][0]["locations"] == [{"number": 1, "state": "loaded", "version": 1, "proven": True}]
    assert pod.server.infer("nobody").status_code == 404


def test_a_model_is_read_with_its_own_credentials_from_its_own_server(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, s3, other = stand
    pod.declare("scoped", Declared(Location("s3://second/scoped", scope=SCOPE)))
    before = len(s3.received)
    assert pod.first("scoped") == 5.0
    assert len(s3.received) == before
    assert {"red-key" in request.headers["Authorization"] for request in other.received} == {True}
    assert all("red-key" not in request.headers["Authorization"] for request in s3.received)


def test_traffic_moves_to_a_new_place_without_a_failed_or_held_request(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, _, _ = stand
    old, new = Location("s3://first/old"), Location("s3://first/new", 2)
    pod.declare("moving", Declared(old))
    assert pod.first("moving") == 3.0
    answers: Counter[tuple[int, float, str]] = Counter()
    moved = threading.Event()

    def ask() -> None:
        while not moved.is_set():
            answer = pod.server.infer("moving")
            value = answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else 0.0
            answers[answer.status_code, value, answer.headers["hearth-start"]] += 1

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        pod.declare("moving", Declared(new, old))
        _until(lambda: pod.fares("moving") == {1: "loaded", 2: "loaded"})
        pod.declare("moving", Declared(new))
        _until(lambda: pod.fares("moving") == {2: "loaded"} and answers[200, 4.0, "hot"] > 10)
    finally:
        moved.set()
        for client in clients:
            client.join(30)
    assert set(answers) == {(200, 3.0, "hot"), (200, 4.0, "hot")}
    assert pod.server.infer("moving").headers["hearth-version"] == "7"


def test_a_broken_new_place_is_told_and_the_old_one_answers(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, s3, _ = stand
    s3.put("first", "broken/model.onnx", b"no model")
    pod.declare("breaking", Declared(Location("s3://first/old")))
    assert pod.first("breaking") == 3.0
    pod.declare("breaking", Declared(Location("s3://first/broken", 2), Location("s3://first/old")))
    assert pod.first("breaking") == 3.0
    _until(lambda: pod.fares("breaking").get(2) == "failed")
    assert pod.first("breaking") == 3.0
    pod.declare("breaking", None)
    assert pod.server.infer("breaking").status_code == 404


def test_a_question_that_makes_no_sense_is_refused(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, _, _ = stand
    assert pod.server.admin.get("/hearth/v1/state", params={"since": "yesterday"}).status_code == 422
    assert pod.server.admin.get("/hearth/v1/state").json()["pod"] == pod.state()["pod"]


def test_events_are_told_once(stand: tuple[Declaring, FakeS3, FakeS3]) -> None:
    pod, _, _ = stand
    pod.first("mounted")
    happened = pod.state()["happened"]
    assert {"loaded"} <= {entry["event"]["what"] for entry in happened if entry["model"] == "mounted"}
    assert [entry["number"] for entry in happened] == list(range(1, len(happened) + 1))
    assert pod.state(since=len(happened))["happened"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "cannot be read"),
        (b'{"shards":[{"file":"models-00.json","document":{"serial":1,"format":9}}]}', "upgrade"),
        (b'{"shards":[{"file":"../../etc","document":{"serial":1}}]}', "no shard is called"),
        (b'{"shards":[{"file":"models-00.json","document":{"serial":1,"models":{"m":{}}}}]}', "target"),
    ],
)
def test_a_bad_declaration_is_refused_with_a_reason(stand: tuple[Declaring, FakeS3, FakeS3], body: bytes, says: str) -> None:
    pod, _, _ = stand
    answer = pod.server.admin.put("/hearth/v1/declarations", content=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert pod.first("mounted") == 2.0
