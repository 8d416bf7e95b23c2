"""A pickle machine that knows only the opcodes that weights need, and builds nothing but data.

pickle.Unpickler with its own find_class still calls, sets attributes and allocates as the file requests. Here
a global name is a token. Calling it runs the function that the reader admits for this name, which checks its
arguments. The file can choose no other object, and no attribute is set. A name that is not admitted, and all
that is made from it, is a token without content, so that a checkpoint may hold other things beside its
tensors. Bytes are not copied: they are slices of the mapped file.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppcls.weights.readers.entries import Refused

# A published state dict takes under 100,000. A file of nothing but opcodes would fill the memory.
_MAX_OPCODES = 2_000_000
# Protocol 2 writes the bytes of an array as text. As a str they would stay in the memo until the end.
_LONG_TEXT = 4096
_MAX_LONG = 16

Admitted = Mapping[tuple[str, str], Callable[[tuple], Any] | None]


@dataclass(frozen=True, eq=False)
class Name:
    """A global name in a pickle. call: None if the name may only be an argument of another call. is_admitted:
    whether the reader knows the name."""

    module: str
    name: str
    call: Callable[[tuple], Any] | None
    is_admitted: bool = True

    @property
    def what(self) -> str:
        return f"{self.module[:80]}.{self.name[:80]}"


@dataclass(frozen=True, eq=False)
class LongText:
    """Text of more than _LONG_TEXT bytes, not decoded."""

    utf8: memoryview


class Buildable:
    """A value that takes a pickled state (opcode BUILD)."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


class Opaque(Buildable):
    """Stands for an object that the weights do not need. what: its class or kind, for messages. It ignores
    its state and its items."""

    def __init__(self, what: str) -> None:
        self.what = what

    def build(self, state: Any) -> None:
        pass


class Namespace(Opaque):
    """The attributes of an argparse.Namespace, in which training scripts save their options."""

    def __init__(self, arguments: tuple) -> None:
        super().__init__("argparse.Namespace")
        self.attributes: dict = {}

    def build(self, state: Any) -> None:
        if type(state) is dict:
            self.attributes = state


def ordered_dict(arguments: tuple) -> dict:
    """Stand in for collections.OrderedDict: empty, or made from one list of pairs as Python 2 writes it."""
    result: dict = {}
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise Refused("an OrderedDict is made from something that is not pairs")
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise Refused("an OrderedDict is made from something that is not pairs")
        _set_item(result, *pair)
    return result


def default_dict(arguments: tuple) -> dict:
    """Stand in for collections.defaultdict(factory)."""
    return {}


