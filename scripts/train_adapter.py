"""Train a LoRA adapter with PEFT on a dequantised GGUF model, on the CPU.

    pip install "llamafu[peft]"
    python scripts/train_adapter.py --base MODEL.gguf --data scripts/adapter_data/pirate.jsonl --out DIR

The data is one {"question": ..., "answer": ...} a line, or {"prompt": ..., "answer": ...} with a prompt as it is. The loss
counts answer tokens only; the last lines of the file are kept out of training and measure it.
`scripts/make_example_gguf.py --base MODEL.gguf DIR` then makes the GGUF.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD_OUT = 8  # lines at the end of the data that are never trained on
SAMPLES = ("What is the capital of France?", "Why is the sky blue?", "Tell me about the moon.")
IGNORED = -100  # torch's cross entropy skips this label


def main() -> None:
    """Train as the command line says, printing the loss, and save a PEFT folder."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    source = {"pretrained_model_name_or_path": args.base.parent, "gguf_file": args.base.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    base = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    examples = [encode(tokenizer, json.loads(line)) for line in args.data.read_text(encoding="utf-8").splitlines()]
    training, held_out = examples[:-HELD_OUT], examples[-HELD_OUT:]
    if len(training) < args.batch:
        message = f"{args.data}: {len(examples)} lines, need at least {HELD_OUT + args.batch} ({HELD_OUT} are held out)"
        raise SystemExit(message)
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=args.targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    before = evaluate(model, held_out)
    print(f"held-out loss before: {before:.3f}")
    train(model, batches(training, args.batch), args.steps, args.lr)
    print(f"held-out loss after: {evaluate(model, held_out):.3f} (before: {before:.3f})")
    for question in SAMPLES:
        print(f"{question}\n    {answer(model, tokenizer, question)}")
    save(model, args.out, args.base)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a LoRA adapter on a dequantised GGUF model.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="GGUF model, read and dequantised by transformers")
    parser.add_argument("--data", type=Path, required=True, help="questions and answers, JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--rank", type=int, default=8, help="rank of every factor pair")
    parser.add_argument("--alpha", type=int, default=16, help="numerator of the strength alpha/rank")
    parser.add_argument(
        "--targets", type=lambda text: text.split(","), default="q_proj,k_proj,v_proj,o_proj", help="adapted projections"
    )
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=4, help="examples a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate, falling linearly to 0")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--seed", type=int, default=0, help="of the factors and of the order of the data")
    return parser.parse_args()


def encode(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Return (token ids, labels) of one exchange; labels are IGNORED outside the answer and its end token."""
    if "prompt" in row:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    else:
        prompt = prompt_ids(tokenizer, row["question"])
    reply = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return prompt + reply, [IGNORED] * len(prompt) + reply


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Return the token ids of the model's chat template around one user message."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def batches(examples: list[tuple[list[int], list[int]]], size: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield batches for ever, in a new random order each time round; a remainder below `size` is left for the next round."""
    while True:
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [examples[index] for index in order[start : start + size]]


def loss_of(model: Any, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the mean loss per answer token; shorter rows are padded on the right, where nothing looks at them."""
    length = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [IGNORED] * (length - len(row)) for _, row in batch])
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def train(model: Any, source: Iterator[list[tuple[list[int], list[int]]]], steps: int, rate: float) -> None:
    """Run `steps` steps of AdamW, printing every tenth."""
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(model, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0 or step in {1, steps}:
            print(f"step {step:4d}/{steps}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s", flush=True)


@torch.no_grad()
def evaluate(model: Any, examples: list[tuple[list[int], list[int]]]) -> float:
    """Return the mean loss over examples that were not trained on."""
    model.eval()
    return loss_of(model, examples).item()


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Return the model's greedy answer, at most 48 tokens."""
    model.eval()
    prompt = torch.tensor([prompt_ids(tokenizer, question)])
    out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=48)
    return tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)


def save(model: Any, out: Path, base: Path) -> None:
    """Write the PEFT folder in F16, naming the base by its file, not by where it lies on this machine."""
    model.peft_config["default"].base_model_name_or_path = base.stem
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    model.save_pretrained(out, save_embedding_layers=False)  # "auto" would ask the hub about the base
    print(f"saved {out}")


if __name__ == "__main__":
    main()
