"""From a model name to targets: who can take a call, who will answer it soonest, and what each has to do meanwhile."""

from gateway.routes.attempts import Attempts
from gateway.routes.builder import Builder
from gateway.routes.gossip import Gossip
from gateway.routes.placement import Placement
from gateway.routes.route import Route
from gateway.routes.routing import Routes
from gateway.routes.slots import Slots
from gateway.routes.target import Target

__all__ = ["Attempts", "Builder", "Gossip", "Placement", "Route", "Routes", "Slots", "Target"]
