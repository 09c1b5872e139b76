//! Values of single options: one parser each, from text to a type that cannot be wrong by itself.
//!
//! A parser's error is the cause alone; the caller adds which option and which value it was.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{
    IfName, Ipv4Plan, Ipv6Plan, MAX_NAME_BYTES, MAX_WORKERS, MacAddr, Publish, Transport, is_network_name,
};

/// Longest host name in bytes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES: usize = 64;

const PUBLISH_GRAMMAR: &str = "expected [HOSTIP:]HOSTPORT[-END]:GUESTPORT[-END][/tcp|/udp], HOSTIP::GUESTPORT or GUESTPORT; \
     an IPv6 address stands in brackets";

/// `-p`: one port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishSpec {
    /// As it was written, for messages about several options together.
    pub(super) text: String,
    host_addr: Option<IpAddr>,
    /// `None`: the kernel chooses each.
    host_ports: Option<Ports>,
    guest_ports: Ports,
    transport: Transport,
}

/// A range of ports, both ends included, neither of them 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }
}

/// Which end of a published port, for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Host,
    Guest,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

impl PublishSpec {
    /// How many ports it stands for.
    pub(super) fn count(&self) -> u32 {
        self.guest_ports.count()
    }

    /// The single ports that it stands for.
    pub(super) fn expand(&self) -> impl Iterator<Item = Publish> {
        let mut host_ports = self.host_ports.map(|ports| ports.first..=ports.last);
        (self.guest_ports.first..=self.guest_ports.last).map(move |guest_port| Publish {
            host_addr: self.host_addr,
            host_port: host_ports.as_mut().and_then(Iterator::next),
            host_interface: None,
            guest_addr: None,
            guest_port,
            transport: self.transport,
        })
    }
}

/// Parses `-p`.
pub(super) fn publish(text: &str) -> Result<PublishSpec, String> {
    let (ports, transport) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, parse_transport(protocol)?),
        None => (text, Transport::Tcp),
    };
    let (host, guest) = match ports.rsplit_once(':') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, ports),
    };
    let guest_ports = parse_ports(guest, Side::Guest)?;
    let (host_addr, host_ports) = host.map_or(Ok((None, None)), parse_host_side)?;
    if let Some(host_ports) = host_ports
        && host_ports.count() != guest_ports.count()
    {
        return Err(format!(
            "{} host ports cannot stand for {} guest ports; both ranges need the same length",
            host_ports.count(),
            guest_ports.count()
        ));
    }
    Ok(PublishSpec { text: text.to_owned(), host_addr, host_ports, guest_ports, transport })
}

fn parse_transport(text: &str) -> Result<Transport, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err(format!("the protocol '{text}' is neither tcp nor udp")),
    }
}

/// What stands in front of the guest port: `HOSTPORT`, `HOSTIP:HOSTPORT` or `HOSTIP:`.
fn parse_host_side(text: &str) -> Result<(Option<IpAddr>, Option<Ports>), String> {
    let Some((addr, ports)) = split_address(text)? else {
        return Ok((None, Some(parse_ports(text, Side::Host)?)));
    };
    let ports = match ports {
        "" => None,
        ports => Some(parse_ports(ports, Side::Host)?),
    };
    Ok((Some(addr), ports))
}

fn split_address(text: &str) -> Result<Option<(IpAddr, &str)>, String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (addr, ports) = rest
            .split_once("]:")
            .ok_or_else(|| format!("'{text}' has no host port behind its address; {PUBLISH_GRAMMAR}"))?;
        let addr: Ipv6Addr =
            addr.parse().map_err(|_| format!("the host address '{addr}' is not an IPv6 address"))?;
        return Ok(Some((addr.into(), ports)));
    }
    let Some((addr, ports)) = text.rsplit_once(':') else {
        return Ok(None);
    };
    if addr.contains(':') {
        return Err(format!("too many colons; {PUBLISH_GRAMMAR}"));
    }
    match addr.parse() {
        Ok(addr) => Ok(Some((IpAddr::V4(addr), ports))),
        Err(_) => Err(format!("the host address '{addr}' is not an IP address; {PUBLISH_GRAMMAR}")),
    }
}

fn parse_ports(text: &str, side: Side) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = Ports { first: parse_port(first, side)?, last: parse_port(last, side)? };
    if ports.first > ports.last {
        return Err(format!("the {side} port range '{text}' runs backwards"));
    }
    Ok(ports)
}

fn parse_port(text: &str, side: Side) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) if side == Side::Host => Err("the host port 0 is not a port; \
             for a random one leave it out (HOSTIP::GUESTPORT or GUESTPORT)"
            .to_owned()),
        Ok(port) if digits && port != 0 => Ok(port),
        _ if text.is_empty() => Err(format!("the {side} port is missing; {PUBLISH_GRAMMAR}")),
        _ => Err(format!("the {side} port '{text}' is not a number from 1 to 65535")),
    }
}

