//! Posthaste: a webhook relay.
//!
//! A platform POSTs batches of events; Posthaste records each once in a ledger, answers after the commit, and gets
//! every event to where it belongs: to Svix, as one message each, and straight to partners' URLs.
//!
//! This page is for whoever is about to change it. How to run it is in `README.md`, why it is as it is in `NOTES.md`.
//!
//! # The way of an event
//!
//! ```text
//!  producers ─▶ http::notifications ─▶ ingest ─▶ ledger.accept ─▶ 202
//!  brokers ───▶ sources ───────────────┘             │            ─▶ acknowledged
//!                       parse · authorise · route     │ group commit
//!                                                     │ hand-off or wake-up
//!                       domain::scheduler.next ◀──────┘
//!                                 │            ◀── ledger.claim
//!            send::svix ──▶ Svix API, send::direct ──▶ partners
//!                                 │
//!                       domain::delivery::settle ─▶ ledger.settle
//! ```
//!
//! # Codemap
//!
//! - [`announcements`]: our own events of what operators should know, gathered so that no flood makes another.
//! - [`app`]: the composition root. Opens, connects, starts and ends everything; the real clock.
//! - [`audit`]: whether Svix has what it was given; what it lacks is a replay's to send.
//! - [`cli`]: the command line, one file a command. Its `bench` measures a relay from outside.
//! - [`config`]: every setting with its default; file and environment.
//! - [`directory`]: who is who. Tenants, API keys, partners, in memory, read again when they change.
//! - [`dispatcher`]: the one loop. Claims, sends, settles; decides nothing itself. Its `neighbours` hears other nodes.
//! - [`domain`]: the rules, as plain data: parsing, keys, retry, gates, the scheduler, what an answer means (`outcomes`).
//! - [`endpoints`]: what attempts mean for an endpoint as a whole; test events and challenges.
//! - `failpoint` (feature `failpoints`): places where tests make the process end itself; nothing without the feature.
//! - [`http`]: the server. Accept loop, clients' deadlines (`patience`), packed bodies (`encoding`), ingest, administration,
//!   health, metrics, problems. Its `console` is the pages at
//!   `/console`: a client of `/v1` from inside; `templates` and `assets` are its HTML, stylesheet and scripts.
//! - [`ingest`]: the doorway of the ledger, for HTTP and for sources; how fast tenants may put events in.
//! - [`jobs`]: background jobs: when each last succeeded, how far it lags, how often it failed.
//! - [`ledger`]: every event once, every delivery until it is done. The only place that knows SQL. Its writer commits
//!   together what waits; `fan_out` queues the deliveries of large requests step by step; `sqlite` and `postgres` are the
//!   hot path; `payloads` keeps what was just recorded until it is claimed; `reading`, `repeats`, `steering`, `replays`,
//!   `prune` and `leftovers` are what operators ask of it; `sql`, `registry`, `partners`, `endpoints`, `gates`, `rejected`
//!   and `stats` are the text they share; `clock` is the ledger's time; `incarnation` is a node's number and the epoch that
//!   fences its writes; `connections` is how the database is reached; `notices` carries changes between nodes; `silence` is
//!   how long a database may say nothing.
//! - `mock` (feature `mock`): a mock Svix and a mock partner for tests, ours and yours, and for `posthaste dev`.
//! - [`provisioning`]: checking, sealing and opening what an administrator sets; seeds of the configuration.
//! - [`reconnect`]: waiting for a neighbour that is away.
//! - [`replays`]: deliveries that are done, out again: paced, behind what is fresh, a step at a time. What is picked is
//!   `ledger::replays`' to know.
//! - [`retention`]: how long what is done is kept, and the chore that takes away what may go.
//! - [`secrets`]: what partners share with us, sealed; the master key and where it comes from.
//! - [`send`]: one attempt of one delivery, and its signature.
//! - [`sources`]: events that brokers hold. One runner; one file a broker, behind the cargo feature of its name.
//! - [`story`]: what became of events, and why they wait, as the API, the command line and the console tell it; what operators
//!   do about it.
//! - [`stats`]: what was counted of attempts, minute by minute, over restarts and nodes; figures of a window.
//! - [`telemetry`]: how log lines look, and every metric by name.
//! - [`traces`]: spans of what is done with an event, and their way to a collector.
//!
//! # Invariants, as what never happens
//!
//! - No 202 before the commit is durable: fsync on SQLite, `synchronous_commit` on Postgres. Start-up refuses less.
//! - No broker's message is acknowledged before its events are committed, or kept as rejected.
//! - Payload bytes are never rewritten, unless a receiver's transform says so: what goes out is a slice of what came in.
//! - The console never touches the ledger but for its sessions: it does what `/v1` does for the visitor's key.
//! - [`http`], [`sources`] and [`ingest`] never send. [`send`] never touches the ledger and never retries.
//! - [`domain`] never awaits, reads a clock or draws a random number.
//! - No transaction is open while a request is under way.
//! - A partner's secret is never stored as it is, and never shown after it was made.
//! - A settlement that names an old claim changes no row.
//! - A node whose number was given to another claims, accepts, replays and prunes nothing: each of these writes names its
//!   epoch, and no epoch is given out twice.
//! - Two attempts of one delivery never carry different idempotency keys.
//! - Nothing in memory grows with the backlog: lanes are remembered while they have work, deliveries up to a bound.
//! - Nothing depends on a notice from another node being heard: what it tells is in the ledger, which is looked at anyway.
//! - No node's clock decides about another's lease or gate.
//! - Nothing pending is ever given up because the process, the network or Svix was away.

pub mod announcements;
pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod directory;
pub mod dispatcher;
pub mod domain;
pub mod endpoints;
mod failpoint;
pub mod http;
pub mod ingest;
pub mod jobs;
pub mod ledger;
#[cfg(feature = "mock")]
pub mod mock;
pub mod provisioning;
pub mod reconnect;
pub mod replays;
pub mod retention;
pub mod secrets;
pub mod send;
pub mod sources;
pub mod stats;
pub mod story;
pub mod telemetry;
pub mod traces;
