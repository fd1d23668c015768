"""A stack machine for the pickle of a state dict of tensors, which can run no code.

A pickle is a program for a stack machine. This one has the few instructions that a state dict of tensors needs, and works
on plain data. It cannot import, call or set anything: names of functions are compared with known ones, and never looked up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from llamafu.adapters.peft.torch_archive import MEND, STORAGE_CODES, DamagedError, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.adapters.peft.torch_archive import Archive


class _Name(NamedTuple):
    """The name of a class or function in the pickle."""

    module: str
    name: str


class PickleMachine:
    """Runs the pickle of one archive; time and memory are proportional to the file's size. Every error is a DamagedError."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._code = archive.pickle
        self._at = 0
        self._stack: list[object] = []
        self._below: list[list[object]] = []
        """The stacks that were put aside at marks, the outermost first."""
        self._memo: dict[int, object] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> object:
        """Return what the pickle describes; raises DamagedError."""
        while (opcode := self.take(1)) != b".":
            action = _ACTIONS.get(opcode)
            if action is None:
                self._refuse(f"instruction {opcode!r}")
            action(self)
        return self._pop()

    # -- reading the code

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the code."""
        chunk = bytes(self._code[self._at : self._at + count])
        if len(chunk) < count:
            message = f"its pickle breaks off at byte {len(self._code)}: truncated"
            raise DamagedError(message)
        self._at += count
        return chunk

    def number(self, form: str) -> int:
        """Return the next number, in the format `form` of struct."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self, length: int) -> str:
        """Return the next `length` bytes as text."""
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"the text before byte {self._at} of its pickle is no UTF-8"
            raise DamagedError(message) from error

    def line(self) -> str:
        """Return the text up to a line feed, which is consumed too."""
        head = bytes(self._code[self._at : self._at + _LONGEST_LINE])
        end = head.find(b"\n")
        text = self.text(len(head) if end < 0 else end)
        self.take(1)
        return text

    # -- what instructions do

    def step_over(self, count: int) -> None:
        """Ignore `count` bytes."""
        self.take(count)

    def push(self, value: object) -> None:
        """Put `value` on the stack."""
        self._stack.append(value)

    def mark(self) -> None:
        """Put the stack aside and begin another one."""
        self._below.append(self._stack)
        self._stack = []

    def tuple_of_marked(self) -> None:
        """Push a tuple of the items since the mark."""
        self.push(tuple(self._items()))

    def tuple_of(self, count: int) -> None:
        """Replace the last `count` items by a tuple of them."""
        items = [self._pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def fill_marked(self) -> None:
        """Put the items since the mark into the dictionary before it, as alternating keys and values."""
        items = self._items()
        if len(items) % 2:
            self._refuse("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def fill(self) -> None:
        """Put the last two items, a key and a value, into the dictionary before them."""
        value, key = self._pop(), self._pop()
        self._set(key, value)

    def remember(self, slot: int) -> None:
        """Store the top of the stack in the memo at `slot`."""
        value = self._pop()
        self._memo[slot] = value
        self.push(value)

    def remember_next(self) -> None:
        """Store the top of the stack in the memo at the next slot."""
        self.remember(len(self._memo))

    def recall(self, slot: int) -> None:
        """Push the value in the memo at `slot`."""
        if slot not in self._memo:
            self._refuse(f"a reference to the value {slot}, which is not there")
        self.push(self._memo[slot])

    def name(self) -> None:
        """Push a name that is spelled out in the code."""
        self._push_name(self.line(), self.line())

    def name_from_stack(self) -> None:
        """Replace two texts on the stack by the name that they make."""
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def storage(self) -> None:
        """Replace the description of a storage by the storage."""
        match self._pop():
            case ("storage", _Name("torch", kind), str() as key, str(), int() as size) if kind in STORAGE_CODES:
                self.push(self._storage(key, kind, size))
            case ("storage", _Name(_, kind), str() as key, *_):
                message = f"storage {key[:80]!r} is a {kind}; it must be one of {', '.join(STORAGE_CODES)}; {MEND}"
                raise DamagedError(message)
            case other:
                self._refuse(f"a storage described as {described(other)}")

    def call(self) -> None:
        """Compute the result of one of the three functions that a state dict names; no function is called."""
        arguments, function = self._pop(), self._pop()
        match function, arguments:
            case _Name("collections", "OrderedDict"), ():
                self.push({})
            case _Name("torch._utils", "_rebuild_parameter"), (np.ndarray() as tensor, _, _):
                self.push(tensor)
            case (
                _Name("torch._utils", "_rebuild_tensor_v2"),
                (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), *_),
            ):
                self.push(storage.cut(offset, shape, strides))
            case _:
                self._refuse(f"a call of {described(function)} with {described(arguments)}")

    def build(self) -> None:
        """Ignore the attributes of a dictionary, which are a state dict's version numbers."""
        state, target = self._pop(), self._pop()
        if not isinstance(target, dict) or not isinstance(state, dict) or not set(state) <= {"_metadata"}:
            self._refuse(f"attributes set on {described(target)}")
        self.push(target)

    # -- helpers

    def _pop(self) -> object:
        if not self._stack:
            self._refuse("something taken from an empty stack")
        return self._stack.pop()

    def _items(self) -> list[object]:
        if not self._below:
            self._refuse("an end without a beginning")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _set(self, key: object, value: object) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, dict) or not isinstance(key, str):
            self._refuse(f"an entry {described(key)} of {described(target)}")
        if key in target:
            message = f"entry {key!r} is given twice"
            raise DamagedError(message)
        target[key] = value

    def _push_name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self._refuse(f"a name made of {described(module)} and {described(name)}")
        is_storage = module == "torch" and name.endswith("Storage")  # of whatever type: an error can name it later
        if not is_storage and (module, name) not in _NAMES:
            message = f"its pickle wants {f'{module}.{name}'[:120]!r}; weights have no use for that, and nothing was executed"
            raise DamagedError(message)
        self.push(_Name(module, name))

    def _storage(self, key: str, kind: str, size: int) -> Storage:
        storage = self._storages.get(key)
        if storage is None:
            storage = self._storages[key] = self._archive.storage(key, kind, size)
        if storage.kind != kind or storage.values.size != size:
            message = f"storage {key[:80]!r} is described in two ways"
            raise DamagedError(message)
        return storage

    def _refuse(self, what: str) -> NoReturn:
        message = f"its pickle has {what} at byte {self._at}, which no weights need: nothing was executed; {MEND}"
        raise DamagedError(message)


