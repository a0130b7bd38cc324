//! The rules for addresses, at their edges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use rstest::rstest;

use crate::send::address_guard::{AllowedNetworks, DialPolicy, vet_address};

fn code(addr: IpAddr, port: u16, https: bool, policy: &DialPolicy) -> Option<&'static str> {
    vet_address(addr, port, https, policy).err().map(|refusal| refusal.code)
}

/// The neighbours of what is refused, and IPv4 that travels inside IPv6 and is public.
#[rstest]
#[case("1.0.0.0")]
#[case("9.255.255.255")]
#[case("11.0.0.0")]
#[case("100.63.255.255")]
#[case("100.128.0.0")]
#[case("126.255.255.255")]
#[case("128.0.0.0")]
#[case("168.63.129.15")]
#[case("168.63.129.17")]
#[case("169.253.255.255")]
#[case("169.255.0.0")]
#[case("172.15.255.255")]
#[case("172.32.0.0")]
#[case("191.255.255.255")]
#[case("192.0.1.0")]
#[case("192.0.3.0")]
#[case("192.88.98.255")]
#[case("192.88.100.0")]
#[case("192.167.255.255")]
#[case("192.169.0.0")]
#[case("198.17.255.255")]
#[case("198.20.0.0")]
#[case("198.51.99.255")]
#[case("198.51.101.0")]
#[case("203.0.112.255")]
#[case("203.0.114.0")]
#[case("223.255.255.255")]
#[case("2000::")]
#[case("2001:200::")]
#[case("2001:db7:ffff::1")]
#[case("2001:db9::1")]
#[case("2003::1")]
#[case("2606:4700:4700::1111")]
#[case("3ffe:ffff::1")]
#[case("3fff:1000::1")]
#[case("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]
#[case("::ffff:8.8.8.8")]
#[case("64:ff9b::8.8.8.8")]
#[case("2002:808:808::1")]
#[case("2001:0:4136:e378:8000:63bf:f7f7:f7f7")]
#[case("2a00:1450:4001:81b:0:5efe:808:808")]
fn public_addresses_pass(#[case] addr: IpAddr) {
    let policy = DialPolicy::default();
    assert_eq!(vet_address(addr, 443, true, &policy), Ok(()));
    assert_eq!(vet_address(addr, 8443, true, &policy), Ok(()));
    assert_eq!(code(addr, 443, false, &policy), Some("https_required"));
    for port in [1, 22, 25, 80, 442, 444, 2375, 6379, 65535] {
        assert_eq!(code(addr, port, true, &policy), Some("port_refused"));
    }
    assert_eq!(code(addr, 0, true, &policy), Some("port_refused"));
}

#[rstest]
#[case(&["10.0.0.0/8"], "10.255.255.255", true)]
#[case(&["10.0.0.0/8"], "11.0.0.0", false)]
#[case(&["192.168.1.7"], "192.168.1.7", true)]
#[case(&["192.168.1.7"], "192.168.1.8", false)]
#[case(&["fd12::/48"], "fd12::1", true)]
#[case(&["fd12::/48"], "fd12:0:1::1", false)]
#[case(&["10.0.0.0/8", "127.0.0.0/8"], "::ffff:127.0.0.1", true)]
#[case(&["127.0.0.0/8"], "::1", false)]
// What may be dialled as such may not be tunnelled to.
#[case(&["10.0.0.0/8"], "64:ff9b::10.0.0.1", false)]
#[case(&["10.0.0.0/8"], "2002:a00:1::", false)]
#[case(&["10.0.0.0/8"], "::10.0.0.1", false)]
#[case(&["64:ff9b::/96"], "64:ff9b::10.0.0.1", true)]
#[case(&["0.0.0.0/0"], "169.254.169.254", true)]
#[case(&["0.0.0.0/0"], "fe80::1", false)]
#[case(&["::/0"], "fe80::1", true)]
#[case(&["::/0"], "127.0.0.1", false)]
fn networks_exempt_their_own(#[case] networks: &[&str], #[case] addr: IpAddr, #[case] exempt: bool) {
    let networks = AllowedNetworks::parse(networks).expect("networks");
    let policy = DialPolicy { networks, ..DialPolicy::default() };
    for (port, https) in [(443, false), (80, false), (6379, true)] {
        assert_eq!(vet_address(addr, port, https, &policy).is_ok(), exempt);
    }
    assert_eq!(code(addr, 0, true, &policy), Some("port_refused"));
}

#[rstest]
#[case("10.0.0.0/33", "`10.0.0.0/33` is not a network")]
#[case("10.0.0/8", "is not a network")]
#[case("localhost", "is not a network")]
#[case("", "`` is not a network")]
#[case("10.0.0.1-10.0.0.9", "is not a network")]
#[case("fd00::/129", "is not a network")]
#[case("fe80::1%eth0", "is not a network")]
#[case("010.0.0.0/8", "is not a network")]
#[case("10.0.0.0/08", "is not a network")]
#[case("10.0.0.0/+8", "is not a network")]
#[case("10.0.0.5/8", "did you mean 10.0.0.0/8?")]
#[case("fd00::1/8", "did you mean fd00::/8?")]
#[case("::ffff:10.0.0.0/104", "write it as IPv4")]
fn bad_networks_are_named(#[case] entry: &str, #[case] expected: &str) {
    let error = AllowedNetworks::parse(["10.0.0.0/8", entry]).expect_err("bad").to_string();
    assert!(error.contains(expected), "{error}");
}

/// What the standard library knows to be special. It knows less than we do.
fn std_says_special(addr: Ipv4Addr) -> bool {
    addr.is_private()
        || addr.is_loopback()
        || addr.is_link_local()
        || addr.is_broadcast()
        || addr.is_documentation()
        || addr.is_multicast()
        || addr.is_unspecified()
}

proptest! {
    #[test]
    fn nothing_that_the_standard_library_calls_special_passes(bits: u32) {
        let addr = Ipv4Addr::from_bits(bits);
        let policy = DialPolicy::default();
        let own = vet_address(addr.into(), 443, true, &policy).is_ok();
        prop_assert!(!(own && std_says_special(addr)));
        // Whatever carries it fares no better.
        let [a, b, c, d] = addr.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        for carrier in [
            addr.to_ipv6_mapped(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7),
            Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2a00, 0x1450, 0, 0, 0, 0x5efe, high, low),
        ] {
            prop_assert_eq!(vet_address(carrier.into(), 443, true, &policy).is_ok(), own, "{}", carrier);
        }
        for carrier in [
            addr.to_ipv6_compatible(),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        ] {
            prop_assert!(vet_address(carrier.into(), 443, true, &policy).is_err(), "{}", carrier);
        }
    }

    #[test]
    fn of_ipv6_only_global_unicast_and_nat64_pass(bits: u128) {
        let addr = Ipv6Addr::from_bits(bits);
        let global = addr.segments()[0] & 0xe000 == 0x2000;
        prop_assert!(global || vet_address(addr.into(), 443, true, &DialPolicy::default()).is_err());
    }
}
