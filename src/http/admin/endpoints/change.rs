//! Changes to an endpoint that exists.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use secrecy::ExposeSecret as _;
use serde_json::value::RawValue;

use super::views::{EndpointPatch, EndpointView, RotateBody, RotatedView};
use super::{find, view};
use crate::domain::object::JsonObject;
use crate::domain::partner::{DisableReason, EndpointSettings, REDACTED};
use crate::http::admin::conditional::{IfMatch, failed};
use crate::http::admin::{OrProblem as _, bad_field, faults, json_text, not_found, reload, versioned};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::{EndpointRow, Put};
use crate::provisioning;
use crate::send::signature::EndpointSecret;

/// How often a change without `If-Match` is made again where another came between.
const TRIES: u32 = 5;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
const GRACE_MAX_MS: u64 = 30 * DAY_MS;

/// Changes an endpoint's settings by a JSON merge patch (RFC 7396). `null` brings the default back. Headers are merged
/// by name; lists, `transform` and `signature` are each one value, and replaced whole.
#[utoipa::path(patch, path = "/v1/endpoints/{id}", tag = "endpoints",
    params(
        ("id" = String, Path, description = "The endpoint's id, `ep_…`"),
        ("if-match" = Option<String>, Header, description = "Only where this is its ETag")),
    request_body(content(
        (EndpointPatch = "application/merge-patch+json"),
        (EndpointPatch = "application/json"))),
    responses(
        (status = 200, body = EndpointView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(in crate::http::admin) async fn patch_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let patch = json_text(&headers, &body)?;
    for _ in 0..TRIES {
        let mut row = find(&state, &id).await?;
        if_match.check(Some(row.version))?;
        let settings = patched(&state, &row, &patch)?;
        let stored = provisioning::seal_settings(&state.vault, &id, &settings, &*state.clock);
        row.settings = stored.or_problem(&state)?;
        let put = state.ledger.database().update_endpoint(&id, &row.settings, Some(row.version)).await;
        match put.or_problem(&state)? {
            Put::Created(version) | Put::Updated(version) => {
                reload(&state).await?;
                let view = EndpointView::new(&row, settings, state.clock.now());
                return Ok(versioned(StatusCode::OK, version, view));
            }
            Put::VersionConflict if if_match.is_set() => return Err(failed()),
            // Somebody came between: what they did is patched, not undone.
            Put::VersionConflict => {}
        }
    }
    let detail = "the endpoint is changed by others all the time: try again";
    Err(Problem::new(StatusCode::CONFLICT, "busy", detail))
}

/// The settings of `row` with changes, checked.
fn patched(state: &HttpState, row: &EndpointRow, patch: &str) -> Result<EndpointSettings, Problem> {
    let old = provisioning::open_settings(&state.vault, row).or_problem(state)?;
    let patch = with_merged_headers(&old, patch);
    let new = old.patched(&patch).map_err(|found| faults(&found))?;
    // The URL it has was good when it was saved: a change elsewhere need not answer for it.
    let unchanged = new.url == old.url;
    let url = new.url.clone();
    let new = match provisioning::vet(new.clone(), &state.dial_policy) {
        Ok(vetted) => vetted,
        Err(found) => {
            let found: Vec<_> =
                found.into_iter().filter(|fault| !(unchanged && fault.pointer == "/url")).collect();
            if !found.is_empty() {
                return Err(faults(&found));
            }
            EndpointSettings { url, ..new }
        }
    };
    if new.signature != old.signature {
        let place = provisioning::secret_place(&row.id);
        let secret = state.vault.open(&place, &row.secret);
        let secret = secret.map_err(|error| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "secret_sealed", error.to_string())
        })?;
        if !EndpointSecret::stored(secret).fits(&new.signature) {
            let detail = "the endpoint's secret does not fit this scheme: rotate it first";
            return Err(bad_field("/signature", detail));
        }
    }
    Ok(new)
}

