"""Each optional key of a config absent in turn: our reading is that of the code which wrote it, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError
from deberta.stages.model import checkpoint, config
from tests import microsoft_logits as golden

torch.set_num_threads(1)  # the models are tiny

GOLDEN = json.loads(golden.FILE.read_text())
CASES = {(case["variant"], case["absent"]): case for case in GOLDEN["cases"]}
UNMARKED = [("relu", absent) for variant, absent in golden.CASES if variant == "relu" and absent.endswith(golden.MARKS)]
UNMARKED += [("plain positions", f"pos_att_type,{golden.MARKS}"), ("as it is", golden.MARKS)]
# Where the readings of a config without marks differ, by what it lacks.
DIFFERING = ("pos_att_type", "intermediate_size", "pooler_hidden_act")


def _logits(folder: Path, values: dict[str, Any], shapes: dict[str, list[int]]) -> npt.NDArray[np.float32]:
    """Our logits of a config and a checkpoint as files. Raises ConfigError."""
    (folder / "model_config.json").write_text(json.dumps(values))
    torch.save(
        {name: torch.from_numpy(golden.weight(name, shape)) for name, shape in shapes.items()}, folder / "model.bin"
    )
    model = checkpoint.load(folder / "model.bin", config.read(folder / "model_config.json"), LABELS).model
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(*map(torch.from_numpy, golden.batch())).numpy()
    return logits


def _assert_names_both(message: str) -> None:
    for problem in message.partition("model_config.json: ")[2].split("; "):
        key, rest = problem.split(" is missing: ")
        assert key in DIFFERING and "Microsoft's code then reads" in rest and "and transformers" in rest


def test_all_cases_have_logits() -> None:
    assert tuple(CASES) == golden.CASES


@pytest.mark.parametrize(("variant", "absent"), golden.CASES)
def test_microsofts_code_and_ours_agree(tmp_path: Path, variant: str, absent: str) -> None:
    case, values = CASES[variant, absent], golden.config_of(variant, absent)
    is_marked = not absent.endswith(golden.MARKS)
    try:
        ours = _logits(tmp_path, values, {**GOLDEN["tensors"], **case["tensors"]})
    except ConfigError as error:
        assert not is_marked
        _assert_names_both(str(error))
        assert not {"pos_att_type", "intermediate_size"} <= values.keys() or values.get("hidden_act", "gelu") != "gelu"
    else:
        assert np.abs(ours - np.array(case["logits"])).max() <= 1e-4


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("variant", "absent"), UNMARKED)
def test_transformers_and_ours_agree(tmp_path: Path, variant: str, absent: str, marked: bool) -> None:
    values = golden.config_of(variant, absent)
    if marked:
        values["architectures"] = ["DebertaV2ForSequenceClassification"]
    theirs = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, "num_labels": 3}))
    shapes = {name: list(value.shape) for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(golden.weight(name, shape)) for name, shape in shapes.items()})
    theirs.train(False)
    ids, mask = (torch.from_numpy(part).long() for part in golden.batch())
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits.numpy()
    try:
        ours = _logits(tmp_path, values, shapes)
    except ConfigError as error:
        assert not marked
        _assert_names_both(str(error))
    else:
        assert np.abs(ours - expected).max() <= 1e-4


@pytest.mark.parametrize(
    ("absent", "assumed"),
    [("pos_att_type", {"pos_att_type": "c2p"}), ("pooling", {"pooler_hidden_act": "relu"}), ("conv_act", {})],
)
def test_a_reading_of_the_family_alone_is_kept(absent: str, assumed: dict[str, str]) -> None:
    read = config.from_dict(golden.config_of("relu", absent))
    assert read.family == config.MICROSOFT and dict(read.assumed) == assumed
