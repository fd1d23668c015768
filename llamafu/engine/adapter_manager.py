"""An engine's adapters: which are registered, which are active, and which a request's `lora` means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util.listing import listed
from llamafu.adapters.file import default_name
from llamafu.adapters.reader import adapters_in
from llamafu.engine.bank_contents import BankContents
from llamafu.errors import LlamafuError, LoraError, LoraIncompatibleError
from llamafu.lora.active_set import LoraSet, LoraUse
from llamafu.lora.mix_files import MixFiles
from llamafu.lora.mixes import NamedMixes
from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.info import AdapterInfo
    from llamafu.engine.registry import AdapterRegistry, Content
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.scheduler import Scheduler
    from llamafu.engine.worker import Worker
    from llamafu.lora.mix_files import MixFile
    from llamafu.lora.scales import LoraScales, Scale


class AdapterManager:
    """Resolves names to contents, keeps the active set, and asks the engine's thread to move adapters. Any thread."""

    def __init__(
        self, registry: AdapterRegistry, runtime: EngineRuntime, worker: Worker, scale_range: tuple[float, float]
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._worker = worker
        self._scale_range = scale_range
        self.active: dict[str, float] = {}
        """Scale by name, for requests with `lora=None`."""
        self.mixes = NamedMixes(scale_range)

    def add(self, path: Path, name: str | None) -> AdapterInfo:
        """Check and register a GGUF file or a PEFT folder."""
        self._worker.demand_open()
        self.mixes.refuse_taken(default_name(path) if name is None else name)
        return self._registry.add(path, name)

    def add_folder(self, path: str | os.PathLike[str] | None) -> None:
        """Register the GGUF files, PEFT folders and mixes of a folder, if there is one; NotADirectoryError where it is none."""
        if path is None:
            return
        folder = Path(path)
        if not folder.is_dir():
            message = f"adapters_dir={str(folder)!r} is no folder; make it, or leave it out"
            raise NotADirectoryError(message)
        for entry in adapters_in(folder):
            self.add(entry, None)
        for mix in MixFiles(folder).read().values():
            self._add_kept(mix)

    def infos(self) -> dict[str, AdapterInfo]:
        """What is registered, by name."""
        self._worker.demand_open()
        return self._registry.infos()

    def source(self, name: str) -> Path:
        """Return where a name was added from; `LoraNotFoundError`."""
        return self._registry.source(name)

    def bank_contents(self) -> BankContents:
        """Return what the bank holds now."""
        self._worker.demand_open()
        return BankContents.of(self._runtime.bank)

    @property
    def targets(self) -> frozenset[str]:
        """Names of the tensors that adapters can change."""
        return self._runtime.used

    def add_mix(self, name: str, scales: Mapping[str, float], *, overwrite: bool) -> None:
        """Check a mix as a request with its adapters would be, and give it its name."""
        self._worker.demand_open()
        checked = self.mixes.checked(name, scales)
        if name in self._registry.infos():
            message = f"the name {name!r} is an adapter's; give the mix another one"
            raise LoraError(message)
        self.lora_set(checked)
        self.mixes.add(name, checked, overwrite=overwrite)

    def _add_kept(self, mix: MixFile) -> None:
        """Enter the mix of a file; `LoraError` names the file."""
        problem = mix.problem
        if problem is None:
            try:
                self.add_mix(mix.name, mix.scales, overwrite=False)
            except (LlamafuError, ValueError) as error:
                problem = str(error)
        if problem is not None:
            message = f"{mix.path} is no mix that can be used: {problem}; mend it, or move it elsewhere"
            raise LoraError(message)

    def remove(self, name: str) -> None:
        """Forget a name, and unpin its content; `LoraError` while it is active or part of a mix."""
        self._worker.demand_open()
        if name in self.active:
            message = f"{name!r} is in the active set ({self.active}); set another with set_lora_adapters first"
            raise LoraError(message)
        self.mixes.refuse_used(name)
        self._registry.remove(name)
        self._worker.call(lambda scheduler: scheduler.runtime.unpin_all_but(self._digests()))

    def pin(self, name: str) -> None:
        """Read a content into the bank and keep it there."""
        content = self._registry.resolve(name)
        self.read_ahead([content])

        def pin(scheduler: Scheduler) -> None:
            scheduler.runtime.unpin_all_but(self._digests())  # a file that was changed had another content when it was pinned
            scheduler.runtime.pin(name, content)

        self._worker.call(pin)

    def set_active(self, scales: Mapping[str, float], *, include_queued: bool) -> None:
        """Replace the active set; with `include_queued` also for requests that follow it and have not started."""
        self._worker.demand_open()
        expanded = self.mixes.expand(scales)
        checked = {name: check_scale(scale, self._scale_range, repr(name)) for name, scale in expanded.items()}
        lora = self.lora_set(checked)
        self.active = checked
        if include_queued:
            self._worker.post(lambda scheduler: scheduler.retarget(lora))  # `call` would wait for the running step

    def read_ahead(self, contents: Sequence[Content]) -> None:
        """Read adapters into the bank, if it can hold them, for a share of each step; return when they are there."""
        while self._worker.call(lambda scheduler: scheduler.read_ahead(contents)):
            pass

    def lora_set(self, lora: LoraScales | Mapping[str, float] | None) -> LoraSet[Content]:
        """Resolve names to the contents of now; what can never run raises here, before it is queued."""
        scales = self.active if lora is None else lora
        if not hasattr(scales, "items"):
            message = f"lora={scales!r} is no mapping of names to scales; give {{name: scale}}, or {{}} for the base model"
            raise TypeError(message)
        named: dict[str, Scale] = {}
        for name, scale in scales.items():
            if not isinstance(name, str):
                message = f"an engine knows adapters by name, not by {name!r}"
                raise TypeError(message)
            named[name] = scale
        uses: dict[str, LoraUse[Content]] = {}
        for name, scale in self.mixes.expand(named).items():
            content = self._registry.resolve(name)
            known = uses.get(content.digest)
            if known is not None:
                message = f"{known.name!r} and {name!r} are the same content (digest {content.digest[:12]}); give one of them"
                raise LoraError(message)
            uses[content.digest] = LoraUse(name, content, scale)
        bank = self._runtime.bank
        if bank is not None and all(bank.holds(use.content) for use in uses.values()):
            ranks = {digest: use.content.info.rank for digest, use in uses.items()}
            bank.refuse_too_large(ranks)
        return LoraSet(tuple(uses.values()), self._scale_range)

    def _digests(self) -> set[str]:
        return {info.digest for info in self._registry.infos().values()}


def demand_usable(runtime: EngineRuntime, file: AdapterFile) -> None:
    """Refuse an adapter with tensors that this model's graph never multiplies by adapters."""
    unused = sorted(set(file.pairs) - runtime.used)
    problems = tuple(f"{name}: this model's graph computes it without adapters" for name in unused)
    if problems:
        message = f"{file.path} would be used in part only: {listed(problems, '; ')}; train it without these targets"
        raise LoraIncompatibleError(message, problems=problems)
