# The image that compiles with ATC: CANN's toolkit, from cann/*.run or in the base already, and the Python packages that
# ATC imports. `docker run IMAGE atc --model=...` works: the entry point sources CANN's set_env.sh.
# Build it with `invoke images`, which makes the context; what network/ holds is of the machine, and ends in no layer.
ARG BASE

FROM ${BASE} AS debs
ARG SOURCE_DATE_EPOCH
USER root
COPY settle /out/opt/deberta-ascend/settle
COPY debs/ /build/debs/
RUN bash /out/opt/deberta-ascend/settle collect sh -c 'set -- /build/debs/*.deb; [ ! -e "$1" ] || dpkg -i "$@"'

FROM ${BASE} AS base
USER root
COPY --from=debs /out/ /

FROM base AS cann
ARG SOURCE_DATE_EPOCH
COPY cann/ install-cann /build/
RUN bash /build/install-cann && bash /opt/deberta-ascend/settle out

FROM base AS packages
ARG SOURCE_DATE_EPOCH
COPY network/ /build/network/
COPY ais_bench/ /build/ais_bench/
COPY install-packages requirements.lock /build/
RUN python3 /build/install-packages target /opt/atc/site-packages 3.9 && bash /opt/deberta-ascend/settle out /opt/atc

FROM base AS scripts
ARG SOURCE_DATE_EPOCH
COPY with-cann /out/usr/local/bin/with-cann
COPY check-cann /out/opt/deberta-ascend/check-cann
RUN bash /opt/deberta-ascend/settle out

FROM base
ARG SOURCE_DATE_EPOCH
COPY --from=cann /out/ /
COPY --from=packages /out/ /
COPY --from=scripts /out/ /
ENV HOME=/tmp PYTHONPATH=/opt/atc/site-packages
RUN ["bash", "/opt/deberta-ascend/settle", "run", "bash", "/opt/deberta-ascend/check-cann", "compile"]
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/with-cann"]
CMD ["atc", "--help"]
