"""One decode call: the rows of a group, under the adapters of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.bank import Bank
    from llamafu.engine.batch import Group, Part
    from llamafu.engine.native_adapters import NativeAdapterCache
    from llamafu.engine.recorder import Recorder
    from llamafu.engine.runtime import EngineRuntime


class DecodeStep:
    """Makes the decode calls, and counts them by kind. The engine's thread only."""

    def __init__(self, runtime: EngineRuntime, native_adapters: NativeAdapterCache, recorder: Recorder) -> None:
        self._runtime = runtime
        self._native_adapters = native_adapters
        self._recorder = recorder

    def run(self, group: Group, parts: Sequence[Part]) -> int:
        """Compute these parts of a group; return libllama's code. DecodeError when the bank was not applied as set."""
        context, bank = self._runtime.instance.context, self._bank(group, parts)
        if bank is not None:
            self._runtime.enter_bank(*group.tables(parts, bank))
        else:
            self._runtime.leave_bank()
            self._native_adapters.enter(group.state)
        if group.mixed:
            self._count_mixed(parts)
        else:
            self._count_alone(group)
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int | None] = []
        outputs: list[bool] = []
        for part in parts:
            tokens += part.tokens
            positions += range(part.start, part.start + part.rows)
            sequences += [part.sequence.number] * part.rows
            outputs += [False] * (part.rows - part.outputs) + [True] * part.outputs
        code = context.compute(tokens, positions, sequences, outputs)  # type: ignore[arg-type] # running ones have a number
        if code == 0 and bank is not None:
            bank.store.check()
        return code

    def _bank(self, group: Group, parts: Sequence[Part]) -> Bank | None:
        """The bank, if it is to apply the rows' adapters; None where libllama's own operations do, or there are none."""
        bank = self._runtime.bank
        if bank is None or not group.mixed:
            return None
        if bank.store.compiled or any(state for part in parts for _, state in part.runs()):
            return bank
        # Products with all units may make NaN of a row without adapters: once it is suspected, it is computed without them.
        is_suspect = any(part.sequence.status.is_suspect for part in parts)
        return bank if bank.store.stays_active and not is_suspect else None

    def _count_mixed(self, parts: Sequence[Part]) -> None:
        states = {state for part in parts for _, state in part.runs()}
        if len(states) > 1:
            self._recorder.mixed_steps += 1
        else:
            self._recorder.plain_steps += 1

    def _count_alone(self, group: Group) -> None:
        if not group.reason:
            self._recorder.plain_steps += 1
            return
        self._recorder.fallback_steps += 1
        self._recorder.fallback_reasons[group.reason] += 1
