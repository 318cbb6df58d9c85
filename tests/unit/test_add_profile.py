"""add-profile: public forms of models become profiles in one command, and what cannot work leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.core import files, records
from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError
from deberta.host.cli import settings_file
from deberta.host.plan import profiles
from deberta.host.user_files.add_profile import by_version
from deberta.stages.data.convert_data import USUAL
from tests import in_process
from tests.mnli_helpers import REPOSITORY, SPM_MODEL, dev_line, write_dev
from tests.pipeline_helpers import environment

VALUES: dict[str, Any] = {
    **{
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pooler_hidden_act": "gelu",
    },
    **{"intermediate_size": 32, "max_position_embeddings": 512, "relative_attention": True, "pooler_dropout": 0},
    **{"pos_att_type": ["p2c", "c2p"], "position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    **{"position_biased_input": False, "type_vocab_size": 0, "initializer_range": 0.3, "max_relative_positions": -1},
}
ENTAILMENT_FIRST = ("entailment", "neutral", "contradiction")
CROSS_ENCODER = ("contradiction", "entailment", "neutral")
# Label orders, configs and files as the public models have them; the weights are random and small.
PUBLIC: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "cross-encoder/nli-deberta-v3-base": (CROSS_ENCODER, {}, {}),
    "MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": (ENTAILMENT_FIRST, {}, {"dtype": torch.float16}),
    "microsoft/deberta-v2-xlarge-mnli": (
        ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
        {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 16},
        {"bin": True},
    ),
    "MoritzLaurer/mDeBERTa-v3-base-mnli-xnli": (ENTAILMENT_FIRST, {"vocab_size": 2048}, {"max_shard_size": "40KB"}),
    "cross-encoder/nli-deberta-v3-xsmall": (CROSS_ENCODER, {"num_attention_heads": 4, "intermediate_size": 64}, {}),
    "a file of Microsoft's code": (LABELS, {}, {"microsoft": True}),
}
PAIRS = [(f'A "boat {row}", of the sea.', "A ship. " * (row + 1), LABELS[row % 3]) for row in range(9)]


def make_model(folder: Path, labels: tuple[str, ...], changes: dict[str, Any], form: dict[str, Any]) -> Any:
    """Write a model in its public form; returns transformers' own of the same weights."""
    torch.manual_seed(0)
    names = {str(index): label for index, label in enumerate(labels)}
    config = DebertaV2Config.from_dict({**VALUES, **changes, "id2label": names})
    model = DebertaV2ForSequenceClassification(config).train(False).to(form.get("dtype", torch.float32))
    folder.mkdir(parents=True)
    if form.get("microsoft"):
        torch.save(model.state_dict(), folder / "pytorch.model-073631.bin")
        values = {key: value for key, value in VALUES.items() if not key.startswith("pooler")}
        (folder / "model_config.json").write_text(
            json.dumps({**values, "pooling": {"dropout": 0, "hidden_act": "gelu"}})
        )
    else:
        model.save_pretrained(
            folder, **({"max_shard_size": form["max_shard_size"]} if "max_shard_size" in form else {})
        )
    if form.get("bin"):
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    shutil.copyfile(SPM_MODEL, folder / "spm.model")
    return model.float()


def make_csv(path: Path) -> Path:
    rows = [",".join('"' + cell.replace('"', '""') + '"' for cell in pair) for pair in PAIRS]
    path.write_text("\n".join(["premise,hypothesis,label", *rows]) + "\n")
    return path


