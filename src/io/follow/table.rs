//! What the kernel's tables of sockets say of bound ports, and what has to be opened and closed to follow them.
//!
//! Nothing is read here: the tables come as text (proc(5), `/proc/net/tcp` and `/proc/net/udp`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::config::Transport;
use crate::io::holder;

/// Ports followed at once, of one transport in one direction: they are open on behalf of somebody else.
pub(super) const MAX_FOLLOWED: usize = 1024;
/// Looks after which a port that could not be opened is tried again, if it is still wanted.
const RESTING_LOOKS: u8 = 30;
/// States of sockets as the tables have them: of TCP ones that listen, and of UDP ones that are not connected.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// From where a bound port has to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// From another station: one that is bound to the loopback is out of reach.
    Link,
    /// From another station and from the loopback.
    Either,
    /// From the loopback: one that is bound to another address is out of reach.
    Loopback,
}

impl Reach {
    fn includes(self, address: IpAddr) -> bool {
        match self {
            Self::Link => !address.is_loopback(),
            Self::Either => true,
            Self::Loopback => address.is_loopback() || address.is_unspecified(),
        }
    }
}

/// What a line of a table of `transport` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// A socket that waits for anybody.
    Bound(IpAddr, u16),
    /// Another socket, or the heading.
    Other,
}

/// Columns: number, local address, remote address, state.
fn line(text: &str, transport: Transport) -> Line {
    let mut columns = text.split_ascii_whitespace().skip(1);
    let local = columns.next().and_then(holder::socket_address);
    let wanted = match transport {
        Transport::Tcp => TCP_LISTEN,
        Transport::Udp => UDP_UNCONNECTED,
    };
    match (local, columns.nth(1)) {
        (Some(local), Some(state)) if state == wanted => Line::Bound(local.ip(), local.port()),
        _ => Line::Other,
    }
}

/// Ports of `table` at which somebody waits who is within `reach`. Those of UDP that the kernel gives to clients
/// (`ephemeral`) are left out: an unconnected socket there is a client's nearly always.
pub(super) fn bound(
    table: &str,
    transport: Transport,
    reach: Reach,
    ephemeral: &RangeInclusive<u16>,
) -> BTreeSet<u16> {
    let bound = table.lines().filter_map(|text| match line(text, transport) {
        Line::Bound(address, port) => Some(SocketAddr::new(address, port)),
        Line::Other => None,
    });
    within(bound, transport, reach, ephemeral)
}

/// The same for sockets that the kernel has told.
pub(super) fn within(
    bound: impl IntoIterator<Item = SocketAddr>,
    transport: Transport,
    reach: Reach,
    ephemeral: &RangeInclusive<u16>,
) -> BTreeSet<u16> {
    let of_client = |port: &u16| transport == Transport::Udp && ephemeral.contains(port);
    let reached = bound.into_iter().filter(|socket| reach.includes(socket.ip()));
    reached.map(|socket| socket.port()).filter(|port| *port != 0 && !of_client(port)).collect()
}

/// Whether the rest of a table of TCP sockets, which has come as far as `table`, can be left out: those that listen
/// come first (Documentation/networking/proc_net_tcp.rst).
pub(super) fn is_past_listeners(table: &str) -> bool {
    let whole = table.rfind('\n').map_or("", |end| &table[..end]);
    // The first is the heading.
    let last = whole.rsplit_once('\n');
    last.is_some_and(|(_, last)| line(last, Transport::Tcp) == Line::Other)
}

/// The ports of one transport in one direction that are open because somebody is bound to them.
#[derive(Debug, Default)]
pub(super) struct Followed {
    open: BTreeSet<u16>,
    /// Those that could not be opened, and the looks that they have to wait.
    resting: BTreeMap<u16, u8>,
}

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) open: Vec<u16>,
    pub(super) close: Vec<u16>,
}

impl Followed {
    /// What follows from a look that has found `wanted`. What is to be closed counts as closed from now on; of what is to
    /// be opened [`Self::opened`] or [`Self::refused`] must be told.
    pub(super) fn look(&mut self, wanted: &BTreeSet<u16>) -> Changes {
        let close: Vec<u16> = self.open.difference(wanted).copied().collect();
        self.open.retain(|port| wanted.contains(port));
        self.resting.retain(|port, looks| {
            *looks -= 1;
            *looks > 0 && wanted.contains(port)
        });
        let missing =
            wanted.iter().filter(|port| !self.open.contains(port) && !self.resting.contains_key(port));
        let room = MAX_FOLLOWED.saturating_sub(self.open.len());
        Changes { open: missing.take(room).copied().collect(), close }
    }

