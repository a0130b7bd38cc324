//! The address guard: where the direct dispatcher may dial.
//!
//! Partners write the URLs, so a URL may point inwards: at the metadata service of the cloud, at a database, at the
//! relay itself. Two looks prevent that. [`vet_url`] reads a URL when it is saved and refuses what can be told from
//! its text. [`GuardedConnector`] looks again whenever it connects: it resolves the name itself, vets **every** answer,
//! and dials exactly what it has vetted. One bad answer refuses them all, because a name with a public and a private
//! address is no mistake of a partner's that we want to round in their favour.
//!
//! What is refused follows the special-purpose registries of IANA (RFC 6890) and what clouds put beside them. IPv6
//! is the other way round: only global unicast `2000::/3` passes, and of that only what is not reserved. An IPv4
//! address that travels inside an IPv6 address is vetted too.
//!
//! [`AllowedNetworks`] (`direct.allowed_networks`) exempt what an operator needs from the address, port and https
//! rules. Since a host name's address is known only when it is dialled, a name of the inside, `http://` and any port
//! can be **saved** as soon as some network is allowed; dialling decides.

mod connector;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustls::pki_types::ServerName;
use url::{Host, Url};

pub use self::connector::{ConnectError, GuardedConnector, GuardedHttps, Resolve, SystemResolver};

/// Longest URL that is taken, as given and as normalised.
pub const URL_LIMIT_BYTES: usize = 2_048;

/// Names that mean something on the inside only: RFC 6761 (localhost, invalid), RFC 6762 (local, and appendix G: what
/// private networks use), RFC 7686 (onion), RFC 8375 (home.arpa), and ICANN's `internal`, reserved for private use.
const LOCAL_NAMES: &[&str] = &[
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

/// Why something is not dialled: a short, stable code and a sentence for people.
///
/// Codes: `url_too_long`, `url_invalid`, `userinfo_refused`, `fragment_refused`, `scheme_refused`, `host_refused`,
/// `address_refused`, `port_refused`, `https_required`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// What kind of refusal it is; part of the API.
    pub code: &'static str,
    /// What is wrong and, where there is one, the way out.
    pub sentence: String,
}

