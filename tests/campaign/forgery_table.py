"""The forgeries that the campaign tries, by name: what is done, what is made to fit, and what verify has to say."""

from __future__ import annotations

from collections.abc import Iterator

from deberta.core import published
from deberta.core.contract import LABELS
from tests.campaign.forgeries import (
    ALL,
    ALL_ROWS,
    ALONE,
    DATA_CHECK,
    DIGESTS,
    ONNX,
    OUTPUTS_RECORD,
    Forgery,
    another_record,
    both,
    change_sentence,
    cut_to_40_rows,
    definition,
    docker_in_the_job,
    drop_dependency,
    each_record,
    edit_bytes,
    exchange,
    faster,
    fit_job,
    forget_steps_without_records,
    json_of,
    leave_out_an_evaluation,
    link_beside,
    look_at_the_data,
    move_bias,
    nudge,
    on_two_devices,
    other_code,
    outputs_of_the_other_version,
    page_beside,
    pass_off_as_demo,
    publish_figures,
    put,
    rename_kept,
    rename_the_checkpoint,
    strike_out_reasons,
    swap_rows,
    swap_tokens,
    the_graph_as_an_input,
    times_of_2019,
    values,
    without_prepared,
)
from tests.verify_helpers import (
    ARTIFACTS,
    BOM,
    CHECKPOINT,
    EVALUATION,
    JOB,
    PAGE,
    REPORT,
    ROWS,
    TSV,
    change_count,
    change_count_and_hash,
    edit,
    edit_log,
    edit_page,
    flip_byte,
    flip_logits,
    outputs,
    read,
    swap_gold,
)


def _of_the_job() -> Iterator[tuple[str, Forgery]]:
    """Values in the job, with the report that follows from it."""
    for name, place, value, says in (
        ("the last step's time", "measured.made", "2019-01-01T00:00:00+00:00", r"measured\.made: stored"),
        ("the executor", "measured.executor", "docker", r"measured\.executor: stored docker, in the report's record"),
        ("the release", "measured.deberta_ascend", "9.9", r"measured\.deberta_ascend: stored"),
        ("the engines", "measured.engines", ["a 310P"], r"measured\.engines"),
        ("the tools", "measured.tools", {"atc": "CANN 9", "msame": "1" * 64}, r"measured\.tools"),
        ("the notes on pins", "measured.pins", {"pinned": False, "notes": ["x"]}, r"measured\.pins"),
        ("the steps", "measured.steps", [], r"measured\.steps"),
        ("the loops of the figures", "measured.loops", 100, r"measured\.loops: stored 100, recomputed 2"),
        ("a place", "cells.0.place", "on ascend", r'cells\[0\]\.place: stored "on ascend", recomputed "on cpu"'),
        ("a pin of a figure", "performances.0.pinned", False, r"performances\[0\]\.pinned"),
        ("what was not checked", "cells.0.not_checked", ["its health"], r"cells\[0\]\.not_checked"),
        ("the backend", "backend", "ascend", r"is of profile small, backend ascend, limit 0"),
        ("the note", "note", "measured by the vendor", r"note: stored"),
        ("loose gates", "gates.near_tie_margin", 99.0, r"the gates are not those of \S+: near_tie_margin"),
        ("another machine", "measured.host.cpu", "Kunpeng 920", "what really ran"),
        ("another command", "measured.command", "invoke acceptance", "what really ran"),
        ("the order of the labels", "profile.labels", [*reversed(LABELS)], "another profile"),
        ("the expected rows", "profile.rows.match", None, "expected_rows: stored 64, recomputed null"),
        ("no logits of PyTorch", "references", {}, "what was left out"),
        ("an older model's figure", "cells.0.origin", "outdated: another model", "figures of older models"),
    ):
        yield name, Forgery(put(JOB, place, value), ALL, says)


