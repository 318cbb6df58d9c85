# The image that runs a compiled model: CANN's run-time libraries, from cann/*.run or in the base already, and the
# user's msame. The driver's libraries and the device come from the host, as mounts.
# Build it with `invoke images`, which makes the context.
ARG BASE

FROM ${BASE} AS base
USER root
COPY debs/ /build/debs/
RUN set -e; for deb in /build/debs/*.deb; do [ ! -e "$deb" ] || { dpkg -i /build/debs/*.deb; break; }; done; \
    rm -rf /build

FROM base AS cann
COPY cann/ install-cann /build/
RUN bash /build/install-cann

FROM base
COPY --from=cann /out/ /
COPY msame /usr/local/bin/msame
COPY with-cann /usr/local/bin/with-cann
COPY check-cann /opt/deberta-ascend/check-cann
ENV HOME=/tmp
RUN ["bash", "/opt/deberta-ascend/check-cann", "runtime"]
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/with-cann"]
CMD ["msame", "--help"]
