//! The loop behind a link of datagrams instead of frames.

use super::*;
use std::os::unix::net::UnixDatagram;
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::config::{Ipv4Plan, LinkKind};
use crate::sys::link::LinkFd;

const ETHERNET_BYTES: usize = 14;
const MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x64]);

#[test]
fn every_icmp_error_reaches_the_guest() {
    let frames = vec![udp_frame(4096, closed_port()); FRAMES_PER_TURN];
    let guest = Guest::start(&[&frames]);
    for n in 0..FRAMES_PER_TURN {
        let frame = guest.receive(0).unwrap_or_else(|error| panic!("error {n}: {error}"));
        assert_port_unreachable(&frame);
    }
}

#[test]
fn a_flow_is_answered_on_its_workers_queue_wherever_it_comes_in() {
    let closed = closed_port();
    let sources: Vec<u16> = (4096..4096 + FRAMES_PER_TURN as u16).collect();
    let frames: Vec<_> = sources.iter().map(|source| udp_frame(*source, closed)).collect();
    for queues in [[&frames[..], &[]], [&[], &frames[..]]] {
        let guest = Guest::start(&queues);
        let shard = Shard::all(2).next().expect("two");
        for queue in 0..2 {
            let mut expected: Vec<u16> =
                sources.iter().copied().filter(|source| shard.of_udp(*source) == queue).collect();
            while !expected.is_empty() {
                let frame = guest.receive(queue).unwrap_or_else(|error| panic!("{expected:?}: {error}"));
                assert_port_unreachable(&frame);
                let quoted = &frame[ETHERNET_BYTES + 20 + 8 + 20..];
                let source = u16::from_be_bytes([quoted[0], quoted[1]]);
                let at = expected.iter().position(|expected| *expected == source);
                expected.remove(at.unwrap_or_else(|| panic!("{source} is answered by {queue}")));
            }
        }
    }
}

#[test]
fn what_one_worker_reads_before_the_end_is_delivered_by_another() {
    let (host, port) = receiver();
    let (_guest, mut team) = draining(&[&[udp_frame(port_of(1), port)], &[]]);
    // The second has nothing to do until the first has looked.
    go_on(&mut team, &[1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1]);
    host.recv(&mut []).expect("the last word");
    assert!(team.iter().all(Option::is_none), "they have ended");
}

#[test]
fn what_the_guest_sends_when_all_have_looked_is_delivered() {
    let (host, port) = receiver();
    let (guest, mut team) = draining(&[&[], &[]]);
    go_on(&mut team, &[0, 1, 0, 1]);
    // As with a datagram that has waited for the answer to an ARP request.
    guest[1].send(&udp_frame(port_of(0), port)).expect("room");
    go_on(&mut team, &[0, 1, 0, 1, 0]);
    host.recv(&mut []).expect("the last word");
    assert!(team.iter().all(Option::is_none), "they have ended");
}

/// A port of the host's loopback, at which datagrams are there or not.
fn receiver() -> (std::net::UdpSocket, u16) {
    let host = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    host.set_nonblocking(true).expect("a flag");
    let port = host.local_addr().expect("bound").port();
    (host, port)
}

/// A guest's port whose datagrams belong to `worker` of two.
fn port_of(worker: usize) -> u16 {
    let shard = Shard::all(2).next().expect("two");
    (4096..).find(|port| shard.of_udp(*port) == worker).expect("every other one")
}

/// A team that was told to drain, and waits for its turns.
fn draining(frames: &[&[Vec<u8>]]) -> (Vec<UnixDatagram>, Vec<Option<Worker>>) {
    let (guest, team) = team(frames);
    team.iter().for_each(|worker| worker.stopper().drain());
    (guest, team.into_iter().map(Some).collect())
}

/// Turns of workers that were woken, but of those that have ended.
fn go_on(team: &mut [Option<Worker>], workers: &[usize]) {
    for worker in workers {
        team[*worker].take_if(|worker| {
            worker.exchange.note();
            worker.turn();
            worker.has_drained()
        });
    }
}

fn closed_port() -> u16 {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    closed.expect("loopback").port()
}

fn assert_port_unreachable(frame: &[u8]) {
    assert_eq!(frame[ETHERNET_BYTES + 20..][..2], [3, 3], "port unreachable");
}

/// A guest on a link of datagrams instead of frames, whose gateway stands for the host's loopback.
struct Guest {
    queues: Vec<UnixDatagram>,
    workers: Vec<(Stop, thread::JoinHandle<Result<()>>)>,
}

impl Guest {
    /// Starts a worker for each queue when the guest has sent `frames` on them.
    fn start(frames: &[&[Vec<u8>]]) -> Self {
        let (queues, team) = team(frames);
        let start = |worker: Worker| (worker.stopper(), thread::spawn(|| worker.run()));
        Self { queues, workers: team.into_iter().map(start).collect() }
    }

    fn receive(&self, queue: usize) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; 2000];
        let len = self.queues[queue].recv(&mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for (stop, worker) in self.workers.drain(..) {
            stop.stop();
            if let Ok(result) = worker.join() {
                result.expect("a worker that ends when asked");
            }
        }
    }
}

/// The guest's ends of its queues, on which it has sent `frames`, and a worker for each.
fn team(frames: &[&[Vec<u8>]]) -> (Vec<UnixDatagram>, Vec<Worker>) {
    let (queues, far): (Vec<_>, Vec<_>) = frames.iter().map(|frames| queue(frames)).unzip();
    let plan = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("a plan");
    let mut network = Network { mtu: 1500, ..Network::new(plan, None) };
    network.host_access.loopback = true;
    let resolver = Resolver::new("/nonexistent");
    let (kind, notes) = (LinkKind::TapPlain, Vec::new());
    let link = LinkFd { kind, udp_segmentation: false, mac: None, queues: far, notes };
    (queues, Worker::team(network, Link::queues(link), Some(MAC), &resolver, 1).expect("workers"))
}

/// Both ends of a queue, on which the guest has sent `frames`.
fn queue(frames: &[Vec<u8>]) -> (UnixDatagram, OwnedFd) {
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (near, far) = pair.expect("a socket pair");
    let (near, far) = (UnixDatagram::from(near), UnixDatagram::from(far));
    for frame in frames {
        near.send(frame).expect("room");
    }
    near.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
    far.set_nonblocking(true).expect("a flag");
    (near, far.into())
}

/// An empty datagram from `source` to `port` of the gateway.
fn udp_frame(source: u16, port: u16) -> Vec<u8> {
    let mut frame = [MacAddr::GATEWAY.0, MAC.0].concat();
    frame.extend([8, 0]);
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x62, 0x6c, 10, 0, 2, 100, 10, 0, 2, 2]);
    frame.extend(source.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}
