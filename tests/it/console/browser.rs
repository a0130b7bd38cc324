//! In a real browser.

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer};
use serde_json::{Value, json};
use thirtyfour::Key;

use crate::access::create_key;
use crate::cli::Running;
use crate::support::browser::Browser;
use crate::support::{TestDatabase, TestRelay, bounded, config, eventually, mock_svix};

/// Most that a page of the console may weigh, with all that it loads.
const PAGE_MAX_BYTES: usize = 100_000;

/// A relay whose partner `crm` answers as the mock does, with an event of each kind of fate.
struct Stage {
    _database: TestDatabase,
    _svix: MockSvix,
    relay: TestRelay,
    partner: MockPartner,
    endpoint: String,
    url: String,
}

impl Stage {
    async fn set() -> Self {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let mut config = config(&database, &svix);
        config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
        let relay = TestRelay::start_with(config).await;
        let partner = MockPartner::start().await;
        let json = [("content-type", "application/json")];
        relay.send(Method::PUT, "/v1/partners/crm", &json, r#"{"name":"CRM"}"#).await;
        let endpoint =
            json!({"url": partner.url("/hooks"), "event_types": ["order.*"], "retry_schedule_ms": [50]});
        let made = relay.send(Method::POST, "/v1/partners/crm/endpoints", &json, endpoint.to_string()).await;
        let endpoint = made.json()["id"].as_str().expect("an id").to_owned();
        let url = format!("http://{}", relay.app().address());
        Self { _database: database, _svix: svix, relay, partner, endpoint, url }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Posts an event that the partner refuses until it is given up.
    async fn bury(&self, id: &str) {
        let broken = PartnerAnswer { body: "no route to the warehouse".into(), ..PartnerAnswer::status(500) };
        self.partner.set_answer(Some(broken));
        let event = json!({"id": id, "type": "order.created", "tenant": "acme", "data": {"total": 1}});
        assert_eq!(self.relay.post(event.to_string()).await.status, 202);
        self.relay.settled().await;
    }
}

/// The way that a newcomer goes: who fails, which event, why; mend it, send it again, see it delivered.
#[tokio::test(flavor = "multi_thread")]
async fn from_a_fresh_start_to_a_delivered_event() {
    let variables = [("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")];
    let dev = Running::start(&["dev", "--events", "150", "--rate", "0", "--quiet"], &variables);
    dev.says("It stays up for events of your own").await;
    let console = dev.word_after("  console ");
    let browser = Browser::start(1280, 900).await;
    // The first page shows who fails, first of all.
    browser.goto(&console).await;
    eventually("the failing partner, first of all", async || {
        let row = browser.find("table tbody tr:first-child").await.text().await.ok()?;
        (row.starts_with("crm") && row.contains("failing") && row.contains("100 %")).then_some(())
    })
    .await;
    // Its event, by what was given up.
    browser.click("table tbody tr:first-child a.bad").await;
    browser.reads("Dead letters").await;
    assert!(browser.url().await.contains("partner=crm"), "{}", browser.url().await);
    browser.click("table tbody tr:first-child a").await;
    browser.reads("no such address").await;
    let text = browser.text().await;
    assert!(text.contains("webhooks have moved to http://127.0.0.1:") && text.contains("given up"), "{text}");
    let event = browser.url().await;
    // Mended where the partner says it is now.
    browser.click("section h2 a").await;
    browser.press("Edit").await;
    let old = browser.find("#url").await.prop("value").await.expect("read").expect("a URL");
    browser.fill("url", &old.replace("[redacted]", "crm/v2")).await;
    browser.press("Save").await;
    browser.reads("The endpoint is saved.").await;
    // Sent again, and delivered: one by one …
    browser.goto(&event).await;
    browser.press("Retry").await;
    browser.reads("goes out to crm again now.").await;
    browser.reads("delivered, 204").await;
    // … and all that is left, counted first.
    browser.goto(&format!("{console}/dead?partner=crm")).await;
    browser.press("Replay all of these").await;
    browser.reads("deliveries").await;
    browser.press("Replay ").await;
    browser.reads("The replay runs.").await;
    browser.reads("completed").await;
    browser.goto(&format!("{console}/dead")).await;
    browser.reads("No dead letters").await;
    // The first page says so too.
    browser.goto(&console).await;
    eventually("the partner is well again", async || {
        let text = browser.text().await;
        (!text.contains("failing")).then_some(())
    })
    .await;
    browser.quit().await;
    dev.signal("INT");
    assert_eq!(dev.end_within(Duration::from_secs(20)).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signs_in_finds_an_event_and_sends_it_again() {
    bounded(async {
        let stage = Stage::set().await;
        stage.bury("evt_buried").await;
        let admin = create_key(&stage.relay, None, json!({"name": "Ada", "scopes": ["admin"]})).await;
        let browser = Browser::start(1280, 900).await;
        browser.goto(&stage.at("/console/events?state=dead")).await;
        browser.reads("Sign in").await;
        browser.fill("key", "ph_0_0").await;
        browser.click("button.main").await;
        browser.reads("This key is unknown or revoked.").await;
        browser.fill("key", &admin).await;
        browser.click("button.main").await;
        // Back to where one wanted to go.
        browser.reads("evt_buried").await;
        assert!(browser.url().await.ends_with("/console/events?state=dead"), "{}", browser.url().await);
        assert_eq!(browser.js("return document.cookie").await, json!(""), "no cookie for scripts");
        browser.fill("tenant", "acme").await;
        browser.fill("id", "evt_buried").await;
        browser.press("Search").await;
        browser.reads("no route to the warehouse").await;
        assert!(browser.text().await.contains("failed, 500"));
        stage.partner.set_answer(None);
        browser.press("Retry").await;
        browser.reads("evt_buried goes out to crm again now.").await;
        browser.reads("delivered, 204").await;
        assert!(!browser.has("main .state.bad").await, "{}", browser.text().await);
        // Done in place: the page was not loaded anew, and is still the story's.
        assert!(browser.url().await.contains("/console/event?"), "{}", browser.url().await);
        browser.click(".who button.plain:not([name])").await;
        browser.reads("Sign in").await;
        browser.quit().await;
        stage.relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_and_takes_forms_without_scripts() {
    bounded(async {
        let stage = Stage::set().await;
        stage.bury("evt_plain").await;
        let browser = Browser::start(1280, 900).await;
        browser.set_scripts(false).await;
        for (path, words) in [
            ("/console", "crm"),
            ("/console/events", "evt_plain"),
            ("/console/dead", "evt_plain"),
            ("/console/replays", "No replay yet"),
            ("/console/partners", "CRM"),
            ("/console/sources", "Nothing is rejected"),
            ("/console/settings", "allowed_networks"),
            ("/console/keys", "No key yet"),
        ] {
            browser.goto(&stage.at(path)).await;
            browser.reads(words).await;
        }
        browser.goto(&stage.at("/console/partners/crm")).await;
        browser.press("Pause").await;
        browser.click("details.confirm[open] button").await;
        browser.reads("CRM is paused").await;
        browser.press("Resume").await;
        browser.reads("CRM gets its events again").await;
        stage.partner.set_answer(None);
        browser.goto(&stage.at("/console/event?tenant=acme&id=evt_plain")).await;
        browser.press("Retry").await;
        browser.reads("goes out to crm again now.").await;
        stage.relay.settled().await;
        browser.goto(&stage.at("/console/event?tenant=acme&id=evt_plain")).await;
        browser.reads("delivered, 204").await;
        browser.quit().await;
        stage.relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_needs_no_scrolling_sideways_and_dark_is_dark() {
    bounded(async {
        let stage = Stage::set().await;
        stage.bury(&"evt_with_a_long_name_".repeat(8)).await;
        let browser = Browser::start(360, 740).await;
        let endpoint = format!("/console/endpoints/{}", stage.endpoint);
        let story = format!("/console/event?tenant=acme&id={}", "evt_with_a_long_name_".repeat(8));
        for path in [
            "/console",
            "/console/events",
            &story,
            "/console/dead",
            "/console/replays/new?state=dead",
            "/console/partners",
            "/console/partners/crm",
            "/console/partners/crm/edit",
            &endpoint,
            &format!("{endpoint}/edit"),
            "/console/sources",
            "/console/tenants/acme",
            "/console/keys",
            "/console/settings",
            "/console/nothing",
        ] {
            browser.goto(&stage.at(path)).await;
            let wide = browser.js("return document.documentElement.scrollWidth").await;
            assert!(wide.as_u64().is_some_and(|wide| wide <= 360), "{path} is {wide} wide");
        }
        browser.goto(&stage.at("/console")).await;
        let background = "return getComputedStyle(document.body).backgroundColor";
        let (dark, light) = (json!("rgb(18, 19, 22)"), json!("rgb(247, 247, 245)"));
        browser.prefer("dark").await;
        assert_eq!(browser.js(background).await, dark);
        browser.prefer("light").await;
        assert_eq!(browser.js(background).await, light);
        // Chosen by hand, whatever the system likes; it is kept.
        browser.click("button[name=theme][value=dark]").await;
        browser.find("button[value=dark][aria-pressed=true]").await;
        assert_eq!(browser.js(background).await, dark);
        browser.goto(&stage.at("/console/partners")).await;
        assert_eq!(browser.js(background).await, dark);
        browser.quit().await;
        stage.relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_gets_everywhere_and_readers_are_told() {
    bounded(async {
        let stage = Stage::set().await;
        let browser = Browser::start(1280, 900).await;
        browser.goto(&stage.at("/console/partners/crm")).await;
        // First of all one skips the menu.
        browser.type_keys(Key::Tab).await;
        assert_eq!(browser.js("return document.activeElement.className").await, json!("skip"));
        // Every field has a name, every picture too; one main part, one heading of the first rank.
        let unnamed = "return Array.from(document.querySelectorAll('input:not([type=hidden]), select, textarea, button, summary, a, [role=img], nav'))
            .filter(e => !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label') && !e.querySelector('img[alt]'))
            .map(e => e.outerHTML)";
        let landmarks = "return [document.querySelectorAll('main').length, document.querySelectorAll('h1').length, document.documentElement.lang]";
        let endpoint = format!("/console/endpoints/{}/edit", stage.endpoint);
        for path in
            ["/console", "/console/events", "/console/partners/new", &endpoint, "/console/replays/new", "/console/keys", "/console/tenants/acme"]
        {
            browser.goto(&stage.at(path)).await;
            assert_eq!(browser.js(unnamed).await, json!([]), "{path}");
            assert_eq!(browser.js(landmarks).await, json!([1, 1, "en"]), "{path}");
            // Colours that are read are apart from what is behind them (WCAG 2.2, 1.4.3), in light and in dark.
            for scheme in ["light", "dark"] {
                browser.prefer(scheme).await;
                assert_eq!(browser.js(CONTRAST).await, json!([]), "{path} in {scheme}");
            }
        }
        // A question opens and closes by keys, and what was done gets the focus.
        browser.goto(&stage.at("/console/partners/crm")).await;
        browser.js("document.querySelector('details.confirm summary').focus()").await;
        browser.type_keys(Key::Enter).await;
        browser.find("details.confirm[open] form button").await;
        browser.type_keys(Key::Escape).await;
        eventually("it is closed", async || (!browser.has("details.confirm[open]").await).then_some(())).await;
        browser.type_keys(Key::Enter).await;
        browser.type_keys(Key::Tab).await;
        browser.type_keys(Key::Enter).await;
        browser.reads("CRM is paused").await;
        eventually("the focus is on what was done", async || {
            let focused = browser.js("return document.activeElement.textContent").await;
            focused.as_str().is_some_and(|text| text.contains("CRM is paused")).then_some(())
        })
        .await;
        browser.quit().await;
        stage.relay.finish().await;
    })
    .await;
}

/// The texts that stand too close to their background, by WCAG's formula.
const CONTRAST: &str = "
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data; };
    const light = (c) => { const [r, g, b] = [c[0], c[1], c[2]].map(v => { v /= 255;
        return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
    const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
        if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
    const bad = [];
    for (const e of document.querySelectorAll('body *')) {
        const own = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || e.closest('svg, .skip') || !e.getClientRects().length || e.disabled || e.closest('fieldset:disabled')) continue;
        const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.5) bad.push(e.outerHTML.slice(0, 120) + ' ' + ((a + .05) / (b + .05)).toFixed(2));
    }
    return bad;";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_light_and_asks_for_nothing_unseen() {
    bounded(async {
        let stage = Stage::set().await;
        for n in 0..60 {
            let event = json!({"id": format!("evt_{n}"), "type": "order.created", "tenant": "acme", "data": {"n": n}});
            assert_eq!(stage.relay.post(event.to_string()).await.status, 202);
        }
        stage.relay.settled().await;
        for path in ["/console", "/console/events", "/console/event?tenant=acme&id=evt_7", "/console/partners"] {
            let page = stage.relay.get(path).await;
            assert_eq!(page.status, 200, "{path}");
            let text = String::from_utf8_lossy(&page.body).into_owned();
            let mut bytes = page.body.len();
            for asset in text.split('"').filter(|part| part.starts_with("/console/assets/")) {
                bytes += stage.relay.get(asset).await.body.len();
            }
            assert!(bytes < PAGE_MAX_BYTES, "{path} weighs {bytes} bytes");
        }
        // What happens while one looks is seen without a hand on it.
        let browser = Browser::start(1280, 900).await;
        browser.goto(&stage.at("/console/event?tenant=acme&id=evt_7")).await;
        browser.reads("delivered, 204").await;
        let again = json!({"id": "evt_7", "type": "order.created", "tenant": "acme", "data": {"n": 7}});
        assert_eq!(stage.relay.post(again.to_string()).await.statuses(), ["duplicate"]);
        browser.reads("1 times as it is").await;
        // In a tab that nobody sees nothing is asked.
        browser.js("Object.defineProperty(document, 'hidden', { get: () => true }); window.asked = 0; document.addEventListener('htmx:beforeSend', () => window.asked++)").await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(browser.js("return window.asked").await, json!(0));
        browser.quit().await;
        stage.relay.finish().await;
    })
    .await;
}

/// Whatever anybody can write, in every place where the console shows it.
const HOSTILE: &str = r#"<script>window.hacked=1</script>"><img src=x onerror=window.hacked=1><svg onload=window.hacked=1>'--{{7*7}}"#;

/// Every page that shows what others wrote, asked for with it too.
fn pages_with(text: &str, endpoint: &str) -> Vec<String> {
    let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let in_path = encoded.replace('+', "%20");
    vec![
        "/console".to_owned(),
        "/console/events".to_owned(),
        format!(
            "/console/events?tenant={encoded}&type={encoded}&state={encoded}&since={encoded}&until={encoded}"
        ),
        format!("/console/event?tenant={encoded}&id={encoded}"),
        format!("/console/dead?tenant={encoded}&partner={encoded}"),
        "/console/dead".to_owned(),
        format!(
            "/console/replays/new?tenant={encoded}&type={encoded}&partner={encoded}&state={encoded}&pace={encoded}"
        ),
        "/console/partners".to_owned(),
        "/console/partners/crm".to_owned(),
        "/console/partners/crm/edit".to_owned(),
        format!("/console/partners/{in_path}"),
        format!("/console/endpoints/{endpoint}"),
        format!("/console/endpoints/{endpoint}/edit"),
        format!("/console/sources?origin={encoded}"),
        "/console/sources".to_owned(),
        "/console/rejected/1".to_owned(),
        format!("/console/tenants/{in_path}"),
        "/console/keys".to_owned(),
        format!("/console/{in_path}"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_others_write_runs() {
    bounded(async {
        let stage = Stage::set().await;
        let json = [("content-type", "application/json")];
        let answer = PartnerAnswer { body: HOSTILE.into(), ..PartnerAnswer::status(500) };
        stage.partner.set_answer(Some(answer));
        let put = async |path: &str, body: Value| {
            let answer = stage.relay.send(Method::PUT, path, &json, body.to_string()).await;
            assert!(answer.status.is_success(), "{path}: {}", answer.json());
        };
        put("/v1/partners/crm", json!({"name": HOSTILE})).await;
        let patch = json!({"event_types": ["*"], "headers": {"x-team": HOSTILE}, "transform": {"set": {"/x": HOSTILE}}});
        let patched = format!("/v1/endpoints/{}", stage.endpoint);
        let answer = stage.relay.send(Method::PATCH, &patched, &json, patch.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        // Every part of an event that a producer writes.
        let event = json!({"id": HOSTILE, "source": HOSTILE, "type": HOSTILE, "tenant": HOSTILE, "data": {HOSTILE: HOSTILE}});
        let taken = stage.relay.post(event.to_string()).await;
        assert_eq!(taken.status, 202, "{}", taken.json());
        stage.relay.settled().await;
        let rejected = posthaste::ledger::NewRejected {
            origin: format!("nats:{HOSTILE}"),
            reason: HOSTILE.into(),
            attributes: json!({HOSTILE: HOSTILE}).to_string(),
            body: HOSTILE.as_bytes().to_vec(),
            content_type: Some(HOSTILE.into()),
            tenant: Some(HOSTILE.into()),
            identity: None,
            item: 0,
            message_key: None,
        };
        let now = posthaste::domain::clock::Timestamp::from_millis(1_700_000_000_000);
        stage.relay.app().ledger().database().reject(&[rejected], now).await.expect("kept");
        let admin = create_key(&stage.relay, None, json!({"name": HOSTILE, "scopes": ["admin"]})).await;
        let encoded: String = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
        let browser = Browser::start(1280, 900).await;
        browser.goto(&stage.at(&format!("/console/sign-in?next={encoded}"))).await;
        browser.fill("key", &admin).await;
        browser.click("button.main").await;
        browser.reads("Overview").await;
        let pages = pages_with(HOSTILE, &stage.endpoint);
        let mut seen = 0;
        for path in &pages {
            browser.goto(&stage.at(path)).await;
            let hacked = browser.js("return [typeof window.hacked, document.querySelectorAll('main script, main img, svg[onload]').length]").await;
            let pictures = u64::from(browser.has("main.alone .brand img").await);
            assert_eq!(hacked, json!(["undefined", pictures]), "{path}");
            seen += usize::from(browser.js("return document.documentElement.innerHTML").await.as_str().is_some_and(|html| html.contains("&lt;script&gt;window.hacked")));
        }
        assert!(seen >= 12, "it was shown on {seen} pages");
        // And where a form brings it back.
        browser.goto(&stage.at("/console/partners/new")).await;
        browser.fill("id", "x").await;
        browser.fill("name", &format!("{HOSTILE}{}", "x".repeat(300))).await;
        browser.press("Make the partner").await;
        browser.reads("It is not saved.").await;
        assert_eq!(browser.js("return typeof window.hacked").await, json!("undefined"));
        // The policy holds where an escape is forgotten: what is inline does not run.
        browser.js("const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s); document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(browser.js("return typeof window.hacked").await, json!("undefined"));
        browser.quit().await;
        stage.relay.stop().await;
    })
    .await;
}
