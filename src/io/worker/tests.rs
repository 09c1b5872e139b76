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
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let frames = vec![udp_frame(closed.expect("loopback").port()); FRAMES_PER_TURN];
    let guest = Guest::start(&frames);
    for n in 0..FRAMES_PER_TURN {
        let frame = guest.receive().unwrap_or_else(|error| panic!("error {n}: {error}"));
        let icmp = &frame[ETHERNET_BYTES + 20..];
        assert_eq!(icmp[..2], [3, 3], "port unreachable");
    }
}

/// A guest on a link of datagrams instead of frames, whose gateway stands for the host's loopback.
struct Guest {
    link: UnixDatagram,
    stop: Stop,
    worker: Option<thread::JoinHandle<Result<()>>>,
}

impl Guest {
    /// Starts the worker when the guest has sent `frames`.
    fn start(frames: &[Vec<u8>]) -> Self {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (link, far) = pair.expect("a socket pair");
        let (link, far) = (UnixDatagram::from(link), UnixDatagram::from(far));
        for frame in frames {
            link.send(frame).expect("room");
        }
        link.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        far.set_nonblocking(true).expect("a flag");
        let plan = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("a plan");
        let mut network = Network { mtu: 1500, ..Network::new(plan, None) };
        network.host_access.loopback = true;
        let resolver = Resolver::new("/nonexistent");
        let mut worker = Worker::new(network, resolver, 1).expect("a worker");
        let far = LinkFd {
            kind: LinkKind::TapPlain,
            udp_segmentation: false,
            mac: Some(MAC),
            fd: far.into(),
            notes: Vec::new(),
        };
        worker.add_link(Link::new(far)).expect("a link");
        let stop = worker.stopper();
        Self { link, stop, worker: Some(thread::spawn(|| worker.run())) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; 2000];
        let len = self.link.recv(&mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(Ok(result)) = self.worker.take().map(thread::JoinHandle::join) {
            result.expect("a worker that ends when asked");
        }
    }
}

/// An empty datagram to `port` of the gateway.
fn udp_frame(port: u16) -> Vec<u8> {
    let mut frame = [MacAddr::GATEWAY.0, MAC.0].concat();
    frame.extend([8, 0]);
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x62, 0x6c, 10, 0, 2, 100, 10, 0, 2, 2]);
    frame.extend([0x10, 0x00]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}
