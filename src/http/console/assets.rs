//! Stylesheet, scripts and icon, embedded. Their names carry their hash, so that browsers keep them for ever.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

use super::page::Failure;
use crate::domain::key::prefixed_hex;

/// Where they are.
pub(super) const PATH: &str = "/console/assets";
const FOR_EVER: &str = "public, max-age=31536000, immutable";

struct Asset {
    name: String,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// URLs of the assets, for templates.
pub(super) struct Urls {
    pub style: String,
    pub script: String,
    pub htmx: String,
    pub icon: String,
}

static ASSETS: LazyLock<[Asset; 4]> = LazyLock::new(|| {
    const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
    [
        asset("console", "css", "text/css; charset=utf-8", include_bytes!("../../../assets/console.css")),
        asset("console", "js", JAVASCRIPT, include_bytes!("../../../assets/console.js")),
        asset("htmx", "js", JAVASCRIPT, include_bytes!("../../../assets/htmx-2.0.11.min.js")),
        asset("icon", "svg", "image/svg+xml", include_bytes!("../../../assets/icon.svg")),
    ]
});

static URLS: LazyLock<Urls> = LazyLock::new(|| {
    let url = |index: usize| format!("{PATH}/{}", ASSETS[index].name);
    Urls { style: url(0), script: url(1), htmx: url(2), icon: url(3) }
});

fn asset(stem: &str, extension: &str, content_type: &'static str, bytes: &'static [u8]) -> Asset {
    let hash = prefixed_hex("", &Sha256::digest(bytes)[..6]);
    Asset { name: format!("{stem}-{hash}.{extension}"), content_type, bytes }
}

/// Where the assets are.
pub(super) fn urls() -> &'static Urls {
    &URLS
}

/// `GET /console/assets/{name}`, for everybody: there is nothing secret in them.
pub(super) async fn serve(Path(name): Path<String>) -> Result<Response, Failure> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or_else(Failure::no_such_page)?;
    Ok(([(CONTENT_TYPE, asset.content_type), (CACHE_CONTROL, FOR_EVER)], asset.bytes).into_response())
}
