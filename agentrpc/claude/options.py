"""A session's options as the SDK wants them.

Allow and deny rules never go to the CLI: the gate decides about every call. What is big or secret goes by file.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions

from agentrpc.claude.fence import PROXY
from agentrpc.claude.launcher import Isolation, SessionPaths
from agentrpc.v1 import common_pb2, session_pb2

__all__ = ["agent_environment", "agent_options", "plain_environment", "trust_environment"]

# What the CLI would otherwise do besides its work: telemetry, updates, calls home, memories, scheduled wake-ups.
_SWITCHES = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_CRON": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    # The socket by which other sessions could begin turns in this one, and so could any tool.
    "CLAUDE_CODE_HARBOR_KITE": "0",
    # What has had another default in some version of this year, and would be the gateway's or a feature flag's to say.
    "CLAUDE_CODE_DISABLE_DEFERRED_TOOL_RESUME": "0",
    "CLAUDE_CODE_DISABLE_RESPONSE_COMPRESSION": "1",
    "CLAUDE_CODE_MAX_CONCURRENT_SUBAGENTS": "20",
    "CLAUDE_CODE_MAX_SUBAGENT_SPAWN_DEPTH": "3",
    # Whether it has anything left to do, which no other frame says: see `Translator.reports_due`.
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    # What the SDK would set and the cleared environment loses.
    "CLAUDE_AGENT_SDK_VERSION": claude_agent_sdk.__version__,
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
    "CLAUDE_AGENT_SDK_CLIENT_APP": "agentrpc",
}
_MODES = {
    common_pb2.PERMISSION_MODE_ACCEPT_EDITS: "acceptEdits",
    common_pb2.PERMISSION_MODE_PLAN: "plan",
}
_EFFORTS = {
    session_pb2.EFFORT_LOW: "low",
    session_pb2.EFFORT_MEDIUM: "medium",
    session_pb2.EFFORT_HIGH: "high",
    session_pb2.EFFORT_XHIGH: "xhigh",
    session_pb2.EFFORT_MAX: "max",
}
# Our gate asks, and our sandbox holds: the CLI's own sandbox is off, and allows nothing that has not been asked about.
# Before WebFetch it would ask the provider about the domain, past the gateway.
_SETTINGS: dict[str, Any] = {
    "sandbox": {"enabled": False, "autoAllowBashIfSandboxed": False},
    "skipWebFetchPreflight": True,
}
# What leads out of a network of its own, for curl, git, pip, npm, cargo, Go, Node's fetch and the CLI. Some read only
# the small names, some only the large ones. Not by SOCKS: not everybody has what that needs.
_WAYS_OUT = {
    "HTTP_PROXY": "http://{}:{}".format(*PROXY),
    "HTTPS_PROXY": "http://{}:{}".format(*PROXY),
    "ALL_PROXY": "http://{}:{}".format(*PROXY),
    "NO_PROXY": "localhost,127.0.0.1,::1",
}
_PROXIES = {**_WAYS_OUT, **{name.lower(): value for name, value in _WAYS_OUT.items()}, "NODE_USE_ENV_PROXY": "1"}
# A line holds a whole message with its pictures; the SDK's limit of 1 MiB would end the reader.
_MAX_LINE = 64 * 1024 * 1024


def plain_environment(paths: SessionPaths, isolation: Isolation) -> dict[str, str]:
    """What the environment of every program in a sandbox holds."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "SHELL": "/bin/bash",
        "USER": "agent",
        "HOME": str(paths.home),
        "PWD": str(paths.workspace),
        **(_PROXIES if isolation.fenced else {}),
    }


def agent_environment(
    paths: SessionPaths, isolation: Isolation, gateway_url: str, token: str, models: Mapping[str, str]
) -> dict[str, str]:
    """All that the agent's environment holds. `models`: by alias, what the CLI is to take for it."""
    return {
        **plain_environment(paths, isolation),
        "CLAUDE_CONFIG_DIR": str(paths.config),
        "ANTHROPIC_BASE_URL": gateway_url,
        "ANTHROPIC_AUTH_TOKEN": token,
        **{f"ANTHROPIC_DEFAULT_{alias.upper()}_MODEL": model for alias, model in models.items()},
        **_SWITCHES,
    }


