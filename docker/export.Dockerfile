# The image of the stages that need PyTorch (export, tokenizer, evaluation) and of the cpu backend: Python 3.11 with
# the packages of requirements-stages.lock in /opt/stages. Our own code is mounted at run time, at /opt/deberta-ascend.
# Build it with `invoke images`, which makes the context: what network/ holds is of the machine, and ends in no layer.
ARG BASE

FROM ${BASE} AS packages
ARG SOURCE_DATE_EPOCH
USER root
COPY network/ /build/network/
COPY install-packages settle requirements.lock /build/
RUN python3 /build/install-packages venv /opt/stages 3.11 && mkdir -p /opt/deberta-ascend/deberta && \
    bash /build/settle out /opt/stages /opt/deberta-ascend

FROM ${BASE}
COPY --from=packages /out/ /
# A user without a home of its own; the executor names the caller's.
ENV HOME=/tmp
USER 1000:1000
ENTRYPOINT []
CMD ["/opt/stages/bin/python", "--version"]