class Own:
    """A workspace with a settings file in it, and our commands run there."""

    def __init__(self, root: Path) -> None:
        self.root, self.settings = root / "workspace", root / "settings.yaml"
        self.before = (
            f"# mine\nworkspace: {self.root}\nstages_python: {sys.executable}\nprofiles:\n  # theirs\n  a: {{}}\n"
        )
        self.settings.write_text(self.before)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        typed = ["-f", str(self.settings), *map(str, arguments)]
        done = in_process.run_invoke(typed, REPOSITORY, environment())
        return done.returncode, done.stdout, done.stderr

    def fail(self, code: int, *arguments: object) -> str:
        """The command fails with one line after its looks at the files, and leaves everything as it was."""
        before = self.files()
        status, output, error = self.run("add-profile", *arguments)
        *looks, line = error.splitlines()
        assert status == code and line.startswith("error: ") and "Traceback" not in output, output + error
        assert all(look.endswith("] reading") for look in looks), error
        assert self.files() == before and self.settings.read_text() == self.before
        return line

    def files(self) -> list[str]:
        kinds = [path for kind in ("models", "data", "results") for path in (self.root / kind).rglob("*")]
        return sorted(str(path.relative_to(self.root)) for path in kinds)


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model(tmp_path / "model", CROSS_ENCODER, {}, {})
    return tmp_path / "model"


QUICK = ("cross-encoder/nli-deberta-v3-base", "MoritzLaurer/mDeBERTa-v3-base-mnli-xnli")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PUBLIC])
def test_two_commands_give_the_accuracy(name: str, own: Own, tmp_path: Path) -> None:
    labels, changes, form = PUBLIC[name]
    reference = make_model(tmp_path / "theirs", labels, changes, form)
    source = tmp_path / "theirs" / ("pytorch.model-073631.bin" if form.get("microsoft") else "")
    given = ["--labels", ",".join(LABELS)] if form.get("microsoft") else []
    data = make_csv(tmp_path / "pairs.csv")
    code, output, error = own.run("add-profile", "own", "--model", source, "--data", data, *given)
    assert code == 0, output + error
    code, output, error = own.run(
        *("evaluate", "--profile", "own", "--bs", "9", "--version", "match", "--backend", "cpu", "--buckets", "256")
    )
    assert code == 0, output + error
    [bins] = (own.root / "data/own/pre_mnli_bs9/match/input_ids").iterdir()
    ids = torch.from_numpy(np.fromfile(bins, "<i4").reshape(9, 256).astype(np.int64))
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=(ids > 0).long()).logits.numpy()
    order = [[label.lower() for label in labels].index(label) for label in LABELS]
    [logits] = (own.root / "results/own/cpu/outputs_bs9_om/match").glob("*/*.bin")
    measured = np.fromfile(logits, "<f4").reshape(9, 3)
    assert np.abs(measured - expected[:, order]).max() < 1e-4
    right = sum(LABELS[row.argmax()] == label for row, (_, _, label) in zip(measured, PAIRS, strict=True))
    assert f"= {right}/9" in output


def test_the_profile_is_added_and_every_byte_stays(own: Own, model: Path, tmp_path: Path) -> None:
    data = [write_dev(tmp_path / name, [dev_line(label=label)] * 2) for name, label in
            (("dev_mismatched.tsv", "neutral"), ("dev_matched.tsv", "entailment"))]  # fmt: skip
    command = ["add-profile", "own", "--model", model, "--data", data[0], "--data", data[1]]
    code, output, error = own.run(*command)
    assert code == 0, output + error
    text = own.settings.read_text()
    assert text.startswith(own.before)
    assert settings_file.load(str(own.settings))["profiles"]["own"] == {
        "checkpoint": "model/model.safetensors",
        "config": "model/config.json",
        "tokenizer": "tokenizer/spm.model",
        "dataset": "MNLI",
        "labels": list(CROSS_ENCODER),
        "rows": {"match": 2, "mismatch": 2},
    }
    assert "labels: contradiction, entailment, neutral (id2label says contradiction, entailment, neutral)" in output
    linked = own.root / "data/own/MNLI/dev_matched.tsv"
    assert linked.is_symlink() and linked.samefile(data[1])
    assert (own.root / "models/own/model/model.safetensors").samefile(model / "model.safetensors")
    assert own.run(*command)[0] == 0 and own.settings.read_text() == text  # the same again
    own.before = text
    labels = ["--labels", "contradiction,neutral,entailment"]
    assert "the id2label of" in own.fail(2, *command[1:], *labels)
    assert "profile own already, and it is another one: rows" in own.fail(2, *command[1:-2])


