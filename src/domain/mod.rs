//! What Posthaste is about, as plain data and pure decisions.
//!
//! Nothing here awaits, reads a clock or draws a random number: both come in as parameters, so that every
//! rule below can be tested with a table and replayed with a seed.

pub mod challenge;
pub mod clock;
pub mod clock_watch;
pub mod delivery;
pub mod event;
pub mod gate;
pub mod hash;
pub mod key;
pub mod object;
pub mod outcomes;
pub mod parse;
pub mod partner;
pub mod rate_limit;
pub mod replay;
pub mod retry;
pub mod scheduler;
pub mod sequence;
pub mod tenant;
pub mod time_text;
pub mod token_budget;
pub mod trace;
pub mod transform;
