"""One decode call: the rows of a group, under the adapters of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.engine.batch import RowKind

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
        """Compute these parts of a group; return libllama's code, 0, or 1 where the memory has no room.

        DecodeError for any other code, and when the bank was not applied as set.
        """
        bank = self._bank(group, parts)
        if bank is not None:
            self._runtime.enter_bank(*group.tables(parts, bank))
        else:
            self._runtime.leave_bank()
            self._native_adapters.enter(group.state)
        if group.mixed:
            self._count_mixed(parts)
        else:
            self._count_alone(group)
        sequences: list[int | None] = []
        outputs: list[bool] = []
        for part in parts:
            sequences += [part.sequence.number] * part.rows
            outputs += [False] * (part.rows - part.outputs) + [True] * part.outputs
        compute = self._compute_tokens if group.kind is RowKind.TOKENS else self._compute_media
        with self._runtime.renewing(is_banked=bank is not None):
            code = compute(group, parts, sequences, outputs)  # type: ignore[arg-type] # running ones have a number
            if code not in (0, 1):
                raise self._runtime.instance.context.failure(code, f"decoding {len(sequences)} rows failed")
            if code == 0 and bank is not None:
                bank.store.check()
        return code

    def _compute_tokens(self, _group: Group, parts: Sequence[Part], sequences: Sequence[int], outputs: Sequence[bool]) -> int:
        tokens: list[int] = []
        positions: list[int] = []
        for part in parts:
            first = part.sequence.layout.position(part.start)
            tokens += part.tokens
            positions += range(first, first + part.rows)
        return self._runtime.instance.context.compute(tokens, positions, sequences, outputs)

    def _compute_media(self, group: Group, parts: Sequence[Part], sequences: Sequence[int], outputs: Sequence[bool]) -> int:
        embeddings, positions = [], []
        for part in parts:
            span = part.media
            assert span is not None  # noqa: S101 - every part of this group has one
            start, end = part.start - span.start, part.end - span.start
            embeddings.append(span.rows.embeddings[start:end])
            positions.append(span.rows.positions(part.sequence.layout.position(span.start), start, end))
        return self._runtime.instance.context.compute_rows(
            np.concatenate(embeddings),
            np.ascontiguousarray(np.concatenate(positions, axis=1)),
            sequences,
            outputs,
            causal=group.kind is RowKind.CAUSAL,
        )

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
