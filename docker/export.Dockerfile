# The image of the stages that need PyTorch (export, tokenizer, evaluation) and of the cpu backend: Python 3.11 with
# the packages of requirements-stages.lock in /opt/stages. Our own code is mounted at run time, at /opt/deberta-ascend.
# Build it with `invoke images`, which makes the context: what network/ holds is of the machine, and ends in no layer.
ARG BASE

FROM ${BASE} AS packages
USER root
COPY network/ /build/network/
COPY install-packages requirements.lock /build/
RUN python3 /build/install-packages venv /opt/stages 3.11
RUN mkdir -p /opt/deberta-ascend/deberta

FROM ${BASE}
COPY --from=packages /opt/stages/ /opt/stages/
COPY --from=packages /opt/deberta-ascend/ /opt/deberta-ascend/
# A user without a home of its own; the executor names the caller's.
ENV HOME=/tmp
USER 1000:1000
ENTRYPOINT []
CMD ["/opt/stages/bin/python", "--version"]
