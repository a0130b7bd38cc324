//! The configuration as it is in force, secrets redacted.

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::Console;
use super::page::{Failure, Frame, Part, page};
use super::session::Visitor;
use crate::http::auth::Scope;

#[derive(Template)]
#[template(path = "console/settings.html")]
struct SettingsPage<'a> {
    frame: Frame<'a>,
    /// As `posthaste config show` prints it.
    settings: &'a str,
    role: &'a str,
}

/// `GET /console/settings`.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor) -> Result<Response, Failure> {
    visitor.caller.require(Scope::Read)?;
    visitor.caller.require_unbound()?;
    let frame = Frame::new(&visitor, Part::Settings, "Settings");
    let options = &console.http.options;
    let shown = SettingsPage { frame, settings: &options.settings, role: options.role.as_str() };
    Ok(page(&visitor, &shown))
}
