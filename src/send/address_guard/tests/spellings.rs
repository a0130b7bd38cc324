//! Forbidden addresses in every spelling we know of.

use std::net::IpAddr;

use http::Uri;
use rstest::rstest;

use super::{NAME, Script, Sentinel, client, policy, refused};
use crate::send::address_guard::vet_url;

/// holds: 42
#[rstest]
// 127.0.0.1
#[case("127.0.0.1", "127.0.0.1")]
#[case("127.1", "127.0.0.1")]
#[case("127.0.1", "127.0.0.1")]
#[case("127.0.0.1.", "127.0.0.1")]
#[case("127.000.000.001", "127.0.0.1")]
#[case("2130706433", "127.0.0.1")]
#[case("2130706433.", "127.0.0.1")]
#[case("0x7f000001", "127.0.0.1")]
#[case("0X7F000001", "127.0.0.1")]
#[case("0177.0.0.1", "127.0.0.1")]
#[case("0177.0.0.01", "127.0.0.1")]
#[case("00177.0.0.1", "127.0.0.1")]
#[case("017700000001", "127.0.0.1")]
#[case("0x7f.1", "127.0.0.1")]
#[case("0x7f.0x0.0x0.0x1", "127.0.0.1")]
#[case("0x7f.0.01", "127.0.0.1")]
#[case("127.0x1", "127.0.0.1")]
#[case("１２７.０.０.１", "127.0.0.1")]
#[case("127。0。0。1", "127.0.0.1")]
#[case("127．0．0．1", "127.0.0.1")]
#[case("127｡0｡0｡1", "127.0.0.1")]
#[case("①②⑦.⓪.⓪.①", "127.0.0.1")]
#[case("①②⑦。１", "127.0.0.1")]
#[case("𝟏𝟐𝟕.𝟎.𝟎.𝟏", "127.0.0.1")]
#[case("12\u{ad}7.0.0.1", "127.0.0.1")]
#[case("127.0.0\u{200b}.1", "127.0.0.1")]
#[case("0ⓧ7f.1", "127.0.0.1")]
#[case("%31%32%37.0.0.1", "127.0.0.1")]
#[case("%32130706433", "127.0.0.1")]
#[case("127%2e0%2E0%2e1", "127.0.0.1")]
#[case("127%EF%BC%8E0%EF%BC%8E0%EF%BC%8E1", "127.0.0.1")]
#[case("127.0.0.2", "127.0.0.2")]
#[case("127.255.255.254", "127.255.255.254")]
// "this network"
#[case("0.0.0.0", "0.0.0.0")]
#[case("0", "0.0.0.0")]
#[case("0x0", "0.0.0.0")]
#[case("0x", "0.0.0.0")]
#[case("00000", "0.0.0.0")]
#[case("0.1.2.3", "0.1.2.3")]
// metadata
#[case("169.254.169.254", "169.254.169.254")]
#[case("2852039166", "169.254.169.254")]
#[case("0xa9fea9fe", "169.254.169.254")]
#[case("0xA9.0xFE.0xA9.0xFE", "169.254.169.254")]
#[case("0251.0376.0251.0376", "169.254.169.254")]
#[case("025177524776", "169.254.169.254")]
#[case("169.254.43518", "169.254.169.254")]
#[case("169.16689662", "169.254.169.254")]
#[case("169.254.0xa9fe", "169.254.169.254")]
#[case("１６９.２５４.１６９.２５４", "169.254.169.254")]
#[case("169。254。169。254", "169.254.169.254")]
#[case("%31%36%39.254.169.254", "169.254.169.254")]
#[case("169.254.170.2", "169.254.170.2")]
#[case("100.100.100.200", "100.100.100.200")]
#[case("192.0.0.192", "192.0.0.192")]
#[case("168.63.129.16", "168.63.129.16")]
#[case("2822734096", "168.63.129.16")]
#[case("0xa83f8110", "168.63.129.16")]
// private and reserved
#[case("10.0.0.1", "10.0.0.1")]
#[case("012.0.0.1", "10.0.0.1")]
#[case("167772161", "10.0.0.1")]
#[case("172.16.0.1", "172.16.0.1")]
#[case("172.31.255.255", "172.31.255.255")]
#[case("192.168.0.1", "192.168.0.1")]
#[case("3232235521", "192.168.0.1")]
#[case("0xc0.168.1", "192.168.0.1")]
#[case("100.64.0.1", "100.64.0.1")]
#[case("100.127.255.255", "100.127.255.255")]
#[case("192.0.0.1", "192.0.0.1")]
#[case("192.0.2.1", "192.0.2.1")]
#[case("198.51.100.1", "198.51.100.1")]
#[case("203.0.113.1", "203.0.113.1")]
#[case("192.88.99.1", "192.88.99.1")]
#[case("198.18.0.1", "198.18.0.1")]
#[case("198.19.255.255", "198.19.255.255")]
#[case("224.0.0.1", "224.0.0.1")]
#[case("239.255.255.255", "239.255.255.255")]
#[case("240.0.0.1", "240.0.0.1")]
#[case("255.255.255.255", "255.255.255.255")]
#[case("4294967295", "255.255.255.255")]
// IPv6
#[case("[::]", "::")]
#[case("[0:0:0:0:0:0:0:0]", "::")]
#[case("[::0.0.0.0]", "::")]
#[case("[::1]", "::1")]
#[case("[0000:0000:0000:0000:0000:0000:0000:0001]", "::1")]
#[case("[::0.0.0.1]", "::1")]
#[case("[fe80::1]", "fe80::1")]
#[case("[febf::1]", "febf::1")]
#[case("[fe80::a9fe:a9fe]", "fe80::a9fe:a9fe")]
#[case("[fec0::1]", "fec0::1")]
#[case("[feff:ffff::1]", "feff:ffff::1")]
#[case("[fc00::1]", "fc00::1")]
#[case("[fd00:ec2::254]", "fd00:ec2::254")]
#[case("[FD00:0EC2:0::0254]", "fd00:ec2::254")]
#[case("[fd20:ce::254]", "fd20:ce::254")]
#[case("[ff02::1]", "ff02::1")]
#[case("[ff0e::1]", "ff0e::1")]
#[case("[100::1]", "100::1")]
#[case("[100:0:0:1::1]", "100:0:0:1::1")]
#[case("[2001:1::1]", "2001:1::1")]
#[case("[2001:2::1]", "2001:2::1")]
#[case("[2001:10::1]", "2001:10::1")]
#[case("[2001:2f:ffff::1]", "2001:2f:ffff::1")]
#[case("[2001:db8::1]", "2001:db8::1")]
#[case("[3fff:fff::1]", "3fff:fff::1")]
#[case("[5f00::1]", "5f00::1")]
#[case("[4000::1]", "4000::1")]
#[case("[1fff:ffff::1]", "1fff:ffff::1")]
// IPv4 inside IPv6: mapped, translated, compatible
#[case("[::ffff:127.0.0.1]", "::ffff:127.0.0.1")]
#[case("[::ffff:7f00:1]", "::ffff:127.0.0.1")]
#[case("[0:0:0:0:0:FFFF:7F00:0001]", "::ffff:127.0.0.1")]
#[case("[::ffff:0.0.0.0]", "::ffff:0.0.0.0")]
#[case("[::ffff:169.254.169.254]", "::ffff:169.254.169.254")]
#[case("[::ffff:a9fe:a9fe]", "::ffff:169.254.169.254")]
#[case("[::ffff:10.0.0.1]", "::ffff:10.0.0.1")]
#[case("[::ffff:168.63.129.16]", "::ffff:168.63.129.16")]
#[case("[::ffff:0:127.0.0.1]", "::ffff:0:7f00:1")]
#[case("[::127.0.0.1]", "::7f00:1")]
#[case("[::7f00:1]", "::7f00:1")]
#[case("[::169.254.169.254]", "::a9fe:a9fe")]
#[case("[::8.8.8.8]", "::808:808")]
// NAT64
#[case("[64:ff9b::127.0.0.1]", "64:ff9b::7f00:1")]
#[case("[64:ff9b::7f00:1]", "64:ff9b::7f00:1")]
#[case("[0064:FF9B:0::169.254.169.254]", "64:ff9b::a9fe:a9fe")]
#[case("[64:ff9b::10.0.0.1]", "64:ff9b::a00:1")]
#[case("[64:ff9b:1::127.0.0.1]", "64:ff9b:1::7f00:1")]
#[case("[64:ff9b:1:a9fe:a9:fe00::]", "64:ff9b:1:a9fe:a9:fe00::")]
#[case("[64:ff9b:1::8.8.8.8]", "64:ff9b:1::808:808")]
#[case("[64:ff9b:0:1::8.8.8.8]", "64:ff9b:0:1::808:808")]
// 6to4
#[case("[2002:7f00:1::]", "2002:7f00:1::")]
#[case("[2002:a9fe:a9fe::1]", "2002:a9fe:a9fe::1")]
#[case("[2002:c0a8:0101::c0a8:101]", "2002:c0a8:101::c0a8:101")]
// Teredo: a private server, then a private client behind a public server
#[case("[2001:0:7f00:1::]", "2001:0:7f00:1::")]
#[case("[2001:0:7f00:1::f7f7:f7f7]", "2001:0:7f00:1::f7f7:f7f7")]
#[case("[2001:0:a9fe:a9fe:0:0:247.247.247.247]", "2001:0:a9fe:a9fe::f7f7:f7f7")]
#[case("[2001:0:4136:e378:8000:63bf:80ff:fffe]", "2001:0:4136:e378:8000:63bf:80ff:fffe")]
#[case("[2001:0:4136:e378:8000:63bf:86.1.86.1]", "2001:0:4136:e378:8000:63bf:5601:5601")]
// ISATAP, with and without the bit that says "unique"
#[case("[2a00:1450:4001:81b:0:5efe:127.0.0.1]", "2a00:1450:4001:81b:0:5efe:7f00:1")]
#[case("[2a00:1450:4001:81b:200:5efe:a9fe:a9fe]", "2a00:1450:4001:81b:200:5efe:a9fe:a9fe")]
#[case("[fe80::5efe:10.0.0.1]", "fe80::5efe:a00:1")]
#[tokio::test]
async fn no_spelling_gets_through(#[case] host: &str, #[case] meant: IpAddr) {
    let sentinel = Sentinel::listen();
    let policy = policy(&[], sentinel.port);
    let text = format!("https://{host}:{}/hook", sentinel.port);

    let refusal = vet_url(&text, &policy).expect_err("at save");
    assert_eq!(refusal.code, "address_refused", "{refusal}");
    assert!(refusal.sentence.starts_with(&meant.to_canonical().to_string()), "{refusal}");

    // The URL as it came, for a client that was given it all the same.
    let script = Script::new(&[&[&meant.to_string()]]);
    let client = client(policy, script.clone());
    if let Ok(uri) = text.parse::<Uri>() {
        assert_eq!(refused(&client, &uri).await.code(), "address_refused");
        assert!(script.asked().is_empty(), "an address is no name");
    }
    // A name that leads there.
    let uri = format!("https://{NAME}:{}/hook", sentinel.port).parse().expect("URI");
    let error = refused(&client, &uri).await;
    assert_eq!(error.code(), "address_refused", "{error}");
    assert!(error.to_string().starts_with(&format!("{NAME}: {} is ", meant.to_canonical())), "{error}");
    assert_eq!(script.asked(), [NAME]);
    assert_eq!(sentinel.calls(), 0);
}

/// The sentinel would have told: with the network open the same addresses do reach it.
#[rstest]
#[case("127.0.0.1", "127.0.0.0/8")]
#[case("2130706433", "127.0.0.0/8")]
#[case("0.0.0.0", "0.0.0.0/32")]
#[case("[::ffff:127.0.0.1]", "127.0.0.0/8")]
#[tokio::test]
async fn the_sentinel_hears(#[case] host: &str, #[case] network: &str) {
    let sentinel = Sentinel::listen();
    let connector = super::GuardedConnector::new(
        policy(&[network], sentinel.port),
        Script::new(&[]),
        std::time::Duration::from_secs(5),
    );
    let uri = format!("https://{host}:{}/hook", sentinel.port).parse::<Uri>().expect("URI");
    tower::ServiceExt::oneshot(connector, uri).await.expect("connected");
    assert_eq!(sentinel.calls(), 1);
}
