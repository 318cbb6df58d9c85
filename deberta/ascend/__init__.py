"""CANN's tools (atc, msame, ais_bench, npu-smi): their command lines, output and outcome."""
