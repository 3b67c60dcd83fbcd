"""The command line, a process for each command, begun where its imports end: most of a short command is those."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SERVER = """
import json, os, sys
import cv2, numpy, PIL.Image, pydantic
import iopaint_core.batch, iopaint_core.manager
from iopaint_core import cli

for line in sys.stdin:
    job = json.loads(line)
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["folder"])
for number, path in enumerate([os.devnull, job["output"], job["errors"]]):
    os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
sys.argv = ["iopaint-core", *job["arguments"]]
cli.main()
"""


@functools.cache
def _server():
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.stdin.close)
    return process


def command(*arguments):
    """Run `iopaint-core` with these arguments in the environment of now; its exit code and its two streams."""
    arguments = list(map(str, arguments))
    with tempfile.NamedTemporaryFile() as output, tempfile.NamedTemporaryFile() as errors:
        job = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "output": output.name,
            "errors": errors.name,
        }
        server = _server()
        server.stdin.write(f"{json.dumps(job)}\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, output.read().decode(), errors.read().decode())
