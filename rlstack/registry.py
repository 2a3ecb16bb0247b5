"""Functions and classes by name: register them, find them, bind their parameters.

One `Registry` holds one kind, rewards for instance. Its entries are a subclass of `Registration`,
which says what else is known of one and checks its signature. What a configuration may set are the
keyword-only parameters.

It knows nothing of what is registered: who owns a kind owns its registry.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rlstack.errors import RegistrationError
from rlstack.plugins import import_plugin


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered function or class; each kind has a subclass with what else it knows."""

    name: str
    target: Callable[..., Any]
    """The function, or the class."""
    requires: tuple[str, ...] = ()
    """Importable names of optional packages that it imports when it runs."""

    def check_signature(self) -> None:
        """Raise the kind's error if the target is not one of that kind.

        Each kind overrides this.
        """
        raise NotImplementedError

    @property
    def location(self) -> str:
        """`file:line` of its definition."""
        target = inspect.unwrap(self.target)
        if inspect.isclass(target):
            return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
        code = target.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    @property
    def origin(self) -> tuple[str, str]:
        """The same for two imports of one definition."""
        return inspect.getsourcefile(inspect.unwrap(self.target)) or "", self.target.__qualname__

    @property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        """Those that a configuration may give."""
        found = inspect.signature(self.target).parameters.values()
        return tuple(p for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY)

    @property
    def summary(self) -> str:
        """First line of its documentation, or nothing."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]


InfoT = TypeVar("InfoT", bound=Registration)


class Registry(Generic[InfoT]):
    """All that is registered of one kind.

    It fills while modules are imported and is only read afterwards; each process fills its own.
    """

    def __init__(
        self,
        info_type: type[InfoT],
        *,
        noun: str,
        error: type[RegistrationError],
        decorator: str,
        plugins_key: str,
        entry_point_group: str,
    ) -> None:
        """An empty registry.

        info_type: called with a name and a target for what an installed package declares without
            registering it. noun: the kind, for messages. error: what every mistake raises.
            decorator: the name of the function that plugins register with. plugins_key: the
            configuration key that lists plugins. entry_point_group: where installed packages name
            what they bring, `my_reward = "my_package.my_module"`.
        """
        self.noun = noun
        self._info_type = info_type
        self._error = error
        self._decorator = decorator
        self._plugins_key = plugins_key
        self.entry_point_group = entry_point_group
        self._entries: dict[str, InfoT] = {}

    def register(self, entry: InfoT) -> None:
        """Add an entry; the same definition may be registered again.

        Raises:
            RegistrationError: if the name is taken by another one, or the signature is wrong.
        """
        entry.check_signature()
        known = self._entries.get(entry.name)
        if known is not None and known.origin != entry.origin:
            raise self._error(
                f"{self.noun} {entry.name!r} is registered twice: {known.location} and "
                f"{entry.location}. Rename one of them."
            )
        self._entries[entry.name] = entry

    def registered_names(self) -> tuple[str, ...]:
        """All names registered so far, sorted."""
        return tuple(sorted(self._entries))

    def known_names(self) -> tuple[str, ...]:
        """The registered names and those that installed packages declare, sorted."""
        return tuple(sorted({*self._entries, *self.installed}))

    @cached_property
    def installed(self) -> Mapping[str, EntryPoint]:
        """What installed packages declare, by name; none of it is imported by this.

        Raises:
            RegistrationError: if two packages declare the same name.
        """
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.entry_point_group):
            other = found.get(point.name)
            if other is not None and other.value != point.value:
                raise self._error(
                    f"two installed packages declare the {self.noun} {point.name!r}: "
                    f"{_package(other)} ({other.value}) and {_package(point)} ({point.value}). "
                    "Uninstall one of them."
                )
            found[point.name] = point
        return found

    def info(self, name: str) -> InfoT:
        """The entry called `name`; one that an installed package declares is imported first.

        Raises:
            RegistrationError: if it is unknown or its package cannot be imported.
        """
        if name not in self._entries and name in self.installed:
            self._import_installed(name)
        if name in self._entries:
            return self._entries[name]
        known = self.known_names()
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        article = "An" if self.noun[0] in "aeiou" else "A"
        raise self._error(
            f"{self.noun} {name!r} is unknown.{hint} Known: {', '.join(known)}. "
            f"{article} {self.noun} of your own needs its module or file in {self._plugins_key}."
        )

    def bind(self, name: str, params: Mapping[str, Any]) -> partial[Any]:
        """The target of `name` with `params` validated against its annotations.

        Raises:
            RegistrationError: if it is unknown, a package it needs is not installed, or a parameter
                is unknown, missing or of the wrong type.
        """
        entry = self.info(name)
        self._check_installed(entry)
        return partial(entry.target, **self._checked_parameters(entry, params))

    def build(self, name: str, params: Mapping[str, Any]) -> Any:
        """The function called `name` with `params` bound, or an object of the class.

        Raises:
            RegistrationError: as `bind`; making an object may raise anything.
        """
        bound = self.bind(name, params)
        return bound() if inspect.isclass(bound.func) else bound

    def load_plugin(self, plugin: str) -> Any:
        """Import a module (`package.module`) or a file (`path/to/file.py`) that registers some.

        Loading the same plugin again does nothing. Returns the module.

        Raises:
            RegistrationError: if it cannot be found or imported, or registers what is wrong.
        """
        try:
            return import_plugin(plugin)
        except RegistrationError:
            raise
        except (Exception, SystemExit) as error:
            raise self._error(
                f"{self.noun} plugin {plugin!r} cannot be imported: {type(error).__name__}: "
                f"{error}. Give a module on the Python path or the path of a .py file in "
                f"{self._plugins_key}."
            ) from error

    def _import_installed(self, name: str) -> None:
        point = self.installed[name]
        try:
            found = point.load()
        except RegistrationError:
            raise
        except (Exception, SystemExit) as error:
            raise self._error(
                f"{self.noun} {name!r} of the installed package {_package(point)} cannot be "
                f"imported from {point.value!r}: {type(error).__name__}: {error}. Repair or "
                "uninstall that package."
            ) from error
        # Its module may have registered it; a plain function or class has not.
        if name not in self._entries and (inspect.isfunction(found) or inspect.isclass(found)):
            self.register(self._info_type(name, found))
        if name not in self._entries:
            raise self._error(
                f"{self.noun} {name!r}: {point.value!r} registers no {self.noun} of that name. "
                f"It needs @{self._decorator}({name!r}) there."
            )

    def _check_installed(self, entry: InfoT) -> None:
        for module in entry.requires:
            if find_spec(module) is None:
                package = module.replace("_", "-")
                raise self._error(
                    f"{self.noun} {entry.name!r} needs the package {package!r}, which is not "
                    f"installed. Install it: pip install {package}"
                )

    def _checked_parameters(self, entry: InfoT, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` as the annotations want them."""
        is_class = inspect.isclass(entry.target)
        hinted = cast(Any, entry.target).__init__ if is_class else entry.target
        annotations = get_type_hints(hinted, include_extras=True)
        subject = f"{self.noun} {entry.name!r}"
        names = [param.name for param in entry.parameters]
        for unknown in params.keys() - set(names):
            close = get_close_matches(unknown, names, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "remove it."
            raise self._error(
                f"{subject} has no parameter {unknown!r}: {fix} "
                f"Its parameters: {', '.join(names) or 'none'}."
            )
        checked: dict[str, Any] = {}
        for param in entry.parameters:
            expected = annotations.get(param.name, Any)
            formatted = inspect.formatannotation(expected)
            if param.name in params:
                value = params[param.name]
                try:
                    checked[param.name] = TypeAdapter(expected).validate_python(value)
                except ValidationError as error:
                    raise self._error(
                        f"{subject}, parameter {param.name!r}: expected {formatted}, got {value!r} "
                        f"({error.errors()[0]['msg']}). Correct it in its params."
                    ) from None
            elif param.default is inspect.Parameter.empty:
                raise self._error(
                    f"{subject} needs the parameter {param.name!r} ({formatted}). "
                    "Add it to its params."
                )
        return checked


def _package(point: EntryPoint) -> str:
    return repr(point.dist.name if point.dist is not None else point.module)
