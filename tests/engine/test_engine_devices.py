"""What an engine does with the options of devices where there is no GPU, and the kernel of devices on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_adapter
from helpers.forced import STRICT, Case, alone, check, opened, run_forced

from llamafu import Llamafu
from llamafu._native.batched_lora.device import DeviceLoraHook
from llamafu._native.batched_lora.known_graphs import KnownGraphs
from llamafu._native.batched_lora.node_memory import NodeMemory
from llamafu._native.graph.adapter_ops import GraphProbe, factor_name
from llamafu._native.graph.unused_targets import Prober
from llamafu._native.library import Library
from llamafu.engine import Engine
from llamafu.errors import ContextInitError, DecodeError, ErrorCode, LoraIncompatibleError, UnsupportedError

CASES = [([5, 6, 7], [8, 9], {}), ([10, 11], [12, 13], {"a": 1.0}), ([20, 21, 22], [23, 24], {"a": 0.5, "b": 1.0})]


def cases():
    return [Case(prompt, said, lora) for prompt, said, lora in CASES]


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch):
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "")


@pytest.mark.parametrize("layers", [99, -1, "auto"])
def test_without_a_gpu_everything_is_as_before(tiny_model, tiny_adapter_a, tiny_adapter_b, layers, monkeypatch):
    """The CPU computes, and mixes: bit by bit what it does without the option."""
    rows = []
    for options in ({}, {"n_gpu_layers": layers}):
        engine, llm = opened(tiny_model, [tiny_adapter_a, tiny_adapter_b], **options)
        with engine, llm:
            found = cases()
            run_forced(engine, monkeypatch, found)
            stats = engine.stats()
            if "Vulkan" in stats.placement:
                pytest.skip("another test has loaded a driver that plays a GPU into this process")
            rows.append(np.concatenate([case.rows for case in found]))
            assert stats.kernel in ("compiled", "python")
            assert stats.mixed_steps
            assert not stats.fallback_steps
            assert "CPU computes every layer" in stats.placement
    assert np.array_equal(*rows)


def test_swapped_masks_are_seen(tiny_model, tiny_adapter_a, tiny_adapter_b, monkeypatch):
    """Rows with each other's masks have other logits; without the swap they are those of each alone."""
    engine, llm = opened(tiny_model, [tiny_adapter_a, tiny_adapter_b], kernel="device")
    with engine, llm:
        found = cases()
        run_forced(engine, monkeypatch, found)
        plain = np.concatenate([case.rows for case in found])
        whole = DeviceLoraHook._factors_of
        monkeypatch.setattr(DeviceLoraHook, "_factors_of", lambda self, table: whole(self, table)[:, ::-1].copy())
        run_forced(engine, monkeypatch, found)
        assert np.abs(np.concatenate([case.rows for case in found]) - plain).max() > 0.1


def test_ranks_that_differ_by_target(tiny_model, tmp_path, monkeypatch):
    """Strengths then differ too: each level of them has masks of its own, also in a graph that is used again."""
    names = ("blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.1.ffn_up.weight")
    for i in range(2):
        ranks = {name: 2 + i + place for place, name in enumerate(names)}
        make_adapter(tmp_path / f"r{i}.gguf", tiny_model, seed=i, rank=ranks, tensors=names, strength=0.5)
    paths = sorted(tmp_path.glob("*.gguf"))
    engine, llm = opened(tiny_model, paths, kernel="device")
    with engine, llm:
        for lora in ({"r0": 1.0}, {"r1": 1.0}, {"r0": 0.5, "r1": 0.5}):
            found = [Case([5, 6, 7], [8, 9], lora), Case([5, 6], [8, 9])]
            run_forced(engine, monkeypatch, found)
            check(found, [alone(llm, case) for case in found])


def test_stacks_of_experts_are_not_mixed(tiny_dir, tmp_path, monkeypatch):
    """They are computed in groups, and the reason is told."""
    base = tiny_dir / "tiny-moe.gguf"
    make_adapter(tmp_path / "experts.gguf", base, seed=3, rank=2)
    engine, llm = opened(base, [tmp_path / "experts.gguf"], kernel="device")
    with engine, llm:
        found = [Case([5, 6, 7], [8, 9], {"experts": 1.0}), Case([10, 11], [12, 13])]
        run_forced(engine, monkeypatch, found)
        for case in found:
            llm._session.cache.clear()
            wanted = llm.next_logits(case.prompt, case.said, lora=case.lora)
            assert np.abs(np.array(case.rows) - wanted).max() < 1e-3
        assert any("it is a stack of experts" in reason for reason in engine.stats().fallback_reasons), engine.stats()


