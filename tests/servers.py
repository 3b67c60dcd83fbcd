"""A real server of files on this machine, that can misbehave in every way that a network knows."""

import contextlib
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pools import Gate


class _Quiet(ThreadingHTTPServer):
    """Clients that are killed, or that hang up, are part of the tests."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """Serves `files` by path; before that, each path answers as its `script` says, one entry for each request."""

    def __init__(self):
        self.files = {}
        self.headers = {}
        """More headers, by path."""
        self.script = {}
        self.requests = []
        """Path and Range of each GET."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                outer.answer(self)

            def do_HEAD(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request):
        script = self.script.get(request.path, [])
        step = script.pop(0) if script and request.command == "GET" else whole
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            step(self, request)


def head(server, request, status, length, **headers):
    request.send_response(status)
    request.send_header("Content-Length", str(length))
    for name, value in {**server.headers.get(request.path, {}), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def whole(server, request, *, content=None, ranges=True, upto=None, length=None, sent='"{}"'):
    """The file, or the range of it that was asked for."""
    content = server.files.get(request.path.partition("?")[0]) if content is None else content
    if content is None:
        status = int(server.headers.get(request.path, {}).get("X-Status", 404))
        head(server, request, status, 0)
        return
    asked = request.headers.get("Range")
    digest = hashlib.md5(content).hexdigest()
    etag = f'"{digest}"'
    condition = request.headers.get("If-Range", etag)
    if asked and ranges and condition == etag:
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        if start >= len(content):
            head(server, request, 416, 0, Content_Range=f"bytes */{len(content)}")
            return
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        head(server, request, 206, len(content) - start, Content_Range=span, ETag=etag)
        body = content[start:]
    else:
        named = {"ETag": sent.format(digest)} if sent else {}
        head(server, request, 200, len(content) if length is None else length, **named)
        body = content
    if request.command == "GET":
        request.wfile.write(body if upto is None else body[:upto])
    if upto is not None or length is not None:
        request.wfile.flush()
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(2)


def cut(after, *, sent='"{}"'):
    """The connection ends after so many bytes; `sent` is the ETag around a digest, empty for none."""
    return lambda server, request: whole(server, request, upto=after, sent=sent)


def without_ranges(server, request):
    """The whole file, whatever was asked for."""
    whole(server, request, ranges=False)


def says_it_has(length):
    """Content-Length lies."""
    return lambda server, request: whole(server, request, ranges=False, length=length)


def other_bytes(content):
    """Something else than the file."""
    return lambda server, request: whole(server, request, content=content)


def busy(status, retry_after=None):
    """A server that wants to be left alone."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return lambda server, request: head(server, request, status, 0, **headers)


def redirect(url):
    """It is elsewhere."""
    return lambda server, request: head(server, request, 302, 0, Location=url)


def stall(after, gate=None):
    """Nothing more comes after so many bytes, until a gate opens."""
    gate = Gate() if gate is None else gate

    def step(server, request):
        content = server.files[request.path]
        head(server, request, 200, len(content))
        request.wfile.write(content[:after])
        request.wfile.flush()
        gate.wait()
        request.close_connection = True

    step.gate = gate
    return step


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def hub(server, monkeypatch):
    """A Hugging Face hub of our own; calling it adds a file to a repository."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    commit = "0123456789abcdef0123456789abcdef01234567"
    listed = {}

    def add(repo, filename, content, revision="main"):
        for name in (commit, revision):
            path = f"/{repo}/resolve/{name}/{filename}"
            server.files[path] = content
            server.headers[path] = {
                "X-Repo-Commit": commit,
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
        listed.setdefault(repo, []).append(
            {"type": "file", "path": filename, "size": len(content), "oid": "0" * 40}
        )
        about = {"id": repo, "sha": commit}
        server.files[f"/api/models/{repo}/revision/{revision}"] = json.dumps(about).encode()
        server.files[f"/api/models/{repo}/tree/{commit}"] = json.dumps(listed[repo]).encode()
        return path

    return add
