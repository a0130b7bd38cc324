//! Signing in with an API key, and out again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use askama::Template;
use axum::extract::{Query, Request, State};
use axum::http::header::{HeaderMap, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Console;
use super::page::{Failure, html, redirect};
use super::session::{
    FORM_COOKIE, Fields, Form, PLAIN_COOKIE, SECURE_COOKIE, Theme, csrf_of, form_token, is_https, new_token,
    session_cookie, set_cookie, theme, token_hash,
};
use super::{assets, session};
use crate::domain::clock::Moment;
use crate::http::auth::{self, Peer, Scope};
use crate::ledger::ConsoleSession;

/// How long one is signed in: a working day. It is not prolonged, or a page left open would be for ever.
const SESSION: Duration = Duration::from_secs(12 * 3_600);
/// Failed sign-ins from one place, and from everywhere, within [`WINDOW`].
const FAILURES_MAX: u32 = 10;
const FAILURES_MAX_IN_ALL: u32 = 200;
const WINDOW: Duration = Duration::from_secs(60);
/// Most places that are remembered.
const PLACES_MAX: usize = 4_096;

#[derive(Template)]
#[template(path = "console/sign_in.html")]
struct SignInPage<'a> {
    urls: &'static assets::Urls,
    theme: Theme,
    csrf: &'a str,
    next: &'a str,
    error: Option<&'a str>,
    /// The key would go over a network, maybe in clear.
    exposed: bool,
}

#[derive(Deserialize)]
pub(super) struct Next {
    next: Option<String>,
}

/// Who failed to sign in how often, lately.
#[derive(Debug, Default)]
pub(super) struct SignInLimit {
    window: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    began: Moment,
    in_all: u32,
    by_place: HashMap<String, u32>,
}

impl SignInLimit {
    /// How long to wait before another try from `place`; `None` where it is free.
    fn wait(&self, place: &str, now: Moment) -> Option<Duration> {
        let failures = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = failures.began.until(now);
        let here = failures.by_place.get(place).copied().unwrap_or_default();
        let full = here >= FAILURES_MAX || failures.in_all >= FAILURES_MAX_IN_ALL;
        (full && elapsed < WINDOW).then(|| WINDOW.saturating_sub(elapsed))
    }

    fn failed(&self, place: &str, now: Moment) {
        let mut failures = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.began.until(now) >= WINDOW {
            *failures = Failures { began: now, ..Failures::default() };
        }
        failures.in_all += 1;
        if failures.by_place.len() < PLACES_MAX || failures.by_place.contains_key(place) {
            *failures.by_place.entry(place.to_owned()).or_default() += 1;
        }
    }
}

/// Where a request comes from, as far as failures are counted: the peer, and what the nearest proxy says of whom it
/// speaks for. Who makes that up counts against all.
fn place(peer: Option<IpAddr>, headers: &HeaderMap) -> String {
    let mut lines = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok());
    let last = lines.next_back().and_then(|line| line.rsplit(',').next()).unwrap_or_default().trim();
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    format!("{peer} {}", last.chars().take(64).collect::<String>())
}

/// A path of the console, or its first page.
pub(super) fn local(path: &str) -> String {
    let rest = path.strip_prefix("/console").unwrap_or("-");
    let inside = rest.is_empty() || rest.starts_with('/') || rest.starts_with('?');
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if inside && plain && !rest.starts_with("/sign-") { path.to_owned() } else { "/console".to_owned() }
}

/// Sends somebody who is not signed in to where one signs in, and back to `here` afterwards.
pub(super) fn send_there(parts: &Parts, here: &str) -> Response {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("next", here);
    let target = if here == "/console" {
        "/console/sign-in".to_owned()
    } else {
        format!("/console/sign-in?{}", query.finish())
    };
    if parts.headers.contains_key("hx-request") {
        // A part of a page must not be replaced by another page.
        let mut response = StatusCode::NO_CONTENT.into_response();
        if let Ok(target) = HeaderValue::from_str(&target) {
            response.headers_mut().insert("hx-redirect", target);
        }
        return response;
    }
    redirect(&target)
}

/// `GET /console/sign-in`.
pub(super) async fn page(
    State(console): State<Console>,
    headers: HeaderMap,
    uri: Uri,
    Query(query): Query<Next>,
) -> Response {
    if !needs_key(&console) {
        return redirect("/console");
    }
    let next = local(query.next.as_deref().unwrap_or("/console"));
    show(&console, &headers, &uri, StatusCode::OK, &next, None)
}

fn needs_key(console: &Console) -> bool {
    console.http.bootstrap_admin_key.is_some() || console.http.directory.snapshot().has_keys()
}

fn show(
    console: &Console,
    headers: &HeaderMap,
    uri: &Uri,
    status: StatusCode,
    next: &str,
    error: Option<&str>,
) -> Response {
    let (token, new) = form_token(headers, &*console.http.clock);
    let near = auth::host(headers, uri).is_some_and(|host| auth::is_loopback_host(&host));
    let page = SignInPage {
        urls: assets::urls(),
        theme: theme(headers),
        csrf: &csrf_of(&token),
        next,
        error,
        exposed: !near && !is_https(headers),
    };
    let mut response = html(status, &page);
    if new {
        set_cookie(&mut response, &form_cookie(&token));
    }
    response
}

