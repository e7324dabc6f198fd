"""`kvmon exporter` and its web configuration: TLS, passwords, rotation, sockets, and users without rights."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bcrypt
import pytest

from tests.certificates import Authority, Pair
from tests.conftest import PrometheusBinaries
from tests.servers import Prometheus, free_port, wait_for

ROOT = Path(__file__).parents[2]
NOBODY, OTHER, GROUP = 65534, 61001, 61000
ENGINE_OF_A_GROUP = (
    "import functools, tests.toy_engine as toy;"
    "toy.StreamProbe = functools.partial(toy.StreamProbe, group_readable=True); toy.main()"
)


def hashed(password: str) -> str:
    """A bcrypt hash, cheap to check."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


class Exporter:
    """A running `kvmon exporter` and its log."""

    def __init__(self, *arguments: str, python: str = sys.executable, **options: object) -> None:
        command = [python, "-m", "kvmon", "exporter", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
        self.log: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        try:
            wait_for(lambda: self.said("recordings are followed") or self.process.poll() is not None, "no start")
            assert self.process.poll() is None, self.log
        except BaseException:
            self.kill()
            raise
        found = re.search(r"127\.0\.0\.1:(\d+)", "".join(self.log))
        self.port = int(found.group(1)) if found else 0

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def kill(self) -> None:
        """End it and its log, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def said(self, text: str) -> int:
        """How often the log says this."""
        return sum(text in line for line in self.log)

    def get(
        self, path: str, context: ssl.SSLContext | None, user: str = "", host: str = "localhost"
    ) -> tuple[int, str]:
        """Status and body of a request; `user` is NAME:PASSWORD."""
        connection = http.client.HTTPSConnection(host, self.port, context=context, timeout=10)
        if context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)  # type: ignore[assignment]
        headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@contextlib.contextmanager
def exporter(*arguments: str, **options: Any) -> Iterator[Exporter]:
    """An exporter for the length of a block, that ends in order."""
    running = Exporter(*arguments, **options)
    try:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0, running.log
    finally:
        running.kill()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs what the tests need."""
    return Authority(tmp_path_factory.mktemp("certificates"))


def client(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    """A client that trusts an authority, with a certificate of its own perhaps."""
    context = ssl.create_default_context(cafile=str(authority.cert))
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def refused(ask: Callable[[], object]) -> bool:
    """Whether TLS was not agreed on, or the connection was closed without an answer."""
    try:
        ask()
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return True
    return False


class Folder:
    """A folder with the web configuration of a test, and its certificate."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "web.yml"

    def install(self, pair: Pair) -> None:
        """Put a certificate and its key in place."""
        for source, name in ((pair.cert, "tls.pem"), (pair.key, "tls.key")):
            shutil.copy(source, self.path / "next")
            (self.path / "next").replace(self.path / name)

    def write(self, text: str) -> None:
        """Put a configuration in place."""
        (self.path / "next").write_text(text, encoding="utf-8")
        (self.path / "next").replace(self.file)


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Folder:
    """With a server's certificate."""
    (tmp_path / "web").mkdir()
    (tmp_path / "recordings").mkdir()
    folder = Folder(tmp_path / "web")
    folder.install(authority.sign("server"))
    return folder


def arguments(folder: Folder) -> list[str]:
    """The options that all have."""
    recordings = str(folder.path.parent / "recordings")
    return ["--dir", recordings, "--web.listen-address", "127.0.0.1:0", "--web.config.file", str(folder.file)]


PASSWORDS = "tls_server_config: {{cert_file: tls.pem, key_file: tls.key{tls}}}\nbasic_auth_users: {{{users}}}\n"


def test_passwords_certificates_and_headers_rotate_while_prometheus_scrapes(
    folder: Folder, authority: Authority, tmp_path: Path, prometheus_binaries: PrometheusBinaries
) -> None:
    """TLS with basic auth: refused without, scraped with; each part changes in the running exporter."""
    folder.write(PASSWORDS.format(tls="", users=f"prometheus: {hashed('one')}"))
    (tmp_path / "password").write_text("one", encoding="ascii")
    trusting = client(authority)
    with (
        exporter(*arguments(folder)) as running,
        prometheus(prometheus_binaries, tmp_path, authority, running) as scraper,
    ):
        assert "metrics at https://127.0.0.1:" in running.log[0]
        assert running.get("/metrics", trusting)[0] == 401
        for user in ("prometheus:two", "nobody:one", "prometheus:", ":"):
            status, body = running.get("/metrics", trusting, user)
            assert (status, body) == (401, "the name or the password is wrong\n")
        assert running.get("/", trusting, "prometheus:one")[0] == 200
        assert running.get("/-/healthy", trusting) == (200, "yes\n")
        assert refused(lambda: running.get("/metrics", ssl.create_default_context(), "prometheus:one"))
        wait_for(lambda: scraper.value("kvmon_build_info") == 1, "Prometheus does not scrape", 20)

        users = f"prometheus: {hashed('two')}, human: {hashed('three')}"
        folder.write(PASSWORDS.format(tls="", users=users))
        assert running.get("/metrics", trusting, "prometheus:one")[0] == 401
        assert running.get("/metrics", trusting, "human:three")[0] == 200
        wait_for(lambda: scraper.value("up") == 0, "the old password is still good", 20)
        (tmp_path / "password").write_text("two", encoding="ascii")
        wait_for(lambda: scraper.value("up") == 1, "the new password is not used", 20)

        other = Authority(tmp_path / "other", "other")
        folder.install(other.sign("server"))
        assert refused(lambda: running.get("/metrics", trusting, "human:three"))
        assert running.get("/metrics", client(other), "human:three")[0] == 200
        complaints = running.said("the web configuration has changed and cannot be used")  # between its two files
        mixed = other.sign("mixed")
        shutil.copy(mixed.cert, folder.path / "tls.pem")  # its key comes later
        for _ in range(3):
            assert running.get("/metrics", client(other), "human:three")[0] == 200
        assert running.said("the web configuration has changed and cannot be used") == complaints + 1
        assert running.said("tls_server_config.key_file: the key does not belong to the certificate") >= 1
        shutil.copy(mixed.key, folder.path / "tls.key")
        assert running.get("/metrics", client(other), "human:three")[0] == 200

        folder.write(PASSWORDS.format(tls=", min_version: TLS13, curve_preferences: [CurveP384]", users=users))
        older = client(other)
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        assert refused(lambda: running.get("/metrics", older, "human:three"))
        assert running.get("/metrics", client(other), "human:three")[0] == 200
        assert "Server Temp Key: ECDH, secp384r1" in s_client(running.port)
        assert "no peer certificate available" in s_client(running.port, "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0")

        folder.write("basic_auth_users: {human: nonsense}")
        assert running.get("/metrics", client(other), "human:three")[0] == 200
        assert running.said("the web configuration has changed and cannot be used") == complaints + 2
        assert not running.said("Traceback")


def s_client(port: int, *options: str) -> str:
    """What the openssl command says about a connection."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(
    binaries: PrometheusBinaries, place: Path, authority: Authority, target: Exporter
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes over TLS, with a password from a file that it reads for each scrape."""
    config = place / "prometheus.yml"
    scrape = {
        "job_name": "kvmon",
        "scheme": "https",
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "tls_config": {"ca_file": str(authority.cert), "server_name": "localhost"},
        "basic_auth": {"username": "prometheus", "password_file": str(place / "password")},
        "static_configs": [{"targets": [f"127.0.0.1:{target.port}"]}],
    }
    config.write_text(json.dumps({"scrape_configs": [scrape]}), encoding="ascii")
    port = free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}", "--log.level=error"]
    options.append(f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen([binaries.prometheus, *options], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: Prometheus(port).query("up") is not None, "Prometheus is not ready", 30)
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


def test_client_certificates_are_verified(folder: Folder, authority: Authority, tmp_path: Path) -> None:
    """One that is signed, current and allowed by name gets in; every other is refused, and so is none."""
    folder.write(
        f"tls_server_config: {{cert_file: tls.pem, key_file: tls.key, client_ca_file: {authority.cert},"
        " client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [scraper, '2001:db8::1']}"
    )
    stranger = Authority(tmp_path / "stranger")
    with exporter(*arguments(folder)) as running:
        for name, sans in (("good", "DNS:scraper"), ("by-address", "IP:2001:db8::1"), ("two", "DNS:x,DNS:scraper")):
            assert running.get("/metrics", client(authority, authority.sign(name, sans)))[0] == 200
        wrong = {
            "no certificate": None,
            "expired": authority.sign("expired", "DNS:scraper", days=-1),
            "of another authority": stranger.sign("wrong", "DNS:scraper"),
            "of another name": authority.sign("other-name", "DNS:other,email:me@scraper"),
            "of no name": authority.sign("scraper", "DNS:none"),
        }
        for why, pair in wrong.items():
            for path in ("/metrics", "/-/healthy"):
                assert refused(lambda pair=pair, path=path: running.get(path, client(authority, pair))), why  # type: ignore[misc]
        with socket.create_connection(("127.0.0.1", running.port)) as plain:
            plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP")
        folder.write(folder.file.read_text(encoding="ascii").replace("RequireAndVerifyClientCert", "NoClientCert"))
        assert refused(lambda: running.get("/metrics", client(authority)))
        folder.write(
            f"tls_server_config: {{cert_file: tls.pem, key_file: tls.key, client_ca_file: {stranger.cert},"
            " client_auth_type: RequireAndVerifyClientCert}"
        )
        assert running.get("/metrics", client(authority, wrong["of another authority"]))[0] == 200
        assert refused(lambda: running.get("/metrics", client(authority, authority.sign("late", "DNS:scraper"))))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that other users may enter, which those of pytest are not."""
    with TemporaryDirectory(prefix="kvmon-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two users of a group")
def test_it_works_for_a_second_user_of_the_group(open_place: Path) -> None:
    """No home, no right to write anywhere, another user than the engine's: read by the group, listening on a socket."""
    recordings, sockets = open_place / "recordings", open_place / "sockets"
    for path, owner in ((recordings, OTHER), (sockets, NOBODY)):
        path.mkdir()
        os.chown(path, owner, GROUP)
        path.chmod(0o2750)
    python, environment = python_for_everybody()
    engine = subprocess.Popen(
        [python, "-c", ENGINE_OF_A_GROUP, str(recordings), "grouped", "0"],
        **{"cwd": ROOT, "user": OTHER, "group": GROUP, "extra_groups": [], "env": environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert engine.stdout is not None and engine.stdout.readline() == "ready\n"
        path = sockets / "kvmon.sock"
        listen = ("--web.listen-address", "127.0.0.1:0", "--web.listen-address", f"unix:{path}")
        rights = {"user": NOBODY, "group": GROUP, "extra_groups": [], "env": environment}
        with exporter("--dir", str(recordings), *listen, python=python, **rights) as running:
            found = path.stat()
            assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, NOBODY, GROUP)
            up = 'kvmon_engine_up{engine="grouped",rank="0"} 1.0'
            wait_for(lambda: running.get("/-/ready", None)[0] == 200, "it is not ready", 120)
            wait_for(lambda: up in over_unix(path, "/metrics"), "the engine is not seen", 20)
            for group, code in ((GROUP, 0), (OTHER, 1)):
                script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
                rights = {"user": OTHER, "group": group, "extra_groups": [], "env": environment}
                done = subprocess.run([python, "-c", script], capture_output=True, **rights)  # type: ignore[call-overload]
                assert done.returncode == code, done.stderr
        assert not path.exists()
    finally:
        engine.kill()
        engine.communicate()


def python_for_everybody() -> tuple[str, dict[str, str]]:
    """A Python of this version that any user may run, with an environment for it; without one the test skips."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "KVMON_DIR")}
    environment |= {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}
    # Compiling where nothing can be kept is tested beside kvmon.jit, and takes a minute.
    environment |= {"NUMBA_DISABLE_JIT": "1"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import kvmon, numba"]
            rights = {"user": NOBODY, "group": GROUP, "extra_groups": [], "env": environment}
            if subprocess.run(command, cwd=ROOT, capture_output=True, **rights).returncode == 0:  # type: ignore[call-overload]
                return python, environment
    pytest.skip("no Python of this version that another user can run")


def over_unix(path: Path, page: str) -> str:
    """The answer to a request over a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_systemd_passes_the_socket(tmp_path: Path) -> None:
    """What was bound before the exporter began is served, and stays bound when it has ended."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        shell = f'exec 3<&{bound.fileno()} && LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        exporter_command = [sys.executable, "-m", "kvmon", "exporter", "--dir", str(tmp_path), "--web.systemd-socket"]
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *exporter_command],
            pass_fds=[bound.fileno()],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with socket.create_connection(bound.getsockname(), timeout=60) as connection:
                connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.communicate()
        socket.create_connection(bound.getsockname()).close()


def test_what_cannot_be_is_one_line_before_anything_is_served(folder: Folder, tmp_path: Path) -> None:
    """With the file and the key, and the documented exit code; nothing listens and nothing is left behind."""
    path = tmp_path / "x.sock"
    folder.write("tls_server_config: {cert_file: tls.pem, key_file: none.key}")
    common = [*arguments(folder), "--web.listen-address", f"unix:{path}"]
    cases = [
        (common, 3, f"{folder.file}: tls_server_config.key_file: there is no file {folder.path}/none.key"),
        (["--dir", str(tmp_path), "--web.systemd-socket"], 2, "systemd passed no socket"),
    ]
    for options, code, message in cases:
        command = [sys.executable, "-m", "kvmon", "exporter", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert message in done.stderr, done.stderr
    assert not path.exists()
