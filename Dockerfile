# One image for every process: `agentrpc serve`, `worker`, `scheduler`, `migrate`.
#
# A worker isolates its agents with bubblewrap, which needs user namespaces. Docker's default seccomp profile forbids
# them: run the worker with `--security-opt seccomp=unconfined` (and `--security-opt apparmor=unconfined` where AppArmor
# restricts them) on a host you trust with it, or accept isolation=subreaper, with which the agents of one worker can see
# each other's files. The other processes need nothing of this.
FROM python:3.12-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /bin/uv
WORKDIR /src
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/agentrpc
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY agentrpc agentrpc
COPY migrations migrations
RUN uv sync --frozen --no-dev --no-editable

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap ca-certificates git ripgrep \
        libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 agentrpc \
    && install -d -o agentrpc -g agentrpc -m 0700 /var/lib/agentrpc /var/lib/agentrpc/workspaces
COPY --from=build /opt/agentrpc /opt/agentrpc
ENV PATH=/opt/agentrpc/bin:$PATH \
    AGENTRPC_DATA_DIR=/var/lib/agentrpc \
    AGENTRPC_WORKSPACE_DIR=/var/lib/agentrpc/workspaces \
    AGENTRPC_LISTEN=0.0.0.0:7400 \
    AGENTRPC_METRICS_LISTEN=0.0.0.0:9400
USER agentrpc
VOLUME /var/lib/agentrpc
EXPOSE 7400 9400
# Every process serves its metrics; one that does not answer is not healthy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9400/metrics', timeout=2)"]
ENTRYPOINT ["agentrpc"]
CMD ["serve"]
