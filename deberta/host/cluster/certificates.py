"""A cluster's certificates: who has one can run code on all of its hosts, as Dask's messages are pickles.

Made and read with the library `cryptography`; the profile is that of RFC 5280. All connections are mutual TLS: both
sides show a certificate of the cluster's own CA, whose key is needed for new hosts alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional, Sequence

from deberta.core import files
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.cluster import cluster_settings
from deberta.host.cluster.cluster_settings import ClusterSettings

CA, CA_KEY, CERTIFICATE, KEY = "ca.pem", "ca-key.pem", "cert.pem", "key.pem"
AGAIN = "Make another: invoke cluster certs"
CA_DAYS = 3650


@dataclass(frozen=True)
class HostCertificates:
    """The checked files of one host."""

    ca: Path
    certificate: Path
    key: Path

    def security(self) -> Any:
        """distributed's Security: TLS alone, on every connection."""
        from distributed.security import Security

        own = {
            f"tls_{role}_{kind}": str(path)
            for role in ("client", "worker", "scheduler")
            for kind, path in (("cert", self.certificate), ("key", self.key))
        }
        return Security(tls_ca_file=str(self.ca), require_encryption=True, **own)


def make(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    """A folder for each host, with its certificate and key and the CA's certificate; the CA is made first if need be.

    Returns the folders. Raises ConfigError (a name that is none, a host that has one, which stays valid), DataError and
    MissingError (a CA that cannot be used).
    """
    names = {host: _name(host) for host in hosts}
    if there := [host for host in hosts if os.path.lexists(folder / host)]:
        raise ConfigError(
            f"{folder / there[0]} is there, and its certificate is valid until it expires. To make another, move that "
            "folder away; to lock a host out, make a new CA in another folder, and certificates for all others"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / CA).exists():
        _make_ca(folder)
    ca, ca_key = _load(folder / CA), _load_key(folder / CA_KEY)
    _check_ca(folder / CA, ca)
    if ca.public_key() != ca_key.public_key():
        raise DataError(f"{folder / CA_KEY} is not the key of {folder / CA}. Put the right one there")
    made = []
    for host, name in names.items():
        key = _new_key()
        certificate = _sign(host, key.public_key(), ca.subject, ca_key, days, [name])
        with files.new_folder(folder / host) as own:
            own.chmod(0o700)
            _write(own / KEY, _pem_of_key(key))
            _write(own / CERTIFICATE, _pem(certificate), 0o644)
            _write(own / CA, files.read_bytes(folder / CA), 0o644)
        made.append(folder / host)
    return made


def check(folder: Path, now: Optional[datetime] = None) -> HostCertificates:
    """The certificates of this host, if they can be used.

    Raises MissingError for files that are not there, ConfigError for a key that others can read and certificates that
    are out of date, and DataError for those that do not belong together.
    """
    own = HostCertificates(folder / CA, folder / CERTIFICATE, folder / KEY)
    if missing := [str(path) for path in (own.ca, own.certificate, own.key) if not path.exists()]:
        raise MissingError(
            f"{', '.join(missing)} missing: a cluster's certificates are those of one host. Copy its folder here, or "
            "make it where the CA is: invoke cluster certs"
        )
    for path in (folder, own.ca, own.certificate, own.key):
        _refuse_writable(path)
    now = now or datetime.now(timezone.utc)
    ca, certificate, key = _load(own.ca), _load(own.certificate), _load_key(own.key)
    for path, entry in ((own.ca, ca), (own.certificate, certificate)):
        for moment, is_wrong, words in (
            (entry.not_valid_before_utc, now < entry.not_valid_before_utc, "is not valid before"),
            (entry.not_valid_after_utc, now > entry.not_valid_after_utc, "expired on"),
        ):
            if is_wrong:
                raise ConfigError(f"{path} {words} {moment:%Y-%m-%d %H:%M} UTC. Look at the clock, or: {AGAIN}")
    _check_ca(own.ca, ca)
    if _is_ca(certificate) or certificate.public_key() == ca.public_key():
        raise DataError(f"{own.certificate} is a CA's own certificate or has its key: a host has its own. {AGAIN}")
    if certificate.public_key() != key.public_key():
        raise DataError(f"{own.key} is not the key of {own.certificate}. {AGAIN}")
    if problem := _signed_by(certificate, ca):
        raise DataError(f"{own.certificate} is not signed by {own.ca}: {problem}. {AGAIN}")
    return own


def of_cluster(settings: ClusterSettings, project: Path) -> HostCertificates:
    """This host's for a cluster; raises what `check` raises."""
    return check(cluster_settings.certificates_folder(settings, project))


def expires(own: HostCertificates) -> datetime:
    """When this host's certificate ends, in UTC."""
    end: datetime = _load(own.certificate).not_valid_after_utc
    return end


def _make_ca(folder: Path) -> None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    key = _new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "deberta-ascend cluster")])
    certificate = _sign("", key.public_key(), subject, key, CA_DAYS, [])
    _write(folder / CA_KEY, _pem_of_key(key))
    _write(folder / CA, _pem(certificate), 0o644)


