"""The web configuration as it changes on disk."""

from __future__ import annotations

import contextlib
import logging
import shutil
import ssl
from pathlib import Path

import bcrypt
import pytest

from kvmon.errors import InputError
from kvmon.exporter.web.live import LiveWebConfig
from tests.certificates import Authority

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config: {cert_file: now.pem, key_file: now.key}\n"
USERS = f"basic_auth_users: {{me: {HASH}}}\n"


class Clock:
    """Time, in the test's hands."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time now."""
        return self.now


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Has signed `first` and `second`."""
    authority = Authority(tmp_path_factory.mktemp("live"))
    authority.sign("first")
    authority.sign("second")
    return authority


class Files:
    """A folder with a configuration and a certificate, which change as they are told."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.authority = authority
        self.web = folder / "web.yml"

    def write(self, text: str) -> None:
        """The configuration, in place."""
        self.web.write_text(text, encoding="ascii")

    def put(self, name: str, *suffixes: str) -> None:
        """Put the files of a certificate in place, as a rotation does."""
        for suffix in suffixes or (".pem", ".key"):
            shutil.copy(self.authority.folder / f"{name}{suffix}", self.folder / f"next{suffix}")
            (self.folder / f"next{suffix}").replace(self.folder / f"now{suffix}")


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    """With the first certificate, and no configuration yet."""
    files = Files(tmp_path, authority)
    files.put("first")
    return files


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error so far."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_nothing_is_read_while_nothing_changes(files: Files) -> None:
    """The same object is handed out."""
    files.write(TLS + USERS)
    live = LiveWebConfig(files.web)
    assert live.now() is live.now()


def test_users_and_headers_change_with_the_file(files: Files) -> None:
    """At once; several times."""
    files.write(USERS)
    live = LiveWebConfig(files.web)
    for name in (b"alice", b"bob"):
        files.write(USERS + f"  # {name!r}\nhttp_server_config: {{headers: {{X-XSS-Protection: {name.decode()}}}}}")
        assert live.now().headers == {b"x-xss-protection": name}
    files.write(f"basic_auth_users: {{you: {HASH}}}")
    assert list(live.now().users) == [b"you"]


def test_a_certificate_rotates_with_its_files(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Between certificate and key the old pair stays in use, and the log says why, once."""
    files.write(TLS)
    live = LiveWebConfig(files.web)
    first = live.tls().context
    files.put("second", ".pem")
    assert live.tls().context is first
    assert live.tls().context is first
    assert len(errors(caplog)) == 1
    assert "tls_server_config.key_file: the key does not belong to the certificate" in errors(caplog)[0]
    files.put("second", ".key")
    assert live.tls().context is not first
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (TLS + USERS, "basic_auth_users: [", "expected the node content"),
        (TLS + USERS, USERS, "tls_server_config cannot come or go while it is served"),
        (USERS, TLS + USERS, "tls_server_config cannot come or go while it is served"),
        (USERS, "", "basic_auth_users is gone, which would let anybody in"),
        (
            "tls_server_config: {cert_file: now.pem, key_file: now.key, client_ca_file: now.pem,"
            " client_auth_type: RequireAndVerifyClientCert}",
            TLS,
            "client_auth_type is gone, which would let anybody in",
        ),
    ],
    ids=["broken", "TLS goes", "TLS comes", "users gone", "certificates of clients gone"],
)
def test_a_version_that_cannot_be_used_leaves_the_one_before(
    files: Files, caplog: pytest.LogCaptureFixture, before: str, after: str, message: str
) -> None:
    """A door that was shut is not opened by half a file; it is logged once, and forgotten when mended."""
    files.write(before)
    clock = Clock()
    live = LiveWebConfig(files.web, clock)
    config = live.now()
    files.write(after)
    for _ in range(5):
        assert live.now() is config
        clock.now += 4
    assert len(errors(caplog)) == 1
    assert message in errors(caplog)[0]
    files.write(before + "\n# mended")
    assert live.now() is not config
    assert live.now().guards == config.guards


def test_a_file_that_is_named_before_it_is_there_is_found_later(files: Files) -> None:
    """The new name is not watched while the version that has it cannot be used: it is tried again after seconds."""
    files.write(TLS)
    clock = Clock()
    live = LiveWebConfig(files.web, clock)
    config = live.now()
    files.write(TLS.replace("now.pem", "later.pem"))
    assert live.now() is config
    shutil.copy(files.folder / "now.pem", files.folder / "later.pem")
    assert live.now() is config
    clock.now += 5
    assert live.now().files[1] == files.folder / "later.pem"
    (files.folder / "later.pem").unlink()
    assert live.now().tls is not None


def test_a_file_that_vanishes_leaves_what_it_said(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """A volume that is taken away does not take the exporter with it."""
    files.write(USERS)
    live = LiveWebConfig(files.web)
    files.web.unlink()
    assert list(live.now().users) == [b"me"]
    assert "there is no file" in errors(caplog)[0]


def test_at_the_start_a_broken_file_is_an_error(files: Files) -> None:
    """There is no version before it."""
    files.write("basic_auth_users: [")
    with pytest.raises(InputError):
        LiveWebConfig(files.web)


def test_links_are_followed_as_kubernetes_swaps_them(files: Files) -> None:
    """A secret's volume changes by one link of a folder."""
    for name in ("one", "two"):
        (files.folder / name).mkdir()
        (files.folder / name / "web.yml").write_text(f"basic_auth_users: {{{name}: {HASH}}}", encoding="ascii")
    (files.folder / "data").symlink_to("one")
    live = LiveWebConfig(files.folder / "data" / "web.yml")
    assert list(live.now().users) == [b"one"]
    (files.folder / "new").symlink_to("two")
    (files.folder / "new").replace(files.folder / "data")
    assert list(live.now().users) == [b"two"]


def test_a_client_sees_the_new_certificate(files: Files) -> None:
    """The context that is handed out serves what is in the files."""
    files.write(TLS)
    live = LiveWebConfig(files.web)
    client = ssl.create_default_context(cafile=files.authority.cert)
    for name in ("first", "second"):
        files.put(name)
        assert served_to(client, live.tls().context) == name


def served_to(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """The common name of the certificate that a client gets, without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    subject = dict(pair for part in ends[0].getpeercert()["subject"] for pair in part)  # type: ignore[index,union-attr]
    return str(subject["commonName"])
