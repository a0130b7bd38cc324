//! Figures of what came in and went out.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::paging::bad_query;
use super::{OrProblem as _, not_found};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::stats::{StatsQuery, StatsReport, Window};

/// Which figures.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowQuery {
    /// How far back: a number and `m`, `h` or `d`, from `1m` to `48h`; `1h` by default.
    #[param(pattern = "^[+]?[0-9]+[mhd]$")]
    window: Option<String>,
    /// One partner alone, with series of each of its endpoints.
    partner: Option<String>,
}

/// Throughput, latency and errors over a time, of everything and by partner and endpoint; over all nodes, others' up to a
/// minute old. A key that is bound to a tenant is told of those endpoints that get this tenant's events alone.
#[utoipa::path(get, path = "/v1/stats", tag = "stats", params(WindowQuery),
    responses((status = 200, body = StatsReport), Problems))]
pub(super) async fn get_stats(
    State(state): State<HttpState>,
    caller: Caller,
    query: Result<Query<WindowQuery>, QueryRejection>,
) -> Result<Json<StatsReport>, Problem> {
    caller.require(Scope::Read)?;
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let window = query.window.as_deref().map_or(Ok(Window::HOUR), Window::parse).map_err(bad_query)?;
    let asked = StatsQuery { window, partner: query.partner, tenant: caller.tenant };
    let report = state.watch.stats.report(&asked, state.dispatcher.as_ref()).await.or_problem(&state)?;
    match &asked.partner {
        Some(partner) if report.partners.is_empty() => Err(not_found("partner", partner)),
        _ => Ok(Json(report)),
    }
}