/// Parses `--allow-host`: one station and port of the host that is closed to guests otherwise.
pub(super) fn allow_host(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text.parse().map_err(|_| {
        "expected ADDR:PORT with a numeric address, such as 127.0.0.1:5432 or [::1]:5432".to_owned()
    })?;
    if addr.port() == 0 {
        return Err("0 is not a port".to_owned());
    }
    match addr.ip() {
        IpAddr::V4(ip) if ip.octets()[0] == 0 || ip.octets()[0] >= 224 => {
            Err(format!("{ip} is not one station's address"))
        }
        IpAddr::V6(ip) if ip.is_unspecified() || ip.is_multicast() => {
            Err(format!("{ip} is not one station's address"))
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Err(format!("{ip} is meaningful on one of the host's interfaces only, which a guest cannot name"))
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => Err(format!("write it as {v4}:{}", addr.port())),
            None => Ok(addr),
        },
        IpAddr::V4(_) => Ok(addr),
    }
}

/// Parses `--cidr`.
pub(super) fn cidr(text: &str) -> Result<Ipv4Plan, String> {
    let subnet: Ipv4Net =
        text.parse().map_err(|_| "expected an IPv4 network such as 10.0.2.0/24".to_owned())?;
    if subnet != subnet.trunc() {
        return Err(format!("it has host bits set; the network is {}", subnet.trunc()));
    }
    let reserved = matches!(subnet.network().octets()[0], 0 | 240..);
    if subnet.prefix_len() < 8 || reserved {
        return Err("expected a network of unicast addresses, /8 to /29".to_owned());
    }
    Ipv4Plan::new(subnet).ok_or_else(|| "expected a network of unicast addresses, /8 to /29".to_owned())
}

/// Parses `--cidr6`.
pub(super) fn cidr6(text: &str) -> Result<Ipv6Plan, String> {
    let subnet: Ipv6Net =
        text.parse().map_err(|_| "expected an IPv6 network such as fd00::/64".to_owned())?;
    if subnet != subnet.trunc() {
        return Err(format!("it has host bits set; the network is {}", subnet.trunc()));
    }
    // Unique local (RFC 4193) and global unicast (RFC 4291 section 2.4) space.
    let unicast = matches!(subnet.network().segments()[0], 0xfc00..=0xfdff | 0x2000..=0x3fff);
    if subnet.prefix_len() < 8 || !unicast {
        return Err("expected a network inside fc00::/7 or 2000::/3, /8 to /116".to_owned());
    }
    Ipv6Plan::new(subnet)
        .ok_or_else(|| "expected a network inside fc00::/7 or 2000::/3, /8 to /116".to_owned())
}

/// Parses `--dns`.
pub(super) fn dns(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text.parse().map_err(|_| "expected the IP address of a DNS server".to_owned())?;
    let broadcast = matches!(addr, IpAddr::V4(ip) if ip.is_broadcast());
    if addr.is_unspecified() || addr.is_multicast() || broadcast {
        return Err("not one station's address".to_owned());
    }
    Ok(addr)
}

/// How many workers there shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workers {
    /// `None` is `auto`.
    pub(super) given: Option<u16>,
}

/// Parses `--workers`.
pub(super) fn workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers { given: None });
    }
    match text.parse() {
        Ok(count) if (1..=MAX_WORKERS).contains(&count) => Ok(Workers { given: Some(count) }),
        _ => Err(format!("expected auto, or a number from 1 to {MAX_WORKERS}")),
    }
}

/// Parses `--mac-address`.
pub(super) fn mac_address(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse()?;
    if mac == MacAddr::GATEWAY {
        return Err("that is the gateway's own address".to_owned());
    }
    Ok(mac)
}

/// Parses `--ifname` by the kernel's rules, less `%`, which would make it a pattern, and `lo`.
pub(super) fn ifname(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > IfName::MAX_BYTES || !printable || text.contains(['/', ':', '%']) {
        return Err(format!(
            "expected 1 to {} printable ASCII characters without '/', ':' and '%'",
            IfName::MAX_BYTES
        ));
    }
    if matches!(text, "." | ".." | "lo") {
        return Err("this name is taken; tap0 or eth0 would do".to_owned());
    }
    Ok(text.to_owned())
}

/// `--outbound`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutboundSpec {
    Address(IpAddr),
    Interface(IfName),
}

/// Parses `--outbound`.
pub(super) fn outbound(text: &str) -> Result<OutboundSpec, String> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        if addr.is_unspecified() || addr.is_multicast() {
            return Err("not one station's address".to_owned());
        }
        return Ok(OutboundSpec::Address(addr));
    }
    let is_name = ifname(text).is_ok() || text == "lo";
    let name = IfName::new(text).filter(|_| is_name);
    name.map(OutboundSpec::Interface)
        .ok_or_else(|| "expected an IP address or an interface's name".to_owned())
}