FORGERIES: dict[str, Forgery] = {
    # Outputs, bins and what is counted of them
    "a label": Forgery(
        flip_logits, ALL, r"input_5_output_0\.bin: row 0 .*: label \w+, the model says \w+", rows=ALL_ROWS
    ),
    "a label, most rows not replayed": Forgery(flip_logits, ALL, "rows that were not drawn", rows=1),
    "a logit by 0.01": Forgery(
        values("", "<f4", nudge), ALL, r"input_2_output_0\.bin: row 1 .*: logits .* says", rows=ALL_ROWS
    ),
    "two rows of the outputs": Forgery(
        values("", "<f4", swap_rows), ALL, r"input_2_output_0\.bin: row 0 .*: l", rows=ALL_ROWS
    ),
    "another version's outputs": Forgery(
        outputs_of_the_other_version, ALL, r"output_0\.bin: row \d .*: l", rows=ALL_ROWS
    ),
    "a byte of the outputs": Forgery(values("", "<f4", nudge), ALONE, r"outputs_bs8_om/match/\S+: expected dirHash"),
    "an output less": Forgery(
        lambda root: (outputs(root) / "input_7_output_0.bin").unlink(), DIGESTS, "cannot be made again: .*"
    ),
    "tokens": Forgery(
        values(str(ARTIFACTS.bins(8, "match") / "input_ids/input_6.bin"), "<i4", swap_tokens),
        *(ALL, r"row 48 is not what the tokenizer makes of"),
        rows=ALL_ROWS,
    ),
    "a mask": Forgery(
        values(str(ARTIFACTS.bins(8, "match") / "input_mask/input_6.bin"), "<i4", lambda mask: mask.__setitem__(5, 0)),
        *(ALL, r"row 48 is not what the tokenizer makes of"),
        rows=ALL_ROWS,
    ),
    "PyTorch's logits": Forgery(
        lambda root: flip_byte(root / ARTIFACTS.reference("match"), -1),
        ALL,
        r"reference_match\.npy: row 63",
        rows=ALL_ROWS,
    ),
    "the accuracy text": Forgery(
        lambda root: edit(root / EVALUATION, f"eval_samples = {ROWS}", "eval_samples = 65"), DIGESTS, "eval_bs8_match"
    ),
    "the accuracy counts": Forgery(put(EVALUATION.replace(".txt", ".json"), "correct", 64), DIGESTS, "correct: stored"),
    "a label's count": Forgery(
        json_of(EVALUATION.replace(".txt", ".json"), lambda counts: counts["labels_gold"].update(neutral=0)),
        *(DIGESTS, r"labels_gold\.neutral: stored 0"),
    ),
    "a prediction": Forgery(
        lambda root: edit(root / ARTIFACTS.predictions(8, "match"), '"row":7,', '"row":8,'),
        *(DIGESTS, r"predictions_bs8_match\.jsonl: line 8: stored"),
    ),
    # The report and its pages
    "a count": Forgery(change_count_and_hash, DIGESTS, r"body\.cells\[0\]\.correct: stored \d+, recomputed \d+"),
    "a count, not its body's digest": Forgery(change_count, DIGESTS, r"body_sha256: stored"),
    "an accuracy": Forgery(put(REPORT, "body.cells.0.accuracy", 0.999), DIGESTS, r"body\.cells\[0\]\.accuracy"),
    "the body's digest": Forgery(put(REPORT, "body_sha256", "1" * 64), DIGESTS, r"body_sha256: stored"),
    "a gate": Forgery(put(REPORT, "verdict.gates.0.status", "failed"), DIGESTS, r"verdict\.gates\[0\]\.status"),
    "the verdict": Forgery(put(REPORT, "verdict.verdict", "accepted"), DIGESTS, r'verdict\.verdict: stored "accepted"'),
    "a throughput in the report": Forgery(
        put(REPORT, "measured.performances.0.fps", 9999.5), DIGESTS, r"measured\.performances\[0\]\.fps"
    ),
    "a number of the page": Forgery(edit_page, DIGESTS, rf"{PAGE}: line \d+: stored"),
    "the page alone": Forgery(edit_page, ALONE, rf"{PAGE}: expected sha256"),
    "report.md": Forgery(
        lambda root: edit(root / ARTIFACTS.report("md"), "checked", "accepted"), DIGESTS, r"report\.md: line \d+"
    ),
    "a licence": Forgery(lambda root: edit(root / BOM, '"MIT"', '"MIT-0"'), DIGESTS, r'stored "MIT-0", recomputed'),
    "a package less": Forgery(json_of(BOM, lambda bill: bill["components"].pop()), DIGESTS, rf"{BOM}: components"),
    "a bill of another version": Forgery(
        both(
            json_of(BOM, lambda bill: bill["components"].pop()),
            json_of(
                f"{BOM}.record.json",
                lambda record: definition(record)["externalParameters"].update({"deberta-ascend": "9"}),
            ),
        ),
        *(DIGESTS, "a bill of another version"),
    ),
    # What the user brought, and the models
    "a gold label": Forgery(both(swap_gold, look_at_the_data), ALL, "the inputs"),
    "a gold label, not the check of the data": Forgery(swap_gold, ALL, r"data_check_match\.json: labels"),
    "a problem in the data": Forgery(
        lambda root: edit(root / DATA_CHECK, '"truncated_rows": 0', '"truncated_rows": 3'),
        *(ALL, r"truncated_rows: stored 3, recomputed 0"),
    ),
    "a sentence": Forgery(
        both(change_sentence, look_at_the_data), ALL, r"row 4 is not what the tokenizer makes of", rows=ALL_ROWS
    ),
    "the tsv alone": Forgery(swap_gold, ALONE, rf"{TSV}: expected sha256"),
    "40 rows as all there are": Forgery(cut_to_40_rows, ALL, "another profile"),
    "the config": Forgery(
        lambda root: edit(root / "models/small/model_config.json", "1e-07", "1e-06"), ALL, "the inputs"
    ),
    "the tokenizer": Forgery(
        lambda root: edit_bytes(root / "models/small/spm.model", "\u2581the".encode(), "\u2581teh".encode()),
        *(ALL, r"is not what the tokenizer makes of|cannot be"),
        rows=ALL_ROWS,
    ),
    "the checkpoint": Forgery(lambda root: flip_byte(root / CHECKPOINT), ALL, "the graph"),
    "the checkpoint alone": Forgery(lambda root: flip_byte(root / CHECKPOINT), ALONE, f"{CHECKPOINT}: expected"),
    "the checkpoint is elsewhere": Forgery(rename_the_checkpoint, ALL, "files elsewhere"),
    "the graph": Forgery(lambda root: move_bias(root / ONNX, 0.5), ALL, r"the model says", rows=ALL_ROWS),
    "the graph alone": Forgery(lambda root: flip_byte(root / ONNX), ALONE, f"{ONNX}: expected sha256"),
    "the graph by a hair": Forgery(lambda root: move_bias(root / ONNX, 1e-6), ALL, "the graph"),
    "the graph as an input": Forgery(the_graph_as_an_input, ALL, rf"{ONNX}: has no record"),
    "the compiled model": Forgery(
        lambda root: flip_byte(root / ARTIFACTS.compiled(8).with_suffix(".bin")), ALL, "the compiled models"
    ),
    "the compiled model's graph": Forgery(
        lambda root: edit(root / ARTIFACTS.compiled(8), "<layer ", "<layer  "), ALL, "the compiled models"
    ),
    # The job
    **dict(_of_the_job()),
    "gates are removed": Forgery(
        json_of(JOB, lambda job: [job["gates"].pop(name) for name in ("agreement", "sentinel")]),
        *(ALL, r"gates\.toml: agreement \(left out\), sentinel \(left out\)"),
    ),
    "reasons are struck out": Forgery(strike_out_reasons, ALONE, r"says accepted, against: backend cpu: no NPU was"),
    "one reason is struck out": Forgery(
        json_of(JOB, lambda job: job["not_accepted"].pop(0)), ALL, r"the report says checked, against: backend cpu"
    ),
    "published figures": Forgery(
        put(JOB, "published", [{"batch_size": 8, **dict.fromkeys(published.GUIDE[0].__struct_fields__[1:], 1.0)}]),
        *(ALL, r"published"),
    ),
    "a published profile": Forgery(json_of(JOB, publish_figures), ALL, r"published"),
    "a limit": Forgery(put(JOB, "limit", 20), DIGESTS, r"is of profile small, backend cpu, limit 20"),
    "a digest less": Forgery(json_of(JOB, lambda job: job["artifacts"].pop(ONNX)), ALL, rf"has no digest of {ONNX}"),
    "an evaluation less": Forgery(json_of(JOB, leave_out_an_evaluation), ALL, "what was left out"),
    "a version less": Forgery(forget_steps_without_records, ALL, "what was left out"),
    "times": Forgery(times_of_2019, ALL, "what really ran"),
    "a faster log": Forgery(faster, ALL, "what really ran"),
    "the log's average": Forgery(edit_log, DIGESTS, r"its average is .* by its times: it was changed"),
    "the log alone": Forgery(edit_log, ALONE, r"msame_bs8_match\.txt: expected sha256"),
    "another profile's name": Forgery(pass_off_as_demo, ALONE, r"the gates are not those of|rows", profile="demo"),
    # Records
    "no record": Forgery(lambda root: (root / OUTPUTS_RECORD).unlink(), ALL, r"has no record \(\S+\)"),
    "another version's record": Forgery(another_record, DIGESTS, r"has no record \(\S+\)"),
    "an image that was not pinned": Forgery(
        each_record(
            lambda record: definition(record)["internalParameters"].update(pins="not pinned: base x") or True, "models"
        ),
        *(ALL, r"the report says checked, against: .*not pinned: base x"),
    ),
    "outputs of no model": Forgery(
        drop_dependency(OUTPUTS_RECORD, str(ARTIFACTS.compiled(8))), ALL, r"does not name models/small/cpu/deberta_bs8"
    ),
    "a model of no graph": Forgery(
        drop_dependency(f"{ARTIFACTS.compiled(8)}.record.json", ONNX), ALL, rf"does not name {ONNX}"
    ),
    "another model's digest": Forgery(
        lambda root: edit(
            root / OUTPUTS_RECORD,
            read(root / JOB)["measured"]["artifacts"][str(ARTIFACTS.compiled(8))]["sha256"],
            "1" * 64,
        ),
        *(ALONE, r"deberta_bs8\.xml: expected sha256 1{64}"),
    ),
    "a made-up image": Forgery(docker_in_the_job, ALL, "the images"),
    "a prepared environment": Forgery(both(each_record(without_prepared), fit_job), ALL, "what really ran"),
    "other code": Forgery(each_record(other_code), ALL, "the code"),
    "arguments": Forgery(
        each_record(
            lambda record: (
                definition(record)["externalParameters"].update(arguments=["--bs", "64"]) or True
                if definition(record)["externalParameters"].get("step", "").startswith("postprocess")
                else None
            ),
            "results",
        ),
        *(ALL, "what really ran"),
    ),
    # Shards
    "devices that never were": Forgery(on_two_devices(lambda sharding: None), ALL, "what really ran"),
    "a shard twice": Forgery(
        on_two_devices(lambda sharding: sharding["shards"][1].update(first=0)),
        *(ALL, rf"{OUTPUTS_RECORD}: two shards have batches 0 to 1 at length 256"),
    ),
    "a shard's digest": Forgery(
        on_two_devices(lambda sharding: sharding["shards"][2].update(digest="1" * 64)),
        *(ALL, r"batches 5 to 7 at length 256 on a/0: expected digest 1{64}, its files have \w{64}"),
    ),
    "a label of a shard": Forgery(
        both(on_two_devices(lambda sharding: None), flip_logits),
        *(ALL, r"batches 5 to 7 at length 256 on a/0: expected digest \w{64}, its files have"),
    ),
    "a shard of no device": Forgery(
        on_two_devices(lambda sharding: sharding["shards"][0].update(device="c/0")), ALL, r"on c/0: that is none of its"
    ),
    "devices that differ": Forgery(
        on_two_devices(lambda sharding: sharding["devices"][1].update(chip="310P1")),
        *(ALL, r"its devices differ \(chip: 310P3 \(a/0\), 310P1 \(b/0\)\), and it does not say so"),
    ),
    "other bytes of a batch": Forgery(
        on_two_devices(lambda sharding: sharding["compared"][0].update(same=False)),
        ALL,
        r"batch 0 .* is not the same on",
    ),
    "no shards at all": Forgery(
        on_two_devices(lambda sharding: sharding.update(shards=[])), ALL, r"no shard has batches 0 to 7 at length 256"
    ),
    "shards of another form": Forgery(
        on_two_devices(lambda sharding: sharding.update(shards="all")), ALL, r"its sharding does not fit its schema"
    ),
    "devices of the job": Forgery(
        both(on_two_devices(lambda sharding: None), put(JOB, "measured.sharded", [])),
        *(ALL, r"measured\.sharded: stored 0 entries, recomputed 1 entries"),
    ),
    # Acceptances that are kept
    "the page of a kept one": Forgery(page_beside, ALONE, r"report\.html: is not results/small/cpu/report\.html", True),
    "a link of a kept one": Forgery(link_beside, ALONE, r"report\.md: is not results/small/cpu/report\.md", True),
    "the name of a kept one": Forgery(rename_kept, ALONE, r"is the name of another acceptance", True),
    "outputs of a kept one": Forgery(values("", "<f4", nudge), ALONE, r"\S+: expected dirHash", True),
    "a job of a kept one": Forgery(put(JOB, "measured.host.name", "b"), DIGESTS, r"measured\.host\.name", True),
    "pages of two kept ones": Forgery(exchange, ALONE, r"report\.json: .*", True),
}
