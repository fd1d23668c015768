"""The server's settings, from flags, environment variables and a TOML file; each is declared once."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._util.arguments import read_truth
from llamafu._util.suggestions import did_you_mean
from llamafu.generation.options import MOST_DRAFTED
from llamafu.lora.scales import check_scale_range
from llamafu.server.device_settings import DeviceSettings
from llamafu.server.setting_names import check_names, take_hub_adapters
from llamafu.server.setting_readers import (
    duration,
    hub_adapter,
    mix_of,
    name_and_scale,
    not_empty,
    number,
    whole,
)
from llamafu.service.keys import check_key

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

PREFIX = "LLAMAFU_SERVE_"
"""Start of an environment variable's name, as in `LLAMAFU_SERVE_PORT=9000`. Lists are separated by commas, or `separator`."""


def setting(
    read: Callable[[str], Any],
    text: str,
    default: Any = MISSING,
    *,
    many: bool = False,
    words: tuple[str, ...] = (),
    secret: bool = False,
    flags: str = "",
    separator: str = ",",
) -> Any:
    """Declare a setting as the field of a dataclass.

    Args:
        read: makes the value of its text; ValueError for a text that is not legal.
        text: what `--help` says.
        default: the value of a setting that is not given; without one it has to be given.
        many: it may be given more than once, and its value is a tuple.
        words: names of the values of a setting that has several, such as LOW and HIGH.
        secret: it is left out of the repr.
        flags: a short read_truth, such as -m.
        separator: what stands between the values of a setting that has several, in a variable of the environment.

    """
    metadata = {"read": read, "text": text, "many": many, "words": words, "secret": secret, "flags": flags}
    metadata["separator"] = separator
    if default is MISSING:
        return field(metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(DeviceSettings):
    """Every setting, checked. Its repr shows no key."""

    model: str = setting(
        not_empty,
        "GGUF model, or hf:OWNER/REPO:QUANT; the word 'example' means SmolLM2-135M-Instruct, fetched once",
        flags="-m",
    )
    mmproj: str | None = setting(not_empty, "projector (mmproj) file of the model, for images or sounds", None)
    fetch_media: bool = setting(
        read_truth, "fetch images that messages name by URL, from public addresses; else they are refused", default=False
    )
    adapters: Path | None = setting(Path, "folder of adapters, GGUF files and PEFT folders; it is watched", None)
    lora: tuple[tuple[str, float], ...] = setting(
        name_and_scale,
        "adapter that is active from the start, NAME[=SCALE], or NAME=hf:OWNER/REPO[=SCALE] for one of the Hugging Face hub",
        (),
        many=True,
    )
    hub_adapter: tuple[tuple[str, str], ...] = setting(
        hub_adapter, "adapter of the hub that is served beside those of the folder, NAME=hf:OWNER/REPO", (), many=True
    )
    mix: tuple[tuple[str, dict[str, float]], ...] = setting(
        mix_of, "mix of adapters under a name, NAME=ADAPTER[:SCALE],...", (), many=True, separator=";"
    )
    scale_range: tuple[float, float] = setting(number, "scales that are allowed", (0.0, 1.0), words=("LOW", "HIGH"))
    alias: tuple[str, ...] = setting(not_empty, "further name of the base model, listed and taken as `model`", (), many=True)
    strict: bool = setting(
        read_truth, "refuse fields of requests that are not known here, which are ignored else", default=False
    )
    host: str = setting(not_empty, "address to listen on", "127.0.0.1")
    port: int = setting(whole(0, 65535), "port to listen on; 0 takes a free one", 8080)
    api_key: tuple[str, ...] = setting(check_key, "key that may generate", (), many=True, secret=True)
    admin_key: tuple[str, ...] = setting(check_key, "key that may do everything", (), many=True, secret=True)
    keys: Path | None = setting(Path, "file of keys, read again when it changes (default: in the user's data folder)", None)
    no_auth: bool = setting(read_truth, "take every request without a key; on the loopback only", default=False)
    allow_origin: tuple[str, ...] = setting(not_empty, "web origin that browsers may call from", (), many=True)
    n_ctx: int = setting(whole(2), "context in tokens, shared by all sequences", 8192)
    max_sequences: int = setting(whole(1), "sequences that run at a time", 16)
    max_queue: int = setting(whole(1), "requests that may wait for their turn; more are refused with 429", 256)
    target_itl_ms: float = setting(
        duration("milliseconds"), "milliseconds between two tokens that prompts of others may fill", 250.0
    )
    prompt_lookup_num_tokens: int = setting(
        whole(0, MOST_DRAFTED), "next tokens that a step guesses from earlier places of each text; 0 is off", 0
    )
    no_generic_tools: bool = setting(
        read_truth, "refuse tools where the chat template has no place for them, in place of a system message", default=False
    )
    bank_rank: int = setting(whole(1), "rank units that adapters share", 128)
    threads: int | None = setting(whole(1), "threads to compute with (default: every CPU)", None)
    library: str | None = setting(not_empty, "libllama to use, a file or a folder (default: search)", None)
    max_body: int = setting(whole(1), "largest body of a request in bytes, uploads excepted", 4 * 1024 * 1024)
    max_upload: int = setting(whole(1), "largest adapter that may be uploaded, in bytes", 4 * 1024**3)
    max_prompt: int | None = setting(whole(1), "longest prompt in tokens (default: the context)", None)
    max_time: float = setting(duration("seconds"), "seconds after which a request is ended with what there is", 600.0)
    ping: float = setting(duration("seconds"), "seconds without a token after which a stream gets a comment", 15.0)
    grace: float = setting(duration("seconds"), "seconds that running requests have to finish after SIGTERM", 30.0)
    ray: bool = setting(read_truth, "serve over replicas on Ray, of the extra `ray`; see --replicas", default=False)
    replicas: int = setting(whole(1), "replicas on Ray, each with an engine of its own", 1)

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other; `ValueError`."""
        self.check_devices()
        if self.no_auth and not is_loopback(self.host):
            message = f"no_auth is for the loopback only, and host is {self.host!r}; give keys, or host 127.0.0.1"
            raise ValueError(message)
        if self.no_auth and (self.api_key or self.admin_key or self.keys):
            message = "no_auth was given together with keys; give one of them"
            raise ValueError(message)
        if self.replicas > 1 and not self.ray:
            message = f"replicas is {self.replicas}, and they run on Ray; give ray, too"
            raise ValueError(message)
        if self.hub_adapter and self.ray:
            message = "hub_adapter is not for ray, whose replicas have the adapters of the folder alone; put a copy there"
            raise ValueError(message)
        self._check_names_and_scales()
        if "*" in self.allow_origin and self.no_auth:
            message = "allow_origin '*' without keys would let every web page in; name the origins"
            raise ValueError(message)

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What is the engine's as keyword arguments of `Engine`."""
        return {
            "max_sequences": self.max_sequences,
            "max_queue": self.max_queue,
            "target_itl_ms": self.target_itl_ms,
            "prompt_lookup_num_tokens": self.prompt_lookup_num_tokens,
            "bank_rank": self.bank_rank,
            "n_ctx": self.n_ctx,
            "n_threads": self.threads,
            "scale_range": self.scale_range,
            "library": self.library,
            "mmproj_path": self.mmproj,
            **self.device_arguments,
        }

    def _check_names_and_scales(self) -> None:
        """Refuse names that are given twice or taken, and scales outside of the range; `ValueError`."""
        named = {"lora": self.lora, "mix": self.mix, "hub_adapter": self.hub_adapter}
        names = {name: [each for each, _ in values] for name, values in named.items()} | {"alias": [*self.alias]}
        check_names(names, base=[Path(self.model).stem, *self.alias], has_folder=self.adapters is not None)
        check_scale_range(self.scale_range)
        low, high = self.scale_range
        mixed = [("mix", *each) for _, scales in self.mix for each in scales.items()]
        for setting_name, name, scale in [*(("lora", *each) for each in self.lora), *mixed]:
            if not low <= scale <= high:  # NaN never is
                told = f"the scale {scale:g} of {name!r} is not within {low:g} to {high:g}"
                message = f"{setting_name}: {told}; scale_range allows others"
                raise ValueError(message)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and `--config`."""
    parser.add_argument("--config", type=Path, metavar="TOML", help="file of settings, named as here: max_time = 60")
    for each in fields(Settings):
        data, name = each.metadata, f"--{each.name.replace('_', '-')}"
        default = "" if each.default in {MISSING, None, (), False} else f" ({' '.join(_texts(each.default))})"
        default += " (repeatable)" if data["many"] else ""
        options: dict[str, Any] = {"default": None, "help": data["text"] + default, "dest": each.name}
        if data["read"] is read_truth:
            options |= {"action": "store_const", "const": "yes"}
        else:
            options |= {"action": "append" if data["many"] else "store", "metavar": data["words"] or each.name.upper()}
            options |= {"nargs": len(data["words"])} if data["words"] else {}
        parser.add_argument(*filter(None, [data["flags"], name]), **options)


def load(
    given: Mapping[str, str | list[str] | None], environment: Mapping[str, str] | None = None, config: Path | None = None
) -> Settings:
    """Return the settings. Flags beat the environment, the environment beats the file, the file beats the defaults.

    Raises `ValueError` for an illegal value or an unknown name, saying where it was given, `OSError` when the file cannot
    be read.
    """
    known = {each.name: each for each in fields(Settings)}
    found: dict[str, tuple[str, list[str]]] = {}
    for place, values in (
        (str(config), _from_file(config) if config else {}),
        ("the environment", _from_environment(os.environ if environment is None else environment, known)),
        ("the command line", {name: _texts(value) for name, value in given.items() if value is not None}),
    ):
        for name, texts in values.items():
            if name not in known:
                hint = did_you_mean(name, known) or f" (settings: {', '.join(known)})"
                message = f"{place}: {name!r} is not a setting{hint}"
                raise ValueError(message)
            found[name] = (place, texts)
    take_hub_adapters(found)
    if "model" not in found:
        message = f"no model was given; name one with -m, {PREFIX}MODEL or model in the file of settings"
        raise ValueError(message)
    return Settings(**{name: _read(known[name].metadata, name, *values) for name, values in found.items()})


def _read(metadata: Mapping[str, Any], name: str, place: str, texts: list[str]) -> Any:
    words = metadata["words"]
    if words and len(texts) != len(words):
        message = f"{place}: {name} has {len(texts)} values; give {' and '.join(words)}"
        raise ValueError(message)
    if len(texts) != 1 and not (metadata["many"] or words):
        message = f"{place}: {name} was given {len(texts)} times; give it once"
        raise ValueError(message)
    try:
        values = [metadata["read"](text) for text in texts]
    except ValueError as error:
        message = f"{place}: {name}: {error}"
        raise ValueError(message) from None
    return tuple(values) if metadata["many"] or words else values[0]


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, list[str]]:
    found = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            many = name in known and (known[name].metadata["many"] or known[name].metadata["words"])
            parts = text.split(known[name].metadata["separator"]) if many else []
            found[name] = [part.strip() for part in parts if part.strip()] if many else [text]
    return found


def _from_file(path: Path) -> dict[str, list[str]]:
    """Read a TOML file; `lora` may be a table of scales, and `mix` one of such tables."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        message = f"{path} is not TOML: {error}"
        raise ValueError(message) from None
    found = {}
    for name, value in data.items():
        if name == "lora" and isinstance(value, dict):
            found[name] = [f"{adapter}={scale}" for adapter, scale in value.items()]
        elif name == "mix" and isinstance(value, dict):
            found[name] = [f"{each}={_mix_text(scales)}" for each, scales in value.items()]
        else:
            found[name] = _texts(value)
    return found


def _mix_text(scales: object) -> str:
    """Return a table of scales as --mix takes it."""
    return ",".join(f"{adapter}:{scale}" for adapter, scale in scales.items()) if isinstance(scales, dict) else _text(scales)


def _texts(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return [_text(value)]


def _text(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
