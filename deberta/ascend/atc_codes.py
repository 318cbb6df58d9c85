"""Why ATC fails: its error codes and other texts, with our error for each, what it means here, and what to do.

Codes and meanings: error_manager/error_code.json of Ascend/metadef (branch r1.8.0 and its neighbours), from which ATC
prints its texts; E19015, E76002, EZ3002 and EZ3003 are in the headers of graphengine v1.8.0; E10054, EC0010 and the
texts without a code were seen in runs of newer builds. The wording is ours.
"""

from __future__ import annotations

from deberta.ascend.runs import Cause
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError

_OPTIONS = "Correct it under atc in invoke.yaml"
_GEARS = "Correct dynamic_dims under atc in invoke.yaml"
_EXPORT = "Run: invoke export-onnx --force"
_PYTHON = (
    "The python3 that set_env.sh's environment finds (3.7 to 3.9) needs numpy below 2, decorator, sympy, cffi, attrs, "
    "psutil, scipy and protobuf. Install them there, or name a script under cann in invoke.yaml that puts another "
    "Python on PATH and sources set_env.sh"
)
_WHOLE = "Check that the toolkit is whole and that cann in invoke.yaml names its set_env.sh"
_DRIVERLESS = (
    "It comes with the NPU's driver. On a machine without one, write a script that sources set_env.sh and appends the "
    "toolkit's folder that holds it (<arch>-linux/devlib or runtime/lib64/stub) to LD_LIBRARY_PATH, and name that "
    "script under cann in invoke.yaml"
)

_CODES: tuple[tuple[str, type[DebertaError], str], ...] = (
    # Options.
    (
        "E10001 E10003 E10005 E10006 E10010 E10013 E20100 E20101 E40010 E40011",
        ConfigError,
        f"ATC does not take this value for this option. {_OPTIONS}",
    ),
    (
        "E10002 E10011 E10014 E10019 E11005",
        ConfigError,
        "the input shape does not fit. Check --bs, and dynamic_dims under atc in invoke.yaml",
    ),
    ("E10004 E10054", ConfigError, f"an option that ATC needs is empty. {_OPTIONS}"),
    ("E10007", ConfigError, f"this ATC does not read ONNX. {_WHOLE}"),
    ("E10009 E10047", ConfigError, "two options exclude each other. Take one out of atc in invoke.yaml"),
    (
        "E10016 E10017",
        ConfigError,
        "an option names a node that the model does not have. If it is --input_shape, the model is not ours. "
        f"{_EXPORT}. Otherwise correct the option, or the file that it names, under atc in invoke.yaml",
    ),
    ("E10021 E10022 E19002", ConfigError, "a path is too long or names no file. Use a shorter workspace path"),
    (
        "E10035 E10036 E10037 E10038 E10039",
        ConfigError,
        f"the gears are not 2 to 100, all different, of one length and above 0. {_GEARS}",
    ),
    ("E10040 E10045 E10046", ConfigError, f"the gears do not fit the -1 in the input shape. {_GEARS}"),
    ("E10410 E19000", MissingError, "a file is not there. Check the files that stand under atc in invoke.yaml"),
    (
        "EE1000 EF0001",
        ConfigError,
        "this CANN does not know that chip. Give the chip's name with --soc-version: Ascend, then the Name that "
        "`npu-smi info` shows (Ascend310P3)",
    ),
    # The model.
    (
        "E10041 E16001 E16004 E16005 E19005 E19018",
        DataError,
        f"the ONNX file is damaged or is not a model that ATC reads. {_EXPORT}",
    ),
    (
        "E16002 E19010 E76002",
        DataError,
        "this ATC cannot read an operator of the model, or its opset (CANN 5.1 reads 9 to 13). "
        f"{_EXPORT}. If it was exported here: {_WHOLE[0].lower()}{_WHOLE[1:]}",
    ),
    (
        "E10501 E13002 E13003 EZ3002 EZ3003",
        StageError,
        "CANN has no kernel for an operator of the model on that chip. Check --soc-version, that the toolkit's "
        "operator package (opp) is installed, and that the model is the one that export-onnx makes",
    ),
    (
        "E14001 E19009 E19014 E19025",
        StageError,
        f"an operator of the model has an argument that CANN does not take. {_EXPORT}",
    ),
    # Resources and files.
    ("E10044", StageError, "auto-tuning needs 2 GiB of free memory. Free some, or take auto_tune_mode out of extra"),
    (
        "E19015 E19022 E19023 EE2001",
        StageError,
        "the model is too large for this machine or for one file. Use a smaller --bs, close other programs, or "
        "compile on a machine with more memory",
    ),
    (
        "E19001 E19003 E21001 E21002 EF0000",
        ConfigError,
        "a file cannot be opened or read. Check that it is there and that this user may read it",
    ),
    ("E19004", StageError, "a file cannot be written. Check the free space and this user's permission there"),
    # The installation.
    ("E40000 E40001 E40003 E40004 E40008 EC0010", MissingError, f"ATC cannot import a Python module. {_PYTHON}"),
    ("E19024 E30000 E30001 E30002", MissingError, f"the CANN installation is not whole. {_WHOLE}"),
    (
        "E20001 E20002 E20003 E20004 E20005 E20006 E20007 E20008 E21003 "
        "E40002 E40005 E40006 E40007 E40009 E90000 EA0000 EB0000",
        StageError,
        "CANN could not compile an operator. If it came with an option under atc in invoke.yaml, leave that out; "
        "otherwise check the toolkit's version and its Python packages",
    ),
    (
        "E19999",
        StageError,
        "ATC gives no reason of its own. Run again with log: debug under atc in invoke.yaml, and look for the first "
        "ERROR in its output",
    ),
)
BY_CODE = {code: (error, advice) for codes, error, advice in _CODES for code in codes.split()}
UNKNOWN = "E19999"

# For runs that end without a code of ATC's.
BY_TEXT: tuple[Cause, ...] = (
    (
        r"error while loading shared libraries: libascend_hal\.so",
        MissingError,
        f"libascend_hal.so was not found. {_DRIVERLESS}",
    ),
    (r"error while loading shared libraries", MissingError, f"a library of CANN's was not found. {_WHOLE}"),
    (
        r"No module named|was removed in the NumPy 2",
        MissingError,
        f"ATC's Python lacks a package or has one that is too new. {_PYTHON}",
    ),
    (r"unknown command line flag", ConfigError, f"this ATC has no such option. {_OPTIONS}"),
    (r"No space left on device", StageError, "the disk is full. Free some space, then run it again"),
)


def is_generic(code: str) -> bool:
    """E19999, EE9999, EZ9999 ...: each part of CANN has one for its inner errors, and any other code says more."""
    return code.endswith("9999")
