"""Well-known MCP servers, to begin with. Of packages and addresses that their makers name themselves."""

from agentrpc.v1 import mcp_server_pb2, session_pb2

__all__ = ["TEMPLATES"]

_REFERENCE = "https://github.com/modelcontextprotocol/servers"


def _npx(
    name: str, package: str, description: str, *args: str, url: str = _REFERENCE
) -> mcp_server_pb2.McpServerTemplate:
    stdio = session_pb2.McpStdio(command="npx", args=["-y", package, *args])
    return mcp_server_pb2.McpServerTemplate(
        name=name, description=description, url=url, config=session_pb2.McpServer(name=name, stdio=stdio)
    )


def _uvx(name: str, package: str, description: str, *args: str) -> mcp_server_pb2.McpServerTemplate:
    stdio = session_pb2.McpStdio(command="uvx", args=[package, *args])
    return mcp_server_pb2.McpServerTemplate(
        name=name, description=description, url=_REFERENCE, config=session_pb2.McpServer(name=name, stdio=stdio)
    )


def _http(name: str, address: str, description: str, url: str, *headers: str) -> mcp_server_pb2.McpServerTemplate:
    http = session_pb2.McpRemote(url=address, headers=dict.fromkeys(headers, ""))
    return mcp_server_pb2.McpServerTemplate(
        name=name,
        description=description,
        url=url,
        config=session_pb2.McpServer(name=name, http=http),
        required=[f"headers.{header}" for header in headers],
    )


def _builtin(name: str, description: str) -> mcp_server_pb2.McpServerTemplate:
    return mcp_server_pb2.McpServerTemplate(name=f"builtin-{name}", description=description, builtin=name)


TEMPLATES = (
    _builtin("memory", "Notes that outlive the session, in a memory store."),
    _builtin("database", "Read-only queries to a database that the operator has configured."),
    _builtin("system", "What the worker's machine has and uses."),
    _builtin("kubernetes", "A Kubernetes cluster that the operator has configured."),
    _uvx("time", "mcp-server-time", "The time now, and in other time zones."),
    _uvx("fetch", "mcp-server-fetch", "Fetches pages of the web as Markdown."),
    _uvx("git", "mcp-server-git", "Reads and changes a git repository.", "--repository", "<path>"),
    _npx(
        "filesystem",
        "@modelcontextprotocol/server-filesystem",
        "Reads and writes files below a folder.",
        "<path>",
    ),
    _npx("memory", "@modelcontextprotocol/server-memory", "A knowledge graph in a file, for one session."),
    _npx(
        "sequential-thinking",
        "@modelcontextprotocol/server-sequential-thinking",
        "A place to think step by step, and to think again.",
    ),
    _npx("everything", "@modelcontextprotocol/server-everything", "All that the protocol has, for trying things out."),
    _npx(
        "playwright",
        "@playwright/mcp@latest",
        "A browser that the agent drives.",
        "--headless",
        url="https://github.com/microsoft/playwright-mcp",
    ),
    _http(
        "github",
        "https://api.githubcopilot.com/mcp/",
        "Repositories, issues and pull requests; the header is `Bearer` and a token.",
        "https://github.com/github/github-mcp-server",
        "Authorization",
    ),
    _http(
        "deepwiki",
        "https://mcp.deepwiki.com/mcp",
        "Questions about public repositories, answered from their documentation.",
        "https://docs.devin.ai/work-with-devin/deepwiki-mcp",
    ),
)
