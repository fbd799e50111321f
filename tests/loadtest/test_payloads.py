"""Decks: what is sent, and what counts as the right answer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from loadtest import payloads
from loadtest.payloads import BINARY_LENGTH, BadDeck, Encoding, Question

X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
Y = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 4.0]}


def line(**changed: Any) -> dict[str, Any]:
    return {"model": "m", "inputs": [X], "outputs": [Y]} | changed


def deck(
    tmp_path: Path, *lines: dict[str, Any], encoding: Encoding = Encoding.JSON, models: tuple[str, ...] = ()
) -> payloads.Deck:
    path = tmp_path / "deck.jsonl"
    payloads.write(path, lines)
    return payloads.read(path, encoding, models)


def question(tmp_path: Path, **changed: Any) -> Question:
    return deck(tmp_path, line(**changed)).questions[0][0]


def answer(*tensors: dict[str, Any]) -> bytes:
    return json.dumps({"model_name": "m", "outputs": list(tensors)}).encode()


def test_questions_are_grouped_by_model_and_version_in_the_files_order(tmp_path: Path) -> None:
    read = deck(tmp_path, line(model="b"), line(model="a", version="2", tenant="t"), line(model="b"))
    assert [tuple(target) for target in read.targets] == [("b", "", ""), ("a", "2", "t")]
    assert [len(questions) for questions in read.questions] == [2, 1]
    assert [target.path for target in read.targets] == ["/v2/models/b/infer", "/v2/models/a/versions/2/infer"]


def test_only_the_models_that_were_named_are_kept_in_their_order(tmp_path: Path) -> None:
    read = deck(tmp_path, line(model="a"), line(model="b"), line(model="c"), models=("c", "a"))
    assert [target.model for target in read.targets] == ["c", "a"]
    with pytest.raises(BadDeck, match="no question for d"):
        deck(tmp_path, line(model="a"), models=("d",))


def test_a_names_odd_characters_are_escaped_in_its_path(tmp_path: Path) -> None:
    assert deck(tmp_path, line(model="a/b c")).targets[0].path == "/v2/models/a%2Fb%20c/infer"


def test_mixed_encodings_take_turns_over_the_picks(tmp_path: Path) -> None:
    read = deck(tmp_path, line(), line(), encoding=Encoding.MIXED)
    seen = {(id(read.question(0, pick)[0]), read.question(0, pick)[1].headers["Content-Type"]) for pick in range(4)}
    assert len(seen) == 4


def test_a_binary_body_is_its_header_and_little_endian_numbers(tmp_path: Path) -> None:
    body = deck(tmp_path, line(), encoding=Encoding.BINARY).questions[0][0].bodies[0]
    length = int(body.headers[BINARY_LENGTH])
    told = json.loads(body.content[:length])
    assert told["inputs"][0]["parameters"]["binary_data_size"] == 8
    assert told["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert struct.unpack("<2f", body.content[length:]) == (1.0, 2.0)


def test_bytes_travel_with_their_lengths(tmp_path: Path) -> None:
    text = {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["ä", "xyz"]}
    body = deck(tmp_path, line(inputs=[text], outputs=[text]), encoding=Encoding.BINARY).questions[0][0].bodies[0]
    raw = body.content[int(body.headers[BINARY_LENGTH]) :]
    assert raw == b"\x02\x00\x00\x00\xc3\xa4\x03\x00\x00\x00xyz"
    asked = question(tmp_path, inputs=[text], outputs=[text])
    header = json.dumps({"outputs": [text | {"data": None, "parameters": {"binary_data_size": len(raw)}}]}).encode()
    assert asked.judge(header + raw, str(len(header))) == ""
    assert asked.judge(answer(text), None) == ""
    assert asked.judge(answer(text | {"data": ["ä", "xyZ"]}), None) == "wrong answer"


@pytest.mark.parametrize(
    ("tensor", "verdict"),
    [
        (Y, ""),
        (Y | {"data": [[3.0, 4.0]]}, ""),
        (Y | {"data": [3.001, 4.0]}, ""),
        (Y | {"data": [3.1, 4.0]}, "wrong answer"),
        (Y | {"name": "z"}, "wrong answer"),
        (Y | {"shape": [1, 1], "data": [3.0]}, "wrong answer"),
        (Y | {"data": [3.0, float("nan")]}, "wrong answer"),
        (Y | {"data": [3.0]}, "unreadable answer"),
        (Y | {"data": None}, "unreadable answer"),
    ],
)
def test_an_answer_is_right_within_the_tolerance_and_wrong_beyond(tmp_path: Path, tensor: dict[str, Any], verdict: str) -> None:
    asked = question(tmp_path)
    assert [asked.judge(answer(tensor), None) for _ in range(2)] == [verdict, verdict]


def test_whole_numbers_must_be_exactly_right(tmp_path: Path) -> None:
    big = {"name": "y", "datatype": "INT64", "shape": [1], "data": [1_000_000]}
    asked = question(tmp_path, outputs=[big])
    assert asked.judge(answer(big | {"data": [1_000_001]}), None) == "wrong answer"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"outputs": 7}', b"\xff"])
def test_what_is_no_answer_is_unreadable(tmp_path: Path, content: bytes) -> None:
    assert question(tmp_path).judge(content, None) == "unreadable answer"


def test_a_binary_answer_cut_short_is_unreadable(tmp_path: Path) -> None:
    header = json.dumps(
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}
    )
    asked = question(tmp_path)
    assert asked.judge(header.encode() + struct.pack("<2f", 3, 4), str(len(header))) == ""
    assert asked.judge(header.encode() + struct.pack("<f", 3), str(len(header))) == "unreadable answer"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "deck.jsonl:1"),
        ("not json", "deck.jsonl:1"),
        (json.dumps(line(outputs=[])), "without outputs"),
        (json.dumps(line(inputs=[X | {"datatype": "BF16"}])), "is not one of"),
        (json.dumps(line(outputs=[Y | {"shape": [3]}])), "says otherwise"),
        ("\n", "has no question"),
    ],
)
def test_a_deck_that_cannot_be_used_is_refused_with_the_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "deck.jsonl"
    path.write_text(text)
    with pytest.raises(BadDeck, match=told):
        payloads.read(path, Encoding.BINARY)
