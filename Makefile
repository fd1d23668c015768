# Every target sets up .venv by itself; `make help` lists them. The same words work without make: python scripts/dev.py test
PYTHON ?= python3

.PHONY: help demo test test-peers test-vulkan device-check soak fuzz lint bench matrix matrix-arm64 matrix-windows clean
help demo test test-peers test-vulkan device-check soak fuzz lint bench matrix matrix-arm64 matrix-windows clean:
	@$(PYTHON) scripts/dev.py $@ $(ARGS)
.DEFAULT_GOAL := help