/// Parses `--name`: what may be a directory's name without surprise.
pub(super) fn name(text: &str) -> Result<String, String> {
    if !is_network_name(text) {
        return Err(format!(
            "expected 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', with a letter or digit first"
        ));
    }
    Ok(text.to_owned())
}

/// Parses `--hostname`.
pub(super) fn hostname(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    if bytes.len() > HOSTNAME_BYTES
        || !outer(bytes.first())
        || !outer(bytes.last())
        || !bytes.iter().copied().all(inner)
    {
        return Err(format!(
            "expected 1 to {HOSTNAME_BYTES} letters, digits, '-', '_' and '.', \
             with a letter or digit at both ends"
        ));
    }
    Ok(text.to_owned())
}

/// `-e`: a variable with its value, or one to take over from the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EnvSpec {
    Set(OsString, OsString),
    FromCaller(OsString),
}

/// Parses `-e`.
pub(super) fn env(text: &OsStr) -> Result<EnvSpec, String> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    };
    if name.is_empty() {
        return Err("the variable has no name; expected NAME=VALUE or NAME".to_owned());
    }
    let name = OsStr::from_bytes(name).to_owned();
    Ok(match value {
        Some(value) => EnvSpec::Set(name, OsStr::from_bytes(value).to_owned()),
        None => EnvSpec::FromCaller(name),
    })
}

/// `-v` as written; the source may still be relative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeSpec {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) read_only: bool,
}

/// Parses `-v`.
pub(super) fn volume(text: &OsStr) -> Result<VolumeSpec, String> {
    let mut parts = text.as_bytes().split(|&byte| byte == b':').map(OsStr::from_bytes);
    let (Some(source), Some(target), mode, None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        let meant_verbose = text.as_bytes().iter().all(|&byte| byte == b'v');
        let advice = if meant_verbose { "; for more log lines write --verbose" } else { "" };
        return Err(format!("expected SRC:DST or SRC:DST:ro{advice}"));
    };
    let read_only = match mode.map(OsStr::as_bytes) {
        None | Some(b"rw") => false,
        Some(b"ro") => true,
        Some(_) => return Err("what follows DST is neither 'ro' nor 'rw'".to_owned()),
    };
    check_volume_source(source)?;
    check_volume_target(Path::new(target))?;
    Ok(VolumeSpec { source: source.into(), target: target.into(), read_only })
}

fn check_volume_source(source: &OsStr) -> Result<(), String> {
    let bytes = source.as_bytes();
    if bytes.is_empty() {
        return Err("SRC is missing".to_owned());
    }
    if !bytes.contains(&b'/') && !matches!(bytes, b"." | b"..") {
        let name = source.to_string_lossy();
        return Err(format!("there are no named volumes; for a file or directory here write ./{name}"));
    }
    Ok(())
}

/// What a mount inside may be mounted on.
pub(super) fn check_volume_target(target: &Path) -> Result<(), String> {
    if !target.is_absolute() {
        return Err("DST must be an absolute path".to_owned());
    }
    if target.components().any(|part| part == Component::ParentDir) {
        return Err("DST must not contain '..'".to_owned());
    }
    if target.components().count() == 1 {
        return Err("DST cannot be the root itself; that is ROOTFS".to_owned());
    }
    Ok(())
}

