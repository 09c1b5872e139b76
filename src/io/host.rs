//! The host's sockets as rnet uses them: connecting out, listening for published ports, and what failures mean.
//!
//! Stream sockets leave here nonblocking, with the options of [`stream`].

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::holder;
use crate::config::{Exit, IfName, Outbound, Publish, Transport};
use crate::error::{Error, Result};
use crate::net::{Family, HostError};
use crate::sys::{datagram, stream};

/// Connections that may wait to be accepted (net.core.somaxconn caps it).
const BACKLOG: i32 = 4096;
/// Ports tried until one is free in both families.
const RANDOM_PORT_ATTEMPTS: usize = 32;

/// A bound socket of a published port.
#[derive(Debug)]
pub enum Listener {
    /// Accepts connections.
    Tcp {
        /// Nonblocking.
        socket: TcpListener,
        /// Where it listens.
        address: SocketAddr,
    },
    /// Receives datagrams, through a [`datagram::Batch`].
    Udp {
        /// Nonblocking.
        socket: OwnedFd,
        /// Where it listens.
        address: SocketAddr,
    },
}

impl Listener {
    /// Where it listens; the port is never 0.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp { address, .. } | Self::Udp { address, .. } => *address,
        }
    }
}

/// From where traffic of `family` leaves.
fn exit(outbound: &Outbound, family: Family) -> &Exit {
    match family {
        Family::V4 => &outbound.ipv4,
        Family::V6 => &outbound.ipv6,
    }
}

/// Has an unbound socket leave by `exit`.
fn leave_by(socket: &impl AsFd, exit: &Exit) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if let Some(interface) = exit.interface {
        bind_interface(&socket, interface)?;
    }
    match exit.address {
        Some(address) => socket.bind(&SocketAddr::new(address, 0).into()),
        None => Ok(()),
    }
}

/// Opens a guest's UDP socket, which leaves as `outbound` says if that is given.
pub fn open_udp(outbound: Option<&Outbound>, family: Family) -> io::Result<OwnedFd> {
    let Exit { address, interface } = outbound.map(|outbound| *exit(outbound, family)).unwrap_or_default();
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    datagram::open_udp(SocketAddr::new(address.unwrap_or(any), 0), interface)
}

/// Opens a guest's ping socket.
pub fn open_ping(outbound: &Outbound, family: Family) -> io::Result<OwnedFd> {
    let socket = datagram::open_ping(family)?;
    leave_by(&socket, exit(outbound, family))?;
    Ok(socket)
}

fn bind_interface(socket: &Socket, interface: IfName) -> io::Result<()> {
    socket.bind_device(Some(interface.as_str().as_bytes()))
}

/// Starts a connection. It stands when the stream is writable and `take_error` has none.
pub fn connect(to: SocketAddr, outbound: &Outbound) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    stream::tune(&socket)?;
    if !to.ip().is_loopback() {
        leave_by(&socket, exit(outbound, Family::of(to.ip())))?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Closes a stream with a reset: what was not yet delivered is thrown away.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Binds the sockets of a published port: one, or without an address one for each family that the host has, at
/// the same port. With `freebind` the address need not be the host's (ip(7), IP_FREEBIND).
pub fn listen(publish: &Publish, freebind: bool) -> Result<Vec<Listener>> {
    let port = publish.host_port.unwrap_or(0);
    let bound = match publish.host_addr {
        Some(address) => {
            bind(publish, SocketAddr::new(address, port), freebind).map(|listener| vec![listener])
        }
        None if port != 0 => bind_wildcards(publish, port),
        None => bind_random(publish),
    };
    bound.map_err(|failure| failure.explain(publish.transport))
}

/// What a connection to `to` that could not be started means for the guest.
pub fn connect_error(error: &io::Error, to: SocketAddr) -> HostError {
    // All local ports towards it are taken; in IPv6 the same may mean that the host has no address to send from.
    let out_of_ports = error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) && to.is_ipv4();
    if out_of_ports { HostError::Exhausted } else { host_error(error) }
}

