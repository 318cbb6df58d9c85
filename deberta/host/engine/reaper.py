"""A process that waits until the one that started it ends, and then removes the containers of its session."""

from __future__ import annotations

import signal
import sys
import time

from deberta.host.engine import engine


def main(session: str) -> None:
    """Errors go nowhere: the next run in the workspace removes what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it outlives its parent
    client = engine.connect()
    if sys.stdin.read() == "done":
        return
    for pause in (0, 2):  # twice, for a container that the engine was just creating
        time.sleep(pause)
        for left in engine.labelled(client, {engine.LABEL: "container", engine.OF_SESSION: session}):
            if left.labels.get(engine.KEPT) != "yes":
                engine.remove(left)
            elif left.status == "running":
                left.kill()


if __name__ == "__main__":
    main(sys.argv[1])
