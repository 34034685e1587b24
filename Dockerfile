# A CPU image of polyphi: `docker build -t polyphi .`; docs/container.md explains arguments, volumes and probes.
#
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL are pip's settings of the same names. Give PyTorch's index of CPU builds as
# PIP_EXTRA_INDEX_URL: the default builds for Linux contain CUDA, and the build stops when it would install one.
# Arguments stay visible in the image's history; an index with a password belongs in a pip configuration file,
# `--secret id=pip,src=pip.conf`.

# The base by the digest of its index of platforms, and all packages but torch by the hashes of their files
# (deploy/requirements, which deploy/lock.sh writes). The digest is the one that the repository docker-library/repo-info
# lists for this tag.
ARG BASE=debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251

# pip, which the final image doesn't contain.
FROM ${BASE} AS tools
# Debian removes old versions, so that a build with pinned ones stops working.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tools

# The wheel, with the kernels.
FROM tools AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY pyproject.toml setup.py polyphi_command.py README.md LICENSE NOTICE ./
COPY polyphi polyphi
COPY polyphi_eval polyphi_eval
COPY polyphi_recipe polyphi_recipe
COPY deploy/requirements deploy/requirements
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/tools/bin/pip install --no-cache-dir --no-deps --require-hashes -r deploy/requirements/build.txt \
    && /opt/tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python3 -c "import sys, zipfile; assert 'polyphi/kernels/_native.so' in zipfile.ZipFile(sys.argv[1]).namelist(), 'the kernels were not built'" /wheels/*.whl

FROM ${BASE} AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /models --shell /usr/sbin/nologin polyphi \
    && install --directory --owner=polyphi --group=polyphi /models \
    && python3 -m venv --without-pip /opt/polyphi

# torch is most of the image. Its layer stays the same when only polyphi changes.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH=torch
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/tools/bin/pip --python /opt/polyphi/bin/python install --no-cache-dir --no-deps "$TORCH" \
    && if ! grep -q '^cuda.*= None$' /opt/polyphi/lib/python3*/site-packages/torch/version.py; then \
        echo "expected a CPU build of torch, found one that needs CUDA; give PyTorch's index of CPU builds with" \
            "--build-arg PIP_EXTRA_INDEX_URL=... (docs/container.md)" >&2; exit 1; \
    fi

ARG EXTRAS=serve
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,from=wheel,source=/source/deploy/requirements,target=/requirements \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    if ! [ -f "/requirements/$EXTRAS.txt" ]; then \
        echo "expected EXTRAS with a list of hashes in deploy/requirements, found $EXTRAS; deploy/lock.sh writes lists" >&2; \
        exit 1; \
    fi \
    && /opt/tools/bin/pip --python /opt/polyphi/bin/python install --no-cache-dir --no-deps --require-hashes \
        -r "/requirements/$EXTRAS.txt" \
    && /opt/tools/bin/pip --python /opt/polyphi/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/tools/bin/pip --python /opt/polyphi/bin/python check \
    && /opt/polyphi/bin/python -c "import torch, polyphi.api"

# Models and all caches are in the volume, so that the root file system may be read-only. HOME is there for libraries
# with caches that have no variable, and for users that Kubernetes chooses.
ENV PATH=/opt/polyphi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/models \
    HF_HOME=/models/huggingface \
    POLYPHI_CACHE=/models/polyphi \
    POLYPHI_HOST=0.0.0.0 \
    POLYPHI_PORT=8000
WORKDIR /models
VOLUME /models
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=4 \
    CMD ["python", "-c", "import http.client as http, os, sys; c = http.HTTPConnection('127.0.0.1', int(os.environ['POLYPHI_PORT']), timeout=8); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["polyphi"]
CMD ["serve", "/models/model"]

ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="polyphi" \
    org.opencontainers.image.description="Phi-4-Mini and Phi-4-Multimodal behind an OpenAI-compatible server, on a CPU" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