impl Refusal {
    fn new(code: &'static str, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}

/// Networks that are exempt from the rules: CIDRs, v4 and v6.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedNetworks(Vec<IpNet>);

/// An entry of the allowed networks that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` {problem}")]
pub struct BadNetwork {
    entry: String,
    problem: String,
}

impl AllowedNetworks {
    /// Reads entries such as `10.1.0.0/16`, `fd12::/48`, or a single address.
    ///
    /// # Errors
    /// The first entry that is no network, has bits set behind its prefix (`10.0.0.5/8` is more likely a slip than a
    /// wish to open all of `10.0.0.0/8`), or spells IPv4 inside IPv6 (such addresses are vetted as IPv4).
    pub fn parse<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Self, BadNetwork> {
        entries.into_iter().map(|entry| network(entry.as_ref().trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nothing is exempt.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `addr` is exempt. An IPv4-mapped IPv6 address is the IPv4 address it stands for.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.0.iter().any(|network| network.contains(&addr))
    }
}

fn network(entry: &str) -> Result<IpNet, BadNetwork> {
    let bad = |problem: String| BadNetwork { entry: entry.to_owned(), problem };
    // Not by ipnet, for whom 010.0.0.0 is 10.0.0.0.
    let parsed = match entry.split_once('/') {
        None => entry.parse::<IpAddr>().ok().map(IpNet::from),
        Some((addr, prefix)) => addr
            .parse::<IpAddr>()
            .ok()
            .zip(prefix_length(prefix))
            .and_then(|(addr, prefix)| IpNet::new(addr, prefix).ok()),
    };
    let network =
        parsed.ok_or_else(|| bad("is not a network such as 10.0.0.0/8, 192.168.1.7 or fd00::/8".into()))?;
    if matches!(network.addr(), IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some()) {
        return Err(bad("is IPv4 inside IPv6: write it as IPv4".into()));
    }
    if network.addr() != network.network() {
        return Err(bad(format!("has bits set behind its prefix: did you mean {}?", network.trunc())));
    }
    Ok(network)
}

/// Digits, and no zero before them: who reads `/010` as eight does not mean our ten.
fn prefix_length(text: &str) -> Option<u8> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// What may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialPolicy {
    /// Exempt from the address, port and https rules.
    pub networks: AllowedNetworks,
    /// Ports that may be dialled elsewhere.
    pub ports: Vec<u16>,
}

impl Default for DialPolicy {
    /// No network exempt; 443, the port of https (RFC 9110 §4.2.2), and 8443, its usual second.
    fn default() -> Self {
        Self { networks: AllowedNetworks::default(), ports: vec![443, 8443] }
    }
}

/// Whether `addr` may be dialled at `port`, with TLS (`https`) or without.
///
/// # Errors
/// `address_refused`, `port_refused` or `https_required`, unless the address is in an allowed network. Port 0 is
/// refused everywhere.
pub fn vet_address(addr: IpAddr, port: u16, https: bool, policy: &DialPolicy) -> Result<(), Refusal> {
    not_port_zero(port)?;
    let addr = addr.to_canonical();
    if policy.networks.contains(addr) {
        return Ok(());
    }
    let reason = match addr {
        IpAddr::V4(addr) => forbidden_v4(addr).map(str::to_owned),
        IpAddr::V6(addr) => forbidden_v6(addr),
    };
    if let Some(reason) = reason {
        let sentence = format!("{addr} is {reason}; direct.allowed_networks can exempt it");
        return Err(Refusal::new("address_refused", sentence));
    }
    vet_https_and_port(https, port, policy)
}

fn not_port_zero(port: u16) -> Result<(), Refusal> {
    if port == 0 { Err(Refusal::new("port_refused", "port 0 can't be dialled")) } else { Ok(()) }
}

fn vet_https_and_port(https: bool, port: u16, policy: &DialPolicy) -> Result<(), Refusal> {
    if !https {
        let sentence = "the URL must be https, unless its address is in direct.allowed_networks";
        return Err(Refusal::new("https_required", sentence));
    }
    if policy.ports.contains(&port) {
        return Ok(());
    }
    let sentence = format!("port {port} is not in direct.allowed_ports ({:?})", policy.ports);
    Err(Refusal::new("port_refused", sentence))
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(head: [u16; 4], last: u16, prefix: u8) -> Ipv6Net {
    let [a, b, c, d] = head;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last), prefix)
}

const FORBIDDEN_V4: &[(Ipv4Net, &str)] = &[
    (v4(0, 0, 0, 0, 8), "an address of \"this network\" (RFC 1122)"),
    (v4(10, 0, 0, 0, 8), "a private address (RFC 1918)"),
    (v4(100, 64, 0, 0, 10), "a shared address of carriers (RFC 6598)"),
    (v4(127, 0, 0, 0, 8), "a loopback address (RFC 1122)"),
    (v4(168, 63, 129, 16, 32), "the platform service of Azure"),
    (v4(169, 254, 0, 0, 16), "a link-local address (RFC 3927), where clouds keep their metadata"),
    (v4(172, 16, 0, 0, 12), "a private address (RFC 1918)"),
    (v4(192, 0, 0, 0, 24), "an address of protocol assignments (RFC 6890)"),
    (v4(192, 0, 2, 0, 24), "an address for documentation (RFC 5737)"),
    (v4(192, 88, 99, 0, 24), "a 6to4 relay (RFC 7526)"),
    (v4(192, 168, 0, 0, 16), "a private address (RFC 1918)"),
    (v4(198, 18, 0, 0, 15), "an address for benchmarks (RFC 2544)"),
    (v4(198, 51, 100, 0, 24), "an address for documentation (RFC 5737)"),
    (v4(203, 0, 113, 0, 24), "an address for documentation (RFC 5737)"),
    (v4(224, 0, 0, 0, 4), "a multicast address (RFC 5771)"),
    (v4(255, 255, 255, 255, 32), "the broadcast address (RFC 919)"),
    (v4(240, 0, 0, 0, 4), "a reserved address (RFC 1112)"),
];

/// Named for the sake of the sentence where they lie outside of `2000::/3`. The first match counts.
const FORBIDDEN_V6: &[(Ipv6Net, &str)] = &[
    (v6([0; 4], 0, 128), "the unspecified address (RFC 4291)"),
    (v6([0; 4], 1, 128), "the loopback address (RFC 4291)"),
    (v6([0; 4], 0, 96), "an IPv4-compatible address (RFC 4291 §2.5.5.1)"),
    (v6([0x64, 0xff9b, 1, 0], 0, 48), "an address of local translation (RFC 8215)"),
    (v6([0x100, 0, 0, 0], 0, 64), "a discard address (RFC 6666)"),
    (v6([0x2001, 2, 0, 0], 0, 48), "an address for benchmarks (RFC 5180)"),
    (v6([0x2001, 0x10, 0, 0], 0, 28), "an ORCHID (RFC 4843)"),
    (v6([0x2001, 0x20, 0, 0], 0, 28), "an ORCHID (RFC 7343)"),
    (v6([0x2001, 0xdb8, 0, 0], 0, 32), "an address for documentation (RFC 3849)"),
    (v6([0x3fff, 0, 0, 0], 0, 20), "an address for documentation (RFC 9637)"),
    (v6([0xfd00, 0xec2, 0, 0], 0x254, 128), "the metadata service of AWS"),
    (v6([0xfc00, 0, 0, 0], 0, 7), "a unique local address (RFC 4193)"),
    (v6([0xfe80, 0, 0, 0], 0, 10), "a link-local address (RFC 4291)"),
    (v6([0xfec0, 0, 0, 0], 0, 10), "a site-local address (RFC 3879)"),
    (v6([0xff00, 0, 0, 0], 0, 8), "a multicast address (RFC 4291)"),
];

const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], 0, 3);
const PROTOCOL_ASSIGNMENTS: Ipv6Net = v6([0x2001, 0, 0, 0], 0, 23);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0], 0, 32);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0], 0, 16);
/// Outside of `2000::/3` and fit to dial all the same: behind DNS64 it is how an IPv6-only network reaches IPv4.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 0, 96);

