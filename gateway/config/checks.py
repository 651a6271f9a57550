"""What no type of the routing table can say: references between its parts, places, names, budgets, its own tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from backends import registry
from backends.endpoints import PATHS
from gateway.config.caching import LEAST_TTL, MOST_LARGEST, MOST_TTL, MOST_WAIT
from gateway.config.connections import check_connections, is_base_url
from gateway.config.discovery import check_discovery, first_url
from gateway.config.located import Document
from gateway.config.names import Globs
from gateway.core.body_rules import mistakes

if TYPE_CHECKING:
    from gateway.config.limits import LimitSpec
    from gateway.config.table import Bodies, Launch, Place, RouteSpec, Table, TargetSpec

POLICIES = "trunkline.policies"
_NAME = re.compile("[!-~](?:[ -~]{0,98}[!-~])?")
"""It stands in headers and labels."""
_ROUTE = re.compile(
    "(https?://[^/]+(?:/.*?)??)/+(?:v1|(?:v1/+)?"
    "(?:(?:chat/)?completions|embeddings|models|responses|generate(?:_stream)?|invocations|tokenize|health|metrics))/*"
)
"""A URL that is not the base of a server; some serve under a path, such as `/proxy/v1/...`."""
_PASSABLE = re.compile(r"(/[A-Za-z0-9_~][A-Za-z0-9._~-]*)+")
OURS = ("/docs", "/health", "/info", "/metrics", "/ready", "/v1/batches", "/v1/files", "/v1/models")
"""Paths of the gateway's own."""
LEAST_HOLD, MOST_HOLD = 1.0, 600.0
"""Seconds: targets are probed twice a second, and clients give up after ten minutes."""
MOST_TARGETS = 6
"""Asked for one call, those of all its tiers and of fallback routes together."""
LEAST_ELEMENTS = 1_000
"""Of a body; a long conversation with tools has as many."""


def check(document: Document, table: Table) -> None:
    """Report every mistake; the table's tests are run only if there is none."""
    _check_targets(document, table)
    check_connections(document, table.targets())
    check_discovery(document, ((path, target) for path, _, target in table.targets()))
    _check_names(document, table)
    _check_routing(document, table)
    _check_money(document, table)
    for name, route in table.routes.items():
        for part, told in mistakes(route.rules):
            within = () if part == ("system_prompt",) else ("body",)
            document.report(("routes", name, *within, *part), f"route {name!r}: {told}")
    _check_bodies(document, table.bodies)
    if table.default_route is not None and table.names().find(table.default_route) is None:
        told = f"no route or alias {table.default_route!r}; routes: {', '.join(table.routes)}"
        document.report(("default_route",), told)
    if not any(not mistake.warning for mistake in document.mistakes):
        _run_tests(document, table)


def _check_bodies(document: Document, bodies: Bodies) -> None:
    if bodies.elements < LEAST_ELEMENTS:
        document.report(("bodies", "elements"), f"expected at least {LEAST_ELEMENTS}: long conversations have as many")
    if bodies.being_read < bodies.request:
        told = f"'in_flight' is what all may hold together, and less than one may: 'request', {bodies.request}"
        document.report(("bodies", "in_flight"), told)
    for name in ("answer", "event"):
        if bodies.together < getattr(bodies, name):
            told = f"'answers' is what all may hold together, and less than one may: {name!r}, {getattr(bodies, name)}"
            document.report(("bodies", "answers"), told)


def _check_targets(document: Document, table: Table) -> None:
    backends = registry.installed()
    names: dict[str, Place] = {}
    places: dict[tuple[str, str | None, str | None], str] = {}
    for name, route in table.routes.items():
        if not route.targets and not document.broken("routes", name, "targets"):
            document.report(("routes", name, "targets"), f"route {name!r} has no targets")
    for path, _, target in table.targets():
        if target.backend not in backends:
            known = ", ".join(backends)
            document.report((*path, "backend"), f"unknown backend {target.backend!r}; known backends: {known}")
        if not _NAME.fullmatch(target.name):
            told = f"target name {target.name!r}: expected 1 to 100 printable ASCII characters, no space at the ends"
            document.report((*path, "name"), told)
        if target.name in names:
            document.report((*path, "name"), f"target name {target.name!r} is used twice")
        names.setdefault(target.name, path)
        _check_place(document, path, target)
        _check_usage(document, path, target)
        if (url := first_url(target)) is not None:
            place = (str(path[1]), url.rstrip("/"), target.model)
            if place in places:
                document.report(
                    (*path, "url" if target.discover is None else "discover"),
                    f"no call can reach target {target.name!r}: it is the same server and model as {places[place]!r}",
                )
            places.setdefault(place, target.name)


