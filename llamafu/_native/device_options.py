"""Which devices compute a model and where its memory lies: one table for Python, the command line and the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from llamafu._util.arguments import check_number, check_whole, read_truth
from llamafu._util.signatures import keywords_of, show_options
from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_F = TypeVar("_F", bound="Callable[..., Any]")

_INT32_MAX = 2**31 - 1
_MOST_DEVICES = 16
"""What libllama has room for."""
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
"""libllama's numbers for the ways to divide a model among several devices."""


class DeviceArguments(TypedDict, total=False):
    """Keyword arguments of `DeviceOptions`, for type checkers."""

    n_gpu_layers: int | Literal["auto"]
    devices: Sequence[str] | None
    split_mode: str
    main_gpu: int
    tensor_split: Sequence[float] | None
    use_mmap: bool
    use_mlock: bool
    n_ubatch: int | None
    kv_unified: bool | None
    offload_kqv: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOption:
    """One row of the table.

    name, annotation, default, doc: as the field of `DeviceOptions` has them; `doc` is one line without a full stop.
    read: makes the value of a text of the command line, of a variable or of a settings file; ValueError.
    check: returns a legal value, a whole number as an int; ValueError for another. Its arguments are name and value.
    flags: a further flag beside the one that the name makes, or nothing.
    metavar: what `--help` calls the value.
    """

    name: str
    annotation: str
    default: Any
    doc: str
    read: Callable[[str], Any]
    check: Callable[[str, Any], Any]
    flags: str
    metavar: str

    def parse(self, text: str) -> Any:
        """Return the checked value of a text; ValueError."""
        return self.check(self.name, self.read(text))


def _option(
    doc: str, *, default: Any, read: Callable[[str], Any], check: Callable[[str, Any], Any], metavar: str, flags: str = ""
) -> Any:
    return field(default=default, metadata={"doc": doc, "read": read, "check": check, "metavar": metavar, "flags": flags})


def _read_layers(text: str) -> int | str:
    return text if text == "auto" else _read_whole(text)


def _read_whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        message = f"{text!r} is no whole number"
        raise ValueError(message) from None


def _read_names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _read_shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        message = f"{text!r} is no list of numbers with commas between them, such as 3,1"
        raise ValueError(message) from None


def _check_layers(name: str, value: Any) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return check_whole(name, value, low=-1, high=_INT32_MAX)
    except ValueError as error:
        message = f"{error}, nor 'auto'"
        raise ValueError(message) from None


def _check_names(name: str, value: Any) -> Any:
    if value is None:
        return None
    names = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
    if not all(isinstance(each, str) and each for each in names) or len(set(names)) < len(names):
        message = (
            f"{name}={value!r} is no sequence of different names of devices, such as ['Vulkan0']; `llamafu doctor` lists them"
        )
        raise ValueError(message)
    return value


def _check_split_mode(name: str, value: Any) -> Any:
    if value not in SPLIT_MODES:
        message = f"{name}={value!r} is none of {', '.join(map(repr, SPLIT_MODES))}"
        raise ValueError(message)
    return value


def _check_shares(name: str, value: Any) -> Any:
    if value is None:
        return None
    shares = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    for share in shares:
        check_number(f"a share of {name}", share, low=0)
    if not 0 < len(shares) <= _MOST_DEVICES or not any(shares):
        message = f"{name}={value!r} is no sequence of 1 to {_MOST_DEVICES} shares, one for each device, with one above 0"
        raise ValueError(message)
    return value


def _check_truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        message = f"{name}={value!r} is neither True nor False"
        raise ValueError(message)  # noqa: TRY004 - every value that is not legal is a ValueError here
    return value


def _check_truth_or_none(name: str, value: Any) -> bool | None:
    return None if value is None else _check_truth(name, value)


