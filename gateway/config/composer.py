"""Composes YAML text into nodes with marks, by libyaml where it is there: five times as fast as PyYAML's scanner."""

from __future__ import annotations

from typing import Any, cast

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

try:
    from yaml._yaml import CParser
except ImportError:  # PyYAML was built without libyaml
    CParser = None  # type: ignore[assignment,misc]


def compose(text: str) -> yaml.Node | None:
    """The text's nodes, None for an empty text. Raises `yaml.YAMLError`, and `RecursionError` for deep nesting.

    Only good texts take the fast way: PyYAML's own scanner has the better words for what is wrong.
    """
    if CParser is not None:
        try:
            return _fast(text)
        except (yaml.YAMLError, UnicodeError):
            pass
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _fast(text: str) -> yaml.Node | None:
    """libyaml's parser under the composer in Python: the one in C ends the process when it meets deep nesting."""

    class Loader(Composer, CParser, Resolver):
        def __init__(self) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)
            Resolver.__init__(self)
            self._tags: dict[str, str] = {}

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            event = self.peek_event()
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
                return super().compose_node(parent, index)
            self.get_event()
            start, end = cast("yaml.Mark", event.start_mark), cast("yaml.Mark", event.end_mark)
            return yaml.ScalarNode(self._tag(event), event.value, start, end, event.style)

        def _tag(self, event: yaml.ScalarEvent) -> str:
            if not event.implicit[0]:
                return "tag:yaml.org,2002:str"
            if (tag := self._tags.get(event.value)) is None:
                resolve: Any = self.resolve
                tag = self._tags[event.value] = resolve(yaml.ScalarNode, event.value, event.implicit)
            return tag

    loader: Any = Loader()
    node: yaml.Node | None = loader.get_single_node()
    return node
