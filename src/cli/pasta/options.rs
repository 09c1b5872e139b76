//! The options of pasta(1), their help, and what was said with them, one by one.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::super::getopt::{Opt, Reader, Word};
use crate::config::{IfName, LogFile, MAX_DNS_SERVERS, MacAddr};

/// Size of a log file if none is given.
const DEFAULT_LOG_BYTES: u64 = 1024 * 1024;
/// Least size of a log file.
const MIN_LOG_BYTES: u64 = 4096;
/// Largest packets that can be asked for.
const MTUS: std::ops::RangeInclusive<u16> = 68..=65_535;

pub(super) const HELP: &str = "\
Usage: pasta [OPTION]... [COMMAND] [ARGS]...
       pasta [OPTION]... PID
       pasta [OPTION]... --netns [PATH|NAME]

Without PID or --netns, run the given command or a default shell in a new network and user namespace, and
connect it via pasta.

  -d, --debug             be verbose, on standard error
      --trace             be extra verbose, implies --debug
  -q, --quiet             only warnings and errors
  -f, --foreground        don't run in background
  -e, --stderr            no effect
  -l, --log-file PATH     log only to this file
      --log-size BYTES    its largest size (default: 1 MiB)
      --runas UID|UID:GID no effect: rnet keeps the user it has
  -h, --help              display this help message and exit
      --version           show version and exit
  -I, --ns-ifname NAME    name of the interface (default: that of the host's)
  -p, --pcap FILE         record frames
  -P, --pid FILE          write own PID to the given file
  -c, --conf-path PATH    make a socket there at which pesto changes ports
  -m, --mtu MTU           assign MTU (default: 65520)
  -a, --address ADDR      assign this IPv4 or IPv6 address (default: those of the host's interface)
  -n, --netmask MASK      assign this IPv4 netmask, dot-decimal or bits
  -M, --mac-addr ADDR     MAC address of the gateway
  -g, --gateway ADDR      this is the gateway (default: the host's)
  -i, --interface NAME    the host's interface for addresses and routes (default: that of its default route)
  -o, --outbound ADDR     send from this address of the host
      --outbound-if4 NAME send IPv4 through this interface of the host
      --outbound-if6 NAME send IPv6 through this interface of the host
  -D, --dns ADDR          with --dhcp-dns: a DNS server to be advertised, or none (default: the host's)
  -S, --search LIST       with --dhcp-search: domains to be advertised, or none (default: the host's)
      --dhcp-dns          advertise DNS servers by DHCP, DHCPv6 and NDP
      --dhcp-search       the same for search domains
      --map-host-loopback ADDR
                          this address means the host's loopback (default: the gateway's)
      --map-guest-addr ADDR
                          this address means the host's own address
      --dns-forward ADDR  answer DNS queries to this address
      --dns-host ADDR     with the help of this server (default: all of the host's)
      --no-tcp, --no-udp, --no-icmp, --no-dhcp, --no-dhcpv6, --no-ndp, --no-ra
                          switch this off
      --freebind          bind ports to addresses that the host does not have, too
      --no-map-gw         the gateway's address does not mean the host's loopback
  -4, --ipv4-only         IPv4 only
  -6, --ipv6-only         IPv6 only
  -t, --tcp-ports SPEC    TCP ports that lead to the guest: none, [ADDR[%IF]/]auto (default: auto), or
                          [ADDR[%IF]/]PORT[-PORT][:PORT[-PORT]],... with ~PORT[-PORT] to exclude some
  -u, --udp-ports SPEC    the same for UDP
  -T, --tcp-ns SPEC       TCP ports of the guest's loopback that lead to the host's
  -U, --udp-ns SPEC       the same for UDP
      --no-splice         bring clients on the host's loopback over the link
      --host-lo-to-ns-lo  lead clients of TCP ports on the host's loopback to the guest's
      --userns NSPATH     enter this user namespace
      --netns PATH|NAME   the network namespace
      --netns-only        don't join or create a user namespace
      --no-netns-quit     don't end when the network namespace is deleted
      --config-net        configure the interface in the namespace
      --no-copy-routes    don't copy all routes of the host's interface
      --no-copy-addrs     don't copy all addresses of the host's interface
      --ns-mac-addr ADDR  MAC address of the interface in the namespace
";

/// Which option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    Debug,
    Trace,
    Quiet,
    Foreground,
    Stderr,
    LogFile,
    LogSize,
    RunAs,
    Help,
    Version,
    NsIfname,
    Fd,
    Pcap,
    Pid,
    ConfPath,
    Mtu,
    Address,
    Netmask,
    Mac,
    Gateway,
    Interface,
    Outbound,
    OutboundIf4,
    OutboundIf6,
    Dns,
    Search,
    DhcpDns,
    DhcpSearch,
    NoDhcpDns,
    NoDhcpSearch,
    MapHostLoopback,
    MapGuestAddr,
    DnsForward,
    DnsHost,
    NoTcp,
    NoUdp,
    NoIcmp,
    NoDhcp,
    NoDhcpv6,
    NoNdp,
    NoRa,
    Freebind,
    NoMapGw,
    Ipv4Only,
    Ipv6Only,
    TcpPorts,
    UdpPorts,
    TcpNs,
    UdpNs,
    NoSplice,
    HostLoToNsLo,
    Userns,
    Netns,
    NetnsOnly,
    NoNetnsQuit,
    ConfigNet,
    NoCopyRoutes,
    NoCopyAddrs,
    NsMac,
    OneOff,
    Socket,
    VhostUser,
    PrintCapabilities,
}

pub(super) const OPTIONS: &[Opt<Is>] = &[
    flag(Is::Debug, "debug", Some(b'd')),
    flag(Is::Trace, "trace", None),
    flag(Is::Quiet, "quiet", Some(b'q')),
    flag(Is::Foreground, "foreground", Some(b'f')),
    flag(Is::Stderr, "stderr", Some(b'e')),
    value(Is::LogFile, "log-file", Some(b'l')),
    value(Is::LogSize, "log-size", None),
    value(Is::RunAs, "runas", None),
    flag(Is::Help, "help", Some(b'h')),
    flag(Is::Version, "version", None),
    value(Is::NsIfname, "ns-ifname", Some(b'I')),
    value(Is::Fd, "fd", Some(b'F')),
    value(Is::Pcap, "pcap", Some(b'p')),
    value(Is::Pid, "pid", Some(b'P')),
    value(Is::ConfPath, "conf-path", Some(b'c')),
    value(Is::Mtu, "mtu", Some(b'm')),
    value(Is::Address, "address", Some(b'a')),
    value(Is::Netmask, "netmask", Some(b'n')),
    value(Is::Mac, "mac-addr", Some(b'M')),
    value(Is::Gateway, "gateway", Some(b'g')),
    value(Is::Interface, "interface", Some(b'i')),
    value(Is::Outbound, "outbound", Some(b'o')),
    value(Is::OutboundIf4, "outbound-if4", None),
    value(Is::OutboundIf6, "outbound-if6", None),
    value(Is::Dns, "dns", Some(b'D')),
    value(Is::Search, "search", Some(b'S')),
    flag(Is::DhcpDns, "dhcp-dns", None),
    flag(Is::DhcpSearch, "dhcp-search", None),
    flag(Is::NoDhcpDns, "no-dhcp-dns", None),
    flag(Is::NoDhcpSearch, "no-dhcp-search", None),
    value(Is::MapHostLoopback, "map-host-loopback", None),
    value(Is::MapGuestAddr, "map-guest-addr", None),
    value(Is::DnsForward, "dns-forward", None),
    value(Is::DnsHost, "dns-host", None),
    flag(Is::NoTcp, "no-tcp", None),
    flag(Is::NoUdp, "no-udp", None),
    flag(Is::NoIcmp, "no-icmp", None),
    flag(Is::NoDhcp, "no-dhcp", None),
    flag(Is::NoDhcpv6, "no-dhcpv6", None),
    flag(Is::NoNdp, "no-ndp", None),
    flag(Is::NoRa, "no-ra", None),
    flag(Is::Freebind, "freebind", None),
    flag(Is::NoMapGw, "no-map-gw", None),
    flag(Is::Ipv4Only, "ipv4-only", Some(b'4')),
    flag(Is::Ipv6Only, "ipv6-only", Some(b'6')),
    value(Is::TcpPorts, "tcp-ports", Some(b't')),
    value(Is::UdpPorts, "udp-ports", Some(b'u')),
    value(Is::TcpNs, "tcp-ns", Some(b'T')),
    value(Is::UdpNs, "udp-ns", Some(b'U')),
    flag(Is::NoSplice, "no-splice", None),
    flag(Is::HostLoToNsLo, "host-lo-to-ns-lo", None),
    value(Is::Userns, "userns", None),
    value(Is::Netns, "netns", None),
    flag(Is::NetnsOnly, "netns-only", None),
    flag(Is::NoNetnsQuit, "no-netns-quit", None),
    flag(Is::ConfigNet, "config-net", None),
    flag(Is::NoCopyRoutes, "no-copy-routes", None),
    flag(Is::NoCopyAddrs, "no-copy-addrs", None),
    value(Is::NsMac, "ns-mac-addr", None),
    flag(Is::OneOff, "one-off", Some(b'1')),
    value(Is::Socket, "socket", Some(b's')),
    value(Is::Socket, "socket-path", None),
    flag(Is::VhostUser, "vhost-user", None),
    flag(Is::PrintCapabilities, "print-capabilities", None),
];

const fn flag(is: Is, long: &'static str, short: Option<u8>) -> Opt<Is> {
    Opt { is, long, short, takes_argument: false }
}

const fn value(is: Is, long: &'static str, short: Option<u8>) -> Opt<Is> {
    Opt { is, long, short, takes_argument: true }
}

/// One of each family, each given at most once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pair {
    pub(super) v4: Option<IpAddr>,
    pub(super) v6: Option<IpAddr>,
}

impl Pair {
    /// Adds one; false if its family has one already.
    fn add(&mut self, address: IpAddr) -> bool {
        let place = if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        place.replace(address).is_none()
    }

    /// That of IPv4, or of IPv6.
    pub(super) fn of(&self, ipv4: bool) -> Option<IpAddr> {
        if ipv4 { self.v4 } else { self.v6 }
    }
}

/// One of the four directions of ports, as it was said: the option's letter and its argument.
pub(super) type Said = Vec<(char, String)>;

/// What was said, before it is judged as a whole.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) debug: bool,
    pub(super) trace: bool,
    pub(super) quiet: bool,
    pub(super) foreground: bool,
    pub(super) log_file: Option<PathBuf>,
    pub(super) log_bytes: Option<u64>,
    pub(super) ifname: Option<IfName>,
    pub(super) pcap: Option<PathBuf>,
    pub(super) pid: Option<PathBuf>,
    pub(super) conf_path: Option<PathBuf>,
    pub(super) mtu: Option<u16>,
    pub(super) address: Pair,
    pub(super) netmask: Option<u8>,
    pub(super) gateway: Pair,
    pub(super) interface: Option<IfName>,
    pub(super) outbound: Pair,
    pub(super) outbound_if4: Option<IfName>,
    pub(super) outbound_if6: Option<IfName>,
    pub(super) map_host_loopback: Pair,
    pub(super) map_guest_addr: Pair,
    pub(super) no_map_gw: bool,
    pub(super) dns_forward: Pair,
    pub(super) dns_hosts: Vec<IpAddr>,
    pub(super) no_tcp: bool,
    pub(super) no_udp: bool,
    pub(super) no_icmp: bool,
    pub(super) no_dhcp: bool,
    pub(super) no_dhcpv6: bool,
    pub(super) no_ra: bool,
    pub(super) no_splice: bool,
    pub(super) freebind: bool,
    pub(super) host_lo_to_ns_lo: bool,
    pub(super) ipv4_only: bool,
    pub(super) ipv6_only: bool,
    pub(super) tcp_in: Said,
    pub(super) udp_in: Said,
    pub(super) tcp_out: Said,
    pub(super) udp_out: Said,
    pub(super) userns: Option<PathBuf>,
    pub(super) netns: Option<OsString>,
    pub(super) netns_only: bool,
    pub(super) no_netns_quit: bool,
    pub(super) config_net: bool,
    pub(super) no_copy_routes: bool,
    pub(super) no_copy_addrs: bool,
    pub(super) ns_mac: Option<MacAddr>,
    pub(super) mac: Option<MacAddr>,
    /// Servers to be told; an empty list is `none`.
    pub(super) dns: Option<Vec<IpAddr>>,
    /// Domains to be told; an empty list is `none`.
    pub(super) search: Option<Vec<String>>,
    pub(super) dhcp_dns: bool,
    pub(super) dhcp_search: bool,
    /// Options that have no effect here, and why.
    pub(super) without_effect: Vec<&'static str>,
    pub(super) operands: Vec<OsString>,
}

/// Why the options were not read to their end.
#[derive(Debug)]
pub(super) enum Stop {
    Help,
    Version,
    /// getopt's words; the usage follows.
    Usage(String),
    /// pasta's own.
    Mistake(String),
}

impl Options {
    /// Reads `words`, which begin after the program's name. The first operand ends the options.
    pub(super) fn read(words: impl Iterator<Item = OsString>) -> Result<Self, Stop> {
        let mut options = Self::default();
        let reader = Reader::new(super::NAME, OPTIONS, words).operands_end_options();
        for word in reader {
            match word.map_err(Stop::Usage)? {
                Word::Option(Is::Help, _) => return Err(Stop::Help),
                Word::Option(Is::Version, _) => return Err(Stop::Version),
                Word::Option(is, argument) => options.set(is, &argument).map_err(Stop::Mistake)?,
                Word::Operand(word) => options.operands.push(word),
            }
        }
        options.check().map_err(Stop::Mistake)?;
        Ok(options)
    }

    fn set(&mut self, is: Is, argument: &OsStr) -> Result<(), String> {
        let text = argument.to_string_lossy();
        match is {
            Is::Help | Is::Version => {}
            Is::Debug => self.debug = true,
            Is::Trace => self.trace = true,
            Is::Quiet => self.quiet = true,
            Is::Foreground => self.foreground = true,
            Is::LogFile => once(&mut self.log_file, PathBuf::from(argument), "--log-file")?,
            Is::LogSize => self.log_bytes = Some(log_bytes(&text)?),
            Is::NsIfname => self.ifname = Some(ifname(&text)?),
            // The last one wins.
            Is::Pcap => self.pcap = Some(argument.into()),
            Is::Pid => self.pid = Some(argument.into()),
            Is::ConfPath => once(&mut self.conf_path, PathBuf::from(argument), "--conf-path")?,
            Is::Userns => self.userns = Some(argument.into()),
            Is::Netns => self.netns = Some(argument.to_owned()),
            Is::NetnsOnly => self.netns_only = true,
            Is::NoNetnsQuit => self.no_netns_quit = true,
            Is::ConfigNet => self.config_net = true,
            Is::NoCopyRoutes => self.no_copy_routes = true,
            Is::NoCopyAddrs => self.no_copy_addrs = true,
            Is::NsMac => self.ns_mac = Some(mac(&text)?),
            Is::TcpPorts => self.tcp_in.push(('t', text.into_owned())),
            Is::UdpPorts => self.udp_in.push(('u', text.into_owned())),
            Is::TcpNs => self.tcp_out.push(('T', text.into_owned())),
            Is::UdpNs => self.udp_out.push(('U', text.into_owned())),
            Is::Fd
            | Is::OneOff
            | Is::Socket
            | Is::VhostUser
            | Is::PrintCapabilities
            | Is::NoDhcpDns
            | Is::NoDhcpSearch => {
                return Err(only_for_passt(is).to_owned());
            }
            _ => return self.set_network(is, &text),
        }
        Ok(())
    }

    fn set_network(&mut self, is: Is, text: &str) -> Result<(), String> {
        match is {
            Is::Mtu => self.mtu = Some(mtu(text)?),
            Is::Address => add(&mut self.address, text, "address")?,
            Is::Netmask => self.netmask = Some(netmask(text)?),
            Is::Gateway => add(&mut self.gateway, text, "gateway address")?,
            Is::Interface => once(&mut self.interface, ifname(text)?, "interface")?,
            Is::Outbound => add(&mut self.outbound, text, "or redundant outbound address")?,
            Is::OutboundIf4 => once(&mut self.outbound_if4, ifname(text)?, "outbound interface")?,
            Is::OutboundIf6 => once(&mut self.outbound_if6, ifname(text)?, "outbound interface")?,
            Is::MapHostLoopback if text == "none" => self.no_map_gw = true,
            Is::MapHostLoopback => add(&mut self.map_host_loopback, text, "address to remap to host")?,
            Is::MapGuestAddr if text == "none" => {}
            Is::MapGuestAddr => add(&mut self.map_guest_addr, text, "address to remap to host")?,
            Is::DnsForward => add(&mut self.dns_forward, text, "DNS forwarding address")?,
            Is::DnsHost => self.dns_hosts.push(address(text, "host nameserver address")?),
            Is::NoTcp => self.no_tcp = true,
            Is::NoUdp => self.no_udp = true,
            Is::NoIcmp => self.no_icmp = true,
            Is::NoDhcp => self.no_dhcp = true,
            Is::NoDhcpv6 => self.no_dhcpv6 = true,
            Is::NoNdp | Is::NoRa => self.no_ra = true,
            Is::NoMapGw => self.no_map_gw = true,
            Is::Ipv4Only => self.ipv4_only = true,
            Is::Ipv6Only => self.ipv6_only = true,
            Is::NoSplice => self.no_splice = true,
            Is::HostLoToNsLo => self.host_lo_to_ns_lo = true,
            Is::Mac => self.mac = Some(mac(text)?),
            // The last of what contradicts itself wins.
            Is::Dns if is_none(text) => self.dns = Some(Vec::new()),
            Is::Dns => self.dns.get_or_insert_default().push(address(text, "DNS address")?),
            Is::Search if is_none(text) => self.search = Some(Vec::new()),
            Is::Search => {
                let domains = text.split_ascii_whitespace().map(str::to_owned);
                self.search.get_or_insert_default().extend(domains);
            }
            Is::DhcpDns => self.dhcp_dns = true,
            Is::DhcpSearch => self.dhcp_search = true,
            Is::RunAs => self.without_effect.push("--runas: rnet keeps the user it has"),
            Is::Freebind => self.freebind = true,
            // Nothing is different without them.
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.ipv4_only && self.ipv6_only {
            return Err("Options ipv4-only and ipv6-only are mutually exclusive".into());
        }
        if self.netns.is_some() && !self.operands.is_empty() {
            return Err("Both --netns and PID or command given".into());
        }
        if self.userns.is_some() && self.netns_only {
            return Err("Both --userns and --netns-only given".into());
        }
        if (self.no_copy_routes || self.no_copy_addrs) && !self.config_net {
            let option = if self.no_copy_routes { "--no-copy-routes" } else { "--no-copy-addrs" };
            return Err(format!("{option} needs --config-net"));
        }
        if self.ns_mac.is_some_and(|mac| mac == self.mac.unwrap_or(MacAddr::GATEWAY)) {
            return Err("The gateway has the MAC address of --ns-mac-addr: another one is needed".into());
        }
        if self.dns.as_ref().is_some_and(|given| given.len() > MAX_DNS_SERVERS) {
            return Err(format!("--dns is given more than {MAX_DNS_SERVERS} times"));
        }
        if self.dns_hosts.len() > MAX_DNS_SERVERS {
            return Err(format!("--dns-host is given more than {MAX_DNS_SERVERS} times"));
        }
        Ok(())
    }

    /// Where log lines go instead of standard error.
    pub(super) fn log_file(&self) -> Option<LogFile> {
        let max_bytes = self.log_bytes.unwrap_or(DEFAULT_LOG_BYTES);
        self.log_file.clone().map(|path| LogFile { path, max_bytes })
    }
}

fn only_for_passt(is: Is) -> &'static str {
    match is {
        Is::Fd => "-F/--fd is not supported: use rnet attach --tap-fd",
        Is::OneOff => "--one-off is for passt mode only",
        Is::Socket => "-s is for passt mode only",
        Is::NoDhcpDns => "--no-dhcp-dns is for passt mode only",
        Is::NoDhcpSearch => "--no-dhcp-search is for passt mode only",
        _ => "--vhost-user is for passt mode only",
    }
}

fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("Multiple {what} options given")),
    }
}

