"""Shards of one accuracy run: devices, placing, retries, the merged outputs."""
