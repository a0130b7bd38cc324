//! Who looks at the console: sessions, cookies, and what a form must show before it does anything.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{COOKIE, HeaderMap, ORIGIN, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Console;
use super::api::Api;
use super::page::{Failure, redirect};
use super::sign_in;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::key::prefixed_hex;
use crate::http::auth::{self, Caller, Peer, Scope, ShownKey};

/// The session where the browser came by https. The prefix makes browsers refuse it from anybody but this very host, and
/// without `Secure`.
pub(super) const SECURE_COOKIE: &str = "__Host-posthaste";
/// The session where there is no TLS: on loopback, where `Secure` would keep it from some browsers.
pub(super) const PLAIN_COOKIE: &str = "posthaste_console";
/// What forms are bound to while nobody is signed in.
pub(super) const FORM_COOKIE: &str = "posthaste_form";
const THEME_COOKIE: &str = "posthaste_theme";
/// What the page after a form's says.
pub(super) const FLASH_COOKIE: &str = "posthaste_flash";
/// The field that shows that a form is ours.
const CSRF_FIELD: &str = "csrf";
/// Longest form, in bytes.
pub(super) const FORM_MAX_BYTES: usize = 256 << 10;

/// How the console looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Theme {
    /// As the system likes it.
    Auto,
    /// Light, whatever the system likes.
    Light,
    /// Dark, likewise.
    Dark,
}

impl Theme {
    /// Its name, in the cookie and in the page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Self {
        [Self::Light, Self::Dark].into_iter().find(|theme| theme.as_str() == text).unwrap_or(Self::Auto)
    }
}

/// Whoever looks at a page.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// What they may see and do.
    pub caller: Caller,
    /// The session's row; `None` where there is none.
    pub session: Option<Vec<u8>>,
    /// What their forms must carry.
    pub csrf: String,
    /// A cookie that must be set for that.
    pub new_form_cookie: Option<String>,
    pub theme: Theme,
    /// What became of the form before.
    pub flash: Option<String>,
    /// Where they are.
    pub here: String,
    /// Whom the page calls them.
    pub name: String,
    pub now: Timestamp,
    /// Whether this is the answer to a form: no address of a page.
    pub is_form: bool,
}

impl Visitor {
    /// Whether they may change things.
    pub fn is_admin(&self) -> bool {
        self.caller.require(Scope::Admin).is_ok()
    }

    /// Whether they see every tenant.
    pub const fn is_unbound(&self) -> bool {
        self.caller.tenant.is_none()
    }

    /// The API as they have it.
    pub const fn api<'a>(&'a self, console: &'a Console) -> Api<'a> {
        Api { router: &console.api, caller: &self.caller }
    }
}

impl FromRequestParts<Console> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        let state = &console.http;
        let (headers, uri) = (&parts.headers, &parts.uri);
        let snapshot = state.directory.snapshot();
        let here = here(parts);
        let now = state.clock.now();
        let theme = theme(headers);
        let is_form = parts.method != Method::GET;
        if !snapshot.has_keys() && state.bootstrap_admin_key.is_none() {
            let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
            let caller = auth::identify(headers, uri, peer, &snapshot, None)
                .map_err(|problem| Failure::from(problem).into_response())?;
            let (token, new) = form_token(headers, &*state.clock);
            let csrf = csrf_of(&token);
            let flash = flash(headers, &csrf);
            let new_form_cookie = new.then_some(token);
            let name = "this machine".to_owned();
            return Ok(Self {
                caller,
                session: None,
                csrf,
                new_form_cookie,
                theme,
                flash,
                here,
                name,
                now,
                is_form,
            });
        }
        let sign_in = || sign_in::send_there(parts, &here);
        let Some((name, token)) = session_cookie(headers) else { return Err(sign_in()) };
        let hash = token_hash(name, token);
        let session = state.ledger.database().console_session(&hash, now).await;
        let session = session.map_err(|error| Failure::of_ledger(&error, state).into_response())?;
        let Some(session) = session else { return Err(sign_in()) };
        let key = ShownKey { id: session.key_id, hash: session.key_hash };
        let Some(caller) = key.caller(&snapshot, state.bootstrap_admin_key.as_ref()) else {
            return Err(sign_in());
        };
        let csrf = csrf_of(token);
        let flash = flash(headers, &csrf);
        let name = snapshot.key(&key.id).map_or("bootstrap key", |key| &key.info.name).to_owned();
        let session = Some(hash);
        Ok(Self { caller, session, csrf, new_form_cookie: None, theme, flash, here, name, now, is_form })
    }
}

