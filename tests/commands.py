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
import atexit, email.policy, email.parser, gc, json, os, random, socket, sys, tempfile, zipfile
import cv2, filelock, httpx, importlib_metadata, numpy, PIL.Image, platformdirs.unix, pydantic
import iopaint_core.batch, iopaint_core.manager
import iopaint_plugins.diffusion, iopaint_plugins.lama, iopaint_plugins.opencv, iopaint_plugins.patchmatch
import iopaint_plugins.erase, iopaint_plugins.interactive_seg, iopaint_plugins.person, iopaint_plugins.text
import iopaint_plugins.realesrgan, iopaint_plugins.removebg, iopaint_plugins.upscale
from iopaint_core import cli

PIL.Image.preinit()
importlib_metadata.metadata("click")
gc.freeze()  # or the end of each process visits, and so copies, all that was imported
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

@atexit.register  # and so run last
def end():  # before all that was imported is taken apart, and so copied
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

code = 1
try:
    cli.main()
except SystemExit as ended:
    code = ended.code
"""


class Commands:
    """Runs `iopaint-core` of a Python; what that imports for every command it imports once."""

    def __init__(self, python=sys.executable, environment=None):
        self._server = subprocess.Popen(
            [str(python), "-P", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(self.close)

    def close(self):
        """End what waits for commands; it may be closed before."""
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()

    def __call__(self, *arguments, environment=None, folder=None):
        """Run it with these arguments, in the environment and folder of now; its exit code and its two streams."""
        arguments = list(map(str, arguments))
        with tempfile.NamedTemporaryFile() as output, tempfile.NamedTemporaryFile() as errors:
            job = {
                "arguments": arguments,
                "environment": dict(os.environ if environment is None else environment),
                "folder": str(folder or Path.cwd()),
                "output": output.name,
                "errors": errors.name,
            }
            self._server.stdin.write(f"{json.dumps(job)}\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, output.read().decode(), errors.read().decode())


_commands = functools.cache(Commands)


def command(*arguments):
    """Run `iopaint-core` as it is imported here."""
    return _commands()(*arguments)
