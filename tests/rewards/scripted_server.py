"""A real HTTP server on the loopback whose answers a test scripts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

Reply = Callable[[int, BaseHTTPRequestHandler, bytes], tuple[int, bytes]]
"""Number of the call, its handler and its body to status and answer."""


@contextmanager
def scripted_server(reply: Reply) -> Iterator[str]:
    """The address of a server that answers every POST as `reply` says."""
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = reply(next(numbers), self, body)
            with suppress(ConnectionError):  # the client may have given up waiting
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
