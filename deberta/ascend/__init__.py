"""CANN's tools, read and judged: atc, msame, ais_bench, npu-smi."""
