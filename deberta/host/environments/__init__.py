"""The pip environments of the host and of the stages."""
