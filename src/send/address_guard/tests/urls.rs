//! What may be saved.

use http::Uri;
use proptest::prelude::*;
use rstest::rstest;
use url::{Host, Url};

use super::{Script, Sentinel, client, policy, post};
use crate::send::address_guard::{DialPolicy, URL_LIMIT_BYTES, vet_address, vet_url};

/// `PORT` is the sentinel's. holds: 42
#[rstest]
// userinfo
#[case("https://good.example@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://good.example:443@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://:@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://a@b@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://good.example／@127.0.0.1:PORT/", "userinfo_refused")]
#[case("https://user:secret@good.example/", "userinfo_refused")]
// fragment and query that look like the authority
#[case("https://127.0.0.1:PORT#@good.example/", "fragment_refused")]
#[case("https://good.example#@127.0.0.1:PORT/", "fragment_refused")]
#[case("https://good.example/#", "fragment_refused")]
#[case("https://127.0.0.1:PORT?@good.example/", "address_refused")]
#[case("https://127.0.0.1:PORT/@good.example/", "address_refused")]
#[case("https://good.example%40127.0.0.1:PORT/", "url_invalid")]
#[case("https://good.example＠127.0.0.1:PORT/", "url_invalid")]
// backslashes, control characters, spaces
#[case(r"https://good.example\@127.0.0.1:PORT/", "url_invalid")]
#[case(r"https:\\127.0.0.1:PORT\", "url_invalid")]
#[case(r"https://127.0.0.1:PORT\@good.example/", "url_invalid")]
#[case("https://127.0.0\t.1:PORT/", "url_invalid")]
#[case("https://127.0.0.1:PORT/\n", "url_invalid")]
#[case("https://127.0.0.1:PORT/\r\nHost: good.example", "url_invalid")]
#[case(" https://127.0.0.1:PORT/", "url_invalid")]
#[case("https://127.0.0.1:PORT/ ", "url_invalid")]
#[case("\u{0}https://127.0.0.1:PORT/", "url_invalid")]
#[case("ht\ntps://127.0.0.1:PORT/", "url_invalid")]
#[case("https://good.example/a\u{85}b", "url_invalid")]
#[case("https://127.0.0.1%00.good.example:PORT/", "url_invalid")]
#[case("https://127.0.0.1%0d%0a:PORT/", "url_invalid")]
#[case("https://127.0.0.1%2f.good.example:PORT/", "url_invalid")]
// slashes too few or too many
#[case("https:127.0.0.1:PORT/", "url_invalid")]
#[case("https:/127.0.0.1:PORT/", "url_invalid")]
#[case("https:///127.0.0.1:PORT/", "url_invalid")]
#[case("https:////127.0.0.1:PORT/", "url_invalid")]
#[case("//127.0.0.1:PORT/", "scheme_refused")]
#[case("127.0.0.1:PORT", "scheme_refused")]
#[case("/hook", "url_invalid")]
#[case("", "url_invalid")]
#[case("https://", "url_invalid")]
#[case("https://:PORT/", "url_invalid")]
#[case("https://?x", "url_invalid")]
// schemes
#[case("http://127.0.0.1:PORT/", "address_refused")]
#[case("http://93.184.215.14:443/", "https_required")]
#[case("http://good.example:443/", "https_required")]
#[case("http://good.example/", "https_required")]
#[case("ftp://127.0.0.1:PORT/", "scheme_refused")]
#[case("gopher://127.0.0.1:PORT/_x", "scheme_refused")]
#[case("ws://127.0.0.1:PORT/", "scheme_refused")]
#[case("file:///etc/passwd", "scheme_refused")]
#[case("unix:/run/docker.sock", "scheme_refused")]
#[case("javascript:alert(1)", "scheme_refused")]
#[case("data:text/plain,x", "scheme_refused")]
#[case("hｔtps://127.0.0.1:PORT/", "scheme_refused")]
#[case("view-source:https://127.0.0.1:PORT/", "scheme_refused")]
// hosts that are none
#[case("https://[fe80::1%25eth0]:PORT/", "url_invalid")]
#[case("https://[fe80::1%eth0]:PORT/", "url_invalid")]
#[case("https://[::1%25lo]:PORT/", "url_invalid")]
#[case("https://[::1].:PORT/", "url_invalid")]
#[case("https://[127.0.0.1]:PORT/", "url_invalid")]
#[case("https://[::ffff:127.0.0.01]:PORT/", "url_invalid")]
#[case("https://[::ffff:0x7f.0.0.1]:PORT/", "url_invalid")]
#[case("https://[v1.127001]:PORT/", "url_invalid")]
#[case("https://::1:PORT/", "url_invalid")]
#[case("https://::ffff:127.0.0.1/", "url_invalid")]
#[case("https://127.0.0.1：PORT/", "url_invalid")]
#[case("https://127.0.0.1／.good.example:PORT/", "url_invalid")]
#[case("https://℀.good.example:PORT/", "url_invalid")]
#[case("https://1.2.3.4.5:PORT/", "url_invalid")]
#[case("https://256.256.256.256:PORT/", "url_invalid")]
#[case("https://127.0.0.09:PORT/", "url_invalid")]
#[case("https://127..0.1:PORT/", "url_invalid")]
#[case("https://good.example.127:PORT/", "url_invalid")]
#[case("https://4294967296:PORT/", "url_invalid")]
#[case("https://0x17f000001:PORT/", "url_invalid")]
#[case("https://127.0.0.1..:PORT/", "host_refused")]
#[case("https://*.example.com/", "host_refused")]
#[case("https://good..example/", "host_refused")]
#[case("https://.example/", "host_refused")]
// names of the inside
#[case("https://localhost:PORT/", "host_refused")]
#[case("https://LOCALHOST:PORT/", "host_refused")]
#[case("https://localhost.:PORT/", "host_refused")]
#[case("https://ｌｏｃａｌｈｏｓｔ:PORT/", "host_refused")]
#[case("https://ⓛⓞcalhost:PORT/", "host_refused")]
#[case("https://loc%61lhost:PORT/", "host_refused")]
#[case("https://local\u{ad}host:PORT/", "host_refused")]
#[case("https://local\u{200b}host:PORT/", "host_refused")]
#[case("https://localhoſt:PORT/", "host_refused")]
#[case("https://app.localhost:PORT/", "host_refused")]
#[case("https://localhost.localdomain:PORT/", "host_refused")]
#[case("https://printer.local:PORT/", "host_refused")]
#[case("https://metadata.google.internal:PORT/", "host_refused")]
#[case("https://nas.home.arpa:PORT/", "host_refused")]
#[case("https://router.lan:PORT/", "host_refused")]
#[case("https://internal:PORT/", "host_refused")]
#[case("https://postgres:PORT/", "host_refused")]
#[case("https://partner.example.:PORT/", "host_refused")]
#[case("https://partner.example。:PORT/", "host_refused")]
// ports
#[case("https://good.example:0/", "port_refused")]
#[case("https://good.example:22/", "port_refused")]
#[case("https://good.example:25/", "port_refused")]
#[case("https://good.example:80/", "port_refused")]
#[case("https://good.example:6379/", "port_refused")]
#[case("https://93.184.215.14:22/", "port_refused")]
#[case("https://[2606:4700::1]:5432/", "port_refused")]
#[case("https://good.example:65536/", "url_invalid")]
#[case("https://good.example:-1/", "url_invalid")]
#[case("https://good.example:4４3/", "url_invalid")]
#[tokio::test]
async fn no_trick_gets_through(#[case] text: &str, #[case] code: &str) {
    let sentinel = Sentinel::listen();
    let policy = policy(&[], sentinel.port);
    let text = text.replace("PORT", &sentinel.port.to_string());
    let refusal = vet_url(&text, &policy).expect_err("at save");
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(!refusal.sentence.is_empty() && !refusal.sentence.contains(['\n', '\0']), "{refusal:?}");

    // A client that was given it all the same, and every name leads here.
    if let Ok(uri) = text.parse::<Uri>() {
        post(&client(policy, Script::new(&[&["127.0.0.1"]])), &uri).await.expect_err("when dialling");
    }
    assert_eq!(sentinel.calls(), 0);
}

