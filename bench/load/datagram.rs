//! UDP floods, at a pace or as fast as they go: how much arrives, and what is lost on the way.
//!
//! The first byte of a datagram says what it is: [`ECHO`], [`DATA`], or [`GO`], which asks the server for a
//! flood to the sender: `BYTES PER_SECOND MILLISECONDS` in decimal follow it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::peer::{Control, reach};
use crate::server::Tally;
use crate::stream::warm_up;
use crate::transact::udp_to;
use crate::{Direction, begin, say};

/// A datagram to be sent back as it is.
pub(crate) const ECHO: u8 = b'e';
const DATA: u8 = b'd';
const GO: u8 = b'g';

/// What is still on its way when the sender has stopped arrives within this.
const DRAIN: Duration = Duration::from_millis(300);
/// A paced sender sleeps for this long and then sends what is due.
const TICK: Duration = Duration::from_micros(500);
/// An unpaced sender looks at the clock once in so many datagrams.
const BURST: u64 = 32;
/// The largest UDP payload.
const LARGEST: usize = 65507;

/// Payload of each datagram: always the same, or anything from the least to the most, as in `64-1400`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    least: usize,
    most: usize,
}

impl FromStr for Sizes {
    type Err = ParseIntError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let (least, most) = word.split_once('-').unwrap_or((word, word));
        let (least, most) = (least.parse::<usize>()?, most.parse::<usize>()?);
        Ok(Self { least: least.clamp(1, LARGEST), most: most.clamp(least.clamp(1, LARGEST), LARGEST) })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.least, self.most)
    }
}

impl Sizes {
    /// The size of datagram `number`: a golden-ratio sequence, in which neighbours always differ.
    fn of(self, number: u64) -> usize {
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.least + ((scattered as usize * (self.most - self.least + 1)) >> 32)
    }

    fn mean(self) -> f64 {
        (self.least + self.most) as f64 / 2.0
    }
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// How large.
    pub(crate) sizes: Sizes,
    /// Datagrams per second; 0 is as fast as they go.
    pub(crate) per_second: u64,
}

impl Flood {
    /// Sends for `time`, counting what the kernel took.
    fn run(self, time: Duration, sent: &AtomicU64, send: impl Fn(&[u8]) -> io::Result<usize>) {
        let payload = vec![DATA; self.sizes.most];
        let start = Instant::now();
        let mut tried = 0;
        loop {
            let elapsed = start.elapsed();
            if elapsed >= time {
                return;
            }
            let due = match self.per_second {
                0 => tried + BURST,
                rate => (elapsed.as_secs_f64() * rate as f64) as u64,
            };
            for number in tried..due {
                // A datagram that was refused (no room, or an earlier one bounced) counts as not sent.
                if send(&payload[..self.sizes.of(number)]).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            tried = due;
            if self.per_second > 0 {
                thread::sleep(TICK);
            }
        }
    }
}

/// The server's side: echoes, counts, and floods whoever asks.
pub(crate) fn answer(socket: &UdpSocket, tally: &Arc<Tally>) -> io::Result<()> {
    let mut payload = vec![0; LARGEST];
    loop {
        // An error here is that of an earlier answer which nobody wanted.
        let Ok((length, from)) = socket.recv_from(&mut payload) else {
            continue;
        };
        match payload.first() {
            Some(&ECHO) => {
                let _ = socket.send_to(&payload[..length], from);
            }
            Some(&DATA) => {
                tally.datagrams_received.fetch_add(1, Ordering::Relaxed);
            }
            Some(&GO) => flood_back(socket.try_clone()?, &payload[1..length], from, tally),
            _ => {}
        }
    }
}

fn flood_back(socket: UdpSocket, wish: &[u8], to: SocketAddr, tally: &Arc<Tally>) {
    let words = String::from_utf8_lossy(wish);
    let mut words = words.split_whitespace();
    let sizes = words.next().and_then(|word| word.parse().ok());
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    let (Some(sizes), [per_second, millis]) = (sizes, &numbers[..]) else {
        return;
    };
    let (flood, millis) = (Flood { sizes, per_second: *per_second }, *millis);
    let tally = Arc::clone(tally);
    thread::spawn(move || {
        flood
            .run(Duration::from_millis(millis), &tally.datagrams_sent, |payload| socket.send_to(payload, to));
    });
}

/// Floods for `time` and prints what arrived.
pub(crate) fn measure(
    to: SocketAddr,
    control: Control,
    direction: Direction,
    flood: Flood,
    time: Duration,
) -> io::Result<()> {
    reach(to)?;
    let socket = udp_to(to)?;
    match direction {
        Direction::In => inward(control, &socket, flood, time),
        Direction::Out | Direction::Both => outward(control, socket, flood, time),
    }
}

fn outward(mut control: Control, socket: UdpSocket, flood: Flood, time: Duration) -> io::Result<()> {
    let (warm, sent) = (warm_up(time), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&sent);
    let sender = thread::spawn(move || flood.run(warm + time, &counter, |payload| socket.send(payload)));
    thread::sleep(warm);
    let opens = control.counts()?;
    begin()?;
    thread::sleep(time);
    let ends = control.counts()?;
    say("end")?;
    // The thread does not panic, and what it sent is counted already.
    let _ = sender.join();
    thread::sleep(DRAIN);
    let arrived = control.counts()?.datagrams_received;
    let window = ends.datagrams_received - opens.datagrams_received;
    report(flood, window, ends.at - opens.at, sent.load(Ordering::Relaxed), arrived)
}

fn inward(mut control: Control, socket: &UdpSocket, flood: Flood, time: Duration) -> io::Result<()> {
    let (warm, received) = (warm_up(time), Arc::new(AtomicU64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let receiver = receive(socket.try_clone()?, &received, &done)?;
    let wish = format!("{} {} {}", flood.sizes, flood.per_second, (warm + time).as_millis());
    socket.send(&[&[GO], wish.as_bytes()].concat())?;
    thread::sleep(warm);
    let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
    begin()?;
    thread::sleep(time);
    let (elapsed, window) = (start.elapsed(), received.load(Ordering::Relaxed) - before);
    say("end")?;
    thread::sleep(DRAIN);
    done.store(true, Ordering::Relaxed);
    // The thread does not panic, and what it got is counted already.
    let _ = receiver.join();
    let sent = control.counts()?.datagrams_sent;
    report(flood, window, elapsed, sent, received.load(Ordering::Relaxed))
}

/// Counts datagrams until `done`.
fn receive(
    socket: UdpSocket,
    received: &Arc<AtomicU64>,
    done: &Arc<AtomicBool>,
) -> io::Result<thread::JoinHandle<()>> {
    socket.set_read_timeout(Some(DRAIN))?;
    let (received, done) = (Arc::clone(received), Arc::clone(done));
    Ok(thread::spawn(move || {
        let mut payload = vec![0; LARGEST];
        while !done.load(Ordering::Relaxed) {
            if socket.recv(&mut payload).is_ok() {
                received.fetch_add(1, Ordering::Relaxed);
            }
        }
    }))
}

/// Prints the rates of the window and the loss of the whole flood.
fn report(flood: Flood, window: u64, time: Duration, sent: u64, arrived: u64) -> io::Result<()> {
    let per_second = window as f64 / time.as_secs_f64();
    let lost = sent.saturating_sub(arrived) as f64 * 100.0 / sent.max(1) as f64;
    say(json!({
        "bps": per_second * flood.sizes.mean() * 8.0,
        "per_second": per_second,
        "loss_percent": lost,
        "sent": sent,
    }))
}
