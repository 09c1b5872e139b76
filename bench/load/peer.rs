//! The client's side of a conversation with `load serve`: a connection opens with one word, which says what
//! is wanted, and a newline.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long a connection may take, and an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that has said what it wants.
pub(crate) fn connect(to: SocketAddr, word: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{word}\n").as_bytes())?;
    Ok(stream)
}

/// What the server had counted at a moment of its own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) at: Duration,
    pub(crate) stream_bytes: u64,
    pub(crate) datagrams_received: u64,
    pub(crate) datagrams_sent: u64,
}

/// A connection that asks the server for its counts.
pub(crate) struct Control {
    ask: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Control {
    /// Connects; tries for as long as [`PATIENCE`], for a server that has only just been started.
    pub(crate) fn open(to: SocketAddr) -> io::Result<Self> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match Self::open_once(to) {
                Ok(control) => return Ok(control),
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn open_once(to: SocketAddr) -> io::Result<Self> {
        let ask = connect(to, "control")?;
        ask.set_read_timeout(Some(PATIENCE))?;
        let mut control = Self { answers: BufReader::new(ask.try_clone()?), ask };
        control.counts()?;
        Ok(control)
    }

    pub(crate) fn counts(&mut self) -> io::Result<Counts> {
        self.ask.write_all(b"?")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [nanos, stream_bytes, datagrams_received, datagrams_sent] = numbers[..] else {
            return Err(Error::new(ErrorKind::InvalidData, format!("no counts: {line:?}")));
        };
        Ok(Counts { at: Duration::from_nanos(nanos), stream_bytes, datagrams_received, datagrams_sent })
    }
}
