//! A real browser: Debian's chromium without a window, driven through chromedriver, each with a profile of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;

use super::eventually;

const DRIVER: &str = "POSTHASTE_TEST_CHROMEDRIVER";
const CHROMIUM: &str = "POSTHASTE_TEST_CHROMIUM";
const MISSING: &str = "run ./scripts/test, which installs chromium and chromium-driver, or name them in \
                       POSTHASTE_TEST_CHROMEDRIVER and POSTHASTE_TEST_CHROMIUM";
/// What chromedriver says when it listens.
const SAYS_ITS_PORT: &str = "was started successfully on port ";

/// A browser with one window.
pub struct Browser {
    driver: WebDriver,
    process: Child,
    _profile: TempDir,
}

fn program(variable: &str, usual: &str) -> String {
    std::env::var(variable).ok().filter(|named| !named.is_empty()).unwrap_or_else(|| usual.to_owned())
}

impl Browser {
    /// Starts with a window of this size, in CSS pixels.
    pub async fn start(width: u32, height: u32) -> Self {
        // The client that speaks to chromedriver wants to know, although it never uses TLS.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut process = Command::new(program(DRIVER, "chromedriver"))
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("no chromedriver to test with ({error}): {MISSING}"));
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let port = loop {
            let Some(Ok(line)) = lines.next() else { panic!("chromedriver ended early: {MISSING}") };
            if let Some((_, port)) = line.split_once(SAYS_ITS_PORT) {
                break port.trim_end_matches('.').to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        let profile = TempDir::with_prefix("posthaste-browser-").expect("a folder");
        let mut wishes = DesiredCapabilities::chrome();
        wishes.set_binary(&program(CHROMIUM, "/usr/bin/chromium")).expect("a wish");
        let profile_argument = format!("--user-data-dir={}", profile.path().display());
        let size = format!("--window-size={width},{height}");
        let arguments = [
            "--headless=new",
            // A browser of root has no sandbox; what it loads here is ours.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            // It ends with chromedriver, whatever that dies of.
            "--remote-debugging-pipe",
            &size,
            &profile_argument,
        ];
        for argument in arguments {
            wishes.add_arg(argument).expect("a wish");
        }
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wishes).await;
        let driver = driver.unwrap_or_else(|error| panic!("chromium does not start ({error}): {MISSING}"));
        let browser = Self { driver, process, _profile: profile };
        browser.resize(width, height).await;
        browser
    }

    /// Makes the page as wide and as high, in CSS pixels, whatever a window must be.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Whether scripts run.
    pub async fn set_scripts(&self, run: bool) {
        self.cdp("Emulation.setScriptExecutionDisabled", json!({ "value": !run })).await;
    }

    /// What the system likes: `light` or `dark`; and that nothing moves, so that what is seen is at rest.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ] });
        self.cdp("Emulation.setEmulatedMedia", features).await;
    }

    async fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.driver.cdp().send_raw(command, parameters).await.expect(command)
    }

    pub async fn goto(&self, url: &str) {
        self.driver.goto(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    }

    pub async fn url(&self) -> String {
        self.driver.current_url().await.expect("a URL").to_string()
    }

    /// Waits for an element that a CSS selector finds and that can be seen.
    pub async fn find(&self, selector: &str) -> WebElement {
        eventually(selector, async || {
            let found = self.driver.find(By::Css(selector)).await.ok()?;
            found.is_displayed().await.ok()?.then_some(found)
        })
        .await
    }

    /// Whether there is such an element now.
    pub async fn has(&self, selector: &str) -> bool {
        !self.driver.find_all(By::Css(selector)).await.expect("looked").is_empty()
    }

    /// What can be read on the page now.
    pub async fn text(&self) -> String {
        let body = self.driver.find(By::Css("body")).await;
        match body {
            Ok(body) => body.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Waits until this can be read on the page.
    pub async fn reads(&self, words: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let text = self.text().await;
            if text.contains(words) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no `{words}` at {}: {text}", self.url().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Fills a field by its label's `for`.
    pub async fn fill(&self, id: &str, text: &str) {
        let field = self.find(&format!("#{id}")).await;
        field.clear().await.expect("cleared");
        field.send_keys(text).await.expect("typed");
    }

    /// Clicks what a CSS selector finds; anew where the page was just being replaced.
    pub async fn click(&self, selector: &str) {
        eventually(selector, async || {
            let found = self.driver.find(By::Css(selector)).await.ok()?;
            found.click().await.ok()
        })
        .await;
    }

    /// Clicks the first link, button or question in the page's main part that reads so.
    pub async fn press(&self, words: &str) {
        let path = format!(
            "//main//*[self::a or self::button or self::summary][normalize-space()=\"{words}\" or starts-with(normalize-space(), \"{words}\")]"
        );
        eventually(&format!("something to press: {words}"), async || {
            for found in self.driver.find_all(By::XPath(path.as_str())).await.ok()? {
                if found.is_displayed().await.unwrap_or(false) && found.click().await.is_ok() {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// Presses a key where the focus is.
    pub async fn type_keys(&self, keys: impl Into<TypingData>) {
        self.driver.action_chain().send_keys(keys).perform().await.expect("typed");
    }

    /// What a script returns.
    pub async fn js(&self, script: &str) -> Value {
        let answer = self.driver.execute(script, Vec::new()).await;
        answer.unwrap_or_else(|error| panic!("{script}: {error}")).json().clone()
    }

    /// A picture of the window, as PNG.
    pub async fn picture(&self) -> Vec<u8> {
        self.driver.screenshot_as_png().await.expect("a picture")
    }

    /// Ends it in good order.
    pub async fn quit(mut self) {
        let _ = self.driver.clone().quit().await;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Gone already where the test came to its end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
