"""Which tokens a step computes: prompts beside answers, long ones beside short ones, in whole blocks."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafu.engine.batching import pack
from llamafu.engine.prompt_budget import PromptBudget
from llamafu.generation.media.prompt import MediaSpan
from llamafu.generation.media.prompt_layout import PromptLayout
from llamafu.generation.prompt import PREFIX_BLOCK


@dataclass
class Sequence:
    """As much of a running sequence as packing reads."""

    length: int
    computed: int = 0
    is_decoding: bool = False
    guessed: int = 0
    needs_prompt_logits: bool = False
    layout: PromptLayout = field(default_factory=PromptLayout)
    tokens: list = field(init=False)

    def __post_init__(self):
        self.tokens = [0] * self.length

    def guess(self, most):
        return tuple(range(min(most, self.guessed)))


def decoding():
    return Sequence(100, 99, is_decoding=True)


def packed(running, most, beside, logits=10**6):
    return [(running.index(part.sequence), part.start, part.count) for part in pack(running, most, beside, logits)]


def scored(length, computed=0):
    return Sequence(length, computed, needs_prompt_logits=True)


class Rows:
    """Rows of one medium."""

    def __init__(self, count, *, causal, n_pos=None):
        self.count, self.causal, self.n_pos = count, causal, count if n_pos is None else n_pos

    def __len__(self):
        return self.count


def test_parts_are_of_tokens_or_of_one_medium():
    """Rows that see each other are computed at once, beside answers too; others in blocks, as tokens."""
    layout = PromptLayout([MediaSpan(10, Rows(100, causal=False)), MediaSpan(130, Rows(100, causal=True))])
    seen = [(0, 10), (10, 100), (110, 18), (128, 2), (130, 62), (192, 38), (230, 26), (256, 44)]
    sequence = Sequence(300, layout=layout)
    for start, count in seen:
        assert packed([decoding(), sequence], 512, 64) == [(0, 99, 1), (1, start, count)]
        sequence.computed += count
    assert sequence.computed == 300


def test_positions_and_blocks_of_media():
    """An image may take fewer positions than rows; it is one block, within which the memory is not cut."""
    layout = PromptLayout([MediaSpan(70, Rows(100, causal=True, n_pos=10))])
    assert [layout.position(index) for index in (0, 69, 70, 99, 170, 200)] == [0, 69, 70, 70, 80, 110]
    assert [layout.block_end(start) for start in (0, 64, 70, 170, 192)] == [64, 70, 170, 192, 256]
    assert [layout.cut_position(index) for index in (69, 70, 71, 169, 170)] == [69, 70, None, None, 80]


def test_prompts_whose_logits_come_out_share_a_bound():
    """Each has a row in libllama's buffer of logits: with others beside them they advance no faster."""
    assert packed([scored(1000)], 512, 64, 128) == [(0, 0, 128)]
    assert packed([scored(100)], 512, 64, 64) == [(0, 0, 64)]
    assert packed([scored(1000), scored(50), Sequence(200)], 512, 64, 128) == [(0, 0, 128), (2, 0, 192)]
    assert packed([Sequence(1000), scored(50), scored(70)], 512, 64, 64) == [(0, 0, 448), (1, 0, 50)]
    assert packed([decoding(), scored(1000)], 512, 256, 64) == [(0, 99, 1), (1, 0, 64)]


def test_a_long_prompt_alone_takes_all_whole_blocks():
    assert packed([Sequence(1000)], 512, 64) == [(0, 0, 512)]


def test_the_last_block_comes_by_itself():
    assert packed([Sequence(200)], 512, 64) == [(0, 0, 192)]
    assert packed([Sequence(200, 192)], 512, 64) == [(0, 192, 8)]
    assert packed([Sequence(192)], 512, 64) == [(0, 0, 128)]


def test_prompts_beside_answers_get_the_budget():
    assert packed([decoding(), Sequence(1000)], 512, 128) == [(0, 99, 1), (1, 0, 128)]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    running = [Sequence(2000, 640), decoding(), Sequence(900), Sequence(50)]
    assert packed(running, 512, 256) == [(1, 99, 1), (0, 640, 128), (3, 0, 50), (2, 0, 64)]


def test_the_first_prompt_advances_beside_short_ones():
    running = [Sequence(2000), *[Sequence(40) for _ in range(20)]]
    assert (0, 0, 256) in packed(running, 512, 64)


def test_what_the_others_leave_is_the_first_ones():
    assert packed([decoding(), Sequence(2000), Sequence(50)], 512, 256) == [(0, 99, 1), (1, 0, 192), (2, 0, 50)]


def test_where_no_block_fits_a_shorter_part_is_computed():
    assert packed([*[decoding() for _ in range(40)], Sequence(300)], 64, 256)[-1] == (40, 0, 24)


@given(
    st.lists(st.tuples(st.integers(1, 700), st.booleans()), min_size=1, max_size=20), st.integers(64, 600), st.integers(1, 9)
)
def test_packing_ends_and_keeps_to_its_bounds(drawn, most, blocks):
    running = [Sequence(length, length - 1 if answers else 0, is_decoding=answers) for length, answers in drawn]
    while prompts := [each for each in running if not each.is_decoding]:
        parts = pack(running, most, blocks * PREFIX_BLOCK, most)
        answers = sum(each.is_decoding for each in running)
        count = sum(part.count for part in parts) - answers
        assert 0 < count <= (min(most - answers, blocks * PREFIX_BLOCK) if answers else most)
        assert len({id(part.sequence) for part in parts}) == len(parts)
        for part in parts:
            if part.sequence.is_decoding:
                assert part.count == 1
                continue
            assert part.start == part.sequence.computed
            if most - answers >= PREFIX_BLOCK:
                assert part.end % PREFIX_BLOCK == 0 or part.end == part.sequence.length
            part.sequence.computed = part.end
        assert any(part.sequence is prompts[0] for part in parts)
        running = [each for each in running if each.is_decoding or each.computed < each.length]


def test_a_budget_follows_the_time_between_tokens():
    budget = PromptBudget(0.25)
    assert budget.tokens == 64
    for _ in range(30):
        budget.record(0.05, 0, beside=True)
        budget.record(0.05 + budget.tokens * 0.0005, budget.tokens, beside=True)
    assert budget.tokens == 384  # 400 would fit
    for _ in range(30):
        budget.record(0.05 + budget.tokens * 0.002, budget.tokens, beside=True)
    assert budget.tokens == 64


def test_a_budget_is_found_where_no_step_is_without_prompts():
    budget = PromptBudget(0.25)
    for _ in range(30):
        budget.record(0.05 + budget.tokens * 0.001, budget.tokens, beside=True)
    assert budget.tokens in {128, 192}


@pytest.mark.parametrize("seconds", [10.0, 1e-9])
@pytest.mark.parametrize("tokens", [1, 64])
def test_one_slow_or_quick_step_changes_little(seconds, tokens):
    budget = PromptBudget(0.25)
    for _ in range(30):
        budget.record(0.0005 * 64, 64, beside=False)
    before = budget.tokens
    budget.record(seconds, tokens, beside=False)
    assert 0.5 < budget.tokens / before < 1.3


def test_guesses_come_where_there_is_room():
    running = [Sequence(100, 99, is_decoding=True, guessed=8) for _ in range(8)]
    parts = pack([*running, Sequence(1000)], 64, 128, 64)
    assert sum(part.rows for part in parts) == 64
    assert [len(part.draft) for part in parts] == [*[8] * 7, 0]