/// The page one is on: for a form, the page that it stands on.
fn here(parts: &Parts) -> String {
    let here = parts.uri.path_and_query().map_or("/console", |path| path.as_str());
    if parts.method == Method::GET { here.to_owned() } else { "/console".to_owned() }
}

/// A form that is ours: nothing of it can be seen before that was checked.
pub(super) struct Form {
    pub visitor: Visitor,
    pub fields: Fields,
}

impl FromRequest<Console> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let visitor = Visitor::from_request_parts(&mut parts, console).await?;
        let request = Request::from_parts(parts, body);
        let fields = Fields::read(request, &visitor.csrf).await.map_err(IntoResponse::into_response)?;
        Ok(Self { visitor, fields })
    }
}

/// The fields of a form, in order.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads the form of somebody whose forms carry `csrf`, where it comes from a page of ours.
    pub async fn read(request: Request, csrf: &str) -> Result<Self, Failure> {
        check_origin(request.headers(), request.uri())?;
        let body = Bytes::from_request(request, &()).await;
        let body = body.map_err(|rejection| {
            Failure::new(rejection.status(), "This form can't be read", rejection.body_text())
        })?;
        let fields: Vec<_> = url::form_urlencoded::parse(&body)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let fields = Self(fields);
        if !bool::from(fields.text(CSRF_FIELD).as_bytes().ct_eq(csrf.as_bytes())) {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "This form is too old",
                "It was made before you signed in, or not by this console. Go back, reload the page, and send it again."
                    .into(),
            ));
        }
        Ok(fields)
    }

    /// The fields of a query, which changes nothing.
    pub fn of_query(query: &str) -> Self {
        let fields = url::form_urlencoded::parse(query.as_bytes());
        Self(fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// A field; empty where it is absent. Spaces around it don't count.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.trim())
    }

    /// All values of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.trim())
    }

    /// Whether a box is ticked.
    pub fn is_set(&self, name: &str) -> bool {
        !self.text(name).is_empty()
    }
}

/// Refuses what another site's page has sent. What the browser itself says of that (Fetch Metadata) decides; where it
/// says nothing, `Origin` must be this host.
fn check_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), Failure> {
    let refused = || {
        Failure::new(
            StatusCode::FORBIDDEN,
            "This form comes from elsewhere",
            "Only pages of this console may send its forms. Open the console and try there.".into(),
        )
    };
    if let Some(site) = headers.get("sec-fetch-site") {
        return if site == "same-origin" { Ok(()) } else { Err(refused()) };
    }
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin = origin.and_then(|origin| origin.parse::<Uri>().ok());
    let origin = origin.as_ref().and_then(Uri::authority).map(|authority| authority.as_str());
    match (origin, auth::host(headers, uri)) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(&host) => Ok(()),
        _ => Err(refused()),
    }
}

/// Whether the browser that sent this form came by https, whatever the proxies between say.
pub(super) fn is_https(headers: &HeaderMap) -> bool {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    origin.is_some_and(|origin| origin.starts_with("https://"))
        || headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes() == b"https")
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// The session's cookie: its name and what it holds.
pub(super) fn session_cookie(headers: &HeaderMap) -> Option<(&'static str, &str)> {
    [SECURE_COOKIE, PLAIN_COOKIE].into_iter().find_map(|name| Some((name, cookie(headers, name)?)))
}

/// What forms are bound to while nobody is signed in, and whether it was made just now.
pub(super) fn form_token(headers: &HeaderMap, clock: &dyn Clock) -> (String, bool) {
    match cookie(headers, FORM_COOKIE).filter(|token| token.len() == 64) {
        Some(token) => (token.to_owned(), false),
        None => (new_token(clock), true),
    }
}

/// 256 random bits.
pub(super) fn new_token(clock: &dyn Clock) -> String {
    let mut token = [0; 32];
    token[..16].copy_from_slice(&clock.random().to_be_bytes());
    token[16..].copy_from_slice(&clock.random().to_be_bytes());
    prefixed_hex("", &token)
}

