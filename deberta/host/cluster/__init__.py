"""Many hosts as one: what an engine carries for the coordinator, and how long it takes."""
