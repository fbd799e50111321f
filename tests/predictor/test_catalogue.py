"""The catalogue on a store in memory, in virtual time: what is held, remembered, renewed and forgotten, and when."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from predictor.catalogue import Catalogue
from predictor.errors import (
    HearthError,
    InvalidModel,
    ObjectChanged,
    StoreRefused,
    StoreUnavailable,
    TrustRequired,
    Unavailable,
    UnknownModel,
)
from predictor.repository import Source
from tests.fakes.memory import MemoryStore

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

EPOCH_S = 1_700_000_000.0
SETTLE_S, UNKNOWN_S, REFRESH_S = 10.0, 5.0, 10.0
LONG_AGO_S = EPOCH_S - 1000


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Rig:
    """A catalogue, its store, and the shared clock: S3's runs with the loop's."""

    def __init__(self, *, trusts_code: bool = True, settle_s: float = SETTLE_S, max_models: int = 100) -> None:
        self.store = MemoryStore(lambda: EPOCH_S + now_s())
        self.catalogue = Catalogue(
            store=self.store,
            source=Source("default", "http://s3/bucket", "bucket", "models/", trusts_code),
            settle_s=settle_s,
            unknown_ttl_s=UNKNOWN_S,
            refresh_s=REFRESH_S,
            clock=now_s,
            max_models=max_models,
        )

    def put(self, path: str, data: bytes = b"weights", *, modified_s: float | None = LONG_AGO_S) -> None:
        """Write an object below models/; long ago unless told otherwise, ``modified_s=None`` now."""
        self.store.put(f"models/{path}", data, modified_s=modified_s)

    def publish(self, folder: str, document: dict[str, Any] | None = None, *, data: bytes = b"weights") -> None:
        """An ONNX model with its manifest, now."""
        self.put(f"{folder}/model.onnx", data, modified_s=None)
        self.put(f"{folder}/hearth.json", json.dumps(document or {}).encode(), modified_s=None)

    async def version(self, name: str, wanted: int | None = None) -> int:
        return (await self.catalogue.resolve(name, wanted)).ref.version

    def lists(self, name: str) -> int:
        return self.store.listed[f"models/{name}/"]


# ---- which version ---------------------------------------------------------------------------------------------------


async def test_the_highest_version_is_served_and_any_can_be_asked_for() -> None:
    rig = Rig()
    for number in (1, 2, 10):
        rig.put(f"m/{number}/model.onnx")
    rig.put("m2/99/model.onnx")
    assert await rig.version("m") == 10
    assert await rig.version("m", 2) == 2
    with pytest.raises(UnknownModel, match="has no version 3; the highest it has: 10, 2, 1"):
        await rig.version("m", 3)


async def test_a_model_without_a_version_level_is_version_1() -> None:
    rig = Rig()
    rig.put("flat/model.onnx")
    spec = await rig.catalogue.resolve("flat", None)
    assert (spec.ref.namespace, spec.ref.name, spec.ref.version) == ("default", "flat", 1)
    assert [file.key for file in spec.files] == ["models/flat/model.onnx"]
    assert await rig.version("flat", 1) == 1


async def test_the_manifest_is_read_once_and_its_word_is_in_the_spec() -> None:
    rig = Rig()
    rig.publish("m/1", {"parameters": {"a": 1}})
    assert (await rig.catalogue.resolve("m", None)).parameters_json == '{"a": 1}'
    assert (await rig.catalogue.resolve("m", 1)).parameters_json == '{"a": 1}'
    assert rig.store.was_read == {"models/m/1/hearth.json": 1}


async def test_a_broken_manifest_is_told_even_if_an_older_version_is_sound() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.put("m/2/model.onnx")
    rig.put("m/2/hearth.json", b'{"format": 1}')
    with pytest.raises(InvalidModel, match=r"s3://bucket/models/m/2/hearth\.json: Expected `str`, got `int` - at `\$\.format`"):
        await rig.version("m")
    assert await rig.version("m", 1) == 1


async def test_a_manifest_that_is_too_long_is_not_read() -> None:
    rig = Rig()
    rig.put("m/1/hearth.json", b" " * ((1 << 20) + 1))
    with pytest.raises(InvalidModel, match=r"m/1/hearth\.json has 1048577 bytes, 1048576 are allowed"):
        await rig.version("m")
    assert not rig.store.was_read


async def test_code_without_trust_is_refused() -> None:
    rig = Rig(trusts_code=False)
    rig.put("m/1/model.safetensors")
    rig.put("m/1/model.py")
    with pytest.raises(TrustRequired, match="HEARTH_TRUST=code"):
        await rig.version("m")


# ---- uploads under way -----------------------------------------------------------------------------------------------


async def test_a_request_for_a_model_still_uploading_is_held_until_its_newest_object_has_settled() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx", modified_s=EPOCH_S - 4)
    assert await rig.version("m") == 1
    assert now_s() == pytest.approx(6.0)
    assert rig.lists("m") == 2


async def test_a_request_is_held_on_while_objects_keep_coming() -> None:
    rig = Rig()
    rig.put("m/1/model.safetensors", modified_s=None)
    request = asyncio.create_task(rig.version("m"))
    await asyncio.sleep(8)
    rig.put("m/1/model.py", modified_s=None)
    assert await request == 1
    assert now_s() == pytest.approx(18.0)


async def test_an_older_version_is_served_meanwhile() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.put("m/2/model.onnx", modified_s=None)
    assert await rig.version("m") == 1
    assert now_s() == 0
    assert await rig.version("m", 2) == 2
    assert now_s() == pytest.approx(SETTLE_S)


async def test_a_manifest_makes_a_version_eligible_at_once() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.publish("m/2")
    assert await rig.version("m") == 2
    assert now_s() == 0


async def test_with_no_time_to_settle_whatever_is_there_is_served() -> None:
    rig = Rig(settle_s=0.0)
    rig.put("m/1/model.onnx", modified_s=EPOCH_S + 0.9)
    assert await rig.version("m") == 1
    assert now_s() == 0


async def test_a_clock_of_s3_that_is_wrong_holds_nobody_longer_than_the_time_to_settle() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx", modified_s=EPOCH_S + 1e6)
    assert await rig.version("m") == 1
    assert now_s() == pytest.approx(SETTLE_S)


async def test_an_upload_without_end_is_told_as_such() -> None:
    rig = Rig()

    async def upload() -> None:
        while True:
            rig.put("m/1/model.onnx", str(now_s()).encode(), modified_s=None)
            await asyncio.sleep(3)

    uploading = asyncio.create_task(upload())
    await asyncio.sleep(0)
    with pytest.raises(
        Unavailable, match=r"m is still being uploaded after .*version 1 is younger than 10 s \(HEARTH_SETTLE_S\)"
    ):
        await rig.version("m")
    assert now_s() <= 6 * SETTLE_S
    uploading.cancel()


@pytest.mark.parametrize(
    "document", [{"files": [{"path": "model.onnx", "size": 99}]}, {"files": [{"path": "model.onnx"}, {"path": "more.data"}]}]
)
async def test_what_a_manifest_promises_is_waited_for_and_then_missed(document: dict[str, Any]) -> None:
    rig = Rig()
    rig.publish("m/1", document)
    with pytest.raises(InvalidModel, match=r"hearth\.json"):
        await rig.version("m")
    assert now_s() == pytest.approx(SETTLE_S)


async def test_a_version_that_lacks_something_for_good_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.put("m/2/model.py")
    with caplog.at_level(logging.INFO):
        assert await rig.version("m") == 1
        for _ in range(3):
            await asyncio.sleep(REFRESH_S)
            assert await rig.version("m") == 1
    assert len(caplog.records) == 1, "once, not at every look"
    assert "m is served as it was known: s3://bucket/models/m/2/ lacks model.safetensors" in caplog.text
    with pytest.raises(InvalidModel, match=r"lacks model\.safetensors"):
        await rig.version("m", 2)


async def test_a_manifest_replaced_between_listing_and_reading_is_listed_again() -> None:
    rig = Rig()
    rig.publish("m/1", {"max_batch_size": 1})
    read, changed = rig.store.read, iter([True])

    async def overtaken(key: str, etag: str, *, limit_bytes: int) -> bytes:
        if next(changed, False):
            rig.publish("m/1", {"max_batch_size": 2})
        return await read(key, etag, limit_bytes=limit_bytes)

    rig.store.read = overtaken  # type: ignore[method-assign]
    assert (await rig.catalogue.resolve("m", None)).max_batch_size == 2
    assert rig.lists("m") == 2


async def test_a_manifest_that_changes_at_every_look_is_given_up_on() -> None:
    rig = Rig()
    rig.publish("m/1")

    async def changing(key: str, etag: str, *, limit_bytes: int) -> bytes:
        raise ObjectChanged(f"{key} at {etag} is gone, {limit_bytes}")

    rig.store.read = changing  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="still being uploaded"):
        await rig.version("m")
    assert rig.lists("m") == 6


# ---- sharing and remembering -----------------------------------------------------------------------------------------


async def test_a_hundred_requests_for_one_name_cause_one_listing() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.store.list_s = 1.0
    assert await asyncio.gather(*(rig.version("m") for _ in range(100))) == [1] * 100
    assert rig.lists("m") == 1
    assert await rig.version("m") == 1
    assert rig.lists("m") == 1


async def test_who_gives_up_leaves_the_others_and_the_look_up_alone() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.store.list_s = 1.0
    impatient, patient = asyncio.create_task(rig.version("m")), asyncio.create_task(rig.version("m"))
    await asyncio.sleep(0.5)
    impatient.cancel()
    assert await patient == 1
    assert impatient.cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await rig.version("m", 1)
    await asyncio.sleep(1)
    assert rig.catalogue.known("m", 1) is not None, "a retry finds it done"


async def test_each_who_waits_gets_an_error_of_its_own() -> None:
    rig = Rig()
    rig.store.list_s = 1.0
    errors = await asyncio.gather(*(rig.version("nobody") for _ in range(3)), return_exceptions=True)
    assert {type(error) for error in errors} == {UnknownModel}
    assert len({id(error) for error in errors}) == 3


async def test_an_unknown_name_is_listed_once_and_remembered_for_a_while() -> None:
    rig = Rig()
    for _ in range(10):
        with pytest.raises(UnknownModel, match="no model nobody in s3://bucket/models/"):
            await rig.version("nobody")
        with pytest.raises(UnknownModel):
            await rig.version("nobody", 7)
    assert rig.lists("nobody") == 1
    rig.put("nobody/1/model.onnx")
    await asyncio.sleep(UNKNOWN_S)
    assert await rig.version("nobody") == 1


async def test_an_invalid_model_is_remembered_as_long_but_a_store_that_fails_is_not() -> None:
    rig = Rig()
    rig.put("m/1/model.pt")
    for _ in range(3):
        with pytest.raises(InvalidModel, match="TorchScript"):
            await rig.version("m")
    assert rig.lists("m") == 1
    rig.put("n/1/model.onnx")
    failures: list[HearthError] = [StoreUnavailable("down"), StoreRefused("no")]
    for failure in failures:
        rig.store.fails = [failure]
        with pytest.raises(type(failure)):
            await rig.version("n")
    assert await rig.version("n") == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "x" * 254, "\ud800"])
async def test_a_name_that_no_model_can_have_is_unknown_without_asking(name: str) -> None:
    rig = Rig()
    with pytest.raises(UnknownModel, match="no model can be called") as raised:
        await rig.catalogue.resolve(name, None)
    assert str(raised.value).isprintable()
    assert not rig.store.listed


async def test_random_names_fill_no_memory() -> None:
    rig = Rig(max_models=10)
    for number in range(30):
        rig.put(f"m{number}/1/model.onnx")
        await rig.version(f"m{number}")
        assert rig.catalogue.known("m0", None) is not None, "what is used stays"
    assert len(rig.catalogue._entries) == 10
    for number in range(10_050):
        rig.catalogue._refuse((f"nobody{number}", None), UnknownModel("nobody"))
    assert len(rig.catalogue._refused) == 10_000


async def test_too_many_look_ups_at_once_are_refused() -> None:
    rig = Rig()
    rig.store.list_s = 100.0
    waiting = [asyncio.create_task(rig.version(f"m{number}")) for number in range(1000)]
    await asyncio.sleep(1)
    with pytest.raises(Unavailable, match="1000 models are being looked up"):
        await rig.version("one-more")
    await rig.catalogue.close()
    assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {asyncio.CancelledError}
    assert rig.store.running == 0


# ---- renewing --------------------------------------------------------------------------------------------------------


async def renewed(rig: Rig, name: str = "m") -> None:
    """Let the listing grow old, ask for the name, and let the refresh behind the request end."""
    await asyncio.sleep(REFRESH_S)
    rig.catalogue.known(name, None)
    await asyncio.sleep(0.1)


async def test_what_is_known_is_answered_at_once_and_read_again_behind_the_request_once() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    assert rig.catalogue.known("m", None) is None
    spec = await rig.catalogue.resolve("m", None)
    await asyncio.sleep(REFRESH_S - 0.1)
    assert rig.catalogue.known("m", None) is spec
    assert rig.lists("m") == 1, "too young to be read again"
    rig.store.list_s = 1.0
    await asyncio.sleep(0.1)
    for _ in range(5):
        assert rig.catalogue.known("m", None) is spec
        await asyncio.sleep(0.1)
    assert rig.lists("m") == 2
    await asyncio.sleep(1)
    assert rig.catalogue.known("m", None) is spec, "the same contents keep the same spec"


async def test_what_nobody_asks_for_is_not_read_again() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    await rig.version("m")
    await asyncio.sleep(100 * REFRESH_S)
    assert rig.lists("m") == 1


async def test_a_new_version_and_overwritten_contents_are_followed(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.publish("m/1")
    first = await rig.catalogue.resolve("m", None)
    await rig.catalogue.resolve("m", 1)
    rig.publish("m/1", data=b"better")
    with caplog.at_level(logging.INFO):
        await renewed(rig)
    second = rig.catalogue.known("m", None)
    assert second is not None
    assert second.ref.version == 1
    assert second.ref != first.ref
    assert rig.catalogue.known("m", 1) == second
    rig.publish("m/2")
    await renewed(rig)
    third = rig.catalogue.known("m", None)
    assert third is not None
    assert third.ref.version == 2
    assert rig.catalogue.known("m", 1) == second
    assert f"m:1@{second.ref.revision} follows m:1@{first.ref.revision}" in caplog.text


async def test_a_new_version_that_is_too_young_leaves_the_old_one() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    spec = await rig.catalogue.resolve("m", None)
    await asyncio.sleep(REFRESH_S - 1)
    rig.put("m/1/model.onnx", b"half", modified_s=None)
    rig.put("m/2/model.onnx", modified_s=None)
    await asyncio.sleep(1)
    rig.catalogue.known("m", None)
    await asyncio.sleep(0.1)
    assert rig.catalogue.known("m", None) is spec
    await renewed(rig)
    assert await rig.version("m") == 2


async def test_a_deleted_model_becomes_unknown_and_a_deleted_version_too() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    rig.put("m/2/model.onnx")
    await rig.version("m", 2)
    assert await rig.version("m") == 2
    rig.store.delete("models/m/2/")
    await renewed(rig)
    assert await rig.version("m") == 1
    with pytest.raises(UnknownModel, match="no version 2"):
        await rig.version("m", 2)
    rig.store.delete("models/m/")
    await renewed(rig)
    assert rig.catalogue.known("m", None) is None
    lists = rig.lists("m")
    with pytest.raises(UnknownModel):
        await rig.version("m")
    assert rig.lists("m") == lists, "the refresh has just seen it"


async def test_a_refresh_that_fails_keeps_what_was_known_and_says_so_once_per_change(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    spec = await rig.catalogue.resolve("m", None)
    with caplog.at_level(logging.INFO):
        for number in range(3):
            rig.store.fails = [StoreUnavailable(f"down for {number} s")]
            await renewed(rig)
            assert rig.catalogue.known("m", None) is spec
        rig.put("m/2/hearth.json", b"{")
        for _ in range(3):
            await renewed(rig)
            assert rig.catalogue.known("m", None) is spec
        rig.store.delete("models/m/2/")
        await renewed(rig)
    assert [(record.levelname, record.message[:40]) for record in caplog.records] == [
        ("WARNING", "model m is served as it was known: down "),
        ("WARNING", "model m is served as it was known: s3://"),
        ("INFO", "model m: all is well again"),
    ]


async def test_a_model_whose_objects_changed_under_a_fetch_is_listed_anew() -> None:
    rig = Rig()
    rig.publish("m/1")
    first = await rig.catalogue.resolve("m", None)
    rig.publish("m/1", data=b"better")
    rig.catalogue.forget("m")
    assert rig.catalogue.known("m", None) is None
    assert (await rig.catalogue.resolve("m", None)).ref != first.ref


async def test_closing_ends_refreshes_and_look_ups() -> None:
    rig = Rig()
    rig.put("m/1/model.onnx")
    await rig.version("m")
    await asyncio.sleep(REFRESH_S)
    rig.store.list_s = 100.0
    rig.catalogue.known("m", None)
    asking = asyncio.create_task(rig.catalogue.names())
    await asyncio.sleep(1)
    assert rig.store.running == 2
    await rig.catalogue.close()
    assert rig.store.running == 0
    with pytest.raises(asyncio.CancelledError):
        await asking
    await rig.catalogue.close()


# ---- names -----------------------------------------------------------------------------------------------------------


async def test_names_are_the_folders_at_the_root_and_are_listed_once_in_a_while() -> None:
    rig = Rig()
    for path in ("b/1/model.onnx", "a/model.onnx", "README.md", "bad\nname/1/x"):
        rig.put(path)
    rig.store.list_s = 1.0
    assert await asyncio.gather(*(rig.catalogue.names() for _ in range(5))) == [("a", "b")] * 5
    assert rig.store.listed == {"models/": 1}
    rig.put("c/1/model.onnx")
    assert await rig.catalogue.names() == ("a", "b")
    await asyncio.sleep(REFRESH_S)
    assert await rig.catalogue.names() == ("a", "b", "c")


async def test_names_that_cannot_be_listed_are_an_error_and_asked_again() -> None:
    rig = Rig()
    rig.store.fails = [StoreRefused("no permission")]
    with pytest.raises(StoreRefused):
        await rig.catalogue.names()
    assert await rig.catalogue.names() == ()