/// What the ledger knows a session by. The cookie's name is in it: what was given without TLS is no good as a
/// `__Host-` cookie, nor the other way round.
pub(super) fn token_hash(name: &str, token: &str) -> Vec<u8> {
    digest("session", &[name, token])
}

/// What forms must carry where the cookie is this one. It shows nothing of the cookie.
pub(super) fn csrf_of(token: &str) -> String {
    prefixed_hex("", &digest("csrf", &[token])[..16])
}

fn digest(purpose: &str, parts: &[&str]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [&["posthaste console", purpose], parts].concat() {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

pub(super) fn theme(headers: &HeaderMap) -> Theme {
    Theme::parse(cookie(headers, THEME_COOKIE).unwrap_or_default())
}

/// What the page after this one says. Nobody else can make it say something: it is bound to the session.
pub(super) fn flash_cookie(text: &str, csrf: &str) -> String {
    let mark = prefixed_hex("", &digest("flash", &[csrf, text])[..16]);
    let text = URL_SAFE_NO_PAD.encode(text);
    format!("{FLASH_COOKIE}={text}.{mark}; Path=/console; HttpOnly; SameSite=Strict; Max-Age=60")
}

fn flash(headers: &HeaderMap, csrf: &str) -> Option<String> {
    // A page that refreshes itself leaves it to the one that follows the form.
    if headers.contains_key("hx-request") && !headers.contains_key("hx-boosted") {
        return None;
    }
    let (text, mark) = cookie(headers, FLASH_COOKIE)?.split_once('.')?;
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let expected = prefixed_hex("", &digest("flash", &[csrf, &text])[..16]);
    bool::from(expected.as_bytes().ct_eq(mark.as_bytes())).then_some(text)
}

/// Adds a cookie to an answer.
pub(super) fn set_cookie(response: &mut Response, cookie: &str) {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().append(SET_COOKIE, value);
    }
}

/// `POST /console/theme`: how the console looks in this browser.
pub(super) async fn set_theme(form: Form) -> Response {
    let theme = Theme::parse(form.fields.text("theme")).as_str();
    let mut response = redirect(&sign_in::local(form.fields.text("back")));
    let cookie =
        format!("{THEME_COOKIE}={theme}; Path=/console; HttpOnly; SameSite=Strict; Max-Age=31536000");
    set_cookie(&mut response, &cookie);
    response
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[rstest]
    #[case::browser(&[("host", "relay.example"), ("sec-fetch-site", "same-origin")], true)]
    #[case::behind_a_proxy(&[("host", "inside:8080"), ("origin", "https://relay.example"), ("sec-fetch-site", "same-origin")], true)]
    #[case::sibling(&[("host", "relay.example"), ("sec-fetch-site", "same-site")], false)]
    #[case::foreign(&[("host", "relay.example"), ("sec-fetch-site", "cross-site")], false)]
    #[case::not_a_form(&[("host", "relay.example"), ("sec-fetch-site", "none")], false)]
    #[case::old_browser(&[("host", "relay.example"), ("origin", "https://relay.example")], true)]
    #[case::other_port(&[("host", "localhost:8080"), ("origin", "http://localhost:9090")], false)]
    #[case::sandboxed(&[("host", "relay.example"), ("origin", "null")], false)]
    #[case::silent(&[("host", "relay.example")], false)]
    fn only_our_own_pages_send_forms(#[case] pairs: &[(&'static str, &'static str)], #[case] good: bool) {
        assert_eq!(check_origin(&headers(pairs), &Uri::from_static("/console")).is_ok(), good);
    }

    #[test]
    fn cookies_are_told_apart() {
        let both = headers(&[("cookie", "a=1; posthaste_console=plain; __Host-posthaste=secure")]);
        assert_eq!(session_cookie(&both), Some((SECURE_COOKIE, "secure")));
        assert_ne!(token_hash(SECURE_COOKIE, "x"), token_hash(PLAIN_COOKIE, "x"));
        assert_ne!(csrf_of("x"), csrf_of("y"));
    }

    #[test]
    fn nobody_else_puts_words_into_a_page() {
        let good = flash_cookie("Paused <crm>.", "one");
        let value = good.split(';').next().unwrap().to_owned();
        let shown = |csrf: &str| flash(&HeaderMap::from_iter([(COOKIE, value.parse().unwrap())]), csrf);
        assert_eq!(shown("one").as_deref(), Some("Paused <crm>."));
        assert_eq!(shown("another"), None);
    }
}
