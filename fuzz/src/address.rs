//! The address guard against lists of its own: an input is a URL or a network, and its bytes are addresses too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;
use posthaste::send::address_guard::{AllowedNetworks, DialPolicy, URL_LIMIT_BYTES, vet_address, vet_url};
use url::Host;

/// What IANA's registry of special-purpose IPv4 addresses has and what is not for anybody to dial, and Azure's service.
static SPECIAL_V4: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    networks(
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 \
    192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3",
    )
});
/// The same of IPv6, in what is global unicast. Teredo and 6to4 are looked into.
static SPECIAL_V6: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    networks(
        "2001:1::/32 2001:2::/31 2001:4::/30 2001:8::/29 2001:10::/28 2001:20::/27 2001:40::/26 \
    2001:80::/25 2001:100::/24 2001:db8::/32 3fff::/20",
    )
});
/// What the open policy lets in.
static EXEMPT: LazyLock<Vec<IpNet>> = LazyLock::new(|| networks("10.1.0.0/16 fd12::/48 192.0.2.7/32"));
const CODES: [&str; 9] = [
    "url_too_long",
    "url_invalid",
    "userinfo_refused",
    "fragment_refused",
    "scheme_refused",
    "host_refused",
    "address_refused",
    "port_refused",
    "https_required",
];
const LOCAL_NAMES: [&str; 12] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "home.arpa",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "invalid",
    "onion",
];

pub fn check(input: &[u8]) {
    let strict = DialPolicy::default();
    let allowed = ["10.1.0.0/16", "fd12::/48", "192.0.2.7"];
    let open = DialPolicy { networks: AllowedNetworks::parse(allowed).expect("networks"), ports: vec![443] };
    if let Some((bytes, _)) = input.split_first_chunk::<4>() {
        address(Ipv4Addr::from(*bytes).into(), &strict, &open);
    }
    if let Some((bytes, rest)) = input.split_first_chunk::<16>() {
        address(Ipv6Addr::from(*bytes).into(), &strict, &open);
        // What a mutation seldom hits by itself: addresses around the ranges that matter.
        let mut near = *bytes;
        near[..2].copy_from_slice(rest.first_chunk::<2>().unwrap_or(&[0x20, 0x02]));
        address(Ipv6Addr::from(near).into(), &strict, &open);
        near[..12].copy_from_slice(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);
        address(Ipv6Addr::from(near).into(), &strict, &open);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(addr) = text.parse() {
        address(addr, &strict, &open);
    }
    network(text);
    url(text, &strict);
    url(text, &open);
}

fn address(addr: IpAddr, strict: &DialPolicy, open: &DialPolicy) {
    assert_eq!(vet_address(addr, 443, true, strict).is_ok(), is_public(addr), "{addr}");
    assert!(vet_address(addr, 443, false, strict).is_err() && vet_address(addr, 22, true, strict).is_err());
    assert!(vet_address(addr, 0, true, open).is_err());
    let canonical = addr.to_canonical();
    let is_exempt = lies_in(canonical, &EXEMPT);
    assert_eq!(vet_address(addr, 80, false, open).is_ok(), is_exempt, "{addr}");
    if let Err(refusal) = vet_address(addr, 443, true, strict) {
        assert_eq!(refusal.code, "address_refused");
        // The same address spelled in a URL.
        let host = if addr.is_ipv6() { format!("[{addr}]") } else { addr.to_string() };
        assert!(vet_url(&format!("https://{host}/"), strict).is_err());
    }
}

/// Whether anybody may dial `addr`.
fn is_public(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(addr) => !lies_in(addr.into(), &SPECIAL_V4),
        IpAddr::V6(addr) => {
            let bytes = addr.octets();
            let carried = |at: usize, flip: u8| {
                let mut inner = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                inner.iter_mut().for_each(|byte| *byte ^= flip);
                !lies_in(Ipv4Addr::from(inner).into(), &SPECIAL_V4)
            };
            if bytes[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0] {
                return carried(12, 0);
            }
            let is_isatap = matches!(bytes[8..12], [0 | 2, 0, 0x5e, 0xfe]);
            let is_good_inside = match (bytes[0], bytes[1], bytes[2], bytes[3]) {
                (0x20, 0x02, ..) => carried(2, 0),
                (0x20, 0x01, 0, 0) => carried(4, 0) && carried(12, 0xff),
                _ => true,
            };
            bytes[0] >> 5 == 1
                && !lies_in(addr.into(), &SPECIAL_V6)
                && is_good_inside
                && (!is_isatap || carried(12, 0))
        }
    }
}

fn networks(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|text| text.parse().expect("a network")).collect()
}

fn lies_in(addr: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&addr))
}

/// An entry that is taken means one network, the same that others read.
fn network(text: &str) {
    let Ok(networks) = AllowedNetworks::parse([text]) else { return };
    let text = text.trim();
    let theirs: IpNet =
        text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).expect("a network to others");
    assert_eq!(theirs, theirs.trunc(), "{text} has bits behind its prefix");
    for addr in [theirs.network(), theirs.broadcast()] {
        // An IPv4 address in IPv6's clothes is that IPv4 address, in whichever network it stands.
        assert_eq!(networks.contains(addr), theirs.contains(&addr.to_canonical()), "{text}");
    }
    assert!(!networks.is_empty());
}

fn url(text: &str, policy: &DialPolicy) {
    let vetted = match vet_url(text, policy) {
        Ok(vetted) => vetted,
        Err(refusal) => return assert!(CODES.contains(&refusal.code) && !refusal.sentence.is_empty()),
    };
    let normal = vetted.as_str();
    assert!(normal.len() <= URL_LIMIT_BYTES);
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()), "{normal}");
    assert_eq!(vet_url(normal, policy).as_ref(), Ok(&vetted), "a normal form is its own");
    assert_eq!(vetted.uri().to_string(), normal, "what is dialled is what is shown");
    let read = url::Url::parse(text).expect("what others read too");
    let port = read.port_or_known_default().expect("a port");
    assert_eq!(vetted.uri().host(), read.host_str());
    assert!(
        port != 0 && read.username().is_empty() && read.password().is_none() && read.fragment().is_none()
    );
    let addr = match read.host().expect("a host") {
        Host::Ipv4(addr) => IpAddr::from(addr),
        Host::Ipv6(addr) => addr.into(),
        Host::Domain(name) => return check_name(name, &read, policy),
    };
    assert!(vet_address(addr, port, read.scheme() == "https", policy).is_ok());
    assert!(is_public(addr) || policy.networks.contains(addr), "{text}");
}

fn check_name(name: &str, read: &url::Url, policy: &DialPolicy) {
    assert!(name.parse::<IpAddr>().is_err() && !name.ends_with('.'), "{name}");
    // No resolver may take it for an address: 0x7f.1, 127.1, 2130706433.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x");
    let is_number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert!(!is_number, "{name}");
    if policy.networks.is_empty() {
        assert_eq!(read.scheme(), "https");
        assert!(policy.ports.contains(&read.port_or_known_default().expect("a port")));
        assert!(name.contains('.'), "{name}");
        let labels = format!(".{name}");
        assert!(!LOCAL_NAMES.iter().any(|local| labels.ends_with(&format!(".{local}"))), "{name}");
    }
}
