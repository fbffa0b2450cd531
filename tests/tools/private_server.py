"""A server of private channels for tests: https with an authority of its own, and a proxy that wants a password."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


@dataclass(frozen=True)
class Asked:
    """A request: its path, and the headers that matter here."""

    path: str
    authorization: str
    range: str
    etag: str
    status: int


@dataclass
class PrivateServer:
    """Serves the folder ``root``; how it shall fail is set by its fields."""

    root: Path
    url: str = ""
    #: The header ``Authorization`` that is asked for; or conda's token.
    authorization: str = ""
    token: str = ""
    #: The same for hosts of their own names: either of both.
    hosts: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    #: Status codes to answer before files, one a request.
    refusals: list[int] = field(default_factory=list)
    #: Break the connection after this many bytes of each package, once per package.
    cut: int = 0
    cut_already: set[str] = field(default_factory=set)
    #: Where requests are sent on to, instead of being answered.
    elsewhere: str = ""

    def paths(self) -> list[str]:
        return [one.path for one in self.asked]


def _handler(server: PrivateServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "")
            path = unquote(self.path.partition("?")[0])
            wanted = server.hosts.get(self.headers.get("Host", "").partition(":")[0], "")
            authorization = wanted if " " in wanted else server.authorization
            token = wanted if wanted and " " not in wanted else server.token
            allowed = not authorization or given == authorization
            if token:
                allowed = path.startswith(f"/t/{token}/")
                path = path.removeprefix(f"/t/{token}")
            status, body, extra = self.answer(path, allowed)
            server.asked.append(
                Asked(
                    path,
                    given,
                    self.headers.get("Range", ""),
                    self.headers.get("If-None-Match", ""),
                    status,
                )
            )
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            package = path.endswith((".conda", ".tar.bz2"))
            if server.cut and package and status == 200 and path not in server.cut_already:
                server.cut_already.add(path)
                self.wfile.write(body[: server.cut])
                self.close_connection = True
            elif self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def answer(self, path: str, allowed: bool) -> tuple[int, bytes, dict[str, str]]:
            if server.refusals:
                return server.refusals.pop(0), b"", {}
            if not allowed:
                return 401, b"", {"WWW-Authenticate": 'Basic realm="channel"'}
            if server.elsewhere:
                return 302, b"", {"Location": server.elsewhere + path}
            file = server.root / path.lstrip("/")
            kind = "application/octet-stream"
            if path.endswith("/"):
                file, kind = file / "index.html", "text/html"
            if not file.is_file():
                return 404, b"", {}
            body = file.read_bytes()
            etag = f'"{len(body)}-{file.stat().st_mtime_ns}"'
            if self.headers.get("If-None-Match") == etag:
                return 304, b"", {"ETag": etag}
            if match := re.match(r"bytes=(\d+)-$", self.headers.get("Range", "")):
                start = int(match[1])
                return 206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            return 200, body, {"ETag": etag, "Content-Type": kind}

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def authority(folder: Path) -> tuple[Path, Path]:
    """An authority's certificate, and a server's for localhost with its key in one file: (CA, server)."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )

    own, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = (
        build("test authority", "test authority", own.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(own, hashes.SHA256())
    )
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("*.private.test"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    leaf = (
        build("localhost", "test authority", theirs.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(own, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca, server = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(root.public_bytes(pem))
    key = theirs.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server.write_bytes(key + leaf.public_bytes(pem))
    return ca, server


@contextmanager
def serving(root: Path, certificate: Path, host: str = "localhost") -> Iterator[PrivateServer]:
    made = PrivateServer(root)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(made)) as httpd:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        made.url = f"https://{host}:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made
        finally:
            httpd.shutdown()
            thread.join()


@dataclass
class Proxy:
    """A proxy for https that wants ``authorization``; ``asked`` are the hosts it was asked for, ``refused`` how often
    it was asked without.
    """

    authorization: str
    port: int = 0
    asked: list[str] = field(default_factory=list)
    refused: int = 0


@contextmanager
def proxying(authorization: str, instead: int) -> Iterator[Proxy]:
    """A proxy that leads every host to ``instead``, a port of this host: names that do not exist can be asked for."""
    proxy = Proxy(authorization)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            if self.headers.get("Proxy-Authorization") != proxy.authorization:
                proxy.refused += 1
                self.send_response(407)
                self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            proxy.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            with suppress(OSError), socket.create_connection(("127.0.0.1", instead)) as other:
                ends = {self.connection: other, other: self.connection}
                while True:
                    for one in select.select(list(ends), [], [], 30)[0]:
                        data = one.recv(1 << 16)
                        if not data:
                            return
                        ends[one].sendall(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        proxy.port = httpd.server_port
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            httpd.shutdown()
            thread.join()