def trust_environment(bundle: Path) -> dict[str, str]:
    """What has programs trust the authorities in a PEM file: OpenSSL and Go, curl, git, Python, cargo, Node and npm."""
    names = (
        *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO"),
        *("NODE_EXTRA_CA_CERTS", "npm_config_cafile"),
    )
    return {name: str(bundle) for name in names}


def agent_options(
    options: session_pb2.SessionOptions,
    paths: SessionPaths,
    rest: Mapping[str, Any],
    mcp_urls: Mapping[str, str],
    *,
    ask: Sequence[str] = (),
) -> ClaudeAgentOptions:
    """The SDK's options.

    Args:
        options: The session's, valid, with its model set.
        paths: The session's folders, for what goes by file.
        rest: What belongs to the process: cli_path, session_id or resume, hooks, store.
        mcp_urls: Where the CLI finds MCP servers that are not in its sandbox, by name.
        ask: Tools about which the CLI asks, whatever else allows them.
    """
    mode = _MODES.get(options.permission_mode, "default")
    arguments: dict[str, Any] = {
        "model": options.model or None,
        "cwd": str(paths.workspace),
        "permission_mode": mode,
        "include_partial_messages": True,
        "forward_subagent_text": True,
        "setting_sources": [],
        "strict_mcp_config": True,
        "max_buffer_size": _MAX_LINE,
        # Callers' prompts are delivered as written: no @path that reads a file past the gate, no slash command.
        "verbatim_prompts": True,
        "extra_args": {},
        "settings": json.dumps({**_SETTINGS, "permissions": {"defaultMode": mode, "ask": list(ask)}}),
        **rest,
    }
    arguments["system_prompt"] = _system_prompt(options, paths, arguments["extra_args"])
    if options.HasField("tools"):
        arguments["tools"] = list(options.tools.names)
    if options.HasField("max_turns"):
        arguments["max_turns"] = options.max_turns
    if options.HasField("max_cost_usd"):
        arguments["max_budget_usd"] = options.max_cost_usd
    if options.HasField("thinking"):
        arguments["thinking"] = _thinking(options.thinking)
    if options.effort:
        arguments["effort"] = _EFFORTS[options.effort]
    if options.output_schema_json:
        arguments["output_format"] = {"type": "json_schema", "schema": json.loads(options.output_schema_json)}
    if options.mcp_servers:
        servers = {server.name: _mcp_server(server, paths, mcp_urls) for server in options.mcp_servers}
        arguments["mcp_servers"] = str(paths.write_option("mcp.json", json.dumps({"mcpServers": servers})))
    return ClaudeAgentOptions(**arguments)


def _system_prompt(options: session_pb2.SessionOptions, paths: SessionPaths, extra: dict[str, Any]) -> Any:  # noqa: ANN401
    # By file: one argument may have at most 128 KiB, and a prompt is nobody's business who can read argv.
    which = options.system_prompt.WhichOneof("prompt")
    if which == "custom":
        return {"type": "file", "path": str(paths.write_option("system-prompt", options.system_prompt.custom))}
    if which == "append":
        extra["append-system-prompt-file"] = str(paths.write_option("append-prompt", options.system_prompt.append))
    return {"type": "preset", "preset": "claude_code"}


def _thinking(thinking: session_pb2.Thinking) -> dict[str, Any]:
    mode = thinking.WhichOneof("mode")
    if mode == "disabled" and thinking.disabled:
        return {"type": "disabled"}
    display = {"display": "summarized" if thinking.summarized else "omitted"}
    if mode == "budget_tokens":
        return {"type": "enabled", "budget_tokens": thinking.budget_tokens, **display}
    return {"type": "adaptive", **display}


def _mcp_server(server: session_pb2.McpServer, paths: SessionPaths, urls: Mapping[str, str]) -> dict[str, Any]:
    if server.HasField("builtin"):
        # The CLI calls it over the control protocol.
        return {"type": "sdk", "name": server.name}
    if server.name in urls:
        return {"type": "http", "url": urls[server.name]}
    # The CLI would expand ${NAME} in its file with its own environment, where the run's token is. A script says the
    # words exactly as they are.
    command = shlex.join([server.stdio.command, *server.stdio.args])
    script = paths.write_option(f"mcp-{server.name}", f"exec {command}\n")
    return {"type": "stdio", "command": "/bin/sh", "args": [str(script)]}
