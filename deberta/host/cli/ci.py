"""The command that builds the CI image; tasks.py takes it over."""

from __future__ import annotations

from typing import Optional

from invoke.context import Context

from deberta import PROJECT
from deberta.host.cli.options import command, workspace


@command(
    tag="one more name for the image, NAME or NAME:TAG",
    force="build it though it is there",
    dry="say what would be built",
)
def ci_image(c: Context, tag: Optional[str] = None, force: bool = False, dry: bool = False) -> None:
    """Build the image that holds all of an acceptance run but the checkpoint and the data."""
    from deberta.host.images import ci as making  # it needs the SDK, which `invoke -l` must not load
    from deberta.host.images import definition

    name = making.check_name(tag) if tag else ""
    builds = definition.settings(c.config.get("images"), PROJECT)
    making.make(PROJECT, workspace(c), builds, name, force, dry or bool(c.config.run.dry))
