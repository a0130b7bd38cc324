//! Somebody at the console without a browser: keeps cookies, and sends forms as a page of it would.

use std::cell::RefCell;
use std::collections::BTreeMap;

use axum::http::Method;
use url::form_urlencoded::Serializer;

use super::{Answer, HttpClient};

/// What a browser says of a form that a page of the same site sends.
pub const OWN_PAGE: [(&str, &str); 1] = [("sec-fetch-site", "same-origin")];

/// A visitor.
pub struct Visitor {
    client: HttpClient,
    pub cookies: RefCell<BTreeMap<String, String>>,
}

impl Visitor {
    pub fn new(client: &HttpClient) -> Self {
        Self { client: client.clone(), cookies: RefCell::default() }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let cookies: Vec<_> =
            self.cookies.borrow().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let mut all = headers.to_vec();
        if !cookies.is_empty() {
            all.push(("cookie", &cookies));
        }
        let answer = self.client.send(method, path, &all, body).await;
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().expect("ASCII");
            let (name, value) =
                line.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            if line.contains("Max-Age=0") {
                self.cookies.borrow_mut().remove(name);
            } else {
                self.cookies.borrow_mut().insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], String::new()).await
    }

    /// A page's text.
    pub async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        let text = text(&answer);
        assert_eq!(answer.status, 200, "{path}: {text}");
        text
    }

    /// What forms of a page carry.
    pub async fn csrf(&self, path: &str) -> String {
        csrf_in(&text(&self.get(path).await)).to_owned()
    }

    /// Sends a form as the page `on` would.
    pub async fn submit(&self, on: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let csrf = self.csrf(on).await;
        self.post(path, &OWN_PAGE, &[&[("csrf", csrf.as_str())], fields].concat()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], fields: &[(&str, &str)]) -> Answer {
        let body = Serializer::new(String::new()).extend_pairs(fields).finish();
        let form = ("content-type", "application/x-www-form-urlencoded");
        self.send(Method::POST, path, &[&[form], headers].concat(), body).await
    }

    /// Signs in with a key.
    pub async fn sign_in(&self, key: &str) -> Answer {
        self.submit("/console/sign-in", "/console/sign-in", &[("key", key)]).await
    }
}

/// An answer's text.
pub fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// What the forms of this page carry.
pub fn csrf_in(page: &str) -> &str {
    let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap_or_else(|| panic!("no form in {page}"));
    rest.split('"').next().expect("a value")
}