/// A patch whose `headers` are the whole new ones: those there are, with what the patch says of each by name.
fn with_merged_headers(old: &EndpointSettings, patch: &str) -> String {
    type Members<'a> = BTreeMap<String, &'a RawValue>;

    let as_it_is = || patch.to_owned();
    let Ok(mut members) = serde_json::from_str::<Members<'_>>(patch) else { return as_it_is() };
    let Some(raw) = members.get("headers") else { return as_it_is() };
    let Ok(changes) = serde_json::from_str::<Members<'_>>(raw.get()) else { return as_it_is() };
    let Ok(kept) = serde_json::value::to_raw_value(REDACTED) else { return as_it_is() };
    let names: Vec<String> = old.headers.iter().map(|(name, _)| name.to_string()).collect();
    let changed = |name: &&String| changes.keys().any(|change| change.eq_ignore_ascii_case(name));
    let mut merged: Vec<(String, &RawValue)> =
        names.iter().filter(|name| !changed(name)).map(|name| (name.clone(), &*kept)).collect();
    merged.extend(
        changes.iter().filter(|(_, raw)| raw.get() != "null").map(|(name, raw)| (name.clone(), *raw)),
    );
    let merged: BTreeMap<_, _> = merged.into_iter().collect();
    let Ok(headers) = serde_json::value::to_raw_value(&merged) else { return as_it_is() };
    members.insert("headers".into(), &headers);
    serde_json::to_string(&members).unwrap_or_else(|_| as_it_is())
}

/// Gives an endpoint a new secret and tells it, this once. Both sign until the grace is over.
#[utoipa::path(post, path = "/v1/endpoints/{id}/secret/rotate", tag = "endpoints",
    params(("id" = String, Path, description = "The endpoint's id, `ep_…`")),
    request_body = Option<RotateBody>,
    responses(
        (status = 200, body = RotatedView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(in crate::http::admin) async fn rotate_secret(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let body: Option<JsonObject<RotateBody>> = if body.is_empty() {
        None
    } else {
        // The parser's own words could show a part of the secret.
        serde_json::from_str(&json_text(&headers, &body)?).map_err(|_| {
            bad_field("", "the body may have `grace_ms`, a whole number, and `secret`, a text")
        })?
    };
    let body = body.map(|JsonObject(body)| body).unwrap_or_default();
    let grace_ms = body.grace_ms.unwrap_or(DAY_MS);
    if grace_ms > GRACE_MAX_MS {
        return Err(bad_field("/grace_ms", "a grace is at most 30 days, 2592000000 ms"));
    }
    let row = find(&state, &id).await?;
    let settings = provisioning::open_settings(&state.vault, &row).or_problem(&state)?;
    let secret = provisioning::secret(body.secret.as_deref(), &settings.signature, &*state.clock)
        .map_err(|fault| faults(&[fault]))?;
    let sealed = provisioning::seal_secret(&state.vault, &id, &secret, &*state.clock).or_problem(&state)?;
    let until = state.clock.now() + Duration::from_millis(grace_ms);
    let rotated = state.ledger.database().rotate_secret(&id, &sealed, until).await;
    let version = rotated.or_problem(&state)?.ok_or_else(|| not_found("endpoint", &id))?;
    reload(&state).await?;
    let secret = secret.text().expose_secret().to_owned();
    let view = RotatedView { id, secret, previous_secret_until: until.as_millis() };
    Ok(versioned(StatusCode::OK, version, view))
}

/// Lets an endpoint get events again; what it missed meanwhile is not sent by this. 200 where it does already.
#[utoipa::path(post, path = "/v1/endpoints/{id}/enable", tag = "endpoints",
    params(("id" = String, Path, description = "The endpoint's id, `ep_…`")),
    responses(
        (status = 200, body = EndpointView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(in crate::http::admin) async fn enable_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    set_state(&state, &caller, &id, None).await
}

/// Stops an endpoint from getting events. 200 where it gets none already; the first reason stays.
#[utoipa::path(post, path = "/v1/endpoints/{id}/disable", tag = "endpoints",
    params(("id" = String, Path, description = "The endpoint's id, `ep_…`")),
    responses(
        (status = 200, body = EndpointView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(in crate::http::admin) async fn disable_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    set_state(&state, &caller, &id, Some(DisableReason::Operator)).await
}

async fn set_state(
    state: &HttpState,
    caller: &Caller,
    id: &str,
    disabled: Option<DisableReason>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let disabled = disabled.map(|reason| (reason, state.clock.now()));
    let changed = state.ledger.database().set_endpoint_state(id, disabled).await;
    if changed.or_problem(state)? {
        reload(state).await?;
    }
    let row = find(state, id).await?;
    Ok(versioned(StatusCode::OK, row.version, view(state, &row)?))
}