fn is_none(text: &str) -> bool {
    text.is_empty() || text == "none"
}

fn mac(text: &str) -> Result<MacAddr, String> {
    text.parse().map_err(|_| format!("Invalid MAC address: {text}"))
}

fn address(text: &str, what: &str) -> Result<IpAddr, String> {
    let unusable = |address: &IpAddr| {
        address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast(address)
    };
    let address = text.parse().ok().filter(|address| !unusable(address) || what.starts_with("host"));
    address.ok_or_else(|| format!("Invalid {what}: {text}"))
}

fn is_broadcast(address: &IpAddr) -> bool {
    *address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn add(pair: &mut Pair, text: &str, what: &str) -> Result<(), String> {
    if pair.add(address(text, what)?) { Ok(()) } else { Err(format!("Invalid {what}: {text}")) }
}

/// 0 leaves the MTU as the kernel makes it.
fn mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|mtu| *mtu == 0 || MTUS.contains(mtu));
    mtu.ok_or_else(|| format!("Invalid MTU: {text}"))
}

/// The length of the prefix.
fn netmask(text: &str) -> Result<u8, String> {
    let of_mask = |mask: Ipv4Addr| ipnet::ipv4_mask_to_prefix(mask).ok();
    let bits = text.parse().ok().or_else(|| of_mask(text.parse().ok()?));
    bits.filter(|bits| (1..=32).contains(bits)).ok_or_else(|| format!("Invalid netmask: {text}"))
}

fn ifname(text: &str) -> Result<IfName, String> {
    let good = |name: &IfName| !name.as_str().contains(['/', ' ', ':']);
    IfName::new(text).filter(good).ok_or_else(|| format!("Invalid interface name: {text}"))
}

fn log_bytes(text: &str) -> Result<u64, String> {
    let bytes = text.parse().ok().filter(|bytes| *bytes >= MIN_LOG_BYTES);
    bytes.ok_or_else(|| format!("Invalid --log-size: {text}"))
}
