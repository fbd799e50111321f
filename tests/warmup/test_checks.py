"""When locations are looked at, and what the model store's answers come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from predictor.telemetry import Telemetry
from tests.fakes.s3 import FakeS3
from warmup.checks import Checks, Finding, Question, StoreChecker
from warmup.telemetry import METRICS

AWAY = Finding(ok=False, reason="StoreUnavailable", message="away", passing=True)
WRONG = Finding(ok=False, reason="InvalidModel", message="no model")
WELL = Finding(ok=True)


class Script:
    """Answers as told; the last answer for ever. ``hang``: never."""

    def __init__(self, *answers: Finding, hang: bool = False) -> None:
        self.answers = list(answers)
        self.hang = hang
        self.asked: list[tuple[float, Question]] = []
        self.at_once = self.most_at_once = 0
        self.closed = False

    async def check(self, question: Question) -> Finding:
        self.asked.append((asyncio.get_running_loop().time(), question))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await (asyncio.Event().wait() if self.hang else asyncio.sleep(1))
        finally:
            self.at_once -= 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def close(self) -> None:
        self.closed = True


def checks(script: Script, heard: list[str], concurrency: int = 16) -> Checks:
    return Checks(script, heard.append, telemetry=Telemetry(METRICS), concurrency=concurrency)


@pytest.mark.looptime
async def test_a_location_is_looked_at_once_and_the_result_is_kept() -> None:
    heard: list[str] = []
    looking = checks(script := Script(WELL), heard)
    assert looking.want("m", Question("s3://b/m")) is None
    await asyncio.sleep(3600)
    assert looking.want("m", Question("s3://b/m")) == WELL
    assert (len(script.asked), heard) == (1, ["m"])
    await looking.close()
    assert script.closed


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("finding", "moments"),
    [
        pytest.param(
            AWAY, [0, 11, 32, 73, 154, 315, 616, 917], id="one that passes is looked at after 10 s, 20 s, up to 300 s"
        ),
        pytest.param(WRONG, [0, 301, 602, 903], id="one that lasts is looked at every 300 s: somebody may upload"),
        pytest.param(
            Finding(ok=False, reason="Unavailable", passing=True, retry_s=4.0),
            [0, 5, 10, 15],
            id="an upload that goes on is looked at when it should be complete",
        ),
    ],
)
async def test_failures_are_looked_at_again(finding: Finding, moments: list[int]) -> None:
    looking = checks(script := Script(finding), [])
    looking.want("m", Question("s3://b/m"))
    await asyncio.sleep(moments[-1] + 0.5)
    assert [round(at_s) for at_s, _ in script.asked] == moments
    await looking.close()


@pytest.mark.looptime
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Question("s3://b/n"), id="another place"),
        pytest.param(Question("s3://b/m", variables={"AWS_ACCESS_KEY_ID": "new"}), id="the same with other credentials"),
        pytest.param(Question("s3://b/m", trusts_code=True), id="the same by a pool that trusts more"),
    ],
)
async def test_another_question_is_asked_at_once(change: Question) -> None:
    looking = checks(script := Script(WRONG, WELL), [])
    looking.want("m", Question("s3://b/m"))
    await asyncio.sleep(2)
    assert looking.want("m", change) is None
    await asyncio.sleep(1.5)
    assert looking.want("m", change) == WELL
    assert [round(at_s) for at_s, _ in script.asked] == [0, 2]
    await looking.close()


@pytest.mark.looptime
async def test_no_more_than_so_many_are_looked_at_together_and_waits_between_looks_do_not_count() -> None:
    looking = checks(script := Script(AWAY), [], concurrency=4)
    for number in range(40):
        looking.want(f"m{number}", Question(f"s3://b/m{number}"))
    await asyncio.sleep(10.5)
    assert script.most_at_once == 4
    assert len({question.uri for _, question in script.asked}) == 40
    await looking.close()


@pytest.mark.looptime
async def test_a_look_that_never_ends_failed_in_passing() -> None:
    looking = checks(Script(WELL, hang=True), [])
    looking.want("m", Question("s3://b/m"))
    await asyncio.sleep(31)
    found = looking.want("m", Question("s3://b/m"))
    assert found is not None
    assert (found.ok, found.passing, found.reason) == (False, True, "DeadlineExceeded")
    await looking.close()


@pytest.mark.looptime
async def test_who_is_forgotten_is_not_looked_at_any_more() -> None:
    looking = checks(script := Script(AWAY), [])
    looking.want("m", Question("s3://b/m"))
    await asyncio.sleep(2)
    looking.forget("m")
    await asyncio.sleep(100)
    assert len(script.asked) == 1
    await looking.close()


def test_a_question_does_not_show_its_credentials() -> None:
    assert "hidden" not in repr(Question("s3://b/m", variables={"AWS_SECRET_ACCESS_KEY": "hidden"}))


@pytest.fixture
async def store() -> AsyncIterator[FakeS3]:
    with FakeS3() as s3:
        s3.make_bucket("models")
        s3.put("models", "team/digits/1/model.onnx", b"onnx")
        s3.put("models", "team/flat/model.onnx", b"onnx")
        s3.put("models", "team/code/model.py", b"build")
        s3.put("models", "team/code/model.safetensors", b"weights")
        s3.put("models", "team/half/model.py", b"build")
        s3.put("models", "team/other/model.pt", b"torchscript")
        yield s3


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        pytest.param(Question("s3://models/team/digits"), "", id="a folder with versions is served"),
        pytest.param(Question("s3://models/team/digits/1"), "", id="one of its versions is served"),
        pytest.param(Question("s3://models/team/flat", format="onnx"), "", id="a folder without versions is served"),
        pytest.param(
            Question("s3://models/team/flat", format="pytorch"), "InvalidModel", id="another format than it says is not"
        ),
        pytest.param(
            Question("s3://models/team/code"), "TrustRequired", id="code is not served by a pool that trusts data only"
        ),
        pytest.param(Question("s3://models/team/code", trusts_code=True), "", id="code is served by a pool that trusts it"),
        pytest.param(Question("s3://models/team/half", trusts_code=True), "InvalidModel", id="half a model is none"),
        pytest.param(Question("s3://models/team/other"), "InvalidModel", id="a format that is not served is none"),
        pytest.param(Question("s3://models/team/digit"), "UnknownModel", id="the beginning of a name is no name"),
        pytest.param(Question("s3://nowhere/team/digits"), "StoreRefused", id="a bucket that does not exist is refused"),
    ],
)
async def test_a_location_is_what_a_pod_would_find(question: Question, reason: str, store: FakeS3) -> None:
    checker = StoreChecker("ns", settle_s=0.0, timeout_s=5.0, environment=store.environment())
    try:
        found = await checker.check(question)
        assert (found.ok, found.reason) == (not reason, reason), found.message
    finally:
        await checker.close()


async def test_a_model_is_read_with_its_own_keys_and_not_with_the_controllers(store: FakeS3) -> None:
    own = {**store.environment(), "AWS_ACCESS_KEY_ID": "team-a"}
    checker = StoreChecker("ns", settle_s=0.0, timeout_s=5.0, environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    try:
        assert (await checker.check(Question("s3://models/team/flat", "secret/a", variables=own))).ok
        assert "Credential=team-a/" in store.received[-1].headers["Authorization"]
    finally:
        await checker.close()


async def test_an_upload_that_goes_on_is_told_with_the_time_it_needs(store: FakeS3) -> None:
    checker = StoreChecker("ns", settle_s=60.0, timeout_s=5.0, environment=store.environment())
    try:
        found = await checker.check(Question("s3://models/team/flat"))
        assert (found.ok, found.passing) == (False, True)
        assert found.retry_s is not None
        assert 50 < found.retry_s <= 60
    finally:
        await checker.close()


async def test_a_store_that_is_away_failed_in_passing() -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    checker = StoreChecker("ns", settle_s=0.0, timeout_s=5.0, environment=environment)
    try:
        found = await checker.check(Question("s3://models/team/flat"))
        assert (found.reason, found.passing) == ("StoreUnavailable", True)
    finally:
        await checker.close()


async def test_certificates_in_a_variable_are_trusted_and_nonsense_there_is_told_without_it(store: FakeS3) -> None:
    own = {**store.environment(), "AWS_ENDPOINT_URL": "https://127.0.0.1:9", "AWS_CA_BUNDLE_PEM": "nonsense"}
    checker = StoreChecker("ns", settle_s=0.0, timeout_s=5.0, environment={})
    try:
        found = await checker.check(Question("s3://models/team/flat", "secret/a", variables=own))
        assert found.reason == "StoreRefused"
        assert "nonsense" not in found.message
    finally:
        await checker.close()
