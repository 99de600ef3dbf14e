"""AgentRPC: a self-hosted control service for Claude agents, spoken over gRPC."""

__version__ = "0.1.0"
