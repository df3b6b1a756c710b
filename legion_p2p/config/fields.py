"""What a field of a public value allows, and the one way by which anything becomes such a field.

Values come from Python, from flags, from LEGION_* variables and from TOML files. All of them pass `field_value`, so that one
mistake has one message wherever it is made; the caller adds where that was. The structs check themselves as they are made
(`settle`): a wrong value is refused in the line that has it.
"""

import ast
import difflib
import functools
import inspect
import math
import operator
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from legion_p2p.config.forms import Form, in_short, refusal
from legion_p2p.errors import ConfigError, UsageError

T = TypeVar("T", bound=msgspec.Struct)
NOTHING_RENAMED: Mapping[str, str] = types.MappingProxyType({})


def field_value(kind: type[msgspec.Struct], name: str, given: Any, *, is_text: bool = False) -> Any:
    """`given` as the field `name` of `kind` has it. `is_text`: texts that people wrote may be numbers.

    A struct of choices names in its `BOUNDS` the struct whose fields say what is allowed, and None leaves a choice open.

    Raises: UsageError, telling what was seen and what is allowed; where that was, the caller knows.
    """
    bounds = getattr(kind, "BOUNDS", None)
    if bounds is not None and given is None:
        return None
    return value_of(hints_of(bounds or kind)[name], given, is_text=is_text)


def value_of(hint: Any, given: Any, *, is_text: bool = False) -> Any:
    """`given` as a value of the type `hint`. Raises: UsageError."""
    form = _form_of(hint)
    if form is not None and form.read is not None:
        return form.read(given)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if not isinstance(given, hint):
            raise refusal(given, f"a {hint.__name__}(...)")
        return given
    given = _plain(given)
    try:
        value = msgspec.convert(given, hint, strict=not is_text)
    except (msgspec.ValidationError, TypeError):
        raise refusal(given, allowed_text(hint)) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise refusal(given, allowed_text(hint))
    return value


def settle(value: msgspec.Struct) -> None:
    """Check every field of a struct that is being made, and bring it into its form: for `__post_init__`.

    Raises: UsageError, naming the struct and the field.
    """
    kind = type(value)
    for name in kind.__struct_fields__:
        given = getattr(value, name)
        try:
            good = field_value(kind, name, given)
        except UsageError as bad:
            raise UsageError(f"{kind.__name__}({name}=...): {bad}") from None
        if good is not given:
            msgspec.structs.force_setattr(value, name, good)


def struct_of(kind: type[T], data: Mapping[str, Any], renamed: Mapping[str, str] = NOTHING_RENAMED, path: str = "") -> T:
    """Plain data, as from a TOML file, as a struct; tables become the structs inside it. `renamed`: old keys, and the new ones.

    Raises: ConfigError, naming the key.
    """
    fields = kind.__struct_fields__
    values: dict[str, Any] = {}
    for key, given in data.items():
        where = f"{path}{key}"
        if key not in fields:
            raise ConfigError(f"{where}: {_unknown(key, fields, renamed)}")
        hint = hints_of(kind)[key]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            if not isinstance(given, Mapping):
                raise ConfigError(f"{where}: {in_short(given)} stands where a table must be")
            values[key] = struct_of(hint, given, renamed, path=f"{where}.")
            continue
        row = _row_of(hint)
        if row is not None:
            if not isinstance(given, list | tuple) or not all(isinstance(one, Mapping) for one in given):
                raise ConfigError(f"{where}: {in_short(given)} stands where a list of tables must be: [[{where}]]")
            values[key] = tuple(struct_of(row, one, renamed, path=f"{where}[{i}].") for i, one in enumerate(given))
            continue
        try:
            values[key] = field_value(kind, key, given)
        except UsageError as bad:
            raise ConfigError(f"{where}: {bad}") from None
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in values]
    if missing:
        raise ConfigError(f"{path}{missing[0]} is missing")
    try:
        return kind(**values)
    except UsageError as bad:  # fields that are right by themselves, and contradict each other
        raise ConfigError(f"{path.removesuffix('.')}: {bad}" if path else str(bad)) from None


def _row_of(hint: Any) -> type[msgspec.Struct] | None:
    """The struct of which a field holds several; None where it holds something else."""
    if typing.get_origin(hint) is not tuple:
        return None
    first = typing.get_args(hint)[0]
    return first if isinstance(first, type) and issubclass(first, msgspec.Struct) else None


def said(value: msgspec.Struct) -> dict[str, Any]:
    """The fields that were chosen: those that are not None."""
    return {name: given for name in value.__struct_fields__ if (given := getattr(value, name)) is not None}


def argument(place: str, hint: Any, given: Any) -> Any:
    """An argument of a public function. Raises: UsageError, beginning with its `place`."""
    try:
        return value_of(hint, given)
    except UsageError as bad:
        raise UsageError(f"{place}: {bad}") from None


@functools.cache
def hints_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The types of a struct's fields, with what stands beside them."""
    return typing.get_type_hints(kind, include_extras=True)


@functools.cache
def docs_of(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring of each field: the text below it in the source."""
    (class_def,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(class_def, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(class_def.body, class_def.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def allowed_text(hint: Any) -> str:
    """What a type allows, in words."""
    form = _form_of(hint)
    return form.allowed if form is not None else _in_words(msgspec.inspect.type_info(hint))


def _in_words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case msgspec.inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.LiteralType():
            return ("one of " if len(kind.values) > 1 else "") + ", ".join(map(str, kind.values))
        case msgspec.inspect.UnionType():
            return " or ".join(_in_words(each) for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
        case msgspec.inspect.StrType():
            return "a text" + (f" of at most {kind.max_length} characters" if kind.max_length else "")
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            return f"a list, each of it {_in_words(kind.item_type)}"
        case msgspec.inspect.DictType():
            return f"a table, each value of it {_in_words(kind.value_type)}"
        case _:
            return "a value of another type"


def _bounds(kind: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_number(kind.ge)} to {_number(kind.le)}"
    bounds = (("of at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    return " " + " and ".join(f"{word} {_number(bound)}" for word, bound in bounds if bound is not None)


def _number(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def _form_of(hint: Any) -> Form | None:
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Form)), None)


def _plain(given: Any) -> Any:
    """Numbers of other libraries (numpy's, tensors of one element) as Python's own."""
    if given is None or isinstance(given, str | bytes | bool | int | float | list | tuple | Mapping | msgspec.Struct):
        return given
    for convert in (operator.index, float):
        try:
            return convert(given)
        except (TypeError, ValueError, RuntimeError):  # a tensor of several elements, say
            continue
    return given


def _unknown(key: str, fields: tuple[str, ...], renamed: Mapping[str, str]) -> str:
    if key in renamed:
        return f"this is called {renamed[key]} now"
    near = difflib.get_close_matches(key, fields, n=1)
    known = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
    return f"nothing of this name can be set; {known}"
