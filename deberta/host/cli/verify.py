"""verify and sign; tasks.py takes them over."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Optional

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract
from deberta.core.errors import ConfigError, MissingError
from deberta.core.paths import Artifacts
from deberta.host.cli.options import command, prepared_python, profile_of, session_of, workspace
from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.report import verification
from deberta.host.report.verification import VerificationRequest
from deberta.host.run import runner


@command(
    *("profile", "backend", "limit", "dry"),
    path="a copy of the workspace, with models/, data/ and results/ in it (default: the workspace)",
    replay="run this many rows, drawn at random, through dynamic.onnx too",
    seed="of the draw (default: a random one, which is printed)",
    key="a public key (PEM): the report must be signed by it",
)
def verify(
    c: Context,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    limit: Optional[str] = None,
    path: Optional[str] = None,
    replay: Optional[str] = None,
    seed: Optional[str] = None,
    key: Optional[str] = None,
    dry: bool = False,
) -> None:
    """Check a report against all its files: digests, every number made again, the signature. Writes nothing."""
    root = Path(path).expanduser().absolute() if path else workspace(c)
    if not root.is_dir():
        raise MissingError(f"{root} is no folder. Check --path")
    rows = contract.parse_integer("--replay", replay, 0, 1, 10**9)
    drawn = contract.parse_integer("--seed", seed, secrets.randbelow(2**32), 0, 2**32 - 1)
    request = _request(c, root, profile, backend, limit)
    request = replace(request, key=Path(key) if key else None, rows=rows, seed=drawn)
    if dry or c.config.run.dry:
        verification.show(request)
        return
    verification.verify(request)


@command(
    *("profile", "backend", "limit", "dry"),
    key="a private key: Ed25519, PEM (PKCS8)",
    passphrase_env="the environment variable that holds the key's passphrase",
    new_key="make a key pair instead: PATH, and its public part PATH.pub",
)
def sign(
    c: Context,
    key: Optional[str] = None,
    passphrase_env: Optional[str] = None,
    new_key: Optional[str] = None,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    limit: Optional[str] = None,
    dry: bool = False,
) -> None:
    """Sign a report, its pages, its bill of materials and its records, after verifying them."""
    if bool(key) == bool(new_key):
        raise ConfigError("give --key PRIVATE.pem to sign, or --new-key PATH to make a key")
    dry = dry or bool(c.config.run.dry)
    if new_key:
        if dry:
            print(f"would make {new_key} and {new_key}.pub")
            return
        return verification.new_key(_bare(c), Path(new_key), passphrase_env)
    request = _request(c, workspace(c), profile, backend, limit)
    if dry:
        verification.show(request)
        print(f"# then {request.artifacts.attestation()} is written")
        return
    with runner.exclusive(session_of(c, "local")):
        verification.sign(request, Path(str(key)), passphrase_env)


def _request(
    c: Context, root: Path, profile: Optional[str], backend: Optional[str], limit: Optional[str]
) -> VerificationRequest:
    """A profile that only the tree knows is taken by its name."""
    name = str(profile or c.config.get("profile"))
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII)
    only_there = name not in (c.config.get("profiles") or {}) and is_name and (root / "results" / name).is_dir()
    known: Optional[profiles.Profile] = None if only_there else profile_of(c, name)
    rows = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    asked = backend or str(c.config.get("backend") or "auto")
    if asked != "auto":
        contract.one_of("--backend", asked, contract.BACKENDS)
    chosen = verification.find_backend(root, name, rows) if asked == "auto" else asked
    return replace(_bare(c), root=root, artifacts=Artifacts(name, chosen, rows), profile=known)


def _bare(c: Context) -> VerificationRequest:
    prepared = prepared_python(c)
    return VerificationRequest(PROJECT, workspace(c), Artifacts(""), lambda: stages.ensure(PROJECT, python=prepared))
