"""The benchmark's service: answers each request with a number that compiled code gives."""

from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy


class Handler(BaseHTTPRequestHandler):
    """One answer for every path."""

    def do_GET(self) -> None:
        square = numpy.arange(9).reshape(3, 3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{(square @ square).sum()}\n".encode())


HTTPServer(("", 8000), Handler).serve_forever()
