//! API keys.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Console;
use super::api::at;
use super::fields::Faults;
use super::page::{Failure, Frame, Part, done, page_with};
use super::session::{Form, Visitor};
use super::words::{At, When};

#[derive(Debug, Deserialize)]
struct Key {
    id: String,
    name: String,
    scopes: Vec<String>,
    tenant: Option<String>,
    created_at: At,
    revoked_at: Option<At>,
}

#[derive(Debug, Deserialize)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct Body {
    name: String,
    scopes: Vec<String>,
    tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NewKey {
    key: String,
}

#[derive(Template)]
#[template(path = "console/keys.html")]
struct KeysPage<'a> {
    frame: Frame<'a>,
    good: Vec<Key>,
    revoked: Vec<Key>,
    /// Shown this once.
    made: Option<String>,
    faults: Faults,
    name: String,
    tenant: String,
    /// There is none yet: the first one closes the door of this machine.
    first: bool,
}

impl KeysPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

/// Most revoked keys that are shown.
const REVOKED_SHOWN: usize = 20;

async fn show(
    console: &Console,
    visitor: &Visitor,
    made: Option<String>,
    faults: Faults,
    typed: (String, String),
) -> Result<Response, Failure> {
    let Keys { keys } = visitor.api(console).get(&at(&["v1", "keys"])).await?;
    let (good, mut revoked): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| key.revoked_at.is_none());
    revoked.sort_by_key(|key| std::cmp::Reverse(key.revoked_at));
    revoked.truncate(REVOKED_SHOWN);
    let first = good.is_empty() && visitor.session.is_none();
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let frame = Frame::new(visitor, Part::Keys, "Keys");
    let (name, tenant) = typed;
    Ok(page_with(visitor, status, &KeysPage { frame, good, revoked, made, faults, name, tenant, first }))
}

/// `GET /console/keys`.
pub(super) async fn list(State(console): State<Console>, visitor: Visitor) -> Result<Response, Failure> {
    show(&console, &visitor, None, Faults::default(), Default::default()).await
}

/// `POST /console/keys`.
pub(super) async fn create(State(console): State<Console>, form: Form) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let typed = (fields.text("name").to_owned(), fields.text("tenant").to_owned());
    let body = Body {
        name: typed.0.clone(),
        scopes: fields.all("scope").map(str::to_owned).collect(),
        tenant: Some(typed.1.clone()).filter(|tenant| !tenant.is_empty()),
    };
    let made = visitor.api(&console).change(Method::POST, &at(&["v1", "keys"]), Some(&body), "").await;
    match made {
        Ok(NewKey { key }) => {
            show(&console, &visitor, Some(key), Faults::default(), Default::default()).await
        }
        Err(refusal) if refusal.is_about_input() => {
            show(&console, &visitor, None, Faults::new(refusal.into_fields()), typed).await
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// `POST /console/keys/{id}/revoke`.
pub(super) async fn revoke(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::DELETE, &at(&["v1", "keys", &id])).await?;
    let words = format!("Key {id} is revoked: it is good no longer, on every node within a second.");
    Ok(done(&form.visitor, Part::Keys.path(), &words))
}
