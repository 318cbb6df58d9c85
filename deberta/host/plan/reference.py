"""Steps that acceptance needs beside the chain's: PyTorch's logits, and a look at the data. Planned like steps.py's.

Both are of the profile, whatever backend runs the model.
"""

from __future__ import annotations

from deberta.core.paths import limited
from deberta.host.plan import evaluation
from deberta.host.plan.evaluation import Plan, Step


def reference(plan: Plan, version: str) -> Step:
    """checkpoint and MNLI's tsv -> PyTorch's logits of every row."""
    profile, artifacts = plan.profile, plan.artifacts
    data, made = profile.data_path(version), artifacts.reference(version)
    sources = (profile.checkpoint_path, profile.config_path, data, profile.tokenizer_path)
    labels = ("--labels", ",".join(profile.labels)) if profile.labels else ()
    name, title = _named(plan, "reference", version)
    return Step(
        name=name,
        title=title,
        stage="pytorch-reference",
        arguments=(
            *("--checkpoint", str(profile.checkpoint_path), "--config", str(profile.config_path), *labels),
            *("--data", str(data), "--tokenizer", str(profile.tokenizer_path), "--output", str(made)),
            *evaluation.row_counts(plan, version),
        ),
        inputs=tuple(plan.source(path) for path in sources),
        outputs=(made,),
        log=artifacts.log(name),
        commands=plan.commands(version=version),
    )


def sentinel(plan: Plan, version: str) -> Step:
    """MNLI's tsv -> what a look at the data itself finds."""
    profile, artifacts = plan.profile, plan.artifacts
    data, made = profile.data_path(version), artifacts.sentinel(version)
    name, title = _named(plan, "sentinel", version)
    return Step(
        name=name,
        title=title,
        stage="check-data",
        arguments=(
            *("--data", str(data), "--tokenizer", str(profile.tokenizer_path), "--config", str(profile.config_path)),
            *("--version", version, "--output", str(made), *evaluation.row_counts(plan, version)),
        ),
        inputs=tuple(plan.source(path) for path in (data, profile.tokenizer_path, profile.config_path)),
        outputs=(made,),
        log=artifacts.log(name),
        commands=plan.commands(version=version),
    )


def _named(plan: Plan, step: str, version: str) -> tuple[str, str]:
    first = f" first {plan.limit} rows" if plan.limit else ""
    return limited(f"{step}_{version}", plan.limit), f"{step} {version}{first}"
