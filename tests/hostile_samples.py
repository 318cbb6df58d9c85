"""Contents and kinds of files, weights and HTTP answers that break a careless reader."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deberta.core import files

DEEP = 200_000
NESTED = '{"a":' * DEEP + "1" + "}" * DEEP
DOCUMENTS = {
    "lists": b"[" * DEEP,
    "closed lists": b"[" * DEEP + b"]" * DEEP,
    "objects": NESTED.encode(),
    "65 levels": b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
    "infinity": b'{"hidden_size": Infinity}',
    "minus infinity": b'{"rows": -Infinity}',
    "nan": b'{"throughput": NaN}',
    "beyond float": b'{"throughput": 1e999}',
    "digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "millions of digits": b'{"hidden_size": ' + b"9" * 3_000_000 + b"}",
    "nul": b'{"hidden_act": "a\\u0000b"}',
    "raw nul": b'{"hidden_act": "a\0b"}',
    "surrogate": b'{"hidden_act": "a\\ud800b"}',
    "doubled": b'{"rows": 1, "rows": 2}',
    "escape": b'{"rows": "\\u001b[2J"} \x1b[2J',
    "latin": b'{"rows": "\xe9"}',
    "empty": b"",
    "cut": b'{"rows": [1, 2',
    "too large": b" " * (files.LARGEST_TEXT + 1),
}

PLACES: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "loop": lambda path: path.symlink_to(path.name),
    "broken": lambda path: path.symlink_to("nothing"),
    "long": lambda path: path.symlink_to("a" * 300),
    "folder": Path.mkdir,
}

WEIGHTS: dict[str, Callable[[], Any]] = {
    "an int key": lambda: {1: torch.zeros(1)},
    "a tuple key": lambda: {(1, 2): torch.zeros(1)},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "compressed": lambda: {"a": torch.eye(3).to_sparse_csr()},
    "complex": lambda: {"a": torch.ones(3, dtype=torch.complex64)},
    "nested": lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "quantized": lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "without data": lambda: {"a": torch.empty(3, device="meta")},
    "a list": lambda: [torch.zeros(1)],
    "nothing": lambda: None,
    "a dict in it": lambda: {"a": {"b": torch.zeros(1)}},
}

ANSWERS = {
    "redirect to half an address": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "redirect to no text": b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe/\r\nContent-Length: 0\r\n\r\n",
    "redirect to a port": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999999/\r\nContent-Length: 0\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "negative chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n",
    "large chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\nabcde\r\n",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "length squared": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nabcde",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcde",
    "endless length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabcde",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "no status": b"abcde\r\n\r\n",
    "status of digits": b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
    "long header": b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
    "nothing": b"",
}