@pytest.mark.parametrize("is_other", [False, True])
def test_known_graphs(tiny_model, tiny_adapter_a, tiny_adapter_b, is_other, monkeypatch):
    """A new graph of as many rows is rewritten as one before it; where it turns out to be another, its rows are not lost."""
    played, plain = [], KnownGraphs.play

    def play(self, node):
        played.append(node)
        if is_other and len(played) == 9:
            message = "not what it was"
            raise ValueError(message)
        return plain(self, node)

    monkeypatch.setattr(KnownGraphs, "play", play)
    engine, llm = opened(tiny_model, [tiny_adapter_a, tiny_adapter_b], kernel="device")
    with engine, llm:
        for turn in range(3):
            found = [Case([5 + turn, 6, 7], [8] * (2 + 2 * i), lora) for i, (_, _, lora) in enumerate(CASES)]
            run_forced(engine, monkeypatch, found)
            check(found, [alone(llm, case) for case in found])
        assert len(played) > 100
        assert engine.stats().failed_steps == is_other


def test_known_graphs_while_memory_grows(tiny_model, tiny_adapter_a, tiny_adapter_b, monkeypatch):
    """As many rows over more cells need other memory for what lies between: results are not written where they once lay.

    libllama of late plans that memory once, for the most cells; that of 2025 plans it anew.
    """
    played, plain = [], KnownGraphs.play
    monkeypatch.setattr(KnownGraphs, "play", lambda self, node: played.append(node) or plain(self, node))
    engine, llm = opened(tiny_model, [tiny_adapter_a, tiny_adapter_b], kernel="device")
    with engine, llm:
        said = [5 + i % 90 for i in range(40)]
        for length in (20, 240, 60, 460):
            found = [Case([3 + i % 70 for i in range(length)], said, {"a": 1.0}), Case([9, 8, 7], said, {"b": 0.5})]
            run_forced(engine, monkeypatch, found)
            check(found, [alone(llm, case) for case in found])
        assert len(played) > 100
        assert not engine.stats().failed_steps


def test_a_known_graph_keeps_the_memory_that_it_has(tiny_model):
    """Of an operation whose results stay where they are, all is as in the graph before but where that is."""
    with Llamafu(tiny_model, **STRICT) as llm:
        library = llm._session.instance.library
    nodes = NodeMemory(library)
    graphs = KnownGraphs(nodes)
    moved, stays = (library.ffi.new("struct ggml_tensor *") for _ in range(2))
    addresses = [int(library.ffi.cast("intptr_t", node)) for node in (moved, stays)]

    def fill(data):
        for node in (moved, stays):
            node.op, node.data = library.operations["SCALE"], library.ffi.cast("void *", data)

    fill(0x1000)
    assert graphs.start("rows", addresses[0], record=True) is None
    for node, is_moved in zip(addresses, (True, False), strict=True):
        before = nodes.until_data(node)
        if is_moved:
            nodes.write(node, library.operations["MUL"], (1, 1, 1, 1), 0, 0x5000)
        else:
            nodes.write_product(node, 0x10, 0x20)
        graphs.record(node, before, is_moved=is_moved)
    graphs.keep("rows", "kept")
    for node in (moved, stays):
        library.ffi.buffer(node)[:] = bytes(library.ffi.sizeof(node[0]))
    fill(0x2000)
    assert graphs.start("rows", addresses[0], record=True) == "kept"
    assert [graphs.play(node) for node in addresses] == [False, True]
    assert [int(library.ffi.cast("intptr_t", node.data)) for node in (moved, stays)] == [0x5000, 0x2000]
    assert [node.op for node in (moved, stays)] == [library.operations["MUL"], library.operations["MUL_MAT"]]


@pytest.mark.parametrize(("step", "rows"), [("_play", 1), ("_rewrite_second", 3)])
def test_a_graph_rewritten_in_part_is_not_used_again(tiny_model, tiny_adapter_a, step, rows, monkeypatch):
    """The graph of a failed decode, of one token or of a prompt, is what libllama would compute the next as many rows with."""
    plain, left = getattr(DeviceLoraHook, step), []

    def failing(self, *arguments):
        if left:
            left.pop()
            if not left:
                message = "not what it was"
                raise ValueError(message)
        return plain(self, *arguments)

    monkeypatch.setattr(DeviceLoraHook, step, failing)
    engine, llm = opened(tiny_model, [tiny_adapter_a], kernel="device", max_sequences=1)

    def run(*prompt):
        case = Case([*prompt], [8] * 5, {"a": 1.0})
        run_forced(engine, monkeypatch, [case])
        check([case], [alone(llm, case)])

    with engine, llm:
        run(5, 6, 7)
        run(6, 6, 7)
        left.extend(range(8))
        with pytest.raises(DecodeError, match="not what it was"):
            run(7, 6, 7)
        assert not left
        run(*range(8, 8 + rows))
        assert engine.stats().failed_steps == 1


