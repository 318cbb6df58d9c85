"""Planned steps executed: freshness, executors, judgement of what they leave."""
