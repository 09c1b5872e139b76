//! Ports that are open because somebody listens on them at the other side: those of the guest at the host, and those of
//! the host at the guest's loopback.
//!
//! It asks the kernel once a second who listens, in both namespaces, and wants a thread of its own. What was opened for
//! one direction is never followed in the other. A port that cannot be had, because somebody has it or because of its
//! number, is left alone for half a minute.

mod table;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use self::table::{Followed, Reach};
use crate::config::{Automatic, BindAt, LoopbackForward, Publish, Transport};
use crate::error::{Context, Result};
use crate::io::ports::Ports;
use crate::io::splice::Entrances;
use crate::io::stop::{Orders, Stop};
use crate::net::Family;
use crate::sys::diag;
use crate::sys::factory::Want;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Read of one table at once, and at most: some 28,000 sockets.
const CHUNK_BYTES: usize = 16 * 1024;
const MAX_TABLE_BYTES: usize = 4 * 1024 * 1024;
/// The ports that are given to clients if the kernel does not say.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// Both directions of one network.
pub struct Follower {
    poll: Poll,
    orders: Arc<Orders>,
    waker: Arc<Waker>,
    automatic: Automatic,
    ephemeral: RangeInclusive<u16>,
    /// The host's side.
    ports: Ports,
    /// The guest's side.
    entrances: Entrances,
    guest: Tables,
    host: Tables,
    tcp_in: Followed,
    udp_in: Followed,
    tcp_out: Followed,
    udp_out: Followed,
}

impl Follower {
    /// Looks a first time. `ports` are those of the network, in service already, whose guest `entrances` leads to.
    pub fn new(automatic: Automatic, ports: Ports, entrances: Entrances) -> Result<Self> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let waker = Waker::new(poll.registry(), Token(0)).context("cannot create", "an eventfd")?;
        let (first, last) = automatic.ephemeral.unwrap_or(EPHEMERAL);
        let mut follower = Self {
            poll,
            orders: Arc::default(),
            waker: Arc::new(waker),
            automatic,
            ephemeral: first..=last,
            ports,
            guest: Tables::of_guest(&entrances).context("cannot read", "the guest's tables of sockets")?,
            entrances,
            host: Tables::of_host(),
            tcp_in: Followed::default(),
            udp_in: Followed::default(),
            tcp_out: Followed::default(),
            udp_out: Followed::default(),
        };
        follower.look();
        Ok(follower)
    }

    /// The handle that ends it.
    pub fn stopper(&self) -> Stop {
        Stop::new(Arc::clone(&self.orders), Arc::clone(&self.waker))
    }

    /// Looks again and again until stopped or drained: there is nobody to follow any more.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1);
        let mut next = Instant::now() + INTERVAL;
        while !self.orders.says_stop() && !self.orders.says_drain() {
            let now = Instant::now();
            if next <= now {
                self.look();
                next = Instant::now() + INTERVAL;
                continue;
            }
            match self.poll.poll(&mut events, Some(next - now)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "ports do not follow who listens any more");
                    return;
                }
                _ => {}
            }
        }
    }

    fn look(&mut self) {
        if self.automatic.tcp_in || self.automatic.udp_in {
            self.look_at_guest();
        }
        if self.automatic.tcp_out || self.automatic.udp_out {
            self.look_at_host();
        }
    }

    /// Publishes what the guest listens on. Some protocols use the number of their TCP port over UDP without listening
    /// there yet, so those of TCP count for UDP too.
    fn look_at_guest(&mut self) {
        let reach = if self.automatic.loopback_servers { Reach::Either } else { Reach::Link };
        let mut tcp = self.guest.bound(Transport::Tcp, reach, &self.ephemeral);
        tcp.retain(|port| !self.entrances.ports(Transport::Tcp).contains(port));
        if self.automatic.udp_in {
            let mut udp = self.guest.bound(Transport::Udp, Reach::Link, &self.ephemeral);
            udp.extend(&tcp);
            udp.retain(|port| !self.entrances.ports(Transport::Udp).contains(port));
            publish(&self.ports, &mut self.udp_in, &udp, Transport::Udp, self.automatic.udp_at);
        }
        if self.automatic.tcp_in {
            publish(&self.ports, &mut self.tcp_in, &tcp, Transport::Tcp, self.automatic.tcp_at);
        }
    }

    /// Offers the guest what the host listens on.
    fn look_at_host(&mut self) {
        let mut tcp = self.host.bound(Transport::Tcp, Reach::Loopback, &self.ephemeral);
        let own = published(&self.ports, Transport::Tcp);
        tcp.retain(|port| !own.contains(port));
        if self.automatic.udp_out {
            let mut udp = self.host.bound(Transport::Udp, Reach::Loopback, &self.ephemeral);
            udp.extend(&tcp);
            let own = published(&self.ports, Transport::Udp);
            udp.retain(|port| !own.contains(port));
            offer(&mut self.entrances, &mut self.udp_out, &udp, Transport::Udp);
        }
        if self.automatic.tcp_out {
            offer(&mut self.entrances, &mut self.tcp_out, &tcp, Transport::Tcp);
        }
    }
}

