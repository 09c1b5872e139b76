//! Servers of the small world, each on threads of its own until it is dropped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::process::PATIENCE;
use crate::space::Space;

/// How often a waiting server looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);

/// A running server: how many connections or datagrams it has met.
pub(crate) struct Service {
    addr: SocketAddr,
    met: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    listener: Option<TcpListener>,
}

impl Service {
    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Connections accepted or datagrams received so far.
    pub(crate) fn met(&self) -> usize {
        self.met.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener {
            // Wakes a blocked accept, which then fails.
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
}

/// Serves each TCP connection to `addr` (port 0: any) with `serve`, on a thread of its own.
pub(crate) fn tcp(
    space: &Space,
    addr: impl Into<SocketAddr>,
    serve: impl Fn(&TcpStream) + Send + Sync + 'static,
) -> Service {
    let serve = Arc::new(serve);
    accept(space, addr.into(), move |stream| {
        let serve = Arc::clone(&serve);
        thread::spawn(move || serve(&stream));
    })
}

/// Accepts TCP connections to `addr` and leaves them alone until the service is dropped.
pub(crate) fn tcp_idle(space: &Space, addr: impl Into<SocketAddr>) -> Service {
    let mut held = Vec::new();
    accept(space, addr.into(), move |stream| held.push(stream))
}

/// Gives each connection to `take`, on one thread.
fn accept(space: &Space, addr: SocketAddr, mut take: impl FnMut(TcpStream) + Send + 'static) -> Service {
    let listener = space.within(move || listen(addr));
    let service = Service {
        addr: listener.local_addr().expect("bound"),
        met: Arc::default(),
        stop: Arc::default(),
        listener: Some(listener.try_clone().expect("an fd to spare")),
    };
    let met = Arc::clone(&service.met);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            met.fetch_add(1, Ordering::SeqCst);
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.set_write_timeout(Some(PATIENCE));
            take(stream);
        }
    });
    service
}

/// A listener whose backlog holds a burst of thousands.
fn listen(addr: SocketAddr) -> TcpListener {
    let socket = bind(addr, Type::STREAM);
    socket.listen(4096).expect("bound");
    socket.into()
}

/// A socket bound to `addr`, of that family alone.
fn bind(addr: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(addr), kind, None).expect("an fd to spare");
    if addr.is_ipv6() {
        socket.set_only_v6(true).expect("not bound yet");
    }
    socket.set_reuse_address(kind == Type::STREAM).expect("a new socket");
    socket.bind(&addr.into()).unwrap_or_else(|error| panic!("bind {addr}: {error}"));
    socket
}

/// Sends every byte back; ends when the client does.
pub(crate) fn echo(mut stream: &TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

/// Answers each datagram to `addr` with what `answer` makes of it; `None` is silence.
pub(crate) fn udp(
    space: &Space,
    addr: impl Into<SocketAddr>,
    answer: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
) -> Service {
    let addr = addr.into();
    let socket: UdpSocket = space.within(move || bind(addr, Type::DGRAM)).into();
    socket.set_read_timeout(Some(TICK)).expect("not zero");
    let service = Service {
        addr: socket.local_addr().expect("bound"),
        met: Arc::default(),
        stop: Arc::default(),
        listener: None,
    };
    let (met, stop) = (Arc::clone(&service.met), Arc::clone(&service.stop));
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while !stop.load(Ordering::SeqCst) {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            met.fetch_add(1, Ordering::SeqCst);
            if let Some(reply) = answer(&buffer[..len], from) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    service
}

/// Sends each datagram back.
pub(crate) fn udp_echo(space: &Space, addr: impl Into<SocketAddr>) -> Service {
    udp(space, addr, |datagram, _| Some(datagram.to_vec()))
}

/// A DNS server over UDP and TCP: every name has the address `answer`, and under `big.` a text too large for
/// 512 bytes, so that the answer over UDP is truncated.
pub(crate) struct DnsServer {
    pub(crate) udp: Service,
    pub(crate) tcp: Service,
}

impl DnsServer {
    /// Listens on port 53 of `addr`.
    pub(crate) fn start(space: &Space, addr: impl Into<std::net::IpAddr>, answer: Ipv4Addr) -> Self {
        let addr = SocketAddr::new(addr.into(), 53);
        Self {
            udp: udp(space, addr, move |query, _| dns_reply(query, answer, 512)),
            tcp: tcp(space, addr, move |stream| serve_dns(stream, answer)),
        }
    }

    /// Queries so far.
    pub(crate) fn met(&self) -> usize {
        self.udp.met() + self.tcp.met()
    }
}

fn serve_dns(mut stream: &TcpStream, answer: Ipv4Addr) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        let Ok(()) = stream.read_exact(&mut query) else {
            return;
        };
        let Some(reply) = dns_reply(&query, answer, usize::from(u16::MAX)) else {
            return;
        };
        let length = u16::try_from(reply.len()).expect("limited").to_be_bytes();
        if stream.write_all(&[&length[..], &reply].concat()).is_err() {
            return;
        }
    }
}

/// The answer to one question (RFC 1035 section 4.1), with TC and no answer if it exceeds `limit` bytes.
fn dns_reply(query: &[u8], answer: Ipv4Addr, limit: usize) -> Option<Vec<u8>> {
    const TXT: u16 = 16;
    const A: u16 = 1;
    let name = query.get(12..)?;
    let name_len = name.iter().position(|&byte| byte == 0)? + 1;
    let question = name.get(..name_len + 4)?;
    let kind = u16::from_be_bytes([question[name_len], question[name_len + 1]]);
    let record = match kind {
        A => Some(answer.octets().to_vec()),
        TXT if name.starts_with(b"\x03big") => Some([&[200][..], &[b'x'; 200]].concat().repeat(4)),
        _ => None,
    };
    let mut reply = [query.get(..2)?, &[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], question].concat();
    let Some(record) = record else {
        return Some(reply);
    };
    if reply.len() + 12 + record.len() > limit {
        reply[2] |= 0x02;
        return Some(reply);
    }
    reply[7] = 1;
    reply.extend([0xc0, 12]);
    reply.extend(kind.to_be_bytes());
    reply.extend([0, 1, 0, 0, 0, 1]);
    reply.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
    reply.extend(record);
    Some(reply)
}
