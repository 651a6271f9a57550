"""From a model name to targets: who can take a call, who will answer it soonest, and what each has to do meanwhile."""

from gateway.routing.attempt import Attempt
from gateway.routing.attempts import Attempts
from gateway.routing.builder import Builder
from gateway.routing.gossip import Gossip
from gateway.routing.max_inflight import TargetSlots
from gateway.routing.route import Route
from gateway.routing.routes import Routes

__all__ = ["Attempt", "Attempts", "Builder", "Gossip", "Route", "Routes", "TargetSlots"]
