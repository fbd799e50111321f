"""Public traces, in tiny files that were made up in their formats: recognised, chosen from, and made arrivals."""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest import traces
from loadtest.traces import BadTrace, Trace

LEAD = "HashOwner,HashApp,HashFunction,Trigger"


def moments(trace: Trace, *, from_s: float = 0.0, duration_s: float = 1e9, targets: int = 3) -> list[tuple[float, int]]:
    return list(trace.moments(from_s=from_s, duration_s=duration_s, targets=targets, zipf_exponent=1.0, seed=1))


def azure(tmp_path: Path, rows: dict[str, list[int]]) -> Path:
    path = tmp_path / "invocations_per_function_md.anon.d01.csv"
    minutes = len(next(iter(rows.values())))
    lines = [f"{LEAD},{','.join(str(minute + 1) for minute in range(minutes))}"]
    lines += [f"o,a,{name},http,{','.join(map(str, counts))}" for name, counts in rows.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_minute_of_the_azure_functions_trace_has_its_own_count(tmp_path: Path) -> None:
    trace = traces.read(azure(tmp_path, {"f": [3, 0, 2], "g": [0, 4, 1], "never": [0, 0, 0]}))
    assert (trace.name, trace.functions) == ("Azure Functions 2019", 2)
    made = moments(trace)
    assert made == sorted(made)
    assert Counter(int(at_s // 60) for at_s, _ in made) == {0: 3, 1: 4, 2: 3}
    assert sorted(Counter(target for _, target in made).values()) == [5, 5]
    assert "uniformly" in trace.spreading


def test_a_window_of_a_trace_begins_at_zero(tmp_path: Path) -> None:
    trace = traces.read(azure(tmp_path, {"f": [3, 5, 2]}))
    made = moments(trace, from_s=60.0, duration_s=60.0)
    assert len(made) == 5
    assert all(0 <= at_s < 60.0 for at_s, _ in made)


def test_the_sliced_counts_are_read_too_and_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv.gz"
    path.write_bytes(gzip.compress(b"minute,fn,count\n0,f1,2\n0,f2,1\n3,f1,4\n"))
    trace = traces.read(path)
    assert Counter(int(at_s // 60) for at_s, _ in moments(trace)) == {0: 3, 3: 4}


def test_functions_are_chosen_from_the_most_asked_or_evenly_down_to_the_least(tmp_path: Path) -> None:
    trace = traces.read(azure(tmp_path, {f"f{count}": [count] for count in (1, 50, 7, 20, 3, 100)}))
    totals = {choice: [slots[0].amount for slots in trace.chosen(3, choice).by_function] for choice in ("most", "even")}
    assert totals == {"most": [100, 50, 20], "even": [100, 20, 3]}
    assert trace.chosen(10, "most") is trace


def test_functions_are_dealt_out_to_models_by_the_seed(tmp_path: Path) -> None:
    trace = traces.read(azure(tmp_path, {"f": [9], "g": [1]}))
    first = {
        Counter(
            target for _, target in trace.moments(from_s=0, duration_s=60, targets=5, zipf_exponent=1, seed=seed)
        ).most_common(1)[0][0]
        for seed in range(12)
    }
    assert len(first) > 2


def test_the_llm_trace_keeps_its_arrivals_to_the_hundred_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "AzureLLMInferenceTrace_code.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
        "2023-11-16 18:18:04,110,27\n"
    )
    assert [at_s for at_s, _ in moments(traces.read(path))] == pytest.approx([0.0, 0.052, 60.02004], abs=1e-5)


def test_mooncake_counts_in_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "conversation_trace.jsonl"
    path.write_text(
        '{"timestamp": 3000, "input_length": 5, "output_length": 2, "hash_ids": [1]}\n'
        '{"timestamp": 0, "input_length": 6, "output_length": 9, "hash_ids": [2]}\n'
    )
    assert [at_s for at_s, _ in moments(traces.read(path))] == [0.0, 3.0]


def test_a_servegen_client_asks_at_its_own_rate_and_as_unevenly_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "chunk-0-trace.csv").write_text("0,2.0,0.1,Gamma,1,1\n600,0.0,nan,,,\n")
    (tmp_path / "chunk-1-trace.csv").write_text("0,2.0,3.0,Weibull,1,1\n600,1.0,1.0,Gamma,1,1\n")
    trace = traces.read(tmp_path)
    made = moments(trace, targets=2)
    assert made == sorted(made)
    by_target = {target: [at_s for at_s, who in made if who == target] for target in (0, 1)}
    even, uneven = sorted(by_target.values(), key=lambda all_s: all_s[-1])
    assert len(even) == pytest.approx(1200, rel=0.02)
    assert max(even) < 600 <= max(uneven)
    gaps_s = [b - a for a, b in pairwise(even)]
    assert max(gaps_s) < 1.0


def test_the_joined_servegen_slice_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_text("workload,client,slot_10min,rate_rps,cv\nm,0,4,0.5,1.0\nm,1,4,0.25,\nn,0,5,0.1,2\n")
    trace = traces.read(path)
    assert trace.functions == 3
    assert all(2400 <= at_s < 3600 for at_s, _ in moments(trace))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n", "no trace that is known"),
        ("a,b\n1,2\n", "minute,fn,count"),
        ("minute,fn,count\n0,f,-5\n", "-5 arrivals, and a count lies between 0 and"),
        ("minute,fn,count\n0,f,99999999999\n", "a count lies between 0 and"),
        ("minute,fn,count\n0,f,nan\n", "a count lies between 0 and"),
        ("t_s\n1\nnan\n", "at no moment"),
        ("minute,fn,count\nx,f,1\n", "none of its kind"),
        ('{"timestamp": "soon"}\n', "none of its kind"),
        ("t_s,input_tokens,output_tokens\n", "no arrival"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "file.csv"
    path.write_text(content)
    with pytest.raises(BadTrace, match=told):
        traces.read(path)
    with pytest.raises(BadTrace, match="cannot be read"):
        traces.read(tmp_path / "none.csv")
