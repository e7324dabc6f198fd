"""TLS as `tls_server_config` of Prometheus' web configuration asks for it, made with Python's ssl.

Invariant: what is asked for and cannot be had is an error that names the key; nothing is weakened or ignored in
silence. Names are Go's, as in the documentation of exporter-toolkit. What it does not do: take a certificate that it
cannot verify, or speak TLS 1.0 and 1.1, which RFC 8996 forbids.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from kvmon.exporter.web.config_file import Section, read_file
from kvmon.exporter.web.door import Tls
from kvmon.exporter.web.protocol import Welcome

__all__ = ["KEYS", "TlsMade", "make_tls"]

KEYS = (
    "cert",
    "key",
    "client_ca",
    "cert_file",
    "key_file",
    "client_auth_type",
    "client_ca_file",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
)
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_FORBIDDEN_VERSIONS = ("TLS10", "TLS11")
# The suites that Go calls secure, by OpenSSL's names; those of TLS 1.3 are always on, in Go as here.
_ECDHE = {
    f"TLS_ECDHE_{sign}_WITH_{go}": f"ECDHE-{sign}-{openssl}"
    for sign in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
    )
}
_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "RequireAnyClientCert": None,
    "RequireClientCert": None,  # what exporter-toolkit called it before
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_SAN_KINDS = ("DNS", "email", "URI")


class TlsMade(NamedTuple):
    """What the door needs, the files it is from, whether clients must have a certificate, what to tell at start."""

    tls: Tls
    files: tuple[Path, ...]
    verifies_clients: bool
    notes: tuple[str, ...]


def make_tls(section: Section) -> TlsMade:
    """TLS from its section. Raises InputError or SystemRefused, naming file and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(section, context)
    _set_ciphers(section, context)
    _set_curve(section, context)
    files = _load_certificate(section, context)
    welcome, ca_files, notes = _set_client_auth(section, context)
    required = context.verify_mode is ssl.CERT_REQUIRED
    return TlsMade(Tls(context, welcome), (*files, *ca_files), required, notes)


def _set_versions(section: Section, context: ssl.SSLContext) -> None:
    for key in ("min_version", "max_version"):
        if section.text(key) in _FORBIDDEN_VERSIONS:
            raise section.error(key, "TLS 1.0 and 1.1 are broken (RFC 8996) and not served: give TLS12 or TLS13")
    lowest = section.choice("min_version", _VERSIONS, ssl.TLSVersion.TLSv1_2)
    highest = section.choice("max_version", _VERSIONS, ssl.TLSVersion.TLSv1_3)
    if lowest > highest:
        raise section.error("min_version", "it is above max_version")
    context.minimum_version, context.maximum_version = lowest, highest


def _set_ciphers(section: Section, context: ssl.SSLContext) -> None:
    names = section.texts("cipher_suites")
    for name in names:
        if name not in _ECDHE and name not in _TLS13:
            known = ", ".join((*_TLS13, *_ECDHE))
            raise section.error("cipher_suites", f"'{name}' is unknown or not safe: give some of {known}")
    older = [_ECDHE[name] for name in names if name in _ECDHE]
    if older:
        try:
            context.set_ciphers(":".join(older))
        except ssl.SSLError:
            raise section.error("cipher_suites", "the OpenSSL of this Python has none of them: give others") from None
    elif names:
        if context.maximum_version < ssl.TLSVersion.TLSv1_3:
            raise section.error("cipher_suites", "it names none for TLS 1.2, and max_version is TLS12: add some")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    if section.flag("prefer_server_cipher_suites", True):
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE


def _set_curve(section: Section, context: ssl.SSLContext) -> None:
    names = section.texts("curve_preferences")
    for name in names:
        if name not in (*_CURVES, "X25519"):
            raise section.error("curve_preferences", f"'{name}' is unknown: give one of {', '.join(_CURVES)}")
    if len(names) > 1 or "X25519" in names:
        possible = ", ".join(_CURVES)
        raise section.error(
            "curve_preferences", f"Python's TLS can be told one curve of {possible}: give that, or leave it out"
        )
    if names:
        context.set_ecdh_curve(_CURVES[names[0]])


def _load_certificate(section: Section, context: ssl.SSLContext) -> list[Path]:
    with (
        _pem(section, "cert", "CERTIFICATE-----") as (cert, cert_key, files),
        _pem(section, "key", "PRIVATE KEY-----") as (key, key_key, more_files),
    ):

        def encrypted() -> str:
            raise section.error(key_key, "the key is encrypted: give one without a password")

        try:
            context.load_cert_chain(cert, key, encrypted)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise section.error(key_key, f"the key does not belong to the certificate of {cert_key}") from None
            raise section.error(*_which_is_broken(cert, cert_key, key_key, error)) from None
        return [*files, *more_files]


