"""V2 bodies ⇄ tensors. numpy is the independent judge of what the bytes must be."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.api import codec
from predictor.api.codec import InferenceRequest
from predictor.api.message import Buffer
from predictor.errors import MalformedRequest, SchemaMismatch
from predictor.model import DATATYPES, ELEMENT_BYTES, ModelRef
from predictor.wire import Tensor

REF = ModelRef("default", "m", 3)
NUMPY: Final = {
    "BOOL": "?",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    **{f"{sign}INT{bits}": f"<{sign.lower()}i{bits // 8}".replace("ui", "u") for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
JSON_DATATYPES = sorted(NUMPY)


def elements(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.floats(width=int(datatype[2:]), allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    if datatype == "BYTES":
        return st.text(max_size=12)
    kind = np.iinfo(NUMPY[datatype])
    return st.integers(int(kind.min), int(kind.max))


@st.composite
def arrays(draw: st.DrawFn, datatypes: list[str]) -> tuple[str, list[int], list[Any]]:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape)
    return datatype, shape, draw(st.lists(elements(datatype), min_size=count, max_size=count))


def nested(shape: list[int], values: list[Any]) -> Any:
    """``values`` as JSON arrays in arrays."""
    for length in reversed(shape[1:]):
        if not length:
            return [[] for _ in range(shape[0])] if len(shape) == 2 else None
        values = [values[at : at + length] for at in range(0, len(values), length)]
    return values


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(data: Any = None, shape: Any = (2,), datatype: str = "FP32", name: str = "x", **more: Any) -> dict[str, Any]:
    made = {"name": name, "shape": list(shape), "datatype": datatype, **more}
    return made if data is None else made | {"data": data}


def plain(**changes: Any) -> InferenceRequest:
    return InferenceRequest(None, (), (), 0, (), {}, binary_otherwise=False)._replace(**changes)


def told(text: Buffer) -> Any:
    return json.loads(bytes(text))


def strings(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


# ---- what is right comes through -----------------------------------------------------------------------------------


@given(arrays(JSON_DATATYPES))
def test_json_numbers_become_the_bytes_that_numpy_makes_of_them_and_come_back_the_same(
    array: tuple[str, list[int], list[Any]],
) -> None:
    datatype, shape, values = array
    expected = np.array(values, dtype=NUMPY[datatype]).tobytes()

    decoded = codec.decode(request(tensor(values, shape, datatype)))

    assert decoded.inputs == (Tensor("x", datatype, tuple(shape), len(expected)),)
    assert b"".join(decoded.body) == expected
    text = codec.encode(REF, decoded, decoded.inputs, (expected,)).pieces[0]
    assert told(text)["outputs"][0]["data"] == values


@given(arrays([*JSON_DATATYPES, "BYTES"]))
def test_nested_data_means_the_same_as_flat_data(array: tuple[str, list[int], list[Any]]) -> None:
    datatype, shape, values = array
    data = nested(shape, values)
    if data is None:
        return

    flat = codec.decode(request(tensor(values, shape, datatype)))
    deep = codec.decode(request(tensor(data, shape, datatype)))

    assert flat == deep


@given(st.lists(st.text(max_size=20), max_size=5))
def test_strings_become_length_prefixed_utf_8_and_come_back_the_same(texts: list[str]) -> None:
    decoded = codec.decode(request(tensor(texts, [len(texts)], "BYTES")))

    assert decoded.body[0] == strings(*(text.encode() for text in texts))
    text = codec.encode(REF, decoded, decoded.inputs, decoded.body).pieces[0]
    assert told(text)["outputs"][0]["data"] == texts


@given(st.data())
def test_binary_inputs_of_every_datatype_are_views_of_the_body_and_come_back_the_same(data: st.DataObject) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(sorted(DATATYPES)), min_size=1, max_size=4))
    blobs, inputs = [], []
    for index, datatype in enumerate(datatypes):
        count = data.draw(st.integers(0, 5))
        if datatype == "BYTES":
            blob = strings(*data.draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count)))
        else:
            size_bytes = count * ELEMENT_BYTES[datatype]
            blob = data.draw(st.binary(min_size=size_bytes, max_size=size_bytes))
        blobs.append(blob)
        inputs.append(tensor(None, [count], datatype, str(index), parameters={"binary_data_size": len(blob)}))
    head = request(*inputs, parameters={"binary_data_output": True})

    decoded = codec.decode(head + b"".join(blobs), str(len(head)).encode())

    assert list(map(bytes, decoded.body)) == blobs
    assert all(isinstance(part, memoryview) for part in decoded.body)
    answer = codec.encode(REF, decoded, decoded.inputs, blobs)
    whole = b"".join(map(bytes, answer.pieces))
    assert whole[answer.json_bytes :] == b"".join(blobs)
    outputs = json.loads(whole[: answer.json_bytes])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == list(map(len, blobs))
    assert not any("data" in output for output in outputs)


def test_json_and_binary_inputs_mix_in_one_request() -> None:
    head = request(
        tensor([1, 2], name="a"),
        tensor(None, [3], "UINT8", "b", parameters={"binary_data_size": 3}),
        tensor(["t"], [1], "BYTES", "c"),
        tensor(None, [1], "INT16", "d", parameters={"binary_data_size": 2}),
    )

    decoded = codec.decode(head + b"\1\2\3\4\5", str(len(head)).encode())

    assert list(map(bytes, decoded.body)) == [struct.pack("<2f", 1, 2), b"\1\2\3", b"\1\0\0\0t", b"\4\5"]


def test_an_answer_mixes_json_and_binary_outputs_as_each_was_asked_for() -> None:
    wanted = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "j"}]
    decoded = codec.decode(request(tensor([1, 2]), id="r-1", outputs=wanted))
    outputs = (Tensor("b", "UINT8", (2,), 2), Tensor("j", "UINT8", (3,), 3))

    answer = codec.encode(REF, decoded, outputs, (b"\1\2", b"\3\4\5"))

    assert decoded.outputs == ("b", "j")
    assert answer.json_bytes is not None
    assert list(map(bytes, answer.pieces[1:])) == [b"\1\2"]
    assert told(answer.pieces[0]) == {
        "model_name": "m",
        "model_version": "3",
        "id": "r-1",
        "outputs": [
            {"name": "b", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "j", "datatype": "UINT8", "shape": [3], "data": [3, 4, 5]},
        ],
    }


def test_an_output_asked_for_in_json_is_json_though_the_request_prefers_binary() -> None:
    wanted = [{"name": "y", "parameters": {"binary_data": False}}]
    decoded = codec.decode(request(tensor([1, 2]), outputs=wanted, parameters={"binary_data_output": True}))

    answer = codec.encode(REF, decoded, (Tensor("y", "UINT8", (1,), 1),), (b"\7",))

    assert answer.json_bytes is None
    assert told(answer.pieces[0])["outputs"][0]["data"] == [7]


def test_no_id_is_echoed_where_none_was_given() -> None:
    text = codec.encode(REF, codec.decode(request(tensor([1, 2]))), (), ()).pieces[0]

    assert told(text) == {"model_name": "m", "model_version": "3", "outputs": []}


def test_an_answer_too_large_for_json_is_refused_and_may_be_asked_for_in_binary() -> None:
    count = codec.MAX_JSON_ELEMENTS // 2
    outputs = (Tensor("y", "UINT8", (count,), count), Tensor("z", "UINT8", (count + 1,), count + 1))
    parts = (bytes(count), bytes(count + 1))

    with pytest.raises(SchemaMismatch, match=r"JSON has 8388608 at most: ask for binary data"):
        codec.encode(REF, plain(), outputs, parts)
    assert codec.encode(REF, plain(binary={"y": True, "z": True}), outputs, parts).pieces[1:] == parts


def test_nan_and_infinities_are_null_in_json_and_themselves_in_binary() -> None:
    values = struct.pack("<3f", math.nan, math.inf, -math.inf)
    output = (Tensor("y", "FP32", (3,), 12),)

    assert told(codec.encode(REF, plain(), output, (values,)).pieces[0])["outputs"][0]["data"] == [None] * 3
    assert codec.encode(REF, plain(binary={"y": True}), output, (values,)).pieces[1] == values


def test_a_scalar_has_an_empty_shape_and_one_element() -> None:
    assert codec.decode(request(tensor([5], [], "INT8"))).body == (b"\5",)


def test_true_and_false_count_as_one_and_zero_for_numbers_and_the_other_way_round() -> None:
    assert codec.decode(request(tensor([True, False], [2], "UINT8"))).body == (b"\1\0",)
    assert codec.decode(request(tensor([1, 0], [2], "BOOL"))).body == (b"\1\0",)


def test_unknown_parameters_and_fields_are_ignored_as_v2_clients_of_other_servers_send_them() -> None:
    body = request(tensor([1, 2], parameters={"content_type": "np"}), parameters={"priority": 3}, extra={"a": 1})

    assert len(codec.decode(body).inputs) == 1


# ---- what is wrong is refused, in words ----------------------------------------------------------------------------

WRONG_VALUES = [
    ("UINT8", 300, "0 to 255"),
    ("UINT8", -1, "0 to 255"),
    ("INT8", 128, "-128 to 127"),
    ("INT16", -32769, "-32768 to 32767"),
    ("UINT32", 1 << 32, "0 to 4294967295"),
    ("INT64", 1 << 63, "to 9223372036854775807"),
    ("UINT64", 1 << 64, "to 18446744073709551615"),
    ("UINT64", 10**30, "to 18446744073709551615"),
    ("INT32", 1.5, "integers"),
    ("INT32", "1", "integers"),
    ("INT32", None, "integers"),
    ("FP16", 70000, "65504"),
    ("FP32", 1e39, "3.4e38"),
    ("FP32", "1", "numbers"),
    ("FP32", [1], "numbers"),
    ("FP32", {"a": 1}, "numbers"),
    ("BOOL", 2, "true and false"),
    ("BOOL", "true", "true and false"),
    ("BOOL", None, "true and false"),
    ("BYTES", 7, "strings"),
    ("BYTES", None, "strings"),
]


@pytest.mark.parametrize(("datatype", "value", "wants"), WRONG_VALUES, ids=lambda value: str(value)[:20])
def test_a_value_that_does_not_fit_is_named_with_its_index(datatype: str, value: Any, wants: str) -> None:
    good: Any = "a" if datatype == "BYTES" else 1

    with pytest.raises(MalformedRequest) as refused:
        codec.decode(request(tensor([good, good, value], [3], datatype)))

    assert "input 'x': element 2 is " in refused.value.message
    assert wants in refused.value.message


def test_a_long_wrong_value_is_not_repeated_in_full() -> None:
    with pytest.raises(MalformedRequest) as refused:
        codec.decode(request(tensor(["a" * 10_000], [1], "FP32")))

    assert len(refused.value.message) < 200


MALFORMED = {
    "nothing": (b"", "not a V2 inference request"),
    "no JSON": (b"{", "not a V2 inference request"),
    "a list": (b"[]", "Expected `object`"),
    "no inputs": (b"{}", "`inputs`"),
    "trailing bytes": (request(tensor([1, 2])) + b"x", "trailing"),
    "not UTF-8": (
        b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "FP32", "data": [1]}]}',
        "not a V2 inference request",
    ),
    "NaN": (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "not a V2 inference request"),
    "a number beyond doubles": (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1e999]}]}', ""),
    "deep nesting": (
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000,
        "nested too deeply",
    ),
    "no shape": (request({"name": "x", "datatype": "FP32", "data": [1]}), "`shape` - at `$.inputs[0]`"),
    "no datatype": (request({"name": "x", "shape": [1], "data": [1]}), "`datatype` - at `$.inputs[0]`"),
    "no name": (request({"shape": [1], "datatype": "FP32", "data": [1]}), "`name` - at `$.inputs[0]`"),
    "no data": (request(tensor()), "neither data nor the parameter binary_data_size"),
    "data that is a number": (request(tensor(5)), "Expected `array`"),
    "a negative length": (request(tensor([1], [-1])), "$.inputs[0].shape[0]"),
    "a fractional length": (request(tensor([1], [1.5])), "$.inputs[0].shape[0]"),
    "an absurd length": (request(tensor([], [1 << 40, 0])), "$.inputs[0].shape[0]"),
    "an absurd rank": (request(tensor([1], [1] * 33)), "$.inputs[0].shape"),
    "too few elements": (request(tensor([1, 2], [3])), "shape [3] holds 3 elements, data has 2"),
    "too many elements": (request(tensor([1, 2], [1])), "shape [1] holds 1 elements, data has 2"),
    "ragged nesting": (request(tensor([[1, 2], [3]], [2, 2])), "at level 2 arrays of 2 are expected, found an array of 1"),
    "ragged nesting of the right count": (request(tensor([[1, 2, 3], [4]], [2, 2])), "found an array of 3"),
    "nesting that ends early": (request(tensor([[1, 2], 3], [2, 2])), "found 3"),
    "nesting beyond the shape": (request(tensor([[[1, 2]]], [1, 2])), "found an array of 1"),
    "an unknown datatype": (request(tensor([1, 2], datatype="FLOAT")), "datatype 'FLOAT', V2 knows BF16, BOOL"),
    "BF16 in JSON": (request(tensor([1, 2], datatype="BF16")), "BF16 has no form in JSON"),
    "two inputs of one name": (request(tensor([1, 2]), tensor([1, 2])), "inputs of the same name: x, x"),
    "an id that is no string": (request(tensor([1, 2]), id=5), "$.id"),
    "shared memory": (request(tensor(parameters={"shared_memory_region": "r"})), "shared memory"),
    "an output in shared memory": (
        request(tensor([1, 2]), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        "shared memory",
    ),
    "classification": (
        request(tensor([1, 2]), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        "classification is not understood",
    ),
    "an output twice": (request(tensor([1, 2]), outputs=[{"name": "y"}, {"name": "y"}]), "twice for output 'y'"),
    "binary data without the header": (
        request(tensor(parameters={"binary_data_size": 8})),
        "has no header Inference-Header-Content-Length",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_refused_with_what_is_wrong_and_where(case: str) -> None:
    body, says = MALFORMED[case]

    with pytest.raises(MalformedRequest) as refused:
        codec.decode(body)

    assert says in refused.value.message


EIGHT: dict[str, Any] = {"parameters": {"binary_data_size": 8}}
MALFORMED_BINARY = {
    "wrong length for the shape": (request(tensor(shape=[3], **EIGHT)), b"\0" * 8, "takes 12 bytes, binary_data_size is 8"),
    "body ends early": (request(tensor(**EIGHT)), b"\0" * 7, "binary_data_size is 8, only 7 bytes are left"),
    "bytes left over": (request(tensor(**EIGHT)), b"\0" * 9, "add up to 8 bytes, the body has 9 bytes after its JSON"),
    "bytes nobody announced": (request(tensor([1, 2])), b"\0", "add up to 0 bytes, the body has 1 bytes"),
    "negative size": (request(tensor(parameters={"binary_data_size": -1})), b"", "binary_data_size"),
    "data as well": (request(tensor([1, 2], **EIGHT)), b"\0" * 8, "both data and binary_data_size"),
    "unknown datatype": (request(tensor(datatype="F", **EIGHT)), b"\0" * 8, "V2 knows"),
    "a string cut in its length": (
        request(tensor(datatype="BYTES", **EIGHT)),
        strings(b"abc") + b"\0",
        "ends within element 1",
    ),
    "a string longer than the data": (
        request(tensor(datatype="BYTES", **EIGHT)),
        strings(b"") + struct.pack("<I", 9),
        "take 17 bytes by their lengths, the binary data is 8 bytes",
    ),
    "fewer strings than the shape": (request(tensor(datatype="BYTES", **EIGHT)), strings(b"abcd"), "ends within element 1"),
    "more strings than fit": (
        request(tensor(shape=[1 << 21], datatype="BYTES", **EIGHT)),
        b"\0" * 8,
        "this server takes 1048576",
    ),
}


@pytest.mark.parametrize("case", MALFORMED_BINARY)
def test_malformed_binary_data_is_refused_with_what_was_expected_and_what_came(case: str) -> None:
    head, blob, says = MALFORMED_BINARY[case]

    with pytest.raises(MalformedRequest) as refused:
        codec.decode(head + blob, str(len(head)).encode())

    assert says in refused.value.message


@pytest.mark.parametrize("length", [b"", b"-1", b"+5", b"1e3", b"x", b"9" * 5000, b"99999", b"0", "²".encode(), b"1_0"])
def test_a_json_length_that_cannot_be_is_refused(length: bytes) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length is"):
        codec.decode(request(tensor([1, 2])), length)


@pytest.mark.parametrize(("datatype", "value"), [("BF16", b"\0\1"), ("BYTES", strings(b"\xff"))])
def test_an_output_that_json_cannot_hold_is_refused_with_the_way_to_get_it(datatype: str, value: bytes) -> None:
    outputs = (Tensor("y", datatype, (1,), len(value)),)

    with pytest.raises(SchemaMismatch, match=r"output 'y'.*ask for it as binary_data"):
        codec.encode(REF, plain(), outputs, (value,))
    assert codec.encode(REF, plain(binary_otherwise=True), outputs, (value,)).pieces[1] == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
guesses = {
    "name": st.text(max_size=3),
    "shape": st.lists(st.integers(-1, 3), max_size=3),
    "datatype": st.sampled_from([*sorted(DATATYPES), "FLOAT"]),
    "data": st.lists(st.integers(-1, 300) | st.text(max_size=2), max_size=4),
    "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)}),
}


@given(
    st.lists(st.fixed_dictionaries({}, optional={field: guess | json_values for field, guess in guesses.items()}), max_size=3),
    st.binary(max_size=9),
    st.none() | st.integers(0, 400),
)
def test_whatever_comes_is_decoded_or_refused_as_malformed(inputs: list[Any], tail: bytes, length: int | None) -> None:
    body = json.dumps({"inputs": inputs}).encode() + tail
    try:
        decoded = codec.decode(body, None if length is None else str(length).encode())
    except MalformedRequest:
        return  # anything else that is raised fails this test
    assert [tensor.size_bytes for tensor in decoded.inputs] == list(map(len, decoded.body))


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        codec.decode(body)
