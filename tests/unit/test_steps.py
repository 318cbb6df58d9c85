"""Plans are data: what would run is compared as a whole, without any engine."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Any

import pytest
from invoke.config import DataProxy

from deberta.core.errors import ConfigError
from deberta.core.published import GUIDE
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Case, Inference, Input, ModelRun, Plan, Step

MNLI: dict[str, Any] = {
    "checkpoint": "pytorch.model-073631.bin",
    "config": "model_config.json",
    "tokenizer": "spm.model",
    "dataset": "MNLI",
    "labels": ["contradiction", "neutral", "entailment"],
    "rows": {"match": 9815, "mismatch": 9832},
    "published": True,
}


def _plan(limit: int = 0, **changes: Any) -> Plan:
    return Plan(profiles.load("mnli", {"mnli": {**MNLI, **changes}}), "cpu", limit)


def test_guides_names_are_kept() -> None:
    """The inference over 9815 rows at batch size 8, whole: every path is one of the guide's or lies beside it."""
    [step] = evaluation.infer(Case(_plan(), 8, "match"), {256: 9815})
    assert step == Step(
        name="infer_bs8_match",
        title="infer bs=8 match",
        stage="run-cpu",
        arguments=(
            "--model",
            "models/mnli/cpu/deberta_bs8.xml",
            "--input",
            "data/mnli/pre_mnli_bs8/match/input_ids/,data/mnli/pre_mnli_bs8/match/input_mask/",
            "--output",
            "results/mnli/cpu/outputs_bs8_om/match",
        ),
        inputs=(
            Input(Path("models/mnli/cpu/deberta_bs8.xml"), "invoke build-om --bs 8 --profile mnli"),
            Input(Path("models/mnli/cpu/deberta_bs8.bin"), "invoke build-om --bs 8 --profile mnli"),
            Input(Path("data/mnli/pre_mnli_bs8/match"), "invoke preprocess --bs 8 --version match --profile mnli"),
        ),
        outputs=(Path("results/mnli/cpu/outputs_bs8_om/match"),),
        log=Path("results/mnli/cpu/logs/infer_bs8_match.log"),
        commands={
            "export-onnx": "invoke export-onnx --profile mnli",
            "build-om": "invoke build-om --bs 8 --profile mnli",
            "preprocess": "invoke preprocess --bs 8 --version match --profile mnli",
            "infer": "invoke infer --bs 8 --version match --buckets 256 --profile mnli",
            "postprocess": "invoke postprocess --bs 8 --version match --buckets 256 --profile mnli",
            "evaluate": "invoke evaluate --bs 8 --version match --buckets 256 --profile mnli",
            "perf": "invoke perf --bs 8 --version match --profile mnli",
            "report": "invoke report --profile mnli",
        },
        inference=Inference(
            (
                ModelRun(
                    output=Path("results/mnli/cpu/outputs_bs8_om/match"),
                    expected={f"input_{i}_output_0.bin": 96 for i in range(1227)},
                    times=1227,
                    bins=(
                        Path("data/mnli/pre_mnli_bs8/match/input_ids"),
                        Path("data/mnli/pre_mnli_bs8/match/input_mask"),
                    ),
                    bin_bytes=8192,
                ),
            )
        ),
    )


def test_performance_run_is_the_guides() -> None:
    step = evaluation.perf(Case(_plan(), 1, "mismatch"), 100)
    assert step.arguments[2:] == (
        "--input",
        "data/mnli/pre_mnli_bs1/mismatch/input_ids/input_0.bin,data/mnli/pre_mnli_bs1/mismatch/input_mask/input_0.bin",
        "--output",
        "results/mnli/cpu/perf_bs1_om/mismatch",
        "--loop",
        "100",
    )
    assert step.outputs[0] == Path("results/mnli/cpu/msame_bs1_mismatch.txt")
    assert step.inference is not None
    [run] = step.inference.runs
    assert (run.expected, run.times) == ({"deberta_bs1_output_0.bin": 12}, 100)


