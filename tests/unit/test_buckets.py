"""Which length a row runs at, and what is refused before anything runs."""

from __future__ import annotations

import itertools
import random
from pathlib import Path, PurePosixPath

import pytest

from deberta.core import buckets
from deberta.core.contract import BACKENDS
from deberta.core.errors import ConfigError, DataError
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Case, Plan
from tests.unit.test_steps import MNLI


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "'' is not a whole number"),
        ("32,,64", "'' is not a whole number"),
        ("32,6x", "'6x' is not"),
        ("1e2", "'1e2' is not"),
        ("-32,64", "'-32' is not"),
        ("٣٢,64", "is not a whole number"),
        ("64,32", "do not increase"),
        ("32,32", "do not increase"),
        ("3,256", "3 is not within 4 to 256"),
        ("32,257", "257 is not within"),
        ("Auto", "'Auto' is not"),
    ],
)
def test_bad_values(value: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        buckets.parse(value)
    assert says in str(caught.value) and "like 32,64,96,128,256, or auto" in str(caught.value)


def test_good_values() -> None:
    assert buckets.parse(None) == () and buckets.parse(" auto ") == "auto"
    assert buckets.parse("32, 64,256") == (32, 64, 256) == buckets.parse(buckets.text((32, 64, 256)))


def test_a_row_runs_at_the_shortest_length_that_holds_it() -> None:
    histogram = {3: 1, 32: 2, 33: 4, 64: 8, 200: 16}
    assert buckets.rows_by_length(histogram, (32, 64, 128, 256), "match") == {32: 3, 64: 12, 256: 16}
    with pytest.raises(ConfigError, match="longest row of match has 200 tokens"):
        buckets.rows_by_length(histogram, (32, 64, 128), "match")


def _cheapest(histogram: buckets.Histogram, batch_size: int, backend: str) -> int:
    """The cost of the best of all sets of lengths, by trying each."""
    step = buckets.AUTO_STEP[backend]
    last = -(-max(histogram) // step) * step
    inner = range(step, last, step)
    sets = itertools.chain.from_iterable(
        itertools.combinations(inner, count) for count in range(min(len(inner), buckets.AUTO_MOST[backend] - 1) + 1)
    )
    return min(buckets.cost(buckets.rows_by_length(histogram, (*chosen, last), ""), batch_size) for chosen in sets)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_is_the_cheapest_set(seed: int, backend: str) -> None:
    draw = random.Random(seed)
    longest = 90 if backend == "cpu" else 180
    histogram = {draw.randint(4, longest): draw.randint(1, 400) for _ in range(draw.randint(1, 40))}
    for batch_size in (1, 8, 64):
        chosen = buckets.choose(histogram, batch_size, backend)
        rows = buckets.rows_by_length(histogram, chosen, "")
        assert tuple(rows) == chosen == buckets.parse(buckets.text(chosen))  # none is empty, and all can be asked for
        assert buckets.cost(rows, batch_size) == _cheapest(histogram, batch_size, backend)


def test_auto_keeps_to_the_number_of_lengths_that_a_backend_can_afford() -> None:
    histogram = dict.fromkeys(range(4, 257), 1000)
    for backend in BACKENDS:
        chosen = buckets.choose(histogram, 8, backend)
        assert len(chosen) == buckets.AUTO_MOST[backend] and chosen[-1] == 256
        assert all(length % buckets.AUTO_STEP[backend] == 0 for length in chosen)


def test_counts_that_are_none(tmp_path: Path) -> None:
    for content in (
        "",
        "{}",
        '{"tokens": {}}',
        '{"tokens": {"x": 1}}',
        '{"tokens": {"300": 1}}',
        '{"tokens": {"9": 0}}',
    ):
        path = tmp_path / "tokens.json"
        path.write_text(content)
        with pytest.raises(DataError, match="does not hold counts of tokens"):
            buckets.read_histogram(path)


def _case(backend: str, lengths: buckets.Lengths = buckets.PADDED, limit: int = 0) -> Case:
    return Case(Plan(profiles.load("mnli", {"mnli": MNLI}), backend, limit, lengths=lengths), 8, "match")


def test_nothing_of_a_bucketed_run_has_a_name_of_the_padded_one() -> None:
    """But for the evaluation, which is one of a case; models of 256 alone are the padded run's own."""
    for backend, limit in itertools.product(BACKENDS, (0, 5)):
        padded, bucketed = _case(backend, limit=limit), _case(backend, (64, 256), limit).lengths[1]
        for name in ("bins", "outputs", "timing_log"):
            assert getattr(padded, name) != getattr(bucketed, name)
        assert padded.artifacts.performance(8, "match") != bucketed.artifacts.performance(8, "match")
        assert padded.evaluation == bucketed.evaluation
        same_onnx = padded.artifacts.onnx == bucketed.artifacts.onnx
        assert (padded.compiled == bucketed.compiled) == (backend == "ascend") == same_onnx


def test_names_and_lines_of_a_length_on_ascend() -> None:
    case = _case("ascend", (64, 256))
    exported, built = evaluation.export_onnx(case.lengths[0].plan), evaluation.build_om(case.lengths[0])
    assert exported.outputs == (PurePosixPath("models/mnli/dynamic_s64.onnx"),)
    assert exported.arguments[-2:] == ("--sequence-length", "64")
    assert built.outputs == (PurePosixPath("models/mnli/ascend/deberta_bs8_s64.om"),)
    assert "--input_shape=input_ids:8,64;input_mask:8,64" in built.arguments
    assert built.compilation is not None and built.compilation.length == 64
    short, _ = evaluation.infer(case, {64: 20, 256: 3})
    assert short.inference is not None
    [run] = short.inference.runs
    assert (run.bin_bytes, run.times) == (8 * 64 * 4, 3)
    assert run.bins[0] == PurePosixPath("data/mnli/pre_mnli_bs8_s64/match/input_ids")
    assert evaluation.build_om(case.lengths[1]).outputs == evaluation.build_om(_case("ascend")).outputs
    command = built.inputs[0].command  # export-onnx makes the padded model alone
    assert command == "invoke build-om --bs 8 --buckets 64,256 --profile mnli --backend ascend"


def test_one_process_runs_all_lengths_on_cpu() -> None:
    [step] = evaluation.infer(_case("cpu", (64, 256)), {64: 20, 256: 3})
    bins, outputs = "data/mnli/pre_mnli_bs8_s", "results/mnli/cpu/outputs_bs8_s"
    assert step.arguments == (
        "--model",
        "models/mnli/cpu/deberta_bs8_lengths.xml",
        *(f"--input {bins}64/match/input_ids/,{bins}64/match/input_mask/ --output {outputs}64_om/match".split()),
        *(f"--input {bins}256/match/input_ids/,{bins}256/match/input_mask/ --output {outputs}256_om/match".split()),
        "--lengths",
        "64,256",
    )
    assert step.inference is not None and [run.times for run in step.inference.runs] == [3, 1]


def test_steps_of_one_run_have_names_of_their_own() -> None:
    for backend in BACKENDS:
        case, names = _case(backend, (64, 128, 256)), []
        for part in case.models:
            names += [evaluation.export_onnx(part.plan).name, evaluation.build_om(part).name]
        names += [step.name for step in evaluation.infer(case, {})]
        names += [evaluation.perf(part, 9).name for part in case.lengths]
        names += [evaluation.token_counts(case.plan, "match").name]
        names += [evaluation.preprocess(case).name, evaluation.throughput(case).name]
        assert len(set(names)) == len(names)
