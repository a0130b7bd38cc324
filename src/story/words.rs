//! A story in one or two sentences: did it reach them, if not why, and what to press.

use super::{DeliveryStory, DestinationKind, Story};
use crate::ledger::DeliveryState;

/// Most deliveries that are named.
const NAMED: usize = 3;

/// `delivered`: how many deliveries arrived, told or not.
pub(super) fn conclusion(story: &Story, delivered: usize) -> String {
    if let Some(why) = &story.unrouted {
        return format!("It reached nobody, because it had nowhere to go: {why}.");
    }
    let of = |state: DeliveryState| story.deliveries.iter().filter(move |told| told.delivery.state == state);
    let all = story.deliveries.len() + story.left_out;
    if all == 0 {
        return "It reached nobody: no delivery of it is kept.".to_owned();
    }
    let mut sentences = vec![match (delivered, all) {
        (1, 1) => format!("It reached {}.", receiver(&story.deliveries[0])),
        (0, 1) => format!("It has not reached {}.", receiver(&story.deliveries[0])),
        (delivered, all) if delivered == all => format!("It reached all {all} receivers."),
        (delivered, all) => format!("It reached {delivered} of {all} receivers."),
    }];
    let mut tell = |state: DeliveryState, words: fn(&DeliveryStory) -> String| {
        sentences.extend(of(state).take(NAMED).map(words));
        let more = of(state).count().saturating_sub(NAMED);
        if more > 0 {
            sentences
                .push(format!("The same or the like holds for {more} more that are {}.", state.as_str()));
        }
    };
    tell(DeliveryState::Dead, dead);
    tell(DeliveryState::Pending, pending);
    tell(DeliveryState::Canceled, canceled);
    sentences.join(" ")
}

/// Who was to get it.
fn receiver(told: &DeliveryStory) -> String {
    let destination = &told.delivery.destination;
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    match (destination.kind, &destination.partner) {
        (DestinationKind::Svix, _) => format!("the Svix application {}", name(&destination.svix_app)),
        (DestinationKind::Endpoint, Some(partner)) => format!("{partner} ({})", name(&destination.endpoint)),
        (DestinationKind::Endpoint, None) => format!("endpoint {}", name(&destination.endpoint)),
    }
}

fn dead(told: &DeliveryStory) -> String {
    let delivery = &told.delivery;
    let last =
        told.attempts.last().map_or(String::new(), |last| format!(", the last one with {}", last.code));
    let attempts = match told.attempts.len() {
        1 => "1 attempt".to_owned(),
        count => format!("{count} attempts"),
    };
    format!(
        "To {} it was given up ({}) after {attempts}{last}: mend that, then run `posthaste retry {}`.",
        receiver(told),
        delivery.reason.as_deref().unwrap_or("dead"),
        delivery.id
    )
}

fn pending(told: &DeliveryStory) -> String {
    let Some(waits) = &told.waits_for else { return String::new() };
    let until = waits.until.map_or(String::new(), |until| format!(" until {}", until.to_rfc3339()));
    let press = match waits.reason.as_str() {
        "backoff" => format!(" `posthaste retry {}` sends it now.", told.delivery.id),
        _ => String::new(),
    };
    format!("To {} it waits ({}{until}): {}.{press}", receiver(told), waits.reason.as_str(), waits.detail)
}

fn canceled(told: &DeliveryStory) -> String {
    let delivery = &told.delivery;
    format!(
        "To {} it was canceled ({}): `posthaste retry {}` sends it all the same.",
        receiver(told),
        delivery.reason.as_deref().unwrap_or("canceled"),
        delivery.id
    )
}
