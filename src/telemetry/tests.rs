use super::*;
use crate::ledger::ClockState;

fn standing() -> Standing {
    Standing {
        role: Role::All,
        now: Timestamp::from_millis(90_000),
        gates: Vec::new(),
        in_flight: 0,
        waiting: 0,
        waiting_limit: 100,
        ledger_up: true,
        unsettled: 0,
        jobs: Vec::new(),
        wal_bytes: None,
        clock: ClockStatus { state: ClockState::Trusted, skew_ms: 0, may_prune: true },
        sources: [].into(),
        backlogs: None,
        partners: BTreeMap::new(),
        disabled: BTreeMap::new(),
        attempts: Vec::new(),
        spans: None,
    }
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|there| there == *line), "{line} is not in\n{text}");
    }
}

#[test]
fn relays_count_apart_and_gates_are_bounded() {
    let (one, other) = (Metrics::new(2), Metrics::new(2));
    one.refused("tenant_ingest_limit");
    one.commits().committed(Duration::from_millis(2), 5);
    one.commits().lease_lost();
    one.gate_closed(CloseReason::Throttled);
    let gate = |n: usize| GateStatus {
        gate: GateId::Endpoint(format!("ep_{n:05}").into()),
        reason: (n == 4_999).then_some(CloseReason::Failing),
        opens_in: (n == 4_999).then_some(Duration::from_secs(1)),
        width: 64,
        in_flight: 3,
    };
    let svix = GateStatus { gate: GateId::Svix, ..gate(0) };
    let gates = (0..5_000).map(gate).chain([svix.clone()]).collect();
    let text = one.render(Standing { gates, in_flight: 7, waiting: 9, ledger_up: false, ..standing() });
    assert_lines(
        &text,
        &[
            "posthaste_ingest_refused_requests_total{code=\"tenant_ingest_limit\"} 1",
            "posthaste_ledger_commit_seconds_bucket{le=\"0.0025\"} 1",
            "posthaste_ledger_commit_seconds_bucket{le=\"0.001\"} 0",
            "posthaste_ledger_commit_events_bucket{le=\"16.0\"} 1",
            "posthaste_ledger_commit_events_bucket{le=\"+Inf\"} 1",
            "posthaste_ledger_lost_leases_total 1",
            "posthaste_ledger_state{state=\"down\"} 1.0",
            "posthaste_backlog_deliveries 9.0",
            "posthaste_dispatch_in_flight_requests 7.0",
            "posthaste_dispatch_gates{state=\"open\"} 5000.0",
            "posthaste_dispatch_gates{state=\"closed\"} 1.0",
            "posthaste_gate_closings_total{reason=\"throttled\"} 1",
            "posthaste_gate_window_requests{gate=\"svix\"} 64.0",
            "posthaste_gate_state{gate=\"ep_04999\",state=\"closed\"} 1.0",
            "posthaste_gate_state{gate=\"ep_04999\",state=\"open\"} 0.0",
        ],
    );
    assert_eq!(text.matches("posthaste_gate_window_requests{").count(), GATES_SHOWN);
    // A relay without Svix is not in trouble.
    let svix = GateStatus { reason: Some(CloseReason::NotConfigured), ..svix };
    let text = other.render(Standing { gates: vec![svix], ..standing() });
    assert!(!text.contains("gate=\"svix\""), "{text}");
    assert_lines(&text, &["posthaste_dispatch_gates{state=\"closed\"} 0.0"]);
    assert_lines(&text, &["posthaste_ingest_refused_requests_total{code=\"tenant_ingest_limit\"} 0"]);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_waits_is_told_of_the_longest_waiting_apart() {
    let endpoint = |n: i64| Destination::Endpoint { id: format!("ep_{n}").into() };
    let seconds = |n: i64| Timestamp::from_millis(n * 1_000);
    let backlog = |n: i64| Backlog { deliveries: 10, oldest: seconds(n), first_due: seconds(n + 80) };
    let mut backlogs: Backlogs = (1..=5).map(|n| (endpoint(n), backlog(n))).collect();
    for (app, oldest) in [("a", 30), ("b", 0)] {
        backlogs.insert(Destination::Svix { app: app.into() }, backlog(oldest));
    }
    let partners = (1..=4).map(|n| (format!("ep_{n}").into(), "p".into())).collect();
    let text =
        Metrics::new(2).render(Standing { backlogs: Some(Arc::new(backlogs)), partners, ..standing() });
    assert_lines(
        &text,
        &[
            "posthaste_destination_backlog_deliveries{partner=\"svix\",endpoint=\"svix\"} 20.0",
            "posthaste_destination_oldest_seconds{partner=\"svix\",endpoint=\"svix\"} 90.0",
            "posthaste_destination_oldest_seconds{partner=\"p\",endpoint=\"ep_1\"} 89.0",
            "posthaste_destination_overdue_seconds{partner=\"p\",endpoint=\"ep_1\"} 9.0",
            "posthaste_destination_oldest_seconds{partner=\"p\",endpoint=\"ep_2\"} 88.0",
            "posthaste_destination_oldest_seconds{partner=\"other\",endpoint=\"other\"} 87.0",
            "posthaste_destination_backlog_deliveries{partner=\"other\",endpoint=\"other\"} 30.0",
        ],
    );
}

#[test]
fn limits_are_told_of_so_many_partners_apart() {
    let metrics = Metrics::new(2);
    let held = |partner: &str| Held { partner: partner.into(), limit: crate::dispatcher::HeldBy::Rate };
    for partner in ["a", "b", "c", "a"] {
        metrics.held(&[held(partner)], Duration::from_millis(500));
    }
    assert_lines(
        &metrics.render(standing()),
        &[
            "posthaste_limit_held_seconds_total{partner=\"a\",limit=\"rate\"} 1.0",
            "posthaste_limit_held_seconds_total{partner=\"b\",limit=\"rate\"} 0.5",
            "posthaste_limit_held_seconds_total{partner=\"other\",limit=\"rate\"} 0.5",
        ],
    );
    metrics.retain_partners(|partner| partner == "b");
    assert!(!metrics.render(standing()).contains("partner=\"a\""));
}
