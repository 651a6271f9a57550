"""What of a LiteLLM config.yaml a routing table can say, and what it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.config.weak_secrets import is_weak

KINDS: Final = {
    "hosted_vllm": "vllm",
    "huggingface": "tgi",
    "openai": "openai",
    "custom_openai": "openai",
    "openai_like": "openai",
    "litellm_proxy": "openai",
    "ollama": "openai",
    "ollama_chat": "openai",
    "lm_studio": "openai",
    "llamafile": "openai",
    "text-completion-openai": "openai",
}
"""Providers whose servers speak a language of ours, each with the adapter."""
OPENAI: Final = "https://api.openai.com"
POLICIES: Final = {"least-busy": "least-tokens"}
_ENVIRONMENT: Final = "os.environ/"
_TARGET: Final = ("model", "api_base", "base_url", "api_key", "weight", "max_parallel_requests", "timeout")
_COSTS: Final = ("input_cost_per_token", "output_cost_per_token")
_ROUTER: Final = ("routing_strategy", "num_retries", "timeout", "model_group_alias", "fallbacks")


def carried(config: Any) -> tuple[dict[str, Any], list[str]]:
    """A routing table as YAML has it, and a line for each thing that is not in it. Raises `ValueError`."""
    if not isinstance(config, dict) or not isinstance(config.get("model_list"), list):
        raise ValueError("expected a LiteLLM config, with a list under 'model_list'")
    return _Carrying().table(config)


class _Carrying:
    """One file on its way."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.routes: dict[str, dict[str, Any]] = {}
        self._names: set[str] = set()

    def table(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        for number, entry in enumerate(config["model_list"]):
            self._model(f"model_list[{number}]", entry)
        if not self.routes:
            raise ValueError("; ".join(["no model of 'model_list' can be carried", *self.left]))
        settings = _mapping(config.get("litellm_settings"))
        router = _mapping(config.get("router_settings"))
        self._router({**{name: settings[name] for name in ("num_retries", "fallbacks") if name in settings}, **router})
        if (seconds := settings.get("request_timeout")) is not None and "timeout" not in router:
            self._timeout("litellm_settings.request_timeout", seconds)
        self._rest("litellm_settings", settings, ("num_retries", "fallbacks", "request_timeout"))
        general = _mapping(config.get("general_settings"))
        if "master_key" in general:
            self.left.append(
                "general_settings.master_key: `trunkline keys create` makes keys, `admin create` admin keys"
            )
        self._rest("general_settings", general, ("master_key",))
        parts = ("model_list", "litellm_settings", "router_settings", "general_settings")
        self.left += [str(name) for name in config if name not in parts]
        return {"routes": self.routes}, self.left

    def _model(self, place: str, entry: Any) -> None:
        given = _mapping(entry)
        name, params = given.get("model_name"), _mapping(given.get("litellm_params"))
        full = params.get("model")
        if not isinstance(name, str) or not isinstance(full, str) or not name or not full:
            self.left.append(f"{place}: no 'model_name', or no 'model' in its 'litellm_params'")
            return
        place = f"{place} ({name})"
        provider, separator, model = full.partition("/")
        if not separator or (provider not in KINDS and params.get("custom_llm_provider") in KINDS):
            provider, model = str(params.get("custom_llm_provider", "openai")), full
        base = params.get("api_base") or params.get("base_url") or (OPENAI if provider == "openai" else None)
        if provider not in KINDS or "*" in name or "*" in model or not isinstance(base, str):
            why = "its name has a *" if "*" in name + model else "it has no 'api_base'"
            why = why if provider in KINDS else f"servers of {provider!r} are not spoken to"
            self.left.append(f"{place}: {why}")
            return
        route = self.routes.setdefault(name, {"targets": []})
        target = {"name": self._target_name(name), "backend": KINDS[provider], "url": self._url(place, base)}
        if KINDS[provider] != "tgi" and model != name:
            target["model"] = model
        target |= self._options(place, params, target["name"])
        same = ("url", "model")
        if any(all(other.get(field) == target.get(field) for field in same) for other in route["targets"]):
            self.left.append(f"{place}: the same server and model are in the route already")
            return
        route["targets"].append(target)
        if (seconds := params.get("timeout")) is not None:
            self._timeout(f"{place} timeout", seconds, name)
        self._rest(f"{place} litellm_params", params, (*_TARGET, "custom_llm_provider"))
        self._price(place, name, {**params, **_mapping(given.get("model_info"))})
        self._rest(f"{place} model_info", _mapping(given.get("model_info")), _COSTS)

    def _options(self, place: str, params: Mapping[str, Any], target: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if (key := params.get("api_key")) is not None:
            if isinstance(key, str) and key.startswith(_ENVIRONMENT):
                found["api_key"] = f"${{{key.removeprefix(_ENVIRONMENT)}}}"
            elif not is_weak(str(key)):
                variable = re.sub(r"\W", "_", target).upper() + "_KEY"
                found["api_key"] = f"${{{variable}}}"
                self.left.append(f"{place} api_key: a secret; the table refers to the environment variable {variable}")
        for theirs, ours in (("weight", "weight"), ("max_parallel_requests", "max_inflight")):
            value = params.get(theirs)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found[ours] = value
        return found

    def _url(self, place: str, base: str) -> str:
        if base.startswith(_ENVIRONMENT):
            variable = base.removeprefix(_ENVIRONMENT)
            self.left.append(f"{place} api_base: {variable} must have the server's base, without /v1")
            return f"${{{variable}}}"
        return base.rstrip("/").removesuffix("/v1").rstrip("/")

    def _target_name(self, route: str) -> str:
        first = name = re.sub(r"[^!-~]", "-", route)[:90]
        number = 1
        while name in self._names:
            number += 1
            name = f"{first}-{number}"
        self._names.add(name)
        return name

    def _price(self, place: str, route: str, info: Mapping[str, Any]) -> None:
        costs = [info.get(name) for name in _COSTS]
        if not any(isinstance(cost, int | float) for cost in costs):
            return
        first, second = (round(float(cost) * 1e6, 6) if isinstance(cost, int | float) else 0 for cost in costs)
        price = {"input": first, "output": second}
        if self.routes[route].setdefault("price", price) != price:
            self.left.append(f"{place} model_info: a route has one price, that of its first model")

    def _router(self, router: Mapping[str, Any]) -> None:
        policy = POLICIES.get(str(router.get("routing_strategy")))
        if "routing_strategy" in router and policy is None:
            self.left.append(
                f"router_settings.routing_strategy {router['routing_strategy']!r}: home-cost is used instead"
            )
        retries = router.get("num_retries")
        for route in self.routes.values():
            if policy is not None:
                route["policy"] = policy
            if isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0:
                route["retry"] = {"attempts": min(retries + 1, 3)}
        if isinstance(retries, int) and retries > 2:
            self.left.append(f"num_retries {retries}: at most 3 targets of a tier are asked for one call")
        if (seconds := router.get("timeout")) is not None:
            self._timeout("router_settings.timeout", seconds)
        for alias, model in _mapping(router.get("model_group_alias")).items():
            self._alias(str(alias), model)
        fallbacks = router.get("fallbacks")
        for each in fallbacks if isinstance(fallbacks, list) else ():
            for model, others in _mapping(each).items():
                self._fallback(str(model), others)
        self._rest("router_settings", router, _ROUTER)

    def _alias(self, alias: str, model: Any) -> None:
        if alias in self.routes or model not in self.routes:
            self.left.append(f"router_settings.model_group_alias {alias!r}: {model!r} is no route, or {alias!r} is one")
            return
        self.routes[model].setdefault("aliases", []).append(alias)

    def _fallback(self, model: str, others: Any) -> None:
        names = [name for name in others if name in self.routes] if isinstance(others, list) else []
        if model not in self.routes or not names or self._circle(model, names[0]):
            self.left.append(f"fallbacks of {model!r}: {others!r} are no routes, lead in a circle, or it is none")
            return
        self.routes[model]["fallback_route"] = names[0]
        for name in names[1:]:
            self.left.append(f"fallbacks of {model!r}: {name!r}; a route has one, which may have one itself")

    def _circle(self, model: str, following: str | None) -> bool:
        while following is not None and following != model:
            following = self.routes[following].get("fallback_route")
        return following == model

    def _timeout(self, place: str, seconds: Any, route: str | None = None) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            self.left.append(f"{place}: {seconds!r} is no number of seconds")
            return
        for each in [self.routes[route]] if route is not None else self.routes.values():
            each.setdefault("timeouts", {"whole": f"{seconds * 1000:.0f}ms" if seconds % 1 else f"{seconds:.0f}s"})

    def _rest(self, place: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
        """List what nobody asked for by name."""
        self.left += [f"{place}.{name}" for name in given if name not in known and name not in _COSTS]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