fn publish(ports: &Ports, followed: &mut Followed, wanted: &BTreeSet<u16>, transport: Transport, at: BindAt) {
    let publish = |port| Publish {
        host_addr: at.address,
        host_port: Some(port),
        host_interface: at.interface,
        guest_addr: None,
        guest_port: port,
        transport,
    };
    let changes = followed.look(wanted);
    for port in changes.close {
        if let Err(error) = ports.remove(&[publish(port)]) {
            tracing::debug!(%error, "a port was closed by somebody else");
        }
    }
    for port in changes.open {
        match ports.add(&[publish(port)]) {
            Ok(_) => followed.opened(port),
            Err(error) => {
                tracing::debug!(%error, "a port of the guest cannot be had at the host");
                followed.refused(port);
            }
        }
    }
}

fn offer(entrances: &mut Entrances, followed: &mut Followed, wanted: &BTreeSet<u16>, transport: Transport) {
    let changes = followed.look(wanted);
    for port in changes.close {
        entrances.close(transport, port);
    }
    for port in changes.open {
        match entrances.open(&LoopbackForward { guest_port: port, host_port: port, transport }) {
            Ok(()) => followed.opened(port),
            Err(error) => {
                tracing::debug!(%error, "a port of the host cannot be had at the guest's loopback");
                followed.refused(port);
            }
        }
    }
}

/// Ports of the host that this network listens on.
fn published(ports: &Ports, transport: Transport) -> BTreeSet<u16> {
    let ports = ports.list().into_iter().filter(|port| port.publish.transport == transport);
    ports.flat_map(|port| port.addresses).map(|address| address.port()).collect()
}

/// How the kernel tells of the sockets of one namespace: that in which it was opened.
enum Tables {
    /// It is asked for those that wait.
    Asked(OwnedFd),
    /// It shows all, in a table for each family that there is: where it cannot be asked.
    Shown { tcp: Vec<File>, udp: Vec<File> },
}

impl Tables {
    fn of_guest(entrances: &Entrances) -> io::Result<Self> {
        if let Some(diag) = entrances.factory().obtain(Want::Diag)?.pop().filter(can_tell) {
            return Ok(Self::Asked(diag));
        }
        let open = |transport| {
            let tables = entrances.factory().obtain(Want::Tables(transport))?;
            Ok::<Vec<_>, io::Error>(tables.into_iter().map(File::from).collect())
        };
        Ok(Self::Shown { tcp: open(Transport::Tcp)?, udp: open(Transport::Udp)? })
    }

    fn of_host() -> Self {
        if let Some(diag) = diag::open().ok().filter(can_tell) {
            return Self::Asked(diag);
        }
        let existing =
            |names: [&str; 2]| names.iter().filter_map(|name| File::open(name).ok()).collect::<Vec<_>>();
        Self::Shown {
            tcp: existing(["/proc/net/tcp", "/proc/net/tcp6"]),
            udp: existing(["/proc/net/udp", "/proc/net/udp6"]),
        }
    }

    /// Ports at which somebody waits. What the kernel does not tell is nothing.
    fn bound(
        &mut self,
        transport: Transport,
        reach: Reach,
        ephemeral: &RangeInclusive<u16>,
    ) -> BTreeSet<u16> {
        let untold =
            |error: &io::Error| tracing::debug!(%error, %transport, "the kernel does not tell who listens");
        let mut ports = BTreeSet::new();
        match self {
            Self::Asked(diag) => {
                for family in [Family::V4, Family::V6] {
                    let found =
                        diag::bound(&*diag, transport, family).inspect_err(untold).unwrap_or_default();
                    ports.extend(table::within(found, transport, reach, ephemeral));
                }
            }
            Self::Shown { tcp, udp } => {
                let tables = if transport == Transport::Tcp { tcp } else { udp };
                for table in tables {
                    let text = read(table, transport).inspect_err(untold).unwrap_or_default();
                    ports.extend(table::bound(&text, transport, reach, ephemeral));
                }
            }
        }
        ports
    }
}

/// Whether the kernel answers about both transports: each is a module of its own.
fn can_tell(diag: &OwnedFd) -> bool {
    let tells = |transport| diag::bound(diag, transport, Family::V4).is_ok();
    tells(Transport::Tcp) && tells(Transport::Udp)
}

/// The table as it is now, but for connections.
fn read(table: &mut File, transport: Transport) -> io::Result<String> {
    table.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    while text.len() < MAX_TABLE_BYTES {
        let len = table.read(&mut chunk)?;
        text.push_str(&String::from_utf8_lossy(&chunk[..len]));
        if len == 0 || (transport == Transport::Tcp && table::is_past_listeners(&text)) {
            break;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn both_ways_of_telling_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let open = |name| File::open(name).map(|table| vec![table]).expect("procfs");
        let shown = Tables::Shown { tcp: open("/proc/net/tcp"), udp: open("/proc/net/udp") };
        for mut tables in [shown, Tables::of_host()] {
            let mut found = |reach| tables.bound(Transport::Tcp, reach, &(32_768..=60_999)).contains(&port);
            assert!(found(Reach::Loopback) && !found(Reach::Link));
        }
    }
}