def described(value: object) -> str:
    """Return a short description of a value of the machine, which may be long and deeply nested."""
    if isinstance(value, _Name):
        return f"{value.module}.{value.name}"
    if isinstance(value, np.ndarray | Storage | dict):
        return {np.ndarray: "a tensor", Storage: "a storage", dict: "a dictionary"}[type(value)]
    if isinstance(value, tuple):
        shown = ", ".join("..." if isinstance(item, tuple) else described(item) for item in value[:_SHOWN])
        return f"({shown}{', ...' if len(value) > _SHOWN else ''})"
    return repr(value)[:80]


_LONGEST_LINE = 1000  # bytes, of a name
_SHOWN = 8  # items of a tuple, in a message
_NAMES = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")}
"""The names that are legal, in addition to those of storages."""
_ACTIONS: dict[bytes, Callable[[PickleMachine], None]] = {
    b"\x80": lambda machine: machine.step_over(1),  # the protocol: what matters is which instructions follow
    b"\x95": lambda machine: machine.step_over(8),  # a frame's length, which only helps reading ahead
    b"}": lambda machine: machine.push({}),
    b")": lambda machine: machine.push(()),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(value=True),
    b"\x89": lambda machine: machine.push(value=False),
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"\x8a": lambda machine: machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)),
    b"X": lambda machine: machine.push(machine.text(machine.number("<I"))),
    b"\x8c": lambda machine: machine.push(machine.text(machine.number("<B"))),
    b"(": PickleMachine.mark,
    b"t": PickleMachine.tuple_of_marked,
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"u": PickleMachine.fill_marked,
    b"s": PickleMachine.fill,
    b"q": lambda machine: machine.remember(machine.number("<B")),
    b"r": lambda machine: machine.remember(machine.number("<I")),
    b"\x94": PickleMachine.remember_next,
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
    b"c": PickleMachine.name,
    b"\x93": PickleMachine.name_from_stack,
    b"Q": PickleMachine.storage,
    b"R": PickleMachine.call,
    b"b": PickleMachine.build,
}
"""The instructions of protocols 2 to 5 that torch writes for tensors and dictionaries, and no other."""
