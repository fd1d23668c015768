"""What routers in front of a server read of its adapters, of a real engine."""

import re
import time

import pytest

from llamafu.engine import Engine, Request
from llamafu.server.http.adapter_metrics import adapter_metrics
from llamafu.server.http.metrics import Metrics


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapter_a, tiny_adapter_b):
    with Engine(tiny_model, n_ctx=512, n_threads=1, bank_rank=6, max_sequences=1) as engine:
        engine.add_adapter(tiny_adapter_a)  # of rank 4
        engine.add_adapter(tiny_adapter_b)  # of rank 2
        yield engine


def told(engine):
    return adapter_metrics(engine.stats(), engine)


def test_loaded_adapters_with_rank_and_level(engine):
    assert 'llamafu_adapter_loaded{adapter="a",rank="4",level="disk",pinned="false"} 1' in told(engine)
    assert "llamafu_bank_free_units 6" in told(engine).splitlines()
    engine.complete("x", max_tokens=1, lora={"a": 1.0})
    engine.pin_adapter("b")
    text = told(engine)
    assert 'llamafu_adapter_loaded{adapter="a",rank="4",level="bank",pinned="false"} 1' in text
    assert 'llamafu_adapter_loaded{adapter="b",rank="2",level="bank",pinned="true"} 1' in text
    assert "llamafu_bank_free_units 0" in text.splitlines()


def test_running_and_waiting_by_the_names_of_vllm(engine):
    handles = [engine.submit(Request(prompt=name, lora={name: 1.0}, max_tokens=400, ignore_eos=True)) for name in ("a", "b")]
    began = time.monotonic()
    while not all((engine.adapter_use().running, engine.adapter_use().waiting)) and time.monotonic() < began + 20:
        time.sleep(0.005)
    text = told(engine)
    for handle in handles:
        handle.cancel()
        handle.result()
    info, value = re.search(r"^vllm:lora_requests_info\{(.*)\} (\S+)$", text, re.MULTILINE).groups()
    orders = (("a", "b"), ("b", "a"))  # who was served longer ago, in the tests before, is first
    assert info in {f'max_lora="1",running_lora_adapters="{one}",waiting_lora_adapters="{other}"' for one, other in orders}
    assert abs(float(value) - time.time()) < 60
    assert "vllm:num_requests_running 1" in text.splitlines()
    assert "vllm:num_requests_waiting 1" in text.splitlines()
    assert 'running_lora_adapters="",waiting_lora_adapters=""' in told(engine)


def test_counters_and_histograms_are_such(engine):
    engine.complete("once more", max_tokens=5, lora={}, ignore_eos=True)
    stats = engine.stats()
    lines = Metrics().text(stats).splitlines()
    assert "# TYPE llamafu_engine_page_ins counter" in lines
    assert "# TYPE llamafu_engine_running gauge" in lines
    for name, counts in (("ttft", stats.ttft_histogram), ("itl", stats.itl_histogram), ("page_in", stats.page_in_histogram)):
        table = [line for line in lines if line.startswith(f"llamafu_engine_{name}_seconds")]
        assert f"# TYPE llamafu_engine_{name}_seconds histogram" in lines
        buckets = [int(line.split()[1]) for line in table if "_bucket" in line]
        assert buckets == sorted(buckets)
        assert len(buckets) == 16
        assert buckets[-1] == counts.count > 0
        assert f"llamafu_engine_{name}_seconds_count {counts.count}" in table
        assert float(next(line for line in table if "_sum" in line).split()[1]) == pytest.approx(counts.total)
    assert stats.page_in_histogram.count == stats.page_ins
