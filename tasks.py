"""The collection of all commands; `deberta/host/cli` has their options and bodies."""

from __future__ import annotations

from invoke.collection import Collection

from deberta.host.cli import acceptance, check, development, evaluation, explain, preparation, reproduce

namespace = Collection(
    # set up and clear
    preparation.doctor,
    preparation.fetch,
    preparation.images,
    preparation.ci_image,
    preparation.clean,
    # make
    evaluation.export_onnx,
    evaluation.preprocess,
    evaluation.build_om,
    evaluation.infer,
    evaluation.postprocess,
    evaluation.evaluate,
    evaluation.perf,
    evaluation.finetune,
    evaluation.demo,
    # judge
    check.lint_onnx,
    check.check_fp16,
    check.compare,
    acceptance.acceptance,
    acceptance.report,
    acceptance.verify,
    acceptance.sign,
    reproduce.reproduce,
    explain.explain,
    # develop
    development.bench,
    development.test,
    development.lint,
)
