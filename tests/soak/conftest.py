"""How long the soak takes: `make soak ARGS='--seconds 60'`."""


def pytest_addoption(parser):
    parser.addoption("--seconds", type=float, default=300.0, help="seconds of each soak on the tiny model (%(default)s)")
