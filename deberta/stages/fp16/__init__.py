"""The graph in float16 on the CPU."""