/// What a failed socket call means for the guest that caused it.
pub fn host_error(error: &io::Error) -> HostError {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
        return HostError::Refused;
    };
    match errno {
        Errno::ETIMEDOUT => HostError::TimedOut,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => HostError::HostUnreachable,
        Errno::EACCES | Errno::EPERM => HostError::Prohibited,
        Errno::EMFILE
        | Errno::ENFILE
        | Errno::EAGAIN
        | Errno::ENOBUFS
        | Errno::ENOMEM
        | Errno::EADDRINUSE => HostError::Exhausted,
        Errno::ENETUNREACH
        | Errno::ENETDOWN
        | Errno::EADDRNOTAVAIL
        | Errno::EAFNOSUPPORT
        | Errno::EPROTONOSUPPORT
        | Errno::EINVAL => HostError::NetUnreachable,
        _ => HostError::Refused,
    }
}

/// An address that could not be bound.
#[derive(Debug)]
struct Failure {
    address: SocketAddr,
    cause: io::Error,
}

impl Failure {
    fn is(&self, errno: Errno) -> bool {
        self.cause.raw_os_error() == Some(errno as i32)
    }

    fn explain(self, transport: Transport) -> Error {
        let port = self.address.port();
        let target = Target(self.address, transport);
        let error = |cause: &dyn fmt::Display| Error::new("cannot publish", &target, cause);
        if self.is(Errno::EADDRINUSE) {
            return match holder::of(transport, self.address) {
                Some(holder) => error(&format_args!("{}, held by {holder}", self.cause))
                    .hint(format_args!("stop {holder}, or publish another host port")),
                None => error(&self.cause).hint("publish another host port"),
            };
        }
        let error = error(&self.cause);
        if self.is(Errno::EACCES) && port < 1024 {
            error.hint(format_args!(
                "sudo sysctl net.ipv4.ip_unprivileged_port_start={port} allows it, \
                 or publish a host port from 1024 on"
            ))
        } else if self.is(Errno::EADDRNOTAVAIL) {
            error.hint("no interface of this host has that address (see: ip address)")
        } else if self.is(Errno::EMFILE) {
            error.hint("publish fewer ports, or raise the limit of open files (ulimit -Hn)")
        } else {
            error
        }
    }
}

