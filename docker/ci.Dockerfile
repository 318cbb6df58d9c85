# The image of a whole acceptance run: our code and its packages, with CANN and msame if the user has brought them.
# Steps run in it as processes (the local executor): it needs no network, no root, and to write only to the workspace.
# Build it with `invoke ci-image`, which makes the context; what network/ holds is of the machine, and ends in no layer.
# BASE is the export image. CANN is the compile image, or the export image again where there is no CANN.
ARG BASE
ARG CANN

FROM ${CANN} AS cann
USER root
COPY ci-collect /build/
RUN bash /build/ci-collect

FROM ${BASE} AS project
USER root
COPY network/ /build/network/
COPY install-packages requirements.lock /build/
RUN python3 /build/install-packages venv /opt/deberta-ascend/.venv 3.11
COPY project/ /opt/deberta-ascend/
# What inv and the stages take for finished environments: the locks in them. No .pyc is ever written beside the code.
RUN set -e; cd /opt/deberta-ascend; cp requirements-host.lock .venv/; ln -s /opt/stages .venv-stages; \
    python3 -m compileall -q --invalidation-mode unchecked-hash deberta tasks.py

FROM ${BASE}
USER root
COPY --from=cann /out/ /
COPY --from=project /opt/deberta-ascend/ /opt/deberta-ascend/
COPY project/requirements-stages.lock /opt/stages/
RUN ["bash", "/opt/deberta-ascend/docker/ci-finish"]
ENV HOME=/tmp USER=user PYTHONDONTWRITEBYTECODE=1
WORKDIR /workspace
USER 1000:1000
ENTRYPOINT ["/opt/deberta-ascend/docker/ci-inv"]
CMD ["--list"]
