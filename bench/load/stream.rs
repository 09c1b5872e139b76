//! TCP streams: as many bytes as go through in a time, counted where they arrive.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;

use crate::peer::{Control, ask, open, reach};
use crate::server::CHUNK;
use crate::{Direction, begin, say};

/// Slow start and first wake-ups, before the window opens: a fifth of it, within these.
const WARM_UP_MIN: Duration = Duration::from_millis(200);
const WARM_UP_MAX: Duration = Duration::from_secs(1);

/// The time to let things settle before a window of `time`.
pub(crate) fn warm_up(time: Duration) -> Duration {
    (time / 5).clamp(WARM_UP_MIN, WARM_UP_MAX)
}

/// Both directions' bytes at a moment.
struct Sample {
    out_at: Duration,
    out_bytes: u64,
    in_at: Instant,
    in_bytes: u64,
}

/// Runs `streams` connections for `time` and prints bits per second each way.
pub(crate) fn measure(
    to: SocketAddr,
    mut control: Control,
    direction: Direction,
    streams: usize,
    time: Duration,
) -> io::Result<()> {
    reach(to)?;
    let received = Arc::new(AtomicU64::new(0));
    // All are open before the first byte flows: how long a connection takes beside a load is not the question.
    let open = (0..streams).map(|_| open(to)).collect::<io::Result<Vec<_>>>()?;
    for stream in open {
        start(stream, direction, &received)?;
    }
    thread::sleep(warm_up(time));
    let opens = sample(&mut control, &received)?;
    begin()?;
    thread::sleep(time);
    let ends = sample(&mut control, &received)?;
    say(json!({
        "out_bps": rate(ends.out_bytes - opens.out_bytes, ends.out_at - opens.out_at),
        "in_bps": rate(ends.in_bytes - opens.in_bytes, ends.in_at - opens.in_at),
    }))
}

fn sample(control: &mut Control, received: &AtomicU64) -> io::Result<Sample> {
    let (in_at, in_bytes) = (Instant::now(), received.load(Ordering::Relaxed));
    let counts = control.counts()?;
    Ok(Sample { out_at: counts.at, out_bytes: counts.stream_bytes, in_at, in_bytes })
}

/// Bits per second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64()
}

/// Leaves a connection to threads, which end with the process.
fn start(mut stream: TcpStream, direction: Direction, received: &Arc<AtomicU64>) -> io::Result<()> {
    let word = match direction {
        Direction::Out => "sink",
        Direction::In => "source",
        Direction::Both => "both",
    };
    end_at_once(&stream)?;
    ask(&mut stream, word)?;
    if direction != Direction::In {
        let stream = stream.try_clone()?;
        thread::spawn(move || send(stream));
    }
    if direction != Direction::Out {
        let received = Arc::clone(received);
        thread::spawn(move || receive(stream, &received));
    }
    Ok(())
}

/// Makes the end of the process reset the connection: megabytes that still wait to be sent would outlive it, for
/// a minute if the way is gone by then, and take the kernel's memory from what is measured next.
pub(crate) fn end_at_once(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn send(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    loop {
        stream.write_all(&chunk)?;
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            bytes => received.fetch_add(bytes as u64, Ordering::Relaxed),
        };
    }
}