def _check_usage(document: Document, path: Place, target: TargetSpec) -> None:
    installed, place = registry.installed(), (*path, "continuous_usage")
    if not target.continuous_usage or target.backend not in installed:
        return
    if registry.capabilities(target.backend).continuous is None:
        can = ", ".join(name for name in installed if registry.capabilities(name).continuous is not None)
        document.report(place, f"backend {target.backend!r} tells no usage in every event; backends that do: {can}")
    elif target.tool_parser is not None:
        document.report(
            place, "'continuous_usage' and 'tool_parser' cannot be had together: the parser makes the events"
        )
    elif not target.usage_event:
        document.report(place, "'continuous_usage' needs the wish that 'usage_event: false' forbids: leave one out")


def _check_place(document: Document, path: Place, target: TargetSpec) -> None:
    if sum(way is not None for way in (target.url, target.launch, target.discover)) != 1 and not document.broken(*path):
        document.report(path, f"target {target.name!r} needs one of 'url', 'launch' and 'discover'")
    if target.url is not None and "${" in target.url:
        pass  # a variable that is not set here, which has been told
    elif target.url is not None and not is_base_url(target.url):
        shown = target.url.rpartition("@")[2].partition("?")[0]  # what is before may be a password
        document.report((*path, "url"), f"{shown!r} is not a base URL such as 'http://vllm-a:8000'")
    elif target.url is not None and (base := _before_route(target.url)) is not None:
        document.report((*path, "url"), f"{target.url!r}: write the base URL, {base!r}: the gateway adds the rest")
    if target.api_key is not None and not target.api_key.isprintable():
        told = f"target {target.name!r}: the credential holds a line break or another control character"
        document.report((*path, "api_key"), told)
    if target.launch is not None:
        _check_launch(document, path, target, target.launch)


def _before_route(url: str) -> str | None:
    """The base URL in one that names a route of a model server; None: it names none."""
    found = _ROUTE.fullmatch(url)
    return None if found is None else found[1]


def _check_launch(document: Document, path: Place, target: TargetSpec, launch: Launch) -> None:
    if (launch.model is None) == (launch.argv is None) and not document.broken(*path, "launch"):
        document.report((*path, "launch"), "'launch' needs either 'model' or 'argv'")
    place = (*path, "launch", "argv")
    if launch.argv is not None and not any("{port}" in word for word in launch.argv) and not document.broken(*place):
        document.report(place, "'argv' must hold '{port}': the gateway chooses the port")
    if launch.argv and not launch.argv[0]:
        document.report(place, "'argv' must begin with a command")
    if launch.model is not None and target.backend in registry.installed():
        launchable = registry.capabilities(target.backend).launchable
        known = () if launchable is None else launchable.launch_models
        if launch.model not in known:
            what = f"known models: {', '.join(known)}" if known else f"backend {target.backend!r} has none; use 'argv'"
            document.report((*path, "launch", "model"), f"cannot launch model {launch.model!r}; {what}")


def _check_names(document: Document, table: Table) -> None:
    seen: dict[str, str] = {name: name for name in table.routes}
    globs = Globs()
    for name, route in table.routes.items():
        if not name or "*" in name:
            document.report(("routes", name), f"route name {name!r} must not be empty or hold '*'; use an alias")
        for index, alias in enumerate(route.aliases):
            path = ("routes", name, "aliases", index)
            if not alias:
                document.report(path, "an alias must not be empty")
            elif alias in seen:
                document.report(path, f"alias {alias!r} already means route {seen[alias]!r}")
            seen.setdefault(alias, name)
            for other, owner in globs.rivals(alias) if "*" in alias else ():
                if owner != name:
                    document.report(path, f"aliases {alias!r} and {other!r} (route {owner!r}) match the same names")
            if "*" in alias:
                globs.add(alias, name)


def _check_routing(document: Document, table: Table) -> None:
    policies = sorted(point.name for point in entry_points(group=POLICIES))
    for name, route in table.routes.items():
        place = ("routes", name)
        if route.policy not in policies:
            document.report((*place, "policy"), f"unknown policy {route.policy!r}; policies: {', '.join(policies)}")
        for path in route.passes:
            if not _PASSABLE.fullmatch(path) or path in PATHS or path.startswith(OURS):
                told = f"route {name!r}: {path!r} cannot be passed on: expected a path of its servers, none of ours"
                document.report((*place, "passes"), told)
        if route.queue_wait >= route.timeouts.first_output:
            document.report(
                (*place, "queue", "wait"),
                f"route {name!r}: a call would wait in the queue for {route.queue_wait:g} s, "
                f"longer than for its first output ({route.timeouts.first_output:g} s)",
            )
        canaries = sum(target.canary or 0 for target in route.targets)
        if route.targets and (canaries > 0.9 or all(target.canary for target in route.targets)):
            document.report((*place, "targets"), f"route {name!r}: canaries leave too little to the other targets")
        _check_hold(document, name, route)
        _check_cache(document, name, route)
        if not _runs_in_a_circle(document, table, name):
            _check_reach(document, table, name)


