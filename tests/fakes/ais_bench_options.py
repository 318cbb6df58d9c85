"""ais_bench's command line: argparse's rules and messages, exit code 2."""

from __future__ import annotations

import argparse
from typing import List, Sequence

STRINGS = ("dymBatch", "dymHW", "dymShape", "dymShape_range", "outputSize", "acl_json_path")
SWITCHES = ("auto_set_dymshape_mode", "auto_set_dymdims_mode", "profiler", "dump")


def not_played(options: argparse.Namespace) -> List[str]:
    """The options given that the stand-in has no part for."""
    given = [name for name in (*STRINGS, *SWITCHES, "output_batchsize_axis") if getattr(options, name)]
    return [*given, *(["outfmt NPY"] if options.outfmt == "NPY" else [])]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="__main__.py")
    parser.add_argument("--model", "-m", required=True)
    for names in (("--input", "-i"), ("--output", "-o"), ("--output_dirname",), ("--dymDims",)):
        parser.add_argument(*names)
    parser.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    parser.add_argument("--loop", "-l", type=_positive, default=1)
    parser.add_argument("--batchsize", type=_positive)
    parser.add_argument("--warmup_count", type=_natural, default=1)
    parser.add_argument("--output_batchsize_axis", type=_natural, default=0)
    parser.add_argument("--device", "-d", type=_device, default=0)
    parser.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    parser.add_argument("--run_mode", default="array", choices=["array", "files", "tensor", "full"])
    for name in ("--debug", "--display_all_summary", *(f"--{name}" for name in SWITCHES)):
        parser.add_argument(name, type=_switch, default=False)
    for name in STRINGS:
        parser.add_argument(f"--{name}")
    options = parser.parse_args(argv)
    if options.output is None and options.output_dirname is not None:
        print("[ERROR] parameter --output_dirname cann't be used alone. Please use it together with --output!")
        raise RuntimeError("error bad parameters --output_dirname")
    return options


def _positive(text: str) -> int:
    return _at_least(text, 1, "positive")


def _natural(text: str) -> int:
    return _at_least(text, 0, "nonnegative")


def _at_least(text: str, least: int, what: str) -> int:
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is an invalid {what} int value")
    return int(text)


def _device(text: str) -> int:
    if not 0 <= int(text) <= 255:  # a list of devices ends here as well
        raise argparse.ArgumentTypeError(f"device:{text} is invalid. valid value range is [0, 255]")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected true, 1, false, 0 with case insensitive.")
