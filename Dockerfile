# One image for every process: `agentrpc serve`, `worker`, `scheduler`, `migrate`.
#
# A worker keeps its agents apart with bubblewrap, which makes user namespaces and mounts a /proc of its own. Docker's
# profiles forbid that to containers: run the worker with `--security-opt seccomp=unconfined`, `apparmor=unconfined` (where
# there is AppArmor) and `systempaths=unconfined`, as docker-compose.yml does; agents get a filter of ours instead. A worker
# that cannot use bubblewrap does not start, unless AGENTRPC_ISOLATION=subreaper says that agents may run without a sandbox.
# The other processes need nothing of this.
FROM python:3.12-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /bin/uv
WORKDIR /src
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/agentrpc
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY agentrpc agentrpc
COPY migrations migrations
RUN uv sync --frozen --no-dev --no-editable

# Node and uv: for MCP servers, which mostly come by npx or uvx.
FROM node:24-slim AS node

FROM python:3.12-slim
# Debian removes a package's version when it has a newer one: those of the release that the base image is of.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap ca-certificates git ripgrep \
        libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 \
        fonts-dejavu-core fonts-noto-cjk fonts-noto-color-emoji \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 agentrpc \
    && install -d -o agentrpc -g agentrpc -m 0700 /var/lib/agentrpc /var/lib/agentrpc/workspaces
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=node /usr/local/lib/node_modules /usr/local/lib/node_modules
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \
    && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /uvx /usr/local/bin/
COPY --from=build /opt/agentrpc /opt/agentrpc
ENV PATH=/opt/agentrpc/bin:$PATH \
    AGENTRPC_DATA_DIR=/var/lib/agentrpc \
    AGENTRPC_WORKSPACE_DIR=/var/lib/agentrpc/workspaces \
    AGENTRPC_LISTEN=0.0.0.0:7400 \
    AGENTRPC_METRICS_LISTEN=127.0.0.1:9400
# By its number: what demands a user that is not root (`runAsNonRoot` of Kubernetes) cannot look names up.
USER 10001
VOLUME /var/lib/agentrpc
EXPOSE 7400
# Every process serves its metrics, within its container only; one that does not answer is not healthy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9400/metrics', timeout=2)"]
ENTRYPOINT ["agentrpc"]
CMD ["serve"]