/// A cookie for the forms of those who are not signed in.
pub(super) fn form_cookie(token: &str) -> String {
    format!("{FORM_COOKIE}={token}; Path=/console; HttpOnly; SameSite=Strict")
}

/// `POST /console/sign-in`: a key, and where to go then.
pub(super) async fn sign_in(State(console): State<Console>, request: Request) -> Result<Response, Failure> {
    let state = &console.http;
    let (headers, uri) = (request.headers().clone(), request.uri().clone());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let (token, _) = form_token(&headers, &*state.clock);
    let fields = Fields::read(request, &csrf_of(&token)).await?;
    if !needs_key(&console) {
        return Ok(redirect("/console"));
    }
    let next = local(fields.text("next"));
    let (place, moment) = (place(peer, &headers), state.clock.moment());
    let again = |status, error: &str| show(&console, &headers, &uri, status, &next, Some(error));
    if let Some(wait) = console.sign_ins.wait(&place, moment) {
        let seconds = wait.as_secs() + 1;
        let words = format!("Too many keys were wrong. Try again in {seconds} s.");
        let mut response = again(StatusCode::TOO_MANY_REQUESTS, &words);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        return Ok(response);
    }
    let bootstrap = state.bootstrap_admin_key.as_ref();
    let key = auth::known_key(fields.text("key"), bootstrap);
    let caller = key.as_ref().and_then(|key| key.caller(&state.directory.snapshot(), bootstrap));
    let (Some(key), Some(caller)) = (key, caller) else {
        console.sign_ins.failed(&place, moment);
        tracing::warn!(peer = %place, "somebody tried to sign in to the console with a key that is not good");
        return Ok(again(StatusCode::UNAUTHORIZED, "This key is unknown or revoked."));
    };
    if caller.require(Scope::Read).is_err() {
        let words = "This key can only send events: signing in takes one with the scope read or admin.";
        return Ok(again(StatusCode::FORBIDDEN, words));
    }
    // Always a new one: what the browser had before is worth nothing.
    let token = new_token(&*state.clock);
    let (name, secure) = if is_https(&headers) { (SECURE_COOKIE, "; Secure") } else { (PLAIN_COOKIE, "") };
    let now = state.clock.now();
    let session = ConsoleSession {
        token_hash: token_hash(name, &token),
        key_id: key.id,
        key_hash: key.hash,
        expires_at: now + SESSION,
    };
    let database = state.ledger.database();
    let unavailable = |error| Failure::of_ledger(&error, state);
    if let Some((name, token)) = session_cookie(&headers) {
        database.end_console_session(&token_hash(name, token)).await.map_err(unavailable)?;
    }
    database.add_console_session(&session, now).await.map_err(unavailable)?;
    let mut response = redirect(&next);
    let age = SESSION.as_secs();
    let cookie = format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}");
    set_cookie(&mut response, &cookie);
    set_cookie(&mut response, &over(FORM_COOKIE, "/console", ""));
    Ok(response)
}

/// A cookie that takes another away.
fn over(name: &str, path: &str, secure: &str) -> String {
    format!("{name}=; Path={path}; HttpOnly; SameSite=Strict; Max-Age=0{secure}")
}

/// `POST /console/sign-out`: ends the session on every node, copies of its cookie included.
pub(super) async fn sign_out(State(console): State<Console>, form: Form) -> Result<Response, Failure> {
    let state = &console.http;
    if let Some(session) = &form.visitor.session {
        let ended = state.ledger.database().end_console_session(session).await;
        ended.map_err(|error| Failure::of_ledger(&error, state))?;
    }
    let mut response = redirect("/console/sign-in");
    set_cookie(&mut response, &over(PLAIN_COOKIE, "/", ""));
    set_cookie(&mut response, &over(SECURE_COOKIE, "/", "; Secure"));
    set_cookie(&mut response, &over(session::FLASH_COOKIE, "/console", ""));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/console", "/console")]
    #[case("/console/events?state=dead", "/console/events?state=dead")]
    #[case("/console?x", "/console?x")]
    #[case("//evil.example", "/console")]
    #[case("https://evil.example", "/console")]
    #[case("/console.evil.example", "/console")]
    #[case("/console\\@evil", "/console")]
    #[case("/console/sign-in", "/console")]
    #[case("", "/console")]
    fn one_is_sent_back_into_the_console_only(#[case] given: &str, #[case] target: &str) {
        assert_eq!(local(given), target);
    }

    #[test]
    fn failures_are_counted_by_place_and_in_all_and_forgotten() {
        let (limit, at) =
            (SignInLimit::default(), |seconds| Moment::after_start(Duration::from_secs(seconds)));
        (0..FAILURES_MAX).for_each(|_| limit.failed("one", at(1)));
        assert_eq!(limit.wait("one", at(11)), Some(Duration::from_secs(49)));
        assert_eq!(limit.wait("other", at(11)), None);
        (0..FAILURES_MAX_IN_ALL).for_each(|n| limit.failed(&n.to_string(), at(12)));
        assert!(limit.wait("yet another", at(12)).is_some());
        assert_eq!(limit.wait("one", at(61)), None);
    }
}
