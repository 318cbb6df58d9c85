# The image that runs a compiled model: CANN's run-time libraries, from cann/*.run or in the base already, and the
# user's msame. The driver's libraries and the device come from the host, as mounts.
# Build it with `invoke images`, which makes the context.
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

FROM base AS scripts
ARG SOURCE_DATE_EPOCH
COPY msame with-cann /out/usr/local/bin/
COPY check-cann /out/opt/deberta-ascend/check-cann
RUN bash /opt/deberta-ascend/settle out

FROM base
ARG SOURCE_DATE_EPOCH
COPY --from=cann /out/ /
COPY --from=scripts /out/ /
ENV HOME=/tmp
RUN ["bash", "/opt/deberta-ascend/settle", "run", "bash", "/opt/deberta-ascend/check-cann", "runtime"]
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/with-cann"]
CMD ["msame", "--help"]
