FROM rust:1.95-slim-bookworm AS build
WORKDIR /src

# `dev` builds sooner, and what it builds is slower: for trying the image out.
ARG PROFILE=release

# The dependencies are built against an empty crate, in a layer that stays until the manifest or the lock file changes.
# Unlike a cache mount, a layer can be pushed and pulled, so that CI machines have it too; and it needs no extra tool.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src \
    && echo '//! Empty.' > src/lib.rs \
    && printf '//! Empty.\nfn main() {}\n' > src/main.rs \
    && cargo build --profile "$PROFILE" --locked --no-default-features --features full --bin posthaste

# Without default features: the mock Svix stays out of the image; with every kind of source. The sources are older than the empty crate's build,
# so cargo would take them for unchanged. Function names stay for backtraces, line tables go.
COPY assets assets
COPY migrations migrations
COPY src src
COPY templates templates
RUN touch src/lib.rs src/main.rs \
    && cargo build --profile "$PROFILE" --locked --no-default-features --features full --bin posthaste \
    && install target/*/posthaste /usr/local/bin/posthaste \
    && strip --strip-debug /usr/local/bin/posthaste


FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="Posthaste" \
      org.opencontainers.image.description="A webhook relay: batches in, each event once in a ledger, one Svix message each." \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

# The Svix client does not start without CA certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/posthaste
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/posthaste/
COPY --from=build /usr/local/bin/posthaste /usr/local/bin/posthaste

# Nothing is written outside the volume, so the root file system may be read-only.
USER 10001:10001
WORKDIR /var/lib/posthaste
VOLUME /var/lib/posthaste

# Listening beyond loopback, `serve` asks for POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY while there is no API key.
ENV POSTHASTE_DATABASE_URL=sqlite:/var/lib/posthaste/posthaste.db \
    POSTHASTE_HTTP__LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["posthaste", "health"]
ENTRYPOINT ["posthaste"]
CMD ["serve"]
