"""A process apart, for what a hostile file may do to whoever reads it."""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Child:
    """A process of a script's that answers, and is replaced when it dies or takes too long.

    `python SCRIPT child` says that it is ready, then answers lines [kind, path] with one each: all
    JSON.
    """

    script: str
    seconds: float  # for one answer

    def __init__(self):
        self.process = None

    def __enter__(self):
        self.place = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_):
        self.end()
        self.place.cleanup()

    def start(self):
        """Start it, and wait until it has imported the library."""
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, self.script, "child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | settings | {"MAETOK_LAB_CACHE": self.place.name},
        )
        self.process.stdout.readline()

    def ask(self, kind, path):
        """What the child says of one, or in words how it ended."""
        if self.process is None:
            self.start()
        print(json.dumps([kind, str(path)]), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], self.seconds)[0]:
            self.end()
            return f"took more than {self.seconds:.0f} s"
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.end()
        return f"ended the process with exit code {code}"

    def end(self):
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None