def test_a_converted_file_has_a_record_of_its_source(own: Own, model: Path, tmp_path: Path) -> None:
    data = make_csv(tmp_path / "pairs.csv")
    code, output, error = own.run("add-profile", "own", "--model", model, "--data", data, "--copy")
    assert code == 0, output + error
    record = records.read(own.root / "data/own/MNLI/dev_matched.tsv.record.json")
    assert record is not None and record.parameters["stage"] == "convert-data" and record.summary["rows"] == 9
    assert record.dependencies == {str(data): {"sha256": files.sha256_of(data)}}
    assert not any(path.is_symlink() for path in own.root.rglob("*"))
    assert "/9 rows" not in output and "9 rows (contradiction 3, neutral 3, entailment 3)" in output


def test_labels_in_the_models_own_words(own: Own, tmp_path: Path) -> None:
    make_model(tmp_path / "model", ("refutes", "not enough info", "supports"), {}, {})
    (tmp_path / "d.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "SUPPORTS"}\n' * 2)
    command = ["own", "--model", tmp_path / "model", "--data", tmp_path / "d.jsonl"]
    assert "calls its labels refutes, not enough info, supports. Say what its outputs mean" in own.fail(2, *command)
    code, output, error = own.run("add-profile", *command, "--labels", "contradiction,neutral,entailment")
    assert code == 0 and "entailment 2" in output, output + error


def _binary(model: Path) -> None:
    shutil.rmtree(model)
    DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**VALUES, "num_labels": 2})).save_pretrained(model)


def _of_another_kind(model: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))


def _pretrained(model: Path) -> None:
    values = {key: value for key, value in json.loads((model / "config.json").read_text()).items() if key != "id2label"}
    (model / "config.json").write_text(json.dumps(values))
    state = {"deberta.embeddings.word_embeddings.weight": torch.zeros(512, 32)}
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")


def _small_vocabulary(model: Path) -> None:
    shutil.rmtree(model)
    make_model(model, CROSS_ENCODER, {"vocab_size": 300}, {})