#[rstest]
#[case("https://partner.example/hook?a=1&b=%20", "https://partner.example/hook?a=1&b=%20")]
#[case("HTTPS://Partner.EXAMPLE:443", "https://partner.example/")]
#[case("https://partner.example:8443/a/../b", "https://partner.example:8443/b")]
#[case("https://partner.example:/", "https://partner.example/")]
#[case("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC")]
#[case("https://a_b.partner.example/", "https://a_b.partner.example/")]
#[case("https://partner.mylocal/", "https://partner.mylocal/")]
#[case("https://local.example/", "https://local.example/")]
#[case("https://раураl.example/", "https://xn--l-7sba6dbr.example/")]
#[case("https://127.0.0.1.nip.example/", "https://127.0.0.1.nip.example/")]
#[case("https://93.184.215.14/", "https://93.184.215.14/")]
#[case("https://1572394766/", "https://93.184.215.14/")]
#[case("https://[2606:4700:4700:0::1111]:8443/", "https://[2606:4700:4700::1111]:8443/")]
fn good_urls_are_saved_in_their_normal_form(#[case] text: &str, #[case] normal: &str) {
    let vetted = vet_url(text, &DialPolicy::default()).expect("good");
    assert_eq!(vetted.as_str(), normal);
    assert_eq!(vetted.uri().to_string(), normal);
    assert_eq!(vet_url(vetted.as_str(), &DialPolicy::default()), Ok(vetted));
}