    pub(super) fn opened(&mut self, port: u16) {
        self.open.insert(port);
    }

    /// Somebody else has it, or it may not be had. It rests.
    pub(super) fn refused(&mut self, port: u16) {
        self.resting.insert(port, RESTING_LOOKS);
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const TCP: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4711 1
   1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1
   2: 0202000A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1
   3: 0100007F:9C40 0100007F:0016 01 00000000:00000000 00:00000000 00000000  1001        0 4714 1
";
    const UDP6: &str = "  sl  local_address                         remote_address                        st
  10: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 1
  11: 00000000000000000000000001000000:007B 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 2
  12: 00000000000000000000000000000000:A000 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 3
  13: 00000000000000000000000000000000:1000 0000000000000000FFFF00000100007F:0035 01 0:0 0:0 0 0 0 4
";

    fn ports(table: &str, transport: Transport, reach: Reach) -> Vec<u16> {
        bound(table, transport, reach, &(32_768..=60_999)).into_iter().collect()
    }

    #[test]
    fn who_waits_within_reach_is_found() {
        assert_eq!(ports(TCP, Transport::Tcp, Reach::Link), [80, 8080]);
        assert_eq!(ports(TCP, Transport::Tcp, Reach::Loopback), [22, 8080]);
        assert_eq!(ports(TCP, Transport::Tcp, Reach::Either), [22, 80, 8080]);
        assert_eq!(ports(UDP6, Transport::Udp, Reach::Link), [53], "clients' ports are left out");
        assert_eq!(ports(UDP6, Transport::Udp, Reach::Loopback), [53, 123]);
    }

    #[test]
    fn any_text_is_a_table() {
        for text in
            ["", "\n", "1:", "1: x y 0A", "1: 00000000:zzzz 0 0A", "1: 0000000:1F90 0 0A", "1: é:1F90 0 0A"]
        {
            assert!(ports(text, Transport::Tcp, Reach::Link).is_empty(), "{text:?}");
            assert!(!is_past_listeners(text) || text.lines().count() > 1, "{text:?}");
        }
    }

    #[test]
    fn reading_may_end_behind_the_last_that_listens() {
        assert!(is_past_listeners(TCP));
        let listeners = TCP.rfind("   3:").expect("there");
        assert!(!is_past_listeners(&TCP[..listeners]));
        assert!(!is_past_listeners(&TCP[..listeners + 30]), "half a line says nothing");
        assert!(!is_past_listeners(TCP.lines().next().expect("the heading")));
    }

    #[test]
    fn ports_open_and_close_with_who_waits_there() {
        let mut followed = Followed::default();
        let wanted = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<_>>();
        let changes = followed.look(&wanted(&[80, 81]));
        assert_eq!(changes, Changes { open: vec![80, 81], close: vec![] });
        followed.opened(80);
        followed.opened(81);
        assert_eq!(followed.look(&wanted(&[80, 81])), Changes::default());
        assert_eq!(followed.look(&wanted(&[81, 82])), Changes { open: vec![82], close: vec![80] });
        assert_eq!(followed.open, wanted(&[81]), "82 has not been opened yet");
    }

    #[test]
    fn one_that_is_refused_rests_while_it_is_wanted() {
        let mut followed = Followed::default();
        let wanted = BTreeSet::from([80]);
        assert_eq!(followed.look(&wanted).open, [80]);
        followed.refused(80);
        for _ in 1..RESTING_LOOKS {
            assert_eq!(followed.look(&wanted), Changes::default());
        }
        assert_eq!(followed.look(&wanted).open, [80]);
        followed.refused(80);
        assert_eq!(followed.look(&BTreeSet::new()), Changes::default());
        assert_eq!(followed.look(&wanted).open, [80], "a new one is tried at once");
    }

    #[test]
    fn there_is_an_end_to_what_is_followed() {
        let mut followed = Followed::default();
        let wanted: BTreeSet<u16> = (1000..5000).collect();
        let open = followed.look(&wanted).open;
        assert_eq!(open.len(), MAX_FOLLOWED);
        open.into_iter().for_each(|port| followed.opened(port));
        assert_eq!(followed.look(&wanted), Changes::default());
    }
}