def _check_hold(document: Document, name: str, route: RouteSpec) -> None:
    place, hold = ("routes", name, "hold"), route.hold
    if hold is None:
        return
    if not route.queue.calls:
        told = f"route {name!r}: no call can be held: as many may be as may wait in the queue, and 'queue.calls' is 0"
        document.report(place, told)
    if hold < LEAST_HOLD:
        told = f"route {name!r}: in {hold:g} s of 'hold' it is hardly noticed that a target is up; write 10s or more"
        document.report(place, told, warning=True)
    if hold > MOST_HOLD:
        told = f"route {name!r}: few clients and proxies wait as long as 'hold', {hold:g} s; write 10m or less"
        document.report(place, told, warning=True)


def _check_cache(document: Document, name: str, route: RouteSpec) -> None:
    place, cache = ("routes", name, "response_cache"), route.response_cache
    if cache is None:
        if route.price is not None and route.price.cached_answer:
            told = f"route {name!r}: no answer is ever charged so: it has no 'response_cache'"
            document.report(("routes", name, "price", "cached_answer"), told, warning=True)
        return
    if not LEAST_TTL <= cache.ttl <= MOST_TTL:
        document.report((*place, "ttl"), f"route {name!r}: answers can be kept from 1s to 30d, not for {cache.ttl:g} s")
    if cache.largest > MOST_LARGEST:
        document.report((*place, "largest"), f"route {name!r}: expected at most {MOST_LARGEST} bytes, 16MiB")
    if cache.wait > MOST_WAIT:
        told = f"route {name!r}: calls would wait {cache.wait:g} s for a cache that is down; expected at most 1s"
        document.report((*place, "wait"), told)


def _check_reach(document: Document, table: Table, name: str) -> None:
    """Tell which tiers no call comes to whose targets have failed before: it has asked as many as it may."""
    asked = 0
    for owner, tier, targets in table.tiers(name):
        if asked >= MOST_TARGETS:
            place = ("routes", name, *(("fallback",) if owner == name else ("fallback_route",)))
            what = f"tier {tier}" if owner == name else f"tier {tier} of route {owner!r}"
            told = (
                f"route {name!r}: no call that fails comes to {what} ({', '.join(targets)}): {MOST_TARGETS} targets "
                f"are asked for one call, and the tiers before have as many. It serves only while those can take none"
            )
            document.report(place, told, warning=True)
        asked += min(table.routes[owner].retry.attempts, len(targets))


def _runs_in_a_circle(document: Document, table: Table, name: str) -> bool:
    place, seen = ("routes", name, "fallback_route"), [name]
    following = table.routes[name].fallback_route
    if following is not None and following not in table.routes and not document.broken("routes", following):
        document.report(place, f"no route {following!r}; routes: {', '.join(table.routes)}")
    while following is not None and following in table.routes:
        if following in seen:
            document.report(place, f"fallback routes in a circle: {' -> '.join([*seen, following])}")
            return True
        seen.append(following)
        following = table.routes[following].fallback_route
    return following is not None  # there is none of that name


def _check_money(document: Document, table: Table) -> None:
    for name, route in table.routes.items():
        price = route.price
        if price is not None and price.cached is not None and price.cached > price.input:
            told = f"route {name!r}: cached prompt tokens cost more than others"
            document.report(("routes", name, "price", "cached"), told, warning=True)
    charged = {name for name, route in table.routes.items() if route.price is not None and not route.price.free}
    for path, limits in _limits(table):
        free = path[1] not in charged if path[0] == "routes" else not charged
        for place in limits.money() if free and not document.broken("routes") else ():
            whose = f"route {path[1]!r} has no" if path[0] == "routes" else "no route has a"
            document.report((*path, *place), f"no call is ever charged to this budget: {whose} price above 0")


def _limits(table: Table) -> Iterator[tuple[tuple[str, ...], LimitSpec]]:
    for field in ("default", "tenant"):
        yield ("limits", field), getattr(table.limits, field)
    for name, route in table.routes.items():
        yield ("routes", name, "limits"), route.limits
        yield ("routes", name, "key_limits"), route.key_limits


def _run_tests(document: Document, table: Table) -> None:
    index = table.names()
    for position, test in enumerate(table.tests):
        if test.expect.route is not None and test.expect.route not in table.routes:
            known = ", ".join(table.routes)
            document.report(("tests", position, "expect", "route"), f"no route {test.expect.route!r}; routes: {known}")
        elif (found := index.find(test.ask.model)) != test.expect.route:
            expected, got = (f"route {name!r}" if name else "no route" for name in (test.expect.route, found))
            document.report(("tests", position), f"test failed: model {test.ask.model!r} meets {got}, not {expected}")
        elif test.expect.targets is not None:
            order = tuple(table.order(found)) if found is not None else ()
            if order != test.expect.targets:
                asked, shown = f"model {test.ask.model!r}", ", ".join(order) or "none"
                document.report(("tests", position), f"test failed: the targets for {asked} are {shown}")
