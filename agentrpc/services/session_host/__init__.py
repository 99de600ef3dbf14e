"""Hosts sessions on a worker: lease, actor, gate, writer."""