def _which_is_broken(cert: str, cert_key: str, key_key: str, error: ssl.SSLError) -> tuple[str, str]:
    """The key to name, and the message: OpenSSL does not say in which of the two files it failed."""
    reason = (error.reason or "unreadable").lower().replace("_", " ")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cert)
    except ssl.SSLError:
        return cert_key, f"the certificate cannot be used ({reason})"
    if "KEY_TOO_SMALL" in (error.reason or "") or "MD_TOO_WEAK" in (error.reason or ""):
        return cert_key, f"the certificate is too weak ({reason}): make one with a larger key"
    return key_key, f"the key cannot be used ({reason})"


@contextlib.contextmanager
def _pem(section: Section, name: str, holds: str) -> Iterator[tuple[str, str, list[Path]]]:
    """Where OpenSSL finds what is given as `name` or `name`_file, the key that gave it, and the files it is in.

    Raises InputError where it is missing, given twice, or has no such PEM block.
    """
    inline, named = section.text(name), section.text(f"{name}_file")
    if (inline is None) == (named is None):
        problem = "it is missing: give it" if inline is None else "it is given twice: give this"
        raise section.error(f"{name}_file", f"{problem}, or {name} with the text itself")
    key = name if named is None else f"{name}_file"
    if named is not None:
        path = section.file.parent / named
        content = read_file(path, section.place(key))
        _check_pem(section, key, content, holds)
        yield str(path), key, [path]
        return
    content = (inline or "").encode()
    _check_pem(section, key, content, holds)
    fd = os.memfd_create(name)  # OpenSSL wants files; a private key must not lie in one
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}", key, []
    finally:
        os.close(fd)


def _check_pem(section: Section, key: str, content: bytes, holds: str) -> None:
    if holds.encode() not in content:
        raise section.error(key, f"it has no PEM block 'BEGIN ...{holds}'")


def _set_client_auth(section: Section, context: ssl.SSLContext) -> tuple[Welcome | None, list[Path], tuple[str, ...]]:
    kind = section.text("client_auth_type") or "NoClientCert"
    mode = section.choice("client_auth_type", _CLIENT_AUTH, ssl.CERT_NONE)
    if mode is None:
        raise section.error(
            "client_auth_type",
            f"Python's TLS cannot take a certificate unverified, as {kind} wants: give RequireAndVerifyClientCert",
        )
    authorities, files = _authorities(section)
    sans = frozenset(section.texts("client_allowed_sans"))
    if mode is ssl.CERT_NONE:
        for key in ("client_ca", "client_ca_file", "client_allowed_sans"):
            if key in section:
                raise section.error(key, f"client_auth_type is {kind}, which verifies nobody: give another")
        note = "client_auth_type RequestClientCert: no certificate is asked for, because none would be verified"
        return None, [], ((note,) if kind == "RequestClientCert" else ())
    if authorities is None:
        raise section.error("client_ca_file", f"it is missing: {kind} verifies by the authorities in it")
    key, text = authorities
    try:
        context.load_verify_locations(cadata=text)
    except ssl.SSLError as error:
        reason = (error.reason or "unreadable").lower().replace("_", " ")
        raise section.error(key, f"it cannot be used ({reason})") from None
    context.verify_mode = mode
    # A resumed session is not verified again: who was let in once would stay let in when the certificate has expired.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return (_has_allowed_san(sans) if sans else None), files, ()


def _authorities(section: Section) -> tuple[tuple[str, str] | None, list[Path]]:
    """The key and the text of the certificates that sign clients', and their file; None where there are none."""
    if "client_ca" not in section and "client_ca_file" not in section:
        return None, []
    with _pem(section, "client_ca", "CERTIFICATE-----") as (place, key, files):
        try:
            return (key, Path(place).read_text(encoding="ascii")), files
        except UnicodeDecodeError:
            raise section.error(key, "it is no PEM file: give one in ASCII") from None


def _has_allowed_san(allowed: frozenset[str]) -> Welcome:
    """Whether the certificate has one of the names; who need not have a certificate and has none is welcome."""

    def welcome(transport: asyncio.Transport) -> bool:
        certificate = transport.get_extra_info("peercert")
        if not certificate:
            return True
        return not allowed.isdisjoint(_names(certificate))

    return welcome


def _names(certificate: dict[str, Any]) -> Iterator[str]:
    for kind, name in certificate.get("subjectAltName", ()):
        if kind == "IP Address":
            with contextlib.suppress(ValueError):
                yield str(ip_address(name.strip()))  # OpenSSL writes 2001:DB8:0:0:0:0:0:1, everybody else 2001:db8::1
        elif kind in _SAN_KINDS:
            yield name