def _check_rows(name: str, value: Any) -> int | None:
    return None if value is None else check_whole(name, value, low=1, high=_INT32_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Where a model and its memory lie, and what computes it. ValueError names what is not legal."""

    n_gpu_layers: int | Literal["auto"] = _option(
        "layers that GPUs compute, the last ones first; -1 is all, 0 none, and 'auto' as many as fit into their memory. "
        "Without a GPU the CPU computes all",
        default=0,
        read=_read_layers,
        check=_check_layers,
        metavar="N",
        flags="-ngl",
    )
    devices: Sequence[str] | None = _option(
        "names of the GPUs that compute, as `llamafu doctor` lists them; every GPU unless given",
        default=None,
        read=_read_names,
        check=_check_names,
        metavar="NAME,...",
        flags="--device",
    )
    split_mode: str = _option(
        "how several GPUs share the model: 'layer' (whole layers), 'row' (rows of each matrix) or 'none' (one GPU has all)",
        default="layer",
        read=str,
        check=_check_split_mode,
        metavar="MODE",
    )
    main_gpu: int = _option(
        "which of the devices, counted from 0, has the whole model with split_mode 'none', and what is not split with 'row'",
        default=0,
        read=_read_whole,
        check=lambda name, value: check_whole(name, value, low=0, high=_MOST_DEVICES - 1),
        metavar="N",
    )
    tensor_split: Sequence[float] | None = _option(
        "share of the model that each device gets, such as 3,1; by free memory unless given",
        default=None,
        read=_read_shares,
        check=_check_shares,
        metavar="X,...",
    )
    use_mmap: bool = _option(
        "whether the model's file is mapped into memory rather than read",
        default=True,
        read=read_truth,
        check=_check_truth,
        metavar="yes|no",
    )
    use_mlock: bool = _option(
        "whether the system must keep the model in memory",
        default=False,
        read=read_truth,
        check=_check_truth,
        metavar="yes|no",
    )
    n_ubatch: int | None = _option(
        "most tokens that are computed at a time; as many as a decode call has unless given",
        default=None,
        read=_read_whole,
        check=_check_rows,
        metavar="N",
    )
    kv_unified: bool | None = _option(
        "whether all sequences share one KV memory; an engine's always do",
        default=None,
        read=read_truth,
        check=_check_truth_or_none,
        metavar="yes|no",
    )
    offload_kqv: bool = _option(
        "whether the KV memory of layers that a GPU computes lies there too",
        default=True,
        read=read_truth,
        check=_check_truth,
        metavar="yes|no",
    )

    def __post_init__(self) -> None:
        for option in DEVICE_OPTIONS:
            object.__setattr__(self, option.name, option.check(option.name, getattr(self, option.name)))
        if self.n_gpu_layers != 0:
            return
        for name in ("devices", "split_mode", "main_gpu", "tensor_split"):
            value = getattr(self, name)
            if value not in (_BY_NAME[name].default, ()):
                message = f"{name}={value!r} has no effect with n_gpu_layers=0; give n_gpu_layers too, such as 'auto'"
                raise ValueError(message)

    @property
    def wants_gpu(self) -> bool:
        """Whether GPUs are to be looked for."""
        return self.n_gpu_layers != 0 and self.devices != ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any], taken_by: Callable[..., object] | None = None) -> DeviceOptions:
        """Make the options of keyword arguments; TypeError for one that is unknown, with all that `taken_by` takes."""
        for name in arguments:
            if name not in _BY_NAME:
                known = keywords_of(taken_by) if taken_by else list(_BY_NAME)
                message = f"unknown option {name!r}{did_you_mean(name, known)} (options: {', '.join(known)})"
                raise TypeError(message)
        return cls(**cast("DeviceArguments", arguments))


DEVICE_OPTIONS = tuple(
    DeviceOption(name=each.name, annotation=str(each.type), default=each.default, **each.metadata)
    for each in fields(DeviceOptions)
)
"""Every option, in order."""
_BY_NAME = {option.name: option for option in DEVICE_OPTIONS}


def takes_device_options(function: _F) -> _F:
    """Show every option of devices, with its default, in the signature of a function that takes `**devices`."""
    return show_options(function, DEVICE_OPTIONS)
