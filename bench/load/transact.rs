//! One request, one answer: latency over TCP and UDP, connections per second, idle connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::datagram::ECHO;
use crate::peer::{PATIENCE, connect, reach};
use crate::server::REQUEST;
use crate::stream::{end_at_once, warm_up};
use crate::{begin, say};

/// How long an answer to a datagram may take before it counts as lost.
const LOST: Duration = Duration::from_millis(250);
/// Most transactions that one window keeps, far above what a core can do.
const MAX_TRANSACTIONS: usize = 1 << 22;

/// Round trips on one TCP connection.
pub(crate) fn tcp(to: SocketAddr, time: Duration) -> io::Result<()> {
    reach(to)?;
    let mut stream = connect(to, "echo")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; REQUEST];
    repeat(time, || {
        stream.write_all(&request)?;
        stream.read_exact(&mut request)?;
        Ok(true)
    })
}

/// Round trips from one UDP socket.
pub(crate) fn udp(to: SocketAddr, time: Duration) -> io::Result<()> {
    reach(to)?;
    let socket = udp_to(to)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut request = [ECHO; REQUEST];
    repeat(time, || {
        socket.send(&request)?;
        match socket.recv(&mut request) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    })
}

/// Connections one after the other: connect, request, answer, close.
pub(crate) fn connects(to: SocketAddr, time: Duration) -> io::Result<()> {
    reach(to)?;
    repeat(time, || {
        let mut stream = connect(to, "crr")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = Vec::with_capacity(REQUEST);
        stream.read_to_end(&mut answer)?;
        Ok(answer.len() == REQUEST)
    })
}

/// A socket that sends to `to` alone.
pub(crate) fn udp_to(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

/// Repeats a transaction, which says whether it was answered, and prints how long each took.
fn repeat(time: Duration, mut transaction: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let warm = Instant::now() + warm_up(time);
    while Instant::now() < warm {
        transaction()?;
    }
    begin()?;
    let (mut took_ns, mut lost) = (Vec::new(), 0u64);
    let opens = Instant::now();
    let mut now = opens;
    while now - opens < time && took_ns.len() < MAX_TRANSACTIONS {
        let answered = transaction()?;
        let end = Instant::now();
        if answered {
            took_ns.push(u64::try_from((end - now).as_nanos()).unwrap_or(u64::MAX));
        } else {
            lost += 1;
        }
        now = end;
    }
    took_ns.sort_unstable();
    say(json!({
        "count": took_ns.len(),
        "lost": lost,
        "per_second": took_ns.len() as f64 / (now - opens).as_secs_f64(),
        "p50_us": percentile_us(&took_ns, 50),
        "p99_us": percentile_us(&took_ns, 99),
    }))
}

fn percentile_us(sorted_ns: &[u64], percent: usize) -> Option<f64> {
    sorted_ns.get(sorted_ns.len() * percent / 100).map(|ns| *ns as f64 / 1e3)
}

/// Opens connections that stay silent, prints how many and how long that took, and holds them until standard
/// input ends.
pub(crate) fn idle(to: SocketAddr, flows: usize) -> io::Result<()> {
    reach(to)?;
    begin()?;
    let start = Instant::now();
    let mut held = Vec::with_capacity(flows);
    let mut failure = None;
    for _ in 0..flows {
        match connect(to, "idle") {
            Ok(stream) => {
                end_at_once(&stream)?;
                held.push(stream);
            }
            Err(error) => {
                failure = Some(error.to_string());
                break;
            }
        }
    }
    say(json!({ "open": held.len(), "seconds": start.elapsed().as_secs_f64(), "failure": failure }))?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