@pytest.mark.parametrize("kernel", ["compiled", "python", "device", "none"])
def test_nothing_is_written_over_vectors(tiny_model, tmp_path, kernel):
    """An adapter of the output matrix comes after them; where a build does not keep them for it, that is refused."""
    for name, tensors in (("head", ("blk.0.attn_q.weight", "output.weight")), ("body", ("blk.0.attn_q.weight",))):
        make_adapter(tmp_path / f"{name}.gguf", tiny_model, seed=2, rank=3, tensors=tensors, strength=0.5)
    engine, llm = opened(tiny_model, sorted(tmp_path.glob("*.gguf")), kernel=kernel)
    texts = [[5 + place for place in range(length)] for length in (*range(1, 13), 30)]
    keeps = llm._session.instance.library.keeps_vectors
    with engine, llm, Llamafu(tiny_model, n_ctx=512, embeddings=True, **STRICT) as plain:
        for name in ("head", "body"):
            plain.load_lora_adapter(tmp_path / f"{name}.gguf")
        for text in texts:
            wanted = plain.embed(text, lora={"body": 1.0})
            assert np.abs(engine.embed(text, lora={"body": 1.0}) - wanted).max() < 1e-5
            for one in (engine, plain):
                if keeps or (one is engine and kernel == "compiled"):
                    assert np.abs(one.embed(text, lora={"head": 1.0}) - wanted).max() < 1e-5
                else:
                    with pytest.raises(UnsupportedError, match=r"changes output.weight, and this libllama, of 2025"):
                        one.embed(text, lora={"head": 1.0})


def test_a_build_that_does_not_keep_vectors(tiny_model, tmp_path, monkeypatch):
    """One error names the tensor; without a bank, and with one whose placeholder has it, vectors are libllama's own."""
    monkeypatch.setattr(Library, "keeps_vectors", property(lambda _: False))
    make_adapter(tmp_path / "head.gguf", tiny_model, seed=2, rank=3, tensors=("output.weight",))
    engine, llm = opened(tiny_model, [tmp_path / "head.gguf"], kernel="device")
    with engine, llm, pytest.raises(UnsupportedError, match=r"changes output.weight, and this libllama, of 2025"):
        engine.embed([5, 6, 7], lora={"head": 1.0})


def test_a_kernel_that_does_not_go_with_the_place(tiny_model, monkeypatch):
    """One error says where layers are computed."""
    from llamafu._native.placement import Placement

    monkeypatch.setattr(Placement, "offloads", property(lambda _: True))
    with pytest.raises(ContextInitError, match="kernel='python' does not go with where layers are computed"):
        Engine(tiny_model, kernel="python", **STRICT)


def test_a_probe_that_fails_is_no_unused_target(tiny_model, tiny_adapter_a, monkeypatch):
    """Only an abort is what the probe wants; another error is raised, and no target is called unused."""
    engine, llm = opened(tiny_model, [])
    with engine, llm:
        prober = Prober(llm._session.instance.model, llm._session.instance.context_options)
        error = DecodeError("the device is lost", code=ErrorCode.DECODE_FAILED)

        def fail(*_):
            raise error

        monkeypatch.setattr("llamafu._native.context.Context.decode", fail)
        with pytest.raises(DecodeError, match="the device is lost"):
            llm.load_lora_adapter(tiny_adapter_a)
        prober.close()


def test_many_unused_targets_make_a_short_message(tiny_model, tiny_adapter_a, monkeypatch):
    """Five names and a count; all are in `problems`."""
    engine, llm = opened(tiny_model, [])
    with engine, llm:
        found = type("Found", (), {"used_targets": frozenset()})
        monkeypatch.setattr(GraphProbe, "find", lambda *_: found)
        with pytest.raises(LoraIncompatibleError, match="and 9 more") as caught:
            llm.load_lora_adapter(tiny_adapter_a)
        assert len(caught.value.problems) == 14
        assert len(str(caught.value)) < 900


def test_names_of_copies():
    """Ggml's copies on another device have the name inside."""
    assert factor_name("blk.1.ffn_down.weight.lora_a") == "blk.1.ffn_down.weight.lora_a"
    assert factor_name("Vulkan0#blk.1.ffn_down.weight.lora_a#0") == "blk.1.ffn_down.weight.lora_a"
