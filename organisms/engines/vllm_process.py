"""The parent's end of a vLLM process: started, asked and ended here, so that its memory and the trainer's do not meet."""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What is set outside counts before these.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the worker itself: one process fewer to outlive anybody
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # where its processes meet; else it takes the address that the internet sees
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two processes would be bound to the same cores
}


class Worker:
    """One vLLM process (vllm_worker.py). It ends by `stop`, with this object, and when this process ends in any way."""

    def __init__(self, settings: dict, environment: dict[str, str]):
        self._log = tempfile.TemporaryFile(mode="w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "organisms.engines.vllm_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            cwd=ROOT,
            env={**ENVIRONMENT, **os.environ, **environment},
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        self.stop = weakref.finalize(self, _end, self._process)
        self.send(settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; `receive` says why

    def receive(self) -> dict:
        """The next answer; {"error": ...} where it could not be given, with "ended" where the process is gone."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        said = [text.strip() for text in self._log if text.strip()]
        return {"error": f"its process ended with status {status}: {said[-1] if said else 'it said nothing'}", "ended": True}


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
