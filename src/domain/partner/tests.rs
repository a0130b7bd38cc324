use rstest::rstest;
use secrecy::ExposeSecret as _;

use super::*;

fn places(faults: &[SettingFault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.pointer.as_str()).collect()
}

fn shown(settings: &impl Serialize) -> String {
    serde_json::to_string(settings).expect("shown")
}

#[test]
fn a_partner_needs_a_name_only() {
    let partner = PartnerSettings::parse(r#"{"name":"Acme"}"#).expect("good");
    assert_eq!(partner, PartnerSettings { name: "Acme".into(), ..PartnerSettings::default() });
    let full = r#"{"name":"Acme","rate_limit":{"per_second":2.5,"burst":10},"max_in_flight":8,"paused":true,"verify_endpoints":true}"#;
    assert_eq!(shown(&PartnerSettings::parse(full).expect("good")), full);
}

#[rstest]
#[case("2.5", 3)]
#[case("0.5", 1)]
#[case("100", 100)]
fn a_burst_is_what_a_second_brings(#[case] per_second: &str, #[case] burst: u32) {
    let json = format!(r#"{{"name":"Acme","rate_limit":{{"per_second":{per_second}}}}}"#);
    let limit = PartnerSettings::parse(&json).expect("good").rate_limit.expect("set");
    assert_eq!(limit.burst, burst);
}

#[rstest]
#[case("[]", &[""], "expected an object")]
#[case("{", &[""], "not JSON")]
#[case("{}", &["/name"], "`name` is required")]
#[case(r#"{"name":null}"#, &["/name"], "`name` must not be null")]
#[case(r#"{"name":7}"#, &["/name"], "`name` must be a text")]
#[case(r#"{"name":""}"#, &["/name"], "`name` must not be empty")]
#[case(r#"{"name":"A","name":"B"}"#, &["/name"], "`name` is given more than once")]
#[case(r#"{"name":"A","nmae":"B"}"#, &["/nmae"], "`nmae` is not a setting")]
#[case(r#"{"name":"A","a/b~":1}"#, &["/a~1b~0"], "not a setting")]
#[case(r#"{"name":"A","max_in_flight":0}"#, &["/max_in_flight"], "from 1 to 10000")]
#[case(r#"{"name":"A","max_in_flight":-1}"#, &["/max_in_flight"], "from 1 to 10000")]
#[case(r#"{"name":"A","paused":"yes"}"#, &["/paused"], "true or false")]
#[case(r#"{"name":"A","rate_limit":5}"#, &["/rate_limit"], "an object of")]
#[case(r#"{"name":"A","rate_limit":{"per_second":0}}"#, &["/rate_limit/per_second"], "0.001 to 100000")]
#[case(r#"{"name":"A","rate_limit":{"per_second":1,"burst":0}}"#, &["/rate_limit/burst"], "from 1 to")]
#[case(r#"{"max_in_flight":0,"paused":1}"#, &["/name", "/max_in_flight", "/paused"], "`name` is required")]
fn faults_of_a_partner(#[case] json: &str, #[case] expected: &[&str], #[case] detail: &str) {
    let faults = PartnerSettings::parse(json).expect_err("refused");
    assert_eq!(places(&faults), expected);
    assert!(faults[0].detail.contains(detail), "{faults:?}");
}

#[test]
fn an_endpoint_needs_a_url_only() {
    let endpoint = EndpointSettings::parse(r#"{"url":"https://acme.example/hook?x=1"}"#).expect("good");
    assert_eq!(
        shown(&endpoint),
        concat!(
            r#"{"url":"https://acme.example/[redacted]","tenant":null,"event_types":["*"],"headers":{},"transform":null,"#,
            r#""timeout_ms":15000,"retry_schedule_ms":[5000,300000,1800000,7200000,18000000,36000000,36000000],"#,
            r#""signature":{"scheme":"standard"}}"#,
        )
    );
    let total: u64 = endpoint.retry_schedule_ms.iter().sum();
    assert_eq!(total, 27 * HOUR_MS + 35 * MINUTE_MS + 5 * SECOND_MS);
    assert_eq!(endpoint.retry_schedule().delay(1, 0.5), Some(Duration::from_secs(5)));
    assert_eq!(endpoint.retry_schedule().delay(8, 0.5), None);
}

const FULL: &str = r#"{
    "url": "http://10.0.0.7:9000/in",
    "tenant": "acme",
    "event_types": ["order.*", "invoice.paid"],
    "headers": {"Authorization": "Bearer canary", "X-Region": "canary-eu"},
    "transform": {"set": {"/version": 1.10}},
    "timeout_ms": 300,
    "retry_schedule_ms": [],
    "signature": {"scheme": "hex_hmac_sha256", "header": "X-Shop-Signature-256"}
}"#;

#[test]
fn a_patch_replaces_what_it_names_and_null_brings_the_default_back() {
    let endpoint = EndpointSettings::parse(FULL).expect("good");
    assert!(shown(&endpoint).contains(r#""transform":{"set": {"/version": 1.10}}"#));
    let patch = r#"{"tenant":null,"event_types":null,"timeout_ms":null,"retry_schedule_ms":null,"signature":null,
        "transform":null,"headers":{"authorization":"[redacted]"}}"#;
    let patched = endpoint.patched(patch).expect("good");
    assert_eq!(patched.url, "http://10.0.0.7:9000/in");
    assert_eq!(patched.headers.exposed().expose_secret(), r#"{"authorization":"Bearer canary"}"#);
    let plain = EndpointSettings::parse(r#"{"url":"http://10.0.0.7:9000/in"}"#).expect("good");
    assert_eq!(shown(&patched.patched(r#"{"headers":null}"#).expect("good")), shown(&plain));
    assert_eq!(shown(&endpoint.patched("{}").expect("good")), shown(&endpoint));
    // What was shown can be given back.
    let again = endpoint.patched(&shown(&endpoint)).expect("good");
    assert_eq!(again.headers.exposed().expose_secret(), endpoint.headers.exposed().expose_secret());
}

#[test]
fn what_is_stored_is_read_again_with_its_headers() {
    // holds: 46
    let endpoint = EndpointSettings::parse(FULL).expect("good");
    let stored = shown(&endpoint);
    assert!(
        !stored.contains("canary")
            && !stored.contains("/in\"")
            && !format!("{endpoint:?}").contains("canary")
    );
    let headers = CustomHeaders::from_exposed(endpoint.headers.exposed().expose_secret()).expect("read");
    let url = Some(endpoint.url.clone());
    let read = EndpointSettings::from_stored(&stored, headers.clone(), url).expect("read");
    assert_eq!((shown(&read), &read.url), (stored.clone(), &endpoint.url));
    assert_eq!(read.headers.exposed().expose_secret(), endpoint.headers.exposed().expose_secret());
    // Without them it is refused: a partner must never be sent the word "[redacted]".
    let without = EndpointSettings::from_stored(&stored, CustomHeaders::default(), None);
    assert_eq!(
        places(&without.expect_err("refused")),
        ["/url", "/headers/authorization", "/headers/x-region"]
    );
    // Earlier versions stored the whole URL.
    let before = stored.replace(&endpoint.masked_url(), &endpoint.url);
    assert_eq!(EndpointSettings::from_stored(&before, headers, None).expect("read").url, endpoint.url);
}

#[rstest]
#[case("https://acme.example", "https://acme.example")]
#[case("https://acme.example/", "https://acme.example/")]
#[case("https://acme.example:8443/hook", "https://acme.example:8443/[redacted]")]
#[case("https://acme.example/?key=1", "https://acme.example/[redacted]")]
#[case("https://acme.example?key=1", "https://acme.example/[redacted]")]
fn a_url_is_shown_without_path_and_query(#[case] url: &str, #[case] shown_as: &str) {
    let endpoint = EndpointSettings::parse(&format!(r#"{{"url":"{url}"}}"#)).expect("good");
    assert_eq!(endpoint.masked_url(), shown_as);
    // What was shown can be given back, and only to the endpoint that was shown.
    let patch = format!(r#"{{"url":"{shown_as}"}}"#);
    assert_eq!(endpoint.patched(&patch).expect("good").url, url);
    assert_eq!(EndpointSettings::parse(&patch).is_ok(), url == shown_as);
}

#[rstest]
#[case("{}", "/url", "required")]
#[case(r#"{"url":null}"#, "/url", "null")]
#[case(r#"{"url":"acme.example"}"#, "/url", "https://")]
#[case(r#"{"url":"ftp://acme.example/"}"#, "/url", "https://")]
#[case(r#"{"url":"/hook"}"#, "/url", "https://")]
#[case(r#"{"url":"https:///hook"}"#, "/url", "not a URL")]
#[case(r#"{"url":"https://user:pw@acme.example/"}"#, "/url", "user or password")]
#[case(r#"{"url":"https://acme.example/#a"}"#, "/url", "fragment")]
#[case(r#"{"url":"https://acme.example/a b"}"#, "/url", "spaces")]
#[case(r#"{"url":"https://acmé.example/"}"#, "/url", "ASCII")]
#[case(r#"{"url":"https://x/","tenant":""}"#, "/tenant", "empty")]
#[case(r#"{"url":"https://x/","event_types":[]}"#, "/event_types", "1 to 256")]
#[case(r#"{"url":"https://x/","event_types":"*"}"#, "/event_types", "a list")]
#[case(r#"{"url":"https://x/","event_types":["a","b*"]}"#, "/event_types/1", "order.*")]
#[case(r#"{"url":"https://x/","headers":"canary"}"#, "/headers", "an object")]
#[case(r#"{"url":"https://x/","headers":{"X-A":13371337}}"#, "/headers/X-A", "text")]
#[case(r#"{"url":"https://x/","headers":{"Host":"canary"}}"#, "/headers/Host", "`Host`")]
#[case(r#"{"url":"https://x/","headers":{"X-A":"canary","X-A":"canary"}}"#, "/headers/X-A", "more than once")]
#[case(r#"{"url":"https://x/","headers":{"X-A":"canary\n"}}"#, "/headers/X-A", "line break")]
#[case(r#"{"url":"https://x/","transform":["omit"]}"#, "/transform", "an object")]
#[case(r#"{"url":"https://x/","timeout_ms":99}"#, "/timeout_ms", "100 to 30000")]
#[case(r#"{"url":"https://x/","timeout_ms":30001}"#, "/timeout_ms", "100 to 30000")]
#[case(r#"{"url":"https://x/","timeout_ms":1.5}"#, "/timeout_ms", "100 to 30000")]
#[case(r#"{"url":"https://x/","retry_schedule_ms":[1,604800001]}"#, "/retry_schedule_ms/1", "seven days")]
#[case(r#"{"url":"https://x/","retry_schedule_ms":5}"#, "/retry_schedule_ms", "a list")]
#[case(r#"{"url":"https://x/","signature":{"scheme":"none"}}"#, "/signature", "`none`")]
#[case(r#"{"url":"https://x/","secret":"canary"}"#, "/secret", "not a setting")]
#[case(
    r#"{"url":"https://x/","headers":{"X-S":"canary"},"signature":{"scheme":"hex_hmac_sha256","header":"x-s"}}"#,
    "/signature",
    "carries the signature"
)]
fn faults_of_an_endpoint(#[case] json: &str, #[case] place: &str, #[case] detail: &str) {
    let faults = EndpointSettings::parse(json).expect_err("refused");
    assert_eq!(places(&faults), [place], "{faults:?}");
    assert!(faults[0].detail.contains(detail), "{faults:?}");
    assert!(!faults[0].detail.contains("canary") && !faults[0].detail.contains("1337"), "{faults:?}");
}

#[test]
fn lists_are_bounded() {
    let with = |name: &str, list: &str| {
        EndpointSettings::parse(&format!(r#"{{"url":"https://x/","{name}":{list}}}"#)).map(|_| ())
    };
    let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
    with("event_types", &list("\"a\"", 256)).expect("as many as may be");
    assert!(with("event_types", &list("\"a\"", 257)).is_err());
    with("retry_schedule_ms", &list("0", 32)).expect("as many as may be");
    assert!(with("retry_schedule_ms", &list("0", 33)).is_err());
    assert!(with("transform", &format!(r#"{{"a":"{}"}}"#, "x".repeat(TRANSFORM_MAX_BYTES))).is_err());
    let url = format!(r#"{{"url":"https://x/{}"}}"#, "x".repeat(URL_MAX_BYTES));
    assert!(EndpointSettings::parse(&url).is_err());
}

#[test]
fn an_endpoint_is_disabled_once_and_enabled_once() {
    let at = Timestamp::from_millis(5);
    let disabled = EndpointState::Active.disable(DisableReason::Gone, at).expect("legal");
    assert_eq!(disabled, EndpointState::Disabled { reason: DisableReason::Gone, at });
    assert!(!disabled.is_active());
    assert_eq!(
        disabled.disable(DisableReason::Operator, at).expect_err("illegal").to_string(),
        "the endpoint is disabled already (gone)"
    );
    assert_eq!(disabled.enable(), Ok(EndpointState::Active));
    assert_eq!(EndpointState::Active.enable(), Err(IllegalMove::AlreadyActive));
    for reason in [DisableReason::Operator, DisableReason::Gone, DisableReason::Failing] {
        assert_eq!(DisableReason::parse(reason.as_str()), Some(reason));
    }
    assert_eq!(DisableReason::parse("bored"), None);
}
