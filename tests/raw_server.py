"""A server on the loopback interface that answers every request with the same bytes, whatever they are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def answering(answer: bytes, pause: float = 0) -> Iterator[str]:
    """The URL of a file there. With a pause, in seconds, it then goes on for ever, a byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener was shut down
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        while not connection.recv(65536).endswith(b"\r\n\r\n"):
                            pass
                        connection.sendall(answer)
                        while pause:
                            connection.sendall(b"a")
                            time.sleep(pause)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/file.bin"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
