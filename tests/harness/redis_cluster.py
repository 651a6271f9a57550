"""A Redis Cluster of three nodes, real processes; slots can be moved, and a node can have a replica to take over."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.redis_sentinel import AT_ONCE, until
from harness.redis_server import RedisServer, free_port, redis_binary

NODES, SLOTS = 3, 16384
BUS = 10000
"""The bus listens this far above the port."""


class Node(NamedTuple):
    server: RedisServer
    id: str


class Cluster:
    """The cluster; `url` is what a gateway is given."""

    def __init__(self, nodes: list[Node], replica: Node | None) -> None:
        self.nodes, self.replica = nodes, replica
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.server.port}" for node in nodes)

    def slot(self, key: str) -> int:
        found: int = self.nodes[0].server.ask("CLUSTER", "KEYSLOT", key)
        return found

    def owner(self, key: str) -> Node:
        """The node that has this key's slot, by the first node's own map."""
        slot = self.slot(key)
        known = [node for node in (*self.nodes, self.replica) if node is not None]
        asked = next(node for node in known if node.server.process.poll() is None)
        for first, last, owner, *_ in asked.server.ask("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return next(node for node in known if node.server.port == int(owner[1]))
        raise RuntimeError(f"nobody has slot {slot}")

    def move(self, key: str) -> Node:
        """Move this key's slot with all its keys to the next node, as a resharding does; returns that node."""
        slot, source = self.slot(key), self.owner(key)
        target = self.nodes[(self.nodes.index(source) + 1) % len(self.nodes)]
        target.server.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.server.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.server.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.server.ask("MIGRATE", "127.0.0.1", target.server.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            node.server.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        return target


def _port() -> int:
    """A free port whose bus port is free, too."""
    while True:
        if (port := free_port()) + BUS > 65535:
            continue
        with socket.socket() as bus:
            try:
                bus.bind(("127.0.0.1", port + BUS))
            except OSError:
                continue
            return port


def _node(folder: Path, binary: str) -> Node:
    folder.mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-replica-validity-factor", "0")
    server = RedisServer(str(folder), _port(), binary=binary, options=(*options, *AT_ONCE))
    return Node(server, server.ask("CLUSTER", "MYID"))


def _whole(nodes: list[Node]) -> bool:
    """Every node knows every other one and says that all slots are served."""
    told = [node.server.ask("CLUSTER", "INFO") for node in nodes]
    lines = [info if isinstance(info, str) else "\n".join(f"{key}:{info[key]}" for key in info) for info in told]
    return all("cluster_state:ok" in info and f"cluster_known_nodes:{len(nodes)}" in info for info in lines)


@contextmanager
def redis_cluster(*, binary: str | None = None, replica_of: str | None = None) -> Iterator[Cluster]:
    """A cluster of one's own; `replica_of`: the owner of this key's slot gets a replica that takes over for it."""
    program = binary or redis_binary()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nodes = []
        for number in range(NODES if replica_of is None else NODES + 1):
            nodes.append(_node(folder / f"node-{number}", program))
            stack.callback(nodes[-1].server.stop)
        first = nodes[0].server
        for number, node in enumerate(nodes[:NODES]):
            share = range(number * SLOTS // NODES, (number + 1) * SLOTS // NODES)
            node.server.ask("CLUSTER", "ADDSLOTS", *share)
        for node in nodes[1:]:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.server.port)
        until(lambda: _whole(nodes), "the cluster is whole", 30)
        cluster = Cluster(nodes[:NODES], nodes[NODES] if replica_of is not None else None)
        if cluster.replica is not None and replica_of is not None:
            _follow(cluster, cluster.replica, replica_of)
        yield cluster


def _follow(cluster: Cluster, replica: Node, key: str) -> None:
    owner = cluster.owner(key)
    until(lambda: replica.server.ask("CLUSTER", "REPLICATE", owner.id) in ("OK", True), "the replica knows its master")
    until(lambda: replica.server.ask("ROLE")[3] == "connected", "the replica follows")
    # The other masters vote only for a replica that they have heard of.
    until(lambda: all(replica.id in str(node.server.ask("CLUSTER", "NODES")) for node in cluster.nodes), "all know it")
