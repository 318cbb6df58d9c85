"""The commands about a report that is there: verify and sign."""

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
from deberta.host.cli.auto import AUTO
from deberta.host.cli.command import command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import prepared_python, profile_of, session_of, workspace
from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.report import verification
from deberta.host.report.verification import VerificationRequest
from deberta.host.run import runner


@command("profile", "backend", "limit", "tree", "replay", "seed", "key", "dry")
def verify(c: Context, options: Options) -> None:
    """Check a report against all its files: digests, every number made again, the signature. Writes nothing."""
    root = Path(options.tree).expanduser().absolute() if options.tree else workspace(c)
    if not root.is_dir():
        raise MissingError(f"{root} is no folder. Check --path")
    request = replace(
        _request(c, root, options),
        key=Path(options.key) if options.key else None,
        rows=options.replay,
        seed=secrets.randbelow(2**32) if options.seed is None else options.seed,
    )
    if options.dry:
        verification.show(request)
        return
    verification.verify(request)


@command("key", "passphrase_env", "new_key", "profile", "backend", "limit", "dry")
def sign(c: Context, options: Options) -> None:
    """Sign a report, its pages, its bill of materials and its records, after verifying them."""
    if bool(options.key) == bool(options.new_key):
        raise ConfigError("give --key PRIVATE.pem to sign, or --new-key PATH to make a key")
    passphrase_env = options.passphrase_env or None
    if options.new_key:
        if options.dry:
            print(f"would make {options.new_key} and {options.new_key}.pub")
            return
        return verification.new_key(_without_report(c), Path(options.new_key), passphrase_env)
    request = _request(c, workspace(c), options)
    if options.dry:
        verification.show(request)
        print(f"# then {request.artifacts.attestation()} is written")
        return
    with runner.exclusive(session_of(c, options, executor="local")):
        verification.sign(request, Path(options.key), passphrase_env)


def _request(c: Context, root: Path, options: Options) -> VerificationRequest:
    """What to verify in `root`. A profile that only the tree has, not invoke.yaml, is known by its name alone."""
    name = options.profile or str(c.config.get("profile"))
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII)
    only_in_tree = name not in (c.config.get("profiles") or {}) and is_name and (root / "results" / name).is_dir()
    profile: Optional[profiles.Profile] = None if only_in_tree else profile_of(c, name)
    backend = options.backend or str(c.config.get("backend") or AUTO)
    contract.one_of("--backend", backend, (AUTO, *contract.BACKENDS))
    if backend == AUTO:
        backend = verification.find_backend(root, name, options.limit)
    return replace(_without_report(c), root=root, artifacts=Artifacts(name, backend, options.limit), profile=profile)


def _without_report(c: Context) -> VerificationRequest:
    """A request for what needs the stages' environment alone."""
    prepared = prepared_python(c)
    return VerificationRequest(PROJECT, workspace(c), Artifacts(""), lambda: stages.ensure(PROJECT, python=prepared))