def test_a_limit_changes_every_path_behind_it() -> None:
    whole, limited = (Case(_plan(limit=limit), 8, "match") for limit in (0, 64))
    for step, limited_step in (
        (evaluation.preprocess(whole), evaluation.preprocess(limited)),
        (evaluation.infer(whole, {256: 64})[0], evaluation.infer(limited, {256: 64})[0]),
        (evaluation.postprocess(whole, [Path("o")]), evaluation.postprocess(limited, [Path("o")])),
    ):
        of_limited = {*limited_step.outputs, limited_step.log, limited_step.title}
        assert not {*step.outputs, step.log, step.title} & of_limited
    assert "--limit" in evaluation.preprocess(limited).arguments
    assert evaluation.export_onnx(whole.plan).arguments == evaluation.export_onnx(limited.plan).arguments


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpoint": "../../etc/passwd"}, ["checkpoint '../../etc/passwd' leaves the profile's folder"]),
        ({"checkpoint": "."}, ["checkpoint '.' is a folder that artifacts are written to"]),
        ({"checkpoint": "cpu/", "config": "./"}, ["checkpoint 'cpu/' is a folder", "config './' is a folder"]),
        ({"checkpoint": 73631, "dataset": ["MNLI"]}, ["checkpoint is 73631, not a", "dataset is ['MNLI'], not a"]),
        ({"dataset": "a,b", "config": "a\0b"}, ["dataset 'a,b' holds a comma", "config 'a\\x00b' holds"]),
        ({"tokenizer": None, "config": ""}, ["tokenizer is missing", "config is missing"]),
        ({"labels": ["no", "maybe", "yes"]}, ["labels ['no', 'maybe', 'yes'] is not an order of contradiction"]),
        ({"labels": 3}, ["labels 3 is not an order"]),
        ({"labels": {"contradiction": 0, "neutral": 1, "entailment": 2}}, ["is not an order"]),
        ({"labels": []}, ["labels [] is not an order"]),
        ({"rows": 9815}, ["rows is 9815, not a number of rows for each"]),
        ({"rows": ["match"]}, ["rows is ['match'], not a number"]),
        ({"rows": {}}, ["rows is {}, not a number"]),
        ({"rows": {"match": 0, "mismatch": True}}, ["rows of match is 0", "rows of mismatch is True"]),
        ({"rows": {"foo": 1, 2: "x"}}, ["rows names 'foo'", "rows names 2"]),
        ({"published": "x"}, ["published is 'x', not true or false"]),
        ({"chekpoint": "x", 5: "x"}, ["unknown key 'chekpoint'", "unknown key 5"]),
    ],
)
def test_profile_that_makes_no_sense(changes: dict[Any, Any], says: list[str]) -> None:
    """As a dict and as invoke hands it over; one message holds each mistake once."""
    for wrapped in (dict, DataProxy.from_data):
        with pytest.raises(ConfigError) as caught:
            profiles.load("mnli", wrapped({"mnli": {**MNLI, **changes}}))
        problems = str(caught.value).replace("profile mnli in invoke.yaml: ", "").split("; ")
        assert len(problems) == len(says)
        assert all(any(part in problem for problem in problems) for part in says)


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("mnli", 3, "profiles in invoke.yaml is 3, not a mapping"),
        ("mnli", None, "profiles in invoke.yaml is None"),
        ("mnli", ["mnli"], "not a mapping of names"),
        ("mnli", {"mnli": "pytorch.bin"}, "profile mnli in invoke.yaml is 'pytorch.bin', not a mapping"),
        ("mnli", {"mnli": None}, "profile mnli in invoke.yaml is None, not a mapping"),
        ("other", {"mnli": MNLI, 5: MNLI}, "there is no profile 'other' in invoke.yaml, only: 5, mnli"),
        *((name, {"mnli": MNLI}, "is no profile's name") for name in ("", "..", "a/b", "a,b", "-a", "a\n", 5, ["a"])),
    ],
)
def test_profile_that_is_not_there(name: Any, known: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        profiles.load(name, known)


def test_profile_with_one_version() -> None:
    plan = _plan(rows={"match": None})
    assert "--rows" not in evaluation.preprocess(Case(plan, 1, "match")).arguments
    with pytest.raises(ConfigError, match="has no version 'mismatch', only: match"):
        evaluation.preprocess(Case(plan, 1, "mismatch"))


def test_a_folder_that_msame_takes_for_a_file() -> None:
    case = Case(Plan(profiles.load("my.binary", {"my.binary": MNLI}), "ascend"), 8, "match")
    for plan_step in (lambda: evaluation.infer(case, {256: 100}), lambda: evaluation.perf(case, 100)):
        with pytest.raises(ConfigError, match=r"its name has no \.bin"):
            plan_step()


def test_published_figures_are_the_guides_table() -> None:
    """The counts are the only ones that round to the published accuracies (9815 and 9832 rows)."""
    assert [row.batch_size for row in GUIDE] == [1, 4, 8, 16, 32, 64]
    assert {(row.ascend_match, row.ascend_mismatch) for row in GUIDE} == {(90.46, 90.71)}
    assert (round(100 * 8879 / 9815, 2), round(100 * 8919 / 9832, 2)) == (90.46, 90.71)
    assert [row.baseline_fps for row in GUIDE] == [2.849, 2.859, 2.821, 2.807, 2.935, 3.065]
    assert [row.ascend_fps for row in GUIDE] == [4.055, 4.692, 4.639, 4.681, 4.619, 5.027]