fn forbidden_v4(addr: Ipv4Addr) -> Option<&'static str> {
    FORBIDDEN_V4.iter().find(|(network, _)| network.contains(&addr)).map(|(_, reason)| *reason)
}

fn forbidden_v6(addr: Ipv6Addr) -> Option<String> {
    let named = FORBIDDEN_V6.iter().find(|(network, _)| network.contains(&addr));
    if let Some((_, reason)) = named {
        return Some((*reason).to_owned());
    }
    // What is carried is vetted without exemptions: a network that may be dialled is not one to tunnel into.
    let carried = carried_v4(addr).into_iter().flatten();
    for (carrier, inner) in carried {
        if let Some(reason) = forbidden_v4(inner) {
            return Some(format!("{carrier} for {inner}, {reason}"));
        }
    }
    if NAT64.contains(&addr) || TEREDO.contains(&addr) {
        return None;
    }
    if PROTOCOL_ASSIGNMENTS.contains(&addr) {
        return Some("an address of protocol assignments (RFC 2928)".to_owned());
    }
    (!GLOBAL_UNICAST.contains(&addr)).then(|| "outside of global unicast 2000::/3 (RFC 4291 §2.4)".to_owned())
}

/// The IPv4 addresses inside an IPv6 address, and what carries them there. Mapped and compatible ones never get here.
fn carried_v4(addr: Ipv6Addr) -> [Option<(&'static str, Ipv4Addr)>; 5] {
    let part = addr.segments();
    let ipv4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let teredo = TEREDO.contains(&addr);
    let isatap = part[4] & !0x0200 == 0 && part[5] == 0x5efe;
    [
        NAT64.contains(&addr).then(|| ("a NAT64 address (RFC 6052)", ipv4(part[6], part[7]))),
        SIX_TO_FOUR.contains(&addr).then(|| ("a 6to4 address (RFC 3056)", ipv4(part[1], part[2]))),
        // RFC 4380 §4: the server in clear, the client with every bit turned.
        teredo.then(|| ("a Teredo address with a server (RFC 4380)", ipv4(part[2], part[3]))),
        teredo.then(|| ("a Teredo address (RFC 4380)", ipv4(!part[6], !part[7]))),
        isatap.then(|| ("an ISATAP address (RFC 5214 §6.1)", ipv4(part[6], part[7]))),
    ]
}

/// A URL that may be saved, in its normal form: what is stored, shown and dialled, instead of the text it came as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VettedUrl {
    text: String,
    uri: Uri,
}

impl VettedUrl {
    /// The normal form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The normal form, as hyper takes it.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }
}

