"""A server of files over HTTP with ranges, and with the faults that servers have."""

import contextlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def serve(folder: Path, faults: dict[str, list[str]] | None = None):
    """The address of a server of `folder`. `faults` are, for a file's name, what its next GET requests meet: "500",
    "cut" (half of the bytes) or "silent" (no bytes for a while)."""
    faults, release, lock = faults if faults is not None else {}, threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_bytes):
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                return self.send_error(404)
            with lock:
                fault = faults[path.name].pop(0) if with_bytes and faults.get(path.name) else None
            if fault == "500":
                return self.send_error(500)
            data, size = path.read_bytes(), path.stat().st_size
            given = self.headers.get("Range")
            self.send_response(206 if given else 200)
            if given:
                first, last = given.removeprefix("bytes=").split("-")
                first = int(first) if first else size - int(last)
                last = min(int(last), size - 1) if last else size - 1
                data = data[first : last + 1]
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{os.stat(path).st_mtime_ns}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "silent":
                release.wait(20)
            if with_bytes:
                self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            if fault:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        release.set()
        server.shutdown()
        server.server_close()
