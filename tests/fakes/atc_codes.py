"""The error codes of atc 5.1 (public error tables of GE and metadef, tag 1.8) and how it prints them.

Codes and their meaning follow those tables; wording only where a program could look at it (the code, the option).
"""

from __future__ import annotations

from typing import List

STARTING = "ATC start working now, please wait for a moment."
SUCCESS = "ATC run success, welcome to the next use."
FAILED = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
FAILURE = 255  # -1 to the shell

# What `FAKE_ATC=code=...` prints; %-less texts, so that a code can be forced without a model that causes it.
TEXTS = {
    "E10001": "Value [x] for parameter [--input_format] is invalid. Reason: it is not supported.",
    "E10002": "Value [x] for parameter [--input_shape] is invalid. Reason: it is not digit.",
    "E10004": "Value for [--model] is empty.",
    "E10007": "[--framework] is required. The value must be [0(Caffe) or 1(MindSpore) or 3(TensorFlow) or 5(Onnx)].",
    "E10009": "[--dynamic_batch_size], [--dynamic_image_size], [--input_shape_range], [--dynamic_dims] are exclusive.",
    "E10010": "Value [x] for parameter [--log] is invalid.",
    "E10011": "Value [input_ids:0,256] for parameter [--input_shape] is invalid. Dimensions must be positive.",
    "E10014": "Value [99999999999999999999] for parameter [--input_shape] is invalid.",
    "E10016": "Opname [x] specified in [--input_shape] is not found in the model.",
    "E10022": "Path [out/] for parameter [--output] does not include the file name.",
    "E10035": "[--dynamic_dims] has [1] profiles, which is less than the minimum [2].",
    "E10036": "[--dynamic_dims] has [101] profiles, which is greater than the maximum [100].",
    "E10037": "The profiles of [--dynamic_dims] have inconsistent dimension counts.",
    "E10038": "Dimension size [0] is invalid. It must be greater than 0.",
    "E10039": "[--dynamic_dims] has duplicate profiles.",
    "E10040": "[--dynamic_dims] is given, but no input in [--input_shape] has a -1.",
    "E10044": "Available memory is not enough for [--auto_tune_mode].",
    "E10045": "The -1 axes of [--input_shape] and the sizes per profile of [--dynamic_dims] differ in number.",
    "E10410": "File [x] does not exist.",
    "E13002": "Optype [x] of Ops kernel [AIcoreEngine] is unsupported.",
    "E13003": "No supported Ops kernel and engine are found for [x], optype [x].",
    "E16001": "The model has no [input].",
    "E16002": "No parser is registered for Op [x], optype [x].",
    "E16005": "The model has [2] domains of opsets, only one is supported.",
    "E19000": "Path [x]'s realpath is empty, errmsg[No such file or directory].",
    "E19005": "Parse protobuf of the model file failed.",
    "E19015": "The file [x] has [2147483648] bytes, which is out of range.",
    "E19022": "Failed to allocate memory for the weights.",
    "E19023": "The model needs more memory than the device has.",
    "E19999": "Inner Error!",
    "E40001": "Failed to import Python module [te].",
    "E40005": "Compile of op [x] failed.",
    "E40006": "The tasks of op compilation timed out.",
    "E40007": "Op compilation was stopped.",
    "E40008": "The compile result of op [x] cannot be read.",
    "E40009": "The op compilation's subprocess was killed.",
    "E76002": "No ONNX parser is registered for optype [x].",
    "E90000": "Compile operator failed, cause: x.",
    "EB0000": "Op [x] could not be compiled by TBE.",
    "EE1000": "Value [Ascend000] for parameter [--soc_version] is invalid.",
    "EZ3002": "Optype [x] of Ops kernel [AIcoreEngine] is unsupported.",
    "EZ3003": "No supported Ops kernel and engine are found for [x], optype [x].",
}


class AtcError(Exception):
    """What makes atc fail: a code and its text."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text or TEXTS.get(code, "A code that the stand-in has no text for.")


def failure(error: AtcError) -> List[str]:
    """The lines after `ATC start working now`."""
    if error.code == "E19999":  # the one without a text of its own: the reason is below
        return [FAILED, f"E19999: {TEXTS['E19999']}", f"E19999  {error.text}"]
    return [FAILED, f"{error.code}: {error.text}"]


def warning(node: str) -> str:
    """Printed after the success line, one for each operator that has no fast kernel."""
    return (
        f"W11001: Op [{node}] does not hit the high-priority operator information library, "
        "which might result in compromised performance."
    )