/// Parses `-w`.
pub(super) fn workdir(text: &OsStr) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("expected an absolute path".to_owned());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_takes_docker_forms() {
        assert_eq!(ports("8080:80"), [(None, Some(8080), 80, Transport::Tcp)]);
        assert_eq!(ports("80"), [(None, None, 80, Transport::Tcp)]);
        assert_eq!(ports("53:5353/udp"), [(None, Some(53), 5353, Transport::Udp)]);
        assert_eq!(ports("127.0.0.1::80"), [(addr("127.0.0.1"), None, 80, Transport::Tcp)]);
        assert_eq!(ports("[::1]:8080:80/TCP"), [(addr("::1"), Some(8080), 80, Transport::Tcp)]);
        assert_eq!(ports("[::]::80"), [(addr("::"), None, 80, Transport::Tcp)]);
    }

    #[test]
    fn publish_expands_ranges_pairwise() {
        assert_eq!(
            ports("127.0.0.1:8000-8002:80-82/udp"),
            [0, 1, 2].map(|n| (addr("127.0.0.1"), Some(8000 + n), 80 + n, Transport::Udp))
        );
        assert_eq!(ports("65534-65535"), [65534, 65535].map(|port| (None, None, port, Transport::Tcp)));
        assert_eq!(publish("1-65535:1-65535").map(|spec| spec.count()), Ok(65535));
    }

    #[test]
    fn publish_errors_name_the_part() {
        for (text, part) in [
            ("0:80", "host port 0"),
            ("8080:0", "guest port '0'"),
            ("65536:80", "host port '65536'"),
            ("8080:", "guest port is missing"),
            (":80", "host port is missing"),
            ("", "guest port is missing"),
            ("8080:http", "guest port 'http'"),
            ("+80", "guest port '+80'"),
            ("80/sctp", "protocol 'sctp'"),
            ("localhost:80:80", "host address 'localhost'"),
            ("::1:80:80", "too many colons"),
            ("[::1:80:80", "no host port behind its address"),
            ("[1.2.3.4]:80:80", "not an IPv6 address"),
            ("8000-8001:80-82", "2 host ports cannot stand for 3"),
            ("8000-8001:80", "same length"),
            ("8001-8000:80-81", "host port range '8001-8000' runs backwards"),
            ("1-2-3:1-3", "host port '2-3'"),
        ] {
            let error = publish(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn allow_host_takes_single_final_destinations_only() {
        for text in ["127.0.0.1:5432", "[::1]:5432", "169.254.169.254:80", "192.168.1.4:22"] {
            assert_eq!(allow_host(text), Ok(text.parse().expect("an address")));
        }
        for text in [
            "127.0.0.1",
            "localhost:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
            "[::ffff:127.0.0.1]:80",
            "127.0.0.1:0",
            "127.0.0.0/8:80",
        ] {
            assert!(allow_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_hold_stations_and_no_host_bits() {
        assert_eq!(cidr("10.9.0.0/16").map(|plan| plan.gateway), Ok([10, 9, 0, 2].into()));
        assert!(cidr("10.0.2.5/24").is_err_and(|cause| cause.contains("10.0.2.0/24")));
        for text in
            ["10.0.2.0", "10.0.2.0/30", "0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/8", "240.0.0.0/8", "fd00::/64"]
        {
            assert!(cidr(text).is_err(), "{text}");
        }
        assert!(cidr6("fd12:3456::/64").is_ok() && cidr6("2001:db8::/64").is_ok());
        for text in ["fe80::/64", "::/0", "::1/128", "ff00::/8", "fd00::/117", "fd00::1/64", "10.0.0.0/8"] {
            assert!(cidr6(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_follow_the_kernels_limits() {
        assert!(ifname("eth0").is_ok() && ifname("abcdefghijklmno").is_ok());
        for text in ["", "abcdefghijklmnop", "a/b", "a:b", "tap%d", "a b", ".", "..", "lo", "t\u{e4}p"] {
            assert!(ifname(text).is_err(), "{text}");
        }
        assert!(hostname("web-1.example").is_ok() && hostname(&"a".repeat(64)).is_ok());
        for text in ["", "-a", "a-", "a b", "a\nb", &"a".repeat(65)] {
            assert!(hostname(text).is_err(), "{text}");
        }
        assert!(mac_address("52:55:0a:00:02:02").is_err_and(|cause| cause.contains("gateway")));
    }

    #[test]
    fn env_splits_at_the_first_equals_sign() {
        assert_eq!(env("A=b=c".as_ref()), Ok(EnvSpec::Set("A".into(), "b=c".into())));
        assert_eq!(env("A=".as_ref()), Ok(EnvSpec::Set("A".into(), "".into())));
        assert_eq!(env("A".as_ref()), Ok(EnvSpec::FromCaller("A".into())));
        assert!(env("=b".as_ref()).is_err() && env("".as_ref()).is_err());
    }

    #[test]
    fn volumes_need_paths_on_both_sides() {
        let spec = volume("./data:/srv:ro".as_ref()).expect("valid");
        assert_eq!((spec.source, spec.target), ("./data".into(), "/srv".into()));
        assert!(spec.read_only);
        assert!(volume("/a:/b:rw".as_ref()).is_ok_and(|spec| !spec.read_only));
        for (text, cause) in [
            ("/data", "SRC:DST"),
            ("v", "--verbose"),
            ("data:/srv", "./data"),
            (":/srv", "SRC is missing"),
            ("/a:b", "absolute"),
            ("/a:/b:z", "neither"),
            ("/a:/b:ro:x", "SRC:DST"),
            ("/a:/", "root"),
            ("/a:/b/../..", ".."),
        ] {
            let error = volume(text.as_ref()).expect_err(text);
            assert!(error.contains(cause), "{text}: {error}");
        }
    }

    fn ports(text: &str) -> Vec<(Option<IpAddr>, Option<u16>, u16, Transport)> {
        publish(text)
            .expect(text)
            .expand()
            .map(|port| (port.host_addr, port.host_port, port.guest_port, port.transport))
            .collect()
    }

    fn addr(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }
}
