"""Signs in-toto statements with Ed25519 in DSSE envelopes, checks such signatures, and makes keys.

DSSE 1.0 (https://github.com/secure-systems-lab/dsse) signs the PAE, "DSSEv1 LEN(type) type LEN(body) body". A key's id
is "sha256:" and the SHA-256 of the public key as DER (SubjectPublicKeyInfo). Keys are PEM files, private ones PKCS8,
as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from deberta.core import files, schema
from deberta.core.errors import ConfigError, DataError, MissingError, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument

PAYLOAD_TYPE = "application/vnd.in-toto+json"
LARGEST_KEY = 64 * 2**10  # bytes of a PEM file
MAKE_KEY = "Make one with: invoke sign --new-key PATH"


def pae(payload_type: str, body: bytes) -> bytes:
    """DSSE's pre-authentication encoding, the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def key_id(key: Ed25519PublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def private_key(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a private key. Raises MissingError, and ConfigError for a file that everybody can read."""
    content = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO:
        raise ConfigError(f"{path} is a private key that everybody on this machine can use. Run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except TypeError:
        problem = "is not encrypted: leave out --passphrase-env"
        if passphrase is None:
            problem = "is encrypted: name the variable that holds its passphrase with --passphrase-env"
        raise ConfigError(f"{path} {problem}") from None
    except (ValueError, UnsupportedAlgorithm, InternalError):
        hint = "(PEM, PKCS8)" if passphrase is None else "or its passphrase is another one"
        raise ConfigError(f"{path} is no private key {hint}. {MAKE_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key. {MAKE_KEY}")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. Raises MissingError and ConfigError."""
    content = _read(path)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm, InternalError):
        hint = f"of a private one: openssl pkey -in {path} -pubout -out PUBLIC.pem" if b"PRIVATE" in content else "PEM"
        raise ConfigError(f"{path} is no public key ({hint})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key")
    return key


def _read(path: Path) -> bytes:
    try:
        return files.read_bytes(path, LARGEST_KEY)
    except FileNotFoundError:
        raise MissingError(f"the key {path} is missing. {MAKE_KEY}") from None
    except files.UnfitFile as error:
        raise ConfigError(f"{path} {error}, and no key. {MAKE_KEY}") from None


def new_key(path: Path, passphrase: bytes | None) -> str:
    """Write a new private key, readable by its owner alone, and the public key beside it (.pub); returns its id.

    Raises ConfigError if a file of either name exists.
    """
    public_path = path.with_name(f"{path.name}.pub")
    for file_path in (path, public_path):
        if file_path.exists():
            raise ConfigError(f"{file_path} is there already, and a key is never replaced. Give another path")
    key = Ed25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    public = key.public_key()
    public_pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    files.write_text(public_path, public_pem.decode("ascii"))
    return key_id(public)


def sign(statement: bytes, key: Ed25519PrivateKey) -> dict[str, Any]:
    """The DSSE envelope of an in-toto statement."""
    signature = key.sign(pae(PAYLOAD_TYPE, statement))
    return {
        "payload": base64.b64encode(statement).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode("ascii")}],
    }


def check(envelope: Any, key: Ed25519PublicKey, where: Path) -> str:
    """Return the key's id if one of the signatures is valid and by this key. Raises DataError."""
    try:
        body = base64.b64decode(envelope["payload"], validate=True)
        signed = pae(envelope["payloadType"], body)
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
        key_ids = [str(entry.get("keyid", "?")) for entry in envelope["signatures"]]
    except (KeyError, TypeError, AttributeError, binascii.Error, ValueError) as error:
        raise DataError(f"{where} is not a DSSE envelope ({type(error).__name__}: {error})") from None
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise DataError(f"{where} holds {envelope['payloadType']}, expected {PAYLOAD_TYPE}")
    for signature, named in zip(signatures, key_ids, strict=True):  # the ids are unsigned hints, so each is tried
        try:
            key.verify(signature, signed)
        except InvalidSignature:
            continue
        if named not in ("?", key_id(key)):
            raise DataError(f"{where} names {named} as the key, and the signature is by {key_id(key)}")
        return key_id(key)
    if key_id(key) in key_ids:
        raise DataError(f"{where}: the signature is bad: what was signed, or the signature, was changed")
    raise DataError(f"{where} is signed by {', '.join(key_ids) or 'nobody'}, not by the key given, {key_id(key)}")


def _passphrase(variable: str | None) -> bytes | None:
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"--passphrase-env {variable}: this variable is not set")
    return os.environ[variable].encode("utf-8") if variable else None


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        optional=("output",),
        new_key=arguments.file("make a key pair: this private file, and the public key in its .pub", required=False),
        statement=arguments.file("the in-toto statement to sign", required=False),
        envelope=arguments.file("the envelope whose signature to check", required=False),
        key=arguments.file("private to sign, public to check", required=False),
        passphrase_env=Argument("the variable that holds the private key's passphrase"),
    )
    if sum(path is not None for path in (options.new_key, options.statement, options.envelope)) != 1:
        raise ConfigError("give one of --new-key, --statement and --envelope")
    if options.new_key:
        print(new_key(options.new_key, _passphrase(options.passphrase_env)))
        return
    if options.key is None or (options.statement and options.output is None):
        raise ConfigError("--key is needed, and --output to sign")
    if options.envelope:
        envelope = schema.read(options.envelope, dict[str, Any], "Run: invoke sign")
        print(check(envelope, public_key(options.key), options.envelope))
        return
    key = private_key(options.key, _passphrase(options.passphrase_env))
    envelope = sign(files.read_bytes(options.statement), key)
    files.write_text(options.output, schema.text(envelope))
    print(envelope["signatures"][0]["keyid"])


if __name__ == "__main__":
    sys.exit(run_stage(main))