def _adapter(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "two labels": (_binary, 2, "the model has 2 labels, and 3 are needed"),
    "no DeBERTa": (_of_another_kind, 2, "model_type is 'bert'; only deberta-v2 (DeBERTa v2 and v3) can be built"),
    "no classifier": (_pretrained, 5, "has no classifier.weight: a pretrained model, which has to be fine-tuned"),
    "no tokenizer": (
        lambda model: (model / "spm.model").unlink(),
        3,
        "has no tokenizer, neither tokenizer.json nor spm",
    ),
    "no config": (lambda model: (model / "config.json").unlink(), 3, "holds neither config.json nor model_config.json"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), 3, "holds none of: model.safetensors"),
    "another tokenizer": (_small_vocabulary, 5, "has 401 pieces, and the model's vocabulary 300 entries"),
    "ONNX": (
        lambda model: (model / "model.safetensors").rename(model / "model.onnx"),
        3,
        "holds an ONNX file: name the",
    ),
    "an adapter": (_adapter, 3, "holds an adapter (PEFT): merge it"),
    "cut off": (
        lambda model: (model / "model.safetensors").write_bytes(b"\0" * 99),
        5,
        "is truncated or not a checkpoi",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_cannot_be_run_leaves_nothing(kind: str, own: Own, model: Path, tmp_path: Path) -> None:
    breaks, code, says = BROKEN[kind]
    breaks(model)
    assert says in own.fail(code, "own", "--model", model, "--data", make_csv(tmp_path / "pairs.csv"))


def test_data_and_names_that_cannot_be_used_leave_nothing(own: Own, model: Path, tmp_path: Path) -> None:
    good, bad = make_csv(tmp_path / "a.csv"), tmp_path / "b.csv"
    bad.write_text("premise,hypothesis,label\na,b,maybe\n")
    glues = write_dev(tmp_path / "dev.tsv", [dev_line(label="maybe")])
    assert "unknown label 'maybe'" in (error := own.fail(5, "own", "--model", model, "--data", glues))
    assert "--label-words WORD=entailment" in error
    both = ["own", "--model", model, "--data", f"{good},{bad}"]
    assert "b.csv (csv, commas) has 1 bad row: line 2: unknown label 'maybe'" in own.fail(5, *both)
    assert "own2 is" not in own.fail(2, "a/b", "--model", model, "--data", good)
    assert "there is a profile mnli already, and it is another one: checkpoint" in own.fail(
        2, "mnli", "--model", model, "--data", good
    )
    missing = own.fail(3, "own", "--model", tmp_path / "x", "--data", tmp_path / "y", "--tokenizer", tmp_path / "z")
    assert all(f"{tmp_path / name}" in missing for name in "xyz")
    assert "--data names 0 files" in own.fail(2, "own", "--model", model)
    (own.root / "models/own/model").mkdir(parents=True)
    (own.root / "models/own/model/config.json").write_text("theirs")
    assert "models/own/model/config.json: something else is there" in own.fail(
        5, "own", "--model", model, "--data", good
    )


def test_a_profile_that_cannot_be_written_leaves_nothing(own: Own, model: Path, tmp_path: Path) -> None:
    for text in (
        own.before.replace("a: {}", "a: 3") + "  {b: 3}\n",
        own.before.split("profiles")[0] + "profiles: {a: {}}\n",
    ):
        own.before = text
        own.settings.write_text(text)
        own.fail(2, "own", "--model", model, "--data", make_csv(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["true", "123", "a.b-c_d"])
def test_a_name_that_yaml_reads_otherwise_and_files_of_any_name(
    name: str, own: Own, model: Path, tmp_path: Path
) -> None:
    hub = tmp_path / "models--x--y, zz" / "snapshots" / "ä b"  # a folder of the hub's cache: links to blobs
    hub.mkdir(parents=True)
    for path in model.iterdir():
        (hub / path.name).symlink_to(path)
    data = make_csv(tmp_path / "d, e 'f'.csv")
    assert "the hub's cache" in own.fail(3, name, "--model", hub.parents[1], "--data", data)
    code, output, error = own.run("add-profile", name, "--model", hub, "--data", data)
    assert code == 0 and list(settings_file.load(str(own.settings))["profiles"]) == ["a", name], output + error
    assert f"invoke evaluate --bs 8 --version match --profile {name}" in output
    assert os.readlink(own.root / f"models/{name}/model/config.json") == str(model / "config.json")


def test_a_dry_run_touches_nothing(own: Own, model: Path, tmp_path: Path) -> None:
    code, output, error = own.run(
        "add-profile", "own", "--model", model, "--data", make_csv(tmp_path / "a.csv"), "--dry"
    )
    assert code == 0 and "-m deberta.stages.inference.describe_model" in output, output + error
    assert own.files() == [] and own.settings.read_text() == own.before


@pytest.mark.parametrize(
    ("names", "versions"),
    [
        (["a.csv"], ["match"]),
        (["a.csv", "b.csv"], ["match", "mismatch"]),
        (["dev_mismatched.tsv", "dev_matched.tsv"], ["mismatch", "match"]),
        (["x.tsv", "matched.tsv"], ["mismatch", "match"]),
        (["validation_mismatched.jsonl"], ["mismatch"]),
    ],
)
def test_which_file_is_of_which_version(names: list[str], versions: list[str], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in names]
    assert by_version(paths) == dict(zip(versions, paths, strict=True))


@pytest.mark.parametrize("names", [[], ["a", "b", "c"], ["match_a", "match_b"], ["a", "a"]])
def test_files_of_no_version(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        by_version([tmp_path / name for name in names])


def test_missing_files_of_a_profile_are_named_at_once(own: Own) -> None:
    profile = "checkpoint: a.bin, config: a.json, tokenizer: spm.model, dataset: MNLI, rows: {match: 9}"
    own.settings.write_text(own.before + f"  own: {{{profile}}}\n")
    code, _, error = own.run("evaluate", "--version", "match", "--profile", "own", "--backend", "cpu")
    names = [f"models/own/{name}" for name in ("a.bin", "a.json")] + [
        "data/own/MNLI/dev_matched.tsv",
        "models/own/spm.model",
    ]
    assert code == 3 and all(name in error for name in names) and "docs/profiles.md" in error
    own.settings.write_text(own.settings.read_text().replace("a.bin", "/models/a.bin"))
    code, _, error = own.run("evaluate", "--version", "match", "--profile", "own", "--backend", "cpu")
    assert code == 2 and "leaves the profile's folder (invoke add-profile links files into it)" in error


@pytest.mark.parametrize("page", ["docs/profiles.md", "docs/profiles.zh-CN.md"])
def test_the_page_has_every_key_and_its_examples_are_profiles(page: str, tmp_path: Path) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert all(f"\n| `{key}` | " in text for key in profiles._KEYS)
    assert all(f"| `{role}` | {', '.join(USUAL[role])}" in text.replace("、", ", ") for role in USUAL)
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "settings.yaml").write_text("profiles:\n" + "".join(examples))
    known = settings_file.load(str(tmp_path / "settings.yaml"))["profiles"]
    assert len(known) == len(examples) == 4
    assert all(profiles.load(name, known).labels for name in known)


LINES = ["# new", "new:", "  rows: {match: 1}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "\nprofiles:\n  # new\n  new:\n    rows: {match: 1}\n"),
        ("a: 1", "a: 1\n\nprofiles:\n  # new\n  new:\n    rows: {match: 1}\n"),
        ("profiles:\n", "profiles:\n  # new\n  new:\n    rows: {match: 1}\n"),
        ("profiles:\n    a:\n        b: 1\n    # end\n\nc: 2\n",
         "profiles:\n    a:\n        b: 1\n    # end\n    # new\n    new:\n      rows: {match: 1}\n\nc: 2\n"),
        ("profiles:\n  a: {b: [1,\n    2]}\nc: |\n  x\n",
         "profiles:\n  a: {b: [1,\n    2]}\n  # new\n  new:\n    rows: {match: 1}\nc: |\n  x\n"),
        ("profiles:\n  a:\n    b: >\n      x\n      y\n",
         "profiles:\n  a:\n    b: >\n      x\n      y\n  # new\n  new:\n    rows: {match: 1}\n"),
        ("profiles:\r\n  a: {}\r\n", "profiles:\r\n  a: {}\r\n  # new\r\n  new:\r\n    rows: {match: 1}\r\n"),
    ],
)  # fmt: skip
def test_a_profile_finds_its_place(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(text.encode())
    path.chmod(0o640)
    settings_file.prepare_profile(path, "new", LINES)()
    assert path.read_bytes().decode() == expected and path.stat().st_mode & 0o777 == 0o640
    assert settings_file.load(str(path))["profiles"]["new"] == {"rows": {"match": 1}}


def test_a_profile_is_added_to_the_projects_own_settings(tmp_path: Path) -> None:
    path, text = tmp_path / "invoke.yaml", (REPOSITORY / "invoke.yaml").read_text(encoding="utf-8")
    path.write_text(text)
    settings_file.prepare_profile(path, "new", LINES)()
    assert path.read_text() == text + "  # new\n  new:\n    rows: {match: 1}\n"


@pytest.mark.parametrize(
    "text",
    ["profiles: {a: {}}\n", "profiles: {}\n", "{profiles: {a: {}}}\n", "profiles: 3\n", "profiles:\n- a\n",
     "profiles:\n  new: {}\n", "profiles:\n  a: {}\n...\n# end\n---\n"],
)  # fmt: skip
def test_a_settings_file_with_no_place_stays_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        settings_file.prepare_profile(path, "new", LINES)
    assert path.read_text() == text
