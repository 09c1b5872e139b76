//! Options of TCP sockets that rnet connects and accepts.
//!
//! Stream sockets are without Nagle's delay, and with keepalive: after 75 idle seconds the remote end is asked every
//! 15, and given up after five unanswered questions. That holds in every state, so that a socket whose remote end
//! vanished does not stay in FIN_WAIT2, where Linux waits without end for the peer of a socket that is still open.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::net::Family;

/// How long a connection is silent before its other end is asked whether it is there.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(75);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 5;
/// How often an unanswered SYN is repeated, each time after twice as long: 31 seconds (35 since Linux 6.5, whose first
/// repetitions do not slow down), as patient as rnet is with a guest over its link.
const SYN_REPETITIONS: u32 = 4;

mod option {
    use nix::{setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// How often a SYN is repeated (tcp(7), TCP_SYNCNT).
        SynCount,
        SetOnly,
        libc::IPPROTO_TCP,
        libc::TCP_SYNCNT,
        u32
    );
}

/// A nonblocking socket of `family` in the thread's network namespace, with the options described above, that gives a
/// silent destination up after half a minute.
pub(crate) fn open(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    tune(&socket)?;
    setsockopt(&socket, option::SynCount, &SYN_REPETITIONS)?;
    Ok(socket.into())
}

/// Gives a stream, or a listener and with it all that it accepts, the options described above.
pub fn tune(stream: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_kept_alive_and_does_not_wait_to_fill_segments() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        tune(&listener).expect("options");
        let opened = Socket::from(open(Family::V4).expect("a socket"));
        let _connected = TcpStream::connect(listener.local_addr().expect("bound")).expect("started");
        let (accepted, _) = listener.accept().expect("accepted");
        for socket in [SockRef::from(&accepted), SockRef::from(&opened)] {
            assert!(socket.tcp_nodelay().expect("option") && socket.keepalive().expect("option"));
            assert_eq!(socket.tcp_keepalive_time().expect("option"), KEEPALIVE_IDLE);
        }
        assert!(opened.nonblocking().expect("option"));
    }
}