impl fmt::Display for VettedUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// Whether `text` may be saved as an endpoint's URL.
///
/// It is read as browsers read it (WHATWG URL Standard), so that `0x7f.1`, `2130706433`, `①②⑦.1` or `%31%32%37.1` are
/// all 127.0.0.1, and literal addresses are vetted at once. Names are not resolved here: that tells nothing about
/// tomorrow, and [`GuardedConnector`] does it whenever it connects.
///
/// Text that two parsers might read in two ways is refused even where we would know what it means: control
/// characters, spaces, backslashes, userinfo, a missing `//`, a trailing dot.
///
/// # Errors
/// See [`Refusal`] for the codes.
pub fn vet_url(text: &str, policy: &DialPolicy) -> Result<VettedUrl, Refusal> {
    vet_text(text)?;
    let url = Url::parse(text)
        .map_err(|error| Refusal::new("url_invalid", format!("the URL can't be read: {error}")))?;
    if url.as_str().len() > URL_LIMIT_BYTES {
        return Err(too_long());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(userinfo());
    }
    if url.fragment().is_some() {
        return Err(Refusal::new("fragment_refused", "a fragment (#…) is never sent: leave it out"));
    }
    let https = url.scheme() == "https";
    let port = url.port_or_known_default().unwrap_or(0);
    match url.host() {
        None => return Err(Refusal::new("host_refused", "the URL has no host")),
        Some(Host::Ipv4(addr)) => vet_address(addr.into(), port, https, policy)?,
        Some(Host::Ipv6(addr)) => vet_address(addr.into(), port, https, policy)?,
        Some(Host::Domain(name)) => vet_name(name, port, https, policy)?,
    }
    let uri = url.as_str().parse::<Uri>().ok().filter(|uri| uri.host() == url.host_str());
    let uri = uri.ok_or_else(|| {
        Refusal::new("url_invalid", "the URL has characters that must be percent-encoded (RFC 3986)")
    })?;
    Ok(VettedUrl { text: url.into(), uri })
}

/// What can be told before parsing, which forgives too much: it drops tabs and line breaks, trims, turns `\` into `/`
/// and passes over missing or surplus slashes and an empty userinfo.
fn vet_text(text: &str) -> Result<(), Refusal> {
    if text.len() > URL_LIMIT_BYTES {
        return Err(too_long());
    }
    if text.contains(|char: char| char.is_control() || char.is_whitespace() || char == '\\') {
        let sentence = "the URL has control characters, spaces or backslashes: percent-encode what is meant";
        return Err(Refusal::new("url_invalid", sentence));
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(Refusal::new("url_invalid", "the URL must begin with https://"));
    };
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err(Refusal::new("scheme_refused", "the URL must begin with https://"));
    }
    let Some(rest) = rest.strip_prefix("//").filter(|rest| !rest.starts_with(['/', '?', '#'])) else {
        return Err(Refusal::new("url_invalid", "the URL must have the form https://host/path"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') { Err(userinfo()) } else { Ok(()) }
}

fn too_long() -> Refusal {
    Refusal::new("url_too_long", format!("the URL is longer than {URL_LIMIT_BYTES} bytes"))
}

fn userinfo() -> Refusal {
    let sentence =
        "user and password don't belong in the URL (RFC 9110 §4.2.4): use headers or the signature";
    Refusal::new("userinfo_refused", sentence)
}

fn vet_name(name: &str, port: u16, https: bool, policy: &DialPolicy) -> Result<(), Refusal> {
    let refused = |problem: &str| Err(Refusal::new("host_refused", format!("`{name}` {problem}")));
    if name.ends_with('.') {
        return refused("ends in a dot");
    }
    if !matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))) {
        return refused("is no host name (RFC 1123 §2.1)");
    }
    not_port_zero(port)?;
    if !policy.networks.is_empty() {
        // Dialling decides: the name may lead to an exempt address.
        return Ok(());
    }
    let is_under =
        |suffix: &&str| name.strip_suffix(*suffix).is_some_and(|head| head.is_empty() || head.ends_with('.'));
    if LOCAL_NAMES.iter().any(is_under) || !name.contains('.') {
        return refused("is a name of the inside; direct.allowed_networks can open the way to its address");
    }
    vet_https_and_port(https, port, policy)
}
