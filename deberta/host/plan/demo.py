"""How the demo profile's committed files are made again: two steps with fixed arguments."""

from __future__ import annotations

from deberta.core.contract import TRAIN_FILE
from deberta.host.plan import evaluation
from deberta.host.plan.evaluation import Plan, Step

TRAIN_ROWS = 200_000
SEED = "1"
TRAINING = (
    *("--steps", "7500", "--short-steps", "1500", "--batch-size", "64"),
    *("--learning-rate", "1e-3", "--warmup", "200", "--seed", SEED),
)


def remake_steps(plan: Plan) -> tuple[Step, Step]:
    """Generate the data sets, the vocabulary and the config; train the model on them."""
    profile, artifacts = plan.profile, plan.artifacts
    train = profile.dataset_path / TRAIN_FILE
    dev = [profile.data_path(version) for version in profile.rows]
    generate = Step(
        name="demo-data",
        title="demo-data",
        stage="demo-data",
        arguments=(
            *("--data", str(profile.dataset_path), "--tokenizer", str(profile.tokenizer_path)),
            *("--config", str(profile.config_path), "--train-rows", str(TRAIN_ROWS), "--seed", SEED),
        ),
        inputs=(),
        outputs=(train, *dev, profile.tokenizer_path, profile.config_path),
        log=artifacts.log("demo-data"),
        commands={},
    )
    return generate, evaluation.finetune(plan, list(profile.rows), None, TRAINING)
