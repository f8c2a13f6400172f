"""Text, objects and JSON of what a user can name: methods, metrics, references, segmentations.

One grammar serves the command line, the functions that take names, labels and records::

    spec      = name (":" key "=" value)*                  a-fmi:averaged=false:reference=white
              | name "(" key "=" value ("," …)* ")"        random(samples=2, seed=1)
    value     = "true" | "false" | "none" | number | word | '"' JSON string '"' | spec
              | value "+" value …                          0.1+0.2, black+white

The first form is for the outermost spec; inside another spec, parentheses hold the parameters.
Only letters and digits distinguish names: ``grad-cam``, ``Grad-CAM`` and ``GradCAM`` are one. What
only Python can pass (a tensor, a module outside the network, a function) is shown in angle
brackets, which `parse` refuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import sys
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from afmi.errors import UsageError, near_matches

__all__ = [
    "Catalogue",
    "check_parameter",
    "choose",
    "fold",
    "from_json",
    "key_of",
    "label_of",
    "named",
    "parameters",
    "parse",
    "read",
    "register",
    "row_key",
    "text",
    "to_json",
]

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_LONGEST_KEY = 80
# The catalogue keeps names distinct; values with other characters might become equal.
_PLAIN_VALUE = r"[a-z0-9](?:[a-z0-9.]*[a-z0-9])?"
_PLAIN_LABEL = re.compile(rf"[^()]+(?: \(\w+={_PLAIN_VALUE}(?:, \w+={_PLAIN_VALUE})*\))?", re.ASCII)
_WORD = re.compile(r"[\w./\\+-](?:[\w./\\+ -]*[\w./\\+-])?")
_SMALL_TENSOR = 16


@dataclass(frozen=True)
class _Kind:
    """What can be named as one kind of thing.

    Attributes:
        name: what errors call it: ``method``.
        classes: the classes by their names, looked up when they are needed.
        joined: the class of several objects joined by "+"; None where they cannot be joined.
        other: makes an object of a text that names no class; None where it cannot.
        otherwise: what such a text can be, for the error.
    """

    name: str
    classes: Callable[[], Mapping[str, type]]
    joined: type | None = None
    other: Callable[[str], Any] | None = None
    otherwise: str = ""


_kinds: dict[type, _Kind] = {}


def register(base: type, kind: str, classes: Callable[[], Mapping[str, type]], **more: Any) -> None:
    """Let the subclasses of ``base`` be named in text.

    Args:
        base: the abstract class; its subclasses are frozen dataclasses.
        kind: what errors call one of them.
        classes: returns the classes by name.
        **more: see `_Kind`.
    """
    _kinds[base] = _Kind(kind, classes, **more)


class Catalogue(Mapping[str, type[T]]):
    """The classes of a package by their names, each imported when it is first needed.

    A class lies in the file of its name (``grad_cam.py`` holds `GradCAM`), so looking it up imports
    no other; only an alias, or a loop over all, imports all.

    Args:
        base: returns the abstract class; its concrete subclasses are listed.
        package: the package's dotted name.
        order: sorts the classes.
        homes: the module of each other name that the package offers.
    """

    def __init__(
        self,
        base: Callable[[], type[T]],
        package: str,
        order: Callable[[type[T]], Any],
        homes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._base = base
        self._package = package
        self._order = order
        self._homes = homes

    def attribute(self, name: str) -> Any:
        """Return an attribute of the package; serves as its ``__getattr__``."""
        if name == "__all__":
            return self.names()
        if name in self._homes:
            return getattr(importlib.import_module(self._homes[name]), name)
        if name not in self:
            raise AttributeError(f"module {self._package!r} has no attribute {name!r}")
        return self[name]

    def names(self) -> list[str]:
        """Return all that the package offers; serves as its ``__dir__``."""
        return sorted(["CATALOGUE", *self.homes()])

    def homes(self) -> dict[str, str]:
        """Return the module of every name that the package loads when it is first used."""
        return {**self._homes, **{name: cls.__module__ for name, cls in self.items()}}

    def in_file(self, name: str) -> type[T] | None:
        """Return the class that a file of this name holds, in any spelling; None: there is none."""
        files = [m for m in self._modules() if fold(m.rpartition(".")[2]) == fold(name)]
        classes = (cls for module in files for cls in self._classes(module))
        return next((cls for cls in classes if fold(cls.__name__) == fold(name)), None)

    def __getitem__(self, name: str) -> type[T]:
        cls = self.in_file(name)
        if cls is None or cls.__name__ != name:
            raise KeyError(name)
        return cls

    def __iter__(self) -> Iterator[str]:
        classes = [cls for module in self._modules() for cls in self._classes(module)]
        return iter([cls.__name__ for cls in sorted(classes, key=self._order)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _modules(self) -> list[str]:
        path = importlib.import_module(self._package).__path__
        return [module.name for module in pkgutil.walk_packages(path, self._package + ".")]

    def _classes(self, module: str) -> list[type[T]]:
        base = self._base()
        return [
            value
            for value in vars(importlib.import_module(module)).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and not inspect.isabstract(value)
            and value.__module__ == module
        ]


def named(name: str, catalogue: Mapping[str, type[T]], kind: str) -> type[T]:
    """Return the class with this name: ``grad-cam``, ``Grad-CAM``, ``GradCAM`` and aliases alike.

    Args:
        name: what the user typed.
        catalogue: classes by name; their ``name`` and ``aliases`` attributes count, too.
        kind: what they are, for the error: ``method``.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    lazy: Any = catalogue
    direct = lazy.in_file(name) if isinstance(lazy, Catalogue) else None
    if direct is not None:
        return direct
    by_key: dict[str, type[T]] = {}
    for class_name, cls in catalogue.items():
        for alias in (*getattr(cls, "aliases", ()), _title(cls), class_name):
            by_key[fold(str(alias))] = cls
    if fold(name) not in by_key:
        near = near_matches(fold(name), by_key) or f"; there are {', '.join(catalogue)}"
        raise UsageError(f"no {kind} is called {name!r}{near}")
    return by_key[fold(name)]


