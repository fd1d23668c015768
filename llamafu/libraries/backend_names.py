"""The backends that a libllama can be fetched or compiled with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend: its name for people, cmake's options, and what has to be installed to compile it."""

    title: str
    options: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    """Programs, one of which must be on the PATH."""
    mend: str = ""
    """Where these come from."""
    systems: frozenset[str] = frozenset({"linux", "windows", "macos"})
    """The systems that have it, as `System.name`."""


BACKENDS = {
    "cpu": Backend("the CPU"),
    "cuda": Backend(
        "CUDA",
        ("-DGGML_CUDA=ON",),
        ("nvcc",),
        "install NVIDIA's CUDA toolkit (Debian, Ubuntu: `apt install nvidia-cuda-toolkit`) and put its bin folder on the PATH",
        frozenset({"linux", "windows"}),
    ),
    "rocm": Backend(
        "ROCm",
        ("-DGGML_HIP=ON",),
        ("hipcc", "hipconfig"),
        "install AMD's ROCm (its package hip-dev) and put its bin folder on the PATH",
        frozenset({"linux", "windows"}),
    ),
    "vulkan": Backend(
        "Vulkan",
        ("-DGGML_VULKAN=ON",),
        ("glslc",),
        "install the Vulkan SDK (Debian, Ubuntu: `apt install libvulkan-dev glslc spirv-headers`)",
    ),
    "metal": Backend("Metal", ("-DGGML_METAL=ON",), systems=frozenset({"macos"})),
}
"""By the name that `--backend` takes."""


def plugin_of(backend: str) -> str:
    """Return what the file names of a backend's plug-ins contain."""
    return f"ggml-{'hip' if backend == 'rocm' else backend}"