#[test]
fn long_urls_are_refused_as_given_and_as_normalised() {
    let limit = URL_LIMIT_BYTES - "https://partner.example/".len();
    let good = format!("https://partner.example/{}", "a".repeat(limit));
    vet_url(&good, &DialPolicy::default()).expect("good");
    for text in [format!("{good}a"), format!("https://partner.example/{}", "é".repeat(limit / 3))] {
        assert_eq!(vet_url(&text, &DialPolicy::default()).expect_err("long").code, "url_too_long");
    }
}

/// With a network open, what only dialling can decide is saved; what is decided already is not.
#[rstest]
#[case("http://10.1.2.3/hook", None)]
#[case("http://10.1.2.3:9000/hook", None)]
#[case("https://[fd12::7]:9000/hook", None)]
#[case("http://partner.internal:9000/hook", None)]
#[case("http://localhost:9000/hook", None)]
#[case("http://sink:9000/hook", None)]
#[case("http://10.2.2.3/hook", Some("address_refused"))]
#[case("https://169.254.169.254/", Some("address_refused"))]
#[case("http://93.184.215.14:443/", Some("https_required"))]
#[case("https://93.184.215.14:9000/", Some("port_refused"))]
#[case("http://10.1.2.3:0/", Some("port_refused"))]
#[case("http://sink:0/", Some("port_refused"))]
#[case("http://sink./", Some("host_refused"))]
#[case("http://user@10.1.2.3/", Some("userinfo_refused"))]
#[case("ftp://10.1.2.3/", Some("scheme_refused"))]
fn an_allowed_network_exempts(#[case] text: &str, #[case] code: Option<&str>) {
    let policy = policy(&["10.1.0.0/16", "fd12::/48"], 443);
    assert_eq!(vet_url(text, &policy).map_err(|refusal| refusal.code).err(), code);
}

/// Text that is almost a URL, and text that is not far from one.
fn texts() -> impl Strategy<Value = String> {
    let wild = r"[hH]ttps?:[/\\]{0,3}([a-z0-9.@:%_\[\]#?/\\~！。．１0xX-]{0,24}|\PC{0,24}|\[[0-9a-f:]{2,20}\])(:[0-9]{0,6})?(/\PC{0,8})?";
    let tame = r"https://([a-zA-Z0-9ü]{1,4}|%3[0-9]|0x[0-9a-f]{2}|2[0-9]{2})(\.|。|%2e|．|@)([1-9]{1,3}\.){0,2}(example|[1-9]{1,3}|0x[0-9])(:443|:8443)?([/?]\PC{0,8})?";
    prop_oneof![wild, tame]
}

proptest! {
    /// Whatever passes reads the same to the parser that dials, and stays what it is when it is read again.
    #[test]
    fn two_parsers_never_differ(text in texts()) {
        let policy = DialPolicy::default();
        if let Ok(vetted) = vet_url(&text, &policy) {
            let url = Url::parse(vetted.as_str()).expect("read again");
            let uri = vetted.uri();
            prop_assert_eq!(uri.host(), url.host_str());
            prop_assert_eq!(uri.port_u16(), url.port());
            prop_assert_eq!(uri.scheme_str(), Some("https"));
            prop_assert!(uri.authority().is_some_and(|authority| !authority.as_str().contains('@')));
            match url.host() {
                Some(Host::Ipv4(addr)) => prop_assert!(vet_address(addr.into(), 443, true, &policy).is_ok()),
                Some(Host::Ipv6(addr)) => prop_assert!(vet_address(addr.into(), 443, true, &policy).is_ok()),
                Some(Host::Domain(name)) => prop_assert!(name.contains('.') && name.is_ascii()),
                None => prop_assert!(false),
            }
            prop_assert_eq!(vet_url(vetted.as_str(), &policy), Ok(vetted));
        }
    }
}
