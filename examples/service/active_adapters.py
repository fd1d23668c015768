"""Say which adapters act when a request names none."""

import os

from llamafu.client import TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")

with TabbyClient(URL, admin_key=ADMIN_KEY) as client:
    active = client.lora.get_active()

if not active.data:
    print("No LoRA adapters are currently active")
else:
    print(f"Currently active LoRA adapters ({len(active.data)}):")
    for number, lora in enumerate(active.data, 1):
        print(f"{number}. {lora.id} (scaling: {lora.scaling:.2f})")
