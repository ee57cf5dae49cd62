"""A small Hugging Face hub on loopback, with faults to order."""

import dataclasses
import hashlib
import http.server
import json
import socket
import ssl
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 10_000  # files from this size on are listed as LFS


def entry(path, data):
    """A file as the hub's list has it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    out = {"rfilename": path, "size": len(data), "blobId": blob}
    if len(data) >= LFS_BYTES:
        out |= {"blobId": "e" * 40, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data),
                                            "pointerSize": 134}}
    return out


@dataclasses.dataclass
class Request:
    path: str
    headers: dict
    status: int = 0
    sent: int = 0  # bytes of the body


class Hub:
    """One repository. Attributes may be set while it runs; `requests` says what was asked."""

    def __init__(self, repository, files, prefix="", certificate=None):
        self.repository, self.files, self.prefix = repository, dict(files), prefix
        self.listing = None        # instead of the true list: bytes, or an object
        self.token = None          # the one that is asked for
        self.refusals = {}         # path -> [(status, headers)] for the next requests
        self.cuts = {}             # path -> [bytes after which the next connections break]
        self.redirects = {}        # path -> Location
        self.served = {}           # path -> bytes that differ from those listed
        self.etags = False         # X-Linked-Etag with a file's SHA-256
        self.ranges = True
        self.framing = "length"    # of bodies; "chunked", "close": they end with the connection
        self.hang = set()          # paths that get a head and nothing more
        self.requests = []
        self.over = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # a client that leaves is no error here
        self.server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{self.server.server_port}{prefix}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def asked(self, path):
        """Requests whose path ends so."""
        return [request for request in self.requests if request.path.split("?")[0].endswith(path)]

    def answer(self, handler):
        request = Request(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        self.requests.append(request)
        path = urllib.parse.unquote(handler.path.removeprefix(self.prefix))

        def head(status, headers):
            request.status = status
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()

        def refuse(status, headers=None):
            head(status, {"Content-Length": "0"} | (headers or {}))

        resolves = "/resolve/" in path
        if resolves:
            path = urllib.parse.unquote(handler.path.removeprefix(self.prefix).split("?")[0])
        name = path.split("/", 5)[-1] if resolves else "list"
        if self.refusals.get(name):
            return refuse(*self.refusals[name].pop(0))
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, {"X-Error-Message": "Invalid credentials"})
        if name in self.redirects:
            return refuse(302, {"Location": self.redirects[name]})
        if path.startswith(f"/api/models/{self.repository}/revision/main?"):
            listing = self.listing
            if listing is None:
                listing = {"sha": COMMIT, "siblings": [entry(*item) for item in self.files.items()]}
            data = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
        elif path == f"/{self.repository}/resolve/{COMMIT}/{name}" and name in self.files:
            data = self.served.get(name, self.files[name])
        else:
            return refuse(404, {"X-Error-Message": "Entry not found"})
        begin = 0
        asked = request.headers.get("range")
        if asked and self.ranges and name != "list":
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(data):
                return refuse(416, {"Content-Range": f"bytes */{len(data)}"})
        chunked = self.framing == "chunked"
        headers = {"length": {"Content-Length": str(len(data) - begin)}, "close": {"Connection": "close"},
                   "chunked": {"Transfer-Encoding": "chunked"}}[self.framing]
        if self.etags and name in self.files:
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(self.files[name]).hexdigest()}"'
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        head(206 if begin else 200, headers)
        if name in self.hang:
            self.over.wait(5)
            handler.close_connection = True
            return None
        body = data[begin:]
        cut = self.cuts[name].pop(0) if self.cuts.get(name) else None
        body = body[:cut]
        for at in range(0, len(body), 70_000):
            piece = body[at:at + 70_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            request.sent += len(piece)
        if cut is not None:
            handler.close_connection = True
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif chunked:
            handler.wfile.write(b"0\r\n\r\n")
        return None
