"""Stand-ins for atc, msame, ais_bench and npu-smi: the whole ascend path runs in tests on a machine without an NPU.

The executables beside this file (`atc`, `msame`...) only load the module of the same name. They behave as was observed
on the unmodified tools, or as their public source and documents say; each module names what is its own choice.
Nothing here says anything about an NPU's speed or precision.

Standard library only and Python 3.9, because they also run inside containers; msame and ais_bench need onnxruntime.
The folder is self-contained: it can be copied anywhere as long as it keeps its name (see tests/fake_cann.py).
"""
