"""Unload whatever is active: requests that name no adapter run on the base model again."""

import os
import sys

from llamafu.client import TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")

with TabbyClient(URL, admin_key=ADMIN_KEY) as client:
    before = client.lora.get_active()
    if not before.data:
        print("No LoRA adapters are currently active")
        sys.exit()
    print(f"Currently active LoRA adapters ({len(before.data)}):")
    for number, lora in enumerate(before.data, 1):
        print(f"{number}. {lora.id}")

    print("Unloading all LoRA adapters...")
    client.lora.unload()
    print("Successfully unloaded all LoRA adapters")

    after = client.lora.get_active()
    if not after.data:
        print("Confirmed: No LoRA adapters are active")
    else:
        print(f"Warning: {len(after.data)} LoRA adapters are still active")
