//! Who holds a port of the host: `/proc/net` names the socket, `/proc/PID/fd` the process (proc(5)).
//!
//! An ordinary user sees every socket, but the descriptors of own processes only.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::Transport;

/// Processes looked at; the port's holder is only a courtesy of an error message.
const MAX_PROCESSES: usize = 10_000;
/// State of a listening TCP socket in `/proc/net/tcp`.
const TCP_LISTEN: &str = "0A";

/// A process that holds a port, or at least its user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Process { name: String, pid: u32 },
    User { uid: u32 },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { name, pid } => write!(f, "{name} (pid {pid})"),
            Self::User { uid } => write!(f, "a process of the user with uid {uid}"),
        }
    }
}

/// Whose socket stands in the way of binding `address`.
pub(super) fn of(transport: Transport, address: SocketAddr) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let entry = tables.iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        table.lines().filter_map(Entry::parse).find(|entry| entry.stands_in_the_way(transport, address))
    })?;
    Some(process(entry.inode).unwrap_or(Holder::User { uid: entry.uid }))
}

struct Entry {
    local: SocketAddr,
    tcp_listens: bool,
    uid: u32,
    inode: u64,
}

impl Entry {
    /// Columns: number, local address, remote address, state, queues, timer, retransmissions, uid, timeout,
    /// inode.
    fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let local = socket_address(columns.next()?)?;
        let tcp_listens = columns.nth(1)? == TCP_LISTEN;
        let uid = columns.nth(3)?.parse().ok()?;
        let inode = columns.nth(1)?.parse().ok()?;
        Some(Self { local, tcp_listens, uid, inode })
    }

    /// A wildcard meets every address of its family; `[::]` may have taken IPv4 with it.
    fn stands_in_the_way(&self, transport: Transport, wanted: SocketAddr) -> bool {
        let listens = transport == Transport::Udp || self.tcp_listens;
        let (own, wanted_ip) = (self.local.ip(), wanted.ip());
        let meets = own == wanted_ip
            || (own.is_unspecified() && (own.is_ipv6() || wanted_ip.is_ipv4()))
            || (wanted_ip.is_unspecified() && wanted_ip.is_ipv4() == own.is_ipv4());
        listens && self.local.port() == wanted.port() && meets
    }
}

/// `0100007F:1F90`: words of 32 bits as the machine reads them, then the port.
pub(super) fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let mut octets = [0; 16];
        for (index, octets) in octets.chunks_exact_mut(4).enumerate() {
            octets.copy_from_slice(&word(index)?);
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    Some(SocketAddr::new(address, port))
}

fn process(inode: u64) -> Option<Holder> {
    let socket = format!("socket:[{inode}]");
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .take(MAX_PROCESSES)
        .find(|pid| holds(*pid, OsStr::new(&socket)))
        .map(|pid| Holder::Process { name: name(pid), pid })
}

fn holds(pid: u32, socket: &OsStr) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new(socket)))
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "a process".into(), |name| name.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_the_table_is_understood() {
        let line = "   3: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4711 1";
        let entry = Entry::parse(line).expect("well formed");
        assert_eq!(entry.local, SocketAddr::from(([0, 0, 0, 0], 8080)));
        assert_eq!((entry.uid, entry.inode), (1001, 4711));
        let wanted = |text: &str| text.parse().expect("an address");
        assert!(entry.stands_in_the_way(Transport::Tcp, wanted("127.0.0.1:8080")));
        assert!(!entry.stands_in_the_way(Transport::Tcp, wanted("127.0.0.1:8081")));
        assert!(!entry.stands_in_the_way(Transport::Tcp, wanted("[::1]:8080")));
        let v6 = socket_address("00000000000000000000000001000000:0050").expect("well formed");
        assert_eq!(v6, wanted("[::1]:80"));
        assert!(Entry::parse("  sl  local_address rem_address   st").is_none());
    }
}
