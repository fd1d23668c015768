"""Record what PEFT on torch answers with the example adapters: `tests/data/peft_answers.json`.

    python scripts/make_peft_answers.py --base MODEL.gguf

The model is the GGUF dequantised to F32 by transformers. Needs torch, transformers, peft and gguf; takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "tests" / "data" / "peft_answers.json"
ADAPTERS = {"base": [], "pirate": ["pirate"], "shout": ["shout"], "pirate+shout": ["pirate", "shout"]}
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Give me one tip for sleeping better.",
    "How do I make a cup of tea?",
    "Tell me about the moon.",
)
MAX_NEW_TOKENS = 48


def main() -> None:
    """Generate every answer and write the file."""
    parser = argparse.ArgumentParser(description="Record the answers of PEFT with the example adapters.")
    parser.add_argument("--base", type=Path, required=True, help="GGUF model, read and dequantised by transformers")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = {"pretrained_model_name_or_path": args.base.parent, "gguf_file": args.base.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    base = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, ROOT / "examples" / "adapters" / "pirate", adapter_name="pirate")
    model.load_adapter(ROOT / "examples" / "adapters" / "shout", "shout")
    model.eval()
    record = {
        "command": "python scripts/make_peft_answers.py --base SmolLM2-135M-Instruct.Q4_1.gguf",
        "base": {"file": args.base.name, "sha256": hashlib.sha256(args.base.read_bytes()).hexdigest()},
        "settings": {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "dtype": "float32", "scale": 1.0, "device": "cpu"},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "gguf")},
        "fields": {
            "prompt_ids": "the chat template around the question as the only user message",
            "token_ids": "greedy, the end token included when it came",
            "margins": "per generated token: its logit less that of the runner-up",
            "text": "token_ids decoded without special tokens",
        },
        "answers": [answer(model, tokenizer, question, name) for question in QUESTIONS for name in ADAPTERS],
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(dumps(record), encoding="utf-8")


@torch.inference_mode()
def answer(model: PeftModel, tokenizer: Any, question: str, name: str) -> dict[str, Any]:
    """Return one greedy answer with its token ids."""
    adapters = ADAPTERS[name]
    if adapters:
        model.base_model.set_adapter(adapters)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with nullcontext() if adapters else model.disable_adapter():
        out = model.generate(
            **prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, output_logits=True, return_dict_in_generate=True
        )
    ids = out.sequences[0, prompt["input_ids"].shape[1] :]
    top = torch.cat(out.logits).topk(2).values
    text = tokenizer.decode(ids, skip_special_tokens=True)
    print(f"{question} [{name}]\n    {text!r}", flush=True)
    return {
        "question": question,
        "adapter": name,
        "text": text,
        "finished": ids[-1].item() == tokenizer.eos_token_id,
        "prompt_ids": prompt["input_ids"][0].tolist(),
        "token_ids": ids.tolist(),
        "margins": [round(gap, 3) for gap in (top[:, 0] - top[:, 1]).tolist()],
    }


def dumps(record: dict[str, Any]) -> str:
    """Format as JSON with one line per list of numbers."""
    lines = json.dumps(record, indent=1, ensure_ascii=False).splitlines()
    text, inside = [], False
    for line in lines:
        if inside:
            text[-1] += line.strip() if line.strip().startswith("]") else line.strip().replace(",", ", ")
            inside = not line.strip().startswith("]")
            if not inside:
                text[-1] = text[-1].replace(", ]", "]")
        else:
            text.append(line)
            inside = line.endswith(('_ids": [', 'margins": ['))
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
