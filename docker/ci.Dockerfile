# The image of a whole acceptance run: our code and its packages, with CANN and msame if the user has brought them.
# Steps run in it as processes (the local executor): it needs no network, no root, and to write only to the workspace.
# Build it with `invoke ci-image`, which makes the context; what network/ holds is of the machine, and ends in no layer.
# BASE is the export image. CANN is the compile image, or the export image again where there is no CANN.
ARG BASE
ARG CANN

FROM ${CANN} AS cann
ARG SOURCE_DATE_EPOCH
USER root
COPY ci-collect project/docker/settle /build/
RUN bash /build/ci-collect && bash /build/settle out

FROM ${BASE} AS project
ARG SOURCE_DATE_EPOCH
USER root
COPY network/ /build/network/
COPY install-packages requirements.lock /build/
RUN python3 /build/install-packages venv /opt/deberta-ascend/.venv 3.11
COPY project/ /opt/deberta-ascend/
COPY project/requirements-stages.lock /out/opt/stages/
COPY --from=cann /libraries/ /libraries/
# What inv and the stages take for finished environments: the locks in them. No .pyc is ever written beside the code.
# Of the libraries that CANN and ATC's Python load, those that this system has not.
RUN set -e; cd /opt/deberta-ascend; cp requirements-host.lock .venv/; ln -s /opt/stages .venv-stages; \
    python3 -m compileall -q --invalidation-mode unchecked-hash deberta tasks.py; \
    ldconfig; ldconfig -p | awk '/=>/ { print $1 }' > /libraries/.present; mkdir -p /out/opt/atc/lib; \
    for library in /libraries/*; do \
        [ ! -e "$library" ] || grep -qxF "${library##*/}" /libraries/.present || cp -a "$library" /out/opt/atc/lib/; \
    done; \
    cd /; bash /opt/deberta-ascend/docker/settle out /opt/deberta-ascend

FROM ${BASE}
ARG SOURCE_DATE_EPOCH
USER root
COPY --from=cann /out/ /
COPY --from=project /out/ /
RUN ["bash", "/opt/deberta-ascend/docker/settle", "run", "bash", "/opt/deberta-ascend/docker/ci-finish"]
ENV HOME=/tmp USER=user PYTHONDONTWRITEBYTECODE=1
WORKDIR /workspace
USER 1000:1000
ENTRYPOINT ["/opt/deberta-ascend/docker/ci-inv"]
CMD ["--list"]
