"""What the hello appliance serves: a greeting, and a number that only compiled code gives."""

import platform

import numpy
from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def hello():
    """Say hello, with the interpreter's version and the sum of a small matrix product."""
    square = numpy.arange(9).reshape(3, 3)
    return jsonify(
        message="hello from an appliance",
        python=platform.python_version(),
        checksum=int((square @ square).sum()),
    )
