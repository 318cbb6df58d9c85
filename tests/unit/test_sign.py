"""Signatures and keys: what must be refused, the envelope's form, and that openssl agrees."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.stages.verify import sign

STATEMENT = b'{"_type": "https://in-toto.io/Statement/v1"}'


def _signed(folder: Path, name: str = "key") -> dict[str, object]:
    sign.new_key(folder / name, None)
    return sign.sign(STATEMENT, sign.private_key(folder / name, None))


def test_what_is_signed_is_dsses_encoding() -> None:
    """The example of DSSE's own protocol text."""
    encoded = sign.pae("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_new_key_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    identity = sign.new_key(tmp_path / "key", None)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert identity == sign.key_id(sign.public_key(tmp_path / "key.pub"))
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(ConfigError, match="never replaced"):
        sign.new_key(tmp_path / "key", None)
    (tmp_path / "key").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"key\.pub is there"):
        sign.new_key(tmp_path / "key", None)
    assert (tmp_path / "elsewhere").read_bytes() == before and not (tmp_path / "key").exists()


def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    sign.new_key(tmp_path / "key", None)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        sign.private_key(tmp_path / "key", None)


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    sign.new_key(tmp_path / "key", b"open")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    with pytest.raises(ConfigError, match="--passphrase-env"):
        sign.private_key(tmp_path / "key", None)
    with pytest.raises(ConfigError, match="its passphrase is another one"):
        sign.private_key(tmp_path / "key", b"shut")
    sign.check(
        sign.sign(STATEMENT, sign.private_key(tmp_path / "key", b"open")),
        *(sign.public_key(tmp_path / "key.pub"), tmp_path / "envelope"),
    )
    sign.new_key(tmp_path / "plain", None)
    with pytest.raises(ConfigError, match="leave out --passphrase-env"):
        sign.private_key(tmp_path / "plain", b"open")
    with pytest.raises(ConfigError, match="this variable is not set"):
        sign.main(["--new-key", str(tmp_path / "third"), "--passphrase-env", "A_VARIABLE_THAT_IS_NOT_SET"])
    assert not (tmp_path / "third").exists()


def test_files_that_are_no_such_key(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is missing"):
        sign.private_key(tmp_path / "key", None)
    sign.new_key(tmp_path / "key", None)
    with pytest.raises(ConfigError, match="openssl pkey -in"):
        sign.public_key(tmp_path / "key")
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(ConfigError, match="is no private key"):
        sign.private_key(tmp_path / "text", None)
    with pytest.raises(ConfigError, match="is no public key"):
        sign.public_key(tmp_path / "text")


def test_another_key_and_every_change_are_refused(tmp_path: Path) -> None:
    envelope = _signed(tmp_path)
    key = sign.public_key(tmp_path / "key.pub")
    assert sign.check(envelope, key, tmp_path) == sign.key_id(key)
    sign.new_key(tmp_path / "other", None)
    with pytest.raises(DataError, match="not by the key given"):
        sign.check(envelope, sign.public_key(tmp_path / "other.pub"), tmp_path)

    payload = base64.b64encode(STATEMENT.replace(b"v1", b"v2")).decode()
    with pytest.raises(DataError, match="signature is bad"):
        sign.check({**envelope, "payload": payload}, key, tmp_path)
    with pytest.raises(DataError, match="expected application/vnd"):
        sign.check({**envelope, "payloadType": "text/plain"}, key, tmp_path)
    damages: list[object] = [[], {}, {**envelope, "signatures": [{}]}, {**envelope, "payload": "!"}]
    for damaged in damages:
        with pytest.raises(DataError, match="not a DSSE envelope"):
            sign.check(damaged, key, tmp_path)
    with pytest.raises(DataError, match="signed by nobody"):
        sign.check({**envelope, "signatures": []}, key, tmp_path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_keys_for_us_and_accepts_our_signatures(tmp_path: Path) -> None:
    openssl: Callable[..., object] = lambda *arguments: subprocess.run(  # noqa: E731
        ["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True
    )
    openssl("genpkey", "-algorithm", "ed25519", "-out", "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "public")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "statement").write_bytes(STATEMENT)
    given = ["--statement", str(tmp_path / "statement"), "--key", str(tmp_path / "key")]
    sign.main([*given, "--output", str(tmp_path / "envelope")])
    envelope = json.loads((tmp_path / "envelope").read_bytes())
    assert base64.b64decode(envelope["payload"]) == STATEMENT
    sign.main(["--envelope", str(tmp_path / "envelope"), "--key", str(tmp_path / "public")])
    (tmp_path / "signed").write_bytes(sign.pae(envelope["payloadType"], STATEMENT))
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", "public", "-rawin"]
    openssl(*verify, "-in", "signed", "-sigfile", "signature")
    openssl("genpkey", "-algorithm", "x25519", "-out", "x25519")
    (tmp_path / "x25519").chmod(0o600)
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        sign.private_key(tmp_path / "x25519", None)
