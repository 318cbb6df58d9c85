"""bench: computes figures from times and logits, and formats them as Markdown. Nothing here runs or reads anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.engines import ENGINES, OURS, REFERENCE
from deberta.core.contract import FP32
from deberta.stages.inference.logits import compare_logits

TOLERANCE = 1e-4  # largest difference of a logit from transformers eager, float32 both
COMPARED = ("guide", "eager", "compile", "hf-export", "optimum-intel")  # shown by ours in the first table
FLOORS = ("floor", "floor-ort")
INSTALL = "python3.11 -m venv .venv-bench && .venv-bench/bin/pip install --require-hashes -r requirements-bench.lock"
_RUNNING = [
    "`invoke bench` writes `results/bench/bench.json` and prints these tables; `invoke bench --publish` writes "
    "this page, its plot and its figures (`benchmarks.json`) too, and `invoke bench --check` compares the ratios "
    "of a run with those: exit code 6 if one got worse by more than 5 % and out of both runs' quartiles. Rows of "
    "real lengths are those of the profile's `dev_matched.tsv` or else of MNLI's, whose numbers of tokens the "
    "repository has (`benchmarks/lengths`: by a sentencepiece model of 12,000 pieces trained on the same texts); "
    "`--lengths FILE` takes others. `--against COMMIT` has that commit's `infer` take turns with ours, end to "
    "end. Hugging Face's exports and the plot need an environment of their own; where it, or a C++ compiler for "
    "torch.compile, is not there, they are reported as missing:",
    "",
    f"    {INSTALL}",
]
_SHOWN = ("GatherElements", "Where", "Expand", "Tile", "Cast", "MatMul", "Gemm", "Softmax")

Json = Mapping[str, Any]


def spread(seconds: Sequence[float], rows: int) -> dict[str, float]:
    """Milliseconds per row: the median of the repeats, the quartiles and the least."""
    q1, median, q3 = np.percentile(np.asarray(seconds) * 1000 / rows, (25, 50, 75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "min": min(seconds) * 1000 / rows}


def ratio(seconds: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as long as ours: the median and the quartiles of each repeat's own ratio.

    In a repeat the engines run right after each other, so what slows the machine down for a while is in both.
    """
    q1, median, q3 = np.percentile(np.asarray(seconds) / np.asarray(ours), (25, 50, 75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def compare(logits: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How far an engine's logits are from the reference's; `differs`: it computes something else."""
    difference = compare_logits(np.asarray(reference), np.asarray(logits))
    other_labels = len(difference.changed) + int((~difference.finite).sum())  # a row with a NaN has no label
    return {
        "max_abs_difference": difference.max_abs if difference.finite.all() else None,
        "other_labels": other_labels,
        "differs": not difference.within(TOLERANCE) or other_labels > 0,
    }


def headlines(results: Json) -> dict[str, float]:
    """The ratios of the first table: other engines by ours, ours by the fastest matrix products; sound engines only."""
    sound = {name: result["ratio"]["median"] for name, result in results.items() if _sound(result)}
    ratios = {name: sound[name] for name in COMPARED if name in sound}
    if floors := [sound[name] for name in FLOORS if name in sound]:
        ratios["ours_by_floor"] = 1 / min(floors)
    return ratios


def _sound(result: Json) -> bool:
    return "ratio" in result and not result.get("differs")


def markdown(report: Json, plot: str | None) -> str:
    """The page: tables, what was compared and how, the machine. `plot`: its path relative to the page."""
    origin = f"Made by `{report['command']}` on {report['made'][:10]}, in one run on one machine; not edited."
    lines = ["# Benchmarks", "", origin, ""]
    for warning in report["warnings"]:
        lines += [f"> **{warning}**", ""]
    lines += _first_table(report)
    if plot:
        lines += [f"![Milliseconds per row of each engine]({plot})", ""]
    for case in report["cases"]:
        lines += _case(case)
    lines += _other_precisions(report["cases"])
    lines += _end_to_end(report)
    lines += ["## What was compared", ""]
    lines += [_described(name, report) for name in ENGINES if name in report["engines"]]
    lines += [f"- {ENGINES[name].label}: **not measured**. {reason}" for name, reason in report["absent"].items()]
    lines += ["", "## How", "", *_how(report), "", "## The machine", "", *_machine(report), "", "## Running it", ""]
    return "\n".join([*lines, *_RUNNING, ""])


def _first_table(report: Json) -> list[str]:
    """Each case in one line: the others' times by ours, and ours by the products'."""
    headlines = [case["headlines"] for case in report["cases"]]
    columns = [name for name in (*COMPARED, "ours_by_floor") if any(name in ratios for ratios in headlines)]
    if not columns:
        return []
    titles = [ENGINES[name].label if name in ENGINES else "ours by the fastest products" for name in columns]
    lines = [f"| time divided by ours | {' | '.join(titles)} |", f"|---|{'---|' * len(columns)}"]
    for case in report["cases"]:
        cells = [f"{case['headlines'][name]:.2f}" if name in case["headlines"] else "-" for name in columns]
        lines.append(f"| {case['title']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _end_to_end(report: Json) -> list[str]:
    """Rows per second of `infer` from bins on disk."""
    if not (found := report.get("end_to_end")):
        return []
    names = {"ours": "float32", "ours-bf16": "bf16", "ours-int8": "int8", "before": f"float32 of {found['revision']}"}
    lines = [
        "## infer, end to end",
        "",
        f"The stage as a process, from its start to its end: the model is loaded, {found['rows']} rows of real lengths "
        f"at batch size {found['batch_size']} are read from bins, run and written. Its runs take turns; the outputs of "
        "another commit are the same bytes.",
        "",
        "| infer | rows per s | seconds | by ours in float32 |",
        "|---|---|---|---|",
    ]
    for name, result in found["results"].items():
        ratio, seconds = result["ratio"], sorted(result["times_s"])
        lines.append(
            f"| {names[name]} | {result['rows_per_s']:.1f} | {seconds[0]:.1f}-{seconds[-1]:.1f} | "
            f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f}) |"
        )
    return [*lines, ""]


def _case(case: Json) -> list[str]:
    lines = [
        f"## {case['title']}",
        "",
        "| engine | ms per row | quartiles | least | rows per s | by ours | memory | max difference | other labels |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    failed = {name: result for name, result in case["results"].items() if "error" in result}
    measured = {
        name: result
        for name, result in case["results"].items()
        if name not in failed and ENGINES[name].precision == FP32
    }
    for name, result in sorted(measured.items(), key=lambda entry: float(entry[1]["ms_per_row"]["median"])):
        lines.append(f"| {' | '.join(_cells(name, result))} |")
    for name, result in failed.items():
        lines.append(f"| {ENGINES[name].label} | **failed** | | | | | | {_cell(result['error'])} | |")
    return [*lines, ""]


def _other_precisions(cases: Sequence[Json]) -> list[str]:
    """Engines in less than float32, by ours in float32, with what that changes of the logits."""
    lines = []
    for case in cases:
        for name, result in case["results"].items():
            if ENGINES[name].precision == FP32 or "error" in result:
                continue
            factor, difference = result["ratio"], result["max_abs_difference"]
            cells = [
                case["title"],
                ENGINES[name].label,
                f"{result['ms_per_row']['median']:.1f}",
                f"{factor['median']:.2f} ({factor['q1']:.2f}-{factor['q3']:.2f})",
                "not finite" if difference is None else f"{difference:.1e}",
                f"{result['other_labels']} of {case['rows']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "## In other precisions",
        "",
        "These compute less exactly than float32. Their time is divided by ours in float32; their logits and labels "
        "are compared with those of transformers eager. With random weights labels change at another rate than with "
        "trained ones.",
        "",
        "| case | engine | ms per row | by ours in float32 | max difference | other labels |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def _cells(name: str, result: Json) -> list[str]:
    time, factor, memory = result["ms_per_row"], result["ratio"], result["peak_rss_bytes"]
    label = f"**{ENGINES[name].label}**" if name == OURS else ENGINES[name].label
    exact = ["-", "-"]
    if name == REFERENCE:
        exact = ["the reference", "-"]
    elif ENGINES[name].exact:
        difference = result["max_abs_difference"]
        exact = ["not finite" if difference is None else f"{difference:.1e}", str(result["other_labels"])]
    return [
        f"{label}: **computes something else**" if result.get("differs") else label,
        f"{time['median']:.1f}",
        f"{time['q1']:.1f}-{time['q3']:.1f}",
        f"{time['min']:.1f}",
        f"{1000 / time['median']:.2f}",
        f"{factor['median']:.2f} ({factor['q1']:.2f}-{factor['q3']:.2f})",
        f"{memory / 2**30:.1f} GiB" if memory else "not known",
        *exact,
    ]


def _described(name: str, report: Json) -> str:
    text = f"- {ENGINES[name].label} (`{name}`): {ENGINES[name].how}"
    model = report["model"].get(name)
    if name == OURS:
        text += f"; {_nodes(model['nodes'])}"
    if name == "guide":
        text += (
            ". It is transformers' model, which descends from the guide's, traced with the attention that the guide's "
            f"has: {_nodes(model['nodes'])}. Folded by ONNX Runtime for batch size 1: {_nodes(model['folded'])}"
        )
    if name == "floor":
        first = next(iter(model.values()))
        text += f": {first['products']} of them"
    if name in ("hf-export", "optimum-intel"):
        text += f"; by {', '.join(f'{package} {version}' for package, version in report['peers'].items())}"
    return f"{text}."


def _nodes(nodes: Mapping[str, int]) -> str:
    counted = {name: count for name, count in nodes.items() if name not in ("Constant", "Identity")}
    named = ", ".join(f"{counted[name]} {name}" for name in _SHOWN if name in counted)
    return f"{sum(counted.values())} nodes, among them {named}"


def _how(report: Json) -> list[str]:
    model, settings, sample = report["model"], report["settings"], report["sample"]
    lines = [
        f"- Weights: {model['weights']}, {model['parameters'] / 1e6:.1f} M parameters, float32, the same for all.",
        f"- {settings['threads']} threads for each engine, which is a process of its own. The engines take turns, in "
        f"{settings['repeats']} repeats ({settings['real_repeats']} at real lengths) that each begin with another one. "
        f"Before each turn is a rest of {settings['pause_s']} s, since the threads of some go on spinning for a while. "
        "Each engine's first turn is left out.",
        "- A turn runs all rows of the case. Its time is that of the inference calls, from arrays in memory to logits: "
        "nothing is read, tokenized or padded in it.",
        "- By ours: the median (and the quartiles) over the repeats of an engine's time divided by ours in the same "
        "repeat. Memory: the most that the process had, loading included, exporting not.",
        "- Max difference and other labels are of the logits from those of transformers eager on the same rows. Above "
        f"{settings['tolerance']:g}, or with another label, an engine is marked and left out of the first table. "
        "Of engines in other precisions both are only shown, in a table of their own.",
        f"- 256 tokens: {settings['fixed_rows']} rows of random ids.",
    ]
    if not sample["rows"]:
        return [*lines, f"- Real lengths were **not measured**: {sample['source']}."]
    buckets = "; ".join(
        f"at batch size {size} {', '.join(map(str, lengths))}" for size, lengths in sample["buckets"].items()
    )
    return [
        *lines,
        f"- Real lengths: {sample['rows']} rows of random ids, whose lengths are evenly spaced quantiles of those in "
        f"{sample['source']} ({sample['of']} rows, mean {sample['mean_of_all']:.1f} tokens): mean "
        f"{sample['mean']:.1f}, median {sample['median']:g}, longest {sample['longest']} tokens. Every engine but "
        "the guide's form gets them sorted by length: transformers and Hugging Face's export with each batch filled to "
        "its longest row, ours and the products with each batch filled to the next of the lengths that `--buckets "
        f"auto` chooses for all {sample['of']} rows ({buckets}). The guide's form gets every row filled to 256.",
    ]


def _machine(report: Json) -> list[str]:
    machine = report["machine"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB of memory, " if machine["memory_bytes"] else ""
    where = "in a virtual machine, " if machine["hypervisor"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"- {machine['cpu']} (family, model, stepping {', '.join(machine['family_model_stepping'])}), "
        f"{machine['usable_cpus']} of {machine['logical_cpus']} logical CPUs usable, {where}{memory}"
        f"with {', '.join(machine['flags'])}",
        f"- {machine['system']}, {machine['c_library']}; C++ compiler: {machine['cxx_compiler'] or 'none'}; "
        f"load average at the start: {machine['load_average']}",
        f"- Python {machine['python']}, {packages}",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