def load(
    data: memoryview, start: int, admitted: Admitted, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """Return the object of the pickle that begins at `start`, and the position of its end. Raises Refused."""
    machine = _Machine(data, start, admitted, persistent)
    return machine.run(), machine.position


def _set_item(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise Refused("it sets an item of something that is not a dictionary")
    # No tuples: a few bytes can make one whose hash takes forever. And no weights have such keys.
    if key is not None and type(key) not in (str, int, float, bool):
        return
    if key in target:
        raise Refused("a dictionary has the same key twice")
    target[key] = value


class _Machine:
    """The stack machine of a pickle, with one method for each opcode that needs more than an expression."""

    def __init__(
        self, data: memoryview, start: int, admitted: Admitted, persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data = data
        self.position = start
        self.admitted = admitted
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_OPCODES):
            if self.position >= len(self.data):
                raise Refused("it is cut off")
            code = self.data[self.position]
            self.position += 1
            if code == _STOP:
                result = self.pop()
                if self.stack or self.marks:
                    raise Refused("the pickle leaves values behind")
                return result
            action = _ACTIONS.get(code)
            if action is None:
                raise Refused(
                    f"the pickle has {bytes([code])!r} at byte {self.position - 1}, which weights do not need"
                )
            action(self)
        raise Refused(f"the pickle has more than {_MAX_OPCODES:,} operations")

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise Refused(f"it is cut off: {end - len(self.data)} bytes or more are missing")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refused("the pickle takes a value that does not exist")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("the pickle takes a value that does not exist")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def proto(self) -> None:
        version = self.number("<B")
        if version not in (2, 3, 4):
            raise Refused(f"the pickle has protocol {version}; expected: 2 to 4", "Save it with protocol 4.")

    def frame(self) -> None:
        self.number("<Q")

    def long(self) -> None:
        size = self.number("<B")
        data = self.take(size)
        short = size <= _MAX_LONG
        self.push(
            int.from_bytes(data, "little", signed=True) if short else Opaque(f"an integer of {size} bytes")
        )

    def text(self, form: str) -> None:
        utf8 = self.take(self.number(form))
        if len(utf8) > _LONG_TEXT:
            self.push(LongText(utf8))
            return
        try:
            self.push(str(utf8, "utf-8"))
        except UnicodeDecodeError as error:
            raise Refused("a text is not valid UTF-8") from error

    def string_of_python_2(self, form: str) -> None:
        raw = self.take(self.number(form))
        self.push(raw if len(raw) > _LONG_TEXT else str(raw, "latin1"))

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, form: str) -> None:
        index = self.number(form)
        if index not in self.memo:
            raise Refused("the pickle takes a value that does not exist")
        self.push(self.memo[index])

    def line(self) -> str:
        head = bytes(self.data[self.position : self.position + 256])
        end = head.find(b"\n")
        if end < 0:
            raise Refused("it is cut off within a name, or has a name that is too long")
        self.take(end + 1)
        return str(head[:end], "latin1")

    def push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("the pickle refers to an object without a name")
        self.push(Name(module, name, self.admitted.get((module, name)), (module, name) in self.admitted))

    def global_name(self) -> None:
        module = self.line()
        self.push_name(module, self.line())

    def stack_global(self) -> None:
        name = self.pop()
        self.push_name(self.pop(), name)

    def call(self, new: bool) -> None:
        arguments, target = self.pop(), self.pop()
        if isinstance(target, Opaque) or (type(target) is Name and not target.is_admitted):
            self.push(Opaque(target.what))  # nothing is called, and the arguments are dropped
            return
        if type(target) is not Name or target.call is None or type(arguments) is not tuple:
            raise Refused("the pickle calls something that weights do not call")
        # Of the admitted names only this class may be called through __new__.
        if new and target.call is not Namespace:
            raise Refused(f"the pickle makes a new object of {target.what}")
        self.push(target.call(arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Buildable):
            target.build(state)
        elif type(target) is not dict or type(state) is not dict:
            raise Refused("the pickle sets the state of a value that has no state")
        # Otherwise these are attributes of an OrderedDict, such as torch's _metadata: they are ignored.

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Opaque):
            return
        if type(target) is not list:
            raise Refused("the pickle appends to something that is not a list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise Refused("a dictionary has a key without a value")
        if isinstance(target, Opaque):
            return
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set_item(target, key, value)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def frozen_set(self) -> None:
        self.pop_mark()
        self.push(Opaque("a set"))

    def persistent_id(self) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise Refused("the pickle refers to something outside the file")
        self.push(self.persistent(identity))


_STOP = ord(".")
_BY_CHARACTER: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.proto,
    b"\x95": _Machine.frame,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": _Machine.long,
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.text("<I"),
    b"\x8c": lambda m: m.text("<B"),
    b"\x8d": lambda m: m.text("<Q"),
    b"T": lambda m: m.string_of_python_2("<I"),
    b"U": lambda m: m.string_of_python_2("<B"),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_mark()),
    b"}": lambda m: m.push({}),
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x8f": lambda m: m.push(Opaque("a set")),
    b"\x90": lambda m: m.append(m.pop_mark()),
    b"\x91": _Machine.frozen_set,
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.get("<B"),
    b"j": lambda m: m.get("<I"),
    b"c": _Machine.global_name,
    b"\x93": _Machine.stack_global,
    b"R": lambda m: m.call(new=False),
    b"\x81": lambda m: m.call(new=True),
    b"b": _Machine.build,
    b"Q": _Machine.persistent_id,
}
_ACTIONS = {ord(code): action for code, action in _BY_CHARACTER.items()}
