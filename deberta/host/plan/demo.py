"""How the demo profile's committed files are made again: two steps with fixed arguments."""

from __future__ import annotations

from deberta.core.contract import TRAIN_FILE
from deberta.host.plan import evaluation
from deberta.host.plan.plan import Plan, Step

SEED = "1"
TRAINING = {
    "--steps": "7500",
    "--short-steps": "1500",
    "--batch-size": "64",
    "--learning-rate": "1e-3",
    "--warmup": "200",
    "--seed": SEED,
}


def remake_steps(plan: Plan) -> list[Step]:
    """Generate the data sets, the vocabulary and the config; train the model on them."""
    profile = plan.profile
    dev = [profile.data_path(version) for version in profile.rows]
    arguments = ["--data", profile.dataset_path, "--tokenizer", profile.tokenizer_path, "--config", profile.config_path]
    generate = Step(
        name="demo-data",
        title="demo-data",
        stage="demo-data",
        arguments=(*map(str, arguments), "--train-rows", "200000", "--seed", SEED),
        inputs=(),
        outputs=(profile.dataset_path / TRAIN_FILE, *dev, profile.tokenizer_path, profile.config_path),
        log=plan.artifacts.log("demo-data"),
        commands={},
    )
    return [generate, evaluation.finetune(plan, list(profile.rows), "", TRAINING)]