def fold(name: str) -> str:
    """Return what distinguishes a name: its letters and digits, in lower case."""
    folded = name.casefold().replace("+", "plus").replace("×", "x")
    return "".join(c for c in folded if c.isalnum())


# From text to objects.


def parse(spec: str, base: type[T], **context: Any) -> T:
    """Return the object that a text names, such as ``a-fmi:averaged=false``.

    Args:
        spec: see the grammar above.
        base: the kind of object, such as `Method`.
        **context: fields that no text gives, such as ``model``, of it and of what is nested in it.

    Raises:
        UsageError: when there is no such class or parameter, or a value does not fit.
    """
    kind = _kinds[base]
    parts = _split(spec, "+") if kind.joined else [spec]
    try:
        objects = [_build(*read(part, base, **context), context) for part in parts]
    except UsageError:
        other = kind.other(_unquoted(spec)) if kind.other else None
        if other is None:
            raise
        return other
    return objects[0] if len(objects) == 1 or kind.joined is None else kind.joined(objects)


def read(spec: str, base: type[T], **context: Any) -> tuple[type[T], dict[str, Any]]:
    """Return the class that a text names and the parameters that it gives, as `parse` does."""
    kind = _kinds[base]
    name, *pairs = _split(spec.strip(), ":")
    if name.endswith(")") and "(" in name:
        name, _, inside = name[:-1].partition("(")
        pairs = [*(_split(inside, ",") if inside.strip() else []), *pairs]
    try:
        cls = named(name, kind.classes(), kind.name)
    except UsageError as error:
        if not kind.other:
            raise
        known = [key.lower() for key, c in kind.classes().items() if c is not kind.joined]
        raise UsageError(
            f"expected a {kind.name} out of {', '.join(known)}, several joined by '+', or "
            f"{kind.otherwise}, got {spec!r}{near_matches(spec, known)}"
        ) from error
    return cls, _parameters(cls, pairs, context)