def _sign(host: str, public_key: Any, issuer: Any, by: Any, days: int, names: Sequence[Any]) -> Any:
    """A certificate; of the CA itself without a host."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]) if host else issuer
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not host, path_length=None if host else 0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=bool(host), key_cert_sign=not host, crl_sign=not host, **usage),
            critical=True,
        )
    )
    if host:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(by, hashes.SHA256())


def _name(host: str) -> Any:
    """A host's name or address, as a certificate has it. Raises ConfigError."""
    from cryptography import x509

    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    labels = host.split(".")
    if all(label and label.replace("-", "a").isalnum() and label.isascii() for label in labels) and len(host) <= 64:
        return x509.DNSName(host)
    raise ConfigError(f"{host!r} is no name or address of a host: letters, digits, dots and hyphens, at most 64")


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    content: bytes = certificate.public_bytes(Encoding.PEM)
    return content


def _pem_of_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    content: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return content


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that has its mode from the beginning; nothing that is there is replaced."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)


def _load(path: Path) -> Any:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(files.read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} is no certificate: {error}. {AGAIN}") from None


def _load_key(path: Path) -> Any:
    """A private key. Raises ConfigError if others can read it, DataError if it is none."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not path.exists():
        raise MissingError(f"{path} is missing: it is where the cluster's CA was made. Run invoke cluster certs there")
    status = os.stat(path)
    if status.st_mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):o}): who has it can run code on every "
            f"host of the cluster. Run: chmod 600 {path}"
        )
    if os.geteuid() and status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user (uid {status.st_uid}). Have a copy of your own, mode 600")
    try:
        return load_pem_private_key(files.read_bytes(path), password=None)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no private key without a passphrase: {error}. {AGAIN}") from None


def _refuse_writable(path: Path) -> None:
    """Raise ConfigError if others could put a CA of their own there."""
    status = os.stat(path)
    if status.st_mode & 0o022:
        raise ConfigError(
            f"{path} can be changed by others (mode {stat.S_IMODE(status.st_mode):o}): with a CA of theirs they could "
            f"run code here. Run: chmod go-w {path}"
        )


def _is_ca(certificate: Any) -> bool:
    from cryptography import x509

    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False


def _check_ca(path: Path, certificate: Any) -> None:
    if not _is_ca(certificate):
        raise DataError(f"{path} is no CA's certificate. {AGAIN}")


def _signed_by(certificate: Any, ca: Any) -> str:
    """Why a certificate is not the CA's, empty if it is."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(ca)
    except InvalidSignature:
        return "another CA of that name signed it"
    except (ValueError, TypeError) as error:
        return str(error)
    return ""
