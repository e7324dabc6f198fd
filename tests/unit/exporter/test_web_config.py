"""Prometheus' web configuration: what is read from it, and that everything wrong in it is named."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import bcrypt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.errors import InputError, KvmonError, SystemRefused
from kvmon.exporter.web.config import Rate, WebConfig, read_web_config
from kvmon.exporter.web.config_file import parse_seconds
from tests.certificates import Authority

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates: server, other (with a key of its own), authority, and broken ones."""
    authority = Authority(tmp_path_factory.mktemp("web"))
    authority.sign("server")
    authority.sign("other")
    (authority.folder / "broken.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", encoding="ascii"
    )
    (authority.folder / "broken.key").write_text(
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", encoding="ascii"
    )
    (authority.folder / "empty.pem").touch()
    encrypted = ["pkey", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key"]
    subprocess.run(["openssl", *encrypted], cwd=authority.folder, check=True, capture_output=True)
    return authority.folder


def read(folder: Path, text: str) -> WebConfig:
    """What a configuration with this text says."""
    file = folder / "web.yml"
    file.write_text(text, encoding="utf-8")
    return read_web_config(file)


def context_of(folder: Path, more: str = "") -> ssl.SSLContext:
    """How TLS is agreed on with these keys beside certificate and key."""
    config = read(folder, TLS + more)
    assert config.tls is not None
    return config.tls.context


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_plain_http(folder: Path, text: str) -> None:
    """As with exporter-toolkit."""
    config = read(folder, text)
    assert (config.tls, config.headers, config.users, config.rate, config.guards) == (None, {}, {}, None, frozenset())


def test_everything_is_read(folder: Path) -> None:
    """Every section at once; paths are relative to the file, and are what is watched."""
    text = f"""
{TLS}
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: {folder}/authority.pem
  client_allowed_sans: [scraper, 2001:db8::1]
  min_version: TLS13
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256]
  curve_preferences: [CurveP384]
  prefer_server_cipher_suites: false
http_server_config:
  http2: false
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: sameorigin
    X-Content-Type-Options: nosniff
    X-XSS-Protection: ""
    Content-Security-Policy: default-src 'self'
basic_auth_users:
  prometheus: {HASH}
  007: {HASH.replace("$2b", "$2y")}
rate_limit: {{interval: 1m30s, burst: 5}}
"""
    config = read(folder, text)
    assert config.tls is not None
    assert config.tls.context.verify_mode is ssl.CERT_REQUIRED
    assert config.tls.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert config.headers == {
        b"strict-transport-security": b"max-age=31536000",
        b"x-frame-options": b"sameorigin",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"default-src 'self'",
    }
    assert list(config.users) == [b"prometheus", b"007"]
    assert config.rate == Rate(90, 5)
    names = ("web.yml", "server.pem", "server.key", "authority.pem")
    assert config.files == tuple(folder / name for name in names)
    assert config.guards == {"tls_server_config", "client_auth_type", "basic_auth_users"}
    assert config.notes == ()


def test_certificate_and_key_may_stand_in_the_file(folder: Path) -> None:
    """`cert`, `key` and `client_ca` hold the PEM text itself, of which nothing is left lying about."""
    files = {"cert": "server.pem", "key": "server.key", "client_ca": "authority.pem"}
    lines = ["tls_server_config:", "  client_auth_type: VerifyClientCertIfGiven"]
    for key, name in files.items():
        lines += [f"  {key}: |", *(f"    {line}" for line in (folder / name).read_text(encoding="ascii").splitlines())]
    before = set(os.listdir("/proc/self/fd"))
    config = read(folder, "\n".join(lines))
    assert config.tls is not None
    assert config.tls.context.verify_mode is ssl.CERT_OPTIONAL
    assert config.files == (folder / "web.yml",)
    assert set(os.listdir("/proc/self/fd")) == before


def test_suites_of_tls_12_are_those_that_are_named(folder: Path) -> None:
    """By Go's names, in the order given; those of TLS 1.3 are always on, and alone when they are named alone."""

    def names(context: ssl.SSLContext) -> list[str]:
        return [suite["name"] for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]

    two = "[TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]"
    context = context_of(folder, f"  cipher_suites: {two}\n")
    assert names(context) == ["ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    context = context_of(folder, "  prefer_server_cipher_suites: false\n")
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    context = context_of(folder, "  cipher_suites: [TLS_AES_256_GCM_SHA384]\n")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_what_makes_no_difference_is_told(folder: Path) -> None:
    """HTTP/2, which is not spoken here, and a certificate that is asked for and not verified."""
    config = read(folder, TLS + "  client_auth_type: RequestClientCert\nhttp_server_config: {http2: true}\n")
    assert len(config.notes) == 2
    assert "no certificate is asked for" in config.notes[0]
    assert "HTTP/1.1" in config.notes[1]


# The file, what the message says after its name, and the error.
WRONG: list[tuple[str, str]] = [
    ("tls_server_confg: {}", "tls_server_confg: there is no such key: give one of tls_server_config, "),
    ("tls_server_config:\n  certfile: x", "tls_server_config.certfile: there is no such key: give one of cert, "),
    ("http_server_config: {headers: {Server: x}}", "http_server_config.headers.Server: there is no such key"),
    ("a: [", "line 1, column 5: expected the node content"),
    ("basic_auth_users:\n\tme: x", "line 2, column 1: found character '\\t' that cannot start any token"),
    ("rate_limit: {}\nrate_limit: {}", "line 2, column 1: rate_limit is given twice"),
    ("- a\n- b", "it is a list: give keys and values"),
    ("text", "it is a word: give keys and values"),
    ("tls_server_config:", "tls_server_config: it has no keys below it"),
    ("tls_server_config: {}", "tls_server_config: it has no keys below it"),
    ("basic_auth_users: []", "basic_auth_users: it has no keys below it"),
    ("tls_server_config: {key_file: server.key}", "tls_server_config.cert_file: it is missing"),
    ("tls_server_config: {cert_file: server.pem}", "tls_server_config.key_file: it is missing"),
    (TLS + "  cert: x", "tls_server_config.cert_file: it is given twice"),
    ("tls_server_config: {cert_file: '', key_file: server.key}", "tls_server_config.cert_file: it has no value"),
    ("tls_server_config: {cert_file: [a], key_file: b}", "tls_server_config.cert_file: it is a list: give text"),
    (
        "tls_server_config: {cert_file: none.pem, key_file: server.key}",
        "tls_server_config.cert_file: there is no file ",
    ),
    ("tls_server_config: {cert_file: ., key_file: server.key}", "tls_server_config.cert_file: "),
    ("tls_server_config: {cert_file: empty.pem, key_file: server.key}", "tls_server_config.cert_file: it has no PEM"),
    ("tls_server_config: {cert_file: server.pem, key_file: server.pem}", "tls_server_config.key_file: it has no PEM"),
    (
        "tls_server_config: {cert_file: broken.pem, key_file: server.key}",
        "tls_server_config.cert_file: the certificate",
    ),
    ("tls_server_config: {cert_file: server.pem, key_file: broken.key}", "tls_server_config.key_file: the key cannot"),
    (
        "tls_server_config: {cert_file: server.pem, key_file: other.key}",
        "tls_server_config.key_file: the key does not belong to the certificate of cert_file",
    ),
    (
        "tls_server_config: {cert_file: server.pem, key_file: encrypted.key}",
        "tls_server_config.key_file: the key is enc",
    ),
    (TLS + "  client_auth_type: Always", "tls_server_config.client_auth_type: 'Always' is unknown: give one of"),
    (TLS + "  client_auth_type: RequireAnyClientCert", "tls_server_config.client_auth_type: Python's TLS cannot"),
    (TLS + "  client_ca_file: authority.pem", "tls_server_config.client_ca_file: client_auth_type is NoClientCert"),
    (TLS + "  client_allowed_sans: [a]", "tls_server_config.client_allowed_sans: client_auth_type is NoClientCert"),
    (TLS + "  client_auth_type: RequireAndVerifyClientCert", "tls_server_config.client_ca_file: it is missing"),
    (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: broken.pem",
        "tls_server_config.client_ca_file: it cannot be used",
    ),
    (TLS + "  min_version: TLS11", "tls_server_config.min_version: TLS 1.0 and 1.1 are broken"),
    (TLS + "  max_version: TLS10", "tls_server_config.max_version: TLS 1.0 and 1.1 are broken"),
    (TLS + "  min_version: SSL30", "tls_server_config.min_version: 'SSL30' is unknown"),
    (TLS + "  min_version: TLS13\n  max_version: TLS12", "tls_server_config.min_version: it is above max_version"),
    (TLS + "  cipher_suites: TLS_AES_128_GCM_SHA256", "tls_server_config.cipher_suites: give a list of words"),
    (
        TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]",
        "tls_server_config.cipher_suites: 'TLS_RSA_WITH_RC4_128_SHA'",
    ),
    (
        TLS + "  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]",
        "tls_server_config.cipher_suites: it names none for TLS 1.2",
    ),
    (TLS + "  curve_preferences: [P256]", "tls_server_config.curve_preferences: 'P256' is unknown"),
    (TLS + "  curve_preferences: [X25519]", "tls_server_config.curve_preferences: Python's TLS can be told one curve"),
    (TLS + "  curve_preferences: [CurveP256, CurveP384]", "tls_server_config.curve_preferences: Python's TLS can be"),
    (TLS + "  prefer_server_cipher_suites: 1", "tls_server_config.prefer_server_cipher_suites: '1' is unknown"),
    ("http_server_config: {http2: maybe}", "http_server_config.http2: 'maybe' is unknown: give one of true, false"),
    ("http_server_config: {headers: {X-Frame-Options: allow}}", "http_server_config.headers.X-Frame-Options: 'allow'"),
    ('http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}', "http_server_config.headers.X-XSS-Protection: a"),
    ("basic_auth_users: {me: secret}", "basic_auth_users.me: it is no bcrypt hash"),
    ("basic_auth_users: {me: }", "basic_auth_users.me: it has no value"),
    (f"basic_auth_users: {{'a:b': {HASH}}}", "basic_auth_users.a:b: a name of a user"),
    (f"basic_auth_users: {{'': {HASH}}}", "basic_auth_users.: a name of a user"),
    (f"basic_auth_users: {{me: {HASH.replace('$04$', '$31$')}}}", "basic_auth_users.me: a cost of 31 is not between"),
    ("rate_limit: {interval: 1, burst: 1}", "rate_limit.interval: '1' is no duration"),
    ("rate_limit: {interval: 1s}", "rate_limit.burst: 0 would refuse every request"),
    ("rate_limit: {interval: 1s, burst: -1}", "rate_limit.burst: '-1' is no number"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_is_wrong_is_named_with_file_and_key(folder: Path, text: str, message: str) -> None:
    """One line, that begins with the file and the key."""
    with pytest.raises(InputError) as wrong:
        read(folder, text)
    assert str(wrong.value).startswith(f"{folder / 'web.yml'}: {message}"), str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_file_that_cannot_be_read_is_said(folder: Path) -> None:
    """No file, a folder, no text, one that is far too large; a pipe does not hang."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    for path, message in ((folder / "none.yml", "there is no file"), (folder, "is no file"), (fifo, "is no file")):
        with pytest.raises(InputError, match=message):
            read_web_config(path)
    with pytest.raises(InputError, match="no text in UTF-8"):
        (folder / "latin").write_bytes(b"basic_auth_users: {\xe9: x}")
        read_web_config(folder / "latin")
    with pytest.raises(InputError, match="larger than a megabyte"):
        (folder / "large").write_bytes(b" " * (1 << 21))
        read_web_config(folder / "large")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
def test_a_key_without_permission_is_the_machines_refusal(folder: Path) -> None:
    """It names the key of the configuration and the file, and what to do."""
    with TemporaryDirectory(prefix="kvmon-") as place:  # those of pytest are closed to others
        for name in ("server.pem", "server.key"):
            shutil.copy(folder / name, place)
        web, key = Path(place, "web.yml"), Path(place, "server.key")
        web.write_text(TLS, encoding="ascii")
        for path, mode in ((Path(place), 0o755), (Path(place, "server.pem"), 0o644), (web, 0o644), (key, 0o600)):
            path.chmod(mode)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setuid(65534)
                read_web_config(web)
            except SystemRefused as refused:
                code = (
                    0 if f"{web}: tls_server_config.key_file: no permission to read {key}: let" in str(refused) else 2
                )
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1s", 1), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("10us", 1e-5), ("10µs", 1e-5)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """As Prometheus' own options take them."""
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 s", "1d", "1e3s", "\u0661s", "9" * 50 + "s"])
def test_anything_else_is_no_duration(text: str) -> None:
    """A number without a unit least of all."""
    assert parse_seconds(text) is None


KNOWN = ["cert", "key", "cert_file", "key_file", "client_auth_type", "min_version", "http2", "interval", "burst"]
SCALARS = st.one_of(st.sampled_from(["server.pem", "server.key", "true", "TLS12", HASH, "deny"]), st.text(max_size=8))
KEYS = st.sampled_from(
    ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "headers", "X-Frame-Options", *KNOWN]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tree=TREES)
def test_no_file_is_a_crash(folder: Path, tree: object) -> None:
    """Whatever is in it, it is read or refused in one line."""
    import yaml

    try:
        config = read(folder, yaml.safe_dump(tree, allow_unicode=True))
    except KvmonError as error:
        assert "\n" not in str(error).replace(str(tree), "")
        assert str(error).startswith(str(folder / "web.yml"))
    else:
        assert isinstance(config, WebConfig)
