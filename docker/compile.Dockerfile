# The image that compiles with ATC: CANN's toolkit, from cann/*.run or in the base already, and the Python packages that
# ATC imports. `docker run IMAGE atc --model=...` works: the entry point sources CANN's set_env.sh.
# Build it with `invoke images`, which makes the context; what network/ holds is of the machine, and ends in no layer.
ARG BASE

FROM ${BASE} AS base
USER root
COPY debs/ /build/debs/
RUN set -e; for deb in /build/debs/*.deb; do [ ! -e "$deb" ] || { dpkg -i /build/debs/*.deb; break; }; done; \
    rm -rf /build

FROM base AS cann
COPY cann/ install-cann /build/
RUN bash /build/install-cann

FROM base AS packages
COPY network/ /build/network/
COPY ais_bench/ /build/ais_bench/
COPY install-packages requirements.lock /build/
RUN python3 /build/install-packages target /opt/atc/site-packages 3.9

FROM base
COPY --from=cann /out/ /
COPY --from=packages /opt/atc/ /opt/atc/
COPY with-cann /usr/local/bin/with-cann
COPY check-cann /opt/deberta-ascend/check-cann
ENV HOME=/tmp PYTHONPATH=/opt/atc/site-packages
RUN ["bash", "/opt/deberta-ascend/check-cann", "compile"]
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/with-cann"]
CMD ["atc", "--help"]
