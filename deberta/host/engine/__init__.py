"""One Docker engine: its client, containers, devices and clean-up."""
