"""What a benchmark ran on: enough to judge its numbers, nothing that names the machine or its owner."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(*libraries: str) -> dict[str, Any]:
    """Processor, cores, Python and torch, and the versions of the other `libraries` that took part."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{library: version(library) for library in libraries},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
