# One image for every service: docker build -t openmanager:local .
# A build that can be repeated names the base by digest: --build-arg BASE_IMAGE=python:3.13-slim@sha256:…
ARG BASE_IMAGE=python:3.13-slim
# One program, for `openmanager backup`.
ARG RESTIC_IMAGE=restic/restic:0.18.0

FROM ${RESTIC_IMAGE} AS restic

FROM ${BASE_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# What is copied to the final stage has neither pip nor the build backend.
RUN python -m venv --without-pip /opt/openmanager && python -m venv /opt/build
COPY requirements-image.lock requirements-build.lock ./
RUN python -m pip --python /opt/openmanager/bin/python install --quiet --require-hashes --only-binary=:all: -r requirements-image.lock
RUN /opt/build/bin/python -m pip install --quiet --require-hashes --only-binary=:all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY openmanager openmanager
COPY gateway gateway
COPY services services
RUN /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/wheel . \
    && python -m pip --python /opt/openmanager/bin/python install --quiet --no-deps --no-index /opt/wheel/*.whl

FROM ${BASE_IMAGE}
# Of git, where it is known.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="OpenManager" \
      org.opencontainers.image.description="A telemetry store for server fleets behind typed gRPC contracts." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# A volume takes its owner from the folder that it is first mounted over.
RUN groupadd --gid 10001 openmanager \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/openmanager --shell /usr/sbin/nologin openmanager \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/openmanager /etc/openmanager/tls \
       /etc/openmanager/certs/ca /etc/openmanager/certs/timeseries /etc/openmanager/certs/cache \
       /etc/openmanager/certs/metadata /etc/openmanager/certs/analysis /etc/openmanager/certs/simulator /etc/openmanager/certs/gateway \
       /etc/openmanager/certs/console /etc/openmanager/certs/edge /etc/openmanager/edge
COPY --from=builder /opt/openmanager /opt/openmanager
COPY --from=restic /usr/bin/restic /usr/local/bin/restic
ENV PATH=/opt/openmanager/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /var/lib/openmanager
USER 10001:10001
EXPOSE 50050 50051 50052 50053 50054 50055 50056 50080
# Of the gateway; whoever runs another service names its port, as docker-compose.yml does.
# Without --start-interval, which buildah 1.28 does not know.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["openmanager", "health"]
ENTRYPOINT ["openmanager"]
CMD ["--help"]
