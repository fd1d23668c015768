"""Load an adapter, generate with it, and leave everything as it was."""

import os

from llamafu.client import LoraLoadInfo, LoraLoadRequest, TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")
MESSAGES = [{"role": "user", "content": "What is the capital of Germany?"}]

with TabbyClient(URL, admin_key=ADMIN_KEY) as client:
    print("Loading LoRA adapter...")
    with client.lora.using(LoraLoadRequest((LoraLoadInfo("pirate", scaling=0.8),))) as loaded:
        print(f"Successfully loaded LoRA adapter: {loaded.success[0]}")
        print("Generating text with LoRA-adapted model...")
        answer = client.chat.create(MESSAGES, max_tokens=100, temperature=0, timeout=120)
        print(f"\nGenerated text with LoRA-adapted model:\n{answer.text}\n")
    print("LoRA adapter unloaded, and what was active before is active again")