/// `127.0.0.1:8080/tcp`, as in the option that asked for it.
struct Target(SocketAddr, Transport);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// A family that the host does not have is left out, unless it has neither.
fn bind_wildcards(publish: &Publish, port: u16) -> std::result::Result<Vec<Listener>, Failure> {
    let mut listeners = Vec::new();
    let mut missing = None;
    let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    for wildcard in wildcards {
        let port = listeners.first().map_or(port, |first: &Listener| first.address().port());
        match bind(publish, SocketAddr::new(wildcard, port), false) {
            Ok(listener) => listeners.push(listener),
            Err(failure) if failure.is(Errno::EAFNOSUPPORT) || failure.is(Errno::EADDRNOTAVAIL) => {
                missing = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    match missing {
        Some(failure) if listeners.is_empty() => Err(failure),
        _ => Ok(listeners),
    }
}

/// The kernel chooses for the first family; the second may find that number taken.
fn bind_random(publish: &Publish) -> std::result::Result<Vec<Listener>, Failure> {
    let mut result = bind_wildcards(publish, 0);
    for _ in 1..RANDOM_PORT_ATTEMPTS {
        match result {
            Err(failure) if failure.is(Errno::EADDRINUSE) => result = bind_wildcards(publish, 0),
            done => return done,
        }
    }
    result
}

fn bind(publish: &Publish, address: SocketAddr, freebind: bool) -> std::result::Result<Listener, Failure> {
    let listener = match publish.transport {
        Transport::Tcp => bind_tcp(address, publish.host_interface, freebind),
        Transport::Udp => bind_udp(address, publish.host_interface, freebind),
    };
    listener.map_err(|cause| Failure { address, cause })
}

/// SO_REUSEADDR lets a container start again while connections of its forerunner are in TIME_WAIT.
fn bind_tcp(address: SocketAddr, interface: Option<IfName>, freebind: bool) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    stream::tune(&socket)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(interface) = interface {
        bind_interface(&socket, interface)?;
    }
    if freebind {
        // For IPv6 too.
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from_std(socket.into());
    let address = socket.local_addr()?;
    Ok(Listener::Tcp { socket, address })
}

/// Without SO_REUSEADDR, which for UDP would let two programs take the same port.
fn bind_udp(address: SocketAddr, interface: Option<IfName>, freebind: bool) -> io::Result<Listener> {
    let socket = UdpSocket::from(datagram::open_published_udp(address, interface, freebind)?);
    let address = socket.local_addr()?;
    let socket = OwnedFd::from(socket);
    Ok(Listener::Udp { socket, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_random_port_has_one_number_in_both_families() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let listeners = listen(&publish(None, None, transport), false).expect("free ports");
            let port = listeners[0].address().port();
            assert_ne!(port, 0);
            assert!(listeners.iter().all(|listener| listener.address().port() == port));
            assert!(listeners.iter().all(|listener| listener.address().ip().is_unspecified()));
        }
    }

    #[test]
    fn a_conflict_names_the_address_and_who_holds_it() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let held =
                listen(&publish(Some(Ipv4Addr::LOCALHOST), None, transport), false).expect("a free port");
            let port = held[0].address().port();
            let error = listen(&publish(Some(Ipv4Addr::LOCALHOST), Some(port), transport), false)
                .expect_err("conflict");
            let text = error.to_string();
            let pid = std::process::id();
            assert!(text.contains(&format!("127.0.0.1:{port}/{transport}")), "{text}");
            assert!(text.contains("os error 98") && text.contains(&format!("pid {pid}")), "{text}");

            let error =
                listen(&publish(None, Some(port), transport), false).expect_err("the wildcard conflicts too");
            assert!(error.to_string().contains(&format!("pid {pid}")), "{error}");
        }
    }

    #[test]
    fn an_address_of_nobody_is_bound_if_asked_for() {
        for transport in [Transport::Tcp, Transport::Udp] {
            for address in [IpAddr::from([192, 0, 2, 77]), "2001:db8::77".parse().expect("an address")] {
                let foreign = Publish { host_addr: Some(address), ..publish(None, None, transport) };
                let error = listen(&foreign, false).expect_err("nobody has it");
                assert!(error.to_string().contains("ip address"), "{error}");
                let listeners = listen(&foreign, true).expect("it may come");
                assert_eq!(listeners[0].address().ip(), address);
            }
        }
    }

    #[test]
    fn a_low_port_names_the_sysctl() {
        let failure = Failure { address: SocketAddr::from(([0, 0, 0, 0], 80)), cause: Errno::EACCES.into() };
        let text = failure.explain(Transport::Tcp).to_string();
        assert!(text.contains("sudo sysctl net.ipv4.ip_unprivileged_port_start=80 "), "{text}");
    }

    #[test]
    fn what_a_published_port_accepts_is_kept_alive_too() {
        let publish = publish(Some(Ipv4Addr::LOCALHOST), None, Transport::Tcp);
        let listeners = listen(&publish, false).expect("a free port");
        let Listener::Tcp { socket, address } = &listeners[0] else { panic!("not UDP") };
        let _client = std::net::TcpStream::connect(address).expect("connected");
        let (accepted, _) = socket.accept().expect("at hand");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("option") && socket.keepalive().expect("option"));
        assert_eq!(socket.tcp_keepalive_time().expect("option"), stream::KEEPALIVE_IDLE);
    }

    #[test]
    fn reset_is_seen_as_one() {
        let (stream, mut accepted) = connected();
        reset(stream).expect("option");
        let error = accepted.read(&mut [0; 8]).expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_refusal_is_a_refusal() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let error = match connect(closed.expect("loopback"), &Outbound::default()) {
            Err(error) => error,
            Ok(stream) => loop {
                if let Some(error) = stream.take_error().expect("option") {
                    break error;
                }
                std::thread::sleep(Duration::from_millis(1));
            },
        };
        assert_eq!(host_error(&error), HostError::Refused);
        assert_eq!(host_error(&Errno::EMFILE.into()), HostError::Exhausted);
        assert_eq!(host_error(&Errno::ENETUNREACH.into()), HostError::NetUnreachable);
    }

    #[test]
    fn a_host_without_free_ports_has_a_network_still() {
        let error = Errno::EADDRNOTAVAIL.into();
        let meaning = |to: &str| connect_error(&error, to.parse().expect("an address"));
        assert_eq!(meaning("192.0.2.1:80"), HostError::Exhausted);
        assert_eq!(meaning("[2001:db8::1]:80"), HostError::NetUnreachable);
    }

    fn connected() -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("bound");
        let stream = connect(to, &Outbound::default()).expect("started");
        let (accepted, _) = listener.accept().expect("accepted");
        (stream, accepted)
    }

    fn publish(address: Option<Ipv4Addr>, host_port: Option<u16>, transport: Transport) -> Publish {
        Publish {
            host_addr: address.map(IpAddr::V4),
            host_port,
            host_interface: None,
            guest_addr: None,
            guest_port: 80,
            transport,
        }
    }
}
