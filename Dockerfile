# One image for all services of this project; the command says which: bridge, alert-engine, api, emulator.
# It needs no BuildKit. pip reads its usual settings (PIP_INDEX_URL, PIP_CERT, ...) from build arguments of these names.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/base.txt requirements/
# Wheels only, each by its hash: nothing is compiled, so the stage has no compiler either.
RUN python3 -m venv /opt/gpu-telemetry \
 && /opt/gpu-telemetry/bin/pip install --require-hashes --only-binary=:all: --requirement requirements/base.txt
COPY pyproject.toml README.md LICENSE ./
COPY gpu_telemetry gpu_telemetry
COPY exporter_bridge exporter_bridge
COPY alerting alerting
COPY api api
COPY emulator emulator
# Its dashboards are what `grafana push` puts into a Grafana.
COPY grafana grafana
# What only building needs goes again, Cython's sources that some wheels carry included.
RUN /opt/gpu-telemetry/bin/pip install --no-deps --no-build-isolation . \
 && /opt/gpu-telemetry/bin/pip uninstall --yes setuptools pip \
 && find /opt/gpu-telemetry -type f '(' -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' ')' -delete \
 && /opt/gpu-telemetry/bin/gpu-telemetry --help >/dev/null

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="gpu-telemetry" \
      org.opencontainers.image.description="GPU fleet telemetry: dcgm-exporter to Kafka, PostgreSQL and Prometheus" \
      org.opencontainers.image.licenses="Apache-2.0"
# The base image's pip and its like have nothing to do here: the environment below holds all that runs.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip \
 && groupadd --gid 10001 telemetry \
 && useradd --uid 10001 --gid telemetry --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin telemetry
COPY --from=build /opt/gpu-telemetry /opt/gpu-telemetry
ENV PATH=/opt/gpu-telemetry/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["gpu-telemetry"]
CMD ["--help"]