def choose(wanted: str | Sequence[Any], base: type[T], **context: Any) -> dict[str, T]:
    """Return the methods or metrics chosen, by the label that distinguishes each.

    Args:
        wanted: ``"all"``, or specs joined by commas, or a sequence of specs, classes or instances.
        base: `Method` or `Metric`.
        **context: as in `parse`.

    Raises:
        UsageError: as `parse`, or when two different ones have one label, or none is chosen.
    """
    if isinstance(wanted, str):
        specs = [spec for spec in _split(wanted, ",") if spec]
        everything = [spec.casefold() for spec in specs] == ["all"]
        wanted = list(_kinds[base].classes().values()) if everything else specs
    if not isinstance(wanted, Sequence):
        raise UsageError(
            f"expected names, classes or instances in a list, got {type(wanted).__name__}; write "
            "[…] around it"
        )
    chosen: dict[str, T] = {}
    for item in wanted:
        if isinstance(item, str):
            made = parse(item, base, **context)
        elif isinstance(item, base):
            made = item
        elif isinstance(item, type) and issubclass(item, base):
            made = _build(item, {}, context)
        else:
            raise UsageError(f"expected a name, a class or an instance of one, got {item!r}")
        if chosen.setdefault(label_of(made), made) != made:
            raise UsageError(
                f"two that differ are both called {label_of(made)!r}; leave one out, or use them "
                "one at a time"
            )
    if not chosen:
        raise UsageError(f"expected one {_kinds[base].name} or more, or 'all', got {wanted!r}")
    return chosen


def _build(cls: type[T], given: Mapping[str, Any], context: Mapping[str, Any]) -> T:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    known = {name: value for name, value in context.items() if name in names} | {**given}
    missing = [field.name for field in fields if field.init and not _has_default(field)]
    missing = [name for name in missing if name not in known]
    if missing:
        needs = " and ".join(f"{name}=…" for name in missing)
        raise UsageError(f"{_title(cls)} needs {needs}; such as {_name(cls)}:{needs}")
    return cls(**known)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init and field.name != "model"]


def _title(cls: type) -> str:
    # A field may be called so, too (that of `Scalar`), whose default is no title.
    return str(getattr(cls, "name", None) or cls.__name__)


def check_parameter(cls: type, name: str) -> None:
    """Raise a `UsageError` that lists near matches, unless the class takes this parameter."""
    names = [field.name for field in _fields(cls)]
    if name not in names:
        takes = f"; it takes {', '.join(names)}" if names else "; it takes none"
        raise UsageError(
            f"{_title(cls)} takes no parameter {name!r}{near_matches(name, names) or takes}"
        )


