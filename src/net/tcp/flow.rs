//! One connection between an endpoint and its host socket: bytes lent both ways, FINs passed on, and how it ends.

use std::io;

use smoltcp::socket::tcp::State;

use super::HostStream;
use super::endpoint::Endpoint;
use crate::net::packet::Ethernet;
use crate::net::policy::Inbound;
use crate::net::{Instant, Outbox, Release};

/// Bytes moved for one flow, each way, before another has its turn.
const SERVICE_BYTES: usize = 512 * 1024;

/// A TCP connection between the guest and the host.
pub(in crate::net) struct TcpFlow {
    pub(in crate::net) ethernet: Ethernet,
    pub(super) stage: Stage,
    /// The published connection's other way to the guest, if the first is refused.
    pub(super) fallback: Option<Inbound>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Waits on the ready list.
    pub(super) queued: bool,
    /// The host has sent its FIN, and it was passed on.
    host_finished: bool,
    /// The guest has sent its FIN, and it was passed on.
    guest_finished: bool,
    pub(in crate::net) to_host_bytes: u64,
    pub(in crate::net) to_guest_bytes: u64,
}

pub(super) enum Stage {
    /// The guest's SYN waits for the host socket; the number of forwarder attempts, if it is for DNS.
    Connecting {
        syn: Box<[u8]>,
        dns_attempt: Option<usize>,
    },
    Open(Box<Endpoint>),
}

/// What became of a flow that was served.
pub(super) enum Outcome {
    /// It lives; it has more to do at once if `true`.
    Alive(bool),
    Ended(Release),
    /// The guest refused a published connection.
    Refused,
}

impl TcpFlow {
    pub(super) fn new(ethernet: Ethernet, stage: Stage) -> Self {
        Self {
            ethernet,
            stage,
            fallback: None,
            readable: true,
            writable: true,
            queued: false,
            host_finished: false,
            guest_finished: false,
            to_host_bytes: 0,
            to_guest_bytes: 0,
        }
    }

    /// Moves bytes both ways and lets the endpoint speak; everything that changes a flow ends here.
    pub(super) fn service(
        &mut self,
        host: &mut impl HostStream,
        outbox: &mut Outbox,
        now: Instant,
    ) -> Outcome {
        let Stage::Open(endpoint) = &mut self.stage else { return Outcome::Alive(false) };
        let mut budget = SERVICE_BYTES;
        let moved = loop {
            if endpoint.is_over() {
                return self.over();
            }
            let before = budget;
            let to_host = pump_to_host(endpoint, host, &mut self.writable);
            let to_guest = pump_to_guest(endpoint, host, &mut self.readable, self.host_finished);
            let (Ok(to_host), Ok((to_guest, eof))) = (to_host, to_guest) else {
                endpoint.abort(&self.ethernet, outbox, now);
                return Outcome::Ended(Release::Reset);
            };
            self.to_host_bytes += to_host as u64;
            self.to_guest_bytes += to_guest as u64;
            budget = budget.saturating_sub(to_host + to_guest);
            if eof {
                endpoint.socket_mut().close();
                endpoint.probe_half_closed(now);
                self.host_finished = true;
                self.readable = false;
            }
            endpoint.transmit(&self.ethernet, outbox, now, false);
            if budget == before || budget == 0 || !outbox.has_frame_room() {
                break before != budget;
            }
        };
        self.finish_guest(host, now);
        self.outcome(moved)
    }

    /// Passes the guest's FIN on once all that came before it is written.
    fn finish_guest(&mut self, host: &mut impl HostStream, now: Instant) {
        let Stage::Open(endpoint) = &mut self.stage else { return };
        if !self.guest_finished && endpoint.guest_has_finished() {
            // A socket that is closed next need not be shut down first.
            if endpoint.socket().state() != State::TimeWait {
                // One that the remote end has reset cannot be shut down; reading it will tell.
                let _ = host.shutdown_write();
            }
            endpoint.probe_half_closed(now);
            self.guest_finished = true;
        }
    }

    fn outcome(&self, moved: bool) -> Outcome {
        let Stage::Open(endpoint) = &self.stage else { return Outcome::Alive(false) };
        match endpoint.socket().state() {
            _ if endpoint.is_over() => self.over(),
            // The guest link is as good as lossless: nobody needs a TIME-WAIT there.
            State::TimeWait if self.guest_finished => Outcome::Ended(Release::Close),
            _ => Outcome::Alive(moved),
        }
    }

    /// Whether the guest's kernel has nothing more to do with the connection.
    pub(super) fn guest_has_left(&self) -> bool {
        let Stage::Open(endpoint) = &self.stage else { return false };
        matches!(endpoint.socket().state(), State::Closed | State::TimeWait)
    }

    /// Whether its host socket has yet to take what the guest has sent; if that `may_say_more`, its end of stream too.
    pub(in crate::net) fn owes_host(&self, may_say_more: bool) -> bool {
        let Stage::Open(endpoint) = &self.stage else { return false };
        !endpoint.opening && (endpoint.socket().can_recv() || (may_say_more && !self.guest_finished))
    }

    /// How a flow whose endpoint is over ends.
    fn over(&self) -> Outcome {
        match &self.stage {
            Stage::Open(endpoint) if endpoint.opening => Outcome::Refused,
            Stage::Open(endpoint) if self.host_finished && endpoint.guest_has_finished() => {
                Outcome::Ended(Release::Close)
            }
            _ => Outcome::Ended(Release::Reset),
        }
    }
}

/// Writes what the guest has sent out of the ring, both pieces if it is wrapped, so that one acknowledgement tells of
/// all. Bytes written; an error is the socket's end.
fn pump_to_host(
    endpoint: &mut Endpoint,
    host: &mut impl HostStream,
    writable: &mut bool,
) -> io::Result<usize> {
    let socket = endpoint.socket_mut();
    let mut total = 0;
    while *writable && socket.can_recv() && !matches!(socket.state(), State::SynReceived | State::SynSent) {
        let written = socket.recv(|bytes| match host.write(bytes) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match written {
            Ok(result) => match blocked(result, writable)? {
                0 => break,
                count => total += count,
            },
            Err(_) => break,
        }
    }
    Ok(total)
}

/// Reads the host socket into the ring until one has nothing or the other no room, so that a FIN leaves with the last
/// bytes. Bytes read, and whether the host has finished (just now: `finished` says whether it had before).
fn pump_to_guest(
    endpoint: &mut Endpoint,
    host: &mut impl HostStream,
    readable: &mut bool,
    finished: bool,
) -> io::Result<(usize, bool)> {
    let socket = endpoint.socket_mut();
    if *readable && finished && socket.send_queue() == 0 {
        // All that it can still say is that its connection has failed.
        *readable = false;
        return blocked(host.read(&mut [0]), readable).map(|_| (0, false));
    }
    let mut total = 0;
    while *readable && socket.can_send() {
        let read = socket.send(|room| match host.read(room) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match read {
            Ok(Ok(0)) => return Ok((total, true)),
            Ok(Ok(count)) => total += count,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => {
                blocked(Err(error), readable)?;
            }
            Err(_) => break,
        }
    }
    Ok((total, false))
}

/// Turns "not now" into no bytes and a cleared readiness bit.
fn blocked(result: io::Result<usize>, ready: &mut bool) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            *ready = false;
            Ok(0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}
