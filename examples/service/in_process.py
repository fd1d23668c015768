"""The same service without a server: an engine in this process."""

import sys

from llamafu import Engine
from llamafu.service import LocalLoraService, LoraLoadRequest

model, adapters = sys.argv[1:]

with Engine(model, adapters_dir=adapters) as engine:
    service = LocalLoraService(engine)
    print("available:", ", ".join(card.id for card in service.list().data))
    with service.using(LoraLoadRequest.of({"pirate": 0.8})):
        print("active:", {card.id: card.scaling for card in service.get_active().data})
        print(engine.chat([{"role": "user", "content": "What is the capital of Germany?"}], temperature=0))
    print("active:", {card.id: card.scaling for card in service.get_active().data})