def _parameters(cls: type, pairs: list[str], context: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``key=value`` texts as what the class's fields take."""
    types = get_type_hints(cls)
    given: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = (part.strip() for part in pair.partition("="))
        if not sign:
            raise UsageError(
                f"expected a parameter of {_title(cls)} as key=value, got {pair!r}; such as "
                "a-fmi:averaged=false"
            )
        check_parameter(cls, key)
        if key in given:
            raise UsageError(f"{key} of {_title(cls)} is given twice; leave one out")
        given[key] = _value(f"{key} of {_title(cls)}", types[key], value, context)
    return given


def _options(hint: Any) -> list[Any]:
    """Return the types that a field takes, those first that are read from the fewest texts."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return sorted(options, key=lambda one: (one is not NoneType, one is str))


def _value(what: str, hint: Any, value: str, context: Mapping[str, Any]) -> Any:
    readers = [_reader(option, context) for option in _options(hint)]
    expected = [reader[0] for reader in readers if reader is not None]
    only_python = None in readers
    if not (only_python and value.startswith("<")):
        for reader in readers:
            if reader is None:
                continue
            try:
                return reader[1](value)
            except UsageError:  # which says what is wrong
                raise
            except (KeyError, ValueError):
                continue
    if only_python:
        only = f"; a text can only say {' or '.join(expected)}" if expected else ""
        raise UsageError(f"only Python can pass {what}{only}, got {value!r}")
    raise UsageError(f"expected {what} as {' or '.join(expected)}, got {value!r}")


def _reader(hint: Any, context: Mapping[str, Any]) -> tuple[str, Callable[[str], Any]] | None:
    """Return what a type of value is called and what reads it; None: no text stands for it."""
    if hint in _READERS:
        return _READERS[hint]
    if isinstance(hint, type) and hint in _kinds:
        return f"a {_kinds[hint].name}", lambda value: parse(value, hint, **context)
    if get_origin(hint) is Literal:
        words = {word.casefold(): word for word in get_args(hint)}
        return " or ".join(words), lambda value: words[value.casefold()]
    if get_origin(hint) not in (tuple, abc.Sequence):
        return None
    inner = _reader(get_args(hint)[0], context)
    if inner is None:
        return None
    each = inner[0].removeprefix("a ")
    return f"{each}s joined by '+'", lambda value: tuple(map(inner[1], _split(value, "+")))


def _finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError as error:
        raise UsageError(f"expected a text in double quotes, got {value}; close them") from error


_SWITCHES = {"true": True, "yes": True, "false": False, "no": False}
_READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    NoneType: ("none", lambda value: {"none": None}[value.casefold()]),
    bool: ("true or false", lambda value: _SWITCHES[value.casefold()]),
    int: ("a whole number", int),
    float: ("a number", _finite),
    str: ("a text", _unquoted),
}


def _split(spec: str, sign: str) -> list[str]:
    """Split a text at a sign outside of parentheses and quotes, and strip the parts.

    The "+" of a number such as 1e+3, and those at the end of ``grad-cam++``, split nothing.
    """
    return [part.strip() for part in _parts(spec, sign)]


def _parts(spec: str, sign: str) -> Iterator[str]:
    depth, quoted, escaped, start = 0, False, False, 0
    for i, character in enumerate(spec):
        if character == '"' and not escaped:
            quoted = not quoted
        escaped = quoted and character == "\\" and not escaped
        if not quoted:
            depth += (character == "(") - (character == ")")
            exponent = sign == "+" and re.search(r"[\d.][eE]$", spec[start:i])
            if character == sign and depth == 0 and not exponent:
                yield spec[start:i]
                start = i + 1
    yield spec[start:]


# From objects to text and JSON.


def text(value: Any) -> str:
    """Return the text of an object that can be named: its name and what is not the default.

    Example:
        >>> from torch import nn
        >>> from afmi.methods import AFMI
        >>> from afmi.pictures.references import Random
        >>> text(AFMI(nn.Identity(), reference=Random(samples=2), averaged=False))
        'a-fmi:reference=random(samples=2):averaged=false'
    """
    if any(kind.joined and isinstance(value, base) for base, kind in _kinds.items()):
        return _short(value)  # a "+" outside of parentheses would join it to others
    return ":".join([_name(type(value)), *_changed(value)])


def label_of(value: Any) -> str:
    """Return the name as tables show it, with those parameters that are not the defaults."""
    changed = _changed(value)
    return f"{_title(type(value))} ({', '.join(changed)})" if changed else _title(type(value))


def key_of(label: str) -> str:
    """Return a label as a file name: lower case letters, digits, dots, "=" and dashes.

    Different labels have different keys, even where case does not count: a digest at the end stands
    for what a file name cannot hold of a label.

    Example:
        >>> key_of("A-FMI (averaged=false)"), key_of("Grad-CAM (layer=Block.1)")
        ('a-fmi-averaged=false', 'grad-cam-layer=block.1-db03a6ff')
    """
    folded = label.casefold().replace("++", "-plus-plus")
    key = re.sub(r"[^a-z0-9.=]+", "-", folded).strip("-.")
    if key and len(key) <= _LONGEST_KEY and _PLAIN_LABEL.fullmatch(label):
        return key
    digest = hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{key[:_LONGEST_KEY]}-{digest}".lstrip("-")


def row_key(value: Any) -> str:
    """Return the key of a metric's rows: ``insertion(canvas=mean)``."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(value).__name__).lower()
    changed = _changed(value)
    return f"{name}({','.join(changed)})" if changed else name


def parameters(value: Any) -> dict[str, Any]:
    """Return every parameter of an object as JSON holds it."""
    return {field.name: _json(getattr(value, field.name), value) for field in _fields(value)}


def to_json(value: Any) -> dict[str, Any]:
    """Return an object as JSON holds it: its class and every parameter."""
    return {"class": type(value).__name__, **parameters(value)}


def from_json(data: Mapping[str, Any], base: type[T], **context: Any) -> T:
    """Return the object of what `to_json` gave.

    Raises:
        UsageError: when there is no such class, or a part of it only Python can pass.
    """
    cls = named(str(data["class"]), _kinds[base].classes(), _kinds[base].name)
    types = get_type_hints(cls)
    given = {
        key: _from_json(f"{key} of {_title(cls)}", types[key], value, context)
        for key, value in data.items()
        if key != "class"
    }
    return _build(cls, given, context)


def _from_json(what: str, hint: Any, value: Any, context: Mapping[str, Any]) -> Any:
    # What stands for an object that has no text; a text of its own may begin so, too.
    stand_in = isinstance(value, str) and value.startswith("<")
    if stand_in and any(_reader(option, context) is None for option in _options(hint)):
        raise UsageError(f"only Python can pass {what}, got {value!r}")
    if isinstance(value, list):
        inner = next((get_args(option)[0] for option in _options(hint) if get_args(option)), Any)
        return tuple(_from_json(what, inner, one, context) for one in value)
    if isinstance(value, Mapping):
        base = next(option for option in _options(hint) if option in _kinds)
        return from_json(value, base, **context)
    return float(value) if hint is float else value


def _name(cls: type) -> str:
    return _title(cls).lower().replace("×", "x").replace(" ", "-")


def _changed(value: Any) -> list[str]:
    """Return ``name=value`` of each parameter that is not its default."""
    changed = []
    types: dict[str, Any] = {}
    for field in _fields(value):
        given = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or _json(given, value) != _json(default, value):
            if isinstance(given, str) and _is_number(given):
                # Else a text like 3 would be read as the number, where a field takes both.
                types = types or get_type_hints(type(value))
                if int in _options(types[field.name]) or float in _options(types[field.name]):
                    changed.append(f"{field.name}={json.dumps(given)}")
                    continue
            changed.append(f"{field.name}={_short(given, value)}")
    return changed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: Any, owner: Any = None) -> str:
    """Return the text of a value inside another's."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, str):
        plain = _WORD.fullmatch(value) and value.casefold() not in ("none", "true", "false")
        return value if plain else json.dumps(value, ensure_ascii=False)
    if any(isinstance(value, base) for base in _kinds):
        return _of_named(value)
    if isinstance(value, os.PathLike):
        return _short(os.fspath(value))
    if _is_module(value):
        return _of_module(value, owner)
    if _is_array(value):
        return _of_array(value)
    if isinstance(value, Sequence):
        return "+".join(_short(item, owner) for item in value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    # The text of a function holds its address, which differs in every run.
    name = getattr(value, "__qualname__", None)
    return f"<{name}>" if name or type(value).__str__ is object.__str__ else str(value)


def _of_named(value: Any) -> str:
    if any(type(value) is kind.joined for kind in _kinds.values()):
        (field,) = dataclasses.fields(value)
        return "+".join(_short(one) for one in getattr(value, field.name))
    changed = _changed(value)
    return f"{_name(type(value))}({', '.join(changed)})" if changed else _name(type(value))


# PyTorch takes a second to import, and what holds a tensor or a module has imported it.


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_array(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _of_module(module: nn.Module, owner: Any) -> str:
    """Return a module's dotted name in the owner's network, where it has one."""
    inside = owner.model.named_modules() if hasattr(owner, "model") else ()
    return next((name for name, m in inside if m is module), None) or f"<{type(module).__name__}>"


def _of_array(value: Tensor | np.ndarray) -> str:
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().double().numpy()
    if array.size <= _SMALL_TENSOR and array.ndim == 1:
        return "+".join(_short(item) for item in array.tolist())
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()
    return f"<tensor {'×'.join(map(str, array.shape))} {digest}>"


def _json(value: Any, owner: Any = None) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no word for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if any(isinstance(value, base) for base in _kinds):
        return to_json(value)
    if isinstance(value, np.generic):
        return _json(value.item())
    if _is_array(value):
        small = value.ndim == 1 and len(value) <= _SMALL_TENSOR
        return _json(value.tolist()) if small else _of_array(value)
    if isinstance(value, Mapping):
        return {str(key): _json(item, owner) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_json(item, owner) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else _short(value, owner)
